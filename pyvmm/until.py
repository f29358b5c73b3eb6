# SPDX-License-Identifier: Apache-2.0
"""The ends that a caller expects: what `until=` takes besides addresses.

m.run(until=pyvmm.printed("login: "), timeout=10)
m.run(until=[pyvmm.exits(1000), pyvmm.elapsed(2.5), "panic"])

All of them are found in C, at the access that brings them about, and the run
ends behind that access.
"""

from __future__ import annotations

from . import _vmm
from .debug import Point, mode_of
from .stop import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from .machine import Machine
    from .run import End
    from .symbols import Address

    # What until= takes: one of them, or a list or tuple of several.
    Target: TypeAlias = "Address | Condition"
    Until: TypeAlias = "Target | list[Target] | tuple[Target, ...] | None"

RETURN = "return"  # a word of C: no symbol can have that name
EXITS_MAX = (1 << 32) - 1
LAST = 8  # bytes that one access may print


class Condition:
    """Something that ends a run as "until"; see the functions that make one.

    Threads: any; it never changes.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<until {self.text}>"


class Printed(Condition):
    """printed()."""

    __slots__ = ("wanted",)

    def __init__(self, wanted: bytes) -> None:
        super().__init__(f"printed({wanted!r})")
        self.wanted = wanted


class Exits(Condition):
    """exits()."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        super().__init__(f"exits({count})")
        self.count = count


class Elapsed(Condition):
    """elapsed()."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__(f"elapsed({seconds:g})")
        self.seconds = seconds


class Written(Condition):
    """written()."""

    __slots__ = ("address", "pio", "size")

    def __init__(self, address: Address, pio: bool, size: int) -> None:
        word = "port=" if pio else ""
        shown = f"{address:#x}" if isinstance(address, int) else repr(address)
        super().__init__(f"written({word}{shown})")
        self.address = address
        self.pio = pio
        self.size = size


class Returned(Condition):
    """returned()."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("returned()")


def printed(text: str | bytes) -> Condition:
    """The guest has printed this on its console, from now on.

    `text`: as it is, no pattern; text as UTF-8. A run may wait for 4 of them.
    Raises ValueError when it is empty.
    """
    wanted = text.encode() if isinstance(text, str) else bytes(text)
    if not wanted:
        raise ValueError("printed('') would be there before the guest runs")
    return Printed(wanted)


def exits(count: int) -> Condition:
    """The guest has left KVM_RUN so often more, on one of its vCPUs."""
    if not isinstance(count, int) or not 1 <= count <= EXITS_MAX:
        raise ValueError(f"exits {count!r} is outside 1..{EXITS_MAX}")
    return Exits(count)


def elapsed(seconds: float) -> Condition:
    """So many seconds of wall time have passed: no failure, as `timeout` is."""
    if not seconds >= 0:
        raise ValueError(f"elapsed {seconds!r} is no number from 0 on")
    return Elapsed(seconds)


def written(
    address: Address | None = None, *, port: int | None = None, size: int = 4
) -> Condition:
    """The guest has written to a port, or to any of `size` bytes.

    `address`: guest-physical, of a device; or virtual, in RAM, where a
    watchpoint finds it (`size` is 1, 2, 4 or 8 then, and it wants a debug
    register: Unsupported where the host has no watchpoints). Of a port only
    writes that include it count, unless `size` is given.
    """
    if (address is None) == (port is None):
        raise TypeError("written() takes an address, or port=")
    if port is not None:
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port:#x} is outside 0..0xffff")
        return Written(port, True, 1)
    assert address is not None
    if size < 1:
        raise ValueError(f"size {size} is not 1 or more")
    return Written(address, False, size)


def returned() -> Condition:
    """The function that vCPU 0 is about to begin has returned.

    For a guest that stands before a function's first instruction: the return
    address is on top of its stack. The word "return" means the same.
    """
    return Returned()


class Armed:
    """The targets of one run, resolved and put in place; a context manager.

    `points`: those that want a debug register. `limit`: seconds, of elapsed().

    Threads: the one that runs.
    """

    def __init__(self, machine: Machine, targets: Until) -> None:
        self.machine = machine
        listed: Iterable[object] = (
            targets if isinstance(targets, list | tuple) else [targets]
        )
        self.conditions: list[Condition] = []
        addresses: list[Address] = []
        for target in listed:
            if target == RETURN:
                target = Returned()
            if isinstance(target, Condition):
                self.conditions.append(target)
            elif target is not None:
                addresses.append(target)  # type: ignore[arg-type]
        self.texts = [c for c in self.conditions if isinstance(c, Printed)]
        self.limit = min(
            (c.seconds for c in self.conditions if isinstance(c, Elapsed)),
            default=None,
        )
        self.exits = min(
            (c.count for c in self.conditions if isinstance(c, Exits)),
            default=0,
        )
        self.write: tuple[bool, int, int] = (False, 0, 0)
        self.stack: int | None = None
        self._back: Point | None = None
        self.points = machine._debug.targets(addresses)
        for condition in self.conditions:
            if isinstance(condition, Written):
                self._add_write(condition)
            elif isinstance(condition, Returned):
                self._add_return()
        machine._debug.check_room(self.points)

    def _add_write(self, condition: Written) -> None:
        machine = self.machine
        address = condition.address
        if not isinstance(address, int):
            address = machine.symbols.address(address)
        if not condition.pio and machine.memory.span(address, 1):
            self.points.append(
                machine._debug.make(address, "w", condition.size, True)
            )
            return
        if self.write[2]:
            raise ValueError("a run waits for one written() of a device")
        self.write = condition.pio, address, condition.size

    def _add_return(self) -> None:
        address, self.stack = return_place(self.machine)
        self._back = self.machine._debug.make(address, "x", 1, True)
        self.points.append(self._back)

    def __enter__(self) -> Armed:
        machine = self.machine
        if self.texts:
            machine.console._want([text.wanted for text in self.texts])
        if self.exits or self.write[2]:
            for vcpu in machine._runner.vcpus:
                vcpu.until(self.exits, *self.write)
        return self

    def __exit__(self, *exc: object) -> None:
        machine = self.machine
        if self.texts:
            machine.console._want([])
        if self.exits or self.write[2]:
            for vcpu in machine._runner.vcpus:
                if not vcpu.closed:
                    vcpu.until(0, False, 0, 0)

    def came_back(self, point: Point | None) -> bool:
        """Whether that end counts: of a return, with its stack pointer."""
        if point is None or point is not self._back:
            return True
        return self.machine.cpu.rsp == self.stack

    def met(self, end: End, timeout: float | None) -> Condition | None:
        """Which condition this end is due to, if it is due to one."""
        exit = end[1]
        kinds: tuple[type[Condition], ...] = ()
        if exit.reason == _vmm.EXIT_TIMEOUT and self.limit is not None:
            if timeout is None or self.limit <= timeout:
                kinds = (Elapsed,)
        elif exit.reason == _vmm.EXIT_UNTIL:
            pio, addr, size = self.write
            kinds = Printed, Exits, Written
            if (
                exit.pio == pio
                and exit.addr < addr + size
                and (addr < exit.addr + exit.size)
            ):
                kinds = Written, Exits, Printed
            elif not exit.pio or exit.addr != _vmm.CONSOLE_PORT:
                kinds = Exits, Printed, Written
        found = [
            c for kind in kinds for c in self.conditions if type(c) is kind
        ]
        if found and found[0] in self.texts:
            return self._last_text()
        return found[0] if found else None

    def _last_text(self) -> Condition:
        """The text that the console ends with, or nearly so."""
        native = self.machine.console.native
        longest = max(len(text.wanted) for text in self.texts) + LAST
        seen = native.read(max(0, native.end - longest))
        return max(self.texts, key=lambda text: seen.rfind(text.wanted))


def return_place(machine: Machine) -> tuple[int, int]:
    """Where vCPU 0's function returns to, and its rsp then."""
    cpu = machine.cpu
    mode = mode_of(Registers(cpu.vcpu.get("regs"), cpu.vcpu.get("sregs")))
    if mode == "real":
        raise ValueError('until="return" wants a guest in a mode with a C ABI')
    width = 4 if mode == "protected" else 8
    stack = cpu.rsp
    address = int.from_bytes(cpu.mem.read(stack, width), "little")
    return address, stack + width

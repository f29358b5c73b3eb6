# SPDX-License-Identifier: Apache-2.0
"""Devices written in Python, and their interrupt lines."""

from __future__ import annotations

from types import MethodType

from .services import Services

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self, TypeVar, overload

    from . import _vmm
    from .doorbell import Key
    from .machine import Machine
    from .registers import Layout

    # Registers, their device, which range, whether they read and write.
    Served = tuple[_vmm.Registers, "Device", int, bool, bool]

    F = TypeVar("F", bound=Callable[..., Any])

# What is declared in these is loaded for classes that have some.
REGISTERS = (f"{__package__}.registers", f"{__package__}.doorbell")
LAST_LINE = 23  # of the IOAPIC


class Irq:
    """An interrupt line of a device, declared in its class: `irq = Irq()`.

    On a device it is the line itself, with set(), clear() and pulse(). The
    line's number is that of attach(), or else `line`, 1 to 23, or else it is
    chosen when the device is attached.
    """

    name = "irq"

    def __init__(self, line: int | None = None) -> None:
        if line is not None and not isinstance(line, int):
            raise TypeError(f"line is an int, not {type(line).__name__}")
        if line is not None and not 0 < line <= LAST_LINE:
            raise ValueError(f"line {line} is outside 1..{LAST_LINE}")
        self.line = line

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(
        self, device: Device | None, owner: type | None = None
    ) -> IrqLine:
        if device is None:
            return self  # type: ignore[return-value]
        # Not a data descriptor: from now on the instance's own is found.
        line = IrqLine(device, self.name)
        device.__dict__[self.name] = line
        return line


class Msi:
    """A message-signalled interrupt of a device: `msi = Msi()` in its class.

    On a device it is the message, with `address` and `data`, which the guest
    programs through registers of the device, and pulse(), which sends it.
    """

    name = "msi"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(
        self, device: Device | None, owner: type | None = None
    ) -> Message:
        if device is None:
            return self  # type: ignore[return-value]
        # As Irq does.
        message = Message(device, self.name)
        device.__dict__[self.name] = message
        return message


class Message:
    """The message of one device: what `device.msi` is.

    `address` and `data` as the processor's manual has them (Intel SDM 3A,
    "Message Signalled Interrupts"): 0xfee00000 and a vector for vCPU 0.

    Threads: any.
    """

    __slots__ = ("_machine", "address", "data", "device", "name")

    def __init__(self, device: object, name: str) -> None:
        self.device = device
        self.name = name
        self.address = 0
        self.data = 0
        self._machine: Machine | None = None

    def pulse(self) -> bool:
        """Send it; whether some vCPU took it.

        ValueError when the device is not attached or its machine closed,
        OSError when the host refuses the message.
        """
        if self._machine is None:
            raise ValueError(
                f"{type(self.device).__name__}.{self.name} is not connected: "
                "attach the device to a machine first"
            )
        vm = self._machine._realise()
        return vm.msi(self.address, self.data)

    def __repr__(self) -> str:
        name = f"{type(self.device).__name__}.{self.name}"
        return f"<Message {name} {self.data:#x} to {self.address:#x}>"


class Range:
    """A further range of a device, declared in its class: `ports = Range(2)`.

    The first range is the device's own: `size`, read(), write(), what attach()
    is told. `size`: bytes of this one. `port` or `mmio`: where it is; without
    them an address is chosen. `attach(device, places={"ports": 0x72})` puts it
    elsewhere, on ports when it has `port`.

    `Reg(..., range=ports)` is a register in it. For one without registers
    there are methods, with offsets from its own base:

        @ports.on_read
        def read_ports(self, offset, size): ...

        @ports.on_write
        def write_ports(self, offset, size, value): ...

    On a device it is the `RangeAt`, which knows where it is.
    """

    name = ""

    def __init__(
        self, size: int, *, port: int | None = None, mmio: int | None = None
    ) -> None:
        if not isinstance(size, int) or size <= 0:
            raise ValueError(f"size {size!r} of a Range is not above 0")
        if port is not None and mmio is not None:
            raise ValueError("a Range is at a port or at an address, not both")
        self.size = size
        self.is_port = port is not None
        self.place = mmio if port is None else port
        self._read: Callable[..., int] | None = None
        self._write: Callable[..., object] | None = None

    def on_read(self, function: F) -> F:
        """Decorates the method for reads: `method(self, offset, size)`."""
        self._read = function
        return function

    def on_write(self, function: F) -> F:
        """Decorates the one for writes: `method(self, offset, size, value)`."""
        self._write = function
        return function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, device: None, owner: type) -> Self: ...
        @overload
        def __get__(self, device: Device, owner: type) -> RangeAt: ...

    def __get__(self, device: Device | None, owner: type) -> Self | RangeAt:
        if device is None:
            return self
        # As Irq does. Of a class whose name is what errors call it.
        name = f"{type(device).__name__}.{self.name}"
        at: RangeAt = type(name, (RangeAt,), {})(device, self)
        device.__dict__[self.name] = at
        return at


class RangeAt:
    """A further range of one device: what `device.ports` is.

    `device`, `name`, `size`; once attached `base` and `is_port`. It is what a
    machine's bus calls.

    Threads: as the device.
    """

    def __init__(self, device: Device, range: Range) -> None:
        self.device = device
        self.name = range.name
        self.size = range.size
        self.is_port = range.is_port
        self.base: int | None = None
        self._bind(range)

    def _bind(self, range: Range) -> None:
        """Look up what answers, in the device's class as it is now."""
        device, cls = self.device, type(self.device)
        self._index = 1 + declared(cls, Range).index(self.name)
        self._layout = cls._layout
        self._reads = range._read is None and self._has_registers
        self._writes = range._write is None and self._has_registers
        self.read: Callable[[int, int], int]
        self.write: Callable[[int, int, int], None]
        if self._reads:
            self.read = self._read_registers
        else:
            self.read = MethodType(method(cls, range._read or ones), device)
        if self._writes:
            self.write = self._write_registers
        else:
            self.write = MethodType(
                method(cls, range._write or nothing), device
            )

    @property
    def _has_registers(self) -> bool:
        return self._layout is not None and bool(
            self._layout.places[self._index]
        )

    def _read_registers(self, offset: int, size: int) -> int:
        device = self.device
        return device._registers.read(device, self._index, offset, size)

    def _write_registers(self, offset: int, size: int, value: int) -> None:
        device = self.device
        device._registers.write(device, self._index, offset, size, value)

    def _served(self) -> Served | None:
        """For _vmm.Bus, as Device._served()."""
        if not self._has_registers:
            return None
        return (
            self.device._registers, self.device, self._index,
            self._reads, self._writes,
        )  # fmt: skip

    def where(self, offset: int, size: int = 1) -> str:
        """The registers of an access by name, as Device.where() does."""
        if self._layout is None:
            return ""
        return self._layout.where(offset, size, self._index)

    def __repr__(self) -> str:
        name = f"{type(self.device).__name__}.{self.name}"
        if self.base is None:
            return f"<RangeAt {name} not attached>"
        kind = "port" if self.is_port else "mmio"
        return f"<RangeAt {name} {kind} {self.base:#x}+{self.size:#x}>"


def method(cls: type, function: Callable[..., Any]) -> Callable[..., Any]:
    """The method of that name, which a subclass may have overridden."""
    name = getattr(function, "__name__", "")
    for owner in cls.__mro__:
        if vars(owner).get(name) is function:
            return getattr(cls, name)  # type: ignore[no-any-return]
    return function


def ones(device: Device, offset: int, size: int) -> int:
    """A read where nothing is."""
    return (1 << 8 * size) - 1


def nothing(device: Device, offset: int, size: int, value: int) -> None:
    """A write where nothing is."""


class IrqLine:
    """The interrupt line of one device: what `device.irq` is.

    Lines reach the IOAPIC's pin of the same number. A guest that programs the
    pin edge-triggered (start_info's drivers do) wants pulse(); one that
    programs it level-triggered wants set() and, once acknowledged, clear().
    ValueError when the device is not attached or its machine closed.

    Threads: any.
    """

    __slots__ = ("_machine", "device", "line", "name")

    def __init__(self, device: object, name: str) -> None:
        self.device = device
        self.name = name
        self.line: int | None = None
        self._machine: Machine | None = None

    def _drive(self, *levels: bool) -> None:
        if self._machine is None or self.line is None:
            raise ValueError(
                f"{type(self.device).__name__}.{self.name} is not connected: "
                "attach the device to a machine first"
            )
        vm = self._machine._realise()
        for level in levels:
            vm.irq_line(self.line, level)

    def set(self) -> None:
        """Raise the line, and leave it so."""
        self._drive(True)

    def clear(self) -> None:
        """Lower the line."""
        self._drive(False)

    def pulse(self) -> None:
        """Raise and lower the line: one interrupt for an edge."""
        self._drive(True, False)

    def __repr__(self) -> str:
        line = "not connected" if self.line is None else f"line {self.line}"
        return f"<IrqLine {type(self.device).__name__}.{self.name} {line}>"


class Device(Services):
    """A device in Python, on a range of addresses or ports.

    A subclass sets `size`, the bytes of its range, and declares registers
    (`Reg`) or overrides read() and write(). With `port` or `mmio` as well, an
    int, its range is at that port or address unless attach() is told
    otherwise. `attach()` fills in the rest: `machine`, `base` (address or first
    port), `is_port`, `name`. A subclass need not call `super().__init__`.

        class Adder(pyvmm.Device):
            size = 8
            total = 0

            def read(self, offset, size):
                return self.total

            def write(self, offset, size, value):
                self.total = self.total + value & 0xffff_ffff

    `read_many(offset, size, count)`, where a class has it, answers a guest's
    `rep ins` with size * count bytes; read() does so one by one.

    An exception in a method stops the run and leaves run() unchanged, with a
    note that names the access; a guest's read has then given all ones.

    Threads: read() and write() are called on the thread of the vCPU that made
    the access, timers on that of vCPU 0: one at a time in a machine with one
    vCPU.
    """

    size: int
    is_port: bool = False
    _layout: Layout | None = None
    _registers: _vmm.Registers  # when it declares some
    _bells: Mapping[Key, int] = {}  # eventfds of its doorbells

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declare(cls)

    def __new__(cls, *args: object, **options: object) -> Self:
        if (args or options) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        self = super().__new__(cls)
        if cls._layout is not None:
            self._registers = cls._layout.make()
        return self

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` bytes (1 to 8) at `offset` from the base.

        Returns an int of that size. All of the access is in the range. Here:
        the registers, 0 between them; all ones when there are none.
        """
        if self._layout is not None and self._layout.places[0]:
            return self._registers.read(self, 0, offset, size)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value`, `size` bytes (1 to 8), at `offset`."""
        if self._layout is not None:
            self._registers.write(self, 0, offset, size, value)

    def _served(self) -> Served | None:
        """For _vmm.Bus: its registers, and whether they answer by themselves.

        They do where a subclass has not written read() or write().
        """
        if self._layout is None or not self._layout.places[0]:
            return None
        reads = getattr(self.read, "__func__", None) is Device.read
        writes = getattr(self.write, "__func__", None) is Device.write
        return self._registers, self, 0, reads, writes

    @property
    def _posted(self) -> int:
        """How many posted writes wait, but for those that KVM has."""
        return self._registers.waiting if self._layout is not None else 0

    @property
    def _delivering(self) -> bool:
        """Whether the calling thread is in one of its on_writes."""
        return self._layout is not None and self._registers.delivering

    def drain(self) -> None:
        """Deliver the posted writes that wait to their on_writes methods.

        What they raise leaves it. When it returns, everything that the guest
        wrote before is handled, be it by another thread. From inside such a
        method it does nothing.
        """
        if self.machine is not None and self.machine._vm is not None:
            self.machine._vm.collect()
        if self._layout is not None:
            self._registers.drain(self)

    def where(self, offset: int, size: int = 1) -> str:
        """The registers of an access by name, for traces; "" for none.

        "go", "go+1" for a part of it, "go..fired" for several.
        """
        return self._layout.where(offset, size) if self._layout else ""

    def save(self) -> dict[str, Any]:
        """The state of the device: its registers by name.

        Posted writes that wait are delivered first. A subclass with more to it
        extends both methods.
        """
        self.drain()
        return self._registers.values() if self._layout is not None else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() has returned.

        Registers that `state` does not name stay as they are; no method of
        theirs is called. Raises ValueError for names that are no registers.
        """
        if self._layout is not None:
            self._layout.load(self, state)
        elif state:
            raise ValueError(
                f"{type(self).__name__} has no registers: "
                f"{', '.join(sorted(state))}"
            )

    def __repr__(self) -> str:
        name = type(self).__name__
        values = ""
        if self._layout is not None:
            values = "".join(
                f" {reg}={value:#x}"
                for reg, value in self._registers.values().items()
            )
            if self._posted:
                values += f" {self._posted} posted"
        if self.base is None:
            return f"<{name} not attached{values}>"
        kind = "port" if self.is_port else "mmio"
        return f"<{name} {kind} {self.base:#x}+{self.size:#x}{values}>"


def declare(cls: type[Device]) -> None:
    """A class of devices is made: it has a layout if it declares registers.

    ValueError when they do not fit. A class without any costs nothing.
    """
    if not any(
        type(value).__module__ in REGISTERS
        for owner in cls.__mro__
        for value in vars(owner).values()
    ):
        return
    from .registers import make_layout

    ranges = [getattr(cls, name) for name in declared(cls, Range)]
    cls._layout = layout = make_layout(cls, ranges)
    if layout is not None:
        if not hasattr(cls, "size") and layout.size():
            cls.size = layout.size()
        layout.check_size(getattr(cls, "size", 0))


def irq_names(device: object) -> list[str]:
    """The names of the Irq() lines that a device, or a class, declares."""
    return declared(device, Irq)


def messages(device: object) -> list[Message]:
    """The messages that a device's class declares."""
    return [getattr(device, name) for name in declared(device, Msi)]


def ranges(device: object) -> list[RangeAt]:
    """The further ranges that a device's class declares."""
    return [getattr(device, name) for name in declared(device, Range)]


def declared(device: object, kind: type) -> list[str]:
    """The names of what a device, or a class, declares of one kind."""
    names: list[str] = []
    cls = device if isinstance(device, type) else type(device)
    for owner in cls.__mro__:
        for name, value in vars(owner).items():
            # Not one that a subclass replaced by something else.
            current = getattr(cls, name, None)
            if isinstance(value, kind) and isinstance(current, kind):
                names.append(name)
    return list(dict.fromkeys(names))

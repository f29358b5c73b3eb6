# SPDX-License-Identifier: Apache-2.0
"""Devices written in Python, and their interrupt lines."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine


class Irq:
    """An interrupt line of a device, declared in its class: `irq = Irq()`.

    On a device it is the line itself, with set(), clear() and pulse(). The
    line's number is chosen when the device is attached, unless given.
    """

    name = "irq"

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


class Device:
    """A device in Python, on a range of addresses or ports.

    A subclass sets `size`, the bytes of its range, and overrides read() and
    write(). `attach()` fills in the rest: `machine`, `base` (address or first
    port), `is_port`, `name`. A subclass need not call `super().__init__`.

        class Adder(pyvmm.Device):
            size = 8
            total = 0

            def read(self, offset, size):
                return self.total

            def write(self, offset, size, value):
                self.total = self.total + value & 0xffff_ffff

    An exception in a method stops the run and leaves run() unchanged, with a
    note that names the access; a guest's read has then given all ones.

    Threads: read() and write() are called on the thread of the vCPU that made
    the access, one at a time in a machine with one vCPU.
    """

    size: int
    machine: Machine | None = None
    base: int | None = None
    is_port: bool = False
    name: str = ""

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` bytes (1 to 8) at `offset` from the base.

        Returns an int of that size. All of the access is in the range.
        """
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value`, `size` bytes (1 to 8), at `offset`."""

    def attached(self) -> None:
        """Called when the device has been attached: `machine` is set."""

    def __repr__(self) -> str:
        name = type(self).__name__
        if self.base is None:
            return f"<{name} not attached>"
        kind = "port" if self.is_port else "mmio"
        return f"<{name} {kind} {self.base:#x}+{self.size:#x}>"


def irq_names(device: object) -> list[str]:
    """The names of the Irq() lines that a device's class declares."""
    names: list[str] = []
    for owner in type(device).__mro__:
        for name, value in vars(owner).items():
            # Not one that a subclass replaced by something else.
            current = getattr(type(device), name, None)
            if isinstance(value, Irq) and isinstance(current, Irq):
                names.append(name)
    return list(dict.fromkeys(names))

# SPDX-License-Identifier: Apache-2.0
"""For the tests of those who write devices: no KVM, no guest, no waiting.

from pyvmm import testing

def test_alarm():
    with testing.bus(Alarm()) as bus:
        bus.write_u32(0x0, 250)
        bus.write_u32(0x4, 1)
        bus.advance(250e-6)
        assert bus.irqs == ["irq"]
        assert bus.read_u32(0x8) == 1
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from .. import _vmm
from ..device import Device, IrqLine, irq_names, messages
from ..memory import parse_size
from ..timers import Clock, Timers
from ..worker import Worker
from .machines import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from ..machine import Machine
    from .stateful import GuestStateMachine

D = TypeVar("D", bound=Device)

__all__ = ["Bus", "GuestStateMachine", "bus", "machine"]

SIZE_MAX = 8  # bytes of an access


def __getattr__(name: str) -> Any:
    """What wants Hypothesis is imported when it is used."""
    if name != "GuestStateMachine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .stateful import GuestStateMachine

    return GuestStateMachine


def bus(device: D, *, memory: int | str = 0) -> Bus[D]:
    """A Bus with this device alone on it; a context manager.

    `memory`: bytes of RAM from address 0 on, for devices that use dma_read()
    and the like; 0: none. ValueError when the device is attached somewhere,
    TypeError when it is none.
    """
    return Bus(device, memory)


class Lines:
    """What a line asks of its machine: _realise().irq_line()."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.up: set[str] = set()
        self.rises: list[str] = []
        self.messages: list[tuple[int, int]] = []

    def _realise(self) -> Lines:
        return self

    def irq_line(self, line: int, level: bool) -> None:
        name = self.names[line]
        if not level:
            self.up.discard(name)
        elif name not in self.up:
            self.up.add(name)
            self.rises.append(name)

    def msi(self, addr: int, data: int) -> bool:
        self.messages.append((addr, data))
        return True


class Bus(Generic[D]):
    """What a guest does to a device, without a guest.

    Offsets are from the device's base. What read() returns is checked as in a
    machine. `irqs`: the names of its lines, once for each time that one went
    up. `messages`: (address, data) of each Msi() that was sent.
    `device.machine` is None; timers follow `now`, which only advance() moves,
    and what it watches is looked at by poll(). `memory`: the RAM, or None.

    Threads: one.
    """

    def __init__(self, device: D, memory: int | str = 0) -> None:
        if not isinstance(device, Device):
            raise TypeError(f"{device!r} is no pyvmm.Device")
        if device.base is not None or device._services is not None:
            raise ValueError(f"{device!r} is attached already")
        self.device = device
        self._lines = Lines(irq_names(device))
        self.irqs = self._lines.rises
        self.messages = self._lines.messages
        self._clock = Clock()
        self.timers = Timers(self._clock.now, lambda due_ns: None)
        self.worker = Worker("", self._clock.now)
        self.memory: _vmm.Memory | None = None
        if memory:
            self.memory = _vmm.Memory()
            self.memory.add(0, parse_size(memory))
        for number, name in enumerate(self._lines.names):
            line: IrqLine = getattr(device, name)
            line._machine = cast("Machine", self._lines)
            line.line = number
        for message in messages(device):
            message._machine = cast("Machine", self._lines)
        device._services = self
        device.base = 0
        device.name = device.name or type(device).__name__.lower()
        device.attached()

    def level(self, name: str = "irq") -> bool:
        """Whether that line of the device is up."""
        if name not in self._lines.names:
            raise ValueError(f"{self.device!r} has no line {name!r}")
        return name in self._lines.up

    # -- accesses ------------------------------------------------------------

    def _check(self, offset: int, size: int) -> None:
        if not 1 <= size <= SIZE_MAX:
            raise ValueError(f"size {size} is outside 1..{SIZE_MAX}")
        if not 0 <= offset <= self.device.size - size:
            raise ValueError(
                f"{size} bytes at {offset:#x} are outside the device's "
                f"{self.device.size:#x}"
            )

    def read(self, offset: int, size: int) -> int:
        """What a guest's read of 1 to 8 bytes would get."""
        self._check(offset, size)
        value: object = self.device.read(offset, size)
        limit = (1 << 8 * size) - 1
        if not isinstance(value, int) or not 0 <= value <= limit:
            kind = ValueError if isinstance(value, int) else TypeError
            raise kind(
                f"{type(self.device).__name__}.read({offset:#x}, {size}) "
                f"returned {value!r}; an int from 0 to {limit:#x} was due"
            )
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Do what a guest's write of 1 to 8 bytes would."""
        self._check(offset, size)
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"value {value:#x} has not {size} bytes")
        self.device.write(offset, size, value)

    def read_many(self, offset: int, size: int, count: int) -> bytes:
        """What a guest's `rep ins` of `count` elements would get."""
        self._check(offset, size)
        call = getattr(self.device, "read_many", None)
        if call is None:
            return b"".join(
                self.read(offset, size).to_bytes(size, "little")
                for _ in range(count)
            )
        data = bytes(call(offset, size, count))
        if len(data) != size * count:
            raise TypeError(
                f"{type(self.device).__name__}.read_many({offset:#x}, {size}, "
                f"{count}) returned {len(data)} bytes; {size * count} were due"
            )
        return data

    def read_u8(self, offset: int) -> int:
        """A read of one byte."""
        return self.read(offset, 1)

    def read_u16(self, offset: int) -> int:
        """A read of 2 bytes."""
        return self.read(offset, 2)

    def read_u32(self, offset: int) -> int:
        """A read of 4 bytes."""
        return self.read(offset, 4)

    def read_u64(self, offset: int) -> int:
        """A read of 8 bytes."""
        return self.read(offset, 8)

    def write_u8(self, offset: int, value: int) -> None:
        """A write of one byte."""
        self.write(offset, 1, value)

    def write_u16(self, offset: int, value: int) -> None:
        """A write of 2 bytes."""
        self.write(offset, 2, value)

    def write_u32(self, offset: int, value: int) -> None:
        """A write of 4 bytes."""
        self.write(offset, 4, value)

    def write_u64(self, offset: int, value: int) -> None:
        """A write of 8 bytes."""
        self.write(offset, 8, value)

    # -- time and files ------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds that have passed for the device."""
        return (self._clock.now_ns - 1) / 1e9

    def advance(self, seconds: float) -> None:
        """Let time pass, and each timer be called at its time in it.

        What is posted is delivered first.
        """
        self.device.drain()
        self._clock.advance(seconds, self.timers, self.worker.timers)

    def poll(self, timeout: float | None = 0.0) -> int:
        """Make the calls of watch() that are to be made; how many.

        Waits for one, at most `timeout` seconds of real time.
        """
        return self.worker.poll(timeout)

    def reload(self) -> None:
        """Run the file of the device's class again: Machine.reload()."""
        from ..reload import reload_at

        reload_at(self.device, self)

    # -- closing -------------------------------------------------------------

    def close(self) -> None:
        """The device is free again; its timers are cancelled.

        What is posted is delivered before.
        """
        if self.device._services is not self:
            return
        self.device.drain()
        self.timers.drop(self.device)
        self.worker.stop()
        self.device._services = None
        self.device.base = None
        for name in self._lines.names:
            line: IrqLine = getattr(self.device, name)
            line._machine = None
            line.line = None
        for message in messages(self.device):
            message._machine = None
        self.device.detached()

    def __enter__(self) -> Bus[D]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bus at {self.now:g} s, {self.device!r}>"

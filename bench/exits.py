# SPDX-License-Identifier: Apache-2.0
"""What an exit costs: handled in C, handled by a Python device."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pyvmm import Device, Reg, _vmm

from .bare import Bare
from .measure import Figure, Found, Step, pairs, ratio, timed
from .table import Row

BASE = 0x100000
SIZE = 0x100000
BATCH_NS = 5e6  # long against what entering and leaving run() costs
SHORT_NS = 1e6  # where both sides pay for that
MODES = {"protected": "ring 0", "user": "ring 3"}

READ = 0xE4  # in $PORT, %al
WRITE = 0xE6  # out %al, $PORT
PORTS = {READ: 0xED, WRITE: 0xE9}  # the console's: input waiting; output

REGS = struct.Struct("<18Q")  # struct kvm_regs; 16 is rip


class PythonDevice:
    """The least that a device does."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


# The console's ports are at offsets 0, which is written, and 4, which is read.


class PlainDevice(Device):
    """The same as declared registers."""

    size = 16
    reg = Reg(0x0, 1)
    other = Reg(0x4, 1)


class RuledDevice(Device):
    """Registers whose bits are of every kind."""

    size = 16
    reg = Reg(0x0, 1, mask=0x7F, ro=0x03, w1c=0x0C, wo=0x30)
    other = Reg(0x4, 1, mask=0x7F, ro=0x03, w1c=0x0C, wo=0x30)


class HookedDevice(Device):
    """Registers with methods."""

    size = 16
    reg = Reg(0x0, 1)
    other = Reg(0x4, 1)

    @other.on_read
    def look(self) -> int:
        return 0

    @reg.on_write
    def written(self, value: int) -> None:
        pass


class OldDevice(Device):
    """A method that wants the value before."""

    size = 16
    reg = Reg(0x0, 1)

    @reg.on_write
    def written(self, value: int, old: int) -> None:
        pass


KINDS = (
    (PythonDevice, READ, "read()"),
    (PythonDevice, WRITE, "write()"),
    (PlainDevice, READ, "register, read"),
    (PlainDevice, WRITE, "register, write"),
    (RuledDevice, READ, "register with rules, read"),
    (RuledDevice, WRITE, "register with rules, write"),
    (HookedDevice, READ, "register, on_read"),
    (HookedDevice, WRITE, "register, on_write"),
    (OldDevice, WRITE, "register, on_write with old"),
)


class Guest:
    """A guest that makes `count` accesses to a port, then ends the run.

    The count is in its code: set_count() writes it there.
    """

    def __init__(
        self, kvm: _vmm.KVM, mode: str, op: int, device: object
    ) -> None:
        port = PORTS[op]
        self.count = 0
        code = bytes([
            0xB9, 0, 0, 0, 0,  # start: mov $count, %ecx
            op, port,  # next: in or out
            0xFF, 0xC9,  # dec %ecx
            0x75, 0xFA,  # jnz next
            WRITE, _vmm.EXIT_PORT,
            0xEB, 0xF1,  # jmp start
        ])  # fmt: skip
        self.memory = _vmm.Memory()
        self.memory.add(BASE, SIZE)
        self.memory.write(BASE, code)
        tables = 0
        if mode == "user":
            tables = BASE + SIZE - _vmm.x86_tables_size(0)
            _vmm.x86_tables(self.memory, tables, 1 << 32)
        self.vm = _vmm.VM(kvm, self.memory)
        self.vm.create_irqchip()
        self.cpu = _vmm.VCPU(self.vm)
        self.put(device)
        self.vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        regs = [0] * 18
        regs[16] = BASE
        self.cpu.start(mode, REGS.pack(*regs), tables)

    def set_count(self, count: int) -> None:
        self.count = count
        self.memory.write_u32(BASE + 1, count)

    def put(self, device: object) -> None:
        self.vm.pio.add(_vmm.CONSOLE_PORT, _vmm.CONSOLE_SIZE, device)

    def swap(self, device: object) -> None:
        """Let another device answer from now on."""
        self.vm.pio.remove(_vmm.CONSOLE_PORT)
        self.put(device)

    def batch(self) -> None:
        end = self.cpu.run()
        if end.reason != _vmm.EXIT_STOP:
            raise RuntimeError(f"the guest ended otherwise: {end}")

    def twin(self) -> Bare:
        """A bare VM with the memory and the registers that this one has."""
        image = self.memory.read(BASE, SIZE)
        state = self.cpu.get("sregs"), self.cpu.get("regs")
        return Bare(BASE, SIZE, image, *state)

    def close(self) -> None:
        self.vm.close()


def native(op: int) -> object:
    """The console: it answers at once, or keeps the last 4 KiB."""
    return _vmm.Console(limit=4096)


def calibrate(guest: Guest, length: float) -> int:
    """How many exits make a batch of so many nanoseconds here."""
    guest.set_count(50)
    step = timed(guest.batch)
    step()
    each = min(step() for _ in range(5)) / 50
    return max(20, int(length / each))


class Group:
    """Guests of one kind, made side by side and closed together."""

    def __init__(self, kvm: _vmm.KVM, mode: str, op: int) -> None:
        self.kvm = kvm
        self.mode = mode
        self.op = op
        self.count = 0
        self._guests: list[Guest] = []
        self._bare: list[Bare] = []

    def guest(self, device: object) -> Guest:
        guest = Guest(self.kvm, self.mode, self.op, device)
        self._guests.append(guest)
        if not self.count:
            self.count = calibrate(guest, BATCH_NS)
        guest.set_count(self.count)
        guest.batch()  # warm
        return guest

    def native(self) -> Step:
        return timed(self.guest(native(self.op)).batch)

    def bare(self) -> Step:
        twin = self.guest(native(self.op)).twin()
        self._bare.append(twin)
        exits = self.count + 1  # the last one is the write to the exit port
        twin.run(exits)
        return timed(lambda: twin.run(exits))

    def close(self) -> None:
        for guest in self._guests:
            guest.close()
        for bare in self._bare:
            bare.close()
        _vmm.reap()


def compare(
    mode: str,
    op: int,
    other: Callable[[Group], Step],
    rounds: int,
    count: int,
) -> tuple[Found, float]:
    """Bare loop and another on twins, over several sets of fresh VMs.

    Where the pages of one VM happen to lie makes it a little faster or slower
    than its neighbour: so no set is trusted alone. Also the microseconds of an
    exit in the bare loop.
    """
    kvm = _vmm.KVM()
    found: Found = []
    cost: list[float] = []
    for i in range(rounds):
        group = Group(kvm, mode, op)
        try:
            if i % 2:
                b = other(group)
                a = group.bare()
            else:
                a = group.bare()
                b = other(group)
            part = pairs(a, b, count)
        finally:
            group.close()
        found += part
        cost += [x / group.count / 1e3 for x, _ in part]
    return found, Figure(cost).median


def in_c(effort: float) -> Iterator[Row]:
    """The core's loop against the bare one."""
    rounds, count = round(10 * effort), 30
    for mode, ring in MODES.items():
        found, cost = compare(mode, READ, Group.bare, rounds, count)
        yield Row(
            f"control: bare loop against another, {ring}", ratio(found),
            unit="x", digits=3, note=f"exits of {cost:.1f} us",
        )  # fmt: skip
        for op, name in ((READ, "read"), (WRITE, "write")):
            found, cost = compare(mode, op, Group.native, rounds, count)
            yield Row(
                f"exit in C, against a bare loop, {name}, {ring}", ratio(found),
                1.05, unit="x", digits=3, note=f"exits of {cost:.1f} us",
            )  # fmt: skip


def swapped(guest: Guest, device: object) -> Step:
    """A batch with this device in place."""
    batch = timed(guest.batch)

    def step() -> float:
        guest.swap(device)
        return batch()

    return step


def in_python(effort: float) -> Iterator[Row]:
    """A Python device over a native one, in turn on the same vCPU."""
    kvm = _vmm.KVM()
    rounds, count = round(10 * effort), 100
    for mode, ring in MODES.items():
        for kind, op, name in KINDS:
            values: list[float] = []
            for _ in range(rounds):
                console = native(op)
                guest = Guest(kvm, mode, op, console)
                exits = calibrate(guest, SHORT_NS)
                guest.set_count(exits)
                found = pairs(
                    swapped(guest, console),
                    swapped(guest, kind()),
                    count,
                )
                values += [(b - a) / exits for a, b in found]
                guest.close()
            _vmm.reap()
            yield Row(
                f"exit over one in C: {name}, {ring}",
                Figure(values), 0.6, unit="us", scale=1e-3,
            )  # fmt: skip


def dispatch(effort: float) -> Iterator[Row]:
    """The dispatcher alone, hot."""
    for kind, op, name in KINDS:
        guest = Guest(_vmm.KVM(), "protected", op, kind())
        bus, port = guest.vm.pio, PORTS[op]
        value = None if op == READ else 5
        values = [
            _vmm.bench_dispatch(bus, port, 1, 2000, value)
            for _ in range(round(500 * effort))
        ]
        guest.close()
        yield Row(f"dispatch, hot loop: {name}",
                  Figure(values), 80, unit="ns", digits=0)  # fmt: skip

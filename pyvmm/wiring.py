# SPDX-License-Identifier: Apache-2.0
"""Where devices are: addresses, ports, interrupt lines, eventfds.

A `Slot` is one attached device. `Wiring` keeps a machine's slots, finds free
places, and connects them once the VM exists.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from . import _vmm
from .device import (
    LAST_LINE,
    Device,
    IrqLine,
    RangeAt,
    irq_names,
    messages,
    ranges,
)
from .native import Native
from .run import join
from .services import Services

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Iterator, Mapping

    from .doorbell import Bells
    from .eventloop import LoopThread
    from .machine import Machine
    from .timers import Timer, Timers
    from .worker import Worker

    Zone = tuple[int, int, bool]  # address or port, size, whether it is a port

MMIO_BASE = 0xD000_0000
MMIO_END = _vmm.IOAPIC_BASE
MMIO_STEP = 0x1000
LINES = (*range(16, 24), *range(5, 16))  # in the order of choice

# What the in-kernel irqchip answers itself.
IRQCHIP_RANGES = (
    (_vmm.IOAPIC_BASE, 0x1000, "the IOAPIC"),
    (0xFEE0_0000, 0x1000, "the local APIC"),
)

SETTLE_SECONDS = 0.1  # what the end of a run waits for a device's worker
QUEUE_NOTIFY = 0x50  # virtio 1.2, 4.2.2


class Slot:
    """One attached device and where it is; the host of its services."""

    __slots__ = (
        "_worker", "base", "bells", "bus_device", "device", "eventfds",
        "is_port", "lines", "name", "ranges", "size", "threaded", "wiring",
        "zones",
    )  # fmt: skip

    def __init__(
        self,
        wiring: Wiring,
        device: object,
        name: str,
        base: int,
        size: int,
        is_port: bool,
    ) -> None:
        self.wiring = wiring
        self.device = device
        self.bus_device = device  # what the bus calls
        self.name = name
        self.base = base
        self.size = size
        self.is_port = is_port
        self.lines: list[int] = []
        self.ranges: list[RangeAt] = []  # further ones
        self.threaded = False  # its notifications ring a doorbell
        self.eventfds: list[int] = []
        self.zones: set[Zone] = set()  # what KVM keeps back for it
        self.bells: Bells | None = None
        self._worker: Worker | None = None

    @property
    def memory(self) -> _vmm.Memory:
        """The machine's RAM."""
        return self.wiring.machine.memory

    @property
    def timers(self) -> Timers:
        """The machine's timers, which vCPU 0 calls."""
        return self.wiring.timers

    @property
    def worker(self) -> Worker:
        """The device's worker, made when it is first wanted."""
        if self._worker is None:
            self._worker = self.wiring.make_worker(self)
        return self._worker

    @property
    def hired(self) -> Worker | None:
        """The worker, if there is one."""
        return self._worker

    @property
    def is_virtio(self) -> bool:
        """Whether it identifies itself by virtio-mmio registers."""
        return isinstance(self.bus_device, _vmm.VirtioMMIO)

    def __str__(self) -> str:
        kind = "port" if self.is_port else "mmio"
        end = self.base + self.size - 1
        line = "".join(f", line {line}" for line in self.lines)
        return f"{self.name}: {kind} {self.base:#x}..{end:#x}{line}"

    def places(self) -> list[tuple[int, int, bool, object]]:
        """All ranges: base, size, whether ports, and what the bus calls."""
        places = [(self.base, self.size, self.is_port, self.bus_device)]
        for at in self.ranges:
            assert at.base is not None
            places.append((at.base, at.size, at.is_port, at))
        return places


class Wiring:
    """The devices of a machine.

    Threads: one at a time; the machine sees to that.
    """

    def __init__(self, machine: Machine, irqchip: bool) -> None:
        self.machine = machine
        self.irqchip = irqchip
        self.slots: list[Slot] = []
        self.vm: _vmm.VM | None = None
        self._timers: Timers | None = None
        self._placing: list[Slot] = []
        self._unpolled: list[_vmm.VirtioMMIO] = []  # since a restore
        self._loop: AbstractEventLoop | None = None  # of run_async()
        self._loop_thread: LoopThread | None = None  # for run()

    # -- describing ----------------------------------------------------------

    def attach(
        self,
        device: object,
        mmio: int | bool | None,
        port: int | None,
        irq: int | None,
        name: str | None,
        places: Mapping[str, int] | None = None,
    ) -> Slot:
        """Find a place for a device and connect it if the VM is there."""
        if isinstance(device, type):
            raise TypeError(
                f"{device.__name__} is a class: attach {device.__name__}()"
            )
        for other in self.slots:
            if other.device is device:
                raise ValueError(f"{device!r} is attached already")
        for word, value in (("mmio", mmio), ("port", port), ("irq", irq)):
            if value is not None and not isinstance(value, int):
                raise TypeError(f"{word} is an int, not {type(value).__name__}")
        if port is not None and mmio not in (None, False):
            raise ValueError("a device is at an address or at a port, not both")
        size = device_size(device)
        if port is None and mmio is None:
            port, mmio = own_place(device)
        is_port = port is not None
        if port is not None:
            base = port
        elif isinstance(mmio, bool) or mmio is None:
            base = self._free_range(size)
        else:
            base = mmio
        slot = Slot(
            self,
            device,
            name
            or getattr(device, "name", "")
            or type(device).__name__.lower(),
            base,
            size,
            is_port,
        )
        self._check_place(slot.name, slot.base, slot.size, slot.is_port)
        self._choose_lines(slot, irq)
        self._place_ranges(slot, dict(places or {}))
        if isinstance(device, Native):
            device.native = device.make(self.machine.memory)
            slot.bus_device = device.native
            slot.threaded = device.notify != "inline"
        elif not slot.is_virtio:
            check_methods(device)
        try:
            self._make_eventfds(slot)
            introduce(slot, self.machine)
            if self.vm is not None:
                self.connect(slot)
        except BaseException:
            self._drop(slot)
            forget(slot)
            raise
        self.slots.append(slot)
        if isinstance(device, Services):
            try:
                device.attached()
            except BaseException:
                self.detach(device)
                raise
        return slot

    def _free_range(self, size: int) -> int:
        base = MMIO_BASE
        while base + size <= MMIO_END:
            if self._occupant(base, size, False) is None:
                return base
            base += MMIO_STEP
        raise ValueError(
            f"no {size:#x} addresses are free from {MMIO_BASE:#x} to "
            f"{MMIO_END:#x}"
        )

    def _occupant(self, base: int, size: int, is_port: bool) -> str | None:
        """Who has some of these addresses or ports already."""
        taken: list[tuple[int, int, str]] = [
            (start, length, str(slot))
            for slot in [*self.slots, *self._placing]
            for start, length, ports, _ in slot.places()
            if ports == is_port
        ]
        if is_port:
            taken += self.machine._own_ports
        else:
            taken += [
                (gpa, length, f"RAM {gpa:#x}..{gpa + length - 1:#x}")
                for gpa, length, *_ in self.machine.memory.regions
            ]
            if self.irqchip:
                taken += IRQCHIP_RANGES
        for start, length, who in taken:
            if base < start + length and start < base + size:
                return who
        return None

    def _check_place(
        self, name: str, base: int, size: int, is_port: bool
    ) -> None:
        limit = 0x1_0000 if is_port else 1 << 52
        kind = "port" if is_port else "mmio"
        if base < 0 or base + size > limit:
            raise ValueError(
                f"{kind} {base:#x} + {size:#x} is outside 0..{limit:#x}"
            )
        who = self._occupant(base, size, is_port)
        if who is not None:
            raise ValueError(
                f"{name} at {kind} {base:#x}..{base + size - 1:#x} overlaps "
                f"{who}"
            )

    def _place_ranges(self, slot: Slot, places: dict[str, int]) -> None:
        """Find places for a device's further ranges."""
        further = ranges(slot.device)
        self._placing = [slot]  # what is placed is taken for the rest
        try:
            for at in further:
                declared = getattr(type(slot.device), at.name)
                base = places.pop(at.name, declared.place)
                if base is None:
                    base = self._free_range(at.size)
                name = f"{slot.name}.{at.name}"
                self._check_place(name, base, at.size, at.is_port)
                at.base = base
                slot.ranges.append(at)
            if places:
                raise ValueError(
                    f"{slot.name} has no Range {', '.join(sorted(places))}"
                )
        except BaseException:
            for at in further:
                at.base = None
            raise
        finally:
            self._placing = []

    def _choose_lines(self, slot: Slot, irq: int | None) -> None:
        wanted: list[int | None] = [
            getattr(type(slot.device), name).line
            for name in irq_names(slot.device)
        ]
        if messages(slot.device) and not self.irqchip:
            raise ValueError(
                f"{slot.name} sends messages, but the machine was made with "
                "irqchip=False"
            )
        if isinstance(slot.device, Native | _vmm.VirtioMMIO):
            wanted = [None] if self.irqchip else []
        if not wanted:
            if irq is not None:
                why = "has no Irq()" if self.irqchip else "has no irqchip"
                raise ValueError(f"irq {irq}: {slot.name} {why}")
            return
        if not self.irqchip:
            raise ValueError(
                f"{slot.name} wants an interrupt line, but the machine was "
                "made with irqchip=False"
            )
        used = {line for other in self.slots for line in other.lines}
        used |= self.machine._own_lines
        if irq is not None:
            wanted[0] = None if irq is True else irq
        for line in wanted:
            if line is None:
                continue
            if not 0 < line <= LAST_LINE:
                raise ValueError(f"irq {line} is outside 1..{LAST_LINE}")
            if line in used:
                raise ValueError(
                    f"{slot.name}: irq {line} is taken by "
                    f"{self._holder(line, slot)}"
                )
            used.add(line)
        for line in wanted:
            if line is None:
                line = next((free for free in LINES if free not in used), None)
            if line is None:
                raise ValueError(f"no interrupt line is left for {slot.name}")
            slot.lines.append(line)
            used.add(line)

    def _holder(self, line: int, new: Slot) -> str:
        for slot in self.slots:
            if line in slot.lines:
                return str(slot)
        if line in self.machine._own_lines:
            return "the console"
        return f"another line of {new.name}"

    # -- timers --------------------------------------------------------------

    @property
    def timers(self) -> Timers:
        """The timers of the machine's devices; most have none."""
        if self._timers is None:
            from time import monotonic_ns

            from .timers import Timers

            self._timers = Timers(monotonic_ns, self._arm)
            self.start_timers()
        return self._timers

    def drop_timers(self, device: object) -> None:
        """Cancel the timers of a device."""
        if self._timers is not None:
            self._timers.drop(device)

    def start_timers(self) -> None:
        """There are vCPUs: the first one calls what is due."""
        if self._timers is not None and (vcpu := self._vcpu()) is not None:
            vcpu.on_due = self._timers.run_due
            self._timers.arm()

    def _arm(self, due_ns: int) -> None:
        if (vcpu := self._vcpu()) is not None:
            vcpu.due_ns = due_ns

    def _vcpu(self) -> _vmm.VCPU | None:
        vcpus = self.machine._runner.vcpus
        return vcpus[0] if vcpus and not vcpus[0].closed else None

    # -- connecting ----------------------------------------------------------

    def realise(self, vm: _vmm.VM) -> None:
        """The VM exists: everything that was described is connected to it."""
        self.vm = vm
        for slot in self.slots:
            self.connect(slot)

    def _make_eventfds(self, slot: Slot) -> None:
        native = slot.bus_device
        if not isinstance(native, _vmm.VirtioMMIO):
            return
        if slot.lines:
            native.irq_fd = eventfd(slot)
        if slot.threaded:
            native.doorbell_fd = eventfd(slot)

    def connect(self, slot: Slot) -> None:
        """Put a device on its bus, with its eventfds and its worker."""
        vm = self.vm
        assert vm is not None
        native = slot.bus_device
        if isinstance(native, _vmm.VirtioMMIO):
            if slot.lines:
                vm.irqfd(native.irq_fd, slot.lines[0])
            if slot.threaded:
                vm.ioeventfd(native.doorbell_fd, slot.base + QUEUE_NOTIFY, 4)
        elif slot.lines or messages(slot.device):
            vm.wakers += 1
        for base, size, is_port, device in slot.places():
            (vm.pio if is_port else vm.mmio).add(base, size, device)
        try:
            self.connect_registers(slot)
        except BaseException:
            self._disconnect_registers(slot)
            for base, _, is_port, _ in slot.places():
                (vm.pio if is_port else vm.mmio).remove(base)
            raise
        if slot.threaded:
            slot.worker.wake()

    def connect_registers(self, slot: Slot) -> None:
        """What KVM does for a device's registers, as its class is now.

        Where it can it keeps writes to posted ones back: they cost no exit,
        and come before the next one. And it signals doorbells.
        """
        vm = self.vm
        assert vm is not None
        device = slot.device
        if not isinstance(device, Device):
            return
        if slot.bells is None and device._layout and device._layout.bells:
            from .doorbell import Bells

            slot.bells = Bells(slot, device)
        if slot.bells is not None:
            slot.bells.connect(vm)
        for base, size, is_port in posted_zones(slot) - slot.zones:
            if vm.coalesce(base, size, pio=is_port):
                slot.zones.add((base, size, is_port))

    def release_registers(self, slot: Slot) -> None:
        """KVM keeps back no more than what the device's class has posted now.

        While the bus still serves the class of before: there goes what was
        kept back, and nothing that the guest writes later overtakes it.
        """
        vm = self.vm
        assert vm is not None
        gone = slot.zones - posted_zones(slot)
        for base, size, is_port in gone:
            vm.remove_coalesce(base, size, pio=is_port)
        slot.zones -= gone
        if gone:
            vm.collect()

    def _disconnect_registers(self, slot: Slot) -> None:
        """Undo that."""
        assert self.vm is not None
        if slot.bells is not None:
            slot.bells.disconnect(self.vm)
        for base, size, is_port in slot.zones:
            self.vm.remove_coalesce(base, size, pio=is_port)
        slot.zones.clear()

    def make_worker(self, slot: Slot) -> Worker:
        """The worker of a device: a thread, or on an event loop."""
        fail = self.machine._runner.fail
        native = slot.bus_device if slot.threaded else None
        assert native is None or isinstance(native, _vmm.VirtioMMIO)
        if getattr(slot.device, "notify", "") == "asyncio":
            from .eventloop import LoopWorker

            return LoopWorker(str(slot), fail, native)
        from .worker import ThreadWorker

        return ThreadWorker(str(slot), fail, native)

    # -- running -------------------------------------------------------------

    def begin(self) -> None:
        """The machine is about to run: workers go on after exceptions."""
        while self._unpolled:
            native = self._unpolled.pop()
            if not native.closed:
                native.process()
        for slot in self.slots:
            worker = slot.hired
            if worker is None:
                continue
            if getattr(slot.device, "notify", "") == "asyncio":
                from .eventloop import LoopWorker

                assert isinstance(worker, LoopWorker)
                worker.bind(self._choose_loop(slot))
            worker.resume()

    def settle(self) -> None:
        """The guest has stopped: doorbells that it rang are answered.

        So what it sent just before its end is there when run() returns, but
        for a handler that takes long, which goes on behind it.
        """
        for slot in self.slots:
            if slot.threaded and slot.hired is not None:
                slot.hired.settle(SETTLE_SECONDS)

    def set_loop(self, loop: AbstractEventLoop) -> None:
        """The event loop that runs the machine serves its devices, too."""
        self._loop = loop

    def _choose_loop(self, slot: Slot) -> AbstractEventLoop:
        from .eventloop import LoopThread, is_here

        if self._loop is not None and is_here(self._loop):
            raise RuntimeError(
                f"run() would block the event loop that serves {slot}: "
                "await run_async()"
            )
        if self._loop is not None and self._loop.is_running():
            return self._loop
        if self._loop_thread is None:
            self._loop_thread = LoopThread("event loop")
        return self._loop_thread.loop

    # -- snapshots -----------------------------------------------------------

    @contextmanager
    def still(self) -> Iterator[None]:
        """The devices' workers stand still meanwhile."""
        with ExitStack() as stack:
            for slot in self.slots:
                if slot.hired is not None:
                    stack.enter_context(slot.hired.still())
            yield

    def save_timers(self) -> list[tuple[Timer, int]]:
        """Those that are pending, and how long they still have."""
        return [] if self._timers is None else self._timers.save()

    def load_timers(self, saved: list[tuple[Timer, int]]) -> None:
        """Let just these be pending."""
        if saved or self._timers is not None:
            self.timers.load(saved)

    def poll_again(self) -> None:
        """What is in the queues is worked on, though nobody notifies."""
        for slot in self.slots:
            native = slot.bus_device
            if not isinstance(native, _vmm.VirtioMMIO):
                continue
            if slot.threaded:
                os.eventfd_write(native.doorbell_fd, 1)
            else:
                self._unpolled.append(native)

    # -- disconnecting -------------------------------------------------------

    def detach(self, device: object) -> None:
        """Take a device off; ValueError when it is not there.

        What delivering its posted writes raises leaves it when all is done.
        """
        for slot in self.slots:
            if slot.device is device:
                break
        else:
            raise ValueError(f"{device!r} is not attached")
        if isinstance(device, Device) and device._delivering:
            raise RuntimeError(
                f"an on_writes of {slot.name} cannot take it off: "
                "after(0, ...) can"
            )
        self.slots.remove(slot)
        failures: list[BaseException] = []
        if self.vm is not None and not self.vm.closed:
            self._disconnect_registers(slot)
            failures += drained(device)
            for base, _, is_port, _ in slot.places():
                (self.vm.pio if is_port else self.vm.mmio).remove(base)
            native = slot.bus_device
            if isinstance(native, _vmm.VirtioMMIO):
                if slot.threaded:
                    self.vm.remove_ioeventfd(
                        native.doorbell_fd, slot.base + QUEUE_NOTIFY, 4
                    )
                if slot.lines:
                    self.vm.remove_irqfd(native.irq_fd, slot.lines[0])
            elif slot.lines or messages(slot.device):
                self.vm.wakers -= 1
        failures += drained(device)
        self._drop(slot)
        forget(slot)
        if isinstance(device, Services):
            device.detached()
        if failures:
            raise join(failures)

    def _drop(self, slot: Slot) -> None:
        """Ends the worker and closes the eventfds of a slot."""
        if slot.hired is not None:
            slot.hired.stop()
        if slot.bells is not None:
            slot.bells.forget()
        native = slot.bus_device
        if isinstance(native, _vmm.VirtioMMIO) and slot.eventfds:
            native.irq_fd = -1
            native.doorbell_fd = -1
        for fd in slot.eventfds:
            os.close(fd)
        slot.eventfds.clear()
        if isinstance(slot.device, Native) and slot.device.native:
            slot.device.native.close()

    def close(self) -> None:
        """The VM is going: all workers end and all eventfds are closed.

        What is posted is delivered before. What that or detached() of devices
        raises leaves it, when all is done.
        """
        failures = [exc for slot in self.slots for exc in drained(slot.device)]
        for slot in self.slots:
            self._drop(slot)
            forget(slot, closed=True)
            try:
                if isinstance(slot.device, Services):
                    slot.device.detached()
            except BaseException as exc:
                failures.append(exc)
        if self._loop_thread is not None:
            self._loop_thread.close()
        if failures:
            raise join(failures)


def drained(device: object) -> list[BaseException]:
    """Deliver what is posted to a device; what its methods raised."""
    failures: list[BaseException] = []
    left = -1
    while isinstance(device, Device) and left != (left := device._posted):
        try:
            device.drain()
        except BaseException as exc:
            failures.append(exc)
    return failures


def posted_zones(slot: Slot) -> set[Zone]:
    """Where the posted registers of a device are."""
    device = slot.device
    if not isinstance(device, Device) or device._layout is None:
        return set()
    return {
        (base + reg.offset, reg.width, is_port)
        for base, _, is_port, at in slot.places()
        for served in [at._served()]  # type: ignore[attr-defined]
        if served is not None and served[4]
        for reg in device._layout.places[served[2]]
        if reg.posted
    }


def eventfd(slot: Slot) -> int:
    """An eventfd that belongs to the slot."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    slot.eventfds.append(fd)
    return fd


def device_size(device: object) -> int:
    """The bytes of a device's range; TypeError or ValueError without one."""
    if isinstance(device, _vmm.VirtioMMIO):
        return _vmm.VIRTIO_MMIO_SIZE
    size = getattr(device, "size", None)
    if not isinstance(size, int):
        raise TypeError(
            f"{type(device).__name__} needs `size`, the bytes of its range"
        )
    if size <= 0:
        raise ValueError(f"{type(device).__name__}.size {size} is not above 0")
    return size


def own_place(device: object) -> tuple[int | None, int | None]:
    """The `port` or else the `mmio` that a device's class names for it.

    A register, method or property of that name is none.
    """
    if not isinstance(device, Device | Native):
        return None, None
    cls = type(device)
    places: list[int | None] = []
    for name in ("port", "mmio"):
        place = getattr(cls, name, None)
        if hasattr(place, "__get__"):
            place = None
        if place is not None and not isinstance(place, int):
            raise TypeError(
                f"{cls.__name__}.{name} is an int, not {type(place).__name__}"
            )
        places.append(place)
    port, mmio = places
    if port is not None and mmio is not None:
        raise ValueError(f"{cls.__name__} has both port and mmio")
    return port, mmio


def check_methods(device: object) -> None:
    """TypeError unless it answers reads and writes."""
    for name in ("read", "write"):
        if not callable(getattr(device, name, None)):
            raise TypeError(
                f"{type(device).__name__} is no device: it needs "
                "read(offset, size) and write(offset, size, value)"
            )


def introduce(slot: Slot, machine: Machine) -> None:
    """Tell a device where it is."""
    device = slot.device
    if isinstance(device, Services):
        device.machine = machine
        device.base = slot.base
        device.name = slot.name
        device._services = slot
    if isinstance(device, Native):
        device.irq_line = slot.lines[0] if slot.lines else None
    if not isinstance(device, Device):
        return
    device.is_port = slot.is_port
    for name, line in zip(irq_names(device), slot.lines, strict=True):
        irq: IrqLine = getattr(device, name)
        irq._machine = machine
        irq.line = line
    for message in messages(device):
        message._machine = machine


def forget(slot: Slot, closed: bool = False) -> None:
    """The device is free again; of a closed machine it keeps its place."""
    device = slot.device
    if isinstance(device, Services):
        device._services = None
        slot.wiring.drop_timers(device)
    if isinstance(device, Services) and not closed:
        device.machine = None
        device.base = None
    if isinstance(device, Device) and not closed:
        for at in slot.ranges:
            at.base = None
        for name in irq_names(device):
            irq: IrqLine = getattr(device, name)
            irq._machine = None
            irq.line = None
        for message in messages(device):
            message._machine = None
    if isinstance(device, Native) and not closed:
        device.irq_line = None

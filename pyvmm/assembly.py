# SPDX-License-Identifier: Apache-2.0
"""Making a machine out of its description, in the order that is fast.

Memory slots first: the first change of slots soon after the interrupt
controller or an eventfd waits for a grace period of the kernel (5 to 12 ms).
"""

from __future__ import annotations

import atexit
from weakref import WeakSet

from . import _vmm, x86
from .boot import Placed, Platform, Region
from .cpu import Cpu
from .host import kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine

EXIT_SECONDS = 2.0  # what the interpreter's exit waits for a device's method

_alive: WeakSet[Machine] = WeakSet()
_registered = False


def realise(machine: Machine) -> _vmm.VM:
    """Make the host's objects, in the order that is fast."""
    machine._check_open()
    if machine._vm is not None:
        return machine._vm
    machine._vm = vm = _vmm.VM(kvm(), machine.memory)
    try:
        vm.strict = machine._strict
        if machine._irqchip:
            vm.create_irqchip()
        if machine._pit:
            vm.create_pit()
        vcpus = [
            _vmm.VCPU(vm, cpus=machine._count) for _ in range(machine._count)
        ]
        vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        if machine._console is not None and machine._console.device is None:
            vm.pio.add(
                _vmm.CONSOLE_PORT,
                _vmm.CONSOLE_SIZE,
                machine._console.native,
            )
            vm.wakers += machine._console.line is not None
        machine._wiring.realise(vm)
        if machine._image is not None:
            machine._image.write(machine.memory)
    except BaseException:
        machine.close()  # half a machine is of no use
        raise
    machine._runner.vcpus = vcpus
    machine._wiring.start_timers()
    machine._cpus = [Cpu(machine, vcpu) for vcpu in vcpus]
    for vcpu in vcpus:
        vcpu.trace = machine._trace
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_close_all)
    _alive.add(machine)
    return vm


def boot(machine: Machine, running: bool = False) -> None:
    """Write the boot information and set the start registers, once."""
    machine._realise()
    if machine._booted:
        return
    protocol = machine._boot_protocol
    if protocol is None:
        if machine._image is None and not running:
            return  # just a look at the processor's reset state
        from .boot.start_info import StartInfo

        protocol = StartInfo()
    start = protocol.start(platform(machine))
    for gpa, data in start.writes:
        machine.memory.write(gpa, data)
    if start.tables:
        span = max(gpa + n for gpa, n, *_ in machine.memory.regions)
        _vmm.x86_tables(machine.memory, start.tables, span)
    values = dict.fromkeys(x86.REGS, 0)
    for name, value in start.registers.items():
        if name not in values:
            raise ValueError(f"boot: no register {name!r}")
        values[name] = value
    regs = x86.REGS_STRUCT.pack(*values.values())
    machine._cpus[0].vcpu.start(start.mode, regs, start.tables)
    machine._booted = True


def platform(machine: Machine) -> Platform:
    """What a boot protocol is told."""
    return Platform(
        [
            Region(gpa, size, bool(flags & _vmm.MEM_READONLY))
            for gpa, size, flags, _ in machine.memory.regions
        ],
        machine._image,
        sorted(
            (
                Placed(
                    slot.name,
                    slot.base,
                    slot.size,
                    is_port=slot.is_port,
                    line=slot.lines[0] if slot.lines else 0,
                    virtio=slot.is_virtio,
                )
                for slot in machine._wiring.slots
            ),
            key=lambda placed: placed.base,
        ),
        machine.cmdline,
        machine._initrd,
        _vmm.IOAPIC_BASE if machine._irqchip else 0,
    )


def forget(machine: Machine) -> None:
    """The machine is closed."""
    _alive.discard(machine)


def alive() -> list[Machine]:
    """The machines of this process that are not closed."""
    return list(_alive)


def _close_all() -> None:
    """The interpreter exits: no guest may run on."""
    for machine in alive():
        machine._close(EXIT_SECONDS)

# SPDX-License-Identifier: Apache-2.0
"""From an Exit of the core to a Stop, and from a Stop to an exception."""

from __future__ import annotations

from . import _vmm, stop, x86
from .errors import GuestError, GuestTimeout
from .stop import Registers, Stop, linear_pc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .debug import Point
    from .machine import Machine
    from .run import End
    from .until import Condition

# KVM_SYSTEM_EVENT_ of <linux/kvm.h>.
EVENT_SHUTDOWN = 1
EVENT_RESET = 2
EVENT_CRASH = 3

# KVM_INTERNAL_ERROR_EMULATION of <linux/kvm.h>.
SUBERROR_EMULATION = 1
SUBERRORS = {
    2: "simultaneous exceptions",
    3: "an event could not be delivered",
    4: "unexpected exit of the processor",
}

INSN_MAX = 15  # bytes of the longest x86 instruction
INSN_BEFORE = 8  # shown of what is before rip


def make_stop(
    machine: Machine,
    end: End,
    point: Point | None,
    timeout: float | None,
    met: Condition | None = None,
) -> Stop:
    """The Stop of a machine whose run ended so."""
    index, exit = end
    cpu = machine._cpus[index]
    vcpu = cpu.vcpu
    registers = Registers(vcpu.get("regs"), vcpu.get("sregs"))
    address = registers.pc
    if exit.reason == _vmm.EXIT_DEBUG:
        address = exit.pc
    elif exit.rip is not None:
        cs = registers.segment("cs")
        address = linear_pc(cs, registers.efer, exit.rip)
    asked = machine._runner.tell(exit)
    if asked is not None:
        reason, message = asked.reason, asked.message
    elif met is not None:
        reason, message = "until", repr(met)[1:-1]
    else:
        reason, message = classify(machine, exit, point, timeout)
    # KVM has moved on when a write comes out, and not when a read does.
    passed = exit.size > 0 and exit.write
    status = exit.value if exit.reason == _vmm.EXIT_STOP else None
    if asked is not None:
        status = asked.status
    elif exit.reason == _vmm.EXIT_HALT and registers.rflags & x86.RFLAGS_IF:
        message = "halt with interrupts on, but without an irqchip"
    insn = b""
    if reason not in stop.MEANT and passed:
        insn = read_before(machine, index, address)
    elif reason not in stop.MEANT:
        insn = exit.insn or read_code(machine, index, address)
    return Stop(
        reason,
        status=status,
        message=message,
        cpu=index,
        registers=registers,
        where=machine.symbols.where(address, passed=passed),
        passed=passed,
        insn=insn,
        exit=exit,
        past=vcpu.past,
        point=point,
    )


def make_pause(machine: Machine) -> Stop:
    """The Stop of a machine that stands still, without an Exit."""
    vcpu = machine._cpus[0].vcpu
    registers = Registers(vcpu.get("regs"), vcpu.get("sregs"))
    return Stop(
        "pause",
        cpu=0,
        registers=registers,
        where=machine.symbols.where(registers.pc),
        past=vcpu.past,
    )


def classify(
    machine: Machine,
    exit: _vmm.Exit,
    point: Point | None,
    timeout: float | None,
) -> tuple[str, str]:
    """The reason and the message of a Stop."""
    match exit.reason:
        case _vmm.EXIT_STOP:
            return "exit", f"exit with status {exit.value}"
        case _vmm.EXIT_HALT:
            return "halt", "halt with interrupts off"
        case _vmm.EXIT_IDLE:
            return "halt", "halt, and nothing is there to interrupt it"
        case _vmm.EXIT_KICK:
            return "pause", "pause"
        case _vmm.EXIT_DEBUG:
            return _debug(point)
        case _vmm.EXIT_UNTIL:
            return "until", "until"
        case _vmm.EXIT_TIMEOUT:
            given = "" if timeout is None else f" after {timeout:g} s"
            return stop.TIMEOUT, f"timeout: still running{given}"
        case _vmm.EXIT_SHUTDOWN:
            return stop.TRIPLE_FAULT, "triple fault"
        case _vmm.EXIT_FAIL_ENTRY:
            return stop.ENTRY, (
                "entry failure: the processor refused the guest's state "
                f"(hardware reason {exit.code:#x})"
            )
        case _vmm.EXIT_INTERNAL_ERROR:
            return _internal_error(exit)
        case _vmm.EXIT_SYSTEM_EVENT:
            return _system_event(exit)
        case _vmm.EXIT_UNCLAIMED:
            return stop.UNCLAIMED, _unclaimed(machine, exit)
    return stop.UNKNOWN, f"unknown exit {exit.kvm_reason} of KVM"


def _debug(point: Point | None) -> tuple[str, str]:
    if point is None:
        return "step", "step"
    return ("until" if point.until else "break"), f"{point!r}"[1:-1]


def _internal_error(exit: _vmm.Exit) -> tuple[str, str]:
    if exit.code == SUBERROR_EMULATION:
        return stop.EMULATION, (
            "emulation failure: KVM cannot emulate the instruction here"
        )
    why = SUBERRORS.get(exit.code, f"suberror {exit.code}")
    data = " ".join(f"{value:#x}" for value in exit.data)
    return stop.INTERNAL, f"internal error of KVM: {why} ({data})"


def _system_event(exit: _vmm.Exit) -> tuple[str, str]:
    if exit.code == EVENT_SHUTDOWN:
        return "poweroff", "poweroff"
    if exit.code == EVENT_RESET:
        return "reset", "reset"
    if exit.code == EVENT_CRASH:
        return stop.CRASH, "crash, reported by the guest"
    return stop.UNKNOWN, f"unknown system event {exit.code}"


def _unclaimed(machine: Machine, exit: _vmm.Exit) -> str:
    access = stop.describe_access(
        exit.pio, exit.write, exit.size, exit.addr, exit.value
    )
    if not exit.pio and machine.memory.span(exit.addr, 1):
        return f"unclaimed access: {access}, which is read-only memory"
    return f"unclaimed access: {access}, where no device is"


def read_code(machine: Machine, index: int, address: int) -> bytes:
    """Bytes of the instruction at a linear address, as many as readable."""
    translate = machine._cpus[index]._translator()
    found = b""
    while len(found) < INSN_MAX:
        at = address + len(found)
        gpa = translate(at).gpa
        if gpa is None:
            break
        size = min(INSN_MAX - len(found), 4096 - at % 4096)
        size = machine.memory.span(gpa, size)
        if not size:
            break
        found += machine.memory.read(gpa, size)
    return found


def read_before(machine: Machine, index: int, address: int) -> bytes:
    """Bytes up to a linear address, INSN_BEFORE or as many as readable."""
    for count in range(min(INSN_BEFORE, address), 0, -1):
        found = read_code(machine, index, address - count)
        if len(found) >= count:
            return found[:count]
    return b""


def make_error(end: Stop) -> GuestError:
    """The exception for a Stop that nobody means."""
    kind = GuestTimeout if end.reason == stop.TIMEOUT else GuestError
    return kind(end.report, end)

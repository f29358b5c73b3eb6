# SPDX-License-Identifier: Apache-2.0
"""Machine.call(): a function of the guest's, called from the host.

The stack is that of vCPU 0, below what it uses; the return address is where
that vCPU stands, and a breakpoint there is the end. Afterwards the registers
are what they were.

Source: the System V ABI for i386 (cdecl) and for x86-64.
"""

from __future__ import annotations

from .debug import mode_of
from .errors import GuestError
from .stop import Registers
from .until import RETURN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine
    from .symbols import Address

IN_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
RED_ZONE = 128  # bytes below rsp that a leaf function may use (x86-64)
ALIGN = 16
MOST = 32  # arguments


def call(
    machine: Machine,
    target: Address,
    args: tuple[int, ...],
    timeout: float | None,
) -> int:
    """What the function returns in eax or rax."""
    if len(args) > MOST:
        raise ValueError(f"{len(args)} arguments are more than {MOST}")
    for number, value in enumerate(args, 1):
        if not isinstance(value, int):
            raise TypeError(
                f"argument {number} is {type(value).__name__}, not int"
            )
    cpu = machine.cpu
    mode = mode_of(Registers(cpu.vcpu.get("regs"), cpu.vcpu.get("sregs")))
    if mode == "real":
        raise ValueError("the guest is in real mode, which has no C ABI")
    long = mode != "protected"
    width = 8 if long else 4
    limit = (1 << 8 * width) - 1
    address = machine.symbols.address(target)
    before = cpu.vcpu.get("regs")
    back, stack = cpu.rip, cpu.rsp
    on_stack = args
    if long:
        on_stack = args[len(IN_REGISTERS) :]
    size = width * len(on_stack)
    top = (stack - RED_ZONE - size) // ALIGN * ALIGN - width
    try:
        for i, value in enumerate((back, *on_stack)):
            data = (value & limit).to_bytes(width, "little")
            cpu.mem.write(top + width * i, data)
        if long:
            for name, value in zip(IN_REGISTERS, args, strict=False):
                setattr(cpu, name, value & limit)
        cpu.rsp = top
        cpu.rip = address
        stop = machine.run(until=RETURN, timeout=timeout)
        if stop.reason != "until":
            raise GuestError(
                f"the function did not return: {stop.report}", stop
            )
        return int(cpu.rax) & limit
    finally:
        if not machine.closed:
            cpu.vcpu.set("regs", before)

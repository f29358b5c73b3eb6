# SPDX-License-Identifier: Apache-2.0
"""Snippets of assembly and C as guests, in every mode of the processor.

Assembly is Intel syntax and starts at its first line, at 1 MiB (0x7c00 in real
mode). It is assembled by the installed binutils, C is compiled by the
installed gcc; what they complain about is the text of a pyvmm.Error.
"""

import pyvmm

ASM = "mov {a}, 6; mov {b}, 7; imul {a}, {b}; out 0xf4, al"

for mode, a, b in [
    ("real", "ax", "cx"),
    ("protected", "eax", "ecx"),
    ("long", "rax", "r8"),
    ("user", "rax", "r8"),
]:
    with pyvmm.Machine() as m:
        m.load(asm=ASM.format(a=a, b=b), mode=mode)
        stop = m.run(timeout=5)
        regs = stop.registers
        print(f"{mode:9} {stop.status} ({regs.mode}, ring {regs.ring})")

with pyvmm.Machine() as m:
    m.load(
        c="""
            #include <runtime.h>
            int main(void) { return sizeof(void *); }
        """,
        mode="user",
    )
    print("C in ring 3:", m.run(timeout=5).status)

    try:
        pyvmm.Machine().load(asm="mov al, bx")
    except pyvmm.Error as e:
        print(e)

# SPDX-License-Identifier: Apache-2.0
"""A boot protocol of your own: what a guest is told, and how it starts.

A Boot turns the Platform (memory, image, devices) into a Start: the mode of
the CPU, its registers, and what is written where. This one enters 64-bit ring
3 with the command line in rdi and its length in rsi, and tells nothing else.
To change a detail of start_info instead, subclass pyvmm.StartInfo.
"""

import pyvmm
from pyvmm.boot import Platform, Start


class Bare(pyvmm.Boot):
    def start(self, platform: Platform) -> Start:
        basic = super().start(platform)  # mode, entry, page tables
        words = platform.cmdline.encode()
        where = platform.memory[0].gpa
        registers = {**basic.registers, "rdi": where, "rsi": len(words)}
        return Start(basic.mode, registers, [(where, words)], basic.tables)


with pyvmm.Machine(boot=Bare(), cmdline="spoken by the host\n") as m:
    m.load(
        asm="""
            mov rcx, rsi
            mov rsi, rdi
            mov dx, 0xe9                # the console
            rep outsb
            xor eax, eax
            out 0xf4, al                # the exit port
        """,
        at=0x200000,
        mode="user",
    )
    print(m.run(timeout=5))
print(m.console.text, end="")

# SPDX-License-Identifier: Apache-2.0
"""Code for every vCPU of a Machine, in tests."""

from bare import assemble

import pyvmm

VECTOR = 8
AP_CODE = VECTOR << 12
# To all but itself: INIT, then SIPI.
WAKE_ALL = f"""
    mov edi, 0xfee00000
    mov dword ptr [edi + 0xf0], 0x1ff
    mov dword ptr [edi + 0x300], 0xc4500
    mov dword ptr [edi + 0x300], {0xC4600 | VECTOR:#x}
"""


def load_all(m: pyvmm.Machine, first: str, others: str) -> None:
    """`first` for vCPU 0, in 32 bits; the others in real mode, ds 0."""
    m.add_memory(0, "64K")
    m.load(asm=WAKE_ALL + first)
    code = assemble(f"xor ax, ax; mov ds, ax\n{others}", 16, AP_CODE)
    m.mem.write(AP_CODE, code)

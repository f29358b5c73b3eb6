# SPDX-License-Identifier: Apache-2.0
"""Many machines in one process, on threads.

A Machine costs less than a megabyte and less than a millisecond, shares
nothing with others, and run() leaves the GIL while the guest runs.
"""

from concurrent.futures import ThreadPoolExecutor

import pyvmm

CODE = """
    mov ecx, [0x101000]         # the number that the host put there
    xor eax, eax
again:
    add eax, ecx
    loop again
    mov [0x101004], eax
    out 0xf4, al
"""

with pyvmm.Machine("1M") as m:  # assembled once
    m.load(asm=CODE)
    code = m.mem.read(0x100000, 64)


def sum_up_to(n: int) -> int:
    with pyvmm.Machine("1M") as m:
        m.load(raw=code, at=0x100000)
        m.mem.write_u32(0x101000, n)
        m.run(timeout=30)
        return m.mem.read_u32(0x101004)


with ThreadPoolExecutor(8) as pool:
    sums = list(pool.map(sum_up_to, range(1, 49)))
print(len(sums), "machines:", sums[:4], "...", sums[-1])

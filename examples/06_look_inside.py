# SPDX-License-Identifier: Apache-2.0
"""Stop a guest and look: registers, memory, symbols, single steps.

Wherever an address is asked for, a symbol expression does as well: "square",
"table+8". Reading never runs the guest; nothing here changes it either.
"""

import pyvmm

GUEST = """
#include <runtime.h>

unsigned table[4];

__attribute__((noinline, noclone)) unsigned square(unsigned n)
{
    return n * n;
}

int main(void)
{
    for (unsigned n = 0; n < 4; n++)
        table[n] = square(n + 5);
    return 0;
}
"""

with pyvmm.Machine() as m:
    m.load(c=GUEST)
    for _ in range(3):
        stop = m.run(until="square", timeout=5)
        argument = m.cpu.mem.read_u32(m.cpu.esp + 4)  # virtual, as m.cpu sees
        print(f"{stop.reason} {stop.where.symbol}, n = {argument}")
    print("table so far:", m.mem.read_u32("table"), m.mem.read_u32("table+4"))
    m.cpu.mem.write_u32(m.cpu.esp + 4, 10)
    while m.step().where.symbol == "square":
        pass
    print("back in", m.symbols.where(m.cpu.eip).symbol, "with", m.cpu.eax)
    print(m.run(timeout=5).reason, m.mem["table":"table+16"][::4].hex(" "))

# SPDX-License-Identifier: Apache-2.0
"""A guest in C, run in this process.

The text given as `c=` is compiled together with the guest runtime, loaded at
1 MiB and entered in 32-bit protected mode. What it prints is kept in
m.console; what main() returns is the status of the run.
"""

import pyvmm

GUEST = """
#include <runtime.h>

int main(void)
{
    puts("hello from a guest");
    return 7;
}
"""

with pyvmm.Machine(memory="16M") as m:
    m.load(c=GUEST)
    stop = m.run(timeout=5)

print(stop.reason, stop.status)
print(m.console.text, end="")  # readable after close()

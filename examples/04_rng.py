# SPDX-License-Identifier: Apache-2.0
"""Random bytes through virtio-rng, the same ones in each run.

Rng() alone gives bytes of getrandom(). A source makes a run reproducible: a
hashlib XOF, a file, or a callable. The guest finds the device through
start_info: its driver looks for "virt" at the start of each range in the map.
"""

import hashlib

import pyvmm

GUEST = """
#include <runtime.h>
#include <rng.h>

int main(void)
{
    static struct rng rng;
    unsigned char bytes[8];
    const char *problem = rng_open(&rng, false);

    if (problem)
        panic("%s", problem);
    rng_read(&rng, bytes, sizeof(bytes));
    for (unsigned i = 0; i < sizeof(bytes); i++)
        print("%02x%s", bytes[i], i < sizeof(bytes) - 1 ? " " : "\\n");
    return 0;
}
"""

for _ in range(2):
    with pyvmm.Machine() as m:
        rng = m.attach(pyvmm.Rng(source=hashlib.shake_128(b"seed")))
        m.load(c=GUEST)
        m.run(timeout=5)
        print(m.console.text, end="")
        print(f"{rng.native.bytes} bytes in {rng.native.requests} request")

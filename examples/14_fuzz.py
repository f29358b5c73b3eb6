# SPDX-License-Identifier: Apache-2.0
"""A fuzzer in ten lines: one snapshot, thousands of inputs each second.

The parser wants four bytes of magic before it goes wrong. Coverage tells which
input got further than the ones before; the corpus makes more of those.
"""

import pyvmm

GUEST = """
#include <runtime.h>

char buf[64];

__attribute__((noipa)) int parse(const char *p, unsigned n)
{
    static const char magic[] = "pyvm";
    unsigned i = 0;

    while (i < 4 && i < n && p[i] == magic[i])
        i++;
    return i < 4 ? 0 : *(volatile int *)(0xe0000000 + n);
}

int main(void) { return parse(buf, 0); }
"""

with pyvmm.Machine(memory="16M") as m:
    m.load(c=GUEST, coverage=True)
    m.run(until="parse", timeout=10)
    snap = m.snapshot()
    corpus = pyvmm.Corpus(b"hello", seed=1)
    place = {"into": "buf", "length": "*esp+8", "max_size": 64}
    ends = {"until": "return", "timeout": 1}
    for case in m.replay(snap, corpus, coverage="edges", **place, **ends):
        if case.crashed:
            print(case.reason, "in", case.stop.where.symbol, case.data[:4])
            break
        corpus.add(case.data)

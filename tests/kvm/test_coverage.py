# SPDX-License-Identifier: Apache-2.0
"""Guests that are built with coverage, and what replay() makes of it."""

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

NESTED = r"""
#include <runtime.h>

char buf[64];
unsigned size;
volatile unsigned depth; /* else a compiler makes one condition of them */

static void parse(const char *p, unsigned n)
{
    if (n < 4)
        return;
    if (p[0] == 'D' && ++depth)
        if (p[1] == 'E' && ++depth)
            if (p[2] == 'E' && ++depth)
                if (p[3] == 'P' && ++depth)
                    *(volatile int *)0xe0000000 = 1;
}

int main(void)
{
    print("ready\n");
    parse(buf, size);
    return 0;
}
"""

# Each goes deeper than the one before.
DEEPER = [b"....", b"D...", b"DE..", b"DEE.", b"DEEP"]

MAP = "pyvmm_coverage"


def check_deeper(m: pyvmm.Machine) -> None:
    """Each deeper one is news, and nothing else is."""
    m.run(until=pyvmm.printed("ready\n"), timeout=5)
    snap = m.snapshot()
    inputs = [DEEPER[0], *DEEPER, *DEEPER[:-1]]
    options = {"into": "buf", "max_size": 64, "length": ("size", 4)}
    cases = list(m.replay(snap, inputs, timeout=5, coverage="edges", **options))
    assert [case.data for case in cases] == DEEPER
    assert all(case.new for case in cases)
    assert [case.reason for case in cases] == [
        *["exit"] * 4, "unclaimed access",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["protected", "user"])
def test_deeper_is_new(mode) -> None:
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=NESTED, mode=mode, coverage=True)
        assert m.symbols[MAP] % 4096 == 0
        check_deeper(m)


@pytest.mark.parametrize(
    "how",
    [
        {"coverage": True},
        {"flags": ["-fsanitize-coverage=edge,trace-pc-guard"]},
        {"coverage": "compare"},
    ],
)
@pytest.mark.parametrize("mode", ["protected", "user"])
def test_clang_has_two_ways(tmp_path, how, mode) -> None:
    source = tmp_path / "nested.c"
    source.write_text(NESTED)
    image = pyvmm.guest.build(source, mode=mode, compiler="clang", **how)
    with pyvmm.Machine(memory="16M") as m:
        m.load(image)
        check_deeper(m)


MAGIC = r"""
#include <runtime.h>

char buf[16];

int main(void)
{
    uint32_t word;

    print("ready\n");
    memcpy(&word, buf, 4);
    if (word == 0x6d767970)
        return 1;
    switch (*(uint16_t *)(buf + 4)) {
    case 0x1234: return 2;
    case 0x5678: return 3;
    case 0x9abc: return 4;
    case 0xdef0: return 5;
    case 0x4321: return 6;
    }
    return 0;
}
"""


@pytest.mark.parametrize("mode", ["protected", "user"])
def test_a_magic_number_is_found_by_its_bytes(mode) -> None:
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=MAGIC, mode=mode, coverage="compare")
        m.run(until=pyvmm.printed("ready\n"), timeout=5)
        snap = m.snapshot()
        options = {"into": "buf", "max_size": 8, "coverage": "edges"}
        nearer = [b"....", b"p...", b"py..", b"pyv.", b".yv.", b"pyvm"]
        nearer += [b"....\x34"]  # of a case
        cases = list(m.replay(snap, nearer, **options))
        assert [case.data for case in cases] == [
            data for data in nearer if data != b".yv."
        ]
        corpus = pyvmm.Corpus(b"hello, w", seed=1)
        for case in m.replay(snap, corpus, **options):
            corpus.add(case.data)
            if case.status == 1:
                break
        assert case.data[:4] == b"pyvm"


def test_bad_coverage() -> None:
    with pyvmm.Machine() as m, pytest.raises(ValueError, match="neither True"):
        m.load(c=NESTED, coverage="edges")


def test_what_was_counted_before_is_forgotten() -> None:
    """A parser that has run often before the snapshot hides nothing."""
    source = NESTED.replace(
        'print("ready',
        'for (int i = 0; i < 300; i++) parse("DEE.", 4); print("ready',
    )
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=source, mode="user", coverage=True)
        check_deeper(m)
        assert max(m.cpu.mem.read(MAP, 65536)) < 255
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=source, mode="user", coverage=True)
        m.run(until=pyvmm.printed("ready\n"), timeout=5)
        snap = m.snapshot()
        list(m.replay(snap, [b""], coverage="edges"))
        m.restore(snap)
        assert max(m.cpu.mem.read(MAP, 65536)) == 255


def test_counters_stay_at_255() -> None:
    source = """
        #include <coverage.h>
        #include <runtime.h>

        int main(void)
        {
            for (volatile int i = 0; i < 1000; i++);
            for (unsigned i = 0; i < COVERAGE_SIZE; i++)
                if (pyvmm_coverage[i] == 255)
                    return 1;
            return 0;
        }
    """
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=source, mode="user", coverage=True)
        assert m.run(timeout=20).status == 1


def test_no_coverage_leaves_a_function_out() -> None:
    source = """
        #include <coverage.h>
        #include <runtime.h>

        NO_COVERAGE int main(void)
        {
            for (volatile int i = 0; i < 9; i++);
            return 0;
        }
    """
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=source, coverage=True)
        assert m.run(timeout=5).status == 0
        assert MAP not in m.symbols  # nothing has asked for it


def test_nothing_for_who_does_not_want_it() -> None:
    with pyvmm.Machine(memory="16M") as m:
        m.load(c=NESTED)
        assert MAP not in m.symbols
        m.run(until=pyvmm.printed("ready\n"), timeout=5)
        with pytest.raises(ValueError, match="build it with coverage"):
            m.replay(m.snapshot(), [b""], coverage="edges")
    with pyvmm.Machine() as m, pytest.raises(ValueError, match="goes with c="):
        m.load(asm="hlt", coverage=True)

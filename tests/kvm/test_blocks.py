# SPDX-License-Identifier: Apache-2.0
"""Coverage of guests that were built without: int3 at each basic block."""

import shutil
from collections.abc import Iterator

import pytest
from turns import Target

import pyvmm
from pyvmm import blocks
from pyvmm.debug import int3_works

pytestmark = pytest.mark.usefixtures("kvm")

GUEST = r"""
#include <runtime.h>

char buf[64];
volatile unsigned depth;

__attribute__((noipa)) void deep(unsigned n)
{
    *(volatile int *)(0xe0000000 + n) = 1;
}

__attribute__((noipa)) int parse(const char *p, unsigned n)
{
    if (n < 4)
        return 0;
    if (p[0] == 'D' && ++depth)
        if (p[1] == 'E' && ++depth)
            if (p[2] == 'E' && ++depth)
                if (p[3] == 'P' && ++depth)
                    deep(n);
    if (p[0] == 'L')
        for (;;);
    return 1;
}

int main(void) { return parse(buf, 0); }
"""

DEEPER = [b"", b"....", b"D...", b"DE..", b"DEE.", b"DEEP"]


def make() -> Target:
    return Target(GUEST, timeout=0.05, coverage="blocks")


@pytest.fixture(scope="module")
def booted() -> Iterator[Target]:
    booted = make()
    yield booted
    booted.m.close()


@pytest.fixture
def target(booted) -> Target:
    booted.m.restore(booted.snap)
    return booted


@pytest.mark.parametrize("whole", [False, True])
def test_deeper_is_new(target, whole) -> None:
    inputs = [DEEPER[0], *DEEPER, *DEEPER[:-1]] * 40
    with target.replay(inputs, whole=whole) as replay:
        new = [case for case in replay if case.new]
        assert [case.data for case in new] == DEEPER
        assert new[-1].reason == "unclaimed access"
        names = [target.m.symbols.where(at).symbol for at in replay.reached]
        assert set(names) == {"parse", "deep"} and names[-1] == "deep"
        assert len(replay.reached) == sum(case.new for case in new)
        assert set(replay.reached) <= set(replay.blocks)
        assert replay.why is None


def test_the_guest_is_as_it_was(target) -> None:
    """int3 is in what turns begin at, and nowhere else."""
    m = target.m
    size = m.symbols.size("parse")
    before = m.cpu.mem.read("parse", size)
    for case in target.replay(DEEPER):
        assert case.stop.reason in ("until", "unclaimed access")
        assert m.cpu.mem.read("parse", size) == before
    assert m.cpu.mem.read("parse", size) == before
    m.restore(target.snap)
    assert m.cpu.mem.read("parse", size) == before
    target.replay([b""]).close()
    assert m.cpu.mem.read("parse", size) == before
    assert m.run(timeout=5).status == 0


def test_edges_and_blocks_are_told_apart(target) -> None:
    """Blocks that are named, beside a map."""
    where = target.m.symbols["deep"]
    inputs = [b"DEE.", b"DEEP", b"DEEP"]
    with target.replay(
        inputs, coverage=("depth", 4), blocks=["deep", "main"]
    ) as replay:
        cases = list(replay)
        assert [case.new for case in cases] == [1, 2, 0]
        assert replay.reached == [where] and replay.edges == 1
        assert replay.blocks == sorted([where, target.m.symbols["main"]])


def test_an_end_is_no_block(target) -> None:
    with target.replay([b"DEEP"], until="deep", blocks=["deep"]) as replay:
        assert [case.reason for case in replay] == []
        assert replay.blocks == []


def test_after_a_loop_that_hangs(target) -> None:
    inputs = [b"LLLL", b"DEEP", b"LLLL", b"...."]
    cases = list(target.replay(inputs))
    assert [case.reason for case in cases] == [
        "timeout", "unclaimed access", "timeout", "until",
    ]  # fmt: skip
    assert [case.new > 0 for case in cases] == [True, True, False, True]


def test_a_corpus_climbs(target) -> None:
    corpus = pyvmm.Corpus(b"DEE", seed=1)
    for case in target.replay(corpus):
        if case.reason == "unclaimed access":
            break
        if not case.crashed:
            corpus.add(case.data)
    assert case.data[:4] == b"DEEP"


# A byte decides which way it goes; an MSR is counted up each time.
LEAK = """
    mov ecx, 0x174
    rdmsr
    inc eax
    wrmsr
    mov al, [0x200000]
    cmp al, 1
    je one
    cmp al, 2
    je two
    out 0xf4, al
one:
    nop
    out 0xf4, al
two:
    nop
    out 0xf4, al
"""


def test_a_batch_that_is_done_again() -> None:
    """What it had reached counts for the turns of the second pass."""
    with pyvmm.Machine() as m:
        m.load(asm=LEAK)
        snap = m.snapshot()
        inputs = [bytes([i]) for i in (0, 0, 2, 2, 1, 0, 1)] * 100
        with m.replay(
            snap, inputs, into=0x20_0000, max_size=1, blocks=["one", "two"]
        ) as replay:
            cases = list(replay)
            assert replay.whole and replay.why == "MSRs"
            one, two = m.symbols["one"], m.symbols["two"]
            assert replay.reached == [two, one]
        assert [(c.index, c.new) for c in cases] == [(2, 1), (4, 1)]


def test_ring_3_where_the_host_can() -> None:
    with pyvmm.Machine(memory="16M") as m:
        m.load(
            c='int print(const char *, ...); int main(void) { print("up"); '
            "return 0; }",
            mode="user",
        )
        m.run(until=pyvmm.printed("up"), timeout=5)
        snap = m.snapshot()
        if int3_works("user"):
            with m.replay(snap, [b""], coverage="blocks") as replay:
                assert len(list(replay)) == 1
        else:
            with pytest.raises(pyvmm.Unsupported, match="int3 in 64-bit ring"):
                m.replay(snap, [b""], coverage="blocks")
            m.restore(snap)
            assert m.run(timeout=5).status == 0


def test_a_device_in_each_turn() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="f: hlt")
        m.attach(pyvmm.Rng())
        snap = m.snapshot()
        with pytest.raises(ValueError, match="by the fast loop alone"):
            m.replay(snap, [b""], blocks=["f"])


def test_no_functions() -> None:
    with pyvmm.Machine() as m:
        m.load(raw=b"\xf4")
        with pytest.raises(ValueError, match="no functions: give blocks="):
            m.replay(m.snapshot(), [b""], coverage="blocks")


# -- where blocks begin --------------------------------------------------------

SHAPES = """
    .globl _start
_start:
    call f
    hlt
    .type f, @function
f:
    test eax, eax
    jz 1f
    inc eax
    jmp 2f
1:  dec eax
2:  ret
    .size f, . - f
    .type g, @function
g:
    jmp f
    .byte 0xff, 0xff        # no instruction
    .size g, . - g
nothing:
    jz f
    nop
"""
AT = 0x10_0000


def test_blocks_of_a_function() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=SHAPES)
        f, g = m.symbols["f"], m.symbols["g"]
        found = blocks.starts(m)
        # The begin, both ways of the branch, where they meet; one of g, since
        # not all of it is code; nothing of what has no size.
        assert [at - f for at in found] == [0, 4, 7, 8, g - f]
        for at, byte in found.items():
            assert m.mem.read(at, 1)[0] == byte


def test_functions_alone_without_objdump(monkeypatch) -> None:
    with pyvmm.Machine() as m:
        m.load(asm=SHAPES)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert list(blocks.starts(m)) == [m.symbols["f"], m.symbols["g"]]
        snap = m.snapshot()
        with m.replay(snap, [b""], coverage="blocks") as replay:
            assert [case.reason for case in replay] == ["halt"]
            assert replay.reached == [m.symbols["f"]]


def test_code_that_has_changed_is_left_out() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=SHAPES)
        m.mem.write(m.symbols["f"] + 7, b"\x90")
        snap = m.snapshot()
        with m.replay(snap, [b""], coverage="blocks") as replay:
            assert m.symbols["f"] + 7 not in replay.blocks
            assert m.symbols["f"] + 8 in replay.blocks

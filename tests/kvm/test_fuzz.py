# SPDX-License-Identifier: Apache-2.0
"""A fuzz loop: replay() over a Corpus, with news that find their way back."""

import os

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

# parse(rdi, rsi) counts how far the magic goes, and goes wrong behind it.
PARSER = """
    lea rdi, [rip + buf]
    xor esi, esi
    call parse
    hlt
parse:
    xor eax, eax
    lea rbx, [rip + magic]
    lea rdx, [rip + pyvmm_coverage]
more:
    cmp eax, 4
    je bad
    cmp rax, rsi
    jae out
    mov cl, [rdi + rax]
    cmp cl, [rbx + rax]
    jne out
    inc byte ptr [rdx + rax]
    inc eax
    jmp more
out:
    ret
bad:
    mov edx, 0xe0000000
    mov eax, [rdx]
    ret
magic:
    .ascii "pyvm"
    .balign 4096
buf:
    .skip 4096
pyvmm_coverage:
    .skip 65536
"""


@pytest.fixture
def m():
    with pyvmm.Machine(memory="16M") as m:
        m.load(asm=PARSER, mode="long")
        yield m


def test_the_loop_of_the_documents(m, tmp_path, monkeypatch) -> None:
    """Word for word, up to the first crash."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("seeds")
    (tmp_path / "seeds" / "hello").write_text("hello")
    m.run(until="parse", timeout=5)
    snap = m.snapshot()
    corpus = pyvmm.Corpus("seeds/", seed=1)
    for case in m.replay(snap, corpus, into="*rdi", length="rsi", max_size=4096,
                         until="return", timeout=0.05, coverage="edges", report="new"):  # fmt: skip  # noqa: E501
        if case.stop.crashed:
            path = case.save("crashes/")
            break
        else:
            corpus.add(case.data)
    assert case.stop.reason == "unclaimed access"
    with open(path, "rb") as file:
        assert file.read()[:4] == b"pyvm"
    assert path.startswith("crashes/")
    assert {data[:3] for data in corpus.entries} >= {b"hel", b"pyv"}


def fuzz(m: pyvmm.Machine, snap, seed: int) -> tuple[int, list[bytes]]:
    """Which input was the first to crash, and what the corpus had then."""
    corpus = pyvmm.Corpus(b"pywm", seed=seed)
    options = {"into": "buf", "length": "rsi", "max_size": 16}
    for case in m.replay(
        snap, corpus, until="return", coverage="edges", **options
    ):
        if case.crashed:
            break
        corpus.add(case.data)
    return case.index, corpus.entries


def test_the_same_seed_finds_the_same(m) -> None:
    m.run(until="parse", timeout=5)
    snap = m.snapshot()
    first = fuzz(m, snap, 1)
    assert fuzz(m, snap, 1) == first
    assert fuzz(m, snap, 2)[0] != first[0]


def test_max_size_is_the_replay_s(m) -> None:
    m.run(until="parse", timeout=5)
    snap = m.snapshot()
    corpus = pyvmm.Corpus(b"12345")
    with pytest.raises(ValueError, match=r"seed has 5 bytes.*max_size, 4"):
        m.replay(snap, corpus, into="buf", max_size=4)
    cases = m.replay(
        snap, corpus, into="buf", max_size=6, until="return", report="all"
    )
    assert max(len(next(cases).data) for _ in range(500)) == 6
    cases.close()
    assert corpus.max_size == 6

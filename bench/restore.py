# SPDX-License-Identifier: Apache-2.0
"""Going back to a snapshot, and clones of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter_ns

import pyvmm
from pyvmm import _vmm

from .bare import Bare
from .many import Look
from .measure import Figure, Step, pairs, ratio, timed
from .table import Row

BASE = 0x100000
LOW = 1 << 20  # bytes at the beginning of RAM that are not zeros
SIZES = {"64 MiB": 64 << 20, "1 GiB": 1 << 30}
PAGES = (1, 8, 32, 512)
TURNS = 2000  # of one page; fewer of many
BOUND = 1 / 0.85
CLONES = 100
SETS = 10

WRITES = """
    mov ecx, {pages}
    mov edi, 0x200000
next:
    mov [edi], ecx
    add edi, 4096
    dec ecx
    jnz next
    mov al, 0
done:
    out 0xf4, al
"""


class Target:
    """A machine that has not run yet, at a snapshot, and its bare twin."""

    def __init__(self, size: int, pages: int) -> None:
        self.machine = m = pyvmm.Machine(memory=size)
        m.load(asm=WRITES.format(pages=pages))
        vcpu = m.cpu.vcpu
        low = m.memory.read(BASE, LOW)
        self.done = m.symbols["done"]
        self.bare = Bare(BASE, size, low, vcpu.get("sregs"), vcpu.get("regs"))
        self.bare.keep(self.done)
        self.snap = m.snapshot()
        self.turns = max(20, TURNS // pages)

    def bare_step(self) -> Step:
        return timed(lambda: self.bare.reset(self.turns))

    def replay_step(self, whole: bool = False) -> Step:
        inputs = [b""] * self.turns

        def step() -> None:
            with self.machine.replay(
                self.snap, inputs, until=self.done, whole=whole,
                report="crashed",
            ) as replay:  # fmt: skip
                if list(replay) or replay.turns != len(inputs):
                    raise RuntimeError(f"turns were done again: {replay}")

        return timed(step)

    def close(self) -> None:
        self.bare.close()
        self.machine.close()


def against_bare(
    effort: float, size: int, pages: int, whole: bool = False
) -> tuple[Figure, float]:
    """The ratio of times, and turns a second of the bare loop.

    Of fresh machines: where the pages of one are makes it faster or slower.
    """
    found = []
    for _ in range(SETS):
        target = Target(size, pages)
        first, second = target.bare_step(), target.replay_step(whole)
        first(), second()
        found += pairs(first, second, max(2, round(8 * effort)))
        target.close()
    rate = target.turns / Figure([a for a, _ in found]).median * 1e9
    return ratio(found), rate


def loops(effort: float) -> Iterator[Row]:
    for name, size in SIZES.items():
        for pages in PAGES:
            figure, rate = against_bare(effort, size, pages)
            yield Row(
                f"restore {pages} pages of {name}, against a bare loop",
                figure, BOUND, unit="x", note=f"that does {rate:,.0f} per s",
            )  # fmt: skip
    for pages in (1, 32):
        figure, _ = against_bare(effort, SIZES["64 MiB"], pages, True)
        yield Row(f"the same, {pages} pages, whole state", figure, unit="x")
    small, large = (Target(size, 1) for size in SIZES.values())
    steps = small.replay_step(), large.replay_step()
    found = pairs(*steps, max(6, round(40 * effort)))
    yield Row("restore 1 page, 1 GiB over 64 MiB", ratio(found), 1.2, unit="x")
    large.close()
    yield Row(
        "m.restore() over vm.restore()", from_python(small, effort), 5,
        unit="us", scale=1e-3,
    )  # fmt: skip
    small.close()


def from_python(target: Target, effort: float) -> Figure:
    """Nanoseconds that Machine.restore() takes more, with a run between."""
    m, snap = target.machine, target.snap
    vm, vcpu, native = m.vm, m.cpu.vcpu, snap._native

    def raw() -> None:
        for _ in range(200):
            vcpu.run()
            vm.restore(native)

    def python() -> None:
        for _ in range(200):
            vcpu.run()
            m.restore(snap)

    found = pairs(timed(raw), timed(python), max(6, round(40 * effort)))
    return Figure([(b - a) / 200 for a, b in found])


# -- clones ------------------------------------------------------------------


def clones(effort: float) -> Iterator[Row]:
    target = Target(256 << 20, 1)
    m = target.machine
    state = m.cpu.vcpu.get("sregs"), m.cpu.vcpu.get("regs")
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 256 << 20)
    os.pwrite(fd, m.memory.read(BASE, LOW), 0)
    alive: list[Bare | pyvmm.Machine] = []

    def close() -> None:
        for one in alive:
            one.close()
        alive.clear()
        _vmm.reap()

    def raw() -> float:
        start = perf_counter_ns()
        bare = Bare(BASE, 256 << 20, b"", *state, fd)
        bare.run(1)
        alive.append(bare)
        return perf_counter_ns() - start

    def ours() -> float:
        start = perf_counter_ns()
        (one,) = m.clone()
        one.run(timeout=5)
        took = perf_counter_ns() - start
        alive.append(one)
        return took

    found = []
    for _ in range(max(2, round(10 * effort))):
        pairs(raw, ours, 2)  # warm
        found += pairs(raw, ours, 20)
        close()
    cost = Figure([a for a, _ in found]).median / 1e6
    yield Row(
        "clone of 256 MiB to first exit, against raw", ratio(found), 1.5,
        unit="x", note=f"of {cost:.2f} ms",
    )  # fmt: skip
    yield Row(
        "clone of 256 MiB to first exit", Figure([b for _, b in found]), 1.5,
        unit="ms", scale=1e-6, below=True,
    )  # fmt: skip
    looks = []
    for step in (raw, ours):
        before = Look()
        for _ in range(CLONES):
            step()
        after = Look()
        close()
        looks.append(
            (
                (after.rss - before.rss) / CLONES,
                (after.kernel - before.kernel) / CLONES,
            )
        )
    yield Row(
        "memory of a clone, process", Figure([looks[1][0]]), 300, unit="KiB",
        scale=1 / 1024, digits=0, below=True,
        note=f"raw {looks[0][0] / 1024:.0f}",
    )  # fmt: skip
    yield Row(
        "memory of a clone, kernel", Figure([looks[1][1]]), 0.6, unit="MiB",
        scale=1 / (1 << 20), below=True,
        note=f"raw {looks[0][1] / (1 << 20):.2f}",
    )  # fmt: skip
    os.close(fd)
    target.close()

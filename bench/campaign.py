# SPDX-License-Identifier: Apache-2.0
"""Campaigns: what a second worker process brings, and what the parent costs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import sysconf
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns, process_time_ns

import pyvmm

from .measure import Figure
from .table import Row

INPUTS = 100_000
BUFFER = 0x200000
BOUND = 1.7
# Adds up the input's bytes and exits with the sum.
CODE = """
    mov esi, 0x200000
    mov ecx, [0x201000]
    xor eax, eax
next:
    movzx edx, byte ptr [esi]
    add eax, edx
    inc esi
    dec ecx
    jnz next
    out 0xf4, al
"""


def cpu_ns(pids: list[int]) -> float:
    """What processes have worked, by the kernel's ticks."""
    ticks = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])  # utime, stime
    return ticks * 1e9 / sysconf("SC_CLK_TCK")


class Run:
    """One campaign: its rate, and CPU time for each input.

    `rate`: inputs a second, from the first result to the last. `parent`,
    `workers`: nanoseconds of this process, and of the others together.
    """

    def __init__(self, path: Path, inputs: list[bytes], workers: int) -> None:
        context = get_context("forkserver")
        with ProcessPoolExecutor(workers, context) as pool:
            campaign = pyvmm.campaign(
                path, inputs, into=BUFFER, length=(BUFFER + 0x1000, 4),
                max_size=64, executor=pool, workers=workers, verify=False,
            )  # fmt: skip
            next(campaign)  # all that is made once is there
            pids = list(pool._processes)
            start, own, theirs = (
                perf_counter_ns(),
                process_time_ns(),
                cpu_ns(pids),
            )
            count = sum(result.reason == "exit" for result in campaign)
            took = perf_counter_ns() - start
            self.parent = (process_time_ns() - own) / len(inputs)
            self.workers = (cpu_ns(pids) - theirs) / len(inputs)
        if count + 1 != len(inputs):
            raise RuntimeError(f"the guest ended otherwise: {campaign.counts}")
        self.rate = count / took * 1e9


def campaign(effort: float) -> Iterator[Row]:
    inputs = [bytes([i % 251]) * (1 + i % 16) for i in range(INPUTS)]
    one: list[Run] = []
    two: list[Run] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bench.snap"
        with pyvmm.Machine() as m:
            m.load(asm=CODE)
            m.snapshot().save(path)
        for _ in range(max(2, round(6 * effort))):
            one.append(Run(path, inputs, 1))
            two.append(Run(path, inputs, 2))
    both = list(zip(one, two, strict=True))
    yield Row(
        "campaign, 2 processes over 1",
        Figure([b.rate / a.rate for a, b in both]), unit="x",
        note=f"of {Figure([a.rate for a in one]).median:.0f} inputs/s, at "
        f"least {BOUND} wanted",
    )  # fmt: skip
    # One process waits for its worker alone; two share what two CPUs have.
    yield Row(
        "the same by CPU time, had they two CPUs",
        Figure([2 * a.workers / (b.workers + b.parent) for a, b in both]),
        unit="x",
        note=f"{Figure([b.workers for b in two]).median / 1e3:.1f} us of a "
        "worker for each input",
    )
    yield Row(
        "the parent's CPU time for each input",
        Figure([run.parent for run in two]), unit="us", scale=1e-3,
    )  # fmt: skip

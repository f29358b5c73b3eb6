# SPDX-License-Identifier: Apache-2.0
"""Campaigns: what a second worker process brings, and what the parent costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns, process_time_ns

import pyvmm

from .measure import Figure, Step, pairs
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


def run(path: Path, inputs: list[bytes], workers: int) -> float:
    """Inputs a second, from the first result to the last."""
    campaign = pyvmm.campaign(
        path, inputs, into=BUFFER, length=(BUFFER + 0x1000, 4), max_size=64,
        workers=workers, verify=False,
    )  # fmt: skip
    next(campaign)  # all that is made once is there
    start = perf_counter_ns()
    count = sum(result.reason == "exit" for result in campaign)
    took = perf_counter_ns() - start
    if count + 1 != len(inputs):
        raise RuntimeError(f"the guest ended otherwise: {campaign.counts}")
    return count / took * 1e9


def campaign(effort: float) -> Iterator[Row]:
    inputs = [bytes([i % 251]) * (1 + i % 16) for i in range(INPUTS)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bench.snap"
        with pyvmm.Machine() as m:
            m.load(asm=CODE)
            m.snapshot().save(path)
        cost: list[float] = []

        def step(workers: int) -> Step:
            def one() -> float:
                before = process_time_ns()
                rate = run(path, inputs, workers)
                cost.append((process_time_ns() - before) / INPUTS)
                return rate

            return one

        found = pairs(step(1), step(2), max(2, round(6 * effort)))
        rate = Figure([a for a, _ in found]).median
        yield Row(
            "campaign, 2 processes over 1", Figure([b / a for a, b in found]),
            unit="x", note=f"of {rate:.0f} inputs/s, at least {BOUND} wanted",
        )  # fmt: skip
        yield Row(
            "the parent's CPU time for each input", Figure(cost), unit="us",
            scale=1e-3,
        )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""From a snapshot file of 256 MiB to the first exit of a machine at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns

import pyvmm

from .create import AT_ONCE, close_all, cold, machine, sample, to_exit
from .measure import Figure, Step
from .table import Row

SIZE = "256M"
TOUCHED = 64 << 20  # bytes of its memory that are not zeros
BOUND_MS = 5
# Exits with 7 for ever.
CODE = "again: mov al, 7; out 0xf4, al; jmp again"


def save(path: Path) -> None:
    """The file of a machine that has run, with 64 MiB of content."""
    with pyvmm.Machine(memory=SIZE) as m:
        m.load(asm=CODE)
        m.mem.write(32 << 20, bytes(range(256)) * (TOUCHED // 256))
        m.run(timeout=30)
        m.snapshot().save(path)


def loading(path: Path) -> Step:
    return lambda: to_exit(lambda: pyvmm.Snapshot.load(path).machine())


def plain() -> float:
    """A machine of that size which is not of a file."""
    return to_exit(lambda: machine(SIZE))


def load(effort: float) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bench.snap"
        save(path)
        step = loading(path)
        rounds = round(10 * effort)
        for name, first, second, alive in (
            ("load of 256 MiB to first exit", plain, step, AT_ONCE),
            (
                "the same, after waiting for the last one's close",
                cold(plain),
                cold(step),
                AT_ONCE // 2,
            ),
        ):
            found = sample(first, second, rounds, alive)
            cost = Figure([a for a, _ in found]).median / 1e6
            yield Row(
                name, Figure([b for _, b in found]), BOUND_MS, unit="ms",
                scale=1e-6, below=True, note=f"without a file {cost:.2f} ms",
            )  # fmt: skip
        close_all()
        size = path.stat().st_blocks * 512
        start = perf_counter_ns()
        pyvmm.Snapshot.load(path).verify()
        took = perf_counter_ns() - start
        yield Row(
            "verify() of it", Figure([took]), unit="ms", scale=1e-6,
            note=f"{size >> 20} MiB on the disk",
        )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""virtio-rng, request by request: the same guest in pyvmm and in QEMU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import pyvmm

from . import ours, qemu
from .measure import Figure, Step, ratio
from .table import Row

ROOT = Path(__file__).parent.parent
GUEST = ROOT / "build/guest/bench-rng.elf"

# Bytes of a request, and how many requests a run makes.
SIZES = {1: 1000, 64: 1000, 4096: 500, 65536: 100, 1 << 20: 10}

RESULT = re.compile(rb"cycles (\d+) bytes (\d+) kicks (\d+)")


def cycles(output: bytes, size: int, count: int) -> float:
    """TSC cycles of a request, as the guest counted them."""
    found = RESULT.search(output)
    if not found:
        raise RuntimeError(f"the guest said: {output!r}")
    spent, got, _ = map(int, found.groups())
    if got != size * count:
        raise RuntimeError(f"{got} bytes came, not {size * count}")
    return spent / count


def words(size: int, count: int) -> str:
    return f"size={size} n={count}"


def in_pyvmm(size: int, count: int, notify: str) -> float:
    output = ours.run(GUEST, words(size, count), pyvmm.Rng(notify=notify))
    return cycles(output, size, count)


def in_qemu(size: int, count: int) -> float:
    output = qemu.run(GUEST, words(size, count), "-device", "virtio-rng-device")
    return cycles(output, size, count)


def size_text(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def tsc_hz() -> float:
    """TSC cycles in a second, by asking a guest twice."""

    def look() -> tuple[int, int]:
        before = perf_counter_ns()
        with pyvmm.Machine(memory="1M") as m:
            # rdtsc; mov %eax, 0x100100; mov %edx, 0x100104; out %al, $0xf4
            m.load(raw=bytes.fromhex("0f31 a300011000 891504011000 e6f4 f4"))
            m.run(timeout=5)
            value = m.mem.read_u64(0x100100)
        return (before + perf_counter_ns()) // 2, value

    then, first = look()
    while perf_counter_ns() - then < 200_000_000:
        pass
    now, last = look()
    return (last - first) / ((now - then) / 1e9)


def requests(effort: float) -> Iterator[Row]:
    has_qemu = qemu.found()
    if not has_qemu:
        yield Row("virtio-rng, against QEMU microvm", note=qemu.MISSING)
    hz = tsc_hz()
    rounds = max(5, round(25 * effort))
    for size, n in SIZES.items():
        steps: dict[str, Step] = {
            "inline": partial(in_pyvmm, size, n, "inline"),
            "thread": partial(in_pyvmm, size, n, "thread"),
        }
        if has_qemu:
            steps["qemu"] = partial(in_qemu, size, n)
        found = in_turn(steps, rounds)
        for how in ("inline", "thread"):
            path = f"virtio-rng, {size_text(size)}, {how}"
            rate = Figure([hz / value for value in found[how]])
            if not has_qemu:
                yield Row(f"{path}, requests", rate, unit="k/s", scale=1e-3,
                          digits=3)  # fmt: skip
                continue
            compared = list(zip(found["qemu"], found[how], strict=True))
            yield Row(
                f"{path}, time of QEMU's", ratio(compared), 1, unit="x",
                below=True, note=f"{rate.median:,.0f} requests/s",
            )  # fmt: skip


def in_turn(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """All steps once in each round; another one begins each time."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        for name in order:
            found[name].append(steps[name]())
        order.append(order.pop(0))
    return found

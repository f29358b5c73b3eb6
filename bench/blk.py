# SPDX-License-Identifier: Apache-2.0
"""virtio-blk on a file in the page cache: QEMU's, and a bare preadv loop."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from functools import partial
from tempfile import NamedTemporaryFile
from time import perf_counter

from pyvmm.devices import Blk

from . import ours, qemu
from .measure import Figure, Step, ratio
from .rng import ROOT, in_turn, tsc_hz
from .table import Row

GUEST = ROOT / "build/guest/bench-blk-ring3.elf"
DISK = 64 << 20
MEMORY = 32  # MiB of RAM

SMALL, DEPTH, COUNT = 4096, 32, 6400
LARGE, LARGE_DEPTH, LARGE_COUNT = 1 << 20, 8, 320
WORST = 1 / 0.9  # of the time of a loop that does nothing else

RESULT = re.compile(rb"cycles (\d+) requests (\d+) kicks (\d+)")


def cycles(output: bytes, count: int) -> float:
    """TSC cycles of a request, as the guest counted them."""
    found = RESULT.search(output)
    if not found or int(found[2]) != count:
        raise RuntimeError(f"the guest said: {output!r}")
    return int(found[1]) / count


def words(size: int, depth: int, count: int, *more: str) -> str:
    return " ".join([f"size={size} depth={depth} n={count}", *more])


def in_pyvmm(path: str, cmdline: str, count: int, notify: str) -> float:
    output = ours.run(GUEST, cmdline, Blk(path, notify=notify), memory=MEMORY)
    return cycles(output, count)


def in_qemu(path: str, cmdline: str, count: int) -> float:
    output = qemu.run(
        GUEST, cmdline,
        "-drive", f"if=none,id=d,format=raw,file={path}",
        "-device", "virtio-blk-device,drive=d",
        memory=MEMORY,
    )  # fmt: skip
    return cycles(output, count)


def bare(fd: int, write: bool, hz: float) -> float:
    """Cycles of a call of preadv or pwritev, one behind the other.

    With as many buffers as the guest has, and of such memory.
    """
    with mmap.mmap(-1, LARGE_DEPTH * LARGE) as memory:
        view = memoryview(memory)
        buffers = [
            [view[i * LARGE : (i + 1) * LARGE]] for i in range(LARGE_DEPTH)
        ]
        call = os.pwritev if write else os.preadv
        for buffer in buffers:  # the pages are there, and so are the guest's
            os.preadv(fd, buffer, 0)
        start = perf_counter()
        for i in range(LARGE_COUNT):
            at = i * LARGE % DISK
            if call(fd, buffers[i % LARGE_DEPTH], at) != LARGE:
                raise RuntimeError("the file is shorter than it was")
        spent = perf_counter() - start
        for buffer in buffers:
            buffer[0].release()
        view.release()
    return spent * hz / LARGE_COUNT


def requests(effort: float) -> Iterator[Row]:
    rounds = max(5, round(15 * effort))
    hz = tsc_hz()
    with NamedTemporaryFile(prefix="pyvmm-bench-") as file:
        for _ in range(DISK >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        yield from against_qemu(file.name, rounds, hz)
        yield from against_bare(file.name, file.fileno(), rounds, hz)


def against_qemu(path: str, rounds: int, hz: float) -> Iterator[Row]:
    if not qemu.found():
        yield Row("virtio-blk, against QEMU microvm", note=qemu.MISSING)
    for more in ([], ["random"], ["write"], ["write", "random"]):
        cmdline = words(SMALL, DEPTH, COUNT, *more)
        steps: dict[str, Step] = {
            how: partial(in_pyvmm, path, cmdline, COUNT, how)
            for how in ("inline", "thread")
        }
        if qemu.found():
            steps["qemu"] = partial(in_qemu, path, cmdline, COUNT)
        found = in_turn(steps, rounds)
        what = ", ".join([
            "write" if "write" in more else "read",
            "random" if "random" in more else "in order",
        ])  # fmt: skip
        for how in ("inline", "thread"):
            name = f"virtio-blk, 4 KiB, {what}, {how}"
            rate = Figure([hz / value for value in found[how]])
            if not qemu.found():
                yield Row(f"{name}, requests", rate, unit="k/s", scale=1e-3,
                          digits=1)  # fmt: skip
                continue
            compared = list(zip(found["qemu"], found[how], strict=True))
            yield Row(
                f"{name}, time of QEMU's", ratio(compared),
                1 if how == "inline" else None, unit="x",
                note=f"{rate.median:,.0f} requests/s",
            )  # fmt: skip


def against_bare(path: str, fd: int, rounds: int, hz: float) -> Iterator[Row]:
    for write in (False, True):
        cmdline = words(
            LARGE, LARGE_DEPTH, LARGE_COUNT, *(["write"] if write else [])
        )
        steps: dict[str, Step] = {
            "bare": partial(bare, fd, write, hz),
            "inline": partial(in_pyvmm, path, cmdline, LARGE_COUNT, "inline"),
            "thread": partial(in_pyvmm, path, cmdline, LARGE_COUNT, "thread"),
        }
        found = in_turn(steps, rounds)
        call = "pwritev" if write else "preadv"
        for how in ("inline", "thread"):
            compared = list(zip(found["bare"], found[how], strict=True))
            rate = Figure([LARGE * hz / value / 1e9 for value in found[how]])
            yield Row(
                f"virtio-blk, 1 MiB, time of a {call} loop's, {how}",
                ratio(compared),
                WORST if how == "inline" and not write else None, unit="x",
                note=f"{rate.median:.1f} GB/s",
            )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""virtio-9p: the same guest reads the same file in pyvmm and in QEMU."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pyvmm.devices import NineP

from . import ours, qemu
from .measure import Figure, Step, ratio
from .rng import in_turn, size_text, tsc_hz
from .table import Row

ROOT = Path(__file__).parent.parent
GUEST = ROOT / "build/guest/bench-ninep-ring3.elf"
FILE_SIZE = 16 << 20

# Bytes of a read, and how many times a run reads the file, which is in the
# page cache.
SIZES = {4096: 1, 65536: 4, 1 << 20: 8}

RESULT = re.compile(rb"cycles (\d+) bytes (\d+) kicks")


def cycles(output: bytes, passes: int) -> float:
    """TSC cycles of a byte, as the guest counted them."""
    found = RESULT.search(output)
    if not found:
        raise RuntimeError(f"the guest said: {output!r}")
    spent, got = map(int, found.groups())
    if got != FILE_SIZE * passes:
        raise RuntimeError(f"{got} bytes came, not {FILE_SIZE * passes}")
    return spent / got


def in_pyvmm(folder: str, size: int, passes: int, notify: str) -> float:
    device = NineP(folder, msize=2 << 20, notify=notify)
    output = ours.run(GUEST, f"size={size} n={passes}", device)
    return cycles(output, passes)


def in_qemu(folder: str, size: int, passes: int) -> float:
    output = qemu.run(
        GUEST, f"size={size} n={passes}",
        "-fsdev", f"local,id=f,path={folder},security_model=none,readonly=on",
        "-device", "virtio-9p-device,fsdev=f,mount_tag=host",
    )  # fmt: skip
    return cycles(output, passes)


def reads(effort: float) -> Iterator[Row]:
    has_qemu = qemu.found()
    hz = tsc_hz()
    rounds = max(5, round(15 * effort))
    with TemporaryDirectory() as folder:
        (Path(folder) / "data").write_bytes(os.urandom(FILE_SIZE))
        for size, n in SIZES.items():
            steps: dict[str, Step] = {
                notify: partial(in_pyvmm, folder, size, n, notify)
                for notify in ("inline", "thread")
            }
            if has_qemu:
                steps["qemu"] = partial(in_qemu, folder, size, n)
            found = in_turn(steps, rounds)
            for how in ("inline", "thread"):
                path = f"virtio-9p, reads of {size_text(size)}, {how}"
                rate = Figure([hz / value for value in found[how]])
                if not has_qemu:
                    yield Row(path, rate, unit="MB/s", scale=1e-6, digits=0)
                    continue
                compared = list(zip(found["qemu"], found[how], strict=True))
                yield Row(
                    f"{path}, time of QEMU's", ratio(compared), unit="x",
                    note=f"{rate.median / 1e6:,.0f} MB/s",
                )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""virtio-net, frame by frame: what the device in Python costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import process_time_ns

import pyvmm
from pyvmm import _vmm, virtio
from pyvmm.devices import Net
from pyvmm.devices.net_peer import Peer, frame_of

from .measure import Figure, difference, pairs
from .table import Row

ROOT = Path(__file__).parent.parent
GUEST = ROOT / "build/guest/bench-net-ring3.elf"

FRAMES = 5000
DEPTH = 64
SIZES = (60, 1514)


def guest(net: Net, size: int) -> float:
    """CPU time of this process, for each frame that the guest sends."""
    words = f"n={FRAMES} size={size} depth={DEPTH}"
    with pyvmm.Machine(memory="16M", cmdline=words) as m:
        m.load(GUEST)
        m.attach(net)
        start = process_time_ns()
        stop = m.run(timeout=60)
        spent = process_time_ns() - start
    _vmm.reap()
    if stop.status or net.tx_packets != FRAMES:
        raise RuntimeError(f"{stop}: {m.console.text}, {net}")
    return spent / FRAMES


def to_callable(size: int, notify: str) -> float:
    return guest(Net(lambda frame: None, notify=notify), size)


class Null(Peer):
    """What a TAP interface does, on a file that costs the kernel nothing."""

    def __init__(self, file: int) -> None:
        self.file = file

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        return os.writev(self.file, [header, *frame_of(chain)]) > 0


def to_null(size: int, file: int) -> float:
    return guest(Net(Null(file)), size)


def bare(size: int, file: int) -> float:
    """The same system calls from a loop in Python."""
    parts = [bytes(10), bytes(size)]
    start = process_time_ns()
    for _ in range(FRAMES):
        os.writev(file, parts)
    return (process_time_ns() - start) / FRAMES


def frames(effort: float) -> Iterator[Row]:
    rounds = max(5, round(20 * effort))
    file = os.open(os.devnull, os.O_WRONLY)
    for size in SIZES:
        for notify in ("inline", "thread"):
            step = partial(to_callable, size, notify)
            spent = Figure([step() for _ in range(rounds)])
            yield Row(
                f"virtio-net, {size} B to a callable, {notify}", spent,
                unit="us", scale=1e-3,
                note=f"{1e9 / spent.median:,.0f} frames/s of CPU time",
            )  # fmt: skip
        found = pairs(
            partial(bare, size, file), partial(to_null, size, file), rounds
        )
        yield Row(
            f"virtio-net, {size} B written, over a bare writev",
            difference(found), unit="us", scale=1e-3,
            note="guest and exit included",
        )  # fmt: skip
    os.close(file)

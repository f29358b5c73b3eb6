# SPDX-License-Identifier: Apache-2.0
"""What a virtio request costs in Python, over one to the native rng."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import perf_counter_ns
from typing import ClassVar

import pyvmm
from pyvmm import _vmm, virtio
from pyvmm.virtio import rings

from .measure import Figure, Step, difference, pairs, timed
from .rng import ROOT
from .table import Row

GUEST = ROOT / "build/guest/request-ring3.elf"
QUEUE = 256

# Requests at a time: how many a run makes, and the bound in microseconds.
DEPTHS = {1: (3000, 2.0), 32: (6400, 0.7)}


class Empty(virtio.Device):
    """The least that a device does; the guest takes it for an rng."""

    device_id = 4
    queues: ClassVar[dict[str, int]] = {"requests": QUEUE}

    def on_requests(self, queue: virtio.Queue) -> None:
        for _ in queue:
            pass


def in_guest(kind: type, depth: int, count: int) -> float:
    """Nanoseconds of the vCPU's thread, the guest's time among them."""
    cmdline = f"id=4 reply=1 quiet depth={depth} n={count}"
    with pyvmm.Machine(memory="16M", cmdline=cmdline) as m:
        m.load(GUEST)
        m.attach(kind())
        spent = timed(partial(m.run, timeout=60))()
    _vmm.reap()
    if f"requests {count}," not in m.console.text:
        raise RuntimeError(f"the guest said: {m.console.text}")
    return spent / count


class DriverSide:
    """A device whose driver is this: no KVM, so that caches are warm."""

    def __init__(self, device: pyvmm.Rng | virtio.Device) -> None:
        memory = _vmm.Memory()
        memory.add(0, 1 << 20)
        self.native = device.make(memory)
        self.device = device
        features = rings.VERSION_1 | rings.EVENT_IDX
        transport = rings.Transport(self.native)
        self.ring = transport.boot(features, (QUEUE,), 0x1000).ring[0]
        for i in range(QUEUE):
            self.ring.set_desc(i, 0x40000, 1, rings.WRITE)

    def step(self, depth: int) -> Step:
        """Nanoseconds of a request: of the notification of so many."""
        offer, write = self.ring.offer, self.native.write

        def run() -> float:
            for i in range(depth):
                offer(i)
            start = perf_counter_ns()
            write(rings.QUEUE_NOTIFY, 4, 0)
            return (perf_counter_ns() - start) / depth

        return run


def requests(effort: float) -> Iterator[Row]:
    for depth, (count, bound) in DEPTHS.items():
        many = "one by one" if depth == 1 else f"{depth} at a time"
        found = pairs(
            partial(in_guest, pyvmm.Rng, depth, count),
            partial(in_guest, Empty, depth, count),
            max(10, round(60 * effort)),
        )
        native = Figure([first / 1e3 for first, _ in found])
        yield Row(
            f"virtio request in Python, over rng, {many}",
            difference(found), bound, unit="us", scale=1e-3,
            note=f"of {native.median:.1f} us with the guest's part",
        )  # fmt: skip
    for depth, (_, bound) in DEPTHS.items():
        many = "one by one" if depth == 1 else f"{depth} at a time"
        found = pairs(
            DriverSide(pyvmm.Rng()).step(depth),
            DriverSide(Empty()).step(depth),
            round(4000 * effort),
        )
        native = Figure([first / 1e3 for first, _ in found])
        yield Row(
            f"the same without KVM, {many}",
            difference(found), bound, unit="us", scale=1e-3,
            note=f"of {native.median:.2f} us",
        )  # fmt: skip

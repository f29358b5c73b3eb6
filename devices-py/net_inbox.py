# SPDX-License-Identifier: Apache-2.0
"""Frames on their way to the guest: which, and into which of its buffers.

The guest fills its receive queue with empty buffers. A frame needs one that is
long enough, or with MRG_RXBUF as many as it takes (virtio 1.2, 5.1.6.4). When
there are too few it waits, and what comes behind it: `most` frames, then they
are dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from pyvmm import virtio
from pyvmm.devices.net_filter import Filter
from pyvmm.devices.net_header import HEADER
from pyvmm.devices.net_peer import FRAME_LEAST, FRAME_MOST

BACKLOG = 256


class Inbox:
    """What a guest receives.

    `packets` and `bytes` were put into its buffers, `dropped` frames were not.
    What its filter does not want counts as neither. `longest`: bytes of a
    frame that is not to be segmented.

    Threads: one at a time.
    """

    def __init__(self, filter: Filter, longest: int) -> None:
        self.filter = filter
        self.longest = longest
        self.plugged = True  # the link is up
        self.packets = self.bytes = self.dropped = 0
        self.waiting: deque[tuple[bytes, bytes]] = deque()
        self._queue: virtio.Queue | None = None  # while the driver runs
        self._most: int | None = None
        self._filled: list[virtio.Chain] = []

    def start(self, queue: virtio.Queue, merges: bool) -> None:
        """The driver runs; with `merges` a frame may take several buffers."""
        self._queue = queue
        self._most = None if merges else 1

    def stop(self) -> None:
        """The driver has reset the device: what waits is dropped."""
        self._queue = None
        self.dropped += len(self.waiting)
        self.waiting.clear()
        self._filled.clear()

    def put(self, header: bytes, frame: Any) -> bool:
        """A frame has come; False: it has to wait, and so have all others.

        It is copied. complete() gives the guest what it was put into.
        """
        if not self.waiting and self._deliver(header, frame):
            return True
        if len(self.waiting) < BACKLOG:
            self.waiting.append((header, bytes(frame)))
        else:
            self.dropped += 1
        return False

    def retry(self) -> bool:
        """There may be room for those that wait: whether none does any more."""
        while self.waiting and self._deliver(*self.waiting[0]):
            self.waiting.popleft()
        return not self.waiting

    def complete(self) -> None:
        """The guest gets what was filled, with one interrupt."""
        if self._filled and self._queue is not None:
            self._queue.complete(self._filled)
        self._filled.clear()

    def _deliver(self, header: bytes, frame: Any) -> bool:
        """Put it into buffers, or drop it; False: the guest has too few."""
        size = len(frame)
        longest = FRAME_MOST if header[1] else self.longest
        if (
            self._queue is None
            or not self.plugged
            or not FRAME_LEAST <= size <= longest
        ):
            self.dropped += 1
            return True
        if not self.filter.passes(frame):
            return True
        try:
            chains = self._queue.gather(HEADER + size, self._most)
            if chains is None:
                return False
            fill(chains, header, frame)
        except ValueError:  # too little room, a reset, or it was closed
            self.dropped += 1
            return True
        self._filled += chains
        self.packets += 1
        self.bytes += size
        return True


def fill(chains: list[virtio.Chain], header: bytes, frame: Any) -> None:
    """Write a frame, behind its header, into chains that have room for it."""
    head = header + len(chains).to_bytes(2, "little")
    if len(chains) == 1:
        chains[0].write(head)
        chains[0].write(frame)
        return
    data = memoryview(head + bytes(frame))
    for chain in chains:
        data = data[chain.write(data[: chain.writable_size]) :]

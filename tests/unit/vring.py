# SPDX-License-Identifier: Apache-2.0
"""What tests of queues share: one Memory, rings and buffers at fixed places.

The driver itself is pyvmm.virtio.rings.
"""

import os
from collections.abc import Sequence

from pyvmm._vmm import Memory
from pyvmm.virtio.rings import *  # noqa: F403 - the registers, for tests
from pyvmm.virtio.rings import NEXT, VERSION_1, WRITE, Ring, Transport

RAM = 1 << 20
RINGS = 0x10000
BUFFERS = 0x80000


def make_memory(size: int = RAM) -> Memory:
    memory = Memory()
    memory.add(0, size)
    return memory


class Driver(Transport):
    """A Transport with one buffer at BUFFERS."""

    ring: list[Ring]

    def boot(
        self,
        features: int = VERSION_1,
        sizes: Sequence[int] = (8,),
        gpa: int = RINGS,
    ) -> "Driver":
        super().boot(features, sizes, gpa)
        return self

    def request(
        self, data: bytes = b"", room: int = 0, queue: int = 0, head: int = 0
    ) -> None:
        """Offers `data` to read and `room` bytes to write, and notifies."""
        ring = self.ring[queue]
        self.memory.write(BUFFERS, data)
        parts = [(BUFFERS, len(data), 0)] if data else []
        if room:
            parts.append((BUFFERS + len(data), room, WRITE))
        for i, (addr, size, flags) in enumerate(parts):
            more = NEXT if i + 1 < len(parts) else 0
            ring.set_desc(head + i, addr, size, flags | more, head + i + 1)
        ring.offer(head)
        self.notify(queue)

    def answer(self, data: bytes = b"", queue: int = 0) -> bytes | None:
        """What was written behind `data`; None when nothing came back."""
        used = self.ring[queue].take()
        if used is None:
            return None
        return self.memory.read(BUFFERS + len(data), used[1])


def eventfd() -> int:
    """Reading it never blocks."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def rung(fd: int) -> int:
    """How often an eventfd was written since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0

# SPDX-License-Identifier: Apache-2.0
"""What a hostile driver does to the queues of a virtio device, by Hypothesis.

A test makes a class of QueueTraffic for its device:

    class BlkTraffic(QueueTraffic):
        payloads = st.binary(max_size=64) | headers     # requests as they begin

        def make(self):                                 # inline: deterministic
            return Blk(bytearray(1 << 16), notify="inline")

        def alive(self, drv):                           # after a reset
            assert drv.requests(READ, reply=[512, 1])[-1:] == b"\\0"

        def check(self, drv):                           # after each step
            ...

    test_traffic = BlkTraffic.test_case()

Payloads come cut at any byte into any number of buffers, empty ones among
them, with room of any size in any order; descriptors lie about place, length,
direction and order; rings, status and configuration are written at random.
Whatever that is, the device must raise nothing and work again after a reset.
"""

from itertools import pairwise
from typing import Any, ClassVar
from unittest import TestCase

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pyvmm import virtio
from pyvmm.virtio import rings
from pyvmm.virtio.rings import NEXT, WRITE

RAM = 1 << 20
BUFFERS = 0x40000  # up to RAM; below are the rings
ROOM = (0, 1, 2, 4, 8, 12, 16, 64, 511, 512, 513, 4096, 0x10000)
PLACES = (0, BUFFERS, BUFFERS + 1, RAM - 1, RAM, 1 << 40, (1 << 64) - 1)
SIZES = (0, 1, 8, 16, 512, 4096, RAM, 1 << 31, (1 << 32) - 1)
STEPS = 30


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces, some of them empty."""
    points = draw(st.lists(st.integers(0, len(data)), max_size=5))
    edges = [0, *sorted(points), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# Descriptors as they are: address, length, flags, next.
DESCRIPTORS = st.lists(
    st.tuples(
        st.sampled_from(PLACES) | st.integers(0, RAM),
        st.sampled_from(SIZES) | st.integers(0, 5000),
        st.integers(0, 7),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
)


class QueueTraffic(RuleBasedStateMachine):
    """One device, and everything that its driver can do to it."""

    payloads: ClassVar[st.SearchStrategy[bytes]] = st.binary(max_size=64)
    queue_size = 16
    examples = 60

    def make(self) -> virtio.Device:
        """A new device, inline."""
        raise NotImplementedError

    def alive(self, drv: virtio.Driver) -> None:
        """A proper request is answered properly."""
        raise NotImplementedError

    def check(self, drv: virtio.Driver) -> None:
        """What must hold after each step."""

    @classmethod
    def test_case(cls) -> type[TestCase]:
        """For pytest to find."""
        case = cls.TestCase
        case.settings = settings(
            max_examples=cls.examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        return case

    def __init__(self) -> None:
        super().__init__()
        self.device = self.make()
        self.drv = virtio.driver(
            self.device, memory=RAM, queue_size=self.queue_size
        )

    def teardown(self) -> None:
        try:
            self.restart()
            self.alive(self.drv)
        finally:
            self.drv.close()

    # -- what a driver does --------------------------------------------------

    def offer(
        self, queue: int, parts: list[tuple[Any, ...]], head: int, at: int
    ) -> None:
        """Write a chain of (address, size, flags) and offer its head."""
        if not self.drv.raw.ring:
            return
        index = queue % len(self.drv.raw.ring)
        ring = self.drv.raw.ring[index]
        for i, (addr, size, flags, *after) in enumerate(parts):
            slot = (head + i) % ring.size
            next_ = after[0] if after else (slot + 1) % ring.size
            ring.set_desc(slot, addr, size, flags, next_)
        ring.offer(head % ring.size if at < 0 else at)
        self.notify(index)

    def notify(self, queue: int) -> None:
        self.drv.raw.notify(queue)
        self.drv.poll()
        self.check(self.drv)

    def restart(self) -> None:
        """Reset, and be a proper driver again."""
        self.drv.reset()
        self.drv.start()
        self.check(self.drv)

    @rule(
        queue=st.integers(0, 7),
        head=st.integers(0, 15),
        rooms=st.lists(st.sampled_from(ROOM), max_size=4),
        data=st.data(),
    )
    def request(
        self, queue: int, head: int, rooms: list[int], data: st.DataObject
    ) -> None:
        """A request whose buffers are in order, however it is cut."""
        parts: list[tuple[int, int, int]] = []
        gpa = BUFFERS
        for piece in data.draw(cuts(data.draw(self.payloads))):
            self.drv.memory.write(gpa, piece)
            parts.append((gpa, len(piece), NEXT))
            gpa += len(piece)
        for room in rooms:
            overlap = data.draw(st.integers(0, 9)) == 0
            parts.append((BUFFERS if overlap else gpa, room, NEXT | WRITE))
            gpa += room
        addr, size, flags = parts.pop()
        parts.append((addr, size, flags & ~NEXT))
        self.offer(queue, parts, head, -1)

    @rule(
        queue=st.integers(0, 7),
        head=st.integers(0, 15),
        parts=DESCRIPTORS,
        at=st.sampled_from([-1, -1, -1, 0, 15, 16, 0xFFFF]),
    )
    def lie(
        self, queue: int, head: int, parts: list[tuple[Any, ...]], at: int
    ) -> None:
        """Descriptors that are wrong in any way."""
        self.offer(queue, parts, head, at)

    @rule(queue=st.integers(0, 7), index=st.integers(0, 0xFFFF))
    def jump(self, queue: int, index: int) -> None:
        """An available index from nowhere."""
        if self.drv.raw.ring:
            queue %= len(self.drv.raw.ring)
            self.drv.raw.ring[queue].set_offered(index)
            self.notify(queue)

    @rule(
        offset=st.integers(0, 0x1FF),
        size=st.sampled_from([1, 2, 4, 8]),
        value=st.integers(0, (1 << 64) - 1) | st.integers(0, 255),
    )
    def poke(self, offset: int, size: int, value: int) -> None:
        """Any register, any part of the configuration."""
        offset = min(offset, 0x200 - size)
        value &= (1 << 8 * size) - 1
        self.drv.native.write(offset, size, value)
        assert self.drv.native.read(offset, size) < 1 << 8 * size
        self.drv.poll()
        self.check(self.drv)

    @rule(notify=st.integers(0, 0xFFFFFFFF))
    def ring_out_of_nowhere(self, notify: int) -> None:
        """A notification without a cause, of a queue that may not be."""
        self.drv.raw.set(rings.QUEUE_NOTIFY, notify)
        self.drv.poll()

    @rule()
    def reboot(self) -> None:
        """A reset, whatever is in flight."""
        self.restart()

    @rule(seconds=st.sampled_from([1e-6, 1e-3, 0.1, 10]))
    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.drv.advance(seconds)
        self.check(self.drv)

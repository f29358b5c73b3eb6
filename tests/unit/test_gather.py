# SPDX-License-Identifier: Apache-2.0
"""Queue.gather() and complete(): several chains as one."""
# ruff: noqa: RUF012 - queues are written as users write them

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import virtio
from pyvmm.virtio import rings


class Mailbox(virtio.Device):
    """Says what the test says, in as many buffers as it takes."""

    device_id = 63
    queues = {"receive": 16, "other": 8}
    calls = 0

    def on_receive(self, queue: virtio.Queue) -> None:
        self.calls += 1

    def on_other(self, queue: virtio.Queue) -> None:
        pass

    def say(self, data: bytes, most: int = 64) -> bool:
        chains = self.queue["receive"].gather(len(data), most)
        if chains is None:
            return False
        for chain in chains:
            data = data[chain.write(data[: chain.writable_size]) :]
        return self.queue["receive"].complete(chains)


@pytest.fixture(params=[0, rings.EVENT_IDX])
def drv(request: pytest.FixtureRequest) -> Iterator[virtio.Driver]:
    with virtio.driver(Mailbox(), features=request.param) as drv:
        yield drv


def test_one(drv: virtio.Driver) -> None:
    room = drv.receive.send(reply=64)
    assert drv.device.say(b"ping")
    assert room.wait() == b"ping"


def test_several_at_once(drv: virtio.Driver) -> None:
    """One interrupt, in order, and no more than it takes."""
    sent = [drv.receive.send(reply=n) for n in (4, 1, 3, 8)]
    before = drv.interrupts
    assert drv.device.say(b"abcdefg")
    assert [room.wait() for room in sent[:3]] == [b"abcd", b"e", b"fg"]
    assert drv.interrupts == before + 1
    assert drv.receive.in_flight == 1


def test_not_enough(drv: virtio.Driver) -> None:
    """They wait in the queue, and the driver tells of the next one."""
    first = drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    assert queue.gather(5) is None
    assert drv.receive.in_flight == 1
    calls = drv.device.calls
    if drv.features & rings.EVENT_IDX:
        assert drv.receive.ring.avail_event == 1
    second = drv.receive.send(reply=4)
    assert drv.device.calls == calls + 1
    assert drv.device.say(b"abcde")
    assert first.wait() == b"abcd" and second.wait() == b"e"


def test_too_small(drv: virtio.Driver) -> None:
    """The first `most` have no room: they are completed empty."""
    sent = [drv.receive.send(reply=n) for n in (4, 4, 9)]
    with pytest.raises(virtio.ShortChain, match=r"2 chains .* 8 bytes, not 9"):
        drv.device.say(b"123456789", most=2)
    assert [room.wait() for room in sent[:2]] == [b"", b""]
    assert drv.device.faults == 1
    assert drv.device.say(b"123456789", most=2)
    assert sent[2].wait() == b"123456789"


def test_nothing_wanted(drv: virtio.Driver) -> None:
    assert drv.device.queue["receive"].gather(0) == []
    assert drv.device.queue["receive"].gather(1, 64) is None
    assert drv.device.queue["receive"].complete([])
    assert drv.interrupts == 0


def test_chains_that_only_send(drv: virtio.Driver) -> None:
    """No room at all: nothing comes of them, and nothing hangs."""
    for _ in range(16):
        drv.receive.send(b"x")
    with pytest.raises(virtio.ShortChain, match=r"16 chains .* 0 bytes, not 1"):
        drv.device.queue["receive"].gather(1)
    assert drv.receive.in_flight == 0


def test_a_whole_queue(drv: virtio.Driver) -> None:
    """A driver that cannot offer more has offered too little."""
    for _ in range(15):
        drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    assert queue.gather(65) is None and queue.gather(61) is None
    drv.receive.send(reply=4)
    assert drv.device.say(bytes(61))
    drv.reset()
    assert queue.gather(1, most=0) is None


def test_reset_meanwhile(drv: virtio.Driver) -> None:
    drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    chains = queue.gather(2)
    drv.reset()
    with pytest.raises(virtio.StaleChain):
        chains[0].write(b"ab")
    assert not queue.complete(chains)
    assert queue.gather(2) is None


def test_broken(drv: virtio.Driver) -> None:
    """What the driver breaks while some are in hand."""
    drv.receive.send(reply=4)
    drv.receive.ring.set_desc(7, 1 << 50, 16, rings.WRITE)
    drv.receive.ring.offer(7)
    assert drv.device.queue["receive"].gather(8) is None
    assert drv.broken


def test_wrong_chains(drv: virtio.Driver) -> None:
    queue, other = drv.device.queue.values()
    drv.receive.send(reply=4)
    drv.other.send(reply=4)
    (mine,) = queue.gather(1)
    (alien,) = other.gather(1)
    with pytest.raises(ValueError, match="of another queue"):
        queue.complete([mine, alien])
    with pytest.raises(TypeError, match="expected a Chain, not int"):
        queue.complete([mine, 5])
    with pytest.raises(TypeError):
        queue.complete(5)
    assert mine.alive and alien.alive
    assert queue.complete(iter([mine])) and other.complete((alien,))
    with pytest.raises(ValueError, match="was pushed already"):
        queue.complete([mine])
    with pytest.raises(ValueError, match="room"):
        queue.gather(-1)
    with pytest.raises(ValueError, match="most"):
        queue.gather(1, most=-1)


def test_twice_in_a_list(drv: virtio.Driver) -> None:
    room = drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    chains = queue.gather(1)
    assert not queue.complete(chains * 2)
    assert room.wait() == b"" and drv.receive.in_flight == 0


def test_what_went_back(drv: virtio.Driver) -> None:
    """A chain that a loop gave back is not the device's any more."""
    drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    kept = []
    with pytest.raises(KeyError):
        for chain in queue:
            kept.append(chain)
            raise KeyError
    with pytest.raises(ValueError, match="went back"):
        queue.complete(kept)


def test_not_inside_a_loop(drv: virtio.Driver) -> None:
    drv.receive.send(reply=4)
    queue = drv.device.queue["receive"]
    for _ in queue:
        with pytest.raises(
            RuntimeError, match=r"a loop is at Mailbox\.receive"
        ):
            queue.gather(1)


def test_forgotten(drv: virtio.Driver) -> None:
    room = drv.receive.send(reply=4)
    with pytest.warns(ResourceWarning, match="never completed"):
        drv.device.queue["receive"].gather(1)
    assert room.wait() == b""


def test_closed() -> None:
    with virtio.driver(Mailbox()) as drv:
        queue = drv.device.queue["receive"]
    with pytest.raises(ValueError, match="closed"):
        queue.gather(1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), max_size=16),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), max_size=8),
)
def test_against_a_model(rooms: list[int], says: list[tuple[int, int]]) -> None:
    """Every byte arrives once, in order, in the first buffers offered."""
    with virtio.driver(Mailbox()) as drv:
        sent = [
            drv.receive.send(reply=n) if n else drv.receive.send(b"-")
            for n in rooms
        ]
        at, want, faults = 0, [], 0
        for size, most in says:
            data = bytes(i % 251 for i in range(size))
            end = at
            while (
                sum(rooms[at:end]) < size
                and end - at < most
                and end < len(rooms)
            ):
                end += 1
            enough = sum(rooms[at:end]) >= size
            if not enough and end - at == most:
                with pytest.raises(virtio.ShortChain):
                    drv.device.say(data, most)
                want += [b""] * most
                at, faults = end, faults + 1
                continue
            assert drv.device.say(data, most) == enough
            if enough:
                for room in rooms[at:end]:
                    want.append(data[:room])
                    data = data[room:]
                at = end
        assert [room.wait() for room in sent[:at]] == want
        assert drv.receive.in_flight == len(rooms) - at
        assert drv.device.faults == faults

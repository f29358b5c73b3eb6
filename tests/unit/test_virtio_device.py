# SPDX-License-Identifier: Apache-2.0
"""virtio.Device, Queue and virtio.driver: no KVM, no guest."""
# ruff: noqa: RUF012 - queues are written as users write them

import contextlib
import ctypes
import gc
import hashlib
import struct
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from pyvmm import Rng, _vmm, virtio
from pyvmm.virtio import Chain, Queue, rings
from pyvmm.virtio.frontend import Request


class Hasher(virtio.Device):
    device_id = 63
    queues = {"requests": 256}
    config = virtio.Struct(block="<I")

    def on_requests(self, queue: Queue) -> None:
        for chain in queue:
            data = chain.read()
            chain.write(hashlib.sha256(data).digest())


class Scripted(virtio.Device):
    """Its handler is what the test gives; counts its calls."""

    device_id = 63
    queues = {"requests": 64}

    def __init__(
        self, body: Callable[[Queue], object], notify: str = "inline"
    ) -> None:
        self.body = body
        self.calls = 0
        self.notify = notify

    def on_requests(self, queue: Queue) -> None:
        self.calls += 1
        self.body(queue)


def drive(body: Callable[[Queue], object], **options) -> virtio.Driver:
    return virtio.driver(Scripted(body), **options)


def indices(drv: virtio.Driver) -> tuple[int, int]:
    """The used index, and how many chains are in flight at the driver."""
    ring = drv.requests.ring
    return drv.memory.read_u16(ring.used + 2), drv.requests.in_flight


# -- as the documents say ------------------------------------------------------


def test_hasher() -> None:
    with virtio.driver(Hasher()) as drv:
        assert drv.requests(b"abc", reply=32) == hashlib.sha256(b"abc").digest()
        assert drv.requests(b"abc", reply=8) == b"" and drv.device.faults == 1
        assert drv.requests(b"a", b"", b"bc", reply=[1, 31]) == (
            hashlib.sha256(b"abc").digest()
        )


@pytest.mark.parametrize("features", [0, rings.EVENT_IDX, None])
def test_many_in_flight_complete_with_one_interrupt(
    features: int | None,
) -> None:
    with virtio.driver(Hasher(), features=features) as drv:
        drv.requests(b"", b"x", reply=32)
        for count in (1, 2, 31, 32, 33, 64, 100):
            before = drv.interrupts
            sent = [
                drv.requests.send(b"%d" % i, reply=32, notify=False)
                for i in range(count)
            ]
            assert drv.requests.in_flight == count
            drv.requests.notify()
            drv.requests.wait_all()
            for i, request in enumerate(sent):
                assert request.reply == hashlib.sha256(b"%d" % i).digest()
            batches = drv.interrupts - before
            assert 1 <= batches <= 6  # batches grow to 32 chains


def test_batches_of_32_raise_one_interrupt_each() -> None:
    with virtio.driver(Hasher(), features=0) as drv:
        for _ in range(3):
            before = drv.interrupts
            for i in range(64):
                drv.requests.send(b"x", reply=32, notify=i == 63)
            drv.requests.wait_all()
        assert drv.interrupts - before == 2


# -- reading and writing -------------------------------------------------------


def cut(data: bytes, marks: list[int]) -> list[bytes]:
    ends = sorted({min(mark, len(data)) for mark in marks} | {len(data)})
    starts = [0, *ends[:-1]]
    return [data[a:b] for a, b in zip(starts, ends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=300),
    marks=st.lists(st.integers(0, 300), max_size=6),
    rooms=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    steps=st.lists(st.integers(1, 60), max_size=12),
)
def test_positions(
    data: bytes, marks: list[int], rooms: list[int], steps: list[int]
) -> None:
    """However a request is cut, it reads and writes like one string."""
    answer = bytes(range(256)) * 2
    seen: list[bytes] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            pieces = [chain.read(step) for step in steps]
            seen.append(b"".join(pieces) + chain.read())
            assert chain.read() == b"" and chain.read(offset=0) == data
            assert b"".join(map(bytes, chain.readable)) == data
            left = chain.writable_size
            for step in steps:
                step = min(step, left)
                at = chain.writable_size - left
                chain.write(answer[at : at + step])
                left -= step
            assert chain.written == chain.writable_size - left

    with drive(body) as drv:
        parts = cut(data, marks)
        got = drv.requests(*parts, reply=rooms)
        assert seen == [data]
        assert got == answer[: min(sum(steps), sum(rooms))]


def test_take_wants_all() -> None:
    got: list[object] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            got.append(struct.unpack("<HH", chain.take(4)))
            chain.write(b"ok")

    with drive(body) as drv:
        assert drv.requests(b"\1\0\2\0", reply=2) == b"ok"
        assert drv.requests(b"\1\0\2", reply=2) == b""
        assert got == [(1, 2)] and drv.device.faults == 1


def test_a_chain_longer_than_ram() -> None:
    """Overlapping buffers: nobody allocates what the guest says."""
    with virtio.driver(Hasher()) as drv:
        ring = drv.raw.ring[0]
        ring.set_chain([(0, 15 << 20, 0)] * 200)
        ring.offer(0)
        drv.raw.notify()
        assert drv.device.faults == 1 and not drv.broken
        assert ring.take() == (0, 0)


def test_views_are_guest_memory() -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            (source,), (target,) = chain.readable, chain.writable
            assert source.readonly and not target.readonly
            target[: len(source)] = source
            chain.written = len(source)

    with drive(body) as drv:
        assert drv.requests(b"zero copies", reply=64) == b"zero copies"


def test_written() -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            with pytest.raises(ValueError, match=r"written 9 .* 0\.\.0x8"):
                chain.written = 9
            with pytest.raises(AttributeError):
                del chain.written
            chain.write(b"zz", offset=4)
            assert chain.written == 6
            chain.write(b"abcd")
            assert chain.written == 6
            chain.written = 5

    with drive(body) as drv:
        assert drv.requests(reply=8) == b"abcdz"


# -- ends of the loop ----------------------------------------------------------


def test_break_returns_what_was_not_reached() -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(chain.read())
            break

    with drive(body) as drv:
        sent = [
            drv.requests.send(bytes([65 + i]), reply=1, notify=False)
            for i in range(9)
        ]
        for i in range(9):
            drv.device.process()
            assert drv.requests.in_flight == 8 - i
            assert sent[i].reply == bytes([65 + i])
        assert drv.interrupts and drv.device.calls == 9


def test_return_does_too() -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(b"x")
            return

    with drive(body) as drv:
        assert drv.requests(b"a", reply=1) == b"x"
        drv.requests.send(b"a", reply=1, notify=False)
        drv.device.process()
        assert indices(drv) == (2, 0)


def test_exception_completes_nothing() -> None:
    """The chain goes back, first in line; the ones before it are completed."""

    def body(queue: Queue) -> None:
        for chain in queue:
            data = chain.read()
            chain.write(data)
            if data == b"C" and fails.pop():
                raise KeyError("mine")

    fails = [False, True]
    with drive(body) as drv:
        for name in b"ABCDE":
            drv.requests.send(bytes([name]), reply=1, notify=False)
        with pytest.raises(KeyError, match="mine") as caught:
            drv.requests.notify()
        assert caught.value.__notes__ == [
            "chain 4 of Scripted.requests went back to its queue",
            "in the handler of Scripted.requests",
        ]
        assert indices(drv) == (2, 3)
        drv.device.process()
        assert indices(drv) == (5, 0)
        assert drv.device.faults == 0


def test_exception_caught_inside_the_handler() -> None:
    seen: list[bytes] = []

    def body(queue: Queue) -> None:
        try:
            for chain in queue:
                seen.append(chain.read())
                raise RuntimeError
        except RuntimeError:
            pass

    with drive(body) as drv:
        drv.requests.send(b"a", reply=1)
        assert indices(drv) == (0, 1)
        drv.device.process()
        assert seen == [b"a", b"a"] and indices(drv) == (0, 1)


def test_exception_caught_inside_the_loop() -> None:
    """The end of the body is the end of the body."""

    def body(queue: Queue) -> None:
        for chain in queue:
            try:
                chain.write(b"too long for it")
            except virtio.ShortChain:
                chain.write(b"!")

    with drive(body) as drv:
        assert drv.requests(reply=4) == b"!"
        assert drv.device.faults == 0


def test_an_iterator_kept_over_an_exception() -> None:
    kept: list[object] = []

    def body(queue: Queue) -> None:
        if not kept:
            kept.append(iter(queue))
            next(kept[0])  # type: ignore[call-overload]
            raise KeyError
        for chain in queue:
            chain.write(b"2")

    with drive(body) as drv:
        drv.requests.send(b"a", reply=1, notify=False)
        drv.requests.send(b"b", reply=1, notify=False)
        with pytest.raises(KeyError):
            drv.requests.notify()
        kept[:] = [None]
        assert indices(drv) == (0, 2)
        drv.device.process()
        assert indices(drv) == (2, 0)


def test_nested_loops_share_the_queue() -> None:
    order: list[bytes] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            order.append(chain.read())
            for other in queue:
                order.append(other.read())
                break

    with drive(body) as drv:
        for name in b"ABCDE":
            drv.requests.send(bytes([name]), reply=1, notify=False)
        drv.requests.notify()
        assert b"".join(order) == b"ABCDE"
        assert indices(drv) == (5, 0)


def test_exception_behind_a_chain_that_was_completed() -> None:
    """What cannot go back, as one popped later is gone, is not lost."""
    fails = [True]

    def body(queue: Queue) -> None:
        for chain in queue:
            if fails:
                for other in queue:
                    other.complete()
                fails.clear()
                raise KeyError
            chain.write(chain.read())

    with drive(body) as drv:
        first = drv.requests.send(b"a", reply=1, notify=False)
        drv.requests.send(b"b", reply=1, notify=False)
        with pytest.raises(KeyError):
            drv.requests.notify()
        assert indices(drv) == (1, 1)
        drv.device.process()
        assert indices(drv) == (2, 0) and first.reply == b"a"


# -- the guest's fault ---------------------------------------------------------


def test_short_chains_do_not_stop_the_others() -> None:
    with virtio.driver(Hasher()) as drv:
        sent = [
            drv.requests.send(b"abc", reply=(8, 32)[i % 3 != 1], notify=False)
            for i in range(40)
        ]
        drv.requests.notify()
        for i, request in enumerate(sent):
            assert request.wait() == (
                b"" if i % 3 == 1 else hashlib.sha256(b"abc").digest()
            )
        assert drv.device.faults == 13


def test_nothing_of_a_short_chain_is_reported() -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(b"1234")
            chain.write(b"56789")

    with drive(body) as drv:
        assert drv.requests(reply=8) == b""
        assert drv.requests(reply=9) == b"123456789"


def test_a_short_chain_of_ones_own_making() -> None:
    """A device may raise it as well; outside a loop there is no chain."""

    def body(queue: Queue) -> None:
        for chain in queue:
            if chain.read() == b"bad":
                raise virtio.ShortChain("mine")
        raise virtio.ShortChain("not the guest's")

    with drive(body) as drv:
        with pytest.raises(virtio.ShortChain, match="not the guest's"):
            drv.requests.send(b"bad", reply=8)
        assert indices(drv) == (1, 0) and drv.device.faults == 1


def test_short_room_of_another_queue() -> None:
    """Too little room in one queue for what comes from the other."""
    with virtio.driver(Events()) as drv:
        small, large = drv.receive.send(reply=2), drv.receive.send(reply=64)
        drv.send(b"one")
        drv.send(b"two")
        assert (small.wait(), large.wait()) == (b"", b"two")
        assert drv.device.faults == 2


def test_stale_chain_kept_by_the_device() -> None:
    """That is the author's: chains are to be forgotten in reset()."""
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            if kept:
                kept[0].write(b"x")
            kept.append(chain)
            chain.defer()

    with drive(body) as drv:
        drv.requests.send(b"a", reply=1)
        drv.reset()
        drv.start()
        with pytest.raises(virtio.StaleChain):
            drv.requests.send(b"b", reply=1)
        assert indices(drv) == (0, 1)


def test_broken_rings_count() -> None:
    with virtio.driver(Hasher()) as drv:
        drv.raw.ring[0].set_offered(1000)
        drv.raw.notify()
        assert drv.broken and drv.device.faults == 1
        with pytest.raises(RuntimeError, match="broken"):
            drv.requests(b"x", reply=1)
        drv.start()
        assert len(drv.requests(b"x", reply=32)) == 32


@settings(max_examples=80, deadline=None)
@given(
    descs=st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, 1 << 20),
                st.sampled_from([0x1000, 0xFFFFF0, 1 << 63, 2**64 - 1]),
            ),
            st.one_of(
                st.integers(0, 4096), st.sampled_from([2**31, 2**32 - 1])
            ),
            st.integers(0, 7),
            st.integers(0, 20),
        ),
        min_size=1,
        max_size=16,
    ),
    heads=st.lists(st.integers(0, 40), min_size=1, max_size=20),
)
def test_hostile_rings(
    descs: list[tuple[int, int, int, int]], heads: list[int]
) -> None:
    """Whatever is in the rings: nothing is raised, a reset heals."""

    class Careful(virtio.Device):
        device_id = 63
        queues = {"requests": 16}

        def on_requests(self, queue: Queue) -> None:
            for chain in queue:
                head = chain.take(4)
                chain.write(head + chain.read(64))

    with virtio.driver(Careful(), memory=1 << 20) as drv:
        ring = drv.raw.ring[0]
        for i, desc in enumerate(descs):
            ring.set_desc(i, *desc)
        for head in heads:
            ring.offer(head)
        drv.raw.notify()
        used = drv.memory.read_u16(ring.used + 2)
        assert used <= len(heads)
        assert drv.broken or used == len(heads)
        drv.start()
        assert drv.requests(b"head", b"rest", reply=8) == b"headrest"


# -- deferring -----------------------------------------------------------------


def test_defer_and_complete() -> None:
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            chain.defer()
            kept.append(chain)

    with drive(body) as drv:
        sent = [drv.requests.send(b"x", reply=4) for _ in range(3)]
        assert indices(drv) == (0, 3) and drv.interrupts == 0
        kept[1].write(b"abcd")
        assert kept[1].complete(2)
        assert drv.interrupts == 1 and sent[1].wait() == b"ab"
        with pytest.raises(ValueError, match="was pushed"):
            kept[1].complete()
        with pytest.raises(ValueError, match="was pushed"):
            kept[1].read()
        with pytest.raises(ValueError, match="written 5 is outside"):
            kept[0].complete(5)
        threads = [
            threading.Thread(target=kept[i].complete, args=(i,)) for i in (0, 2)
        ]
        for thread in threads:
            thread.start()
        assert len(sent[2].wait()) == 2 and sent[0].wait() == b""
        for thread in threads:
            thread.join()


def test_deferred_and_forgotten() -> None:
    """It would hang the guest: it is completed, and said so."""

    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(b"so far")
            chain.defer()

    with drive(body) as drv:
        with pytest.warns(ResourceWarning, match="chain 0 was deferred"):
            assert drv.requests(reply=8) == b"so far"
        with pytest.warns(ResourceWarning):
            drv.requests.send(b"x", reply=8)
        assert indices(drv) == (2, 0)


def test_complete_in_the_loop() -> None:
    late: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(b"now")
            assert chain.complete()
            late.append(chain)
            with pytest.raises(ValueError, match="its turn"):
                chain.defer()

    with drive(body) as drv:
        assert drv.requests(reply=4) == b"now"
        assert indices(drv) == (1, 0)


def test_defer_comes_too_late() -> None:
    def body(queue: Queue) -> None:
        before = None
        for chain in queue:
            if before is not None:
                with pytest.raises(ValueError, match="its turn"):
                    before.defer()
            before = chain

    with drive(body) as drv:
        for _ in range(5):
            drv.requests.send(b"x", notify=False)
        drv.requests.notify()
        assert indices(drv) == (5, 0)


def test_reset_takes_back_what_was_deferred() -> None:
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            chain.defer()
            kept.append(chain)

    with drive(body) as drv:
        drv.requests.send(b"x", reply=4)
        drv.reset()
        with pytest.raises(virtio.StaleChain, match="by a reset"):
            kept[0].write(b"x")
        assert not kept[0].alive and not kept[0].complete()
        drv.start()
        drv.requests.send(b"y", reply=4)
        assert kept[1].read() == b"y" and kept[1].complete()


def test_reset_inside_the_loop() -> None:
    """As another vCPU may do it: the handler is called again, no more."""
    drivers: list[virtio.Driver] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            if len(drivers) == 1:
                drivers.append(drivers[0])
                drivers[0].reset()
            chain.write(b"x")

    with drive(body) as drv:
        drivers.append(drv)
        drv.requests.send(b"a", reply=1, notify=False)
        drv.requests.send(b"a", reply=1)
        assert drv.device.calls == 2
        drv.start()
        assert drv.requests(reply=1) == b"x" and drv.device.faults == 0


def test_notified_while_it_works() -> None:
    """A second vCPU's notification makes the first handler go on."""
    once: list[bool] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            chain.write(b"x")
        if not once:
            once.append(True)
            thread = threading.Thread(
                target=lambda: drv.requests.send(b"b", reply=1)
            )
            thread.start()
            thread.join()

    with drive(body) as drv:
        drv.requests.send(b"a", reply=1)
        assert drv.device.calls == 2 and indices(drv) == (2, 0)


# -- on a thread ---------------------------------------------------------------


def test_thread() -> None:
    threads: set[int] = set()

    def body(queue: Queue) -> None:
        threads.add(threading.get_ident())
        for chain in queue:
            chain.write(chain.read())

    with virtio.driver(Scripted(body, "thread")) as drv:
        assert drv.requests(b"abc", reply=3) == b"abc"
        assert drv.requests(b"abcd", reply=3) == b""
        sent = [drv.requests.send(b"%d" % i, reply=3) for i in range(30)]
        assert [r.wait() for r in sent] == [b"%d" % i for i in range(30)]
        assert drv.device.faults == 1
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_exception_of_the_thread() -> None:
    def body(queue: Queue) -> None:
        for _ in queue:
            raise KeyError("mine")

    with (
        pytest.raises(KeyError, match="mine"),
        virtio.driver(Scripted(body, "thread")) as drv,
    ):
        drv.requests(b"abc", reply=3)


def test_a_worker_that_is_fed_for_ever_can_be_stopped() -> None:
    """A hostile guest offers a chain for each that it gets back."""

    def body(queue: Queue) -> None:
        for _ in queue:
            drv.raw.ring[0].offer(0)

    with virtio.driver(Scripted(body, "thread")) as drv:
        drv.requests.send(b"x")
        while drv.native.notifications < 4:
            pass
    assert drv.device.calls > 1


def test_no_answer() -> None:
    with (
        drive(lambda queue: None) as drv,
        pytest.raises(TimeoutError, match="head 0 has no answer"),
    ):
        drv.requests(b"x", timeout=0)


def test_threads_that_iterate_the_same_queue() -> None:
    """Each chain goes to one of them, whatever becomes of it there."""
    done: list[bytes] = []

    def take_some(queue: Queue, number: int) -> None:
        for turn in range(200):
            with contextlib.suppress(KeyError):
                for chain in queue:
                    if (turn + number) % 3 == 0:
                        raise KeyError
                    data = chain.read()
                    chain.write(data)
                    done.append(data)
                    if (turn + number) % 3 == 1:
                        break

    with drive(lambda queue: None) as drv:
        queue = drv.device.queue["requests"]
        for i in range(30):
            drv.requests.send(b"%02d" % i, reply=2, notify=False)
        threads = [
            threading.Thread(target=take_some, args=(queue, i))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for chain in queue:
            done.append(chain.read())
        assert sorted(done) == [b"%02d" % i for i in range(30)]
        assert indices(drv) == (30, 0)


# -- all of it, in any order ---------------------------------------------------

ENDS = ("answer", "defer", "break", "raise", "short", "early")


class AnyOrder(RuleBasedStateMachine):
    """Requests, handlers that end in every way, resets.

    Each request is worked on in the order it was sent, and answered once: when
    its handler says so and not before, whatever becomes of the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drv = virtio.driver(Scripted(self.handle), queue_size=64)
        self.plan: list[str] = []
        self.sent: dict[bytes, Request] = {}
        self.waiting: list[bytes] = []  # for a handler, in order
        self.kept: list[tuple[Chain, bytes]] = []
        self.stale: list[Chain] = []
        self.answers: dict[bytes, bytes] = {}
        self.number = 0
        self.faults = 0

    def teardown(self) -> None:
        self.drv.close()

    def handle(self, queue: Queue) -> None:
        for chain in queue:
            data = chain.read()
            assert data == self.waiting[0]
            end = self.plan.pop(0) if self.plan else "answer"
            if end == "raise":
                raise KeyError
            self.waiting.pop(0)
            if end == "defer":
                chain.defer()
                self.kept.append((chain, data))
                continue
            self.answers[data] = b"" if end == "short" else data
            if end == "short":
                self.faults += 1
                chain.write(bytes(5))
            chain.write(data)
            if end == "early":
                assert chain.complete()
            if end == "break":
                break

    def notified(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(KeyError):
            call()

    @precondition(lambda self: len(self.sent) - len(self.answers) < 24)
    @rule(count=st.integers(1, 8), cut=st.booleans())
    def send(self, count: int, cut: bool) -> None:
        for _ in range(count):
            data = b"%04d" % self.number
            self.number += 1
            parts = [data[:1], data[1:]] if cut else [data]
            if len(self.drv.requests._free) < 3:
                return
            self.waiting.append(data)
            self.sent[data] = self.drv.requests.send(
                *parts, reply=4, notify=False
            )

    @rule(ends=st.lists(st.sampled_from(ENDS), max_size=12))
    def decide(self, ends: list[str]) -> None:
        self.plan = ends

    @rule()
    def notify(self) -> None:
        self.notified(self.drv.requests.notify)

    @rule()
    def process(self) -> None:
        self.notified(self.drv.device.process)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.kept) - 1))
        chain, name = self.kept.pop(at)
        self.answers[name] = name
        chain.write(name)
        assert chain.complete()

    @rule()
    def reset(self) -> None:
        self.drv.reset()
        self.stale += [chain for chain, _ in self.kept]
        self.kept.clear()
        self.sent.clear()
        self.answers.clear()
        self.waiting.clear()
        self.drv.start()

    @invariant()
    def answered(self) -> None:
        self.drv.requests.collect()
        done = {
            name: request.reply
            for name, request in self.sent.items()
            if request.done
        }
        assert done == self.answers
        assert self.drv.device.faults == self.faults
        assert not self.drv.broken
        assert not any(chain.complete() for chain in self.stale)
        self.stale.clear()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)


# -- several queues, callbacks, configuration ----------------------------------


class Events(virtio.Device):
    device_id = 63
    features = 1 << 3
    queues = {"receive": 8, "send": 16}
    config = virtio.Struct(mac="<6s", _gap="2x", size="<I", pair="<2H")

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.config.mac = b"pyvmm!"

    def on_receive(self, queue: Queue) -> None:
        """Left there until something comes."""

    def on_send(self, queue: Queue) -> None:
        for chain in queue:
            data = chain.read()
            for room in self.queue["receive"]:
                room.write(data)
                break

    def reset(self) -> None:
        self.seen.append("reset")

    def negotiated(self, features: int) -> None:
        self.seen.append(features & (1 << 3 | 1 << 5))

    def started(self) -> None:
        self.seen.append("started")

    def configured(self, offset: int, data: bytes) -> None:
        self.seen.append((offset, data))


def test_two_queues() -> None:
    with virtio.driver(Events()) as drv:
        frames = [drv.receive.send(reply=64) for _ in range(2)]
        drv.send(b"one")
        drv.send(b"two")
        assert [frame.wait() for frame in frames] == [b"one", b"two"]
        assert drv.receive.ring.size == 8 and drv.send.ring.size == 16
        assert drv["send"] is drv.send
        with pytest.raises(AttributeError, match="no queue 'other'"):
            drv.other(b"x")


def test_queues_that_share_a_handler() -> None:
    class Several(virtio.Device):
        device_id = 63
        queues = {"control": 8, "data0": 8, "data1": 8, "data12": 8}

        def on_control(self, queue: Queue) -> None:
            for chain in queue:
                chain.write(b"control")

        def on_data(self, queue: Queue) -> None:
            for chain in queue:
                chain.write(b"%d" % queue.index)

        def on_data1(self, queue: Queue) -> None:
            for chain in queue:
                chain.write(b"own")

    with virtio.driver(Several()) as drv:
        answers = [drv[name](reply=8) for name in Several.queues]
        assert answers == [b"control", b"1", b"own", b"3"]


def test_callbacks() -> None:
    with virtio.driver(Events()) as drv:
        device = drv.device
        assert device.seen == ["reset", 1 << 3, "started"]
        drv.write_config(8, b"\1\0\0\0")
        assert device.seen[3:] == [(8, b"\1\0\0\0")]
        assert device.config.size == 0
        drv.reset()
        assert device.seen[4:] == ["reset"]


def test_config() -> None:
    with virtio.driver(Events()) as drv:
        config = drv.device.config
        assert drv.config == {"mac": b"pyvmm!", "size": 0, "pair": (0, 0)}
        before, interrupts = drv.generation, drv.interrupts
        config.size = 7
        config.pair = 1, 2
        assert drv.config == {"mac": b"pyvmm!", "size": 7, "pair": (1, 2)}
        assert drv.generation == before + 2
        assert drv.interrupts == interrupts + 2
        assert repr(config) == "<Config mac=b'pyvmm!' size=7 pair=(1, 2)>"
        drv.reset()
        config.size = 8
        assert drv.interrupts == interrupts + 2
        for name, value in (("size", -1), ("size", "x"), ("pair", 5)):
            with pytest.raises(ValueError, match=name):
                setattr(config, name, value)
        with pytest.raises(AttributeError, match="'sise'"):
            config.sise = 1
    config.size = 9  # of a closed device: bytes only
    assert config.size == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": ">I"}, "little-endian"),
        ({"a": "<?!"}, "bad char"),
        ({"a": "<257x"}, "257 bytes"),
    ],
)
def test_struct_refuses(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        virtio.Struct(**fields)


def test_devices_do_not_share() -> None:
    one, two = Hasher(), Hasher()
    one.config.block = 5
    assert (one.config.block, two.config.block) == (5, 0)
    assert repr(Hasher.config) == "<Struct block: 4 bytes>"


# -- what is refused -----------------------------------------------------------


class Unnamed(virtio.Device):
    queues = {"a": 8}

    def on_a(self, queue: Queue) -> None: ...


class Unhandled(virtio.Device):
    device_id = 63
    queues = {"a": 8}


class Odd(Unnamed):
    device_id = 63
    queues = {"a": 7}


class Elsewhere(Unnamed):
    device_id = 63
    notify = "later"


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (Unnamed, TypeError, "needs `device_id`"),
        (Unhandled, TypeError, r"needs on_a\(queue\)"),
        (Odd, ValueError, "no power of two"),
        (Elsewhere, ValueError, "none of 'inline', 'thread'"),
    ],
)
def test_refused(cls: type, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        virtio.driver(cls())


def test_not_attached() -> None:
    device = Hasher()
    assert repr(device) == "<Hasher inline, not attached>"
    assert device.faults == 0
    for call in (
        lambda: device.dma_read(0, 1),
        lambda: device.dma_write(0, b""),
        lambda: device.dma_view(0, 1),
        device.process,
    ):
        with pytest.raises(ValueError, match="attach it"):
            call()


def test_another_handler_for_a_queue() -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    native = _vmm.VirtioMMIO(memory, 63, queues=[8])
    calls: list[str] = []

    def first(queue: Queue) -> None:
        calls.append("first")
        queue.handler = second
        queue.work()  # another turn, by whoever is the handler then

    def second(queue: Queue) -> None:
        calls.append("second")
        queue.handler = None
        queue.work()

    queue = Queue(native, 0, "x", first)
    assert queue.handler is first
    queue.work()
    assert calls == ["first", "second"] and queue.handler is None
    assert queue.work() is None
    with pytest.raises(TypeError, match="handler must be callable, not int"):
        queue.handler = 5  # type: ignore[assignment]


def test_events_are_told_while_somebody_wants_them() -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    native = _vmm.VirtioMMIO(memory, 63, queues=[8])
    events: list[int] = []
    assert native.on_event is None
    native.write(rings.STATUS, 4, 0)
    native.on_event = lambda what, *args: events.append(what)
    native.write(rings.STATUS, 4, 0)
    assert events == [_vmm.EVENT_RESET]
    native.on_event = None
    native.write(rings.STATUS, 4, 0)
    assert len(events) == 1
    with pytest.raises(TypeError, match="on_event must be callable"):
        native.on_event = 5  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="has no events"):
        _vmm.Rng(memory).on_event = print
    native.close()
    with pytest.raises(ValueError, match="closed VirtioMMIO"):
        native.on_event = None
    with pytest.raises(ValueError, match="closed VirtioMMIO"):
        native.on_event  # noqa: B018


def test_queue_arguments() -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    native = _vmm.VirtioMMIO(memory, 63, queues=[8])
    with pytest.raises(ValueError, match="has 1 queues"):
        Queue(native, 1, "x")
    with pytest.raises(TypeError):
        Queue(memory, 0, "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler must be callable"):
        Queue(native, 0, "x", 5)  # type: ignore[arg-type]
    queue = Queue(native, 0, "x")
    assert repr(queue) == "<Queue x, number 0>"
    assert (queue.index, queue.name, queue.faults) == (0, "x", 0)
    assert list(queue) == [] and queue.work() is None
    native.close()
    assert list(queue) == [] and list(queue.batches()) == []
    with pytest.raises(ValueError, match="closed"):
        Queue(native, 0, "x")


def test_state_has_chains_in_flight_in_their_order() -> None:
    """Also when one that came later was completed before."""
    held: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            held.append(chain)
            chain.defer()

    with drive(body) as drv:
        for _ in range(4):
            drv.requests.send(b"a", reply=1)
        assert len(held) == 4
        held.pop(2).complete()
        heads = [chain.head for chain in held]
        native = drv.raw.device
        native.restore(native.save())
        held.clear()
        native.process()
        assert [chain.head for chain in held] == heads
        for chain in held:
            chain.complete()


def test_closed_in_the_middle_of_a_loop() -> None:
    """Taken off while its handler works: that loop ends, with what is left."""
    turns = 0

    def body(queue: Queue) -> None:
        nonlocal turns
        for chain in queue:
            turns += 1
            drv.raw.device.close()
            with pytest.raises(virtio.StaleChain):
                chain.write(b"1")

    with drive(body) as drv:
        for i in range(3):
            drv.requests.send(b"a", reply=1, notify=i == 2)
        assert turns == 1


def test_chains_of_a_virtqueue_are_pushed() -> None:
    memory = _vmm.Memory()
    memory.add(0, 1 << 16)
    ring = rings.Ring(memory, 0x1000, 8)
    queue = _vmm.VirtQueue(memory, 8)
    queue.desc, queue.avail, queue.used = ring.desc, ring.avail, ring.used
    assert queue.start()
    ring.set_desc(0, 0x8000, 16)
    ring.offer(0)
    chain = queue.pop()
    assert chain is not None
    with pytest.raises(ValueError, match="push"):
        chain.complete()
    with pytest.raises(TypeError):
        chain.complete(1, 2)  # type: ignore[call-arg]


def test_requests_refuse() -> None:
    with virtio.driver(Hasher(), memory=1 << 16, queue_size=4) as drv:
        with pytest.raises(ValueError, match="needs a buffer"):
            drv.requests()
        with pytest.raises(ValueError, match="5 descriptors"):
            drv.requests(*[b"x"] * 4, reply=1)
        with pytest.raises(ValueError, match=r"driver\(memory=\)"):
            drv.requests(bytes(1 << 16))
        assert len(drv.requests(b"x", reply=32)) == 32


# -- guest memory --------------------------------------------------------------


class Point(ctypes.LittleEndianStructure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32))


def test_dma() -> None:
    with virtio.driver(Hasher(), memory=1 << 16) as drv:
        device = drv.device
        device.dma_write(0x8000, struct.pack("<II", 3, 4))
        assert device.dma_read(0x8004, 4) == b"\4\0\0\0"
        point = Point.from_buffer(device.dma_view(0x8000, 8))
        point.x = 9
        assert device.dma_read(0x8000, 4) == b"\11\0\0\0"
        assert device.dma_view(0x8000, 8, readonly=True).readonly
        for call in (
            lambda: device.dma_read(0xFFFF, 2),
            lambda: device.dma_write(0x10000, b"x"),
            lambda: device.dma_view(2**63, 2),
        ):
            with pytest.raises(ValueError, match="outside RAM"):
                call()


def test_dma_cast() -> None:
    with virtio.driver(Hasher(), memory=1 << 16) as drv:
        words = drv.device.dma_view(0x8000, 16).cast("I")
        drv.device.dma_write(0x8004, b"\7\0\0\0")
        assert words[1] == 7


# -- life ----------------------------------------------------------------------


def test_collected() -> None:
    """Device, queue, chains and native part are a cycle; all of it goes."""
    kept: list[Chain] = []

    def body(queue: Queue) -> Iterator[None] | None:
        for chain in queue:
            chain.defer()
            kept.append(chain)
        return None

    drv = drive(body)
    for _ in range(3):
        drv.requests.send(b"x", reply=1)
    drv.device.kept = kept.copy()  # type: ignore[attr-defined]
    device = weakref.ref(drv.device)
    kept.clear()
    drv.close()
    del drv, body
    gc.collect()
    assert device() is None


def test_chains_outlive_everything() -> None:
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            kept.append(chain)
            chain.defer()

    with drive(body) as drv:
        drv.requests.send(b"x", reply=1)
        view = kept[0].writable[0]
    del drv
    gc.collect()
    view[0] = 1
    assert kept[0].complete() is False


def test_rng_has_the_same_driver() -> None:
    class Described(Rng):
        queues = {"requests": 256}

    with virtio.driver(Described(source=lambda n: bytes(n))) as drv:
        assert drv.requests(reply=[5, 6]) == bytes(11)

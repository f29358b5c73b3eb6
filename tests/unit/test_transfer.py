# SPDX-License-Identifier: Apache-2.0
"""virtio.preadv and pwritev, and batches of a queue: no KVM, no guest."""
# ruff: noqa: RUF012 - queues are written as users write them

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from pyvmm import _vmm, virtio
from pyvmm.virtio import Chain, Queue

DATA = os.urandom(5000)


class Scripted(virtio.Device):
    """Its handler is what the test gives."""

    device_id = 63
    queues = {"requests": 64, "others": 64}

    def __init__(
        self, body: Callable[[Queue], object], notify: str = "inline"
    ) -> None:
        self.body = body
        self.notify = notify

    def on_requests(self, queue: Queue) -> None:
        self.body(queue)

    def on_others(self, queue: Queue) -> None:
        pass


def drive(body: Callable[[Queue], object], **options) -> virtio.Driver:
    return virtio.driver(Scripted(body), **options)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("file")
    os.write(fd, DATA)
    yield fd
    os.close(fd)


# -- preadv and pwritev --------------------------------------------------------


def test_positions(fd: int) -> None:
    """They go on where read() and write() ended, and the other way round."""

    def body(queue: Queue) -> None:
        for chain in queue:
            assert chain.take(2) == b"AB"
            chain.write(b"xy")
            assert virtio.pwritev(fd, [chain], 100) == 3
            assert virtio.preadv(fd, [chain], 1000, 2) == 6
            assert chain.read() == b"" and chain.written == 8
            chain.write(b"z")

    with drive(body) as drv:
        got = drv.requests(b"A", b"BC", b"DE", reply=[3, 4, 3])
        assert got == b"xy" + DATA[1000:1006] + b"z"
    assert os.pread(fd, 5, 99) == DATA[99:100] + b"CDE" + DATA[103:104]


def test_several_chains(fd: int) -> None:
    def body(queue: Queue) -> None:
        for chains in queue.batches():
            assert virtio.preadv(fd, tuple(chains), 7) == 60 * len(chains)

    with drive(body) as drv:
        drv.requests(reply=60)  # batches grow from 1 on
        sent = [drv.requests.send(reply=[50, 10], notify=False) for _ in "ab"]
        drv.requests.notify()
        assert b"".join(r.wait() for r in sent) == DATA[7:127]


def test_end_of_file(fd: int) -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            assert virtio.preadv(fd, [chain], 4990) == 10
            assert virtio.preadv(fd, [chain], 5000) == 0

    with drive(body) as drv:
        assert drv.requests(reply=20) == DATA[4990:]


def test_without_an_offset() -> None:
    """A frame of a socket each, and a file's own position."""
    near, far = os.pipe()

    def body(queue: Queue) -> None:
        for chain in queue:
            if chain.readable_size:
                virtio.pwritev(far, [chain], None)
            else:
                virtio.preadv(near, [chain], None)

    with drive(body) as drv:
        drv.requests(b"ping", b"pong")
        assert drv.requests(reply=[3, 100]) == b"pingpong"
    os.close(near)
    os.close(far)


def test_objects_with_a_descriptor(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")

    def body(queue: Queue) -> None:
        for chain in queue:
            with path.open("rb") as file:
                virtio.preadv(file, [chain], 0)

    with drive(body) as drv:
        assert drv.requests(reply=8) == b"12345678"


def test_nothing_to_do(fd: int) -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            assert virtio.preadv(fd, [], 0) == 0
            assert virtio.preadv(fd, [chain], 0) == 0
            assert virtio.preadv(fd, [chain], 0, 99) == 0
            assert virtio.pwritev(fd, [chain, chain], 0) == 2
            assert chain.read() == b""

    with drive(body) as drv:
        drv.requests(b"!")


def test_host_errors(fd: int) -> None:
    codes = []

    def body(queue: Queue) -> None:
        for chain in queue:
            full = os.open("/dev/full", os.O_WRONLY)
            for call in (virtio.preadv, virtio.pwritev):
                with pytest.raises(OSError, match=r"p(read|write)v: ") as e:
                    call(full, [chain], 0)
                codes.append(e.value.errno)
            os.close(full)

    with drive(body) as drv:
        drv.requests(b"data", reply=4)
    assert codes == [errno.EBADF, errno.ENOSPC]


def test_bad_arguments(fd: int) -> None:
    def body(queue: Queue) -> None:
        for chain in queue:
            for wrong, kind, words in [
                ((fd, chain, 0), TypeError, "must be a list"),
                ((fd, [b"x"], 0), TypeError, "expected a Chain, not bytes"),
                ((fd, [chain] * 257, 0), ValueError, "257 chains .* than 256"),
                ((fd, [chain], -1), ValueError, "offset -1 is outside"),
                ((fd, [chain], 1 << 63), ValueError, "is outside 0..0x7fff"),
                ((fd, [chain], "0"), TypeError, "str"),
                ((b"x", [chain], 0), TypeError, "fileno"),
                ((-5, [chain], 0), ValueError, "-5"),
                ((fd, [chain]), TypeError, r"takes 3 arguments \(2 given\)"),
            ]:
                with pytest.raises(kind, match=words):
                    virtio.preadv(*wrong)
                with pytest.raises(kind, match=words):
                    virtio.pwritev(*wrong)
            with pytest.raises(ValueError, match="leave -1"):
                virtio.preadv(fd, [chain], 0, -1)
            with pytest.raises(TypeError, match="3 arguments"):
                virtio.pwritev(fd, [chain], 0, 0)

    with drive(body) as drv:
        drv.requests(b"data", reply=4)
        assert drv.device.faults == 0


def test_chains_that_are_not_in_flight(fd: int) -> None:
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            kept.append(chain)
            chain.defer()

    with drive(body) as drv:
        drv.requests.send(b"x", reply=4)
        drv.requests.send(b"x", reply=4)
        kept[0].complete()
        with pytest.raises(ValueError, match="was pushed"):
            virtio.preadv(fd, [kept[1], kept[0]], 0)
        drv.reset()
        with pytest.raises(virtio.StaleChain, match="taken back by a reset"):
            virtio.pwritev(fd, [kept[1]], 0)
    assert os.pread(fd, 4, 0) == DATA[:4]


def test_chains_of_two_queues(fd: int) -> None:
    with drive(lambda queue: None) as drv:
        drv.requests.send(reply=4)
        drv.others.send(reply=4)
        native = drv.native
        with pytest.raises(ValueError, match="of another queue"):
            virtio.preadv(fd, [native.pop(0), native.pop(1)], 0)


def test_a_reset_waits() -> None:
    """The memory is at rest when the driver knows of the reset."""
    near, far = os.pipe()
    begun = threading.Event()
    found: list[bytes] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            begun.set()
            virtio.preadv(near, [chain], None)
            chain.write(b"stale")  # which is nobody's fault

    def reset() -> None:
        drv.reset()
        found.append(drv.memory.read(room, 4))

    with virtio.driver(Scripted(body, "thread")) as drv:
        request = drv.requests.send(reply=64)
        room = request.parts[0][0]
        assert begun.wait(5)
        thread = threading.Thread(target=reset)
        thread.start()
        os.write(far, b"late")
        thread.join()
        assert found == [b"late"]
        drv.start()
        assert drv.device.faults == 0
    os.close(near)
    os.close(far)


def test_signals_get_through() -> None:
    """A read that waits can be interrupted, and nothing is lost by that."""
    near, far = os.pipe()

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def body(queue: Queue) -> None:
        for chain in queue:
            virtio.preadv(near, [chain], None)

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.get_ident()
    stop = threading.Event()

    def bother() -> None:
        while not stop.wait(0.01):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=bother)
    try:
        with drive(body) as drv:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                drv.requests.send(reply=64)
            stop.set()
            thread.join()
            os.write(far, b"data")
            drv.device.process()
            drv.requests.collect()
            assert drv.requests.in_flight == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(near)
        os.close(far)


# -- batches -------------------------------------------------------------------


def offer(drv: virtio.Driver, count: int) -> list[virtio.frontend.Request]:
    return [
        drv.requests.send(bytes([65 + i]), reply=1, notify=False)
        for i in range(count)
    ]


def warm(drv: virtio.Driver) -> None:
    """Batches grow to 32 chains."""
    for _ in range(2):
        offer(drv, 31)
        drv.requests.notify()
        drv.requests.wait_all()
    seen.clear()


seen: list[bytes] = []


def names(chains: list[Chain]) -> bytes:
    seen.append(b"".join(chain.read() for chain in chains))
    return seen[-1]


def test_batches() -> None:
    def body(queue: Queue) -> None:
        for chains in queue.batches():
            assert type(chains) is list
            for chain, name in zip(chains, names(chains), strict=True):
                chain.write(bytes([name]))
            chains.clear()  # the list is the body's own

    with drive(body) as drv:
        warm(drv)
        sent = offer(drv, 31)
        drv.requests.notify()
        assert [r.wait() for r in sent] == [bytes([65 + i]) for i in range(31)]
        assert seen == [bytes(range(65, 65 + 31))]


def test_batches_end_by_break() -> None:
    """They grow from one chain on."""

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            for chain, name in zip(chains, names(chains), strict=True):
                chain.write(bytes([name]))
            break

    seen.clear()
    with drive(body) as drv:
        sent = offer(drv, 6)
        for _ in range(3):
            drv.device.process()
        assert b"".join(r.wait() for r in sent) == b"ABCDEF"
    assert seen == [b"A", b"BC", b"DEF"]


def test_an_exception_completes_none_of_a_batch() -> None:
    fails = [True]

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            for chain, name in zip(chains, names(chains), strict=True):
                chain.write(bytes([name]))
                if name == ord("D") and fails:
                    fails.clear()
                    raise KeyError("mine")

    with drive(body) as drv:
        fails.clear()
        warm(drv)
        fails.append(True)
        sent = offer(drv, 6)
        with pytest.raises(KeyError, match="mine") as caught:
            drv.requests.notify()
        head = sent[0].indices[0]
        assert caught.value.__notes__[0] == (
            f"chains from {head} on of Scripted.requests went back to their "
            "queue"
        )
        assert drv.requests.in_flight == 6
        drv.device.process()
        assert seen == [b"ABCDEF", b"ABCDEF"]
        assert b"".join(r.wait() for r in sent) == b"ABCDEF"
        assert drv.device.faults == 0


def test_an_exception_behind_some_that_are_over() -> None:
    """Completed and deferred ones stay so; the rest goes back in order."""
    fails = [True]
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            names(chains)
            if len(chains) == 6 and fails:
                fails.clear()
                chains[3].complete()
                chains[1].defer()
                kept.append(chains[1])
                raise KeyError

    with drive(body) as drv:
        warm(drv)
        sent = offer(drv, 6)
        with pytest.raises(KeyError):
            drv.requests.notify()
        assert [r.done for r in sent] == [False] * 6
        drv.requests.collect()
        assert [r.done for r in sent] == [i == 3 for i in range(6)]
        drv.device.process()
        drv.requests.collect()
        assert seen == [b"ABCDEF", b"AC", b"EF"]
        assert [r.done for r in sent] == [i != 1 for i in range(6)]
        assert kept[0].complete()


@pytest.mark.parametrize("where", [0, 2, 5])
def test_the_short_one_of_a_batch(where: int) -> None:
    """It is completed empty, alone; the others are handed out again."""

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            for chain, name in zip(chains, names(chains), strict=True):
                chain.write(bytes([name, name]))

    with drive(body) as drv:
        for _ in range(2):
            for _ in range(31):
                drv.requests.send(b"x", reply=2, notify=False)
            drv.requests.notify()
            drv.requests.wait_all()
        sent = [
            drv.requests.send(
                bytes([65 + i]), reply=1 if i == where else 2, notify=False
            )
            for i in range(6)
        ]
        drv.requests.notify()
        got = [r.wait() for r in sent]
        assert got == [
            b"" if i == where else bytes([65 + i] * 2) for i in range(6)
        ]
        assert drv.device.faults == 1


def test_a_short_chain_of_nobody() -> None:
    """Raised by the device itself: all of the list are completed empty."""

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            if len(chains) == 6:
                raise virtio.ShortChain("I do not like them")

    with drive(body) as drv:
        warm(drv)
        offer(drv, 6)
        drv.requests.notify()
        drv.requests.wait_all()
        assert drv.device.faults == 6


def test_a_reset_within_a_batch() -> None:
    again = [True]

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            if len(chains) == 6 and again:
                again.clear()
                drv.reset()
                chains[2].read()
            for chain in chains:
                chain.write(b"!")

    with drive(body) as drv:
        warm(drv)
        offer(drv, 6)
        drv.requests.notify()
        drv.start()
        assert drv.requests(reply=1) == b"!" and drv.device.faults == 0


def test_a_loop_within_a_batch() -> None:
    """Nested loops of either kind share the queue."""
    order: list[bytes] = []

    def body(queue: Queue) -> None:
        for chains in queue.batches():
            order.extend(chain.read() for chain in chains)
            for chain in queue:
                order.append(chain.read())
                break

    with drive(body) as drv:
        for _ in range(6):
            offer(drv, 5)
        drv.requests.notify()
        assert b"".join(order) == b"ABCDE" * 6
        assert drv.requests.in_flight == 0


def test_a_batch_is_collected() -> None:
    """A loop that nobody ends gives its chains back."""

    def body(queue: Queue) -> None:
        loop = queue.batches()
        next(loop)
        if not again:
            again.append(True)
            raise KeyError

    again: list[bool] = []
    with drive(body) as drv:
        sent = offer(drv, 1)
        with pytest.raises(KeyError):
            drv.requests.notify()
        assert not sent[0].done
        drv.device.process()
        drv.requests.collect()
        assert sent[0].done


def test_chains_that_went_back_are_found_by_the_loop_outside() -> None:
    """Nobody notifies of them."""
    raised: list[bytes] = []

    def body(queue: Queue) -> None:
        for chain in queue:
            seen.append(chain.read())
            if len(raised) < fails:
                with contextlib.suppress(KeyError):
                    for other in queue:
                        raised.append(other.read())
                        raise KeyError

    fails = 0
    with drive(body) as drv:
        warm(drv)
        fails = 2
        offer(drv, 4)
        drv.requests.notify()
        assert raised == [b"B", b"C"]
        assert b"".join(seen) == b"ABCD"
        assert drv.requests.in_flight == 0


def test_a_chain_that_is_kept_is_not_used_again() -> None:
    kept: list[Chain] = []

    def body(queue: Queue) -> None:
        kept.extend(queue)

    with drive(body) as drv:
        for _ in range(3):
            offer(drv, 20)
            drv.requests.notify()
            drv.requests.wait_all()
        assert len(set(map(id, kept))) == 60
        assert all("pushed" in repr(chain) for chain in kept)


def test_names() -> None:
    assert virtio.preadv is _vmm.preadv
    assert "leave" in (virtio.pwritev.__doc__ or "") + virtio.preadv.__doc__

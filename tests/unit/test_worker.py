# SPDX-License-Identifier: Apache-2.0
"""What devices do beside the guest: watch(), worker timers, detached()."""
# ruff: noqa: RUF012 - queues are written as users write them

import os
import socket
import tempfile
import threading

import pytest

import pyvmm
from pyvmm import testing, virtio
from pyvmm.worker import ThreadWorker, Worker


class Plain(pyvmm.Device):
    size = 4


class Sink(virtio.Device):
    """What comes by a socket goes into the guest's buffers."""

    device_id = 63
    queues = {"rx": 8}

    def __init__(self, notify: str = "inline") -> None:
        self.notify = notify
        self.near, self.far = socket.socketpair()
        self.threads: set[int] = set()
        self.left = 0

    def attached(self) -> None:
        self.incoming = self.watch(self.near.fileno(), self.take)

    def detached(self) -> None:
        self.near.close()
        self.left += 1

    def take(self) -> None:
        self.threads.add(threading.get_ident())
        for chain in self.queue["rx"]:
            try:
                chain.write(self.near.recv(16, socket.MSG_DONTWAIT))
            except BlockingIOError:
                chain.defer()
                raise
            return
        self.incoming.pause()

    def on_rx(self, queue: virtio.Queue) -> None:
        self.threads.add(threading.get_ident())
        self.incoming.resume()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.stop()
    worker.stop()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


# -- watches -------------------------------------------------------------------


def test_a_watch_is_called_while_it_is_ready(worker, pair) -> None:
    seen: list[bytes] = []
    watch = worker.watch(
        None, pair[0].fileno(), lambda: seen.append(pair[0].recv(1)), False
    )
    assert worker.poll() == 0
    pair[1].send(b"ab")
    assert [worker.poll(1), worker.poll(1), worker.poll()] == [1, 1, 0]
    watch.pause()
    pair[1].send(b"c")
    assert worker.poll() == 0
    watch.resume()
    assert worker.poll() == 1
    watch.cancel()
    pair[1].send(b"d")
    watch.resume()  # of a cancelled one: nothing
    assert worker.poll() == 0
    assert seen == [b"a", b"b", b"c"]


def test_reading_and_writing_are_two_watches(worker, pair) -> None:
    seen: list[str] = []
    fd = pair[0].fileno()
    reading = worker.watch(None, fd, lambda: seen.append("r"), False)
    writing = worker.watch(None, fd, lambda: seen.append("w"), True)
    assert worker.poll() == 1 and seen == ["w"]
    pair[1].send(b"x")
    assert worker.poll() == 2 and seen == ["w", "r", "w"]
    writing.cancel()
    assert worker.poll() == 1 and seen[3:] == ["r"]
    reading.pause()
    assert worker.poll() == 0
    assert "fd" in repr(reading) and "read paused" in repr(reading)


def test_the_other_end_goes(worker, pair) -> None:
    seen: list[bytes] = []
    worker.watch(
        None, pair[0].fileno(), lambda: seen.append(pair[0].recv(1)), False
    )
    pair[1].close()
    assert worker.poll(1) == 1 and seen == [b""]


def test_a_watch_may_cancel_another(worker, pair) -> None:
    fd = pair[0].fileno()
    other = worker.watch(None, fd, pytest.fail, True)
    worker.watch(None, fd, other.cancel, False)
    pair[1].send(b"x")
    assert worker.poll() == 1


def test_what_is_refused(worker, pair) -> None:
    fd = pair[0].fileno()
    worker.watch(None, fd, print, False)
    with pytest.raises(ValueError, match=f"fd {fd} is watched already: <Wat"):
        worker.watch(None, fd, print, False)
    with pytest.raises(TypeError, match="fd is an int, not socket"):
        worker.watch(None, pair[1], print, False)
    with pytest.raises(TypeError, match="None cannot be called"):
        worker.watch(None, pair[1].fileno(), None, False)
    with (
        tempfile.TemporaryFile() as file,
        pytest.raises(PermissionError) as caught,
    ):
        worker.watch(None, file.fileno(), print, False)
    assert "cannot be watched" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        worker.watch(None, 1 << 20, print, False)
    # None of them is left behind.
    worker.watch(None, pair[1].fileno(), print, False).cancel()


def test_a_number_that_is_used_again(worker) -> None:
    """Closed too early, cancelled after: the number is free."""
    read, write = os.pipe()
    watch = worker.watch(None, read, pytest.fail, False)
    os.close(read)
    watch.cancel()
    os.close(write)
    read, write = os.pipe()
    seen: list[bytes] = []
    worker.watch(None, read, lambda: seen.append(os.read(read, 9)), False)
    os.write(write, b"new")
    assert worker.poll(1) == 1 and seen == [b"new"]
    os.close(read)
    os.close(write)


def test_an_exception_leaves_poll(worker, pair) -> None:
    worker.watch(None, pair[0].fileno(), lambda: 1 / 0, True)
    with pytest.raises(ZeroDivisionError) as caught:
        worker.poll()
    assert (
        "in the call of <Watch NoneType.<lambda>" in caught.value.__notes__[0]
    )


# -- a thread ------------------------------------------------------------------


def test_a_thread_calls(pair) -> None:
    done = threading.Event()
    seen: list[int] = []
    worker = ThreadWorker("it", lambda exc: pytest.fail(repr(exc)))

    def call() -> None:
        seen.append(threading.get_ident())
        watch.pause()
        worker.timers.add(None, 0.001, done.set, False)

    watch = worker.watch(None, pair[0].fileno(), call, False)
    pair[1].send(b"x")
    assert done.wait(5)
    assert seen and seen[0] != threading.get_ident()
    done.clear()
    worker.timers.add(None, 0, done.set, False)  # from here: it is woken
    assert done.wait(5)
    worker.stop()
    with pytest.raises(ValueError, match="stopped"):
        worker.watch(None, pair[0].fileno(), call, True)


def test_a_thread_stands_still_after_an_exception(pair) -> None:
    failed: list[BaseException] = []
    told, again = threading.Event(), threading.Event()
    worker = ThreadWorker("it", lambda exc: (failed.append(exc), told.set()))
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("first")
        watch.cancel()
        again.set()

    watch = worker.watch(None, pair[0].fileno(), call, False)
    pair[1].send(b"x")
    assert told.wait(5)
    worker.wake()
    assert calls == [1]
    worker.resume()
    assert again.wait(5)
    worker.stop()
    assert [type(exc) for exc in failed] == [KeyError]
    assert failed[0].__notes__[1] == "on the worker thread of it"


def test_it_may_stop_itself(pair) -> None:
    worker = ThreadWorker("it", pytest.fail)
    done = threading.Event()

    def call() -> None:
        worker.stop()
        done.set()

    worker.watch(None, pair[0].fileno(), call, True)
    assert done.wait(5)
    worker._thread.join(5)
    assert not worker._thread.is_alive()


# -- devices -------------------------------------------------------------------


def test_on_a_bus(pair) -> None:
    seen: list[object] = []
    with testing.bus(Plain(), memory="1M") as bus:
        device = bus.device
        device.watch(pair[0].fileno(), lambda: seen.append(pair[0].recv(1)))
        device.after(2, lambda: seen.append(bus.now), worker=True)
        device.after(1, lambda: seen.append(bus.now))
        pair[1].send(b"x")
        assert bus.poll(1) == 1
        bus.advance(3)
        device.dma_write(0x1000, b"abc")
        device.dma_view(0x1000, 1)[0] = 0x7A
        assert device.dma_read(0x1000, 3) == b"zbc"
        with pytest.raises(ValueError, match="outside RAM"):
            device.dma_read(1 << 20, 1)
    assert seen == [b"x", 1, 2]
    with pytest.raises(ValueError, match=r"no watch\(\) yet"):
        device.watch(pair[0].fileno(), print)


def test_a_bus_without_memory() -> None:
    with (
        testing.bus(Plain()) as bus,
        pytest.raises(ValueError, match="Plain has no memory here"),
    ):
        bus.device.dma_read(0, 1)


def test_inline_by_poll() -> None:
    device = Sink()
    with virtio.driver(device) as drv:
        device.far.send(b"early")
        assert drv.poll(1) == 1  # no buffer: it pauses
        assert drv.poll() == 0
        request = drv.rx.send(reply=16)
        assert drv.poll(1) == 1
        assert request.wait() == b"early"
        seen: list[str] = []
        device.after(1, lambda: seen.append("vcpu"))
        device.after(1, lambda: seen.append("worker"), worker=True)
        drv.advance(1)
        assert seen == ["vcpu", "worker"]
    assert device.threads == {threading.get_ident()} and device.left == 1
    device.far.close()


def test_on_one_thread() -> None:
    """Handlers and watches of a device are never at the same time."""
    device = Sink("thread")
    with virtio.driver(device) as drv:
        with pytest.raises(ValueError, match="by itself"):
            drv.poll()
        for i in range(100):
            request = drv.rx.send(reply=16)
            device.far.send(b"%d" % i)
            assert request.wait() == b"%d" % i
    assert len(device.threads) == 1 and device.left == 1
    assert threading.get_ident() not in device.threads
    device.far.close()


def test_what_a_watch_raises_reaches_the_driver() -> None:
    class Bad(Sink):
        def take(self) -> None:
            self.far.recv(64, socket.MSG_DONTWAIT)

    device = Bad("thread")
    with (
        pytest.raises(BlockingIOError) as caught,
        virtio.driver(device) as drv,
    ):
        device.far.send(b"x")
        drv.rx(reply=1)
    assert any("Bad.take" in note for note in caught.value.__notes__)
    assert device.left == 1
    device.far.close()


# -- in machines ---------------------------------------------------------------


def test_detached(pair) -> None:
    log: list[str] = []

    class Logging(Plain):
        def attached(self) -> None:
            assert self.machine is not None
            log.append("attached")

        def detached(self) -> None:
            log.append("detached")

    with pyvmm.Machine() as m:
        device = m.attach(Logging())
        device.watch(pair[0].fileno(), print)
        m.detach(device)
        assert log == ["attached", "detached"]
        m.attach(device)
    assert log == ["attached", "detached"] * 2


def test_attached_that_fails() -> None:
    """What it has begun is ended, and the device is attached to nothing."""
    fails = [True]

    class Shy(Plain):
        def attached(self) -> None:
            self.after(0, list, worker=True)
            if fails:
                raise OSError("no such file")

    device = Shy()
    with pyvmm.Machine() as m:
        with pytest.raises(OSError, match="no such file"):
            m.attach(device)
        assert m.devices == [] and device.machine is None
        with pytest.raises(ValueError, match="attach it to a machine"):
            device.after(0, list)
        fails.clear()
        m.attach(device)
        assert m.devices == [device]


def test_close_is_whole_when_detached_raises() -> None:
    class Bad(Plain):
        def detached(self) -> None:
            raise KeyError(self.name)

    m = pyvmm.Machine()
    sink = m.attach(Sink("thread"))
    m.attach(Bad(), name="one")
    m.attach(Bad(), name="two")
    with pytest.raises(KeyError, match="one") as caught:
        m.close()
    assert "KeyError: 'two'" in caught.value.__notes__[0]
    assert m.closed and m.memory.closed and sink.left == 1
    m.close()
    sink.far.close()

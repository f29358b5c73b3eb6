# SPDX-License-Identifier: Apache-2.0
"""Handlers that are coroutines, by the driver side."""
# ruff: noqa: RUF012 - queues are written as users write them

import asyncio
import socket
import threading

import pytest

from pyvmm import virtio
from pyvmm.eventloop import LoopThread, LoopWorker


class Upper(virtio.Device):
    """Asks a socket for each request, and awaits the answer."""

    device_id = 63
    queues = {"requests": 64, "other": 8}

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.most = 0
        self.now = 0
        self.threads: set[int] = set()

    async def on_requests(self, queue: virtio.Queue) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.threads.add(threading.get_ident())
        loop = asyncio.get_running_loop()
        for chain in queue:
            await loop.sock_sendall(self.near, chain.read())
            chain.write(await loop.sock_recv(self.near, 64))
        self.now -= 1

    def on_other(self, queue: virtio.Queue) -> None:
        self.threads.add(threading.get_ident())
        for chain in queue:
            chain.write(b"plain")

    def detached(self) -> None:
        self.near.close()
        self.far.close()


def answer(device: Upper) -> None:
    device.far.sendall(device.far.recv(64).upper())


def test_it_waits_without_a_thread_for_each() -> None:
    device = Upper()
    assert device.notify == "inline"  # until it is made
    with virtio.driver(device) as drv:
        assert device.notify == "asyncio"
        first = drv.requests.send(b"abc", reply=8)
        second = drv.requests.send(b"de", reply=8)
        assert drv.other(reply=8) == b"plain"  # meanwhile
        answer(device)
        assert first.wait() == b"ABC"
        answer(device)
        assert second.wait() == b"DE"
    assert device.most == 1  # one call of a handler at a time
    assert len(device.threads) == 1
    assert threading.get_ident() not in device.threads


def test_deferred_chains_wait_side_by_side() -> None:
    class Sleepers(virtio.Device):
        device_id = 63
        queues = {"requests": 64}

        def __init__(self) -> None:
            self.tasks: set[asyncio.Task[None]] = set()
            self.gate = asyncio.Event()
            self.waiting = 0

        async def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                chain.defer()
                task = asyncio.create_task(self.sleep(chain))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

        async def sleep(self, chain: virtio.Chain) -> None:
            self.waiting += 1
            if self.waiting == 9:
                self.gate.set()
            await self.gate.wait()
            chain.write(chain.read())
            chain.complete()

    with virtio.driver(Sleepers()) as drv:
        sent = [drv.requests.send(b"%d" % i, reply=1) for i in range(9)]
        assert [r.wait() for r in sent] == [b"%d" % i for i in range(9)]


def test_a_request_that_is_too_short_is_the_guests_fault() -> None:
    class Short(virtio.Device):
        device_id = 63
        queues = {"requests": 8}

        async def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                await asyncio.sleep(0)
                chain.write(chain.take(4))

    device = Short()
    with virtio.driver(device) as drv:
        assert drv.requests(b"abc", reply=8) == b""
        assert drv.requests(b"abcd", reply=8) == b"abcd"
        assert drv.requests(b"abcd", reply=2) == b""
        assert device.faults == 2


def test_an_exception_reaches_the_driver_and_the_chain_its_queue() -> None:
    class Bad(virtio.Device):
        device_id = 63
        queues = {"requests": 8}
        bad = True

        async def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                await asyncio.sleep(0)
                if self.bad:
                    self.bad = False
                    raise KeyError("mine")
                chain.write(b"good")

    device = Bad()
    with virtio.driver(device) as drv:
        request = drv.requests.send(b"x", reply=4)
        with pytest.raises(KeyError) as caught:
            request.wait()
        notes = caught.value.__notes__
        assert notes[0] == "chain 0 of Bad.requests went back to its queue"
        assert notes[1] == "in the handler of Bad.requests"
        assert notes[2] == "on the event loop that serves Bad"
        device.process()
        assert request.wait() == b"good"


def test_a_reset_while_it_awaits() -> None:
    device = Upper()
    with virtio.driver(device) as drv:
        drv.requests.send(b"abc", reply=8)
        assert device.far.recv(64) == b"abc"
        drv.reset()
        drv.start()
        device.far.sendall(b"late")  # for a chain that is no more
        request = drv.requests.send(b"def", reply=8)
        answer(device)
        assert request.wait() == b"DEF"


def test_closing_cancels_and_the_chain_goes_back() -> None:
    class Waiter(virtio.Device):
        device_id = 63
        queues = {"requests": 8}

        def __init__(self) -> None:
            self.begun = threading.Event()
            self.cancelled = False
            self.chain: virtio.Chain | None = None

        async def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                self.chain = chain
                self.begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled = True
                    raise

    device = Waiter()
    with virtio.driver(device) as drv:
        drv.requests.send(b"x", reply=4)
        assert device.begun.wait(5)
        drv.worker.stop()
        assert device.cancelled
        assert "back in the queue" in repr(device.chain)


def test_many_more_than_a_turn_has() -> None:
    class Fast(virtio.Device):
        device_id = 63
        queues = {"requests": 256}
        turns = 0

        async def on_requests(self, queue: virtio.Queue) -> None:
            self.turns += 1
            for chain in queue:
                chain.write(b"!")

    with virtio.driver(Fast()) as drv:
        for _ in range(60):
            sent = [
                drv.requests.send(reply=1, notify=False) for _ in range(256)
            ]
            drv.requests.notify()
            assert all(request.wait() == b"!" for request in sent)


def test_a_coroutine_and_a_thread_do_not_go_together() -> None:
    class Odd(Upper):
        notify = "thread"

    device = Odd()
    with pytest.raises(ValueError, match="notify 'thread' cannot run it"):
        virtio.driver(device)
    device.detached()


def test_watches_and_timers_run_on_the_loop() -> None:
    class Both(virtio.Device):
        device_id = 63
        queues = {"requests": 8}
        notify = "asyncio"

        def __init__(self) -> None:
            self.near, self.far = socket.socketpair()
            self.seen: list[object] = []
            self.done = threading.Event()

        def attached(self) -> None:
            self.watch(self.near.fileno(), self.take)

        def take(self) -> None:
            self.seen.append(self.near.recv(8))
            self.seen.append(asyncio.get_running_loop())
            self.after(0.001, self.tick, worker=True)

        def tick(self) -> None:
            self.seen.append(asyncio.get_running_loop())
            self.done.set()

        def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                self.seen.append(asyncio.get_running_loop())
                chain.write(b"x")

    device = Both()
    with virtio.driver(device) as drv:
        device.far.send(b"hello")
        assert device.done.wait(5)
        assert drv.requests(reply=1) == b"x"
        loop = drv.worker.loop
    assert device.seen == [b"hello", loop, loop, loop]
    device.near.close()
    device.far.close()


def test_a_worker_moves_from_loop_to_loop() -> None:
    one, other = LoopThread("one"), LoopThread("other")
    near, far = socket.socketpair()
    seen: list[object] = []
    worker = LoopWorker("it", pytest.fail, None)
    got = threading.Event()

    def take() -> None:
        near.recv(8)
        seen.append(asyncio.get_running_loop())
        got.set()

    worker.watch(None, near.fileno(), take, False)
    for place in (one, other, one):
        worker.bind(place.loop)
        far.send(b"x")
        assert got.wait(5)
        got.clear()
    one.close()
    worker.bind(other.loop)  # the old one is closed
    far.send(b"x")
    assert got.wait(5)
    worker.stop()
    other.close()
    assert seen == [one.loop, other.loop, one.loop, other.loop]
    near.close()
    far.close()

# SPDX-License-Identifier: Apache-2.0
"""Devices and machines on an asyncio event loop.

LoopWorker    the worker of a device with notify="asyncio"
LoopThread    a loop of our own, for machines that run without one
Caller        the thread that runs a machine for `await run_async()`
"""

from __future__ import annotations

import asyncio
import contextlib
from threading import Event, Thread, get_ident
from time import monotonic_ns

from .run import LOOK, PAUSE
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from queue import SimpleQueue
    from typing import Any

    from ._vmm import Queue, VirtioMMIO
    from .machine import Machine
    from .stop import Stop
    from .worker import Fail

    Handler = Callable[[Queue], Coroutine[Any, Any, object]]

STOP_SECONDS = 1.0  # what stop() waits for a loop that is busy
PAUSE_SECONDS = 0.01  # between two attempts to pause a run that begins


class LoopWorker(Worker):
    """Calls, handlers and timers of a device on an event loop.

    bind() says on which; until then nothing is called. Handlers that are
    coroutine functions run as tasks, one at a time for each queue.

    Threads: any; calls are made on the loop's.
    """

    def __init__(self, name: str, fail: Fail, serve: VirtioMMIO | None) -> None:
        super().__init__(name)
        self._fail = fail
        self._serve = serve
        self._failed = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()  # queues notified while their task runs
        if serve is not None:
            self.watch(self, serve.doorbell_fd, self._rung, False)

    # -- the loop ------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on this loop makes the calls."""
        if self.loop is loop:
            return
        self._unbind()
        self.loop = loop
        loop.call_soon_threadsafe(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._closed or self.loop is not loop:
                return
            loop.add_reader(self._epoll.fileno(), self._turn)
        self._turn()

    def _unbind(self) -> None:
        """Tasks are cancelled: their chains go back to the queues."""
        loop, self.loop = self.loop, None
        if loop is None or not loop.is_running():
            self._forget(loop)
        elif is_here(loop):
            self._forget(loop)
            for task in self._tasks.values():
                task.cancel()
        else:
            ended = asyncio.run_coroutine_threadsafe(self._end(loop), loop)
            with contextlib.suppress(TimeoutError):
                ended.result(STOP_SECONDS)
        self._tasks.clear()

    def _forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        with self._lock:
            if loop is not None and not loop.is_closed() and not self._closed:
                loop.remove_reader(self._epoll.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._forget(loop)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """No calls any more, tasks are cancelled."""
        loop = self.loop
        self._unbind()
        if loop is not None and is_here(loop):
            # Tasks end in the next turns of the loop that we are in.
            loop.call_soon(self._close)
        else:
            self._close()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """The loop stands still, unless it is the caller's."""
        if not self.elsewhere:
            yield
            return
        parked, go = Event(), Event()

        def park() -> None:
            parked.set()
            go.wait()

        assert self.loop is not None
        self.loop.call_soon_threadsafe(park)
        try:
            parked.wait()
            yield
        finally:
            go.set()

    @property
    def elsewhere(self) -> bool:
        loop = self.loop
        if loop is None or self._failed or self._closed:
            return False
        return loop.is_running() and not is_here(loop)

    def resume(self) -> None:
        """Goes on after an exception."""
        if self._failed:
            self._failed = False
            loop = self.loop
            if loop is not None and not loop.is_closed():
                self.loop = None
                self.bind(loop)

    # -- calls ---------------------------------------------------------------

    def _turn(self) -> None:
        """The epoll is readable, or a timer due."""
        if self._closed or self._failed:
            return
        try:
            self.poll(0)
        except BaseException as exc:
            self._broken(exc)
        due_ns = self.timers.next_ns()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_ns and self.loop is not None and not self._closed:
            left = max(0, due_ns - monotonic_ns()) / 1e9
            self._timer = self.loop.call_later(left, self._turn)

    def _broken(self, exc: BaseException) -> None:
        """Stands still until the machine is run again."""
        self._failed = True
        loop = self.loop
        if loop is not None and not self._closed:
            loop.remove_reader(self._epoll.fileno())
        exc.add_note(f"on the event loop that serves {self.name}")
        self._fail(exc)

    def _rung(self) -> None:
        """The doorbell: one turn of what a thread would do, without waiting."""
        assert self._serve is not None
        self._serve.serve(self._wake_fd, 1)

    # -- handlers ------------------------------------------------------------

    def start(self, queue: Queue, handler: Handler) -> None:
        """There may be chains in `queue`: let its handler's task see to them.

        From any thread.
        """
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        if is_here(loop):
            self._start(queue, handler)
        else:
            loop.call_soon_threadsafe(self._start, queue, handler)

    def _start(self, queue: Queue, handler: Handler) -> None:
        task = self._tasks.get(queue.index)
        if task is not None and not task.done():
            self._again.add(queue.index)
            return
        assert self.loop is not None
        task = self.loop.create_task(self._work(queue, handler))
        task.set_name(queue.name)
        self._tasks[queue.index] = task

    async def _work(self, queue: Queue, handler: Handler) -> None:
        try:
            more = True
            while more and not self._closed:
                self._again.discard(queue.index)
                queue.begin()
                try:
                    await handler(queue)
                except Exception as exc:
                    if not queue.end(exc):
                        exc.add_note(f"in the handler of {queue.name}")
                        raise
                else:
                    more = queue.end() or queue.index in self._again
                await asyncio.sleep(0)
        except Exception as exc:
            self._broken(exc)


def is_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the calling thread is the one that runs this loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class LoopThread:
    """An event loop on a thread of its own.

    Threads: any.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        started = Event()
        self.loop.call_soon(started.set)
        self._thread = Thread(
            target=self._run, name=f"pyvmm {name}", daemon=True
        )
        self._thread.start()
        started.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def close(self) -> None:
        """The thread ends."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        if self._thread.ident != get_ident():
            self._thread.join()


class Caller:
    """A thread that makes one call after the other.

    A vCPU wants to stay on one thread: so the same runs a machine each time.

    Threads: any.
    """

    def __init__(self) -> None:
        from queue import SimpleQueue

        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(
            target=self._run, name="pyvmm run_async", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def call(
        self, function: Callable[[], Stop], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[Stop]:
        """The outcome of function(), which the thread calls, for a loop."""
        future: asyncio.Future[Stop] = loop.create_future()

        def call() -> None:
            outcome: Stop | BaseException
            try:
                outcome = function()
            except BaseException as exc:
                outcome = exc
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, future, outcome)

        self._calls.put(call)
        return future

    def close(self) -> None:
        """The thread ends when it has made its calls."""
        self._calls.put(None)
        if self._thread.ident != get_ident():
            self._thread.join()


def settle(future: asyncio.Future[Stop], outcome: Stop | BaseException) -> None:
    """The outcome is that of the future, unless nobody waits for it."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def run_async(machine: Machine, run: Callable[[], Stop]) -> Stop:
    """run() on the machine's thread, while this loop serves its devices.

    Cancelled, it pauses the guest and waits for that.
    """
    loop = asyncio.get_running_loop()
    machine._check_open()
    machine._wiring.set_loop(loop)
    runner = machine._runner
    if runner.caller is None:
        runner.caller = Caller()
    future = runner.caller.call(run, loop)
    try:
        while not future.done():
            await asyncio.wait([future], timeout=LOOK)
        return future.result()
    except asyncio.CancelledError as cancelled:
        failure = await pause(machine, future)
        raise cancelled from failure


async def pause(
    machine: Machine, future: asyncio.Future[Stop]
) -> BaseException | None:
    """Let a run end, whatever comes; what it raised."""
    while not future.done():
        machine._runner.interrupt(PAUSE)
        try:
            await asyncio.wait([future], timeout=PAUSE_SECONDS)
        except asyncio.CancelledError:
            continue
    return future.exception()

# SPDX-License-Identifier: Apache-2.0
"""The worker of a device: what it does beside the guest.

Worker        file descriptors that are ready, timers that are due, by poll()
ThreadWorker  the same on a thread, which may serve a doorbell as well
Watch         one file descriptor: what device.watch() returns

The epoll of a worker holds its watches and an eventfd that wakes it. Whoever
waits, be it poll(), the core's `serve` or an event loop, waits for that one
descriptor.
"""

from __future__ import annotations

import os
import select
from contextlib import contextmanager
from threading import Event, RLock, Thread, get_ident
from time import monotonic_ns

from .timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._vmm import VirtioMMIO

    Fail = Callable[[BaseException], object]

BROKEN = select.EPOLLHUP | select.EPOLLERR
READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | BROKEN
WRITABLE = select.EPOLLOUT | BROKEN

PAST = 1  # a deadline of serve() that is over


class Watch:
    """A file descriptor that is watched: what device.watch() returns.

    Threads: any.
    """

    __slots__ = ("_worker", "active", "call", "device", "fd", "write")

    def __init__(
        self,
        worker: Worker,
        device: object,
        fd: int,
        call: Callable[[], object],
        write: bool,
    ) -> None:
        self._worker = worker
        self.device = device
        self.fd = fd
        self.call = call
        self.write = write
        self.active = True  # neither paused nor cancelled

    def pause(self) -> None:
        """No calls until resume()."""
        self._worker.set_active(self, False)

    def resume(self) -> None:
        """Calls again, at once if the descriptor is ready."""
        self._worker.set_active(self, True)

    def cancel(self) -> None:
        """No calls any more; to be done before the descriptor is closed."""
        self._worker.cancel(self)

    def __repr__(self) -> str:
        name = f"{type(self.device).__name__}.{called(self.call)}"
        state = "active" if self.active else "paused"
        kind = "write" if self.write else "read"
        return f"<Watch {name} fd {self.fd} {kind} {state}>"


def called(call: Callable[[], object]) -> str:
    """The name of a function, for people."""
    return getattr(call, "__name__", repr(call))


class Worker:
    """Calls for descriptors that are ready and timers that are due.

    `now`: the clock of its timers, in nanoseconds. An exception of a call
    leaves poll(); what else was ready is seen by the next one.

    Threads: any; poll() one at a time.
    """

    def __init__(
        self, name: str = "", now: Callable[[], int] = monotonic_ns
    ) -> None:
        self.name = name
        self.timers = Timers(now, self._armed)
        self._now = now
        self._lock = RLock()
        self._watches: dict[tuple[int, bool], Watch] = {}
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._polling = 0  # the thread that does, 0: nobody
        self._closed = False

    # -- watches -------------------------------------------------------------

    def watch(
        self,
        device: object,
        fd: int,
        call: Callable[[], object],
        write: bool,
    ) -> Watch:
        """As Services.watch()."""
        if not isinstance(fd, int):
            raise TypeError(f"fd is an int, not {type(fd).__name__}")
        if not callable(call):
            raise TypeError(f"{call!r} cannot be called")
        watch = Watch(self, device, fd, call, write)
        with self._lock:
            self._check_open()
            if (fd, write) in self._watches:
                raise ValueError(
                    f"fd {fd} is watched already: {self._watches[fd, write]!r}"
                )
            self._watches[fd, write] = watch
            try:
                self._update(fd)
            except OSError as exc:
                del self._watches[fd, write]
                exc.add_note(f"fd {fd} cannot be watched")
                raise
        return watch

    def set_active(self, watch: Watch, active: bool) -> None:
        """Pause or resume a watch; nothing for one that was cancelled."""
        with self._lock:
            if self._watches.get((watch.fd, watch.write)) is not watch:
                return
            if watch.active != active and not self._closed:
                watch.active = active
                self._update(watch.fd)

    def cancel(self, watch: Watch) -> None:
        """Forget a watch."""
        with self._lock:
            if self._watches.get((watch.fd, watch.write)) is not watch:
                return
            del self._watches[watch.fd, watch.write]
            watch.active = False
            if not self._closed:
                self._update(watch.fd)

    def drop(self, device: object) -> None:
        """Cancel all watches and timers of a device."""
        with self._lock:
            for watch in list(self._watches.values()):
                if watch.device is device:
                    self.cancel(watch)
        self.timers.drop(device)

    def renew(self, device: object) -> None:
        """The device's class is another: its methods are those of that one."""
        self.timers.renew(device)
        for watch in list(self._watches.values()):
            if getattr(watch.call, "__self__", None) is device:
                watch.call = getattr(device, called(watch.call), watch.call)

    def watches(self, device: object) -> list[Watch]:
        """Those of a device, active or paused."""
        with self._lock:
            return [w for w in self._watches.values() if w.device is device]

    def _update(self, fd: int) -> None:
        """Tell the kernel what is wanted of a descriptor."""
        mask = 0
        for write, bits in ((False, READABLE), (True, WRITABLE)):
            watch = self._watches.get((fd, write))
            if watch is not None and watch.active:
                mask |= bits
        try:
            if mask:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.unregister(fd)
        except FileNotFoundError:  # not registered
            if mask:
                self._epoll.register(fd, mask)
        except OSError:
            if mask:
                raise  # else it was closed, which cancels as well

    # -- doing ---------------------------------------------------------------

    def poll(self, timeout: float | None = 0.0) -> int:
        """Make the calls that are to be made; how many.

        Waits for one, at most `timeout` seconds; None: for ever.
        """
        self._check_open()
        due_ns = self.timers.next_ns()
        if due_ns:
            left = max(0, due_ns - self._now()) / 1e9
            timeout = left if timeout is None else min(timeout, left)
        self._polling = get_ident()
        try:
            ready = self._epoll.poll(timeout)
            return self._call(ready) + self.timers.run_due()
        finally:
            self._polling = 0

    def _call(self, ready: list[tuple[int, int]]) -> int:
        count = 0
        for fd, mask in ready:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                continue
            for write, bits in ((False, READABLE), (True, WRITABLE)):
                watch = self._watches.get((fd, write))
                if watch is None or not watch.active or not mask & bits:
                    continue
                count += 1
                try:
                    watch.call()
                except BaseException as exc:
                    exc.add_note(f"in the call of {watch!r}")
                    raise
        return count

    @property
    def elsewhere(self) -> bool:
        """Whether another thread makes the calls by itself, and goes on so."""
        return False

    def wake(self) -> None:
        """Whoever waits looks again."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def _armed(self, due_ns: int) -> None:
        # Who is inside poll() looks by itself when it is done.
        if due_ns and self._polling != get_ident():
            self.wake()

    @contextmanager
    def still(self) -> Iterator[None]:
        """No call is made meanwhile, and none is at work."""
        yield

    def settle(self, seconds: float) -> None:
        """Wait until doorbells rung before are answered, or time is over."""

    def resume(self) -> None:
        """The machine is run again: what stood still since an exception."""

    def stop(self) -> None:
        """No calls any more; twice is once."""
        self._close()

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._watches.clear()
            self._epoll.close()
            os.close(self._wake_fd)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("operation on a worker that was stopped")


class ThreadWorker(Worker):
    """A worker on a thread of its own, which starts at once.

    `serve`: the device whose doorbell the thread serves, too. After an
    exception, which `fail` is given, it stands still until resume(): the
    machine stops for it.

    Threads: any.
    """

    def __init__(
        self, name: str, fail: Fail, serve: VirtioMMIO | None = None
    ) -> None:
        super().__init__(name)
        self._fail = fail
        self._serve = serve
        self._stopping = False
        self._failed = False
        self._parking = False  # somebody wants it to stand still
        self._parked, self._go = Event(), Event()
        self._settled: Event | None = None  # somebody waits for a turn's end
        self._thread = Thread(
            target=self._run, name=f"pyvmm {name}", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._close()

    def _turn(self) -> None:
        if self._parking:
            self._parked.set()
            self._go.wait()
            return
        if self._failed:
            select.select([self._wake_fd], [], [])
            os.eventfd_read(self._wake_fd)
            return
        try:
            native = self._serve
            if native is None:
                self.poll(None)
                return
            settled, self._settled = self._settled, None
            # A turn that is waited for has nothing to wait for itself.
            due_ns = PAST if settled is not None else self.timers.next_ns()
            native.serve(self._epoll.fileno(), due_ns)
            self.poll(0)
            if settled is not None:
                settled.set()
        except BaseException as exc:
            if self._stopping:
                return
            exc.add_note(f"on the worker thread of {self.name}")
            self._failed = True
            self._fail(exc)

    def settle(self, seconds: float) -> None:
        """One whole turn from now on: it answers what was rung before."""
        if self._serve is None or not self.elsewhere:
            return
        settled = Event()
        self._settled = settled
        self.wake()
        settled.wait(seconds)

    @contextmanager
    def still(self) -> Iterator[None]:
        """The thread waits until this is over."""
        if self._stopping or self._thread.ident == get_ident():
            yield
            return
        self._parked.clear()
        self._go.clear()
        self._parking = True
        try:
            self.wake()
            self._parked.wait()
            yield
        finally:
            self._parking = False
            self._go.set()

    @property
    def elsewhere(self) -> bool:
        going = not self._failed and not self._stopping
        return going and self._thread.ident != get_ident()

    def resume(self) -> None:
        """Goes on after an exception."""
        if self._failed:
            self._failed = False
            self.wake()

    def stop(self) -> None:
        """Ends the thread, and waits for that unless it is the caller's."""
        self._stopping = True
        self.wake()
        if self._thread.ident != get_ident():
            self._thread.join()

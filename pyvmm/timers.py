# SPDX-License-Identifier: Apache-2.0
"""Timers of devices: what device.after() and device.every() keep.

A machine has one heap of them, ordered by due time. The earliest is handed to
vCPU 0 (`VCPU.due_ns`), which leaves the guest then and calls `run_due` on its
thread: no thread of ours waits for anything.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import isfinite
from threading import RLock
from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Of one device. What a guest writes may start timers: it must not be able to
# fill the host's memory with them.
MOST = 4096
LONGEST = 1e9  # seconds: 30 years
RUBBISH = 64  # cancelled timers that are not worth clearing away


class Timer:
    """A call that is due later: what after() and every() return.

    Threads: any.
    """

    __slots__ = ("_timers", "call", "device", "due_ns", "every_ns", "pending")

    def __init__(
        self,
        timers: Timers,
        device: object,
        call: Callable[[], object],
        due_ns: int,
        every_ns: int,
    ) -> None:
        self._timers = timers
        self.device = device
        self.call = call
        self.due_ns = due_ns  # when, on the clock of its machine
        self.every_ns = every_ns  # 0: once
        self.pending = True  # it is still to be called

    def cancel(self) -> None:
        """It is not called any more; nothing happens when it was or is."""
        self._timers.cancel(self)

    def __repr__(self) -> str:
        name = getattr(self.call, "__name__", repr(self.call))
        state = "pending" if self.pending else "done"
        return f"<Timer {type(self.device).__name__}.{name} {state}>"


class Timers:
    """The timers of one machine.

    `now` gives nanoseconds; `arm` is told when the next one is due, 0: none.

    Threads: any; run_due() one at a time.
    """

    def __init__(
        self, now: Callable[[], int], arm: Callable[[int], None]
    ) -> None:
        self._now = now
        self._arm = arm
        self._heap: list[tuple[int, int, Timer]] = []
        self._made = 0  # a second key: timers due together go in order
        self._cancelled = 0  # still in the heap
        self._count: dict[object, int] = {}  # pending, by the device's id
        self._lock = RLock()  # a signal's handler may come in between
        self._running = False  # inside run_due(), which arms at its end

    def add(
        self,
        device: object,
        seconds: float,
        call: Callable[[], object],
        again: bool,
    ) -> Timer:
        """A new timer of a device; ValueError and TypeError."""
        if not callable(call):
            raise TypeError(f"{call!r} cannot be called")
        if not isfinite(seconds) or not 0 <= seconds <= LONGEST:
            raise ValueError(
                f"{seconds!r} is not seconds from 0 to {LONGEST:g}"
            )
        if again and not seconds:
            raise ValueError("every() needs more than 0 seconds")
        length = round(seconds * 1e9)
        timer = Timer(
            self,
            device,
            call,
            self._now() + length,
            max(1, length) if again else 0,
        )
        with self._lock:
            count = self._count.get(id(device), 0)
            if count >= MOST:
                raise ValueError(
                    f"{type(device).__name__} has {MOST} timers pending: "
                    "cancel() those that are not wanted any more"
                )
            self._count[id(device)] = count + 1
            self._push(timer)
        if not self._running:
            self.arm()
        return timer

    def _push(self, timer: Timer) -> None:
        self._made += 1
        heappush(self._heap, (timer.due_ns, self._made, timer))

    def _end(self, timer: Timer) -> None:
        timer.pending = False
        left = self._count.pop(id(timer.device)) - 1
        if left:
            self._count[id(timer.device)] = left

    def cancel(self, timer: Timer) -> None:
        """It is not pending any more."""
        with self._lock:
            if not timer.pending:
                return
            self._end(timer)
            self._cancelled += 1
            if self._cancelled > RUBBISH + len(self._heap) // 2:
                self._heap = [e for e in self._heap if e[2].pending]
                heapify(self._heap)
                self._cancelled = 0
        if not self._running:
            self.arm()

    def drop(self, device: object) -> None:
        """Cancel all timers of a device, which goes."""
        for _, _, timer in list(self._heap):
            if timer.device is device:
                self.cancel(timer)

    def renew(self, device: object) -> None:
        """The device's class is another: its methods are those of that one."""
        for _, _, timer in list(self._heap):
            call = timer.call
            if isinstance(call, MethodType) and call.__self__ is device:
                timer.call = getattr(device, call.__name__, call)

    def save(self) -> list[tuple[Timer, int]]:
        """The timers that are pending, and how long they still have."""
        now = self._now()
        with self._lock:
            return [
                (timer, max(0, due - now))
                for due, _, timer in sorted(self._heap)
                if timer.pending
            ]

    def load(self, saved: Iterable[tuple[Timer, int]]) -> None:
        """Let just these be pending, each for as long as it had then."""
        now = self._now()
        with self._lock:
            for _, _, timer in self._heap:
                timer.pending = False
            self._heap.clear()
            self._count.clear()
            self._cancelled = 0
            for timer, left in saved:
                timer.pending = True
                timer.due_ns = now + left
                count = self._count.get(id(timer.device), 0)
                self._count[id(timer.device)] = count + 1
                self._push(timer)
        if not self._running:
            self.arm()

    def next_ns(self) -> int:
        """When the next one is due, 0: none."""
        with self._lock:
            while self._heap and not self._heap[0][2].pending:
                heappop(self._heap)
                self._cancelled -= 1
            return self._heap[0][0] if self._heap else 0

    def arm(self) -> None:
        """Say when the next one is due."""
        with self._lock:
            self._arm(self.next_ns())

    def run_due(self) -> int:
        """Call what is due, and say how many; what becomes due later waits.

        An exception leaves it with a note; the others stay due.
        """
        if not self._heap:
            return 0
        now = self._now()
        last = self._made
        count = 0
        self._running = True
        try:
            while (timer := self._take(now, last)) is not None:
                count += 1
                try:
                    timer.call()
                except BaseException as exc:
                    exc.add_note(f"in a timer's call: {timer!r}")
                    raise
        finally:
            self._running = False
            self.arm()
        return count

    def _take(self, now: int, last: int) -> Timer | None:
        """The next timer to call, put back if it goes on."""
        with self._lock:
            while self._heap:
                due, made, timer = self._heap[0]
                if timer.pending and (due > now or made > last):
                    return None
                heappop(self._heap)
                if not timer.pending:
                    self._cancelled -= 1
                    continue
                if timer.every_ns:
                    missed = (now - due) // timer.every_ns
                    timer.due_ns = due + (missed + 1) * timer.every_ns
                    self._push(timer)
                else:
                    self._end(timer)
                return timer
        return None


class Clock:
    """Time that only advance() moves, for tests."""

    def __init__(self) -> None:
        self.now_ns = 1  # 0 is no time: it means never

    def now(self) -> int:
        """What Timers ask for."""
        return self.now_ns

    def advance(self, seconds: float, *every: Timers) -> None:
        """Let time pass, and each timer be called at its time in it."""
        end_ns = self.now_ns + round(seconds * 1e9)
        while due := [
            ns for t in every if (ns := t.next_ns()) and ns <= end_ns
        ]:
            self.now_ns = max(self.now_ns, min(due))
            for timers in every:
                timers.run_due()
        self.now_ns = max(self.now_ns, end_ns)

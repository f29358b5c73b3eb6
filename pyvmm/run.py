# SPDX-License-Identifier: Apache-2.0
"""What happens inside run(): who runs, on which thread, and how it ends.

vCPU 0 runs on the thread that called; each other vCPU has a thread of its own
for the machine's life, parked between runs (a vCPU that changes its thread
costs the kernel a grace period). The first to come out ends the run: the
others are kicked and waited for.
"""

from __future__ import annotations

from threading import Condition, Thread, get_ident
from time import monotonic

from . import _vmm
from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .eventloop import Caller
    from .stop import Stop

    # The vCPU that ended a round, and how.
    End = tuple[int, _vmm.Exit]

# Ends that say nothing once another vCPU has ended the round.
PASSING = (
    _vmm.EXIT_KICK,
    _vmm.EXIT_TIMEOUT,
    _vmm.EXIT_HALT,
    _vmm.EXIT_IDLE,
)

# Seconds that Ctrl-C leaves methods of devices on the threads of other vCPUs.
GRACE = 0.1

# Seconds after which who waits for a run has a look for signals: one that
# another thread has taken does not wake it.
LOOK = 0.1

# Why the host wants a run to return.
PAUSE = "pause"
CLOSE = "close"
MATCH = "match"  # console.expect() saw what it waits for


class Asked:
    """An end that Machine.exit(), reset() or poweroff() asked for.

    `reason` and `status` of the Stop to come; `cpu`: the vCPU on whose thread
    it was asked for, or None.
    """

    __slots__ = ("cpu", "reason", "status")

    def __init__(self, reason: str, status: int | None, cpu: int | None):
        self.reason = reason
        self.status = status
        self.cpu = cpu

    @property
    def message(self) -> str:
        """The reason with its details, as Stop has it."""
        if self.status is None:
            return self.reason
        return f"{self.reason} with status {self.status}"


class Round:
    """One entry of all vCPUs into the guest, until the first comes out."""

    def __init__(self, timeout: float | None) -> None:
        self.deadline = None if timeout is None else monotonic() + timeout
        self.over = False
        self.ends: list[End] = []
        self.failures: list[BaseException] = []

    def left(self) -> float | None:
        """Seconds until the deadline, not below 0."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - monotonic())


def look(deadline: float | None) -> float:
    """Seconds until the next look, or the deadline if that comes first."""
    if deadline is None:
        return LOOK
    return min(LOOK, max(0.0, deadline - monotonic()))


class Runner:
    """Runs the vCPUs of one machine.

    Threads: ask(), interrupt(), fail() and what waits may be called from any;
    one thread at a time runs, and the others get a RuntimeError.
    """

    def __init__(self) -> None:
        self.vcpus: list[_vmm.VCPU] = []
        self.changed = Condition()
        self.owner: int | None = None  # the thread inside run()
        self.wanted: str | None = None
        self.asked: Asked | None = None  # until a Stop has told it
        self.closed = False
        self.outcome: Stop | BaseException | None = None  # of the last run
        self.left: Stop | None = None  # where a signal's exception came
        self.background: Thread | None = None
        self.caller: Caller | None = None  # the thread of run_async()
        self._failures: list[BaseException] = []  # of devices' threads
        self._pending: list[End] = []
        self._queues: list[SimpleQueue[Round | None]] = []
        self._done: SimpleQueue[int] | None = None
        self._workers: list[Thread] = []

    # -- who runs ------------------------------------------------------------

    def begin(self) -> None:
        """The calling thread is the one that runs, until finish()."""
        with self.changed:
            if self.closed:
                raise ValueError("operation on closed Machine")
            if self.inside:
                raise RuntimeError("a device's method cannot run its machine")
            if self.owner is not None:
                raise RuntimeError(
                    "the machine is running already: pause() it first"
                )
            self.owner = get_ident()
            self.wanted = None
            self.outcome = None
            self.left = None

    def finish(self, outcome: Stop | BaseException) -> None:
        """The run is over, and this is how it ended."""
        with self.changed:
            self.outcome = outcome
            self.owner = None
            self.changed.notify_all()

    @property
    def inside(self) -> bool:
        """Whether the calling thread is the one inside run()."""
        return self._cpu() is not None

    def _cpu(self) -> int | None:
        """The vCPU that the calling thread runs, or None."""
        here = get_ident()
        if self.owner == here:
            return 0
        for index, worker in enumerate(self._workers, 1):
            if worker.ident == here:
                return index
        return None

    def ask(self, reason: str, status: int | None = None) -> None:
        """End the run that goes on with a Stop of this reason.

        The first of several counts. One that something else came before is the
        end of the next run. RuntimeError when nobody runs, ValueError when the
        machine is closed.
        """
        with self.changed:
            if self.owner is None and self.closed:
                raise ValueError("operation on closed Machine")
            if self.owner is None:
                raise RuntimeError("the machine does not run")
            if self.asked is None:
                self.asked = Asked(reason, status, self._cpu())
        self.kick()

    def tell(self, exit: _vmm.Exit) -> Asked | None:
        """The end that was asked for, if the Stop of this exit is to tell it.

        It is not when a vCPU brought along more than that it was kicked, and
        not to an expect() that ends its own run.
        """
        if exit.reason not in PASSING or self.wanted == MATCH:
            return None
        asked, self.asked = self.asked, None
        return asked

    @property
    def leaving(self) -> bool:
        """Whether something wants the run to return."""
        return bool(self.wanted or self.asked or self._failures)

    def interrupt(self, what: str) -> None:
        """Make the run that goes on return; `what` says why."""
        with self.changed:
            if self.owner is None:
                return
            if self.wanted != CLOSE:
                self.wanted = what
        self.kick()

    def matched(self, end: bool) -> None:
        """console.expect() has what it waits for: end its run, or tell it."""
        if end:
            self.interrupt(MATCH)
            return
        with self.changed:
            self.changed.notify_all()

    def kick(self) -> None:
        """All vCPUs leave the guest soon."""
        for vcpu in self.vcpus:
            if not vcpu.closed:
                vcpu.kick()

    def fail(self, exc: BaseException) -> None:
        """A device's thread ended with this: the run does too."""
        with self.changed:
            self._failures.append(exc)
        self.kick()

    def wait(self, timeout: float | None) -> bool:
        """Wait until nobody is inside run(); False: time has passed."""
        return self.wait_for(lambda: self.owner is None, timeout)

    def wait_for(
        self, happened: Callable[[], bool], timeout: float | None
    ) -> bool:
        """Wait until something has happened; False: time has passed."""
        deadline = None if timeout is None else monotonic() + timeout
        with self.changed:
            while not self.changed.wait_for(happened, look(deadline)):
                if deadline is not None and monotonic() >= deadline:
                    return False
            return True

    def start(self, run: Callable[[], object]) -> None:
        """Call run() on a thread of its own; return once it has begun."""
        with self.changed:
            if self.closed:
                raise ValueError("operation on closed Machine")
            if self.owner is not None:
                raise RuntimeError("the machine is running already")
            self.outcome = None

        def target() -> None:
            try:
                run()
            except BaseException as exc:
                # Kept by finish(); what came before begin() is not.
                with self.changed:
                    if self.outcome is None:
                        self.outcome = exc
                        self.changed.notify_all()

        thread = Thread(target=target, name="pyvmm run", daemon=True)
        self.background = thread
        thread.start()
        with self.changed:
            self.changed.wait_for(
                lambda: self.owner is not None or self.outcome is not None
            )

    # -- rounds --------------------------------------------------------------

    def round(self, timeout: float | None = None) -> End:
        """Enter the guest until a vCPU comes out: which one, and how.

        Exceptions of devices leave it as they are. What another vCPU brought
        along at the same time is kept for the next round.
        """
        self.raise_failures()
        if self._pending:
            return self._pending.pop(0)
        round_ = Round(timeout)
        if self.leaving:
            self.kick()  # it was asked for before there were vCPUs
        if len(self.vcpus) == 1:
            self._run_one(0, round_)
        else:
            self._run_all(round_)
        return self._settle(round_)

    def raise_failures(self, *failures: BaseException) -> None:
        """Raises these and those of devices' threads; nothing without any."""
        with self.changed:
            raised = [*failures, *self._failures]
            self._failures = []
        if raised:
            raise join(raised)

    def _settle(self, round_: Round) -> End:
        lasting = [e for e in round_.ends if e[1].reason not in PASSING]
        try:
            self.raise_failures(*round_.failures)
        except BaseException:
            self._pending += lasting
            raise
        first = round_.ends[0]
        if first[1].reason not in PASSING:
            self._pending += lasting[1:]
            return first
        self._pending += lasting
        if first[1].reason == _vmm.EXIT_KICK and self._pending:
            return self._pending.pop(0)
        if self.asked is not None and self.asked.cpu is not None:
            # The Stop shows the vCPU whose guest did it, whether it has come
            # out of this round or not been in it yet.
            return self.asked.cpu, first[1]
        return first

    def _run_one(self, index: int, round_: Round) -> None:
        """One vCPU until the round is over, which it may be the one to end."""
        vcpu = self.vcpus[index]
        try:
            while not round_.over:
                if self.leaving:
                    vcpu.kick()  # asked for before there was a vCPU
                # Only the caller's thread looks at the clock.
                left = None if index else round_.left()
                exit = vcpu.run(left)
                if exit.reason != _vmm.EXIT_KICK:
                    round_.ends.append((index, exit))
                    break
                if self.leaving or round_.over or vcpu.closed:
                    round_.ends.append((index, exit))
                    break
                # A kick that was meant for an earlier round.
        except BaseException as exc:
            if index:
                exc.add_note(f"on the thread of vCPU {index}")
            round_.failures.append(exc)
        if not round_.over:
            round_.over = True
            for other in self.vcpus:
                if other is not vcpu and not other.closed:
                    other.kick()

    def _run_all(self, round_: Round) -> None:
        if not self._workers:
            self._hire()
        assert self._done is not None
        for queue in self._queues:
            queue.put(round_)
        late: BaseException | None = None
        try:
            self._run_one(0, round_)
        except BaseException as exc:  # of a signal, between two calls
            late = exc
            round_.over = True
            self.kick()
        hurry = late or any(is_interrupt(exc) for exc in round_.failures)
        late = self._gather(GRACE if hurry else None) or late
        if late is not None:
            round_.failures.append(late)

    def _gather(self, grace: float | None) -> BaseException | None:
        """Wait for the vCPUs on other threads, which are on their way out.

        Devices' methods that are still at work after `grace`, or when Ctrl-C
        or another signal's exception comes meanwhile, are interrupted as well.
        What has been raised here.
        """
        from queue import Empty

        assert self._done is not None
        late: BaseException | None = None
        for _ in self._queues:
            while True:
                try:
                    self._done.get(timeout=grace)
                    break
                except Empty:
                    grace = None
                except BaseException as exc:
                    late = exc
                for vcpu in self.vcpus[1:]:
                    if not vcpu.closed:
                        vcpu.throw(KeyboardInterrupt)
        return late

    def _hire(self) -> None:
        """Make the threads of vCPUs 1 and up."""
        from queue import SimpleQueue

        self._done = SimpleQueue()
        for index in range(1, len(self.vcpus)):
            queue: SimpleQueue[Round | None] = SimpleQueue()
            worker = Thread(
                target=self._work,
                args=(index, queue, self._done),
                name=f"pyvmm vCPU {index}",
                daemon=True,
            )
            self._queues.append(queue)
            self._workers.append(worker)
            worker.start()

    def _work(
        self,
        index: int,
        queue: SimpleQueue[Round | None],
        done: SimpleQueue[int],
    ) -> None:
        while (round_ := queue.get()) is not None:
            self._run_one(index, round_)
            done.put(index)

    def close(self) -> None:
        """The threads end. Nobody is inside run() any more."""
        if self.caller is not None:
            self.caller.close()
            self.caller = None
        for queue in self._queues:
            queue.put(None)
        for worker in self._workers:
            worker.join()
        self._queues.clear()
        self._workers.clear()


def is_interrupt(exc: BaseException) -> bool:
    """Whether it is Ctrl-C or the like, and no device's mistake."""
    return not isinstance(exc, Exception)


def join(failures: list[BaseException]) -> BaseException:
    """The first of several exceptions, with a note of each other one.

    Ctrl-C comes first: who goes on after a device's mistake must not miss it.
    """
    first = next(filter(is_interrupt, failures), failures[0])
    if len(failures) > 1:
        from traceback import format_exception

        for other in failures:
            if other is first:
                continue
            text = "".join(format_exception(other))
            first.add_note(f"at the same time:\n{text}")
    return first


def closed_error() -> Error:
    """What a run() raises that another thread ended with close()."""
    return Error("the machine was closed while it ran")

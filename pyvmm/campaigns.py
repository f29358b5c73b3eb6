# SPDX-License-Identifier: Apache-2.0
"""Campaigns: many inputs from one snapshot, over any executor.

Inputs go out in batches, a future each. A batch counts when its future has a
result, and only then: so none is lost, and none is there twice, whatever
happens to workers meanwhile. When one ends, its batch is run again alone, and
halved until the input is found that ends workers; that one is set aside.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, CancelledError
from importlib import import_module
from itertools import chain, islice
from queue import SimpleQueue
from uuid import uuid4

from . import campaign_worker as worker
from .campaign_log import Log, sum_of
from .campaign_log import read as read_lines
from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Generator,
        Iterable,
        Iterator,
        Sequence,
    )
    from concurrent.futures import Executor, Future
    from os import PathLike
    from typing import Any

    from .campaign_worker import Found, Outcome
    from .machine import Machine
    from .symbols import Address
    from .until import Until

    Factory = Callable[[], Executor]
    Progress = Callable[[int, int | None], object]

REPORTS = ("all", "new", "crashed")
LOST = "lost"  # the reason of an input that was set aside
BATCH = 1024
AHEAD = 4  # batches that wait, for each worker
DEATHS = 40  # of workers in a row, with nothing done between: no use
# What executors raise for the end of the worker that had the task, by name:
# they are not imported for it.
DEATH_NAMES = ("KilledWorker", "WorkerCrashedError", "TerminatedWorkerError")


class Result:
    """What became of one input.

    `index`: its number. `data`: the input itself, None when it comes from a
    log. `reason`, `status`, `crashed`: as of a `Stop`; beside its reasons there
    are "lost", the workers that ran it have ended, and "error", a device raised
    an exception. `message`, `where`: the reason with its details and the place
    as text, when it crashed: of the first that did so there in that worker.

    Threads: any; it does not change.
    """

    __slots__ = ("_outcome", "data", "index")

    def __init__(
        self, index: int, outcome: Outcome, data: bytes | None
    ) -> None:
        self.index = index
        self.data = data
        self._outcome = outcome

    @property
    def reason(self) -> str:
        """Why its run ended."""
        return self._outcome[0]

    @property
    def status(self) -> int | None:
        """What the guest wrote to the exit port, for "exit"."""
        return self._outcome[1]

    @property
    def crashed(self) -> bool:
        """Whether it is an end that nobody means."""
        return self._outcome[2]

    @property
    def message(self) -> str:
        """The reason with its details, in a line."""
        return self._outcome[3]

    @property
    def where(self) -> str | None:
        """Where it crashed, as text."""
        return self._outcome[4]

    @property
    def new(self) -> int:
        """How many bytes of the coverage map its worker saw changed first."""
        return self._outcome[5]

    def __repr__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return f"<Result {self.index}: {self.message}{where}>"


class Batch:
    """Inputs from `start` on, on their way.

    `deaths`: how often a worker has ended with it while nothing else ran.
    """

    __slots__ = ("deaths", "inputs", "start")

    def __init__(self, start: int, inputs: Sequence[bytes], deaths: int = 0):
        self.start = start
        self.inputs = inputs
        self.deaths = deaths

    @property
    def end(self) -> int:
        """The number behind its last input."""
        return self.start + len(self.inputs)

    def halves(self) -> list[Batch]:
        """Two of half as many inputs."""
        middle = len(self.inputs) // 2
        return [
            Batch(self.start, self.inputs[:middle]),
            Batch(self.start + middle, self.inputs[middle:]),
        ]

    def __repr__(self) -> str:
        return f"inputs {self.start} to {self.end - 1}"


def campaign(
    snapshot: str | PathLike[str],
    inputs: Iterable[bytes],
    *,
    into: Address | None = None,
    length: Address | tuple[Address, int] | None = None,
    max_size: int | None = None,
    until: Until = None,
    timeout: float | None = 1.0,
    coverage: str | tuple[Address, int] | None = None,
    setup: Callable[[Machine], object] | None = None,
    report: str = "all",
    ordered: bool = False,
    executor: Executor | Factory | None = None,
    workers: int | None = None,
    batch: int = BATCH,
    tries: int = 3,
    log: str | PathLike[str] | None = None,
    progress: bool | Progress = False,
    verify: bool = True,
) -> Campaign:
    """Run each input from a snapshot file on, on many workers at once.

        if __name__ == "__main__":
            for result in pyvmm.campaign(
                "parse.snap", inputs, into="*rdi", length="rsi",
                max_size=4096, until="return", report="crashed",
                log="parse.log",
            ):
                print(result.index, result.message, result.where)

    `snapshot`: a file of Snapshot.save(), which each worker loads, once.
    `inputs`: any iterable of bytes, read as they are wanted.
    `into`, `length`, `max_size`, `until`, `timeout`, `coverage`: as of
    Machine.replay(), which does the work.
    `setup(machine)`: attaches the devices, a function of a module.
    `report`: which results are given: "all"; "new", what crashed or was new to
    the worker that ran it; "crashed". The others are counted as "unreported".
    `ordered`: by index, not as they come.
    `executor`: any `concurrent.futures.Executor`, whose workers can be
    replaced; or a function that makes one, and again when it has broken.
    Without it there are `workers` processes, one for each CPU.
    `batch`: how many inputs go to a worker at once. `tries`: how often a worker
    may end with an input alone before that is set aside ("lost").
    `log`: a file of what is done; a campaign with the log of one that was ended
    goes on where it was. `progress`: a bar; or called with how many are done,
    and of how many, if that is known.
    `verify`: each host reads all of the file once before it is used.

    Returns a Campaign, whose iterator does the work. Raises ValueError and
    TypeError for arguments that make no sense, Error and OSError for a file
    that is no snapshot, or a log of something else. What workers raise before
    they run anything leaves the iterator.
    """
    if report not in REPORTS:
        raise ValueError(f"report {report!r} is none of {', '.join(REPORTS)}")
    for name, number in (("batch", batch), ("tries", tries)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} {number!r} is not 1 or more")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ValueError(f"workers {workers!r} is not 1 or more")
    from .running import check_timeout
    from .snapfile import checksum_of

    check_timeout(timeout)
    path = os.path.abspath(os.fsdecode(snapshot))
    options = {
        "into": into,
        "length": length,
        "max_size": max_size,
        "until": until,
        "timeout": timeout,
        "coverage": coverage,
        "report": report,
    }
    checksum = checksum_of(path)
    job = worker.Job(
        uuid4().hex, path, checksum, setup, options, verify,
        verified(path) if verify else None,
    )  # fmt: skip
    # Which results are told may change when a campaign goes on.
    about = {"snapshot": checksum} | {
        name: str(value) for name, value in options.items() if name != "report"
    }
    book = None if log is None else Log(os.fsdecode(log), about)
    return Campaign(
        job, inputs, Pool(executor, workers), book, show(progress, inputs),
        report, ordered, batch, tries,
    )  # fmt: skip


def verified(path: str) -> tuple[object, ...] | None:
    """Look at a file's pages, for all workers on this host."""
    from .host import why_not
    from .snapshot import Snapshot

    if why_not() is not None:
        return None  # the workers are elsewhere
    seen = worker.seen_by(path)
    Snapshot.load(path).verify()
    return seen


def read_log(path: str | PathLike[str]) -> Iterator[Result]:
    """The results in a campaign's log, by index; Error for what is none."""
    for done in read_lines(os.fsdecode(path)):
        outcomes, codes = done.found
        for index, code in enumerate(array("I", codes), done.start):
            yield Result(index, outcomes[code], None)


class Pool:
    """The executor, and a new one when it has broken."""

    def __init__(
        self, executor: Executor | Factory | None, workers: int | None
    ) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._make: Factory | None = None
        self._executor: Any = None
        if executor is None:
            self._make = self._processes
        elif hasattr(executor, "submit"):
            self._executor = executor
        elif callable(executor):
            self._make = executor
        else:
            raise TypeError(
                "executor is one of concurrent.futures or a function that "
                f"makes one, not {type(executor).__name__}"
            )

    def _processes(self) -> Executor:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        # No fork of this process: it may have machines, and so threads.
        return ProcessPoolExecutor(
            self.workers, get_context("forkserver"), worker.leave_with_parent
        )

    def submit(self, call: Callable[..., Any], *args: object) -> Future[Any]:
        """Hand out a task."""
        if self._executor is None:
            assert self._make is not None
            self._executor = self._make()
        future: Future[Any] = self._executor.submit(call, *args)
        return future

    def replace(self, cause: BaseException) -> None:
        """It has broken: the next task goes to a new one. Error if none can."""
        if self._make is None:
            raise Error(
                "the executor has broken, since a worker ended, and cannot be "
                "made anew: pass a function that makes one, or workers=; what "
                "is done is in the log, if there is one"
            ) from cause
        self.close()

    def close(self) -> None:
        """One of ours goes; what it runs is not waited for."""
        if self._make is not None and self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


class Campaign:
    """A campaign that goes on while it is iterated: Results, as they come.

    `done`: how many inputs have an outcome, those of the log included. `total`:
    how many there are, or None. `counts`: how many ended for each reason.
    `aside`: numbers of inputs with which workers ended. `deaths`: how many
    workers have ended. close() ends it early; a context manager, which does.

    Threads: one.
    """

    def __init__(
        self,
        job: worker.Job,
        inputs: Iterable[bytes],
        pool: Pool,
        log: Log | None,
        progress: Progress | None,
        report: str,
        ordered: bool,
        batch: int,
        tries: int,
    ) -> None:
        self.done = 0
        self.total = count_of(inputs)
        self.counts: dict[str, int] = {}
        self.aside: list[int] = []
        self.deaths = 0
        self._job = job
        self._pool = pool
        self._log = log
        self._progress = progress
        self._report = report
        self._ordered = ordered
        self._size = batch
        self._tries = tries
        self._row = 0  # deaths in a row
        self._attempt = 0
        self._flying: dict[Future[Found], Batch] = {}  # oldest first
        self._finished: SimpleQueue[Future[Any]] = SimpleQueue()
        self._suspects: deque[Batch] = deque()  # run alone
        self._again: deque[Batch] = deque()
        # Of `ordered`: what waits for others, what the log has, what is next.
        self._held: dict[int, tuple[int, list[Result]]] = {}
        self._logged: dict[int, int] = {}
        self._next = 0
        for done in log.done if log is not None else ():
            self._count(done.start, done.found)
            self._logged[done.start] = done.end
        self._fresh = self._batches(iter(inputs))
        self._lists = self._run()
        self._results: Iterator[Result] = chain.from_iterable(self._lists)

    def __iter__(self) -> Iterator[Result]:
        return self._results

    def __next__(self) -> Result:
        return next(self._results)

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; batches that workers are at are done in vain."""
        self._lists.close()
        self._results = iter(())
        self._end()

    def _end(self) -> None:
        for future in self._flying:
            future.cancel()
        self._flying.clear()
        self._pool.close()
        if self._log is not None:
            self._log.close()

    # -- inputs --------------------------------------------------------------

    def _batches(self, inputs: Iterator[bytes]) -> Iterator[Batch]:
        """What is to be done: all inputs but those in the log."""
        ready = iter(self._log.done if self._log is not None else ())
        skip = next(ready, None)
        index = 0
        while True:
            end = skip.start if skip is not None else None
            while end is None or index < end:
                room = self._size if end is None else end - index
                batch = self._take(inputs, index, min(self._size, room))
                if not batch:
                    break
                yield Batch(index, batch)
                index += len(batch)
            if skip is None:
                return
            passed = self._take(inputs, index, skip.end - index)
            if index != skip.start or sum_of(passed) != skip.sum:
                raise Error(
                    f"{self._log.path if self._log else ''} is the log of "
                    f"other inputs: {skip.start} to {skip.end - 1} differ"
                )
            index = skip.end
            skip = next(ready, None)

    def _take(
        self, inputs: Iterator[bytes], index: int, count: int
    ) -> list[bytes]:
        found = list(islice(inputs, count))
        if not all(type(data) is bytes for data in found):
            found = [bytes_of(data, at) for at, data in enumerate(found, index)]
        most = self._job.options["max_size"]
        if most is not None and found and max(map(len, found)) > most:
            at = next(at for at, data in enumerate(found) if len(data) > most)
            raise ValueError(
                f"input {index + at} has {len(found[at])} bytes, more than "
                f"max_size {most}"
            )
        return found

    # -- running -------------------------------------------------------------

    def _run(self) -> Generator[list[Result], None, None]:
        try:
            if self._progress is not None:
                self._progress(self.done, self.total)
            self._prepare()
            while True:
                self._fill()
                if not self._flying:
                    if self._suspects or self._again:
                        continue  # the executor was replaced
                    break
                yield self._collect(self._finished.get())
            if self.total is None:
                self.total = self.done
        finally:
            self._end()

    def _prepare(self) -> None:
        """One worker makes a machine: what is wrong is wrong for all."""
        try:
            self._pool.submit(worker.prepare, self._job).result()
        except Exception as exc:
            if not is_death(exc):
                raise
            raise Error(
                "the workers end before they run anything (a script that "
                'starts a campaign wants `if __name__ == "__main__":` around '
                f"it): {exc}"
            ) from exc

    def _fill(self) -> None:
        """Hand out batches; one that is suspected is alone with a worker."""
        if self._suspects:
            if not self._flying:
                self._submit(self._suspects.popleft())
            return
        limit = AHEAD * self._pool.workers
        while len(self._flying) + len(self._held) < limit or not self._flying:
            batch = self._again.popleft() if self._again else None
            if batch is None:
                batch = next(self._fresh, None)
            if batch is None:
                return
            if not self._submit(batch):
                return

    def _submit(self, batch: Batch) -> bool:
        """Whether it is on its way; otherwise the executor has broken."""
        self._attempt += 1
        try:
            future = self._pool.submit(
                worker.run, self._job, batch.start, batch.inputs, self._attempt
            )
        except BrokenExecutor as exc:
            # What it was at tells who is suspected, if there was anything.
            self._again.appendleft(batch)
            if not self._flying:
                self._broken(exc, [])
            return False
        self._flying[future] = batch
        future.add_done_callback(self._finished.put)
        return True

    def _collect(self, future: Future[Found]) -> list[Result]:
        """What a future that has ended brings."""
        batch = self._flying.pop(future, None)
        if batch is None:
            return []  # it was taken together with others
        try:
            found = future.result()
        except BaseException as exc:
            return self._failed(batch, exc)
        return self._finish(batch, found)

    def _finish(self, batch: Batch, found: Found) -> list[Result]:
        """A batch is done: it is logged, then told."""
        self._row = 0
        if self._log is not None:
            self._log.add(batch.start, batch.inputs, found)
        results = self._count(batch.start, found, batch.inputs)
        if self._progress is not None:
            self._progress(self.done, self.total)
        if not self._ordered:
            return results
        self._held[batch.start] = batch.end, results
        ready: list[Result] = []
        while True:
            while self._next in self._logged:
                self._next = self._logged.pop(self._next)
            if self._next not in self._held:
                return ready
            self._next, results = self._held.pop(self._next)
            ready += results

    def _count(
        self, start: int, found: Found, inputs: Sequence[bytes] = ()
    ) -> list[Result]:
        """Add up what was found; the results that are asked for."""
        outcomes, codes = found
        row = array("I", codes)
        self.done += len(row)
        wanted = []
        tally = Counter(row)
        for code, outcome in enumerate(outcomes):
            if code in tally:
                reason = outcome[0]
                self.counts[reason] = self.counts.get(reason, 0) + tally[code]
            if outcome[0] == LOST:
                self.aside.append(start)
            wanted.append(self._report == "all" or outcome[2] or outcome[5])
        if not inputs or not any(wanted):
            return []
        return [
            Result(index, outcomes[code], data)
            for index, (code, data) in enumerate(
                zip(row, inputs, strict=True), start
            )
            if wanted[code]
        ]

    # -- when workers end ----------------------------------------------------

    def _failed(self, batch: Batch, exc: BaseException) -> list[Result]:
        """A future has no result, since its worker has ended, or worse."""
        if isinstance(exc, BrokenExecutor):
            return self._lost(exc, batch, alone=not self._flying)
        if isinstance(exc, CancelledError):
            self._died(exc)  # by a scheduler that has lost it
            self._again.append(batch)
            return []
        if is_death(exc):
            # Of this batch alone: the executor has tried it elsewhere, too.
            self._died(exc)
            return self._suspect(batch)
        exc.add_note(f"in a worker of a campaign, at {batch}")
        raise exc

    def _lost(
        self, exc: BaseException, batch: Batch, alone: bool
    ) -> list[Result]:
        """All that was on its way is lost, but for what had ended before."""
        results: list[Result] = []
        others = [batch]
        for future, other in list(self._flying.items()):
            try:
                found = future.result()
            except BrokenExecutor:
                others.append(other)
            else:
                results += self._finish(other, found)
        self._flying.clear()
        self._finished = SimpleQueue()
        others.sort(key=lambda one: one.start)
        self._broken(exc, [] if alone else others)
        if alone:
            results += self._suspect(batch)
        return results

    def _broken(self, exc: BaseException, lost: list[Batch]) -> None:
        """The executor is replaced; who was at work is suspected.

        Tasks are begun in their order, so that is who came first.
        """
        self._died(exc)
        self._pool.replace(exc)
        self._suspects.extend(lost[: self._pool.workers + 1])
        self._again.extend(lost[self._pool.workers + 1 :])

    def _died(self, exc: BaseException) -> None:
        self.deaths += 1
        self._row += 1
        if self._row > DEATHS:
            raise Error(
                f"workers have ended {self._row} times in a row, and nothing "
                f"is done between: {exc}"
            ) from exc

    def _suspect(self, batch: Batch) -> list[Result]:
        """A worker has ended with this batch alone: halve it."""
        if len(batch.inputs) > 1:
            self._suspects.extendleft(reversed(batch.halves()))
            return []
        batch.deaths += 1
        if batch.deaths < self._tries:
            self._suspects.appendleft(batch)
            return []
        times = "once" if self._tries == 1 else f"{self._tries} times"
        text = f"the worker that ran it has ended, {times}"
        outcome: Outcome = (LOST, None, True, text, None, 0)
        return self._finish(batch, ([outcome], array("I", [0]).tobytes()))


def is_death(exc: BaseException) -> bool:
    """Whether that is how an executor tells that a worker has ended."""
    return isinstance(exc, BrokenExecutor) or type(exc).__name__ in DEATH_NAMES


def count_of(inputs: Iterable[bytes]) -> int | None:
    """How many there are, if they can be counted."""
    try:
        return len(inputs)  # type: ignore[arg-type]
    except TypeError:
        return None


def bytes_of(data: object, index: int) -> bytes:
    """An input as bytes; TypeError."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"input {index} is a {type(data).__name__}, not bytes")


# -- progress ----------------------------------------------------------------


def show(progress: bool | Progress, inputs: Iterable[bytes]) -> Progress | None:
    """What is called with how many are done: tqdm's bar, or a line of text."""
    if callable(progress):
        return progress
    if not progress:
        return None
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError:
        return Line()
    bar: Any = tqdm(total=count_of(inputs), unit=" inputs")

    def update(done: int, total: int | None) -> None:
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return update


class Line:
    """A line on stderr that is written again and again."""

    def __init__(self) -> None:
        from time import monotonic

        self._now = monotonic
        self._last = self._start = monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Say how many are done, a few times a second."""
        import sys

        now = self._now()
        if now - self._last < 0.2 and done != total:
            return
        self._last = now
        rate = done / (now - self._start) if now > self._start else 0
        of = f" of {total}" if total is not None else ""
        end = "\n" if done == total else "\r"
        sys.stderr.write(f"{done}{of} inputs, {rate:.0f} a second{end}")
        sys.stderr.flush()

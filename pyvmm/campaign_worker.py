# SPDX-License-Identifier: Apache-2.0
"""What a worker of a campaign does: batches of inputs, one after the other.

The first batch of a job loads its snapshot and makes a machine and a replay of
it, which each thread of the worker keeps for the next ones.
"""

from __future__ import annotations

import os
from array import array
from threading import Lock, local

from .errors import Error
from .snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .machine import Machine
    from .replay import Case

    # reason, status, whether it crashed, message, where, what is new
    Outcome = tuple[str, int | None, bool, str, str | None, int]
    # Outcomes, each once, and which of them each input had, as array("I").
    Found = tuple[list[Outcome], bytes]

ERROR = "error"  # the reason of an input with which a device raised
QUIET: Outcome = ("unreported", None, False, "unreported", None, 0)


class Job:
    """What all batches of a campaign have in common; it can be pickled.

    `options`: those of Machine.replay(). `checksum`: of the snapshot file.
    `verified`: the host and the file whose pages the campaign has looked at,
    see seen_by(); None: nobody has.
    """

    __slots__ = (
        "checksum", "key", "options", "path", "setup", "verified", "verify",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        path: str,
        checksum: int,
        setup: Callable[[Machine], object] | None,
        options: dict[str, Any],
        verify: bool,
        verified: tuple[object, ...] | None,
    ) -> None:
        self.key = key
        self.path = path
        self.checksum = checksum
        self.setup = setup
        self.options = options
        self.verify = verify
        self.verified = verified


def seen_by(path: str) -> tuple[object, ...]:
    """This host, since it was booted, and the file as it is now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    about = os.stat(path)
    return boot, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


_here = local()
_lock = Lock()
_loaded: tuple[str, int, Snapshot] | None = None  # key, process, snapshot


def snapshot_of(job: Job) -> Snapshot:
    """The job's snapshot, which is loaded and looked at once in a process."""
    global _loaded
    with _lock:
        if _loaded is not None and _loaded[:2] == (job.key, os.getpid()):
            return _loaded[2]
        snap = Snapshot.load(job.path)
        assert snap._loaded is not None
        if snap._loaded.checksum != job.checksum:
            raise Error(f"{job.path} is another file here than the campaign's")
        if job.verify and job.verified != seen_by(job.path):
            snap.verify()
        _loaded = job.key, os.getpid(), snap
        return snap


def session_of(job: Job) -> Session:
    """The calling thread's session of the job; that of another one ends."""
    before: tuple[int, Session] | None = getattr(_here, "session", None)
    if before is not None and before[0] == os.getpid():
        session = before[1]
        if session.key == job.key and not session.machine.closed:
            return session
        _here.session = None
        session.close()
    session = Session(job)
    _here.session = os.getpid(), session
    return session


def leave_with_parent() -> None:
    """For a process of a pool: it ends with the one that has made it.

    Otherwise it would wait for tasks for ever when that is killed.
    """
    from multiprocessing import parent_process
    from threading import Thread

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, name="pyvmm campaign", daemon=True).start()


def prepare(job: Job) -> int:
    """Make all that a batch needs, to see whether it can be made: the pid."""
    session_of(job)
    return os.getpid()


def run(job: Job, start: int, inputs: Sequence[bytes], attempt: int) -> Found:
    """Run a batch; `start` and `attempt` tell it from every other one."""
    return session_of(job).run(inputs)


class Session:
    """The machine of one thread of a worker, for one job.

    Threads: one.
    """

    def __init__(self, job: Job) -> None:
        self.key = job.key
        # Of crashes, by reason and address: message and place of the first.
        self._told: dict[tuple[str, int | None], tuple[str, str]] = {}
        snap = snapshot_of(job)
        self.machine = snap.machine(job.setup)
        try:
            self.replay = self.machine.replay(snap, (), **job.options)
        except BaseException:
            self.machine.close()
            raise

    def close(self) -> None:
        """The machine goes."""
        self.replay.close()
        self.machine.close()

    def run(self, inputs: Sequence[bytes]) -> Found:
        """What became of each input."""
        try:
            return self._found(inputs, self.replay._run(iter(inputs)))
        except Exception:
            # A device has raised: with which input is found out one by one.
            return self._found(inputs, self._singly(inputs))

    def _singly(self, inputs: Sequence[bytes]) -> Any:
        for index, data in enumerate(inputs):
            try:
                for case in self.replay._run(iter((data,))):
                    case.index = index
                    yield case
            except Exception as exc:
                yield index, exc

    def _found(self, inputs: Sequence[bytes], cases: Any) -> Found:
        codes: dict[Outcome, int] = {QUIET: 0}
        found = array("I", bytes(4 * len(inputs)))
        for case in cases:
            if type(case) is tuple:
                index, exc = case
                text = f"{type(exc).__name__}: {exc}"
                outcome: Outcome = (ERROR, None, True, text, None, 0)
            else:
                index, outcome = case.index, self._outcome(case)
            found[index] = codes.setdefault(outcome, len(codes))
        if self.machine.closed:
            raise Error("a device has closed the machine of a campaign")
        return list(codes), found.tobytes()

    def _outcome(self, case: Case) -> Outcome:
        reason = case.reason
        if not case.crashed:
            return reason, case.status, False, reason, None, case.new
        place = reason, case.address
        told = self._told.get(place)
        if told is None:
            told = reason, str(self.machine.symbols.where(case.address or 0))
            if reason != "timeout":  # which would be waited for again
                stop = case.stop
                told = stop.message, str(stop.where)
            self._told[place] = told
        return reason, case.status, True, *told, case.new

# SPDX-License-Identifier: Apache-2.0
"""What a worker of a campaign does: batches of inputs, one after the other.

The first batch of a job loads its snapshot and makes a machine, which each
thread of the worker keeps for the next ones.
"""

from __future__ import annotations

import os
from array import array
from threading import Lock, local

from . import x86
from .debug import mode_of
from .errors import Error
from .snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .cpu import Cpu
    from .machine import Machine
    from .symbols import Address

    # reason, status, whether it crashed, message, where
    Outcome = tuple[str, int | None, bool, str, str | None]
    # Outcomes, each once, and which of them each input had, as array("I").
    Found = tuple[list[Outcome], bytes]
    Until = Address | list[Address] | None

ERROR = "error"  # the reason of an input with which a device raised


class Job:
    """What all batches of a campaign have in common; it can be pickled.

    `checksum`: of the snapshot file. `verified`: the host and the file whose
    pages the campaign has looked at, see seen_by(); None: nobody has.
    """

    __slots__ = (
        "checksum", "into", "key", "length", "max_size", "path", "setup",
        "timeout", "until", "verified", "verify",
    )  # fmt: skip

    key: str
    path: str
    checksum: int
    verify: bool
    verified: tuple[object, ...] | None
    setup: Callable[[Machine], object] | None
    into: Address
    length: Address | None
    max_size: int | None
    until: Until
    timeout: float | None


def seen_by(path: str) -> tuple[object, ...]:
    """This host, since it was booted, and the file as it is now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    about = os.stat(path)
    return boot, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


class Session:
    """The machine of one thread of a worker, for one job.

    Threads: one.
    """

    def __init__(self, job: Job) -> None:
        self.key = job.key
        self.snap = snapshot_of(job)
        self.machine = self.snap.machine(job.setup)

    def close(self) -> None:
        """The machine goes."""
        self.machine.close()


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
    session: Session | None = getattr(_here, "session", None)
    if session is not None and session.key == job.key:
        return session
    if session is not None:
        _here.session = None
        session.close()
    _here.session = session = Session(job)
    return session


def prepare(job: Job, attempt: int = 0) -> int:
    """Make all that a batch needs, to see whether it can be made: the pid."""
    session = session_of(job)
    run_batch(session.machine, session.snap, [], job)
    return os.getpid()


def run(job: Job, start: int, inputs: Sequence[bytes], attempt: int) -> Found:
    """Run a batch; `start` and `attempt` tell it from every other one."""
    session = session_of(job)
    return run_batch(session.machine, session.snap, inputs, job)


def run_batch(
    machine: Machine, snap: Snapshot, inputs: Sequence[bytes], job: Job
) -> Found:
    """Each input from the snapshot on, and what became of it."""
    codes: dict[Outcome, int] = {}
    found = array("I")
    machine.restore(snap)
    cpu = machine.cpu
    buffer = place(cpu, job.into)
    length = job.length
    count = (
        None if length is None or is_register(length) else place(cpu, length)
    )
    until = return_address(cpu) if job.until == "return" else job.until
    for data in inputs:
        machine.restore(snap)
        try:
            cpu.mem.write(buffer, data)
            if count is not None:
                cpu.mem.write_u32(count, len(data))
            elif length is not None:
                setattr(cpu, str(length), len(data))
            stop = machine.run(until, job.timeout, check=False)
            outcome: Outcome = (
                stop.reason,
                stop.status,
                stop.crashed,
                stop.message,
                str(stop.where) if stop.crashed else None,
            )
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}"
            outcome = (ERROR, None, True, text, None)
        found.append(codes.setdefault(outcome, len(codes)))
    return list(codes), found.tobytes()


def is_register(place: Address) -> bool:
    """Whether that is the name of one."""
    return place in x86.REGS or place in x86.PARTS


def place(cpu: Cpu, where: Address) -> int:
    """The virtual address: "*rdi" is what is in a register, or at a symbol."""
    if not isinstance(where, str) or not where.startswith("*"):
        return cpu.machine.symbols.address(where)
    name = where[1:].strip()
    if is_register(name):
        return int(getattr(cpu, name))
    return pointer(cpu, cpu.machine.symbols.address(name))


def pointer(cpu: Cpu, address: int) -> int:
    """A pointer in memory, as wide as the mode has it."""
    wide = mode_of(cpu.registers) in ("long", "user")
    return cpu.mem.read_u64(address) if wide else cpu.mem.read_u32(address)


def return_address(cpu: Cpu) -> int:
    """Where the function at whose start the vCPU stands returns to."""
    return pointer(cpu, int(cpu.rsp))

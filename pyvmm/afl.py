# SPDX-License-Identifier: Apache-2.0
"""The reset loop as a target of AFL++: its fork server, its map, its inputs.

    import pyvmm
    import pyvmm.afl

    m = pyvmm.Machine(memory="16M")
    m.load(c=..., coverage=True)
    m.run(until="parse", timeout=10)
    pyvmm.afl.serve(m, m.snapshot(), into="*rdi", length="rsi",
                    max_size=4096, until="return")

    $ AFL_SKIP_BIN_CHECK=1 afl-fuzz -i seeds -o out -- python target.py

afl-fuzz starts the target once and talks to it through two pipes, four bytes at
a time. It asks for a run, and says whether it has killed the one before; we say
which process to kill should it take too long; and at the end of the run, how
that process ended, as wait() would. A turn of ours is no process, so what it is
told is a stand-in that waits for the end of a pipe and does nothing else: its
death is how we hear that a turn has taken too long.

Source: AFL++ 4.04c, afl-forkserver.c, for behaviour; docs/env_variables.md.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from .machine import Machine
    from .replay import Case, Replay
    from .snapshot import Snapshot
    from .stop import Stop
    from .symbols import Address
    from .until import Until

CONTROL, STATUS = 198, 199  # file descriptors
MAP_ID, INPUT_ID = "__AFL_SHM_ID", "__AFL_SHM_FUZZ_ID"  # System V segments
WORD = struct.Struct("<I")

# The hello that all versions of AFL++ take: flags, and the size of the map.
ENABLED = 0x8000_0001
HAS_MAP_SIZE = 0x4000_0000
SHARED_INPUT = 0x0100_0000
MAP_MAX = 1 << 23

# The hello since 4.20c: "AFL" and a version, which is answered inverted.
VERSIONED = 0x4146_4C01
NEW_MAP_SIZE, NEW_SHARED_INPUT = 1, 2

# After the first turns, and from then on before every so-manieth, the whole
# state is looked at to see whether turns leave anything that is not put back.
LOOK_FIRST, LOOK_EVERY = 64, 256


class Gone(Exception):
    """The fuzzer has closed its end."""


class Killed(BaseException):
    """The fuzzer has killed the stand-in of the turn that runs."""


def serve(
    machine: Machine,
    snap: Snapshot,
    *,
    into: Address,
    length: Address | tuple[Address, int] | None = None,
    max_size: int,
    until: Until = None,
    timeout: float | None = None,
    coverage: str | tuple[Address, int] = "edges",
    whole: bool = False,
    versioned: bool = False,
    path: str | None = None,
) -> Stop | None:
    """Serve afl-fuzz until it has had enough: a turn for each of its inputs.

    The arguments are those of replay(), but coverage="blocks", which counts
    nothing. An end that nobody means is SIGABRT to
    AFL++, an exit of the guest's has its status (AFL_CRASH_EXITCODE makes a
    crash of one). A turn that takes longer than AFL's -t is ended when AFL
    kills it; `timeout` is for runs without AFL. Inputs come by shared memory
    when AFL++ offers it, else from the file `path`, the first word of the
    command line, or standard input; what is longer than `max_size` is cut.
    `versioned`: the handshake that came with 4.20c, which some clients insist
    on; all versions of AFL++ take the other one.

    When it is not a fork server that is wanted, one turn is done with the
    input named, its Stop is printed and returned. For afl-showmap and its like
    the map is filled, too, and a crash is one of this process.

    Returns None when AFL++ has gone. Main thread only, since it listens for
    SIGCHLD. Raises ValueError, OSError, and what run() raises.
    """
    if coverage == "blocks":
        raise ValueError(
            "AFL++ wants counters: coverage is 'edges' or (address, size)"
        )
    if path is None and len(sys.argv) > 1:
        path = sys.argv[1]
    inputs = Inputs(path, max_size)
    shared = Segment.named(MAP_ID)
    with machine.replay(
        snap, (), into=into, length=length, max_size=max_size, until=until,
        timeout=None if is_wanted() else timeout, coverage=coverage,
        report="all", whole=whole,
    ) as replay:  # fmt: skip
        if not is_wanted():
            return once(replay, inputs, shared)
        size = len(replay.unseen)
        if shared is None:
            raise ValueError(f"there is a fork server's pipe, but no {MAP_ID}")
        if size > MAP_MAX:
            raise ValueError(f"AFL++ takes maps up to {MAP_MAX}, not {size}")
        with suppress(Gone), StandIn() as stand_in:
            Server(replay, inputs, shared, stand_in).run(versioned)
    return None


def is_wanted() -> bool:
    """Whether we were started as a fork server: both pipes are there."""
    try:
        return all(
            stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (CONTROL, STATUS)
        )
    except OSError:
        return False


def once(replay: Replay, inputs: Inputs, shared: Segment | None) -> Stop | None:
    """A run by hand, or by a tool of AFL's that starts each anew."""
    case = replay.one(inputs.read())
    if case is None:
        return None
    if shared is not None:
        shared.fill(replay)
        if case.crashed:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGABRT)
    print(case.stop)
    return case.stop


# -- what is shared -----------------------------------------------------------


class Segment:
    """A System V segment of AFL's, attached.

    Threads: one.
    """

    def __init__(self, number: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        at = libc.shmat(number, None, 0)
        # struct shmid_ds: a struct ipc_perm of 48 bytes, then the size.
        info = ctypes.create_string_buffer(128)
        if at == ctypes.c_void_p(-1).value or libc.shmctl(number, 2, info):
            error = ctypes.get_errno()
            raise OSError(error, f"shmat({number}): {os.strerror(error)}")
        size = int.from_bytes(info.raw[48:56], "little")
        array = (ctypes.c_ubyte * size).from_address(at)
        self.bytes = memoryview(array).cast("B")

    @classmethod
    def named(cls, name: str) -> Segment | None:
        """The one whose number a variable of the environment holds."""
        text = os.environ.get(name)
        if text is None:
            return None
        if not text.isdecimal():
            raise ValueError(f"{name} is {text!r}, not a number")
        return cls(int(text))

    def fill(self, replay: Replay) -> None:
        """The counters of the last turn; AFL has cleared it before."""
        replay.copy_map(self.bytes)
        if not self.bytes[0]:
            self.bytes[0] = 1  # an empty map is no target, says AFL


class Inputs:
    """Where test cases come from: shared memory, a file, standard input.

    Threads: one.
    """

    def __init__(self, path: str | None, max_size: int) -> None:
        self.path = path
        self.max_size = max_size
        self.shared = Segment.named(INPUT_ID) if is_wanted() else None

    def read(self) -> bytes:
        """The one whose turn it is."""
        if self.shared is not None:
            memory = self.shared.bytes
            length = min(WORD.unpack_from(memory)[0], self.max_size)
            return bytes(memory[WORD.size : WORD.size + length])
        if self.path is not None:
            with open(self.path, "rb") as file:
                return file.read(self.max_size)
        if is_wanted():  # the same file each time
            os.lseek(0, 0, os.SEEK_SET)
        with open(0, "rb", closefd=False) as file:
            return file.read(self.max_size)


class StandIn:
    """A process for AFL to kill, which ends with us otherwise.

    Threads: the main one.
    """

    def __init__(self) -> None:
        self.running = False  # a turn is: its death is to end it
        self.pid = 0
        self.alive = False
        self._previous: (
            Callable[[int, FrameType | None], object]
            | int
            | signal.Handlers
            | None
        ) = None
        self._ends = os.pipe()

    def __enter__(self) -> StandIn:
        self._previous = signal.signal(signal.SIGCHLD, self._on_child)
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.running = False
        for fd in self._ends:
            os.close(fd)
        if self.alive:
            self.wait()
        signal.signal(signal.SIGCHLD, self._previous)

    def start(self) -> None:
        """Another one: `cat` of a pipe into which nobody writes."""
        self.pid = os.posix_spawn(
            "/bin/cat",
            ["cat"],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._ends[0], 0),
                (os.POSIX_SPAWN_CLOSE, CONTROL),
                (os.POSIX_SPAWN_CLOSE, STATUS),
            ],
        )
        self.alive = True

    def wait(self) -> None:
        """Until it has died, which somebody has seen to."""
        if self.alive:
            with suppress(ChildProcessError):  # the handler was faster
                os.waitpid(self.pid, 0)
            self.alive = False

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        if self.alive:
            try:
                self.alive = os.waitpid(self.pid, os.WNOHANG)[0] == 0
            except ChildProcessError:
                self.alive = False
        if callable(self._previous):
            self._previous(number, frame)
        if not self.alive and self.running:
            self.running = False
            raise Killed


# -- the protocol -------------------------------------------------------------


class Server:
    """Our end of the two pipes.

    Threads: the main one.
    """

    def __init__(
        self,
        replay: Replay,
        inputs: Inputs,
        shared: Segment,
        stand_in: StandIn,
    ) -> None:
        self.replay = replay
        self.inputs = inputs
        self.shared = shared
        self.stand_in = stand_in
        self.turns = 0

    def run(self, versioned: bool) -> None:
        """Say hello, and serve. Raises Gone in the end."""
        request = self.greet_versioned() if versioned else self.greet()
        while True:
            if request is None:
                request = self.hear()
            if request and self.stand_in.alive:
                self.stand_in.wait()  # killed: it is on its way out
            if not self.stand_in.alive:
                self.stand_in.start()
            request = None
            self.say(self.stand_in.pid)
            self.say(self.turn())

    def greet(self) -> int | None:
        """The hello of flags."""
        size = len(self.replay.unseen)
        flags = ENABLED | HAS_MAP_SIZE | ((size - 1) << 1)
        if self.inputs.shared is None:
            self.say(flags)
            return None
        self.say(flags | SHARED_INPUT)
        answer = self.hear()
        if answer & (ENABLED | SHARED_INPUT) == ENABLED | SHARED_INPUT:
            return None
        self.inputs.shared = None
        return answer  # of a client that knows no flags: the first request

    def greet_versioned(self) -> int | None:
        """The hello of versions; one that does not know it asks for a run."""
        self.say(VERSIONED)
        answer = self.hear()
        if answer != VERSIONED ^ 0xFFFF_FFFF:
            self.inputs.shared = None
            return answer
        shared = self.inputs.shared is not None
        self.say(NEW_MAP_SIZE | (NEW_SHARED_INPUT if shared else 0))
        self.say(len(self.replay.unseen))
        self.say(VERSIONED)
        return None

    def turn(self) -> int:
        """One turn: the wait status of the process that it is to AFL."""
        self.turns += 1
        self.replay.trusting = (
            self.turns > LOOK_FIRST and self.turns % LOOK_EVERY != 0
        )
        data = self.inputs.read()
        try:
            self.stand_in.running = True
            if not self.stand_in.alive:
                raise Killed
            case = self.replay.one(data)
            self.stand_in.running = False
        except Killed:
            return signal.SIGKILL
        finally:
            self.stand_in.running = False
        if case is None:
            raise Gone  # the machine was closed
        self.shared.fill(self.replay)
        return status_of(case)

    def hear(self) -> int:
        data = os.read(CONTROL, WORD.size)
        if len(data) != WORD.size:
            raise Gone
        return int(WORD.unpack(data)[0])

    def say(self, word: int) -> None:
        try:
            os.write(STATUS, WORD.pack(word))
        except BrokenPipeError:
            raise Gone from None


def status_of(case: Case) -> int:
    """What wait() would say of a process that ended like this."""
    if case.crashed:
        return signal.SIGABRT
    return ((case.status or 0) & 0xFF) << 8

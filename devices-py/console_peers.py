# SPDX-License-Identifier: Apache-2.0
"""What the ports of a Console are wired to.

Peer     nothing: output is kept; what the others are made from
Call     a function that takes bytes
Stream   descriptors: a file, a pipe, a terminal line, a connected socket

Others are in console_terminals.py and console_socket.py.
"""

import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.devices.console_port import Port

Source = Any  # a file descriptor, or what has a fileno()

CHUNK = 1 << 16  # bytes of one read
PIECE = select.PIPE_BUF  # that a pipe takes at once when it takes any
RETRY = 1.0  # seconds until a full disk or an absent server is tried again


class Peer:
    """The other end of a port: here none, what the guest sends is kept.

    A subclass is a peer of another kind. `port`: what it is wired to, from
    start() on.

    Threads: its methods are called one at a time, by the device's worker but
    for start() and stop(), and must not block.
    """

    port: "Port"

    def start(self) -> None:
        """The device was attached. What this raises leaves attach()."""

    def stop(self) -> None:
        """It was detached, or start() has failed; the worker has ended."""

    def write(self, data: bytes) -> int:
        """Take output of the guest; returns how many bytes of it.

        After fewer than all, more() is called.
        """
        return len(data)

    def more(self) -> None:
        """Call port.ready() as soon as write() takes more."""

    def wait(self, seconds: float) -> bool:
        """The end is near: whether write() takes more within that time."""
        return False

    def linger(self, seconds: float) -> None:
        """All was written: wait, at most so long, if stop() would lose it."""

    def hold(self, full: bool) -> None:
        """The guest has enough input: no port.receive() until it has not."""

    def window(self) -> tuple[int, int] | None:
        """Columns and rows, of a terminal that knows them."""
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Call(Peer):
    """A function: called with bytes, on the device's worker.

    While it runs, the guest's output waits. An exception leaves run().
    """

    def __init__(self, function: Callable[[bytes], object]) -> None:
        self.function = function

    def write(self, data: bytes) -> int:
        self.function(data)
        return len(data)


class Stream(Peer):
    """A file or a descriptor, or two; they are copied when it is attached.

    `source`: what is read becomes input, -1: nothing. `sink`: the output goes
    there, -1: nowhere. Errors of a file, a full disk say, are tried again;
    `error` is the last of them. A pipe or a line that breaks has gone for good.
    """

    def __init__(self, source: Source = -1, sink: Source = -1) -> None:
        self.source = source
        self.sink = sink
        self.error: OSError | None = None
        self._reset()

    def _reset(self) -> None:
        self._in = self._out = -1
        self._reader: Any = None  # a Watch; None: ready at any time
        self._writer: Any = None
        self._held = False
        self._blocks = False  # the sink could not be made non-blocking
        self._retrying = False

    def start(self) -> None:
        self._connect(open_again(self.source), open_again(self.sink))

    def _connect(self, source: int, sink: int) -> None:
        """Read and write these from now on."""
        self._in, self._out = source, sink
        if sink >= 0:
            self._blocks = os.get_blocking(sink) and not is_file(sink)
            self._writer = self._watch(sink, self._writable, True)
            if self._writer is not None:
                self._writer.pause()
        if source >= 0:
            self._reader = self._watch(source, self._readable, False)
            self.hold(self._held)

    def _watch(self, fd: int, call: Callable[[], None], write: bool) -> Any:
        try:
            return self.port.watch(fd, call, write=write)
        except PermissionError:
            return None  # a file, or /dev/null: no need to wait for it

    def stop(self) -> None:
        for watch in (self._reader, self._writer):
            if watch is not None:
                watch.cancel()
        for fd in {self._in, self._out} - {-1}:
            os.close(fd)
        self._reset()

    # -- input ---------------------------------------------------------------

    def hold(self, full: bool) -> None:
        self._held = full
        if self._reader is None:
            self._pump()
        elif full:
            self._reader.pause()
        else:
            self._reader.resume()

    def _pump(self) -> None:
        """Read what is ready at any time."""
        while self._in >= 0 and not self._held:
            self._readable()

    def _readable(self) -> None:
        try:
            data = os.read(self._in, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._got(data)
        else:
            self._ended()

    def _got(self, data: bytes) -> None:
        self.port.receive(data)

    def _ended(self) -> None:
        """Nothing more comes."""
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if self._in != self._out:
            os.close(self._in)
        self._in = -1

    # -- output --------------------------------------------------------------

    def write(self, data: bytes) -> int:
        if self._out < 0:
            return 0
        if self._blocks:
            if not self.wait(0):
                return 0
            data = data[:PIECE]
        try:
            return os.write(self._out, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self.error = exc
            if self._writer is not None:
                self._failed()
            return 0

    def more(self) -> None:
        if self._writer is not None:
            self._writer.resume()
        elif not self._retrying:
            self._retrying = True
            self.port.after(RETRY, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self.port.ready()

    def _writable(self) -> None:
        self._writer.pause()
        self.port.ready()

    def wait(self, seconds: float) -> bool:
        if self._out < 0 or (self.error and self._writer is None):
            return False
        return bool(poll(self._out, select.POLLOUT, seconds))

    def _failed(self) -> None:
        """What was written to has gone."""
        self.port.lose()

    def window(self) -> tuple[int, int] | None:
        return window_size(self._out) or window_size(self._in)


# -- what they are made with -------------------------------------------------


def as_peer(peer: object) -> Peer:
    """A Peer, or what one can be made of; TypeError and ValueError."""
    if peer is None:
        return Peer()
    if isinstance(peer, Peer):
        return peer
    if isinstance(peer, socket.socket):
        return Stream(peer, peer)
    if callable(getattr(peer, "write", None)):
        return file_peer(getattr(peer, "buffer", peer), peer)
    if callable(peer):
        return Call(peer)
    raise TypeError(
        "a port is wired to a Peer, a callable that takes bytes, a file or a "
        f"socket, not {type(peer).__name__}"
    )


def file_peer(file: Any, outer: Any) -> Peer:
    """A Peer for a file of bytes, which `outer` may put text into."""
    if hasattr(file, "encoding"):
        raise ValueError(f"{outer!r} takes text: open it with 'wb'")
    if not getattr(file, "writable", lambda: True)():
        raise ValueError(f"{outer!r} is not open for writing")
    try:
        fd = file.fileno()
    except (AttributeError, OSError):
        return Call(file.write)  # in memory
    getattr(outer, "flush", bool)()
    both = getattr(file, "readable", bool)() and not is_file(fd)
    return Stream(file if both else -1, file)


def is_file(fd: int) -> bool:
    """Whether it is a regular file."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def open_again(source: Source) -> int:
    """A copy of a descriptor, -1 for one that is none.

    It does not block, unless it is a socket or not ours to open: O_NONBLOCK
    belongs to all copies, of other processes too, so pipes and terminals are
    opened once more. ValueError for a file that is closed.
    """
    fd = source if isinstance(source, int) else source.fileno()
    if fd < 0 and source != -1:
        raise ValueError(f"{source!r} is closed")
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return -1
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            pass  # another user's terminal
    return os.dup(fd)


def poll(fd: int, mask: int, seconds: float) -> int:
    """What a descriptor is ready for, 0 when for nothing in that time."""
    poller = select.poll()
    poller.register(fd, mask)
    return sum(ready for _, ready in poller.poll(seconds * 1000))


def is_hung_up(fd: int) -> bool:
    """Whether nobody has the other end open."""
    return bool(poll(fd, 0, 0) & select.POLLHUP)


def window_size(fd: int) -> tuple[int, int] | None:
    """Columns and rows of a terminal, None: not known."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return (columns, rows) if columns and rows else None

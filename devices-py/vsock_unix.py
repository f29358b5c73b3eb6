# SPDX-License-Identifier: Apache-2.0
"""AF_UNIX sockets as the host's ends of vsock, as Firecracker has them.

Programs of the host connect to the socket at PATH and write "CONNECT 52\\n" for
port 52 of the guest. When that has accepted they read "OK 1073741824\\n", with
the port of the host that they have got, and what follows is the stream. A guest
that connects to port 52 of the host reaches who listens at PATH_52.

>>> LINE.fullmatch(b"CONNECT 52\\n")[1]
b'52'
"""

import errno
import os
import re
import socket
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.devices.vsock_hub import Hub
from pyvmm.devices.vsock_packet import PORT_MOST, REQUEST
from pyvmm.timers import Timer

if TYPE_CHECKING:
    from pyvmm.devices.vsock import Vsock

BACKLOG = 128
AT_A_TIME = 32  # programs that are let in
PATH_MOST = 107  # bytes: unix(7)
SUFFIX_MOST = len(f"_{PORT_MOST}")

LINE = re.compile(rb"CONNECT ([0-9]{1,10})\r?\n")
LINE_MOST = len(b"CONNECT 4294967294\r\n")
LINE_SECONDS = 5  # for a program to say it
ANSWER_SECONDS = 10  # for the guest to answer
RETRY_SECONDS = 0.1  # when the host is out of file descriptors


class Front:
    """The socket at PATH, and programs that have not said their port yet.

    OSError when it cannot be made. One that a process has left behind that is
    no more is replaced.

    Threads: the device's worker.
    """

    def __init__(self, device: "Vsock", path: str) -> None:
        self.device = device
        self.path = path
        self._sock = listen(path)
        self._hub: Hub | None = None  # None: closed for now
        self._callers: dict[socket.socket, Timer] = {}
        self._retry: Timer | None = None

    def open(self, hub: Hub) -> None:
        """Let programs in, those first who wait."""
        self._hub = hub
        hub.add(self._sock.fileno(), self._knocked)

    def shut(self) -> None:
        """Let them wait; those that are in are hung up on."""
        if self._hub is not None:
            self._hub.remove(self._sock.fileno())
            for sock in list(self._callers):
                self._hang_up(sock)
            self._hub = None

    def close(self) -> None:
        """For good: nothing is left of it."""
        self.shut()
        self._sock.close()
        with suppress(OSError):
            os.unlink(self.path)

    def _knocked(self, events: int) -> None:
        """Programs have connected: let in a few, then look around."""
        try:
            for _ in range(AT_A_TIME):
                if self._hub is None:
                    return
                self._let_in(self._hub, self._sock.accept()[0])
        except BlockingIOError:
            return
        except OSError:
            self._knock_again(RETRY_SECONDS)
        else:
            self._knock_again(0)

    def _knock_again(self, seconds: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        again = partial(self._knocked, 0)
        self._retry = self.device.after(seconds, again, worker=True)

    def _let_in(self, hub: Hub, sock: socket.socket) -> None:
        if hub.is_full:
            sock.close()
            return
        sock.setblocking(False)
        hub.reserved += 1
        self._callers[sock] = self.device.after(
            LINE_SECONDS, partial(self._hang_up, sock), worker=True
        )
        hub.add(sock.fileno(), partial(self._spoke, sock))

    def _spoke(self, sock: socket.socket, events: int) -> None:
        """A program may have said which port it wants."""
        hub = self._hub
        if hub is None or sock not in self._callers:
            return
        try:
            guest_port = read_port(sock)
        except (OSError, ValueError):
            self._hang_up(sock)
            return
        if guest_port is None:
            return
        self._forget(sock)
        port = hub.free_port(guest_port)
        stream = hub.open(
            sock, guest_port, port, REQUEST, partial(answer, sock, port)
        )
        hub.expect(stream, ANSWER_SECONDS)
        hub.settle(stream)

    def _forget(self, sock: socket.socket) -> None:
        assert self._hub is not None
        self._callers.pop(sock).cancel()
        self._hub.reserved -= 1
        self._hub.remove(sock.fileno())

    def _hang_up(self, sock: socket.socket) -> None:
        if sock in self._callers:
            self._forget(sock)
            sock.close()


def check_path(path: str | os.PathLike[str]) -> str:
    """The path as an absolute one; ValueError when it cannot be a socket's."""
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise ValueError(f"path {text!r} is empty or has a NUL in it")
    text = os.path.abspath(text)
    length, most = len(os.fsencode(text)), PATH_MOST - SUFFIX_MOST
    if length > most:
        raise ValueError(
            f"path {text!r} has {length} bytes; with a port behind it a "
            f"socket's may have {most}"
        )
    return text


def new_socket() -> socket.socket:
    """One that does not block."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def listen(path: str) -> socket.socket:
    """A socket that listens at `path`; OSError when it cannot."""
    sock = new_socket()
    try:
        try:
            sock.bind(path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not is_left_behind(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, exc.strerror, path) from None
    return sock


def is_left_behind(path: str) -> bool:
    """Whether it is a socket on which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with new_socket() as sock:
        return sock.connect_ex(path) == errno.ECONNREFUSED


def connect(path: str, port: int) -> socket.socket:
    """A connection to who listens at PATH_PORT; OSError when nobody does.

    Nor is a backlog that is full waited for.
    """
    sock = new_socket()
    try:
        sock.connect(f"{path}_{port}")
    except OSError:
        sock.close()
        raise
    return sock


def read_port(sock: socket.socket) -> int | None:
    """The port that a program asks for; None: there is no whole line yet.

    Not a byte behind the line is read. ValueError for anything else than such
    a line, OSError when the program has gone.
    """
    try:
        data = sock.recv(LINE_MOST, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    end = data.find(b"\n") + 1
    if not end and 0 < len(data) < LINE_MOST:
        return None
    found = LINE.fullmatch(sock.recv(end)) if end else None
    if found is None or int(found[1]) > PORT_MOST:
        raise ValueError(f"{data!r} is not CONNECT and a port")
    return int(found[1])


def answer(sock: socket.socket, port: int, error: OSError | None) -> None:
    """Tell a program that it is connected, and from which port of the host.

    One that is not is hung up on, without a word.
    """
    if error is None:
        with suppress(OSError):  # it has gone: that is noticed elsewhere
            sock.send(b"OK %d\n" % port, socket.MSG_NOSIGNAL)

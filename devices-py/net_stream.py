# SPDX-License-Identifier: Apache-2.0
"""A stream socket at the other end of a Net's cable: passt, or another program.

passt gives a guest the host's connections, without root and without anything
to set up: it answers ARP and DHCP, and makes of each connection of the guest
one of its own.

    $ passt --socket /tmp/passt.sock        # Debian: apt-get install passt

    net = m.attach(Net(stream="/tmp/passt.sock"))

It ends when the guest does. Started by root it becomes `nobody`, who must be
allowed to make files in that folder. The guest gets the host's address and
default route by DHCP; the host itself is at the address of the gateway. passt
offers an MTU of 65520: say `Net(stream=..., mtu=65520)`, or `passt --mtu 1500`.

What goes over the socket is frames, each behind its length in 4 bytes, the
highest first: passt and QEMU's `-netdev stream` agree on that. Two machines in
two processes are connected by any pair of sockets, `Net(stream=sock)`.

When the other end closes the connection, or sends a length that no frame has,
the guest's link goes down, and `net.error` says why.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

from pyvmm import virtio
from pyvmm.devices.net_header import HEADER, PLAIN
from pyvmm.devices.net_peer import FRAME_MOST, Lost, Peer, explained, frame_of

if TYPE_CHECKING:
    from pyvmm.devices.net import Net

LENGTH = 4
BUFFER = 2 * (LENGTH + FRAME_MOST)  # so that there is room behind any rest
FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

HINTS = {
    errno.ENOENT: "nobody listens there: start passt --socket PATH",
    errno.ECONNREFUSED: "nobody listens there any more",
}


class Stream(Peer):
    """A stream socket, or the path of a UNIX one to connect to.

    Raises ValueError for a socket of another kind, OSError when it cannot be
    connected.
    """

    def __init__(self, where: str | os.PathLike[str] | socket.socket) -> None:
        self._socket: socket.socket | None = None
        self._path = ""
        if isinstance(where, socket.socket):
            if where.type != socket.SOCK_STREAM:
                raise ValueError(f"{where!r} is no stream socket")
            self._given: socket.socket | None = where
        else:
            self._given = None
            self._path = os.fspath(where)
        self._lock = Lock()
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0  # what was read and is no frame yet
        self._rest = memoryview(b"")  # of a frame that went out in part

    def open(self, device: Net) -> None:
        if self._socket is not None:
            return
        sock, self._given = self._given, None
        if sock is None:
            sock = self._connect()
        sock.setblocking(False)
        self._socket = sock
        self._start = self._end = 0
        self._rest = memoryview(b"")
        self.busy = False
        self.fd = sock.fileno()

    def _connect(self) -> socket.socket:
        if not self._path:
            raise ValueError(
                "the socket was closed: Net(stream=) wants another"
            )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path)
        except OSError as exc:
            sock.close()
            raise explained(exc, f"stream {self._path!r}", HINTS) from None
        return sock

    def close(self) -> None:
        with self._lock:
            sock, self._socket = self._socket, None
            self.fd = -1
            self.busy = False
            if sock is not None:
                sock.close()

    # -- out -----------------------------------------------------------------

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        size = chain.readable_size - HEADER
        parts = [size.to_bytes(LENGTH, "big"), *frame_of(chain)]
        with self._lock:
            if self._socket is None:
                return False
            sent = self._send(parts)
            if sent < LENGTH + size:
                # Copied: the buffers are the guest's again before it has gone.
                self._rest = memoryview(b"".join(parts))[sent:]
                self.busy = True
        return True

    def flush(self) -> None:
        with self._lock:
            self._rest = self._rest[self._send([self._rest]) :]
            self.busy = len(self._rest) > 0

    def _send(self, parts: list[Any]) -> int:
        if self._socket is None:
            return 0
        try:
            return self._socket.sendmsg(parts, (), FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                return 0
            raise Lost(f"{self}: {exc.strerror}") from exc

    # -- in ------------------------------------------------------------------

    def frames(self) -> Iterator[tuple[bytes, memoryview]]:
        while (frame := self._next()) is not None:
            yield PLAIN, frame
        self._fill()
        while (frame := self._next()) is not None:
            yield PLAIN, frame

    def _next(self) -> memoryview | None:
        """The next frame, if all of it is there."""
        at = self._start + LENGTH
        if at > self._end:
            return None
        size = int.from_bytes(self._buffer[self._start : at], "big")
        if size > FRAME_MOST:
            raise Lost(f"{self}: a frame of {size} bytes was announced")
        if at + size > self._end:
            return None
        self._start = at + size
        return self._buffer[at : at + size]

    def _fill(self) -> None:
        """Read what there is; less than a frame waits here."""
        left = self._end - self._start
        self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left
        with self._lock:
            if self._socket is None:
                return
            try:
                size = self._socket.recv_into(self._buffer[left:], 0, FLAGS)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                raise Lost(f"{self}: {exc.strerror}") from exc
        if not size:
            raise Lost(f"{self}: closed by the other end")
        self._end += size

    def __str__(self) -> str:
        return f"stream {self._path}" if self._path else "stream"

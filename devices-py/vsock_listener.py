# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that Python code listens on.

>>> ours, theirs = socket.socketpair()
>>> with Listener(52, backlog=1, forget=repr) as listener:
...     listener.offer(theirs, (3, 1024))       # by the device
...     sock, peer = listener.accept()
True
>>> peer
(3, 1024)
>>> ours.close(), sock.close()
(None, None)
"""

import errno
import socket
from collections import deque
from collections.abc import Callable, Iterator
from threading import Condition
from types import TracebackType
from typing import Self

Peer = tuple[int, int]  # CID and port, as addresses of AF_VSOCK are
Callback = Callable[[socket.socket, Peer], object]


class Listening:
    """A port that is listened on, until close().

    Threads: any.
    """

    def __init__(
        self, port: int, forget: Callable[["Listening"], object]
    ) -> None:
        self.port = port
        self.closed = False
        self._forget = forget

    def offer(self, sock: socket.socket, peer: Peer) -> bool:
        """For the device: a guest has connected; False: it is refused."""
        raise NotImplementedError

    def close(self) -> None:
        """Listen no more; twice is once. What was accepted goes on."""
        self.closed = True
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} port {self.port} {state}>"


class CallbackListener(Listening):
    """One that gives each connection to a callable."""

    def __init__(
        self,
        port: int,
        callback: Callback,
        forget: Callable[[Listening], object],
    ) -> None:
        super().__init__(port, forget)
        self.callback = callback

    def offer(self, sock: socket.socket, peer: Peer) -> bool:
        """For the device: a guest has connected; False: it is refused."""
        if self.closed:
            return False
        self.callback(sock, peer)
        return True


class Listener(Listening):
    """What Vsock.listen() returns: accept() gives one connection after another.

    `backlog`: how many may wait for that; further ones are refused.

    Threads: any.
    """

    def __init__(
        self, port: int, backlog: int, forget: Callable[[Listening], object]
    ) -> None:
        super().__init__(port, forget)
        self.backlog = backlog
        self._waiting: deque[tuple[socket.socket, Peer]] = deque()
        self._changed = Condition()

    def offer(self, sock: socket.socket, peer: Peer) -> bool:
        """For the device: a guest has connected; False: it is refused."""
        with self._changed:
            if self.closed or len(self._waiting) >= self.backlog:
                return False
            self._waiting.append((sock, peer))
            self._changed.notify()
        return True

    def accept(
        self, timeout: float | None = None
    ) -> tuple[socket.socket, Peer]:
        """Wait for a guest: the connection, and the guest's CID and port.

        TimeoutError when none comes in `timeout` seconds; OSError (EBADF) once
        the listener was closed, with its machine at the latest.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._waiting or self.closed, timeout
            ):
                raise TimeoutError(
                    f"nobody connected to port {self.port} in {timeout} s"
                )
            if self.closed:
                raise OSError(
                    errno.EBADF, f"the listener of port {self.port} is closed"
                )
            return self._waiting.popleft()

    def __iter__(self) -> Iterator[tuple[socket.socket, Peer]]:
        """What accept() returns, until it is closed."""
        while True:
            try:
                found = self.accept()
            except OSError:
                return
            yield found

    def close(self) -> None:
        """Listen no more, and refuse those that wait; twice is once."""
        with self._changed:
            super().close()
            self._changed.notify_all()
            while self._waiting:
                self._waiting.popleft()[0].close()

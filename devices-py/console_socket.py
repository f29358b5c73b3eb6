# SPDX-License-Identifier: Apache-2.0
"""A UNIX socket as the peer of a Console's port."""

import errno
import os
import select
import socket
import stat
from contextlib import suppress
from typing import Any

from pyvmm.devices.console_peers import RETRY, Stream

PATH_MOST = 107  # bytes, <linux/un.h>


class Socket(Stream):
    """A UNIX stream socket at `path`.

    It listens there and talks to one client at a time, the others wait; or,
    with `connect=True`, it is the client, and tries each second while nobody
    is there. Who goes may come again: the guest is told, and what it sends
    meanwhile waits.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, connect: bool = False
    ) -> None:
        super().__init__()
        self.path = os.fspath(path)
        size = len(os.fsencode(self.path))
        if not 0 < size <= PATH_MOST or "\0" in self.path:
            raise ValueError(
                f"path {self.path!r} of {size} bytes is no path of 1 to "
                f"{PATH_MOST} bytes"
            )
        self.connect = connect
        self._listener: socket.socket | None = None
        self._accepting: Any = None
        self._made: tuple[int, int] | None = None  # the file, to be removed
        self._hangup: Any = None  # an epoll: see _ended()
        self._hung: Any = None

    def start(self) -> None:
        self.port.connect(False)
        if self.connect:
            self._try()
            return
        self._listener = listen(self.path)
        info = os.stat(self.path)
        self._made = info.st_dev, info.st_ino
        self._accepting = self.port.watch(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        self._drop()
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with suppress(OSError):  # it has gone
                info = os.stat(self.path)
                if (info.st_dev, info.st_ino) == self._made:
                    os.unlink(self.path)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as exc:  # no descriptor is left
            self.error = exc
            self._accepting.pause()
            self.port.after(RETRY, self._accepting.resume)
            return
        if self._in < 0 <= self._out:
            self._failed()  # it only listened; the next one is here
        self._accepting.pause()
        self._begin(client)

    def _try(self) -> None:
        try:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.setblocking(False)
                server.connect(self.path)
            except BaseException:
                server.close()
                raise
        except OSError as exc:
            self.error = exc
            self.port.after(RETRY, self._try)
        else:
            self._begin(server)

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        fd = sock.detach()
        self._connect(fd, fd)
        self.port.connect(True)

    def _ended(self) -> None:
        """It sends nothing more, but may still listen: `echo x | nc -U`."""
        self._reader.cancel()
        self._in = -1
        try:
            self._hangup = select.epoll()
        except OSError as exc:  # no descriptor is left
            self.error = exc
            self._failed()
            return
        self._hangup.register(self._out, 0)  # hang-ups are always told
        self._hung = self.port.watch(self._hangup.fileno(), self._failed)
        if self._accepting is not None:
            self._accepting.resume()

    def _failed(self) -> None:
        self._drop()
        self.port.connect(False)
        if self.connect:
            self.port.after(RETRY, self._try)
        else:
            self._accepting.resume()

    def _drop(self) -> None:
        """Close the connection."""
        held = self._held
        if self._hangup is not None:
            self._hung.cancel()
            self._hangup.close()
            self._hangup = None
        super().stop()
        self._held = held

    def __repr__(self) -> str:
        what = "to" if self.connect else "at"
        return f"<Socket {what} {self.path}>"


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, where a dead one may have been left."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if is_dead(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(1)
    except OSError as exc:
        listener.close()
        raise OSError(exc.errno, exc.strerror, path) from None
    return listener


def is_dead(path: str) -> bool:
    """Whether a socket is there that nobody listens to."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except OSError as exc:
        return exc.errno == errno.ECONNREFUSED
    return False

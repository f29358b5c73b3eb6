# SPDX-License-Identifier: Apache-2.0
"""Terminals as peers of a Console's ports.

Stdio    the standard input and output, a terminal in raw mode
Pty      a pseudo terminal, for whoever opens it
"""

import atexit
import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from pyvmm.devices.console_peers import Stream, is_hung_up, open_again, poll

PAUSE = 0.005  # seconds between looks whether all was read
LOOK = 0.25  # seconds between looks at a window's size, or for who comes


class Stdio(Stream):
    """The standard input and output of this process.

    A terminal is in raw mode while the device is attached: each key, Ctrl-C
    too, is the guest's, but for `escape` (Ctrl-]; None: there is none), which
    interrupts this process as Ctrl-C would. With `raw=False` it stays as it
    is. The window's size is the console's.

    The mode is restored when the device goes, and when the process ends, but
    not if a signal kills it. `signals=True` puts handlers of SIGTERM, SIGHUP
    and SIGWINCH in their place, which restore it (and then do what was due) or
    tell the new size; without, the size is looked at four times a second. For
    the main thread only: ValueError.
    """

    def __init__(
        self,
        *,
        raw: bool = True,
        escape: bytes | None = b"\x1d",
        signals: bool = False,
    ) -> None:
        super().__init__(0, 1)
        if escape is not None and len(escape) != 1:
            raise ValueError(f"escape {escape!r} is not one byte")
        self.raw = raw
        self.escape = escape
        self.signals = signals
        self._mode: list[Any] | None = None  # to be restored
        self._handlers: dict[int, Any] = {}

    def start(self) -> None:
        terminal = os.isatty(self.source)
        # Reading a terminal from the background would stop this process.
        here = not terminal or in_foreground(self.source)
        if self.signals:
            self._handle_signals()
        if terminal and here and self.raw:
            self._mode = termios.tcgetattr(self.source)
            atexit.register(self._restore)
            make_raw(self.source, self._mode)
        source = open_again(self.source) if here else -1
        self._connect(source, open_again(self.sink))
        if self.window() is not None and not self.signals:
            self.port.every(LOOK, self._look)

    def stop(self) -> None:
        super().stop()
        self._restore()
        ours = (self._terminated, self._resized)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) in ours:
                with suppress(ValueError):  # from another thread they stay
                    signal.signal(number, handler or signal.SIG_DFL)

    def _restore(self) -> None:
        """The terminal is as it was; more often is as good as once."""
        mode, self._mode = self._mode, None
        if mode is not None:
            atexit.unregister(self._restore)
            with suppress(termios.error):  # it has gone
                termios.tcsetattr(self.source, termios.TCSANOW, mode)

    def _handle_signals(self) -> None:
        for number, handler in (
            (signal.SIGTERM, self._terminated),
            (signal.SIGHUP, self._terminated),
            (signal.SIGWINCH, self._resized),
        ):
            self._handlers[number] = signal.signal(number, handler)

    def _terminated(self, number: int, frame: object) -> None:
        self._restore()
        signal.signal(number, self._handlers[number] or signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _resized(self, number: int, frame: object) -> None:
        self.port.after(0, self._look)

    def _look(self) -> None:
        size = self.window()
        if size is not None:
            self.port.resize(*size)

    def _got(self, data: bytes) -> None:
        escape = b""
        if self._mode is not None and self.escape is not None:
            data, escape, _ = data.partition(self.escape)
        if data:
            self.port.receive(data)
        if escape:
            os.kill(os.getpid(), signal.SIGINT)


class Pty(Stream):
    """A pseudo terminal: `path` is for `screen`, `picocom`, `minicom -p`.

    It is made when the device is attached, and told to `tell(path)`. Whoever
    opens it is the peer, until the last one closes it; the guest is told, and
    what it sends meanwhile waits.
    """

    def __init__(self, tell: Callable[[str], object] | None = None) -> None:
        super().__init__()
        self.path = ""
        self._tell = tell
        self._here = False

    def start(self) -> None:
        master, slave = os.openpty()
        try:
            self.path = os.ttyname(slave)
            tty.setraw(slave)  # else it would echo what the guest sends
            columns, rows = self.port.window
            size = struct.pack("<4H", rows, columns, 0, 0)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        finally:
            os.close(slave)  # from now on it is seen who comes and goes
        os.set_blocking(master, False)
        self.port.connect(False)
        self._connect(master, master)
        self._leave()
        self.port.every(LOOK, self._look)
        if self._tell is not None:
            self._tell(self.path)

    def stop(self) -> None:
        super().stop()
        self._here = False

    def linger(self, seconds: float) -> None:
        """When this end is closed, the kernel drops what was not read yet."""
        until = monotonic() + seconds
        while self._here and not is_hung_up(self._out):
            if monotonic() >= until or not has_input(self.path):
                break
            sleep(PAUSE)

    def _look(self) -> None:
        gone = is_hung_up(self._in)
        if self._here and gone and self._held:
            self._leave()  # else what it has sent is read first
        elif not self._here and not gone:
            self._here = True
            self.hold(self._held)
            self.port.connect(True)
        elif not self._here and not self._held:
            self._readable()  # of one that came and went: `echo x >/dev/pts/7`
        if self._here and (size := self.window()) is not None:
            self.port.resize(*size)

    def hold(self, full: bool) -> None:
        self._held = full
        if self._here:
            super().hold(full)

    def write(self, data: bytes) -> int:
        # The kernel would take it, and lose it.
        if self._here and is_hung_up(self._out):
            self._leave()
        return super().write(data) if self._here else 0

    def _leave(self) -> None:
        self._here = False
        self._reader.pause()
        self._writer.pause()
        self.port.connect(False)

    _ended = _failed = _leave

    def __repr__(self) -> str:
        return f"<Pty {self.path or 'not attached'}>"


def has_input(path: str) -> bool:
    """Whether who has this terminal open has not read all yet."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no descriptor is left
        return False
    try:
        return bool(poll(fd, select.POLLIN, 0))
    finally:
        os.close(fd)


def in_foreground(fd: int) -> bool:
    """Whether this process may read its terminal."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not the controlling one: nobody is stopped for it


def make_raw(fd: int, mode: list[Any]) -> None:
    """Keys come one by one, as they are; what is printed looks as before."""
    mode = mode.copy()
    mode[0] &= ~(
        termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP
        | termios.IXON | termios.INLCR | termios.IGNCR
    )  # fmt: skip
    mode[3] &= ~(
        termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG
        | termios.IEXTEN
    )  # fmt: skip
    mode[6] = list(mode[6])
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)

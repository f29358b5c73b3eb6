# SPDX-License-Identifier: Apache-2.0
"""One port of a Console: bytes on their way between the guest and a peer.

    guest  -- transmit queue -->  unsent   -- peer.write() -->  peer
    guest  <-- receive queue ---  pending  <-- receive() -----  peer, send()

`unsent` is bounded: while it is full the guest's chains stay in their queue.
`pending` is too, as far as peers are concerned: they are not read from then.
"""

from __future__ import annotations

import re
from functools import partial
from threading import Condition
from time import monotonic
from typing import TYPE_CHECKING, Any

import pyvmm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyvmm.devices.console import Console
    from pyvmm.devices.console_peers import Peer

CHUNK = 1 << 16  # bytes that a peer is given at once
INPUT_MOST = 1 << 16  # that wait for the guest, of what a peer has sent
LOOK = 0.05  # seconds between looks whether the machine still runs
WINDOW = 1 << 16  # bytes of output that expect() looks at
TAIL = 200  # bytes of output in an error's text


class Port:
    """A port of a Console: the console itself, or one of its `ports`.

    `id`: its number. `name`: what the guest may look for. `is_console`: the
    guest shall log in there; else it is a pipe. `peer`: what it is wired to.
    `window`: columns and rows. `connected`: someone is at the peer's end.
    `opened`: the guest has opened it; without multiport it always is.
    `lost`: bytes that were taken from the guest and cannot be delivered.

    Threads: any may use this; the guest and the peer are met on the device's
    worker.
    """

    def __init__(
        self,
        console: Console,
        id: int,
        name: str,
        peer: Peer,
        is_console: bool,
        window: tuple[int, int],
    ) -> None:
        self.console = console
        self.id = id
        self.name = name
        self.peer = peer
        self.is_console = is_console
        self.window = window
        self.connected = True
        self.opened = False
        self.lost = 0
        # What follows is the Console's.
        self.added = False  # the guest knows of it
        self.accepted = False  # and uses it
        self.active = False  # the peer was started
        self.gone = False  # and will take no more, ever
        self._timers: list[Any] = []  # of the peer
        self.skip = 0  # bytes already taken of the chain that is next
        self.pending = bytearray()  # for the guest
        self.unsent = bytearray()  # for the peer
        self.urgent = bytearray()  # emergency writes, before they are unsent
        self._held = False  # the peer is not read from
        self._kept = bytearray()
        self._end = 0  # of all output, in bytes
        self._expected = 0  # up to there expect() has looked
        self._news = Condition()  # of the three above, and `lost`

    # -- for users -----------------------------------------------------------

    @property
    def output(self) -> bytes:
        """What the guest has sent, the last `keep` bytes of it."""
        with self._news:
            return bytes(self._kept)

    @property
    def text(self) -> str:
        """The same as text: UTF-8, what is none as U+FFFD."""
        return self.output.decode("utf-8", "replace")

    @property
    def waiting(self) -> int:
        """How many bytes of input the guest has not taken yet."""
        return len(self.pending)

    def send(self, data: str | bytes) -> None:
        """Give input to the guest: text (as UTF-8) or bytes.

        It waits until the guest takes it, for ever if need be.
        """
        self.pending += data.encode() if isinstance(data, str) else data
        self.console.wake()

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest another size of its window."""
        window = check_window((columns, rows))
        if window != self.window:
            self.window = window
            self.console.post(partial(self.console.resized, self))

    def expect(
        self, pattern: str | bytes, timeout: float | None = None
    ) -> re.Match[Any]:
        """Wait until the output matches a regular expression; the match.

        Looks at what came after the match of the expect() before, at most the
        last 64 KiB of it, and runs the machine meanwhile, unless it runs
        already. Patterns of text match text, in which bytes that are no UTF-8
        are surrogates; those of bytes match bytes.

        Raises TimeoutError after `timeout` seconds, GuestError when the guest
        ends first; both texts end with what was sent last.
        """
        wanted = re.compile(pattern)
        with self._news:
            match = self._search(wanted)
        if match is not None:
            return match
        machine = self.console.machine
        if machine is None or machine.running:
            match = self._await(wanted, timeout)
            stop = None
        else:
            machine.start()
            try:
                match = self._await(wanted, timeout)
            finally:
                stop = machine.pause()
        if match is not None:
            return match
        why = f"{pattern!r} did not come"
        if stop is None:
            raise pyvmm.Error(f"{why}: the machine has ended{self._tail()}")
        raise pyvmm.GuestError(f"{why}: {stop.message}{self._tail()}", stop)

    def _await(
        self, wanted: re.Pattern[Any], timeout: float | None
    ) -> re.Match[Any] | None:
        """The match; None when the machine has ended without it."""
        until = None if timeout is None else monotonic() + timeout
        machine = self.console.machine
        ended = False
        with self._news:
            while (match := self._search(wanted)) is None:
                if until is not None and monotonic() >= until:
                    raise TimeoutError(
                        f"{wanted.pattern!r} did not come within {timeout:g} "
                        f"s{self._tail()}"
                    )
                if ended:
                    break
                # Its last bytes may still be on their way: one more look.
                ended = machine is not None and not machine.running
                self._news.wait(LOOK)
        return match

    def _search(self, wanted: re.Pattern[Any]) -> re.Match[Any] | None:
        """The next match, which is taken."""
        most = min(WINDOW, len(self._kept), self._end - self._expected)
        start = self._end - most
        data = bytes(self._kept[len(self._kept) - most :])
        match: re.Match[Any] | None
        if isinstance(wanted.pattern, bytes):
            match = wanted.search(data)
            taken = match.end() if match else 0
        else:
            text = data.decode("utf-8", "surrogateescape")
            match = wanted.search(text)
            before = text[: match.end()] if match else ""
            taken = len(before.encode("utf-8", "surrogateescape"))
        if match is not None:
            self._expected = start + taken
        return match

    def _tail(self) -> str:
        text = bytes(self._kept[-TAIL:]).decode("utf-8", "replace")
        return f"; the output ends with:\n{text}"

    def __repr__(self) -> str:
        name = repr(self.name) if self.name else "console"
        guest = "opened" if self.opened else "not opened"
        host = "connected" if self.connected else "nobody there"
        return f"<Port {self.id} {name} {guest}, {self.peer!r} {host}>"

    # -- for peers -----------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Input for the guest has come."""
        self.pending += data
        self.hold()
        self.console.wake()

    def ready(self) -> None:
        """The peer takes more output."""
        self.console.work(f"transmit{self.id or ''}")

    def connect(self, here: bool) -> None:
        """Someone has come to the peer's end, or nobody is there now."""
        if here != self.connected:
            self.connected = here
            self.console.connected(self)
            if here:
                self.console.wake()

    def lose(self) -> None:
        """The peer has gone for good: what it was sent is lost."""
        self.gone = True
        self.connect(False)
        self.console.wake()

    def watch(
        self, fd: int, call: Callable[[], None], *, write: bool = False
    ) -> Any:
        """As Device.watch(): call() when the descriptor is ready."""
        return self.console.watch(fd, self._guarded(call), write=write)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call call() once, on the device's worker, unless it stops before."""
        if self.active and self.console.active:
            self.console.after(seconds, self._guarded(call), worker=True)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call call() again and again, until the peer is stopped."""
        timer = self.console.every(seconds, self._guarded(call), worker=True)
        self._timers.append(timer)

    def _guarded(self, call: Callable[[], None]) -> Callable[[], None]:
        """The call, one at a time with all others of the console."""

        def guarded() -> None:
            with self.console.lock:
                if self.active:
                    call()

        return guarded

    # -- for the console -----------------------------------------------------

    def start(self) -> None:
        """The device was attached: so is the peer."""
        self.gone = False
        self.connected = True
        self._held = False
        self.active = True
        self.peer.port = self
        try:
            self.peer.start()
        except BaseException:
            self.active = False
            self.peer.stop()
            raise
        if (window := self.peer.window()) is not None:
            self.resize(*window)
        self.hold()

    def stop(self, seconds: float) -> None:
        """The peer gets what it is still owed, within that time, and goes."""
        if not self.active:
            return
        until = monotonic() + seconds
        try:
            while self.unsent and self.connected:
                self.flush()
                left = until - monotonic()
                if not self.unsent or left <= 0 or not self.peer.wait(left):
                    break
            self.peer.linger(until - monotonic())
        finally:
            self.active = False
            while self._timers:
                self._timers.pop().cancel()
            self.drop(len(self.unsent))
            self.peer.stop()

    @property
    def room(self) -> int:
        """Bytes of output that can be taken."""
        if self.console.lossy or self.gone:
            return CHUNK
        return max(0, self.console.buffer - len(self.unsent))

    def take(self, data: bytes) -> None:
        """Output of the guest's, which it will be told was taken."""
        self._keep(data)
        self._owe(data)

    def write_urgent(self, data: bytes) -> None:
        """An emergency write, on the thread of a vCPU.

        It may be the guest's last: nobody waits for the worker to see it.
        """
        self._keep(data)
        if len(self.urgent) < self.console.buffer:
            self.urgent += data
        else:
            self._count_lost(len(data))

    def take_urgent(self) -> None:
        """What came by emergency writes is owed to the peer as well."""
        if self.urgent:
            data = bytes(self.urgent[: self.room])
            del self.urgent[: len(data)]
            self._owe(data)

    def _keep(self, data: bytes) -> None:
        with self._news:
            self._kept += data
            self._end += len(data)
            del self._kept[: max(0, len(self._kept) - self.console.keep)]
            self._news.notify_all()

    def _owe(self, data: bytes) -> None:
        self.unsent += data
        if self.console.lossy:
            self.drop(len(self.unsent) - self.console.buffer)

    def _count_lost(self, count: int) -> None:
        with self._news:
            self.lost += count

    def drop(self, count: int) -> None:
        """Forget that many bytes, the oldest, of what is unsent."""
        if count > 0:
            del self.unsent[:count]
            self._count_lost(count)

    def flush(self) -> None:
        """Hand on what the peer takes."""
        while self.unsent and self.active and self.connected:
            taken = self.peer.write(bytes(self.unsent[:CHUNK]))
            if taken <= 0:
                if self.connected:
                    self.peer.more()
                break
            del self.unsent[:taken]
        if self.gone:
            self.drop(len(self.unsent))

    def hold(self) -> None:
        """Tell the peer whether the guest has enough input for now."""
        full = len(self.pending) >= INPUT_MOST
        if self.active and full != self._held:
            self._held = full
            self.peer.hold(full)

    # -- state ---------------------------------------------------------------

    def reset(self) -> None:
        """The driver has reset the device."""
        self.opened = self.added = self.accepted = False
        self.skip = 0

    def save(self) -> dict[str, Any]:
        """All but what is on the host's side."""
        return {
            "name": self.name,
            "window": self.window,
            "added": self.added,
            "ready": self.accepted,
            "opened": self.opened,
            "skip": self.skip,
            "input": bytes(self.pending),
            "output": bytes(self.unsent),
            "urgent": bytes(self.urgent),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What save() has returned."""
        self.window = state["window"]
        self.added = state["added"]
        self.accepted = state["ready"]
        self.opened = state["opened"]
        self.skip = state["skip"]
        self.pending[:] = state["input"]
        self.unsent[:] = state["output"]
        self.urgent[:] = state["urgent"]
        self.hold()


def check_window(window: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows; ValueError."""
    columns, rows = window
    for value in (columns, rows):
        if not 0 <= value <= 0xFFFF:
            raise ValueError(f"window {window}: {value} is outside 0..65535")
    return columns, rows

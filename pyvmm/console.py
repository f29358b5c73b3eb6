# SPDX-License-Identifier: Apache-2.0
"""The console of a machine: what the guest printed, and what it reads.

It is the ports 0xe9 to 0xed, or a UART in their place: attach(console=True).

Source: docs/guest-abi.md.
"""

from __future__ import annotations

from threading import RLock

from . import _vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Buffer

    from .machine import Machine

PORTS = (_vmm.CONSOLE_PORT, _vmm.CONSOLE_SIZE, "the console")
WINDOW = 65536  # bytes of output that expect() looks through
TAIL = 400  # characters of output in an error's text


class Console:
    """`m.console`: output as `text` and `bytes`, input by send(), expect().

    Readable after close. Output is kept up to 16 MiB; of a guest that prints
    more the oldest is forgotten (`native.dropped` counts the bytes).

    Threads: any.
    """

    def __init__(self, machine: Machine, target: object) -> None:
        self._machine = machine
        self.native = _vmm.Console()
        self.line: int | None = None  # interrupt for input
        self.device: Any = None  # in place of the ports
        self._lock = RLock()
        self._live: Callable[[bytes], object] | None = None
        self._live_at = 0
        self._flush: Callable[[], object] | None = None
        self._expect_at = 0
        self._pattern: re.Pattern[Any] | None = None
        self._found: re.Match[Any] | None = None
        self._ends_run = False  # the run is expect()'s own
        self._texts: list[_bytes] = []  # until=, with a device as the console
        self._texts_at = 0
        self._connect(target)

    def _connect(self, target: object) -> None:
        """What Machine(console=...) was given."""
        if target is True:
            return
        if isinstance(target, int):
            if target < 0:
                raise ValueError(f"console {target} is no file descriptor")
            self.native.out_fd = target
            return
        if callable(getattr(target, "write", None)):
            self._connect_file(target)
        elif callable(target):
            self._live = target
        else:
            raise TypeError(
                "console is True, False, a callable that takes bytes, a file "
                f"or a file descriptor, not {type(target).__name__}"
            )
        if self._live is not None:
            self.native.on_output = self._on_output
            self.native.lines = True

    def _connect_file(self, file: Any) -> None:
        try:
            fd = file.fileno()
        except (AttributeError, OSError, ValueError):
            fd = -1  # a file in memory, a notebook's, pytest's
        if fd >= 0:
            self.native.out_fd = fd
            self._flush = getattr(file, "flush", None)
        elif hasattr(file, "encoding") or hasattr(file, "getvalue"):
            text = not isinstance(getattr(file, "getvalue", str)(), bytes)
            self._live = _text_writer(file) if text else file.write
        else:
            self._live = file.write

    # -- a device in place of the ports --------------------------------------

    def _check(self, device: Any) -> None:
        """ValueError, TypeError unless this device may be the console."""
        name = type(device).__name__
        if not callable(getattr(device, "send", None)) or not hasattr(
            device, "on_output"
        ):
            raise TypeError(
                f"{name} is no console: it needs send(data) and an on_output"
            )
        if device.on_output is not None:
            raise ValueError(
                f"{name} hands its output to somebody else: where a console's "
                "goes is what Machine(console=...) says"
            )
        if self.device is not None:
            raise ValueError(f"the console is {self.device!r} already")
        if self.line is not None:
            raise ValueError("console_irq is for the console at port 0xe9")
        if self._machine._vm is not None:
            raise ValueError(
                "the machine is made, with a console at port 0xe9: attach "
                f"{name} earlier"
            )

    def _carry(self, device: Any) -> None:
        """This device is the console: what it sends is what is printed."""
        device.on_output = self.native.print
        self.device = device
        self._machine._own_ports.remove(PORTS)

    # -- output --------------------------------------------------------------

    @property
    def bytes(self) -> bytes:
        """All output so far."""
        return self.native.read()

    @property
    def text(self) -> str:
        """All output so far as text: UTF-8, what is none as U+FFFD."""
        return self.bytes.decode("utf-8", "replace")

    @property
    def tail(self) -> str:
        """The end of the output, for error messages."""
        end = self.native.end
        data = self.native.read(max(0, end - TAIL))
        return data.decode("utf-8", "replace")

    def _on_output(self) -> None:
        """Called by the binding, on the thread of the vCPU that printed."""
        with self._lock:
            if self._live is not None:
                self._deliver(whole_lines=True)
            if self._pattern is not None and self._found is None:
                self._found = self._search()
                if self._found is not None:
                    self._machine._runner.matched(self._ends_run)
            if self._texts:
                self._look_for_texts()

    def _deliver(self, whole_lines: bool) -> None:
        """Hand new output to the callable, a line at a time."""
        assert self._live is not None
        data = self.native.read(self._live_at)
        if not data:
            return
        start = self.native.end - len(data)
        for line in data.splitlines(keepends=True):
            if whole_lines and not line.endswith(b"\n"):
                break
            # First count, then call: an exception does not bring it again.
            start += len(line)
            self._live_at = start
            self._live(line)

    def flush(self) -> None:
        """Pass on the output that no newline has ended yet."""
        self.native.flush()
        if self._live is not None:
            with self._lock:
                self._deliver(whole_lines=False)

    def _prepare(self) -> None:
        """A run begins: what Python has buffered for the file goes first."""
        if self._flush is not None:
            self._flush()

    def _want(self, texts: list[_bytes]) -> None:
        """A run ends when one of these has come; none: it does not."""
        if self.device is None:
            self.native.want(texts)
            return
        with self._lock:
            self._texts, self._texts_at = texts, self.native.end
            self.native.watch = bool(texts)
            if texts:
                self.native.on_output = self._on_output
            elif self._live is None:
                self.native.on_output = None

    def _look_for_texts(self) -> None:
        """The console is a device's: its run is ended from outside."""
        longest = max(map(len, self._texts))
        seen = self.native.read(self._texts_at)
        if any(text in seen for text in self._texts):
            self._texts = []
            self._machine._runner.ask("until")
        self._texts_at = max(self._texts_at, self.native.end - longest + 1)

    # -- snapshots -----------------------------------------------------------

    def _save(self) -> tuple[_bytes, int, _bytes, int]:
        """The output, its end, the input, and how far expect() has come."""
        native = self.native
        return native.read(), native.end, native.input, self._expect_at

    def _load(self, saved: tuple[_bytes, int, _bytes, int]) -> None:
        output, end, waiting, expect_at = saved
        native = self.native
        if (
            native.end == end
            and native.input == waiting
            and self._expect_at == expect_at
        ):
            return
        with self._lock:
            if native.end < end:  # a clone's, or one of before
                native.print(output[len(output) - (end - native.end) :])
            native.rewind(end, waiting)
            self._expect_at = min(expect_at, native.end)
            self._live_at = min(self._live_at, native.end)

    # -- input ---------------------------------------------------------------

    def send(self, data: str | Buffer) -> None:
        """Give input to the guest: text (as UTF-8) or bytes.

        It waits until the guest reads it; with Machine(console_irq=...) the
        guest is interrupted as well. A device that is the console does both
        in its own way.
        """
        if isinstance(data, str):
            data = data.encode()
        if self.device is not None:
            self.device.send(data)
            return
        self.native.send(data)
        vm = self._machine._vm
        if self.line is not None and vm is not None and not vm.closed:
            vm.irq_line(self.line, True)
            vm.irq_line(self.line, False)

    # -- expect --------------------------------------------------------------

    def expect(
        self, pattern: str | _bytes, timeout: float | None = None
    ) -> re.Match[Any]:
        """Run until the output matches a regular expression; the match.

        Looks at what came after the match of the expect() before, at most the
        last 64 KiB of it, and runs the machine unless that matches already (or
        waits, when it runs in the background). Text patterns give a match of
        text, in which bytes that are no UTF-8 are surrogates; patterns of
        bytes one of bytes.

        Raises GuestTimeout after `timeout` seconds, GuestError when the guest
        ends first; both texts end with what was printed last.
        """
        import re

        from .running import run_for_match

        with self._lock:
            if self._pattern is not None:
                raise RuntimeError("expect() is waiting on another thread")
            self._pattern = re.compile(pattern)
            # From here on each byte is looked at: what comes during the search
            # must not be missed.
            self.native.on_output = self._on_output
            self.native.watch = True
            self._found = self._search()
        try:
            if self._found is None:
                run_for_match(self._machine, self, timeout)
        finally:
            with self._lock:
                match, self._found = self._found, None
                self._pattern = None
                self.native.watch = False
                if self._live is None:
                    self.native.on_output = None
        assert match is not None
        return match

    @property
    def _matched(self) -> bool:
        """Whether the expect() that is waiting has what it waits for."""
        return self._found is not None

    @property
    def _expected(self) -> str:
        """The pattern that expect() waits for."""
        return repr(self._pattern.pattern) if self._pattern else "nothing"

    def _search(self) -> re.Match[Any] | None:
        """The next match, which is taken; None when there is none yet."""
        assert self._pattern is not None
        end = self.native.end
        start = max(self._expect_at, end - WINDOW)
        data = self.native.read(start)
        start = end - len(data)
        match: re.Match[Any] | None
        if isinstance(self._pattern.pattern, _bytes):
            match = self._pattern.search(data)
            taken = match.end() if match else 0
        else:
            text = data.decode("utf-8", "surrogateescape")
            match = self._pattern.search(text)
            before = text[: match.end()] if match else ""
            taken = len(before.encode("utf-8", "surrogateescape"))
        if match is not None:
            self._expect_at = start + taken
        return match

    def __repr__(self) -> str:
        return f"<Console {self.native.end} bytes: {self.tail[-60:]!r}>"


_bytes = bytes  # the class has a property of that name


def _text_writer(file: Any) -> Callable[[bytes], object]:
    """A callable that writes bytes to a file of text."""

    def write(data: bytes) -> None:
        file.write(data.decode("utf-8", "replace"))

    return write

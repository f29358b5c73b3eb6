# SPDX-License-Identifier: Apache-2.0
"""Console and ExitPort, as far as they go without a guest."""

import gc
import os
import threading
import weakref

import pytest

from pyvmm._vmm import Console, ExitPort


def test_output_by_position() -> None:
    console = Console()
    assert console.end == console.dropped == 0 and console.read() == b""
    console.print(b"hello ")
    console.print(bytearray(b"world"))
    assert console.end == 11
    assert console.read() == console.read(0, -1) == b"hello world"
    assert console.read(6) == b"world"
    assert console.read(start=6, size=3) == b"wor"
    assert console.read(11) == console.read(2**64 - 1) == b""
    assert console.read(0, 0) == b""
    assert repr(console) == (
        "<Console 11 bytes printed, 0 dropped, 0 of input waiting>"
    )


def test_the_oldest_output_is_dropped() -> None:
    console = Console(limit=1000)
    data = bytes(i & 255 for i in range(5000))
    for i in range(0, 5000, 10):
        console.print(data[i : i + 10])
    assert console.end == 5000
    assert 5000 - 1000 <= console.dropped < 5000
    assert console.read() == data[console.dropped :]
    assert console.read(0, 10) == data[console.dropped : console.dropped + 10]
    console.print(data)
    assert console.end == 10000 and console.read() == data[-1000:]


def test_input() -> None:
    console = Console()
    assert console.waiting == 0
    console.send(b"abc")
    console.send(memoryview(b"de"))
    assert console.waiting == 5
    assert console.end == 0


def test_lines_go_to_out_fd() -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    try:
        console = Console()
        assert console.out_fd == -1
        console.out_fd = write
        console.print(b"a line\nand ")
        assert os.read(read, 100) == b"a line\nand "
        console.print(b"more")
        with pytest.raises(BlockingIOError):
            os.read(read, 100)
        console.flush()
        assert os.read(read, 100) == b"more"
        console.out_fd = -1
        console.print(b"unheard\n")
        with pytest.raises(BlockingIOError):
            os.read(read, 100)
    finally:
        os.close(read)
        os.close(write)


def test_a_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        console = Console()
        console.out_fd = write
        console.print(b"anyone?\n")  # Python ignores SIGPIPE
        assert console.out_fd == -1 and console.read() == b"anyone?\n"
    finally:
        os.close(write)


def test_who_waits_for_the_pipe_waits_without_the_gil() -> None:
    """The reader is a Python thread: it must run while the pipe is full."""
    read, write = os.pipe()
    console = Console()
    console.out_fd = write
    data = b"x" * 999_999 + b"\n"
    got = bytearray()

    def drain() -> None:
        while len(got) < len(data):
            got.extend(os.read(read, 65536))

    threads = [
        threading.Thread(target=drain, daemon=True),
        threading.Thread(target=console.print, args=(data,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    # The lock is held by the printer: all these wait for the reader.
    while console.end != len(data):
        assert console.waiting == console.dropped == 0
    assert console.read() == data and console.out_fd == write
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert got == data
    os.close(read)
    os.close(write)


def test_on_output() -> None:
    console = Console()
    calls = []
    console.on_output = lambda: calls.append(console.end)
    console.print(b"a\n")
    assert calls == []
    console.lines = True
    console.print(b"b")
    console.print(b"c\nd\n")
    assert calls == [7]
    console.watch, console.lines = True, False
    console.print(b"e")
    assert calls == [7, 8]
    console.on_output = None
    console.print(b"f")
    assert calls == [7, 8] and console.on_output is None


def test_on_output_raises() -> None:
    console = Console()
    console.watch = True

    def fails() -> None:
        raise KeyError("by the author")

    console.on_output = fails
    with pytest.raises(KeyError, match="by the author"):
        console.print(b"kept")
    assert console.read() == b"kept"


def test_on_output_replaces_itself() -> None:
    console = Console()
    console.watch = True

    def once() -> None:
        console.on_output = None
        gc.collect()

    console.on_output = once
    del once
    console.print(b"x")
    console.print(b"y")
    assert console.end == 2


def test_attributes() -> None:
    console = Console()
    assert console.watch is console.lines is False
    with pytest.raises(TypeError, match="on_output must be callable, not int"):
        console.on_output = 5  # type: ignore[assignment]
    with pytest.raises(ValueError, match="out_fd -2 is no file descriptor"):
        console.out_fd = -2
    with pytest.raises(TypeError):
        console.out_fd = "1"  # type: ignore[assignment]
    for name in ("watch", "lines", "out_fd"):
        with pytest.raises(AttributeError, match="cannot be deleted"):
            delattr(console, name)
    with pytest.raises(AttributeError):
        console.end = 5  # type: ignore[misc]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Console(limit=0)
    with pytest.raises(ValueError, match="limit -1 is outside"):
        Console(limit=-1)
    with pytest.raises(TypeError):
        Console(100)  # type: ignore[misc]
    console = Console(limit=1)
    console.print(b"abc")
    assert console.read() == b"c" and console.dropped == 2
    with pytest.raises(ValueError, match="start -1 is outside"):
        console.read(-1)
    for use in (console.print, console.send):
        with pytest.raises(TypeError):
            use("text")  # type: ignore[arg-type]


def test_cycle_is_collected() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.console = Console()
            self.console.on_output = self.look

        def look(self) -> None: ...

    watcher = Watcher()
    gone = weakref.ref(watcher)
    del watcher
    gc.collect()
    assert gone() is None


def test_exit_port() -> None:
    assert repr(ExitPort()) == "<ExitPort>"
    with pytest.raises(TypeError):
        ExitPort(1)  # type: ignore[call-arg]

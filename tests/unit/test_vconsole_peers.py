# SPDX-License-Identifier: Apache-2.0
"""What ports of a Console are wired to: files, sockets, terminals."""

import errno
import fcntl
import io
import os
import pty
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from vguest import PORT_NAME, PORT_OPEN, Guest

from pyvmm import virtio
from pyvmm.devices import console_peers, console_terminals
from pyvmm.devices.console import Call, Console, Pty, Socket, Stdio, Stream


def console(*args: Any, **options: Any) -> Console:
    return Console(*args, notify="inline", **options)


def until(drv: virtio.Driver, done: Callable[[], object]) -> None:
    """Let the device's worker do what is to be done, until it has."""
    for _ in range(100):
        if done():
            return
        drv.poll(0.1)
    raise AssertionError("it did not come")


def read(fd: int, size: int) -> bytes:
    """So many bytes, however they come."""
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], 20)[0], data
        piece = os.read(fd, size - len(data))
        assert piece, data
        data += piece
    return data


def get(sock: socket.socket, size: int) -> bytes:
    return read(sock.fileno(), size)


# -- files and streams ---------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"first ")
        con = console(output=file)
        with virtio.driver(con) as drv:
            drv.transmit(b"out")
            file.close()  # it is copied
            drv.transmit(b"put")
    assert path.read_bytes() == b"first output" and con.lost == 0


def test_a_file_that_is_closed_too_early(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        con = console(file)
    with pytest.raises(ValueError, match="closed file"):
        virtio.driver(con)
    one, other = socket.socketpair()
    con = console(one)
    one.close()
    other.close()
    with pytest.raises(ValueError, match="is closed"):
        virtio.driver(con)


def test_files_in_memory() -> None:
    file = io.BytesIO()
    with virtio.driver(console(file)) as drv:
        drv.transmit(b"out")
    assert file.getvalue() == b"out"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (io.StringIO, "takes text"),
        (Path(os.devnull).open, "not open for writing"),
    ],
)
def test_files_that_do_not_fit(make: Callable[[], Any], text: str) -> None:
    with make() as file, pytest.raises(ValueError, match=text):
        console(file)


def test_a_text_files_bytes(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        file.write("first ")
        with virtio.driver(console(file)) as drv:
            drv.transmit(b"out")
    assert (tmp_path / "log").read_text() == "first out"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tmp_path: Path) -> None:
    """What there is no room for waits, and is written later."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        con = console(file, buffer=4)
        with virtio.driver(con) as drv:
            with full_disk(10):
                drv.transmit(b"0123456")
                sent = drv.transmit.send(b"789abcdefg")
                for _ in range(5000):  # each time it is tried, and fails
                    drv.transmit.notify()
                drv.advance(5)
                drv.transmit.collect()
                assert path.read_bytes() == b"0123456789"
                assert not sent.done
                error = con.ports[""].peer.error  # type: ignore[attr-defined]
                assert error.errno == errno.EFBIG
            drv.advance(1)
            sent.wait()
    assert path.read_bytes() == b"0123456789abcdefg" and con.lost == 0


def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        con = console(file)
        with full_disk(4), virtio.driver(con) as drv:
            drv.transmit(b"0123456")
    assert con.lost == 3


def test_a_pipe_that_is_slow_then_closed() -> None:
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    con = console(Stream(-1, sink), buffer=1000)
    with virtio.driver(con) as drv:
        sent = [drv.transmit.send(b"x" * 1000) for _ in range(8)]
        drv.transmit.collect()
        assert 4 <= sum(request.done for request in sent) < 8
        assert os.get_blocking(sink)  # the caller's is as it was

        def read() -> bool:
            os.read(source, 1000)
            drv.transmit.collect()
            return sent[-1].done

        until(drv, read)
        os.close(source)
        drv.transmit(b"y")
        assert not con.ports[""].connected and con.lost > 0
        drv.transmit(b"z")
    os.close(sink)


def test_input_of_a_pipe_ends() -> None:
    source, sink = os.pipe()
    con = console(Stream(source))
    with virtio.driver(con) as drv:
        os.write(sink, b"abc")
        until(drv, lambda: con.waiting == 3)
        os.close(sink)
        os.close(source)
        assert drv.poll() and not drv.poll()
        assert drv.receive(reply=9) == b"abc"


@pytest.mark.parametrize("size", [3, 1 << 17])
def test_input_of_a_file(tmp_path: Path, size: int) -> None:
    """It is not read faster than the guest takes it."""
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as file:
        con = console(Stream(file.fileno()))
        with virtio.driver(con) as drv:
            seen = b""
            while len(seen) < size:
                drv.poll()
                assert con.waiting < 2 << 16  # one read more
                seen += drv.receive(reply=5000)
    assert seen == data


def test_null() -> None:
    """A descriptor that cannot be watched, and is at its end."""
    fd = os.open(os.devnull, os.O_RDWR)
    with virtio.driver(console(Stream(fd, fd))) as drv:
        drv.transmit(b"x")
        assert drv.device.lost == 0
    os.close(fd)


def test_a_connected_socket() -> None:
    ours, guests = socket.socketpair()
    con = console(guests)
    with virtio.driver(con) as drv, ours:
        guests.close()
        ours.send(b"in")
        until(drv, lambda: con.waiting)
        assert drv.receive(reply=9) == b"in"
        drv.transmit(b"out")
        assert get(ours, 3) == b"out"


def test_stdio_that_is_closed() -> None:
    with virtio.driver(console(Stream(9999, 9999))) as drv:
        drv.transmit(b"x")
    assert drv.device.lost == 1


# -- sockets -------------------------------------------------------------------


def client(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(os.fspath(path))
    return sock


def test_a_socket_whose_clients_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "s"
    con = console(ports={"cmd": Socket(path)})
    port = con.ports["cmd"]
    with Guest(con) as guest:
        assert guest.boot(0, 1)[3:] == [(1, PORT_NAME, b"cmd")]
        guest.open(1)
        guest.drv.transmit1(b"early ")
        for round in range(3):
            with client(path) as sock:
                until(guest.drv, lambda: port.connected)
                assert guest.hear() == [(1, PORT_OPEN, 1)]
                guest.drv.transmit1(b"%d" % round)
                expected = b"early 0" if round == 0 else b"%d" % round
                assert get(sock, len(expected)) == expected
                sock.send(b"in%d" % round)
                until(guest.drv, lambda: port.waiting)
                assert guest.drv.receive1(reply=9) == b"in%d" % round
            until(guest.drv, lambda: not port.connected)
            assert guest.hear() == [(1, PORT_OPEN, 0)]
    assert not path.exists() and port.lost == 0


def test_one_client_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "s"
    con = console(Socket(path))
    with virtio.driver(con) as drv, client(path) as second:
        second.send(b"second")
        until(drv, lambda: con.waiting)
        third = client(path)
        third.send(b"third")
        drv.poll()
        assert drv.receive(reply=99) == b"second"
        second.close()
        until(drv, lambda: con.waiting)
        assert drv.receive(reply=99) == b"third"
        third.close()


def test_a_client_that_has_said_all(tmp_path: Path) -> None:
    """It still gets the answer; the next one may come meanwhile."""
    path = tmp_path / "s"
    con = console(Socket(path))
    with virtio.driver(con) as drv, client(path) as first:
        first.send(b"question")
        first.shutdown(socket.SHUT_WR)
        until(drv, lambda: con.waiting)
        until(drv, lambda: not drv.poll())
        drv.transmit(b"answer")
        assert get(first, 6) == b"answer" and con.ports[""].connected
        with client(path) as second:
            until(
                drv,
                lambda: (
                    first.recv(99, socket.MSG_DONTWAIT) == b""
                    if not drv.poll()
                    else False
                ),
            )
            drv.transmit(b"next")
            assert get(second, 4) == b"next"
            second.shutdown(socket.SHUT_WR)
            until(drv, lambda: not drv.poll())
        until(drv, lambda: not con.ports[""].connected)


def test_a_client_that_goes_with_bytes_unsent(tmp_path: Path) -> None:
    """What it was not given is the next one's."""
    path = tmp_path / "s"
    con = console(Socket(path), buffer=1 << 16)
    data = bytes(range(256)) * 4096
    with virtio.driver(con) as drv:
        first = client(path)
        until(drv, lambda: con.ports[""].connected)
        sent = [
            drv.transmit.send(data[i : i + (1 << 16)])
            for i in range(0, len(data), 1 << 16)
        ]
        drv.transmit.collect()
        assert not sent[-1].done
        first.close()
        until(drv, lambda: not con.ports[""].connected)
        rest = con.buffer
        with client(path) as second:
            second.setblocking(False)
            seen = b""

            def read() -> bool:
                nonlocal seen
                with suppress(BlockingIOError):
                    seen += second.recv(1 << 16)
                drv.transmit.collect()
                return sent[-1].done and seen.endswith(data[-rest:])

            until(drv, read)
        assert data.endswith(seen) and len(seen) < len(data)


def test_a_socket_that_connects(tmp_path: Path) -> None:
    path = tmp_path / "s"
    con = console(Socket(path, connect=True))
    with virtio.driver(con) as drv:
        drv.transmit(b"early")
        drv.advance(2.5)
        assert not con.ports[""].connected
        for round in range(2):
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.fspath(path))
                server.listen()
                drv.advance(1)
                assert con.ports[""].connected
                drv.poll()
                peer, _ = server.accept()
            with peer:
                if round == 0:
                    assert get(peer, 5) == b"early"
                peer.send(b"in")
                until(drv, lambda: con.waiting)
                assert drv.receive(reply=9) == b"in"
            os.unlink(path)
            until(drv, lambda: not con.ports[""].connected)


def test_a_dead_socket_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with virtio.driver(console(Socket(path))):
        pass
    assert not path.exists()


def test_something_else_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with virtio.driver(console(Socket(path))) as drv:
        with pytest.raises(OSError, match=r"in use.*s'") as caught:
            virtio.driver(console(Socket(path)))
        assert caught.value.errno == errno.EADDRINUSE
        with client(path) as sock:
            drv.transmit(b"mine")
            until(drv, lambda: drv.device.ports[""].connected)
            assert get(sock, 4) == b"mine"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        virtio.driver(console(Socket(path)))
    assert path.read_text() == "precious"


def test_another_has_taken_the_path(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with virtio.driver(console(Socket(path))):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_no_descriptor_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    con = console(Socket(path))
    with virtio.driver(con) as drv, client(path):

        def accept(self: object) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", accept)
            assert drv.poll() and not drv.poll()
        drv.advance(1)
        until(drv, lambda: con.ports[""].connected)


@pytest.mark.parametrize("path", ["", "a" * 108, "a\0b"])
def test_paths(path: str) -> None:
    with pytest.raises(ValueError, match="no path of 1 to 107 bytes"):
        Socket(path)


# -- a pseudo terminal ---------------------------------------------------------


def set_window(fd: int, columns: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("<4H", rows, columns, 0, 0))


def test_a_pty_that_is_opened_and_closed() -> None:
    told: list[str] = []
    pty = Pty(told.append)
    con = console(ports={"tty": pty})
    port = con.ports["tty"]
    with Guest(con) as guest:
        drv = guest.drv
        assert told == [pty.path] and pty.path.startswith("/dev/pts/")
        assert guest.boot(0, 1)[3:] == [(1, PORT_NAME, b"tty")]
        guest.open(1)
        drv.transmit1(b"early\n")
        for early in (b"early\n", b""):
            fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
            assert os.get_terminal_size(fd) == (80, 24)
            drv.advance(0.25)
            assert guest.hear() == [(1, PORT_OPEN, 1)]
            drv.transmit1(b"\x00\x03\x04\r\n")
            expected = early + b"\x00\x03\x04\r\n"
            assert read(fd, len(expected)) == expected
            os.write(fd, b"\x03in\r")
            until(drv, lambda: port.waiting)
            assert drv.receive1(reply=9) == b"\x03in\r"
            os.close(fd)
            until(drv, lambda: not port.connected)
            assert guest.hear() == [(1, PORT_OPEN, 0)]
    assert port.text.startswith("early\n\0") and port.lost == 0
    assert not os.path.exists(pty.path)


def test_a_brief_visit_to_a_pty() -> None:
    pty = Pty()
    con = console(pty)
    with virtio.driver(con) as drv:
        for text in (b"one\r", b"two\r"):
            fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
            os.write(fd, text)
            os.close(fd)
            drv.advance(0.25)
            until(drv, lambda: con.waiting)
            assert drv.receive(reply=9) == text
            assert not con.ports[""].connected


def test_a_hangup_is_no_busy_loop() -> None:
    pty = Pty()
    with virtio.driver(console(pty)) as drv:
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        drv.advance(0.25)
        os.close(fd)
        until(drv, lambda: not drv.device.ports[""].connected)
        assert drv.poll() in (0, 1) and drv.poll() == 0


def test_a_hangup_while_nothing_is_read() -> None:
    pty = Pty()
    con = console(pty)
    with virtio.driver(con) as drv:
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        drv.advance(0.25)
        con.send(b"x" * (1 << 17))
        drv.poll()
        os.close(fd)
        drv.advance(0.25)
        assert not con.ports[""].connected
        drv.transmit(b"kept")
        while con.waiting:
            drv.receive(reply=4096)
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        drv.advance(0.25)
        assert read(fd, 4) == b"kept"
        os.close(fd)


def test_nobody_reads_the_pty() -> None:
    """The kernel has room for some; then the guest waits."""
    pty = Pty()
    con = console(pty, buffer=5000)
    with virtio.driver(con) as drv:
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        drv.advance(0.25)
        sent = [drv.transmit.send(b"%04d" % i * 256) for i in range(200)]
        drv.transmit.collect()
        assert not sent[-1].done
        seen = b""
        while len(seen) < 200 * 1024:
            drv.poll(0.1)
            seen += os.read(fd, 1 << 16)
        assert seen == b"".join(b"%04d" % i * 256 for i in range(200))
        os.close(fd)


@pytest.mark.parametrize("reads", [True, False])
def test_what_was_not_read_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """The kernel would drop it; the wait ends when who reads has gone, too."""
    pty = Pty()
    fd = -1
    seen = b""

    def pause(seconds: float) -> None:
        nonlocal seen
        if reads:
            seen += os.read(fd, 3)
        else:
            os.close(fd)

    monkeypatch.setattr(console_terminals, "sleep", pause)
    with virtio.driver(console(pty)) as drv:
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        drv.advance(0.25)
        drv.transmit(b"the end")
    if reads:
        assert seen == b"the end"
        os.close(fd)


def test_the_window_of_a_pty() -> None:
    pty = Pty()
    con = console(pty, window=(90, 30))
    with virtio.driver(con) as drv:
        fd = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
        assert os.get_terminal_size(fd) == (90, 30)
        set_window(fd, 132, 43)
        drv.advance(0.25)
        drv.poll()
        assert drv.config["size"] == con.window == (132, 43)
        os.close(fd)


# -- this terminal -------------------------------------------------------------


class Terminal:
    """A pseudo terminal in place of the standard input and output."""

    def __init__(self) -> None:
        self.fd, self.end = pty.openpty()
        set_window(self.end, 100, 40)

    def stdio(self, **options: Any) -> Stdio:
        peer = Stdio(**options)
        peer.source = peer.sink = self.end
        return peer

    @property
    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.end)

    @property
    def is_raw(self) -> bool:
        keys = termios.ICANON | termios.ECHO | termios.ISIG
        return not self.mode[3] & keys and bool(self.mode[1] & termios.OPOST)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.fd)
    os.close(terminal.end)


def test_raw_mode_and_back(terminal: Terminal) -> None:
    before = terminal.mode
    con = console(terminal.stdio())
    with virtio.driver(con) as drv:
        assert terminal.is_raw and os.get_blocking(terminal.end)
        os.write(terminal.fd, b"\x03a\r")
        until(drv, lambda: con.waiting == 3)
        assert drv.receive(reply=9) == b"\x03a\r"
        drv.transmit(b"out\n")
        assert read(terminal.fd, 5) == b"out\r\n"
    assert terminal.mode == before


def test_raw_mode_ends_with_an_exception(terminal: Terminal) -> None:
    before = terminal.mode
    with pytest.raises(KeyError), virtio.driver(console(terminal.stdio())):
        assert terminal.is_raw
        raise KeyError
    assert terminal.mode == before


def test_not_raw(terminal: Terminal) -> None:
    before = terminal.mode
    with virtio.driver(console(terminal.stdio(raw=False))):
        assert terminal.mode == before


def test_the_escape_interrupts(terminal: Terminal) -> None:
    con = console(terminal.stdio())
    with virtio.driver(con) as drv:
        os.write(terminal.fd, b"ab\x1dcd")
        with pytest.raises(KeyboardInterrupt):
            until(drv, lambda: False)
        assert con.ports[""].pending == b"ab"


@pytest.mark.parametrize("escape", [b"\x01", None])
def test_another_escape(terminal: Terminal, escape: bytes | None) -> None:
    con = console(terminal.stdio(escape=escape))
    with virtio.driver(con) as drv:
        os.write(terminal.fd, b"\x1d")
        until(drv, lambda: con.waiting)
    with pytest.raises(ValueError, match="b'ab' is not one byte"):
        Stdio(escape=b"ab")


def test_the_window_is_followed(terminal: Terminal) -> None:
    con = console(terminal.stdio())
    with virtio.driver(con) as drv:
        drv.poll()
        assert drv.config["size"] == (100, 40)
        set_window(terminal.end, 50, 20)
        drv.advance(0.25)
        drv.poll()
        assert drv.config["size"] == (50, 20)


def test_signals(terminal: Terminal) -> None:
    """A new window is told; a deadly signal finds the terminal restored."""
    seen: list[bool] = []
    before = terminal.mode
    old = signal.signal(
        signal.SIGTERM, lambda *_: seen.append(terminal.mode == before)
    )
    try:
        con = console(terminal.stdio(signals=True))
        with virtio.driver(con) as drv:
            set_window(terminal.end, 50, 20)
            signal.raise_signal(signal.SIGWINCH)
            drv.poll()
            assert con.window == (50, 20) and terminal.is_raw
            signal.raise_signal(signal.SIGTERM)
            assert seen == [True]
        assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, old)


def test_signals_of_another_thread(terminal: Terminal) -> None:
    before = terminal.mode
    failed: list[BaseException] = []

    def attach() -> None:
        try:
            virtio.driver(console(terminal.stdio(signals=True)))
        except ValueError as exc:
            failed.append(exc)

    thread = threading.Thread(target=attach)
    thread.start()
    thread.join()
    assert "main thread" in str(failed[0])
    assert terminal.mode == before


AT_EXIT = """
import sys
from pyvmm import virtio
from pyvmm.devices.console import Console, Stdio
drv = virtio.driver(Console(Stdio()))
drv.transmit(b"raw")
if sys.argv[1] == "exception":
    raise KeyError
"""


@pytest.mark.parametrize("how", ["end", "exception"])
def test_raw_mode_ends_with_the_process(terminal: Terminal, how: str) -> None:
    before = terminal.mode
    child = subprocess.Popen(
        [sys.executable, "-c", AT_EXIT, how],
        stdin=terminal.end,
        stdout=terminal.end,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert read(terminal.fd, 3) == b"raw"
    child.communicate(timeout=60)
    assert child.returncode == int(how == "exception")
    assert terminal.mode == before


def test_repr(tmp_path: Path) -> None:
    assert repr(Pty()) == "<Pty not attached>"
    assert repr(Socket("s")) == "<Socket at s>"
    assert repr(Socket("s", connect=True)) == "<Socket to s>"
    assert repr(Call(print)) == "<Call>"


def test_another_users_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened again, and must not be made non-blocking."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "permission denied", path)

    con = console(terminal.stdio(), buffer=1000)
    with monkeypatch.context() as patch:
        patch.setattr(console_peers.os, "open", refuse)
        drv = virtio.driver(con)
    with drv:
        sent = [drv.transmit.send(b"x" * 1000) for _ in range(100)]
        drv.transmit.collect()
        assert not sent[-1].done and os.get_blocking(terminal.end)
        seen = 0
        while seen < 100_000:
            drv.poll(0.1)
            seen += len(os.read(terminal.fd, 1 << 16))
        drv.transmit.wait_all()

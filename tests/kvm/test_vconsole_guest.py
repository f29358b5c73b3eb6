# SPDX-License-Identifier: Apache-2.0
"""Console in front of a guest's driver, guest/vconsole, with each peer."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm.devices.console import Console, Pty, Socket

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
GUEST = str(ROOT / "build/guest/vconsole.elf")
DEVICE = str(ROOT / "devices-py/console.py")


@pytest.fixture
def m() -> Iterator[pyvmm.Machine]:
    with pyvmm.Machine() as machine:
        yield machine


def pattern(size: int) -> bytes:
    return bytes(i % 256 for i in range(size))


def client(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(os.fspath(path))
    return sock


def read(fd: int, size: int) -> bytes:
    """So many bytes; an error when they do not come."""
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], 20)[0], data
        piece = os.read(fd, size - len(data))
        assert piece, data
        data += piece
    return data


# -- in Python -----------------------------------------------------------------


@pytest.mark.parametrize("notify", ["thread", "inline", "asyncio"])
def test_bytes_in_and_a_callable_out(m: pyvmm.Machine, notify: str) -> None:
    seen: list[bytes] = []
    con = m.attach(Console(input="abc.", output=seen.append, notify=notify))
    m.load(GUEST, cmdline="hello=hello- echo")
    assert m.run(timeout=20).status == 0
    assert m.console.text.endswith("interrupts: some\n")
    assert con.text == b"".join(seen).decode() == "hello-ABC."
    assert con.faults == 0 and con.native.faults == 0


def test_more_input_than_the_guest_has_room_for(m: pyvmm.Machine) -> None:
    data = "abcdefghij" * 1000
    con = m.attach(Console())
    con.send(data + ".")
    m.load(GUEST, cmdline="echo")
    assert m.run(timeout=20).status == 0
    assert con.text == data.upper() + "." and not con.waiting


def test_expect_runs_the_machine(m: pyvmm.Machine) -> None:
    con = m.attach(Console())
    m.load(GUEST, cmdline="hello=login: echo")
    con.expect("login:", timeout=20)
    assert not m.running
    con.send("root")
    assert con.expect("R(O+)T", timeout=20)[1] == "OO"
    con.send("again")
    m.start()
    con.expect("AGAIN", timeout=20)
    assert m.pause().reason == "pause"
    con.send(".")
    with pytest.raises(pyvmm.GuestError, match="'never' did not come: exit"):
        con.expect("never", timeout=20)


def test_emergency_writes(m: pyvmm.Machine) -> None:
    """Before the driver is set up, and with it."""
    con = m.attach(Console(input="."))
    m.load(GUEST, cmdline="early=early hello=HELLO late=late echo")
    assert m.run(timeout=20).status == 0
    assert con.text == "earlyHELLOlate."


def test_emergency_writes_alone(m: pyvmm.Machine) -> None:
    con = m.attach(Console())
    m.load(
        asm=f"mov ecx, 0x100; l: mov [{con.base + 0x108}], ecx; loop l;"
        "mov al, 3; out 0xf4, al"
    )
    assert m.run(timeout=20).status == 3
    assert con.output == bytes(i % 256 for i in range(256, 0, -1))


def test_an_exception_of_the_callable_ends_the_run(m: pyvmm.Machine) -> None:
    fails = [True]

    def output(data: bytes) -> None:
        if fails:
            fails.clear()
            raise KeyError("mine")

    con = m.attach(Console(output, input="."))
    m.load(GUEST, cmdline="hello=hello echo")
    with pytest.raises(KeyError, match="mine"):
        m.run(timeout=20)
    assert m.run(timeout=20).status == 0
    assert con.text == "hello."


def test_resize_while_it_runs(m: pyvmm.Machine) -> None:
    con = m.attach(Console(window=(90, 30)))
    m.load(GUEST, cmdline="hello=ready resizes=2")
    con.expect("ready", timeout=20)
    con.resize(132, 43)
    m.console.expect("port 0 has 132 columns, 43 rows\n", timeout=20)
    con.resize(1, 2)
    assert m.run(timeout=20).status == 0
    lines = m.console.text.splitlines()
    assert lines[0] == "1 ports, 90 columns, 30 rows"
    assert lines[2] == "port 0 has 1 columns, 2 rows"


def test_reload_while_it_runs(m: pyvmm.Machine) -> None:
    con = m.attach(Console(ports={"cmd": None}))
    m.load(GUEST, cmdline="ports=4 open echo hello=ready")
    m.console.expect("port 1 connected\n", timeout=20)
    m.start(timeout=60)
    con.ports["cmd"].send("before")
    con.ports["cmd"].expect("BEFORE", timeout=20)
    m.reload(con)
    assert type(con) is not Console
    con.ports["cmd"].send("after.")
    con.ports["cmd"].expect("AFTER", timeout=20)
    assert m.wait(20).status == 0


def test_state_of_a_guest_that_goes_on(m: pyvmm.Machine) -> None:
    con = m.attach(Console(ports={"cmd": None}))
    m.load(GUEST, cmdline="ports=4 open echo hello=ready")
    m.console.expect("port 1 connected\n", timeout=20)
    con.send("typed")
    state = con.save()
    con.ports["cmd"].opened = False
    con.ports[""].pending.clear()
    con.restore(state)
    con.expect("TYPED", timeout=20)
    con.ports["cmd"].send("x.")
    assert m.run(timeout=20).status == 0
    assert con.ports["cmd"].text == "X."


# -- ports ---------------------------------------------------------------------


def test_ports(m: pyvmm.Machine, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        con = m.attach(Console(ports={"log": log, "cmd": None}))
        m.load(GUEST, cmdline="ports=4 open echo")
        m.console.expect("port 2 connected\n", timeout=20)
        con.ports["log"].send("line\n")
        con.ports["cmd"].send("go")
        con.ports["cmd"].expect("GO", timeout=20)
        con.ports["log"].expect("LINE\n", timeout=20)
        con.send("end.")
        assert m.run(timeout=20).status == 0
    assert m.console.text == (
        "3 ports, 80 columns, 24 rows\n"
        "port 0 added\nport 1 added\nport 2 added\n"
        "port 0 is a console\nport 0 has 80 columns, 24 rows\n"
        "port 0 connected\n"
        "port 1 is log\nport 1 connected\n"
        "port 2 is cmd\nport 2 connected\n"
        "interrupts: some\n"
    )
    assert (tmp_path / "log").read_text() == "LINE\n"
    assert con.faults == 0


def test_ports_come_and_go(m: pyvmm.Machine) -> None:
    con = m.attach(Console(max_ports=3))
    m.load(GUEST, cmdline="ports=4 open echo")
    m.console.expect("port 0 connected\n", timeout=20)
    m.start(timeout=60)
    for _ in range(2):
        port = con.add("more", console=True)
        m.console.expect(
            "port 1 added\nport 1 is a console\nport 1 is more\n"
            "port 1 has 80 columns, 24 rows\nport 1 connected\n",
            timeout=20,
        )
        port.send("abc")
        port.expect("ABC", timeout=20)
        port.resize(5, 6)
        m.console.expect("port 1 has 5 columns, 6 rows\n", timeout=20)
        con.remove("more")
        m.console.expect("port 1 removed\n", timeout=20)
    con.send(".")
    assert m.wait(20).status == 0 and con.faults == 0


# -- sockets -------------------------------------------------------------------


def test_a_socket(m: pyvmm.Machine, tmp_path: Path) -> None:
    """Clients come and go; the guest is told."""
    path = tmp_path / "cmd"
    m.attach(Console(ports={"cmd": Socket(path)}))
    m.load(GUEST, cmdline="ports=4 open echo")
    m.console.expect("port 1 is cmd\n", timeout=20)
    m.start(timeout=60)
    for data in (b"first", b"second", b"third."):
        with client(path) as sock:
            m.console.expect("port 1 connected\n", timeout=20)
            sock.send(data)
            assert read(sock.fileno(), len(data)) == data.upper()
        if data != b"third.":
            m.console.expect("port 1 alone\n", timeout=20)
    assert m.wait(20).status == 0


def test_a_socket_that_connects(m: pyvmm.Machine, tmp_path: Path) -> None:
    path = tmp_path / "server"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        con = m.attach(Console(Socket(path, connect=True)))
        m.load(GUEST, cmdline="hello=hello echo")
        m.start(timeout=60)
        peer, _ = server.accept()
        with peer:
            assert read(peer.fileno(), 5) == b"hello"
            peer.send(b"end.")
            assert m.wait(20).status == 0
            assert read(peer.fileno(), 4) == b"END."
    assert con.lost == 0


@pytest.mark.parametrize("step", [256, 4000])
def test_a_slow_client_gets_all(
    m: pyvmm.Machine, tmp_path: Path, step: int
) -> None:
    """Its guest waits for it, and nothing else does."""
    path = tmp_path / "out"
    con = m.attach(Console(Socket(path), buffer=5000))
    m.load(GUEST, cmdline=f"burst=300000 step={step}")
    m.start(timeout=60)
    with client(path) as sock:
        port = con.ports[""]
        assert read(sock.fileno(), 10_000) == pattern(10_000)
        assert m.running and len(port.unsent) <= 5000
        rest = read(sock.fileno(), 290_000)
        assert m.wait(20).status == 0
    assert rest == pattern(300_000)[10_000:] and con.lost == 0


def test_nobody_listens_and_the_guest_goes_on(
    m: pyvmm.Machine, tmp_path: Path
) -> None:
    con = m.attach(Console(Socket(tmp_path / "s"), buffer=100, lossy=True))
    m.load(GUEST, cmdline="burst=10000")
    assert m.run(timeout=20).status == 0
    assert con.output == pattern(10_000) and con.lost == 9900


# -- terminals -----------------------------------------------------------------


def test_a_pty(m: pyvmm.Machine) -> None:
    paths: list[str] = []
    m.attach(Console(ports={"tty": Pty(paths.append)}))
    m.load(GUEST, cmdline="ports=4 open echo")
    m.console.expect("port 1 is tty\n", timeout=20)
    m.start(timeout=60)
    for data in (b"first\r", b"second."):
        fd = os.open(paths[0], os.O_RDWR | os.O_NOCTTY)
        m.console.expect("port 1 connected\n", timeout=20)
        os.write(fd, data)
        assert read(fd, len(data)) == data.upper()
        os.close(fd)
        if data != b"second.":
            m.console.expect("port 1 alone\n", timeout=20)
    assert m.wait(20).status == 0


class Shell:
    """`pyvmm run` on a terminal of its own."""

    def __init__(self, words: str, device: str) -> None:
        self.fd, self.end = pty.openpty()
        self.mode = termios.tcgetattr(self.end)
        command = [sys.executable, "-m", "pyvmm", "run", GUEST]
        self.process = subprocess.Popen(
            [*command, "--cmdline", words, "--device", f"{DEVICE}:{device}"],
            stdin=self.end,
            stdout=self.end,
            stderr=self.end,
            start_new_session=True,
        )
        self.seen = ""

    def expect(self, text: str) -> re.Match[str]:
        while not (match := re.search(text, self.seen)):
            assert select.select([self.fd], [], [], 20)[0], self.seen
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen[match.end() :]
        return match

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *args: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.end)


def test_stdio_from_a_shell() -> None:
    """Keys reach the guest one by one, and the terminal is as before."""
    with Shell("hello=hello echo", "stdio") as shell:
        shell.expect("hello")
        assert termios.tcgetattr(shell.end) != shell.mode
        shell.type("a\x03b\r")
        shell.expect("A\x03B\r")
        shell.type(".")
        assert shell.process.wait(20) == 0
        assert termios.tcgetattr(shell.end) == shell.mode


@pytest.mark.parametrize(
    ("stop", "status"), [("escape", 130), ("SIGTERM", -signal.SIGTERM)]
)
def test_the_terminal_is_restored(stop: str, status: int) -> None:
    with Shell("hello=hello echo", "stdio") as shell:
        shell.expect("hello")
        if stop == "escape":
            shell.type("\x1d")
        else:
            shell.process.terminate()
        assert shell.process.wait(20) == status
        assert termios.tcgetattr(shell.end) == shell.mode


def test_a_pty_from_a_shell() -> None:
    with Shell("hello=hello echo", "pty") as shell:
        path = shell.expect(r"console at (/dev/pts/\d+)")[1]
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        assert read(fd, 5) == b"hello"
        os.write(fd, b"end.")
        assert read(fd, 4) == b"END."
        assert shell.process.wait(20) == 0
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""A Vsock in front of a guest: guest/vsock, with every kind of host's end."""

import asyncio
import os
import random
import re
import socket
import subprocess
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from operator import mul
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices import Vsock

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 30  # seconds: a guest in ring 0 may be interpreted
GUESTS = [("vsock", "poll"), ("vsock", "irq"), ("vsock-ring3", "poll")]


def image(name: str) -> str:
    return str(ROOT / f"build/guest/{name}.elf")


def machine(device: Vsock, words: str, name: str = "vsock-ring3"):
    m = pyvmm.Machine()
    m.attach(device)
    m.load(image(name), cmdline=words)
    return m


def read_all(sock: socket.socket) -> bytes:
    found = b""
    while data := sock.recv(1 << 18):
        found += data
    return found


def unix_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.bind(os.fspath(path))
    sock.listen()
    return sock


def unix_connection(path: Path, port: int) -> socket.socket:
    """A program's connection to the guest, once that has accepted."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(os.fspath(path))
    sock.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    assert re.fullmatch(rb"OK \d+\n", line)
    return sock


def reverse(sock: socket.socket) -> None:
    """The answer is what came, the other way round."""
    with sock:
        sock.sendall(read_all(sock)[::-1])


@pytest.mark.parametrize(("name", "mode"), GUESTS)
def test_the_guest_connects_to_python(name: str, mode: str) -> None:
    device = Vsock(cid=7)
    words = f"connect=52 send=hello n=3 mode={mode}"
    with (
        ThreadPoolExecutor() as pool,
        machine(device, words, name) as m,
        device.listen(52) as listener,
    ):
        m.start()
        for _ in range(3):
            sock, (cid, port) = listener.accept(timeout=PATIENCE)
            assert cid == 7 and port >= 1024
            pool.submit(reverse, sock).result(PATIENCE)
        assert m.wait(timeout=PATIENCE).status == 0
    assert m.console.text == "olleh\n" * 3
    assert device.faults == 0


@pytest.mark.parametrize(("name", "mode"), GUESTS)
def test_the_guest_connects_to_a_program(
    name: str, mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "v.sock"
    words = f"connect=52 send=hello mode={mode}"
    with (
        unix_listener(Path(f"{path}_52")) as listener,
        machine(Vsock(path=path), words, name) as m,
    ):
        m.start()
        reverse(listener.accept()[0])
        assert m.wait(timeout=PATIENCE).status == 0
    assert m.console.text == "olleh\n"


def test_nobody_listens(tmp_path: Path) -> None:
    with machine(Vsock(path=tmp_path / "v.sock"), "connect=52") as m:
        assert m.run(timeout=PATIENCE).status == 1
    assert m.console.text == "vsock: the host refuses\n"


@pytest.mark.parametrize(("name", "mode"), GUESTS)
def test_the_host_connects(name: str, mode: str, tmp_path: Path) -> None:
    """By Python and by a program; the guest sends back what comes."""
    device = Vsock(path=tmp_path / "v.sock")
    words = f"listen=80 n=2 mode={mode}"
    with machine(device, words, name) as m:
        m.start()
        m.console.expect("listening on 80 of 3", timeout=PATIENCE)
        for connect in (
            lambda: device.connect(80, PATIENCE),
            lambda: unix_connection(tmp_path / "v.sock", 80),
        ):
            with connect() as sock:
                sock.sendall(b"some words")
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b"some words"
        assert m.wait(timeout=PATIENCE).status == 0
        assert "echoed 20 bytes of 2 connections" in m.console.text
        with pytest.raises(TimeoutError):
            device.connect(80, timeout=0.01)


def test_the_guest_refuses() -> None:
    device = Vsock()
    with machine(device, "listen=80") as m:
        m.start()
        m.console.expect("listening", timeout=PATIENCE)
        with pytest.raises(ConnectionRefusedError, match="port 81 of the gue"):
            device.connect(81, PATIENCE)
        m.pause()


def test_many_at_a_time(tmp_path: Path) -> None:
    """More than the guest serves at a time, of both kinds."""
    count = 60
    device = Vsock(path=tmp_path / "v.sock")

    def talk(i: int) -> None:
        data = random.Random(i).randbytes(1000 + 777 * i)
        with (
            device.connect(80, PATIENCE)
            if i % 2
            else unix_connection(tmp_path / "v.sock", 80)
        ) as sock:
            for at in range(0, len(data), 5000):
                sock.sendall(data[at : at + 5000])
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == data

    with machine(device, f"listen=80 n={count}") as m:
        m.start()
        m.console.expect("listening", timeout=PATIENCE)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(talk, range(count)))
        assert m.wait(timeout=PATIENCE).status == 0
        assert f"of {count} connections" in m.console.text
        assert not device._hub.streams


def fletcher(data: bytes) -> str:
    """The sum that the guest makes."""
    words = array("I", data)
    low = sum(words)
    high = sum(map(mul, words, range(len(words), 0, -1)))
    return f"{high & 0xFFFF_FFFF:08x}{low & 0xFFFF_FFFF:08x}"


@pytest.mark.parametrize(
    ("name", "mode", "size", "room"),
    [
        ("vsock-ring3", "poll", 8 << 20, 1 << 18),
        ("vsock-ring3", "poll", 4 << 20, 1 << 12),
        ("vsock", "irq", 1 << 15, 1 << 12),
    ],
)
def test_bulk(name: str, mode: str, size: int, room: int) -> None:
    """Both directions at a time, and sums of what came."""
    device = Vsock(room=room)
    answer = random.Random(1).randbytes(size)
    words = f"connect=52 bytes={size} mode={mode}"
    with (
        ThreadPoolExecutor() as pool,
        machine(device, words, name) as m,
        device.listen(52) as listener,
    ):
        m.start()
        sock, _ = listener.accept(timeout=PATIENCE)
        with sock:
            sent = pool.submit(send_all, sock, answer)
            assert read_all(sock) == array("I", range(size // 4)).tobytes()
            sent.result(PATIENCE)
        assert m.wait(timeout=PATIENCE).status == 0
    _, received = m.console.text.splitlines()
    assert received == f"received {size} sum {fletcher(answer)}"
    assert device.faults == 0


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("run", "notify"),
    [("run_async", "thread"), ("run_async", "asyncio"), ("run", "thread")],
)
def test_asyncio_serves(run: str, notify: str) -> None:
    device = Vsock()
    device.notify = notify

    async def client(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write((await reader.read())[::-1])
        writer.close()

    async def main(m: pyvmm.Machine) -> pyvmm.Stop:
        async with await device.start_server(client, 52):
            if run == "run_async":
                return await m.run_async(timeout=PATIENCE)
            return await asyncio.to_thread(m.run, timeout=PATIENCE)

    with machine(device, "connect=52 send=hello n=3") as m:
        assert asyncio.run(main(m)).status == 0
    assert m.console.text == "olleh\n" * 3


def test_asyncio_connects() -> None:
    device = Vsock()

    async def talk(i: int) -> None:
        reader, writer = await device.open_connection(80, timeout=PATIENCE)
        writer.write(b"%d" % i * 10_000)
        writer.write_eof()
        assert await reader.read() == b"%d" % i * 10_000
        writer.close()
        await writer.wait_closed()

    async def main(m: pyvmm.Machine) -> None:
        running = asyncio.create_task(m.run_async(timeout=PATIENCE))
        with pytest.raises(ConnectionRefusedError):
            await device.open_connection(81, timeout=PATIENCE)
        await asyncio.gather(*map(talk, range(10)))
        assert (await running).status == 0

    with machine(device, "listen=80 n=10") as m:
        m.console.expect("listening", timeout=PATIENCE)
        asyncio.run(main(m))
    assert "echoed 100000 bytes of 10 connections" in m.console.text


def test_connections_are_no_more() -> None:
    """After a restore: the guest hears of it, and works on."""
    device = Vsock()
    with machine(device, "listen=80 n=1 await=reset mode=irq", "vsock") as m:
        m.start()
        m.console.expect("listening", timeout=PATIENCE)
        with device.connect(80, PATIENCE) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            device.restore(device.save())
            assert sock.recv(1) == b""
        assert m.wait(timeout=PATIENCE).status == 0
    assert "connections are no more, cid 3" in m.console.text


def test_without_an_interrupt_controller() -> None:
    device = Vsock()
    with pyvmm.Machine(irqchip=False) as m, device.listen(52) as listener:
        m.attach(device)
        m.load(image("vsock-ring3"), cmdline="connect=52 send=hello")
        m.start()
        reverse(listener.accept(timeout=PATIENCE)[0])
        assert m.wait(timeout=PATIENCE).status == 0


def test_the_path_is_taken(tmp_path: Path) -> None:
    device = Vsock(path=tmp_path / "v.sock")
    with pyvmm.Machine() as m:
        with unix_listener(tmp_path / "v.sock"):
            with pytest.raises(OSError, match="in use"):
                m.attach(device)
            assert not m.devices
        m.attach(device)


def test_not_inline() -> None:
    device = Vsock()
    device.notify = "inline"
    with pyvmm.Machine() as m, pytest.raises(ValueError, match="'thread' or"):
        m.attach(device)


def test_attached_and_detached(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    device = Vsock(path=path)
    with pyvmm.Machine() as m:
        m.attach(device)
        assert path.is_socket()
        m.detach(device)
        assert not path.exists()
        m.attach(device)
    assert not path.exists()


LAB = """
from pyvmm.devices import Vsock

class Lab(Vsock):
    def __init__(self):
        super().__init__(path="v.sock")
"""


def test_from_a_shell(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    words = "connect=52 send=hello"
    command = [sys.executable, "-m", "pyvmm", "run", image("vsock-ring3")]
    with (
        unix_listener(tmp_path / "v.sock_52") as listener,
        subprocess.Popen(
            [*command, "--device", "lab.py", "--cmdline", words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        reverse(listener.accept()[0])
        assert process.communicate(timeout=PATIENCE)[0] == b"olleh\n"
        assert process.returncode == 0

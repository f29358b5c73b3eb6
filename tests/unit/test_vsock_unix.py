# SPDX-License-Identifier: Apache-2.0
"""A Vsock's AF_UNIX sockets: programs of the host, and what they may do."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vsock_guest import Guest, guest

from pyvmm.devices import vsock_packet as vp
from pyvmm.devices import vsock_unix
from pyvmm.devices.vsock import Vsock


def program(path: Path) -> socket.socket:
    """One that has connected there, and does not wait."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.fspath(path))
    sock.setblocking(False)
    return sock


def service(path: Path) -> socket.socket:
    """One that listens there."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(path))
    sock.listen()
    return sock


def is_hung_up(sock: socket.socket) -> bool:
    """Whether it is at its end, or has been reset."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.sock"


@contextmanager
def asked(path: Path, text: bytes) -> Iterator[tuple[Guest, socket.socket]]:
    """A program has said that to a guest."""
    with guest(Vsock(path=path)) as vm, program(path) as sock:
        sock.sendall(text)
        vm.make_room(9)
        yield vm, sock


def test_a_program_connects(path: Path) -> None:
    with asked(path, b"CONNECT 80\n") as (vm, sock):
        ((header, _),) = vm.packets()
        assert (header.op, header.dst_port) == (vp.REQUEST, 80)
        assert header.src_port >= 1 << 30
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        ports = 80, header.src_port
        vm.send(vp.RESPONSE, *ports)
        assert sock.recv(100) == b"OK %d\n" % header.src_port
        vm.send(vp.RW, *ports, b"hello")
        assert sock.recv(100) == b"hello"
        sock.sendall(b"there")
        assert [data for _, data in vm.packets()] == [b"there"]
        sock.close()
        ((header, _),) = vm.packets()
        assert (header.op, header.flags) == (vp.SHUTDOWN, vp.BOTH)
        vm.send(vp.RST, *ports)
        assert not vm.drv.device._hub.streams
    assert not path.exists()


@pytest.mark.parametrize("pieces", [1, 2, 17])
def test_data_behind_the_line(path: Path, pieces: int) -> None:
    """Not a byte of it is lost, nor sent before the guest has accepted."""
    text = b"CONNECT 4294967294\r\nand data\nCONNECT 7\n"
    with guest(Vsock(path=path)) as vm, program(path) as sock:
        vm.make_room(4)
        size = -(-len(text) // pieces)
        for at in range(0, len(text), size):
            sock.sendall(text[at : at + size])
            vm.poll()
        ((header, _),) = vm.packets()
        assert (header.op, header.dst_port) == (vp.REQUEST, vp.PORT_MOST)
        vm.send(vp.RESPONSE, header.dst_port, header.src_port)
        data = b"".join(data for _, data in vm.packets())
        assert data == text.partition(b"\n")[2]
        assert sock.recv(100).startswith(b"OK ")


def test_a_program_that_only_sends(path: Path) -> None:
    with asked(path, b"CONNECT 80\nall") as (vm, sock):
        sock.shutdown(socket.SHUT_WR)
        ((header, _),) = vm.packets()
        ports = header.dst_port, header.src_port
        vm.send(vp.RESPONSE, *ports)
        (_, data), (header, _) = vm.packets()
        assert (data, header.op, header.flags) == (b"all", vp.SHUTDOWN, vp.SEND)
        vm.send(vp.RW, *ports, b"answer")
        assert sock.recv(100) == b"OK %d\nanswer" % ports[1]


@pytest.mark.parametrize(
    "text",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT 80 \n",
        b"CONNECT -1\n",
        b"CONNECT 0x50\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 99999999999\n",
        b"connect 80\n",
        b"GET / HTTP/1.0\n",
        b"CONNECT 80\0\n",
        b"x" * 20,
        b"CONNECT 0000000000000000000000080\n",
        bytes(1 << 16),
        "CONNECT \N{FULLWIDTH DIGIT EIGHT}\n".encode(),
    ],
)
def test_what_is_no_line(path: Path, text: bytes) -> None:
    with asked(path, text) as (vm, sock):
        assert vm.packets() == []
        assert is_hung_up(sock)
        assert not vm.drv.device._front._callers
        assert not vm.drv.device._hub.reserved


def test_a_program_that_does_not_say_a_word(path: Path) -> None:
    with asked(path, b"CONNECT 8") as (vm, sock):
        vm.poll()
        vm.drv.advance(vsock_unix.LINE_SECONDS - 0.1)
        assert not is_hung_up(sock)
        sock.sendall(b"0")
        vm.poll()
        vm.drv.advance(0.1)
        assert is_hung_up(sock)
        assert not vm.drv.device._hub.reserved


@pytest.mark.parametrize("text", [b"", b"CONN", b"CONNECT 80"])
def test_a_program_that_goes_in_between(path: Path, text: bytes) -> None:
    with guest(Vsock(path=path)) as vm:
        vm.make_room()
        sock = program(path)
        vm.poll()
        sock.sendall(text)
        vm.poll()
        sock.close()
        vm.poll()
        vm.drv.advance(vsock_unix.LINE_SECONDS)
        assert vm.packets() == []
        assert not vm.drv.device._hub.reserved


def test_a_program_that_goes_before_the_answer(path: Path) -> None:
    with asked(path, b"CONNECT 80\n") as (vm, sock):
        ((header, _),) = vm.packets()
        sock.close()
        assert vm.ops() == [vp.RST]
        vm.send(vp.RESPONSE, header.dst_port, header.src_port)
        assert vm.ops() == [vp.RST]


def test_a_program_that_goes_with_the_answer(path: Path) -> None:
    with asked(path, b"CONNECT 80\n") as (vm, sock):
        ((header, _),) = vm.packets()
        sock.close()
        vm.send(vp.RESPONSE, header.dst_port, header.src_port)
        ops = vm.ops()
        assert ops == [vp.SHUTDOWN]
        vm.send(vp.RST, header.dst_port, header.src_port)
        assert not vm.drv.device._hub.streams


@pytest.mark.parametrize("answers", [True, False])
def test_a_guest_that_refuses(path: Path, answers: bool) -> None:
    with asked(path, b"CONNECT 80\n") as (vm, sock):
        ((header, _),) = vm.packets()
        if answers:
            vm.send(vp.RST, header.dst_port, header.src_port)
        else:
            vm.drv.advance(vsock_unix.ANSWER_SECONDS)
            assert vm.ops() == [vp.RST]
        assert is_hung_up(sock)


def test_programs_wait_for_the_driver(path: Path) -> None:
    with guest(Vsock(path=path), start=False) as vm, program(path) as sock:
        sock.sendall(b"CONNECT 80\n")
        vm.poll()
        vm.drv.advance(1000)
        assert not is_hung_up(sock)
        vm.drv.start()
        vm.make_room()
        assert vm.ops() == [vp.REQUEST]
        # Not for the next one.
        with program(path) as other:
            vm.poll()
            vm.drv.reset()
            vm.rooms.clear()
            vm.poll()
            assert is_hung_up(sock) and is_hung_up(other)
            with program(path) as third:
                vm.poll()
                vm.drv.start()
                third.sendall(b"CONNECT 81\n")
                vm.make_room()
                assert vm.ops() == [vp.REQUEST]


def test_too_many_programs(path: Path) -> None:
    with guest(Vsock(path=path, connections=2)) as vm:
        some = [program(path) for _ in range(3)]
        vm.poll()
        assert [is_hung_up(sock) for sock in some] == [False, False, True]
        some[0].close()
        vm.poll()
        with program(path) as sock:
            vm.poll()
            assert not is_hung_up(sock)
        some[1].close()
        some[2].close()


# -- the guest connects --------------------------------------------------------


def test_the_guest_reaches_a_program(path: Path) -> None:
    with (
        guest(Vsock(path=path)) as vm,
        service(Path(f"{path}_52")) as listener,
    ):
        vm.connect(1024, 52)
        sock, _ = listener.accept()
        with sock:
            vm.send(vp.RW, 1024, 52, b"hello")
            assert sock.recv(100) == b"hello"
            sock.sendall(b"there")
            vm.make_room()
            assert [data for _, data in vm.packets()] == [b"there"]


def test_the_guest_reaches_nobody(path: Path) -> None:
    """Not there, nobody listens, no socket, nothing but numbers as ports."""
    with guest(Vsock(path=path)) as vm:
        service(Path(f"{path}_1")).close()
        Path(f"{path}_2").write_text("secret")
        os.symlink(f"{path}_2", f"{path}_3")
        Path(f"{path}_4").mkdir()
        vm.make_room(6)
        for port in (0, 1, 2, 3, 4, vp.WRAP):
            vm.send(vp.REQUEST, 1024, port)
        assert vm.ops() == [vp.RST] * 6
        assert Path(f"{path}_2").read_text() == "secret"


def test_a_program_with_a_full_backlog(path: Path) -> None:
    with guest(Vsock(path=path)) as vm, service(Path(f"{path}_52")) as listener:
        listener.listen(0)
        vm.make_room(2)
        vm.send(vp.REQUEST, 1, 52)
        vm.send(vp.REQUEST, 2, 52)
        assert sorted(vm.ops()) == [vp.RESPONSE, vp.RST]


def test_python_listens_first(path: Path) -> None:
    device = Vsock(path=path)
    with guest(device) as vm, service(Path(f"{path}_52")):
        with device.listen(52) as listener:
            vm.connect(1024, 52)
            listener.accept(timeout=0)[0].close()
        vm.connect(1025, 52)


# -- the path ------------------------------------------------------------------


def test_a_socket_that_was_left_behind(path: Path) -> None:
    service(path).close()
    with guest(Vsock(path=path)) as vm, program(path) as sock:
        vm.poll()
        assert not is_hung_up(sock)
    assert not path.exists()


def test_a_path_that_is_taken(path: Path) -> None:
    def attach() -> None:
        with guest(Vsock(path=path)):
            raise AssertionError

    with service(path), pytest.raises(OSError, match=r"in use: '.*v\.sock'"):
        attach()
    path.unlink()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        attach()
    assert path.read_text() == "a file"
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=r"v\.sock"):
        attach()


def test_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is when the process goes elsewhere."""
    monkeypatch.chdir(path.parent)
    device = Vsock(path="v.sock")
    assert device.path == str(path)
    assert repr(device) == f"<Vsock cid 3 at {path}, 0 open>"
    monkeypatch.chdir("/")
    with guest(device), program(path):
        pass


# -- the host runs out of descriptors ------------------------------------------


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As if the process had as many open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What attaching has begun is undone."""
    device = Vsock(path=path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", None)
        with pytest.raises(TypeError):
            device.attached()
    assert path.exists()
    device.detached()
    assert not path.exists()
    with guest(device):
        pass


def test_no_descriptors(path: Path) -> None:
    device = Vsock(path=path)
    with (
        guest(device) as vm,
        service(Path(f"{path}_52")),
        device.listen(53),
        program(path) as sock,
    ):
        vm.make_room(3)
        with no_descriptors():
            vm.send(vp.REQUEST, 1024, 52)
            vm.send(vp.REQUEST, 1024, 53)
            assert vm.ops() == [vp.RST, vp.RST]
            with pytest.raises(OSError, match="Too many open files"):
                device.connect(80)
            for _ in range(3):
                vm.poll()
                vm.drv.advance(vsock_unix.RETRY_SECONDS)
        assert not device._front._callers
        vm.drv.advance(vsock_unix.RETRY_SECONDS)
        sock.sendall(b"CONNECT 80\n")
        assert vm.ops() == [vp.REQUEST]


def test_a_crowd(path: Path) -> None:
    """A few are let in at a time, and all of them in the end."""
    count = 3 * vsock_unix.AT_A_TIME + 5
    with guest(Vsock(path=path, connections=count - 1)) as vm:
        vm.poll()
        some = [program(path) for _ in range(count)]
        vm.drv.poll()
        assert 0 < vm.drv.device._hub.reserved < count - 1
        vm.poll()
        hung_up = [is_hung_up(sock) for sock in some]
        assert hung_up == [False] * (count - 1) + [True]
        for sock in some:
            sock.close()

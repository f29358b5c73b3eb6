# SPDX-License-Identifier: Apache-2.0
"""virtio-net in front of a guest: guest/net, on each kind of peer."""

import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import nethost
import pytest

import pyvmm
from pyvmm.devices import Net, Switch, net

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
PING = "ip=10.0.0.2 ping=10.0.0.1"
FOUND = "10.0.0.1 is at 02:61:2d:6d:61:63"
TIMEOUT = 30


def load(m: pyvmm.Machine, words: str, image: str = "net") -> None:
    m.load(str(ROOT / f"build/guest/{image}.elf"), cmdline=words)


def run(net: Net, words: str, image: str = "net") -> list[str]:
    """What the guest printed, with the device in the machine."""
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, words, image)
        stop = m.run(timeout=TIMEOUT)
    assert stop.status == 0, m.console.text
    assert net.faults == 0
    return m.console.text.splitlines()


# -- a callable ----------------------------------------------------------------


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize(
    ("image", "mode"), [("net", "poll"), ("net", "irq"), ("net-ring3", "poll")]
)
def test_callable(image: str, mode: str, notify: str) -> None:
    net = Net(nethost.host("10.0.0.1"), mac="02:00:00:00:00:01", notify=notify)
    first, *found = run(net, f"{PING} n=4 mode={mode}", image)
    assert first.endswith("02:00:00:00:00:01, mtu 1500, link up")
    assert found[0] == FOUND
    assert found[1].startswith("4 of 4 answers, 56 bytes each, ")
    assert (net.tx_packets, net.rx_packets) == (5, 5)
    assert net.tx_bytes == 60 + 4 * 98
    assert "rx 5 (434 bytes), tx 5 (452 bytes), mmio 0xd0000000" in repr(net)


def test_an_exception_of_the_callable() -> None:
    """It leaves run(); the frame is sent again when the run goes on."""
    answer: list[Any] = [ZeroDivisionError("mine"), nethost.host("10.0.0.1")]

    def peer(frame: bytes) -> bytes | None:
        if isinstance(answer[0], Exception):
            raise answer.pop(0)
        return answer[0](frame)

    net = Net(peer)
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, f"{PING} n=1 mode=irq")
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            m.run(timeout=TIMEOUT)
        assert "Net.transmit" in "".join(caught.value.__notes__)
        net.process()
        assert m.run(timeout=TIMEOUT).status == 0


def test_merged_buffers_and_a_long_mtu() -> None:
    net = Net(nethost.host("10.0.0.1"), mtu=9000)
    lines = run(net, f"{PING} n=1 size=2000 merge room=600 buffers=6 mode=irq")
    assert lines[0].endswith("mtu 9000, link up")
    assert lines[2].startswith("1 of 1 answers, 2000 bytes each")


def test_long_frames_in_long_buffers() -> None:
    net = Net(nethost.host("10.0.0.1"), mtu=9000)
    lines = run(net, f"{PING} n=1 size=2000 room=2100 mode=irq")
    assert lines[2].startswith("1 of 1 answers, 2000 bytes each")


def test_what_is_longer_than_the_mtu() -> None:
    """The driver knows it from the configuration."""
    net = Net(nethost.host("10.0.0.1"), mtu=1000)
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, f"{PING} size=973")
        assert m.run(timeout=TIMEOUT).status == 1
    assert "longer than the MTU" in m.console.text
    lines = run(Net(nethost.host("10.0.0.1"), mtu=1000), f"{PING} n=1 size=972")
    assert lines[2].startswith("1 of 1 answers, 972 bytes each")


def test_only_what_is_for_us() -> None:
    """The guest asks for that by a command."""
    answer = nethost.host("10.0.0.1")

    def noisy(frame: bytes) -> Iterator[bytes]:
        yield b"\2alien" + frame[6:]
        yield b"\3group" + frame[6:]
        if (found := answer(frame)) is not None:
            yield found

    net = Net(noisy)
    lines = run(net, f"{PING} n=3 own mode=irq")
    assert lines[1] == "command: 0"
    assert (net.tx_packets, net.rx_packets) == (4, 4)


def test_link() -> None:
    """Down and up again, with an interrupt that wakes the guest."""
    net = Net(nethost.host("10.0.0.1"))
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, f"{PING} n=1 link mode=irq")
        m.console.expect("link up\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        net.link = False
        m.console.expect("link down\n", timeout=TIMEOUT)
        net.link = True
        assert m.wait(TIMEOUT).status == 0
    assert "link up, 2 changes\n" in m.console.text
    assert "1 of 1 answers" in m.console.text


def test_announce() -> None:
    frames: list[bytes] = []
    net = Net(frames.append)
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, "announce mode=irq")
        m.console.expect("link up\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        net.announce()
        assert m.wait(TIMEOUT).status == 0
    assert "announced: 0\n" in m.console.text
    (frame,) = frames
    assert frame[:6] == b"\xff" * 6 and frame[38:42] == nethost.ip("10.0.0.2")
    assert net.config.status == 1


def test_send_from_another_thread() -> None:
    """Pings of the host's wake a guest that sleeps."""
    answers: list[bytes] = []
    net = Net(answers.append)
    mac = net.config.mac
    host = nethost.ip("10.0.0.1")

    def ping(number: int) -> bytes:
        head = mac + b"\2a-mac" + nethost.IP
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 1, 0)
        ip += host + nethost.ip("10.0.0.2")
        total = struct.pack("=H", nethost.checksum(ip))
        icmp = struct.pack(">BBHHH", 8, 0, 0, 7, number)
        part = struct.pack("=H", nethost.checksum(icmp))
        ip, icmp = ip[:10] + total + ip[12:], icmp[:2] + part + icmp[4:]
        return head + ip + icmp

    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, "serve=20 mode=irq")
        m.console.expect("serving\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        for number in range(20):
            assert net.send(ping(number))
        assert m.wait(TIMEOUT).status == 0
    found = [struct.unpack(">BBHHH", frame[34:42]) for frame in answers]
    assert [(kind, n) for kind, _, _, _, n in found] == [
        (0, n) for n in range(20)
    ]


def test_the_tutorial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one of the docstring's examples that needs nothing of the host."""
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"\n((?: {4}.*\n|\n(?= {4}))+)", str(net.__doc__))
    found = [dedent(block).strip() for block in blocks]
    (code,) = (text for text in found if text.startswith("switch ="))
    exec(code, {"pyvmm": pyvmm, "Net": Net, "Switch": Switch})
    assert "4 of 4 answers" in capsys.readouterr().out


def test_reload() -> None:
    """New code between two frames; none is lost."""
    device = Net(nethost.host("10.0.0.1"))
    with pyvmm.Machine() as m:
        m.attach(device)
        load(m, f"{PING} n=50 mode=irq")
        m.console.expect("is at", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        for _ in range(3):
            m.reload(device)
        assert m.wait(TIMEOUT).status == 0
    assert "50 of 50 answers" in m.console.text


# -- machines on a switch ------------------------------------------------------


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_two_machines(notify: str) -> None:
    switch = Switch()
    with pyvmm.Machine() as one, pyvmm.Machine() as two:
        server, client = Net(switch, notify=notify), Net(switch, notify=notify)
        one.attach(server)
        two.attach(client)
        load(one, "ip=10.0.0.1 serve=20 mode=irq")
        load(two, f"{PING} n=20 mode=irq")
        one.console.expect("serving\n", timeout=TIMEOUT)
        one.start(timeout=TIMEOUT)
        assert two.run(timeout=TIMEOUT).status == 0, two.console.text
        assert one.wait(TIMEOUT).status == 0
        assert len(switch.addresses) == 2
    assert f"10.0.0.1 is at {server.mac}\n20 of 20 ans" in two.console.text
    assert "20 pings answered" in one.console.text
    assert repr(switch) == "<Switch 0 ports, 0 addresses>"


def test_a_machine_that_stands_still() -> None:
    """The third one never runs; the others do not notice."""
    switch = Switch()
    with (
        pyvmm.Machine() as one,
        pyvmm.Machine() as two,
        pyvmm.Machine() as third,
    ):
        for m, words in (
            (one, "ip=10.0.0.1 serve=4 mode=irq"),
            (two, f"{PING} n=4 mode=irq"),
            (third, "ip=10.0.0.3 serve=1 mode=irq"),
        ):
            m.attach(Net(switch))
            load(m, words)
        for m in (one, third):
            m.console.expect("serving\n", timeout=TIMEOUT)
        one.start(timeout=TIMEOUT)
        assert two.run(timeout=TIMEOUT).status == 0
        assert one.wait(TIMEOUT).status == 0


# -- a stream socket -----------------------------------------------------------


class StreamHost(threading.Thread):
    """The other end of a stream socket, which answers as `answer` does."""

    def __init__(
        self, sock: socket.socket, answer: Callable[[bytes], bytes | None]
    ) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.answer = answer

    def run(self) -> None:
        with self.sock, self.sock.makefile("rwb") as file:
            while len(length := file.read(4)) == 4:
                answer = self.answer(file.read(int.from_bytes(length, "big")))
                if answer is not None:
                    file.write(len(answer).to_bytes(4, "big") + answer)
                    file.flush()


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize("mode", ["poll", "irq"])
def test_stream(mode: str, notify: str) -> None:
    ours, theirs = socket.socketpair()
    peer = StreamHost(theirs, nethost.host("10.0.0.1"))
    peer.start()
    lines = run(
        Net(stream=ours, notify=notify), f"{PING} n=4 size=200 mode={mode}"
    )
    peer.join(TIMEOUT)  # it saw that the machine was closed
    assert not peer.is_alive()
    assert lines[1] == FOUND
    assert lines[2].startswith("4 of 4 answers, 200 bytes each")


def test_a_stream_that_ends() -> None:
    """The guest is interrupted: its link is down."""
    ours, theirs = socket.socketpair()
    net = Net(stream=ours)
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, f"{PING} link mode=irq")
        m.console.expect("link up\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        theirs.close()
        m.console.expect("link down\n", timeout=TIMEOUT)
    assert "closed by the other end" in str(net.error)


PASST = shutil.which("passt")


@pytest.mark.parametrize("mode", ["poll", "irq"] if PASST else [])
def test_passt(mode: str) -> None:
    """The guest talks to a UDP server of the host's, by the gateway."""
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TIMEOUT)
        port = server.getsockname()[1]
        assert PASST is not None
        passt = subprocess.Popen(
            [
                PASST, "--foreground", "--quiet", "--fd", str(theirs.fileno()),
                "--address", "10.0.0.2", "--netmask", "24",
                "--gateway", "10.0.0.1", "--ipv4-only",
            ],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()

        def echo() -> None:
            for _ in range(4):
                data, sender = server.recvfrom(2000)
                server.sendto(data, sender)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        net = Net(stream=ours)
        lines = run(net, f"{PING} n=4 udp={port} mode={mode}")
        thread.join(TIMEOUT)
        assert lines[2].startswith("4 of 4 answers, 56 bytes each")
        passt.wait(TIMEOUT)  # it ends with the guest


# -- a TAP interface -----------------------------------------------------------


@pytest.fixture
def namespace() -> Iterator[nethost.Namespace]:
    namespace = nethost.namespace()
    yield namespace
    namespace.close()


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_tap(namespace: nethost.Namespace, notify: str) -> None:
    """The host's kernel is found, and answers."""
    net = namespace.run(Net, tap="vm0", notify=notify)
    namespace.up("vm0", "10.0.0.1")
    mac = namespace.mac("vm0").hex(":")
    lines = run(net, f"{PING} n=4 size=200 mode=irq")
    assert lines[1] == f"10.0.0.1 is at {mac}"
    assert lines[2].startswith("4 of 4 answers, 200 bytes each")


def test_tap_from_the_host(namespace: nethost.Namespace) -> None:
    """The host pings, with packets of nearly the MTU in several buffers."""
    net = namespace.run(Net, tap="vm0", mtu=2000)
    namespace.up("vm0", "10.0.0.1", mtu=2000)
    with (
        pyvmm.Machine() as m,
        namespace.run(
            socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
        ) as sock,
    ):
        sock.settimeout(TIMEOUT)
        m.attach(net)
        load(m, "serve=5 merge room=500 mode=irq")
        m.console.expect("serving\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        for number in range(5):
            data = bytes([number]) * 1900
            icmp = struct.pack(">BBHHH", 8, 0, 0, 7, number) + data
            part = struct.pack("=H", nethost.checksum(icmp))
            sock.sendto(icmp[:2] + part + icmp[4:], ("10.0.0.2", 0))
            answer = sock.recv(3000)[20:]
            assert (answer[0], answer[8:]) == (0, data)
            assert nethost.checksum(answer) == 0
        assert m.wait(TIMEOUT).status == 0
    assert net.rx_dropped == net.tx_dropped == 0


# -- what guests may do --------------------------------------------------------


def test_detached_while_the_guest_uses_it() -> None:
    """And attached again: the guest that comes next finds it as new."""
    net = Net(nethost.host("10.0.0.1"))
    with pyvmm.Machine() as m:
        m.attach(net)
        load(m, "serve=1 mode=irq")
        m.console.expect("serving\n", timeout=TIMEOUT)
        m.detach(net)
        assert not net.send(bytes(60))
    assert run(net, f"{PING} n=1")[1] == FOUND

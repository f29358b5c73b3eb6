# SPDX-License-Identifier: Apache-2.0
"""virtio-net on TAP interfaces, in a network namespace; no KVM, no guest."""

import contextlib
import errno
import fcntl
import gc
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import nethost
import pytest

from pyvmm import virtio
from pyvmm.devices import Net, net_tap
from pyvmm.devices import net_header as header
from pyvmm.devices.net_tap import (
    IFF_NO_PI,
    IFF_TAP,
    IFREQ,
    TUNSETIFF,
    Tap,
)

HEADER = bytes(12)
ONE = bytes(10) + b"\1\0"
GUEST_MAC = bytes.fromhex("020000000001")
HOST, GUEST = "10.9.0.1", "10.9.0.2"
UDP_SEGMENT = 103
ETH_P_ALL = 3


@pytest.fixture
def namespace() -> Iterator[nethost.Namespace]:
    namespace = nethost.namespace()
    yield namespace
    namespace.close()


class Cable:
    """A driver on a TAP interface that is up, and has an address."""

    def __init__(
        self, namespace: nethost.Namespace, notify: str = "inline", **options
    ) -> None:
        self.namespace = namespace
        self.net = namespace.run(
            Net, tap="vm0", mac=GUEST_MAC, notify=notify, **options
        )
        namespace.up("vm0", HOST, self.net.mtu)
        self.mac = namespace.mac("vm0")
        self.drv = virtio.driver(self.net)

    def socket(self, port: int = 7000) -> socket.socket:
        """A UDP socket of the host's that knows who the guest is."""
        sock = self.namespace.run(
            socket.socket, socket.AF_INET, socket.SOCK_DGRAM
        )
        sock.settimeout(10)
        sock.bind((HOST, port))
        return sock

    def udp(self, data: bytes, port: int = 7000, by: int = 4000) -> bytes:
        """A packet of the guest's with the checksum of the pseudo header."""
        size = 8 + len(data)
        pseudo = nethost.ip(GUEST) + nethost.ip(HOST)
        pseudo += struct.pack(">BBH", 0, 17, size)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, 17, 0)
        head += nethost.ip(GUEST) + nethost.ip(HOST)
        total = struct.pack("=H", nethost.checksum(head))
        head = head[:10] + total + head[12:]
        part = struct.pack("=H", ~nethost.checksum(pseudo) & 0xFFFF)
        udp = struct.pack(">HHH", by, port, size) + part
        return self.mac + GUEST_MAC + nethost.IP + head + udp + data

    def greet(self) -> None:
        """Let the host learn the guest's address."""
        arp = bytes.fromhex("0001080006040001") + GUEST_MAC  # a request
        arp += nethost.ip(GUEST) + bytes(6) + nethost.ip(HOST)
        self.drv.transmit(HEADER, self.mac + GUEST_MAC + nethost.ARP + arp)

    def received(self, kind: bytes) -> bytes:
        """The next frame of a kind, with its header; others go by."""
        while True:
            room = self.drv.receive.send(reply=12 + 65553)
            while room not in self.drv.receive.collect():
                assert self.drv.poll(10)
            if room.reply[24:26] == kind:
                return room.reply

    def close(self) -> None:
        self.drv.close()


@pytest.fixture
def cable(namespace: nethost.Namespace) -> Iterator[Cable]:
    cable = Cable(namespace)
    yield cable
    cable.close()


def interfaces(namespace: nethost.Namespace) -> list[str]:
    return [name for _, name in namespace.run(socket.if_nameindex)]


def test_constants_are_the_kernels() -> None:
    text = Path("/usr/include/linux/if_tun.h").read_text()
    names = vars(net_tap)
    flags = dict(re.findall(r"^#define (\w+)\s+(0x\w+)", text, re.MULTILINE))
    found = [name for name in flags if name in names]
    assert len(found) == 8
    for name in found:
        assert names[name] == int(flags[name], 16), name
    calls = re.findall(r"^#define (\w+)\s+_IO(\w)\('T', (\d+),", text, re.M)
    found = [call for call in calls if call[0] in names]
    assert len(found) == 4
    for name, way, number in found:
        want = (0x80000000 if way == "R" else 0x40000000) | 4 << 16
        assert names[name] == want | ord("T") << 8 | int(number), name


# -- opening -------------------------------------------------------------------


def test_by_name(namespace: nethost.Namespace) -> None:
    net = namespace.run(Net, tap="vm0")
    assert interfaces(namespace) == ["lo", "vm0"]
    assert str(net.peer) == "tap vm0" and net.peer.name == "vm0"
    with virtio.driver(net):
        pass
    assert interfaces(namespace) == ["lo"]


def test_by_number(namespace: nethost.Namespace) -> None:
    first = namespace.run(Tap, "vm%d")
    second = namespace.run(Tap, "vm%d")
    namespace.run(first.open, None)
    namespace.run(second.open, None)
    assert (first.name, second.name) == ("vm0", "vm1")
    # Opened again it is the one it was.
    first.close()
    first.close()
    namespace.run(first.open, None)
    assert first.name == "vm0"
    first.close()
    second.close()


@contextlib.contextmanager
def opened(namespace: nethost.Namespace, flags: int) -> Iterator[int]:
    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(b"theirs", flags))
        return fd

    fd = namespace.run(make)
    yield fd
    os.close(fd)


def test_by_descriptor(namespace: nethost.Namespace) -> None:
    with opened(namespace, IFF_TAP | IFF_NO_PI | 0x4000) as fd:
        net = Net(tap=fd)
        assert str(net.peer) == "tap theirs"
        for _ in range(2):
            with virtio.driver(net) as drv:
                drv.transmit(HEADER, bytes(60))  # the interface is down
                assert net.tx_dropped
        os.fstat(fd)  # the caller's own


@pytest.mark.parametrize("flags", [IFF_TAP | IFF_NO_PI, 0x4001 | IFF_NO_PI])
def test_descriptors_of_another_kind(
    namespace: nethost.Namespace, flags: int
) -> None:
    with (
        opened(namespace, flags) as fd,
        pytest.raises(
            ValueError, match=r"was opened with flags 0x\w+: it takes"
        ),
    ):
        Net(tap=fd)


def test_what_the_host_refuses(namespace: nethost.Namespace) -> None:
    tap = namespace.run(Net, tap="vm0")
    with pytest.raises(
        OSError, match=r"tap 'vm0': .*another program"
    ) as caught:
        namespace.run(Net, tap="vm0")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match=r"tap 'lo': .*no TAP interface"):
        namespace.run(Net, tap="lo")
    tap.peer.close()


def test_never_attached(namespace: nethost.Namespace) -> None:
    net = namespace.run(Net, tap="vm0")
    assert interfaces(namespace) == ["lo", "vm0"]
    del net
    gc.collect()
    assert interfaces(namespace) == ["lo"]


# -- frames --------------------------------------------------------------------


def test_out(cable: Cable) -> None:
    with cable.socket() as sock:
        data = cable.udp(b"hello")
        whole = bytearray(data)
        whole[40:42] = b"\0\0"  # no checksum
        cable.drv.transmit(HEADER, bytes(whole))
        assert sock.recvfrom(100) == (b"hello", (GUEST, 4000))
    assert cable.net.tx_packets == 1


def test_in(cable: Cable) -> None:
    cable.greet()
    with cable.socket() as sock:
        sock.sendto(b"hello", (GUEST, 4000))
    got = cable.received(nethost.IP)
    assert got[12:24] == GUEST_MAC + cable.mac and got[-5:] == b"hello"
    assert cable.net.rx_packets >= 1


def test_on_a_thread(namespace: nethost.Namespace) -> None:
    cable = Cable(namespace, "thread")
    try:
        with cable.socket() as sock:
            for i in range(100):
                whole = bytearray(cable.udp(b"%3d" % i))
                whole[40:42] = b"\0\0"
                cable.drv.transmit(HEADER, bytes(whole))
            assert [sock.recv(9) for _ in range(100)] == [
                b"%3d" % i for i in range(100)
            ]
    finally:
        cable.close()


def test_it_waits_for_buffers(cable: Cable) -> None:
    """The kernel keeps what the guest has no room for."""
    cable.greet()
    with cable.socket() as sock:
        for i in range(50):
            sock.sendto(b"%2d" % i, (GUEST, 4000))
        while cable.drv.poll():
            pass
        assert len(cable.net._inbox.waiting) == 1
        got = [cable.received(nethost.IP)[-2:] for _ in range(50)]
    assert got == [b"%2d" % i for i in range(50)]


# -- offloads ------------------------------------------------------------------


def test_features(cable: Cable) -> None:
    assert cable.net.features & header.GUEST_OFFLOADS == header.GUEST_OFFLOADS
    host = header.CSUM | header.HOST_TSO4 | header.HOST_TSO6 | header.HOST_UFO
    assert cable.net.features & host == host


def test_an_unfinished_checksum_out(cable: Cable) -> None:
    """The kernel knows that nothing can have happened to it."""
    with cable.socket() as sock:
        head = header.LAYOUT.pack(1, 0, 0, 0, 34, 6)
        cable.drv.transmit(head + b"\0\0", cable.udp(b"unfinished"))
        assert sock.recv(100) == b"unfinished"


@pytest.mark.parametrize("kind", [3, 5])
def test_segments_out(cable: Cable, kind: int) -> None:
    """More than an MTU of UDP, as fragments or as packets of their own.

    Linux learned the second in 6.2; who does not know it is not offered it.
    """
    with cable.socket() as sock:
        sent = bytes(i % 256 for i in range(5000))
        head = header.LAYOUT.pack(1, kind, 42, 1000, 34, 6)
        cable.drv.transmit(head + b"\0\0", cable.udp(sent))
        if not cable.net.features & header.SEGMENTED[kind]:
            assert cable.net.faults == 1
        elif kind == 3:  # put together again before anybody sees it
            assert sock.recv(6000) == sent
        else:
            got = [sock.recv(6000) for _ in range(5)]
            assert got == [sent[i : i + 1000] for i in range(0, 5000, 1000)]


def test_an_unfinished_checksum_in(cable: Cable) -> None:
    cable.greet()
    with cable.socket() as sock:
        sock.sendto(b"hello", (GUEST, 4000))
    flags, kind, _, _, start, offset = header.LAYOUT.unpack(
        cable.received(nethost.IP)[:10]
    )
    assert (flags & 1, kind, start, offset) == (1, 0, 34, 6)


def test_segments_in(cable: Cable) -> None:
    cable.greet()
    with cable.socket() as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.sendto(bytes(5000), (GUEST, 4000))
    takes = bool(cable.net.features & header.GUEST_USO4)
    for _ in range(1 if takes else 5):
        got = cable.received(nethost.IP)
        _, kind, _, size, _, _ = header.LAYOUT.unpack(got[:10])
        if takes:
            assert (kind, size, len(got)) == (5, 1000, 12 + 42 + 5000)
        else:
            assert (kind, len(got)) == (0, 12 + 42 + 1000)


def test_without_offloads(namespace: nethost.Namespace) -> None:
    """A driver that takes none gets frames as they are on a wire."""
    cable = Cable(namespace)
    try:
        cable.drv.close()
        namespace.run(cable.net.peer.open, cable.net)
        namespace.up("vm0", HOST)
        cable.mac = namespace.mac("vm0")
        cable.drv = virtio.driver(cable.net, features=1 << 5)
        cable.greet()
        with cable.socket() as sock:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sock.sendto(bytes(5000), (GUEST, 4000))
        for _ in range(5):
            got = cable.received(nethost.IP)
            assert got[:12] == ONE and len(got) == 12 + 42 + 1000
            pseudo = got[38:46] + struct.pack(">BBH", 0, 17, 1008)
            assert nethost.checksum(pseudo + got[46:]) == 0
    finally:
        cable.close()


def test_offloads_at_run_time(cable: Cable) -> None:
    assert cable.drv.control(b"\5\0" + bytes(8), reply=1) == b"\0"
    cable.greet()
    with cable.socket() as sock:
        sock.sendto(b"hello", (GUEST, 4000))
    assert cable.received(nethost.IP)[:12] == ONE


@pytest.mark.parametrize(
    "fields",
    [
        (1, 1, 0xFFFF, 1, 0, 0),
        (1, 1, 14, 0xFFFF, 40, 18),
        (1, 4, 14, 1, 40, 18),
        (1, 3, 0, 1, 0, 0),
        (1, 5, 0, 1, 100, 0),
    ],
)
def test_headers_that_the_kernel_refuses(
    cable: Cable, fields: tuple[int, ...]
) -> None:
    """Or what it makes of them: nothing happens to the device."""
    head = header.LAYOUT.pack(*fields)
    cable.drv.transmit(head + b"\0\0", bytes(12) + b"\x88\xb5" + bytes(200))
    assert cable.net.tx_packets + cable.net.tx_dropped == 1
    assert cable.net.link
    with cable.socket() as sock:
        head = header.LAYOUT.pack(1, 0, 0, 0, 34, 6)
        cable.drv.transmit(head + b"\0\0", cable.udp(b"alive"))
        assert sock.recv(100) == b"alive"


# -- an interface that goes ----------------------------------------------------


def remove(namespace: nethost.Namespace, name: str) -> None:
    """RTM_DELLINK, by netlink."""
    index = namespace.run(socket.if_nametoindex, name)
    with namespace.run(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW) as nl:
        body = struct.pack("BxHiII", 0, 0, index, 0, 0)
        nl.send(struct.pack("IHHII", 16 + len(body), 17, 5, 1, 0) + body)
        assert struct.unpack_from("i", nl.recv(1000), 16) == (0,)


def test_removed_while_it_is_read(cable: Cable) -> None:
    remove(cable.namespace, "vm0")
    assert cable.drv.poll(10)
    assert cable.drv.config["status"] == 0
    assert "tap vm0" in str(cable.net.error)
    assert cable.drv.poll() == 0


def test_removed_while_it_is_written(cable: Cable) -> None:
    remove(cable.namespace, "vm0")
    cable.drv.transmit(HEADER, bytes(60))
    assert cable.net.tx_dropped == 1 and not cable.net.link
    cable.drv.reset()
    cable.drv.start()
    assert cable.drv.config["status"] == 0


def test_removed_before_a_reset(cable: Cable) -> None:
    remove(cable.namespace, "vm0")
    cable.drv.reset()
    cable.drv.start()
    assert not cable.net.link

# SPDX-License-Identifier: Apache-2.0
"""virtio-net in front of a driver that the test plays; its peer is Python."""

import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import QueueTraffic
from hypothesis import strategies as st

from pyvmm import virtio
from pyvmm.devices import Net, net_filter, net_header
from pyvmm.devices import net as module
from pyvmm.devices.net_filter import Filter
from pyvmm.devices.net_header import (
    CSUM,
    CTRL_GUEST_OFFLOADS,
    GUEST_CSUM,
    GUEST_TSO4,
    HOST_ECN,
    HOST_TSO4,
    HOST_USO,
    LAYOUT,
    PLAIN,
    checked,
)
from pyvmm.devices.net_inbox import BACKLOG
from pyvmm.devices.net_peer import Lost, Peer, behind
from pyvmm.virtio import rings

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("02000000aa02")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
ROOM = 12 + 1518


def frame(
    size: int = 60, to: bytes = MAC, by: bytes = OTHER, kind: int = 0x88B5
) -> bytes:
    head = to + by + kind.to_bytes(2, "big")
    return head + bytes(i % 251 for i in range(size - len(head)))


def header(buffers: int = 1) -> bytes:
    return PLAIN + buffers.to_bytes(2, "little")


@pytest.fixture
def drv() -> Iterator[virtio.Driver]:
    """A device whose peer keeps what it is sent, in `device.peer.function`."""
    with virtio.driver(Net(Sent(), mac=MAC, mtu=9000)) as drv:
        yield drv


class Sent(list):
    """A peer that keeps all frames and answers none."""

    def __call__(self, data: bytes) -> None:
        self.append(data)


def sent(drv: virtio.Driver) -> list[bytes]:
    return drv.device.peer.function


def command(drv: virtio.Driver, *parts: bytes, reply: Any = 1) -> bytes:
    return drv.control(*parts, reply=reply)


# -- what it says of itself ----------------------------------------------------


def test_configuration(drv: virtio.Driver) -> None:
    assert drv.config == {"mac": MAC, "status": 1, "pairs": 1, "mtu": 9000}
    offered = drv.raw.offered() & ((1 << 24) - 1 | 0x3FF << 54)
    assert offered == module.FEATURES
    device = drv.device
    assert device.mac == "02:00:00:00:00:01" and device.mtu == 9000
    assert device.link and device.error is None
    assert repr(device) == (
        "<Net 02:00:00:00:00:01 to Sent, link up, rx 0 (0 bytes), "
        "tx 0 (0 bytes)>"
    )


def test_addresses_differ() -> None:
    macs = [Net(lambda frame: None).config.mac for _ in range(300)]
    assert len(set(macs)) == 300
    assert all(mac[0] & 3 == 2 for mac in macs)


@pytest.mark.parametrize(
    ("mac", "want"),
    [
        ("52:54:00:12:34:56", "525400123456"),
        ("2:0:0:0:0:A", "02000000000a"),
        (MAC, MAC.hex()),
    ],
)
def test_address(mac: str | bytes, want: str) -> None:
    assert Net(mac=mac).config.mac.hex() == want


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mac": "01:00:5e:00:00:01"}, ValueError, "no address of a device"),
        ({"mac": "52:54:00:12:34"}, ValueError, "no address of a device"),
        ({"mac": "52:54:00:12:34:100"}, ValueError, "no address of a device"),
        ({"mac": "52:54:00:12:34:xx"}, ValueError, "no address of a device"),
        ({"mac": bytes(6)}, ValueError, "no address of a device"),
        ({"mac": 5}, ValueError, "mac=5 is no address"),
        ({"mtu": 67}, ValueError, r"mtu=67 is outside 68\.\.65535"),
        ({"mtu": 65536}, ValueError, r"mtu=65536 is outside"),
        ({"peer": "tap0"}, TypeError, "'tap0' is no peer"),
        ({"peer": Peer}, TypeError, "is no peer"),
        ({"peer": print, "tap": "tap0"}, TypeError, "one cable"),
        ({"stream": "/x", "tap": "tap0"}, TypeError, "one cable"),
        ({"tap": ""}, ValueError, "no name of an interface"),
        ({"tap": "a-name-that-is-too-long"}, ValueError, "1 to 15 bytes"),
        ({"tap": True}, TypeError, "neither a name nor a descriptor"),
        ({"tap": 1.5}, TypeError, "neither a name nor a descriptor"),
        ({"tap": 0}, ValueError, "tap=0 is no TAP interface"),
    ],
)
def test_arguments(options: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        Net(**options)


def test_features_are_the_kernels() -> None:
    """All that <linux/virtio_net.h> names as we do; older ones lack some."""
    text = Path("/usr/include/linux/virtio_net.h").read_text()
    numbers = dict(re.findall(r"VIRTIO_NET_F_(\w+)\s+(\d+)", text))
    names = {**vars(net_filter), **vars(net_header), **vars(module)}
    ours = [name for name in numbers if isinstance(names.get(name), int)]
    assert len(ours) > 20
    for name in ours:
        assert names[name] == 1 << int(numbers[name]), name


# -- sending -------------------------------------------------------------------


@pytest.mark.parametrize("size", [14, 60, 1514, 1518, 9018])
def test_transmit(drv: virtio.Driver, size: int) -> None:
    assert drv.transmit(header(0), frame(size)) == b""
    assert sent(drv) == [frame(size)]
    assert (drv.device.tx_packets, drv.device.tx_bytes) == (1, size)
    assert drv.device.tx_dropped == drv.device.faults == 0


def test_header_split_at_every_byte(drv: virtio.Driver) -> None:
    data = header(0) + frame(20)
    for cut in range(len(data) + 1):
        drv.transmit(data[:cut], b"", data[cut:])
    drv.transmit(*(data[i : i + 1] for i in range(len(data))))
    assert sent(drv) == [frame(20)] * (len(data) + 2)


@pytest.mark.parametrize("size", [*range(26), 9031, 70000, 1 << 20])
def test_frames_too_short_and_too_long(drv: virtio.Driver, size: int) -> None:
    """Without all of a header it is the driver's fault; none is sent."""
    drv.transmit(bytes(size) or b"", reply=1 if not size else 0)
    assert sent(drv) == []
    faulty = size < 26
    assert drv.device.faults == faulty
    assert drv.device.tx_dropped == (not faulty)
    drv.transmit(header(0), frame())
    assert sent(drv) == [frame()]


def test_writable_where_readable_is_due(drv: virtio.Driver) -> None:
    assert drv.transmit(reply=[12, 60]) == b""
    assert drv.transmit(header(), frame(), reply=100) == b""
    assert (sent(drv), drv.device.faults) == ([frame()], 1)


def test_overlapping_buffers(drv: virtio.Driver) -> None:
    drv.memory.write(0x80000, header(0) + frame())
    ring = drv.raw.ring[1]
    ring.set_chain([(0x80000, 72, 0), (0x80000, 30, 0), (0x80010, 0, 0)])
    ring.offer(0)
    drv.raw.notify(1)
    assert sent(drv) == [frame() + header(0) + frame()[:18]]


def test_what_the_header_may_not_say(drv: virtio.Driver) -> None:
    """Nothing is left to a callable: no offload was offered."""
    for kind in range(1, 256):
        drv.transmit(bytes([0, kind]) + bytes(10), frame())
    drv.transmit(b"\1" + bytes(11), frame())
    assert (sent(drv), drv.device.faults) == ([], 256)
    # Reserved flags and fields without a flag are ignored (5.1.6.2.2).
    drv.transmit(b"\xfe\0" + b"\xff" * 10, frame())
    drv.transmit(b"\0\0" + b"\xff" * 10, frame())
    assert (sent(drv), drv.device.faults) == ([frame()] * 2, 256)


ALL = CSUM | HOST_TSO4 | HOST_USO


@pytest.mark.parametrize(
    ("given", "features", "want"),
    [
        # A checksum to be finished, up to the frame's last byte.
        ((1, 0, 9, 9, 34, 16), ALL, (1, 0, 0, 0, 34, 16)),
        ((1, 0, 0, 0, 82, 16), ALL, (1, 0, 0, 0, 82, 16)),
        ((1, 0, 0, 0, 83, 16), ALL, None),
        ((1, 0, 0, 0, 0xFFFF, 0xFFFF), ALL, None),
        ((1, 0, 0, 0, 34, 16), HOST_TSO4, None),
        # Segments.
        ((1, 1, 54, 20, 34, 16), ALL, (1, 1, 54, 20, 34, 16)),
        ((1, 1, 0xFFFF, 20, 34, 16), ALL, (1, 1, 100, 20, 34, 16)),
        ((1, 1, 54, 0, 34, 16), ALL, None),
        ((0, 1, 54, 20, 34, 16), ALL, None),
        ((1, 1, 54, 20, 34, 16), CSUM, None),
        ((1, 5, 54, 20, 34, 16), ALL, (1, 5, 54, 20, 34, 16)),
        ((1, 4, 54, 20, 34, 16), ALL, None),
        ((1, 2, 54, 20, 34, 16), ALL, None),
        ((1, 0x7F, 54, 20, 34, 16), ALL, None),
        ((1, 0x81, 54, 20, 34, 16), ALL, None),
        ((1, 0x81, 54, 20, 34, 16), ALL | HOST_ECN, (1, 0x81, 54, 20, 34, 16)),
        ((1, 0x80, 54, 20, 34, 16), ALL | HOST_ECN, None),
        # Neither.
        ((6, 0, 9, 9, 9, 9), ALL, (0, 0, 0, 0, 0, 0)),
        ((0, 0, 9, 9, 9, 9), ALL, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_header(
    given: tuple[int, ...], features: int, want: tuple[int, ...] | None
) -> None:
    """What of it is passed on, for a frame of 100 bytes."""
    data = LAYOUT.pack(*given) + b"\0\0"
    if want is None:
        with pytest.raises(virtio.ShortChain):
            checked(data, 100, features)
    else:
        assert checked(data, 100, features) == LAYOUT.pack(*want)


@pytest.mark.parametrize("skip", range(8))
def test_behind(skip: int) -> None:
    parts = [memoryview(part) for part in (b"ab", b"", b"c", b"defg")]
    assert b"".join(behind(parts, skip)) == b"abcdefg"[skip:]


# -- a callable answers --------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        (None, []),
        (frame(), [frame()]),
        (bytearray(frame()), [frame()]),
        (memoryview(frame()), [frame()]),
        ([], []),
        ([frame(20), frame(30)], [frame(20), frame(30)]),
        ((f for f in (frame(20), frame(30))), [frame(20), frame(30)]),
    ],
)
def test_answers(answer: object, want: list[bytes]) -> None:
    with virtio.driver(Net(lambda data: answer)) as drv:
        rooms = [drv.receive.send(reply=ROOM) for _ in range(3)]
        drv.transmit(header(), frame(to=BROADCAST))
        got = [room.reply for room in drv.receive.collect()]
        assert got == [header() + data for data in want]
        assert rooms[len(want)].done is False


@pytest.mark.parametrize("answer", [5, "text", [5], bytes(13), frame(1519)])
def test_wrong_answers(answer: object) -> None:
    """Its author learns of it; the frame is tried again."""
    answers = [answer, None]
    with virtio.driver(Net(lambda data: answers.pop(0))) as drv:
        with pytest.raises((TypeError, ValueError)) as caught:
            drv.transmit(header(), frame())
        assert "back to its queue" in "".join(caught.value.__notes__)
        drv.device.process()
        drv.transmit.wait_all()
        assert drv.device.tx_packets == 1


def test_sending_from_inside() -> None:
    def echo(data: bytes) -> None:
        assert net.send(data)

    net = Net(echo)
    with virtio.driver(net) as drv:
        room = drv.receive.send(reply=ROOM)
        drv.transmit(header(), frame())
        assert room.wait() == header() + frame()


def test_on_a_thread() -> None:
    def who(data: bytes) -> None:
        threads.append(threading.current_thread())

    threads: list[threading.Thread] = []
    with virtio.driver(Net(who, notify="thread")) as drv:
        drv.transmit(header(), frame())
    assert threads[0] is not threading.current_thread()


# -- receiving -----------------------------------------------------------------


@pytest.mark.parametrize("size", [14, 60, 1518, 9018])
def test_receive(drv: virtio.Driver, size: int) -> None:
    room = drv.receive.send(reply=12 + size)
    before = drv.interrupts
    assert drv.device.send(frame(size))
    assert room.wait() == header() + frame(size)
    assert drv.interrupts == before + 1
    assert (drv.device.rx_packets, drv.device.rx_bytes) == (1, size)


@pytest.mark.parametrize("cut", range(32))
def test_receive_in_pieces(drv: virtio.Driver, cut: int) -> None:
    """One buffer of the driver's, wherever its parts end."""
    room = drv.receive.send(reply=[cut, 0, 40 - cut])
    assert drv.device.send(frame(20))
    assert room.wait() == header() + frame(20)


def test_receive_merged(drv: virtio.Driver) -> None:
    """As many buffers as it takes, all filled but the last, found at once."""
    rooms = [drv.receive.send(reply=1500) for _ in range(8)]
    assert drv.device.send(frame(9000))
    got = [room.reply for room in drv.receive.collect()]
    assert [len(data) for data in got] == [1500] * 6 + [12]
    assert b"".join(got) == header(7) + frame(9000)
    assert not rooms[7].done


def test_receive_merged_behind_a_split_header(drv: virtio.Driver) -> None:
    rooms = [drv.receive.send(reply=5) for _ in range(10)]
    assert drv.device.send(frame(30))
    assert b"".join(room.wait() for room in rooms[:9]) == header(9) + frame(30)


def test_not_merged_without_the_feature() -> None:
    """A buffer that is too small comes back empty, and the frame is lost."""
    features = module.FEATURES & ~module.MRG_RXBUF
    with virtio.driver(Net(), features=features) as drv:
        small = drv.receive.send(reply=71)
        large = drv.receive.send(reply=72)
        assert not drv.device.send(frame())
        assert small.wait() == b"" and not large.done
        assert drv.device.send(frame())
        assert large.wait() == header() + frame()
        assert (drv.device.faults, drv.device.rx_dropped) == (1, 1)


def test_a_queue_that_is_too_small(drv: virtio.Driver) -> None:
    """A whole queue of buffers, and not enough: nothing waits for ever."""
    for _ in range(256):
        drv.receive.send(reply=8)
    assert not drv.device.send(frame(9000))
    assert drv.receive.in_flight == 0
    room = drv.receive.send(reply=ROOM)
    assert drv.device.send(frame())
    assert room.wait() == header() + frame()


def test_readable_where_writable_is_due() -> None:
    features = module.FEATURES & ~module.MRG_RXBUF
    with virtio.driver(Net(), features=features) as drv:
        drv.receive.send(bytes(2000))
        assert not drv.device.send(frame())
        assert drv.device.faults == 1


def test_frames_wait_for_buffers(drv: virtio.Driver) -> None:
    """In order, as many as BACKLOG; the others are lost."""
    frames = [frame(60, by=struct.pack(">HI", 0x200, i)) for i in range(300)]
    taken = [drv.device.send(data) for data in frames]
    assert taken == [True] * BACKLOG + [False] * (300 - BACKLOG)
    assert drv.device.rx_dropped == 300 - BACKLOG
    got = []
    for _ in range(BACKLOG):
        got.append(drv.receive(reply=ROOM))
    assert got == [header() + data for data in frames[:BACKLOG]]
    assert drv.device.rx_packets == BACKLOG


def test_a_frame_that_takes_what_is_not_there_yet(drv: virtio.Driver) -> None:
    first = drv.receive.send(reply=50)
    assert drv.device.send(frame(60))
    assert drv.device.send(frame(14))
    assert not first.done
    second = drv.receive.send(reply=50)
    assert first.wait() + second.wait() == header(2) + frame(60)
    assert drv.receive(reply=50) == header() + frame(14)


def test_before_the_driver_runs() -> None:
    with virtio.driver(Net(), start=False) as drv:
        assert not drv.device.send(frame())
        drv.start()
        drv.device.send(frame())
        drv.reset()
        assert drv.device.rx_dropped == 2  # what waited, too
        assert not drv.device.send(frame())
        drv.start()
        room = drv.receive.send(reply=ROOM)
        assert not room.done
    assert not drv.device.send(frame())


def test_a_broken_device(drv: virtio.Driver) -> None:
    drv.raw.ring[0].set_offered(1000)
    assert drv.device.send(frame())
    assert drv.broken
    drv.reset()
    drv.start()
    room = drv.receive.send(reply=ROOM)
    assert drv.device.send(frame())
    assert room.wait() == header() + frame()


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (bytes(13), ValueError, r"13 bytes is outside 14\.\.1518"),
        (frame(1519), ValueError, r"1519 bytes .* \(mtu=1500\)"),
        ("text", TypeError, "a frame is bytes, not str"),
        (5, TypeError, "a frame is bytes, not int"),
    ],
)
def test_no_frames(data: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        Net().send(data)


def test_from_many_threads() -> None:
    """None is lost and none comes twice."""

    def send(number: int) -> None:
        for i in range(50):
            assert drv.device.send(frame(by=bytes([2, 0, 0, 0, number, i])))

    with virtio.driver(Net()) as drv:
        threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        got = [drv.receive(reply=ROOM) for _ in range(200)]
        for thread in threads:
            thread.join()
    by = [data[18:24] for data in got]
    assert len(set(by)) == 200
    for number in range(4):
        of_one = [data[5] for data in by if data[4] == number]
        assert of_one == list(range(50))


# -- the cable -----------------------------------------------------------------


def test_link(drv: virtio.Driver) -> None:
    rooms = [drv.receive.send(reply=ROOM) for _ in range(2)]
    before, generation = drv.interrupts, drv.generation
    drv.device.link = False
    assert drv.interrupts == before + 1 and drv.generation != generation
    assert drv.raw.get(rings.INTERRUPT_STATUS) & 2
    assert drv.config["status"] == 0 and not drv.device.link
    assert not drv.device.send(frame())
    drv.transmit(header(), frame())
    assert sent(drv) == []
    assert (drv.device.tx_dropped, drv.device.rx_dropped) == (1, 1)
    assert "link down" in repr(drv.device)
    assert "tx 0 (0 bytes, 1 dropped)" in repr(drv.device)
    drv.device.link = False
    assert drv.interrupts == before + 2  # the one frame that was sent
    drv.device.link = True
    assert drv.config["status"] == 1
    assert drv.device.send(frame())
    assert rooms[0].wait() == header() + frame()


def test_link_at_first() -> None:
    with virtio.driver(Net(link=False)) as drv:
        assert drv.config["status"] == 0
        drv.device.link = True
        assert drv.config["status"] == 1


def test_announce(drv: virtio.Driver) -> None:
    before = drv.interrupts
    drv.device.announce()
    assert drv.config["status"] == 3 and drv.interrupts == before + 1
    assert command(drv, b"\3\0x") == b"\1"
    assert drv.config["status"] == 3
    assert command(drv, b"\3\0") == b"\0"
    assert drv.config["status"] == 1
    drv.device.announce()
    drv.reset()
    assert drv.config["status"] == 1
    with virtio.driver(Net(), features=module.CTRL_VQ) as drv:
        drv.device.announce()
        assert drv.config["status"] == 1
        assert command(drv, b"\3\0") == b"\1"


# -- commands ------------------------------------------------------------------


def entries(*macs: bytes) -> bytes:
    return struct.pack("<I", len(macs)) + b"".join(macs)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",  # no value
        b"\0\0\1\1",
        b"\0\6\1",
        b"\1\0",
        b"\1\0" + entries(MAC),
        b"\1\0" + entries(MAC) + b"\0\0\0",
        b"\1\0" + entries(MAC) + entries(GROUP) + b"x",
        b"\1\0" + entries(MAC) + entries(GROUP)[:-1],
        b"\1\0\xff\xff\xff\xff" + MAC,
        b"\1\0\0\0\0\0\xff\xff\xff\xff" + GROUP,
        b"\1\1" + MAC[:5],
        b"\1\1" + MAC + b"x",
        b"\1\2" + MAC,
        b"\2\0\1",
        b"\2\0\1\0\0",
        b"\2\0\0\x10",  # 4096
        b"\2\2\1\0",
        b"\4\0\1\0",  # more queues
        b"\5\0" + bytes(8),  # offloads: none were offered
        b"\xff\xff" + bytes(100),
        b"\0\0" + bytes(1 << 16),
    ],
)
def test_commands_that_make_no_sense(drv: virtio.Driver, data: bytes) -> None:
    state = drv.device.save()
    reply = command(drv, data, reply=[1]) if data else drv.control(reply=1)
    assert reply == b"\1"
    assert drv.device.save() == state
    assert drv.device.faults == 0


def test_commands_split_at_every_byte(drv: virtio.Driver) -> None:
    data = b"\1\0" + entries(MAC, OTHER) + entries(GROUP)
    for cut in range(len(data) + 1):
        assert command(drv, data[:cut], data[cut:], reply=[0, 1]) == b"\0"
    assert command(drv, data, reply=100) == b"\0"


def test_a_command_without_room(drv: virtio.Driver) -> None:
    assert command(drv, b"\0\0\0", reply=0) == b""
    assert drv.device.faults == 1 and drv.device.save()["filter"]["promiscuous"]
    assert command(drv, b"\0\0\0") == b"\0"


@pytest.mark.parametrize("feature", [18, 19, 20, 23])
def test_commands_that_were_not_negotiated(feature: int) -> None:
    commands = {
        18: b"\0\0\1",
        19: b"\2\0\1\0",
        20: b"\0\2\1",
        23: b"\1\1" + OTHER,
    }
    with virtio.driver(
        Net(), features=module.FEATURES & ~(1 << feature)
    ) as drv:
        replies = {n: command(drv, data) for n, data in commands.items()}
    assert replies == {n: b"\1" if n == feature else b"\0" for n in commands}


def test_own_address(drv: virtio.Driver) -> None:
    assert command(drv, b"\1\1" + OTHER) == b"\0"
    assert drv.config["mac"] == OTHER and drv.device.mac == OTHER.hex(":")
    drv.reset()
    assert drv.config["mac"] == MAC


# What each says to the filter, and which of these frames then come.
KINDS = {
    "own": frame(to=MAC),
    "uni": frame(to=OTHER),
    "more": frame(to=b"\2more!"),
    "multi": frame(to=GROUP),
    "group": frame(to=b"\3group"),
    "all": frame(to=BROADCAST),
    "vlan5": frame(to=MAC, kind=0x8100)[:14] + b"\0\5" + bytes(44),
    "vlan9": frame(to=MAC, kind=0x8100)[:14] + b"\xf0\x09" + bytes(44),
    "short": frame(14, to=MAC, kind=0x8100),
}
PLAIN_ONES = {"own", "all"}
TABLE = b"\1\0" + entries(OTHER) + entries(GROUP)
CROWD = [b"\2\0\0\0" + i.to_bytes(2, "big") for i in range(65)]
GROUPS = [b"\3\0\0\0" + i.to_bytes(2, "big") for i in range(65)]


@pytest.mark.parametrize(
    ("commands", "want"),
    [
        ([], {*KINDS}),
        ([b"\0\0\0"], PLAIN_ONES),
        ([b"\0\0\0", b"\0\1\1"], PLAIN_ONES | {"multi", "group"}),
        ([b"\0\0\0", b"\0\2\1"], PLAIN_ONES | {"uni", "more"}),
        ([b"\0\0\0", b"\0\3\1", TABLE], PLAIN_ONES | {"uni"}),
        ([b"\0\0\0", b"\0\4\1", TABLE], {"multi", "all"}),
        ([b"\0\0\0", b"\0\5\1"], {"own"}),
        ([b"\0\0\0", b"\0\5\1", b"\0\5\0"], PLAIN_ONES),
        ([b"\0\0\0", TABLE], PLAIN_ONES | {"uni", "multi"}),
        ([b"\0\0\0", TABLE, b"\1\0" + bytes(8)], PLAIN_ONES),
        (
            [b"\0\0\0", b"\1\0" + entries(*CROWD) + entries()],
            PLAIN_ONES | {"uni", "more"},
        ),
        (
            [b"\0\0\0", b"\1\0" + entries() + entries(*GROUPS)],
            PLAIN_ONES | {"multi", "group"},
        ),
        ([b"\0\0\0", b"\2\0\5\0"], PLAIN_ONES | {"vlan5"}),
        ([b"\0\0\0", b"\2\0\5\0", b"\2\0\0\0"],
         PLAIN_ONES | {"vlan5", "short"}),
        ([b"\0\0\0", b"\2\0\5\0", b"\2\1\5\0", b"\2\0\x09\0"],
         PLAIN_ONES | {"vlan9"}),
        ([b"\0\0\0", b"\1\1" + OTHER], {"uni", "all"}),
        ([b"\0\0\0", b"\0\0\2"], {*KINDS}),
    ],
)  # fmt: skip
def test_filter(
    drv: virtio.Driver, commands: list[bytes], want: set[str]
) -> None:
    for data in commands:
        assert command(drv, data) == b"\0"
    for _ in KINDS:
        drv.receive.send(reply=ROOM)
    for data in KINDS.values():
        assert drv.device.send(data)
    got = [room.reply[12:] for room in drv.receive.collect()]
    assert got == [data for name, data in KINDS.items() if name in want]
    assert drv.device.rx_dropped == 0
    drv.reset()
    drv.start()
    assert drv.device.save()["filter"] == fresh_filter()


def fresh_filter() -> dict[str, Any]:
    filter = Filter(MAC)
    filter.reset(MAC, module.FEATURES)
    return filter.save()


def test_vlans_without_the_feature() -> None:
    with virtio.driver(Net(mac=MAC), features=module.CTRL_RX) as drv:
        assert command(drv, b"\0\0\0") == b"\0"
        assert drv.device.send(KINDS["vlan5"])
        assert drv.receive(reply=ROOM)[12:] == KINDS["vlan5"]


# -- peers that take more ------------------------------------------------------


class Fake(Peer):
    """A peer with offloads, that says what the test says."""

    features = ALL | GUEST_CSUM | GUEST_TSO4 | CTRL_GUEST_OFFLOADS

    def __init__(self) -> None:
        self.offloads: list[int] = []
        self.sent: list[tuple[bytes, bytes]] = []
        self.came: list[tuple[bytes, bytes]] = []
        self.closed = 0
        self.lost = False

    def offload(self, features: int) -> None:
        self.offloads.append(features)
        self._check()

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        self._check()
        self.sent.append((header, chain.read()))
        return True

    def frames(self) -> Iterator[tuple[bytes, Any]]:
        self._check()
        while self.came:
            yield self.came.pop(0)

    def close(self) -> None:
        self.closed += 1

    def _check(self) -> None:
        if self.lost:
            raise Lost("nobody there")


def test_offloads_are_passed_on() -> None:
    peer = Fake()
    with virtio.driver(Net(peer)) as drv:
        assert peer.offloads == [0, GUEST_CSUM | GUEST_TSO4]
        segmented = LAYOUT.pack(1, 1, 54, 1000, 34, 16)
        drv.transmit(segmented + b"\0\0", frame(65000))
        drv.transmit(header(), frame(65000))
        drv.transmit(segmented + b"\0\0", frame(66000))
        assert peer.sent == [(segmented, frame(65000))]
        assert drv.device.tx_dropped == 2
        # To the guest.
        for _ in range(50):
            drv.receive.send(reply=ROOM)
        peer.came = [(segmented, frame(65000)), (PLAIN, frame(65000))]
        drv.device._receive()
        got = b"".join(room.reply for room in drv.receive.collect())
        assert got == segmented + b"\x2b\0" + frame(65000)
        assert drv.device.rx_dropped == 1
        # At run time.
        change = GUEST_CSUM.to_bytes(8, "little")
        assert command(drv, b"\5\0" + change) == b"\0"
        assert command(drv, b"\5\0" + change[:7]) == b"\1"
        assert command(drv, b"\5\0" + CSUM.to_bytes(8, "little")) == b"\1"
        assert command(drv, b"\5\0" + b"\xff" * 8) == b"\1"
        drv.reset()
        assert peer.offloads == [0, GUEST_CSUM | GUEST_TSO4, GUEST_CSUM, 0]


def test_offloads_that_were_not_taken() -> None:
    peer = Fake()
    with virtio.driver(Net(peer), features=CSUM) as drv:
        drv.transmit(LAYOUT.pack(1, 1, 54, 100, 34, 16) + b"\0\0", frame(900))
        assert (peer.sent, drv.device.faults) == ([], 1)
        assert peer.offloads == [0, 0]


@pytest.mark.parametrize("where", ["send", "frames", "offload"])
def test_a_peer_that_goes(where: str) -> None:
    """The link goes down, with an interrupt; nothing else happens."""
    peer = Fake()
    net = Net(peer)
    with virtio.driver(net) as drv:
        before = drv.interrupts
        peer.lost = True
        if where == "send":
            drv.transmit(header(), frame())
        elif where == "frames":
            net._receive()
        else:
            command(drv, b"\5\0" + bytes(8))
        assert drv.interrupts > before and drv.config["status"] == 0
        assert str(net.error) == "nobody there" and peer.closed == 1
        drv.transmit(header(), frame())
        assert net.tx_dropped == 1 + (where == "send")
    peer.lost = False
    with virtio.driver(net) as drv:
        assert drv.config["status"] == 1 and net.error is None
        drv.transmit(header(), frame())
        assert peer.sent == [(PLAIN, frame())]


def test_a_peer_with_a_bug() -> None:
    class Buggy(Peer):
        def frames(self) -> Iterator[tuple[bytes, Any]]:
            yield PLAIN, frame()
            raise KeyError("mine")

    with virtio.driver(Net(Buggy())) as drv:
        room = drv.receive.send(reply=ROOM)
        with pytest.raises(KeyError):
            drv.device._receive()
        assert room.wait() == header() + frame()


# -- state ---------------------------------------------------------------------


def test_save_and_restore(drv: virtio.Driver) -> None:
    for data in (b"\0\0\0", TABLE, b"\2\0\5\0", b"\1\1" + b"\2mine!"):
        assert command(drv, data) == b"\0"
    drv.device.link = False
    state = drv.device.save()
    fake = Fake()
    with virtio.driver(Net(fake)) as other:
        other.device.restore(state)
        assert other.device.save() == state
        assert other.config["mac"] == b"\2mine!" and other.config["status"] == 0
        other.device.link = True
        room = other.receive.send(reply=ROOM)
        assert other.device.send(frame(to=b"\2alien"))
        assert other.device.send(frame(to=GROUP))
        assert room.wait() == header() + frame(to=GROUP)


def test_restored_while_it_runs(drv: virtio.Driver) -> None:
    """As a reload does: what waits goes on waiting, nobody is interrupted."""
    assert drv.device.send(frame())
    before = drv.interrupts
    drv.device.restore(drv.device.save())
    assert drv.interrupts == before
    assert drv.receive(reply=ROOM) == header() + frame()


def test_saved_before_it_ran() -> None:
    with virtio.driver(Net(), start=False) as drv:
        state = drv.device.save()
        drv.start()
        drv.device.restore(state)
        assert not drv.device.send(frame())


# -- whatever a driver does ----------------------------------------------------

HEADERS = st.builds(
    lambda *fields: LAYOUT.pack(*fields) + b"\0\0",
    st.sampled_from([0, 1, 2, 255]),
    st.sampled_from([0, 1, 4, 5, 0x81, 255]),
    *[st.sampled_from([0, 1, 14, 34, 0xFFFF])] * 4,
)
COMMANDS = st.builds(
    lambda kind, command, data: bytes([kind, command]) + data,
    st.integers(0, 6),
    st.integers(0, 6),
    st.one_of(
        st.binary(max_size=10),
        st.lists(st.sampled_from([MAC, OTHER, GROUP]), max_size=3).map(
            lambda macs: entries(*macs) + entries(GROUP)
        ),
    ),
)


class NetTraffic(QueueTraffic):
    """Its peer sends back what it is sent, and something of its own."""

    payloads = (
        st.binary(max_size=64)
        | st.builds(lambda head, size: head + frame(size), HEADERS,
                    st.sampled_from([14, 60, 1518, 1519]))
        | COMMANDS
    )  # fmt: skip

    examples = 40

    def make(self) -> virtio.Device:
        self.fake = Fake()
        return Net(self.fake, mac=MAC)

    def alive(self, drv: virtio.Driver) -> None:
        while drv.device._inbox.waiting:  # what its peer had before
            drv.receive(reply=2 * ROOM)
        room = drv.receive.send(reply=ROOM)
        assert drv.device.send(frame())
        assert room.wait() == header() + frame()
        drv.transmit(header(), frame())
        assert self.fake.sent.pop() == (PLAIN, frame())
        assert command(drv, b"\0\0\1") == b"\0"

    def check(self, drv: virtio.Driver) -> None:
        while self.fake.sent:
            head, data = self.fake.sent.pop()
            assert len(head) == 10 and len(data) >= 14
            assert head[1] or len(data) <= 1518
            drv.device.send(data[:1518])
            self.fake.came.append((head, data))
        drv.device._receive()
        assert len(drv.device._inbox.waiting) <= BACKLOG


test_traffic = NetTraffic.test_case()

# SPDX-License-Identifier: Apache-2.0
"""virtio-net on a stream socket and on a switch."""

import gc
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import virtio
from pyvmm.devices import Net, Switch
from pyvmm.devices.net_inbox import BACKLOG
from pyvmm.devices.net_peer import FRAME_MOST

HEADER = bytes(12)
ONE = bytes(10) + b"\1\0"
ROOM = 12 + 1518
BROADCAST = b"\xff" * 6


def frame(
    size: int = 60, to: bytes = BROADCAST, by: bytes = b"\2other", mark: int = 0
) -> bytes:
    head = to + by + b"\x88\xb5" + struct.pack("<I", mark)
    return (head + bytes(i % 251 for i in range(size)))[:size]


def framed(*frames: bytes) -> bytes:
    return b"".join(len(f).to_bytes(4, "big") + f for f in frames)


# -- a stream socket -----------------------------------------------------------


class Wire:
    """A device in front of a driver, and the other end of its socket."""

    def __init__(self, notify: str = "inline", **options: int) -> None:
        ours, self.end = socket.socketpair()
        self.end.settimeout(10)
        self.net = Net(stream=ours, notify=notify, **options)
        self.drv = virtio.driver(self.net)

    def received(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.end.recv(size - len(data))
            assert piece
            data += piece
        return data

    def close(self) -> None:
        self.drv.close()
        self.end.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def threaded() -> Iterator[Wire]:
    wire = Wire("thread")
    yield wire
    wire.close()


def test_stream_out(wire: Wire) -> None:
    wire.drv.transmit(HEADER, frame(14), frame(46))
    wire.drv.transmit(HEADER + frame(1514))
    want = framed(frame(14) + frame(46), frame(1514))
    assert wire.received(len(want)) == want
    assert wire.net.tx_packets == 2
    assert str(wire.net.peer) == "stream"


def test_stream_in(wire: Wire) -> None:
    rooms = [wire.drv.receive.send(reply=ROOM) for _ in range(3)]
    before = wire.drv.interrupts
    wire.end.sendall(framed(frame(14), frame(1518), frame(60)))
    assert wire.drv.poll(5) == 1
    got = [room.wait() for room in rooms]
    assert got == [ONE + frame(n) for n in (14, 1518, 60)]
    assert wire.drv.interrupts == before + 1


def test_stream_in_by_bytes(wire: Wire) -> None:
    """Wherever the pieces end."""
    room = wire.drv.receive.send(reply=ROOM)
    data = framed(frame(20))
    for byte in data[:-1]:
        wire.end.sendall(bytes([byte]))
        assert wire.drv.poll(5) == 1
        assert not wire.drv.receive.collect()
    wire.end.sendall(data[-1:])
    wire.drv.poll(5)
    assert room.wait() == ONE + frame(20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(14, 2000), max_size=12),
    st.lists(st.integers(1, 6000), max_size=12),
)
def test_stream_in_any_pieces(sizes: list[int], cuts: list[int]) -> None:
    """All frames come, in order; those that are too long do not."""
    frames = [frame(size, mark=i) for i, size in enumerate(sizes)]
    data = framed(*frames)
    wire = Wire()
    try:
        rooms = [wire.drv.receive.send(reply=ROOM) for _ in frames]
        for cut in [*cuts, len(data)]:
            piece, data = data[:cut], data[cut:]
            if piece:
                wire.end.sendall(piece)
                wire.drv.poll(5)
        want = [ONE + f for f in frames if len(f) <= 1518]
        assert [room.wait() for room in rooms[: len(want)]] == want
        assert wire.net.rx_dropped == len(frames) - len(want)
    finally:
        wire.close()


def test_stream_on_a_thread(threaded: Wire) -> None:
    threaded.end.sendall(framed(*(frame(60, mark=i) for i in range(300))))
    for i in range(300):
        assert threaded.drv.receive(reply=ROOM) == ONE + frame(60, mark=i)
    for i in range(100):
        threaded.drv.transmit(HEADER, frame(60, mark=i))
    want = framed(*(frame(60, mark=i) for i in range(100)))
    assert threaded.received(len(want)) == want


def test_stream_longest_frames() -> None:
    wire = Wire(mtu=65535)
    try:
        rooms = [wire.drv.receive.send(reply=40000) for _ in range(2)]
        wire.end.setblocking(False)
        data = framed(frame(FRAME_MOST))
        while not rooms[1].done:
            data = data[wire.end.send(data) if data else 0 :]
            wire.drv.poll()
            wire.drv.receive.collect()
        got = b"".join(room.reply for room in rooms)
        assert got == bytes(10) + b"\2\0" + frame(FRAME_MOST)
    finally:
        wire.close()


def test_stream_waits_for_buffers(wire: Wire) -> None:
    """What the guest has no room for is left in the socket."""
    wire.end.setblocking(False)
    total = 0
    data = framed(*(frame(1000, mark=i) for i in range(2000)))
    with pytest.raises(BlockingIOError):
        while True:
            total += wire.end.send(data[total:])
            wire.drv.poll()
    assert wire.drv.poll() == 0  # paused
    assert len(wire.net._inbox.waiting) == 1
    seen = 0
    while seen < total // 1004:
        got = wire.drv.receive(reply=ROOM)
        assert got == ONE + frame(1000, mark=seen)
        seen += 1
        wire.drv.poll()
    assert wire.net.rx_dropped == 0


def test_stream_that_nobody_reads(wire: Wire) -> None:
    """The guest's frames wait in its queue, and none is lost."""
    wire.end.settimeout(10)
    requests = []
    for i in range(1000):
        if wire.net.peer.busy and len(requests) - wire.net.tx_packets == 20:
            break
        requests.append(wire.drv.transmit.send(HEADER, frame(1500, mark=i)))
    assert wire.net.peer.busy
    waiting = wire.drv.transmit.in_flight
    assert waiting == 20
    # A notification changes nothing.
    wire.drv.transmit.notify()
    assert wire.drv.poll() == 0
    assert wire.drv.transmit.in_flight == waiting
    want = framed(*(frame(1500, mark=i) for i in range(len(requests))))
    got = b""
    while len(got) < len(want):
        got += wire.end.recv(1 << 16)
        wire.drv.poll()
    assert got == want
    wire.drv.transmit.wait_all()
    assert wire.net.tx_packets == len(requests)
    assert wire.drv.poll() == 0


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_stream_that_is_closed_while_nobody_reads(wire: Wire, who: str) -> None:
    """What waits in the queue is dropped: a driver would wait for ever."""
    sent = 0
    while not wire.net.peer.busy or wire.drv.transmit.in_flight < 20:
        wire.drv.transmit.send(HEADER, frame(1500))
        sent += 1
    wire.end.close()
    if who == "reader":
        wire.drv.poll(5)
    else:
        wire.drv.transmit.notify()
    assert wire.drv.transmit.in_flight == 0
    assert wire.net.tx_packets + wire.net.tx_dropped == sent
    assert not wire.net.link
    wire.net.link = True  # to nowhere
    wire.drv.transmit(HEADER, frame())
    assert wire.net.tx_packets + wire.net.tx_dropped == sent + 1


def test_stream_closed(wire: Wire) -> None:
    """What came before is delivered; then the link is down."""
    room = wire.drv.receive.send(reply=ROOM)
    wire.end.sendall(framed(frame()) + b"\0\0")
    wire.end.close()
    for _ in range(2):
        wire.drv.poll(5)
    assert room.wait() == ONE + frame()
    assert wire.drv.config["status"] == 0
    assert "closed by the other end" in str(wire.net.error)
    assert wire.drv.poll() == 0
    wire.drv.transmit(HEADER, frame())
    assert wire.net.tx_dropped == 1


def test_stream_reset(wire: Wire) -> None:
    wire.end.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    wire.drv.transmit(HEADER, frame())
    wire.end.close()  # with something unread: ECONNRESET
    wire.drv.transmit(HEADER, frame())
    assert not wire.net.link and wire.net.error is not None
    assert (wire.net.tx_packets, wire.net.tx_dropped) == (1, 1)


@pytest.mark.parametrize(
    "length", [FRAME_MOST + 1, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
)
def test_stream_of_garbage(wire: Wire, length: int) -> None:
    room = wire.drv.receive.send(reply=ROOM)
    wire.end.sendall(framed(frame()) + length.to_bytes(4, "big") + bytes(100))
    wire.drv.poll(5)
    assert room.wait() == ONE + frame()
    assert f"a frame of {length} bytes was announced" in str(wire.net.error)
    assert wire.drv.config["status"] == 0
    assert wire.end.recv(1) == b""  # hung up


def test_stream_of_runts(wire: Wire) -> None:
    room = wire.drv.receive.send(reply=ROOM)
    wire.end.sendall(framed(b"", b"x", bytes(13), frame()))
    wire.drv.poll(5)
    assert room.wait() == ONE + frame()
    assert wire.net.rx_dropped == 3


def test_stream_while_the_driver_is_reset(wire: Wire) -> None:
    wire.drv.reset()
    wire.end.sendall(framed(frame()))
    assert wire.drv.poll() == 0
    wire.drv.start()
    room = wire.drv.receive.send(reply=ROOM)
    wire.drv.poll(5)
    assert room.wait() == ONE + frame()


def test_stream_reset_in_the_midst_of_a_frame(wire: Wire) -> None:
    """The rest of it goes out all the same: the next one comes behind it."""
    sent = 0
    while not wire.net.peer.busy:
        wire.drv.transmit(HEADER, frame(1500, mark=sent))
        sent += 1
    wire.drv.reset()
    wire.drv.start()
    want = framed(*(frame(1500, mark=i) for i in range(sent)))
    got = b""
    while len(got) < len(want):
        got += wire.end.recv(1 << 16)
        wire.drv.poll()
    assert got == want
    assert wire.drv.poll() == 0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "net"))
        listener.listen()
        yield listener


def test_stream_by_path(listener: socket.socket, tmp_path: Path) -> None:
    net = Net(stream=tmp_path / "net")
    for _ in range(2):  # connected anew when it is attached again
        with virtio.driver(net) as drv:
            end, _ = listener.accept()
            drv.transmit(HEADER, frame())
            assert end.recv(100) == framed(frame())
            end.close()
            drv.poll(5)
            assert not net.link
    assert str(net.peer) == f"stream {tmp_path / 'net'}"


def test_stream_that_is_not_there(
    listener: socket.socket, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*start passt"):
        Net(stream=str(tmp_path / "nowhere"))
    listener.close()
    with pytest.raises(ConnectionRefusedError, match="any more"):
        Net(stream=str(tmp_path / "net"))


def test_sockets_of_another_kind() -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="no stream socket"),
    ):
        Net(stream=sock)


def test_a_socket_serves_once() -> None:
    wire = Wire()
    wire.close()
    with pytest.raises(ValueError, match="wants another"):
        virtio.driver(wire.net)


# -- a switch ------------------------------------------------------------------


@pytest.fixture
def three() -> Iterator[list[virtio.Driver]]:
    switch = Switch()
    drivers = [
        virtio.driver(Net(switch, mac=bytes([2, 0, 0, 0, 0, i])))
        for i in range(3)
    ]
    yield drivers
    for drv in drivers:
        drv.close()


def came(drivers: list[virtio.Driver], size: int = ROOM) -> list[int]:
    """How many frames came to each; they are taken."""
    counts = []
    for drv in drivers:
        rooms = [drv.receive.send(reply=size) for _ in range(4)]
        drv.poll()
        counts.append(sum(room.done for room in drv.receive.collect()))
        drv.reset()
        drv.start()
        del rooms
    return counts


def test_switch_learns(three: list[virtio.Driver]) -> None:
    switch = three[0].device.peer.switch
    macs = [drv.device.config.mac for drv in three]
    three[0].transmit(HEADER, frame(to=BROADCAST, by=macs[0]))
    assert came(three) == [0, 1, 1]
    three[1].transmit(HEADER, frame(to=macs[0], by=macs[1]))
    assert came(three) == [1, 0, 0]
    three[0].transmit(HEADER, frame(to=macs[2], by=macs[0]))  # not seen yet
    assert came(three) == [0, 1, 1]
    three[2].transmit(HEADER, frame(to=b"\3group", by=macs[2]))
    assert came(three) == [1, 1, 0]
    three[0].transmit(HEADER, frame(to=macs[0], by=macs[0]))  # to itself
    assert came(three) == [0, 0, 0]
    assert switch.addresses == {
        mac.hex(":"): drv.device.peer
        for mac, drv in zip(macs, three, strict=True)
    }
    assert repr(switch) == "<Switch 3 ports, 3 addresses>"


def test_switch_with_an_address_that_moves(three: list[virtio.Driver]) -> None:
    three[0].transmit(HEADER, frame(by=b"\2moves"))
    three[1].transmit(HEADER, frame(by=b"\2moves"))
    came(three)
    three[2].transmit(HEADER, frame(to=b"\2moves"))
    assert came(three) == [0, 1, 0]


def test_switch_does_not_learn_groups(three: list[virtio.Driver]) -> None:
    three[0].transmit(HEADER, frame(by=b"\3group"))
    assert three[0].device.peer.switch.addresses == {}


def test_switch_is_bounded() -> None:
    """A guest that makes addresses up fills no memory."""
    switch = Switch(addresses=16)
    with virtio.driver(Net(switch)) as drv:
        for i in range(50):
            drv.transmit(HEADER, frame(by=b"\2" + i.to_bytes(5, "big")))
        assert len(switch.addresses) == 16
        assert "02:00:00:00:00:31" in switch.addresses
        assert "02:00:00:00:00:21" not in switch.addresses
    assert repr(switch) == "<Switch 0 ports, 0 addresses>"
    with pytest.raises(ValueError, match="addresses=0"):
        Switch(addresses=0)


def test_a_machine_that_stands_still(three: list[virtio.Driver]) -> None:
    """It misses frames and counts them; the others get all."""
    still, sender, reader = three
    for i in range(800):
        reader.receive.send(reply=ROOM)
        sender.transmit(HEADER, frame(1500, mark=i))
        reader.poll()
        (room,) = reader.receive.collect()
        assert room.reply == ONE + frame(1500, mark=i)
    assert sender.device.tx_packets == 800
    missed = still.device.rx_dropped
    assert 100 < missed < 800
    # It wakes: the oldest ones are there.
    for i in range(10):
        room = still.receive.send(reply=ROOM)
        still.poll()
        assert room.wait() == ONE + frame(1500, mark=i)
    assert len(still.device._inbox.waiting) <= BACKLOG


def test_switch_and_a_port_that_goes(three: list[virtio.Driver]) -> None:
    three[0].transmit(HEADER, frame(by=b"\2other"))
    came(three)
    three[0].close()
    assert three[1].device.peer.switch.addresses == {}
    three[1].transmit(HEADER, frame(to=b"\2other", by=b"\2third"))
    assert came(three[1:]) == [0, 1]


def test_switch_and_a_device_that_was_never_attached() -> None:
    switch = Switch()
    net = Net(switch)
    assert repr(switch) == "<Switch 0 ports, 0 addresses>"
    assert not net.send(frame())
    del net
    gc.collect()


def test_switch_on_threads() -> None:
    """Two machines that send to each other at the same time."""
    switch = Switch()
    with (
        virtio.driver(Net(switch, notify="thread"), timeout=20) as one,
        virtio.driver(Net(switch, notify="thread"), timeout=20) as two,
    ):
        for i in range(200):
            rooms = [drv.receive.send(reply=ROOM) for drv in (one, two)]
            sent = [
                drv.transmit.send(HEADER, frame(mark=i)) for drv in (one, two)
            ]
            for room in rooms:
                assert room.wait() == ONE + frame(mark=i)
            for request in sent:
                request.wait()
        assert one.device.rx_packets == two.device.rx_packets == 200


def test_switch_and_long_frames() -> None:
    """Who has a smaller MTU drops what is longer."""
    switch = Switch()
    with (
        virtio.driver(Net(switch, mtu=65535)) as one,
        virtio.driver(Net(switch, mtu=65535)) as two,
        virtio.driver(Net(switch)) as short,
    ):
        rooms = [
            drv.receive.send(reply=12 + FRAME_MOST) for drv in (two, short)
        ]
        one.transmit(HEADER, frame(FRAME_MOST))
        assert two.poll() == short.poll() == 1
        assert rooms[0].wait() == ONE + frame(FRAME_MOST)
        assert short.device.rx_dropped == 1

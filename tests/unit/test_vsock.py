# SPDX-License-Identifier: Apache-2.0
"""pyvmm.devices.Vsock, packet by packet, without KVM."""

import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from vsock_guest import CREDIT, Guest, guest

from pyvmm.devices import vsock, vsock_hub
from pyvmm.devices import vsock_packet as vp
from pyvmm.devices.vsock import Vsock

PORTS = 1024, 52


@contextmanager
def connected(
    device: Vsock | None = None, **fields
) -> Iterator[tuple[Guest, socket.socket]]:
    """A guest that is connected to the host, and the host's end of that."""
    device = device or Vsock()
    with guest(device) as vm, device.listen(52) as listener:
        vm.connect(*PORTS, **fields)
        sock, _ = listener.accept(timeout=0)
        with sock:
            sock.setblocking(False)
            yield vm, sock


def drain(sock: socket.socket) -> bytes:
    """All that can be read now; ends at the end as well."""
    found = b""
    try:
        while data := sock.recv(1 << 20):
            found += data
    except BlockingIOError:
        pass
    return found


def is_at_end(sock: socket.socket) -> bool:
    return sock.recv(1) == b""


def stuff(sock: socket.socket) -> int:
    """Write until there is no room; how many bytes."""
    count = 0
    try:
        while True:
            count += sock.send(bytes(1 << 14))
    except BlockingIOError:
        return count


def test_a_connection_from_begin_to_end() -> None:
    device = Vsock(cid=5)
    with guest(device) as vm, device.listen(52) as listener:
        header = vm.connect(*PORTS)
        assert (header.src_cid, header.dst_cid) == (vp.HOST, 5)
        assert header.type == vp.STREAM
        assert header.buf_alloc == device.room and header.fwd_cnt == 0
        sock, peer = listener.accept(timeout=0)
        assert peer == (5, 1024)

        vm.send(vp.RW, *PORTS, b"ping")
        assert sock.recv(100) == b"ping"
        sock.sendall(b"pong")
        vm.make_room()
        ((header, data),) = vm.packets()
        assert (header.op, data, header.fwd_cnt) == (vp.RW, b"pong", 4)

        vm.send(vp.SHUTDOWN, *PORTS, flags=vp.BOTH, fwd_cnt=4)
        assert is_at_end(sock)
        vm.make_room()
        assert vm.ops() == [vp.RST]
        assert not device.faults
        sock.close()


# -- what gets a RST -----------------------------------------------------------


def test_nobody_listens() -> None:
    with guest(Vsock()) as vm:
        vm.make_room()
        vm.send(vp.REQUEST, *PORTS)
        ((header, _),) = vm.packets()
        assert header.op == vp.RST
        assert (header.src_port, header.dst_port) == (52, 1024)
        assert (header.src_cid, header.dst_cid) == (vp.HOST, 3)


def test_backlog_is_full() -> None:
    device = Vsock()
    with guest(device) as vm, device.listen(52, backlog=2) as listener:
        vm.make_room(5)
        for port in (1, 2, 3):
            vm.send(vp.REQUEST, port, 52)
        # RST goes ahead of what connections have.
        assert sorted(vm.ops()) == [vp.RESPONSE, vp.RESPONSE, vp.RST]
        listener.accept(timeout=0)[0].close()
        vm.send(vp.REQUEST, 4, 52)
        assert vp.RESPONSE in vm.ops()


def test_as_many_connections_as_there_may_be() -> None:
    device = Vsock(connections=2)
    with guest(device) as vm, device.listen(52) as listener:
        vm.connect(1, 52)
        vm.connect(2, 52)
        vm.make_room(3)
        vm.send(vp.REQUEST, 3, 52)
        assert vm.ops() == [vp.RST]
        vm.send(vp.RST, 1, 52)
        vm.send(vp.REQUEST, 3, 52)
        assert vm.ops() == [vp.RESPONSE]
        listener.close()


@pytest.mark.parametrize("kind", [0, 2, 3, 0xFFFF])
@pytest.mark.parametrize("op", [vp.REQUEST, vp.RW])
def test_unknown_type(kind: int, op: int) -> None:
    """5.10.6.4.2; sockets with message boundaries are not offered."""
    device = Vsock()
    with guest(device) as vm, device.listen(52):
        vm.make_room()
        vm.send(op, *PORTS, type=kind)
        ((header, _),) = vm.packets()
        assert (header.op, header.type) == (vp.RST, kind)


@pytest.mark.parametrize("op", [0, vp.RESPONSE, *range(4, 10), 0xFFFF])
def test_no_such_connection(op: int) -> None:
    device = Vsock()
    with guest(device) as vm, device.listen(52):
        vm.make_room()
        vm.send(op, *PORTS)
        assert vm.ops() == [vp.RST]


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 0},
        {"op": 8},
        {"op": 0xFFFF},
        {"op": vp.REQUEST},
        {"op": vp.RESPONSE},
        {"op": vp.RW, "type": 2},
        {"op": vp.CREDIT_UPDATE, "type": 0},
    ],
)
def test_packets_that_end_a_connection(fields: dict[str, int]) -> None:
    with connected() as (vm, sock):
        vm.make_room()
        vm.send(fields.pop("op"), *PORTS, **fields)
        assert vm.ops() == [vp.RST]
        assert is_at_end(sock)


@pytest.mark.parametrize(
    ("source", "destination"),
    [(4, 2), (2, 2), (3, 3), (3, 0), (3, 1 << 32 | 2), (1 << 63 | 3, 2)],
)
def test_wrong_cids(source: int, destination: int) -> None:
    """The answer comes from whom the guest meant, and ends nothing else."""
    with connected() as (vm, sock):
        vm.make_room()
        vm.send(vp.RW, *PORTS, src_cid=source, dst_cid=destination)
        ((header, _),) = vm.packets()
        assert (header.op, header.src_cid) == (vp.RST, destination)
        assert header.dst_cid == source
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize("fields", [{}, {"type": 9}, {"dst_cid": 7}])
def test_no_rst_for_a_rst(fields: dict[str, int]) -> None:
    with guest(Vsock()) as vm:
        vm.make_room()
        vm.send(vp.RST, *PORTS, **fields)
        assert vm.ops() == []


# -- packets that are cut, or lie ----------------------------------------------


def test_headers_split_at_every_byte() -> None:
    with connected() as (vm, sock):
        header = bytes(vm.header(vp.RW, *PORTS, len=5))
        for at in range(len(header) + 1):
            packet = header + b"bytes"
            vm.drv.tx(packet[:at], packet[at:])
            assert sock.recv(100) == b"bytes"
        vm.drv.tx(*(bytes([byte]) for byte in packet))
        assert sock.recv(100) == b"bytes"
        for at in range(50):
            sock.sendall(b"answer")
            vm.make_room(size=[at, 50 - at])
            ((got, data),) = vm.packets()
            assert (got.op, data) == (vp.RW, b"answer")


@pytest.mark.parametrize("size", [0, 1, 43])
def test_less_than_a_header(size: int) -> None:
    with connected() as (vm, sock):
        packet = bytes(vm.header(vp.RW, *PORTS))[:size] or b""
        vm.drv.tx(packet)
        assert vm.drv.device.faults == 1
        vm.send(vp.RW, *PORTS, b"fine")
        assert sock.recv(100) == b"fine"


@pytest.mark.parametrize("size", [5, 6, 4096, CREDIT])
def test_len_is_more_than_there_is(size: int) -> None:
    """Part of the stream is missing: it cannot go on."""
    with connected() as (vm, sock):
        vm.make_room()
        vm.send(vp.RW, *PORTS, b"data", len=size)
        assert vm.ops() == [vp.RST] and vm.drv.device.faults == 1
        assert is_at_end(sock)


@pytest.mark.parametrize("size", [1 << 18, 1 << 31, (1 << 32) - 1])
def test_len_is_more_than_the_credit(size: int) -> None:
    with connected(Vsock(room=(1 << 18) - 1)) as (vm, sock):
        vm.make_room()
        vm.send(vp.RW, *PORTS, b"data", len=size)
        assert vm.ops() == [vp.RST]
        assert is_at_end(sock)


def test_len_is_less_than_there_is() -> None:
    """What is behind is not of the packet (5.10.6)."""
    with connected() as (vm, sock):
        vm.send(vp.RW, *PORTS, b"data and more", len=4)
        vm.send(vp.RW, *PORTS, b"", len=0)
        vm.send(vp.CREDIT_UPDATE, *PORTS, len=1 << 31)
        assert drain(sock) == b"data"


# -- room for the guest's packets ----------------------------------------------


def test_small_rooms() -> None:
    with connected() as (vm, sock):
        sock.sendall(b"abc")
        vm.poll()
        vm.make_room(size=43)
        vm.make_room(size=[0, 20])
        assert vm.ops() == [] and vm.drv.device.faults == 2
        vm.make_room(size=44)  # enough for all that has no data
        assert vm.ops() == [] and vm.drv.device.faults == 3
        vm.send(vp.CREDIT_REQUEST, *PORTS)
        vm.make_room(size=44)
        assert vm.ops() == [vp.CREDIT_UPDATE]
        vm.make_room(size=[44, 1])
        vm.make_room(size=100)
        assert [data for _, data in vm.packets()] == [b"a", b"bc"]


def test_a_room_that_is_not_needed() -> None:
    """After a packet that was filled there was nothing more: it waits."""
    with connected() as (vm, sock):
        vm.make_room(2, size=44 + 10)
        for data in (b"0123456789", b"abcdefghij"):
            sock.sendall(data)
            assert [data for _, data in vm.packets()] == [data]
        assert not vm.rooms and not vm.drv.device.faults


def test_no_room_at_all() -> None:
    """Answers wait, then packets do (5.10.6.1)."""
    device = Vsock()
    with guest(device) as vm, device.listen(52):
        most = vsock.RESETS_MOST
        taken = [vm.send(vp.RW, port, 52) for port in range(most + 20)]
        assert [r.done for r in taken] == [True] * most + [False] * 20
        # Nor are others taken, whatever they are.
        request = vm.send(vp.REQUEST, *PORTS)
        assert not request.done
        vm.make_room(100)
        assert vm.ops() == [vp.RST] * 100
        assert all(r.done for r in taken)
        assert request.done
        vm.make_room(most)
        assert vm.ops() == [vp.RST] * (most + 20 - 100) + [vp.RESPONSE]


def test_no_room_for_the_answers_of_a_batch() -> None:
    device = Vsock()
    with guest(device) as vm:
        for _ in range(vsock.RESETS_MOST // 100):
            for port in range(100):
                vm.send(vp.RW, port, 52)
        batch = [
            vm.drv.tx.send(bytes(vm.header(vp.RW, 1, 52)), notify=False)
            for _ in range(100)
        ]
        vm.drv.tx.notify()
        vm.drv.tx.collect()
        assert sum(r.done for r in batch) == vsock.RESETS_MOST % 100
        vm.make_room(200)
        assert vm.ops() == [vp.RST] * 200
        assert all(r.done for r in batch)


def test_credit_requests_without_room() -> None:
    """However many there are, one answer waits."""
    with connected() as (vm, _):
        for _ in range(1000):
            assert vm.send(vp.CREDIT_REQUEST, *PORTS).done
        vm.make_room(10)
        assert vm.ops() == [vp.CREDIT_UPDATE]


def test_connections_take_turns() -> None:
    device = Vsock()
    with guest(device) as vm, device.listen(52) as listener:
        ends = {}
        for port in (1, 2, 3):
            vm.connect(port, 52)
            ends[port], _ = listener.accept(timeout=0)
        for port, sock in ends.items():
            sock.sendall(bytes(port * 10_000))
        vm.make_room(20, size=44 + 5000)
        order = [header.dst_port for header, _ in vm.packets()]
        assert sorted(order[:3]) == [1, 2, 3]
        assert order[3:6] == order[:3]
        assert sorted(order) == [1] * 2 + [2] * 4 + [3] * 6
        for sock in ends.values():
            sock.close()


# -- credit --------------------------------------------------------------------


def test_the_guests_credit_is_kept_to() -> None:
    with connected(buf_alloc=1000) as (vm, sock):
        sock.sendall(bytes(range(256)) * 10)
        vm.make_room(20, size=44 + 300)
        found = vm.packets()
        assert [len(data) for _, data in found] == [300, 300, 300, 100, 0]
        # It is asked once, even if it answers that nothing has changed.
        assert found[-1][0].op == vp.CREDIT_REQUEST
        vm.send(vp.CREDIT_UPDATE, *PORTS, buf_alloc=1000, fwd_cnt=0)
        assert vm.ops() == []
        vm.send(vp.CREDIT_UPDATE, *PORTS, buf_alloc=1000, fwd_cnt=150)
        more = vm.packets()
        assert [len(data) for _, data in more] == [150, 0]
        # A smaller buffer, which is over-full then, is a smaller buffer.
        vm.send(vp.CREDIT_UPDATE, *PORTS, buf_alloc=900, fwd_cnt=1050)
        more += vm.packets()
        assert [len(data) for _, data in more[2:]] == [300, 300, 200, 0]
        vm.make_room(20)
        vm.send(vp.CREDIT_UPDATE, *PORTS, buf_alloc=1 << 20, fwd_cnt=1950)
        data = b"".join(data for _, data in [*found, *more, *vm.packets()])
        assert data == bytes(range(256)) * 10


@pytest.mark.parametrize("ahead", [1, 2, 1000, 1 << 31])
def test_a_guest_took_what_it_was_never_sent(ahead: int) -> None:
    with connected() as (vm, sock):
        vm.make_room(4)
        sock.sendall(b"abc")
        vm.send(vp.CREDIT_UPDATE, *PORTS, fwd_cnt=ahead)
        assert vm.ops() == [vp.CREDIT_REQUEST]
        vm.send(vp.CREDIT_UPDATE, *PORTS, fwd_cnt=0)
        assert vm.ops() == [vp.RW]


def test_the_hosts_credit() -> None:
    """What the host does not read waits, and the guest with it."""
    with connected(Vsock(room=1 << 16)) as (vm, sock):
        vm.make_room(100)
        sent, fwd_cnt = 0, 0
        while sent - fwd_cnt < 1 << 16:
            vm.send(vp.RW, *PORTS, bytes(1 << 12))
            sent += 1 << 12
            for header, _ in vm.packets():
                assert header.op == vp.CREDIT_UPDATE
                assert header.buf_alloc == 1 << 16
                fwd_cnt = header.fwd_cnt
        vm.send(vp.CREDIT_REQUEST, *PORTS)
        ((header, _),) = vm.packets()
        waits = sent - header.fwd_cnt
        assert (header.op, waits) == (vp.CREDIT_UPDATE, 1 << 16)
        # The host reads: the guest is told without asking.
        assert drain(sock) == bytes(header.fwd_cnt)
        ((header, _),) = vm.packets()
        assert (header.op, header.fwd_cnt) == (vp.CREDIT_UPDATE, sent)
        assert drain(sock) == bytes(waits)
        # One byte beyond is too much.
        stream = vm.drv.device._hub.streams[PORTS]
        assert stream.free == 1 << 16 and not stream.pending
        while stream.free > 1:
            size = min(stream.free - 1, 1 << 12)
            vm.send(vp.RW, *PORTS, bytes(size))
        vm.packets()
        vm.make_room()
        vm.send(vp.RW, *PORTS, b"ab")
        assert vm.ops() == [vp.RST]


def test_counters_wrap() -> None:
    with connected() as (vm, sock):
        stream = vm.drv.device._hub.streams[PORTS]
        near = (1 << 32) - 3
        stream.fwd_cnt = stream.told_fwd_cnt = stream.tx_cnt = near
        vm.make_room(3)
        sock.sendall(b"0123456789")
        vm.send(vp.RW, *PORTS, b"abcdef", buf_alloc=8, fwd_cnt=near)
        ((header, data), (request, _)) = vm.packets()
        assert (data, header.fwd_cnt) == (b"01234567", 3)
        assert request.op == vp.CREDIT_REQUEST
        vm.send(vp.CREDIT_UPDATE, *PORTS, buf_alloc=8, fwd_cnt=4)
        assert vm.packets()[0][1] == b"89"
        assert drain(sock) == b"abcdef"


# -- the end of a connection ---------------------------------------------------


def test_the_guest_sends_no_more() -> None:
    with connected() as (vm, sock):
        vm.send(vp.RW, *PORTS, b"last")
        vm.send(vp.SHUTDOWN, *PORTS, flags=vp.SEND)
        assert drain(sock) == b"last" and is_at_end(sock)
        sock.sendall(b"answer")
        vm.make_room(3)
        assert [data for _, data in vm.packets()] == [b"answer"]
        vm.send(vp.SHUTDOWN, *PORTS, flags=0)  # what was said holds (5.10.6.5)
        vm.send(vp.RW, *PORTS, b"after all")
        assert vm.ops() == [vp.RST]


def test_the_guest_receives_no_more() -> None:
    with connected() as (vm, sock):
        vm.send(vp.SHUTDOWN, *PORTS, flags=vp.RECEIVE)
        vm.make_room(3)
        with pytest.raises(BrokenPipeError):
            sock.sendall(b"answer")
        vm.send(vp.RW, *PORTS, b"but sends")
        assert drain(sock) == b"but sends"
        assert vm.ops() == []
        vm.send(vp.SHUTDOWN, *PORTS, flags=vp.SEND)
        assert is_at_end(sock)
        assert vm.ops() == [vp.RST]


def test_what_the_guest_sent_arrives_before_it_is_over() -> None:
    """The RST, by which it may forget all, comes when the host has it."""
    with connected() as (vm, sock):
        size = stuffed(vm)
        vm.send(vp.SHUTDOWN, *PORTS, flags=vp.BOTH)
        vm.make_room(8)
        assert vm.ops() == [vp.CREDIT_UPDATE]
        found = drain(sock)
        assert vm.ops() == [vp.RST]
        assert len(found) < size
        assert found + drain(sock) == bytes(size) and is_at_end(sock)


def stuffed(vm: Guest) -> int:
    """Send until bytes wait for the host; how many were sent in all."""
    sent, stream = 0, vm.drv.device._hub.streams[PORTS]
    while len(stream.pending) < 1 << 14:
        vm.send(vp.RW, *PORTS, bytes(1 << 13))
        sent += 1 << 13
    return sent


def test_what_the_guest_sent_arrives_after_its_rst() -> None:
    device = Vsock(connections=1)
    with connected(device) as (vm, sock):
        size = stuffed(vm)
        vm.send(vp.RST, *PORTS)
        found = drain(sock)
        assert 0 < len(found) < size
        # It counts as long as it holds memory.
        vm.make_room(2)
        vm.send(vp.REQUEST, 7, 52)
        assert vm.ops() == [vp.RST]
        found += drain(sock)
        vm.poll()
        assert found == bytes(size) and is_at_end(sock)
        vm.send(vp.REQUEST, 7, 52)
        assert vm.ops() == [vp.RESPONSE]


def test_the_host_sends_no_more() -> None:
    with connected() as (vm, sock):
        sock.sendall(b"last")
        sock.shutdown(socket.SHUT_WR)
        vm.make_room(4)
        (_, data), (header, _) = vm.packets()
        assert data == b"last"
        assert (header.op, header.flags) == (vp.SHUTDOWN, vp.SEND)
        vm.send(vp.RW, *PORTS, b"answer")
        assert drain(sock) == b"answer"
        sock.close()
        ((header, _),) = vm.packets()
        assert (header.op, header.flags) == (vp.SHUTDOWN, vp.BOTH)
        vm.send(vp.RST, *PORTS)
        assert not vm.drv.device._hub.streams


def test_the_host_goes() -> None:
    """What it had sent is delivered, as the guest has room for it."""
    with connected(buf_alloc=1 << 16) as (vm, sock):
        size = stuff(sock)
        sock.close()
        vm.make_room(4)
        found = vm.packets()
        assert [h.op for h, _ in found] == [vp.RW] * 4
        vm.make_room(200)
        found += vm.packets()
        got = sum(len(data) for _, data in found)
        assert got == 1 << 16
        assert [h.op for h, _ in found[-2:]] == [vp.CREDIT_REQUEST, vp.SHUTDOWN]
        assert found[-1][0].flags == vp.RECEIVE
        vm.send(vp.RW, *PORTS, b"nobody wants it", fwd_cnt=got)
        while got < size:
            vm.make_room(100 - len(vm.rooms))
            found = vm.packets()
            got += sum(len(data) for _, data in found)
            vm.send(vp.CREDIT_UPDATE, *PORTS, fwd_cnt=got)
        header = (found + vm.packets())[-1][0]
        assert (header.op, header.flags) == (vp.SHUTDOWN, vp.BOTH)
        assert header.fwd_cnt == 15


def test_the_host_goes_and_the_guest_does_not_say_a_word() -> None:
    with connected() as (vm, sock):
        sock.close()
        vm.make_room(4)
        assert vm.ops() == [vp.SHUTDOWN]
        vm.drv.advance(vsock_hub.CLOSE_SECONDS - 0.1)
        assert vm.ops() == []
        vm.drv.advance(0.1)
        assert vm.ops() == [vp.RST]
        assert not vm.drv.device._hub.streams
        vm.drv.advance(100)


def test_the_host_goes_while_the_guest_sends() -> None:
    with connected() as (vm, sock):
        stuffed(vm)
        sock.close()
        vm.make_room(4)
        vm.poll()
        ops = vm.packets()
        assert (ops[-1][0].op, ops[-1][0].flags) == (vp.SHUTDOWN, vp.BOTH)
        assert ops[-1][0].fwd_cnt == 24576 or ops[-1][0].fwd_cnt > 1 << 14


def test_ports_are_used_again() -> None:
    device = Vsock()
    with guest(device) as vm, device.listen(52) as listener:
        for _ in range(300):
            vm.connect(*PORTS)
            sock, _ = listener.accept(timeout=0)
            vm.send(vp.RW, *PORTS, b"x")
            vm.send(vp.SHUTDOWN, *PORTS, flags=vp.BOTH)
            vm.make_room()
            assert vm.ops() == [vp.RST]
            assert sock.recv(10) == b"x" and is_at_end(sock)
            sock.close()
        assert not device._hub.streams and not device._hub.parted


# -- the host connects ---------------------------------------------------------


def test_the_host_connects() -> None:
    device = Vsock()
    with guest(device) as vm, ThreadPoolExecutor() as pool:
        asked = pool.submit(device.connect, 80, 5)
        vm.make_room()
        header = awaited(vm)
        assert (header.op, header.dst_port) == (vp.REQUEST, 80)
        assert header.buf_alloc == device.room
        ports = header.dst_port, header.src_port
        vm.send(vp.RESPONSE, *ports)
        with asked.result(5) as sock:
            vm.make_room()
            sock.sendall(b"hello")
            assert awaited(vm).op == vp.RW
            vm.send(vp.RW, *ports, b"guest")
            assert sock.recv(10) == b"guest"


def awaited(vm: Guest) -> vp.Header:
    """The next packet, for which another thread does something first."""
    while not (found := vm.packets()):
        assert vm.drv.poll(5)
    ((header, _),) = found
    return header


@pytest.mark.parametrize("op", [vp.RST, vp.RW, vp.REQUEST, vp.SHUTDOWN])
def test_the_guest_refuses(op: int) -> None:
    device = Vsock()
    with guest(device) as vm, ThreadPoolExecutor() as pool:
        asked = pool.submit(device.connect, 80, 5)
        vm.make_room(2)
        header = awaited(vm)
        vm.send(op, header.dst_port, header.src_port)
        kind = ConnectionRefusedError if op == vp.RST else ConnectionResetError
        with pytest.raises(kind, match="guest"):
            asked.result(5)
        assert vm.ops() == ([] if op == vp.RST else [vp.RST])
        assert not device._hub.streams and not device._hub.parted


def test_the_guest_answers_what_it_was_not_asked() -> None:
    """It guesses the ports of a request that it has not got."""
    device = Vsock()
    with guest(device) as vm, ThreadPoolExecutor() as pool:
        asked = pool.submit(device.connect, 80, 5)
        while not device._hub.streams:
            assert vm.drv.poll(5)
        ((ports, _),) = device._hub.streams.items()
        vm.send(vp.RESPONSE, *ports)
        with pytest.raises(ConnectionResetError):
            asked.result(5)
        vm.make_room(2)
        assert vm.ops() == []


def test_nobody_answers() -> None:
    device = Vsock()
    with guest(device) as vm:
        with pytest.raises(TimeoutError, match=r"port 80 .* in 0\.0 s"):
            device.connect(80, 0.0)
        vm.make_room(3)
        assert vm.ops() == [vp.REQUEST, vp.RST]
        assert not device._hub.streams


def test_who_asked_goes() -> None:
    device = Vsock()
    with guest(device) as vm:
        answers: list[OSError | None] = []
        sock = device._request(80, answers.append)
        vm.make_room(3)
        assert vm.ops() == [vp.REQUEST]
        sock.close()
        assert vm.ops() == [vp.RST]
        assert isinstance(answers[0], ConnectionResetError)
        assert not device._hub.streams and not device._hub.parted


def test_the_driver_comes_up_later() -> None:
    device = Vsock()
    with guest(device, start=False) as vm:
        answers: list[OSError | None] = []
        sock = device._request(80, answers.append)
        vm.poll()
        vm.drv.start()
        vm.make_room()
        ((header, _),) = vm.packets()
        vm.send(vp.RESPONSE, header.dst_port, header.src_port)
        assert answers == [None]
        sock.close()


def test_the_machine_is_closed_meanwhile() -> None:
    device = Vsock()
    answers: list[OSError | None] = []
    with guest(device) as vm:
        vm.make_room()
        socks = [device._request(80, answers.append)]
        vm.poll()
        device._is_live = device._was_live = False  # as if it had not begun
        socks.append(device._request(80, answers.append))
        vm.poll()
        assert answers == []
    assert [type(error) for error in answers] == [
        ConnectionResetError,
        ConnectionAbortedError,
    ]
    for sock in socks:
        assert is_at_end(sock)
        sock.close()


def test_the_machine_is_closed_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the look whether it is attached."""
    device = Vsock()
    make = socket.socketpair

    def socketpair() -> tuple[socket.socket, socket.socket]:
        device.detached()
        return make()

    monkeypatch.setattr(socket, "socketpair", socketpair)
    with guest(device), pytest.raises(ConnectionAbortedError):
        device.connect(80, 5)


def test_too_many_of_the_host() -> None:
    device = Vsock(connections=1)
    with connected(device) as (vm, _):
        answers: list[OSError | None] = []
        sock = device._request(80, answers.append)
        vm.poll()
        assert isinstance(answers[0], ConnectionRefusedError)
        assert "1 connections already" in str(answers[0])
        assert is_at_end(sock)
        sock.close()


def test_ports_of_the_host_are_free_ones() -> None:
    device = Vsock()
    with guest(device) as vm:
        hub = device._hub
        taken = hub.free_port(80) + 1
        vm.make_room(5)
        device.listen(taken)
        vm.connect(80, taken)
        socks = [device._request(80, id) for _ in range(2)]
        found = [header.src_port for header, _ in vm.packets()]
        assert found == [taken + 1, taken + 2]
        hub._next_port = vp.PORT_MOST
        assert hub.free_port(9) == vp.PORT_MOST
        assert hub.free_port(9) == vsock_hub.FIRST_PORT
        for sock in socks:
            sock.close()


# -- the life of the driver and of the machine ---------------------------------


def test_the_driver_resets() -> None:
    with connected() as (vm, sock):
        sock.sendall(b"lost")
        vm.send(vp.RW, *PORTS, b"kept")
        vm.drv.reset()
        vm.poll()
        assert sock.recv(100) == b"kept"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)  # as it had sent what nobody has read
        vm.rooms.clear()
        vm.drv.start()
        vm.connect(*PORTS)


def test_packets_of_the_next_life_meet_nothing_of_the_last() -> None:
    """Though the worker had no time in between."""
    with connected() as (vm, sock):
        vm.drv.reset()
        vm.rooms.clear()
        vm.drv.start()
        vm.make_room()
        vm.send(vp.RW, *PORTS, b"x")
        assert vm.ops() == [vp.RST]
        assert is_at_end(sock)


def test_the_machine_is_closed() -> None:
    device = Vsock()
    with guest(device) as vm:
        listener = device.listen(52)
        vm.connect(*PORTS)
        accepted, _ = listener.accept(timeout=0)
        vm.connect(7, 52)
        sent = stuffed(vm)
        # There is room for the rest now, of which the device has not heard.
        accepted.setblocking(False)
        found = drain(accepted)
        assert 0 < len(found) < sent
    assert found + drain(accepted) == bytes(sent) and is_at_end(accepted)
    accepted.close()
    with pytest.raises(OSError, match="listener of port 52 is closed"):
        listener.accept()
    assert list(listener) == []
    with pytest.raises(ValueError, match="attach it to a machine"):
        device.connect(80)
    device.detached()


def test_attached_again() -> None:
    device = Vsock()
    for _ in range(3):
        with connected(device) as (vm, sock):
            vm.send(vp.RW, *PORTS, b"x")
            assert drain(sock) == b"x"


def test_no_descriptor_is_left() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    device = Vsock()
    with guest(device) as vm:
        device.listen(52)
        for port in range(5):
            vm.connect(port, 52)
        vm.send(vp.RST, 1, 52)
        vm.send(vp.SHUTDOWN, 2, 52, flags=vp.BOTH)
        sock = device._request(80, id)
        vm.poll()
        assert count() > before + 10
    sock.close()
    assert count() == before


def test_restored() -> None:
    with connected() as (vm, sock):
        state = vm.drv.device.save()
        assert state == {"live": True, "streams": [PORTS]}
        event = vm.drv.event.send(reply=4)
        vm.make_room(2)
        vm.drv.device.restore(state)
        vm.poll()
        assert is_at_end(sock)
        vm.drv.event.collect()
        assert event.reply == struct.pack("<I", vp.TRANSPORT_RESET)
        ((header, _),) = vm.packets()
        assert (header.op, header.dst_port, header.src_port) == (
            vp.RST, *PORTS,
        )  # fmt: skip
        # Who listens still does.
        vm.connect(8, 52)


def test_restored_without_room_for_the_event() -> None:
    device = Vsock()
    with guest(device) as vm:
        device.restore({"live": True, "streams": []})
        vm.poll()
        short = vm.drv.event.send(reply=3)
        event = vm.drv.event.send(reply=4)
        second = vm.drv.event.send(reply=4)
        vm.drv.event.collect()
        assert (short.done, short.written, device.faults) == (True, 0, 1)
        assert event.reply == bytes(4) and not second.done
        # The next life of the driver knows of no connection.
        device.restore({"live": True, "streams": [PORTS]})
        vm.drv.reset()
        vm.drv.start()
        event = vm.drv.event.send(reply=4)
        vm.rooms.clear()
        vm.make_room()
        assert vm.ops() == [] and not event.done


def test_restored_to_before_the_driver() -> None:
    with connected() as (vm, sock):
        vm.drv.device.restore({"live": False, "streams": []})
        vm.poll()
        assert is_at_end(sock)
        assert not vm.drv.device._was_live


def test_no_such_state() -> None:
    with pytest.raises(ValueError, match="no state cid"):
        Vsock().restore({"cid": 3})


# -- those who listen ----------------------------------------------------------


def test_a_callback() -> None:
    found = []
    device = Vsock()
    with guest(device) as vm:
        with device.listen(52, lambda *got: found.append(got)) as listening:
            vm.connect(*PORTS)
            ((sock, peer),) = found
            vm.send(vp.RW, *PORTS, b"x")
            assert (sock.recv(1), peer) == (b"x", (3, 1024))
        vm.make_room()
        vm.send(vp.REQUEST, 7, 52)
        assert vm.ops() == [vp.RST] and len(found) == 1
        assert repr(listening) == "<CallbackListener port 52 closed>"
        sock.close()


def test_a_callback_that_fails() -> None:
    """It is its author's fault; nothing is half done."""
    fails = [True]

    def callback(sock: socket.socket, peer: tuple[int, int]) -> None:
        if fails:
            raise KeyError(fails.pop())
        sock.close()

    device = Vsock()
    with guest(device) as vm, device.listen(52, callback):
        vm.make_room(2)
        with pytest.raises(KeyError):
            vm.send(vp.REQUEST, *PORTS)
        device.process()
        assert vm.ops() == [vp.RESPONSE, vp.SHUTDOWN]


def test_a_listener_that_is_closed_refuses_those_that_wait() -> None:
    device = Vsock()
    with guest(device) as vm:
        with device.listen(52):
            vm.connect(*PORTS)
        vm.make_room(2)
        assert vm.ops() == [vp.SHUTDOWN]
        vm.send(vp.REQUEST, 7, 52)
        assert vm.ops() == [vp.RST]
        device.listen(52).close()


def test_accept_waits() -> None:
    device = Vsock()
    with guest(device) as vm, ThreadPoolExecutor() as pool:
        listener = device.listen(52)
        with pytest.raises(TimeoutError, match=r"port 52 in 0\.01 s"):
            listener.accept(timeout=0.01)
        got = pool.submit(listener.accept)
        vm.connect(*PORTS)
        got.result(5)[0].close()
        got = pool.submit(list, listener)
        listener.close()
        assert got.result(5) == []


def test_two_at_one_port() -> None:
    device = Vsock()
    with device.listen(52), pytest.raises(OSError, match="52 is listened on"):
        device.listen(52, print)
    device.listen(52).close()


# -- arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cid": 2}, "cid 2 is outside 3..4294967294"),
        ({"cid": 1 << 32}, "cid 4294967296 is outside"),
        ({"cid": "3"}, "cid is an int, not str"),
        ({"connections": 0}, "connections 0 is outside 1..4000"),
        ({"room": 4095}, "room 4095 is outside 4096..1073741824"),
        ({"path": "x" * 200}, "has .* bytes; .* may have 96"),
        ({"path": ""}, "path '' is empty"),
        ({"path": b"a\0b"}, "has a NUL in it"),
    ],
)
def test_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Vsock(**options)


def test_arguments_of_methods() -> None:
    device = Vsock()
    for call in (device.listen, device.connect):
        with pytest.raises(
            ValueError, match=r"port 4294967295 is outside 0\.\."
        ):
            call(0xFFFF_FFFF)
        with pytest.raises(TypeError, match="port is an int, not str"):
            call("52")
    with pytest.raises(ValueError, match=r"backlog 0 is outside 1\.\."):
        device.listen(52, backlog=0)
    assert repr(device) == "<Vsock cid 3, 0 open>"


def test_features() -> None:
    with guest(Vsock()) as vm:
        assert vm.drv.features & 0xFF_FFFF == vsock.F_STREAM
        assert vm.drv.device.device_id == 19


def test_the_layout_is_linux() -> None:
    """<linux/virtio_vsock.h>: packed, 44 bytes, little-endian."""
    assert vp.HEADER.size == 44
    header = vp.Header(*range(1, 11))
    raw = bytes(header)
    assert raw[16:20] == b"\3\0\0\0" and raw[28:32] == b"\6\0\7\0"
    assert vp.parse(raw) == header

# SPDX-License-Identifier: Apache-2.0
"""A hostile guest and hostile programs of the host, in front of a Vsock.

`Packets` keeps the rings in order and lies in all else, so that what the device
does can be held against a model. `Rings` is what any driver may do to any
device (hostile.py).
"""

import os
import shutil
import socket
import tempfile
from collections import deque
from contextlib import suppress

from hostile import QueueTraffic
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from vsock_guest import Guest, guest

from pyvmm import virtio
from pyvmm.devices import vsock
from pyvmm.devices import vsock_packet as vp
from pyvmm.devices.vsock import Vsock

CONNECTIONS = 5
ROOM = vsock.ROOM_LEAST
M32 = 0xFFFF_FFFF
LISTENED = 52  # by Python
SERVED = 53  # by a program
WORDS = st.sampled_from(
    [0, 1, 2, 100, ROOM - 1, ROOM, ROOM + 1, 1 << 31, M32 - 100, M32]
)
GUEST_PORTS = st.integers(1, 3)
HOST_PORTS = st.sampled_from([LISTENED, SERVED, 54, 1 << 30, (1 << 30) + 1])


class Flow:
    """What the model knows of a connection, by its ports."""

    def __init__(self, known: list[tuple[int, int]]) -> None:
        self.credits = known  # (buf_alloc, fwd_cnt), as the guest said
        self.tx_cnt = 0  # bytes that the device has sent
        self.ends = 0  # SHUTDOWN's flags, from the device


class Packets(RuleBasedStateMachine):
    """Packets that say anything, and sockets that do anything."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        path = os.path.join(self.folder, "v")
        self.device = Vsock(path=path, connections=CONNECTIONS, room=ROOM)
        self.service = socket.socket(socket.AF_UNIX)
        self.service.bind(f"{path}_{SERVED}")
        self.service.listen(3)
        self.service.setblocking(False)
        self.hosts: list[socket.socket] = []
        self.flows: dict[tuple[int, int], Flow] = {}
        self.asked: dict[tuple[int, int], tuple[int, int]] = {}
        self.waiting: deque[tuple[vp.Header, virtio.frontend.Request]] = deque()
        self.context = guest(self.device, memory=4 << 20)
        self.vm: Guest = self.context.__enter__()
        self.listener = self.device.listen(LISTENED, backlog=3)

    def teardown(self) -> None:
        try:
            self.restart()
            self.accept()
            while self.hosts:
                self.hosts.pop().close()
                self.accept()
            self.vm.connect(9, LISTENED)
            self.listener.accept(timeout=0)[0].close()
            self.vm.make_room(2)
            assert self.vm.ops() == [vp.SHUTDOWN]
        finally:
            self.context.__exit__(None, None, None)
            self.service.close()
            shutil.rmtree(self.folder)

    # -- the guest -------------------------------------------------------------

    @rule(
        op=st.integers(0, 8),
        guest_port=GUEST_PORTS,
        host_port=HOST_PORTS,
        size=st.integers(0, ROOM + 1),
        fields=st.fixed_dictionaries(
            {"buf_alloc": WORDS, "fwd_cnt": WORDS},
            optional={
                "len": WORDS,
                "type": st.integers(0, 3),
                "flags": st.integers(0, 7),
                "src_cid": st.sampled_from([0, 2, 3, 1 << 40]),
                "dst_cid": st.sampled_from([0, 2, 3, 1 << 40]),
            },
        ),
    )
    def packet(
        self,
        op: int,
        guest_port: int,
        host_port: int,
        size: int,
        fields: dict[str, int],
    ) -> None:
        if self.vm.drv.tx.in_flight < 60:
            data = bytes(size) if op == vp.RW else b""
            header = {"len": len(data)} | fields
            self.send(op, guest_port, host_port, data, **header)

    @rule(
        guest_port=GUEST_PORTS,
        host_port=st.sampled_from([LISTENED, SERVED]),
        buf_alloc=st.sampled_from([0, 10, 5000, M32]),
    )
    def request(self, guest_port: int, host_port: int, buf_alloc: int) -> None:
        """A connection as it should be, so that there are some."""
        self.send(vp.REQUEST, guest_port, host_port, buf_alloc=buf_alloc)

    @rule(data=st.data())
    def good(self, data: st.DataObject) -> None:
        """A packet that a good guest might send on a connection."""
        if not self.flows:
            return
        ports = data.draw(st.sampled_from(sorted(self.flows)))
        flow = self.flows[ports]
        op = data.draw(
            st.sampled_from([vp.RESPONSE, vp.RW, vp.CREDIT_UPDATE, vp.SHUTDOWN])
        )
        body = bytes(data.draw(st.integers(0, 99))) if op == vp.RW else b""
        flags = data.draw(st.integers(1, 3)) if op == vp.SHUTDOWN else 0
        self.send(
            op, *ports, body, flags=flags, buf_alloc=5000, fwd_cnt=flow.tx_cnt
        )

    def send(self, op: int, *args, **fields) -> None:
        before = len(self.waiting)
        request = self.vm.send(op, *args, **fields)
        ports = args[:2]
        header = self.vm.header(op, *ports, **fields)
        self.waiting.append((header, request))
        assert len(self.waiting) == before + 1

    @rule(count=st.integers(1, 5), size=st.integers(0, 200))
    def room(self, count: int, size: int) -> None:
        if len(self.vm.rooms) < 50:
            self.vm.make_room(count, size or 1)

    @rule(count=st.integers(1, 20), cut=st.integers(0, 60))
    def more_room(self, count: int, cut: int) -> None:
        if len(self.vm.rooms) < 50:
            self.vm.make_room(count, [cut, 5000])

    @rule()
    def flood(self) -> None:
        """More packets without an answer than answers may wait."""
        for _ in range(vsock.RESETS_MOST + 20):
            if self.vm.drv.tx.in_flight < 60:
                self.send(vp.RW, 77, 77)

    @rule()
    def restart(self) -> None:
        self.vm.packets()
        self.vm.drv.reset()
        self.vm.poll()
        self.vm.rooms.clear()
        self.waiting.clear()
        self.flows.clear()
        self.vm.drv.start()

    @rule()
    def restore(self) -> None:
        self.device.restore(self.device.save())
        self.vm.poll()
        self.flows.clear()

    # -- the host --------------------------------------------------------------

    @rule()
    def accept(self) -> None:
        """All that wait, while there are not too many."""
        for accept in (lambda: self.listener.accept(0), self.service.accept):
            if len(self.hosts) < 10:
                try:
                    self.hosts.append(accept()[0])
                except (TimeoutError, BlockingIOError):
                    continue
                self.hosts[-1].setblocking(False)

    @rule(port=GUEST_PORTS)
    def connect(self, port: int) -> None:
        if len(self.hosts) < 10:
            self.hosts.append(self.device._request(port, id))
            self.hosts[-1].setblocking(False)

    @rule(
        text=st.sampled_from(
            [b"", b"CONNECT 1\n", b"CONNECT 2\nmore", b"CONN", b"GET /\n"]
        )
        | st.binary(max_size=30)
    )
    def program(self, text: bytes) -> None:
        if len(self.hosts) < 10:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(self.device.path)
                sock.send(text)
            except OSError:
                sock.close()
            else:
                self.hosts.append(sock)

    @rule(
        which=st.integers(0, 9), size=st.sampled_from([1, 100, 9999, 1 << 20])
    )
    def write(self, which: int, size: int) -> None:
        self.do(which, lambda sock: sock.send(bytes(size)))

    @rule(which=st.integers(0, 9), size=st.sampled_from([1, 100, 1 << 20]))
    def read(self, which: int, size: int) -> None:
        self.do(which, lambda sock: sock.recv(size))

    @rule(which=st.integers(0, 9), how=st.integers(0, 2))
    def shutdown(self, which: int, how: int) -> None:
        self.do(which, lambda sock: sock.shutdown(how))

    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        if self.hosts:
            self.hosts.pop(which % len(self.hosts)).close()

    def do(self, which: int, act) -> None:
        if self.hosts:
            with suppress(OSError):
                act(self.hosts[which % len(self.hosts)])

    @rule(seconds=st.sampled_from([0.01, 1, 5, 8, 11]))
    def wait(self, seconds: float) -> None:
        self.vm.drv.advance(seconds)

    # -- what must hold --------------------------------------------------------

    @invariant()
    def nothing_grows(self) -> None:
        self.vm.poll()
        hub, front = self.device._hub, self.device._front
        every = [*hub.streams.values(), *hub.parted]
        assert len(every) + hub.reserved <= CONNECTIONS
        assert hub.reserved == len(front._callers)
        assert all(len(stream.pending) <= ROOM for stream in every)
        assert len(hub.resets) <= vsock.RESETS_MOST + CONNECTIONS
        assert len(hub.ready) <= len(hub.streams)
        assert len(hub._calls) <= CONNECTIONS + 1
        assert not self.vm.drv.broken

    @invariant()
    def credit_is_kept_to(self) -> None:
        self.heard()
        for header, data in self.vm.packets():
            ports = header.dst_port, header.src_port
            flow = self.flows.get(ports)
            if header.op == vp.REQUEST:
                assert flow is None
                self.flows[ports] = Flow([])
            elif header.op == vp.RESPONSE:
                self.flows[ports] = Flow([self.asked.pop(ports)])
            elif header.op == vp.RST:
                self.flows.pop(ports, None)
            else:
                assert flow is not None
                assert header.buf_alloc == ROOM and header.src_cid == vp.HOST
                self.follow(flow, header, data)
        self.heard()
        for flow in self.flows.values():
            del flow.credits[:-1]

    def heard(self) -> None:
        """What the device has taken of what the guest has sent."""
        while self.waiting and self.waiting[0][1].done:
            header, _ = self.waiting.popleft()
            ports = header.src_port, header.dst_port
            if (header.src_cid, header.dst_cid) != (3, vp.HOST):
                continue
            if header.op == vp.REQUEST and header.type == vp.STREAM:
                self.asked[ports] = header.buf_alloc, header.fwd_cnt
            flow = self.flows.get(ports)
            if flow is not None and header.type == vp.STREAM:
                flow.credits.append((header.buf_alloc, header.fwd_cnt))

    def follow(self, flow: Flow, header: vp.Header, data: bytes) -> None:
        assert header.type == vp.STREAM
        if header.op == vp.RW:
            assert data and not flow.ends & vp.SEND
            flow.tx_cnt += len(data)
            assert any(
                (flow.tx_cnt - fwd_cnt & M32) <= buf_alloc
                for buf_alloc, fwd_cnt in flow.credits
            )
        elif header.op == vp.SHUTDOWN:
            assert header.flags & ~flow.ends
            assert header.flags & flow.ends == flow.ends
            flow.ends = header.flags
        else:
            assert header.op in (vp.CREDIT_UPDATE, vp.CREDIT_REQUEST)


class Rings(QueueTraffic):
    """Any driver, with packets as the requests."""

    examples = 40
    payloads = st.builds(
        lambda op, ports, size: (
            vp.HEADER.pack(3, 2, *ports, size, 1, op, 3, 100, 0) + bytes(size)
        ),
        st.integers(0, 8),
        st.tuples(st.integers(1, 2), st.integers(52, 53)),
        st.integers(0, 99),
    ) | st.binary(max_size=80)

    def make(self) -> Vsock:
        device = Vsock(connections=4, room=ROOM)
        device.notify = "inline"
        device.listen(52, lambda sock, peer: sock.close())
        return device

    def check(self, drv: virtio.Driver) -> None:
        hub = self.device._hub
        assert len(hub.streams) + len(hub.parted) <= 4
        assert len(hub.resets) <= vsock.RESETS_MOST + 4

    def alive(self, drv: virtio.Driver) -> None:
        vm = Guest(drv, 3)
        vm.make_room()
        vm.send(vp.REQUEST, 1, 52)
        assert vm.ops() == [vp.RESPONSE]


test_rings = Rings.test_case()
test_packets = Packets.TestCase
test_packets.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

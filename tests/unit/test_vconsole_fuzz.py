# SPDX-License-Identifier: Apache-2.0
"""Console in front of any traffic, with a driver that keeps the rules or not.

What waits on the host is bounded; each byte that was taken from the guest or
given to it comes out once and in order, whatever connects, resets or is saved
meanwhile.
"""

from typing import Any

from hostile import QueueTraffic
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from vguest import CONTROL, DEVICE_READY, PORT_OPEN, PORT_READY, Slow

from pyvmm import virtio
from pyvmm.devices.console import Console

BUFFER = 8  # bytes: small, so that it is full most of the time
PORTS = ("", "a", "b")
NEWS = 8  # kinds of control messages
QUEUE = 16  # entries


def console(peers: list[Slow]) -> Console:
    return Console(
        peers[0],
        ports=dict(zip(PORTS[1:], peers[1:], strict=True)),
        buffer=BUFFER,
        notify="inline",
    )


def check_bounds(con: Console, peers: list[Slow]) -> None:
    for port, peer in zip(con.ports.values(), peers, strict=True):
        assert len(port.unsent) <= BUFFER and len(port.urgent) <= BUFFER
        owed = len(peer.taken) + len(port.unsent) + len(port.urgent)
        assert owed + port.lost == len(port.output)
    assert len(con.save()["control"]["news"]) <= NEWS * len(PORTS)


# -- one that does not ---------------------------------------------------------

words = st.integers(0, 9) | st.sampled_from((0xFFFF, 0xFFFF_FFFF, 1 << 31))
messages = st.builds(
    lambda id, event, value: CONTROL.pack(id, event & 0xFFFF, value & 0xFFFF),
    words,
    words,
    words,
)


class ConsoleTraffic(QueueTraffic):
    payloads = messages | st.binary(max_size=64)

    def make(self) -> Console:
        self.peers = [Slow(1000) for _ in PORTS]
        return console(self.peers)

    def check(self, drv: virtio.Driver) -> None:
        check_bounds(self.device, self.peers)

    def alive(self, drv: virtio.Driver) -> None:
        con = self.device
        for peer in self.peers:
            peer.widen(1 << 30)
        drv.poll()
        assert drv.transmit(b"alive", timeout=0) == b""
        assert con.output.endswith(b"alive")
        drv.control_transmit(CONTROL.pack(0, DEVICE_READY, 1))
        for id in range(len(PORTS)):
            drv.poll()
            expected = CONTROL.pack(id, 1, 0)
            assert drv.control_receive(reply=64, timeout=0) == expected
        drv.control_transmit(CONTROL.pack(2, PORT_OPEN, 1))
        con.ports["b"].send(b"too")
        drv.poll()
        assert drv.receive2(reply=64, timeout=0) == b"too"


TestHostile = ConsoleTraffic.test_case()


# -- one that keeps them -------------------------------------------------------

ids = st.sampled_from((0, 0, 0, 1, 2))
parts = st.lists(st.binary(max_size=30), min_size=1, max_size=4)
rooms = st.lists(st.integers(0, 30), min_size=1, max_size=4)


class Bytes(RuleBasedStateMachine):
    """Every byte is where it should be."""

    @initialize(multiport=st.booleans())
    def attach(self, multiport: bool) -> None:
        self.peers = [Slow() for _ in PORTS]
        self.con = console(self.peers)
        self.drv = virtio.driver(self.con, queue_size=QUEUE, start=False)
        self.given = [bytearray() for _ in PORTS]  # by the host
        self.got = [bytearray() for _ in PORTS]  # by the guest
        self.start(multiport)

    def start(self, multiport: bool) -> None:
        offered = self.drv.raw.offered()
        self.drv._features = offered if multiport else offered & ~2
        self.drv.start()
        self.drv.poll()
        self.sent: list[list[Any]] = [[] for _ in PORTS]
        self.rooms: list[list[Any]] = [[] for _ in PORTS]
        self.base = [len(port.output) for port in self.ports]
        if multiport:
            self.introduce()

    def introduce(self) -> None:
        """What a driver says until all ports are open."""
        for event in (DEVICE_READY, PORT_READY, PORT_OPEN):
            for id in range(len(PORTS)):
                for _ in range(5):
                    self.offer("control_receive", reply=[4, 60])
                self.offer("control_transmit", CONTROL.pack(id, event, 1))
                self.drv.poll()

    @property
    def ports(self) -> list[Any]:
        return list(self.con.ports.values())

    def offer(self, name: str, *data: bytes, reply: Any = ()) -> Any:
        """A request, if there is room for it."""
        queue = self.drv[name]
        queue.collect()
        if len(data) + len(reply) <= len(queue._free):
            return queue.send(*data, reply=reply)
        return None

    @rule(
        id=ids,
        requests=st.lists(parts, min_size=1, max_size=4),
        room=st.integers(0, 40),
    )
    def transmit(self, id: int, requests: list[list[bytes]], room: int) -> None:
        for data in requests:
            request = self.offer(f"transmit{id or ''}", *data)
            if request is not None:
                self.sent[id].append((request, b"".join(data)))
        self.peers[id].widen(room)

    @rule(id=ids, size=rooms, data=st.binary(max_size=60))
    def receive(self, id: int, size: list[int], data: bytes) -> None:
        request = self.offer(f"receive{id or ''}", reply=size)
        if request is not None:
            self.rooms[id].append(request)
        self.ports[id].send(data)
        self.given[id] += data
        self.drv.poll()

    @rule(message=messages, cut=st.integers(0, 8), size=rooms)
    def control(self, message: bytes, cut: int, size: list[int]) -> None:
        self.offer("control_transmit", message[:cut], message[cut:])
        self.offer("control_receive", reply=size)

    @rule(id=ids, here=st.booleans(), size=st.integers(0, 0xFFFF))
    def turn(self, id: int, here: bool, size: int) -> None:
        self.ports[id].connect(here)
        self.ports[id].resize(size, 7)

    @rule(id=ids)
    def arrive(self, id: int) -> None:
        self.ports[id].connect(True)
        self.peers[id].widen(200)
        self.drv.poll()

    @rule()
    def save_and_restore(self) -> None:
        state = self.con.save()
        self.con.restore(state)
        assert self.con.save()["ports"] == state["ports"]

    @rule(multiport=st.booleans())
    def reset(self, multiport: bool) -> None:
        self.check()
        self.drv.reset()
        self.start(multiport)

    @invariant()
    def check(self) -> None:
        check_bounds(self.con, self.peers)
        for id, port in enumerate(self.ports):
            self.drv[f"transmit{id or ''}"].collect()
            assert bytes(self.peers[id].taken + port.unsent) == port.output
            output = port.output[self.base[id] :]
            done = [data for request, data in self.sent[id] if request.done]
            sent = [data for _, data in self.sent[id]]
            assert b"".join(sent).startswith(output)
            assert output.startswith(b"".join(done))

            self.drv[f"receive{id or ''}"].collect()
            while self.rooms[id] and self.rooms[id][0].done:
                self.got[id] += self.rooms[id].pop(0).reply
            assert self.got[id] + port.pending == self.given[id]

    def teardown(self) -> None:
        if hasattr(self, "drv"):
            self.drv.close()


TestBytes = Bytes.TestCase
TestBytes.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

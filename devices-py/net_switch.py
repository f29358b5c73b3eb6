# SPDX-License-Identifier: Apache-2.0
"""A switch between the machines of one process.

    switch = Switch()
    one.attach(Net(switch))
    two.attach(Net(switch))

It learns which addresses are behind which port, as any switch does, and sends
elsewhere only what is for all, or for an address that it has not seen. Each
port is a pair of UNIX datagram sockets, so what waits for a machine is bounded
by the kernel: a machine that stands still misses frames (`rx_dropped` of its
Net), and keeps nobody from sending.

>>> switch = Switch()
>>> from pyvmm import virtio
>>> from pyvmm.devices import Net
>>> frame = b"\\xff" * 6 + b"\\2guest" + b"\\x88\\xb5" + b"hello"
>>> with virtio.driver(Net(switch)) as one, virtio.driver(Net(switch)) as two:
...     room = two.receive.send(reply=1530)
...     nothing = one.transmit(bytes(12), frame)
...     two.poll()
...     room.wait()[12:] == frame
1
True
>>> switch
<Switch 0 ports, 0 addresses>
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING

from pyvmm import virtio
from pyvmm.devices.net_address import GROUP, SIZE
from pyvmm.devices.net_header import PLAIN
from pyvmm.devices.net_peer import BURST, FRAME_MOST, Lost, Peer

if TYPE_CHECKING:
    from pyvmm.devices.net import Net


class Switch:
    """Ethernet between machines; it learns.

    `addresses`: so many are known at most, the oldest are forgotten first.

    Threads: any.
    """

    def __init__(self, *, addresses: int = 4096) -> None:
        if addresses < 1:
            raise ValueError(f"addresses={addresses} is not above 0")
        self._most = addresses
        self._lock = Lock()
        self._ports: list[Port] = []
        self._where: dict[bytes, Port] = {}  # the last seen are at the end

    @property
    def addresses(self) -> dict[str, Port]:
        """The addresses that were learned, and behind which port they are."""
        with self._lock:
            return {mac.hex(":"): port for mac, port in self._where.items()}

    def port(self) -> Port:
        """A new port; it takes part once its device is attached."""
        return Port(self)

    def _plug(self, port: Port) -> None:
        with self._lock:
            self._ports.append(port)

    def _unplug(self, port: Port) -> None:
        with self._lock:
            self._ports.remove(port)
            for mac in [m for m, at in self._where.items() if at is port]:
                del self._where[mac]

    def _forward(self, port: Port, frame: bytes) -> None:
        """A frame has come in by `port`."""
        to, by = frame[:SIZE], frame[SIZE : 2 * SIZE]
        with self._lock:
            if not by[0] & GROUP:
                self._where.pop(by, None)
                self._where[by] = port
                if len(self._where) > self._most:
                    del self._where[next(iter(self._where))]
            there = self._where.get(to)
            for other in [there] if there else self._ports:
                if other is not port:
                    other._put(frame)

    def __repr__(self) -> str:
        return (
            f"<Switch {len(self._ports)} ports, {len(self._where)} addresses>"
        )


class Port(Peer):
    """One port of a switch, which Net(switch) makes."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._lock = Lock()
        self._buffer = memoryview(bytearray(FRAME_MOST))

    def open(self, device: Net) -> None:
        if self._pair is not None or device.native is None:
            return  # it takes part while its device is attached
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, theirs):
            end.setblocking(False)
        # Some hundred frames; the kernel counts what they take of its memory.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        self._pair = ours, theirs
        self.fd = ours.fileno()
        self.switch._plug(self)

    def close(self) -> None:
        with self._lock:
            pair, self._pair = self._pair, None
            self.fd = -1
        if pair is not None:
            self.switch._unplug(self)  # after which nobody is in _put()
            for end in pair:
                end.close()

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        if self._pair is None:
            return False
        self.switch._forward(self, chain.read())
        return True

    def _put(self, frame: bytes) -> None:
        """A frame for this port; the switch is locked."""
        pair = self._pair
        try:
            if pair is not None:
                pair[1].send(frame)
        except OSError:  # full
            self.dropped += 1

    def frames(self) -> Iterator[tuple[bytes, memoryview]]:
        for _ in range(BURST):
            with self._lock:
                if self._pair is None:
                    return
                try:
                    size = self._pair[0].recv_into(self._buffer)
                except BlockingIOError:
                    return
                except OSError as exc:
                    raise Lost(f"{self}: {exc.strerror}") from exc
            yield PLAIN, self._buffer[:size]

    def __str__(self) -> str:
        return "switch"

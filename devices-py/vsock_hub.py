# SPDX-License-Identifier: Apache-2.0
"""Hub: the connections of a Vsock, their sockets, and what the guest is told.

A connection ends in two steps. It is *parted* when the guest has done with it,
or is told so: the guest may use its ports again. What the guest had sent before
goes on to the socket of the host, and then that is closed.

>>> from pyvmm.devices import Vsock
>>> hub = Hub(Vsock(connections=1), tell=print)
>>> hub.free_port(guest_port=80)
1073741824
>>> ours, theirs = socket.socketpair()
>>> stream = hub.open(ours, 80, 1073741824, REQUEST)
>>> hub.is_full
True
>>> hub.part_all("the guest was reset")
>>> theirs.recv(100), hub.is_full
(b'', False)
>>> theirs.close(), hub.close()
(None, None)
"""

import os
import select
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from pyvmm import virtio
from pyvmm.devices.vsock_packet import (
    BOTH,
    HOST,
    PORT_MOST,
    REQUEST,
    RESPONSE,
    RST,
    STREAM,
    Header,
)
from pyvmm.devices.vsock_stream import EVENTS, Answered, Stream

if TYPE_CHECKING:
    from pyvmm.devices.vsock import Vsock

EVENTS_MOST = 64  # of sockets, at a time
FIRST_PORT = 1 << 30  # of the host, for connections that it begins
CLOSE_SECONDS = 8  # for a guest to agree that a connection is over


class Hub:
    """What a Vsock has while it is attached.

    All sockets are in one epoll, edge-triggered, and the device watches that.
    `tell`: called when there may be something for the guest.

    Threads: the device's worker; wake() any.
    """

    def __init__(self, device: "Vsock", tell: Callable[[], object]) -> None:
        self.device = device
        self._tell = tell
        self.streams: dict[tuple[int, int], Stream] = {}  # by ports
        self.parted: set[Stream] = set()
        self.resets: deque[bytes] = deque()  # the guest is told these first
        self.ready: OrderedDict[Stream, None] = OrderedDict()  # then by these
        self.reserved = 0  # connections that are to be
        self._next_port = FIRST_PORT
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], object]] = {}
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN | select.EPOLLET)
        self._lock = Lock()  # around waking

    # -- sockets ---------------------------------------------------------------

    def fileno(self) -> int:
        """What is readable when look() has something to do."""
        return self._epoll.fileno()

    def add(
        self, fd: int, call: Callable[[int], object], events: int = EVENTS
    ) -> None:
        """Have look() call `call(events)` once for what a socket comes to."""
        self._epoll.register(fd, events | select.EPOLLET)
        self._calls[fd] = call

    def remove(self, fd: int) -> None:
        """No calls any more; to be done before the socket is closed."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def look(self) -> list[Callable[[], object]]:
        """The calls to be made.

        Looked up before the first is made: that may close a socket, and open
        another one with its number.
        """
        return [
            partial(self._calls[fd], events)
            for fd, events in self._epoll.poll(0, EVENTS_MOST)
            if fd in self._calls
        ]

    def wake(self) -> None:
        """Let the worker look around."""
        with self._lock:
            if not self._epoll.closed:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close all sockets, at once; twice is once."""
        with self._lock:
            if self._epoll.closed:
                return
            self._epoll.close()
            os.close(self._wake_fd)
        self._calls.clear()
        for stream in self.parted:
            stream.flush()  # as far as it goes
            stream.sock.close()
        self.parted.clear()

    # -- connections -----------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether there are as many connections as there may be."""
        count = len(self.streams) + len(self.parted) + self.reserved
        return count >= self.device.connections

    def free_port(self, guest_port: int) -> int:
        """One of the host for a connection to that one of the guest."""
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < PORT_MOST else FIRST_PORT
            if (guest_port, port) not in self.streams:
                return port

    def accept(self, sock: socket.socket, packet: Header) -> None:
        """The guest is connected to who has the other end of `sock`."""
        stream = self.open(sock, packet.src_port, packet.dst_port, RESPONSE)
        stream.peer_alloc = packet.buf_alloc
        stream.peer_fwd_cnt = packet.fwd_cnt
        self.settle(stream)

    def dial(self, sock: socket.socket, port: int, answered: Answered) -> None:
        """Ask the guest to connect who has the other end of `sock`."""
        if self.is_full:
            sock.close()
            answered(
                ConnectionRefusedError(
                    f"there are {self.device.connections} connections already"
                )
            )
            return
        ours = self.free_port(port)
        self.settle(self.open(sock, port, ours, REQUEST, answered))

    def open(
        self,
        sock: socket.socket,
        guest_port: int,
        host_port: int,
        first: int,
        answered: Answered | None = None,
    ) -> Stream:
        """A connection; settle() is to follow."""
        stream = Stream(
            sock, guest_port, host_port, first, self.device.room, answered
        )
        self.streams[stream.ports] = stream
        self.add(sock.fileno(), partial(self._ready, stream))
        return stream

    def _ready(self, stream: Stream, events: int) -> None:
        if not stream.closed:
            stream.ready(events)
            self.settle(stream)

    def settle(self, stream: Stream) -> None:
        """Something has happened to it: do what follows from that."""
        if stream.parted:
            if not stream.pending:
                self._close(stream)
        elif stream.guest_shut == BOTH and not stream.pending:
            # The guest has ended it, and what it has sent has arrived: its
            # ports are free again (5.10.6.5).
            self.reset(stream, "it was closed")
        elif stream.gone and stream.answered is not None:
            self.reset(stream, "who asked for it has gone")
        elif stream.due() and stream not in self.ready:
            self.ready[stream] = None

    def follow(
        self, stream: Stream, packet: Header, chain: virtio.Chain
    ) -> None:
        """A packet of the guest, of that connection."""
        if packet.op == RST:
            self.part(
                stream,
                ConnectionRefusedError(
                    f"nobody listens on port {stream.guest_port} of the guest"
                ),
            )
            return
        try:
            fits = stream.follow(packet, chain)
        except virtio.ShortChain:
            self.reset(stream, "the guest broke the rules")
            raise
        if fits:
            self.settle(stream)
        else:
            self.reset(stream, "the guest broke the rules")

    def reset(self, stream: Stream, why: str) -> None:
        """End it, and tell the guest."""
        if stream.first != REQUEST:  # else the guest does not know of it
            self.reset_ports(*stream.ports)
        self.part(stream, ConnectionResetError(why))

    def reset_ports(self, guest_port: int, host_port: int) -> None:
        """Tell the guest that there is no such connection."""
        header = Header(
            HOST, self.device.cid, host_port, guest_port,
            0, STREAM, RST, 0, 0, 0,
        )  # fmt: skip
        self.resets.append(bytes(header))

    def part(self, stream: Stream, error: OSError) -> None:
        """The guest has done with it; what it has sent still arrives."""
        del self.streams[stream.ports]
        self.parted.add(stream)
        self.ready.pop(stream, None)
        stream.parted = True
        if stream.timer is not None:
            stream.timer.cancel()
        if stream.answered is not None:
            stream.answered(error)
        self.settle(stream)

    def part_all(self, why: str) -> None:
        """The guest has forgotten everything."""
        self.resets.clear()
        for stream in list(self.streams.values()):
            self.part(stream, ConnectionResetError(why))

    def _close(self, stream: Stream) -> None:
        self.parted.discard(stream)
        self.remove(stream.sock.fileno())
        stream.sock.close()

    # -- what the guest does not answer ----------------------------------------

    def expect(self, stream: Stream, seconds: float) -> None:
        """Give the guest so long to answer."""
        stream.timer = self.device.after(
            seconds, partial(self._expired, stream), worker=True
        )

    def _expired(self, stream: Stream) -> None:
        if not stream.parted:
            self.reset(stream, "the guest did not answer")
            self._tell()

    # -- what the guest is told ------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether there may be something for the guest."""
        return bool(self.resets or self.ready)

    def fill(self, chain: virtio.Chain) -> bool:
        """Put the next packet into a chain; False: there is none after all.

        Connections take turns, a packet each.
        """
        if self.resets:
            chain.write(self.resets[0])
            self.resets.popleft()
            return True
        found = False
        while self.ready and not found:
            stream = next(iter(self.ready))
            found = stream.fill(chain, self.device.cid)
            del self.ready[stream]
            if stream.told_shut == BOTH and stream.timer is None:
                self.expect(stream, CLOSE_SECONDS)
            self.settle(stream)
        return found

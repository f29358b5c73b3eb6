# SPDX-License-Identifier: Apache-2.0
"""Stream: a connection between the guest and a socket of the host.

What each side has sent and the other has not taken yet is bounded. Bytes for
the host that its socket has no room for wait in `pending`; they count against
the room that the guest was told of (buf_alloc), which it may not exceed, until
the socket takes them (fwd_cnt). Bytes for the guest wait in the socket until
the guest has room for them: no more are read than it has credit for.

>>> ours, theirs = socket.socketpair()
>>> with ours, theirs:
...     stream = Stream(ours, 1024, 52, first=NOTHING, room=4096)
...     stream.peer_alloc = 1000                # the guest has room for that
...     stream.due() == NOTHING
...     sent = theirs.send(bytes(9999))
...     stream.ready(select.EPOLLIN)            # so says epoll
...     stream.due() == RW, stream.credit
True
(True, 1000)
"""

import select
import socket
from collections.abc import Callable

from pyvmm import virtio
from pyvmm.devices.vsock_packet import (
    BOTH,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    HOST,
    NOTHING,
    RECEIVE,
    RESPONSE,
    RW,
    SEND,
    SHUTDOWN,
    STREAM,
    WRAP,
    Header,
)
from pyvmm.timers import Timer

LARGEST = 1 << 16  # bytes of a packet for the guest

# What epoll is asked for: each of these once, when it comes to be.
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
READABLE = (
    select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
)
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
GONE = select.EPOLLHUP | select.EPOLLERR

# Told of the guest's answer to a REQUEST: None, or why not.
Answered = Callable[[OSError | None], object]


class Stream:
    """One connection, by the ports of both ends.

    `sock`: the host's end, which does not block. `first`: what opens it,
    REQUEST or RESPONSE. `room`: bytes from the guest that may wait here.

    Threads: the device's worker.
    """

    __slots__ = (
        "answered", "asked", "at_end", "ended", "first", "fwd_cnt", "gone",
        "guest_port", "guest_shut", "host_port", "hung_up", "is_asked",
        "parted", "peer_alloc", "peer_fwd_cnt", "pending", "readable",
        "room", "sock", "timer", "told_fwd_cnt", "told_shut",
        "tx_cnt",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        guest_port: int,
        host_port: int,
        first: int,
        room: int,
        answered: Answered | None = None,
    ) -> None:
        self.sock = sock
        self.guest_port = guest_port
        self.host_port = host_port
        self.first = first  # NOTHING once it was sent
        self.answered = answered  # None once there was one
        self.timer: Timer | None = None  # for an answer that does not come
        self.parted = False  # the guest does not know it any more

        # From the guest.
        self.room = room
        self.pending = bytearray()
        self.fwd_cnt = 0  # bytes that the host has taken
        self.told_fwd_cnt = 0  # as the guest knows it
        self.is_asked = False  # by a CREDIT_REQUEST
        self.guest_shut = 0  # RECEIVE, SEND
        self.ended = False  # the host was told that no more comes
        self.gone = False  # it takes no more

        # For the guest.
        self.tx_cnt = 0
        self.peer_alloc = 0
        self.peer_fwd_cnt = 0
        self.asked = False  # for credit, since it ran out
        self.readable = False  # the socket may have something
        self.hung_up = False  # after what it has comes the end
        self.at_end = False  # that was read
        self.told_shut = 0  # RECEIVE, SEND, as the guest knows it

    @property
    def ports(self) -> tuple[int, int]:
        """By which the guest names it: its own, and the host's."""
        return self.guest_port, self.host_port

    @property
    def closed(self) -> bool:
        """Whether the socket was closed."""
        return self.sock.fileno() < 0

    # -- from the guest --------------------------------------------------------

    def follow(self, packet: Header, chain: virtio.Chain) -> bool:
        """A packet, but no RST; False: it has no business here.

        ShortChain when its length is a lie.
        """
        if packet.type != STREAM:
            return False
        self.peer_alloc = packet.buf_alloc
        self.peer_fwd_cnt = packet.fwd_cnt
        op = packet.op
        if self.answered is not None:  # it was asked, or will be
            if op != RESPONSE or self.first:
                return False
            self._accepted()
        elif op == RW:
            # No more than it was told that there is room for.
            if packet.len > self.free or self.guest_shut & SEND:
                return False
            self._receive(chain.take(packet.len))
        elif op == SHUTDOWN:
            self._shut(packet.flags)
        elif op == CREDIT_REQUEST:
            self.is_asked = True
        else:
            return op == CREDIT_UPDATE
        return True

    def _accepted(self) -> None:
        answered, self.answered = self.answered, None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if answered is not None:
            answered(None)

    @property
    def free(self) -> int:
        """How many bytes the guest may send."""
        return self.room - len(self.pending)

    def _receive(self, data: bytes) -> None:
        """Bytes for the socket, or pending."""
        taken = 0 if self.pending or self.gone else self._send(data)
        if self.gone:
            self._taken(len(data))  # nobody wants them
        elif taken < len(data):
            self.pending += data[taken:]

    def _shut(self, flags: int) -> None:
        """The guest will not RECEIVE or SEND any more."""
        new = flags & BOTH & ~self.guest_shut
        self.guest_shut |= new
        if new & RECEIVE:
            self._shutdown(socket.SHUT_RD)
        if new & SEND:
            self.flush()

    def flush(self) -> None:
        """The socket may have room: what is pending, and then the end."""
        if self.pending:
            taken = self._send(self.pending)
            del self.pending[:taken]
        if self.guest_shut & SEND and not self.pending and not self.ended:
            self.ended = True  # once: it is an event in itself
            self._shutdown(socket.SHUT_WR)

    def _send(self, data: bytes | bytearray) -> int:
        """How many bytes the socket took."""
        try:
            taken = self.sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._lost()
            return 0
        self._taken(taken)
        return taken

    def _taken(self, count: int) -> None:
        self.fwd_cnt = self.fwd_cnt + count & WRAP

    def _lost(self) -> None:
        """The host takes no more: what it did not take is dropped."""
        self.gone = True
        self._taken(len(self.pending))
        self.pending.clear()

    def _shutdown(self, how: int) -> None:
        try:
            self.sock.shutdown(how)
        except OSError:
            self._lost()

    # -- from the host ---------------------------------------------------------

    def ready(self, events: int) -> None:
        """What epoll tells of the socket."""
        if events & READABLE:
            self.readable = True
        if events & ENDED:
            self.hung_up = True
        if events & GONE:
            self._lost()
        elif events & select.EPOLLOUT:
            self.flush()

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for; 0 or less: none.

        A guest that claims to have taken what it was never sent has none.
        """
        return self.peer_alloc - (self.tx_cnt - self.peer_fwd_cnt & WRAP)

    @property
    def shut_due(self) -> int:
        """What the guest is to know: that the host does not RECEIVE, SEND."""
        if not self.gone:
            return SEND if self.at_end else 0
        return BOTH if self.at_end or self.guest_shut & RECEIVE else RECEIVE

    def due(self) -> int:
        """What is to be sent to the guest next; NOTHING."""
        if self.parted:
            return NOTHING
        if self.first:
            return self.first
        if self.answered is not None:
            return NOTHING
        if self.is_asked:
            return CREDIT_UPDATE
        if self.readable and not (self.at_end or self.guest_shut & RECEIVE):
            if self.credit > 0:
                return RW
            if not self.asked:
                return CREDIT_REQUEST
        if self.shut_due & ~self.told_shut:
            return SHUTDOWN
        # Before the guest runs out, and not for each byte.
        if (self.fwd_cnt - self.told_fwd_cnt & WRAP) >= self.room // 4:
            return CREDIT_UPDATE
        return NOTHING

    def fill(self, chain: virtio.Chain, cid: int) -> bool:
        """Put the next packet into `chain`; False: there is none after all."""
        room = chain.writable_size - HEADER.size
        data = b""
        while op := self.due():
            if room < (op == RW):
                raise virtio.ShortChain(f"no room for op {op} of a stream")
            if op != RW:
                break
            data = self._read(min(self.credit, room, LARGEST))
            if data:
                break
        if not op:
            return False
        flags = self.shut_due if op == SHUTDOWN else 0
        chain.write(
            HEADER.pack(
                HOST, cid, self.host_port, self.guest_port,
                len(data), STREAM, op, flags, self.room, self.fwd_cnt,
            )
        )  # fmt: skip
        if data:
            chain.write(data)
        self._sent(op, flags)
        return True

    def _sent(self, op: int, flags: int) -> None:
        self.told_fwd_cnt = self.fwd_cnt
        if op == RW:
            self.asked = False
        elif op == CREDIT_REQUEST:
            self.asked = True
        elif op == CREDIT_UPDATE:
            self.is_asked = False
        elif op == SHUTDOWN:
            self.told_shut = flags
        else:
            self.first = NOTHING

    def _read(self, size: int) -> bytes:
        """Bytes of the host; none when there are none, or it is the end."""
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            self.readable = False
            return b""
        except OSError:
            data = b""
        if not data:
            self.at_end = True
        elif len(data) < size and not self.hung_up:
            self.readable = False  # that was all, and more is an event
        self.tx_cnt = self.tx_cnt + len(data) & WRAP
        return data

    def __repr__(self) -> str:
        state = "parted" if self.parted else "open"
        if self.answered is not None:
            state = "asked"
        return (
            f"<Stream guest {self.guest_port}, host {self.host_port}: {state}, "
            f"{len(self.pending)} bytes pending, credit {self.credit}>"
        )

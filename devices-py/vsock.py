# SPDX-License-Identifier: Apache-2.0
"""A virtio-vsock: sockets between a guest and its host, without a network.

    with pyvmm.Machine() as m:
        vsock = m.attach(Vsock(path="v.sock"))
        m.load("kernel.elf")
        m.run(timeout=60)

An address is a context id and a port: the host is 2, the guest what its `cid`
says, 3 by default, and a port any number up to 4294967294. Both sides may
listen and connect.

**Programs of the host** need no more than AF_UNIX sockets, as with Firecracker
and cloud-hypervisor. A guest that connects to port 52 reaches who listens at
`v.sock_52`:

    $ socat UNIX-LISTEN:v.sock_52,fork EXEC:date

and `v.sock` leads to the guest, by a line that says to which port of it:

    $ socat - UNIX-CONNECT:v.sock
    CONNECT 80
    OK 1073741824

A program that does not say so, or asks for a port where the guest does not
listen, is hung up on. `pyvmm run kernel.elf --device lab.py` does the same,
where lab.py says

    from pyvmm.devices import Vsock

    class Lab(Vsock):
        def __init__(self):
            super().__init__(path="v.sock")

**Python code** in the machine's process gets sockets, too. They are as all
others are: makefile(), select, timeouts.

    listener = vsock.listen(52)             # the guest connects
    m.start()
    sock, (cid, port) = listener.accept(timeout=5)

    sock = vsock.connect(80)                # the guest listens
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")

**asyncio** has its streams:

    async def echo(reader, writer):
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    async with await vsock.start_server(echo, 52):
        await m.run_async()

    reader, writer = await vsock.open_connection(80)

A port where Python listens is not looked for at `path`.

What one side sends and the other does not take waits, bounded, and then the
sender has to wait: `room` is how much of a guest's bytes may wait in each
connection, besides what the socket holds. A guest is told that a connection is
over (RST) when the host has taken all of it. Bytes that wait when the machine
is closed are lost, unless the socket has room for them: a guest that wants to
be sure closes its connections and waits for that RST, as Linux does.

Connections do not outlive a snapshot, nor a reload. After restore() sockets of
the host are at their end, and the guest's driver is told to end its own; who
listens goes on doing so.

To see it without a guest:

>>> vsock = Vsock()
>>> with virtio.driver(vsock) as drv, vsock.listen(52) as listener:
...     packet = Header(
...         src_cid=3, dst_cid=HOST, src_port=1024, dst_port=52, len=0,
...         type=STREAM, op=REQUEST, flags=0, buf_alloc=4096, fwd_cnt=0,
...     )
...     room = drv.rx.send(reply=64)
...     nothing = drv.tx(bytes(packet))
...     sock, peer = listener.accept(timeout=5)
...     sock.close()
...     peer, parse(room.wait()).op             # RESPONSE
((3, 1024), 2)

Source: virtio 1.2, 5.10. Not here: sockets with message boundaries
(VIRTIO_VSOCK_F_SEQPACKET).
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, overload

from pyvmm import virtio
from pyvmm.devices import vsock_unix
from pyvmm.devices.vsock_hub import Hub
from pyvmm.devices.vsock_listener import (
    Callback,
    CallbackListener,
    Listener,
    Listening,
)
from pyvmm.devices.vsock_packet import (
    CID_LEAST,
    CID_MOST,
    EVENT,
    HEADER,
    HOST,
    PORT_MOST,
    REQUEST,
    RST,
    STREAM,
    TRANSPORT_RESET,
    Header,
    parse,
)
from pyvmm.devices.vsock_stream import Answered

if TYPE_CHECKING:
    import asyncio

    from pyvmm.devices.vsock_asyncio import Client, Server

F_STREAM = 1 << 0  # a feature (5.10.3)
RESETS_MOST = 256  # that wait for room; then no more packets are taken
CONNECTIONS_MOST = 4000  # each may have a timer, and a device has 4096
ROOM_LEAST, ROOM_MOST = 1 << 12, 1 << 30


class Unused(Exception):
    """A chain was popped, but there is nothing to put into it."""


class Vsock(virtio.Device):
    """A virtio-vsock, stream sockets only, of a guest with context id `cid`.

    `path`: where programs of the host find it, and those beside it that it
    connects to; None: Python only. `connections`: how many there may be at a
    time. `room`: how many bytes of each may wait for the host, 4 KiB to 1 GiB.

    Threads: any.
    """

    device_id = 19
    features = F_STREAM
    queues: ClassVar[dict[str, int]] = {"rx": 256, "tx": 256, "event": 8}
    config = virtio.Struct(guest_cid="<Q")
    notify = "thread"

    def __init__(
        self,
        cid: int = CID_LEAST,
        path: str | os.PathLike[str] | None = None,
        *,
        connections: int = 256,
        room: int = 1 << 18,
    ) -> None:
        check("cid", cid, CID_LEAST, CID_MOST)
        check("connections", connections, 1, CONNECTIONS_MOST)
        check("room", room, ROOM_LEAST, ROOM_MOST)
        self.cid = cid
        self.config.guest_cid = cid
        self.path = None if path is None else vsock_unix.check_path(path)
        self.connections = connections
        self.room = room
        self._listening: dict[int, Listening] = {}
        self._hub: Hub | None = None  # while it is attached
        self._front: vsock_unix.Front | None = None  # with a path

        # What other threads leave for the worker, which looks there first.
        self._wanted: deque[tuple[socket.socket, int, Answered]] = deque()
        self._is_live = False  # the guest's driver
        self._life = 0  # of that
        self._restored: list[tuple[int, int]] | None = None
        # How far it has looked.
        self._was_live = False
        self._lived = 0
        self._event_due = False
        self._tx_waits = False  # until there are fewer resets

    # -- for Python code of the host -------------------------------------------

    @overload
    def listen(self, port: int, *, backlog: int = 16) -> Listener: ...
    @overload
    def listen(self, port: int, callback: Callback) -> Listening: ...

    def listen(
        self,
        port: int,
        callback: Callback | None = None,
        *,
        backlog: int = 16,
    ) -> Listening:
        """Listen on a port of the host, until close() of what is returned.

        Its accept() gives a socket and the guest's (cid, port) for each that
        connects, of which `backlog` may wait. With a `callback` that is called
        with both instead, by the device's worker, which moves the bytes: to
        wait for some give the socket to a thread or a loop.

        OSError when somebody listens on that port already.
        """
        listener: Listening
        if callback is None:
            check("backlog", backlog, 1, CONNECTIONS_MOST)
            listener = Listener(port, backlog, self._drop_listener)
        else:
            listener = CallbackListener(port, callback, self._drop_listener)
        self._add_listener(listener)
        return listener

    def connect(self, port: int, timeout: float | None = 10) -> socket.socket:
        """Connect to a port of the guest: a socket, once it has accepted.

        The machine has to run meanwhile, by start() for example, and its guest
        may still be booting. ConnectionRefusedError when nobody listens there,
        TimeoutError after `timeout` seconds.
        """
        answers: SimpleQueue[OSError | None] = SimpleQueue()
        sock = self._request(port, answers.put)
        try:
            error = answers.get(timeout=timeout)
            if error is not None:
                raise error
        except Empty:
            sock.close()
            raise TimeoutError(
                f"port {port} of the guest did not answer in {timeout} s"
            ) from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def open_connection(
        self,
        port: int,
        *,
        timeout: float | None = 10,
        limit: int = 1 << 16,
    ) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
        """connect() for asyncio: a reader and a writer."""
        from pyvmm.devices.vsock_asyncio import answer

        return await answer(partial(self._request, port), timeout, limit)

    async def start_server(
        self, client: "Client", port: int, *, limit: int = 1 << 16
    ) -> "Server":
        """listen() for asyncio: `client(reader, writer)` for each guest.

        As asyncio.start_server(); OSError as listen().
        """
        from pyvmm.devices.vsock_asyncio import Server

        server = Server(port, client, limit, self._drop_listener)
        self._add_listener(server)
        return server

    def _add_listener(self, listener: Listening) -> None:
        port = listener.port
        check("port", port, 0, PORT_MOST)
        if self._listening.setdefault(port, listener) is not listener:
            raise OSError(
                errno.EADDRINUSE, f"port {port} is listened on already"
            )

    def _drop_listener(self, listener: Listening) -> None:
        if self._listening.get(listener.port) is listener:
            self._listening.pop(listener.port, None)

    def _request(self, port: int, answered: Answered) -> socket.socket:
        """The other end of a connection that the guest is asked for."""
        check("port", port, 0, PORT_MOST)
        hub = self._hub
        if hub is None:
            raise ValueError(
                f"{type(self).__name__} cannot connect: attach it to a "
                "machine that is open"
            )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._wanted.append((ours, port, answered))
        if self._hub is hub:
            hub.wake()
        else:
            self._refuse_wanted()  # it was detached meanwhile
        return theirs

    # -- life ------------------------------------------------------------------

    def attached(self) -> None:
        if self.machine is not None and self.notify == "inline":
            raise ValueError(
                f"{type(self).__name__}.notify is 'thread' or 'asyncio': it "
                "waits for sockets, and has no locks"
            )
        if self.path is not None:
            self._front = vsock_unix.Front(self, self.path)
        self._hub = Hub(self, self._tell)
        self.watch(self._hub.fileno(), self._look)

    def detached(self) -> None:
        self._is_live = self._was_live = False
        if self._front is not None:
            self._front.close()
            self._front = None
        hub, self._hub = self._hub, None
        if hub is None:
            return
        hub.part_all("the machine was closed")
        hub.close()
        self._refuse_wanted()
        for listener in list(self._listening.values()):
            listener.close()

    def _refuse_wanted(self) -> None:
        with suppress(IndexError):  # another thread has taken the last
            while self._wanted:
                sock, _, answered = self._wanted.popleft()
                sock.close()
                answered(ConnectionAbortedError("the machine was closed"))

    # These run on other threads, and leave it to the worker.

    def reset(self) -> None:
        self._restored = None
        self._begin_life(live=False)

    def started(self) -> None:
        self._is_live = True
        self._wake()

    def _begin_life(self, live: bool) -> None:
        self._is_live = live
        self._life += 1
        self._wake()

    def _wake(self) -> None:
        hub = self._hub
        if hub is not None:
            hub.wake()

    def save(self) -> dict[str, Any]:
        """The connections, by ports: what the guest will have to forget."""
        streams = [] if self._hub is None else list(self._hub.streams)
        return {"live": self._is_live, "streams": streams}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The guest is the one of save(), and its connections are no more.

        Sockets of the host come to their end. The guest gets a RST for each
        connection of `state`, and a TRANSPORT_RESET event. ValueError for
        what is no such state.
        """
        if sorted(state) != ["live", "streams"]:
            raise ValueError(f"Vsock has no state {', '.join(sorted(state))}")
        self._restored = [(guest, host) for guest, host in state["streams"]]
        self._begin_life(live=bool(state["live"]))

    # -- the worker ------------------------------------------------------------

    @property
    def _open_hub(self) -> Hub:
        assert self._hub is not None
        return self._hub

    def _look(self) -> None:
        """Something has happened to sockets, or on other threads."""
        calls = self._open_hub.look()
        self._catch_up()
        for call in calls:
            call()
        self._tell()

    def _catch_up(self) -> None:
        """See what other threads have left, before all that came later."""
        hub = self._open_hub
        if self._lived != self._life:
            self._lived = self._life
            self._was_live = False
            if self._front is not None:
                self._front.shut()
            hub.part_all("the guest was reset")
            restored, self._restored = self._restored, None
            for ports in restored or ():
                hub.reset_ports(*ports)
            self._event_due = restored is not None
            self.queue["event"].work()
        if self._is_live and not self._was_live:
            self._was_live = True
            if self._front is not None:
                self._front.open(hub)
        while self._was_live and self._wanted:
            hub.dial(*self._wanted.popleft())

    def _tell(self) -> None:
        """Give the guest what there is for it, while it has room."""
        self.queue["rx"].work()

    # -- packets of the guest --------------------------------------------------

    def on_tx(self, queue: virtio.Queue) -> None:
        """Take packets, until there is no room for the answers.

        There is some besides the queue for these, but not without bound
        (5.10.6.1).
        """
        resets = self._open_hub.resets
        self._tx_waits = len(resets) >= RESETS_MOST
        while not self._tx_waits:
            for chain in queue:
                self._take(chain)
                if len(resets) >= RESETS_MOST:
                    break
            else:
                break
            self._tell()
            self._tx_waits = len(resets) >= RESETS_MOST
        self._tell()

    def _take(self, chain: virtio.Chain) -> None:
        if self._lived != self._life:
            self._catch_up()
        hub = self._open_hub
        packet = parse(chain.take(HEADER.size))
        stream = None
        if packet.src_cid == self.cid and packet.dst_cid == HOST:
            stream = hub.streams.get((packet.src_port, packet.dst_port))
            if stream is not None:
                hub.follow(stream, packet, chain)
                return
            if packet.op == REQUEST and packet.type == STREAM:
                sock = None if hub.is_full else self._reach(packet)
                if sock is not None:
                    hub.accept(sock, packet)
                    return
        if packet.op != RST:
            hub.resets.append(packet.reset())

    def _reach(self, packet: Header) -> socket.socket | None:
        """A connection to who listens on that port; None: nobody."""
        port = packet.dst_port
        listener = self._listening.get(port)
        try:
            if listener is None:
                if self.path is None:
                    return None
                return vsock_unix.connect(self.path, port)
            ours, theirs = socket.socketpair()
        except OSError:
            return None
        ours.setblocking(False)
        taken = False
        try:
            taken = listener.offer(theirs, (self.cid, packet.src_port))
        finally:
            if not taken:
                ours.close()
                theirs.close()
        return ours if taken else None

    # -- packets and events for the guest --------------------------------------

    def on_rx(self, queue: virtio.Queue) -> None:
        """The guest has room, or there is something for it."""
        hub = self._open_hub
        try:
            while hub.has_news:
                for chain in queue:
                    if self._lived != self._life:
                        self._catch_up()
                    if not hub.fill(chain):
                        raise Unused
                    if not hub.has_news:
                        break
                else:
                    break
        except Unused:
            pass  # the chain is back in its queue
        if self._tx_waits and len(hub.resets) < RESETS_MOST:
            self.queue["tx"].work()

    def on_event(self, queue: virtio.Queue) -> None:
        """Room for events, of which there is one: connections are no more."""
        if self._lived != self._life:
            self._catch_up()
        if not self._event_due:
            return
        for chain in queue:
            chain.write(EVENT.pack(TRANSPORT_RESET))
            self._event_due = False
            break

    def __repr__(self) -> str:
        at = "" if self.path is None else f" at {self.path}"
        count = 0 if self._hub is None else len(self._hub.streams)
        return f"<{type(self).__name__} cid {self.cid}{at}, {count} open>"


def check(name: str, value: object, least: int, most: int) -> None:
    """TypeError or ValueError unless it is an int in a range."""
    if not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} {value} is outside {least}..{most}")

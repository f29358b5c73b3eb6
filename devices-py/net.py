# SPDX-License-Identifier: Apache-2.0
"""A network interface: virtio-net.

What the guest sends goes to whatever is at the other end of the cable:

    Net(function)           a Python callable: function(frame), returns answers
    Net(switch)             other machines of this process, by a Switch
    Net(stream="/path")     passt: the host's network, without root
    Net(tap="tap0")         a TAP interface of the host

The shortest is a callable. This one shows what a guest sends: its search for
the address 10.0.0.1, which nobody answers.

    def show(frame):
        print(frame.hex(" "))

    with pyvmm.Machine() as m:
        m.attach(Net(show))
        m.load("build/guest/net.elf", cmdline="ip=10.0.0.2 ping=10.0.0.1")
        m.run(timeout=1, check=False)

A guest that pings wants somebody who answers. Another guest does, on a switch:

    switch = Switch()
    with pyvmm.Machine() as one, pyvmm.Machine() as two:
        one.attach(Net(switch))
        one.load("build/guest/net.elf", cmdline="ip=10.0.0.1 serve=4")
        one.console.expect("serving", timeout=10)
        one.start(timeout=10)
        two.attach(Net(switch))
        two.load("build/guest/net.elf", cmdline="ip=10.0.0.2 ping=10.0.0.1")
        two.run(timeout=10)
        print(two.console.text)         # 10.0.0.1 is at ..., 4 of 4 answers

So does the host's kernel, by a TAP interface; net_tap.py says how users without
root get one.

    net = Net(tap="tap0")
    os.system("ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up")

And with passt, which needs no root, a guest has the whole network of its host;
one with TCP/IP gets its address by DHCP (net_stream.py).

    $ passt --socket /tmp/passt.sock --mtu 1500
    net = m.attach(Net(stream="/tmp/passt.sock"))

From a shell a class in a file of its own says what it is connected to:

    from pyvmm.devices import Net

    class Tapped(Net):
        def __init__(self):
            super().__init__(tap="tap0")

    $ pyvmm run build/guest/net.elf --device tapped.py --cmdline ping=10.0.0.1

The guest finds it by its device id, 1; guest/include/net.h is a driver.

A callable may answer: None is no answer, bytes are a frame, an iterable of
bytes several. `net.send(frame)` sends the guest one at any time, from any
thread. A frame begins with the destination's address and has no checksum
behind it, 14 bytes at least and the MTU and 18 at most.

>>> def pong(frame):
...     return frame[6:12] + frame[:6] + frame[12:]
>>> with virtio.driver(Net(pong, mac="02:00:00:00:00:01")) as drv:
...     room = drv.receive.send(reply=1530)
...     nothing = drv.transmit(bytes(12), bytes(12) + b"\\x88\\xb5ping")
...     room.wait()[-4:]
...     drv.device
b'ping'
<Net 02:00:00:00:00:01 to pong, link up, rx 1 (18 bytes), tx 1 (18 bytes)>

`net.link = False` pulls the cable, True plugs it in; the guest is interrupted.
When the other end of a stream or a TAP interface goes away, the same happens,
and `net.error` says why.

What comes while the guest has no buffers waits: in the kernel for TAP
interfaces and sockets, here for send() and answers, 256 frames at most. More
are dropped and counted, as on a wire. What comes before the driver has started
the device, with the link down, or longer than the MTU allows, is dropped.

| queue | |
| --- | --- |
| 0, receive | buffers for a frame each, or with MRG_RXBUF as many as it takes |
| 1, transmit | frames, each behind a header of 12 bytes |
| 2, control | commands: net_filter.py |

| configuration | |
| --- | --- |
| 0x0, 6 bytes | the address |
| 0x6, 2 bytes | bit 0 the link is up, bit 1 say to all where you are |
| 0x8, 2 bytes | pairs of queues, 1 |
| 0xa, 2 bytes | the MTU |

Offloads (unfinished checksums, TCP and UDP segmentation) are offered with a TAP
interface and go through to the kernel. With all other peers they are not:
frames are then as they are on a wire. A header of the driver's is copied and
checked; one that lies is its fault, and the frame is not sent.

Source: virtio 1.2, section 5.1.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from threading import RLock
from typing import Any, ClassVar

from pyvmm import virtio
from pyvmm.devices import net_address
from pyvmm.devices.net_filter import (
    CTRL_MAC_ADDR,
    CTRL_RX,
    CTRL_RX_EXTRA,
    CTRL_VLAN,
    Filter,
)
from pyvmm.devices.net_header import (
    CTRL_GUEST_OFFLOADS,
    GUEST_OFFLOADS,
    HEADER,
    PLAIN,
    checked,
)
from pyvmm.devices.net_inbox import Inbox
from pyvmm.devices.net_peer import (
    FRAME_LEAST,
    FRAME_MOST,
    OVERHEAD,
    Call,
    Lost,
    Peer,
)
from pyvmm.devices.net_stream import Stream
from pyvmm.devices.net_switch import Switch
from pyvmm.devices.net_tap import Tap

# The device's features (5.1.3), besides what its peer takes.
MTU = 1 << 3
MAC = 1 << 5
MRG_RXBUF = 1 << 15
STATUS = 1 << 16
CTRL_VQ = 1 << 17
GUEST_ANNOUNCE = 1 << 21
FEATURES = (
    MTU | MAC | MRG_RXBUF | STATUS | CTRL_VQ | GUEST_ANNOUNCE
    | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR
)  # fmt: skip

# config.status
LINK_UP = 1
ANNOUNCE = 2

# Commands that are not the filter's, and what is answered (5.1.6.5).
ANNOUNCE_ACK = 3, 0
OFFLOADS_SET = 5, 0
OK = b"\0"
ERR = b"\1"
COMMAND_MOST = 1 << 16  # bytes: 10000 addresses

MTU_LEAST = 68  # 5.1.4.1
MTU_MOST = 65535


class Net(virtio.Device):
    """A virtio network interface, connected to one peer.

    `peer`: a callable, a Switch, or a Peer. `tap`: the name of a TAP interface
    or an open one's file descriptor. `stream`: the path of a UNIX socket, or a
    connected stream socket. At most one of these; none: the cable ends
    somewhere, and there is only send().
    `mac`: "02:00:00:00:00:01" or 6 bytes; by default one that no other device
    of this process has, the same in each run.
    `mtu`: bytes behind the Ethernet header, 68 to 65535.
    `link`: whether the cable is plugged in at first.
    `notify`: "inline", what the guest sends goes out while it waits, which no
    peer makes long but a callable; or "thread".

    `tx_packets`, `tx_bytes` and `tx_dropped` count what the guest has sent,
    `rx_packets`, `rx_bytes` and `rx_dropped` what was for it. `error` is why
    the peer was lost, or None.

    Raises ValueError and TypeError for arguments that make no sense, OSError
    when the host refuses what they name.

    Threads: any may call send() and announce(), and set `link`. A callable is
    called on the vCPU's thread, or with notify="thread" on the device's worker,
    which receives in any case.
    """

    device_id = 1
    queues: ClassVar[dict[str, int]] = {
        "receive": 256,
        "transmit": 256,
        "control": 64,
    }
    config = virtio.Struct(mac="6s", status="<H", pairs="<H", mtu="<H")

    def __init__(
        self,
        peer: Any = None,
        *,
        tap: str | int | None = None,
        stream: str | os.PathLike[str] | socket.socket | None = None,
        mac: str | bytes | None = None,
        mtu: int = 1500,
        link: bool = True,
        notify: str = "inline",
    ) -> None:
        if not MTU_LEAST <= mtu <= MTU_MOST:
            raise ValueError(f"mtu={mtu} is outside {MTU_LEAST}..{MTU_MOST}")
        self.peer = find_peer(peer, tap, stream)
        self.notify = notify
        self._mac = (
            net_address.derive(str(self.peer))
            if mac is None
            else net_address.parse(mac)
        )
        self.error: Lost | None = None
        self._longest = mtu + OVERHEAD
        self.tx_packets = self.tx_bytes = self.tx_dropped = 0
        self._lock = RLock()  # guards what follows
        self._filter = Filter(self._mac)
        self._inbox = Inbox(self._filter, self._longest)
        self._negotiated = 0
        self._offloads = 0
        self._running = False
        self._reader: Any = None  # the watches of the peer's fd
        self._writer: Any = None
        self.config.mac = self._mac
        self.config.pairs = 1
        self.config.mtu = mtu
        self.link = link
        self.peer.open(self)
        self.features = FEATURES | self.peer.features

    # -- life ----------------------------------------------------------------

    def attached(self) -> None:
        self.peer.open(self)
        if self.error is not None:
            self.error = None
            self.link = True

    def detached(self) -> None:
        with self._lock:
            self._stop()
            self.peer.close()

    def reset(self) -> None:
        with self._lock:
            self._stop()
            self._negotiated = 0
            self._filter.reset(self._mac)
            self._set_mac(self._mac)
            self._set_status(ANNOUNCE, False)
            self._offload(0)

    def negotiated(self, features: int) -> None:
        with self._lock:
            self._negotiated = features & self.features
            self._filter.reset(self._mac, self._negotiated)
            self._offload(self._negotiated & GUEST_OFFLOADS)

    def started(self) -> None:
        with self._lock:
            self._running = True
            self._inbox.start(
                self.queue["receive"], bool(self._negotiated & MRG_RXBUF)
            )
            self._unwatch()
            if self.peer.fd >= 0:
                self._reader = self.watch(self.peer.fd, self._receive)
                self._writer = self.watch(
                    self.peer.fd, self.queue["transmit"].work, write=True
                )
                if not self.peer.busy:
                    self._writer.pause()

    def _stop(self) -> None:
        self._running = False
        self._unwatch()
        self._inbox.stop()

    def _unwatch(self) -> None:
        for watch in (self._reader, self._writer):
            if watch is not None:
                watch.cancel()
        self._reader = self._writer = None

    def _offload(self, features: int) -> None:
        self._offloads = features
        try:
            self.peer.offload(features)
        except Lost as exc:
            self._lose(exc)

    def _lose(self, exc: Lost) -> None:
        """The peer has gone: the cable leads nowhere."""
        with self._lock:
            self.error = exc
            self._unwatch()
            self.peer.close()
            self.link = False
        # What waits there for the peer: now it is dropped.
        if self._running:
            self.queue["transmit"].work()

    # -- the cable -----------------------------------------------------------

    @property
    def mac(self) -> str:
        """The address, which the driver may have changed."""
        return self._filter.mac.hex(":")

    @property
    def mtu(self) -> int:
        """The MTU, in bytes."""
        return int(self.config.mtu)

    @property
    def link(self) -> bool:
        """Whether the cable is plugged in; may be set."""
        return self._inbox.plugged

    @link.setter
    def link(self, up: bool) -> None:
        with self._lock:
            self._inbox.plugged = bool(up)
            self._set_status(LINK_UP, up)

    def announce(self) -> None:
        """Ask the guest to tell all others where it is (5.1.6.5.4).

        For a guest that has moved, to another switch say. Without effect when
        its driver does not know how.
        """
        with self._lock:
            if self._negotiated & GUEST_ANNOUNCE:
                self._set_status(ANNOUNCE, True)

    def _set_mac(self, mac: bytes) -> None:
        if self.config.mac != mac:
            self.config.mac = mac

    def _set_status(self, bit: int, on: bool) -> None:
        status = self.config.status
        changed = status | bit if on else status & ~bit
        if changed != status:
            self.config.status = changed

    @property
    def rx_packets(self) -> int:
        """Frames that the guest was given."""
        return self._inbox.packets

    @property
    def rx_bytes(self) -> int:
        """Bytes of these, without headers of virtio."""
        return self._inbox.bytes

    @property
    def rx_dropped(self) -> int:
        """Frames for the guest that were lost."""
        return self._inbox.dropped + self.peer.dropped

    # -- from the guest ------------------------------------------------------

    def on_transmit(self, queue: virtio.Queue) -> None:
        peer = self.peer
        if peer.busy:  # called by the watch, or the guest has more
            try:
                peer.flush()
            except Lost as exc:
                self._lose(exc)
            self._wait_for_room(peer.busy)
            if peer.busy:
                return
        for chain in queue:
            self._transmit(chain)
            if peer.busy:
                self._wait_for_room(True)
                break

    def _wait_for_room(self, wait: bool) -> None:
        with self._lock:
            if self._writer is not None and wait:
                self._writer.resume()
            elif self._writer is not None:
                self._writer.pause()

    def _transmit(self, chain: virtio.Chain) -> None:
        size = chain.readable_size - HEADER
        if size < FRAME_LEAST:
            raise virtio.ShortChain(f"a frame of {size} bytes")
        header = checked(chain.take(HEADER), size, self._negotiated)
        longest = FRAME_MOST if header[1] else self._longest
        sent = False
        if size <= longest and self._inbox.plugged:
            try:
                sent = self.peer.send(header, chain)
            except Lost as exc:
                self._lose(exc)
        if sent:
            self.tx_packets += 1
            self.tx_bytes += size
        else:
            self.tx_dropped += 1

    # -- to the guest --------------------------------------------------------

    def send(self, frame: bytes | bytearray | memoryview) -> bool:
        """Send the guest a frame, from any thread: False when it was dropped.

        It waits when the guest has no buffers. Dropped: so many wait already,
        the link is down, the driver has not started the device. Raises
        ValueError for one that is too short or too long.
        """
        if not isinstance(frame, (bytes, bytearray, memoryview)):
            raise TypeError(f"a frame is bytes, not {type(frame).__name__}")
        frame = bytes(frame)
        if not FRAME_LEAST <= len(frame) <= self._longest:
            raise ValueError(
                f"a frame of {len(frame)} bytes is outside {FRAME_LEAST}.."
                f"{self._longest} (mtu={self.mtu})"
            )
        with self._lock:
            dropped = self._inbox.dropped
            self._inbox.put(PLAIN, frame)
            self._inbox.complete()
            return self._inbox.dropped == dropped

    def on_receive(self, queue: virtio.Queue) -> None:
        with self._lock:
            if self._inbox.waiting:
                self._receive()

    def _receive(self) -> None:
        """There are frames, or the guest has buffers for those that wait."""
        with self._lock:
            try:
                if self._inbox.retry() and self._running:
                    for header, frame in self.peer.frames():
                        if not self._inbox.put(header, frame):
                            break
            except Lost as exc:
                self._lose(exc)
            finally:
                self._inbox.complete()
            # They wait where they are: in the kernel.
            if self._reader is not None and self._inbox.waiting:
                self._reader.pause()
            elif self._reader is not None:
                self._reader.resume()

    # -- commands ------------------------------------------------------------

    def on_control(self, queue: virtio.Queue) -> None:
        for chain in queue:
            if not chain.writable_size:
                raise virtio.ShortChain("no room for an answer")
            sound = 2 <= chain.readable_size <= COMMAND_MOST
            done = sound and self._command(chain.read())
            chain.write(OK if done else ERR)

    def _command(self, data: bytes) -> bool:
        """Do it; False when it makes no sense or was not negotiated."""
        which, data = (data[0], data[1]), data[2:]
        with self._lock:
            features = self._negotiated
            if which == ANNOUNCE_ACK:
                if data or not features & GUEST_ANNOUNCE:
                    return False
                self._set_status(ANNOUNCE, False)
            elif which == OFFLOADS_SET:
                wanted = int.from_bytes(data, "little")
                allowed = features & GUEST_OFFLOADS
                if not features & CTRL_GUEST_OFFLOADS or len(data) != 8:
                    return False
                if wanted & ~allowed:
                    return False
                self._offload(wanted)
            elif not self._filter.command(which, data, features):
                return False
            self._set_mac(self._filter.mac)
        return True

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What the driver has set; frames that wait are lost, as on a wire."""
        with self._lock:
            return {
                "filter": self._filter.save(),
                "negotiated": self._negotiated,
                "offloads": self._offloads,
                "running": self._running,
                "status": self.config.status,
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._filter.restore(state["filter"])
            self._negotiated = state["negotiated"]
            self._offload(state["offloads"])
            self._set_mac(self._filter.mac)
            self._set_status(ANNOUNCE, bool(state["status"] & ANNOUNCE))
            self.link = bool(state["status"] & LINK_UP)
            if state["running"]:
                self.started()
            else:
                self._stop()

    def __repr__(self) -> str:
        text = f"<Net {self.mac} to {self.peer}, link "
        text += "up" if self.link else "down"
        for word in ("rx", "tx"):
            packets, size, dropped = (
                getattr(self, f"{word}_{what}")
                for what in ("packets", "bytes", "dropped")
            )
            text += f", {word} {packets} ({size} bytes"
            text += f", {dropped} dropped)" if dropped else ")"
        if self.base is not None:
            text += f", mmio {self.base:#x}"
        return text + ">"


def find_peer(peer: Any, tap: Any, stream: Any) -> Peer:
    """What the arguments of Net name; TypeError when that is not one thing."""
    if sum(value is not None for value in (peer, tap, stream)) > 1:
        raise TypeError("Net has one cable: a peer or tap= or stream=")
    if tap is not None:
        return Tap(tap)
    if stream is not None:
        return Stream(stream)
    if peer is None:
        return Peer()
    if isinstance(peer, Switch):
        return peer.port()
    if isinstance(peer, Peer):
        return peer
    if callable(peer) and not isinstance(peer, type):
        return Call(peer)
    raise TypeError(
        f"{peer!r} is no peer: it takes a callable, a Switch, tap=, stream="
    )

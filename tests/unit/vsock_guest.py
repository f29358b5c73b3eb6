# SPDX-License-Identifier: Apache-2.0
"""A guest's end of a Vsock: packets by hand, without KVM.

Its device is inline, so that nothing happens but in the test's own calls:
poll() is the device's worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pyvmm import virtio
from pyvmm.devices import vsock_packet as vp
from pyvmm.devices.vsock import Vsock

CREDIT = 1 << 16  # what this guest has room for, unless it says otherwise
ROOM = 4096  # bytes of a buffer
TURNS = 1000  # of the worker, which are more than it ever needs


class Guest:
    """The driver of a Vsock, and one flow at a time of which it talks."""

    def __init__(self, drv: virtio.Driver, cid: int) -> None:
        self.drv = drv
        self.cid = cid
        self.rooms: list[virtio.frontend.Request] = []
        self.got: list[tuple[vp.Header, bytes]] = []

    def header(self, op: int, guest: int, host: int, **fields) -> vp.Header:
        values = {
            "src_cid": self.cid, "dst_cid": vp.HOST, "src_port": guest,
            "dst_port": host, "len": 0, "type": vp.STREAM, "op": op,
            "flags": 0, "buf_alloc": CREDIT, "fwd_cnt": 0,
        }  # fmt: skip
        return vp.Header(**(values | fields))

    def send(
        self, op: int, guest: int, host: int, data: bytes = b"", **fields
    ) -> virtio.frontend.Request:
        """One packet; whether the device took it is the request's `done`."""
        header = self.header(op, guest, host, **({"len": len(data)} | fields))
        parts = (bytes(header), data) if data else (bytes(header),)
        request = self.drv.tx.send(*parts)
        self.drv.tx.collect()
        return request

    def make_room(self, count: int = 1, size: int | Iterable[int] = ROOM):
        """Buffers for packets of the device."""
        for _ in range(count):
            self.rooms.append(self.drv.rx.send(reply=size))

    def poll(self) -> None:
        """Let the worker do what there is to do."""
        for _ in range(TURNS):
            if not self.drv.poll():
                return
        raise AssertionError("the worker never comes to rest")

    def packets(self) -> list[tuple[vp.Header, bytes]]:
        """What came since the last call, oldest first."""
        self.poll()
        self.drv.tx.collect()
        found = []
        for request in self.drv.rx.collect():
            self.rooms.remove(request)
            data = request.reply
            if not data:
                continue
            header = vp.parse(data[: vp.HEADER.size])
            assert len(data) == vp.HEADER.size + header.len
            found.append((header, data[vp.HEADER.size :]))
        return found

    def ops(self) -> list[int]:
        """The same, but only what they are for."""
        return [header.op for header, _ in self.packets()]

    def connect(self, guest: int, host: int, **fields) -> vp.Header:
        """A connection to the host, which accepts it."""
        self.make_room()
        self.send(vp.REQUEST, guest, host, **fields)
        ((header, data),) = self.packets()
        assert (header.op, data) == (vp.RESPONSE, b"")
        assert (header.src_port, header.dst_port) == (host, guest)
        return header


@contextmanager
def guest(vsock: Vsock, **options) -> Iterator[Guest]:
    """A guest whose driver has started, in front of that device."""
    vsock.notify = "inline"
    with virtio.driver(vsock, **options) as drv:
        assert drv.config == {"guest_cid": vsock.cid}
        yield Guest(drv, vsock.cid)

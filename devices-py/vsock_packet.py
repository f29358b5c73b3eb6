# SPDX-License-Identifier: Apache-2.0
"""Packets of virtio-vsock: a header, and behind it the bytes of a stream.

>>> header = Header(
...     src_cid=3, dst_cid=HOST, src_port=1024, dst_port=52, len=0,
...     type=STREAM, op=REQUEST, flags=0, buf_alloc=4096, fwd_cnt=0,
... )
>>> parse(bytes(header)) == header
True
>>> answer = parse(header.reset())
>>> answer.dst_port, answer.op == RST
(1024, True)

Source: virtio 1.2, 5.10.6; <linux/virtio_vsock.h>.
"""

import struct
from typing import NamedTuple

HOST = 2  # the CID of whoever runs the machine
CID_LEAST = 3  # 0 to 2 are reserved (5.10.4)
CID_MOST = 0xFFFF_FFFE
PORT_MOST = 0xFFFF_FFFE  # the one above means any port
STREAM = 1  # the type of socket, the only one here
WRAP = 0xFFFF_FFFF  # counters of bytes are modulo 2^32

# What a packet is for (op).
NOTHING = 0
REQUEST = 1
RESPONSE = 2
RST = 3
SHUTDOWN = 4
RW = 5
CREDIT_UPDATE = 6
CREDIT_REQUEST = 7

# The flags of SHUTDOWN: what its sender will not do any more.
RECEIVE = 1
SEND = 2
BOTH = 3

HEADER = struct.Struct("<QQIIIHHIII")
EVENT = struct.Struct("<I")
TRANSPORT_RESET = 0  # an event (5.10.6.7)


class Header(NamedTuple):
    """The 44 bytes that each packet begins with."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int  # bytes behind the header
    type: int
    op: int
    flags: int
    buf_alloc: int  # how many bytes its sender has room for, all in all
    fwd_cnt: int  # how many it has been rid of, modulo 2^32

    def __bytes__(self) -> bytes:
        return HEADER.pack(*self)

    def reset(self) -> bytes:
        """The RST that answers this one."""
        return HEADER.pack(
            self.dst_cid, self.src_cid, self.dst_port, self.src_port,
            0, self.type, RST, 0, 0, 0,
        )  # fmt: skip


def parse(data: bytes) -> Header:
    """The header that these 44 bytes are."""
    return Header._make(HEADER.unpack(data))

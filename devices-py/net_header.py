# SPDX-License-Identifier: Apache-2.0
"""The header in front of a frame, when part of the work is left to others.

Ten bytes, and the number of buffers of a received frame (virtio 1.2, 5.1.6):

| offset | field | |
| --- | --- | --- |
| 0 | flags | NEEDS_CSUM: the checksum is to be finished |
| 1 | gso_type | a frame to be cut up, of which protocol |
| 2 | hdr_len | bytes of all its headers, a hint |
| 4 | gso_size | bytes of payload in each piece |
| 6 | csum_start | from where on to sum up |
| 8 | csum_offset | and where from there to put the sum |
| 10 | num_buffers | of a received frame |

Which of it there may be is said by features (5.1.3): HOST ones are about what
the guest sends, GUEST ones about what it is sent.
"""

import struct

from pyvmm.virtio import ShortChain

HEADER = 12
LAYOUT = struct.Struct("<BBHHHH")
PLAIN = bytes(10)  # all but num_buffers, for a frame as it is on a wire

CSUM = 1 << 0
GUEST_CSUM = 1 << 1
CTRL_GUEST_OFFLOADS = 1 << 2
GUEST_TSO4 = 1 << 7
GUEST_TSO6 = 1 << 8
GUEST_ECN = 1 << 9
GUEST_UFO = 1 << 10
HOST_TSO4 = 1 << 11
HOST_TSO6 = 1 << 12
HOST_ECN = 1 << 13
HOST_UFO = 1 << 14
GUEST_USO4 = 1 << 54
GUEST_USO6 = 1 << 55
HOST_USO = 1 << 56

GUEST_OFFLOADS = (
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO
    | GUEST_USO4 | GUEST_USO6
)  # fmt: skip

NEEDS_CSUM = 1
GSO_ECN = 0x80

# gso_type: the feature that allows it.
SEGMENTED = {1: HOST_TSO4, 4: HOST_TSO6, 3: HOST_UFO, 5: HOST_USO}


def checked(header: bytes, size: int, features: int) -> bytes:
    """The header of a frame of `size` bytes from the guest, as to be passed on.

    Of `features`, which were negotiated, it may make use; what it does not use
    becomes 0. Raises ShortChain for one that lies (5.1.6.2.1).
    """
    if header[:2] == b"\0\0":
        return PLAIN
    flags, kind, headers, segment, start, offset = LAYOUT.unpack_from(header)
    if flags & NEEDS_CSUM:
        if not features & CSUM:
            raise ShortChain("an unfinished checksum, which was not negotiated")
        if start + offset + 2 > size:
            raise ShortChain(
                f"a checksum at {start} + {offset} in a frame of {size} bytes"
            )
    else:
        start = offset = 0
    if not kind:
        return LAYOUT.pack(flags & NEEDS_CSUM, 0, 0, 0, start, offset)
    if not features & SEGMENTED.get(kind & ~GSO_ECN, 0):
        raise ShortChain(f"gso_type {kind:#x}, which was not negotiated")
    if kind & GSO_ECN and not features & HOST_ECN:
        raise ShortChain("segments with ECN, which was not negotiated")
    if not flags & NEEDS_CSUM or not segment:
        raise ShortChain(f"segments of {segment} bytes, flags {flags:#x}")
    # How long the headers are nobody relies on, but the kernel refuses more
    # than there is.
    return LAYOUT.pack(
        NEEDS_CSUM, kind, min(headers, size), segment, start, offset
    )

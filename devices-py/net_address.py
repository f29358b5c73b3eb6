# SPDX-License-Identifier: Apache-2.0
"""Ethernet addresses: 6 bytes, as text "02:00:00:00:00:01"."""

from contextlib import suppress
from hashlib import blake2b
from itertools import count

SIZE = 6
BROADCAST = b"\xff" * SIZE
GROUP = 1  # in the first byte: of many, not of one device
LOCAL = 2  # in the first byte: of no manufacturer's

_numbers = count(1)


def parse(mac: str | bytes) -> bytes:
    """An address as bytes; ValueError for one that no device can have."""
    found = b""
    if isinstance(mac, bytes):
        found = mac
    elif isinstance(mac, str) and mac.count(":") == SIZE - 1:
        with suppress(ValueError):
            found = bytes(int(part, 16) for part in mac.split(":"))
    if len(found) != SIZE or found[0] & GROUP or not any(found):
        raise ValueError(
            f"mac={mac!r} is no address of a device: 6 bytes, the first one "
            'even, as "02:00:00:00:00:01"'
        )
    return found


def derive(peer: str) -> bytes:
    """One that no other device of this process has; the same in each run.

    `peer`: what it is connected to, so that two processes that share a bridge
    seldom choose the same.
    """
    kind = blake2b(peer.encode(), digest_size=3).digest()
    number = next(_numbers) & 0xFFFF
    return bytes([LOCAL, *kind, *number.to_bytes(2, "big")])

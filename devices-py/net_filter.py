# SPDX-License-Identifier: Apache-2.0
"""Which frames a driver wants to receive, and the commands that say so.

A virtio network device is told by commands in its control queue (virtio 1.2,
5.1.6.5), each a class, a command and data:

| class, command | |
| --- | --- |
| 0, 0 and 1 | promiscuous, all multicast: one byte, on or off |
| 0, 2 to 5 | all unicast, no multicast, no unicast, no broadcast |
| 1, 0 | the unicast and multicast addresses to receive: two lists |
| 1, 1 | the device's own address |
| 2, 0 and 1 | add, delete the number of a VLAN |

Until the first command everything is received, as in QEMU. Lists longer than
`Filter.most` stand for all addresses of their kind, which is allowed: a filter
may let through more than it was told.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from pyvmm.devices.net_address import BROADCAST, GROUP, SIZE

# Features that commands go with (virtio 1.2, 5.1.3).
CTRL_RX = 1 << 18
CTRL_VLAN = 1 << 19
CTRL_RX_EXTRA = 1 << 20
CTRL_MAC_ADDR = 1 << 23

# Class and command.
PROMISCUOUS = 0, 0
ALL_MULTICAST = 0, 1
ALL_UNICAST = 0, 2
NO_MULTICAST = 0, 3
NO_UNICAST = 0, 4
NO_BROADCAST = 0, 5
TABLE_SET = 1, 0
ADDRESS_SET = 1, 1
VLAN_ADD = 2, 0
VLAN_DELETE = 2, 1

# Switches, and which feature they need.
SWITCHES = {
    PROMISCUOUS: ("promiscuous", CTRL_RX),
    ALL_MULTICAST: ("all_multicast", CTRL_RX),
    ALL_UNICAST: ("all_unicast", CTRL_RX_EXTRA),
    NO_MULTICAST: ("no_multicast", CTRL_RX_EXTRA),
    NO_UNICAST: ("no_unicast", CTRL_RX_EXTRA),
    NO_BROADCAST: ("no_broadcast", CTRL_RX_EXTRA),
}

TAGGED = b"\x81\x00"  # IEEE 802.1Q
VLANS = 4096


class Filter:
    """What a driver wants to receive.

    `mac` is the address of its own; the other attributes are named as in the
    table. `unicast` and `multicast` are sets of addresses, None for all;
    `vlans` has a bit for each number, None when there is no such filter.

    Threads: one at a time.
    """

    most = 64

    __slots__ = (
        "all_multicast", "all_unicast", "mac", "multicast", "no_broadcast",
        "no_multicast", "no_unicast", "promiscuous", "unicast", "vlans",
    )  # fmt: skip

    mac: bytes
    promiscuous: bool
    all_multicast: bool
    all_unicast: bool
    no_multicast: bool
    no_unicast: bool
    no_broadcast: bool
    unicast: frozenset[bytes] | None
    multicast: frozenset[bytes] | None
    vlans: int | None

    def __init__(self, mac: bytes) -> None:
        self.reset(mac)

    def reset(self, mac: bytes, features: int = 0) -> None:
        """As after a reset, before any command."""
        self.mac = mac
        for name, _ in SWITCHES.values():
            setattr(self, name, False)
        self.promiscuous = True
        self.unicast = self.multicast = frozenset()
        self.vlans = 0 if features & CTRL_VLAN else None

    def passes(self, frame: memoryview) -> bool:
        """Whether the driver wants this frame, of at least 14 bytes."""
        if self.promiscuous:
            return True
        if (
            self.vlans is not None
            and frame[12:14] == TAGGED
            and not self.vlans >> (int.from_bytes(frame[14:16], "big") % VLANS)
            & 1
        ):
            return False
        to = bytes(frame[:SIZE])
        if to == BROADCAST:
            return not self.no_broadcast
        if to[0] & GROUP:
            wanted = self.all_multicast or is_in(to, self.multicast)
            return wanted and not self.no_multicast
        wanted = self.all_unicast or to == self.mac or is_in(to, self.unicast)
        return wanted and not self.no_unicast

    def command(
        self, which: tuple[int, int], data: bytes, features: int
    ) -> bool:
        """Do what the driver says; False for what makes no sense.

        `features`: what it negotiated, and without which it may not say it.
        """
        if which in SWITCHES:
            name, feature = SWITCHES[which]
            if len(data) != 1 or not features & feature:
                return False
            setattr(self, name, data != b"\0")
            return True
        if which == TABLE_SET and features & CTRL_RX:
            return self._set_tables(data)
        if which == ADDRESS_SET and features & CTRL_MAC_ADDR:
            if len(data) != SIZE:
                return False
            self.mac = data
            return True
        if which in (VLAN_ADD, VLAN_DELETE) and self.vlans is not None:
            return self._set_vlan(which == VLAN_ADD, data)
        return False

    def _set_tables(self, data: bytes) -> bool:
        """Two lists, each behind its length in 4 bytes: unicast, multicast."""
        lists: list[frozenset[bytes] | None] = []
        at = 0
        for _ in range(2):
            if len(data) < at + 4:
                return False
            (count,) = struct.unpack_from("<I", data, at)
            at += 4
            if count > (len(data) - at) // SIZE:
                return False
            end = at + count * SIZE
            if count > self.most:
                lists.append(None)
            else:
                lists.append(
                    frozenset(data[i : i + SIZE] for i in range(at, end, SIZE))
                )
            at = end
        if at != len(data):
            return False
        self.unicast, self.multicast = lists
        return True

    def _set_vlan(self, add: bool, data: bytes) -> bool:
        if len(data) != 2 or self.vlans is None:
            return False
        number = int.from_bytes(data, "little")
        if number >= VLANS:
            return False
        self.vlans |= 1 << number
        if not add:
            self.vlans ^= 1 << number
        return True

    def save(self) -> dict[str, Any]:
        """All of it, by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() has returned."""
        for name in self.__slots__:
            setattr(self, name, state[name])


def is_in(address: bytes, table: frozenset[bytes] | None) -> bool:
    return table is None or address in table

# SPDX-License-Identifier: Apache-2.0
"""The other end of a guest's network, for tests: a host, and a namespace."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
SIOCSIFNETMASK = 0x891C
SIOCSIFMTU = 0x8922
SIOCGIFHWADDR = 0x8927
IFF_UP = 1

ARP = b"\x08\x06"
IP = b"\x08\x00"


def checksum(data: bytes, start: int = 0) -> int:
    """That of the internet protocols, to be stored in the host's order."""
    data += bytes(len(data) % 2)
    total = start + sum(struct.unpack(f"={len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(address: str) -> bytes:
    return socket.inet_aton(address)


def host(address: str, mac: bytes = b"\2a-mac") -> Callable[[bytes], Any]:
    """A callable for Net: a host that is found, and answers pings."""
    ours = ip(address)

    def answer(frame: bytes) -> bytes | None:
        sender = frame[6:12]
        if (
            frame[12:14] == ARP
            and frame[20:22] + frame[38:42] == b"\0\1" + ours
        ):
            head = sender + mac + frame[12:20] + b"\0\2"
            return head + mac + ours + frame[22:32]
        if frame[12:14] == IP and frame[23:24] + frame[30:34] == b"\1" + ours:
            # The header's sum does not change when its addresses change places.
            head = sender + mac + frame[12:26] + ours + frame[26:30]
            size = int.from_bytes(frame[16:18], "big")
            rest = b"\0\0\0\0" + frame[38 : 14 + size]
            return head + b"\0\0" + struct.pack("=H", checksum(rest)) + rest[4:]
        return None

    return answer


class Namespace:
    """A network without interfaces, in which one thread lives.

    Sockets and TAP interfaces that it makes stay there whoever uses them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.run(self._enter)

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"unshare: {os.strerror(number)}")

    def run(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a call there returns or raises."""
        return self._thread.submit(call, *args, **options).result()

    def up(self, name: str, address: str = "", mtu: int = 1500) -> None:
        """Switch an interface on, with an address of a network of 256."""
        with self.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("16si", name.encode(), mtu).ljust(40, b"\0")
            fcntl.ioctl(sock, SIOCSIFMTU, request)
            changes = (
                (SIOCSIFADDR, address),
                (SIOCSIFNETMASK, "255.255.255.0"),
            )
            for number, value in changes:
                if address:
                    found = struct.pack(
                        "16sH2x4s", name.encode(), socket.AF_INET, ip(value)
                    )
                    fcntl.ioctl(sock, number, found.ljust(40, b"\0"))
            flags = struct.pack("16sH", name.encode(), IFF_UP)
            fcntl.ioctl(sock, SIOCSIFFLAGS, flags.ljust(40, b"\0"))

    def mac(self, name: str) -> bytes:
        """The address of an interface's."""
        with self.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = name.encode().ljust(40, b"\0")
            return fcntl.ioctl(sock, SIOCGIFHWADDR, request)[18:24]

    def close(self) -> None:
        self._thread.shutdown()


def namespace() -> Namespace:
    """A new one; skips where that is not allowed."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    try:
        return Namespace()
    except PermissionError as exc:
        pytest.skip(f"needs root: {exc}")

# SPDX-License-Identifier: Apache-2.0
"""A TAP interface at the other end of a Net's cable: the host's own network.

A user who may not make interfaces has one made, once:

    # ip tuntap add tap0 mode tap user $USER
    # ip addr add 10.0.0.1/24 dev tap0
    # ip link set tap0 up

    net = m.attach(Net(tap="tap0"))     # the guest reaches 10.0.0.1

As root `Net(tap="tap0")` makes one that is not there, and `Net(tap="tap%d")`
one with a number: `net.peer.name` is what it is called. It goes when the
device does. `Net(tap=fd)` takes one that somebody else has opened, by TUNSETIFF
with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.

Checksums and segmentation are left to whoever has the frame last: the guest's
TCP may send 64 KiB at a time, which the host's kernel cuts up only if it
leaves the host. Such frames are read by the kernel where the guest has them.

Source: Linux, Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

from pyvmm import virtio
from pyvmm.devices import net_header as net
from pyvmm.devices.net_header import HEADER, PLAIN
from pyvmm.devices.net_peer import (
    BURST,
    FRAME_MOST,
    Lost,
    Peer,
    explained,
    frame_of,
)

if TYPE_CHECKING:
    from pyvmm.devices.net import Net

# <linux/if_tun.h>; the ioctls take a struct ifreq or an int.
TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFREQ = struct.Struct("16sH22x")
NAME_MOST = 15

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_UFO = 0x10
TUN_F_USO = 0x60  # of IPv4 and of IPv6, which go together

# What the kernel is told when the driver takes a feature.
OFFLOADS = {
    net.GUEST_TSO4: TUN_F_TSO4,
    net.GUEST_TSO6: TUN_F_TSO6,
    net.GUEST_ECN: TUN_F_TSO_ECN,
    net.GUEST_UFO: TUN_F_UFO,
}
GUEST_USO = net.GUEST_USO4 | net.GUEST_USO6

# What each kernel with virtio headers takes; UDP in pieces is not among it.
ALWAYS = (
    net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.HOST_ECN
    | net.GUEST_CSUM | net.GUEST_TSO4 | net.GUEST_TSO6 | net.GUEST_ECN
    | net.CTRL_GUEST_OFFLOADS
)  # fmt: skip

PAD = bytes(HEADER - len(PLAIN))  # num_buffers, of received frames

# The interface has gone, or was given to somebody else.
GONE = (errno.EBADFD, errno.ENODEV, errno.ENXIO, errno.EBADF)

HINTS = {
    errno.ENOENT: "no /dev/net/tun: modprobe tun",
    errno.EPERM: "as root: ip tuntap add NAME mode tap user USER",
    errno.EBUSY: "another program has it",
    errno.EINVAL: "it is no TAP interface, or one of several queues",
}


class Tap(Peer):
    """A TAP interface, by name or as an open file descriptor.

    `name`: what the interface is called.

    Raises ValueError for what is no name or no TAP, OSError when the host
    refuses.
    """

    def __init__(self, tap: str | int) -> None:
        self.name = ""
        self._given = tap
        self._lock = Lock()
        self._buffer = bytearray(HEADER + FRAME_MOST)
        self._view = memoryview(self._buffer)
        self._headers = False  # the guest wants to know
        if isinstance(tap, bool) or not isinstance(tap, (str, int)):
            raise TypeError(f"tap={tap!r} is neither a name nor a descriptor")
        if isinstance(tap, str) and not 0 < len(tap.encode()) <= NAME_MOST:
            raise ValueError(
                f"{tap!r} is no name of an interface: 1 to {NAME_MOST} bytes"
            )

    def open(self, device: Net) -> None:
        if self.fd >= 0:
            return
        if isinstance(self._given, int):
            fd = os.dup(self._given)
        else:
            fd = self._attach(self.name or self._given)
        try:
            self._set_up(fd)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd

    def _attach(self, name: str) -> int:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fd = -1
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), flags))
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            raise explained(exc, f"tap {name!r}", HINTS) from None
        return fd

    def _set_up(self, fd: int) -> None:
        try:
            found = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size))
        except OSError:
            raise ValueError(
                f"tap={self._given!r} is no TAP interface"
            ) from None
        name, flags = IFREQ.unpack(found)
        if flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) != (
            IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        ):
            raise ValueError(
                f"tap={self._given!r} was opened with flags {flags:#x}: it "
                "takes IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
            )
        self.name = name.rstrip(b"\0").decode()
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
        self.features = ALWAYS
        if self._takes(fd, TUN_F_UFO):
            self.features |= net.GUEST_UFO | net.HOST_UFO
        if self._takes(fd, TUN_F_USO):
            self.features |= GUEST_USO | net.HOST_USO
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)

    @staticmethod
    def _takes(fd: int, offload: int) -> bool:
        """Whether this kernel knows it: older ones lack some."""
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | offload)
        except OSError:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        if self.fd >= 0:  # of a device that was never attached
            os.close(self.fd)

    def offload(self, features: int) -> None:
        wanted = 0
        self._headers = bool(features & net.GUEST_CSUM)
        if self._headers:  # nothing goes without it (5.1.3.1)
            wanted = TUN_F_CSUM
            for feature, offload in OFFLOADS.items():
                wanted |= offload * bool(features & feature)
            wanted |= TUN_F_USO * (features & GUEST_USO == GUEST_USO)
        with self._lock:
            if self.fd >= 0:
                self._try(fcntl.ioctl, self.fd, TUNSETOFFLOAD, wanted)

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        parts = [header, PAD, *frame_of(chain)]
        with self._lock:
            return self.fd >= 0 and self._try(os.writev, self.fd, parts) > 0

    def frames(self) -> Iterator[tuple[bytes, memoryview]]:
        view = self._view
        for _ in range(BURST):
            with self._lock:
                if self.fd < 0:
                    return
                size = self._try(os.readv, self.fd, [self._buffer])
            if size < 0:
                return
            header = bytes(view[: len(PLAIN)]) if self._headers else PLAIN
            yield header, view[HEADER:size]

    def _try(self, call: Callable[..., Any], *args: object) -> int:
        """What a system call answers; -1 for a frame that was refused.

        The kernel has no room (EAGAIN, ENOBUFS), finds a header that makes no
        sense (EINVAL), or the interface is down (EIO).
        """
        try:
            return int(call(*args))
        except OSError as exc:
            if exc.errno in GONE:
                raise Lost(f"{self}: {exc.strerror}") from exc
            return -1

    def __str__(self) -> str:
        return f"tap {self.name or self._given}"

# SPDX-License-Identifier: Apache-2.0
"""What the cable of a Net leads to: Peer, and a Python callable as one.

`Net(function)` calls `function(frame)` with each frame that the guest sends, a
bytes object from the destination's address on. What it returns is answers:

>>> def pong(frame):
...     return frame[6:12] + frame[:6] + frame[12:]
>>> from pyvmm import virtio
>>> from pyvmm.devices import Net
>>> frame = bytes(6) + b"\\2guest" + b"\\x88\\xb5" + b"ping"
>>> with virtio.driver(Net(pong)) as drv:
...     room = drv.receive.send(reply=1530)
...     nothing = drv.transmit(bytes(12), frame)
...     room.wait()[12:]
b'\\x02guest\\x00\\x00\\x00\\x00\\x00\\x00\\x88\\xb5ping'

None is no answer, bytes are one, an iterable of bytes several. Other transports
are a class of their own, see `Peer`; net_tap.py, net_stream.py and
net_switch.py have three.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyvmm import virtio
from pyvmm.devices.net_header import HEADER

if TYPE_CHECKING:
    from pyvmm.devices.net import Net

FRAME_LEAST = 14  # the Ethernet header
OVERHEAD = 18  # that one and a VLAN tag: how much longer than the MTU it gets
FRAME_MOST = 65535 + OVERHEAD

COPY = 4096  # bytes up to which a copy costs less than views of guest memory
BURST = 64  # frames that are taken from a peer in one go


class Lost(Exception):
    """There is nobody at the other end any more."""


class Peer:
    """The other end of a Net's cable; by itself one where nobody is.

    A subclass overrides what it can do:

    `features`: the offloads that it takes (net_header.py); without any, frames
    are as they are on a wire, and headers PLAIN.
    `fd`: readable when frames() has something, -1 while there is no such.
    `busy`: it has taken a frame and not got rid of it: no send() until flush()
    has done that. Called when `fd` is writable.
    `dropped`: frames that were lost on their way in.

    All raise Lost when the other end has gone; the guest's link goes down.

    Threads: send() and flush() one at a time, and frames() one at a time, but
    these two at once. close() whenever.
    """

    features = 0
    fd = -1
    busy = False
    dropped = 0

    def open(self, device: Net) -> None:
        """Be connected, if it is not: the device is made, or attached again."""

    def close(self) -> None:
        """Let go; more than once does no harm."""

    def offload(self, features: int) -> None:
        """What frames() may hand out: GUEST features that the driver took.

        0 when the driver resets the device.
        """

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        """Take a frame of the guest's: whether it did, or has dropped it.

        `header`: 10 bytes, checked. `chain`: its read() gives the frame, and so
        does frame_of(chain), for calls that take several buffers.
        """
        return False

    def flush(self) -> None:
        """Get rid of what made it `busy`, as far as that goes."""

    def frames(self) -> Iterator[tuple[bytes, Any]]:
        """What has come in: headers of 10 bytes and frames, some BURST of them.

        A frame is copied before the next one is asked for. Whoever stops early
        calls again later, and gets the rest.
        """
        return iter(())

    def __str__(self) -> str:
        return "not connected"


class Call(Peer):
    """A Python callable, called with each frame that the guest sends."""

    def __init__(self, function: Callable[[bytes], object]) -> None:
        self.function = function
        self.net: Net | None = None

    def open(self, device: Net) -> None:
        self.net = device

    def send(self, header: bytes, chain: virtio.Chain) -> bool:
        answers = self.function(chain.read())
        if answers is None or self.net is None:
            return True
        if isinstance(answers, (bytes, bytearray, memoryview)):
            self.net.send(answers)
        elif isinstance(answers, Iterable) and not isinstance(answers, str):
            for answer in answers:
                self.net.send(answer)
        else:
            raise TypeError(
                f"{self} returned {answers!r}, which is neither None nor "
                "bytes nor an iterable of bytes"
            )
        return True

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None)
        return str(name or type(self.function).__name__)


def frame_of(chain: virtio.Chain) -> list[Any]:
    """The frame in a chain: a copy, or if it is long where it lies."""
    if chain.readable_size < COPY:
        return [chain.read()]
    return behind(chain.readable, HEADER)


def behind(parts: list[memoryview], size: int) -> list[memoryview]:
    """The buffers of a chain without their first `size` bytes."""
    for i, part in enumerate(parts):
        if size < len(part):
            return [part[size:], *parts[i + 1 :]] if size else parts[i:]
        size -= len(part)
    return []


def explained(exc: OSError, what: str, hints: dict[int, str]) -> OSError:
    """The same error, which says of what it is, and what helps."""
    number = exc.errno or errno.EIO
    hint = f" ({hints[number]})" if number in hints else ""
    return type(exc)(number, f"{what}: {exc.strerror or exc}{hint}")

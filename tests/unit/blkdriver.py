# SPDX-License-Identifier: Apache-2.0
"""Requests to a virtio-blk, for tests of it."""

from collections.abc import Callable, Sequence

from pyvmm import virtio
from pyvmm.devices.blk import (
    DISCARD,
    FLUSH,
    HEADER,
    IN,
    OUT,
    RANGE,
    WRITE_ZEROES,
    Blk,
)

OK, IOERR, UNSUPP = 0, 1, 2
SECTOR = 512


class Requests:
    """A driver of one disk: each method is a request, and returns a status."""

    def __init__(self, drv: virtio.Driver, queue: str = "requests") -> None:
        self.drv = drv
        self.queue = drv[queue]

    def send(
        self,
        kind: int,
        sector: int = 0,
        *data: bytes,
        room: int | Sequence[int] = 0,
        notify: bool = True,
    ) -> Callable[[], tuple[int, bytes]]:
        """A request with room for data and, in a buffer, the status.

        Returns what waits for that and for the data.
        """
        rooms = [room] if isinstance(room, int) else list(room)
        request = self.queue.send(
            HEADER.pack(kind, 0, sector),
            *data,
            reply=[*rooms, 1],
            notify=notify,
        )

        def wait() -> tuple[int, bytes]:
            answer = request.wait()
            assert len(answer) == sum(rooms) + 1
            return answer[-1], answer[:-1]

        return wait

    def read(self, sector: int, sectors: int = 1) -> bytes | int:
        """The bytes of sectors; the status if it is not OK."""
        status, data = self.send(IN, sector, room=sectors * SECTOR)()
        return status or data

    def write(self, sector: int, *data: bytes) -> int:
        return self.send(OUT, sector, *data)()[0]

    def flush(self) -> int:
        return self.send(FLUSH)()[0]

    def discard(self, *ranges: tuple[int, int, int]) -> int:
        data = b"".join(RANGE.pack(*each) for each in ranges)
        return self.send(DISCARD, 0, data)()[0]

    def zero(self, *ranges: tuple[int, int, int]) -> int:
        data = b"".join(RANGE.pack(*each) for each in ranges)
        return self.send(WRITE_ZEROES, 0, data)()[0]


def requests(blk: Blk, **options: int | None) -> Requests:
    """A driver that took `features`, and its requests; close `drv`."""
    return Requests(virtio.driver(blk, **options))  # type: ignore[arg-type]


class Recorder:
    """A disk of bytes that notes what it is asked, and refuses what it shall.

    `fails`: names of methods that raise OSError. `calls`: all calls, in order.
    """

    def __init__(self, data: bytes, *fails: str) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.fails = set(fails)
        self.calls: list[tuple[object, ...]] = []

    def _called(self, name: str, *args: object) -> None:
        self.calls.append((name, *args))
        if name in self.fails:
            raise OSError(5, "no")

    def pread(self, size: int, offset: int) -> bytes:
        self._called("pread", size, offset)
        return bytes(self.data[offset : offset + size])

    def pwrite(self, data: bytes, offset: int) -> int:
        self._called("pwrite", len(data), offset)
        self.data[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        self._called("flush")

    def discard(self, offset: int, size: int) -> None:
        self._called("discard", offset, size)

    def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
        self._called("write_zeroes", offset, size, unmap)
        self.data[offset : offset + size] = bytes(size)

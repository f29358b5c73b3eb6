# SPDX-License-Identifier: Apache-2.0
"""A disk: virtio-blk, on a file, on bytes, on any object of yours.

    with pyvmm.Machine() as m:
        m.attach(Blk("disk.img"))
        m.load("kernel.elf")
        m.run(timeout=5)

`Blk("disk.img", readonly=True)` keeps the file as it is and
`Blk(bytearray(1 << 20))` needs none. Whatever has `pread(size, offset)`, and
`pwrite(data, offset)` unless it is read-only, is a disk as well:

>>> class Digits:
...     size = 1 << 40
...
...     def pread(self, size, offset):
...         return b"%08d" % offset * (size // 8)

From a shell, `pyvmm run kernel.elf --device disk.py` with a class in disk.py:

    class Disk(Blk):
        def __init__(self):
            super().__init__("disk.img")

The guest finds it by its device id, 2. A request is a header, data and one byte
for the status, in any number of buffers:

>>> with virtio.driver(Blk(Digits())) as drv:
...     drv.requests(HEADER.pack(IN, 0, 3), reply=[8, 504, 1])[:8]
...     drv.requests(HEADER.pack(OUT, 0, 0), bytes(512), reply=1) == IOERR
...     drv.config["capacity"]
b'00001536'
True
2147483648

What is written is in the file when its request is completed. It is on the disk
that the file is on after a flush; or at once, if the driver took neither FLUSH
nor CONFIG_WCE, or turned the write cache off by `writeback` in the
configuration (5.2.6.2). Once a flush has failed all later ones do.

Whatever the host refuses (disk full, file truncated, a bad sector) is an I/O
error for the guest, and in `errors` and `error` for you.

Requests are handled inline, while the guest waits: many at a time cost less
than waking a thread does, and no CPU but the guest's is wanted. With
`notify="thread"` the guest runs on: for a file that is slow, for guests that
have something else to do while it flushes, and where a CPU is free. Inline,
with several queues and vCPUs, an object is called by several threads at a time.

Source: virtio 1.2, 5.2, and Linux's <linux/virtio_blk.h>.
"""

import errno
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pyvmm import virtio
from pyvmm.devices.disk import open_disk

SECTOR = 512

# Feature bits.
F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

# Requests.
IN = 0
OUT = 1
FLUSH = 4
GET_ID = 8
DISCARD = 11
WRITE_ZEROES = 13

HEADER = struct.Struct("<IIQ")  # type, reserved, sector
RANGE = struct.Struct("<QII")  # sector, sectors, flags: data of the last two
UNMAP = 1

OK = b"\0"
IOERR = b"\1"
UNSUPP = b"\2"

WRITEBACK_AT = 32  # in the configuration

# What a request may ask for, so that none takes for ever.
DISCARD_SECTORS = 1 << 21
DISCARD_RANGES = 64
ZERO_SECTORS = 1 << 15
ZERO_RANGES = 4

LARGE = 1 << 16  # bytes of a request that is completed before the next begins
HEADS, TRACK = 16, 63  # of a geometry that was not given
SIZE_MOST = (1 << 63) - SECTOR  # what a file offset can be
ID_SIZE = 20


class Blk(virtio.Device):
    """A disk for the guest.

    `source`: the path of a file or block device; a file object or descriptor,
    which stay yours; bytes, or what is made of them; or an object with
    `pread(size, offset)`, `pwrite(data, offset)`, `size` in bytes, and maybe
    `flush()`, `discard(offset, size)`, `write_zeroes(offset, size, unmap)`:
    see disk.py. What is left of a last sector is no part of the disk.

    `readonly`: the guest may not write. Nor may it for a source that cannot be
    written, but a path is opened for writing or not at all.
    `size`: bytes of the disk, a multiple of 512; None: all that there is.
    `serial`: up to 20 ASCII characters, which GET_ID returns.
    `queues`, `queue_size`: 1 to 64 of them; entries, 4 to 32768.
    `block_size`, `physical_block_size`: what is best read and written at a
    time, powers of two, 512 to 65536.
    `geometry`: cylinders, heads and sectors, up to 65535, 255 and 255, with no
    more sectors in all than the disk; None: 16 heads, 63 sectors.
    `size_max`: bytes of the longest buffer; None: any.
    `lock`: lock the file against others, see disk.py.

    Raises ValueError and TypeError for arguments, OSError for a file that
    cannot be opened or is locked.

    `capacity`: bytes of the disk. `errors`: how often the host has refused,
    `error`: the last OSError. `faults`: as virtio.Device, with requests that
    had no room for a status.

    Threads: any may call resize(); else as virtio.Device.
    """

    device_id = 2
    config = virtio.Struct(
        capacity="<Q",
        size_max="<I",
        seg_max="<I",
        geometry="<HBB",
        blk_size="<I",
        topology="<BBHI",
        writeback="<B",
        _unused0="x",
        num_queues="<H",
        max_discard_sectors="<I",
        max_discard_seg="<I",
        discard_sector_alignment="<I",
        max_write_zeroes_sectors="<I",
        max_write_zeroes_seg="<I",
        write_zeroes_may_unmap="<B",
        _unused1="3x",
    )

    def __init__(
        self,
        source: Any,
        *,
        readonly: bool = False,
        size: int | None = None,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        block_size: int = SECTOR,
        physical_block_size: int = 4096,
        geometry: tuple[int, int, int] | None = None,
        size_max: int | None = None,
        lock: bool = True,
        notify: str = "inline",
    ) -> None:
        check_range("queues", queues, 1, 64)
        check_power("queue_size", queue_size, 4, 1 << 15)
        check_power("block_size", block_size, SECTOR, 1 << 16)
        physical = max(physical_block_size, block_size)
        check_power("physical_block_size", physical, SECTOR, 1 << 16)
        self.notify = notify
        self.queues = {  # type: ignore[misc]
            f"requests{i or ''}": queue_size for i in range(queues)
        }
        self.capacity = 0
        self.errors = 0
        self.error: OSError | None = None
        self._serial = check_serial(serial)
        self._geometry = geometry
        self._headless = 0
        self._through = True  # a write is stable before it is completed
        self._disk = open_disk(source, readonly, lock)

        config = self.config
        config.blk_size = block_size
        config.seg_max = queue_size - 2  # but for the header and the status
        blocks = physical // block_size
        config.topology = (blocks.bit_length() - 1, 0, blocks, 0)
        config.num_queues = queues
        if size_max is not None:
            check_range("size_max", size_max, SECTOR, 0xFFFFFFFF)
            config.size_max = size_max
        self._set_size(size)
        if not self._disk.readonly:
            config.max_write_zeroes_sectors = ZERO_SECTORS
            config.max_write_zeroes_seg = ZERO_RANGES
            config.write_zeroes_may_unmap = 1
        if not self._disk.readonly and self._disk.discards:
            config.max_discard_sectors = DISCARD_SECTORS
            config.max_discard_seg = DISCARD_RANGES
            config.discard_sector_alignment = physical // SECTOR
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY
        self.features |= F_CONFIG_WCE
        for bit, offered in (
            (F_SIZE_MAX, config.size_max),
            (F_GEOMETRY, config.geometry[0]),
            (F_RO, self._disk.readonly),
            (F_MQ, queues > 1),
            (F_DISCARD, config.max_discard_seg),
            (F_WRITE_ZEROES, config.max_write_zeroes_seg),
        ):
            self.features |= bit if offered else 0

    # -- for the host --------------------------------------------------------

    @property
    def faults(self) -> int:
        return super().faults + self._headless

    def resize(self, size: int | None = None) -> None:
        """Make the disk larger or smaller; the driver is interrupted for it.

        `size`: bytes, a multiple of 512. A file that is shorter is made that
        long, one that is longer keeps what it has. None: all that there is,
        after somebody else changed the file. ValueError for what is not there.
        """
        if size is not None:
            check_range("size", size, 0, SIZE_MOST)
            self._disk.grow(size)
        self._set_size(size)

    def _set_size(self, size: int | None) -> None:
        there = self._disk.size()
        if size is None and there is None:
            raise ValueError(f"{self._disk} has no size: say size=")
        most = SIZE_MOST if there is None else min(there, SIZE_MOST)
        capacity = most - most % self.config.blk_size if size is None else size
        check_range("size", capacity, 0, most)
        if capacity % SECTOR:
            raise ValueError(f"size {capacity} is no multiple of {SECTOR}")
        sectors = capacity // SECTOR
        self.config.geometry = check_geometry(self._geometry, sectors)
        self.config.capacity = sectors
        self.capacity = capacity
        self._size = size

    def save(self) -> dict[str, Any]:
        """The state: capacity, cache mode, and the bytes that are no file.

        A file stays where it is, with what the guest has written since.
        """
        return {
            "capacity": self.capacity,
            "writeback": self.config.writeback,
            "through": self._through,
            "data": self._disk.save(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() returned; ValueError if that does not fit."""
        self._set_size(state["capacity"])
        if state["data"] is not None:
            self._disk.restore(state["data"])
        self.config.writeback = state["writeback"]
        self._through = state["through"]

    # -- life ----------------------------------------------------------------

    def make(self, memory: Any) -> Any:
        """As virtio.Device.make(); a file that was closed is opened again."""
        self._disk.open()
        self._set_size(self._size)
        return super().make(memory)

    def detached(self) -> None:
        """Closes the file."""
        self._disk.close()

    def negotiated(self, features: int) -> None:
        """The cache mode at first (5.2.5.2)."""
        self.config.writeback = bool(features & F_FLUSH)
        self._choose(features)

    def configured(self, offset: int, data: bytes) -> None:
        """The driver may write to `writeback`, in a write of any width."""
        features = self.native.driver_features if self.native else 0
        at = WRITEBACK_AT - offset
        if 0 <= at < len(data) and features & F_CONFIG_WCE:
            self.config.writeback = bool(data[at])
            self._choose(features)

    def _choose(self, features: int) -> None:
        """Which writes are stable once they are completed (5.2.6.2)."""
        if features & F_CONFIG_WCE:
            self._through = not self.config.writeback
        else:
            self._through = not features & F_FLUSH

    # -- requests ------------------------------------------------------------

    def on_requests(self, queue: virtio.Queue) -> None:
        """Reads or writes that follow each other on the disk are one call."""
        unpack, header_size = HEADER.unpack, HEADER.size
        readonly, gathers = self._disk.readonly, self._disk.gathers
        for chains in queue.batches():
            kind = start = end = -1
            run: list[tuple[virtio.Chain, int, int]] = []
            unstable: list[virtio.Chain] = []
            capacity = self.capacity
            for chain in chains:
                room = chain.writable_size - 1  # the last byte is the status
                header = chain.read(header_size)
                if room < 0:
                    self._headless += 1
                    continue
                if len(header) < header_size:
                    chain.write(IOERR, room)
                    continue
                what, _, sector = unpack(header)
                if what == IN:
                    size = room
                elif what == OUT and not readonly:
                    size = chain.readable_size - header_size
                else:
                    self._move(kind, run, start, unstable)
                    run, kind = [], -1
                    chain.write(self._other(what, chain, room), room)
                    continue
                at = sector * SECTOR
                if size % SECTOR or at + size > capacity:
                    chain.write(IOERR, room)
                    continue
                if at != end or what != kind or not gathers:
                    self._move(kind, run, start, unstable)
                    run, kind, start = [], what, at
                run.append((chain, size, room))
                end = at + size
            self._move(kind, run, start, unstable)
            if unstable:
                status = OK if self._flush() else IOERR
                for chain in unstable:
                    chain.write(status, chain.writable_size - 1)

    def _move(
        self,
        kind: int,
        run: list[tuple[virtio.Chain, int, int]],
        at: int,
        unstable: list[virtio.Chain],
    ) -> None:
        """Read or write what follows each other from byte `at` on."""
        if not run:
            return
        move = self._disk.pwritev if kind == OUT else self._disk.preadv
        total = sum([size for _, size, _ in run])
        done = self._try(move, [chain for chain, _, _ in run], at, total)
        for chain, size, room in run:
            if done < size and len(run) > 1:
                # It went wrong here: those behind may be well.
                done += self._try(move, [chain], at + done, size - done)
            if done < size:
                chain.write(IOERR, room)
            elif kind == OUT and self._through:
                unstable.append(chain)
            else:
                chain.write(OK, room)
                if size >= LARGE:
                    chain.complete()
            at += size
            done = max(0, done - size)

    def _try(
        self,
        move: Callable[[list[virtio.Chain], int], int],
        chains: list[virtio.Chain],
        at: int,
        size: int,
    ) -> int:
        """How many bytes were moved before the host refused."""
        done = 0
        try:
            while done < size:
                moved = move(chains, at + done)
                if not moved:
                    raise OSError(
                        errno.EIO, f"{self._disk} ends at {at + done}"
                    )
                done += moved
        except OSError as exc:
            self._refused(exc)
        return done

    def _refused(self, exc: OSError) -> None:
        self.errors += 1
        self.error = exc

    def _other(self, what: int, chain: virtio.Chain, room: int) -> bytes:
        """Requests of other kinds; their status."""
        if what == OUT:  # of a disk that is read-only
            return IOERR
        if what == FLUSH:
            return OK if self._flush() else IOERR
        if what == GET_ID:
            chain.write(self._serial[:room])
            return OK
        if what == WRITE_ZEROES or (what == DISCARD and self._disk.discards):
            return self._ranges(what, chain)
        return UNSUPP

    def _flush(self) -> bool:
        try:
            self._disk.flush()
        except OSError as exc:
            self._refused(exc)
            return False
        return True

    def _ranges(self, what: int, chain: virtio.Chain) -> bytes:
        """Discard or write zeroes: nothing unless all is in order."""
        zero = what == WRITE_ZEROES
        sectors = ZERO_SECTORS if zero else DISCARD_SECTORS
        most = (ZERO_RANGES if zero else DISCARD_RANGES) * RANGE.size
        size = chain.readable_size - HEADER.size
        if self._disk.readonly or size % RANGE.size or not 0 < size <= most:
            return IOERR
        ranges = list(RANGE.iter_unpack(chain.read(size)))
        if any(flags & ~(UNMAP if zero else 0) for _, _, flags in ranges):
            return UNSUPP
        limit = self.capacity // SECTOR
        if any(n > sectors or at + n > limit for at, n, _ in ranges):
            return IOERR
        try:
            for at, n, flags in ranges:
                if n and zero:
                    self._disk.write_zeroes(
                        at * SECTOR, n * SECTOR, bool(flags & UNMAP)
                    )
                elif n:
                    self._disk.discard(at * SECTOR, n * SECTOR)
        except OSError as exc:
            self._refused(exc)
            return IOERR
        return OK if not self._through or self._flush() else IOERR


def check_range(name: str, value: int, least: int, most: int) -> None:
    """ValueError or TypeError unless it is an int of that range."""
    if not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} {value} is outside {least}..{most}")


def check_power(name: str, value: int, least: int, most: int) -> None:
    """The same for a power of two."""
    check_range(name, value, least, most)
    if value & (value - 1):
        raise ValueError(f"{name} {value} is no power of two")


def check_serial(serial: str) -> bytes:
    """The bytes of GET_ID."""
    if not serial.isascii() or "\0" in serial or len(serial) > ID_SIZE:
        raise ValueError(
            f"serial {serial!r} is not up to {ID_SIZE} ASCII characters"
        )
    return serial.encode().ljust(ID_SIZE, b"\0")


def check_geometry(
    given: tuple[int, int, int] | None, sectors: int
) -> tuple[int, int, int]:
    """Cylinders, heads, sectors that the disk has; zeros for a tiny one."""
    if given is None:
        cylinders = min(sectors // (HEADS * TRACK), 0xFFFF)
        return (cylinders, HEADS, TRACK) if cylinders else (0, 0, 0)
    cylinders, heads, track = given
    check_range("geometry: cylinders", cylinders, 1, 0xFFFF)
    check_range("geometry: heads", heads, 1, 0xFF)
    check_range("geometry: sectors", track, 1, 0xFF)
    if cylinders * heads * track > sectors:
        raise ValueError(
            f"geometry {given} has {cylinders * heads * track} sectors, the "
            f"disk {sectors}"
        )
    return given

# SPDX-License-Identifier: Apache-2.0
"""virtio-blk by its driver's side: no KVM, no guest."""

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blkdriver import IOERR, OK, SECTOR, UNSUPP, Recorder, Requests, requests

from pyvmm import virtio
from pyvmm.devices import Blk
from pyvmm.devices import blk as module
from pyvmm.devices.blk import (
    DISCARD,
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_GEOMETRY,
    F_MQ,
    F_RO,
    F_SIZE_MAX,
    F_WRITE_ZEROES,
    GET_ID,
    HEADER,
    IN,
    OUT,
    RANGE,
    UNMAP,
    WRITE_ZEROES,
)
from pyvmm.virtio import rings

DATA = os.urandom(64 * SECTOR)


def sectors(first: int, count: int = 1) -> bytes:
    return DATA[first * SECTOR : (first + count) * SECTOR]


@contextmanager
def disk(blk: Blk, **options: int | None) -> Iterator[Requests]:
    found = requests(blk, **options)
    with found.drv:
        yield found


@pytest.fixture(params=["path", "fd", "file", "bytearray", "mmap", "object"])
def source(request, tmp_path: Path) -> Iterator[object]:
    """A disk of DATA, of each kind; `stored()` says what it has."""
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    if request.param == "path":
        yield path
    elif request.param == "bytearray":
        yield bytearray(DATA)
    elif request.param == "object":
        yield Recorder(DATA)
    else:
        with path.open("r+b", buffering=0) as file:
            if request.param == "fd":
                yield file.fileno()
            elif request.param == "file":
                yield file
            else:
                yield mmap.mmap(file.fileno(), len(DATA))


def stored(source: object) -> bytes:
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, Recorder):
        return bytes(source.data)
    if isinstance(source, bytearray | mmap.mmap):
        return bytes(source)
    fd = source if isinstance(source, int) else source.fileno()
    return os.pread(fd, len(DATA) + 1, 0)


# -- what a disk does ----------------------------------------------------------


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_read_and_write(source: object, notify: str) -> None:
    with disk(Blk(source, notify=notify)) as blk:
        assert blk.read(0) == sectors(0)
        assert blk.read(61, 3) == sectors(61, 3)
        new = os.urandom(3 * SECTOR)
        assert blk.write(5, new[:1], new[1:600], new[600:]) == OK
        assert blk.read(4, 5) == sectors(4) + new + sectors(8)
        assert blk.write(63, new[:SECTOR]) == OK
        assert blk.flush() == OK
        assert blk.read(63) == new[:SECTOR]
        assert blk.drv.device.errors == 0 and blk.drv.device.faults == 0
    assert stored(source) == (
        sectors(0, 5) + new + sectors(8, 55) + new[:SECTOR]
    )


@pytest.mark.parametrize(
    ("sector", "count"),
    [(64, 1), (63, 2), (0, 65), (65, 1), (1 << 55, 1), ((1 << 64) - 1, 1)],
)
def test_outside_of_the_disk(source: object, sector: int, count: int) -> None:
    with disk(Blk(source)) as blk:
        assert blk.read(sector, count) == IOERR
        assert blk.write(sector, bytes(count * SECTOR)) == IOERR
        assert blk.zero((sector, count, 0)) == IOERR
        assert blk.read(0, 64) == DATA
        assert blk.drv.device.errors == 0
    assert stored(source) == DATA


@pytest.mark.parametrize("size", [1, 511, 513, 1023])
def test_sizes_that_are_no_sectors(source: object, size: int) -> None:
    with disk(Blk(source)) as blk:
        assert blk.send(IN, 0, room=size)() == (IOERR, bytes(size))
        assert blk.write(0, bytes(size)) == IOERR
    assert stored(source) == DATA


def test_no_data_at_all(source: object) -> None:
    with disk(Blk(source)) as blk:
        assert blk.send(IN, 64)() == (OK, b"")
        assert blk.send(OUT, 64)() == (OK, b"")
        assert blk.send(IN, 65)() == (IOERR, b"")


def test_write_zeroes(source: object) -> None:
    with disk(Blk(source)) as blk:
        assert blk.zero((3, 2, 0), (10, 9, UNMAP), (0, 0, 0)) == OK
        assert blk.read(2, 4) == sectors(2) + bytes(2 * SECTOR) + sectors(5)
        assert blk.read(9, 11) == sectors(9) + bytes(9 * SECTOR) + sectors(19)
        assert blk.drv.device.errors == 0


def test_discard(source: object) -> None:
    """The guest may expect nothing of what it discarded, but of the rest."""
    with disk(Blk(source)) as blk:
        assert blk.discard((8, 16, 0), (40, 1, 0), (0, 0, 0)) == OK
        assert blk.read(0, 8) == sectors(0, 8)
        assert blk.read(24, 16) == sectors(24, 16)
        assert blk.read(41, 23) == sectors(41, 23)
        assert len(blk.read(8, 16)) == 16 * SECTOR
    if isinstance(source, Recorder):
        assert source.calls[:2] == [
            ("discard", 8 * SECTOR, 16 * SECTOR),
            ("discard", 40 * SECTOR, SECTOR),
        ]


def test_readonly(source: object) -> None:
    with disk(Blk(source, readonly=True)) as blk:
        features = blk.drv.features
        assert features & F_RO
        assert not features & (F_DISCARD | F_WRITE_ZEROES)
        assert blk.read(1) == sectors(1)
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert blk.zero((0, 1, 0)) == IOERR
        assert blk.discard((0, 1, 0)) == IOERR
        assert blk.flush() == OK
    assert stored(source) == DATA


def test_bytes_are_read_only() -> None:
    with disk(Blk(DATA)) as blk:
        assert blk.drv.features & F_RO
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert blk.read(0, 64) == DATA


# -- how requests are cut ------------------------------------------------------


@pytest.mark.parametrize("at", range(HEADER.size + 1))
def test_a_header_in_two_pieces(at: int) -> None:
    """Also with data behind it in the same buffer."""
    header = HEADER.pack(OUT, 0, 2)
    new = os.urandom(SECTOR)
    with disk(Blk(bytearray(DATA))) as blk:
        send = blk.drv.requests
        assert send(header[:at], header[at:], new, reply=1) == b"\0"
        assert blk.read(2) == new
        assert send(header[:at], header[at:] + sectors(2), reply=1) == b"\0"
        assert blk.read(2) == sectors(2)


def test_every_byte_in_a_buffer_of_its_own() -> None:
    with disk(Blk(bytearray(DATA), queue_size=1024)) as blk:
        header = [bytes([byte]) for byte in HEADER.pack(IN, 0, 7)]
        answer = blk.drv.requests(*header, reply=[1] * 513)
        assert answer == sectors(7) + b"\0"
        header = [bytes([byte]) for byte in HEADER.pack(OUT, 0, 7)]
        data = [bytes([i & 0xFF]) for i in range(SECTOR)]
        assert blk.drv.requests(*header, *data, reply=1) == b"\0"
        assert blk.read(7) == b"".join(data)


@pytest.mark.parametrize(
    "rooms",
    [[513], [512, 1], [512, 0, 1, 0], [0, 513], [1, 511, 0, 1], [511, 2]],
)
def test_places_of_the_status(rooms: list[int]) -> None:
    """The last byte that can be written, wherever that is."""
    with disk(Blk(bytearray(DATA))) as blk:
        answer = blk.drv.requests(HEADER.pack(IN, 0, 3), reply=rooms)
        assert answer == sectors(3) + b"\0"


@pytest.mark.parametrize("size", range(HEADER.size))
def test_a_header_that_is_short(size: int) -> None:
    with disk(Blk(bytearray(DATA))) as blk:
        assert blk.drv.requests(bytes(size), reply=3)[-1] == IOERR
        assert blk.drv.requests(bytes(size), reply=513)[-1] == IOERR
        if size:
            assert blk.drv.requests(bytes(size)) == b""
        assert blk.read(0) == sectors(0)


def test_no_room_for_a_status() -> None:
    """Completed empty, counted; nothing is written."""
    with disk(Blk(bytearray(DATA))) as blk:
        header = HEADER.pack(OUT, 0, 0)
        assert blk.drv.requests(header, bytes(SECTOR)) == b""
        assert blk.drv.requests(header, bytes(SECTOR), reply=[0]) == b""
        assert blk.drv.device.faults == 2
        assert blk.read(0) == sectors(0)


def test_buffers_that_overlap() -> None:
    """A sector is read over the header and all over itself."""
    with disk(Blk(bytearray(DATA))) as blk:
        ring = blk.drv.raw.ring[0]
        gpa = 0x80000
        blk.drv.memory.write(gpa, HEADER.pack(IN, 0, 9))
        ring.set_chain(
            [
                (gpa, 16, 0),
                (gpa, 256, rings.WRITE),
                (gpa, 256, rings.WRITE),
                (gpa + 300, 1, rings.WRITE),
            ]
        )
        ring.offer()
        blk.drv.raw.notify()
        assert ring.take() == (0, 513)
        assert blk.drv.memory.read(gpa, 256) == sectors(9)[256:]
        assert blk.drv.memory.read(gpa + 300, 1) == b"\0"


def test_lengths_near_the_limit() -> None:
    """2^32 bytes of overlapping buffers, of a disk that has as many."""

    class Huge:
        size = 1 << 62

        def pread(self, size: int, offset: int) -> bytes:
            assert size <= 1 << 20
            return bytes(size)

    with disk(Blk(Huge()), memory=1 << 28) as blk:
        ring = blk.drv.raw.ring[0]
        gpa, size = 0x800000, 1 << 27
        blk.drv.memory.write(gpa - 16, HEADER.pack(IN, 0, 1))
        parts = [(gpa - 16, 16, 0), *[(gpa, size, rings.WRITE)] * 4]
        ring.set_chain([*parts, (gpa - 1, 1, rings.WRITE)])
        ring.offer()
        blk.drv.raw.notify()
        assert ring.take() == (0, 4 * size + 1)
        # One byte less than 2^32 in the room, and no sector.
        parts = [(gpa - 16, 16, 0), *[(gpa, size, rings.WRITE)] * 31]
        ring.set_chain([*parts, (gpa, size - 17, rings.WRITE)])
        ring.offer()
        blk.drv.raw.notify()
        assert ring.take() == (0, (1 << 32) - 17)
        assert blk.drv.memory.read(gpa + size - 18, 1) == b"\1"
        assert not blk.drv.broken


# -- other requests ------------------------------------------------------------


@pytest.mark.parametrize("kind", [2, 3, 5, 6, 7, 9, 10, 12, 14, 1 << 31])
def test_unknown_requests(kind: int) -> None:
    with disk(Blk(bytearray(DATA))) as blk:
        assert blk.send(kind, 0, bytes(512), room=512)() == (UNSUPP, bytes(512))


@pytest.mark.parametrize("serial", ["", "pyvmm-1", "12345678901234567890"])
def test_serial(serial: str) -> None:
    with disk(Blk(bytearray(DATA), serial=serial)) as blk:
        name = serial.encode().ljust(20, b"\0")
        assert blk.send(GET_ID, room=20)() == (OK, name)
        assert blk.send(GET_ID, room=[7, 13])() == (OK, name)
        assert blk.send(GET_ID, room=5)() == (OK, name[:5])
        status, data = blk.send(GET_ID, room=24)()
        assert (status, data[:20]) == (OK, name)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", IOERR),
        (bytes(15), IOERR),
        (bytes(17), IOERR),
        (RANGE.pack(0, 1, 2), UNSUPP),
        (RANGE.pack(0, 1, 1 << 31), UNSUPP),
        (RANGE.pack(0, 1, 0) + RANGE.pack(0, 1, 4), UNSUPP),
        (RANGE.pack(0, 1, 0) + RANGE.pack(64, 1, 0), IOERR),
        (RANGE.pack(0, 0xFFFFFFFF, 0), IOERR),
        (RANGE.pack((1 << 64) - 1, 1, 0), IOERR),
        (RANGE.pack(0, 1, 0) * 65, IOERR),
    ],
)
def test_ranges_out_of_order(kind: int, data: bytes, status: int) -> None:
    """Nothing is done of a request of which a part is wrong."""
    recorder = Recorder(DATA)
    with disk(Blk(recorder)) as blk:
        assert blk.send(kind, 0, data)() == (status, b"")
        assert recorder.calls == []


def test_unmap_is_for_zeroes() -> None:
    recorder = Recorder(DATA)
    with disk(Blk(recorder)) as blk:
        assert blk.discard((0, 1, UNMAP)) == UNSUPP
        assert blk.zero((0, 1, UNMAP), (2, 1, 0)) == OK
    assert recorder.calls == [
        ("write_zeroes", 0, SECTOR, True),
        ("write_zeroes", 2 * SECTOR, SECTOR, False),
    ]


def test_limits_of_ranges() -> None:
    """What the configuration says is what there is."""

    class Sparse:
        size = 1 << 50

        def pread(self, size: int, offset: int) -> bytes:
            return bytes(size)

        def pwrite(self, data: bytes, offset: int) -> None:
            assert len(data) <= 1 << 20

        def discard(self, offset: int, size: int) -> None:
            pass

    with disk(Blk(Sparse())) as blk:
        config = blk.drv.config
        most = config["max_discard_sectors"]
        ranges = [(0, most, 0)] * config["max_discard_seg"]
        assert blk.discard(*ranges) == OK
        assert blk.discard(*ranges, (0, 1, 0)) == IOERR
        assert blk.discard((0, most + 1, 0)) == IOERR
        most = config["max_write_zeroes_sectors"]
        ranges = [(0, most, 0)] * config["max_write_zeroes_seg"]
        assert blk.zero(*ranges) == OK
        assert blk.zero(*ranges, (0, 1, 0)) == IOERR
        assert blk.zero((0, most + 1, 0)) == IOERR


# -- the write cache -----------------------------------------------------------


def negotiate(features: int) -> tuple[Requests, Recorder]:
    recorder = Recorder(DATA)
    return requests(Blk(recorder), features=features), recorder


@pytest.mark.parametrize(
    ("features", "writeback", "flushed"),
    [
        (0, 0, True),
        (F_FLUSH, 1, False),
        (F_CONFIG_WCE, 0, True),
        (F_FLUSH | F_CONFIG_WCE, 1, False),
    ],
)
def test_cache_mode(features: int, writeback: int, flushed: bool) -> None:
    """A write is stable before it is completed, unless there is a flush."""
    blk, recorder = negotiate(features)
    with blk.drv as drv:
        assert drv.config["writeback"] == writeback
        assert blk.write(0, bytes(SECTOR)) == OK
        assert blk.zero((1, 1, 0)) == OK
        calls = [call[0] for call in recorder.calls]
        if flushed:
            assert calls == ["pwrite", "flush", "write_zeroes", "flush"]
        else:
            assert calls == ["pwrite", "write_zeroes"]
        assert blk.flush() == OK and recorder.calls[-1] == ("flush",)


@pytest.mark.parametrize(
    ("offset", "off", "on"),
    [
        (32, b"\0", b"\1"),
        (32, bytes(4), b"\7\0\0\0"),
        (32, bytes(8), b"\1" * 8),
        (28, bytes(8), bytes(4) + b"\1" + bytes(3)),
        (31, bytes(2), b"\0\1"),
    ],
)
def test_the_driver_turns_the_cache_off(
    offset: int, off: bytes, on: bytes
) -> None:
    blk, recorder = negotiate(F_FLUSH | F_CONFIG_WCE)
    with blk.drv as drv:
        for data, writeback in ((off, 0), (on, 1), (off, 0)):
            drv.write_config(offset, data)
            assert drv.config["writeback"] == writeback
            recorder.calls.clear()
            assert blk.write(0, bytes(SECTOR)) == OK
            flushes = recorder.calls.count(("flush",))
            assert flushes == (not writeback)
        drv.reset()
        drv.start()
        assert drv.config["writeback"] == 1


def test_a_cache_that_was_not_negotiated_stays() -> None:
    blk, recorder = negotiate(F_FLUSH)
    with blk.drv as drv:
        before = drv.read_config(0, 60)
        for offset in range(60):
            drv.write_config(offset, b"\0")
        assert drv.read_config(0, 60) == before
        assert blk.write(0, bytes(SECTOR)) == OK
        assert ("flush",) not in recorder.calls


def test_one_flush_for_what_was_sent_together() -> None:
    """Without a cache, too: before any of the writes is completed."""
    blk, recorder = negotiate(0)
    with blk.drv as drv:
        for _ in range(8):  # batches grow
            blk.send(IN, 0, room=SECTOR, notify=False)
        drv.requests.notify()
        drv.requests.wait_all()
        recorder.calls.clear()
        waits = [
            blk.send(OUT, sector, bytes(SECTOR), notify=False)
            for sector in (3, 9, 1)
        ]
        drv.requests.notify()
        assert [wait()[0] for wait in waits] == [OK] * 3
    calls = [call[0] for call in recorder.calls]
    assert calls == ["pwrite"] * 3 + ["flush"]


# -- what the host refuses -----------------------------------------------------


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("pread", lambda blk: blk.read(1)),
        ("pwrite", lambda blk: blk.write(1, bytes(SECTOR))),
        ("flush", lambda blk: blk.flush()),
        ("discard", lambda blk: blk.discard((1, 1, 0))),
        ("write_zeroes", lambda blk: blk.zero((1, 1, 0))),
    ],
)
def test_an_error_of_the_host(method: str, call) -> None:
    recorder = Recorder(DATA, method)
    with disk(Blk(recorder)) as blk:
        assert call(blk) == IOERR
        device = blk.drv.device
        assert device.errors == 1 and str(device.error) == "[Errno 5] no"
        recorder.fails.clear()
        assert call(blk) in (OK, sectors(1))
        assert device.errors == 1


def test_a_write_that_could_not_be_made_stable() -> None:
    """It was not acknowledged, so it is not lost."""
    recorder = Recorder(DATA, "flush")
    with disk(Blk(recorder), features=0) as blk:
        assert blk.write(1, bytes(SECTOR)) == IOERR
        assert blk.zero((1, 1, 0)) == IOERR


def test_an_exception_of_the_author() -> None:
    """It leaves, with a note; the request is not lost."""

    class Buggy(Recorder):
        def pread(self, size: int, offset: int) -> bytes:
            if self.fails:
                self.fails.clear()
                raise KeyError("mine")
            return super().pread(size, offset)

    with disk(Blk(Buggy(DATA, "x"))) as blk:
        with pytest.raises(KeyError, match="mine") as caught:
            blk.send(IN, 3, room=SECTOR)
        assert caught.value.__notes__ == [
            "chain 0 of Blk.requests went back to its queue",
            "in the handler of Blk.requests",
        ]
        blk.drv.device.process()
        assert blk.drv.requests.in_flight == 0


# -- requests that follow each other -------------------------------------------


def together(blk: Requests, *sent: tuple[int, int, bytes, int]) -> list:
    """Requests that the device gets in one batch."""
    for _ in range(40):
        blk.send(IN, 0, room=SECTOR, notify=False)
    blk.queue.notify()
    blk.queue.wait_all()
    waits = [
        blk.send(kind, sector, data, room=room, notify=False)
        for kind, sector, data, room in sent
    ]
    blk.queue.notify()
    return [wait() for wait in waits]


def test_neighbours_are_one_call(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    calls: list[tuple[int, int]] = []

    def pwritev(fd: int, chains: list, at: int) -> int:
        calls.append((len(chains), at // SECTOR))
        return original(fd, chains, at)

    with disk(Blk(path)) as blk:
        original = virtio.pwritev
        monkeypatch.setattr(virtio, "pwritev", pwritev)
        new = [bytes([i]) * SECTOR for i in range(6)]
        answers = together(
            blk,
            (OUT, 4, new[0], 0),
            (OUT, 5, new[1] + new[2], 0),
            (OUT, 7, new[3], 0),
            (OUT, 9, new[4], 0),
            (IN, 10, b"", SECTOR),
            (OUT, 10, new[5], 0),
            (IN, 4, b"", SECTOR),
        )
        assert [status for status, _ in answers] == [OK] * 7
        assert answers[4][1] == sectors(10) and answers[6][1] == new[0]
        assert calls == [(3, 4), (1, 9), (1, 10)]
        assert path.read_bytes()[4 * SECTOR : 8 * SECTOR] == b"".join(new[:4])


def test_a_neighbour_that_fails() -> None:
    """Each gets its own status: the file has become shorter."""
    fd = os.memfd_create("disk")
    os.write(fd, DATA)
    with disk(Blk(fd)) as blk:
        os.ftruncate(fd, 10 * SECTOR + 100)
        answers = together(
            blk, *[(IN, sector, b"", SECTOR) for sector in range(8, 12)]
        )
        assert [status for status, _ in answers] == [OK, OK, IOERR, IOERR]
        assert answers[1][1] == sectors(9)
        os.ftruncate(fd, 11 * SECTOR)
        answers = together(
            blk, *[(IN, sector, b"", SECTOR) for sector in range(8, 12)]
        )
        assert [status for status, _ in answers] == [OK, OK, OK, IOERR]
    os.close(fd)


def test_large_requests_are_completed_one_by_one() -> None:
    """The driver need not wait for all of them."""
    done: list[int] = []

    class Slow(Recorder):
        def pread(self, size: int, offset: int) -> bytes:
            if offset:
                blk.queue.collect()
                done.append(blk.queue.in_flight)
            return super().pread(size, offset)

    size = 128 * SECTOR
    with disk(Blk(Slow(bytes(4 * size)), queue_size=128)) as blk:
        together(blk, *[(IN, 128 * i, b"", size) for i in range(4)])
        assert done == [3, 2, 1]


# -- the configuration ---------------------------------------------------------

LAYOUT = {  # of the specification: of <linux/virtio_blk.h>
    "capacity": "capacity",
    "size_max": "size_max",
    "seg_max": "seg_max",
    "geometry": "geometry",
    "blk_size": "blk_size",
    "topology": "physical_block_exp",
    "writeback": "wce",
    "num_queues": "num_queues",
    "max_discard_sectors": "max_discard_sectors",
    "max_discard_seg": "max_discard_seg",
    "discard_sector_alignment": "discard_sector_alignment",
    "max_write_zeroes_sectors": "max_write_zeroes_sectors",
    "max_write_zeroes_seg": "max_write_zeroes_seg",
    "write_zeroes_may_unmap": "write_zeroes_may_unmap",
}


def compiled(folder: Path, *lines: str) -> list[int]:
    """What a C compiler makes of <linux/virtio_blk.h>."""
    source, program = folder / "blk.c", folder / "blk"
    prints = "".join(f'printf("%llu\\n", {line} + 0ULL);' for line in lines)
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        "#include <linux/virtio_blk.h>\nint main(void) {" + prints + "}\n"
    )
    subprocess.run(["cc", "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def test_layout(tmp_path: Path) -> None:
    assert list(Blk.config.fields) == list(LAYOUT)
    assert [field.offset for field in Blk.config.fields.values()] == compiled(
        tmp_path,
        *(f"offsetof(struct virtio_blk_config, {n})" for n in LAYOUT.values()),
    )
    assert Blk.config.size == 60
    assert Blk.config.fields["writeback"].offset == module.WRITEBACK_AT


def test_numbers(tmp_path: Path) -> None:
    """Features, requests, statuses."""
    features = [name for name in vars(module) if name.startswith("F_")]
    kinds = ["IN", "OUT", "FLUSH", "GET_ID", "DISCARD", "WRITE_ZEROES"]
    found = compiled(
        tmp_path,
        *(f"(1ULL << VIRTIO_BLK_{name})" for name in features),
        *(f"VIRTIO_BLK_T_{name}" for name in kinds),
        *(f"VIRTIO_BLK_S_{name}" for name in ("OK", "IOERR", "UNSUPP")),
        "VIRTIO_BLK_ID_BYTES",
    )
    names = [*features, *kinds]
    assert len(features) == 11
    assert found == [
        *(getattr(module, name) for name in names),
        *(module.OK[0], module.IOERR[0], module.UNSUPP[0]),
        module.ID_SIZE,
    ]


def test_configuration() -> None:
    blk = Blk(
        bytearray(3000 * SECTOR + 100),
        queues=3,
        queue_size=64,
        block_size=1024,
        size_max=0x10000,
    )
    with virtio.driver(blk) as drv:
        assert drv.config == {
            "capacity": 3000,
            "size_max": 0x10000,
            "seg_max": 62,
            "geometry": (2, 16, 63),
            "blk_size": 1024,
            "topology": (2, 0, 4, 0),
            "writeback": 1,
            "num_queues": 3,
            "max_discard_sectors": 1 << 21,
            "max_discard_seg": 64,
            "discard_sector_alignment": 8,
            "max_write_zeroes_sectors": 1 << 15,
            "max_write_zeroes_seg": 4,
            "write_zeroes_may_unmap": 1,
        }
        assert drv.features & 0xFFFFFF == (
            1 << 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
            | 1 << 12 | 1 << 13 | 1 << 14
        )  # fmt: skip


def test_features_that_are_not_there() -> None:
    with virtio.driver(Blk(bytes(SECTOR))) as drv:
        assert not drv.features & (F_SIZE_MAX | F_GEOMETRY | F_MQ)
        assert drv.config["geometry"] == (0, 0, 0)


def test_geometry() -> None:
    size = 4 * 255 * 255 * SECTOR
    with virtio.driver(Blk(bytes(size), geometry=(4, 255, 255))) as drv:
        assert drv.config["geometry"] == (4, 255, 255)

    class Large:
        size = 1 << 45

        def pread(self, size: int, offset: int) -> bytes:
            return bytes(size)

    with virtio.driver(Blk(Large())) as drv:
        assert drv.config["geometry"] == (0xFFFF, 16, 63)


def test_several_queues() -> None:
    with virtio.driver(Blk(bytearray(DATA), queues=4)) as drv:
        names = ["requests", "requests1", "requests2", "requests3"]
        assert list(drv.device.queues) == names
        for i, name in enumerate(names):
            blk = Requests(drv, name)
            assert blk.read(i) == sectors(i)
            assert blk.write(i, bytes([i]) * SECTOR) == OK
        assert Requests(drv).read(0, 4) == b"".join(
            bytes([i]) * SECTOR for i in range(4)
        )


# -- growing and shrinking -----------------------------------------------------


def test_resize_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with disk(Blk(path)) as blk:
        drv, device = blk.drv, blk.drv.device
        assert blk.read(64) == IOERR
        before = drv.interrupts, drv.generation
        device.resize(100 * SECTOR)
        assert drv.config["capacity"] == 100
        assert drv.interrupts > before[0] and drv.generation > before[1]
        assert blk.read(99) == bytes(SECTOR)
        assert path.stat().st_size == 100 * SECTOR
        # Smaller: the file keeps what it has.
        device.resize(10 * SECTOR)
        assert device.capacity == 10 * SECTOR
        assert blk.read(10) == IOERR and blk.read(9) == sectors(9)
        assert path.read_bytes()[: len(DATA)] == DATA
        # Somebody else makes it longer.
        os.truncate(path, 2000 * SECTOR + 1)
        device.resize()
        assert drv.config["capacity"] == 2000
        assert drv.config["geometry"] == (1, 16, 63)
        with pytest.raises(ValueError, match="size 513 is no multiple of 512"):
            device.resize(513)
        with pytest.raises(ValueError, match="size -1 is outside"):
            device.resize(-1)
        with pytest.raises(TypeError, match="size is an int, not str"):
            device.resize("1")
        assert drv.config["capacity"] == 2000


def test_resize_what_cannot_grow() -> None:
    with disk(Blk(bytearray(DATA), geometry=(1, 1, 32))) as blk:
        device = blk.drv.device
        device.resize(32 * SECTOR)
        assert blk.read(32) == IOERR
        device.resize()
        assert blk.read(63) == sectors(63)
        with pytest.raises(ValueError, match=r"size 33280 is outside 0\.\.327"):
            device.resize(65 * SECTOR)
        with pytest.raises(ValueError, match="has 32 sectors, the disk 31"):
            device.resize(31 * SECTOR)
        assert device.capacity == 64 * SECTOR
        assert blk.drv.config["capacity"] == 64


def test_a_part_of_what_there_is() -> None:
    with disk(Blk(bytearray(DATA), size=3 * SECTOR)) as blk:
        assert blk.read(2) == sectors(2) and blk.read(3) == IOERR


# -- state, arguments ----------------------------------------------------------


def test_save_and_restore() -> None:
    with disk(Blk(bytearray(DATA))) as blk:
        device = blk.drv.device
        state = device.save()
        blk.write(0, bytes(SECTOR))
        blk.drv.write_config(32, b"\0")
        device.resize(SECTOR)
        device.restore(state)
        assert blk.drv.config["writeback"] == 1
        assert blk.read(0, 64) == DATA
        with pytest.raises(ValueError, match=r"size 33280 is outside"):
            device.restore(state | {"capacity": 65 * SECTOR})
        with pytest.raises(ValueError, match="1 bytes were saved"):
            device.restore(state | {"data": b"x"})


def test_saving_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with disk(Blk(path), features=0) as blk:
        device = blk.drv.device
        state = device.save()
        assert state == {
            "capacity": len(DATA),
            "writeback": 0,
            "through": True,
            "data": None,
        }
        device.restore(state)
        assert blk.read(0) == sectors(0)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"queues": 0}, ValueError, r"queues 0 is outside 1\.\.64"),
        ({"queues": 65}, ValueError, r"queues 65 is outside 1\.\.64"),
        ({"queue_size": 2}, ValueError, r"queue_size 2 is outside 4\.\.32768"),
        ({"queue_size": 100}, ValueError, "queue_size 100 is no power of two"),
        ({"block_size": 256}, ValueError, r"block_size 256 is outside 512"),
        ({"block_size": 1000}, ValueError, "block_size 1000 is no power"),
        ({"block_size": "512"}, TypeError, "block_size is an int, not str"),
        ({"physical_block_size": 1 << 17}, ValueError, "physical_block_size"),
        ({"serial": "x" * 21}, ValueError, "'x+' is not up to 20 ASCII"),
        ({"serial": "\N{SNOWMAN}"}, ValueError, "is not up to 20 ASCII"),
        ({"serial": "a\0b"}, ValueError, "is not up to 20 ASCII"),
        ({"geometry": (0, 1, 1)}, ValueError, r"cylinders 0 is outside 1\."),
        ({"geometry": (65536, 1, 1)}, ValueError, "cylinders 65536 is outside"),
        ({"geometry": (1, 256, 1)}, ValueError, "heads 256 is outside"),
        ({"geometry": (1, 1, 256)}, ValueError, "sectors 256 is outside"),
        ({"geometry": (65, 1, 1)}, ValueError, "65 sectors, the disk 64"),
        ({"size": 65 * 512}, ValueError, r"size 33280 is outside 0\.\.32768"),
        ({"size": 100}, ValueError, "size 100 is no multiple of 512"),
        ({"size_max": 10}, ValueError, "size_max 10 is outside 512"),
        ({"notify": "soon"}, ValueError, "notify 'soon' is none of"),
    ],
)
def test_arguments(options: dict, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        virtio.driver(Blk(bytearray(DATA), **options))

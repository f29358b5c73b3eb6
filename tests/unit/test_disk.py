# SPDX-License-Identifier: Apache-2.0
"""What disks are made of: files that change, locks, objects that are wrong."""

import errno
import fcntl
import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blkdriver import IOERR, OK, SECTOR, Recorder, Requests, requests

from pyvmm import virtio
from pyvmm.devices import Blk
from pyvmm.devices.blk import UNMAP
from pyvmm.devices.disk import (
    PUNCH_HOLE,
    ZERO_RANGE,
    BytesDisk,
    FileDisk,
    ObjectDisk,
    open_disk,
)

DATA = os.urandom(64 * SECTOR)
FLOCK = "hhqqi4x"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
    os.write(fd, DATA)
    yield fd
    os.close(fd)


# -- files ---------------------------------------------------------------------


def test_which_is_which(path: Path, fd: int) -> None:
    with path.open("rb") as file:
        for source, kind in (
            (path, FileDisk),
            (str(path), FileDisk),
            (fd, FileDisk),
            (file, FileDisk),
            (bytearray(8), BytesDisk),
            (io.BytesIO(bytes(8)).getbuffer(), BytesDisk),
            (Recorder(b""), ObjectDisk),
        ):
            found = open_disk(source, lock=False)
            assert type(found) is kind
            assert repr(found).startswith(f"<{kind.__name__} ")
            found.close()
            found.close()


@pytest.mark.parametrize("source", [True, None, 2.5, object(), ["x"]])
def test_what_is_no_disk(source: object) -> None:
    with pytest.raises(TypeError, match="is no path, no file, no bytes and"):
        open_disk(source)


def test_what_is_no_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    near, far = os.pipe()
    for source in (fifo, "/dev/null", near):
        with pytest.raises(ValueError, match="is no file and no block device"):
            open_disk(source, readonly=True)
    with pytest.raises(IsADirectoryError):
        open_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_disk(tmp_path / "none")
    with pytest.raises(OSError, match="Bad file descriptor"):
        open_disk(99999)
    os.close(near)
    os.close(far)


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT]
)
def test_descriptors_of_no_use(path: Path, flags: int) -> None:
    """One to append would write elsewhere than it is told."""
    fd = os.open(path, flags)
    with pytest.raises(ValueError, match="a disk cannot use it"):
        Blk(fd)
    os.close(fd)
    assert path.read_bytes() == DATA


def test_a_file_that_is_read_only(path: Path) -> None:
    with path.open("rb") as file, requests(Blk(file)).drv as drv:
        blk = Requests(drv)
        assert blk.drv.device.features & 1 << 5
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert blk.read(0) == DATA[:SECTOR]


def test_a_file_is_opened_again(path: Path, monkeypatch) -> None:
    """Closed when the device goes, found again wherever one is then."""
    monkeypatch.chdir(path.parent)
    device = Blk(path.name)
    for grown in (0, 1):
        with requests(device).drv as drv:
            blk = Requests(drv)
            assert blk.read(63) == DATA[-SECTOR:]
            assert drv.config["capacity"] == 64 + grown
        monkeypatch.chdir("/")
        os.truncate(path, 65 * SECTOR)
    other = Blk(path)  # nobody has it locked
    del other


def test_closed_while_it_works(path: Path) -> None:
    """As a device that is taken off while the guest runs finds it."""
    device = Blk(path)
    with requests(device).drv as drv:
        blk = Requests(drv)
        device.detached()
        assert blk.read(0) == IOERR
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert blk.flush() == IOERR
        assert blk.discard((0, 1, 0)) == IOERR
        assert blk.zero((0, 1, 0)) == IOERR
        assert "was closed" in str(device.error)


def test_nobody_is_left_behind(path: Path) -> None:
    """A disk that goes closes its file."""
    before = os.listdir("/proc/self/fd")
    Blk(path)
    with pytest.raises(ValueError, match="size 100"):
        Blk(path, size=100)
    assert os.listdir("/proc/self/fd") == before


def test_the_descriptor_of_others_stays(fd: int) -> None:
    with requests(Blk(fd)).drv:
        pass
    assert os.pread(fd, 4, 0) == DATA[:4]


# -- locks ---------------------------------------------------------------------


def locked(path: Path, kind: int) -> bool:
    """Whether a lock that QEMU might want cannot be had."""
    with path.open("r+b") as file:
        try:
            lock = struct.pack(FLOCK, kind, 0, 100, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        except BlockingIOError:
            return True
        return False


def test_two_writers(path: Path) -> None:
    first = Blk(path)
    with pytest.raises(BlockingIOError, match=r"disk\.img' is in use"):
        Blk(path)
    with pytest.raises(BlockingIOError, match="lock=False shares it"):
        Blk(path, readonly=True)
    assert locked(path, fcntl.F_RDLCK)
    Blk(path, lock=False)
    assert locked(path, fcntl.F_WRLCK)
    first.detached()
    assert not locked(path, fcntl.F_WRLCK)
    Blk(path)


def test_readers_share(path: Path) -> None:
    with path.open("rb") as file:
        disks = [Blk(path, readonly=True), Blk(path, readonly=True), Blk(file)]
        with pytest.raises(BlockingIOError):
            Blk(path)
        assert locked(path, fcntl.F_WRLCK) and not locked(path, fcntl.F_RDLCK)
        for disk in disks:
            disk.detached()
        assert not locked(path, fcntl.F_WRLCK)


def test_a_borrowed_descriptor_is_unlocked(path: Path) -> None:
    with path.open("r+b") as file:
        device = Blk(file)
        assert locked(path, fcntl.F_RDLCK)
        device.detached()
        assert not locked(path, fcntl.F_WRLCK)
        device = Blk(file)
    device.detached()  # though it is closed


def test_locked_when_it_comes_back(path: Path) -> None:
    device = Blk(path)
    device.detached()
    other = Blk(path)
    with pytest.raises(BlockingIOError):
        virtio.driver(device)
    other.detached()
    with virtio.driver(device):
        pass


# -- files that change, disks that are full ------------------------------------


def test_a_file_that_became_shorter(fd: int) -> None:
    """Its end is an error to read; what is written there is there."""
    with requests(Blk(fd)).drv as drv:
        blk = Requests(drv)
        os.ftruncate(fd, 10 * SECTOR + 7)
        assert blk.read(9) == DATA[9 * SECTOR : 10 * SECTOR]
        assert blk.read(10) == IOERR
        assert blk.read(63) == IOERR
        assert str(drv.device.error).endswith(f"{fd} ends at {63 * SECTOR}")
        assert blk.write(20, b"x" * SECTOR) == OK
        assert blk.read(20) == b"x" * SECTOR
        assert blk.zero((30, 1, 0)) == OK and blk.zero((63, 1, UNMAP)) == OK
        assert blk.read(30) == bytes(SECTOR)


def test_a_file_that_cannot_grow(fd: int) -> None:
    """As on a disk that is full: what fits is written, the rest refused."""
    with requests(Blk(fd)).drv as drv:
        blk = Requests(drv)
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        assert blk.write(0, b"x" * 4096) == OK
        assert blk.write(4, b"y" * 4096) == IOERR
        assert blk.write(8, b"z" * SECTOR) == IOERR
        assert blk.zero((8, 1, 0)) == IOERR
        assert drv.device.errors == 3
        assert drv.device.error.errno == errno.EPERM
        assert blk.read(0, 4) == b"x" * 2048
    assert os.fstat(fd).st_size == 4096


def test_a_file_that_may_not_be_written(fd: int) -> None:
    with requests(Blk(fd)).drv as drv:
        blk = Requests(drv)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert blk.write(0, b"x" * SECTOR) == IOERR
        assert blk.discard((0, 1, 0)) == IOERR
        assert blk.zero((0, 1, 0)) == IOERR
        assert blk.zero((0, 1, UNMAP)) == IOERR
        assert blk.read(0, 64) == DATA


def test_a_descriptor_that_was_closed(path: Path) -> None:
    folder = os.open("/", os.O_RDONLY)
    with path.open("r+b") as file, requests(Blk(file)).drv as drv:
        blk = Requests(drv)
        assert blk.read(0) == DATA[:SECTOR]
        os.dup2(folder, file.fileno())
        assert blk.read(0) == IOERR
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert blk.flush() in (OK, IOERR)
    os.close(folder)
    assert path.read_bytes() == DATA


def test_a_flush_that_failed(path: Path, monkeypatch) -> None:
    """The kernel forgets what it could not write: no flush can mend that."""
    device = Blk(path)
    with requests(device).drv as drv:
        blk = Requests(drv)

        def fdatasync(fd: int) -> None:
            raise OSError(errno.EIO, "the disk is on fire")

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        assert blk.write(0, bytes(SECTOR)) == OK
        assert blk.flush() == IOERR
        monkeypatch.undo()
        assert blk.flush() == IOERR
        drv.write_config(32, b"\0")
        assert blk.write(0, bytes(SECTOR)) == IOERR
        assert str(device.error) == "[Errno 5] the disk is on fire"
    with requests(device).drv as drv:
        assert Requests(drv).flush() == OK


# -- holes ---------------------------------------------------------------------


def used(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_holes(fd: int) -> None:
    """What is discarded gives back its space, what is zeroed if it may."""
    with requests(Blk(fd)).drv as drv:
        blk = Requests(drv)
        before = used(fd)
        assert blk.zero((0, 8, 0)) == OK and used(fd) == before
        assert blk.zero((0, 8, UNMAP)) == OK and used(fd) == before - 4096
        assert blk.discard((8, 8, 0)) == OK and used(fd) == before - 8192
        assert blk.read(0, 64) == bytes(16 * SECTOR) + DATA[16 * SECTOR :]
        assert drv.config["capacity"] == 64


def test_files_without_holes(fd: int, monkeypatch) -> None:
    """Zeros are written, and discarding does nothing."""
    modes: list[int] = []

    def allocate(self: FileDisk, mode: int, at: int, size: int) -> bool:
        modes.append(mode & (PUNCH_HOLE | ZERO_RANGE))
        return False

    monkeypatch.setattr(FileDisk, "_allocate", allocate)
    with requests(Blk(fd)).drv as drv:
        blk = Requests(drv)
        assert blk.discard((40, 8, 0)) == OK
        assert blk.zero((0, 3, 0)) == OK and blk.zero((5, 2, UNMAP)) == OK
        assert blk.read(0, 64) == (
            bytes(3 * SECTOR)
            + DATA[3 * SECTOR : 5 * SECTOR]
            + bytes(2 * SECTOR)
            + DATA[7 * SECTOR :]
        )
    assert modes == [PUNCH_HOLE, ZERO_RANGE, PUNCH_HOLE, ZERO_RANGE]


def test_more_zeros_than_are_written_at_a_time(fd: int) -> None:
    size = (5 << 20) // 2
    os.truncate(fd, 2 * size)
    os.pwrite(fd, b"x" * 2 * size, 0)
    with requests(Blk(fd)).drv as drv:
        assert Requests(drv).zero((size // SECTOR - 1, size // SECTOR, 0)) == OK
    data = os.pread(fd, 2 * size, 0)
    assert data == (b"x" * (size - SECTOR) + bytes(size) + b"x" * SECTOR)


# -- objects -------------------------------------------------------------------


class Stingy(Recorder):
    """Gives and takes at most 100 bytes at a time."""

    def pread(self, size: int, offset: int) -> bytes:
        return super().pread(min(size, 100), offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return super().pwrite(data[:100], offset)


def test_objects_that_do_it_in_parts() -> None:
    stingy = Stingy(DATA)
    with requests(Blk(stingy)).drv as drv:
        blk = Requests(drv)
        assert blk.read(3, 2) == DATA[3 * SECTOR : 5 * SECTOR]
        assert blk.write(9, DATA[: 2 * SECTOR]) == OK
        assert blk.zero((20, 1, 0)) == OK
    assert stingy.data[9 * SECTOR : 11 * SECTOR] == DATA[: 2 * SECTOR]


class Answers:
    """Its methods answer what they are told."""

    size = 64 * SECTOR

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def pread(self, size: int, offset: int) -> object:
        return self.answer

    pwrite = pread


@pytest.mark.parametrize(
    ("answer", "call", "kind", "words"),
    [
        (bytes(513), "read", ValueError, r"pread\(512, 0\) returned 513 bytes"),
        (None, "read", TypeError, "a bytes-like object is required"),
        ("text", "read", TypeError, "a bytes-like object is required"),
        (513, "write", ValueError, r"pwrite\(\) of 512 bytes returned 513"),
        (-1, "write", ValueError, r"pwrite\(\) of 512 bytes returned -1"),
        ("x", "write", ValueError, r"pwrite\(\) of 512 bytes returned 'x'"),
    ],
)
def test_answers_that_make_no_sense(
    answer: object, call: str, kind: type, words: str
) -> None:
    """A bug of the author's: it leaves run()."""
    with requests(Blk(Answers(answer))).drv as drv:
        blk = Requests(drv)
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: blk.read(0),
            "write": lambda: blk.write(0, bytes(SECTOR)),
        }
        with pytest.raises(kind, match=words):
            calls[call]()


def test_objects_that_end() -> None:
    with requests(Blk(Answers(b""))).drv as drv:
        assert Requests(drv).read(0) == IOERR
        assert str(drv.device.error) == "[Errno 5] Answers ends at 0"
    with requests(Blk(Answers(0))).drv as drv:
        assert Requests(drv).write(0, bytes(SECTOR)) == IOERR
        assert "takes nothing" in str(drv.device.error)
    with requests(Blk(Answers(None))).drv as drv:
        assert Requests(drv).write(0, bytes(SECTOR)) == OK


def test_objects_of_any_size() -> None:
    class Endless:
        def pread(self, size: int, offset: int) -> bytes:
            return bytes(size)

    with pytest.raises(ValueError, match="Endless has no size: say size="):
        Blk(Endless())
    blk = Blk(Endless(), size=1 << 40)
    assert blk.capacity == 1 << 40
    blk.resize(1 << 41)
    assert blk.capacity == 1 << 41

    class Method(Endless):
        answer: object = 1024

        def size(self) -> object:
            return self.answer

    assert Blk(Method()).capacity == 1024
    for Method.answer in (-1, "1024"):
        with pytest.raises(ValueError, match="is no number of bytes"):
            Blk(Method())


def test_objects_without_more() -> None:
    """Without pwrite it is read-only, without discard there is none."""

    class Least:
        size = 4 * SECTOR

        def pread(self, size: int, offset: int) -> bytes:
            return bytes(size)

    class More(Least):
        def pwrite(self, data: bytes, offset: int) -> None:
            written.append((len(data), offset))

    written: list[tuple[int, int]] = []
    with requests(Blk(Least())).drv as drv:
        assert Requests(drv).write(0, bytes(SECTOR)) == IOERR
    with requests(Blk(More()), features=0).drv as drv:
        blk = Requests(drv)
        assert blk.write(0, bytes(SECTOR)) == OK and blk.flush() == OK
        assert blk.zero((1, 2, UNMAP)) == OK
        assert blk.discard((1, 2, 0)) == 2  # UNSUPP
    assert written == [(SECTOR, 0), (2 * SECTOR, SECTOR)]

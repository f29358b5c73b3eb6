# SPDX-License-Identifier: Apache-2.0
"""What a disk is made of: a file, bytes, or an object of yours.

    FileDisk     a file or block device, by path, file object or descriptor
    BytesDisk    bytearray, bytes, mmap, anything that is made of bytes
    ObjectDisk   an object with pread() and pwrite()

open_disk() finds out which. Blk is the device that a guest sees of one.

>>> disk = open_disk(bytearray(1024))
>>> disk, disk.size(), disk.readonly
(<BytesDisk bytearray>, 1024, False)
>>> open_disk(b"read only").readonly
True
>>> open_disk(3.5)
Traceback (most recent call last):
TypeError: float is no path, no file, no bytes and has no pread()
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from threading import Lock
from typing import Any

from pyvmm import virtio

PIECE = 1 << 20  # bytes that are copied at a time

# fallocate(2)
KEEP_SIZE = 1
PUNCH_HOLE = 2
ZERO_RANGE = 16
NOT_THIS_FILE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2): kind, whence, ...


class Disk:
    """What a device may ask of a disk.

    `readonly`: it cannot be written. `gathers`: several chains at a time are
    one call. `discards`: it may have a use for discard().

    Each method raises OSError when the host refuses.

    Threads: any.
    """

    readonly = False
    gathers = True
    discards = True

    def open(self) -> None:
        """Be ready, again after close()."""

    def close(self) -> None:
        """Let go; twice is once."""

    def size(self) -> int | None:
        """How many bytes there are; None: as many as you like."""
        raise NotImplementedError

    def grow(self, size: int) -> None:
        """There shall be so many bytes, if that can be."""

    def preadv(self, chains: Sequence[virtio.Chain], at: int) -> int:
        """Fill the room of chains, all but the last byte of each.

        Returns how many bytes came; 0: there is nothing.
        """
        raise NotImplementedError

    def pwritev(self, chains: Sequence[virtio.Chain], at: int) -> int:
        """Store what was not read yet of chains; how many bytes were."""
        raise NotImplementedError

    def flush(self) -> None:
        """What was stored is there even if the host fails."""

    def discard(self, at: int, size: int) -> None:
        """These bytes are of no use any more."""

    def write_zeroes(self, at: int, size: int, unmap: bool) -> None:
        """Store zeros; with `unmap` it may give the space back."""
        raise NotImplementedError

    def save(self) -> bytes | None:
        """The bytes, if they are nowhere else."""
        return None

    def restore(self, data: bytes) -> None:
        """Take back what save() returned."""


class FileDisk(Disk):
    """A file or block device.

    One that is given by its path is opened here, and closed. It is locked, so
    that nobody else writes to it, nor reads if this disk may write: by an open
    file description lock of all of it, as QEMU does. `lock=False` does not.

    When a flush has failed the kernel may have dropped what it could not
    write, and its next flush knows nothing of that: here all later ones fail
    as well, until the file is opened again.
    """

    fd = -1
    path = ""

    def __init__(self, source: Any, readonly: bool, lock: bool) -> None:
        self.source = source
        self.readonly = readonly
        self.lock = lock
        self.lost: OSError | None = None
        self._at_work = Lock()
        if isinstance(source, str | os.PathLike):
            self.path = os.path.abspath(os.fspath(source))
        self.open()

    def open(self) -> None:
        if self.fd >= 0:
            return
        fd = self._open() if self.path else self._borrow()
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise ValueError(f"{self} is no file and no block device")
            if self.lock:
                self._set_lock(
                    fd, fcntl.F_RDLCK if self.readonly else fcntl.F_WRLCK
                )
        except BaseException:
            if self.path:
                os.close(fd)
            raise
        self.fd = fd
        self.lost = None

    def _open(self) -> int:
        # O_NONBLOCK: not to wait for the other end of a FIFO.
        flags = os.O_RDONLY if self.readonly else os.O_RDWR
        return os.open(self.path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

    def _borrow(self) -> int:
        source = self.source
        fd: int = source if isinstance(source, int) else source.fileno()
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        access = flags & os.O_ACCMODE
        if access == os.O_WRONLY or flags & (os.O_APPEND | os.O_DIRECT):
            raise ValueError(
                f"{self} is open for writing only, to append, or O_DIRECT: "
                "a disk cannot use it"
            )
        self.readonly = self.readonly or access == os.O_RDONLY
        return fd

    def _set_lock(self, fd: int, kind: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, 0, 0, 0, 0))
        except BlockingIOError as exc:
            raise BlockingIOError(
                exc.errno,
                f"{self} is in use by another disk or program (lock=False "
                "shares it all the same)",
            ) from None

    def close(self) -> None:
        # A device may be taken off while it works, and then the number is
        # another file's. Transfers are no concern: they hold the queue.
        with self._at_work:
            fd, self.fd = self.fd, -1
            if fd >= 0 and self.path:
                os.close(fd)
            elif fd >= 0 and self.lock:
                with contextlib.suppress(OSError):  # its owner closed it
                    self._set_lock(fd, fcntl.F_UNLCK)

    def _file(self) -> int:
        if self.fd < 0:
            raise OSError(errno.EBADF, f"{self} was closed")
        return self.fd

    def __del__(self) -> None:
        if self.fd >= 0:
            self.close()

    def size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)

    def grow(self, size: int) -> None:
        if stat.S_ISREG(os.fstat(self.fd).st_mode) and not self.readonly:
            os.ftruncate(self.fd, max(size, self.size()))

    def preadv(self, chains: Sequence[virtio.Chain], at: int) -> int:
        return virtio.preadv(self._file(), chains, at, 1)

    def pwritev(self, chains: Sequence[virtio.Chain], at: int) -> int:
        return virtio.pwritev(self._file(), chains, at)

    def flush(self) -> None:
        if self.lost is not None:
            raise self.lost
        with self._at_work:
            try:
                os.fdatasync(self._file())
            except OSError as exc:
                self.lost = exc
                raise

    def discard(self, at: int, size: int) -> None:
        # A file that cannot have holes keeps its bytes, which is allowed.
        with self._at_work:
            self._allocate(PUNCH_HOLE | KEEP_SIZE, at, size)

    def write_zeroes(self, at: int, size: int, unmap: bool) -> None:
        with self._at_work:
            if unmap and self._allocate(PUNCH_HOLE | KEEP_SIZE, at, size):
                return
            if self._allocate(ZERO_RANGE, at, size):
                return
            zeros = bytes(min(size, PIECE))
            end = at + size
            while at < end:
                at += os.pwrite(self._file(), zeros[: end - at], at)

    def _allocate(self, mode: int, at: int, size: int) -> bool:
        """fallocate(2), which `os` has not; False: not with this file."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        place = ctypes.c_int64(at), ctypes.c_int64(size)
        while libc.fallocate(self._file(), mode, *place):
            code = ctypes.get_errno()
            if code in NOT_THIS_FILE:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def __str__(self) -> str:
        return repr(self.path or self.source)

    def __repr__(self) -> str:
        return f"<FileDisk {self}>"


class BytesDisk(Disk):
    """Anything that is made of bytes.

    Not an mmap of a file that may become shorter: that kills the process. Give
    the file.
    """

    def __init__(self, source: Any, readonly: bool) -> None:
        self.kind = type(source).__name__
        self.view = memoryview(source).cast("B")
        self.readonly = readonly or self.view.readonly

    def size(self) -> int:
        return len(self.view)

    def preadv(self, chains: Sequence[virtio.Chain], at: int) -> int:
        start = at
        for chain in chains:
            end = at + chain.writable_size - 1 - chain.written
            at += chain.write(self.view[at:end])
        return at - start

    def pwritev(self, chains: Sequence[virtio.Chain], at: int) -> int:
        start = at
        for chain in chains:
            while data := chain.read(PIECE):
                self.view[at : at + len(data)] = data
                at += len(data)
        return at - start

    def discard(self, at: int, size: int) -> None:
        self.write_zeroes(at, size, True)

    def write_zeroes(self, at: int, size: int, unmap: bool) -> None:
        for piece in range(at, at + size, PIECE):
            end = min(piece + PIECE, at + size)
            self.view[piece:end] = bytes(end - piece)

    def save(self) -> bytes:
        return bytes(self.view)

    def restore(self, data: bytes) -> None:
        if len(data) != len(self.view):
            raise ValueError(
                f"{len(data)} bytes were saved, the disk has {len(self.view)}"
            )
        if not self.readonly:
            self.view[:] = data

    def __repr__(self) -> str:
        return f"<BytesDisk {self.kind}>"


class ObjectDisk(Disk):
    """An object with pread(size, offset), and maybe more.

    `pread` returns bytes: fewer than asked for are completed by another call,
    none are an error. `pwrite(data, offset)` returns how many it took, or None
    for all; without it the disk is read-only. `size`: bytes, or a method that
    returns them. `flush()`, `discard(offset, size)` and
    `write_zeroes(offset, size, unmap)` if it has them. At most 1 MiB is asked
    for at a time.

    OSError is for what goes wrong. TypeError and ValueError here are for
    answers that make no sense.
    """

    gathers = False

    def __init__(self, source: Any, readonly: bool) -> None:
        self.source = source
        self.readonly = readonly or not hasattr(source, "pwrite")
        self.discards = hasattr(source, "discard")

    def size(self) -> int | None:
        size = getattr(self.source, "size", None)
        if callable(size):
            size = size()
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"{self}.size {size!r} is no number of bytes")
        return size

    def preadv(self, chains: Sequence[virtio.Chain], at: int) -> int:
        start = at
        for chain in chains:
            room = chain.writable_size - 1 - chain.written
            while room:
                want = min(room, PIECE)
                data = self.source.pread(want, at)
                size = len(memoryview(data))
                if size > want:
                    raise ValueError(
                        f"{self}.pread({want}, {at}) returned {size} bytes"
                    )
                if not size:
                    return at - start
                chain.write(data)
                at += size
                room -= size
        return at - start

    def pwritev(self, chains: Sequence[virtio.Chain], at: int) -> int:
        start = at
        for chain in chains:
            while data := chain.read(PIECE):
                self._write(data, at)
                at += len(data)
        return at - start

    def _write(self, data: bytes, at: int) -> None:
        while data:
            taken = self.source.pwrite(data, at)
            if taken is None:
                return
            if not isinstance(taken, int) or not 0 <= taken <= len(data):
                raise ValueError(
                    f"{self}.pwrite() of {len(data)} bytes returned {taken!r}"
                )
            if not taken:
                raise OSError(errno.EIO, f"{self}.pwrite() takes nothing")
            data = data[taken:]
            at += taken

    def flush(self) -> None:
        if hasattr(self.source, "flush"):
            self.source.flush()

    def discard(self, at: int, size: int) -> None:
        self.source.discard(at, size)

    def write_zeroes(self, at: int, size: int, unmap: bool) -> None:
        if hasattr(self.source, "write_zeroes"):
            self.source.write_zeroes(at, size, unmap)
            return
        for piece in range(at, at + size, PIECE):
            self._write(bytes(min(PIECE, at + size - piece)), piece)

    def __str__(self) -> str:
        return type(self.source).__name__

    def __repr__(self) -> str:
        return f"<ObjectDisk {self}>"


def open_disk(source: Any, readonly: bool = False, lock: bool = True) -> Disk:
    """The Disk of a path, a file, bytes or an object; TypeError for others.

    OSError when it cannot be opened or is locked, ValueError for what is no
    disk: a pipe, say.
    """
    if isinstance(source, str | os.PathLike):
        return FileDisk(source, readonly, lock)
    if isinstance(source, int) and not isinstance(source, bool):
        return FileDisk(source, readonly, lock)
    if hasattr(source, "pread"):
        return ObjectDisk(source, readonly)
    try:
        return BytesDisk(source, readonly)
    except TypeError:
        if not hasattr(source, "fileno"):
            raise TypeError(
                f"{type(source).__name__} is no path, no file, no bytes and "
                "has no pread()"
            ) from None
    return FileDisk(source, readonly, lock)

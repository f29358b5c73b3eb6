# SPDX-License-Identifier: Apache-2.0
"""A folder of the host that a guest cannot leave.

Nothing here takes a path of the guest's. One works with descriptors: each is
an inode inside the folder, and stays that inode whatever the host renames
meanwhile. From one to the next lead steps of a single name (`checked()`: no
"/", no NUL, no dots) with O_PATH and O_NOFOLLOW, so a symbolic link is only
ever a thing to look at. That is what openat2(RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS) does for a path; 9P wants to know each inode on the way,
so there are no paths to give it.

A descriptor of O_PATH opens nothing: no device, FIFO or socket of the host is
touched. To read or write, `reopen()` looks at what it is, which no longer can
change, and opens it once more by /proc/self/fd.

    Folder       descriptors, at most so many
    checked()    a name that a guest may give
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from hashlib import blake2b
from struct import Struct

STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
CLIMB = 256  # levels that ".." looks for the root, upwards
BATCH = 64 << 10  # bytes of directory entries at a time
LEAST = 512  # ... since one has 280 at most

WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT
MOST = (1 << 63) - 1  # off_t, time_t
NOW = 1 << 100  # a time in ns that is none

GETDENTS64 = 217  # asm/unistd_64.h
DIRENT = Struct("<QqHB")  # struct linux_dirent64, getdents64(2)
AT_FDCWD = -100
UTIME_NOW = (1 << 30) - 1  # utimensat(2)
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    """struct timespec."""

    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_long))


def error(number: int) -> OSError:
    """An errno, as what the server catches."""
    return OSError(number, os.strerror(number))


def call(name: str, *args: object) -> int:
    """A function of libc; OSError for -1."""
    while True:
        done: int = getattr(_libc, name)(*args)
        if done >= 0:
            return done
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise error(number)


def checked(name: bytes) -> bytes:
    """The name of an entry; EINVAL for what cannot be one.

    "." is not used in 9P (walk(5)), and ".." is for walks alone.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL)
    return name


class Folder:
    """Descriptors of what is in a folder, `limit` of them at most.

    `root`: a descriptor of the folder, which stays the caller's. `readonly`:
    nothing is opened for writing; callers ask before they change anything by
    name.

    Threads: one.
    """

    def __init__(self, root: int, readonly: bool, limit: int) -> None:
        self.root = root
        self.readonly = readonly
        self.limit = limit
        self.held = 0
        info = os.stat(root)
        self.dev, self.ino = info.st_dev, info.st_ino

    def open(
        self, path: str | bytes, flags: int, mode: int = 0, at: int = -1
    ) -> int:
        """A descriptor more; EMFILE when there are too many."""
        if self.readonly and flags & WRITES:
            raise error(errno.EROFS)
        self.reserve(1)
        fd = os.open(path, flags, mode, dir_fd=None if at < 0 else at)
        self.held += 1
        return fd

    def reserve(self, count: int) -> None:
        """EMFILE unless so many descriptors more may be opened."""
        if self.held + count > self.limit:
            raise error(errno.EMFILE)

    def close(self, fd: int) -> None:
        """One less, and even if it fails: then what was written is lost.

        Network file systems may find out as late as that (close(2)).
        """
        self.held -= 1
        os.close(fd)

    # -- from one inode to another -------------------------------------------

    def step(self, fd: int, name: bytes) -> int:
        """What is called `name` in the directory `fd`, links not followed."""
        return self.open(checked(name), STEP, at=fd)

    def up(self, fd: int) -> int:
        """The directory above `fd`, not above the root; ENOENT outside.

        The host may have moved `fd` out of the folder. So from what is above
        the root has to be found upwards, in CLIMB steps (else ELOOP).
        """
        if self.is_root(os.stat(fd)):
            return self.open(".", STEP, at=fd)
        found = self.open("..", STEP, at=fd)
        try:
            self._look_for_root(found)
        except OSError:
            self.close(found)
            raise
        return found

    def _look_for_root(self, fd: int) -> None:
        own = fd
        try:
            here = os.stat(fd)
            for _ in range(CLIMB):
                if self.is_root(here):
                    return
                above = os.open("..", STEP, dir_fd=fd)
                if fd != own:
                    os.close(fd)
                fd, below, here = above, here, os.stat(above)
                if os.path.samestat(below, here):
                    raise error(errno.ENOENT)  # the top of all
            raise error(errno.ELOOP)
        finally:
            if fd != own:
                os.close(fd)

    def is_root(self, info: os.stat_result) -> bool:
        """Whether this is the folder itself."""
        return info.st_ino == self.ino and info.st_dev == self.dev

    def path(self, fd: int) -> bytes | None:
        """Where `fd` is now, from the root; None when it is not in there."""
        root = os.readlink(b"/proc/self/fd/%d" % self.root).rstrip(b"/")
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        if path == (root or b"/"):
            return b""
        inside = path.startswith(root + b"/")
        return path[len(root) + 1 :] if inside else None

    # -- to read, write and change -------------------------------------------

    def reopen(self, fd: int, form: int, flags: int) -> int:
        """The file or directory `fd` (O_PATH) again, opened with `flags`.

        `form`: its S_IFMT. ELOOP for a symbolic link, ENXIO for what would
        reach a device or another process.
        """
        if stat.S_ISLNK(form):
            raise error(errno.ELOOP)
        if not stat.S_ISREG(form) and not stat.S_ISDIR(form):
            raise error(errno.ENXIO)
        return self.open(self.name(fd), flags | os.O_CLOEXEC | os.O_NOCTTY)

    def name(self, fd: int) -> bytes:
        """A path that leads to the very inode, to be followed."""
        return b"/proc/self/fd/%d" % fd

    def create(self, fd: int, name: bytes, flags: int, mode: int) -> int:
        """A new file in the directory `fd`, open; EEXIST if it is there."""
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return self.open(checked(name), flags, mode, at=fd)

    def set_times(self, fd: int, atime: int | None, mtime: int | None) -> None:
        """Set both times, in ns. NOW is now, None is as it was.

        Of a symbolic link its own.
        """
        times = (Timespec * 2)()
        for at, ns in zip(times, (atime, mtime), strict=True):
            if ns is None:
                at.nsec = UTIME_OMIT
            elif ns == NOW:
                at.nsec = UTIME_NOW
            else:
                at.sec, at.nsec = divmod(ns, 10**9)
        call("utimensat", AT_FDCWD, self.name(fd), times, 0)

    def entries(
        self, fd: int, size: int
    ) -> Iterator[tuple[int, int, int, bytes]]:
        """The next entries of a directory, as have `size` bytes in 9P.

        More than that only where one has more.

        Each is (inode, cookie, type, name): the cookie is where lseek() finds
        the one behind, the type that of readdir(3).
        """
        # One has 24 bytes and its name there, here 20 in steps of 8: 24 can
        # become 28. What is too much has to be read again, by a seek.
        size = min(max(size - size // 7, LEAST), BATCH)
        buffer = ctypes.create_string_buffer(size)
        count = call("syscall", GETDENTS64, fd, buffer, size)
        data = buffer.raw[:count]
        at = 0
        while at < count:
            ino, cookie, length, kind = DIRENT.unpack_from(data, at)
            name = data[at + DIRENT.size : at + length]
            yield ino, cookie, kind, name[: name.index(0)]
            at += length

    # -- what inodes are called in 9P ----------------------------------------

    def number(self, dev: int, ino: int) -> int:
        """The qid's path: of the root's file system the inode's number.

        Another one mounted in the folder has the same numbers again.
        """
        if dev == self.dev:
            return ino
        words = b"%d %d" % (dev, ino)
        return int.from_bytes(blake2b(words, digest_size=8).digest())

    def version(self, info: os.stat_result) -> int:
        """The qid's version: another one when the content has changed."""
        ns = info.st_mtime_ns
        return (ns ^ ns >> 32 ^ info.st_size) & 0xFFFF_FFFF

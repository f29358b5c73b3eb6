# SPDX-License-Identifier: Apache-2.0
"""Requests of 9P about open files: their data, entries and locks."""

import errno
import os
import stat
from collections.abc import Iterator

from .fids import Fid, Node
from .folder import MOST, checked, error
from .locks import Lock, span
from .names import bits
from .session import Session
from .wire import (
    COUNT,
    LOCK_BLOCKED,
    LOCK_NONE,
    LOCK_SUCCESS,
    LOCK_WAITS,
    LOCK_WRITE,
    pack_entries,
    pack_qid,
    pack_string,
)

CLIENT_MOST = 256  # bytes of the client's name, in a lock
DT_UNKNOWN = 0  # readdir(3); other types are S_IFMT >> 12

# The flags of open(2) that a client may give; 9P has Linux's numbers for x86.
# Others are hints about the client's own caches, or not for regular files.
OPEN_FLAGS = (
    os.O_ACCMODE
    | os.O_TRUNC
    | os.O_APPEND
    | os.O_DSYNC
    | os.O_SYNC
    | os.O_DIRECTORY
)


class Files(Session):
    """Methods with the names of requests, as in Names.

    Threads: one.
    """

    def lopen(self, number: int, flags: int) -> bytes:
        """Open a file or directory; the fid stays what it is."""
        fid = self.fids.get(number)
        node = fid.closed()
        flags = allowed(flags)
        fid.file = self.folder.reopen(node.fd, node.form, flags)
        fid.flags = flags
        return self._qid(node) + COUNT.pack(0)

    def lcreate(
        self, number: int, name: bytes, flags: int, mode: int, gid: int
    ) -> bytes:
        """Make a file in a directory, open; the fid becomes that file's.

        One that is there is opened, unless O_EXCL says otherwise.
        """
        fid = self.fids.get(number)
        fid.closed()
        folder = fid.folder()
        opened = allowed(flags) & ~os.O_DIRECTORY
        self.folder.reserve(2)
        try:
            file = self.folder.create(folder.fd, name, opened, bits(mode))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            new = self.fids.step(fid, checked(name))
        else:
            new = self._created(fid, name, file)
        try:
            node = new.inode()
            if new.file < 0:
                new.file = self.folder.reopen(node.fd, node.form, opened)
            answer = self._qid(node) + COUNT.pack(0)
        except OSError:
            self.fids.release(new)
            raise
        new.flags = opened
        self.fids.put(number, new)
        return answer

    def _created(self, fid: Fid, name: bytes, file: int) -> Fid:
        """A fid of the file that was made: that one, whatever has its name."""
        try:
            fd = self.folder.reopen(file, stat.S_IFREG, os.O_PATH)
            node = self.fids.node(fd)
        except OSError:
            self.folder.close(file)
            raise
        new = Fid(node, fid.folder().hold(), name)
        new.file = file
        return new

    def data(self, number: int, offset: int) -> int:
        """For Tread and Twrite: the descriptor of an open file."""
        file = self.fids.get(number).opened()
        if offset > MOST:
            raise error(errno.EINVAL)
        return file

    def fsync(self, number: int, datasync: int) -> bytes:
        """What was written is on the disk when this is answered."""
        file = self.fids.get(number).opened()
        if datasync:
            os.fdatasync(file)
        else:
            os.fsync(file)
        return b""

    # -- directories ---------------------------------------------------------

    def readdir(self, number: int, offset: int, count: int) -> bytes:
        """Entries from a cookie on, `count` bytes of them at most.

        The cookies are those of the host's file system, so they outlive
        changes as it has them; no more than a piece is ever in memory.
        """
        fid = self.fids.get(number)
        file = fid.opened()
        node = fid.folder()
        if offset > MOST:
            raise error(errno.EINVAL)
        if fid.at != offset:
            os.lseek(file, offset, os.SEEK_SET)
        fid.at = None
        entries = list(self.folder.entries(file, count))
        if not entries:
            fid.at = offset
            return COUNT.pack(0)
        packed, taken, after = pack_entries(self._named(node, entries), count)
        if not taken:
            raise error(errno.EINVAL)  # as getdents64(2)
        if taken == len(entries):
            fid.at = after
        return COUNT.pack(len(packed)) + packed

    def _named(
        self, node: Node, entries: list[tuple[int, int, int, bytes]]
    ) -> Iterator[tuple[bytes, int, int, bytes]]:
        """Entries with the qids of what they name."""
        root = (self.folder.dev, self.folder.ino)
        for ino, cookie, kind, name in entries:
            if name == b".." and node.inode == root:
                ino = self.folder.ino  # what is above is nobody's business
            if kind == DT_UNKNOWN:
                kind = self._kind(node, name)
            number = self.folder.number(node.inode[0], ino)
            yield pack_qid(kind << 12, 0, number), cookie, kind, name

    def _kind(self, node: Node, name: bytes) -> int:
        """The type of an entry, where the file system does not say it."""
        try:
            info = os.stat(name, dir_fd=node.fd, follow_symlinks=False)
        except OSError:
            return DT_UNKNOWN
        return stat.S_IFMT(info.st_mode) >> 12

    # -- locks ---------------------------------------------------------------

    def lock(
        self,
        number: int,
        kind: int,
        flags: int,
        start: int,
        length: int,
        process: int,
        client: bytes,
    ) -> bytes:
        """Take or free a lock; one that waits asks again by itself."""
        if flags & ~LOCK_WAITS:
            raise error(errno.EINVAL)
        inode, wanted = self._lock(number, kind, start, length, process, client)
        taken = True
        if kind == LOCK_NONE:
            self.locks.free(inode, wanted)
        else:
            taken = self.locks.take(inode, wanted)
        return bytes([LOCK_SUCCESS if taken else LOCK_BLOCKED])

    def getlock(
        self,
        number: int,
        kind: int,
        start: int,
        length: int,
        process: int,
        client: bytes,
    ) -> bytes:
        """Which lock is in the way of this one."""
        inode, wanted = self._lock(number, kind, start, length, process, client)
        other = self.locks.against(inode, wanted)
        if kind == LOCK_NONE or other is None:
            kind = LOCK_NONE
        else:
            kind = int(other.exclusive)
            start = other.start
            length = other.end - start if other.end <= MOST else 0
            process, client = other.owner
        return (
            bytes([kind])
            + start.to_bytes(8, "little")
            + length.to_bytes(8, "little")
            + process.to_bytes(4, "little")
            + pack_string(client)
        )

    def _lock(
        self,
        number: int,
        kind: int,
        start: int,
        length: int,
        process: int,
        client: bytes,
    ) -> tuple[tuple[int, int], Lock]:
        """The file, and the lock that was meant."""
        fid = self.fids.get(number)
        fid.opened()
        if kind > LOCK_NONE or len(client) > CLIENT_MOST:
            raise error(errno.EINVAL)
        begin, end = span(start, length)
        lock = Lock((process, client), number, begin, end, kind == LOCK_WRITE)
        return fid.inode().inode, lock


def allowed(flags: int) -> int:
    """Of a client's flags those that the host opens a file with."""
    if flags & os.O_ACCMODE == os.O_ACCMODE:
        raise error(errno.EINVAL)
    return flags & OPEN_FLAGS

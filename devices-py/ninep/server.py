# SPDX-License-Identifier: Apache-2.0
"""A server of 9P2000.L: what each request does to a host folder.

It knows nothing of virtio. `call()` takes the fields of a request and returns
those of its answer; `data()` is the file of a Tread or Twrite, whose caller has
the memory for it. What cannot be done raises OSError, with the errno that the
client gets.

Requests are executed one after the other, each as a whole. So there is never
one that a Tflush could find unfinished, and what a file system keeps waiting
keeps the others waiting too.
"""

import errno
import os
import stat
from typing import Any

from .fids import Fid
from .files import Files
from .folder import MOST, NOW, error
from .names import Names, bits
from .wire import (
    ATIME_GIVEN,
    COUNT,
    MAGIC,
    MTIME_GIVEN,
    NOFID,
    REQUESTS,
    SET_ATIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    SETTABLE,
    STATFS,
    UNKNOWN,
    VERSION,
    T,
    pack_attributes,
    pack_string,
)

SMALLEST = 4096  # what Linux's client accepts as a size of messages
NOBODY = 0xFFFF_FFFF  # an owner that is not to be set


class Server(Names, Files):
    """All requests; here those about the session and about attributes.

    Threads: one.
    """

    def admit(self, kind: int) -> None:
        """OSError for a request that is not even looked at."""
        request = REQUESTS.get(kind)
        if request is None:
            raise error(errno.EOPNOTSUPP)
        if not self.msize and kind != T.VERSION:
            raise error(errno.EPROTO)
        if request.changes and self.folder.readonly and kind != T.REMOVE:
            raise error(errno.EROFS)

    def call(self, kind: int, fields: list[Any]) -> bytes:
        """Do what a request wants; the fields of the answer."""
        method = getattr(self, REQUESTS[kind].name)
        answer: bytes = method(*fields)
        return answer

    # -- session -------------------------------------------------------------

    def version(self, msize: int, version: bytes) -> bytes:
        """Begin anew (version(5)): all fids end."""
        self.close()
        if msize < SMALLEST:
            raise error(errno.EMSGSIZE)
        msize = min(msize, self.most)
        if version != VERSION:
            return COUNT.pack(msize) + pack_string(UNKNOWN)
        self.msize = msize
        return COUNT.pack(msize) + pack_string(VERSION)

    def auth(self, afid: int, uname: bytes, aname: bytes, uid: int) -> bytes:
        """No one has to prove who they are."""
        raise error(errno.EOPNOTSUPP)

    def attach(
        self, fid: int, afid: int, uname: bytes, aname: bytes, uid: int
    ) -> bytes:
        """The root. All users of the guest are one here."""
        self.fids.check_free(fid)
        if afid != NOFID:
            raise error(errno.EBADF)
        if aname not in (b"", b"/"):
            raise error(errno.ENOENT)
        root = self.fids.root()
        self.fids.put(fid, root)
        return self._qid(root.inode())

    def flush(self, tag: int) -> bytes:
        """What came before has its answer already."""
        return b""

    # -- attributes ----------------------------------------------------------

    def getattr(self, number: int, mask: int) -> bytes:
        """What stat(2) says, whatever was asked for."""
        info = os.stat(self.fids.get(number).inode().fd)
        return pack_attributes(self._qid_from(info), info)

    def setattr(
        self,
        number: int,
        valid: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        atime: int,
        atime_ns: int,
        mtime: int,
        mtime_ns: int,
    ) -> bytes:
        """Mode, size and times; an owner only if it is that already.

        What is not allowed is refused before anything is done.
        """
        fid = self.fids.get(number)
        node = fid.inode()
        if valid & ~SETTABLE:
            raise error(errno.EINVAL)
        times = [
            moment(valid & SET_ATIME, valid & ATIME_GIVEN, atime, atime_ns),
            moment(valid & SET_MTIME, valid & MTIME_GIVEN, mtime, mtime_ns),
        ]
        info = os.stat(node.fd)
        for bit, wanted, owner in (
            (SET_UID, uid, info.st_uid),
            (SET_GID, gid, info.st_gid),
        ):
            if valid & bit and wanted not in (owner, NOBODY):
                raise error(errno.EPERM)
        if valid & SET_MODE:
            if node.form == stat.S_IFLNK:
                raise error(errno.EOPNOTSUPP)
            mode = (
                stat.S_IMODE(mode) if node.form == stat.S_IFDIR else bits(mode)
            )
        if valid & SET_SIZE:
            self._truncate(fid, size)
        path = self.folder.name(node.fd)
        if valid & SET_MODE:
            os.chmod(path, mode)
        if times != [None, None]:
            self.folder.set_times(node.fd, *times)
        return b""

    def _truncate(self, fid: Fid, size: int) -> None:
        node = fid.inode()
        if node.form == stat.S_IFDIR:
            raise error(errno.EISDIR)
        if node.form != stat.S_IFREG or size > MOST:
            raise error(errno.EINVAL)
        if fid.file >= 0 and fid.flags & os.O_ACCMODE:
            os.ftruncate(fid.file, size)
        else:
            os.truncate(self.folder.name(node.fd), size)

    def statfs(self, number: int) -> bytes:
        """The file system that a fid is on."""
        info = os.statvfs(self.fids.get(number).inode().fd)
        return STATFS.pack(
            MAGIC,
            info.f_frsize,  # the unit of blocks: statvfs(3)
            info.f_blocks,
            info.f_bfree,
            info.f_bavail,
            info.f_files,
            info.f_ffree,
            info.f_fsid,
            info.f_namemax,
        )

    def xattrwalk(self, number: int, new: int, name: bytes) -> bytes:
        """There are none: some give a program of the host capabilities."""
        raise error(errno.EOPNOTSUPP)

    def xattrcreate(
        self, number: int, name: bytes, size: int, flags: int
    ) -> bytes:
        """There are none."""
        raise error(errno.EOPNOTSUPP)


def moment(wanted: int, given: int, seconds: int, ns: int) -> int | None:
    """A time of a Tsetattr, as Folder.set_times() takes it."""
    if not wanted:
        return None
    if not given:
        return NOW
    if ns >= 10**9:
        raise error(errno.EINVAL)
    if seconds > MOST:
        seconds -= 1 << 64
    return seconds * 10**9 + ns

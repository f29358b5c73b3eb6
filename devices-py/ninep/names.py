# SPDX-License-Identifier: Apache-2.0
"""Requests of 9P about names: to walk, to make, to rename, to remove."""

import errno
import os
import stat

from .fids import Node
from .folder import checked, error
from .session import Session
from .wire import AT_REMOVEDIR, MOST_NAMES, pack_string


class Names(Session):
    """Methods with the names of requests, and their fields as arguments.

    They return the fields of the answer; what cannot be done is OSError.

    Threads: one.
    """

    def walk(self, number: int, new: int, names: list[bytes]) -> bytes:
        """From a fid to another one, name by name."""
        start = self.fids.get(number)
        if new != number:
            self.fids.check_free(new)
        elif names:
            start.closed()  # would lose its file
        if len(names) > MOST_NAMES:
            raise error(errno.EINVAL)
        if new == number and not names:
            return b"\0\0"
        qids: list[bytes] = []
        here = self.fids.clone(start)
        try:
            for name in names:
                found = self.fids.step(here, name)
                self.fids.release(here)
                here = found
                qids.append(self._qid(here.inode()))
        except OSError:
            self.fids.release(here)
            if not qids:
                raise
            # Part of the way is told, and there is no new fid (walk(5)).
            return len(qids).to_bytes(2, "little") + b"".join(qids)
        self.fids.put(new, here)
        return len(qids).to_bytes(2, "little") + b"".join(qids)

    def readlink(self, number: int) -> bytes:
        """What a symbolic link says; the guest makes of it what it likes."""
        node = self.fids.get(number).inode()
        if node.form != stat.S_IFLNK:
            raise error(errno.EINVAL)
        return pack_string(os.readlink(b"", dir_fd=node.fd))

    def symlink(
        self, number: int, name: bytes, target: bytes, gid: int
    ) -> bytes:
        """A symbolic link, to wherever; here it is never followed."""
        folder = self.fids.get(number).folder()
        if b"\0" in target:
            raise error(errno.EINVAL)
        os.symlink(target, checked(name), dir_fd=folder.fd)
        return self._qid_of(folder, name)

    def mkdir(self, number: int, name: bytes, mode: int, gid: int) -> bytes:
        """A directory."""
        folder = self.fids.get(number).folder()
        mode &= 0o777 | stat.S_ISVTX
        os.mkdir(checked(name), mode, dir_fd=folder.fd)
        return self._qid_of(folder, name)

    def mknod(
        self,
        number: int,
        name: bytes,
        mode: int,
        major: int,
        minor: int,
        gid: int,
    ) -> bytes:
        """A regular file, empty; EPERM for devices, FIFOs and sockets."""
        folder = self.fids.get(number).folder()
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise error(errno.EPERM)
        fd = self.folder.create(folder.fd, name, os.O_WRONLY, bits(mode))
        self.folder.close(fd)
        return self._qid_of(folder, name)

    def link(self, directory: int, number: int, name: bytes) -> bytes:
        """A further name of a file."""
        folder = self.fids.get(directory).folder()
        node = self.fids.get(number).inode()
        if node.form == stat.S_IFDIR:
            raise error(errno.EPERM)
        path = self.folder.name(node.fd)
        os.link(path, checked(name), dst_dir_fd=folder.fd)
        return b""

    def rename(self, number: int, directory: int, name: bytes) -> bytes:
        """Rename what a fid is."""
        fid = self.fids.get(number)
        folder = self.fids.get(directory).folder()
        before, old = fid.place()
        self._rename(before, old, folder, name)
        fid.move(folder, name)
        return b""

    def renameat(
        self, directory: int, old: bytes, into: int, name: bytes
    ) -> bytes:
        """Rename an entry of a directory."""
        before = self.fids.get(directory).folder()
        self._rename(before, old, self.fids.get(into).folder(), name)
        return b""

    def _rename(
        self, before: Node, old: bytes, into: Node, name: bytes
    ) -> None:
        os.rename(
            checked(old),
            checked(name),
            src_dir_fd=before.fd,
            dst_dir_fd=into.fd,
        )

    def unlinkat(self, number: int, name: bytes, flags: int) -> bytes:
        """Remove an entry of a directory."""
        folder = self.fids.get(number).folder()
        if flags & ~AT_REMOVEDIR:
            raise error(errno.EINVAL)
        if flags:
            os.rmdir(checked(name), dir_fd=folder.fd)
        else:
            os.unlink(checked(name), dir_fd=folder.fd)
        return b""

    def remove(self, number: int) -> bytes:
        """Remove what a fid is; the fid ends in any case (remove(5))."""
        fid = self.fids.get(number)
        try:
            if self.folder.readonly:
                raise error(errno.EROFS)
            folder, name = fid.place()
            if fid.inode().form == stat.S_IFDIR:
                os.rmdir(name, dir_fd=folder.fd)
            else:
                os.unlink(name, dir_fd=folder.fd)
        finally:
            self.clunk(number)
        return b""


def bits(mode: int) -> int:
    """The permissions of a file that a client may set.

    EPERM for set-user-ID and set-group-ID: a program with them would run in
    the name of who runs this one.
    """
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise error(errno.EPERM)
    return stat.S_IMODE(mode)

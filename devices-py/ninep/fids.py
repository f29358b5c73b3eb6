# SPDX-License-Identifier: Apache-2.0
"""Fids: the numbers by which a 9P client names what it has walked to.

Node     an inode of the folder, by a descriptor that fids share
Fid      a node, where it was found, and an open file on it
Fids     all of a client, at most so many
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from .folder import Folder, error
from .wire import NOFID


class Node:
    """An inode: `fd` (O_PATH), its form (S_IFMT) and its number.

    Closed with its last user.
    """

    __slots__ = ("_folder", "_users", "fd", "form", "inode")

    def __init__(self, folder: Folder, fd: int) -> None:
        self._folder = folder
        self._users = 1
        self.fd = fd
        info = os.stat(fd)
        self.form = stat.S_IFMT(info.st_mode)
        self.inode = (info.st_dev, info.st_ino)

    def hold(self) -> "Node":
        """One user more."""
        self._users += 1
        return self

    def drop(self) -> None:
        """One less."""
        self._users -= 1
        if not self._users:
            with contextlib.suppress(OSError):  # nothing was written by it
                self._folder.close(self.fd)

    def is_at(self, directory: "Node", name: bytes) -> bool:
        """Whether that is where it is (now: the host may rename it)."""
        try:
            info = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self.inode


class Fid:
    """`node`, and the `directory` it was found in as `name`.

    `directory` is None for the root, and for what ".." led to; `node` is None
    for one that could not be restored. Once open: `file`, its descriptor, and
    `flags`, those it was opened with. `at`: the cookie where reading the
    directory goes on, None when lseek() has to tell.
    """

    __slots__ = ("at", "directory", "file", "flags", "name", "node")

    def __init__(
        self,
        node: Node | None,
        directory: Node | None = None,
        name: bytes = b"",
    ) -> None:
        self.node = node
        self.directory = directory
        self.name = name
        self.file = -1
        self.flags = 0
        self.at: int | None = 0

    def inode(self) -> Node:
        """Its node; ESTALE when it got lost."""
        if self.node is None:
            raise error(errno.ESTALE)
        return self.node

    def folder(self) -> Node:
        """Its node, if a directory; ENOTDIR."""
        node = self.inode()
        if node.form != stat.S_IFDIR:
            raise error(errno.ENOTDIR)
        return node

    def opened(self) -> int:
        """The descriptor of the open file; EBADF when it is not open."""
        self.inode()
        if self.file < 0:
            raise error(errno.EBADF)
        return self.file

    def closed(self) -> Node:
        """Its node, if it is not open; EINVAL."""
        node = self.inode()
        if self.file >= 0:
            raise error(errno.EINVAL)
        return node

    def place(self) -> tuple[Node, bytes]:
        """The directory it is in, and what it is called there.

        EBUSY for the root, ENOENT when the host has moved it.
        """
        node = self.inode()
        if self.directory is None:
            raise error(errno.EBUSY)
        if not node.is_at(self.directory, self.name):
            raise error(errno.ENOENT)
        return self.directory, self.name

    def is_still(self, inode: Sequence[int] | None, flags: int | None) -> bool:
        """Whether it is of this inode, and open like that (None: not)."""
        return (
            self.node is not None
            and inode is not None
            and self.node.inode == tuple(inode)
            and (self.flags if self.file >= 0 else None) == flags
        )

    def move(self, directory: Node, name: bytes) -> None:
        """It is elsewhere now."""
        directory.hold()
        if self.directory is not None:
            self.directory.drop()
        self.directory, self.name = directory, name


class Fids:
    """The fids of a client, `limit` of them at most.

    Threads: one.
    """

    def __init__(self, folder: Folder, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._by_number: dict[int, Fid] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def __iter__(self) -> Iterator[tuple[int, Fid]]:
        return iter(sorted(self._by_number.items()))

    def get(self, number: int) -> Fid:
        """The fid of this number; EBADF."""
        fid = self._by_number.get(number)
        if fid is None:
            raise error(errno.EBADF)
        return fid

    def check_free(self, number: int) -> None:
        """EBADF unless a new fid may have this number, EMFILE if none may."""
        if number == NOFID or number in self._by_number:
            raise error(errno.EBADF)
        if len(self._by_number) >= self.limit:
            raise error(errno.EMFILE)

    def put(self, number: int, fid: Fid) -> None:
        """A fid of this number, in place of the one there was."""
        before = self._by_number.get(number)
        self._by_number[number] = fid
        if before is not None:
            self._let_go(before)

    def drop(self, number: int) -> None:
        """End a fid; EBADF, or what its file has to say at its end."""
        self.get(number)
        self._let_go(self._by_number.pop(number))

    def clear(self) -> None:
        """End all of them."""
        while self._by_number:
            with contextlib.suppress(OSError):
                self._let_go(self._by_number.popitem()[1])

    def _let_go(self, fid: Fid) -> None:
        for node in (fid.node, fid.directory):
            if node is not None:
                node.drop()
        if fid.file >= 0:
            self.folder.close(fid.file)

    # -- on the way ----------------------------------------------------------

    def root(self) -> Fid:
        """A fid of the folder itself."""
        return Fid(self.node(self.folder.up(self.folder.root)))

    def clone(self, fid: Fid) -> Fid:
        """Another one of the same, not open."""
        node, directory = fid.inode().hold(), fid.directory
        return Fid(node, directory and directory.hold(), fid.name)

    def step(self, fid: Fid, name: bytes) -> Fid:
        """One of what is called so in there, or of what is above."""
        node = fid.folder()
        if name == b"..":
            return Fid(self.node(self.folder.up(node.fd)))
        found = self.node(self.folder.step(node.fd, name))
        return Fid(found, node.hold(), name)

    def release(self, fid: Fid) -> None:
        """End one that has no number."""
        self._let_go(fid)

    def node(self, fd: int) -> Node:
        """The node of a descriptor, which becomes its own."""
        try:
            return Node(self.folder, fd)
        except OSError:
            self.folder.close(fd)
            raise

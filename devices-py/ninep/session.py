# SPDX-License-Identifier: Apache-2.0
"""What a client of 9P has on the server: a message size, fids, locks."""

import errno
import os
from collections.abc import Mapping
from typing import Any

from .fids import Fid, Fids, Node
from .folder import Folder, checked, error
from .locks import Lock, Locks
from .wire import pack_qid


class Session:
    """A client's session on a folder.

    `most`: the largest message, in bytes. `limit`: how many fids.

    Threads: one.
    """

    def __init__(self, folder: Folder, most: int, limit: int) -> None:
        self.folder = folder
        self.most = most
        self.msize = 0  # no version yet
        self.fids = Fids(folder, limit)
        self.locks = Locks()

    def close(self) -> None:
        """End all fids, and the locks with them."""
        self.fids.clear()
        self.locks = Locks()
        self.msize = 0

    def clunk(self, number: int) -> bytes:
        """Tclunk: end a fid, and the locks that were taken by it."""
        fid = self.fids.get(number)
        if fid.file >= 0 and fid.node is not None:
            self.locks.forget(fid.node.inode, number)
        self.fids.drop(number)
        return b""

    # -- qids ----------------------------------------------------------------

    def _qid(self, node: Node) -> bytes:
        return self._qid_from(os.stat(node.fd))

    def _qid_of(self, folder: Node, name: bytes) -> bytes:
        return self._qid_from(
            os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        )

    def _qid_from(self, info: os.stat_result) -> bytes:
        number = self.folder.number(info.st_dev, info.st_ino)
        return pack_qid(info.st_mode, self.folder.version(info), number)

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """The session: numbers and strings, no descriptors.

        A fid becomes the path where it is now, the inode, and how it is open.
        """
        fids = []
        for number, fid in self.fids:
            path = inode = None
            if fid.node is not None:
                path = self.folder.path(fid.node.fd)
                inode = list(fid.node.inode)
            fids.append(
                [
                    number,
                    None if path is None else os.fsdecode(path),
                    inode,
                    fid.flags if fid.file >= 0 else None,
                ]
            )
        return {
            "msize": self.msize,
            "fids": fids,
            "locks": self.locks.save(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() has returned.

        A fid that there is with the same inode, open in the same way, stays.
        For others the path is walked again, as a client would have to, and
        leads to the same inode or the fid is lost: whatever is asked of it
        answers ESTALE.
        """
        if wrong := sorted({*state} ^ {"msize", "fids", "locks"}):
            raise ValueError(f"the state of a session: {', '.join(wrong)}?")
        self.msize = min(state["msize"], self.most)
        wanted = {number: rest for number, *rest in state["fids"]}
        for number, fid in self.fids:
            _, inode, flags = wanted.get(number, (None, None, None))
            if not fid.is_still(inode, flags):
                self.fids.drop(number)
        for number, (path, inode, flags) in wanted.items():
            if number not in self.fids:
                self.fids.put(number, self._again(path, inode, flags))
        self.locks = Locks()
        for number, process, client, start, end, exclusive in state["locks"]:
            node = self.fids.get(number).node
            if node is not None:
                owner = (process, client)
                lock = Lock(owner, number, start, end, exclusive)
                self.locks.take(node.inode, lock)

    def _again(
        self, path: str | None, inode: list[int] | None, flags: int | None
    ) -> Fid:
        """A fid of what is there, if it is that inode."""
        if path is None or inode is None:
            return Fid(None)
        here = None
        try:
            here = self.fids.root()
            for name in os.fsencode(path).split(b"/") if path else ():
                found = self.fids.step(here, checked(name))
                self.fids.release(here)
                here = found
            node = here.inode()
            if list(node.inode) != list(inode):
                raise error(errno.ESTALE)
            if flags is not None:
                flags &= ~os.O_TRUNC
                here.file = self.folder.reopen(node.fd, node.form, flags)
                here.flags = flags
                here.at = None
        except OSError:
            if here is not None:
                self.fids.release(here)
            return Fid(None)
        return here

# SPDX-License-Identifier: Apache-2.0
"""Record locks, as fcntl(2) has them, among the processes of a guest.

They are kept here and not in the host's files: a process of the guest's would
own them there, of which the host knows nothing, and a hostile guest could keep
programs of the host from their files. So programs of the host neither see nor
hold them.
"""

import errno
from typing import NamedTuple

from .folder import MOST, error

LIMIT = 1024  # locks of all files; a request looks at those of one

Inode = tuple[int, int]  # device and number
Owner = tuple[int, bytes]  # process and host, as the guest calls them


class Lock(NamedTuple):
    """Bytes `start` up to `end`, which is not one of them."""

    owner: Owner
    fid: int  # by which it was taken
    start: int
    end: int
    exclusive: bool

    def conflicts(self, other: "Lock") -> bool:
        """Whether not both can be."""
        return (
            self.owner != other.owner
            and (self.exclusive or other.exclusive)
            and self.start < other.end
            and other.start < self.end
        )


def span(start: int, length: int) -> tuple[int, int]:
    """Where a lock begins and ends; a length of 0 reaches to the end.

    EOVERFLOW when that is behind the largest offset.
    """
    end = start + (length or MOST + 1)
    if start > MOST or (length and end > MOST + 1):
        raise error(errno.EOVERFLOW)
    return start, min(end, MOST + 1)


class Locks:
    """The locks of all files, at most LIMIT.

    Threads: one.
    """

    def __init__(self) -> None:
        self._of: dict[Inode, list[Lock]] = {}
        self.count = 0

    def against(self, inode: Inode, lock: Lock) -> Lock | None:
        """The first of the locks that forbid this one."""
        for other in self._of.get(inode, ()):
            if lock.conflicts(other):
                return other
        return None

    def take(self, inode: Inode, lock: Lock) -> bool:
        """Take a lock; its owner's own ones give way. False: another's do not.

        ENOLCK when there are too many.
        """
        if self.against(inode, lock) is not None:
            return False
        rest = self._without(inode, lock)
        start, end = lock.start, lock.end
        for other in list(rest):
            # What touches becomes one: byte for byte must not add up.
            if (
                other.owner == lock.owner
                and other.exclusive == lock.exclusive
                and other.start <= end
                and start <= other.end
            ):
                start, end = min(start, other.start), max(end, other.end)
                rest.remove(other)
        self._replace(inode, [*rest, lock._replace(start=start, end=end)])
        return True

    def free(self, inode: Inode, lock: Lock) -> None:
        """Give up what the owner has of these bytes.

        ENOLCK when that makes two of one and there are too many.
        """
        self._replace(inode, self._without(inode, lock))

    def forget(self, inode: Inode, fid: int) -> None:
        """The fid has been closed: all locks of its owners go (fcntl(2))."""
        locks = self._of.get(inode, [])
        owners = {lock.owner for lock in locks if lock.fid == fid}
        if owners:
            self._replace(
                inode, [lock for lock in locks if lock.owner not in owners]
            )

    def _without(self, inode: Inode, lock: Lock) -> list[Lock]:
        """The locks of a file, less the bytes of this one for its owner."""
        rest = []
        for other in self._of.get(inode, ()):
            if other.owner != lock.owner:
                rest.append(other)
                continue
            if other.start < lock.start:
                end = min(other.end, lock.start)
                rest.append(other._replace(end=end))
            if lock.end < other.end:
                start = max(other.start, lock.end)
                rest.append(other._replace(start=start))
        return rest

    def _replace(self, inode: Inode, locks: list[Lock]) -> None:
        count = self.count - len(self._of.get(inode, ())) + len(locks)
        if count > max(LIMIT, self.count):
            raise error(errno.ENOLCK)
        self.count = count
        if locks:
            self._of[inode] = locks
        else:
            self._of.pop(inode, None)

    # -- state ---------------------------------------------------------------

    def save(self) -> list[list[object]]:
        """Those of each fid, without the file: that is its fid's."""
        return [
            [lock.fid, *lock.owner, lock.start, lock.end, lock.exclusive]
            for locks in self._of.values()
            for lock in locks
        ]

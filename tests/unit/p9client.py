# SPDX-License-Identifier: Apache-2.0
"""A client of 9P2000.L for tests, written from the protocol alone.

    with client(NineP(path)) as p9:         # version and attach done: fid 0
        p9.walk(0, 1, b"folder", b"file")
        p9.lopen(1, os.O_RDONLY)
        assert p9.read(1, 0, 100) == b"text"

Each method is a request; it returns the fields of the answer and raises
OSError with the errno of an Rlerror. It shares no code with the device.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pyvmm import virtio

NOTAG = 0xFFFF
NOFID = 0xFFFF_FFFF
RLERROR = 7
TYPES = {
    "statfs": 8,
    "lopen": 12,
    "lcreate": 14,
    "symlink": 16,
    "mknod": 18,
    "rename": 20,
    "readlink": 22,
    "getattr": 24,
    "setattr": 26,
    "xattrwalk": 30,
    "xattrcreate": 32,
    "readdir": 40,
    "fsync": 50,
    "lock": 52,
    "getlock": 54,
    "link": 70,
    "mkdir": 72,
    "renameat": 74,
    "unlinkat": 76,
    "version": 100,
    "auth": 102,
    "attach": 104,
    "flush": 108,
    "walk": 110,
    "read": 116,
    "write": 118,
    "clunk": 120,
    "remove": 122,
}
ATTRIBUTES = (
    *("valid", "type", "version", "path", "mode", "uid", "gid", "nlink"),
    *("rdev", "size", "blksize", "blocks", "atime", "atime_ns", "mtime"),
    *("mtime_ns", "ctime", "ctime_ns", "btime", "btime_ns", "gen", "data"),
)


class Qid(NamedTuple):
    type: int
    version: int
    path: int


class Entry(NamedTuple):
    qid: Qid
    cookie: int
    type: int
    name: bytes


class Unanswered(Exception):
    """The device completed the request without a message."""


def pack(layout: str, *fields: Any) -> bytes:
    """Numbers by the letters of struct, `s` for a string."""
    out = b""
    for letter, field in zip(layout, fields, strict=True):
        if letter == "s":
            out += struct.pack("<H", len(field)) + field
        else:
            out += struct.pack("<" + letter, field)
    return out


def message(kind: int, body: bytes, tag: int = 1) -> bytes:
    return struct.pack("<IBH", 7 + len(body), kind, tag) + body


def request(name: str, layout: str, *fields: Any, tag: int = 1) -> bytes:
    return message(TYPES[name], pack(layout, *fields), tag)


class Client:
    """Requests to the device of `drv`, one at a time."""

    def __init__(self, drv: virtio.Driver, msize: int = 1 << 16) -> None:
        self.drv = drv
        self.msize = msize
        self.tag = 0

    def send(
        self,
        kind: int,
        body: bytes,
        room: int | Sequence[int] = 4096,
        cut: Sequence[int] = (),
    ) -> bytes:
        """A message, its bytes cut into buffers; the answer's fields."""
        self.tag = (self.tag + 1) % NOTAG
        data = message(kind, body, self.tag)
        edges = [0, *cut, len(data)]
        pieces = [data[a:b] for a, b in pairwise(edges)]
        reply = self.drv.requests(*pieces, reply=room)
        return self.parse(reply, kind)

    def parse(self, reply: bytes, kind: int) -> bytes:
        if not reply:
            raise Unanswered
        size, got, tag = struct.unpack_from("<IBH", reply)
        assert size == len(reply), "the size is not that of the answer"
        assert tag == self.tag
        if got == RLERROR:
            assert size == 11
            (number,) = struct.unpack_from("<I", reply, 7)
            raise OSError(number, os.strerror(number))
        assert got == kind + 1
        return reply[7:]

    def ask(self, name: str, layout: str, *fields: Any, **how: Any) -> bytes:
        return self.send(TYPES[name], pack(layout, *fields), **how)

    # -- session -------------------------------------------------------------

    def version(
        self, msize: int | None = None, version: bytes = b"9P2000.L"
    ) -> tuple[int, bytes]:
        got = self.ask("version", "Is", msize or self.msize, version)
        size, length = struct.unpack_from("<IH", got)
        assert len(got) == 6 + length
        return size, got[6:]

    def attach(self, fid: int, aname: bytes = b"", afid: int = NOFID) -> Qid:
        got = self.ask("attach", "IIssI", fid, afid, b"root", aname, 0)
        return qid(got)

    def flush(self, tag: int) -> None:
        assert self.ask("flush", "H", tag) == b""

    def clunk(self, fid: int) -> None:
        assert self.ask("clunk", "I", fid) == b""

    def remove(self, fid: int) -> None:
        assert self.ask("remove", "I", fid) == b""

    # -- names ---------------------------------------------------------------

    def walk(self, fid: int, new: int, *names: bytes) -> list[Qid]:
        """The qids of the names walked; fewer than names: no new fid."""
        layout = "IIH" + "s" * len(names)
        got = self.ask("walk", layout, fid, new, len(names), *names)
        (count,) = struct.unpack_from("<H", got)
        assert len(got) == 2 + 13 * count and count <= len(names)
        return [qid(got[2 + 13 * i : 15 + 13 * i]) for i in range(count)]

    def readlink(self, fid: int) -> bytes:
        got = self.ask("readlink", "I", fid)
        assert len(got) == 2 + int.from_bytes(got[:2], "little")
        return got[2:]

    def symlink(self, fid: int, name: bytes, target: bytes) -> Qid:
        return qid(self.ask("symlink", "IssI", fid, name, target, 0))

    def mkdir(self, fid: int, name: bytes, mode: int = 0o755) -> Qid:
        return qid(self.ask("mkdir", "IsII", fid, name, mode, 0))

    def mknod(self, fid: int, name: bytes, mode: int) -> Qid:
        return qid(self.ask("mknod", "IsIIII", fid, name, mode, 1, 3, 0))

    def link(self, directory: int, fid: int, name: bytes) -> None:
        assert self.ask("link", "IIs", directory, fid, name) == b""

    def rename(self, fid: int, directory: int, name: bytes) -> None:
        assert self.ask("rename", "IIs", fid, directory, name) == b""

    def renameat(self, old: int, name: bytes, new: int, to: bytes) -> None:
        assert self.ask("renameat", "IsIs", old, name, new, to) == b""

    def unlinkat(self, fid: int, name: bytes, flags: int = 0) -> None:
        assert self.ask("unlinkat", "IsI", fid, name, flags) == b""

    # -- attributes ----------------------------------------------------------

    def getattr(self, fid: int, mask: int = 0x3FFF) -> dict[str, int]:
        got = self.ask("getattr", "IQ", fid, mask)
        values = struct.unpack("<QBIQIIIQQQQQQQQQQQQQQQ", got)
        return dict(zip(ATTRIBUTES, values, strict=True))

    def setattr(
        self,
        fid: int,
        valid: int,
        mode: int = 0,
        uid: int = NOFID,
        gid: int = NOFID,
        size: int = 0,
        atime: tuple[int, int] = (0, 0),
        mtime: tuple[int, int] = (0, 0),
    ) -> None:
        fields = (fid, valid, mode, uid, gid, size, *atime, *mtime)
        assert self.ask("setattr", "IIIIIQQQQQ", *fields) == b""

    def statfs(self, fid: int) -> tuple[int, ...]:
        return struct.unpack("<IIQQQQQQI", self.ask("statfs", "I", fid))

    # -- files ---------------------------------------------------------------

    def lopen(self, fid: int, flags: int = os.O_RDONLY) -> Qid:
        got = self.ask("lopen", "II", fid, flags)
        assert got[13:] == bytes(4)
        return qid(got[:13])

    def lcreate(
        self, fid: int, name: bytes, flags: int, mode: int = 0o644
    ) -> Qid:
        got = self.ask("lcreate", "IsIII", fid, name, flags, mode, 0)
        assert got[13:] == bytes(4)
        return qid(got[:13])

    def read(
        self,
        fid: int,
        offset: int,
        count: int,
        room: int | Sequence[int] | None = None,
    ) -> bytes:
        room = 11 + min(count, self.msize) if room is None else room
        got = self.ask("read", "IQI", fid, offset, count, room=room)
        assert len(got) == 4 + int.from_bytes(got[:4], "little")
        return got[4:]

    def write(
        self, fid: int, offset: int, data: bytes, cut: Sequence[int] = ()
    ) -> int:
        body = struct.pack("<IQI", fid, offset, len(data)) + data
        got = self.send(TYPES["write"], body, cut=cut)
        assert len(got) == 4
        return int.from_bytes(got, "little")

    def fsync(self, fid: int, datasync: int = 0) -> None:
        assert self.ask("fsync", "II", fid, datasync) == b""

    def readdir(
        self, fid: int, offset: int = 0, count: int = 4000
    ) -> list[Entry]:
        got = self.ask("readdir", "IQI", fid, offset, count, room=11 + count)
        assert len(got) == 4 + int.from_bytes(got[:4], "little")
        assert len(got) - 4 <= count
        entries = []
        at = 4
        while at < len(got):
            cookie, kind, length = struct.unpack_from("<QBH", got, at + 13)
            entry = qid(got[at : at + 13])
            at += 24 + length
            assert at <= len(got)
            entries.append(Entry(entry, cookie, kind, got[at - length : at]))
        return entries

    def list(self, fid: int, count: int = 4000) -> dict[bytes, Entry]:
        """All entries of an open directory; each comes once."""
        found: dict[bytes, Entry] = {}
        offset = 0
        while entries := self.readdir(fid, offset, count):
            for entry in entries:
                assert entry.name not in found
                found[entry.name] = entry
            offset = entries[-1].cookie
        return found

    def lock(
        self,
        fid: int,
        kind: int,
        start: int = 0,
        length: int = 0,
        process: int = 1,
        client: bytes = b"guest",
        flags: int = 0,
    ) -> int:
        fields = (fid, kind, flags, start, length, process, client)
        (status,) = self.ask("lock", "IBIQQIs", *fields)
        return status

    def getlock(
        self,
        fid: int,
        kind: int,
        start: int = 0,
        length: int = 0,
        process: int = 1,
        client: bytes = b"guest",
    ) -> tuple[int, int, int, int, bytes]:
        fields = (fid, kind, start, length, process, client)
        got = self.ask("getlock", "IBQQIs", *fields)
        values = struct.unpack_from("<BQQIH", got)
        assert len(got) == 23 + values[-1]
        return (*values[:-1], got[23:])


def qid(data: bytes) -> Qid:
    assert len(data) == 13
    return Qid(*struct.unpack("<BIQ", data))


@contextlib.contextmanager
def client(
    device: virtio.Device, msize: int = 1 << 16, **options: Any
) -> Iterator[Client]:
    """A client that has attached the root as fid 0."""
    with virtio.driver(device, **options) as drv:
        p9 = Client(drv, msize)
        p9.msize, version = p9.version()
        assert version == b"9P2000.L"
        p9.attach(0)
        yield p9


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The request in the body is answered with this errno."""
    try:
        yield
    except OSError as exc:
        assert exc.errno == number, (
            f"{errno.errorcode.get(exc.errno or 0)}, "
            f"not {errno.errorcode[number]}"
        )
    else:
        raise AssertionError(f"it was done, not {errno.errorcode[number]}")

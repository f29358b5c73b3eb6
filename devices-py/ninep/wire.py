# SPDX-License-Identifier: Apache-2.0
"""Messages of 9P2000.L, from and to bytes.

A message is size[4] type[1] tag[2] and its fields, all little endian. `size`
counts itself. A string is size[2] and its bytes; a qid, which names a file for
good, is type[1] version[4] path[8].

    REQUESTS     what there is to ask for: name, fields, bytes of the answer
    Layout       the fields of a message, from bytes
    Malformed    they are not what was promised

Sources: Linux, include/net/9p/9p.h and net/9p/protocol.c; diod, protocol.md;
Plan 9 manual, section 5.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import Any

VERSION = b"9P2000.L"
UNKNOWN = b"unknown"  # the answer to any other version: version(5)
NOTAG = 0xFFFF
NOFID = 0xFFFF_FFFF
MOST_NAMES = 16  # of a walk

HEADER = Struct("<IBH")
ERROR = Struct("<IBHI")  # Rlerror: its header, and an errno of Linux
COUNT = Struct("<I")
WRITE = Struct("<IQI")  # Twrite, but for its data
QID = Struct("<BIQ")
RLERROR = 7

QT_DIR = 0x80
QT_SYMLINK = 0x02
QT_FILE = 0x00

# Fields of Tsetattr, by the bits of its `valid`.
SET_MODE = 0x001
SET_UID = 0x002
SET_GID = 0x004
SET_SIZE = 0x008
SET_ATIME = 0x010
SET_MTIME = 0x020
SET_CTIME = 0x040
ATIME_GIVEN = 0x080  # else it is now
MTIME_GIVEN = 0x100
SETTABLE = 0x1FF

BASIC = 0x7FF  # fields of Rgetattr that stat(2) has
AT_REMOVEDIR = 0x200
MAGIC = 0x0102_1997  # of 9P, as a file system's type

# Types of locks, and what comes of wanting one.
LOCK_READ = 0
LOCK_WRITE = 1
LOCK_NONE = 2
LOCK_SUCCESS = 0
LOCK_BLOCKED = 1
LOCK_WAITS = 1  # a flag


class T(IntEnum):
    """Types of requests; the answer's is one more."""

    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class Malformed(OSError):
    """A message that is none: the guest gets EPROTO."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EPROTO, what)


class Layout:
    """Fields of a message, a letter each.

    B, H, I and Q are numbers of 1, 2, 4 and 8 bytes, s is a string, and n is
    count[2] and so many strings.
    """

    __slots__ = ("parts",)

    def __init__(self, fields: str) -> None:
        self.parts = [
            part if part in "sn" else Struct("<" + part)
            for part in re.findall("[BHIQ]+|s|n", fields)
        ]

    def unpack(self, data: bytes) -> list[Any]:
        """The values in `data`, which they fill; Malformed if not."""
        values: list[Any] = []
        at = 0
        for part in self.parts:
            if isinstance(part, Struct):
                if len(data) - at < part.size:
                    raise Malformed("it ends too early")
                values += part.unpack_from(data, at)
                at += part.size
            elif part == "s":
                text, at = string(data, at)
                values.append(text)
            else:
                count, at = number(data, at)
                # Each takes two bytes at least: no loop without bytes.
                names = []
                for _ in range(count):
                    text, at = string(data, at)
                    names.append(text)
                values.append(names)
        if at != len(data):
            raise Malformed(f"{len(data) - at} bytes too many")
        return values


def number(data: bytes, at: int) -> tuple[int, int]:
    """A number of two bytes, and where the next field begins."""
    if len(data) - at < 2:
        raise Malformed("it ends too early")
    return data[at] | data[at + 1] << 8, at + 2


def string(data: bytes, at: int) -> tuple[bytes, int]:
    """A string, and where the next field begins."""
    size, at = number(data, at)
    if len(data) - at < size:
        raise Malformed("a string ends too early")
    return data[at : at + size], at + size


class Request:
    """A kind of request: `name`, `layout`, and two things to know before.

    `reply`: bytes of the answer, header included; of one with names or data
    those without. `changes`: whether it changes the folder.
    """

    __slots__ = ("changes", "layout", "name", "reply")

    def __init__(
        self, name: str, fields: str, reply: int = 7, changes: bool = False
    ) -> None:
        self.name = name
        self.layout = Layout(fields)
        self.reply = reply
        self.changes = changes


REQUESTS: dict[int, Request] = {
    T.STATFS: Request("statfs", "I", 67),
    T.LOPEN: Request("lopen", "II", 24),
    T.LCREATE: Request("lcreate", "IsIII", 24, changes=True),
    T.SYMLINK: Request("symlink", "IssI", 20, changes=True),
    T.MKNOD: Request("mknod", "IsIIII", 20, changes=True),
    T.RENAME: Request("rename", "IIs", changes=True),
    T.READLINK: Request("readlink", "I", 9),
    T.GETATTR: Request("getattr", "IQ", 160),
    T.SETATTR: Request("setattr", "IIIIIQQQQQ", changes=True),
    T.XATTRWALK: Request("xattrwalk", "IIs", 15),
    T.XATTRCREATE: Request("xattrcreate", "IsQI", changes=True),
    T.READDIR: Request("readdir", "IQI", 11),
    T.FSYNC: Request("fsync", "II"),
    T.LOCK: Request("lock", "IBIQQIs", 8),
    T.GETLOCK: Request("getlock", "IBQQIs", 30),
    T.LINK: Request("link", "IIs", changes=True),
    T.MKDIR: Request("mkdir", "IsII", 20, changes=True),
    T.RENAMEAT: Request("renameat", "IsIs", changes=True),
    T.UNLINKAT: Request("unlinkat", "IsI", changes=True),
    T.VERSION: Request("version", "Is", 13 + len(VERSION)),
    T.AUTH: Request("auth", "IssI", 20),
    T.ATTACH: Request("attach", "IIssI", 20),
    T.FLUSH: Request("flush", "H"),
    T.WALK: Request("walk", "IIn", 9),
    T.READ: Request("read", "IQI", 11),
    T.WRITE: Request("write", "IQI", 11, changes=True),  # and data
    T.CLUNK: Request("clunk", "I"),
    T.REMOVE: Request("remove", "I", changes=True),
}

STATFS = Struct("<IIQQQQQQI")
# valid, qid, mode, uid, gid, nlink and so on; three that stat(2) has not.
ATTRIBUTES = Struct("<Q13sIIIQQQQQQQQQQQ32x")
ENTRY = Struct("<13sQBH")  # of a directory; the name follows


def pack_string(text: bytes) -> bytes:
    """A string as a field."""
    return len(text).to_bytes(2, "little") + text


def pack_attributes(qid: bytes, info: os.stat_result) -> bytes:
    """The answer to a Tgetattr; times of birth and the like are 0."""
    return ATTRIBUTES.pack(
        BASIC,
        qid,
        info.st_mode,
        info.st_uid,
        info.st_gid,
        info.st_nlink,
        info.st_rdev,
        info.st_size,
        info.st_blksize,
        info.st_blocks,
        *seconds(info.st_atime_ns),
        *seconds(info.st_mtime_ns),
        *seconds(info.st_ctime_ns),
    )


def seconds(ns: int) -> tuple[int, int]:
    """A time, which may be before 1970, as two fields."""
    whole, rest = divmod(ns, 10**9)
    return whole & (1 << 64) - 1, rest


def pack_qid(mode: int, version: int, path: int) -> bytes:
    """A qid; `mode` is that of stat(2)."""
    return QID.pack(qid_type(stat.S_IFMT(mode)), version, path)


def qid_type(form: int) -> int:
    """The qid's type of a file of this form (S_IFDIR and so on)."""
    return {stat.S_IFDIR: QT_DIR, stat.S_IFLNK: QT_SYMLINK}.get(form, QT_FILE)


def pack_entries(
    entries: Iterable[tuple[bytes, int, int, bytes]], room: int
) -> tuple[bytes, int, int]:
    """Entries of a directory, as many as there is room for.

    Each is (qid, cookie of the next one, type, name). Returns the bytes, how
    many entries they are, and the last one's cookie.
    """
    packed = bytearray()
    count = after = 0
    for qid, cookie, kind, name in entries:
        if len(packed) + ENTRY.size + len(name) > room:
            break
        packed += ENTRY.pack(qid, cookie, kind, len(name)) + name
        count += 1
        after = cookie
    return bytes(packed), count, after

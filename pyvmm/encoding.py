# SPDX-License-Identifier: Apache-2.0
"""Plain values as bytes and back, for files that nobody need trust.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
frozenset and deque; enums as their values. What is in two places is one object
again, also when it holds itself, but for keys and what is in sets. Reading
makes nothing else and calls nothing that the bytes name; it takes no more
memory than some times their length.

Each value is a letter and what docs/snapshot-file.md says of it.
"""

from __future__ import annotations

import struct
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # What stands for an object that is not encoded: a letter and a number.
    Mark = tuple[bytes, int]
    Marker = Callable[[object], Mark | None]
    Finder = Callable[[bytes, int], object]

DEEPEST = 100  # containers in each other
LONG = 1 << 63  # more than any deque has
MARKS = b"DMX"  # letters of objects that only the reader has
U32 = struct.Struct("<I")
FLOAT = struct.Struct("<d")
COMPLEX = struct.Struct("<dd")


class Unencodable(Exception):
    """A value is not one of those; `where` it is in the whole, such as [3]."""

    def __init__(self, where: str, value: object) -> None:
        super().__init__(f"{where}, a {type(value).__name__}")
        self.where = where
        self.value = value


def encode(value: object, mark: Marker | None = None, name: str = "") -> bytes:
    """The bytes of a value.

    `mark(object)` may give a letter of MARKS and a number that stand for an
    object. Unencodable for what is no such value; `name` is what it calls the
    whole.
    """
    writer = Writer(mark)
    writer.add(value, name, 0)
    return b"".join(writer.parts)


def decode(data: bytes, find: Finder | None = None) -> Any:
    """The value of the bytes; ValueError when they are none.

    `find(letter, number)` gives the object that a mark stands for.
    """
    reader = Reader(data, find)
    value = reader.take(0)
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes behind a value")
    return value


class Writer:
    """Bytes in the making."""

    def __init__(self, mark: Marker | None) -> None:
        self.parts: list[bytes] = []
        self._mark = mark
        self._seen: dict[int, int] = {}  # containers, by id: which one it is
        self._key = False  # inside one: nothing is referred to

    def add(self, value: Any, where: str, depth: int) -> None:
        """Write one value, which is at `where`."""
        mark = self._mark(value) if self._mark is not None else None
        if mark is not None:
            self.parts.append(mark[0] + U32.pack(mark[1]))
            return
        kind = type(value)
        simple = SIMPLE.get(kind)
        if simple is not None:
            self.parts.append(simple(value))
        elif kind in CONTAINERS:
            self._add_container(value, where, depth)
        elif is_enum(value):
            self.add(value.value, where, depth)
        else:
            raise Unencodable(where, value)

    def _add_container(self, value: Any, where: str, depth: int) -> None:
        if not self._key:
            seen = self._seen.get(id(value))
            if seen is not None:
                self.parts.append(b"R" + U32.pack(seen))
                return
            self._seen[id(value)] = len(self._seen)
        if depth == DEEPEST:
            raise Unencodable(f"{where} ({DEEPEST} levels deep)", value)
        kind = type(value)
        self.parts.append(CONTAINERS[kind] + U32.pack(len(value)))
        if kind is bytearray:
            self.parts.append(bytes(value))
            return
        if kind is deque:
            most = value.maxlen
            self.parts.append(b"N" if most is None else pack_int(most))
        if kind is dict:
            for key, item in value.items():
                self._add_key(key, f"a key of {where}", depth + 1)
                at = key if not where and isinstance(key, str) else f"[{key!r}]"
                self.add(item, where + at[:60], depth + 1)
            return
        add = self._add_key if kind in (set, frozenset) else self.add
        for index, item in enumerate(value):
            add(item, f"{where}[{index}]", depth + 1)

    def _add_key(self, key: Any, where: str, depth: int) -> None:
        """What is hashed: shared parts of it would make that take for ever."""
        before, self._key = self._key, True
        self.add(key, where, depth)
        self._key = before


def is_enum(value: object) -> bool:
    """Whether it is a member of an enum."""
    from enum import Enum

    return isinstance(value, Enum)


def pack_int(value: int) -> bytes:
    """An int of any size: two's complement, little endian."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"i" + U32.pack(len(data)) + data


def pack_str(value: str) -> bytes:
    """Text; what is no Unicode passes."""
    data = value.encode("utf-8", "surrogatepass")
    return b"s" + U32.pack(len(data)) + data


SIMPLE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: pack_int,
    float: lambda value: b"f" + FLOAT.pack(value),
    complex: lambda value: b"c" + COMPLEX.pack(value.real, value.imag),
    str: pack_str,
    bytes: lambda value: b"b" + U32.pack(len(value)) + value,
}

CONTAINERS: dict[type, bytes] = {
    bytearray: b"a",
    list: b"l",
    tuple: b"t",
    dict: b"d",
    set: b"S",
    frozenset: b"Z",
    deque: b"q",
}


class Reader:
    """Bytes on the way back; they may be anybody's."""

    def __init__(self, data: bytes, find: Finder | None) -> None:
        self.data = data
        self.at = 0
        self._find = find
        self._made: list[object] = []  # containers, in their order
        self._hashed = False  # inside a key, where none is counted

    def take(self, depth: int) -> Any:
        """The next value."""
        letter = self._bytes(1)
        if letter == b"N":
            return None
        if letter in b"TF":
            return letter == b"T"
        if letter == b"f":
            return FLOAT.unpack(self._bytes(8))[0]
        if letter == b"c":
            return complex(*COMPLEX.unpack(self._bytes(16)))
        number = U32.unpack(self._bytes(4))[0]
        if letter == b"i":
            return int.from_bytes(self._bytes(number), "little", signed=True)
        if letter == b"s":
            return self._bytes(number).decode("utf-8", "surrogatepass")
        if letter == b"b":
            return self._bytes(number)
        if letter == b"R":
            return self._again(number)
        if letter in MARKS:
            return self._find(letter, number) if self._find else None
        return self._container(letter, number, depth)

    def _bytes(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise ValueError(f"{count} bytes are wanted, {len(found)} left")
        self.at += count
        return found

    def _again(self, number: int) -> object:
        made = self._made
        if self._hashed or number >= len(made) or made[number] is self:
            raise ValueError(f"value {number} cannot be referred to here")
        return made[number]

    def _container(self, letter: bytes, count: int, depth: int) -> Any:
        if depth == DEEPEST:
            raise ValueError(f"containers are more than {DEEPEST} levels deep")
        # Each item has a byte at least: no count makes this take long.
        if count > len(self.data) - self.at:
            raise ValueError(f"{count} items are more than there are bytes")
        mine = len(self._made)
        if not self._hashed:
            self._made.append(self)  # what cannot be referred to yet
        value = self._filled(letter, count, depth + 1, mine)
        if not self._hashed:
            self._made[mine] = value
        return value

    def _filled(self, letter: bytes, count: int, depth: int, mine: int) -> Any:
        """A container with its items, which may refer to it if it can change"""
        if letter == b"a":
            return bytearray(self._bytes(count))
        if letter == b"t":
            return tuple([self.take(depth) for _ in range(count)])
        if letter == b"S":
            return {self._key(depth) for _ in range(count)}
        if letter == b"Z":
            return frozenset([self._key(depth) for _ in range(count)])
        if letter not in b"lqd" or self._hashed:
            raise ValueError(f"{letter!r} is no value, or none here")
        if letter == b"d":
            table: dict[object, object] = {}
            self._made[mine] = table
            for _ in range(count):
                key = self._key(depth)
                table[key] = self.take(depth)
            return table
        row: Any = [] if letter == b"l" else deque(maxlen=self._most())
        self._made[mine] = row
        for _ in range(count):
            row.append(self.take(depth))
        return row

    def _most(self) -> int | None:
        most = self.take(DEEPEST)
        if most is not None and (type(most) is not int or not 0 <= most < LONG):
            raise ValueError(f"{most!r} is no greatest length")
        return most

    def _key(self, depth: int) -> Any:
        before, self._hashed = self._hashed, True
        key = self.take(depth)
        self._hashed = before
        try:
            hash(key)
        except TypeError:
            raise ValueError(f"a {type(key).__name__} is no key") from None
        return key

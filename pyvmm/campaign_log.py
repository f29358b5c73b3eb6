# SPDX-License-Identifier: Apache-2.0
"""The log of a campaign: what is done, so that it can go on after anything.

A line of JSON for each batch, written at once. The first says which campaign
it is. A line that was cut off by the end of a process is no line.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from itertools import groupby, pairwise
from zlib import crc32

from .errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from .campaign_worker import Found

VERSION = 1


def sum_of(inputs: Iterable[bytes]) -> int:
    """A checksum of inputs, each with its length."""
    value = 0
    for data in inputs:
        value = crc32(data, crc32(len(data).to_bytes(8, "little"), value))
    return value


class Done:
    """A row of inputs that are done: from `start` to before `end`.

    `sum`: of the inputs. `found`: what became of them.
    """

    __slots__ = ("end", "found", "start", "sum")

    def __init__(self, start: int, end: int, checksum: int, found: Found):
        self.start = start
        self.end = end
        self.sum = checksum
        self.found = found


def line_of(start: int, inputs: Sequence[bytes], found: Found) -> bytes:
    """A line of the log, for a batch."""
    outcomes, codes = found
    rows = [
        (len(list(group)), code) for code, group in groupby(array("I", codes))
    ]
    row = {
        "start": start,
        "end": start + len(inputs),
        "sum": sum_of(inputs),
        "outcomes": outcomes,
        "runs": rows,
    }
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def done_of(line: bytes) -> Done:
    """What a line says; ValueError."""
    row = json.loads(line)
    try:
        codes = array("I")
        for count, code in row["runs"]:
            codes.extend([code] * count)
        outcomes = [tuple(outcome) for outcome in row["outcomes"]]
        start, end = row["start"], row["end"]
        whole = 0 <= start < end and len(codes) == end - start
        if not whole or not all(code < len(outcomes) for code in codes):
            raise ValueError("it does not go together")
        if not all(len(outcome) == 6 for outcome in outcomes):
            raise ValueError("an outcome is not six values")
        return Done(start, end, row["sum"], (outcomes, codes.tobytes()))
    except (KeyError, TypeError, OverflowError) as exc:
        raise ValueError(f"no batch: {exc!r}") from None


class Log:
    """A log that is open, for one campaign at a time.

    `done`: what it had when it was opened, in order. Error when it is of
    another campaign, damaged, or in use.

    Threads: one.
    """

    def __init__(self, path: str, about: dict[str, Any]) -> None:
        self.path = path
        self.done: list[Done] = []
        self._fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        try:
            self._lock()
            self._take_over({"pyvmm campaign": VERSION, **about})
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(
                f"{self.path} is the log of a campaign that runs"
            ) from (None)

    def _take_over(self, about: dict[str, Any]) -> None:
        lines, length = lines_of(self.path)
        os.ftruncate(self._fd, length)  # a line that was cut off
        if not lines:
            self._write(json.dumps(about).encode() + b"\n")
            return
        head = head_of(lines[0], self.path)
        for name, value in about.items():
            if head.get(name) != value:
                raise Error(
                    f"{self.path} is the log of another campaign: its {name} "
                    f"is {head.get(name)!r}, not {value!r}"
                )
        self.done = rows_of(lines, self.path)

    def _write(self, line: bytes) -> None:
        """All of a line, or none of it as far as a reader can tell."""
        while line:
            line = line[os.write(self._fd, line) :]

    def add(self, start: int, inputs: Sequence[bytes], found: Found) -> None:
        """A batch is done."""
        self._write(line_of(start, inputs, found))

    def close(self) -> None:
        """It is on the disk."""
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1


def lines_of(path: str) -> tuple[list[bytes], int]:
    """The whole lines of a file, and how many bytes they have."""
    with open(path, "rb") as file:
        data = file.read()
    length = data.rfind(b"\n") + 1
    return data[:length].split(b"\n")[:-1], length


def head_of(line: bytes, path: str) -> dict[str, Any]:
    """The first line; Error."""
    try:
        head = json.loads(line)
    except ValueError:
        head = None
    if not isinstance(head, dict) or "pyvmm campaign" not in head:
        raise Error(f"{path} is no log of a campaign")
    return head


def rows_of(lines: list[bytes], path: str) -> list[Done]:
    """All batches, by where they begin; Error."""
    found = []
    for number, line in enumerate(lines[1:], 2):
        try:
            found.append(done_of(line))
        except ValueError as exc:
            raise Error(f"{path} is damaged, line {number}: {exc}") from None
    found.sort(key=lambda done: done.start)
    for before, after in pairwise(found):
        if after.start < before.end:
            raise Error(
                f"{path} is damaged: input {after.start} is twice in it"
            )
    return found


def read(path: str) -> Iterator[Done]:
    """The batches of a log, by where they begin; OSError, Error."""
    lines, _ = lines_of(path)
    head = head_of(lines[0], path) if lines else None
    if head is None or head["pyvmm campaign"] != VERSION:
        raise Error(f"{path} is no log of a campaign of version {VERSION}")
    return iter(rows_of(lines, path))

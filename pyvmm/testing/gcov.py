# SPDX-License-Identifier: Apache-2.0
"""Line coverage of guests: the counters of gcc's -fprofile-arcs.

An image compiled with `-fprofile-arcs -ftest-coverage -fprofile-info-section`
has a section .gcov_info, of pointers to a description of each object file and
its counters. They are read from the guest's memory, which costs the guest
nothing, added up, and given to `gcov` in files of its own format.

Source: gcc/gcov-io.h and libgcc/libgcov.h of GCC 10 to 15.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile

from ..errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine import Machine

SECTION = b".gcov_info"
MAGIC = 0x67636461  # "gcda"
TAG_FUNCTION = 0x01000000
TAG_COUNTER = 0x01A10000  # and 1 << 17 for each further kind
TAG_SUMMARY = 0xA1000000

# What an image may have; beyond it is none.
UNITS_MAX = 65536
FUNCTIONS_MAX = 65536
COUNTERS_MAX = 1 << 20

# Counts by line, by file.
Lines = dict[str, dict[int, int]]


class Function:
    """A function: what identifies it, and its counters in the guest's memory.

    `counters`: the kind, how many, and the (gpa, size) pieces of each array.
    """

    def __init__(
        self,
        key: tuple[int, int, int],
        counters: list[tuple[int, int, list[tuple[int, int]]]],
    ) -> None:
        self.key = key
        self.counters = counters


class Unit:
    """An object file. `name`: of its .gcda, which lies beside its .gcno."""

    def __init__(
        self, header: tuple[int, int, int], name: str, functions: list[Function]
    ) -> None:
        self.header = header  # version, stamp, checksum
        self.name = name
        self.functions = functions

    def read(self, machine: Machine) -> list[int]:
        """All counters as they are now."""
        found: list[int] = []
        for function in self.functions:
            for _, count, pieces in function.counters:
                data = b"".join(machine.memory.read(*one) for one in pieces)
                found += struct.unpack(f"<{count}Q", data)
        return found

    def pack(self, values: list[int]) -> bytes:
        """A .gcda file with these counters."""
        version, stamp, checksum = self.header
        major = gcc_major(version)
        unit = 4 if major >= 12 else 1  # lengths are in bytes, or words
        words = [MAGIC, version, stamp]
        if major >= 12:
            words.append(checksum)
        words += [TAG_SUMMARY, 2 * unit, 1, max(values, default=0) & 0xFFFFFFFF]
        rest = iter(values)
        for function in self.functions:
            words += [TAG_FUNCTION, 3 * unit, *function.key]
            for kind, count, _ in function.counters:
                words += [TAG_COUNTER + (kind << 17), 2 * count * unit]
                for _ in range(count):
                    value = next(rest)
                    words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
        return struct.pack(f"<{len(words) + 1}I", *words, 0)


def gcc_major(version: int) -> int:
    """The major version of the gcc that has written this: "B22*" is 12.2."""
    text = struct.pack(">I", version)
    return (text[0] - ord("A")) * 10 + text[1] - ord("0")


def kinds_of(major: int) -> int:
    """How many kinds of counters there are: GCOV_COUNTERS."""
    if not 10 <= major <= 15:
        raise Error(f"coverage of gcc {major} is not known: it is of 10 to 15")
    return {14: 9, 15: 10}.get(major, 8)


# -- reading an image --------------------------------------------------------


def section(data: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Address and size of a section of an ELF file; None: it has none."""
    wide = data[4] == 2
    at, size, count, index = struct.unpack_from(
        "<Q10xHHH" if wide else "<I10xHHH", data, 0x28 if wide else 0x20
    )
    layout = struct.Struct("<IIQQQQ" if wide else "<IIIIII")

    def header(i: int) -> tuple[int, ...]:
        return layout.unpack_from(data, at + i * size)

    if not count or index >= count:
        return None
    names = header(index)[4]
    for i in range(count):
        name, _, _, address, _, length = header(i)
        start = names + name
        if data[start : start + len(wanted) + 1] == wanted + b"\0":
            return address, length
    return None


class Reader:
    """Reads the descriptions in a guest's memory, which may hold anything."""

    def __init__(self, machine: Machine, wide: bool) -> None:
        self.memory = machine.cpu.mem
        self.machine = machine
        self.width = 8 if wide else 4

    def words(self, address: int, layout: str) -> tuple[int, ...]:
        """Fields there: I of 32 bits, P a pointer, with C's alignment.

        A struct that has both begins with "A".
        """
        format_, at = "<", 0
        for letter in layout:
            align = 4 if letter == "I" else self.width
            size = 0 if letter == "A" else align
            format_ += "x" * (-at % align)
            if size:
                format_ += "Q" if size == 8 else "I"
            at += -at % align + size
        return struct.unpack(format_, self.memory.read(address, at))

    def units(self, address: int, size: int) -> Iterator[Unit]:
        """Those that a section of that place points to."""
        count = size // self.width
        if count > UNITS_MAX:
            raise Error(f"{SECTION.decode()} has {count} entries")
        for pointer in self.words(address, "P" * count):
            yield self.unit(pointer)

    def unit(self, address: int) -> Unit:
        """struct gcov_info."""
        (version,) = self.words(address, "I")
        major = gcc_major(version)
        kinds = kinds_of(major)
        checked = "I" if major >= 12 else ""
        fields = self.words(address, "IPI" + checked + "P" + "P" * kinds + "IP")
        stamp = fields[2]
        checksum = fields[3] if checked else 0
        filename, *merge = fields[3 + len(checked) : -2]
        used = [kind for kind in range(kinds) if merge[kind]]
        count, functions = fields[-2:]
        if count > FUNCTIONS_MAX:
            raise Error(f"an object with {count} functions")
        name = self.memory.cstring(filename).decode(errors="replace")
        pointers = self.words(functions, "P" * count) if count else ()
        found = [
            self.function(pointer, address, used)
            for pointer in pointers
            if pointer
        ]
        return Unit(
            (version, stamp, checksum),
            name,
            [f for f in found if f is not None],
        )

    def function(
        self, address: int, unit: int, used: list[int]
    ) -> Function | None:
        """struct gcov_fn_info; None when another object has it."""
        fields = self.words(address, "PIII" + "AIP" * len(used))
        if fields[0] != unit:
            return None
        counters = []
        for i, kind in enumerate(used):
            count, values = fields[4 + 2 * i : 6 + 2 * i]
            if count > COUNTERS_MAX:
                raise Error(f"a function with {count} counters")
            # Where they are: later there may be other page tables.
            pieces = self.memory._pieces(values, 8 * count)
            counters.append((kind, count, pieces))
        return Function((fields[1], fields[2], fields[3]), counters)


def read_units(machine: Machine) -> list[Unit]:
    """The objects of a machine's image that have counters."""
    data = machine.symbols._data
    place = section(data, SECTION) if data is not None else None
    if data is None or place is None:
        return []
    return list(Reader(machine, data[4] == 2).units(*place))


# -- adding up ---------------------------------------------------------------


class Counters:
    """The counters of one machine, and what was seen of them last."""

    def __init__(self, machine: Machine) -> None:
        self.units = read_units(machine)
        self._base = [unit.read(machine) for unit in self.units]
        self._seen = [[0] * len(values) for values in self._base]

    def collect(self, machine: Machine, totals: Totals) -> None:
        """Add what was counted since the last time."""
        for unit, seen in zip(self.units, self._seen, strict=True):
            now = unit.read(machine)
            totals.add(
                unit, [max(0, a - b) for a, b in zip(now, seen, strict=True)]
            )
            seen[:] = now

    def restored(self) -> None:
        """The machine is back where it had booted."""
        self._seen = [list(values) for values in self._base]


class Totals:
    """Sums of counters over tests and machines, by object file.

    Threads: one.
    """

    def __init__(self) -> None:
        self._units: dict[tuple[object, ...], tuple[Unit, list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._units)

    def add(self, unit: Unit, values: list[int]) -> None:
        """Count these, too."""
        key = (unit.name, unit.header, len(values))
        if key not in self._units:
            self._units[key] = (unit, [0] * len(values))
        total = self._units[key][1]
        for i, value in enumerate(values):
            total[i] += value

    def lines(self) -> Lines:
        """By file and line how often each was run, says gcov.

        Raises Error when it is not there, or a .gcno is missing.
        """
        found: Lines = {}
        for unit, values in self._units.values():
            for path, counts in run_gcov(unit, values).items():
                merge(found.setdefault(path, {}), counts)
        return found


def merge(into: dict[int, int], counts: dict[int, int]) -> None:
    """Add counts of lines."""
    for line, count in counts.items():
        into[line] = into.get(line, 0) + count


def run_gcov(unit: Unit, values: list[int]) -> Lines:
    """What gcov makes of one object's counters."""
    stem = unit.name.removesuffix(".gcda")
    if not os.path.exists(f"{stem}.gcno"):
        raise Error(
            f"{stem}.gcno is not there: gcc has made it beside the object, "
            "and coverage needs it"
        )
    tool = os.environ.get("GCOV", "gcov")
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as folder:
        base = os.path.join(folder, os.path.basename(stem))
        os.symlink(os.path.abspath(f"{stem}.gcno"), f"{base}.gcno")
        with open(f"{base}.gcda", "wb") as file:
            file.write(unit.pack(values))
        try:
            done = subprocess.run(
                [tool, "--json-format", "--stdout", f"{base}.gcda"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as exc:
            raise Error(f"coverage needs {tool!r}, of gcc: {exc}") from None
    if done.returncode or not done.stdout.startswith("{"):
        raise Error(f"{tool}: {done.stderr.strip() or done.stdout.strip()}")
    found: Lines = {}
    for text in done.stdout.splitlines():
        report = json.loads(text)
        for file_ in report["files"]:
            path = os.path.normpath(
                os.path.join(report["current_working_directory"], file_["file"])
            )
            counts = found.setdefault(path, {})
            for line in file_["lines"]:
                merge(counts, {line["line_number"]: line["count"]})
    return found

# SPDX-License-Identifier: Apache-2.0
"""The tests that an image has, and what one of them has left behind.

Both are read from what the guest says, which may be anything: an image that
makes no sense is a ValueError, a record that is not what the runner writes is
told as such and never passes. Source: guest/include/test.h.
"""

from __future__ import annotations

from struct import Struct

from .. import _vmm, x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TEST_MAGIC = 0x74737470
TEST_VERSION = 1

TEST_STATE_READY = 1
TEST_STATE_RUNNING = 2
TEST_STATE_PASSED = 3
TEST_STATE_FAILED = 4
TEST_STATE_SKIPPED = 5

TEST_EXIT_PASSED = 0
TEST_EXIT_FAILED = 1
TEST_EXIT_SKIPPED = 77
TEST_EXIT_READY = 0x5E7

TEST_KIND_NONE = 0
TEST_KIND_SIGNED = 1
TEST_KIND_UNSIGNED = 2
TEST_KIND_POINTER = 3
TEST_KIND_STRING = 4
TEST_KIND_MEMORY = 5

TEST_FAILURES_MAX = 8
TEST_DATA_MAX = 64
TEST_CHECK_STEP = 0x9E37_79B9_7F4A_7C15

# struct pyvmm_test, 64 bytes.
TEST = Struct("<QQQIIQIIIIQ")
TEST_FIELDS = (
    "name", "run", "file", "line", "timeout", "params", "param_count",
    "param_size", "param_kind", "magic", "reserved",
)  # fmt: skip

# struct pyvmm_test_record up to the failures.
RECORD = Struct("<IIIIIIQQQ")
RECORD_FIELDS = (
    "magic", "version", "state", "failures", "test", "param", "nonce", "check",
    "reason",
)  # fmt: skip

# struct pyvmm_test_failure.
FAILURE = Struct("<QQQQIIII64s64s")
FAILURE_FIELDS = (
    "file", "expression", "left", "right", "line", "kind", "left_len",
    "right_len", "left_data", "right_data",
)  # fmt: skip

# What the host writes: test, param, nonce.
ASKED = Struct("<IIQ")
ASKED_AT = 16

START, STOP = "pyvmm_tests_start", "pyvmm_tests_stop"
RECORD_SYMBOL = "pyvmm_test_record"
WORD = "pyvmm.test"  # on the command line: a host asks

# State: the status that the run ends with.
EXITS = {
    TEST_STATE_PASSED: TEST_EXIT_PASSED,
    TEST_STATE_FAILED: TEST_EXIT_FAILED,
    TEST_STATE_SKIPPED: TEST_EXIT_SKIPPED,
}
STATES = {
    TEST_STATE_READY: "ready",
    TEST_STATE_RUNNING: "running",
    TEST_STATE_PASSED: "passed",
    TEST_STATE_FAILED: "failed",
    TEST_STATE_SKIPPED: "skipped",
}

# Limits of what an image may ask for.
IMAGE_MAX = 1 << 30  # bytes of address space
TESTS_MAX = 100_000  # with their parameters
NAME_MAX = 200
TEXT_MAX = 1000

MASK = (1 << 64) - 1


class GuestTest:
    """One test with one parameter.

    `index` and `param` are what the record is told; `name` has the parameter
    in brackets. `file` and `line`: where it is in the source. `timeout`:
    seconds, or None.
    """

    __slots__ = ("file", "index", "line", "name", "param", "timeout")

    def __init__(
        self,
        index: int,
        param: int,
        name: str,
        file: str,
        line: int,
        timeout: int | None,
    ) -> None:
        self.index = index
        self.param = param
        self.name = name
        self.file = file
        self.line = line
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<GuestTest {self.name} {self.file}:{self.line}>"


# -- the tests of an image ---------------------------------------------------


class Content:
    """The bytes of an image by virtual address, without a machine.

    Threads: one.
    """

    def __init__(self, data: bytes) -> None:
        self.elf = _vmm.ELF(data)
        mask = ~(x86.PAGE - 1)
        segments = self.elf.segments
        low = min(paddr for paddr, *_ in segments) & mask
        high = max(p + memsz + x86.PAGE - 1 for p, _, _, memsz, _ in segments)
        size = (high & mask) - low
        if size > IMAGE_MAX:
            raise ValueError(
                f"the image takes {size} bytes from its first segment to its "
                f"last; {IMAGE_MAX} are looked at"
            )
        self.memory = _vmm.Memory()
        self.memory.add(low, size)
        self.elf.load(self.memory)
        self._texts: dict[int, str] = {}

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *args: object) -> None:
        self.memory.close()

    def room(self, address: int) -> tuple[int, int]:
        """The gpa of a virtual address and the bytes of its segment from it."""
        for paddr, vaddr, _, memsz, _ in self.elf.segments:
            if vaddr <= address < vaddr + memsz:
                return address - vaddr + paddr, vaddr + memsz - address
        raise ValueError(f"{address:#x} is in none of the image's segments")

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a virtual address; ValueError when there are none."""
        gpa, room = self.room(address)
        if size > room:
            raise ValueError(
                f"{size} bytes at {address:#x} are outside the image's segment"
            )
        return self.memory.read(gpa, size)

    def text(self, address: int, limit: int) -> str:
        """The text at a virtual address, up to its NUL."""
        if address in self._texts:
            return self._texts[address]
        gpa, room = self.room(address)
        found, end, _ = self.memory.read(gpa, min(room, limit + 1)).partition(
            b"\0"
        )
        if not end:
            raise ValueError(
                f"the text at {address:#x} has more than {limit} bytes"
            )
        self._texts[address] = printable(found)
        return self._texts[address]


def printable(data: bytes) -> str:
    """Text of a guest's that may go to a terminal."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def has_tests(data: bytes) -> bool:
    """Whether an image was linked with tests in it."""
    symbols = _vmm.ELF(data).symbols
    if START not in symbols or STOP not in symbols:
        return False
    return symbols[STOP][0] > symbols[START][0]


def read_tests(data: bytes) -> list[GuestTest]:
    """The tests of an image, in the order of their source.

    Raises ValueError for an image that says what cannot be.
    """
    with Content(data) as content:
        symbols = content.elf.symbols
        if RECORD_SYMBOL not in symbols:
            raise ValueError(
                f"the image has tests but no symbol {RECORD_SYMBOL!r}"
            )
        start, stop = symbols[START][0], symbols[STOP][0]
        count, rest = divmod(stop - start, TEST.size)
        if rest or not 0 <= count <= TESTS_MAX:
            raise ValueError(
                f"{stop - start} bytes between {START} and {STOP} are no "
                f"{TEST.size} for each of up to {TESTS_MAX} tests"
            )
        found: list[GuestTest] = []
        for index in range(count):
            raw = content.read(start + index * TEST.size, TEST.size)
            entry = dict(zip(TEST_FIELDS, TEST.unpack(raw), strict=True))
            found += of_entry(content, index, entry)
            if len(found) > TESTS_MAX:
                raise ValueError(f"there are more than {TESTS_MAX} tests")
    found.sort(key=lambda test: (test.file, test.line, test.param))
    seen: dict[str, GuestTest] = {}
    for test in found:
        if test.name in seen:
            other = seen[test.name]
            raise ValueError(
                f"two tests are called {test.name!r}: {other.file}:"
                f"{other.line} and {test.file}:{test.line}"
            )
        seen[test.name] = test
    return found


def of_entry(
    content: Content, index: int, entry: dict[str, int]
) -> Iterator[GuestTest]:
    """The tests that one entry means: one for each of its parameters."""
    if entry["magic"] != TEST_MAGIC:
        raise ValueError(
            f"test {index} has magic {entry['magic']:#x}, not {TEST_MAGIC:#x}"
        )
    name = content.text(entry["name"], NAME_MAX)
    file = content.text(entry["file"], TEXT_MAX)
    place = file, entry["line"], entry["timeout"] or None
    if not entry["params"]:
        yield GuestTest(index, 0, name, *place)
        return
    count = entry["param_count"]
    if count > TESTS_MAX:
        raise ValueError(
            f"{name} has {count} parameters, more than {TESTS_MAX}"
        )
    values = [param_name(content, entry, i) for i in range(count)]
    twice = len(set(values)) < len(values)
    for i, value in enumerate(values):
        ending = f"{i}-{value}" if twice else value
        yield GuestTest(index, i, f"{name}[{ending}]", *place)


def param_name(content: Content, entry: dict[str, int], i: int) -> str:
    """What a parameter is called in the name of its test."""
    size, kind = entry["param_size"], entry["param_kind"]
    at = entry["params"] + i * size
    if kind == TEST_KIND_STRING and size in (4, 8):
        address = int.from_bytes(content.read(at, size), "little")
        if not address:
            return "NULL"
        return content.text(address, NAME_MAX)
    if kind in (TEST_KIND_SIGNED, TEST_KIND_UNSIGNED) and size in (1, 2, 4, 8):
        raw = content.read(at, size)
        return str(int.from_bytes(raw, "little", signed=kind == 1))
    return str(i)


# -- what a test has left ----------------------------------------------------


class Record:
    """The record of a test that has ended, however.

    `wrong`: why it cannot be believed, or "". `state`, `failures`, `reason`:
    its fields.
    """

    def __init__(
        self, data: bytes, address: int, test: GuestTest, nonce: int
    ) -> None:
        fields = dict(zip(RECORD_FIELDS, RECORD.unpack_from(data), strict=True))
        self.state: int = fields["state"]
        self.failures: int = fields["failures"]
        self.reason: int = fields["reason"]
        self.wrong = ""
        check = nonce + self.failures * TEST_CHECK_STEP + self.state
        for name, value, due in (
            ("magic", fields["magic"], TEST_MAGIC),
            ("version", fields["version"], TEST_VERSION),
            ("test", fields["test"], test.index),
            ("param", fields["param"], test.param),
            ("nonce", fields["nonce"], nonce),
            ("check", fields["check"], check & MASK),
        ):
            if value != due:
                self.wrong = (
                    f"the guest has written over the record of its test, "
                    f"{RECORD_SYMBOL} at {address:#x}: {name} is {value:#x}, "
                    f"not {due:#x}"
                )
                return
        ended = self.state in EXITS
        if self.state != TEST_STATE_RUNNING and not ended:
            self.wrong = f"the record of the test has no state {self.state}"
        elif ended and (self.state == TEST_STATE_FAILED) != bool(self.failures):
            self.wrong = (
                f"the record says {STATES[self.state]}, and "
                f"{self.failures} failures"
            )


class Reader:
    """Reads a guest's memory for a report: what cannot be read is said."""

    def __init__(self, memory: object) -> None:
        self.memory = memory

    def text(self, address: int) -> str:
        """The text at an address."""
        if not address:
            return "(null)"
        try:
            found: bytes = self.memory.cstring(address, TEXT_MAX)  # type: ignore[attr-defined]
        except (ValueError, OverflowError):
            return f"(no text at {address:#x})"
        return printable(found)


def describe_failure(data: bytes, reader: Reader) -> tuple[str, str, int]:
    """The text of one failure, and the file and line that it is at."""
    f = dict(zip(FAILURE_FIELDS, FAILURE.unpack(data), strict=True))
    file, line = reader.text(f["file"]), f["line"]
    lines = [f"{file}:{line}: {reader.text(f['expression'])}"]
    kind = f["kind"]
    if kind == TEST_KIND_MEMORY:
        lines.append(
            f"    byte {f['left']} of {f['right']} differs; from there:"
        )
    for side in ("left", "right"):
        if kind == TEST_KIND_NONE:
            break
        value = value_text(kind, f[side], f[f"{side}_data"][: f[f"{side}_len"]])
        lines.append(f"    {side + ':':6} {value}")
    return "\n".join(lines), file, line


def value_text(kind: int, number: int, data: bytes) -> str:
    """One of the two values."""
    if kind == TEST_KIND_SIGNED:
        signed = number - (1 << 64) if number >> 63 else number
        return number_text(signed)
    if kind == TEST_KIND_UNSIGNED:
        return number_text(number)
    if kind == TEST_KIND_POINTER:
        return f"{number:#x}"
    if kind == TEST_KIND_STRING:
        if not number:
            return "NULL"
        more = "..." if len(data) == TEST_DATA_MAX else ""
        return f'"{printable(data)}"{more}'
    if kind == TEST_KIND_MEMORY:
        return data.hex(" ")
    return f"{number:#x} (of no known kind, {kind})"


def number_text(value: int) -> str:
    return str(value) if -10 < value < 10 else f"{value} ({value:#x})"

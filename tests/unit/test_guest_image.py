# SPDX-License-Identifier: Apache-2.0
"""What an image says of its tests, and a record of one: both may be anything.

No KVM is needed.
"""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import _vmm, guest
from pyvmm.testing import guest_image
from pyvmm.testing.guest_image import (
    RECORD,
    RECORD_FIELDS,
    TEST,
    TEST_CHECK_STEP,
    GuestTest,
    Record,
    read_tests,
)

SOURCE = """\
#include <test.h>

TEST(one) { }
TEST_PARAMS(numbers, short, 1, -2) { (void)param; }
TEST_PARAMS(texts, const char *, "a\\n", NULL) { (void)param; }
TEST(last, .timeout = 7) { }
"""


@pytest.fixture(scope="module", params=["protected", "user"])
def image(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    source = tmp_path_factory.mktemp("image") / "tests.c"
    source.write_text(SOURCE)
    return Path(guest.build(source, mode=request.param)).read_bytes()


def test_the_tests(image: bytes) -> None:
    assert guest_image.has_tests(image)
    found = read_tests(image)
    assert [test.name for test in found] == [
        "one", "numbers[1]", "numbers[-2]", "texts[a\\n]", "texts[NULL]",
        "last",
    ]  # fmt: skip
    assert [test.line for test in found] == [3, 4, 4, 5, 5, 6]
    assert found[-1].timeout == 7 and found[0].timeout is None
    assert os.path.basename(found[0].file) == "tests.c"


def test_an_image_without(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    built = guest.build(tmp_path / "main.c")
    assert not guest_image.has_tests(Path(built).read_bytes())


def entries(image: bytes) -> int:
    """Where the first entry is in the file: its magic is 52 bytes behind."""
    magic = struct.pack("<I", guest_image.TEST_MAGIC)
    segments = _vmm.ELF(image).segments
    at = image.index(magic)
    while True:
        name = int.from_bytes(image[at - 52 : at - 44], "little")
        if any(v <= name < v + m for _, v, _, m, _ in segments):
            return at - 52
        at = image.index(magic, at + 1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_an_image_that_was_written_over(data: st.DataObject) -> None:
    image = bytearray(_images["protected"])
    start = entries(bytes(image))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 4 * TEST.size - 8))
        value = data.draw(
            st.one_of(
                st.integers(0, (1 << 64) - 1),
                st.sampled_from([0, 1, 0x100000, 0xFFFFFFFF, (1 << 64) - 1]),
            )
        )
        size = data.draw(st.sampled_from([1, 4, 8]))
        raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        image[start + at : start + at + size] = raw
    try:
        found = read_tests(bytes(image))
    except ValueError as exc:
        assert str(exc)
    else:
        assert len(found) <= guest_image.TESTS_MAX
        assert all(test.name.isprintable() for test in found)


_images: dict[str, bytes] = {}


@pytest.fixture(autouse=True, scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("built") / "tests.c"
    source.write_text(SOURCE)
    _images["protected"] = Path(guest.build(source)).read_bytes()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 60_000), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_a_file_that_was_written_over(changes: list[tuple[int, int]]) -> None:
    image = bytearray(_images["protected"])
    for at, value in changes:
        image[at % len(image)] = value
    try:
        if guest_image.has_tests(bytes(image)):
            read_tests(bytes(image))
    except ValueError as exc:
        assert str(exc)


# -- records -------------------------------------------------------------------

A_TEST = GuestTest(3, 1, "x", "x.c", 1, None)
NONCE = 0x1234_5678_9ABC_DEF0


def record(**changes: int) -> Record:
    fields = {
        "magic": guest_image.TEST_MAGIC,
        "version": guest_image.TEST_VERSION,
        "state": guest_image.TEST_STATE_PASSED,
        "failures": 0,
        "test": 3,
        "param": 1,
        "nonce": NONCE,
        "check": NONCE + guest_image.TEST_STATE_PASSED,
        "reason": 0,
    } | changes
    values = [fields[name] for name in RECORD_FIELDS]
    return Record(RECORD.pack(*values), 0x1000, A_TEST, NONCE)


def test_a_record_that_is_right() -> None:
    assert record().wrong == ""
    failed = record(
        state=guest_image.TEST_STATE_FAILED,
        failures=2,
        check=(NONCE + 2 * TEST_CHECK_STEP + guest_image.TEST_STATE_FAILED)
        & guest_image.MASK,
    )
    assert failed.wrong == ""


@given(
    st.sampled_from([n for n in RECORD_FIELDS if n != "reason"]),
    st.integers(0, (1 << 32) - 1),
)
def test_a_field_that_was_written_over(name: str, value: int) -> None:
    """One of them alone never passes unseen."""
    changed = record(**{name: value})
    passes = not changed.wrong and changed.state == (
        guest_image.TEST_STATE_PASSED
    )
    due = {
        "magic": guest_image.TEST_MAGIC,
        "version": guest_image.TEST_VERSION,
        "state": guest_image.TEST_STATE_PASSED,
        "failures": 0,
        "test": 3,
        "param": 1,
    }
    assert passes == (due.get(name) == value)


@given(st.binary(min_size=RECORD.size, max_size=RECORD.size))
def test_any_record(data: bytes) -> None:
    assert Record(data, 0x1000, A_TEST, NONCE).wrong


@pytest.mark.parametrize(
    ("state", "failures", "says"),
    [
        (1, 0, "has no state 1"),
        (0, 0, "has no state 0"),
        (3, 1, "says passed, and 1 failures"),
        (4, 0, "says failed, and 0 failures"),
        (5, 2, "says skipped, and 2 failures"),
    ],
)
def test_records_that_contradict_themselves(
    state: int, failures: int, says: str
) -> None:
    check = (NONCE + failures * TEST_CHECK_STEP + state) & guest_image.MASK
    found = record(state=state, failures=failures, check=check)
    assert says in found.wrong


class Nowhere:
    """Memory in which nothing can be read."""

    def cstring(self, address: int, limit: int) -> bytes:
        raise ValueError(f"{address:#x} is outside RAM")


@given(
    st.binary(
        min_size=guest_image.FAILURE.size, max_size=guest_image.FAILURE.size
    )
)
def test_any_failure(data: bytes) -> None:
    text, _, line = guest_image.describe_failure(
        data, guest_image.Reader(Nowhere())
    )
    assert text.replace("\n", "").isprintable()
    assert 0 <= line < 1 << 32

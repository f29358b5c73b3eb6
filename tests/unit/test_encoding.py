# SPDX-License-Identifier: Apache-2.0
"""Values as bytes and back, and bytes that are no values."""

import contextlib
import enum
import math
from collections import OrderedDict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.encoding import DEEPEST, Unencodable, decode, encode

KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda keys: st.tuples(keys, keys) | st.frozensets(keys, max_size=3),
    max_leaves=5,
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
)
VALUES = st.recursive(
    PLAIN,
    lambda values: (
        st.lists(values, max_size=4)
        | st.tuples(values, values)
        | st.dictionaries(KEYS, values, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | st.lists(values, max_size=4).map(lambda row: deque(row, 9))
    ),
    max_leaves=30,
)


def kinds(value: object) -> object:
    """The types of a value and of all in it, in its order."""
    if isinstance(value, dict):
        inside = [(kinds(k), kinds(v)) for k, v in value.items()]
        return type(value), inside
    if isinstance(value, list | tuple | deque):
        return type(value), [kinds(one) for one in value]
    return type(value)


@given(VALUES)
def test_there_and_back(value: object) -> None:
    again = decode(encode(value))
    assert again == value
    assert kinds(again) == kinds(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except ValueError:
        return
    encode(value)


@given(VALUES, st.data())
def test_bytes_that_were_altered_are_a_value_or_refused(value, data) -> None:
    good = bytearray(encode(value))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        decode(bytes(good))
    with pytest.raises(ValueError):
        decode(encode(value)[:-1])
    with pytest.raises(ValueError, match="behind a value"):
        decode(encode(value) + b"N")


def test_not_a_number_and_texts_of_surrogates() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode("\ud800x")) == "\ud800x"


def test_what_is_in_two_places_is_one_object() -> None:
    row = [1]
    value = {"a": row, "b": (row, row)}
    again = decode(encode(value))
    again["a"].append(2)
    assert again == {"a": [1, 2], "b": ([1, 2], [1, 2])}
    row.append(row)
    again = decode(encode(row))
    assert again[1] is again


def test_enums_are_their_values() -> None:
    class Number(enum.IntEnum):
        ONE = 1

    class Word(enum.Enum):
        TWO = "two"

    assert decode(encode([Number.ONE, Word.TWO])) == [1, "two"]
    assert type(decode(encode(Number.ONE))) is int


def test_marks_stand_for_what_only_the_reader_has() -> None:
    mine, other = object(), object()
    data = encode([mine, 1], lambda v: (b"D", 7) if v is mine else None)
    assert decode(data, lambda letter, number: (letter, number)) == [
        (b"D", 7),
        1,
    ]
    with pytest.raises(Unencodable):
        encode(other, lambda v: None)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"wire": {"ends": [1, object()]}}, "wire['ends'][1]"),
        ({"table": OrderedDict()}, "table"),
        ({object(): 1}, "a key of "),
    ],
)
def test_what_cannot_be_is_named(value: object, where: str) -> None:
    with pytest.raises(Unencodable) as caught:
        encode(value)
    assert caught.value.where == where


def test_depth_is_limited() -> None:
    value: list[object] = []
    for _ in range(DEEPEST - 1):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(Unencodable, match="levels deep"):
        encode([value])
    with pytest.raises(ValueError, match="levels deep"):
        decode(b"l\1\0\0\0" * 1000 + b"N")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"?\0\0\0\0",
        b"i\xff\xff\xff\xff",
        b"l\xff\xff\xff\xff",
        b"R\0\0\0\0",
        b"t\1\0\0\0R\0\0\0\0",  # a tuple that holds itself
        b"S\1\0\0\0l\0\0\0\0",
        b"S\1\0\0\0t\1\0\0\0R\0\0\0\0",
        b"d\1\0\0\0l\0\0\0\0N",
        b"q\0\0\0\0i\1\0\0\0\xff",
        b"q\0\0\0\0i\x09\0\0\0\0\0\0\0\0\0\0\0\1",
        b"q\0\0\0\0T",
        b"s\1\0\0\0\xff",
    ],
)
def test_bytes_that_are_no_value(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_bytes_that_would_be_hashed_for_ever() -> None:
    """Tuples in tuples, each twice: keys refer to nothing."""
    rows = b"t\0\0\0\0"
    for number in range(1, 90):
        again = b"R" + (number - 1).to_bytes(4, "little")
        rows += b"t\2\0\0\0" + again + again
    whole = b"l" + (91).to_bytes(4, "little") + rows
    with pytest.raises(ValueError):
        decode(whole + b"S\1\0\0\0R\x40\0\0\0")

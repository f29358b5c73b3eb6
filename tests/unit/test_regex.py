# SPDX-License-Identifier: Apache-2.0
"""The regular expression accelerator and its engine."""

import re
import struct

import pytest
from hostile import QueueTraffic
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import virtio
from pyvmm.devices import Regex
from pyvmm.devices.regex import BAD, LONG, WORK, ask, matches
from pyvmm.devices.regex_engine import (
    PATTERN_MAX,
    Pattern,
    PatternError,
    WorkError,
)

ENOUGH = 1 << 20


def longest(pattern: str, text: str) -> list[tuple[int, int]]:
    """What the module re says, asked for each part of the text."""
    found, start = [], 0
    while start <= len(text):
        stop = next(
            (
                end
                for end in range(len(text), start - 1, -1)
                if re.fullmatch(pattern, text[start:end])
            ),
            -1,
        )
        if stop >= 0:
            found.append((start, stop))
        start = stop if stop > start else start + 1
    return found


ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\W", "x"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda ab: f"({ab[0]}|{ab[1]})")
        | st.tuples(
            inner,
            st.sampled_from(["*", "+", "?", "{0}", "{2}", "{1,3}", "{2,}"]),
        ).map(lambda ab: f"({ab[0]}){ab[1]}")
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.text("abcx1 ", max_size=10))
def test_it_finds_what_re_finds(pattern: str, text: str) -> None:
    found = Pattern(pattern.encode()).finditer(text.encode(), 99, ENOUGH)
    assert found == longest(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (b"^ab", b"abab", [(0, 2)]),
        (b"ab$", b"abab", [(2, 4)]),
        (b"^$", b"", [(0, 0)]),
        (b"^a$", b"aa", []),
        (rb"a\$", b"a$", [(0, 2)]),
        (rb"[\]a-]+", b"]-a", [(0, 3)]),
        (rb"[]a]+", b"]a", [(0, 2)]),
        (rb"\x41\t\.", b"A\t.", [(0, 3)]),
        (rb"[^\d\s]+", b"1ab 2", [(1, 3)]),
        (b"", b"a", [(0, 0), (1, 1)]),
        (b"a|", b"ba", [(0, 0), (1, 2), (2, 2)]),
        (bytes([0xFF]) + b"+", b"\xff\xff", [(0, 2)]),
    ],
)
def test_what_it_understands(pattern, text, found) -> None:
    assert Pattern(pattern).finditer(text, 9, ENOUGH) == found


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (b"a(b", "the pattern ends at byte 3"),
        (b"a)b", "a parenthesis too many at byte 1"),
        (b"*", "nothing to repeat at byte 1"),
        (b"a**", "nothing to repeat at byte 2"),
        (b"a{2,1}", "the wrong way round"),
        (b"a{101}", "a number from 0 to 100 was due"),
        (b"a{,3}", "a number from 0 to 100 was due"),
        (b"a{3", "the pattern ends"),
        (b"a{\xb2}", "a number from 0 to 100 was due"),
        (rb"\x+1", "no hexadecimal number"),
        (b"[b-a]", "a range is from one byte to a later one"),
        (rb"[\d-z]", "a range is from one byte"),
        (b"[a", "the pattern ends"),
        (rb"\q", r"\\q means nothing"),
        (rb"\xg1", "no hexadecimal number"),
        (b"\\", "the pattern ends"),
        (b"(" * 41, "more than 40 parentheses deep"),
        (b"((a{100}){100})", "more than 2000 nodes"),
        (b"a" * (PATTERN_MAX + 1), "1025 bytes are more than 1024"),
    ],
)
def test_patterns_that_are_none(pattern: bytes, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        Pattern(pattern)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_bytes(pattern: bytes, text: bytes) -> None:
    """A pattern or none: nothing else happens."""
    try:
        found = Pattern(pattern).finditer(text, 99, 4096)
    except (PatternError, WorkError):
        return
    assert all(0 <= a <= b <= len(text) for a, b in found)


def test_work_has_a_limit() -> None:
    slow = Pattern(b"(a|aa)*$")
    with pytest.raises(WorkError):
        slow.finditer(b"a" * 3000 + b"b", 9, 64 * 3001)
    assert slow.finditer(b"aaaa", 9, ENOUGH) == [(0, 4), (4, 4)]


def test_states_have_a_limit() -> None:
    """A pattern of exponentially many states begins anew, and stays right."""
    pattern = Pattern(b"(a|b)*a" + b"(a|b)" * 12)
    text = bytes(b"ab"[i * i % 7 % 2] for i in range(2000))
    found = pattern.finditer(text, 9, 1 << 24)
    expected = re.compile(b"(?:a|b)*a(?:a|b){12}").match(text)
    assert expected and found[0] == expected.span()


def test_requests() -> None:
    device = Regex(limit=100)
    with virtio.driver(device) as drv:
        assert drv.config == {"limit": 100, "pattern_limit": PATTERN_MAX}
        answer = drv.requests(ask(b"a+", b"aa b a"), reply=64)
        assert matches(answer) == [(0, 2), (5, 6)]
        # Cut anywhere, with room for one match.
        data = ask(b"a+", b"aa b a")
        for i in range(1, len(data)):
            answer = drv.requests(data[:i], data[i:], reply=[3, 9])
            assert matches(answer) == [(0, 2)]
        assert drv.requests(ask(b"a", b"a"), reply=4) == bytes(4)
        answer = drv.requests(ask(b"a", bytes(101)), reply=8)
        assert answer == struct.pack("<I", LONG) + b"more"
        answer = drv.requests(ask(b"(", b""), reply=4)
        assert answer == struct.pack("<I", BAD)
        answer = drv.requests(ask(b"(a|aa)*$", b"a" * 99 + b"b"), reply=64)
        assert matches(answer) == [(100, 100)]
        assert device.faults == 0
        assert drv.requests(b"\1", reply=64) == b""
        assert drv.requests(ask(b"a", b"a")[:2] + b"", reply=64) == b""
        assert drv.requests(ask(b"a", b"a"), reply=3) == b""
        assert device.faults == 3


def test_work_is_refused_to_the_guest() -> None:
    with virtio.driver(Regex()) as drv:
        answer = drv.requests(ask(b"(a|aa)*$", b"a" * 20000 + b"b"), reply=64)
        assert answer[:4] == struct.pack("<I", WORK)
        assert answer[4:] == b"the search takes too many steps"


@pytest.mark.parametrize("limit", [0, -1, (1 << 24) + 1])
def test_limits_that_are_none(limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit {limit} is outside"):
        Regex(limit=limit)


class RegexTraffic(QueueTraffic):
    payloads = st.binary(max_size=40) | st.builds(
        ask, st.binary(max_size=12), st.binary(max_size=40)
    )

    def make(self) -> virtio.Device:
        return Regex(limit=4096, notify="inline")

    def alive(self, drv: virtio.Driver) -> None:
        assert matches(drv.requests(ask(b"b", b"abc"), reply=12)) == [(1, 2)]


TestTraffic = RegexTraffic.test_case()

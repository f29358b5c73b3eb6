# SPDX-License-Identifier: Apache-2.0
"""The Test Anything Protocol as guests print it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.testing.tap import Tap


def test_all_went_well() -> None:
    tap = Tap(
        "booting\nTAP version 13\n1..4\nok 1 - one\n# a remark\nok 2\n"
        "    not ok 1 - of a subtest\n  ---\n  not: yaml\n  ...\n"
        "ok 3 # SKIP no disk\nnot ok 4 - later # TODO\nbye\n"
    )
    assert tap.ok and not tap.all_skipped
    assert (tap.planned, tap.passed, tap.skipped) == (4, 3, 1)
    assert str(tap) == "3 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1..2\nok 1\nnot ok 2 - x\n", "not ok 2 - x"),
        ("1..2\nnot ok\nok\n", "not ok"),
        ("1..3\nok 1\nok 2\n", "3 tests were planned, 2 came"),
        ("1..1\nok 1\nok 2\n", "1 tests were planned, 2 came"),
        ("1..2\nok 1\nok 1\n", "test 1 came twice: ok 1"),
        ("1..2\nok 1\nok 3\n", "test 3 is outside 1..2"),
        ("1..1\n1..1\nok 1\n", "there is a second plan: 1..1"),
        ("TAP version 14\nok 1\n", "1 tests came, without a plan 1..N"),
        ("1..1\nok 1\nBail out! on fire\n", "it bailed out: on fire"),
        ("Bail out!\n", "it bailed out: no reason"),
        ("1..1\r\nnot ok 1\r\n", "not ok 1"),
        (r"1..1" "\n" r"not ok 1 - a \# TODO" "\n", "not ok 1 - a"),
    ],
)
def test_what_is_wrong(text: str, says: str) -> None:
    tap = Tap(text)
    assert tap.found and not tap.ok and not tap.all_skipped
    assert says in str(tap)


def test_what_is_no_tap() -> None:
    for text in ("", "hello\n", "ok then\n", "1..x\n", "1..2 or so\n"):
        assert not Tap(text).found
        assert not Tap(text).ok


def test_nothing_was_planned() -> None:
    tap = Tap("1..0 # SKIP no such hardware\n")
    assert tap.ok and tap.all_skipped
    assert tap.why == "SKIP no such hardware"


LINES = st.sampled_from(
    ["ok", "not ok", "ok 1", "ok 2 # skip", "not ok 3 # todo", "1..2", "1..0",
     "Bail out!", "TAP version 13", "# x", "hello", "1..999999999"]
)  # fmt: skip


@given(st.lists(LINES, max_size=8))
def test_it_never_passes_more_than_it_has_seen(lines: list[str]) -> None:
    tap = Tap("\n".join(lines))
    came = [n for n in lines if n.startswith(("ok", "not ok"))]
    if tap.ok:
        assert tap.planned == len(came)
        assert not [n for n in came if n == "not ok"]
    assert not (tap.ok and "Bail out!" in lines)


@given(st.text())
def test_any_text(text: str) -> None:
    str(Tap(text))


def test_much_of_it_is_read_in_no_time() -> None:
    """Not quadratic: a guest may print a million lines."""
    text = "".join(f"ok {i}\n" for i in range(1, 200_001))
    assert Tap(f"1..200000\n{text}").ok

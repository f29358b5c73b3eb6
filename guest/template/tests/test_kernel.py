# SPDX-License-Identifier: 0BSD
"""Tests from outside: the kernel's console and its functions."""

import pytest


def ask(kernel, line):
    """What it answers."""
    kernel.console.send(f"{line}\n")
    return kernel.console.expect("(.*)\n> ", timeout=10)[1]


@pytest.mark.parametrize(
    ("line", "answer"),
    [("gcd 84 36", "12"), ("gcd 7", "what?"), ("  gcd   9 6", "3")],
)
def test_answers(kernel, line, answer):
    assert ask(kernel, line) == answer


def test_quit(kernel):
    kernel.console.send("quit\n")
    assert kernel.run(timeout=10).status == 0


def test_a_function(kernel):
    assert kernel.call("gcd", 84, 36, timeout=10) == 12

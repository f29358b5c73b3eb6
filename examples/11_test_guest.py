# SPDX-License-Identifier: Apache-2.0
"""Tests of a guest with pytest: `python -m pytest examples/11_test_guest.py`.

A pattern for expect() should end in what ends the line: output comes in
pieces, and is looked at as it comes.
"""

import pytest

from pyvmm import testing

KERNEL = """
#include <runtime.h>

int main(void)
{
    print("> ");
    for (char c; (c = getchar()) != 'q';)
        print("%c is %s\\n> ", c, c & 1 ? "odd" : "even");
    panic("asked to quit");
}
"""


@testing.machine
def kernel(m):
    """Boots once, and is put back before each test."""
    m.load(c=KERNEL)
    m.console.expect("> ", timeout=5)


@pytest.mark.parametrize(("digit", "word"), [("4", "even"), ("7", "odd")])
def test_parity(kernel, digit, word):
    kernel.console.send(digit)
    assert kernel.console.expect(r"\d is (\w+)\n", timeout=5)[1] == word


def test_quit(kernel):
    kernel.console.send("q")
    assert kernel.run(timeout=5).status == 255
    assert "panic: asked to quit" in kernel.console.text

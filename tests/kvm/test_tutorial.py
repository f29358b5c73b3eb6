# SPDX-License-Identifier: Apache-2.0
"""What the documents show is what happens.

All ```python blocks of a page are run in order as one program; a ```text block
right behind one is what it prints. Lines that begin with `$` in a ```console
block are typed into a shell in the checkout. `...` stands for anything. What a
```pytest block shows is for test_guest_tests_page.py.
"""

import os
import re
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
)
KINDS = {"python", "text", "console", "sh", "c", "ini", "pytest"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== block at line "


class Block:
    """A fenced block: its kind, its text, the line of the page, the output."""

    def __init__(self, kind: str, text: str, line: int) -> None:
        self.kind = kind
        self.text = text
        self.line = line
        self.expected = ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page, outputs joined to what prints them."""
    found: list[Block] = []
    end = 0
    for match in BLOCK.finditer(page):
        between = page[end : match.start()]
        end = match.end()
        line = page.count("\n", 0, match.start()) + 2
        block = Block(match[1], match[2], line)
        follows = found and found[-1].kind == "python" and not between.strip()
        if block.kind == "text" and follows:
            found[-1].expected = block.text
        else:
            found.append(block)
    return found


def program(page: list[Block], name: str) -> str:
    """The Python blocks as one program, which marks where each began."""
    lines = ["_space = {'__name__': '__main__'}"]
    for block in page:
        if block.kind == "python":
            # Line numbers in tracebacks are those of the page.
            code = "\n" * (block.line - 1) + block.text
            lines.append(f"print({MARK + str(block.line)!r})")
            lines.append(f"exec(compile({code!r}, {name!r}, 'exec'), _space)")
    return "\n".join(lines)


def same(expected: str, printed: str) -> bool:
    # print() of text that ends in a newline leaves an empty line.
    expected, printed = (text.rstrip() + "\n" for text in (expected, printed))
    return OutputChecker().check_output(expected, printed, ELLIPSIS)


def run(args: list[str]) -> str:
    """What a command prints, run in the checkout; it must succeed."""
    scripts = os.path.dirname(sys.executable)
    done = subprocess.run(
        args,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def read(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_kinds(page: str) -> None:
    """Every block says what it is, every output belongs to a program."""
    for block in read(page):
        assert block.kind in KINDS, f"{page}:{block.line}"
        assert block.kind != "text", f"{page}:{block.line}: output of what?"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in (ROOT / p).read_text()]
)
def test_python(page: str) -> None:
    parts = [block for block in read(page) if block.kind == "python"]
    printed = run([sys.executable, "-c", program(parts, page)])
    outputs = re.split(f"^{MARK}\\d+\n", printed, flags=re.MULTILINE)[1:]
    assert len(outputs) == len(parts)
    for block, output in zip(parts, outputs, strict=True):
        assert same(block.expected, output), (
            f"{page}:{block.line} prints\n{output}\nnot\n{block.expected}"
        )


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```console" in (ROOT / p).read_text()]
)
def test_console(page: str) -> None:
    for block in read(page):
        if block.kind != "console":
            continue
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            output = run(["sh", "-c", command])
            assert same(expected, output), (
                f"{page}:{block.line}: {command}\nprints\n{output}"
            )


def test_blocks() -> None:
    page = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\nb\n```sh\nx\n```\n"
    first, second = blocks(page)
    assert (first.kind, first.line, first.expected) == ("python", 3, "1\n")
    assert (second.kind, second.text) == ("sh", "x\n")


def test_same_bites() -> None:
    assert same("a ... b\n", "a c b\n\n")
    assert not same("a\n", "b\n")
    assert not same("a\n", "")
    assert not same("", "a\n")

# SPDX-License-Identifier: Apache-2.0
"""Each example is run as a user would, and prints what it is expected to.

`...` in an expected output stands for anything, as in doctest.
"""

import json
import os
import subprocess
import sys
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("kvm")

FOLDER = Path(__file__).resolve().parent.parent.parent / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[0-9]*.py"))
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("[0-9]*.ipynb"))
LINES = 40  # an example is read on one screen; the SPDX line is not counted

# Runs the code cells of a notebook, in order and in one namespace.
CELLS = """\
import ast, json, sys

space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        shown = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            shown = ast.Expression(tree.body.pop().value)
        exec(compile(tree, sys.argv[1], "exec"), space)
        if shown is not None:
            print(repr(eval(compile(shown, sys.argv[1], "eval"), space)))
"""


def same(expected: str, printed: str) -> bool:
    """Whether it is what was expected, `...` standing for anything."""
    return OutputChecker().check_output(expected, printed, ELLIPSIS)


def run(*args: str) -> str:
    """What Python prints, run with these arguments in the checkout."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=FOLDER.parent,
        env={**os.environ, "NO_COLOR": "1", "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not done.stderr
    return done.stdout


def compare(name: str, printed: str) -> None:
    file = FOLDER / "expected" / f"{Path(name).stem}.out"
    expected = file.read_text()
    assert same(expected, printed), f"{file} says\n{expected}\nnot\n{printed}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name: str) -> None:
    path = FOLDER / name
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    compare(name, run(*(how if "_test_" in name else []), str(path)))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str) -> None:
    compare(name, run("-c", CELLS, str(FOLDER / name)))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_clean(name: str) -> None:
    """No outputs, no counts: they change with each run."""
    for cell in json.loads((FOLDER / name).read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_is_short(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()[1:]
    assert len(lines) <= LINES
    assert lines[0].startswith('"""')


def test_numbers_are_in_order() -> None:
    numbers = [int(name[:2]) for name in sorted(SCRIPTS + NOTEBOOKS)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_expected_outputs_have_examples() -> None:
    names = {Path(name).stem for name in SCRIPTS + NOTEBOOKS}
    files = {path.stem for path in (FOLDER / "expected").iterdir()}
    assert names == files


def test_same_bites() -> None:
    assert same("a ... c\n", "a b c\n")
    assert not same("a b\n", "a c\n")
    assert not same("a b\n", "")

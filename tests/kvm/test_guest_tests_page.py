# SPDX-License-Identifier: Apache-2.0
"""What docs/guest-tests.md shows of pytest is what it prints.

A ```c block that begins with the name of a file is that file; a ```pytest block
is what comes of the file before it.
"""

import re
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest
from project import run_pytest

from pyvmm.testing import guest_options

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs/guest-tests.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"/\* (\S+) \*/\n")

FILES = {}
REPORTS = {}
for kind, text in BLOCK.findall(PAGE):
    if kind == "c" and (named := FILE.match(text)):
        FILES[named[1]] = text
        last = named[1]
    elif kind == "pytest":
        REPORTS[last] = text


@pytest.mark.parametrize("name", REPORTS)
def test_reports(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    done = run_pytest(tmp_path, "-rfs", columns=80, alone=True)
    printed = done.text[done.text.index(name) :]
    printed = printed[: printed.rindex("\n=") + 1]
    expected = REPORTS[name]
    assert OutputChecker().check_output(expected, printed, ELLIPSIS), printed


def test_the_driver(tmp_path: Path) -> None:
    (tmp_path / "guest_driver.c").write_text(FILES["guest_driver.c"])
    (tmp_path / "driver.h").write_text("bool driver_probe(void *dev);\n")
    (tmp_path / "driver.c").write_text(
        "#include <virtio.h>\n#include <driver.h>\n"
        "bool driver_probe(void *dev)\n"
        "{ return DEBUG && virtio_find(VIRTIO_ID_RNG, 0, dev); }\n"
    )
    run_pytest(tmp_path, alone=True).counts(passed=1)


def test_the_lines_of_the_ini_file() -> None:
    (ini,) = (text for kind, text in BLOCK.findall(PAGE) if kind == "ini")
    lines = ini.partition("pyvmm_guests =\n")[2].splitlines()
    assert len(lines) == 3
    for line in lines:
        guest_options.Options().add(line.strip().partition(" ")[2], "")


def test_every_word_is_there() -> None:
    for word in guest_options.VALUES:
        assert re.search(rf"`{word}[=`]", PAGE), word


def test_every_macro_is_there() -> None:
    header = (ROOT / "guest/include/test.h").read_text()
    names = re.findall(
        r"^#define ((?:EXPECT|ASSERT)_\w+|TEST|TEST_PARAMS|FAIL|SKIP)\(",
        header,
        re.MULTILINE,
    )
    assert len(set(names)) == 25
    for name in names:
        kind, _, rest = name.partition("_")
        shown = f"`_{rest}`" in PAGE or f"EXPECT_{rest}(" in PAGE
        assert f"{name}(" in PAGE or (kind in ("EXPECT", "ASSERT") and shown)


def test_every_option_is_there() -> None:
    plugin = (ROOT / "pyvmm/plugin.py").read_text()
    options = re.findall(r'add\("(pyvmm_guest\w*)"', plugin)
    assert len(options) == 4
    for option in options:
        assert f"| `{option}` |" in PAGE

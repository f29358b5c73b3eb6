# SPDX-License-Identifier: Apache-2.0
"""Habits that every source file keeps."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvmm

SOURCES = {".c", ".h", ".S", ".ld", ".py", ".pyi", ".sh", ".mk", ".toml"}
NAMES = {"Makefile", "run", "setup"}
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|work)/\w")
VERSION = re.compile(r"^\s*_*version_*\s*[:=].*\d+\.\d+", re.I | re.M)


def tracked(root: Path) -> list[Path]:
    """Files that belong to the project, links left out."""
    # A clone may belong to another user than the one who tests it.
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    command = [*git, "ls-files", "-z"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    paths = [root / name for name in done.stdout.split("\0") if name]
    return [p for p in paths if p.is_file() and not p.is_symlink()]


def texts(root: Path) -> Iterator[tuple[str, str]]:
    for path in tracked(root):
        try:
            yield str(path.relative_to(root)), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def licence_violation(name: str, text: str) -> str | None:
    """Every source says its licence in its first two lines."""
    path = Path(name)
    if path.suffix not in SOURCES and path.name not in NAMES:
        return None
    licence = "0BSD" if name.startswith("guest/") else "Apache-2.0"
    head = "\n".join(text.splitlines()[:2])
    if f"SPDX-License-Identifier: {licence}" in head:
        return None
    return f"{name}: no SPDX line, or not {licence}"


def machine_violation(name: str, text: str) -> str | None:
    """No path of one person's machine."""
    found = MACHINE.search(text)
    return f"{name}: {found.group()}" if found else None


def version_violation(name: str, text: str) -> str | None:
    """The version is said once, in pyvmm/__init__.py."""
    if name == "pyvmm/__init__.py" or Path(name).suffix not in SOURCES:
        return None
    found = VERSION.search(text)
    return f"{name}: {found.group()}" if found else None


@pytest.mark.parametrize(
    "rule", [licence_violation, machine_violation, version_violation]
)
def test_rule(rule, root: Path) -> None:
    wrong = [rule(name, text) for name, text in texts(root)]
    assert wrong
    assert not list(filter(None, wrong))


def test_version_is_the_changelogs(root: Path) -> None:
    text = (root / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", text, re.MULTILINE)
    released = pyvmm.__version__.partition(".dev")[0]
    assert newest and newest.group(1) == released


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (licence_violation, "csrc/vmm/x.c", "int x;\n"),
        (licence_violation, "guest/x.h", "/* SPDX-License-Identifier: MIT */"),
        (machine_violation, "docs/x.md", "see /" + "root/x"),
        (version_violation, "setup.py", "__version__ = '1.2.3'"),
        (version_violation, "pyproject.toml", 'version = "1.2"'),
    ],
)
def test_rule_bites(rule, name: str, text: str) -> None:
    assert rule(name, text)

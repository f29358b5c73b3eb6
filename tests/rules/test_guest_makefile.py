# SPDX-License-Identifier: Apache-2.0
"""guest/Makefile makes anew what depends on what has changed."""

import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("Makefile", ["hello.o", "runtime.c.o", "hello.elf"]),
        ("lib/link.ld", ["hello.elf"]),
        ("lib/compile.flags", ["hello.o", "runtime.c.o", "hello.elf"]),
        ("hello/hello.c", ["hello.o", "hello.elf"]),
    ],
)
def test_what_changes(changed: str, again: list[str], root: Path) -> None:
    out = root / "build/guest"
    image = out / "hello.elf"
    command = ["make", "-s", "-C", "guest", f"OUT={out}", str(image)]
    subprocess.run(command, cwd=root, check=True)
    done = subprocess.run(
        [*command, "-n", "-W", changed],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in again:
        assert f"/{name}" in done.stdout
    kept = subprocess.run(
        [*command, "-n"], cwd=root, check=True, capture_output=True, text=True
    )
    assert kept.stdout == ""

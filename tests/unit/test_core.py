# SPDX-License-Identifier: Apache-2.0
"""The core's own tests, one program each, no Python in them."""

import subprocess
from pathlib import Path

import pytest

PROGRAMS = sorted(
    path.stem for path in Path(__file__).parents[1].glob("c/test_*.c")
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_core(name: str, core: Path, root: Path) -> None:
    done = subprocess.run(
        [core / name],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
    )
    print(done.stdout[-20000:])
    assert done.returncode == 0, f"{name} ended with {done.returncode}"
    assert "not ok" not in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""What the linker sees of us, and what the type checker believes."""

import subprocess
import sys
from pathlib import Path


def symbols(*args: object) -> set[str]:
    """Names that nm lists as defined and global."""
    command = ["nm", "--defined-only", "-g", "-P", *map(str, args)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[0] for words in lines if len(words) > 1}


def test_extension_exports_its_init_alone(root: Path) -> None:
    assert symbols("-D", root / "pyvmm/_vmm.so") == {"PyInit__vmm"}


def test_core_keeps_to_its_prefix(root: Path) -> None:
    names = symbols(root / "build/libvmm.a")
    assert names
    assert not {name for name in names if not name.startswith("vmm_")}


def test_core_needs_no_python(root: Path) -> None:
    command = ["nm", "-u", "-P", str(root / "build/libvmm.a")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert "malloc" in names or "calloc" in names
    assert not {name for name in names if name.startswith(("Py", "_Py"))}


def test_stub_is_true(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pyvmm._vmm"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Who may know whom, read from include and import lines (architecture.md).

Each rule is a function from the text of a file to what is wrong in it, so
that the rules are tested as well: on a line that breaks them.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.MULTILINE)
CORE_HEADER = re.compile(r"(?:\.\./)?vmm/\w+\.h$")


def core_violations(text: str, own: set[str]) -> Iterator[str]:
    """The core: itself, libc, the kernel's headers, libelf."""
    for mark, name in INCLUDE.findall(text):
        if mark == '"' and name not in own:
            yield f'"{name}" is not a header of the core'
        if mark == "<" and name.lower().endswith("python.h"):
            yield f"<{name}>: the core does not know Python"
    for name in re.findall(
        r"\b(?:printf|puts|perror|fprintf|exit|_exit|signal|sigaction)\s*\(",
        re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL),
    ):
        yield f"{name}): the core does not print, exit or handle signals"


def binding_violations(text: str, own: set[str]) -> Iterator[str]:
    """The binding: Python, the core, and no system call on a VM by itself."""
    for mark, name in INCLUDE.findall(text):
        if mark == '"' and name not in own and not CORE_HEADER.match(name):
            yield f'"{name}" is neither of the binding nor of the core'
    if re.search(r"\bioctl\s*\(", text):
        yield "ioctl() belongs into the core"


def launcher_violations(text: str) -> Iterator[str]:
    """The launcher: Python and nothing of ours."""
    for mark, name in INCLUDE.findall(text):
        if mark == '"' or "linux/" in name or "vmm" in name:
            yield f"{name}: the launcher knows no VM"


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported; relative ones start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield (
                    f"{base}.{alias.name}"
                    if node.module
                    else base + (alias.name)
                )


def package_violations(text: str) -> Iterator[str]:
    """pyvmm: nothing that is built on it."""
    above = ("tests", "examples", "bench", "devices", "pytest")
    for name in imports(ast.parse(text)):
        words = name.removeprefix("pyvmm").lstrip(".").split(".")
        if words[0] in above and (name[0] == "." or "pyvmm" in name):
            yield f"{name} is above pyvmm"
        if name.partition(".")[0] in ("tests", "examples", "bench"):
            yield f"{name} is above pyvmm"


def user_violations(text: str) -> Iterator[str]:
    """Devices, examples: the public names of pyvmm."""
    tree = ast.parse(text)
    for name in imports(tree):
        ours = name.startswith(("pyvmm", "."))
        if ours and any(
            word.startswith("_") and word != "__version__"
            for word in name.split(".")
        ):
            yield f"{name} is private to pyvmm"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("pyvmm", "virtio", "testing")
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            yield f"{node.value.id}.{node.attr} is private to pyvmm"


def headers(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.h")}


def test_core(root: Path) -> None:
    files = sorted((root / "csrc/vmm").glob("*.[ch]"))
    own = headers(root / "csrc/vmm")
    wrong = [
        f"{path.name}: {what}"
        for path in files
        for what in core_violations(path.read_text(), own)
    ]
    assert files
    assert not wrong


def test_binding(root: Path) -> None:
    files = sorted((root / "csrc/py").glob("*.[ch]"))
    own = headers(root / "csrc/py")
    wrong = [
        f"{path.name}: {what}"
        for path in files
        for what in binding_violations(path.read_text(), own)
    ]
    assert files
    assert not wrong


def test_launcher(root: Path) -> None:
    text = (root / "csrc/launcher/main.c").read_text()
    assert not list(launcher_violations(text))


def test_package(root: Path) -> None:
    files = [
        path
        for path in sorted((root / "pyvmm").rglob("*.py"))
        if path.relative_to(root).parts[1] not in ("devices", "sdk", "testing")
    ]
    wrong = [
        f"{path.relative_to(root)}: {what}"
        for path in files
        for what in package_violations(path.read_text())
    ]
    assert files
    assert not wrong


def test_users(root: Path) -> None:
    files = [
        path
        for folder in ("devices-py", "examples")
        for path in sorted((root / folder).rglob("*.py"))
    ]
    wrong = [
        f"{path.relative_to(root)}: {what}"
        for path in files
        for what in user_violations(path.read_text())
    ]
    assert files
    assert not wrong


OWN = {"mem.h", "py.h"}


@pytest.mark.parametrize(
    "text",
    [
        "#include <Python.h>",
        "  # include <python3.11/Python.h>",
        '#include "../py/py.h"',
        'printf("%d", 1);',
        "exit(1);",
    ],
)
def test_core_rule_bites(text: str) -> None:
    assert list(core_violations(text, {"mem.h"}))


def test_core_rule_allows() -> None:
    text = '#include <linux/kvm.h>\n#include "mem.h"\n/* printf() */ snprintf()'
    assert not list(core_violations(text, OWN))


@pytest.mark.parametrize(
    "text", ['#include "launcher/x.h"', "r = ioctl(fd, KVM_RUN, 0);"]
)
def test_binding_rule_bites(text: str) -> None:
    assert list(binding_violations(text, OWN))


def test_binding_rule_allows() -> None:
    text = '#include <Python.h>\n#include "py.h"\n#include "vmm/mem.h"'
    assert not list(binding_violations(text, OWN))


@pytest.mark.parametrize(
    "text", ['#include "vmm/vm.h"', "#include <linux/kvm.h>"]
)
def test_launcher_rule_bites(text: str) -> None:
    assert list(launcher_violations(text))


@pytest.mark.parametrize(
    "text",
    [
        "import tests.conftest",
        "def f():\n    from examples import one",
        "from pyvmm.devices import clock",
        "from .devices import clock",
        "from . import devices",
        "import pyvmm.devices.clock",
        "from bench import main",
    ],
)
def test_package_rule_bites(text: str) -> None:
    assert list(package_violations(text))


@pytest.mark.parametrize(
    "text",
    [
        "from . import _vmm, device",
        "from .device import Device",
        "import os.path",
        "from pyvmm import virtio",
    ],
)
def test_package_rule_allows(text: str) -> None:
    assert not list(package_violations(text))


@pytest.mark.parametrize(
    "text",
    [
        "from pyvmm import _vmm",
        "import pyvmm._vmm",
        "from pyvmm.boot._tables import X",
        "import pyvmm\npyvmm._vmm.VM()",
        "from ._x import y",
    ],
)
def test_user_rule_bites(text: str) -> None:
    assert list(user_violations(text))


@pytest.mark.parametrize(
    "text",
    [
        "import pyvmm\nprint(pyvmm.__version__)",
        "from pyvmm import Device, virtio",
        "import _thread",
        "from __future__ import annotations",
    ],
)
def test_user_rule_allows(text: str) -> None:
    assert not list(user_violations(text))

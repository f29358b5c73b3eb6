# SPDX-License-Identifier: Apache-2.0
"""`import pyvmm` does nothing and loads next to nothing."""

import subprocess
import sys

import pytest

import pyvmm

LOOK = """
import os, signal, sys, threading
def handlers():
    return [signal.getsignal(n) for n in signal.valid_signals()]
def files():
    return sorted(os.listdir("/proc/self/fd"))
before = handlers(), threading.active_count(), files(), set(sys.modules)
import pyvmm
after = handlers(), threading.active_count(), files(), set(sys.modules)
assert before[:3] == after[:3], (before[:3], after[:3])
print(*sorted(after[3] - before[3]))
"""


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_importing_does_nothing() -> None:
    assert run(LOOK).split() == ["pyvmm"]


def test_each_public_name_is_there() -> None:
    for name in pyvmm.__all__:
        assert getattr(pyvmm, name) is not None
        assert name in dir(pyvmm)
    with pytest.raises(AttributeError, match="no attribute 'Machin'"):
        pyvmm.Machin  # noqa: B018


def test_a_machine_is_made_without_the_heavy_modules() -> None:
    heavy = (
        "argparse asyncio dataclasses inspect logging re shutil subprocess "
        "tempfile typing"
    )
    loaded = run(
        "import sys; old = set(sys.modules); import pyvmm\n"
        "pyvmm.Machine().close()\n"
        "print(*sorted(set(sys.modules) - old))"
    )
    assert not set(heavy.split()) & set(loaded.split())


def test_every_public_thing_has_a_docstring() -> None:
    missing = []
    for name in pyvmm.__all__:
        value = getattr(pyvmm, name)
        if not value.__doc__:
            missing.append(name)
        if not isinstance(value, type):
            continue
        for key, member in vars(value).items():
            shown = callable(member) or isinstance(member, property)
            if not key.startswith("_") and shown and not member.__doc__:
                missing.append(f"{name}.{key}")
    assert not missing


def test_classes_say_which_threads_may_use_them() -> None:
    for name in ("Machine", "Device", "Rng", "Stop"):
        assert "Threads:" in getattr(pyvmm, name).__doc__

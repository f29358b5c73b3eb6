# SPDX-License-Identifier: Apache-2.0
"""What a failing test leaves behind: pytest --pyvmm-save-failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
ECHO = str(ROOT / "build/guest/echo.elf")

CONFTEST = f"""
import pyvmm
from pyvmm import testing

class Odd(pyvmm.Device):
    size = 4

@testing.machine
def echo(m):
    m.load({ECHO!r})
    m.console.expect("> ", timeout=20)
"""
TESTS = """
import pytest

@pytest.mark.parametrize("word", ["one", "two/../x"])
def test_bad(echo, word):
    echo.console.send(word + "\\n")
    echo.console.expect(word, timeout=20)
    assert word == "three"

def test_running(echo):
    echo.start()
    assert not echo.running

def test_odd(echo):
    from conftest import Odd
    echo.attach(Odd()).thing = echo.cpu
    assert not echo.devices

def test_closed(echo):
    echo.close()
    assert not echo.closed

def test_good(echo):
    assert echo.console.text == "> "
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 failed, 1 passed" in done.stdout
    return done


def test_failing_tests_leave_files(tmp_path: Path) -> None:
    done = run(tmp_path, "--pyvmm-save-failed", "left/here")
    names = sorted(os.listdir(tmp_path / "left/here"))
    assert names == [
        "test_it.py-test_bad-one--echo.snap",
        "test_it.py-test_bad-two-..-x--echo.snap",
        "test_it.py-test_running-echo.snap",
    ]
    assert f"left/here/{names[0]}" in done.stdout
    assert "cannot be saved: odd cannot be" in done.stdout
    snap = pyvmm.Snapshot.load(tmp_path / "left/here" / names[0])
    snap.verify()
    with snap.machine() as m:
        assert m.console.text == "> one\n> "[: len(m.console.text)]
        m.console.send("more\n")
        m.console.expect("more", timeout=20)


def test_an_ini_file_says_where(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\npyvmm_save_failed = left\n")
    run(tmp_path)
    assert len(os.listdir(tmp_path / "left")) == 3


def test_nothing_is_left_unless_asked_for(tmp_path: Path) -> None:
    run(tmp_path)
    assert not list(tmp_path.rglob("*.snap"))

# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: fixtures that boot once, and what reports show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm import testing

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
ECHO = str(ROOT / "build/guest/echo.elf")
boots: list[str] = []


@testing.machine(memory="16M")
def echo(m: pyvmm.Machine) -> None:
    """A guest that echoes lines."""
    boots.append("echo")
    m.load(ECHO)
    m.console.expect("> ", timeout=20)


@testing.machine
def calls(m: pyvmm.Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    boots.append("calls")
    assert tmp_path_factory.getbasetemp().exists()
    m.load(
        c="""
        #include <runtime.h>

        int counter;

        int add(int a, int b, int c) { counter++; return a * 100 + b * 10 + c; }
        int recurse(int n) { return n ? n + recurse(n - 1) : 0; }
        void die(void) { panic("dead"); }
        void spin(void) { for (;;) cpu_relax(); }
        int main(void) { return add(1, 2, 3); }
        """
    )
    m.run(until="main", timeout=20)


def test_first(echo: pyvmm.Machine) -> None:
    echo.console.send("one\n")
    echo.console.expect("one", timeout=20)
    assert echo.console.text == "> one\n> "[: len(echo.console.text)]


def test_second_knows_nothing_of_it(echo: pyvmm.Machine) -> None:
    assert echo.console.text == "> "
    echo.console.send("two\n")
    echo.console.expect("two", timeout=20)
    assert boots.count("echo") == 1


def test_one_that_is_closed(echo: pyvmm.Machine) -> None:
    echo.close()


def test_is_booted_anew(echo: pyvmm.Machine) -> None:
    assert not echo.closed and boots.count("echo") == 2
    echo.start()  # and left behind
    echo.attach(pyvmm.Rng())


def test_whatever_was_left_behind(echo: pyvmm.Machine) -> None:
    assert not echo.running and echo.devices == []
    assert echo.console.text == "> "


@pytest.mark.parametrize("n", [0, 1, 10])
def test_functions_are_called(calls: pyvmm.Machine, n: int) -> None:
    before = calls.cpu.rip, calls.cpu.rsp
    assert calls.mem.read_u32("counter") == 0
    assert calls.call("add", 1, n, 3, timeout=20) == 103 + 10 * n
    assert calls.call("recurse", n, timeout=20) == n * (n + 1) // 2
    assert calls.mem.read_u32("counter") == 1
    assert (calls.cpu.rip, calls.cpu.rsp) == before
    assert calls.run(timeout=20).status == 123
    assert boots.count("calls") == 1


def test_a_function_that_dies(calls: pyvmm.Machine) -> None:
    before = calls.cpu.rip
    with pytest.raises(pyvmm.GuestError, match="did not return") as caught:
        calls.call("die", timeout=20)
    assert caught.value.stop.status == 255
    assert "panic: dead" in calls.console.text
    with pytest.raises(pyvmm.GuestTimeout):
        calls.call("spin", timeout=0.05)
    assert calls.cpu.rip == before
    assert calls.call("add", 0, 0, 7, timeout=20) == 7


def test_arguments_that_are_none(calls: pyvmm.Machine) -> None:
    with pytest.raises(TypeError, match="argument 2 is str, not int"):
        calls.call("add", 1, "x")
    with pytest.raises(ValueError, match="33 arguments are more than 32"):
        calls.call("add", *range(33))
    with pytest.raises(ValueError, match="no symbol 'nowhere'"):
        calls.call("nowhere")


def test_two_side_by_side(echo: pyvmm.Machine, calls: pyvmm.Machine) -> None:
    assert echo is not calls
    (clone,) = echo.clone()
    clone.console.send("x\n")
    clone.console.expect("x", timeout=20)
    assert echo.console.text == "> "
    clone.close()


# -- reports and configuration -------------------------------------------------

CONFTEST = f"""
from pyvmm import testing

@testing.machine
def echo(m):
    m.load({ECHO!r})
    m.console.expect("> ", timeout=20)
"""
TESTS = """
def test_bad(echo):
    echo.console.send("hello\\n")
    echo.console.expect("hello", timeout=20)
    assert echo.closed
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_failure_shows_the_guest(tmp_path: Path) -> None:
    done = run(tmp_path, "--junitxml=report.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    for text in (done.stdout, (tmp_path / "report.xml").read_text()):
        assert "console of echo" in text and "hello" in text
        assert "registers of echo" in text and "rip" in text


def test_it_can_be_left_out(tmp_path: Path) -> None:
    done = run(tmp_path, "-p", "no:pyvmm")
    assert done.returncode == 1
    assert "registers of echo" not in done.stdout
    assert "assert echo.closed" in done.stdout


UNUSED = """
import sys

def test_nothing():
    loaded = [name for name in sys.modules if name.startswith("pyvmm")]
    assert sorted(loaded) == ["pyvmm", "pyvmm.plugin"], loaded
"""


def test_it_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test_unused.py").write_text(UNUSED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Line coverage of guests in the reports of pytest."""

import re
import subprocess
from pathlib import Path

import pytest
from project import Project

import pyvmm
from pyvmm.testing import gcov

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = ["-O0", "-fprofile-arcs", "-ftest-coverage", "-fprofile-info-section"]
SOURCE = """\
#include <runtime.h>

int sign(int n)
{
    if (n < 0)
        return -1;
    if (n == 0)
        return 0;
    return 1;
}

int never(void)
{
    return 1;
}

int main(void)
{
    return sign(5);
}
"""
TESTS = """
from pyvmm import testing

@testing.machine
def measured(m):
    m.load("measured.elf")
    m.run(until="main", timeout=20)

def test_negative(measured):
    assert measured.call("sign", -3 & 0xffffffff, timeout=20) == 0xffffffff

def test_positive(measured):
    for _ in range(3):
        assert measured.call("sign", 3, timeout=20) == 1

def test_main(measured):
    assert measured.run(timeout=20).status == 1
"""
# By line: the boot has run none of them.
COUNTS = {3: 5, 5: 5, 6: 1, 7: 4, 8: 0, 9: 4, 12: 0, 14: 0, 17: 1, 19: 1}


def compile_measured(folder: Path, bits: int = 32) -> None:
    (folder / "measured.c").write_text(SOURCE)
    lib = ROOT / "guest/lib"
    common = ["gcc", f"-m{bits}", f"@{lib}/compile.flags"]
    include = f"-I{ROOT}/guest/include"
    subprocess.run(
        [*common, include, *FLAGS, "-c", "measured.c", "-o", "measured.o"],
        cwd=folder,
        check=True,
    )
    subprocess.run(
        [
            *common,
            include,
            f"@{lib}/link.flags",
            "-T",
            f"{lib}/link.ld",
            "-o",
            "measured.elf",
            "measured.o",
            *sorted([*lib.glob("*.c"), *lib.glob("*.S")]),
        ],
        cwd=folder,
        check=True,
    )


def lcov_counts(text: str, name: str) -> dict[int, int]:
    for record in text.split("end_of_record"):
        if f"/{name}\n" in record:
            return {
                int(line): int(count)
                for line, count in re.findall(r"^DA:(\d+),(\d+)$", record, re.M)
            }
    raise AssertionError(text)


@pytest.mark.parametrize("args", [(), ("-n", "2")], ids=["one", "xdist"])
def test_an_lcov_file(project: Project, args: tuple[str, ...]) -> None:
    """What each test has run, added up over tests, and over workers."""
    compile_measured(project.folder)
    project.write(TESTS)
    done = project.run("--pyvmm-cov=guest.lcov", *args)
    assert done.code == 0, done.text
    assert lcov_counts(project.read("guest.lcov"), "measured.c") == COUNTS
    assert re.search(
        r"^guest coverage: 7 of 10 lines in 1 file; written to guest\.lcov$",
        done.text,
        re.MULTILINE,
    )


@pytest.mark.parametrize("args", [(), ("-n", "2"), ("--cov-branch",)])
def test_in_the_report_of_pytest_cov(
    project: Project, args: tuple[str, ...]
) -> None:
    compile_measured(project.folder)
    project.write("[run]\nplugins = pyvmm.testing.cover\n", ".coveragerc")
    project.write(TESTS)
    done = project.run("--cov=.", "--cov-report=term-missing", *args)
    assert done.code == 0, done.text
    assert re.search(
        r"^measured\.c +10 +3 .* 8, 12-14$", done.text, re.MULTILINE
    ), done.text
    assert re.search(r"^test_it\.py +\d+ +0", done.text, re.MULTILINE)


def test_examples_and_state_machines_count(project: Project) -> None:
    compile_measured(project.folder)
    project.write(
        """
        from hypothesis import given, settings, strategies as st
        from hypothesis.stateful import rule
        from pyvmm import testing

        def boot(m):
            m.load("measured.elf")
            m.run(until="main", timeout=20)

        @testing.machine
        def measured(m):
            boot(m)

        quick = settings(max_examples=5, stateful_step_count=2, deadline=None)

        @quick
        @given(n=st.integers(-5, -1))
        def test_negative(measured, n):
            measured.call("sign", n & 0xffffffff, timeout=20)

        class Never(testing.GuestStateMachine):
            boot = staticmethod(boot)

            @rule()
            def run(self):
                self.guest.call("never", timeout=20)

        TestNever = Never.TestCase
        TestNever.settings = quick
        """
    )
    done = project.run("--pyvmm-cov=guest.lcov")
    assert done.code == 0, done.text
    counts = lcov_counts(project.read("guest.lcov"), "measured.c")
    assert counts[6] >= 5 and counts[14] >= 5 and counts[7] == 0


def test_images_without_counters(project: Project) -> None:
    project.write("def test_it(guest): pass\n")
    done = project.run("--pyvmm-cov=guest.lcov")
    assert done.code == 0 and "guest coverage: none: no image" in done.text
    assert project.read("guest.lcov") == ""


def test_notes_that_are_gone(project: Project) -> None:
    compile_measured(project.folder)
    (project.folder / "measured.gcno").unlink()
    project.write(TESTS)
    done = project.run("--pyvmm-cov=guest.lcov")
    assert done.code == 0
    assert "measured.gcno is not there" in done.text


@pytest.mark.parametrize("bits", [32, 64])
def test_what_is_read(tmp_path: Path, bits: int) -> None:
    compile_measured(tmp_path, bits)
    totals = gcov.Totals()
    with pyvmm.Machine() as m:
        m.load(tmp_path / "measured.elf")
        m.run(timeout=20)
        counters = gcov.Counters(m)
        for _ in range(2):  # the second time there is nothing new
            counters.collect(m, totals)
        (lines,) = totals.lines().values()
        assert [lines[n] for n in (3, 6, 9, 14, 19)] == [1, 0, 1, 0, 1]


def test_descriptions_that_are_hostile(tmp_path: Path) -> None:
    """What a guest has put there is looked at with doubt."""
    compile_measured(tmp_path)
    data = (tmp_path / "measured.elf").read_bytes()
    place = gcov.section(data, gcov.SECTION)
    assert place is not None
    with pyvmm.Machine() as m:
        m.load(data)
        m.cpu  # noqa: B018 - it is made
        info = m.mem.read_u32(place[0])
        good = m.mem[info : info + 68]
        for at in range(0, 68, 4):
            for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, info, place[0]):
                m.mem.write_u32(info + at, value)
                try:
                    for unit in gcov.read_units(m):
                        unit.read(m)
                except (pyvmm.Error, ValueError):
                    pass
            m.mem[info : info + 68] = good
        m.mem.write_u32(place[0], 0xFFFF_FFF0)
        with pytest.raises(ValueError, match=r"outside RAM|not mapped"):
            gcov.read_units(m)

# SPDX-License-Identifier: Apache-2.0
"""Tests of a trivial guest: pytest with the plugin, a QEMU process for each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns

from pyvmm import guest

from . import qemu
from .measure import Figure, ratio
from .table import Row

TESTS = 1000
QEMUS = 20  # processes that are measured
BOUND = 1 / 20

HEAD = "#include <test.h>\n\n"
TEST = "TEST(t{0}) {{ EXPECT_EQ({0} + 1, {1}); }}\n"
PROGRAM = "#include <runtime.h>\n\nint main(void) { return 0; }\n"


def write_tests(folder: Path, count: int) -> None:
    """A project with so many tests."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    lines = [TEST.format(i, i + 1) for i in range(count)]
    (folder / "guest_many.c").write_text(HEAD + "".join(lines))


def by_pytest(folder: Path, count: int) -> float:
    """Nanoseconds of each test: all of the process, from start to end."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pyvmm.plugin"]
    # Other plugins that happen to be installed are not what is measured.
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    start = perf_counter_ns()
    done = subprocess.run(
        command,
        cwd=folder,
        env=alone,
        capture_output=True,
        text=True,
        timeout=600,
    )
    took = perf_counter_ns() - start
    if done.returncode or f"{count} passed" not in done.stdout:
        raise RuntimeError(f"pytest: {done.stdout}{done.stderr}")
    return took / count


def by_qemu(image: Path) -> float:
    """Nanoseconds of one test that is a process of its own."""
    start = perf_counter_ns()
    qemu.run(image, "")
    return float(perf_counter_ns() - start)


def guest_tests(effort: float) -> Iterator[Row]:
    rounds = max(2, round(5 * effort))
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tests(folder, TESTS)
        image = Path(guest.build(write_program(folder)))
        by_pytest(folder, TESTS)  # compiles
        ours = [by_pytest(folder, TESTS) for _ in range(rounds)]
        figure = Figure(ours)
        yield Row(
            f"{TESTS} guest tests by pytest, each", figure,
            unit="ms", scale=1e-6,
        )  # fmt: skip
        if not qemu.found():
            yield Row("guest test, pytest over QEMU", note=qemu.MISSING)
            return
        theirs = [by_qemu(image) for _ in range(QEMUS)]
        yield Row(
            "one test by one QEMU microvm, each", Figure(theirs),
            unit="ms", scale=1e-6,
        )  # fmt: skip
        yield Row(
            "guest test, pytest over QEMU",
            ratio([(each, figure.median) for each in theirs]),
            BOUND, digits=4,
            note=f"{Figure(theirs).median / figure.median:.0f} times faster",
        )  # fmt: skip


def write_program(folder: Path) -> Path:
    """The guest that QEMU runs."""
    path = folder / "trivial.c"
    path.write_text(PROGRAM)
    return path

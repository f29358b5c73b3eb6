# SPDX-License-Identifier: Apache-2.0
"""From the start of a process: `import pyvmm`, and `pyvmm run` of a guest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

from .measure import Figure, difference, pairs, ratio
from .table import Row

ROOT = Path(__file__).parent.parent
HELLO = str(ROOT / "build/guest/hello.elf")
PASS = (sys.executable, "-c", "pass")


class Process:
    """A program that is started and waited for. Its output goes nowhere.

    `wall` and `work`: milliseconds of each run, as time passed and as CPU time
    of the process, in which other programs do not show.
    """

    def __init__(self, *argv: str) -> None:
        self.argv = argv
        self.wall: list[float] = []
        self.work: list[float] = []

    def __call__(self) -> float:
        nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        start = perf_counter_ns()
        pid = os.posix_spawn(
            self.argv[0], self.argv, os.environ, file_actions=nowhere
        )
        _, status, used = os.wait4(pid, 0)
        took = (perf_counter_ns() - start) / 1e6
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"{' '.join(self.argv)}: exit status {code}")
        self.wall.append(took)
        self.work.append((used.ru_utime + used.ru_stime) * 1e3)
        return took

    def note(self) -> str:
        wall, work = Figure(self.wall).median, Figure(self.work).median
        return f"{wall:.1f} ms, of which {work:.1f} ms CPU time"


def start(effort: float) -> Iterator[Row]:
    count = max(15, round(100 * effort))
    nothing = Process(*PASS)
    imports = Process(sys.executable, "-c", "import pyvmm")
    pairs(nothing, imports, 2)  # the caches; .pyc
    found = pairs(nothing, imports, count)
    yield Row("python3 -c pass", Figure(nothing.wall), unit="ms", digits=1,
              note=nothing.note())  # fmt: skip
    yield Row(
        "import pyvmm, over python3 -c pass", difference(found), 10,
        unit="ms", note=imports.note(),
    )  # fmt: skip
    # Names are loaded when they are first used: this is what that defers.
    uses = Process(sys.executable, "-c", "import pyvmm; pyvmm.Machine")
    pairs(nothing, uses, 2)
    found = pairs(nothing, uses, count)
    yield Row("import pyvmm and look up Machine, over the same",
              difference(found), unit="ms", note=uses.note())  # fmt: skip
    launcher = Process(str(ROOT / "build/pyvmm"), "run", HELLO)
    module = Process(sys.executable, "-m", "pyvmm", "run", HELLO)
    for name, run in (("pyvmm", launcher), ("python3 -m pyvmm", module)):
        pairs(nothing, run, 2)
        found = pairs(nothing, run, count)
        yield Row(
            f"{name} run hello.elf, over python3 -c pass", ratio(found), 4,
            unit="x", note=run.note(),
        )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""From the start of a process: `import pyvmm`, and `pyvmm run` of a guest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

from .measure import Figure, Step, difference, pairs, ratio
from .table import Row

ROOT = Path(__file__).parent.parent
HELLO = str(ROOT / "build/guest/hello.elf")
PASS = (sys.executable, "-c", "pass")


def process(*argv: str) -> Step:
    """Start it, wait for its end: nanoseconds. Its output goes nowhere."""
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]

    def step() -> float:
        start = perf_counter_ns()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=nowhere)
        _, status = os.waitpid(pid, 0)
        took = perf_counter_ns() - start
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"{' '.join(argv)}: exit status {code}")
        return took

    return step


def start(effort: float) -> Iterator[Row]:
    count = max(15, round(100 * effort))
    nothing = process(*PASS)
    imports = process(sys.executable, "-c", "import pyvmm")
    nothing(), imports()  # the caches; .pyc
    found = pairs(nothing, imports, count)
    cost = Figure([a for a, _ in found]).median / 1e6
    yield Row(
        "import pyvmm, over python3 -c pass", difference(found), 10,
        unit="ms", scale=1e-6, note=f"of {cost:.1f} ms",
    )  # fmt: skip
    launcher = process(str(ROOT / "build/pyvmm"), "run", HELLO)
    module = process(sys.executable, "-m", "pyvmm", "run", HELLO)
    for name, run in (("pyvmm", launcher), ("python3 -m pyvmm", module)):
        run()
        found = pairs(nothing, run, count)
        cost = Figure([b for _, b in found]).median / 1e6
        yield Row(
            f"{name} run hello.elf, over python3 -c pass", ratio(found), 4,
            unit="x", note=f"{cost:.0f} ms",
        )  # fmt: skip

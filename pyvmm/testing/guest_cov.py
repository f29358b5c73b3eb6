# SPDX-License-Identifier: Apache-2.0
"""Guest coverage in a session of pytest: collected, merged, written.

Each worker of pytest-xdist hands its lines to the main process as plain data.
"""

from __future__ import annotations

import pytest

from ..errors import Error
from .gcov import Counters, Lines, Totals, merge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..machine import Machine

OUTPUT = "pyvmm_coverage"  # in a worker's output

# Of the session, for machines that no fixture has made.
current: GuestCoverage | None = None


class GuestCoverage:
    """A plugin of the session. `path`: of an lcov file to write, or None;
    `coverage`: the coverage.Coverage that is told of the lines, or None.

    Threads: one.
    """

    def __init__(self, path: str | None, coverage: Any) -> None:
        self.path = path
        self.coverage = coverage
        self.totals = Totals()
        self.lines: Lines = {}
        self.problem = ""
        self._counters: dict[Machine, Counters] = {}

    # -- what Booted calls ---------------------------------------------------

    def booted(self, machine: Machine) -> None:
        """It has just booted."""
        try:
            self._counters[machine] = counters = Counters(machine)
            counters.collect(machine, self.totals)
        except (Error, ValueError) as exc:
            self.problem = str(exc)

    def left(self, machine: Machine) -> None:
        """A test is over, or an example: count what it has run."""
        counters = self._counters.get(machine)
        if counters is not None and not machine.closed:
            counters.collect(machine, self.totals)

    def restored(self, machine: Machine) -> None:
        """It is back where it had booted."""
        counters = self._counters.get(machine)
        if counters is not None:
            counters.restored()

    # -- hooks ---------------------------------------------------------------

    # Within that of pytest-cov, which reports when the loop has ended.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(
        self, session: pytest.Session
    ) -> Generator[None, Any, Any]:
        """All tests have been run, or as many as were to be."""
        try:
            return (yield)
        finally:
            self._finish(session.config)

    def _finish(self, config: pytest.Config) -> None:
        try:
            own = self.totals.lines()
        except Error as exc:
            self.problem, own = str(exc), {}
        for path, counts in own.items():
            merge(self.lines.setdefault(path, {}), counts)
        self._tell_coverage(own)
        output = getattr(config, "workeroutput", None)
        if output is not None:
            output[OUTPUT] = {
                "problem": self.problem,
                "lines": {
                    path: sorted(counts.items())
                    for path, counts in self.lines.items()
                },
            }
        elif self.path is not None:
            write_lcov(self.path, self.lines)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended."""
        output = getattr(node, "workeroutput", {}).get(OUTPUT, {})
        self.problem = output.get("problem") or self.problem
        for path, counts in output.get("lines", {}).items():
            merge(self.lines.setdefault(path, {}), dict(counts))

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        """What there is, or why there is none."""
        known = sum(len(counts) for counts in self.lines.values())
        run = sum(bool(n) for c in self.lines.values() for n in c.values())
        files = f"{len(self.lines)} file{'s' * (len(self.lines) != 1)}"
        text = f"{run} of {known} lines in {files}"
        if not known:
            text = (
                "none: no image was compiled with -fprofile-arcs "
                "-ftest-coverage -fprofile-info-section"
            )
        if self.problem:
            text += f"; {self.problem}"
        if self.path is not None:
            text += f"; written to {self.path}"
        terminalreporter.write_line(f"guest coverage: {text}")

    def _tell_coverage(self, lines: Lines) -> None:
        """Put lines that were run into the data of coverage.py."""
        from . import cover

        if self.coverage is None:
            return
        for path, counts in self.lines.items():
            cover.lines[path] = set(counts)
        data = self.coverage.get_data()
        for path, counts in lines.items():
            run = [line for line, count in counts.items() if count]
            if self.coverage.get_option("run:branch"):
                data.add_arcs({path: [(-1, line) for line in run]})
            else:
                data.add_lines({path: run})
            data.add_file_tracers({path: cover.NAME})


def write_lcov(path: str, lines: Lines) -> None:
    """An lcov tracefile, for genhtml and what else reads it."""
    with open(path, "w", encoding="utf-8") as file:
        for source in sorted(lines):
            counts = lines[source]
            file.write(f"TN:\nSF:{source}\n")
            for line in sorted(counts):
                file.write(f"DA:{line},{counts[line]}\n")
            run = sum(bool(count) for count in counts.values())
            file.write(f"LF:{len(counts)}\nLH:{run}\nend_of_record\n")


def wanted(config: pytest.Config) -> GuestCoverage | None:
    """One for this session, if it asks for it."""
    path = config.getoption("--pyvmm-cov")
    coverage = coverage_of(config)
    if path is None and coverage is None:
        return None
    global current
    current = GuestCoverage(path, coverage)
    return current


def coverage_of(config: pytest.Config) -> Any:
    """pytest-cov's Coverage, if that has our plugin (pyvmm.testing.cover)."""
    from ..plugin import COVER

    plugin = config.pluginmanager.getplugin("_cov")
    coverage = getattr(getattr(plugin, "cov_controller", None), "cov", None)
    if coverage is None or COVER not in coverage.get_option("run:plugins"):
        return None
    return coverage

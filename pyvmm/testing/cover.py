# SPDX-License-Identifier: Apache-2.0
"""A plugin of coverage.py: guest's source files in its reports.

    [tool.coverage.run]
    plugins = ["pyvmm.testing.cover"]

Which lines a file has is known where the tests were run: reports are those of
pytest-cov.
"""

from __future__ import annotations

from coverage import CoveragePlugin, FileReporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "pyvmm.testing.cover.GuestFiles"

# The lines with code of each file, as gcov has said.
lines: dict[str, set[int]] = {}


class GuestFiles(CoveragePlugin):
    """Knows files of C; traces nothing itself."""

    def file_reporter(self, filename: str) -> GuestFile:
        """What coverage.py asks of a file."""
        return GuestFile(filename)


class GuestFile(FileReporter):
    """A source file of a guest."""

    def lines(self) -> set[int]:
        """Those with code."""
        return lines.get(self.filename, set())


def coverage_init(reg: Any, options: Any) -> None:
    """Called by coverage.py."""
    reg.add_file_tracer(GuestFiles())

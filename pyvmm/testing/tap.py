# SPDX-License-Identifier: Apache-2.0
"""The Test Anything Protocol, as a guest prints it on its console.

Source: TAP 13 and 14 (testanything.org). Diagnostics, YAML blocks and subtests,
which are indented, are passed over: a subtest's result is in the line of its
parent.
"""

from __future__ import annotations

import re

RESULT = re.compile(
    r"(?P<not>not )?ok\b[ \t]*(?P<number>\d{1,9})?[ \t]*(?:- )?(?P<rest>.*)"
)
DIRECTIVE = re.compile(r"(?<!\\)#[ \t]*(skip|todo)\b[ \t]*(.*)", re.IGNORECASE)
PLAN = re.compile(r"1\.\.(\d{1,9})[ \t]*(?:#[ \t]*(.*))?$")
VERSION = re.compile(r"TAP version \d+$")
BAIL_OUT = re.compile(r"Bail out!(.*)")


class Tap:
    """What a text says by TAP.

    `found`: whether it has any. `planned`: how many tests, or None. `passed`,
    `skipped`: how many. `failed`: the lines of those that failed; `problems`:
    what else is wrong, in sentences. `why`: of a plan without tests.

    Threads: any; it does not change.
    """

    def __init__(self, text: str) -> None:
        self.found = False
        self.planned: int | None = None
        self.passed = self.skipped = 0
        self.failed: list[str] = []
        self.problems: list[str] = []
        self.why = ""
        self._numbers: set[int] = set()
        self._last = 0
        for line in text.splitlines():
            self._line(line.rstrip())
        if self.found:
            self._finish()

    def _line(self, line: str) -> None:
        if VERSION.match(line):
            self.found = True
        elif match := PLAN.match(line):
            if self.planned is not None:
                self.problems.append(f"there is a second plan: {line}")
            self.found = True
            self.planned = int(match[1])
            self.why = match[2] or ""
        elif match := BAIL_OUT.match(line):
            self.found = True
            self.problems.append(f"it bailed out:{match[1] or ' no reason'}")
        elif match := RESULT.match(line):
            self._result(line, match)

    def _result(self, line: str, match: re.Match[str]) -> None:
        number = int(match["number"] or self._last + 1)
        if number in self._numbers:
            self.problems.append(f"test {number} came twice: {line}")
        self._numbers.add(number)
        self._last = number
        directive = DIRECTIVE.search(match["rest"])
        word = directive[1].lower() if directive else ""
        if word == "skip":
            self.skipped += 1
        elif match["not"] and word != "todo":
            self.failed.append(line)
        else:
            self.passed += 1

    def _finish(self) -> None:
        count = len(self._numbers)
        if self.planned is None:
            self.problems.append(f"{count} tests came, without a plan 1..N")
        elif count != self.planned:
            self.problems.append(
                f"{self.planned} tests were planned, {count} came"
            )
        elif outside := [n for n in self._numbers if not 1 <= n <= count]:
            self.problems.append(f"test {outside[0]} is outside 1..{count}")

    @property
    def ok(self) -> bool:
        """Whether all went as planned."""
        return self.found and not self.failed and not self.problems

    @property
    def all_skipped(self) -> bool:
        """Whether no test has run, and that was the plan."""
        ran = self.passed or self.failed or self.problems
        return self.found and not ran

    def __str__(self) -> str:
        lines = [*self.problems, *self.failed]
        lines.append(
            f"{self.passed} passed, {len(self.failed)} failed, "
            f"{self.skipped} skipped"
        )
        return "\n".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""Rows of the table that is printed."""

from __future__ import annotations

from collections.abc import Iterable

from .measure import Figure


class Row:
    """One line: a figure, and the bound that it is to keep, if there is one.

    `scale` turns values into `unit`. `below`: the figure must be less than the
    bound, not just at most. A row without a figure says why in `note`.
    """

    def __init__(
        self,
        path: str,
        figure: Figure | None = None,
        bound: float | None = None,
        *,
        unit: str = "",
        scale: float = 1,
        digits: int = 2,
        below: bool = False,
        note: str = "",
    ) -> None:
        self.path = path
        self.figure = figure
        self.bound = bound
        self.unit = unit
        self.scale = scale
        self.digits = digits
        self.below = below
        self.note = note

    def text(self, value: float, unit: bool = True) -> str:
        shown = f"{value * self.scale:.{self.digits}f}"
        return f"{shown} {self.unit}" if unit and self.unit else shown

    @property
    def verdict(self) -> str:
        """ok or over; with a ? when the median is not sure enough to say."""
        if self.figure is None or self.bound is None:
            return ""
        fig = self.figure
        word = "ok" if self.keeps(fig.median) else "over"
        sure = self.keeps(fig.low) == self.keeps(fig.high)
        return word if sure else word + "?"

    def keeps(self, value: float) -> bool:
        assert self.bound is not None
        scaled = value * self.scale
        return scaled < self.bound if self.below else scaled <= self.bound

    def cells(self) -> tuple[str, ...]:
        fig = self.figure
        if fig is None:
            return (self.path, "-", "", "", "", "", self.note)
        bound = ""
        if self.bound is not None:
            bound = f"{'<' if self.below else '<='} {self.bound:g}"
        return (
            self.path,
            self.text(fig.median),
            bound,
            self.verdict,
            str(fig.count),
            "..".join(self.text(q, unit=False) for q in fig.quartiles),
            self.note,
        )


HEAD = ("path", "figure", "bound", "", "n", "middle half", "")
WIDTHS = (51, 10, 8, 5, 4, 14, 0)


def line(cells: Iterable[str]) -> str:
    """Cells under each other: names to the left, numbers to the right."""
    found = []
    for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True)):
        found.append(cell.rjust(width) if i in (1, 4) else cell.ljust(width))
    return "  ".join(found).rstrip()

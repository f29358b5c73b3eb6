# SPDX-License-Identifier: Apache-2.0
"""Pairs: two things measured one after the other, again and again.

The machine is shared and its speed drifts, so no figure stands alone. Each
pair is measured within milliseconds, in alternating order; what is reported is
the median over the pairs, and how sure that median is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from time import thread_time_ns

Step = Callable[[], float]
Found = list[tuple[float, float]]


class Figure:
    """The median of many values.

    `quartiles`: the middle half of the values. `low` and `high`: where the
    true median is with 95 % confidence (order statistics; no assumption about
    the distribution).
    """

    __slots__ = ("count", "high", "low", "median", "quartiles")

    def __init__(self, values: list[float]) -> None:
        ordered = sorted(values)
        count = len(ordered)
        if not count:
            raise ValueError("nothing was measured")
        half = 0.98 * sqrt(count)
        self.count = count
        self.median = middle(ordered)
        self.quartiles = (ordered[count // 4], ordered[(3 * count - 1) // 4])
        self.low = ordered[max(0, int(count / 2 - half))]
        self.high = ordered[min(count - 1, int(count / 2 + half))]


def middle(ordered: list[float]) -> float:
    """The median of sorted values."""
    at = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[at]
    return (ordered[at - 1] + ordered[at]) / 2


def timed(step: Callable[[], object]) -> Step:
    """The same step, answering how many nanoseconds its thread worked.

    For steps that never wait: time in which other programs had the CPU does
    not count, guest time does.
    """

    def run() -> float:
        start = thread_time_ns()
        step()
        return float(thread_time_ns() - start)

    return run


def pairs(first: Step, second: Step, count: int) -> Found:
    """`count` pairs (first, second); which one goes first alternates."""
    found: Found = []
    for i in range(count):
        if i % 2:
            b = second()
            a = first()
        else:
            a = first()
            b = second()
        found.append((a, b))
    return found


def ratio(found: Found) -> Figure:
    """The second over the first."""
    return Figure([b / a for a, b in found])


def difference(found: Found, each: float = 1) -> Figure:
    """The second less the first, for each of so many parts."""
    return Figure([(b - a) / each for a, b in found])

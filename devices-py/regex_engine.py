# SPDX-License-Identifier: Apache-2.0
"""Regular expressions whose time is bounded, for patterns that nobody trusts.

A pattern becomes a nondeterministic automaton (Thompson, "Regular Expression
Search Algorithm", 1968) and that, as far as a text needs it, a deterministic
one: a look-up for each byte, no backtracking. Bytes, not characters.

    pattern     alternatives, with | between them
    alternative repeats in a row
    repeat      atom, then nothing, * + ? {m} {m,} or {m,n}
    atom        a byte, . (any but newline), [a-z] [^a-z], \\d \\w \\s and
                their opposites, \\xHH, an escaped byte, (pattern)

^ at the very beginning and $ at the very end are the ends of the text.
"""

from __future__ import annotations

PATTERN_MAX = 1024  # bytes of a pattern
DEPTH_MAX = 40  # parentheses inside each other
REPEAT_MAX = 100  # in {m,n}
NODES_MAX = 2000  # of the automaton
KEPT_MAX = 50_000  # nodes in all states of the deterministic one; then anew
ALL = (1 << 256) - 1

Fragment = tuple[int, int]  # its first node, its last


def bits(data: bytes) -> int:
    """A set of bytes as a mask."""
    mask = 0
    for byte in data:
        mask |= 1 << byte
    return mask


CLASSES = {
    ord("d"): bits(b"0123456789"),
    ord("s"): bits(b" \t\n\r\f\v"),
    ord("w"): bits(
        b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
    ),
}
CONTROLS = {
    ord("n"): 10,
    ord("t"): 9,
    ord("r"): 13,
    ord("f"): 12,
    ord("v"): 11,
    ord("0"): 0,
}
DIGITS = frozenset(b"0123456789")
HEX = frozenset(b"0123456789abcdefABCDEF")


class PatternError(ValueError):
    """What is wrong with a pattern, and where."""


class WorkError(ValueError):
    """The search took more steps than it was given."""


class Parser:
    """A pattern and how far it was read; makes nodes of the automaton.

    `step`: of each node the bytes that lead on, as a mask, and where to;
    `free`: where it leads without any.
    """

    def __init__(self, pattern: bytes) -> None:
        if len(pattern) > PATTERN_MAX:
            raise PatternError(
                f"{len(pattern)} bytes are more than {PATTERN_MAX}"
            )
        self.pattern = pattern
        self.at = 0
        self.depth = 0
        self.step: list[tuple[int, int]] = []
        self.free: list[list[int]] = []

    def fail(self, why: str) -> PatternError:
        return PatternError(f"{why} at byte {self.at}")

    def node(self, mask: int = 0, to: int = -1) -> int:
        if len(self.step) == NODES_MAX:
            raise self.fail(f"more than {NODES_MAX} nodes")
        self.step.append((mask, to))
        self.free.append([])
        return len(self.step) - 1

    def peek(self) -> int:
        """The next byte, -1 at the end."""
        return self.pattern[self.at] if self.at < len(self.pattern) else -1

    def take(self) -> int:
        byte = self.peek()
        if byte < 0:
            raise self.fail("the pattern ends")
        self.at += 1
        return byte

    # -- the grammar, from the top -------------------------------------------

    def alternatives(self) -> Fragment:
        first, last = self.node(), self.node()
        while True:
            begin, end = self.sequence()
            self.free[first].append(begin)
            self.free[end].append(last)
            if self.peek() != ord("|"):
                return first, last
            self.at += 1

    def sequence(self) -> Fragment:
        first = last = self.node()
        while self.peek() not in (-1, ord("|"), ord(")")):
            begin, end = self.repeat()
            self.free[last].append(begin)
            last = end
        return first, last

    def repeat(self) -> Fragment:
        start = self.at
        fragment = self.atom()
        end = self.at
        match self.peek():
            case 0x2A:  # *
                low, high = 0, -1
            case 0x2B:  # +
                low, high = 1, -1
            case 0x3F:  # ?
                low, high = 0, 1
            case 0x7B:  # {
                low, high = self.bounds()
                self.at -= 1
            case _:
                return fragment
        self.at += 1
        after = self.at
        if self.peek() in (*b"*+?{",):
            raise self.fail("nothing to repeat")
        # The atom is read once more for each copy of it.
        copies = [fragment]
        for _ in range(max(low, high, 1) - 1):
            self.at = start
            copies.append(self.atom())
            assert self.at == end
        self.at = after
        return self.chain(copies, low, high)

    def chain(self, copies: list[Fragment], low: int, high: int) -> Fragment:
        first, last = self.node(), self.node()
        at = first
        for number, (begin, end) in enumerate(copies):
            if number >= low:
                self.free[at].append(last)
            if number < low or high < 0 or number < high:
                self.free[at].append(begin)
                at = end
        if high < 0:
            self.free[at].append(copies[-1][0])
        self.free[at].append(last)
        return first, last

    def bounds(self) -> tuple[int, int]:
        """{m}, {m,} or {m,n}; high -1: no limit."""
        self.at += 1
        low = self.number()
        high = low
        if self.peek() == ord(","):
            self.at += 1
            high = -1 if self.peek() == ord("}") else self.number()
        if self.take() != ord("}"):
            raise self.fail("} was due")
        if 0 <= high < low:
            raise self.fail(f"{{{low},{high}}} is the wrong way round")
        return low, high

    def number(self) -> int:
        digits = b""
        while self.peek() in DIGITS:
            digits += bytes([self.take()])
        if not digits or len(digits) > 4 or int(digits) > REPEAT_MAX:
            raise self.fail(f"a number from 0 to {REPEAT_MAX} was due")
        return int(digits)

    def atom(self) -> Fragment:
        byte = self.take()
        if byte == ord("("):
            self.depth += 1
            if self.depth > DEPTH_MAX:
                raise self.fail(f"more than {DEPTH_MAX} parentheses deep")
            fragment = self.alternatives()
            if self.take() != ord(")"):
                raise self.fail(") was due")
            self.depth -= 1
            return fragment
        if byte in b"*+?{":
            raise self.fail("nothing to repeat")
        if byte == ord("["):
            mask = self.set()
        elif byte == ord("."):
            mask = ALL & ~bits(b"\n")
        elif byte == ord("\\"):
            mask = self.escape()
        else:
            mask = 1 << byte
        last = self.node()
        return self.node(mask, last), last

    def escape(self) -> int:
        byte = self.take()
        lower = byte | 0x20
        if lower in CLASSES and chr(byte).isalpha():
            mask = CLASSES[lower]
            return mask if byte == lower else ALL & ~mask
        if byte == ord("x"):
            digits = bytes([self.take(), self.take()])
            if not HEX.issuperset(digits):
                raise self.fail(f"{digits!r} is no hexadecimal number")
            return 1 << int(digits, 16)
        if byte in CONTROLS:
            return 1 << CONTROLS[byte]
        if chr(byte).isalnum():
            raise self.fail(f"\\{chr(byte)} means nothing")
        return 1 << byte

    def set(self) -> int:
        negated = self.peek() == ord("^")
        self.at += negated
        mask = 0
        first = True
        while self.peek() != ord("]") or first:
            first = False
            low = self.member()
            if self.peek() == ord("-") and self.pattern[
                self.at + 1 : self.at + 2
            ] not in (b"]", b""):
                self.at += 1
                high = self.member()
                if low.bit_count() > 1 or high.bit_count() > 1 or high < low:
                    raise self.fail("a range is from one byte to a later one")
                mask |= 2 * high - low
            else:
                mask |= low
        self.at += 1
        return ALL & ~mask if negated else mask

    def member(self) -> int:
        byte = self.take()
        return self.escape() if byte == ord("\\") else 1 << byte


class Pattern:
    """A compiled pattern. PatternError when it is none.

    Threads: one at a time.
    """

    def __init__(self, pattern: bytes) -> None:
        self.at_start = pattern.startswith(b"^")
        self.at_end = pattern.endswith(b"$") and not pattern.endswith(b"\\$")
        parser = Parser(pattern[self.at_start : len(pattern) - self.at_end])
        first, self._last = parser.alternatives()
        if parser.at < len(parser.pattern):
            raise parser.fail("a parenthesis too many")
        self._step, self._free = parser.step, parser.free
        self._first = first
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._kept = 0
        self._number: dict[frozenset[int], int] = {}
        self._nodes: list[frozenset[int]] = []
        self._next: list[dict[int, int]] = []  # by state and byte; -1: none
        self._accepts: list[bool] = []
        self._start = self._state(frozenset(self._closure([self._first])))

    def _closure(self, nodes: list[int]) -> set[int]:
        found: set[int] = set()
        while nodes:
            node = nodes.pop()
            if node not in found:
                found.add(node)
                nodes += self._free[node]
        return found

    def _state(self, nodes: frozenset[int]) -> int:
        if not nodes:
            return -1
        number = self._number.get(nodes)
        if number is None:
            number = len(self._nodes)
            self._kept += len(nodes)
            self._number[nodes] = number
            self._nodes.append(nodes)
            self._next.append({})
            self._accepts.append(self._last in nodes)
        return number

    def _make(self, state: int, byte: int) -> int:
        """The state that a byte leads to, which nobody has needed yet."""
        step = self._step
        nodes = self._nodes[state]
        reached = [step[node][1] for node in nodes if step[node][0] >> byte & 1]
        after = self._state(frozenset(self._closure(reached)))
        self._next[state][byte] = after
        self._spent += len(nodes) + (len(self._nodes[after]) if reached else 0)
        return after

    def finditer(
        self, text: bytes, most: int, work: int
    ) -> list[tuple[int, int]]:
        """The first `most` matches that do not overlap, longest at each place.

        WorkError when that takes more than `work` steps.
        """
        found: list[tuple[int, int]] = []
        start, end = 0, len(text)
        self._left = work
        while start <= end and len(found) < most:
            stop = self._longest(text, start)
            if stop >= 0:
                found.append((start, stop))
            if self.at_start:
                break
            start = stop if stop > start else start + 1
        return found

    def _longest(self, text: bytes, start: int) -> int:
        """Where the longest match from `start` ends, or -1."""
        if self._kept > KEPT_MAX:
            self._begin_anew()
        state, stop = self._start, -1
        following, accepts = self._next, self._accepts
        at, end = start, len(text)
        self._spent = 1
        while True:
            if accepts[state] and (not self.at_end or at == end):
                stop = at
            if at == end:
                break
            after = following[state].get(text[at])
            if after is None:
                after = self._make(state, text[at])
            if after < 0 or self._spent + at - start > self._left:
                break
            state = after
            at += 1
        self._left -= self._spent + at - start
        if self._left < 0:
            raise WorkError("the search takes too many steps")
        return stop

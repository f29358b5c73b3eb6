# SPDX-License-Identifier: Apache-2.0
"""What reports need of DWARF: source lines of addresses, and call frames.

Read by pyelftools, if it is there.
"""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Lines:
    """The line table of an image, empty when it cannot be read.

    Threads: any.
    """

    def __init__(self, data: bytes) -> None:
        self._rows: list[tuple[int, str, int]] = []
        try:
            self._read(data)
        except ImportError:
            pass
        except Exception:  # DWARF of all ages; a report must not fail on it
            self._rows = []

    def _read(self, data: bytes) -> None:
        from io import BytesIO

        # An optional library without types.
        from elftools.elf.elffile import ELFFile  # type: ignore[import-not-found, import-untyped, unused-ignore]

        elf = ELFFile(BytesIO(data))
        if not elf.has_dwarf_info():
            return
        dwarf = elf.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            files = program["file_entry"]
            first = 0 if program["version"] >= 5 else 1
            for entry in program.get_entries():
                state = entry.state
                if state is None:
                    continue
                name, line = "", 0
                index = state.file - first
                if not state.end_sequence and 0 <= index < len(files):
                    name = files[index].name.decode(errors="replace")
                    line = state.line
                self._rows.append((state.address, name, line))
        # At one address the end of a sequence comes before its next start.
        self._rows.sort(key=lambda row: (row[0], row[1] != ""))

    def find(self, address: int) -> tuple[str, int] | None:
        """The file's name and the line that `address` belongs to."""
        i = bisect_right(self._rows, address, key=lambda row: row[0])
        if i == 0 or not self._rows[i - 1][1]:
            return None
        _, name, line = self._rows[i - 1]
        return name.rsplit("/", 1)[-1], line


# A DWARF expression: names of operations with their operands.
Expression = list[tuple[str, list[int]]]

# What is said of one address: the canonical frame address, and where each
# register (by DWARF's number) was saved, as an expression that starts with it.
Row = tuple[Expression, dict[int, Expression]]


class Frames:
    """Call frame information of an image, empty when it cannot be read.

    Threads: any.
    """

    def __init__(self, data: bytes | None) -> None:
        # first address, length, the entry of pyelftools
        self._entries: list[tuple[int, int, Any]] = []
        self._parser: Any = None
        if data is None:
            return
        try:
            self._read(data)
        except ImportError:
            pass
        except Exception:  # as in Lines
            self._entries = []

    def _read(self, data: bytes) -> None:
        from io import BytesIO

        from elftools.dwarf.dwarf_expr import DWARFExprParser
        from elftools.elf.elffile import ELFFile

        elf = ELFFile(BytesIO(data))
        if not elf.has_dwarf_info():
            return
        dwarf = elf.get_dwarf_info()
        self._parser = DWARFExprParser(dwarf.structs)
        entries: list[Any] = []
        if dwarf.has_CFI():
            entries += dwarf.CFI_entries()
        if dwarf.has_EH_CFI():
            entries += dwarf.EH_CFI_entries()
        for entry in entries:
            if type(entry).__name__ == "FDE":
                first = entry["initial_location"]
                self._entries.append((first, entry["address_range"], entry))
        self._entries.sort(key=lambda item: item[0])

    def row(self, address: int) -> Row | None:
        """What is said of this address; None: nothing."""
        i = bisect_right(self._entries, address, key=lambda item: item[0])
        if i == 0:
            return None
        first, size, entry = self._entries[i - 1]
        if address >= first + size:
            return None
        try:
            rows = [
                row for row in entry.get_decoded().table if row["pc"] <= address
            ]
            return self._decode(rows[-1]) if rows else None
        except Exception:
            return None

    def _decode(self, row: dict[Any, Any]) -> Row:
        cfa = row["cfa"]
        if cfa.expr is not None:
            base = self._parse(cfa.expr)
        else:
            base = [(f"DW_OP_breg{cfa.reg}", [cfa.offset])]
        saved: dict[int, Expression] = {}
        for number, rule in row.items():
            if not isinstance(number, int):
                continue
            if rule.type == "OFFSET":
                saved[number] = [("DW_OP_plus_uconst", [rule.arg])]
            elif rule.type == "EXPRESSION":
                saved[number] = self._parse(rule.arg)
        return base, saved

    def _parse(self, code: Any) -> Expression:
        return [(op.op_name, op.args) for op in self._parser.parse_expr(code)]


def evaluate(
    expression: Expression,
    register: Callable[[int], int | None],
    read: Callable[[int], int | None],
    start: int | None = None,
) -> int | None:
    """The value of an expression, unbounded; None when it is not known.

    `register` gives those of the frame, `read` words of its memory; `start` is
    on the stack at first. It knows what compilers use for frames.
    """
    stack: list[int | None] = [] if start is None else [start]
    for name, operands in expression:
        if name.startswith("DW_OP_breg"):
            base = register(int(name[10:]))
            stack.append(None if base is None else base + operands[0])
        elif name.startswith("DW_OP_lit"):
            stack.append(int(name[9:]))
        elif name == "DW_OP_plus_uconst" and stack:
            top = stack.pop()
            stack.append(None if top is None else top + operands[0])
        elif name == "DW_OP_deref" and stack:
            top = stack.pop()
            stack.append(None if top is None else read(top))
        elif name in ("DW_OP_plus", "DW_OP_minus", "DW_OP_and") and stack[1:]:
            b, a = stack.pop(), stack.pop()
            if a is None or b is None:
                return None
            results = {"plus": a + b, "minus": a - b, "and": a & b}
            stack.append(results[name[6:]])
        else:
            return None
    return stack[-1] if stack else None

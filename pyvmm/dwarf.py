# SPDX-License-Identifier: Apache-2.0
"""Source lines of addresses, read from DWARF by pyelftools if it is there."""

from __future__ import annotations

from bisect import bisect_right


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

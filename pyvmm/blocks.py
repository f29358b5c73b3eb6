# SPDX-License-Identifier: Apache-2.0
"""Where the basic blocks of an image begin, for coverage without compiling.

A replay puts an int3 there. One in the middle of an instruction would be
another program, so what is not sure is left out: only functions whose size the
image tells, only targets at which an instruction begins, only code that is
still in memory as it was in the file. objdump, of binutils, takes the code
apart; without it there are the functions alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine
    from .symbols import Symbols

PF_X = 1  # of a segment: its bytes are code

# "  100004:\te9 60 20 00 00 \tjmp    102069 <interrupt_entry>"
LINE = re.compile(r"\s*([0-9a-f]+):\t([0-9a-f ]+)(?:\t(\S+)\s*([0-9a-f]+)?)?")
ENDS = ("j", "ret", "iret", "loop", "hlt", "ud2", "int")  # of a block


def starts(machine: Machine) -> dict[int, int]:
    """Address and first byte of each block that is known; ascending."""
    symbols = machine.symbols
    found = {start: -1 for start, _ in functions(symbols)}
    objdump = shutil.which("objdump")
    if objdump is not None and symbols._data is not None:
        found = taken_apart(objdump, symbols)
    return dict(sorted(found.items()))


def functions(symbols: Symbols) -> list[tuple[int, int]]:
    """Begin and end of each function of known size, ascending."""
    elf = symbols._elf
    if elf is None:
        return []
    code = [
        (v, v + size) for _, v, _, size, flags in elf.segments if flags & PF_X
    ]
    return sorted(
        {
            (address, address + size)
            for address, size in elf.symbols.values()
            if size and any(low <= address < high for low, high in code)
        }
    )


def taken_apart(objdump: str, symbols: Symbols) -> dict[int, int]:
    """The blocks of all functions, by objdump."""
    assert symbols._data is not None
    known = functions(symbols)
    text = disassemble(objdump, symbols._data)
    begins = [start for start, _ in known]
    instructions: dict[int, int] = {}
    leaders: dict[int, set[int]] = {}  # of a function: what may be one
    bad: set[int] = set()
    after = -1  # where a block begins if an instruction does
    for match in LINE.finditer(text):
        address, raw = int(match[1], 16), match[2].split()
        at = bisect_right(begins, address) - 1
        if at < 0 or address >= known[at][1] or match[3] is None:
            after = -1
            continue
        instructions[address] = int(raw[0], 16)
        found = leaders.setdefault(at, {known[at][0]})
        if match[3] == "(bad)":
            bad.add(at)
        if address == after:
            found.add(address)
        after = -1
        if match[3].startswith(ENDS):
            after = address + len(raw)
            if match[4] is not None:
                target = int(match[4], 16)
                if known[at][0] <= target < known[at][1]:
                    found.add(target)
    return {
        address: instructions[address]
        for at, found in leaders.items()
        for address in (found if at not in bad else {known[at][0]})
        if address in instructions
    }


def disassemble(objdump: str, image: bytes) -> str:
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(prefix="pyvmm-", suffix=".elf") as file:
        file.write(image)
        file.flush()
        done = subprocess.run(
            [objdump, "-d", "-w", "--insn-width=16", file.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
    return done.stdout

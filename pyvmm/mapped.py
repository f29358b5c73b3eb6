# SPDX-License-Identifier: Apache-2.0
"""What page tables map, all of it: virtual addresses for core files.

Source: Intel SDM volume 3, 4.5 (4-level and 5-level paging).
"""

from __future__ import annotations

from struct import Struct

from . import x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .stop import Registers

    # virtual address, guest-physical address, size
    Run = tuple[int, int, int]
    ReadPage = Callable[[int], bytes | None]

TABLE = Struct("<512Q")
MOST_TABLES = 1024  # that are read: a guest can make each refer to itself
EMPTY = bytes(x86.PAGE)


def mapped(read: ReadPage, registers: Registers) -> Iterator[Run]:
    """What a CPU with 64-bit paging sees, neighbours joined; else nothing.

    `read(gpa)` gives a page, or None where is no RAM. At most MOST_TABLES
    tables are read.
    """
    paging = x86.paging(registers.cr0, registers.cr4, registers.efer)
    if paging not in (x86.PAGING_4, x86.PAGING_5):
        return iter(())
    return joined(pages(read, paging, registers.cr3))


def pages(read: ReadPage, paging: x86.Paging, cr3: int) -> Iterator[Run]:
    """Page by page, in the order of the tables."""
    left = [MOST_TABLES]

    def walk(level: int, gpa: int, base: int) -> Iterator[Run]:
        left[0] -= 1
        table = read(gpa) if left[0] >= 0 else None
        if table is None or table == EMPTY:
            return
        name, shift = paging.levels[level]
        last = level + 1 == len(paging.levels)
        large = name in paging.large
        for index, entry in enumerate(TABLE.unpack(table)):
            if not entry & x86.PTE_PRESENT:
                continue
            address = base | index << shift
            at = entry & paging.mask
            if last or (large and entry & x86.PTE_LARGE):
                yield (
                    signed(address, paging.bits),
                    at >> shift << shift,
                    (1 << shift),
                )
            else:
                yield from walk(level + 1, at, address)

    return walk(0, cr3 & paging.mask, 0)


def signed(address: int, bits: int) -> int:
    """A canonical address: the highest bit that is translated goes on."""
    if address >> (bits - 1):
        address |= (1 << 64) - (1 << bits)
    return address


def joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Runs, with those that go on from the one before added to it."""
    start, to, size = 0, 0, 0
    for address, at, length in runs:
        if size and address == start + size and at == to + size:
            size += length
            continue
        if size:
            yield start, to, size
        start, to, size = address, at, length
    if size:
        yield start, to, size


def within(
    runs: Iterable[Run], regions: Iterable[tuple[int, int, int]]
) -> Iterator[tuple[int, Run]]:
    """The parts of runs that are in RAM, each with its place in a file.

    `regions`: (gpa, size, flags), which follow each other in it. What is
    mapped where it is says nothing new and is left out.
    """
    places = []
    offset = 0
    for gpa, size, _ in regions:
        places.append((gpa, gpa + size, offset))
        offset += size
    for address, at, length in runs:
        for gpa, end, offset in places:
            first, last = max(at, gpa), min(at + length, end)
            if first < last and address != at:
                part = (address + first - at, first, last - first)
                yield offset + first - gpa, part

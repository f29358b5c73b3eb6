# SPDX-License-Identifier: Apache-2.0
"""What is x86 in pyvmm: layouts of kernel structures, page table formats.

The tables describe the structures of <linux/kvm.h> that `VCPU.get` and `set`
exchange, little endian; tests/unit/test_x86.py holds them against offsetof().

Sources: <linux/kvm.h>; Intel SDM volume 3, 2.5 (control registers), 4.3 to 4.5
(paging), 17.2 (debug registers).
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096

# struct kvm_regs: all u64.
REGS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
)  # fmt: skip
REGS_STRUCT = Struct("<18Q")

# struct kvm_segment and struct kvm_dtable.
SEGMENT = (
    "base", "limit", "selector", "type", "present", "dpl", "db", "s", "l",
    "g", "avl", "unusable",
)  # fmt: skip
SEGMENT_STRUCT = Struct("<QIH9Bx")
DTABLE = ("base", "limit")
DTABLE_STRUCT = Struct("<QH6x")

# struct kvm_sregs: segments, tables, control registers, a bitmap.
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
DTABLES = ("gdt", "idt")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
CONTROL_STRUCT = Struct("<7Q")
SREGS_SIZE = 312

# Where each field of kvm_sregs is: field, offset, its format.
SREGS: dict[str, tuple[int, Struct]] = {}
for _i, _name in enumerate(SEGMENTS):
    SREGS[_name] = (_i * SEGMENT_STRUCT.size, SEGMENT_STRUCT)
_at = len(SEGMENTS) * SEGMENT_STRUCT.size
for _i, _name in enumerate(DTABLES):
    SREGS[_name] = (_at + _i * DTABLE_STRUCT.size, DTABLE_STRUCT)
_at += len(DTABLES) * DTABLE_STRUCT.size
for _i, _name in enumerate(CONTROL):
    SREGS[_name] = (_at + 8 * _i, Struct("<Q"))
del _i, _name, _at

# The parts of general registers: name, whole register, lowest bit, bits.
PARTS: dict[str, tuple[str, int, int]] = {}
for _wide in "abcd":
    PARTS[f"e{_wide}x"] = (f"r{_wide}x", 0, 32)
    PARTS[f"{_wide}x"] = (f"r{_wide}x", 0, 16)
    PARTS[f"{_wide}l"] = (f"r{_wide}x", 0, 8)
    PARTS[f"{_wide}h"] = (f"r{_wide}x", 8, 8)
for _wide in ("si", "di", "sp", "bp"):
    PARTS[f"e{_wide}"] = (f"r{_wide}", 0, 32)
    PARTS[_wide] = (f"r{_wide}", 0, 16)
    PARTS[f"{_wide}l"] = (f"r{_wide}", 0, 8)
for _number in range(8, 16):
    PARTS[f"r{_number}d"] = (f"r{_number}", 0, 32)
    PARTS[f"r{_number}w"] = (f"r{_number}", 0, 16)
    PARTS[f"r{_number}b"] = (f"r{_number}", 0, 8)
PARTS["eip"] = ("rip", 0, 32)
PARTS["eflags"] = ("rflags", 0, 32)
del _wide, _number

# struct kvm_mp_state.
MP_STATE_STRUCT = Struct("<I")
MP_RUNNABLE = 0
MP_UNINITIALIZED = 1
MP_INIT_RECEIVED = 2
MP_HALTED = 3

RFLAGS = {
    "CF": 0x1, "PF": 0x4, "AF": 0x10, "ZF": 0x40, "SF": 0x80, "TF": 0x100,
    "IF": 0x200, "DF": 0x400, "OF": 0x800, "NT": 0x4000, "RF": 0x10000,
    "VM": 0x20000, "AC": 0x40000,
}  # fmt: skip
RFLAGS_IF = RFLAGS["IF"]
RFLAGS_VM = RFLAGS["VM"]

CR0_PE = 1 << 0
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10

# dr6 and dr7 (SDM volume 3, 17.2.4 and 17.2.5).
DR6_STEP = 1 << 14
DR6_HIT = 0xF
DR7_EXACT = 0x300
DR7_ENABLE = (0x2, 0x8, 0x20, 0x80)  # global
DR7_KIND = {"x": 0, "w": 1, "rw": 3}
DR7_SIZE = {1: 0, 2: 1, 8: 2, 4: 3}


def dr7(points: list[tuple[str, int]]) -> int:
    """The value of dr7 for (kind, size) in each of dr0 to dr3."""
    value = DR7_EXACT if points else 0
    for i, (kind, size) in enumerate(points):
        value |= DR7_ENABLE[i]
        value |= (DR7_KIND[kind] | DR7_SIZE[size] << 2) << (16 + 4 * i)
    return value


PTE_PRESENT = 1 << 0
PTE_LARGE = 1 << 7
PTE_NX = 1 << 63
PTE_FLAGS = {
    "write": 1 << 1, "user": 1 << 2, "pwt": 1 << 3, "pcd": 1 << 4,
    "accessed": 1 << 5, "dirty": 1 << 6, "global": 1 << 8, "nx": PTE_NX,
}  # fmt: skip


class Paging:
    """One of the ways in which an x86 CPU translates addresses.

    `levels` names the tables from the top, with the lowest bit of the address
    that each takes; `large` are those whose entries may be pages.
    """

    __slots__ = ("bits", "entry", "index", "large", "levels", "mask", "name")

    def __init__(
        self,
        name: str,
        *,
        bits: int,
        entry: int,
        levels: tuple[tuple[str, int], ...],
        large: tuple[str, ...],
    ) -> None:
        self.name = name
        self.bits = bits  # of a linear address that are translated
        self.entry = entry  # bytes of one
        self.index = 9 if entry == 8 else 10  # bits that each level takes
        self.levels = levels
        self.large = large
        self.mask = 0x000F_FFFF_FFFF_F000 if entry == 8 else 0xFFFF_F000


_4_LEVELS = (("PML4E", 39), ("PDPTE", 30), ("PDE", 21), ("PTE", 12))
PAGING_5 = Paging(
    "5-level", bits=57, entry=8, large=("PDPTE", "PDE"),
    levels=(("PML5E", 48), *_4_LEVELS),
)  # fmt: skip
PAGING_4 = Paging(
    "4-level", bits=48, entry=8, large=("PDPTE", "PDE"), levels=_4_LEVELS,
)  # fmt: skip
PAGING_PAE = Paging(
    "PAE", bits=32, entry=8, large=("PDE",), levels=_4_LEVELS[1:],
)  # fmt: skip
PAGING_32 = Paging(
    "32-bit", bits=32, entry=4, large=("PDE",),
    levels=(("PDE", 22), ("PTE", 12)),
)  # fmt: skip


def paging(cr0: int, cr4: int, efer: int) -> Paging | None:
    """How a CPU in this state translates; None: it does not (paging off)."""
    if not cr0 & CR0_PG:
        return None
    if efer & EFER_LMA:
        return PAGING_5 if cr4 & CR4_LA57 else PAGING_4
    return PAGING_PAE if cr4 & CR4_PAE else PAGING_32


class Level:
    """One step of a page walk: an entry of a table.

    `name` (PML4E, PDPTE, PDE, PTE), `gpa` of the entry, its value `entry`
    (None: the table is not in RAM), `flags` in words, and `present`.
    """

    __slots__ = ("entry", "gpa", "name")

    def __init__(self, name: str, gpa: int, entry: int | None) -> None:
        self.name = name
        self.gpa = gpa
        self.entry = entry

    @property
    def present(self) -> bool:
        """Whether the entry exists and its present bit is set."""
        return self.entry is not None and bool(self.entry & PTE_PRESENT)

    @property
    def flags(self) -> str:
        """The set bits in words, `-` when it is not present."""
        if self.entry is None or not self.present:
            return "-"
        entry = self.entry
        words = [word for word, bit in PTE_FLAGS.items() if entry & bit]
        if entry & PTE_LARGE and self.name != "PTE":
            words.append("large")
        return " ".join(words)

    def __repr__(self) -> str:
        if self.entry is None:
            return f"{self.name} at {self.gpa:#x}: not in RAM"
        return f"{self.name} at {self.gpa:#x}: {self.entry:#x} {self.flags}"


class Walk:
    """How one virtual address is translated, level by level.

    `address`, `paging` (its name, or "off"), `levels` from the top, and the
    outcome: `gpa`, None when the address is not mapped; `size` of the page.
    Iterating gives the levels.
    """

    __slots__ = ("address", "gpa", "levels", "paging", "size")

    def __init__(self, address: int, how: str) -> None:
        self.address = address
        self.paging = how
        self.levels: list[Level] = []
        self.gpa: int | None = None
        self.size = PAGE

    def __iter__(self) -> object:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, i: int) -> Level:
        return self.levels[i]

    def __repr__(self) -> str:
        lines = [f"{self.address:#x} ({self.paging} paging)"]
        lines += [f"  {level!r}" for level in self.levels]
        if self.gpa is None:
            lines.append("  not mapped")
        else:
            lines.append(f"  gpa {self.gpa:#x}, page of {self.size:#x}")
        return "\n".join(lines)


def walk(
    read: Callable[[int, int], int | None],
    address: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
) -> Walk:
    """Translate `address` by the page tables at cr3.

    `read(gpa, size)` gives an entry, or None outside RAM. Present bits are
    looked at and permissions are not. Never raises for what a guest may have
    put into its tables; takes at most five steps.
    """
    how = paging(cr0, cr4, efer)
    if how is None:
        out = Walk(address, "no")
        out.gpa = address
        return out
    out = Walk(address, how.name)
    if how.bits > 32:
        # Canonical: the bits above are copies of the highest one.
        high = address >> (how.bits - 1)
        if high not in (0, (1 << (65 - how.bits)) - 1):
            return out
    elif address >> 32:
        return out
    # PAE's top table is 32-byte aligned and has 4 entries.
    table = cr3 & (0xFFFF_FFE0 if how is PAGING_PAE else how.mask)
    for name, shift in how.levels:
        index = address >> shift & ((1 << how.index) - 1)
        gpa = table + index * how.entry
        entry = read(gpa, how.entry)
        level = Level(name, gpa, entry)
        out.levels.append(level)
        if entry is None or not level.present:
            return out
        is_page = shift == 12
        if name in how.large and entry & PTE_LARGE:
            is_page = how is not PAGING_32 or bool(cr4 & CR4_PSE)
        if is_page:
            out.size = 1 << shift
            base = entry & how.mask & ~(out.size - 1)
            if how is PAGING_32 and shift == 22:
                base |= (entry >> 13 & 0xFF) << 32  # PSE-36
            out.gpa = base | address & (out.size - 1)
            return out
        table = entry & how.mask
    return out


def mode_name(cr0: int, cs_l: int, cs_db: int, efer: int) -> str:
    """In which mode a CPU in this state runs, in words."""
    if not cr0 & CR0_PE:
        return "real mode"
    if efer & EFER_LMA:
        return "64-bit" if cs_l else "compatibility mode"
    return "32-bit" if cs_db else "16-bit"

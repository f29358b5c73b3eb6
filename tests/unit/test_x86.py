# SPDX-License-Identifier: Apache-2.0
"""Layouts against <linux/kvm.h>, page walks, debug registers."""

import subprocess
from pathlib import Path

import pytest

from pyvmm import debug, ends, host, x86
from pyvmm.stop import Registers


def c_values(expressions: list[str], folder: Path) -> list[int]:
    """What the C compiler makes of them, with <linux/kvm.h>."""
    lines = "\n".join(
        f'printf("%lld\\n", (long long)({e}));' for e in expressions
    )
    source = (
        "#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f"int main(void) {{\n{lines}\n}}\n"
    )
    program = folder / "values"
    subprocess.run(
        ["cc", "-x", "c", "-", "-o", program],
        input=source,
        text=True,
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_layouts_are_those_of_the_kernel(tmp_path: Path) -> None:
    ours: dict[str, int] = {
        "sizeof(struct kvm_regs)": x86.REGS_STRUCT.size,
        "sizeof(struct kvm_sregs)": x86.SREGS_SIZE,
        "sizeof(struct kvm_segment)": x86.SEGMENT_STRUCT.size,
        "sizeof(struct kvm_dtable)": x86.DTABLE_STRUCT.size,
        "sizeof(struct kvm_mp_state)": x86.MP_STATE_STRUCT.size,
        "KVM_MP_STATE_HALTED": x86.MP_HALTED,
        "KVM_MP_STATE_RUNNABLE": x86.MP_RUNNABLE,
        "KVM_MP_STATE_UNINITIALIZED": x86.MP_UNINITIALIZED,
        "KVM_MP_STATE_INIT_RECEIVED": x86.MP_INIT_RECEIVED,
        "KVM_SYSTEM_EVENT_SHUTDOWN": ends.EVENT_SHUTDOWN,
        "KVM_SYSTEM_EVENT_RESET": ends.EVENT_RESET,
        "KVM_SYSTEM_EVENT_CRASH": ends.EVENT_CRASH,
        "KVM_INTERNAL_ERROR_EMULATION": ends.SUBERROR_EMULATION,
    }
    for i, name in enumerate(x86.REGS):
        ours[f"offsetof(struct kvm_regs, {name})"] = 8 * i
    for name, (at, layout) in x86.SREGS.items():
        ours[f"offsetof(struct kvm_sregs, {name})"] = at
        ours[f"sizeof(((struct kvm_sregs *)0)->{name})"] = layout.size
    at = 0
    for i, name in enumerate(x86.SEGMENT):
        ours[f"offsetof(struct kvm_segment, {name})"] = at
        at += (8, 4, 2)[i] if i < 3 else 1
    ours["offsetof(struct kvm_dtable, limit)"] = 8
    for name, number in host.CAPABILITIES.items():
        ours[f"KVM_CAP_{name}"] = number
    theirs = c_values(list(ours), tmp_path)
    wrong = {
        what: (mine, real)
        for (what, mine), real in zip(ours.items(), theirs, strict=True)
        if mine != real
    }
    assert not wrong


class Tables:
    """Memory made of a dict of entries, and a walk through it."""

    def __init__(self, cr4: int = x86.CR4_PAE, efer: int = x86.EFER_LMA):
        self.entries: dict[int, int] = {}
        self.cr4 = cr4
        self.efer = efer

    def read(self, gpa: int, size: int) -> int | None:
        value = self.entries.get(gpa)
        return None if value is None else value & ((1 << 8 * size) - 1)

    def walk(self, address: int, cr3: int = 0x1000) -> x86.Walk:
        return x86.walk(
            self.read,
            address,
            cr0=x86.CR0_PE | x86.CR0_PG,
            cr3=cr3,
            cr4=self.cr4,
            efer=self.efer,
        )


def test_walk_without_paging() -> None:
    walk = x86.walk(Tables().read, 0x1234, cr0=1, cr3=0, cr4=0, efer=0)
    assert walk.gpa == 0x1234 and len(walk) == 0


def test_walk_of_four_levels() -> None:
    tables = Tables()
    tables.entries = {
        0x1000 + 8 * 1: 0x2003,
        0x2000 + 8 * 2: 0x3003,
        0x3000 + 8 * 3: 0x4003,
        0x4000 + 8 * 4: 0x8000_0000_0005_5067,
        0x2000 + 8 * 3: 0x4000_0083,
        0x3000 + 8 * 4: 0x60_0083,
    }
    address = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567
    walk = tables.walk(address)
    assert walk.gpa == 0x55567 and walk.size == 4096
    assert [level.name for level in walk] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert walk[3].flags == "write user accessed dirty nx"
    assert "PTE at 0x4020: 0x8000000000055067" in repr(walk)
    large = tables.walk(1 << 39 | 3 << 30 | 0x1234567)
    assert large.gpa == 0x4123_4567 and large.size == 1 << 30
    middle = tables.walk(1 << 39 | 2 << 30 | 4 << 21 | 0x12345)
    assert middle.gpa == 0x61_2345 and middle.size == 1 << 21
    assert middle[-1].flags == "write large"


def test_walk_of_five_levels() -> None:
    tables = Tables(cr4=x86.CR4_PAE | x86.CR4_LA57)
    tables.entries = {
        0x1000 + 8 * 5: 0x2003,
        0x2000: 0x3003,
        0x3000: 0x4003,
        0x4000: 0x5003,
        0x5000: 0x6003,
    }
    walk = tables.walk(5 << 48 | 0x42)
    assert walk.gpa == 0x6042 and walk[0].name == "PML5E"


def test_walk_of_pae() -> None:
    tables = Tables(efer=0)
    tables.entries = {
        0x1020 + 8 * 3: 0x2001,  # a table of four, 32-byte aligned
        0x2000 + 8 * 1: 0x3003,
        0x3000 + 8 * 2: 0x7003,
        0x2000 + 8 * 2: 0x60_0083,
    }
    assert tables.walk(3 << 30 | 1 << 21 | 2 << 12 | 9, 0x1020).gpa == 0x7009
    large = tables.walk(3 << 30 | 2 << 21 | 0x54321, 0x1020)
    assert large.gpa == 0x65_4321 and large.size == 2 << 20
    assert tables.walk(1 << 32, 0x1020).gpa is None


def test_walk_of_32_bits() -> None:
    tables = Tables(cr4=x86.CR4_PSE, efer=0)
    tables.entries = {
        0x1000 + 4 * 1: 0x2003,
        0x2000 + 4 * 2: 0x7003,
        0x1000 + 4 * 2: 0x0080_2083,  # 8 MiB, and bit 32 by PSE-36
    }
    assert tables.walk(1 << 22 | 2 << 12 | 1).gpa == 0x7001
    large = tables.walk(2 << 22 | 0x12345)
    assert large.gpa == 0x1_0081_2345 and large.size == 4 << 20


@pytest.mark.parametrize(
    ("address", "levels"),
    [(0, 1), (1 << 39, 2), (1 << 47, 0), (1 << 63, 0)],
)
def test_walks_that_end_early(address: int, levels: int) -> None:
    tables = Tables()
    tables.entries = {0x1000: 0x2002, 0x1008: 0xF_FFFF_FFFF_F003}
    walk = tables.walk(address)
    assert walk.gpa is None and len(walk) == levels
    assert "not mapped" in repr(walk)


def test_a_table_that_points_to_itself_ends() -> None:
    tables = Tables()
    tables.entries = dict.fromkeys(range(0x1000, 0x2000, 8), 0x1003)
    assert tables.walk((1 << 47) - 1).gpa == 0x1FFF


def test_dr7() -> None:
    assert x86.dr7([]) == 0
    assert x86.dr7([("x", 1)]) == 0x302
    assert x86.dr7([("x", 1), ("w", 4)]) == 0x302 | 0x8 | 0b1101 << 20
    assert x86.dr7([("rw", 8)] * 4) == 0x300 | 0xAA | 0xBBBB << 16


def registers(**values: int) -> Registers:
    regs = dict.fromkeys(x86.REGS, 0)
    sregs = bytearray(x86.SREGS_SIZE)
    for name, value in values.items():
        if name in regs:
            regs[name] = value
        elif name in x86.CONTROL:
            x86.SREGS[name][1].pack_into(sregs, x86.SREGS[name][0], value)
    return Registers(x86.REGS_STRUCT.pack(*regs.values()), bytes(sregs))


def test_registers_by_name_and_part() -> None:
    regs = registers(rax=0x1122_3344_5566_7788, r9=0xFFFF_FFFF_FFFF_1234)
    assert regs.rax == regs["rax"] == 0x1122_3344_5566_7788
    assert (regs.eax, regs.ax, regs.al, regs.ah) == (
        0x5566_7788, 0x7788, 0x88, 0x77,
    )  # fmt: skip
    assert regs.r9d == 0xFFFF_1234 and regs.r9b == 0x34
    with pytest.raises(AttributeError, match="no register 'rxx'"):
        regs.rxx  # noqa: B018


def test_modes_by_registers() -> None:
    assert debug.mode_of(registers()) == "real"
    assert debug.mode_of(registers(cr0=1)) == "protected"
    assert debug.mode_of(registers(cr0=1, efer=x86.EFER_LMA)) == "long"
    assert registers().mode == "real mode"

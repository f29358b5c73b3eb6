# SPDX-License-Identifier: Apache-2.0
"""Looking at a stopped guest: registers, both address spaces, page tables."""

from pathlib import Path

import pytest

import pyvmm

TIMEOUT = 20


@pytest.fixture
def m():
    with pyvmm.Machine() as machine:
        machine.load(
            asm="mov eax, 0x11223344; out 0xf4, eax; out 0xf4, eax;"
            'text: .asciz "hello"; number: .quad 0x0102030405060708'
        )
        machine.run(timeout=TIMEOUT)
        yield machine


def test_registers_are_attributes(m) -> None:
    cpu = m.cpu
    assert cpu.rax == cpu.eax == 0x1122_3344
    assert (cpu.ax, cpu.al, cpu.ah) == (0x3344, 0x44, 0x33)
    cpu.ah = 0xAA
    assert cpu.rax == 0x1122_AA44
    cpu.rax = -1
    assert cpu.rax == (1 << 64) - 1
    cpu.eax = 7  # clears the upper half, like the processor
    assert cpu.rax == 7
    assert m.run(timeout=TIMEOUT).status == 7


def test_control_registers_and_segments(m) -> None:
    cpu = m.cpu
    assert cpu.cr0 & 1 and cpu.efer == 0 and cpu.cr3 == 0
    assert cpu.cs == 8 and int(cpu.ds) == 0x10 and cpu.cs.limit == 0xFFFF_FFFF
    cpu.gs.base = 0x1000
    assert cpu.gs.base == 0x1000 and cpu.fs.base == 0
    cpu.fs = cpu.gs
    assert cpu.fs == cpu.gs
    cpu.cr2 = 5
    assert cpu.cr2 == 5
    cpu.idt.update({"base": 0x2000, "limit": 0xFF})
    assert (cpu.idt.base, cpu.idt.limit) == (0x2000, 0xFF)
    assert "base=0x2000 limit=0xff" in repr(cpu.idt)
    assert not cpu.halted


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("al", 256, ValueError),
        ("eax", 1 << 32, ValueError),
        ("rax", 1 << 64, ValueError),
        ("rax", 1.5, TypeError),
        ("rxx", 1, AttributeError),
    ],
)
def test_values_that_are_refused(m, name, value, error) -> None:
    with pytest.raises(error):
        setattr(m.cpu, name, value)
    assert m.cpu.rax == 0x1122_3344


def test_the_repr_marks_what_changed(m) -> None:
    assert "*" not in repr(m.cpu)
    m.cpu.rbx = 5
    text = repr(m.cpu)
    assert text.count("*") == 1 and "*   rbx 00000005" in text
    assert "32-bit, ring 0" in text
    assert "*" not in repr(m.cpu)


def test_both_address_spaces_have_the_same_methods(m) -> None:
    for mem in (m.mem, m.cpu.mem):
        assert mem.cstring("text") == b"hello"
        assert mem.read_u64("number") == 0x0102_0304_0506_0708
        assert mem.read_u32("number+4") == 0x0102_0304
        assert mem.read_u16("number") == 0x0708 and mem.read_u8("number") == 8
        assert mem["text"] == ord("h")
        assert mem["text":"text+5"] == b"hello"
        mem["text":"text+2"] = b"HE"
        mem["text+2"] = ord("L")
        assert mem.read("text", 5) == b"HELlo"
        mem.write("text", b"hello")
        mem.write_u64(0x20_0000, 1 << 63)
        mem.write_u32(0x20_0000, 2)
        mem.write_u16(0x20_0004, 3)
        mem.write_u8(0x20_0006, 4)
        assert mem.read(0x20_0000, 8) == bytes([2, 0, 0, 0, 3, 0, 4, 0x80])


END = 0x110_0000  # of RAM


@pytest.mark.parametrize("space", ["physical", "virtual"])
@pytest.mark.parametrize(
    "access",
    [
        lambda mem: mem.read(END - 2, 4),
        lambda mem: mem.write(END - 2, b"1234"),
        lambda mem: mem[0],
        lambda mem: mem.read_u32(END),
        lambda mem: mem.read(0x10_0000, 1 << 40),
        lambda mem: mem.read(0x10_0000, -1),
        lambda mem: mem[0x10_0000:],
        lambda mem: mem[0x10_0000:0x10_0008:2],
        lambda mem: mem["nobody"],
        lambda mem: mem.read(-1, 1),
        lambda mem: mem.cstring(END - 16),
        lambda mem: mem.write_u8(0x10_0000, 256),
        lambda mem: mem.__setitem__(slice(0x10_0000, 0x10_0004), b"12"),
    ],
)
def test_memory_that_is_not_there(m, space, access) -> None:
    mem = m.mem if space == "physical" else m.cpu.mem
    mem.write(END - 16, b"x" * 16)
    with pytest.raises(ValueError):
        access(mem)
    assert mem.read(END - 2, 2) == b"xx"
    with pytest.raises(TypeError):
        mem.read(1.5, 1)


def test_views_are_the_ram_itself() -> None:
    m = pyvmm.Machine()
    m.load(asm="mov dword ptr [0x200000], 0x64636261; out 0xf4, al")
    view = m.mem.view(0x20_0000, 4)
    m.run(timeout=TIMEOUT)
    assert bytes(view) == b"abcd"
    m.close()
    assert bytes(view) == b"abcd"  # until the last view goes
    with pytest.raises(ValueError):
        m.mem  # noqa: B018
    with pytest.raises(ValueError):
        m.cpu  # noqa: B018


def test_virtual_memory_through_page_tables() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="out 0xf4, al", mode="long")
        assert m.cpu.cr0 >> 31
        walk = m.cpu.walk(0x12_3456)
        assert walk.gpa == 0x12_3456 and walk.size == 2 << 20
        assert [level.name for level in walk] == ["PML4E", "PDPTE", "PDE"]
        assert "user" in walk[-1].flags and "large" in walk[-1].flags
        # Map 1 GiB of the upper half onto the first by a second PML4 entry.
        pml4 = m.cpu.cr3
        high = 0xFFFF_8000_0000_0000
        m.mem.write_u64(pml4 + 8 * 256, m.mem.read_u64(pml4))
        m.mem.write(0x20_0FFE, b"over the border")
        assert m.cpu.mem.read(high + 0x20_0FFE, 15) == b"over the border"
        m.cpu.mem.write(high + 0x1F_FFFE, b"abcd")
        assert m.mem.read(0x1F_FFFE, 4) == b"abcd"
        with pytest.raises(ValueError, match="0x800000000000 is not mapped"):
            m.cpu.mem.read(1 << 47, 1)
        with pytest.raises(ValueError):
            m.cpu.mem.write(high + 0x110_0000 - 2, b"1234")
        assert m.cpu.walk(0x123).paging == "4-level"
        # Tables that a guest points anywhere.
        m.mem.write_u64(pml4, 0xF_FFFF_FFFF_F007)
        assert m.cpu.walk(0x1000).gpa is None
        assert "not in RAM" in repr(m.cpu.walk(0x1000))
        assert m.cpu.registers.cr3 == pml4


def test_symbols(root: Path) -> None:
    with pyvmm.Machine() as m:
        m.load(root / "build/guest/hello.elf")
        main = m.symbols["main"]
        assert m.symbols.address("main+0x10") == main + 16
        assert m.symbols.address("main - 1") == main - 1
        assert m.symbols.address(f"{main:#x}") == main
        assert "main" in m.symbols and "nobody" not in m.symbols
        assert "main" in list(m.symbols) and len(m.symbols) > 10
        where = m.symbols.where(main + 2)
        assert (where.symbol, where.offset) == ("main", 2)
        assert str(where).startswith("main+0x2")
        with pytest.raises(KeyError):
            m.symbols["nobody"]
        for bad in ("nobody", "", "1x", -1, 1 << 64):
            with pytest.raises(ValueError):
                m.symbols.address(bad)


def test_registers_inside_a_device() -> None:
    seen = []

    class Spy(pyvmm.Device):
        size = 1

        def write(self, offset: int, size: int, value: int) -> None:
            assert self.machine is not None
            seen.append(self.machine.cpu.ebx)
            with pytest.raises(RuntimeError):
                self.machine.cpu.ebx = 1
            with pytest.raises(RuntimeError, match="cannot run its machine"):
                self.machine.run()
            with pytest.raises(RuntimeError, match="wait for its own run"):
                self.machine.pause()

    with pyvmm.Machine() as m:
        m.attach(Spy(), port=0x40)
        m.load(asm="mov ebx, 77; out 0x40, al; out 0xf4, al")
        m.run(timeout=TIMEOUT)
    assert seen == [77]


def test_looking_from_another_thread_while_it_runs(root: Path) -> None:
    with pyvmm.Machine() as m:
        m.load(root / "build/guest/faults.elf", cmdline="spin")
        assert m.cpu.rip
        m.start()
        with pytest.raises(RuntimeError, match="another thread"):
            m.cpu.rip  # noqa: B018
        assert "running" in repr(m.cpu) and "running" in repr(m)
        assert len(m.mem.read(0x10_0000, 16)) == 16
        m.pause()
        assert m.cpu.registers.pc >= 0x10_0000

# SPDX-License-Identifier: Apache-2.0
"""ELF core files as others read them, and processors compared."""

import io
import os
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import pyvmm
from pyvmm import corefile, features, mapped, snapfile, x86
from pyvmm.stop import Registers


def registers() -> Registers:
    """Each one with a value of its own."""
    regs = x86.REGS_STRUCT.pack(*range(1000, 1000 + len(x86.REGS)))
    sregs = bytearray(x86.SREGS_SIZE)
    for number, (at, layout) in enumerate(x86.SREGS.values()):
        count = len(layout.unpack_from(sregs, at))
        layout.pack_into(sregs, at, *(number + 1 for _ in range(count)))
    return Registers(regs, bytes(sregs))


def test_a_head_as_pyelftools_reads_it() -> None:
    notes = [(b"CORE", 1, corefile.prstatus(3, registers())), (b"X", 9, b"abc")]
    segments = [(0, 0x1000, 0x1000, 8192), (8192, 0xF000, 0xF000, 4096)]
    head = corefile.make_head(segments, notes)
    elf = ELFFile(io.BytesIO(head))
    assert elf["e_type"] == "ET_CORE" and elf["e_machine"] == "EM_X86_64"
    first, *loads = elf.iter_segments()
    assert [
        (s["p_offset"] - len(head), s["p_vaddr"], s["p_paddr"], s["p_filesz"])
        for s in loads
    ] == segments
    assert all(s["p_offset"] % s["p_align"] == 0 for s in loads)
    found = list(first.iter_notes())
    assert [note["n_name"] for note in found] == ["CORE", "X", "PYVMM"]
    assert found[0]["n_descsz"] == 336 and found[1]["n_desc"] == b"abc"


def test_registers_are_where_debuggers_look() -> None:
    """Offsets of struct elf_prstatus: pr_pid, and user_regs_struct in it."""
    state = registers()
    data = corefile.prstatus(3, state)

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 8], "little")

    assert int.from_bytes(data[32:36], "little") == 4
    regs = 112
    assert word(regs) == state["r15"]
    assert word(regs + 10 * 8) == state["rax"]
    assert word(regs + 16 * 8) == state["rip"]
    assert word(regs + 17 * 8) == state.segment("cs")["selector"]
    assert word(regs + 18 * 8) == state["rflags"]
    assert word(regs + 19 * 8) == state["rsp"]
    assert word(regs + 21 * 8) == state.segment("fs")["base"]
    assert len(corefile.qemu_state(state)) == 440


def test_what_linux_says_of_itself() -> None:
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
    note = corefile.pack_note((b"VMCOREINFO", 0, text))
    pages = bytearray(4 * 4096)
    pages[100 : 100 + len(note)] = note  # not where one begins
    assert corefile.find_vmcoreinfo(pages, len(pages)) is None
    pages[8192 : 8192 + len(note)] = note
    assert corefile.find_vmcoreinfo(pages, len(pages)) == text
    assert corefile.find_vmcoreinfo(pages, 8192) is None
    pages[8192 + 4] = pages[8192 + 6] = 0xFF  # a size that none has
    assert corefile.find_vmcoreinfo(pages, len(pages)) is None


def test_notes_there_and_back(tmp_path: Path) -> None:
    notes = [(b"A", 1, b""), (b"LONGER", 2, b"12345"), (b"", 3, b"1234")]
    path = tmp_path / "core"
    path.write_bytes(corefile.make_head([], notes))
    with open(path, "rb") as file:
        head, found = corefile.read_head(file.fileno(), "core")
    corefile.check_head(head, found, "core")
    assert found == notes
    assert len(head) % 4096 == 0


def test_the_pages_of_zeros_in_a_chunk() -> None:
    chunk = bytearray(6 * 4096)
    assert snapfile.runs(chunk, 6) == []
    chunk[0] = chunk[4095 + 4096] = chunk[5 * 4096 + 7] = 1
    assert snapfile.runs(chunk, 6) == [(0, 8192), (5 * 4096, 6 * 4096)]
    assert snapfile.runs(chunk, 5) == [(0, 8192)]


def test_where_a_file_has_data(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        fd = file.fileno()
        os.ftruncate(fd, 1 << 20)
        assert snapfile.extents(fd, 0, 1 << 20) in ([], [(0, 1 << 20)])
        os.pwrite(fd, b"x", 0x50000)
        found = snapfile.extents(fd, 0, 1 << 20)
        assert any(a <= 0x50000 < b for a, b in found)


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_only_files_are_opened(path: str) -> None:
    with pytest.raises(pyvmm.Error, match="not a snapshot"):
        corefile.open_regular(path)


# -- processors ----------------------------------------------------------------


def test_names_of_features_are_where_the_manuals_have_them() -> None:
    """Some of each register, by number."""
    bits = {
        (0x1, 0, "edx"): {0: "fpu", 15: "cmov", 25: "sse", 26: "sse2"},
        (0x1, 0, "ecx"): {0: "sse3", 9: "ssse3", 13: "cx16", 20: "sse4_2",
                          25: "aes", 26: "xsave", 28: "avx", 30: "rdrand"},
        (0x7, 0, "ebx"): {0: "fsgsbase", 5: "avx2", 7: "smep", 16: "avx512f",
                          20: "smap", 29: "sha", 31: "avx512vl"},
        (0x7, 0, "ecx"): {2: "umip", 3: "pku", 9: "vaes", 16: "la57",
                          22: "rdpid", 27: "movdiri", 31: "pks"},
        (0x7, 0, "edx"): {4: "fsrm", 10: "md_clear", 20: "ibt",
                          22: "amx_bf16", 24: "amx_tile", 26: "spec_ctrl",
                          31: "ssbd"},
        (0x7, 1, "eax"): {4: "avx_vnni", 10: "fzrm", 17: "fred",
                          21: "amx_fp16", 26: "lam"},
        (0xD, 0, "eax"): {2: "xcr0.avx", 9: "xcr0.pkru", 17: "xcr0.tilecfg"},
        (0xD, 1, "eax"): {0: "xsaveopt", 3: "xsaves"},
        (0x8000_0001, 0, "edx"): {11: "syscall", 20: "nx", 26: "pdpe1gb",
                                  27: "rdtscp", 29: "lm"},
        (0x8000_0001, 0, "ecx"): {0: "lahf_lm", 2: "svm", 5: "abm",
                                  6: "sse4a", 16: "fma4", 29: "mwaitx"},
        (0x8000_0007, 0, "edx"): {8: "constant_tsc"},
        (0x8000_0008, 0, "ebx"): {0: "clzero", 4: "rdpru", 9: "wbnoinvd",
                                  12: "ibpb", 15: "stibp_amd"},
    }  # fmt: skip
    registers = ("eax", "ebx", "ecx", "edx")
    for (function, index, register), names in bits.items():
        row = [function, index, 0, 0, 0, 0, 0]
        row[3 + registers.index(register)] = sum(1 << bit for bit in names)
        found = features.missing([tuple(row)], [])
        assert found == list(names.values())
    assert len(bits) == len(features.NAMES)


def test_states_are_no_features() -> None:
    osxsave = (1, 0, 0, 0, 0, 1 << 27 | 1 << 31, 0)
    assert features.missing([osxsave], []) == []


def test_what_both_have_is_not_missing() -> None:
    one = (7, 0, 0, 0, 0b1100, 0, 0)
    other = (7, 0, 0, 0, 0b0100, 0, 0)
    assert features.missing([one], [other]) == ["bmi1"]
    assert features.missing([other], [one]) == []


# -- page tables ---------------------------------------------------------------


def tables(entries: dict[int, dict[int, int]]) -> dict[int, bytes]:
    """Pages of entries, by address and index."""
    found = {}
    for gpa, rows in entries.items():
        values = [rows.get(index, 0) for index in range(512)]
        found[gpa] = mapped.TABLE.pack(*values)
    return found


def runs(pages: dict[int, bytes], paging: x86.Paging = x86.PAGING_4) -> list:
    found = mapped.pages(pages.get, paging, 0x1000)
    return list(mapped.joined(found))


def test_what_page_tables_map() -> None:
    pages = tables({
        0x1000: {0: 0x2003, 511: 0x2003},
        0x2000: {0: 0x3003, 1: 1 << 30 | 0x83, 510: 0x9003},
        0x3000: {0: 0x4003, 1: 0x200083, 2: 0x400083, 7: 0x600082},
        0x4000: {1: 0x7003, 2: 0x8003, 3: 0xA003},
    })  # fmt: skip
    low = [
        (0x1000, 0x7000, 0x2000),
        (0x3000, 0xA000, 0x1000),
        (0x20_0000, 0x20_0000, 0x40_0000),
        (1 << 30, 1 << 30, 1 << 30),
    ]
    high = [(0xFFFF_FF80_0000_0000 + at, to, size) for at, to, size in low]
    assert runs(pages) == low + high


def test_tables_that_refer_to_themselves() -> None:
    """A guest's may: so many are read and no more."""
    pages = tables({0x1000: dict.fromkeys(range(512), 0x1003)})
    reads = []

    def read(gpa: int) -> bytes:
        reads.append(gpa)
        return pages[gpa]

    for _ in mapped.pages(read, x86.PAGING_4, 0x1000):
        pass
    assert len(reads) == mapped.MOST_TABLES


def test_what_is_mapped_and_in_ram() -> None:
    regions = [(0x10000, 0x4000, 0), (0x80000, 0x2000, 0)]
    found = mapped.within(
        [(0x10000, 0x10000, 0x4000), (0x100000, 0xF000, 0x3000),
         (0x200000, 0x81000, 0x9000), (0x300000, 0x90000, 0x1000)],
        regions,
    )  # fmt: skip
    assert list(found) == [
        (0, (0x101000, 0x10000, 0x2000)),
        (0x5000, (0x200000, 0x81000, 0x1000)),
    ]

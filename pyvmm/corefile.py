# SPDX-License-Identifier: Apache-2.0
"""ELF core files: header, notes, segments, as debuggers read them.

A file is a head (ELF header, program headers, notes, zeros up to a page) and
the memory behind it. Its last note is a checksum of all of the head before it.

Sources: System V ABI, 4 and 5; AMD64 supplement; struct elf_prstatus of
<sys/procfs.h>; for the notes named QEMU, what crash and drgn look for.
"""

from __future__ import annotations

import os
import stat
from struct import Struct
from zlib import crc32

from . import x86
from .errors import Error
from .stop import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    # name, type, content
    Note = tuple[bytes, int, bytes]
    # offset behind the head, virtual and physical address, size
    Segment = tuple[int, int, int, int]

PAGE = 4096
MOST_HEAD = 256 << 20  # bytes of a head: what is read at once

# e_ident .. e_shstrndx
HEADER = Struct("<16sHHIQQQIHHHHHH")
IDENT = b"\x7fELF\2\1\1" + bytes(9)  # 64 bits, little endian, version 1
ET_CORE = 4
EM_X86_64 = 62
PROGRAM = Struct("<IIQQQQQQ")  # type, flags, offset, addresses, sizes, align
PT_LOAD = 1
PT_NOTE = 4
PF_RWX = 7

NOTE = Struct("<III")  # sizes of name and content, type
NT_PRSTATUS = 1
NT_FPREGSET = 2  # as FXSAVE has it
FXSAVE = 512
OURS = b"PYVMM"
NT_CHECKSUM = 0x5059_0000  # of ours: the last one
CHECKSUM = Struct("<I")

# struct elf_prstatus: signal, masks, pid and the like; times; registers.
PRSTATUS = Struct("<12xh2x8x8xiiii64x27Qi4x")
PRSTATUS_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8",
    "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "rflags",
    "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
ORIG_RAX = (1 << 64) - 1  # in no system call

# What Linux says of itself: the name of the note and how it begins.
VMCOREINFO = b"VMCOREINFO"
VMCOREINFO_BEGIN = b"OSRELEASE="

# The CPU state in notes named QEMU: version, size; registers; segments; the
# control registers cr0 to cr4; the kernel's gs base.
QEMU_HEAD = Struct("<II")
QEMU_REGS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9",
    "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
QEMU_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr")
QEMU_SEGMENT = Struct("<IIIIQ")  # selector, limit, flags, padding, base
QEMU_CONTROL = Struct("<6Q")


# -- writing -----------------------------------------------------------------


def pack_note(note: Note) -> bytes:
    """One note; name and content are padded to 4 bytes."""
    name, kind, content = note
    name += b"\0"
    return b"".join((
        NOTE.pack(len(name), len(content), kind),
        name, bytes(-len(name) % 4),
        content, bytes(-len(content) % 4),
    ))  # fmt: skip


def prstatus(index: int, registers: Registers) -> bytes:
    """What debuggers show of a vCPU: its thread is number `index` + 1."""
    values = []
    for name in PRSTATUS_REGS:
        if name == "orig_rax":
            values.append(ORIG_RAX)
        elif name in x86.SEGMENTS:
            values.append(registers.segment(name)["selector"])
        elif name.endswith("_base"):
            values.append(registers.segment(name[:2])["base"])
        else:
            values.append(registers[name])
    return PRSTATUS.pack(0, index + 1, 0, 0, 0, *values, 0)


def qemu_state(registers: Registers) -> bytes:
    """What tools for dumps of machines look for beside that."""
    parts = [Struct("<18Q").pack(*(registers[name] for name in QEMU_REGS))]
    for name in QEMU_SEGMENTS:
        seg = registers.segment(name)
        flags = (
            seg["type"] << 8 | seg["s"] << 12 | seg["dpl"] << 13
            | seg["present"] << 15 | seg["avl"] << 20 | seg["l"] << 21
            | seg["db"] << 22 | seg["g"] << 23
        )  # fmt: skip
        parts.append(
            QEMU_SEGMENT.pack(
                seg["selector"], seg["limit"], flags, 0, seg["base"]
            )
        )
    for name in x86.DTABLES:
        seg = registers.segment(name)
        parts.append(QEMU_SEGMENT.pack(0, seg["limit"], 0, 0, seg["base"]))
    cr = [registers[name] for name in ("cr0", "cr2", "cr3", "cr4")]
    parts.append(QEMU_CONTROL.pack(cr[0], 0, *cr[1:], 0))
    body = b"".join(parts)
    return QEMU_HEAD.pack(1, QEMU_HEAD.size + len(body)) + body


def find_vmcoreinfo(data: bytes | bytearray, end: int) -> bytes | None:
    """The content of such a note at the start of one of some pages."""
    name = VMCOREINFO + bytes(-len(VMCOREINFO) % 4)
    at = -1
    while (at := data.find(name + VMCOREINFO_BEGIN, at + 1, end)) >= 0:
        start = at - NOTE.size
        if start < 0 or start % PAGE:
            continue
        of_name, size, kind = NOTE.unpack_from(data, start)
        content = bytes(data[at + len(name) : at + len(name) + size])
        if of_name == len(VMCOREINFO) + 1 and not kind and size <= PAGE:
            return content
    return None


def make_head(segments: Sequence[Segment], notes: Iterable[Note]) -> bytes:
    """The head of a file, of whole pages; a note with its checksum is added."""
    count = 1 + len(segments)
    start = HEADER.size + count * PROGRAM.size
    body = b"".join(map(pack_note, notes))
    last = len(pack_note((OURS, NT_CHECKSUM, bytes(CHECKSUM.size))))
    size = len(body) + last
    end = -(-(start + size) // PAGE) * PAGE
    head = HEADER.pack(
        IDENT, ET_CORE, EM_X86_64, 1, 0, HEADER.size, 0, 0, HEADER.size,
        PROGRAM.size, count, 0, 0, 0,
    )  # fmt: skip
    programs = [PROGRAM.pack(PT_NOTE, 0, start, 0, 0, size, size, 4)]
    for offset, virtual, physical, length in segments:
        places = (end + offset, virtual, physical, length, length)
        programs.append(PROGRAM.pack(PT_LOAD, PF_RWX, *places, PAGE))
    head += b"".join(programs) + body
    head += NOTE.pack(len(OURS) + 1, CHECKSUM.size, NT_CHECKSUM)
    head += OURS + bytes(-len(OURS) % 4)
    head += CHECKSUM.pack(crc32(head))
    return head + bytes(end - len(head))


# -- reading: the file may be anybody's --------------------------------------


def read_exactly(fd: int, size: int, offset: int, path: str) -> bytes:
    """So many bytes of a file; Error when it ends before."""
    parts = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size -= len(part)
        offset += len(part)
    if size:
        raise Error(f"{path} is truncated: it ends at byte {offset}")
    return b"".join(parts)


def open_regular(path: str) -> int:
    """A file opened to be read; OSError, or Error when it is no file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
    raise Error(f"{path} is {kind}, not a snapshot")


def read_head(fd: int, path: str) -> tuple[bytes, list[Note]]:
    """The head of a file and its notes, without the last; not yet checked.

    Error, in one sentence, when it has none.
    """
    size = os.fstat(fd).st_size
    first = os.pread(fd, HEADER.size, 0)
    if first[:4] != IDENT[:4]:
        raise Error(f"{path} is not a snapshot: it is no ELF file")
    if len(first) < HEADER.size:
        raise Error(f"{path} is truncated: it has {size} bytes")
    ident, kind, machine, _, _, at, *_ = HEADER.unpack(first)
    if ident != IDENT or kind != ET_CORE or machine != EM_X86_64:
        raise Error(
            f"{path} is not a snapshot: it is an ELF file, but no core file "
            "of x86-64"
        )
    row = os.pread(fd, PROGRAM.size, HEADER.size)
    if at != HEADER.size or len(row) < PROGRAM.size:
        raise Error(f"{path} is damaged: its program headers are not there")
    kind, _, start, _, _, length, *_ = PROGRAM.unpack(row)
    if kind != PT_NOTE or start + length > MOST_HEAD:
        raise Error(
            f"{path} is not a snapshot of pyvmm: its first segment is not "
            f"notes of at most {MOST_HEAD} bytes"
        )
    end = -(-(start + length) // PAGE) * PAGE
    if end > size:
        raise Error(
            f"{path} is truncated: its head has {end} bytes, the file {size}"
        )
    head = read_exactly(fd, end, 0, path)
    return head, split_notes(head, start, start + length, path)


def split_notes(head: bytes, start: int, end: int, path: str) -> list[Note]:
    """The notes between two places of a head."""
    notes: list[Note] = []
    while start < end:
        if end - start < NOTE.size:
            raise Error(f"{path} is damaged: a note is cut off")
        of_name, of_content, kind = NOTE.unpack_from(head, start)
        name_at = start + NOTE.size
        at = name_at + of_name + -of_name % 4
        start = at + of_content + -of_content % 4
        if start > end or not of_name:
            raise Error(f"{path} is damaged: a note does not fit")
        name = head[name_at : name_at + of_name - 1]
        notes.append((name, kind, head[at : at + of_content]))
    return notes


def check_head(head: bytes, notes: list[Note], path: str) -> int:
    """The checksum in the last note, which is taken.

    Error unless the head is what it says.
    """
    start, length = PROGRAM.unpack_from(head, HEADER.size)[2::3]
    name, kind, content = notes.pop() if notes else (b"", 0, b"")
    if (name, kind, len(content)) != (OURS, NT_CHECKSUM, CHECKSUM.size):
        raise Error(f"{path} is damaged: the checksum of its head is missing")
    before = head[: start + length - CHECKSUM.size]
    (checksum,) = CHECKSUM.unpack(content)
    if checksum != crc32(before) or any(head[start + length :]):
        raise Error(f"{path} is damaged: the checksum of its head is another")
    return int(checksum)

# SPDX-License-Identifier: Apache-2.0
"""ELF: what the binding adds to the core's own tests (tests/c/test_elf.c)."""

import struct
from pathlib import Path

import pytest

from pyvmm._vmm import ELF, MEM_READONLY, Memory

ENTRY = 0x100010
CODE = bytes(range(64))


def image(
    entry: int = ENTRY,
    paddr: int = 0x100000,
    memsz: int = 0x2000,
    names: tuple[bytes, ...] = (b"start", b"table"),
) -> bytes:
    """An ELF64 with one segment and a symbol of 16 bytes for each name."""
    strings, symbols = b"\0", bytes(24)
    for i, name in enumerate(names):
        symbols += struct.pack(
            "<IBBHQQ", len(strings), 0x12, 0, 1, 0x100000 + 16 * i, 16
        )
        strings += name + b"\0"
    code_at = 64 + 56
    symbols_at = code_at + len(CODE)
    strings_at = symbols_at + len(symbols)
    sections_at = strings_at + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, entry, 64, sections_at),
        *(0, 64, 56, 1, 64, 3, 0),
    )
    segment = struct.pack(
        "<IIQQQQQQ", 1, 7, code_at, paddr, paddr, len(CODE), memsz, 16
    )
    sections = bytes(64)
    sections += struct.pack(
        "<IIQQQQIIQQ", 0, 2, 0, 0, symbols_at, len(symbols), 2, 1, 8, 24
    )
    sections += struct.pack(
        "<IIQQQQIIQQ", 0, 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0
    )
    return header + segment + CODE + symbols + strings + sections


def ram(*regions: tuple[int, int, int]) -> Memory:
    memory = Memory()
    for gpa, size, flags in regions:
        memory.add(gpa, size, flags)
    return memory


def test_attributes() -> None:
    elf = ELF(image())
    assert (elf.entry, elf.entry_gpa, elf.is_64) == (ENTRY, ENTRY, True)
    assert elf.segments == [(0x100000, 0x100000, 64, 0x2000, 7)]
    assert repr(elf) == "<ELF 64-bit, entry 0x100010, 1 segments, 2 symbols>"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers(kind: type) -> None:
    data = kind(image())
    elf = ELF(data)
    if kind is bytearray:
        data[:] = bytes(len(data))
    del data
    assert elf.find("table") == (0x100010, 16)
    memory = ram((0x100000, 0x2000, 0))
    elf.load(memory)
    assert memory.read(0x100000, 64) == CODE


def test_symbols_both_ways() -> None:
    elf = ELF(image())
    assert elf.symbols == {"start": (0x100000, 16), "table": (0x100010, 16)}
    with pytest.raises(TypeError):
        elf.symbols["start"] = (0, 0)  # type: ignore[index]
    assert elf.find("start") == (0x100000, 16)
    assert elf.find("absent") is elf.find("start\0x") is elf.find("") is None
    assert elf.where(0x100000) == ("start", 0)
    assert elf.where(0x10001F) == ("table", 15)
    assert elf.where(0x100020) is elf.where(0) is elf.where(2**64 - 1) is None
    with pytest.raises(TypeError, match="name must be str, not bytes"):
        elf.find(b"start")  # type: ignore[arg-type]
    for value in (-1, 2**64):
        with pytest.raises(ValueError, match="addr"):
            elf.where(value)


def test_names_that_are_no_utf8() -> None:
    elf = ELF(image(names=(b"caf\xe9", "größe".encode())))
    assert list(elf.symbols) == ["caf\udce9", "größe"]
    for name, place in elf.symbols.items():
        assert elf.find(name) == place
        assert elf.where(place[0]) == (name, 0)
    with pytest.raises(UnicodeEncodeError):
        elf.find("\ud800")


def test_load() -> None:
    elf = ELF(image())
    memory = ram((0x100000, 0x1000, 0), (0x101000, 0x1000, MEM_READONLY))
    memory.fill(0x100000, 0xFF, 0x2000)
    elf.check(memory)
    assert memory.read_u8(0x100000) == 0xFF
    elf.load(memory)
    assert memory.read(0x100000, 0x2000) == CODE.ljust(0x2000, b"\0")


@pytest.mark.parametrize("base", [0, 0x101000, 0xFF000])
def test_segment_outside_ram(base: int) -> None:
    elf = ELF(image())
    memory = ram((base, 0x2000, 0))
    for use in (elf.check, elf.load):
        with pytest.raises(ValueError, match=r"segment 0.*0x100000"):
            use(memory)
    assert memory.read(base, 0x2000) == bytes(0x2000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        bytes(4096),
        b"#!/bin/sh\n",
        image()[:100],
        image(entry=0),
        image(memsz=1),
        image(paddr=2**64 - 0x1000),
    ],
    ids=str.split("empty magic zeros script cut entry memsz wrap"),
)
def test_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ELF(data)


def test_every_truncation_is_survived() -> None:
    data = image()
    for size in range(len(data)):
        try:
            ELF(data[:size])
        except ValueError as e:
            assert str(e)


@pytest.mark.parametrize("data", ["text", None, [1, 2], 5])
def test_no_bytes(data: object) -> None:
    with pytest.raises(TypeError, match="expected the bytes of a file, not"):
        ELF(data)  # type: ignore[arg-type]


def test_memory_argument() -> None:
    elf, memory = ELF(image()), ram((0, 4096, 0))
    with pytest.raises(TypeError, match="expected a Memory, not bytes"):
        elf.load(b"")  # type: ignore[arg-type]
    memory.close()
    with pytest.raises(ValueError, match="operation on closed Memory"):
        elf.check(memory)


def test_a_guest_that_was_built(root: Path) -> None:
    elf = ELF((root / "build/guest/hello.elf").read_bytes())
    assert elf.entry_gpa >= 0x100000 and elf.segments
    assert elf.where(elf.entry) is not None

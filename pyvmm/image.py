# SPDX-License-Identifier: Apache-2.0
"""What load() puts into a guest: an ELF file, raw bytes, or a snippet."""

from __future__ import annotations

import os
from os import PathLike
from os.path import abspath, basename

from . import _vmm, x86
from .symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .symbols import Address

MODES = ("real", "protected", "long", "user")

# Where code goes that does not say: RAM's begin, or where PCs begin.
DEFAULT_AT = 0x10_0000
REAL_AT = 0x7C00
REAL_RAM = (0, 0xA_0000)  # what a PC has below its ROMs


class Image:
    """A loadable image, checked against the memory that it will go to.

    `mode` and `entry`: how and where vCPU 0 starts. `start` and `end`: the
    range that it takes, to whole pages. `symbols`.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        entry: int,
        ranges: list[tuple[int, int]],
        symbols: Symbols,
    ) -> None:
        self.name = name
        self.mode = mode
        self.entry = entry
        self.symbols = symbols
        mask = ~(x86.PAGE - 1)
        self.start = min(at for at, _ in ranges) & mask
        self.end = max(at + size + x86.PAGE - 1 for at, size in ranges) & mask

    def write(self, memory: _vmm.Memory) -> None:
        """Put it there."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return (
            f"<Image {self.name} {self.start:#x}..{self.end - 1:#x}, entry "
            f"{self.entry:#x}, {self.mode}>"
        )


class ElfImage(Image):
    """An ELF executable."""

    def __init__(
        self,
        name: str,
        data: bytes,
        memory: _vmm.Memory,
        mode: str | None,
        entry: Address | None,
        path: str | None = None,
    ) -> None:
        try:
            elf = _vmm.ELF(data)
            elf.check(memory)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from None
        symbols = Symbols(elf, data, path)
        self._elf = elf
        super().__init__(
            name,
            mode or "protected",
            elf.entry_gpa if entry is None else symbols.physical(entry),
            [(paddr, memsz) for paddr, _, _, memsz, _ in elf.segments],
            symbols,
        )

    def write(self, memory: _vmm.Memory) -> None:
        self._elf.load(memory)


class RawImage(Image):
    """Bytes that go to one address."""

    def __init__(
        self,
        name: str,
        data: bytes,
        memory: _vmm.Memory,
        at: int,
        mode: str | None,
        entry: Address | None,
    ) -> None:
        if not data:
            raise ValueError(f"{name} is empty")
        if memory.span(at, len(data)) != len(data):
            raise ValueError(
                f"{name}: {len(data)} bytes at {at:#x} are outside RAM"
            )
        symbols = Symbols()
        self._data = data
        self._at = at
        super().__init__(
            name,
            mode or "protected",
            at if entry is None else symbols.address(entry),
            [(at, len(data))],
            symbols,
        )

    def write(self, memory: _vmm.Memory) -> None:
        memory.write(self._at, self._data)


def check_mode(mode: str | None) -> None:
    """ValueError unless it is one of MODES or None."""
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")


def make_image(
    memory: _vmm.Memory,
    source: str | PathLike[str] | Buffer | None,
    *,
    asm: str | None,
    c: str | None,
    raw: Buffer | None,
    at: int | None,
    mode: str | None,
    entry: Address | None,
    coverage: bool | str = False,
) -> Image:
    """The image that load()'s arguments describe.

    Code for real mode brings low memory with it, when there is none yet.
    """
    given = [x for x in (source, asm, c, raw) if x is not None]
    if len(given) != 1:
        raise TypeError(
            "load() takes one of a path or bytes of an ELF file, asm=, c=, raw="
        )
    check_mode(mode)
    if coverage and c is None:
        raise ValueError("coverage=True goes with c=: others are built already")
    if at is not None and (source is not None or c is not None):
        raise ValueError("at= goes with asm= and raw=: an ELF file says itself")
    if mode == "real" and not memory.span(*REAL_RAM):
        memory.add(*REAL_RAM)
    if at is None:
        at = REAL_AT if mode == "real" else DEFAULT_AT
    if raw is not None:
        return RawImage("raw", bytes(raw), memory, at, mode, entry)
    if asm is not None:
        from .snippet import assemble

        data = assemble(asm, mode or "protected", at)
        return ElfImage("asm", data, memory, mode, entry)
    if c is not None:
        from .snippet import compile_c

        data = compile_c(c, mode or "protected", coverage)
        # The runtime goes to its ring itself, from where start_info enters.
        return ElfImage("c", data, memory, "protected", entry)
    if isinstance(source, str | PathLike):
        with open(source, "rb") as file:
            data = file.read()
        path = abspath(os.fsdecode(source))
        return ElfImage(basename(path), data, memory, mode, entry, path)
    if isinstance(source, bytes | bytearray | memoryview):
        return ElfImage("image", bytes(source), memory, mode, entry)
    raise TypeError(
        "load() takes a path or the bytes of an ELF file, not "
        f"{type(source).__name__}"
    )

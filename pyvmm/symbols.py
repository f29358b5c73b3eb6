# SPDX-License-Identifier: Apache-2.0
"""Names of a guest's functions and data as addresses, and back.

Wherever pyvmm takes an address, a symbol expression will do: `"parse"`,
`"table+8"`, `"table-0x10"`, `"0x100000"`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import _vmm
    from .dwarf import Frames

    Address = int | str


class Where:
    """A place in the guest: `symbol` + `offset`, `file` and `line` if known.

    `file` and `line` come from DWARF and want pyelftools
    (`pip install pyvmm-kvm[debug]`); they are None without it.
    """

    __slots__ = ("_back", "_line", "_symbols", "address", "offset", "symbol")

    def __init__(
        self,
        address: int,
        symbol: str | None,
        offset: int,
        symbols: Symbols,
        back: int = 0,
    ) -> None:
        self.address = address
        self.symbol = symbol
        self.offset = offset
        self._symbols: Symbols | None = symbols
        self._back = back
        self._line: tuple[str, int] | None = None

    def _look(self) -> tuple[str, int] | None:
        if self._symbols is not None:
            self._line = self._symbols.line(self.address - self._back)
            self._symbols = None
        return self._line

    @property
    def file(self) -> str | None:
        """The source file's name, or None."""
        line = self._look()
        return line[0] if line else None

    @property
    def line(self) -> int | None:
        """The line in it, from 1 on, or None."""
        line = self._look()
        return line[1] if line else None

    def __reduce__(self) -> tuple[object, ...]:
        self._look()
        state = (self.address, self.symbol, self.offset, self._line)
        return _where, state

    @property
    def name(self) -> str:
        """Symbol and offset, or the address.

        The line would want the DWARF of the whole image read.
        """
        if self.symbol is None:
            return f"{self.address:#x}"
        if self.offset:
            return f"{self.symbol}+{self.offset:#x}"
        return self.symbol

    def __str__(self) -> str:
        text = self.name
        if self.file is not None:
            text += f" {self.file}:{self.line}"
        return text

    def __repr__(self) -> str:
        return f"<Where {self.address:#x} {self}>"


def _where(
    address: int, symbol: str | None, offset: int, line: tuple[str, int] | None
) -> Where:
    """What pickle makes of a Where."""
    where = Where(address, symbol, offset, Symbols())
    where._symbols = None
    where._line = line
    return where


def parse(text: str) -> tuple[str, int]:
    """Split a symbol expression into its name and the number added to it.

    `"table+8"` gives ("table", 8), `"0x10"` ("", 16). Raises ValueError.
    """
    name, number = text.strip(), 0
    for at in range(len(name) - 1, 0, -1):
        if name[at] in "+-":
            try:
                number = int(name[at:].replace(" ", ""), 0)
            except ValueError:
                break  # a name may have a sign in it
            name = name[:at].rstrip()
            break
    if not name:
        raise ValueError("an address is an int or a symbol, not ''")
    if name[0].isdigit():
        try:
            return "", int(name, 0) + number
        except ValueError:
            raise ValueError(f"{text!r} is not an address") from None
    return name, number


class Symbols:
    """The symbols of the loaded image: a mapping from names to addresses.

    Addresses are virtual, as the guest's code sees them. `m.symbols["main"]`
    raises KeyError for a name that is not there; iterating gives the names.

    Threads: any.
    """

    def __init__(
        self,
        elf: _vmm.ELF | None = None,
        data: bytes | None = None,
        path: str | None = None,
    ) -> None:
        self._elf = elf
        self._data = data
        self._path = path  # of the file that it is of, for snapshots
        self._lines: object = None
        self._frames: Frames | None = None

    def __getitem__(self, name: str) -> int:
        found = self._elf.find(name) if self._elf else None
        if found is None:
            raise KeyError(name)
        return found[0]

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str)
            and self._elf is not None
            and self._elf.find(name) is not None
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._elf.symbols if self._elf else ())

    def __len__(self) -> int:
        return len(self._elf.symbols) if self._elf else 0

    def size(self, name: str) -> int:
        """How many bytes the symbol has, 0 when the image does not say."""
        found = self._elf.find(name) if self._elf else None
        if found is None:
            raise KeyError(name)
        return found[1]

    def address(self, expression: Address) -> int:
        """The address that an int or a symbol expression means.

        Raises ValueError for an unknown symbol or a negative address and
        TypeError for anything that is neither.
        """
        if isinstance(expression, str):
            name, number = parse(expression)
            if name:
                found = self._elf.find(name) if self._elf else None
                if found is None:
                    raise ValueError(self._unknown(name))
                number += found[0]
        elif hasattr(expression, "__index__"):
            number = expression.__index__()
        else:
            raise TypeError(
                "an address is an int or a symbol expression, not "
                f"{type(expression).__name__}"
            )
        if not 0 <= number < 1 << 64:
            raise ValueError(f"address {number:#x} is outside 0..2^64")
        return number

    def physical(self, expression: Address) -> int:
        """The same as a guest-physical address.

        Differs only for images that are linked to run elsewhere than where
        they are loaded.
        """
        address = self.address(expression)
        if isinstance(expression, str) and self._elf:
            for paddr, vaddr, _, memsz, _ in self._elf.segments:
                if vaddr <= address < vaddr + memsz:
                    return address - vaddr + paddr
        return address

    def where(self, address: int, *, passed: bool = False) -> Where:
        """What is at this virtual address.

        `passed`: it is that of the next instruction, and the one before is
        meant, which may be the last of its function.
        """
        back = 1 if passed and address else 0
        found = self._elf.where(address - back) if self._elf else None
        name, offset = found if found else (None, -back)
        return Where(address, name, offset + back, self, back)

    def line(self, address: int) -> tuple[str, int] | None:
        """File and line of the code at `address`, where DWARF is readable."""
        if self._data is None:
            return None
        if self._lines is None:
            from .dwarf import Lines

            self._lines = Lines(self._data)
        find = self._lines.find  # type: ignore[attr-defined]
        return find(address)  # type: ignore[no-any-return]

    def _call_frames(self) -> Frames:
        """Call frame information, where DWARF is readable."""
        if self._frames is None:
            from .dwarf import Frames

            self._frames = Frames(self._data)
        return self._frames

    def _unknown(self, name: str) -> str:
        if not self._elf:
            return f"no symbol {name!r}: no image with symbols is loaded"
        from difflib import get_close_matches

        near = get_close_matches(name, self._elf.symbols, 3)
        hint = f" (there are {', '.join(near)})" if near else ""
        return f"no symbol {name!r} in the image{hint}"

    def __repr__(self) -> str:
        return f"<Symbols {len(self)}>"

# SPDX-License-Identifier: Apache-2.0
"""Reg: registers that a device declares, and the dispatch to them.

A `Reg` says what one register is. A `Layout` holds the registers of one class
and, by offset, functions that read and write them as a guest does. An access
of a register's own size is a look-up or two; others, between or across
registers, are put together from parts.
"""

from __future__ import annotations

from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self, TypeVar, overload

    from .device import Device, Range

    Getter = Callable[[Device], int]
    Setter = Callable[[Device, int], object]
    F = TypeVar("F", bound=Callable[..., object])
    Names = tuple[dict[int, str | None], ...]
    ReadMethod = Callable[[Device, int, int], int]
    WriteMethod = Callable[[Device, int, int, int], None]

WIDTHS = (1, 2, 4, 8)
SIZES = 9  # of an access: 0, which is none, to 8 bytes
ACCESS = {
    "rw": "read and write",
    "ro": "read only",
    "wo": "write only",
    "w1c": "write 1 to clear",
}


class Reg:
    """A register of a Device, declared in its class: `period = Reg(0x0, 4)`.

    On a device the attribute is the register's value, an int: to read it and
    to assign it is the device's side, which knows no access rules.

    `offset` from the base. `width`: 1, 2, 4 or 8 bytes, little
    endian. `reset`: its value at first. `access` is what the guest may do:
    "rw"; "ro", writes are ignored; "wo", it reads 0; "w1c", a 1 that is written
    clears the bit. `rw`, `ro`, `wo`, `w1c`: masks of bits with which that is
    otherwise. `mask`: the bits that there are; the others read 0 and ignore
    writes. `range`: the Range it is in, if not the device's first. `doc`: what
    it is, for help().

        status = Reg(0x8, 4, access="ro", w1c=0xff, doc="pending events")

    An access of another size than `width` reads and writes the bytes that it
    covers, of several registers in order; bytes not written are written as
    they are to "rw" bits, as 0 to others. What is between registers reads 0.

    Raises ValueError and TypeError, at the latest when the class is made.

    Threads: any. An access is not atomic against those of other vCPUs unless
    it is of the register's size and has no method.
    """

    def __init__(
        self,
        offset: int,
        width: int,
        *,
        reset: int = 0,
        access: str = "rw",
        mask: int | None = None,
        rw: int = 0,
        ro: int = 0,
        wo: int = 0,
        w1c: int = 0,
        range: Range | None = None,
        doc: str = "",
    ) -> None:
        self.name = ""
        self.owner = ""  # the class's name, once that is made
        self.offset = offset
        self.width = width
        self.range = range
        if not isinstance(offset, int) or offset < 0:
            raise ValueError(f"offset {offset!r} is not 0 or more")
        if width not in WIDTHS:
            raise ValueError(f"{self} has width {width!r}, not 1, 2, 4 or 8")
        if access not in ACCESS:
            raise ValueError(
                f"{self} has access {access!r}, not one of {', '.join(ACCESS)}"
            )
        limit = (1 << 8 * width) - 1
        self.mask = limit if mask is None else mask
        bits = {"rw": rw, "ro": ro, "wo": wo, "w1c": w1c}
        for word, value in {"mask": self.mask, "reset": reset, **bits}.items():
            if not isinstance(value, int) or not 0 <= value <= limit:
                raise ValueError(
                    f"{self}: {word} {value!r} is outside 0..{limit:#x}"
                )
        given = 0
        for word, value in bits.items():
            if value & given:
                raise ValueError(
                    f"{self}: bits {value & given:#x} of {word}= are of "
                    "another kind already"
                )
            if value & ~self.mask:
                raise ValueError(
                    f"{self}: bits {value & ~self.mask:#x} of {word}= are not "
                    "in mask="
                )
            given |= value
        bits[access] |= self.mask & ~given
        if reset & ~self.mask:
            raise ValueError(
                f"{self}: reset {reset:#x} has bits that are not in mask="
            )
        self.reset = reset
        self.access = access
        self.ro, self.w1c = bits["ro"], bits["w1c"]
        self.kept = bits["rw"]  # what a partial write leaves as it is
        self.readable = self.mask & ~bits["wo"]
        self.stored = bits["rw"] | bits["wo"]  # what writes set
        self._text = doc
        self._read: Callable[..., int] | None = None
        self._write: Callable[..., object] | None = None
        self.__doc__ = self._describe(bits)

    def _describe(self, bits: Mapping[str, int]) -> str:
        kinds = [
            f"{ACCESS[word]} ({value:#x})"
            if value != self.mask
            else ACCESS[word]
            for word, value in bits.items()
            if value
        ]
        size = f"{self.width} byte" + "s" * (self.width > 1)
        parts = [f"{self.offset:#x}, {size}", *kinds]
        if self.reset:
            parts.append(f"{self.reset:#x} at first")
        text = f": {self._text}" if self._text else ""
        return ", ".join(parts) + text + "."

    # -- declaring -----------------------------------------------------------

    def on_read(self, function: F) -> F:
        """Decorates the method that is asked when the guest reads: its value.

        `method(self) -> int`. The register's own value is not changed by it.
        """
        self._check_hook("on_read", self._read)
        if not self.readable:
            raise TypeError(f"{self} is write only: it has no on_read")
        self._read = function  # type: ignore[assignment]
        return function

    def on_write(self, function: F) -> F:
        """Decorates the method that is called when the guest has written.

        `method(self, value)`: what was written, of the bits that take writes;
        the register has changed already.
        """
        self._check_hook("on_write", self._write)
        if not self.stored | self.w1c:
            raise TypeError(f"{self} is read only: it has no on_write")
        self._write = function
        return function

    def _check_hook(self, word: str, now: object) -> None:
        if self.owner:
            raise TypeError(
                f"{self} is declared: override its method in a subclass, or "
                "declare it anew there"
            )
        if now is not None:
            raise TypeError(f"{self} has an {word} already")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    if TYPE_CHECKING:

        @overload
        def __get__(self, device: None, owner: type) -> Self: ...
        @overload
        def __get__(self, device: Device, owner: type) -> int: ...

    def __get__(self, device: Device | None, owner: type) -> Self | int:
        if device is None:
            return self
        return device._registers[self.name]

    def __set__(self, device: Device, value: int) -> None:
        if not isinstance(value, int):
            raise TypeError(
                f"{type(device).__name__}.{self.name} = {value!r}: an int was "
                "due"
            )
        if value & ~self.mask:
            raise ValueError(
                f"{type(device).__name__}.{self.name} = {value:#x} has bits "
                f"outside {self.mask:#x}"
            )
        device._registers[self.name] = int(value)

    def __str__(self) -> str:
        if not self.name:
            return f"the register at {self.offset:#x}"
        return f"{self.owner}.{self.name}" if self.owner else self.name

    def __repr__(self) -> str:
        return f"<Reg {self}: {self.__doc__}>"

    # -- the guest's side ----------------------------------------------------

    @property
    def _reads_plainly(self) -> bool:
        """Whether a guest reads just the value."""
        return self._read is None and self.readable == self.mask

    @property
    def _writes_plainly(self) -> bool:
        """Whether a guest's write just sets the value."""
        return self._write is None and self._stores_all

    @property
    def _stores_all(self) -> bool:
        return self.stored == (1 << 8 * self.width) - 1

    def _getter(self, cls: type) -> Getter:
        """How a guest reads it in devices of this class."""
        name, readable = self.name, self.readable
        if self._read is not None:
            return method(cls, self._read)
        if self._reads_plainly:
            return lambda device: device._registers[name]
        return lambda device: device._registers[name] & readable

    def _setter(self, cls: type) -> Setter:
        """How a guest writes it; the value is of its width."""
        name, stored, w1c = self.name, self.stored, self.w1c
        put: Setter
        if self._stores_all:

            def put(device: Device, value: int) -> None:
                device._registers[name] = value

        elif stored | w1c:

            def put(device: Device, value: int) -> None:
                values = device._registers
                left = values[name] & ~(stored | value & w1c)
                values[name] = left | value & stored

        else:
            return lambda device, value: None
        if self._write is None:
            return put
        hook, writable = method(cls, self._write), stored | w1c

        def put_and_call(device: Device, value: int) -> None:
            put(device, value)
            hook(device, value & writable)

        return put_and_call


def method(cls: type, function: Callable[..., object]) -> Callable[..., int]:
    """The method of that name, which a subclass may have overridden."""
    name = getattr(function, "__name__", "")
    for owner in cls.__mro__:
        if vars(owner).get(name) is function:
            return getattr(cls, name)  # type: ignore[no-any-return]
    return function  # type: ignore[return-value]


class Layout:
    """The registers of one Device class in one range; by name all of them."""

    def __init__(
        self, cls: type, regs: Mapping[str, Reg], range: Range | None = None
    ) -> None:
        self.name = cls.__name__
        self.regs = sorted(
            (reg for reg in regs.values() if reg.range is range),
            key=lambda reg: reg.offset,
        )
        self.by_name = dict(regs)
        self.reset = {name: reg.reset for name, reg in regs.items()}
        self.size = 0
        previous: Reg | None = None
        for reg in self.regs:
            if previous and reg.offset < previous.offset + previous.width:
                raise ValueError(
                    f"{self.name}.{reg.name} at {reg.offset:#x} overlaps "
                    f"{previous.name}, {previous.width} bytes at "
                    f"{previous.offset:#x}"
                )
            self.size = reg.offset + reg.width
            previous = reg
        self._starts = [reg.offset for reg in self.regs]
        # By offset.
        self.getters = {reg.offset: reg._getter(cls) for reg in self.regs}
        self.setters = {reg.offset: reg._setter(cls) for reg in self.regs}
        # By the size and the offset of an access: the name of a register that
        # just keeps a value, None for the others of this size and place.
        self.plain_reads = self._exact(lambda reg: reg._reads_plainly)
        self.plain_writes = self._exact(lambda reg: reg._writes_plainly)

    def check_size(self, size: int) -> None:
        """ValueError unless a range of so many bytes holds all registers."""
        if self.size > size:
            last = self.regs[-1]
            raise ValueError(
                f"{self.name}.{last.name}, {last.width} bytes at "
                f"{last.offset:#x}, is not within size {size:#x}"
            )

    def _exact(self, plain: Callable[[Reg], bool]) -> Names:
        tables: Names = tuple({} for _ in range(SIZES))
        for reg in self.regs:
            tables[reg.width][reg.offset] = reg.name if plain(reg) else None
        return tables

    def _covered(self, offset: int, size: int) -> list[Reg]:
        """The registers that an access touches, by offset."""
        found = []
        index = max(0, bisect_right(self._starts, offset) - 1)
        for reg in self.regs[index : index + size + 1]:
            if reg.offset < offset + size and offset < reg.offset + reg.width:
                found.append(reg)
        return found

    def read(self, device: Device, offset: int, size: int) -> int:
        """A guest's read of any size and place."""
        total = 0
        for reg in self._covered(offset, size):
            part = self.getters[reg.offset](device)
            limit = (1 << 8 * reg.width) - 1
            if not isinstance(part, int) or not 0 <= part <= limit:
                kind = ValueError if isinstance(part, int) else TypeError
                raise kind(
                    f"{self.name}.{reg.name} was read as {part!r}; an int "
                    f"from 0 to {limit:#x} was due"
                )
            shift = 8 * (reg.offset - offset)
            total |= part << shift if shift >= 0 else part >> -shift
        return total & ((1 << 8 * size) - 1)

    def write(self, device: Device, offset: int, size: int, value: int) -> None:
        """A guest's write of any size and place."""
        ones = (1 << 8 * size) - 1
        for reg in self._covered(offset, size):
            shift = 8 * (reg.offset - offset)
            limit = (1 << 8 * reg.width) - 1
            lanes = (ones >> shift if shift >= 0 else ones << -shift) & limit
            part = value >> shift if shift >= 0 else value << -shift
            now = device._registers[reg.name]
            part = part & lanes | now & reg.kept & ~lanes
            self.setters[reg.offset](device, part)

    def where(self, offset: int, size: int) -> str:
        """What an access touches, by name: "go", "go+1", "go..fired"; or ""."""
        regs = self._covered(offset, size)
        if not regs:
            return ""
        if len(regs) > 1:
            return f"{regs[0].name}..{regs[-1].name}"
        skip = offset - regs[0].offset
        return f"{regs[0].name}+{skip}" if skip > 0 else regs[0].name

    def load(self, device: Device, state: Mapping[str, int]) -> None:
        """Set all registers named in `state`, or none of them."""
        if unknown := sorted(set(state) - set(self.by_name)):
            raise ValueError(f"{self.name} has no {', '.join(unknown)}")
        before = dict(device._registers)
        try:
            for name, value in state.items():
                self.by_name[name].__set__(device, value)
        except BaseException:
            device._registers.update(before)
            raise


def collect(cls: type) -> dict[str, Reg]:
    """The registers that a class has, its bases' too."""
    found: dict[str, Reg] = {}
    for owner in cls.__mro__:
        for name, value in vars(owner).items():
            if not isinstance(value, Reg):
                continue
            reg: Reg = value
            if getattr(cls, name, None) is not value:
                continue  # a subclass replaced it by something else
            if reg.name != name:
                raise ValueError(
                    f"{cls.__name__}.{name} is {reg.name} already: declare "
                    "another Reg"
                )
            found[name] = reg
    return found


def make_layout(cls: type) -> Layout | None:
    """The layout of a class; None when it declares no registers."""
    regs = collect(cls)
    if not regs:
        return None
    layout = Layout(cls, regs)
    for reg in regs.values():
        if reg.range and getattr(cls, reg.range.name, None) is not reg.range:
            raise ValueError(
                f"{cls.__name__}.{reg.name} is in a range that the class does "
                "not have"
            )
        if reg.range:
            Layout(cls, regs, reg.range).check_size(reg.range.size)
        reg.owner = reg.owner or cls.__name__
    return layout


def make_methods(layout: Layout) -> tuple[ReadMethod, WriteMethod]:
    """read() and write() for a class with this layout.

    An access of a register's size is one look-up; a register that does more
    than to keep a value is another one and a call.
    """
    plain_reads, plain_writes = layout.plain_reads, layout.plain_writes
    getters, setters = layout.getters, layout.setters
    read_parts, write_parts = layout.read, layout.write

    def read(self: Device, offset: int, size: int) -> int:
        """The guest reads registers."""
        try:
            name = plain_reads[size][offset]
        except KeyError:
            return read_parts(self, offset, size)
        if name is not None:
            return self._registers[name]
        return getters[offset](self)

    def write(self: Device, offset: int, size: int, value: int) -> None:
        """The guest writes registers."""
        try:
            name = plain_writes[size][offset]
        except KeyError:
            write_parts(self, offset, size, value)
            return
        if name is not None:
            self._registers[name] = value
        else:
            setters[offset](self, value)

    # Seen by the binding, which then serves plain registers without a call:
    # out of the dict that is `_registers` when the range is put on the bus.
    read.plain = plain_reads  # type: ignore[attr-defined]
    write.plain = plain_writes  # type: ignore[attr-defined]
    return read, write

# SPDX-License-Identifier: Apache-2.0
"""Reg: registers that a device declares, and their layout.

A `Reg` says what one register is. A `Layout` holds the registers of one class;
of it each device makes its `_vmm.Registers`, which has the values and answers
the guest: what just keeps a value without Python, the rest by one call of the
method that a register has.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

from . import _vmm
from .device import method
from .doorbell import make_places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self, TypeVar, overload

    from .device import Device, Range
    from .doorbell import Place

    F = TypeVar("F", bound=Callable[..., object])
    Row = tuple[Any, ...]  # see _vmm.Registers

WIDTHS = (1, 2, 4, 8)
POSTED_MOST = 65536  # writes that may wait in one device
ACCESS = {
    "rw": "read and write",
    "ro": "read only",
    "wo": "write only",
    "w1c": "write 1 to clear",
}


class Reg(_vmm.Register):
    """A register of a Device, declared in its class: `period = Reg(0x0, 4)`.

    On a device the attribute is the register's value, an int: to read it and
    to assign it is the device's side, which knows no access rules.

    `offset` from the base. `width`: 1, 2, 4 or 8 bytes, little
    endian. `reset`: its value at first. `access` is what the guest may do:
    "rw"; "ro", writes are ignored; "wo", it reads 0; "w1c", a 1 that is written
    clears the bit. `rw`, `ro`, `wo`, `w1c`: masks of bits with which that is
    otherwise. `mask`: the bits that there are; the others read 0 and ignore
    writes. `range`: the Range it is in, if not the device's first. `posted`:
    how many writes may wait for on_writes(), 1 to 65536. `doc`: what it is, for
    help().

        status = Reg(0x8, 4, access="ro", w1c=0xff, doc="pending events")

    Without methods it is answered in C, as fast as a device in C.

    An access of another size than `width` reads and writes the bytes that it
    covers, of several registers in order; bytes not written are written as
    they are to "rw" bits, as 0 to others. What is between registers reads 0.

    Raises ValueError and TypeError, at the latest when the class is made.

    Threads: any. A guest may change the value between two looks of a thread
    that is not its vCPU's. An access is atomic against those of other vCPUs
    when it is of the register's size and has no method.
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
        posted: int = 0,
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
        there = limit if mask is None else mask
        bits = {"rw": rw, "ro": ro, "wo": wo, "w1c": w1c}
        for word, value in {"mask": there, "reset": reset, **bits}.items():
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
            if value & ~there:
                raise ValueError(
                    f"{self}: bits {value & ~there:#x} of {word}= are not "
                    "in mask="
                )
            given |= value
        bits[access] |= there & ~given
        if reset & ~there:
            raise ValueError(
                f"{self}: reset {reset:#x} has bits that are not in mask="
            )
        self.mask = there
        self.reset = reset
        self.access = access
        self.ro, self.w1c = bits["ro"], bits["w1c"]
        self.kept = bits["rw"]  # what a partial write leaves as it is
        self.readable = there & ~bits["wo"]
        self.stored = bits["rw"] | bits["wo"]  # what writes set
        self.posted = posted
        self._check_posted()
        self._text = doc
        self._read: Callable[..., int] | None = None
        self._write: Callable[..., object] | None = None
        self.__doc__ = self._describe(bits)

    def _check_posted(self) -> None:
        posted = self.posted
        if not isinstance(posted, int) or not 0 <= posted <= POSTED_MOST:
            raise ValueError(
                f"{self}: posted {posted!r} is outside 1..{POSTED_MOST}"
            )
        if posted and not self.stored | self.w1c:
            raise ValueError(f"{self} is read only: nothing can be posted")

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
        if self.posted:
            parts.append(f"posted, {self.posted} at most")
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
        the register has changed already. `method(self, value, old)` is given
        its value before as well.
        """
        self._check_hook("on_write", self._write)
        if not self.stored | self.w1c:
            raise TypeError(f"{self} is read only: it has no on_write")
        if self.posted:
            raise TypeError(
                f"{self} is posted: it has on_writes, for many writes at once"
            )
        self._write = function
        return function

    def on_writes(self, function: F) -> F:
        """Decorates the method that is given what the guest has posted.

        `method(self, values)`: what was written since the last call, oldest
        first, as on_write has it; a memoryview of ints as wide as the register
        (format "B", "H", "I" or "Q", which numpy.asarray takes without
        copying), which the method may keep. It is never empty.

        The writes do not reach Python one by one. They wait, at most `posted`
        (of all of a device the largest counts), and are delivered when that are
        so many, before any other access to the device,
        before Python sees anything else that the guest does on a vCPU, before
        a Doorbell of the device is rung, before run() returns, and within 20
        ms. Those to several posted registers of a device come in the order in
        which they were made, in one call for each run to the same register.
        None is lost: detach(), reload(), save() and close() deliver, too, as
        drain() does. What a method raises is an error as with on_write; the
        writes that it was given count as delivered.

        Threads: one at a time in a device; whichever delivers, mostly that of
        the vCPU.
        """
        self._check_hook("on_writes", self._write)
        if not self.posted:
            raise TypeError(
                f"{self} is not posted: say how many writes may wait, as in "
                "posted=1000"
            )
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
        def __get__(self, device: Device | None, owner: type) -> Self | int: ...
        def __set__(self, device: Device, value: int) -> None: ...

    def __str__(self) -> str:
        if not self.name:
            return f"the register at {self.offset:#x}"
        return f"{self.owner}.{self.name}" if self.owner else self.name

    def __repr__(self) -> str:
        return f"<Reg {self}: {self.__doc__}>"

    def _row(self, cls: type, range: int) -> Row:
        """What _vmm.Registers has to know of it, in devices of this class."""
        read = method(cls, self._read) if self._read else None
        write = method(cls, self._write) if self._write else None
        if self.posted and write is None:
            raise ValueError(
                f"{cls.__name__}.{self.name} is posted: it needs an on_writes "
                "method"
            )
        old = write is not None and not self.posted and wants_old(write)
        return (
            self.name, range, self.offset, self.width,
            self.mask, self.readable, self.stored, self.w1c, self.kept,
            self.reset, read, write, old, self.posted,
        )  # fmt: skip


def wants_old(function: Callable[..., object]) -> bool:
    """Whether an on_write takes the value before, as its third argument."""
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    return code is not None and code.co_argcount >= 3


class Layout:
    """The registers of one Device class, by name and by range.

    `ranges`: the class's further ones, which come after its first. `bells`:
    its doorbells.
    """

    def __init__(
        self,
        cls: type,
        regs: Mapping[str, Reg],
        ranges: Sequence[Range],
        bells: Sequence[tuple[Range | None, Place]],
    ) -> None:
        self.name = cls.__name__
        self.by_name = dict(regs)
        self.bells = [
            (index, place)
            for index, range in enumerate((None, *ranges))
            for at, place in bells
            if at is range
        ]
        # By range, what is in it by offset.
        self.places: list[list[Reg | Place]] = [
            sorted(
                [
                    *(reg for reg in regs.values() if reg.range is range),
                    *(place for at, place in self.bells if at == index),
                ],
                key=lambda reg: reg.offset,
            )
            for index, range in enumerate((None, *ranges))
        ]
        for place in self.places:
            for reg, after in pairwise(place):
                if after.offset < reg.offset + reg.width:
                    raise ValueError(
                        f"{self.name}.{after.name} at {after.offset:#x} "
                        f"overlaps {reg.name}, {reg.width} bytes at "
                        f"{reg.offset:#x}"
                    )
        for index, range in enumerate(ranges):
            self.check_size(range.size, 1 + index)
        self.table = tuple(
            reg._row(cls, index)
            for index, place in enumerate(self.places)
            for reg in place
        )
        self._starts = [[reg.offset for reg in place] for place in self.places]

    def make(self, before: _vmm.Registers | None = None) -> _vmm.Registers:
        """The registers of one device; with the values of others."""
        return _vmm.Registers(self.table, len(self.places), before)

    def size(self, index: int = 0) -> int:
        """The bytes up to the end of the last register in a range."""
        last = self.places[index][-1:]
        return last[0].offset + last[0].width if last else 0

    def check_size(self, size: int, index: int = 0) -> None:
        """ValueError unless a range of so many bytes holds all registers."""
        if self.size(index) > size:
            last = self.places[index][-1]
            raise ValueError(
                f"{self.name}.{last.name}, {last.width} bytes at "
                f"{last.offset:#x}, is not within size {size:#x}"
            )

    def where(self, offset: int, size: int, index: int = 0) -> str:
        """What an access touches, by name: "go", "go+1", "go..fired"; or ""."""
        first = max(0, bisect_right(self._starts[index], offset) - 1)
        regs = [
            reg
            for reg in self.places[index][first : first + size + 1]
            if reg.offset < offset + size and offset < reg.offset + reg.width
        ]
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
        before = device._registers.values()
        try:
            for name, value in state.items():
                self.by_name[name].__set__(device, value)
        except BaseException:
            for name in state:
                self.by_name[name].__set__(device, before[name])
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


def make_layout(cls: type, ranges: Sequence[Range]) -> Layout | None:
    """The layout of a class; None when it declares no registers."""
    regs = collect(cls)
    bells = make_places(cls)
    if not regs and not bells:
        return None
    for name, range in [
        *((reg.name, reg.range) for reg in regs.values()),
        *((place.name, at) for at, place in bells),
    ]:
        if range is not None and range not in ranges:
            raise ValueError(
                f"{cls.__name__}.{name} is in a range that the class does "
                "not have"
            )
    layout = Layout(cls, regs, ranges, bells)
    for reg in regs.values():
        reg.owner = reg.owner or cls.__name__
    return layout

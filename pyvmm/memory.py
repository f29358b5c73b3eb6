# SPDX-License-Identifier: Apache-2.0
"""Guest memory as bytes: `m.mem` by physical, `m.cpu.mem` by virtual address.

Two address spaces, two objects, the same methods.
"""

from __future__ import annotations

from . import x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from . import _vmm
    from .cpu import Cpu
    from .symbols import Address, Symbols

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# RAM goes around what x86 machines have below 4 GiB.
RAM_BASE = 0x10_0000
HOLE_BASE = 0xC000_0000
HOLE_END = 0x1_0000_0000

CSTRING_MAX = 65536


def parse_size(size: int | str, name: str = "memory") -> int:
    """Bytes from an int or from text such as "64K", "10M", "1G".

    Raises ValueError when it is not a number, not above 0 or not a multiple
    of 4096, TypeError for other types.
    """
    if isinstance(size, str):
        text = size.strip().upper().removesuffix("IB").removesuffix("B")
        number = text.rstrip("KMGT")
        try:
            value = int(number, 0) * UNITS[text[len(number) :]]
        except (ValueError, KeyError):
            raise ValueError(
                f"{name} {size!r} is not a size: bytes, or a number followed "
                "by K, M, G or T"
            ) from None
    elif hasattr(size, "__index__"):
        value = size.__index__()
    else:
        raise TypeError(
            f"{name} is an int or text such as '16M', not {type(size).__name__}"
        )
    if value <= 0:
        raise ValueError(f"{name} {size!r} must be more than 0")
    if value % x86.PAGE:
        raise ValueError(f"{name} {size!r} is not a multiple of 4096 bytes")
    return value


def host_size() -> int:
    """Bytes of RAM that this host has."""
    from os import sysconf

    return sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE")


def check_host(size: int, name: str = "memory") -> None:
    """Raises ValueError when a host of this size cannot hold `size` bytes."""
    limit = host_size()
    if size > limit:
        raise ValueError(
            f"{name} of {size} bytes is more than this host has ({limit} bytes)"
        )


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """(gpa, size) of a machine's RAM: from 1 MiB on, above 3 GiB at 4 GiB."""
    low = min(size, HOLE_BASE - RAM_BASE)
    ranges = [(RAM_BASE, low)]
    if size > low:
        ranges.append((HOLE_END, size - low))
    return ranges


class AddressSpace:
    """What both address spaces can do.

    An address is an int or a symbol expression. `mem[a]` is a byte, `mem[a:b]`
    bytes; both can be assigned to, slices with as many bytes. Numbers are
    little endian. An access that is not wholly in RAM raises ValueError and
    changes nothing.

    Threads: any, when the machine is not running; while it runs, physical
    memory may be read and written too, and the guest sees that at any moment.
    """

    __slots__ = ()

    def _at(self, address: Address) -> int:
        raise NotImplementedError

    def _read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def _write(self, address: int, data: Buffer) -> None:
        raise NotImplementedError

    def read(self, address: Address, size: int) -> bytes:
        """`size` bytes from `address` on."""
        if size < 0:
            raise ValueError(f"size {size} is negative")
        return self._read(self._at(address), size)

    def write(self, address: Address, data: Buffer) -> None:
        """Put bytes there, into memory that the guest may only read too."""
        self._write(self._at(address), data)

    def _number(self, address: Address, size: int) -> int:
        return int.from_bytes(self._read(self._at(address), size), "little")

    def _put(self, address: Address, value: int, size: int) -> None:
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(
                f"value {value:#x} is outside 0..{(1 << 8 * size) - 1:#x}"
            )
        self._write(self._at(address), value.to_bytes(size, "little"))

    def read_u8(self, address: Address) -> int:
        """The byte there."""
        return self._number(address, 1)

    def read_u16(self, address: Address) -> int:
        """The 16-bit number there."""
        return self._number(address, 2)

    def read_u32(self, address: Address) -> int:
        """The 32-bit number there."""
        return self._number(address, 4)

    def read_u64(self, address: Address) -> int:
        """The 64-bit number there."""
        return self._number(address, 8)

    def write_u8(self, address: Address, value: int) -> None:
        """Put a byte there, 0 to 255."""
        self._put(address, value, 1)

    def write_u16(self, address: Address, value: int) -> None:
        """Put a 16-bit number there."""
        self._put(address, value, 2)

    def write_u32(self, address: Address, value: int) -> None:
        """Put a 32-bit number there."""
        self._put(address, value, 4)

    def write_u64(self, address: Address, value: int) -> None:
        """Put a 64-bit number there."""
        self._put(address, value, 8)

    def cstring(self, address: Address, limit: int = CSTRING_MAX) -> bytes:
        """The bytes up to the NUL, which is not included.

        Raises ValueError when there is none within `limit` bytes.
        """
        start = at = self._at(address)
        found = bytearray()
        while len(found) < limit:
            # To the end of the page: what follows may not be there.
            size = min(x86.PAGE - at % x86.PAGE, limit - len(found))
            piece, nul, _ = self._read(at, size).partition(b"\0")
            found += piece
            if nul:
                return bytes(found)
            at += size
        raise ValueError(f"no NUL within {limit} bytes from {start:#x} on")

    def _slice(self, key: slice) -> tuple[int, int]:
        if key.step is not None:
            raise ValueError("memory has no slices with a step")
        if key.start is None or key.stop is None:
            raise ValueError("a slice of memory has a start and an end")
        start, stop = self._at(key.start), self._at(key.stop)
        if stop < start:
            raise ValueError(f"slice {start:#x}:{stop:#x} ends before it began")
        return start, stop - start

    def __getitem__(self, key: Address | slice) -> int | bytes:
        if isinstance(key, slice):
            return self._read(*self._slice(key))
        return self.read_u8(key)

    def __setitem__(self, key: Address | slice, value: int | Buffer) -> None:
        if not isinstance(key, slice):
            if not isinstance(value, int):
                raise TypeError("a byte is an int from 0 to 255")
            self.write_u8(key, value)
            return
        if isinstance(value, int):
            raise TypeError("a slice is assigned bytes")
        start, size = self._slice(key)
        given = memoryview(value).nbytes
        if given != size:
            raise ValueError(f"{given} bytes for a slice of {size}")
        self._write(start, value)


class PhysicalMemory(AddressSpace):
    """Guest memory by guest-physical address: `m.mem`.

    Symbols mean where they are loaded. `ram` is the `_vmm.Memory` below.

    Threads: any.
    """

    __slots__ = ("_symbols", "ram")

    def __init__(
        self, ram: _vmm.Memory, symbols: Callable[[], Symbols]
    ) -> None:
        self.ram = ram
        self._symbols = symbols

    def _at(self, address: Address) -> int:
        if type(address) is int and 0 <= address < 1 << 64:
            return address
        return self._symbols().physical(address)

    def _read(self, address: int, size: int) -> bytes:
        return self.ram.read(address, size)

    def _write(self, address: int, data: Buffer) -> None:
        self.ram.write(address, data)

    def view(
        self, address: Address, size: int, *, readonly: bool = False
    ) -> memoryview:
        """RAM itself as a memoryview: what the guest writes shows in it.

        The bytes must lie in one region. The RAM lives until the last view
        goes, even past close().
        """
        return self.ram.view(self._at(address), size, readonly)

    @property
    def regions(self) -> list[tuple[int, int, int, int]]:
        """(gpa, size, flags, memfd or -1) of each region, by address."""
        return self.ram.regions

    def __repr__(self) -> str:
        if self.ram.closed:
            return "<PhysicalMemory closed>"
        parts = [f"{gpa:#x}+{size:#x}" for gpa, size, *_ in self.regions]
        return f"<PhysicalMemory {' '.join(parts)}>"


class VirtualMemory(AddressSpace):
    """Guest memory as one vCPU sees it now: `cpu.mem`.

    Addresses go through that vCPU's page tables, if paging is on; the
    permissions in them are not looked at.

    Threads: any, when the machine is not running.
    """

    __slots__ = ("_cpu",)

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def _at(self, address: Address) -> int:
        return self._cpu.machine.symbols.address(address)

    def _pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        """The (gpa, size) that the range is made of, in order."""
        pieces: list[tuple[int, int]] = []
        if size > (limit := self._cpu.machine.memory.size):
            raise ValueError(
                f"{size} bytes at {address:#x} are more than all RAM ({limit})"
            )
        translate = self._cpu._translator()
        while size > 0:
            walk = translate(address)
            if walk.gpa is None:
                raise ValueError(f"virtual address {address:#x} is not mapped")
            length = min(walk.size - address % walk.size, size)
            pieces.append((walk.gpa, length))
            address += length
            size -= length
        return pieces

    def _read(self, address: int, size: int) -> bytes:
        read = self._cpu.machine.memory.read
        return b"".join(read(*piece) for piece in self._pieces(address, size))

    def _write(self, address: int, data: Buffer) -> None:
        ram = self._cpu.machine.memory
        bytes_ = memoryview(data).cast("B")
        pieces = self._pieces(address, len(bytes_))
        for gpa, size in pieces:
            if ram.span(gpa, size) != size:
                raise ValueError(f"gpa {gpa:#x} + {size} is outside RAM")
        at = 0
        for gpa, size in pieces:
            ram.write(gpa, bytes_[at : at + size])
            at += size

    def __repr__(self) -> str:
        return f"<VirtualMemory of vCPU {self._cpu.index}>"

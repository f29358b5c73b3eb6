# SPDX-License-Identifier: Apache-2.0
"""Named pieces of data for a guest: QEMU's firmware configuration device.

    with pyvmm.Machine() as m:
        m.attach(FwCfg({"opt/org.example/greeting": b"hello"}))

at port 0x510, where a PC has it.

| offset | size | |
| --- | --- | --- |
| 0 | 2 | written: which item, from its beginning |
| 1 | 1 | read: the item's next byte, 0 behind its end |
| 4 | 8 | read: "QEMU CFG"; written: the address of a DMA request |

The address is big endian, and may be written in halves: the lower one, at 8,
starts the request. That is four big endian fields in RAM, of 4, 4 and 8 bytes:
what to do, a length, an address.

Item 0 is "QEMU", 1 says that there is DMA, 0x19 is the directory: the number of
files, and of each its size, item and name. Linux shows them in
/sys/firmware/qemu_fw_cfg. `items={number: bytes}` are others, without a name.

>>> config = FwCfg({"opt/org.example/greeting": b"hello"})
>>> config.write(0, 2, config.item("opt/org.example/greeting"))
>>> bytes(config.read(1, 1) for _ in range(7))
b'hello\\x00\\x00'

Nothing can be written by a guest: a DMA request to write fails.

Source: QEMU, docs/specs/fw_cfg.rst.
"""

from collections.abc import Mapping
from threading import RLock
from typing import Any, Protocol

import pyvmm

SIGNATURE = 0x00
FEATURES = 0x01
DIRECTORY = 0x19
FIRST_FILE = 0x20
LAST_FILE = 0x3FFF
NAME_SIZE = 56

# What a DMA request is to do; its upper half is an item to select.
ERROR = 0x01
READ = 0x02
SKIP = 0x04
SELECT = 0x08
WRITE = 0x10

REQUEST_SIZE = 16
AT_ONCE = 1 << 20  # bytes that are in the host's hands
DMA_SIGNATURE = b"QEMU CFG"


class Ram(Protocol):
    """What a DMA request needs of memory: m.mem, or a test's."""

    def read(self, address: int, size: int, /) -> bytes:
        """Bytes; ValueError outside of RAM."""

    def write(self, address: int, data: bytes, /) -> None:
        """Put bytes there; ValueError outside of RAM."""


class FwCfg(pyvmm.Device):
    """Files, and items without a name, that the guest reads.

    `files`: their bytes by name. `items`: others by number. `ram`: where DMA
    goes, that of the machine if not given.

    Threads: as Device; any may call add().
    """

    size = 12
    port = 0x510

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        items: Mapping[int, bytes] | None = None,
        ram: Ram | None = None,
    ) -> None:
        self.ram = ram
        self._lock = RLock()
        self._items = {
            SIGNATURE: b"QEMU",
            FEATURES: (3).to_bytes(4, "little"),
            DIRECTORY: bytes(4),
        }
        for number, data in (items or {}).items():
            if not 0 <= number <= 0xFFFF or number in self._items:
                raise ValueError(f"item {number:#x} is none, or taken")
            self._items[number] = bytes(data)
        self._files: dict[str, int] = {}
        self._selected = 0
        self._offset = 0
        self._high = 0  # of a request's address
        for name, data in (files or {}).items():
            self.add(name, data)

    def add(self, name: str, data: bytes) -> None:
        """Add a file, or replace one; a guest may have read the directory."""
        raw = name.encode("ascii")
        if not 0 < len(raw) < NAME_SIZE or not name.isprintable():
            raise ValueError(f"name {name!r} has not 1 to {NAME_SIZE - 1}")
        with self._lock:
            number = self._files.get(name, FIRST_FILE)
            while name not in self._files and number in self._items:
                number += 1
            if number > LAST_FILE:
                raise ValueError("there are too many files")
            self._files[name] = number
            self._items[number] = bytes(data)
            directory = len(self._files).to_bytes(4, "big")
            for name, number in sorted(self._files.items()):
                directory += len(self._items[number]).to_bytes(4, "big")
                directory += number.to_bytes(2, "big") + bytes(2)
                directory += name.encode().ljust(NAME_SIZE, b"\0")
            self._items[DIRECTORY] = directory

    def item(self, name: str) -> int:
        """The number of a file; KeyError."""
        return self._files[name]

    def _take(self, size: int) -> bytes:
        """The next bytes of the item; nothing is behind its end."""
        data = self._items.get(self._selected, b"")
        taken = data[self._offset : self._offset + size]
        self._offset = min(self._offset + size, len(data))
        return taken

    def _select(self, number: int) -> None:
        self._selected = number
        self._offset = 0

    # -- the guest's side ----------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if offset == 1 and size == 1:
            with self._lock:
                return int.from_bytes(self._take(1), "little")
        if offset >= 4:
            part = DMA_SIGNATURE[offset - 4 : offset - 4 + size]
            return int.from_bytes(part, "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            number = int.from_bytes(value.to_bytes(size, "little"), "big")
            match offset, size:
                case 0, 2:
                    self._select(value)
                case 4, 4:
                    self._high = number
                case 8, 4:
                    self._start(self._high << 32 | number)
                case 4, 8:
                    self._start(number)

    def _start(self, address: int) -> None:
        """A DMA request; one that is not in RAM cannot even be refused."""
        self._high = 0
        ram = self.ram
        if ram is None:
            if self.machine is None:
                return
            ram = self.machine.mem
        try:
            request = ram.read(address, REQUEST_SIZE)
            try:
                self._serve(ram, request)
                done = 0
            except ValueError:
                done = ERROR
            ram.write(address, done.to_bytes(4, "big"))
        except ValueError:
            pass

    def _serve(self, ram: Ram, request: bytes) -> None:
        """ValueError when it cannot be done, or not wholly."""
        what = int.from_bytes(request[:4], "big")
        length = int.from_bytes(request[4:8], "big")
        to = int.from_bytes(request[8:], "big")
        if what & SELECT:
            self._select(what >> 16)
        if what & READ:
            if to + length > 1 << 64:
                raise ValueError("behind the end of all addresses")
            if length:
                # A request that ends outside does not begin.
                ram.read(to + length - 1, 1)
            while length:
                size = min(length, AT_ONCE)
                ram.write(to, self._take(size).ljust(size, b"\0"))
                to += size
                length -= size
        elif what & WRITE:
            raise ValueError("a guest cannot write here")
        elif what & SKIP:
            self._take(length)

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What the guest has selected, not the items."""
        return {name: getattr(self, "_" + name) for name in STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        if wrong := sorted({*state} - {*STATE}):
            raise ValueError(f"FwCfg has no state {', '.join(wrong)}")
        for name, value in state.items():
            setattr(self, "_" + name, value)


STATE = ("selected", "offset", "high")

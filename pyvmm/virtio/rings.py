# SPDX-License-Identifier: Apache-2.0
"""The driver's end: registers of virtio-mmio, and rings written by hand.

Nothing here checks what it is told: a driver may be as hostile as it likes.

    Ring         the three arrays of a queue and the driver's two indices
    Transport    negotiation and registers of a VirtioMMIO, with its Rings
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._vmm import Memory, VirtioMMIO

# Registers (virtio 1.2, 4.2.2).
MAGIC = 0x000
VERSION = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC = 0x080
QUEUE_AVAIL = 0x090
QUEUE_USED = 0x0A0
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

ACKNOWLEDGE = 0x1
DRIVER = 0x2
DRIVER_OK = 0x4
FEATURES_OK = 0x8
NEEDS_RESET = 0x40
FAILED = 0x80

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32

NEXT = 1  # flags of descriptors
WRITE = 2
INDIRECT = 4


class Ring:
    """The rings of one queue, laid out one after the other from `gpa` on."""

    def __init__(self, memory: Memory, gpa: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.desc = gpa
        self.avail = gpa + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.clear()

    def clear(self) -> None:
        """All zeros, as before the first request."""
        self.offered = 0
        self.taken = 0
        self.memory.fill(self.desc, 0, self.end - self.desc)

    def set_desc(
        self,
        index: int,
        addr: int,
        size: int,
        flags: int = 0,
        next_: int = 0,
        table: int | None = None,
    ) -> None:
        """Write entry `index` of the queue's table, or of the one there."""
        at = (self.desc if table is None else table) + 16 * index
        self.memory.write(at, struct.pack("<QIHH", addr, size, flags, next_))

    def set_chain(
        self, parts: Sequence[tuple[int, int, int]], table: int | None = None
    ) -> None:
        """Link (addr, size, flags) from entry 0 on."""
        for i, (addr, size, flags) in enumerate(parts):
            more = NEXT if i + 1 < len(parts) else 0
            self.set_desc(i, addr, size, flags | more, i + 1, table)

    def set_offered(self, index: int) -> None:
        """The available index."""
        self.offered = index & 0xFFFF
        self.memory.write_u16(self.avail + 2, self.offered)

    def offer(self, head: int = 0) -> None:
        """Put `head` in the available ring."""
        slot = self.offered % self.size
        self.memory.write_u16(self.avail + 4 + 2 * slot, head)
        self.set_offered(self.offered + 1)

    def take(self) -> tuple[int, int] | None:
        """The next (head, bytes written) of the used ring, or None."""
        if self.memory.read_u16(self.used + 2) == self.taken:
            return None
        at = self.used + 4 + 8 * (self.taken % self.size)
        self.taken = (self.taken + 1) & 0xFFFF
        return self.memory.read_u32(at), self.memory.read_u32(at + 4)

    def mute(self, quiet: bool = True) -> None:
        """NO_INTERRUPT, where EVENT_IDX was not negotiated."""
        self.memory.write_u16(self.avail, int(quiet))

    def set_used_event(self, index: int) -> None:
        """Where the driver wants its next interrupt, with EVENT_IDX."""
        self.memory.write_u16(self.avail + 4 + 2 * self.size, index & 0xFFFF)

    @property
    def muted(self) -> bool:
        """NO_NOTIFY, as the device set it."""
        return bool(self.memory.read_u16(self.used))

    @property
    def avail_event(self) -> int:
        """Where the device wants its next notification, with EVENT_IDX."""
        return self.memory.read_u16(self.used + 4 + 8 * self.size)


class Transport:
    """The registers of `device`; boot() makes a Ring for each of its queues."""

    def __init__(self, device: VirtioMMIO) -> None:
        self.device = device
        self.memory = device.memory
        self.ring: list[Ring] = []

    def get(self, register: int) -> int:
        """Read a register."""
        return self.device.read(register, 4)

    def set(self, register: int, value: int) -> None:
        """Write a register."""
        self.device.write(register, 4, value)

    def set64(self, register: int, value: int) -> None:
        """Write a register and the one behind, the high half."""
        self.set(register, value & 0xFFFFFFFF)
        self.set(register + 4, value >> 32)

    def offered(self) -> int:
        """The features that the device offers."""
        value = 0
        for word in range(2):
            self.set(DEVICE_FEATURES_SEL, word)
            value |= self.get(DEVICE_FEATURES) << 32 * word
        return value

    def accept(self, features: int) -> None:
        """Say which features the driver takes."""
        for word in range(2):
            self.set(DRIVER_FEATURES_SEL, word)
            self.set(DRIVER_FEATURES, features >> 32 * word & 0xFFFFFFFF)

    def set_queue(self, index: int, ring: Ring) -> None:
        """Start queue `index` on these rings."""
        self.set(QUEUE_SEL, index)
        self.set(QUEUE_NUM, ring.size)
        self.set64(QUEUE_DESC, ring.desc)
        self.set64(QUEUE_AVAIL, ring.avail)
        self.set64(QUEUE_USED, ring.used)
        self.set(QUEUE_READY, 1)

    def boot(
        self,
        features: int = VERSION_1,
        sizes: Sequence[int] = (8,),
        gpa: int = 0x10000,
    ) -> Transport:
        """From reset to DRIVER_OK, by the book (3.1.1)."""
        self.set(STATUS, 0)
        self.set(STATUS, ACKNOWLEDGE)
        self.set(STATUS, ACKNOWLEDGE | DRIVER)
        self.accept(features)
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        self.ring = []
        for index, size in enumerate(sizes):
            self.ring.append(Ring(self.memory, gpa, size))
            gpa = (self.ring[-1].end + 15) & ~15
            self.set_queue(index, self.ring[-1])
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        return self

    def notify(self, queue: int = 0) -> None:
        """Tell the device of what was offered."""
        self.set(QUEUE_NOTIFY, queue)

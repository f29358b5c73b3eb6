# SPDX-License-Identifier: Apache-2.0
"""The start_info guest ABI: a small structure of our own, and no firmware.

Source: docs/guest-abi.md; guest/include/pyvmm/start_info.h says the same in C,
and a test holds the tables below against it.
"""

from __future__ import annotations

from struct import Struct

from .. import _vmm, x86
from . import Boot, Placed, Platform, Start

START_INFO = Struct("<5I")
START_INFO_FIELDS = (
    "ioapic_base", "mem_size", "mem_entries", "dev_size", "dev_entries",
)  # fmt: skip
MEMORY_MAP_ENTRY = Struct("<4I")
MEMORY_MAP_ENTRY_FIELDS = ("base", "size", "flags", "use")
DEVICE_MAP_ENTRY = Struct("<2I")
DEVICE_MAP_ENTRY_FIELDS = ("base_addr", "interrupt_num")

START_INFO_MAGIC = 0x6D767970  # the bytes "pyvm"
STACK_SIZE = 16384

MEMORY_FLAG_READ_ONLY = 1
MEMORY_USE_FREE = 0
MEMORY_USE_KERNEL = 1
MEMORY_USE_INIT = 2

LIMIT = 1 << 32  # what 32-bit fields can say
USES = 3  # of RAM: image, initrd, boot information


class StartInfo(Boot):
    """The start_info protocol.

    Override memory_map(), device_map() or words() to tell a guest something
    else; whatever a subclass returns is laid out by start().

    The information goes to the top of RAM below 4 GiB, in one INIT region:
    information, maps, command line, page tables for the 64-bit modes, and the
    16 KiB boot stack at its end. An initrd has an INIT region of its own below
    it, and a word `initrd@0xBASE+0xSIZE` on the command line.

    In "protected" mode registers are as the ABI says; in the 64-bit modes the
    same, rdi holding the information's address as well; in "real" mode all
    are 0 but sp, which is below the image.
    """

    def start(self, platform: Platform) -> Start:
        """Lay out information, command line and stack; see the class."""
        image = platform.image
        if image is None:
            raise ValueError("nothing is loaded: m.load() what shall run")
        if image.mode == "real":
            return Start(
                "real",
                {"rip": image.entry, "rsp": min(image.start, 0xFFF0)},
                [],
            )
        wide = image.mode in ("long", "user")
        tables_size = _vmm.x86_tables_size(platform.span) if wide else 0
        initrd_size = len(platform.initrd or b"")
        devices = self.device_map(platform)
        longest = len(self.words(platform, (LIMIT - 1, initrd_size)))
        most = len(platform.memory) + 2 * USES  # each use splits one in three
        head = pages(
            START_INFO.size
            + len(devices) * DEVICE_MAP_ENTRY.size
            + most * MEMORY_MAP_ENTRY.size
            + longest
            + 1
        )
        size = head + tables_size + STACK_SIZE
        room = platform.find_room(pages(initrd_size) + size)
        init = room + pages(initrd_size)
        initrd = (room if initrd_size else 0, initrd_size)

        dev_at = init + START_INFO.size
        mem_at = dev_at + len(devices) * DEVICE_MAP_ENTRY.size
        memory = self.memory_map(
            platform, initrd, (init, size, MEMORY_USE_INIT)
        )
        text_at = mem_at + len(memory) * MEMORY_MAP_ENTRY.size
        words = self.words(platform, initrd)
        info = START_INFO.pack(
            platform.ioapic,
            len(memory),
            mem_at if memory else 0,
            len(devices),
            dev_at if devices else 0,
        )
        blob = b"".join(
            [
                info,
                *(DEVICE_MAP_ENTRY.pack(*entry) for entry in devices),
                *(MEMORY_MAP_ENTRY.pack(*entry) for entry in memory),
                words.encode() + b"\0",
            ]
        )
        if len(blob) > head:
            raise ValueError(
                f"the boot information has {len(blob)} bytes, {head} were due"
            )
        registers = {
            "rip": image.entry,
            "rax": START_INFO_MAGIC,
            "rbx": init,
            "rcx": text_at if words else 0,
            "rsp": init + size,
        }
        if wide:
            registers["rdi"] = init
        writes = [(init, blob)]
        if platform.initrd:
            writes.append((room, platform.initrd))
        return Start(image.mode, registers, writes, init + head if wide else 0)

    # -- what is told --------------------------------------------------------

    def memory_map(
        self,
        platform: Platform,
        initrd: tuple[int, int],
        init: tuple[int, int, int],
    ) -> list[tuple[int, int, int, int]]:
        """(base, size, flags, use) of all RAM below 4 GiB, by address.

        `initrd`: its address and bytes, (0, 0) when there is none; `init`:
        address, bytes and use of the boot information.
        """
        used = [init]
        if initrd[1]:
            used.append((initrd[0], pages(initrd[1]), MEMORY_USE_INIT))
        image = platform.image
        if image is not None:
            size = image.end - image.start
            used.append((image.start, size, MEMORY_USE_KERNEL))
        used.sort()
        entries: list[tuple[int, int, int, int]] = []
        for region in platform.memory:
            flags = MEMORY_FLAG_READ_ONLY if region.readonly else 0
            at, end = region.gpa, min(region.end, LIMIT)
            if end == LIMIT and at == 0:
                end -= x86.PAGE  # 4 GiB cannot be said in 32 bits
            for start, size, use in used:
                start, stop = max(start, at), min(start + size, end)
                if start >= stop:
                    continue
                if start > at:
                    entries.append((at, start - at, flags, MEMORY_USE_FREE))
                entries.append((start, stop - start, flags, use))
                at = stop
            if at < end:
                entries.append((at, end - at, flags, MEMORY_USE_FREE))
        return entries

    def device_map(self, platform: Platform) -> list[tuple[int, int]]:
        """(base_addr, interrupt_num) of devices with addresses, by address."""
        return [
            (device.base, device.line)
            for device in platform.devices
            if not device.is_port and device.base < LIMIT
        ]

    def words(self, platform: Platform, initrd: tuple[int, int]) -> str:
        """The command line: the caller's words, then one for each device.

        `NAME@0xBASE+0xSIZE:LINE` for those that are not virtio, with `port:`
        before the base when it is a port.
        """
        words = [platform.cmdline] if platform.cmdline else []
        if initrd[1]:
            words.append(f"initrd@{initrd[0]:#x}+{initrd[1]:#x}")
        words += [
            device_word(device)
            for device in platform.devices
            if not device.virtio
        ]
        return " ".join(words)


def device_word(device: Placed) -> str:
    """The word by which the command line announces a device."""
    port = "port:" if device.is_port else ""
    return (
        f"{device.name}@{port}{device.base:#x}+{device.size:#x}:{device.line}"
    )


def pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // x86.PAGE) * x86.PAGE

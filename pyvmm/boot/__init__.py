# SPDX-License-Identifier: Apache-2.0
"""How a guest is started and told what its machine is like.

One file per protocol; start_info.py is the one that pyvmm is built around. To
script another, subclass Boot and pass it: `Machine(boot=MyBoot())`.
"""

from __future__ import annotations

from .. import x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..image import Image


class Region:
    """A piece of RAM: `gpa`, `size`, `readonly`."""

    __slots__ = ("gpa", "readonly", "size")

    def __init__(self, gpa: int, size: int, readonly: bool) -> None:
        self.gpa = gpa
        self.size = size
        self.readonly = readonly

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.gpa + self.size

    def __repr__(self) -> str:
        return f"<Region {self.gpa:#x}+{self.size:#x}>"


class Placed:
    """A device: `name`, `base`, `size`, `is_port`, `line` (0: none), `virtio`.

    `virtio`: it identifies itself by virtio-mmio registers.
    """

    __slots__ = ("base", "is_port", "line", "name", "size", "virtio")

    def __init__(
        self,
        name: str,
        base: int,
        size: int,
        *,
        is_port: bool,
        line: int,
        virtio: bool,
    ) -> None:
        self.name = name
        self.base = base
        self.size = size
        self.is_port = is_port
        self.line = line
        self.virtio = virtio

    def __repr__(self) -> str:
        return f"<Placed {self.name} {self.base:#x}+{self.size:#x}>"


class Platform:
    """A machine as a boot protocol sees it.

    `memory`: Regions by address. `image`: what is loaded, with `start`, `end`,
    `entry` and `mode`; None when nothing is. `devices`: Placed, by address.
    `cmdline`: the caller's words. `initrd`: bytes or None. `ioapic`: address
    of the IOAPIC, 0 without an irqchip.
    """

    def __init__(
        self,
        memory: list[Region],
        image: Image | None,
        devices: list[Placed],
        cmdline: str,
        initrd: bytes | None,
        ioapic: int,
    ) -> None:
        self.memory = memory
        self.image = image
        self.devices = devices
        self.cmdline = cmdline
        self.initrd = initrd
        self.ioapic = ioapic

    @property
    def span(self) -> int:
        """The first address behind all RAM."""
        return max((region.end for region in self.memory), default=0)

    def find_room(self, size: int) -> int:
        """The highest page-aligned address with `size` bytes of free RAM.

        Below 4 GiB, writable, and none of the image's. Raises ValueError.
        """
        best = -1
        for region in self.memory:
            if region.readonly:
                continue
            for start, end in self._without_image(region):
                end = min(end, 1 << 32)
                at = (end - size) & ~(x86.PAGE - 1)
                if at >= start:
                    best = max(best, at)
        if best < 0:
            raise ValueError(
                f"no {size} bytes of RAM are free below 4 GiB for the boot "
                "information"
            )
        return best

    def _without_image(self, region: Region) -> list[tuple[int, int]]:
        image = self.image
        if image is None or image.end <= region.gpa:
            return [(region.gpa, region.end)]
        if image.start >= region.end:
            return [(region.gpa, region.end)]
        return [
            (region.gpa, max(region.gpa, image.start)),
            (min(region.end, image.end), region.end),
        ]


class Start:
    """What a boot protocol decided.

    `writes`: (gpa, bytes) to put into memory, in order. `mode`: "real",
    "protected", "long" or "user". `registers`: general registers by name, the
    others are 0; rip is the entry. `tables`: for the 64-bit modes, where
    `x86_tables_size(span)` bytes are for page tables, GDT and TSS, which the
    machine writes.
    """

    def __init__(
        self,
        mode: str,
        registers: dict[str, int],
        writes: list[tuple[int, bytes]],
        tables: int = 0,
    ) -> None:
        self.mode = mode
        self.registers = registers
        self.writes = writes
        self.tables = tables

    def __repr__(self) -> str:
        return f"<Start {self.mode} at {self.registers.get('rip', 0):#x}>"


class Boot:
    """A boot protocol: start() turns a Platform into a Start.

    The base knows no information: it enters the image in its mode with all
    registers 0 and, for the 64-bit modes, page tables in free RAM.
    """

    def start(self, platform: Platform) -> Start:
        """Decide what is written where, and how vCPU 0 starts.

        Called once, before the first run. May raise ValueError.
        """
        from .. import _vmm

        image = platform.image
        if image is None:
            raise ValueError("nothing is loaded: m.load() what shall run")
        tables = 0
        if image.mode in ("long", "user"):
            tables = platform.find_room(_vmm.x86_tables_size(platform.span))
        return Start(image.mode, {"rip": image.entry}, [], tables)

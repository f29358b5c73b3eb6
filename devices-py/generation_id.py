# SPDX-License-Identifier: Apache-2.0
"""Tells a guest that it was put back to a snapshot, or is a clone.

What a guest has got of entropy before a snapshot it has got in every run that
begins there, and in every clone: keys and identifiers that it makes of it are
the same. This device has an identifier that never comes twice. After each
restore() and in each clone it is another one, and the line has been pulsed, so
that the guest may throw away what it must not share.

    m.attach(GenerationId())
    ...
    snap = m.snapshot()
    m.restore(snap)             # the guest is interrupted when it runs

The guest finds it by the word `generationid@0xBASE+0x10:LINE` on its command
line. Offsets 0 to 15 are the identifier, 16 bytes, read only, to be read in
any sizes; a guest that does not use interrupts compares it with the one that
it has seen last before it makes a key.

It is not changed between the turns of a `replay()`, all of which are to be the
same. `on_change`, if there is one, is called with the new identifier on the
host's side.

>>> from pyvmm import testing
>>> seen = []
>>> with testing.bus(GenerationId(on_change=seen.append)) as bus:
...     first = [bus.read_u64(0), bus.read_u64(8)]
...     state = bus.device.save()
...     bus.device.restore(state)
...     second = [bus.read_u64(0), bus.read_u64(8)]
...     bus.irqs
['irq']
>>> first == second, len(seen[0])
(False, 16)

Source: the idea is that of "Virtual Machine Generation ID" (Microsoft, 2012);
the registers are our own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pyvmm

BYTES = 16


class GenerationId(pyvmm.Device):
    """Another identifier, and an interrupt, after each restore and in clones.

    `id`: 16 bytes. `on_change`: called with the new one, or None.

    Threads: as Device.
    """

    size = BYTES
    irq = pyvmm.Irq()

    def __init__(
        self, on_change: Callable[[bytes], object] | None = None
    ) -> None:
        self.id = os.urandom(BYTES)
        self.on_change = on_change

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.id[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing: it is read only."""

    def save(self) -> dict[str, object]:
        """Nothing of it comes back."""
        return {}

    def restore(self, state: object) -> None:
        """A moment comes back: as another generation."""
        self.id = os.urandom(BYTES)
        self.irq.pulse()
        if self.on_change is not None:
            self.on_change(self.id)

    def clone(self) -> GenerationId:
        """For a clone of the machine."""
        return GenerationId(self.on_change)

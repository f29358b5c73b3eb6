# SPDX-License-Identifier: Apache-2.0
"""What virtio devices have in common, for whoever attaches them."""

from __future__ import annotations

from . import _vmm
from .services import Services


class Native(Services):
    """The description of a virtio device, of which make() makes one.

    Threads: a description.
    """

    size = _vmm.VIRTIO_MMIO_SIZE
    notify: str = "inline"  # or "thread", "asyncio"
    irq_line: int | None = None
    native: _vmm.VirtioMMIO | None = None

    def make(self, memory: _vmm.Memory) -> _vmm.VirtioMMIO:
        """The device itself, on this memory, as `native`."""
        raise NotImplementedError

# SPDX-License-Identifier: Apache-2.0
"""What virtio devices have in common, for whoever attaches them."""

from __future__ import annotations

from . import _vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine


class Native:
    """The description of a virtio device, of which make() makes one.

    Threads: a description.
    """

    size = _vmm.VIRTIO_MMIO_SIZE
    name: str = ""
    notify: str = "inline"  # or "thread"
    machine: Machine | None = None
    base: int | None = None
    irq_line: int | None = None
    native: _vmm.VirtioMMIO | None = None

    def make(self, memory: _vmm.Memory) -> _vmm.VirtioMMIO:
        """The device itself, on this memory, as `native`."""
        raise NotImplementedError

    def attached(self) -> None:
        """Called when the device has been attached: `machine` is set."""

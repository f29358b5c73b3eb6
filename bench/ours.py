# SPDX-License-Identifier: Apache-2.0
"""A guest of ours in pyvmm: the counterpart of qemu.py."""

from __future__ import annotations

from pathlib import Path

import pyvmm
from pyvmm import _vmm


def run(
    guest: Path,
    words: str,
    device: pyvmm.Rng | pyvmm.virtio.Device,
    memory: int = 16,
) -> bytes:
    """What the guest printed; RuntimeError unless it ended with status 0.

    `memory`: MiB.
    """
    with pyvmm.Machine(memory=f"{memory}M", cmdline=words) as m:
        m.load(guest)
        m.attach(device)
        stop = m.run(timeout=60)
    _vmm.reap()
    if stop.status:
        raise RuntimeError(f"{stop}: {m.console.text}")
    return m.console.bytes

# SPDX-License-Identifier: Apache-2.0
"""A guest of ours in QEMU's microvm, which boots the same file by PVH."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

QEMU = "qemu-system-x86_64"
MISSING = "no QEMU: apt-get install --no-install-recommends qemu-system-x86"


def found() -> bool:
    """Whether there is one."""
    return shutil.which(QEMU) is not None


def run(guest: Path, words: str, *devices: str, memory: int = 16) -> bytes:
    """What the guest printed; RuntimeError unless it ended with status 0."""
    command = [
        QEMU, "-M", "microvm,accel=kvm,pic=off,pit=off,rtc=off",
        # Some KVMs refuse the MSR of arch-capabilities.
        "-cpu", "host,arch-capabilities=off", "-m", str(memory),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-global", "virtio-mmio.force-legacy=false", *devices,
        "-chardev", "stdio,id=c,signal=off",
        "-device", "isa-debugcon,iobase=0xe9,chardev=c",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        "-kernel", str(guest), "-append", words,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
    )
    if done.returncode != 1:  # 2 * status + 1
        raise RuntimeError(f"{QEMU}: {done.stdout!r} {done.stderr.decode()}")
    return done.stdout

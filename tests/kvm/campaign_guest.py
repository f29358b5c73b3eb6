# SPDX-License-Identifier: Apache-2.0
"""The guest of test_campaign.py: what it does is said by one byte."""

import os
import signal
from pathlib import Path

import pyvmm

BUFFER = 0x200000
SIZE = 0x201000

# Exits with the input's first byte, 0 for none; but `k` and `o` go to a device,
# `!` to an address where nothing is, and `h` hangs.
SOURCE = """
    xor eax, eax
    cmp dword ptr [0x201000], 0
    je exit
    mov al, [0x200000]
    cmp al, 'k'
    je device
    cmp al, 'o'
    je device
    cmp al, '!'
    je bad
hang:
    cmp al, 'h'
    je hang
exit:
    out 0xf4, al
device:
    mov dx, 0x500
    out dx, al
    jmp exit
bad:
    mov [0xdead0000], eax
"""

OPTIONS = {"into": BUFFER, "length": (SIZE, 4), "max_size": 64}


class Device(pyvmm.Device):
    """Ends the process that runs the guest, or raises."""

    size, port = 1, 0x500

    def write(self, offset: int, size: int, value: int) -> None:
        if value == ord("k"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise LookupError("odd")


def setup(m: pyvmm.Machine) -> None:
    m.attach(Device())


def refuses(m: pyvmm.Machine) -> None:
    raise ZeroDivisionError("no machine today")


def dies(m: pyvmm.Machine) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save(path: Path, device: bool = True) -> None:
    """The snapshot of the guest before its first instruction."""
    with pyvmm.Machine(memory="4M") as m:
        if device:
            setup(m)
        m.load(asm=SOURCE)
        m.snapshot().save(path)

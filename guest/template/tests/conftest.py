# SPDX-License-Identifier: 0BSD
"""Fixtures: the kernel in a machine, booted once, restored for each test."""

from pathlib import Path

import pyvmm.guest
from pyvmm import testing

GUEST = Path(__file__).resolve().parent.parent / "guest"


@testing.machine(memory="16M")
def kernel(m):
    """The kernel at its prompt."""
    m.load(pyvmm.guest.build(GUEST / "main.c", GUEST / "kernel.c"))
    m.console.expect("> ", timeout=10)

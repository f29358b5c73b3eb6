# SPDX-License-Identifier: Apache-2.0
"""The timer that ACPI describes: 3.579545 MHz, a count that goes round.

    with pyvmm.Machine() as m:
        m.attach(PmTimer())                 # at port 0x608

A read of four bytes gives the count, of 24 bits unless `bits=32`, that is 4.7
seconds or 20 minutes. Writes do nothing. Nothing interrupts when it goes round.

>>> timer = PmTimer(now=lambda: 1_000_000_000)
>>> timer.read(0, 4)
3579545

Source: ACPI specification 6.5, 4.8.3.3.
"""

import time
from collections.abc import Callable

import pyvmm

HERTZ = 3579545


class PmTimer(pyvmm.Device):
    """Counts at 3.579545 MHz, from the time that `now()` gives in ns.

    Threads: as Device; `now` is called on the thread of the vCPU that reads.
    """

    port = 0x608
    count = pyvmm.Reg(0, 4, access="ro", doc="the time, 24 or 32 bits of it")

    def __init__(
        self,
        now: Callable[[], int] = time.monotonic_ns,
        *,
        bits: int = 24,
    ) -> None:
        if bits not in (24, 32):
            raise ValueError(f"bits {bits!r} is not 24 or 32")
        self.now = now
        self.bits = bits

    @count.on_read
    def read_count(self) -> int:
        """The count as the guest finds it now."""
        ticks = self.now() * HERTZ // 1_000_000_000
        return ticks & ((1 << self.bits) - 1)

# SPDX-License-Identifier: Apache-2.0
"""A clock that a guest can read: the host's time in nanoseconds.

    with pyvmm.Machine() as m:
        m.attach(Clock())

or `pyvmm run guest.elf --device devices-py/clock.py`. The guest finds it by the
word `clock@0xBASE+0x8:0` on its command line:

    struct arg_device clock;

    if (arg_device("clock", &clock)) {
        uint64_t low = read32(clock.base);
        uint64_t ns = (uint64_t)read32(clock.base + 4) << 32 | low;
    }

| offset | size | access | |
| --- | --- | --- | --- |
| 0x0 | 4 | read | the low half of the time, which is kept for 0x4 |
| 0x4 | 4 | read | the high half of the time last read at 0x0 |
| 0x0 | 8 | read | both at once |

A test, or a run that shall be repeated, brings its own time:

>>> clock = Clock(now=iter([0x1_0000_0002, 5]).__next__)
>>> clock.read(0, 4), clock.read(4, 4)
(2, 1)
>>> clock.read(0, 8)
5
"""

import time
from collections.abc import Callable

import pyvmm

MASK = 0xFFFF_FFFF


class Clock(pyvmm.Device):
    """The host's time in nanoseconds since 1970, or what `now()` returns.

    Threads: as Device; `now` is called on the thread of the vCPU that reads.
    """

    size = 8

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self.now = now
        self.latched = 0

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            self.latched = self.now()
        half = self.latched >> 8 * offset
        return half & ((1 << 8 * size) - 1)

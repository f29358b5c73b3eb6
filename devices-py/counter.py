# SPDX-License-Identifier: Apache-2.0
"""A counter that interrupts when it reaches its limit.

The smallest device with all that devices have: registers, state, a line, and
an acknowledgement. Copy it to begin one of your own.

    with pyvmm.Machine() as m:
        counter = m.attach(Counter())
        ...
        counter.add(3)          # the host may count as well

or `pyvmm run guest.elf --device devices-py/counter.py`. The guest finds it by
the word `counter@0xBASE+0x10:LINE` on its command line:

    assert(arg_device("counter", &counter));
    assert(irq_request(counter.line, on_limit, NULL));
    write32(counter.base + 0x4, 10);
    for (int i = 0; i < 10; i++)
        write32(counter.base + 0x0, 1);

| offset | access | |
| --- | --- | --- |
| 0x0 | read, write | the count; a write adds to it, modulo 2^32 |
| 0x4 | read, write | the limit; 0, as at first: none |
| 0x8 | read, write | 1 when the limit was reached; writing 1 clears it |

All registers have 4 bytes; accesses of other sizes or between them read 0 and
write nothing. The interrupt is an edge: one for each time that 0x8 becomes 1.

What a device does can be tried without a guest, but for its interrupt, which
wants a machine; here is something that counts instead:

>>> counter = Counter()
>>> counter.irq = Pulses()
>>> counter.write(LIMIT, 4, 2)
>>> counter.write(COUNT, 4, 1)
>>> counter.write(COUNT, 4, 1)
>>> counter.read(COUNT, 4), counter.read(STATUS, 4), counter.irq.count
(2, 1, 1)
>>> counter.write(STATUS, 4, 1)
>>> counter.read(STATUS, 4)
0
"""

from threading import Lock

import pyvmm

COUNT = 0x0
LIMIT = 0x4
STATUS = 0x8
MASK = 0xFFFF_FFFF


class Counter(pyvmm.Device):
    """Counts, and interrupts when it reaches its limit.

    Threads: any may call add().
    """

    size = 0x10
    irq = pyvmm.Irq()

    def __init__(self) -> None:
        self.count = 0
        self.limit = 0
        self.reached = False
        self._lock = Lock()

    def read(self, offset: int, size: int) -> int:
        if size != 4:
            return 0
        match offset:
            case 0x0:
                return self.count
            case 0x4:
                return self.limit
            case 0x8:
                return int(self.reached)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        match offset:
            case 0x0:
                self.add(value)
            case 0x4:
                self.limit = value
            case 0x8 if value & 1:
                self.reached = False

    def add(self, n: int = 1) -> None:
        """Count, from the host's side too."""
        with self._lock:
            before = self.count
            self.count = (before + n) & MASK
            ring = before < self.limit <= before + n and not self.reached
            self.reached = self.reached or ring
        if ring:
            self.irq.pulse()


class Pulses:
    """What a test gives a device in place of its line."""

    def __init__(self) -> None:
        self.count = 0

    def pulse(self) -> None:
        """Count it."""
        self.count += 1

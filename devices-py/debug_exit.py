# SPDX-License-Identifier: Apache-2.0
"""The port by which a guest ends the run, as QEMU's isa-debug-exit has it.

A machine has an exit port of its own, 0xf4, where a write of v ends the run
with the status v. This is for guests that were written for QEMU:

    with pyvmm.Machine() as m:
        m.attach(DebugExit())               # at port 0x501
        m.load("kernel.elf")
        stop = m.run(timeout=5)
    assert stop.status == 33                # the guest wrote 16

A write of v, of any size, ends the run with (v << 1) | 1, so 0 never. A read
gives 0.

>>> port = DebugExit()
>>> port.write(0, 4, 16)
>>> port.status
33
"""

import pyvmm


class DebugExit(pyvmm.Device):
    """A write of v ends the run with the status (v << 1) | 1, of 32 bits.

    `status`: that of the last one, None while there was none.

    Threads: as Device.
    """

    size = 4
    port = 0x501

    def __init__(self) -> None:
        self.status: int | None = None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.status = (value << 1 | 1) & 0xFFFF_FFFF
        if self.machine is not None:
            self.machine.exit(self.status)

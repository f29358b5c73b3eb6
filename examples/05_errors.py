# SPDX-License-Identifier: Apache-2.0
"""Whose fault was it? The class of the exception says so.

GuestError: the guest did what nobody means; e.stop has its state, str(e) is a
report. ValueError, TypeError: an argument made no sense. OSError: the host
refused. Anything else is of a device's author. All of it is in docs/stops.md.
"""

import pyvmm

with pyvmm.Machine() as m:
    m.load(asm="mov eax, [0xd0000000]")
    try:
        m.run(timeout=5)
    except pyvmm.GuestError as e:
        print(e.stop.reason, "at", hex(e.stop.rip))
        print(str(e).splitlines()[0])

with pyvmm.Machine() as m:
    m.load(asm="spin: jmp spin")
    stop = m.run(timeout=0.1, check=False)  # as a value
    print(stop.reason, stop.crashed, stop.where.symbol)


class Broken(pyvmm.Device):
    size = 4

    def read(self, offset: int, size: int) -> int:
        return {}["missing"]


with pyvmm.Machine() as m:
    m.attach(Broken(), mmio=0xD000_0000)
    m.load(asm="mov eax, [0xd0000000]; mov al, 1; out 0xf4, al")
    try:
        m.run(timeout=5)
    except KeyError as e:
        print(repr(e), e.__notes__[0], sep="\n  ")
    print(m.run(timeout=5))  # the machine is whole: the guest read all ones

# SPDX-License-Identifier: Apache-2.0
"""ACPI's power button, and its registers for sleep (PM1) and reset.

    with pyvmm.Machine() as m:
        pm = m.attach(AcpiPm())             # at port 0x600, line 9
        m.load("kernel.elf")
        m.start(timeout=60)
        pm.press()
        stop = m.wait()
    print(stop.reason, pm.slept)        # "poweroff", the SLP_TYP written

| offset | size | |
| --- | --- | --- |
| 0 | 2 | PM1_STS, what has happened: 1 clears |
| 2 | 2 | PM1_EN, which of it interrupts |
| 4 | 2 | PM1_CNT: sleep type in bits 10 to 12; bit 13 goes to sleep |
| 6 | 1 | RESET_REG: RESET_VALUE, 1, resets; reads 0 |

The interrupt is the SCI, a level. There is no other mode than ACPI's: SCI_EN is
always set, as where the FADT has no SMI_CMD. What the types mean a machine's
tables say. Sleeping ends the run with a Stop "poweroff", whatever the type, and
a reset with a Stop "reset"; `AcpiPm(on_sleep=, on_reset=)` are callables that
are called instead, the first one with the type:

>>> pm = AcpiPm(on_sleep=lambda kind: print("sleeps", kind))
>>> pm.write(4, 2, SLEEP | 5 << 10)
sleeps 5
>>> pm.slept
5

Source: ACPI specification 6.5, 4.8.3.1, 4.8.3.2 and 4.8.3.6.
"""

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

import pyvmm

# PM1_STS and PM1_EN.
GLOBAL_LOCK = 1 << 5
POWER_BUTTON = 1 << 8
SLEEP_BUTTON = 1 << 9
ENABLES = GLOBAL_LOCK | POWER_BUTTON | SLEEP_BUTTON
WAKE = 1 << 15  # in PM1_STS alone

# PM1_CNT.
SCI_ON = 1 << 0
TYPE_SHIFT = 10
TYPE = 7 << TYPE_SHIFT
SLEEP = 1 << 13

RESET_VALUE = 1


class AcpiPm(pyvmm.Device):
    """ACPI's PM1 and reset registers, and buttons to press.

    `on_sleep`: called with the sleep type, `on_reset` without arguments, on the
    thread of the vCPU; without them the run ends with a Stop "poweroff" or
    "reset". `slept`: the type of the last time, or None.

    Threads: any may call press() and wake().
    """

    port = 0x600
    irq = pyvmm.Irq(9)
    status = pyvmm.Reg(0, 2, access="w1c", mask=ENABLES | WAKE, doc="PM1_STS")
    enable = pyvmm.Reg(2, 2, mask=ENABLES, doc="PM1_EN")
    control = pyvmm.Reg(
        4,
        2,
        mask=SCI_ON | TYPE | SLEEP,
        ro=SCI_ON,
        wo=SLEEP,
        reset=SCI_ON,
        doc="PM1_CNT",
    )
    reset = pyvmm.Reg(6, 1, access="wo", doc="RESET_REG")

    def __init__(
        self,
        on_sleep: Callable[[int], object] | None = None,
        on_reset: Callable[[], object] | None = None,
    ) -> None:
        self.on_sleep = on_sleep
        self.on_reset = on_reset
        self.slept: int | None = None
        self._lock = RLock()
        self._is_up = False
        self._going: int | None = None  # to sleep, with this type
        self._resetting = False

    def attached(self) -> None:
        with self._lock:
            self._is_up = False
        self._update(0)

    def press(self, button: int = POWER_BUTTON) -> None:
        """Press the power button, or SLEEP_BUTTON."""
        if button not in (POWER_BUTTON, SLEEP_BUTTON):
            raise ValueError(f"button {button!r} is none")
        with self._lock:
            self.status |= button
            self._update(0)

    def wake(self) -> None:
        """Tell the guest that it has been woken, before it is run again."""
        with self._lock:
            self.status |= WAKE

    @status.on_write
    @enable.on_write
    def _update(self, value: int) -> None:
        """The line follows what has happened and may interrupt."""
        with self._lock:
            up = bool(self.status & self.enable)
            if up == self._is_up or self.base is None:
                return
            self._is_up = up
            if up:
                self.irq.set()
            else:
                self.irq.clear()

    @control.on_write
    def _control(self, value: int) -> None:
        if value & SLEEP:
            self.control &= ~SLEEP
            self._going = (value & TYPE) >> TYPE_SHIFT

    @reset.on_write
    def _reset(self, value: int) -> None:
        self.reset = 0
        self._resetting = value == RESET_VALUE

    def write(self, offset: int, size: int, value: int) -> None:
        # Not beside press(), which would be lost.
        with self._lock:
            super().write(offset, size, value)
            kind, self._going = self._going, None
            resets, self._resetting = self._resetting, False
        if kind is not None:
            self._sleep(kind)
        if resets and self.on_reset is not None:
            self.on_reset()
        elif resets and self.machine is not None:
            self.machine.reset()

    def _sleep(self, kind: int) -> None:
        self.slept = kind
        if self.on_sleep is not None:
            self.on_sleep(kind)
        elif self.machine is not None:
            self.machine.poweroff()

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._update(0)

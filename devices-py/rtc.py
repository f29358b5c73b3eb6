# SPDX-License-Identifier: Apache-2.0
"""The clock of a PC and its 114 bytes of memory: an MC146818.

    with pyvmm.Machine() as m:
        m.attach(Rtc())                     # at port 0x70, line 8

or `pyvmm run kernel.elf --device Rtc`.
The guest writes a register's number to port 0x70 and finds it at 0x71. A write
of two bytes to 0x70 is one to each.

| register | |
| --- | --- |
| 0x00, 0x02, 0x04 | seconds, minutes, hours |
| 0x01, 0x03, 0x05 | the alarm's |
| 0x06 to 0x09, 0x32 | day of the week (1: Sunday), day, month, year, century |
| 0x0a | A: update in progress, divider, periodic rate |
| 0x0b | B: stop, interrupts on, binary or BCD, 24 or 12 hours |
| 0x0c | C: which interrupts; a read clears them, and the line |
| 0x0d | D: the battery is good |
| the others | memory, `Rtc(nvram={0x10: 0x00})` |

Time is the host's, in UTC, until the guest sets its own. A test brings one:

>>> rtc = Rtc(now=lambda: 1_000_000_000.0)
>>> def read(register):
...     rtc.write(0, 1, register)
...     return rtc.read(1, 1)
>>> " ".join(f"{read(r):02x}" for r in (0x32, 9, 8, 7, 4, 2, 0))
'20 01 09 09 01 46 40'

A byte that is no such number (a month 13) is taken as the nearest that is one.
The day of the week follows from the date. Daylight saving and the square wave
are left out.

Source: Motorola MC146818A data sheet; the century is where ACPI puts it.
"""

import time
from calendar import monthrange
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from threading import RLock
from typing import Any

import pyvmm
from pyvmm.timers import Timer

SECONDS = 0x00
MINUTES = 0x02
HOURS = 0x04
WEEKDAY = 0x06
DAY = 0x07
MONTH = 0x08
YEAR = 0x09
CENTURY = 0x32
ALARMS = (SECONDS + 1, MINUTES + 1, HOURS + 1)
TIMES = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

A = 0x0A
UIP = 0x80  # an update comes within 244 us
HELD = 0x60  # bits of the divider: both hold it
RATE = 0x0F

B = 0x0B
SET = 0x80  # no updates
PIE = 0x40
AIE = 0x20
UIE = 0x10
BINARY = 0x04
HOURS_24 = 0x02

C = 0x0C  # IRQF, and by the same bits as in B what has happened
IRQF = 0x80
EVENTS = PIE | AIE | UIE

D = 0x0D
VALID = 0x80

PM = 0x80
ANY = 0xC0  # of an alarm: these bits set, every hour (minute, second) will do
SIZE = 0x80
UIP_SECONDS = 244e-6
SOON = 1e-6  # the host's two clocks differ by less, or it is looked again
EPOCH = datetime(1970, 1, 1)
FIRST, LAST = -62135596800, 253402300799  # what a datetime can be
DAY_SECONDS = 86400


class Rtc(pyvmm.Device):
    """An MC146818 with alarm, periodic and update interrupts, and CMOS memory.

    `now`: seconds since 1970, the host's time by default. `nvram`: bytes at
    first, by their register.

    Threads: as Device; any may read `time`.
    """

    port = 0x70
    irq = pyvmm.Irq(8)
    index = pyvmm.Reg(0, 1, access="wo", mask=0x7F, doc="a register's number")
    data = pyvmm.Reg(1, 1, doc="that register")

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        *,
        nvram: Mapping[int, int] | None = None,
    ) -> None:
        self.now = now
        self.cmos = bytearray(SIZE)
        self.cmos[A] = 0x26
        self.cmos[B] = HOURS_24
        self.cmos[D] = VALID
        for register, value in (nvram or {}).items():
            if register in (*TIMES, *ALARMS) or not D < register < SIZE:
                raise ValueError(f"register {register:#x} is no memory")
            self.cmos[register] = value
        self._lock = RLock()
        self._offset = 0.0  # of our time from the host's
        self._seen = now()  # events up to then are in C
        self._timer: Timer | None = None
        self._is_up = False

    def attached(self) -> None:
        with self._lock:
            self._is_up = False
            self._serve()

    @property
    def time(self) -> datetime:
        """What the guest takes for the time."""
        with self._lock:
            if not self._runs:
                return self._parse()
            return date(self._seconds())

    # -- time ----------------------------------------------------------------

    @property
    def _runs(self) -> bool:
        """Whether there are updates, not SET or a divider that is held."""
        return not (self.cmos[B] & SET or self.cmos[A] & HELD == HELD)

    def _seconds(self) -> float:
        return self.now() + self._offset

    def _encode(self, value: int) -> int:
        if self.cmos[B] & BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self.cmos[B] & BINARY:
            return value
        return (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self.cmos[B] & HOURS_24:
            return self._encode(hour)
        return self._encode((hour - 1) % 12 + 1) | PM * (hour >= 12)

    def _decode_hour(self, value: int) -> int:
        if self.cmos[B] & HOURS_24:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + 12 * (value >= PM)

    def _show(self) -> None:
        """Put the time into its registers."""
        now = date(self._seconds())
        for register, value in (
            (SECONDS, now.second),
            (MINUTES, now.minute),
            (WEEKDAY, now.isoweekday() % 7 + 1),
            (DAY, now.day),
            (MONTH, now.month),
            (YEAR, now.year % 100),
            (CENTURY, now.year // 100),
        ):
            self.cmos[register] = self._encode(value)
        self.cmos[HOURS] = self._encode_hour(now.hour)

    def _parse(self) -> datetime:
        """The time in the registers, whatever a guest has put there."""

        def number(register: int, low: int, high: int) -> int:
            return min(max(self._decode(self.cmos[register]), low), high)

        year = number(CENTURY, 19, 98) * 100 + number(YEAR, 0, 99)
        month = number(MONTH, 1, 12)
        return datetime(
            year,
            month,
            number(DAY, 1, monthrange(year, month)[1]),
            min(self._decode_hour(self.cmos[HOURS]), 23),
            number(MINUTES, 0, 59),
            number(SECONDS, 0, 59),
        )

    def _set(self, part: float) -> None:
        """Go on from the time in the registers, and `part` of a second."""
        seconds = (self._parse() - EPOCH) // timedelta(seconds=1)
        self._offset = seconds + part - self.now()

    # -- events --------------------------------------------------------------

    @property
    def _rate(self) -> float:
        """Periodic events in a second, 0: none."""
        rate = self.cmos[A] & RATE
        if not rate or self.cmos[A] & HELD == HELD:
            return 0.0
        return 32768.0 / (1 << (rate + 6 if rate <= 2 else rate - 1))

    def _alarm(self, since: int) -> int | None:
        """The first second after this one that the alarm names."""

        def named(value: int, decode: Callable[[int], int], end: int) -> range:
            if value & ANY == ANY:
                return range(end)
            number = decode(value)
            return range(number, number + 1) if number < end else range(0)

        second, minute, hour = (self.cmos[register] for register in ALARMS)
        decode = self._decode
        now = since % DAY_SECONDS
        midnight = since - now
        hours = named(hour, self._decode_hour, 24)
        minutes = named(minute, decode, 60)
        seconds = named(second, decode, 60)
        if not (hours and minutes and seconds):
            return None
        # Today after now, or else tomorrow.
        for start, last in ((midnight, now), (midnight + DAY_SECONDS, -1)):
            for h in hours:
                if h * 3600 + 3599 <= last:
                    continue
                for m in minutes:
                    if h * 3600 + m * 60 + 59 <= last:
                        continue
                    for s in seconds:
                        if h * 3600 + m * 60 + s > last:
                            return start + h * 3600 + m * 60 + s
        return None

    def _next(self, since: float) -> dict[int, float]:
        """By the bits of C: when each comes next after `since`."""
        times: dict[int, float] = {}
        if rate := self._rate:
            times[PIE] = (since * rate // 1 + 1) / rate
        if self._runs:
            times[UIE] = since // 1 + 1
            if (alarm := self._alarm(int(since // 1))) is not None:
                times[AIE] = float(alarm)
        return times

    def _serve(self) -> None:
        """What has happened by now goes to C; the line and the timer follow."""
        now = self._seconds()
        for bit, at in self._next(self._seen).items():
            if at <= now:
                self.cmos[C] |= bit
        self._seen = now
        wanted = self.cmos[B] & EVENTS
        up = bool(self.cmos[C] & wanted)
        self.cmos[C] = self.cmos[C] & EVENTS | IRQF * up
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.base is None:
            return
        self._drive(up)
        if wanted and not up:
            times = self._next(now)
            due = [at for bit, at in times.items() if bit & wanted]
            if due:
                self._timer = self.after(max(SOON, min(due) - now), self._due)

    def _drive(self, up: bool) -> None:
        if up == self._is_up or self.base is None:
            return
        self._is_up = up
        if up:
            self.irq.set()
        else:
            self.irq.clear()

    def _due(self) -> None:
        with self._lock:
            self._timer = None
            self._serve()

    # -- the guest's side ----------------------------------------------------

    @data.on_read
    def _read(self) -> int:
        with self._lock:
            register = self.index
            if register in TIMES and self._runs:
                self._show()
            value = self.cmos[register]
            if register == A and self._runs:
                ahead = 1 - self._seconds() % 1
                return value | UIP * (ahead <= UIP_SECONDS)
            if register == C:
                self._serve()
                value = self.cmos[C]
                self.cmos[C] = 0
                # What happens meanwhile is another edge.
                self._drive(False)
                self._serve()
            return value

    @data.on_write
    def _write(self, value: int) -> None:
        with self._lock:
            register = self.index
            if register in (C, D):
                return
            if register not in (A, B, *TIMES, *ALARMS):
                self.cmos[register] = value
                return
            self._serve()
            ran, held = self._runs, self.cmos[A] & HELD == HELD
            if ran:
                self._show()
            if register == A:
                value &= ~UIP
            elif register == B and value & SET:
                value &= ~UIE
            self.cmos[register] = value
            if self._runs and (not ran or register in TIMES):
                # The first update comes half a second after the divider's.
                self._set(0.5 if held else self._seconds() % 1)
                self._seen = self._seconds()
            self._serve()

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """The registers, the memory, and our time's distance to the host's."""
        with self._lock:
            more = {"cmos": bytes(self.cmos), "offset": self._offset}
            return super().save() | more

    def restore(self, state: Mapping[str, Any]) -> None:
        left = dict(state)
        cmos = left.pop("cmos", self.cmos)
        if len(cmos) != SIZE:
            raise ValueError(f"{len(cmos)} bytes of cmos, not {SIZE}")
        with self._lock:
            offset = left.pop("offset", self._offset)
            super().restore(left)
            self.cmos[:] = cmos
            self._offset = offset
            self._seen = self._seconds()
            self._serve()


def date(seconds: float) -> datetime:
    """The date of so many seconds since 1970, of the years 1 to 9999."""
    whole = min(max(seconds // 1, FIRST), LAST)
    return EPOCH + timedelta(seconds=whole)

# SPDX-License-Identifier: Apache-2.0
"""The MC146818, on a clock that only the test moves."""

import itertools
import random
from collections.abc import Iterator
from datetime import datetime

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import Rtc

# Sunday, 2001-09-09 01:46:40.
START = 1_000_000_000
TIME = (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)


class Clock:
    """The time of a bus, once there is one."""

    bus: testing.Bus[Rtc] | None = None

    def __call__(self) -> float:
        return START + (self.bus.now if self.bus else 0.0)


@pytest.fixture
def bus() -> Iterator[testing.Bus[Rtc]]:
    clock = Clock()
    with testing.bus(Rtc(clock)) as bus:
        clock.bus = bus
        yield bus


def get(bus: testing.Bus[Rtc], register: int) -> int:
    bus.write_u8(0, register)
    return bus.read_u8(1)


def put(bus: testing.Bus[Rtc], register: int, value: int) -> None:
    bus.write_u16(0, value << 8 | register)


def shown(bus: testing.Bus[Rtc]) -> str:
    return " ".join(f"{get(bus, register):02x}" for register in TIME)


def test_at_first(bus) -> None:
    assert shown(bus) == "20 01 09 09 01 46 40"
    assert get(bus, 6) == 1
    assert get(bus, 0x0A) == 0x26
    assert get(bus, 0x0B) == 0x02
    assert get(bus, 0x0D) == 0x80
    assert bus.irqs == []


def test_time_goes_on(bus) -> None:
    bus.advance(20)
    assert shown(bus) == "20 01 09 09 01 47 00"
    bus.advance(86400 * 365)
    assert shown(bus) == "20 02 09 09 01 47 00"
    assert bus.device.time == datetime(2002, 9, 9, 1, 47)


def test_binary(bus) -> None:
    put(bus, 0x0B, 0x06)
    assert get(bus, 2) == 46 and get(bus, 0x32) == 20


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"),
    [(0, 0x12, 12), (1, 0x01, 1), (12, 0x92, 0x8C), (23, 0x91, 0x8B)],
)
def test_twelve_hours(bus, hour, bcd, binary) -> None:
    put(bus, 0x04, hour // 10 << 4 | hour % 10)
    put(bus, 0x0B, 0x00)
    assert get(bus, 4) == bcd
    put(bus, 4, bcd)
    assert bus.device.time.hour == hour
    put(bus, 0x0B, 0x04)
    assert get(bus, 4) == binary
    put(bus, 4, binary)
    assert bus.device.time.hour == hour


def test_setting_the_time(bus) -> None:
    put(bus, 0x0B, 0x82)
    for register, value in zip(
        TIME, (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58), strict=True
    ):
        put(bus, register, value)
    bus.advance(100)
    assert shown(bus) == "19 99 12 31 23 59 58"
    put(bus, 0x0B, 0x02)
    assert shown(bus) == "19 99 12 31 23 59 58"
    bus.advance(2)
    assert shown(bus) == "20 00 01 01 00 00 00"
    assert get(bus, 6) == 7


def test_a_divider_that_is_held(bus) -> None:
    put(bus, 0x0A, 0x76)
    bus.advance(10)
    assert get(bus, 0) == 0x40
    put(bus, 0x0A, 0x26)
    bus.advance(0.4)
    assert get(bus, 0) == 0x40
    bus.advance(0.2)
    assert get(bus, 0) == 0x41


def test_numbers_that_are_none(bus) -> None:
    put(bus, 0x0B, 0x82)
    for register in TIME:
        put(bus, register, 0xFF)
    put(bus, 0x08, 0x02)
    put(bus, 0x0B, 0x02)
    assert bus.device.time == datetime(9899, 2, 28, 23, 59, 59)
    put(bus, 0x07, 0)
    assert bus.device.time.day == 1


def test_update_in_progress(bus) -> None:
    bus.advance(0.9997)
    assert get(bus, 0x0A) == 0x26
    bus.advance(0.0001)
    assert get(bus, 0x0A) == 0xA6
    bus.advance(0.0002)
    assert get(bus, 0x0A) == 0x26
    put(bus, 0x0B, 0x82)
    bus.advance(0.9999)
    assert get(bus, 0x0A) == 0x26


def test_update_interrupt(bus) -> None:
    get(bus, 0x0C)
    bus.advance(0.25)
    put(bus, 0x0B, 0x12)
    bus.advance(0.74)
    assert bus.irqs == []
    bus.advance(0.02)
    assert bus.level()
    bus.advance(5)  # nothing more until it is acknowledged
    assert bus.irqs == ["irq"]
    assert get(bus, 0x0C) & 0xB0 == 0x90
    assert not bus.level() and get(bus, 0x0C) == 0
    bus.advance(1)
    assert bus.irqs == ["irq", "irq"]


def test_stopping_turns_update_interrupts_off(bus) -> None:
    put(bus, 0x0B, 0x92)
    assert get(bus, 0x0B) == 0x82


@pytest.mark.parametrize(
    ("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)]
)
def test_periodic_interrupt(bus, rate, hertz) -> None:
    put(bus, 0x0A, 0x20 | rate)
    get(bus, 0x0C)
    put(bus, 0x0B, 0x42)
    for n in range(1, 5):
        bus.advance(1.01 / hertz)
        assert len(bus.irqs) == n
        assert get(bus, 0x0C) & 0xC0 == 0xC0
    put(bus, 0x0B, 0x02)
    bus.advance(1)
    assert len(bus.irqs) == 4
    assert get(bus, 0x0C) & 0xC0 == 0x40  # may be polled


def test_each_event_is_an_edge() -> None:
    """Also one that comes while the one before is acknowledged."""
    times = itertools.count(START * 1024)
    with testing.bus(Rtc(lambda: next(times) / 1024)) as bus:
        put(bus, 0x0B, 0x42)
        for n in range(1, 5):
            assert len(bus.irqs) == n
            assert get(bus, 0x0C) & 0xC0 == 0xC0


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x01, 0x46, 0x41), 1),
        ((0x01, 0x46, 0x40), 86400),
        ((0x01, 0x46, 0x39), 86399),
        ((0xFF, 0x46, 0x40), 3600),
        ((0xFF, 0xC0, 0x40), 60),
        ((0xFF, 0xFF, 0xFF), 1),
        ((0x00, 0xFF, 0x00), 86400 - 3600 - 46 * 60 - 40),
        ((0x02, 0x00, 0x00), 13 * 60 + 20),
    ],
)
def test_alarm(bus, alarm, after) -> None:
    for register, value in zip((5, 3, 1), alarm, strict=True):
        put(bus, register, value)
    put(bus, 0x0B, 0x22)
    bus.advance(after - 0.1)
    assert bus.irqs == []
    bus.advance(0.2)
    assert bus.irqs == ["irq"]
    assert get(bus, 0x0C) & 0xA0 == 0xA0


@pytest.mark.parametrize("alarm", [(0x24, 0, 0), (0, 0x60, 0), (0, 0, 0x7F)])
def test_an_alarm_that_never_comes(bus, alarm) -> None:
    for register, value in zip((5, 3, 1), alarm, strict=True):
        put(bus, register, value)
    put(bus, 0x0B, 0x22)
    bus.advance(86400 * 3)
    assert bus.irqs == []


def test_memory(bus) -> None:
    for register in (0x0E, 0x31, 0x33, 0x7F):
        put(bus, register, register ^ 0xFF)
    put(bus, 0x8F, 0x12)  # the top bit is the NMI's mask
    assert get(bus, 0x0F) == 0x12
    assert [get(bus, r) for r in (0x0E, 0x31, 0x33, 0x7F)] == [
        r ^ 0xFF for r in (0x0E, 0x31, 0x33, 0x7F)
    ]
    for register in (0x0C, 0x0D):
        before = get(bus, register)
        put(bus, register, 0x55)
        assert get(bus, register) & 0x80 == before & 0x80


def test_memory_that_is_given() -> None:
    with testing.bus(Rtc(lambda: 0.0, nvram={0x10: 0x42})) as bus:
        assert get(bus, 0x10) == 0x42
    for register in (0x00, 0x0B, 0x32, 0x80):
        with pytest.raises(ValueError, match="is no memory"):
            Rtc(nvram={register: 0})


def test_state_is_carried_over(bus) -> None:
    put(bus, 0x02, 0x00)
    put(bus, 0x20, 0x77)
    state = bus.device.save()
    put(bus, 0x02, 0x30)
    put(bus, 0x20, 0x00)
    bus.device.restore(state)
    assert get(bus, 0x02) == 0x00 and get(bus, 0x20) == 0x77
    for wrong in ({"cmos": b""}, {"colour": 1}):
        with pytest.raises(ValueError):
            bus.device.restore(wrong)


@pytest.mark.parametrize("now", [0.0, 1e9, 3e11, -1e11])
@pytest.mark.parametrize("seed", range(2))
def test_any_traffic(seed, now) -> None:
    """The line is always what C says."""
    passed = [0.0]
    dice = random.Random(seed)
    rtc = Rtc(lambda: now + passed[0])

    def check(bus: testing.Bus[Rtc]) -> None:
        passed[0] = bus.now
        assert bus.level() == bool(rtc.cmos[0x0C] & 0x80)
        assert rtc.time
        # Most of the numbers are those of memory.
        bus.write_u8(0, dice.choice((*range(16), 0x32, 0x7F)))

    hammer(rtc, seed=seed, steps=3000, check=check)

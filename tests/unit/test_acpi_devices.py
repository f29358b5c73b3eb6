# SPDX-License-Identifier: Apache-2.0
"""PmTimer and AcpiPm."""

from collections.abc import Iterator

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import AcpiPm, PmTimer
from pyvmm.devices.acpi_pm import POWER_BUTTON, SLEEP, SLEEP_BUTTON

STATUS, ENABLE, CONTROL, RESET = 0, 2, 4, 6


@pytest.mark.parametrize("bits", [24, 32])
def test_timer(bits) -> None:
    times = iter([0, 10**9, (1 << bits) * 10**9 // 3579545 + 1])
    with testing.bus(PmTimer(lambda: next(times), bits=bits)) as bus:
        assert bus.read_u32(0) == 0
        assert bus.read_u32(0) == 3579545
        assert bus.read_u32(0) == 0  # round
        bus.write_u32(0, 5)


def test_timer_in_parts() -> None:
    with testing.bus(PmTimer(lambda: 10**9)) as bus:
        assert bus.read_u8(2) == 3579545 >> 16
        assert bus.read_u16(0) == 3579545 & 0xFFFF


def test_timer_that_is_refused() -> None:
    with pytest.raises(ValueError, match="bits 16 is not 24 or 32"):
        PmTimer(bits=16)


@pytest.fixture
def bus() -> Iterator[testing.Bus[AcpiPm]]:
    with testing.bus(AcpiPm()) as bus:
        yield bus


def test_at_first(bus) -> None:
    assert bus.read_u16(STATUS) == bus.read_u16(ENABLE) == 0
    assert bus.read_u16(CONTROL) == 1


def test_a_button(bus) -> None:
    bus.device.press()
    assert not bus.level()
    assert bus.read_u16(STATUS) == POWER_BUTTON
    bus.write_u16(ENABLE, POWER_BUTTON)
    assert bus.level()
    bus.write_u8(STATUS, 0xFF)  # the other half
    assert bus.level()
    bus.write_u16(STATUS, POWER_BUTTON)
    assert not bus.level() and bus.read_u16(STATUS) == 0
    bus.device.press()
    bus.device.press(SLEEP_BUTTON)
    bus.write_u16(STATUS, SLEEP_BUTTON)
    assert bus.level()
    bus.write_u16(ENABLE, 0)
    assert not bus.level()
    with pytest.raises(ValueError, match="button 3"):
        bus.device.press(3)


@pytest.mark.parametrize("kind", [0, 5, 7])
def test_sleep(kind) -> None:
    kinds: list[int] = []
    with testing.bus(AcpiPm(kinds.append)) as bus:
        bus.write_u16(CONTROL, kind << 10)
        assert kinds == []
        bus.write_u16(CONTROL, kind << 10 | SLEEP)
        assert kinds == [kind] and bus.device.slept == kind
        assert bus.read_u16(CONTROL) == kind << 10 | 1
        bus.device.wake()
        assert bus.read_u16(STATUS) == 0x8000
        bus.write_u8(CONTROL, 0xFF)
        assert kinds == [kind]
        bus.write_u8(CONTROL + 1, 6 << 2 | SLEEP >> 8)
        assert kinds == [kind, 6]


def test_reset() -> None:
    called: list[str] = []
    device = AcpiPm(on_reset=lambda: called.append("reset"))
    with testing.bus(device) as bus:
        for value in (0, 2, 0xFF):
            bus.write_u8(RESET, value)
        assert called == []
        bus.write_u8(RESET, 1)
        assert called == ["reset"] and bus.read_u8(RESET) == 0
        # Together with other registers, which are taken as well.
        bus.write_u32(STATUS, POWER_BUTTON << 16)
        bus.write(CONTROL, 3, 1 << 16 | 5 << 10)
        assert called == ["reset"] * 2 and device.slept is None
        assert bus.read_u16(CONTROL) == 5 << 10 | 1
        assert "reset=0x0" in repr(device)


def test_state_is_carried_over(bus) -> None:
    bus.write_u16(ENABLE, POWER_BUTTON)
    bus.device.press()
    state = bus.device.save()
    bus.write_u16(STATUS, POWER_BUTTON)
    bus.device.restore(state)
    assert bus.level()


@pytest.mark.parametrize("seed", range(3))
def test_any_traffic(seed) -> None:
    def check(bus: testing.Bus[AcpiPm]) -> None:
        assert bus.level() == bool(device.status & device.enable)
        device.press()

    device = AcpiPm()
    hammer(device, seed=seed, check=check)
    hammer(PmTimer(lambda: 1 << 70), seed=seed, steps=500)

# SPDX-License-Identifier: Apache-2.0
"""PciHost: configuration mechanism 1, and the reset control register."""

from collections.abc import Iterator

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import PciHost

ADDRESS, RESET, DATA = 0, 1, 4
ENABLE = 1 << 31


@pytest.fixture
def resets() -> list[int]:
    return []


@pytest.fixture(params=[False, True], ids=["empty", "bridge"])
def bus(request, resets) -> Iterator[testing.Bus[PciHost]]:
    device = PciHost(bridge=request.param, on_reset=lambda: resets.append(1))
    with testing.bus(device) as bus:
        yield bus


@pytest.fixture
def bridge() -> Iterator[testing.Bus[PciHost]]:
    with testing.bus(PciHost(bridge=True)) as bus:
        yield bus


def select(
    bus: testing.Bus[PciHost],
    register: int,
    *,
    bus_number: int = 0,
    device: int = 0,
    function: int = 0,
) -> None:
    where = bus_number << 16 | device << 11 | function << 8 | register
    bus.write_u32(ADDRESS, ENABLE | where)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (0x8000_0000, 0x8000_0000),
        (0xFFFF_FFFF, 0x80FF_FFFC),
        (0x0012_3456, 0x0012_3454),
        (0, 0),
    ],
)
def test_the_address_reads_back(bus, written, read) -> None:
    bus.write_u32(ADDRESS, written)
    assert bus.read_u32(ADDRESS) == bus.device.address == read


def test_linux_looks_for_mechanism_1(bus) -> None:
    bus.write_u8(3, 0x01)
    before = bus.read_u32(ADDRESS)
    bus.write_u32(ADDRESS, 0x8000_0000)
    assert bus.read_u32(ADDRESS) == 0x8000_0000
    bus.write_u32(ADDRESS, before)


def test_linux_finds_no_mechanism_2(bus) -> None:
    bus.write_u8(3, 0)
    bus.write_u8(0, 0)
    bus.write_u8(2, 0)
    assert (bus.read_u8(0), bus.read_u8(2)) != (0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("offset", range(8))
def test_parts_are_no_registers(bus, resets, offset, size) -> None:
    """Only a dword at 0 is CONFIG_ADDRESS, only a byte at 1 reset control."""
    if offset + size > 8 or (offset, size) in ((ADDRESS, 4), (RESET, 1)):
        return
    bus.write_u32(ADDRESS, 0x1234)
    bus.write(offset, size, (1 << 8 * size) - 1)
    assert bus.read(offset, size) == (1 << 8 * size) - 1
    assert bus.read_u32(ADDRESS) == 0x1234
    assert bus.read_u8(RESET) == 0 and not resets


@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_function_is_all_ones(bus, size) -> None:
    for number in (0, 1, 255):
        for device in range(32):
            for function in (0, 7):
                if (number, device, function) == (0, 0, 0):
                    continue
                for register in (0x00, 0x0C, 0xFC):
                    select(
                        bus, register, bus_number=number, device=device,
                        function=function,
                    )  # fmt: skip
                    assert bus.read(DATA, size) == (1 << 8 * size) - 1


def test_nothing_without_the_enable_bit(bridge) -> None:
    bridge.write_u32(ADDRESS, 0)
    assert bridge.read_u32(DATA) == 0xFFFF_FFFF
    select(bridge, 0)
    assert bridge.read_u32(DATA) != 0xFFFF_FFFF


def test_the_bridge(bridge) -> None:
    """A function without BARs, interrupts and capabilities."""
    select(bridge, 0x00)
    ids = bridge.read_u32(DATA)
    assert ids & 0xFFFF not in (0, 0xFFFF)
    assert bridge.read_u16(DATA) | bridge.read_u16(DATA + 2) << 16 == ids
    assert [bridge.read_u8(DATA + i) for i in range(4)] == list(
        ids.to_bytes(4, "little")
    )
    select(bridge, 0x08)
    assert bridge.read_u16(DATA + 2) == 0x0600
    for register in (0x04, 0x0C, *range(0x10, 0x100, 4)):
        select(bridge, register)
        bridge.write_u32(DATA, 0xFFFF_FFFF)  # how BARs are sized
        assert bridge.read_u32(DATA) == 0


@pytest.mark.parametrize(
    ("written", "count", "kept"),
    [
        ((0x02, 0x06), 1, 0x02),
        ((0x04,), 1, 0x00),
        ((0x0E,), 1, 0x0A),
        ((0x0A,), 0, 0x0A),
        ((0x06, 0x06), 2, 0x02),
        ((0xF1,), 0, 0x00),
    ],
)
def test_reset_control(bus, resets, written, count, kept) -> None:
    for value in written:
        bus.write_u8(RESET, value)
    assert len(resets) == count
    assert bus.read_u8(RESET) == kept


def test_a_reset_without_a_machine_is_none() -> None:
    with testing.bus(PciHost()) as bus:
        bus.write_u8(RESET, 0x06)
        assert bus.read_u8(RESET) == 0x02


def test_names_in_traces(bus) -> None:
    where = bus.device.where
    assert where(0, 4) == where(2, 1) == where(1, 2) == "config_address"
    assert where(1, 1) == "reset_control"
    assert where(4, 4) == where(7) == "config_data"


def test_state_is_carried_over(bus) -> None:
    select(bus, 0x44)
    bus.write_u8(RESET, 0x0A)
    state = bus.device.save()
    select(bus, 0)
    bus.write_u8(RESET, 0)
    bus.device.restore(state)
    assert bus.read_u32(ADDRESS) == ENABLE | 0x44
    assert bus.read_u8(RESET) == 0x0A
    with pytest.raises(ValueError, match="has no state colour"):
        bus.device.restore({"colour": 1})


@pytest.mark.parametrize("seed", range(3))
def test_any_traffic(seed) -> None:
    device = PciHost(bridge=True, on_reset=lambda: None)

    def check(bus: testing.Bus[PciHost]) -> None:
        assert not device.address & ~0x80FF_FFFC
        assert not device.reset_control & ~0x0A

    hammer(device, seed=seed, check=check)

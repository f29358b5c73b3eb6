# SPDX-License-Identifier: Apache-2.0
"""Devices with several ranges: declared, placed, answered."""

import pytest

import pyvmm
from pyvmm import testing


class Keyboard(pyvmm.Device):
    """Data at one port, command and status at another, a window of memory."""

    size = 1
    irq = pyvmm.Irq()
    control = pyvmm.Range(1, port=0x64)
    window = pyvmm.Range(0x2000)
    data = pyvmm.Reg(0x0, 1, reset=0xAA)
    status = pyvmm.Reg(0x0, 1, access="rw", reset=0x1C, range=control)

    @status.on_write
    def command(self, value):
        self.done = value

    @window.on_read
    def look(self, offset, size):
        return offset

    @window.on_write
    def draw(self, offset, size, value):
        self.drawn = (offset, size, value)


@pytest.fixture
def m():
    with pyvmm.Machine("16M") as machine:
        yield machine


def test_each_range_has_its_registers() -> None:
    with testing.bus(Keyboard()) as bus:
        keyboard = bus.device
        assert bus.read_u8(0) == 0xAA
        assert keyboard.control.read(0, 1) == 0x1C
        keyboard.control.write(0, 1, 0xFE)
        assert (keyboard.done, keyboard.status, keyboard.data) == (
            0xFE, 0xFE, 0xAA,
        )  # fmt: skip
        assert keyboard.window.read(0x1FF0, 4) == 0x1FF0
        keyboard.window.write(8, 2, 5)
        assert keyboard.drawn == (8, 2, 5)
    assert keyboard.save() == {"data": 0xAA, "status": 0xFE}
    assert keyboard.where(0) == "data"
    assert keyboard.control.where(0) == "status"


def test_places(m) -> None:
    keyboard = m.attach(Keyboard(), port=0x60)
    assert (keyboard.base, keyboard.control.base) == (0x60, 0x64)
    assert keyboard.control.is_port and not keyboard.window.is_port
    assert keyboard.window.base == 0xD000_0000
    assert repr(keyboard.window) == (
        "<RangeAt Keyboard.window mmio 0xd0000000+0x2000>"
    )
    other = m.attach(
        Keyboard(), places={"control": 0x70, "window": 0xE000_0000}
    )
    assert (other.base, other.control.base) == (0xD000_2000, 0x70)
    assert other.window.base == 0xE000_0000
    m.detach(keyboard)
    assert keyboard.window.base is None
    assert m.attach(Keyboard(), port=0x60).control.base == 0x64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0x64}, "keyboard.control at port 0x64..0x64 overlaps keybo"),
        ({"places": {"control": 0xF4}}, "overlaps the exit port"),
        ({"places": {"window": 0x10_0000}}, "overlaps RAM"),
        ({"places": {"windw": 1}}, "keyboard has no Range windw"),
        ({"places": {"control": 0x10000}}, "outside"),
        ({"mmio": 0xD000_0000, "places": {"window": 0xCFFF_F000}}, "overlaps"),
    ],
)
def test_places_that_are_refused(m, options, message) -> None:
    keyboard = Keyboard()
    with pytest.raises(ValueError, match=message):
        m.attach(keyboard, **options)
    assert not m.devices and keyboard.window.base is None
    m.attach(keyboard)


def test_ram_does_not_overlap_them(m) -> None:
    m.attach(Keyboard(), places={"window": 0x4000_0000})
    with pytest.raises(ValueError, match="overlaps keyboard"):
        m.add_memory(0x4000_1000, 4096)


def test_without_methods_nothing_is_there() -> None:
    class Empty(pyvmm.Device):
        size = 4
        more = pyvmm.Range(8)

    empty = Empty()
    empty.more.write(0, 4, 1)
    assert empty.more.read(0, 2) == 0xFFFF


def test_ranges_that_are_refused() -> None:
    with pytest.raises(ValueError, match="size 0 of a Range"):
        pyvmm.Range(0)
    with pytest.raises(ValueError, match="not both"):
        pyvmm.Range(1, port=1, mmio=2)
    with pytest.raises(ValueError, match=r"Odd.reg is in a range that"):

        class Odd(pyvmm.Device):
            reg = pyvmm.Reg(0, 4, range=pyvmm.Range(4))

    with pytest.raises(ValueError, match=r"Small.reg, 4 bytes at 0x2, is not"):

        class Small(pyvmm.Device):
            size = 8
            more = pyvmm.Range(4)
            reg = pyvmm.Reg(2, 4, range=more)

# SPDX-License-Identifier: Apache-2.0
"""The place and the lines that a class of devices has of its own."""

from collections.abc import Iterator

import pytest

import pyvmm
from pyvmm import virtio


class Clock(pyvmm.Device):
    size, port = 2, 0x70
    irq = pyvmm.Irq(8)
    more = pyvmm.Range(2, port=0x72)


class Frame(pyvmm.Device):
    size, mmio = 0x1000, 0xE000_0000
    done = pyvmm.Irq(5)
    other = pyvmm.Irq()
    failed = pyvmm.Irq(7)


@pytest.fixture
def m() -> Iterator[pyvmm.Machine]:
    with pyvmm.Machine() as machine:
        yield machine


def place(device: pyvmm.Device) -> tuple[bool, int | None]:
    return device.is_port, device.base


def test_where_it_goes_by_itself(m) -> None:
    clock, frame = m.attach(Clock()), m.attach(Frame())
    assert place(clock) == (True, 0x70) and clock.more.base == 0x72
    assert place(frame) == (False, 0xE000_0000)
    assert clock.irq.line == 8
    lines = (frame.done.line, frame.other.line, frame.failed.line)
    assert lines == (5, 16, 7)


def test_told_otherwise(m) -> None:
    clock = m.attach(Clock(), port=0x170, irq=10, places={"more": 0x74})
    assert place(clock) == (True, 0x170) and clock.more.base == 0x74
    assert clock.irq.line == 10
    by_address = m.attach(Clock(), mmio=0xD800_0000, irq=True)
    assert place(by_address) == (False, 0xD800_0000)
    assert by_address.irq.line == 16
    frame = m.attach(Frame(), mmio=True, irq=9)
    assert place(frame) == (False, 0xD000_0000)
    assert frame.done.line == 9 and frame.failed.line == 7


def test_two_of_a_kind(m) -> None:
    m.attach(Clock(), name="first")
    with pytest.raises(ValueError, match=r"0x70\.\.0x71 overlaps first: port"):
        m.attach(Clock())
    with pytest.raises(ValueError, match="clock: irq 8 is taken by first"):
        m.attach(Clock(), port=0x80, places={"more": 0x82})
    assert len(m.devices) == 1
    m.attach(Clock(), port=0x80, irq=True, places={"more": 0x82})


def test_lines_of_its_own_that_are_taken(m) -> None:
    class Twice(Frame):
        failed = pyvmm.Irq(5)

    with pytest.raises(ValueError, match=r"irq 5 .* another line of twice"):
        m.attach(Twice())
    assert m.devices == []
    with (
        pyvmm.Machine(console_irq=8) as other,
        pytest.raises(ValueError, match=r"irq 8 .* by the console"),
    ):
        other.attach(Clock())


def test_chosen_lines_leave_room(m) -> None:
    """Of one device: those that its class names are not given to others."""

    class Many(pyvmm.Device):
        size = 1
        a, b, c = pyvmm.Irq(), pyvmm.Irq(16), pyvmm.Irq()

    many = m.attach(Many())
    assert (many.a.line, many.b.line, many.c.line) == (17, 16, 18)


def test_a_subclass_moves_it(m) -> None:
    class Second(Clock):
        port = 0x270
        irq = pyvmm.Irq(9)
        more = pyvmm.Range(2, port=0x272)

    class Nowhere(Clock):
        port = None

    second = m.attach(Second())
    assert place(second) == (True, 0x270) and second.irq.line == 9
    assert place(m.attach(Nowhere())) == (False, 0xD000_0000)


def test_other_things_of_that_name(m) -> None:
    class Switch(pyvmm.Device):
        port = pyvmm.Reg(0, 4)

        @property
        def mmio(self) -> int:
            return 0xE000_0000

    assert place(m.attach(Switch())) == (False, 0xD000_0000)

    class Any:
        """No pyvmm.Device: what its `port` is about nobody knows."""

        size, port = 1, 8080

        def read(self, offset, size): ...
        def write(self, offset, size, value): ...

    m.attach(Any())
    assert "any: mmio 0xd0001000..0xd0001000" in repr(m)


def test_a_virtio_device_has_an_address(m) -> None:
    class Fixed(virtio.Device):
        device_id = 63
        mmio = 0xD100_0000

    assert m.attach(Fixed()).base == 0xD100_0000
    with pytest.raises(ValueError, match="overlaps fixed: mmio"):
        m.attach(Fixed())
    assert m.attach(Fixed(), mmio=True).base == 0xD000_0000


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"port": "0x70"}, TypeError, r"Bad\.port is an int, not str"),
        ({"mmio": 1.5}, TypeError, r"Bad\.mmio is an int, not float"),
        ({"port": 1, "mmio": 2}, ValueError, "Bad has both port and mmio"),
        ({"port": 0xFFFF}, ValueError, "port 0xffff .* outside 0..0x10000"),
        ({"port": 0xF4}, ValueError, "overlaps the exit port"),
        ({"mmio": 0x10_0000}, ValueError, "overlaps RAM"),
    ],
)
def test_bad_places(m, attributes, error, message) -> None:
    bad = type("Bad", (pyvmm.Device,), {"size": 4, **attributes})
    with pytest.raises(error, match=message):
        m.attach(bad())


@pytest.mark.parametrize("line", [0, 24, -1])
def test_bad_lines(line) -> None:
    with pytest.raises(ValueError, match=rf"line {line} is outside 1\.\.23"):
        pyvmm.Irq(line)
    with pytest.raises(TypeError, match="line is an int, not str"):
        pyvmm.Irq("8")

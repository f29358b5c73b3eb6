# SPDX-License-Identifier: Apache-2.0
"""testing.bus(): a device without a machine."""

import pytest

import pyvmm
from pyvmm import testing


class Alarm(pyvmm.Device):
    """Interrupts `period` microseconds after `go` is written."""

    size = 0x10
    irq = pyvmm.Irq()
    level = pyvmm.Irq()
    period = pyvmm.Reg(0x0, 4)
    go = pyvmm.Reg(0x4, 4, access="wo")
    fired = pyvmm.Reg(0x8, 4, access="w1c")

    @go.on_write
    def arm(self, value):
        self.after(self.period / 1e6, self.ring)

    def ring(self):
        self.fired = 1
        self.irq.pulse()
        self.level.set()


class Free(pyvmm.Device):
    """Read and written by methods."""

    size = 8
    answer: object = 0

    def read(self, offset, size):
        return self.answer

    def attached(self):
        self.answer = 5


def test_an_alarm_rings() -> None:
    with testing.bus(Alarm()) as bus:
        bus.write_u32(0x0, 250)
        bus.write_u32(0x4, 1)
        bus.advance(249e-6)
        assert bus.read_u32(0x8) == 0 and bus.irqs == []
        bus.advance(1e-6)
        assert bus.read_u32(0x8) == 1
        assert bus.irqs == ["irq", "level"]
        assert bus.level("level") and not bus.level()
        bus.write_u8(0x8, 1)
        assert bus.read(0x8, 1) == 0
        assert bus.now == 250e-6
        assert repr(bus).startswith("<Bus at 0.00025 s, <Alarm mmio 0x0+0x10")


def test_only_a_rise_counts() -> None:
    with testing.bus(Alarm()) as bus:
        line = bus.device.level
        line.set()
        line.set()
        line.clear()
        line.set()
    assert bus.irqs == ["level", "level"]


def test_sizes() -> None:
    with testing.bus(Alarm()) as bus:
        bus.write_u64(0x0, 0x1_0000_0102)
        assert bus.read_u64(0x0) == bus.read_u16(0x0) == 0x0102
        bus.write_u16(0x0, 0x0304)
        assert bus.read_u8(0x1) == 0x03


def test_attached_is_called() -> None:
    with testing.bus(Free()) as bus:
        assert bus.read_u8(0) == 5
        bus.write(0, 4, 1)


@pytest.mark.parametrize("answer", [None, "x", -1, 0x100])
def test_answers_are_checked_as_in_a_machine(answer) -> None:
    with testing.bus(Free()) as bus:
        bus.device.answer = answer
        with pytest.raises(
            (TypeError, ValueError),
            match=r"Free.read\(0x4, 1\) returned .*; an int from 0 to 0xff was",
        ):
            bus.read_u8(4)


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(-1, 4, 0), (0xD, 4, 0), (0x10, 1, 0), (0, 0, 0), (0, 9, 0), (0, 1, 256),
     (0, 1, -1)],
)  # fmt: skip
def test_accesses_that_no_guest_could_make(offset, size, value) -> None:
    with (
        testing.bus(Alarm()) as bus,
        pytest.raises(ValueError, match=r"outside|has not"),
    ):
        bus.write(offset, size, value)


def test_a_device_is_in_one_place() -> None:
    with pyvmm.Machine() as m:
        alarm = m.attach(Alarm())
        with pytest.raises(ValueError, match="attached already"):
            testing.bus(alarm)
    alarm = Alarm()
    with testing.bus(alarm), pytest.raises(ValueError, match="already"):
        testing.bus(alarm)
    with testing.bus(alarm):
        pass
    with pytest.raises(TypeError, match=r"is no pyvmm.Device"):
        testing.bus(object())


def test_afterwards_it_is_free() -> None:
    alarm = Alarm()
    with testing.bus(alarm) as bus:
        timer = alarm.after(1, alarm.ring)
    bus.close()
    assert not timer.pending
    with pytest.raises(ValueError, match="not connected"):
        alarm.irq.pulse()
    with pytest.raises(ValueError, match="Alarm has no clock"):
        alarm.after(1, alarm.ring)
    with pyvmm.Machine() as m:
        assert m.attach(alarm).irq.line == 16


class Sender(pyvmm.Device):
    size = 0x10
    msi = pyvmm.Msi()
    address = pyvmm.Reg(0x0, 8)
    data = pyvmm.Reg(0x8, 4)

    @data.on_write
    def send(self, value):
        self.msi.address, self.msi.data = self.address, value
        self.msi.pulse()


def test_messages() -> None:
    sender = Sender()
    with testing.bus(sender) as bus:
        bus.write_u64(0, 0xFEE0_0000)
        bus.write_u32(8, 0x44)
    assert bus.messages == [(0xFEE0_0000, 0x44)] and bus.irqs == []
    assert repr(sender.msi) == "<Message Sender.msi 0x44 to 0xfee00000>"
    with pytest.raises(ValueError, match=r"Sender.msi is not connected"):
        sender.msi.pulse()
    with (
        pyvmm.Machine(irqchip=False) as m,
        pytest.raises(ValueError, match="sends messages, but"),
    ):
        m.attach(sender)


class Disk(pyvmm.Device):
    """A port for strings."""

    size = 8
    answer: object = None

    def read(self, offset, size):
        return 0x1234

    def read_many(self, offset, size, count):
        return self.answer or bytes([offset]) * (size * count)


def test_strings() -> None:
    with testing.bus(Disk()) as bus:
        assert bus.read_many(0x2, 2, 3) == b"\x02" * 6
        assert bus.read_u16(0x2) == 0x1234
        bus.device.answer = b"abc"
        with pytest.raises(
            TypeError, match=r"read_many\(0x0, 1, 2\) returned 3"
        ):
            bus.read_many(0x0, 1, 2)
        with pytest.raises(ValueError, match="2 bytes at 0x7 are outside"):
            bus.read_many(0x7, 2, 1)


def test_strings_element_by_element() -> None:
    class Plain(pyvmm.Device):
        size = 4

        def read(self, offset, size):
            return 0x102

    with testing.bus(Plain()) as bus:
        assert bus.read_many(0x0, 2, 2) == b"\x02\x01\x02\x01"

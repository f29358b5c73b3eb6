# SPDX-License-Identifier: Apache-2.0
"""The 16550A, against its data sheet."""

from collections.abc import Iterator

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import Serial
from pyvmm.devices.serial import (
    BI,
    CTS,
    DCD,
    DLAB,
    DLL,
    DLM,
    DR,
    DSR,
    DTR,
    FCR,
    FIFO_ERROR,
    IER,
    IIR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    OE,
    OUT1,
    OUT2,
    RBR,
    RI,
    RTS,
    SCR,
    TEMT,
    THR,
    THRE,
)

EMPTY = THRE | TEMT
FIFOS = 0xC0


@pytest.fixture
def bus() -> Iterator[testing.Bus[Serial]]:
    with testing.bus(Serial()) as bus:
        yield bus


def feed(bus: testing.Bus[Serial], data: bytes) -> None:
    for byte in data:
        bus.write_u8(THR, byte)


def drain(bus: testing.Bus[Serial]) -> bytes:
    data = bytearray()
    while bus.read_u8(LSR) & DR:
        data.append(bus.read_u8(RBR))
    return bytes(data)


def test_at_first(bus) -> None:
    assert [bus.read_u8(i) for i in range(8)] == [
        0,
        0,
        1,
        0,
        0,
        EMPTY,
        CTS | DSR | DCD,
        0,
    ]
    assert bus.irqs == []


def test_output_is_kept_and_handed_on() -> None:
    heard: list[bytes] = []
    with testing.bus(Serial(heard.append, keep=4)) as bus:
        feed(bus, b"abcdef")
        assert bus.read_u8(LSR) == EMPTY
    assert heard == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert bus.device.output == b"cdef" and bus.device.text == "cdef"


def test_an_echo_may_answer() -> None:
    serial = Serial(lambda data: serial.send(data.upper()))
    with testing.bus(serial) as bus:
        feed(bus, b"abc")
        assert drain(bus) == b"ABC"


def test_divisor_and_scratch(bus) -> None:
    bus.write_u8(IER, 0x0F)
    bus.write_u8(LCR, DLAB | 3)
    bus.write_u16(DLL, 0x0180)
    assert bus.read_u8(DLL) == 0x80 and bus.read_u8(DLM) == 1
    assert bus.device.baud == 300
    bus.write_u8(LCR, 3)
    assert bus.read_u8(IER) == 0x0F
    assert bus.device.output == b""
    bus.write_u8(SCR, 0x5A)
    assert bus.read_u8(SCR) == 0x5A


def test_bits_that_are_not_there(bus) -> None:
    for offset, bits in ((IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F)):
        bus.write_u8(offset, 0xFF)
        assert bus.read_u8(offset) == bits
    bus.write_u8(LSR, 0xFF)
    assert bus.read_u8(LSR) == EMPTY


def test_without_fifos_there_is_one_byte(bus) -> None:
    bus.write_u8(IER, 0x01)
    bus.device.send("ab")
    assert bus.read_u8(IIR) == 0x04 and bus.level()
    assert bus.read_u8(RBR) == ord("a")
    assert bus.read_u8(RBR) == ord("b")
    assert bus.read_u8(IIR) == 0x01 and not bus.level()
    assert bus.read_u8(RBR) == 0


def test_overrun_without_fifos_keeps_the_new(bus) -> None:
    bus.write_u8(IER, 0x04)
    bus.device.send(b"ab", wait=False)
    assert bus.read_u8(IIR) == 0x06 and bus.level()
    assert bus.read_u8(LSR) == EMPTY | DR | OE
    assert not bus.level()
    assert drain(bus) == b"b"


def test_overrun_with_fifos_keeps_the_old(bus) -> None:
    bus.write_u8(FCR, 0x01)
    bus.device.send(bytes(range(20)), wait=False)
    assert bus.read_u8(LSR) & OE
    assert not bus.read_u8(LSR) & OE
    assert drain(bus) == bytes(range(16))


def test_what_waits_is_not_lost(bus) -> None:
    bus.write_u8(FCR, 0x01)
    bus.device.send(bytes(range(100)))
    assert bus.device.waiting == 100
    assert drain(bus) == bytes(range(100))
    assert bus.device.waiting == 0


@pytest.mark.parametrize(("bits", "level"), enumerate((1, 4, 8, 14)))
def test_trigger_levels(bus, bits, level) -> None:
    bus.write_u8(FCR, bits << 6 | 1)
    bus.write_u8(IER, 0x01)
    bus.device.send(bytes(level - 1))
    assert bus.read_u8(IIR) == FIFOS | 1 and not bus.level()
    bus.device.send(b"x")
    assert bus.read_u8(IIR) == FIFOS | 4 and bus.level()
    bus.read_u8(RBR)
    assert bus.read_u8(IIR) == FIFOS | 1 and not bus.level()


def test_time_out(bus) -> None:
    """Four characters of 10 bits at 9600 baud: 4.17 ms."""
    bus.write_u8(LCR, DLAB)
    bus.write_u16(DLL, 12)
    bus.write_u8(LCR, 3)
    bus.write_u8(FCR, 0xC1)
    bus.write_u8(IER, 0x01)
    bus.device.send("abc")
    bus.advance(4.1e-3)
    assert not bus.level()
    bus.device.send("d")  # begins it again
    bus.advance(4.1e-3)
    assert not bus.level()
    bus.advance(0.1e-3)
    assert bus.read_u8(IIR) == FIFOS | 0x0C and bus.level()
    assert bus.read_u8(RBR) == ord("a")
    assert not bus.level()
    bus.advance(4.2e-3)
    assert bus.read_u8(IIR) == FIFOS | 0x0C
    assert drain(bus) == b"bcd"
    assert not bus.level()
    bus.advance(1)
    assert bus.irqs == ["irq", "irq"]


def test_time_out_of_what_was_there_before(bus) -> None:
    bus.write_u8(FCR, 0x81)
    bus.device.send("a")
    bus.advance(1)
    bus.write_u8(IER, 0x01)
    bus.advance(1)
    assert bus.read_u8(IIR) == FIFOS | 0x0C


def test_transmitter_empty(bus) -> None:
    bus.write_u8(IER, 0x02)
    assert bus.level() and bus.read_u8(IIR) == 0x02
    assert not bus.level() and bus.read_u8(IIR) == 0x01
    feed(bus, b"a")
    assert bus.level() and bus.read_u8(IIR) == 0x02
    assert not bus.level()
    bus.write_u8(IER, 0x00)
    bus.write_u8(IER, 0x02)
    assert bus.level()


def test_priorities(bus) -> None:
    """Each goes by what the data sheet says, and the next is seen."""
    bus.write_u8(IER, 0x0F)
    bus.device.modem(cts=False)
    bus.device.send(b"ab", wait=False)
    assert bus.read_u8(IIR) == 0x06
    bus.read_u8(LSR)
    assert bus.read_u8(IIR) == 0x04
    bus.read_u8(RBR)
    assert bus.read_u8(IIR) == 0x02
    assert bus.read_u8(IIR) == 0x00 and bus.level()
    assert bus.read_u8(MSR) == DSR | DCD | 1
    assert bus.read_u8(IIR) == 0x01 and not bus.level()
    assert bus.irqs == ["irq"]


def test_break(bus) -> None:
    bus.write_u8(FCR, 0x01)
    bus.device.send("a")
    bus.device.send_break()
    # It is told when it is the first, and that there is one from the start.
    assert bus.read_u8(LSR) == EMPTY | DR | FIFO_ERROR
    assert bus.read_u8(RBR) == ord("a")
    assert bus.read_u8(LSR) == EMPTY | DR | BI | FIFO_ERROR
    assert bus.read_u8(LSR) == EMPTY | DR
    assert bus.read_u8(RBR) == 0


def test_fifo_control(bus) -> None:
    bus.write_u8(FCR, 0xC0)  # not taken without the first bit
    assert bus.read_u8(IIR) == 1
    bus.write_u8(FCR, 0x01)
    bus.device.send("abc", wait=False)
    bus.write_u8(FCR, 0x05)  # the transmitter's alone
    assert bus.read_u8(LSR) & DR
    bus.write_u8(FCR, 0x03)
    assert bus.read_u8(LSR) == EMPTY
    bus.device.send("abc", wait=False)
    bus.write_u8(FCR, 0x00)  # a change clears both
    assert bus.read_u8(LSR) == EMPTY


def test_what_waits_outlives_a_clear(bus) -> None:
    bus.device.send(bytes(range(20)))
    bus.write_u8(FCR, 0x01)
    bus.write_u8(FCR, 0x03)
    bus.write_u8(MCR, LOOP)
    bus.write_u8(FCR, 0x03)
    assert bus.read_u8(LSR) == EMPTY
    bus.write_u8(MCR, 0)
    assert drain(bus) == bytes(range(20))


def test_loopback(bus) -> None:
    bus.write_u8(MCR, LOOP)
    bus.write_u8(FCR, 0x01)
    bus.read_u8(MSR)
    feed(bus, b"abc")
    bus.device.send("wait")
    bus.device.send("gone", wait=False)
    assert bus.device.output == b""
    assert drain(bus) == b"abc"
    bus.write_u8(MCR, 0)
    assert drain(bus) == b"wait"


@pytest.mark.parametrize(
    ("out", "into"), [(RTS, CTS), (DTR, DSR), (OUT1, RI), (OUT2, DCD)]
)
def test_loopback_of_modem_lines(bus, out, into) -> None:
    bus.write_u8(MCR, LOOP)
    bus.read_u8(MSR)
    assert bus.read_u8(MSR) == 0
    bus.write_u8(MCR, LOOP | out)
    # The end of a ring counts, not its beginning.
    assert bus.read_u8(MSR) == into | (into >> 4 if into != RI else 0)
    bus.write_u8(MCR, LOOP)
    assert bus.read_u8(MSR) == into >> 4
    assert not bus.device.rts and not bus.device.dtr


def test_modem_lines(bus) -> None:
    bus.write_u8(IER, 0x08)
    bus.write_u8(MCR, DTR | RTS)
    assert bus.device.dtr and bus.device.rts
    bus.device.modem(ri=True)
    assert not bus.level()
    bus.device.modem(ri=False, dcd=False)
    assert bus.level()
    assert bus.read_u8(MSR) == CTS | DSR | 0x0C
    assert not bus.level()


def test_before_it_is_attached() -> None:
    serial = Serial()
    serial.send("early")
    serial.write(IER, 1, 1)
    with testing.bus(serial) as bus:
        assert bus.level()
        assert drain(bus) == b"early"
    serial.send("late")
    with testing.bus(serial) as bus:
        assert bus.level()


def test_state_is_carried_over(bus) -> None:
    bus.write_u8(FCR, 0xC1)
    bus.write_u8(IER, 0x01)
    bus.device.send(bytes(range(30)))
    state = bus.device.save()
    drain(bus)
    bus.device.restore(state)
    assert bus.level()
    assert bus.device.save() == state
    assert drain(bus) == bytes(range(30))
    with pytest.raises(ValueError, match="no state colour"):
        bus.device.restore({"colour": 1})


def test_names_for_traces() -> None:
    assert Serial().where(LSR) == "lsr"
    assert Serial().where(0, 2) == "rbr/thr..ier"


@pytest.mark.parametrize("seed", range(4))
def test_any_traffic(seed) -> None:
    """The line is always what IIR says, and nothing grows without end."""
    serial = Serial(keep=100)

    def check(bus: testing.Bus[Serial]) -> None:
        assert bus.level() == (serial._cause() != 1)
        assert len(serial._fifo) <= 16
        if len(serial._waiting) < 50:
            serial.send(b"12345")
            serial.send(b"6789", wait=False)
            serial.send_break()

    hammer(serial, seed=seed, check=check)
    assert len(serial.output) <= 100

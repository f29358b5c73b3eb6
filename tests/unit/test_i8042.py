# SPDX-License-Identifier: Apache-2.0
"""The keyboard controller and its keyboard."""

from collections.abc import Iterator

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import I8042

FULL = 0x01


@pytest.fixture
def bus() -> Iterator[testing.Bus[I8042]]:
    with testing.bus(I8042()) as bus:
        yield bus


def command(bus: testing.Bus[I8042], value: int, *data: int) -> None:
    bus.device.control.write(0, 1, value)
    for byte in data:
        bus.write_u8(0, byte)


def status(bus: testing.Bus[I8042]) -> int:
    return bus.device.control.read(0, 1)


def drain(bus: testing.Bus[I8042]) -> bytes:
    data = bytearray()
    while status(bus) & FULL:
        data.append(bus.read_u8(0))
    return bytes(data)


@pytest.mark.parametrize(
    ("value", "answer"),
    [(0xAA, 0x55), (0xAB, 0x00), (0x20, 0x65), (0xC0, 0x80), (0xD0, 0x03)],
)
def test_answers_of_the_controller(bus, value, answer) -> None:
    assert not status(bus) & FULL
    command(bus, value)
    assert status(bus) & (FULL | 0x08) == FULL | 0x08
    assert bus.irqs == ["irq"]
    assert drain(bus) == bytes([answer])
    assert not bus.level()
    assert bus.read_u8(0) == answer  # it stays


def test_ram(bus) -> None:
    command(bus, 0x60, 0x44)
    command(bus, 0x7F, 0x99)
    command(bus, 0x20)
    assert not bus.level()  # off by the command byte
    assert drain(bus) == b"\x44"
    command(bus, 0x3F)
    assert drain(bus) == b"\x99"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\xff", b"\xfa\xaa"),
        (b"\xf2", b"\xfa\xab\x41"),
        (b"\xee", b"\xee"),
        (b"\x55", b"\xfe"),
        (b"\xf4", b"\xfa"),
    ],
)
def test_answers_of_the_keyboard(bus, sent, answer) -> None:
    for byte in sent:
        bus.write_u8(0, byte)
    assert drain(bus) == answer
    assert len(bus.irqs) == len(answer)


def test_commands_with_a_parameter(bus) -> None:
    for byte, parameter, answer in (
        (0xED, 0x07, b"\xfa"),
        (0xF3, 0x00, b"\xfa"),
        (0xF0, 0x00, b"\xfa\x02"),
        (0xF0, 0x01, b"\xfa"),
    ):
        bus.write_u8(0, byte)
        assert drain(bus) == b"\xfa"
        bus.write_u8(0, parameter)
        assert drain(bus) == answer
    # Another command instead of the parameter is that command.
    bus.write_u8(0, 0xED)
    bus.write_u8(0, 0xF2)
    assert drain(bus) == b"\xfa\xab\x41"


def test_without_translation(bus) -> None:
    command(bus, 0x60, 0x25)
    bus.write_u8(0, 0xF2)
    assert drain(bus) == b"\xfa\xab\x83"


def test_keys(bus) -> None:
    bus.device.send(b"\x1e\x9e")
    assert bus.level() and bus.irqs == ["irq"]
    assert bus.read_u8(0) == 0x1E
    assert bus.level() and bus.irqs == ["irq", "irq"]
    assert bus.read_u8(0) == 0x9E
    assert not bus.level() and not bus.device.waiting


def test_keys_wait_while_the_keyboard_is_off(bus) -> None:
    command(bus, 0xAD)
    bus.device.send(b"\x1e")
    assert not status(bus) & FULL and not bus.level()
    command(bus, 0x20)  # the controller answers all the same
    assert drain(bus) == b"\x75"
    command(bus, 0xAE)
    assert drain(bus) == b"\x1e"
    bus.write_u8(0, 0xF5)
    bus.device.send(b"\x1f")
    assert drain(bus) == b"\xfa"
    bus.write_u8(0, 0xF4)
    assert drain(bus) == b"\xfa\x1f"


def test_answers_come_before_keys(bus) -> None:
    bus.device.send(b"\x1e")
    command(bus, 0xAA)
    assert drain(bus) == b"\x55\x1e"


def test_echo(bus) -> None:
    command(bus, 0xD2, 0x42)
    assert drain(bus) == b"\x42"


def test_no_mouse(bus) -> None:
    command(bus, 0xD4, 0xFF)
    command(bus, 0xD3, 0x5A)
    command(bus, 0xA9)
    assert not status(bus) & FULL


@pytest.mark.parametrize(
    ("value", "data", "resets"),
    [
        (0xFE, (), 1),
        (0xF0, (), 1),
        (0xFF, (), 0),
        (0xD1, (0x02,), 1),
        (0xD1, (0x03,), 0),
        (0x64, (), 0),
    ],
)
def test_reset(value, data, resets) -> None:
    called: list[int] = []
    with testing.bus(I8042(lambda: called.append(1))) as bus:
        command(bus, value, *data)
    assert len(called) == bus.device.resets == resets


def test_state_is_carried_over(bus) -> None:
    bus.device.send(b"\x1e\x9e")
    bus.write_u8(0, 0xED)
    state = bus.device.save()
    drain(bus)
    command(bus, 0x60, 0x00)
    bus.device.restore(state)
    assert bus.device.save() == state
    assert bus.level() and drain(bus) == b"\xfa\x1e\x9e"
    for wrong in ({"ram": b""}, {"colour": 1}):
        with pytest.raises(ValueError):
            bus.device.restore(wrong)


@pytest.mark.parametrize("seed", range(3))
def test_any_traffic(seed) -> None:
    """The line is what there is to read, and nothing grows without end."""
    device = I8042()

    def check(bus: testing.Bus[I8042]) -> None:
        on = device._ram[0] & 1
        assert bus.level() == bool(on and status(bus) & FULL)
        assert len(device._answers) <= 1 and len(device._replies) <= 3
        if device.waiting < 5:
            device.send(b"\x1e\x9e")

    hammer(device, device.control, seed=seed, check=check)

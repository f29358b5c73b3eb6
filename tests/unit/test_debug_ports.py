# SPDX-License-Identifier: Apache-2.0
"""DebugExit and DebugConsole."""

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import DebugConsole, DebugExit


@pytest.mark.parametrize(
    ("size", "value", "status"),
    [(1, 0, 1), (1, 0xFF, 0x1FF), (4, 0xFFFF_FFFF, 0xFFFF_FFFF)],
)
def test_status(size, value, status) -> None:
    with testing.bus(DebugExit()) as bus:
        assert bus.read(0, size) == 0
        assert bus.device.status is None
        bus.write(0, size, value)
        assert bus.device.status == status


def test_output() -> None:
    heard: list[bytes] = []
    with testing.bus(DebugConsole(heard.append, keep=3)) as bus:
        for byte in b"abcd\xff":
            bus.write_u8(0, byte)
        assert bus.read_u8(0) == 0xE9
    assert b"".join(heard) == b"abcd\xff"
    assert bus.device.output == b"cd\xff" and bus.device.text == "cd\ufffd"


def test_any_traffic() -> None:
    hammer(DebugExit())
    console = DebugConsole(keep=10)
    hammer(console)
    assert len(console.output) == 10

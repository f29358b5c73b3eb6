# SPDX-License-Identifier: Apache-2.0
"""Doorbells without a machine: the write makes the call."""

import pydoc

import pytest

import pyvmm
from pyvmm import Doorbell, testing


class Ring(pyvmm.Device):
    """Two doorbells at one place, one alone, one in another range."""

    size = 0x40
    far = pyvmm.Range(8, mmio=0xE000_0000)
    data = pyvmm.Reg(0x0, 4, posted=10)
    arg = pyvmm.Reg(0x4, 4)
    go = Doorbell(0x20, 4, match=1, doc="start")
    stop = Doorbell(0x20, 4, match=2)
    any = Doorbell(0x28, 2)
    away = Doorbell(0x4, 4, range=far)
    near = pyvmm.Reg(0x0, 4, range=far)

    def __init__(self) -> None:
        self.log: list[object] = []

    @data.on_writes
    def got(self, values):
        self.log += values

    @go.on_ring
    def on_go(self):
        self.log.append(("go", self.arg))

    @stop.on_ring
    def on_stop(self):
        self.log.append("stop")

    @any.on_ring
    def on_any(self):
        self.log.append("any")

    @away.on_ring
    def on_away(self):
        self.log.append("away")


@pytest.fixture
def bus():
    with testing.bus(Ring()) as bus:
        yield bus


def test_writes_ring(bus) -> None:
    bus.write_u32(0x4, 7)
    for value in (1, 2, 3, 0, 1):
        bus.write_u32(0x20, value)
    bus.write_u16(0x28, 0)
    bus.device.far.write(0x4, 4, 9)
    assert bus.device.log == [("go", 7), "stop", ("go", 7), "any", "away"]


def test_they_read_nothing_and_keep_nothing(bus) -> None:
    bus.write_u32(0x20, 1)
    assert bus.read_u32(0x20) == 0
    assert bus.device.save() == {"data": 0, "arg": 0, "near": 0}
    assert "go" not in repr(bus.device)


def test_what_is_posted_comes_first(bus) -> None:
    bus.write_u32(0x0, 5)
    bus.write_u32(0x0, 6)
    bus.write_u32(0x20, 2)
    bus.write_u32(0x0, 7)
    assert bus.device.log == [5, 6, "stop"]


def test_writes_of_other_sizes(bus) -> None:
    """As those to registers: bytes that are not written are 0."""
    bus.write_u8(0x20, 1)
    bus.write_u8(0x21, 1)
    bus.write_u64(0x20, 2)
    bus.write_u8(0x29, 1)
    assert bus.device.log == [("go", 0), "stop", "any"]


def test_names(bus) -> None:
    assert bus.device.where(0x20, 4) == "go/stop"
    assert bus.device.where(0x29, 1) == "any+1"
    assert bus.device.far.where(0x0, 8) == "near..away"
    assert repr(Ring.go) == (
        "<Doorbell go: 0x20, 4 bytes, a doorbell, written 0x1: start.>"
    )
    assert "0x20, 4 bytes, a doorbell, written 0x1: start." in pydoc.plain(
        pydoc.render_doc(Ring)
    )


def test_a_subclass_overrides_the_method() -> None:
    class Louder(Ring):
        def on_stop(self):
            super().on_stop()
            self.log.append("loud")

    with testing.bus(Louder()) as bus:
        bus.write_u32(0x20, 2)
    assert bus.device.log == ["stop", "loud"]


def test_no_register_is_needed() -> None:
    class Only(pyvmm.Device):
        bell = Doorbell(0x4, 4)
        rung = 0

        @bell.on_ring
        def ring(self):
            self.rung += 1

    with testing.bus(Only()) as bus:
        bus.write_u32(0x4, 0)
        assert bus.device.size == 8 and bus.device.rung == 1
        assert repr(bus.device) == "<Only mmio 0x0+0x8>"


def declare(**body) -> type:
    def rung(self): ...

    for value in list(body.values()):
        if isinstance(value, Doorbell) and value._ring is None:
            value.on_ring(rung)
    return type("Thing", (pyvmm.Device,), body)


one = Doorbell


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Doorbell(-1, 4), "offset -1 is not 0 or more"),
        (lambda: Doorbell(0, 3), "at 0x0 has width 3, not 1, 2, 4 or 8"),
        (lambda: Doorbell(4, 1, match=256), "match 256 is outside 0..0xff"),
        (lambda: Doorbell(4, 1, match="x"), "match 'x' is outside"),
        (
            lambda: declare(a=Doorbell(0, 4), b=Doorbell(0, 4, match=1)),
            "of the doorbells at 0x0 each needs a match",
        ),
        (
            lambda: declare(a=one(0, 4, match=1), b=one(0, 4, match=1)),
            "Thing.b has the match of another doorbell",
        ),
        (
            lambda: declare(a=one(0, 4, match=1), b=one(0, 2, match=2)),
            "Thing.b at 0x0 is not as wide as a",
        ),
        (
            lambda: declare(a=Doorbell(0, 4), b=pyvmm.Reg(2, 2)),
            "Thing.b at 0x2 overlaps a",
        ),
        (
            lambda: declare(size=4, a=Doorbell(2, 4)),
            "Thing.a, 4 bytes at 0x2, is not within size 0x4",
        ),
        (
            lambda: declare(a=Doorbell(0, 4, range=Ring.far)),
            "Thing.a is in a range that the class does not have",
        ),
        (
            lambda: declare(**dict.fromkeys("ab", Doorbell(0, 4))),
            "Thing.b is a already",
        ),
        (
            lambda: type("Thing", (pyvmm.Device,), {"a": Doorbell(0, 4)}),
            "Thing.a needs an on_ring method",
        ),
    ],
)
def test_declarations_that_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_methods_that_are_refused() -> None:
    bell = Doorbell(0, 4)
    bell.on_ring(print)
    with pytest.raises(TypeError, match="has an on_ring already"):
        bell.on_ring(print)

    async def later(self): ...

    bell = Doorbell(0, 4)
    bell.on_ring(later)
    with pytest.raises(TypeError, match=r"Thing.a: its on_ring cannot be as"):
        declare(a=bell)

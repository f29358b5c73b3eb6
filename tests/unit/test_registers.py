# SPDX-License-Identifier: Apache-2.0
"""Declared registers: what the guest sees, what the device sees, refusals."""

import functools
import pydoc
import random

import pytest

import pyvmm
from pyvmm.registers import WIDTHS, Reg


class Alarm(pyvmm.Device):
    """Interrupts `period` microseconds after `go` is written."""

    size = 0x10
    irq = pyvmm.Irq()
    period = pyvmm.Reg(0x0, 4, doc="microseconds")
    go = pyvmm.Reg(0x4, 4, access="wo")
    fired = pyvmm.Reg(0x8, 4, access="w1c")

    @go.on_write
    def arm(self, value):
        self.armed = value

    def ring(self):
        self.fired = 1


class Bits(pyvmm.Device):
    """All kinds in one register; one that is computed."""

    size = 0x40
    mixed = pyvmm.Reg(
        0x10, 4, reset=0x44332211, access="rw", ro=0xFF, w1c=0xFF00, wo=0xFF0000
    )
    few = pyvmm.Reg(0x14, 2, mask=0x0F0F)
    time = pyvmm.Reg(0x18, 8, access="ro")
    byte = pyvmm.Reg(0x21, 1, reset=7)

    def __init__(self) -> None:
        self.reads = 0
        self.written: list[tuple[str, int]] = []

    @time.on_read
    def look(self):
        self.reads += 1
        return 0x8877665544332211

    @few.on_write
    def few_written(self, value):
        self.written.append(("few", value))

    @mixed.on_write
    def mixed_written(self, value):
        self.written.append(("mixed", value))


def test_values_are_ints_on_the_device() -> None:
    alarm = Alarm()
    assert (alarm.period, alarm.go, alarm.fired) == (0, 0, 0)
    alarm.write(0x0, 4, 250)
    assert alarm.period == 250 and alarm.read(0x0, 4) == 250
    alarm.period += 1
    assert alarm.read(0x0, 4) == 251
    assert Alarm().period == 0


def test_write_only() -> None:
    alarm = Alarm()
    alarm.write(0x4, 4, 9)
    assert (alarm.armed, alarm.go, alarm.read(0x4, 4)) == (9, 9, 0)


def test_write_1_to_clear() -> None:
    alarm = Alarm()
    alarm.fired = 0b1110
    alarm.write(0x8, 4, 0b0110)
    assert alarm.fired == alarm.read(0x8, 4) == 0b1000
    alarm.write(0x8, 4, 0)
    assert alarm.fired == 0b1000


def test_read_only() -> None:
    class Id(pyvmm.Device):
        magic = pyvmm.Reg(0x0, 4, access="ro", reset=0x74726976)

    device = Id()
    device.write(0x0, 4, 0)
    device.write(0x1, 1, 0xFF)
    assert device.read(0x0, 4) == device.magic == 0x74726976


def test_bits_of_different_kinds() -> None:
    bits = Bits()
    assert bits.read(0x10, 4) == 0x44002211
    bits.write(0x10, 4, 0xAABB01CC)
    # ro kept, bit 0 of w1c was 0, wo stored and not seen, rw set.
    assert bits.mixed == 0xAABB2211
    assert bits.read(0x10, 4) == 0xAA002211
    assert bits.written == [("mixed", 0xAABB0100)]
    bits.write(0x10, 4, 0x2200)
    assert bits.mixed == 0x11


def test_bits_that_are_not_there() -> None:
    bits = Bits()
    bits.write(0x14, 2, 0xFFFF)
    assert bits.few == bits.read(0x14, 2) == 0x0F0F
    assert bits.written == [("few", 0x0F0F)]
    with pytest.raises(ValueError, match=r"Bits.few = 0x10 has bits outside"):
        bits.few = 0x10


def test_narrow_accesses() -> None:
    bits = Bits()
    assert [bits.read(0x10 + i, 1) for i in range(4)] == [0x11, 0x22, 0, 0x44]
    assert bits.read(0x11, 2) == 0x0022
    # rw bits that are not written keep; w1c and wo bits get zeros.
    bits.mixed = 0x44332211
    bits.write(0x13, 1, 0x55)
    assert bits.mixed == 0x55002211
    assert bits.written == [("mixed", 0x55000000)]
    bits.write(0x11, 1, 0x20)
    assert bits.mixed == 0x55000211
    bits.write(0x10, 1, 0xFF)
    assert bits.mixed == 0x55000211


def test_wide_accesses_and_gaps() -> None:
    bits = Bits()
    bits.few = 0x0102
    assert bits.read(0x10, 8) == 0x00000102_44002211
    assert bits.read(0x20, 4) == 0x00000700
    assert bits.read(0x1C, 8) == 0x0000070088776655
    assert bits.reads == 1
    bits.write(0x12, 4, 0x0F0E_6655)
    assert bits.written == [("mixed", 0x66550000), ("few", 0x0F0E)]
    assert (bits.mixed, bits.few) == (0x66552211, 0x0F0E)
    for offset, size in ((0x0, 8), (0x16, 2), (0x30, 4), (0x22, 1)):
        bits.write(offset, size, (1 << 8 * size) - 1)
        assert bits.read(offset, size) == 0


def test_any_mix_of_accesses_is_memory() -> None:
    """Registers without rules are what bytes of memory would be."""
    rng = random.Random(1)
    for _ in range(30):
        offset, body = 0, {"size": 0x40}
        while offset < 0x38:
            width = rng.choice(WIDTHS)
            body[f"r{offset}"] = Reg(offset, width)
            offset += width
        device = type("Plain", (pyvmm.Device,), body)()
        memory = bytearray(offset)
        for _ in range(200):
            size = rng.choice(range(1, 9))
            at = rng.randrange(0, len(memory) - size + 1)
            value = rng.randrange(1 << 8 * size)
            if rng.random() < 0.5:
                device.write(at, size, value)
                memory[at : at + size] = value.to_bytes(size, "little")
            read = device.read(at, size)
            assert read == int.from_bytes(memory[at : at + size], "little")


def test_answers_of_methods_are_checked() -> None:
    class Odd(pyvmm.Device):
        reg = pyvmm.Reg(0x0, 2)
        answer: object = 0

        @reg.on_read
        def look(self):
            return self.answer

    odd = Odd()
    odd.answer = None
    with pytest.raises(
        TypeError, match=r"Odd.reg, 2 bytes at 0x0, was read as None"
    ):
        odd.read(0x0, 1)
    odd.answer = 0x10000
    with pytest.raises(ValueError, match="0 to 0xffff was due"):
        odd.read(0x1, 1)


def test_assignments_are_checked() -> None:
    alarm = Alarm()
    for value in (-1, 1 << 32):
        with pytest.raises(ValueError, match=r"Alarm.period = -?0x"):
            alarm.period = value
    with pytest.raises(TypeError, match=r"Alarm.period = 'x': an int was due"):
        alarm.period = "x"
    assert alarm.period == 0
    alarm.period = True
    assert type(alarm.read(0x0, 4)) is int


def test_subclasses() -> None:
    class Louder(Alarm):
        size = 0x20
        extra = pyvmm.Reg(0x10, 1)
        fired = pyvmm.Reg(0x8, 4, access="ro", reset=1)

        def arm(self, value):
            super().arm(value * 2)

    louder = Louder()
    louder.write(0x4, 4, 2)
    louder.write(0x10, 1, 5)
    louder.write(0x8, 4, 1)
    assert (louder.armed, louder.extra, louder.fired) == (4, 5, 1)
    assert not hasattr(Alarm(), "extra")
    assert Alarm().read(0x10, 1) == 0


def test_a_register_may_be_dropped() -> None:
    class Less(Alarm):
        go = None

    less = Less()
    less.write(0x4, 4, 1)
    assert less.read(0x4, 4) == 0 and not hasattr(less, "armed")


def test_no_register_is_left() -> None:
    class One(pyvmm.Device):
        reg = pyvmm.Reg(0x0, 4)

    class Plain(One):
        reg = 5

    assert Plain().read(0x0, 2) == 0xFFFF
    assert "reg" not in repr(Plain())


def test_own_methods_may_ask_for_the_registers() -> None:
    class Loud(Alarm):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def read(self, offset, size):
            self.seen.append(offset)
            return super().read(offset, size)

    class Base(pyvmm.Device):
        reg = pyvmm.Reg(0x0, 4, reset=3)

        def read(self, offset, size):
            return super().read(offset, size) + 1

    loud = Loud()
    loud.write(0x0, 4, 6)
    assert (loud.read(0x0, 4), loud.seen) == (6, [0])
    assert Base().read(0x0, 4) == 4


def test_mixins() -> None:
    class Identified:
        magic = pyvmm.Reg(0x0, 4, access="ro", reset=7)

    class Thing(Identified, pyvmm.Device):
        pass

    assert Thing().read(0x0, 4) == 7
    assert Thing.size == 4


def test_the_size_may_be_left_out() -> None:
    class Small(pyvmm.Device):
        a = pyvmm.Reg(0x0, 1)
        b = pyvmm.Reg(0x6, 2)

    assert Small.size == 8


def test_devices_take_no_odd_arguments() -> None:
    with pytest.raises(TypeError, match=r"Alarm\(\) takes no arguments"):
        Alarm(5)


def loudly(method):
    @functools.wraps(method)
    def call(*args):
        return method(*args)

    return call


class Edges(pyvmm.Device):
    """Methods that want the value before, however they are written."""

    size = 0x20
    ctrl = pyvmm.Reg(0x0, 4, reset=0x10)
    mixed = pyvmm.Reg(0x4, 4, mask=0xFFFF, ro=0xF, w1c=0xF0, reset=0xFFFF)
    wrapped = pyvmm.Reg(0x8, 4)
    optional = pyvmm.Reg(0xC, 4)
    plain = pyvmm.Reg(0x10, 4)

    def __init__(self) -> None:
        self.log: list[tuple[int, ...]] = []

    @ctrl.on_write
    def ctrl_written(self, value, old):
        self.log.append((value, old, self.ctrl))

    @mixed.on_write
    def mixed_written(self, value, old):
        self.log.append((value, old, self.mixed))

    @wrapped.on_write
    @loudly
    def wrapped_written(self, value, old):
        self.log.append((value, old))

    @optional.on_write
    def optional_written(self, value, old=None):
        self.log.append((value, old))

    @plain.on_write
    def plain_written(self, *args):
        self.log.append(args)


def test_methods_may_want_the_old_value() -> None:
    device = Edges()
    device.write(0x0, 4, 0x30)
    device.write(0x0, 1, 0x31)
    device.write(0x4, 4, 0xABCD0035)
    device.write(0x8, 4, 1)
    device.write(0xC, 4, 2)
    device.write(0xC, 4, 3)
    device.write(0x10, 4, 4)
    assert device.log == [
        (0x30, 0x10, 0x30), (0x31, 0x30, 0x31), (0x30, 0xFFFF, 0xCF),
        (1, 0), (2, 0), (3, 2), (4,),
    ]  # fmt: skip


def test_each_class_says_what_its_method_takes() -> None:
    class Old(Edges):
        def ctrl_written(self, value):
            self.log.append((value,))

        def plain_written(self, value, old):
            super().plain_written(value, old)

    device = Old()
    device.write(0x0, 4, 1)
    device.write(0x10, 4, 2)
    assert device.log == [(1,), (2, 0)]


# -- refusals ------------------------------------------------------------------


def declare(**body) -> type:
    return type("Thing", (pyvmm.Device,), body)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reg(-1, 4), "offset -1 is not 0 or more"),
        (lambda: Reg(4, 3), "register at 0x4 has width 3, not 1, 2, 4 or 8"),
        (lambda: Reg(0, 4, access="rx"), "'rx', not one of rw, ro, wo, w1c"),
        (lambda: Reg(0, 1, reset=256), "reset 256 is outside 0..0xff"),
        (lambda: Reg(0, 1, mask=-1), "mask -1 is outside"),
        (lambda: Reg(0, 1, mask=1, reset=2), "reset 0x2 has bits"),
        (lambda: Reg(0, 1, ro=3, w1c=2), "bits 0x2 of w1c= are of another"),
        (lambda: Reg(0, 1, mask=1, ro=3), "bits 0x2 of ro= are not in mask="),
        (
            lambda: declare(a=Reg(0, 4), b=Reg(2, 1)),
            "Thing.b at 0x2 overlaps a, 4 bytes at 0x0",
        ),
        (
            lambda: declare(size=8, a=Reg(0x6, 4)),
            "Thing.a, 4 bytes at 0x6, is not within size 0x8",
        ),
        (
            lambda: declare(**dict.fromkeys("ab", Reg(0, 4))),
            "Thing.b is a already",
        ),
    ],
)
def test_declarations_that_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_methods_that_are_refused() -> None:
    reg = Reg(0, 4, access="ro")
    with pytest.raises(TypeError, match="read only: it has no on_write"):
        reg.on_write(print)
    with pytest.raises(TypeError, match="write only: it has no on_read"):
        Reg(0, 4, access="wo").on_read(print)
    reg.on_read(print)
    with pytest.raises(TypeError, match="has an on_read already"):
        reg.on_read(print)
    with pytest.raises(TypeError, match=r"Alarm.period is declared: override"):
        Alarm.period.on_write(print)


# -- looking at them -----------------------------------------------------------


def test_repr() -> None:
    alarm = Alarm()
    alarm.period = 0x10
    assert repr(alarm) == ("<Alarm not attached period=0x10 go=0x0 fired=0x0>")
    assert repr(Alarm.go) == "<Reg Alarm.go: 0x4, 4 bytes, write only.>"


def test_help() -> None:
    text = pydoc.plain(pydoc.render_doc(Alarm))
    assert "period\n" in text
    assert "0x0, 4 bytes, read and write: microseconds." in text
    assert "0x8, 4 bytes, write 1 to clear." in text
    text = pydoc.plain(pydoc.render_doc(Bits))
    assert "read only (0xff), write only (0xff0000)" in text
    assert "0x44332211 at first" in text


@pytest.mark.parametrize(
    ("offset", "size", "name"),
    [(0x4, 4, "go"), (0x5, 1, "go+1"), (0x4, 8, "go..fired"), (0xC, 4, ""),
     (0xB, 4, "fired+3")],
)  # fmt: skip
def test_names_of_accesses(offset, size, name) -> None:
    assert Alarm().where(offset, size) == name


# -- state ---------------------------------------------------------------------


def test_save_and_restore() -> None:
    alarm, other = Alarm(), Alarm()
    alarm.write(0x0, 4, 5)
    state = alarm.save()
    assert state == {"period": 5, "go": 0, "fired": 0}
    alarm.period = 6
    other.restore(state)
    assert other.period == 5 and not hasattr(other, "armed")
    other.restore({"fired": 2})
    assert (other.period, other.fired) == (5, 2)
    state["period"] = 0
    assert other.period == 5


def test_states_that_are_refused() -> None:
    alarm = Alarm()
    with pytest.raises(ValueError, match="Alarm has no goo, og"):
        alarm.restore({"period": 1, "og": 1, "goo": 2})
    with pytest.raises(ValueError, match="outside"):
        alarm.restore({"period": 1, "go": -1})
    assert alarm.period == 0
    with pytest.raises(ValueError, match="Device has no registers: x"):
        pyvmm.Device().restore({"x": 1})
    assert pyvmm.Device().save() == {}

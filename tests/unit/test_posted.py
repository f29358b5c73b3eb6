# SPDX-License-Identifier: Apache-2.0
"""Posted writes: gathered, delivered in order, never lost."""

import gc
import random
import threading
import weakref

import pytest

import pyvmm
from pyvmm import testing


class Fifo(pyvmm.Device):
    """Posted data and commands, a level that is computed of them."""

    size = 0x40
    far = pyvmm.Range(8, mmio=0xE000_0000)
    data = pyvmm.Reg(0x0, 4, access="wo", posted=1000)
    command = pyvmm.Reg(0x4, 1, posted=10)
    level = pyvmm.Reg(0x8, 4, access="ro")
    limit = pyvmm.Reg(0xC, 4)
    wide = pyvmm.Reg(0x10, 8, posted=5)
    half = pyvmm.Reg(0x18, 2, access="w1c", mask=0xFF, posted=5)
    note = pyvmm.Reg(0x1C, 4)
    away = pyvmm.Reg(0x0, 4, range=far, posted=3)

    def __init__(self) -> None:
        self.log: list[tuple[str, list[int]]] = []

    @data.on_writes
    def got_data(self, values):
        self.log.append(("data", values.tolist()))
        self.level += len(values)

    @command.on_writes
    def got_commands(self, values):
        self.log.append(("command", values.tolist()))

    @wide.on_writes
    def got_wide(self, values):
        self.views = [values]
        self.log.append(("wide", values.tolist()))

    @half.on_writes
    def got_half(self, values):
        self.log.append(("half", values.tolist()))

    @away.on_writes
    def got_away(self, values):
        self.log.append(("away", values.tolist()))

    @note.on_write
    def noted(self, value):
        self.log.append(("note", [value]))


@pytest.fixture
def bus():
    with testing.bus(Fifo()) as bus:
        yield bus


def test_a_thousand_in_one_call(bus) -> None:
    for value in range(2999):
        bus.write_u32(0x0, value)
    assert [len(values) for _, values in bus.device.log] == [1000, 1000]
    bus.write_u32(0x0, 2999)
    assert [v for _, values in bus.device.log for v in values] == [*range(3000)]
    assert len(bus.device.log) == 3


@pytest.mark.parametrize(
    "look",
    [
        lambda bus: bus.read_u32(0x8),
        lambda bus: bus.read_u32(0x0),
        lambda bus: bus.read_u8(0xD),
        lambda bus: bus.read_u32(0x30),  # nothing is there
        lambda bus: bus.write_u32(0xC, 1),
        lambda bus: bus.write_u32(0x8, 1),
        lambda bus: bus.advance(0.02),
        lambda bus: bus.device.drain(),
        lambda bus: bus.device.save(),
        lambda bus: bus.close(),
    ],
)
def test_delivered_before_anything_else(bus, look) -> None:
    bus.write_u32(0x0, 5)
    bus.write_u32(0x0, 6)
    assert bus.device.log == []
    look(bus)
    assert bus.device.log == [("data", [5, 6])]
    bus.device.drain()
    assert bus.device.level == 2 and len(bus.device.log) == 1


def test_what_depends_on_them_is_right(bus) -> None:
    bus.write_u32(0x0, 5)
    assert bus.read_u32(0x8) == 1
    bus.write_u32(0x0, 5)
    bus.write_u32(0x0, 5)
    assert bus.read_u32(0x8) == 3


def test_several_keep_their_order(bus) -> None:
    bus.write_u32(0x0, 1)
    bus.write_u32(0x0, 2)
    bus.write_u8(0x4, 3)
    bus.device.far.write(0x0, 4, 4)
    bus.write_u32(0x0, 5)
    bus.write_u32(0x1C, 6)
    bus.write_u8(0x4, 7)
    bus.device.drain()
    assert bus.device.log == [
        ("data", [1, 2]), ("command", [3]), ("away", [4]), ("data", [5]),
        ("note", [6]), ("command", [7]),
    ]  # fmt: skip


def test_all_of_a_device_share_the_largest_limit(bus) -> None:
    for value in range(999):
        bus.write_u8(0x4, value & 0xFF)
    assert bus.device.log == []
    bus.write_u32(0x0, 0)
    assert [len(values) for _, values in bus.device.log] == [999, 1]


def test_values_are_ints_as_wide_as_the_register(bus) -> None:
    bus.write_u64(0x10, 1 << 63)
    bus.write_u64(0x10, 2)
    bus.device.drain()
    (view,) = bus.device.views
    assert (view.format, view.itemsize, view.shape) == ("Q", 8, (2,))
    assert view.readonly and view[0] == 1 << 63
    bus.write_u64(0x10, 3)
    bus.device.drain()
    assert view.tolist() == [1 << 63, 2]  # the method's to keep

    class Text(pyvmm.Device):
        out = pyvmm.Reg(0x0, 1, posted=100)

        @out.on_writes
        def print(self, values):
            self.text = bytes(values)

    with testing.bus(Text()) as text:
        for byte in b"hello":
            text.write_u8(0x0, byte)
    assert text.device.text == b"hello"


def test_the_value_is_the_last_one_written(bus) -> None:
    bus.write_u8(0x4, 7)
    bus.write_u8(0x4, 9)
    assert bus.device.command == 9 and bus.device.log == []
    assert bus.read_u8(0x4) == 9
    assert bus.read_u32(0x0) == 0  # write only
    bus.device.half = 0xF0
    bus.write_u16(0x18, 0xFF30)
    assert bus.device.half == 0xC0
    bus.device.drain()
    assert bus.device.log[-1] == ("half", [0x30])


def test_accesses_of_other_sizes(bus) -> None:
    bus.write_u32(0x0, 1)
    bus.write_u8(0x1, 0xAB)
    assert bus.device.log == [("data", [1])]
    bus.write(0x2, 3, 0x112233)  # the end of data, and command
    bus.write_u64(0x8, 0x77 << 32)  # level, and limit
    assert bus.device.log[1:] == [
        ("data", [0xAB00]), ("data", [0x2233_0000]), ("command", [0x11]),
    ]  # fmt: skip
    assert bus.device.limit == 0x77


def test_parts_of_one_access_keep_the_order() -> None:
    class Mixed(pyvmm.Device):
        one = pyvmm.Reg(0x0, 2, posted=10)
        two = pyvmm.Reg(0x2, 2)
        three = pyvmm.Reg(0x4, 2, posted=10)
        four = pyvmm.Reg(0x6, 2)

        def __init__(self) -> None:
            self.log: list[object] = []

        def got(self, values):
            self.log.append(values.tolist())

        one.on_writes(got)
        three.on_writes(got)

        def written(self, value):
            self.log.append(value)

        two.on_write(written)
        four.on_write(written)

    with testing.bus(Mixed()) as bus:
        bus.write_u64(0x0, 0x0004_0003_0002_0001)
    assert bus.device.log == [[1], 2, [3], 4]


def test_they_are_shown(bus) -> None:
    bus.write_u32(0x0, 1)
    bus.write_u32(0x0, 2)
    assert repr(bus.device).endswith("away=0x0 2 posted>")
    assert bus.device.log == []  # which runs nothing
    bus.device.drain()
    assert "posted" not in repr(bus.device)
    assert (
        Fifo.data.__doc__ == "0x0, 4 bytes, write only, posted, 1000 at most."
    )
    assert bus.device.where(0x1, 1) == "data+1"


# -- what is raised ------------------------------------------------------------


class Picky(pyvmm.Device):
    """Refuses batches with a 0 in them."""

    data = pyvmm.Reg(0x0, 4, posted=100)
    other = pyvmm.Reg(0x4, 4, posted=100)

    def __init__(self) -> None:
        self.log: list[list[int]] = []

    def look(self, values):
        self.log.append(values.tolist())
        if 0 in values:
            raise ZeroDivisionError("0")

    data.on_writes(look)
    other.on_writes(look)


def test_what_an_exception_leaves_waits() -> None:
    with testing.bus(Picky()) as bus:
        for offset, value in ((0, 1), (0, 0), (0, 2), (4, 3), (0, 4)):
            bus.write_u32(offset, value)
        with pytest.raises(ZeroDivisionError) as caught:
            bus.read_u32(0x0)
        assert caught.value.__notes__ == [
            "while 3 posted writes to Picky.data were delivered"
        ]
        assert bus.device.log == [[1, 0, 2]]
        assert bus.read_u32(0x0) == 4
        assert bus.device.log == [[1, 0, 2], [3], [4]]


def test_on_writes_may_write_but_not_without_end() -> None:
    class Echo(pyvmm.Device):
        data = pyvmm.Reg(0x0, 4, posted=10)
        count = 1

        @data.on_writes
        def got(self, values):
            for _ in range(self.count):
                self.write(0x0, 4, 1)

    with testing.bus(Echo()) as bus:
        bus.write_u32(0x0, 0)
        bus.device.drain()
        assert bus.device._registers.waiting == 1
        bus.device.count = 1000
        with pytest.raises(RuntimeError, match=r"Echo.data is full: its on_w"):
            bus.device.drain()
        bus.device.count = 0
        bus.device.drain()
        assert bus.device._registers.waiting == 0


def test_one_thread_at_a_time() -> None:
    """Who comes second waits until the first has handled what was there."""

    class Slow(pyvmm.Device):
        data = pyvmm.Reg(0x0, 4, posted=10)
        total = pyvmm.Reg(0x4, 4)
        inside = 0

        @data.on_writes
        def got(self, values):
            self.inside += 1
            assert self.inside == 1
            entered.set()
            started.wait()
            for _ in range(200):  # gives the others every chance
                threading.Event().wait(0)
            self.total += len(values)
            self.inside -= 1

    entered, started = threading.Event(), threading.Event()
    slow = Slow()
    slow.write(0x0, 4, 1)
    first = threading.Thread(target=slow.drain)
    first.start()
    entered.wait()
    seen: list[int] = []

    def look() -> None:
        started.set()
        seen.append(slow.read(0x4, 4))

    others = [threading.Thread(target=look) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in [first, *others]:
        thread.join()
    assert seen == [1, 1, 1]


def test_devices_are_freed_without_the_collector() -> None:
    """A device and its registers do not hold each other."""
    gc.disable()
    try:
        device = Fifo()
        device.write(0x0, 4, 1)
        gone = weakref.ref(device)
        del device
        assert gone() is None
    finally:
        gc.enable()


# -- refusals ------------------------------------------------------------------


@pytest.mark.parametrize("posted", [-1, 65537, "x", 1.5])
def test_limits_that_are_refused(posted) -> None:
    with pytest.raises(ValueError, match=r"posted .* is outside 1..65536"):
        pyvmm.Reg(0x0, 4, posted=posted)


def test_declarations_that_are_refused() -> None:
    with pytest.raises(ValueError, match="read only: nothing can be posted"):
        pyvmm.Reg(0x0, 4, access="ro", posted=5)
    reg = pyvmm.Reg(0x0, 4, posted=5)
    with pytest.raises(TypeError, match="is posted: it has on_writes"):
        reg.on_write(print)
    with pytest.raises(TypeError, match="is not posted: say how many"):
        pyvmm.Reg(0x0, 4).on_writes(print)
    reg.on_writes(print)
    with pytest.raises(TypeError, match="has an on_writes already"):
        reg.on_writes(print)
    with pytest.raises(ValueError, match=r"Thing.a is posted: it needs an on"):
        type("Thing", (pyvmm.Device,), {"a": pyvmm.Reg(0x0, 4, posted=5)})


def test_the_largest_limit() -> None:
    class Large(pyvmm.Device):
        data = pyvmm.Reg(0x0, 1, posted=65536)
        seen = 0

        @data.on_writes
        def got(self, values):
            assert len(values) == 65536
            self.seen += 1

    large = Large()
    for _ in range(65536):
        large.write(0x0, 1, 1)
    assert large.seen == 1


def test_a_subclass_overrides_the_method() -> None:
    class Quiet(Fifo):
        def got_data(self, values):
            super().got_data(values[:1])

    with testing.bus(Quiet()) as bus:
        bus.write_u32(0x0, 5)
        bus.write_u32(0x0, 6)
    assert bus.device.log == [("data", [5])]


def test_own_methods_come_before_posting() -> None:
    class Own(Fifo):
        def write(self, offset, size, value):
            self.log.append(("write", [value]))
            super().write(offset, size, value)

    with testing.bus(Own()) as bus:
        bus.write_u32(0x0, 5)
        assert bus.device.log == [("write", [5])]
    assert bus.device.log[1:] == [("data", [5])]


# -- against registers that are not posted -------------------------------------


def make(posted: int) -> type[pyvmm.Device]:
    """A class with registers of every kind, some of them posted or none."""
    kinds = {
        "one": (0x0, 4, {}),
        "two": (0x4, 2, {"access": "wo", "mask": 0x0FFF}),
        "three": (0x6, 1, {"access": "w1c", "reset": 0xF0}),
        "four": (0x18, 8, {}),
    }

    class Mixed(pyvmm.Device):
        size = 0x20
        plain = pyvmm.Reg(0x8, 4, ro=0xFF, w1c=0xFF00, reset=0xFFFF)
        note = pyvmm.Reg(0xC, 4)
        count = pyvmm.Reg(0x10, 8, access="ro")

        def __init__(self) -> None:
            self.log: list[tuple[str, int]] = []

        @note.on_write
        def noted(self, value):
            self.log.append(("note", value))

        @count.on_read
        def look(self):
            return len(self.log)

    body: dict[str, pyvmm.Reg] = {}
    for name, (offset, width, options) in kinds.items():
        reg = body[name] = pyvmm.Reg(offset, width, posted=posted, **options)

        def many(self, values, name=name):
            self.log += [(name, value) for value in values]

        def single(self, value, *, name=name):
            self.log.append((name, value))

        if posted:
            reg.on_writes(many)
        else:
            reg.on_write(single)
    return type("Mixed", (Mixed,), body)


@pytest.mark.parametrize("seed", range(5))
def test_any_traffic_gives_the_same(seed) -> None:
    """Whatever a guest does, nothing tells it or the device of the posting."""
    dice = random.Random(seed)
    with testing.bus(make(7)()) as late, testing.bus(make(0)()) as now:
        for _ in range(3000):
            size = dice.choice((1, 2, 4, 4, 4, 8, dice.randint(1, 8)))
            offset = dice.choice((0, 0, 0, 4, 4, 6, 0x18))
            if dice.random() < 0.3:
                offset = dice.randint(0, 0x20 - size)
            if dice.random() < 0.8:
                value = dice.getrandbits(8 * size)
                late.write(offset, size, value)
                now.write(offset, size, value)
            else:
                assert late.read(offset, size) == now.read(offset, size)
            if dice.random() < 0.01:
                assert late.device.save() == now.device.save()
        assert len(late.device.log) <= len(now.device.log)
    assert late.device.log == now.device.log

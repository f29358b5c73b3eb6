# SPDX-License-Identifier: Apache-2.0
"""faulty(): devices that misbehave on a schedule."""
# ruff: noqa: RUF012 - queues are written as users write them

import pytest

import pyvmm
from pyvmm import testing, virtio
from pyvmm.devices import Blk, Hasher, faulty


class Plain(pyvmm.Device):
    """Two registers and a line."""

    size = 8
    irq = pyvmm.Irq()
    value = pyvmm.Reg(0, 4, reset=0x1234)
    go = pyvmm.Reg(4, 4, access="wo")

    def __init__(self) -> None:
        self.calls = 0

    @go.on_write
    def ring(self, value: int) -> None:
        self.calls += 1
        self.irq.pulse()


def reads(device: object, count: int) -> list[int]:
    with testing.bus(device) as bus:
        return [bus.read_u32(0) for _ in range(count)]


def test_reads() -> None:
    assert (
        reads(faulty(Plain(), "ones", every=2), 4)
        == [
            0x1234,
            0xFFFFFFFF,
        ]
        * 2
    )
    device = faulty(Plain(), "flip", at=[2, 3])
    found = reads(device, 4)
    assert [(v ^ 0x1234).bit_count() for v in found] == [0, 1, 1, 0]
    assert device.injected == [(2, "flip", "value"), (3, "flip", "value")]
    with testing.bus(faulty(Plain(), "stale", at=[3])) as bus:
        assert bus.read_u32(0) == 0x1234
        bus.write_u32(0, 5)
        assert [bus.read_u32(0), bus.read_u32(0)] == [0x1234, 5]


def test_writes() -> None:
    device = faulty(Plain(), "lost", at=[1])
    with testing.bus(device) as bus:
        bus.write_u32(0, 5)
        assert bus.read_u32(0) == 0x1234
    device = faulty(Plain(), "twice", at=[1])
    with testing.bus(device) as bus:
        bus.write_u32(4, 1)
        assert device.calls == 2 and bus.irqs == ["irq", "irq"]


def test_interrupts() -> None:
    device = faulty(Plain(), "silent", at=[1])
    with testing.bus(device) as bus:
        bus.write_u32(4, 1)
        assert device.calls == 1 and bus.irqs == []
        bus.write_u32(4, 1)
        assert device.calls == 2 and bus.irqs == ["irq"]


def test_the_same_for_each_seed() -> None:
    def run(seed: int) -> list[int]:
        return reads(faulty(Plain(), chance=0.5, seed=seed), 50)

    assert run(1) == run(1) != run(2)
    assert reads(faulty(Plain(), chance=0), 9) == [0x1234] * 9


def test_it_is_the_device_still() -> None:
    device = Plain()
    assert faulty(device, when=lambda n: n > 10) is device
    assert isinstance(device, Plain) and "FaultyPlain" in repr(device)
    with pyvmm.Machine() as m:
        m.attach(device)
        assert device.irq.line and device.value == 0x1234


# -- virtio --------------------------------------------------------------------


def sizes(device: object, count: int = 4) -> list[int]:
    with virtio.driver(device) as drv:
        return [len(drv.requests(b"abc", reply=32)) for _ in range(count)]


def test_answers() -> None:
    good = virtio.driver(Hasher())
    with good as drv:
        digest = drv.requests(b"abc", reply=32)
    assert sizes(faulty(Hasher(), "empty", every=2)) == [32, 0, 32, 0]
    assert sizes(faulty(Hasher(), "short", at=[1])) == [16, 32, 32, 32]
    with virtio.driver(faulty(Hasher(), "flip", at=[2])) as drv:
        first, second = (drv.requests(b"abc", reply=[5, 27]) for _ in "ab")
        assert first == digest
        wrong = int.from_bytes(first) ^ int.from_bytes(second)
        assert wrong.bit_count() == 1


def test_queues_of_the_device_itself() -> None:
    """Of which there are as many as it was told, with one handler."""
    device = faulty(Blk(bytearray(4096), queues=2), "empty", at=[2, 3])
    header = bytes(16)  # read sector 0
    with virtio.driver(device) as drv:
        sizes = [
            len(drv[name](header, reply=513))
            for name in ("requests", "requests1", "requests", "requests1")
        ]
        assert sizes == [513, 0, 0, 513]
        assert [where for *_, where in device.injected] == [
            "requests1", "requests"
        ]  # fmt: skip


def test_lost_requests() -> None:
    device = faulty(Hasher(), "lost", at=[1])
    with virtio.driver(device) as drv:
        lost = drv.requests.send(b"abc", reply=32)
        assert len(drv.requests(b"abc", reply=32)) == 32
        assert not lost.done
        drv.reset()
        drv.start()
        assert len(drv.requests(b"abc", reply=32)) == 32
    assert device.injected == [(1, "lost", "requests")]


def test_late_answers() -> None:
    with virtio.driver(faulty(Hasher(), "late", at=[1], delay=2)) as drv:
        late = drv.requests.send(b"abc", reply=32)
        assert len(drv.requests(b"abc", reply=32)) == 32
        drv.advance(1)
        assert not late.requests.collect() and not late.done
        drv.advance(1)
        assert len(late.wait()) == 32


def test_handlers_end_as_they_do() -> None:
    """break, exceptions and several at once, seen through the faults."""

    class Odd(virtio.Device):
        device_id = 63
        queues = {"requests": 8}
        bad = False

        def on_requests(self, queue: virtio.Queue) -> None:
            assert queue.index == 0
            for chain in queue:
                chain.write(b"x")
                if self.bad:
                    self.bad = False
                    raise KeyError("mine")
                break

    device = faulty(Odd(), "empty", at=[99])
    with virtio.driver(device) as drv:
        assert drv.requests(reply=1) == b"x"
        device.bad = True
        request = drv.requests.send(reply=1, notify=False)
        with pytest.raises(KeyError) as caught:
            drv.requests.notify()
        assert "went back to its queue" in caught.value.__notes__[0]
        device.process()
        assert request.wait() == b"x"


def test_a_driver_that_is_right_survives_all_of_it() -> None:
    device = faulty(Hasher(), chance=0.3, seed=3, delay=0.1)
    good = 0
    with virtio.driver(device) as drv:
        for _ in range(100):
            request = drv.requests.send(b"abc", reply=32)
            drv.advance(1)
            drv.requests.collect()
            if not request.done:
                drv.reset()
                drv.start()
                continue
            good += len(request.reply) == 32
    assert 50 < good < 100
    assert {kind for _, kind, _ in device.injected} == {
        "flip",
        "lost",
        "empty",
        "short",
        "late",
    }


# -- what is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "options", "error", "why"),
    [
        (("empty",), {"every": 2}, ValueError, "'empty' is none of flip, one"),
        ((), {}, ValueError, "one of every=, at=, chance= and when= is due"),
        ((), {"every": 2, "at": [1]}, ValueError, "one of every="),
        ((), {"every": 0}, ValueError, "every 0 is not 1 or more"),
        ((), {"chance": 1.5}, ValueError, r"chance 1.5 is outside 0\.\.1"),
    ],
)
def test_schedules_that_are_none(kinds, options, error, why) -> None:
    device = Plain()
    with pytest.raises(error, match=why):
        faulty(device, *kinds, **options)
    assert type(device) is Plain


def test_devices_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"neither pyvmm\.Device nor"):
        faulty(object(), every=1)
    with pyvmm.Machine() as m:
        device = m.attach(Plain())
        with pytest.raises(ValueError, match="attached already"):
            faulty(device, every=1)

# SPDX-License-Identifier: Apache-2.0
"""Snapshots and clones of machines: devices, timers, consoles, queues."""
# ruff: noqa: RUF012 - queues are written as users write them

import threading
from pathlib import Path

import pytest

import pyvmm
from pyvmm import virtio

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
REQUEST = str(ROOT / "build/guest/request.elf")
ECHO = str(ROOT / "build/guest/echo.elf")

# Prints the count that a device keeps, and exits with it, again and again.
COUNT = """
again:
    mov edx, 0x500
    in al, dx
    add al, '0'
    out 0xe9, al
    sub al, '0'
    out 0xf4, al
    jmp again
"""


class Counter(pyvmm.Device):
    """Counts its reads, in an attribute and in a register."""

    size = 1
    port = 0x500
    total = pyvmm.Reg(0, 1)

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []

    @total.on_read
    def more(self) -> int:
        self.count += 1
        self.total = self.count
        self.seen.append(self.count)
        return self.count


def make(device: object | None = None, source: str = COUNT) -> pyvmm.Machine:
    m = pyvmm.Machine()
    m.attach(device or Counter())
    m.load(asm=source)
    return m


def statuses(m: pyvmm.Machine, count: int) -> list[int | None]:
    return [m.run(timeout=20).status for _ in range(count)]


def test_a_device_and_the_console_go_back() -> None:
    with make() as m:
        (device,) = m.devices
        assert statuses(m, 2) == [1, 2]
        snap = m.snapshot()
        device.extra = "new"
        assert statuses(m, 3) == [3, 4, 5]
        assert m.console.text == "12345"
        for _ in range(2):
            m.restore(snap)
            assert (device.count, device.total) == (2, 2)
            assert device.seen == [1, 2] and not hasattr(device, "extra")
            assert m.console.text == "12"
            assert statuses(m, 1) == [3]
        assert "2 pages" not in repr(snap) and "counter" in repr(snap)


def test_a_tree_of_snapshots() -> None:
    with make() as m:
        first = m.snapshot()
        statuses(m, 1)
        second = m.snapshot()
        statuses(m, 1)
        third = m.snapshot()
        m.restore(first)
        statuses(m, 3)
        side = m.snapshot()
        assert (second.parent, third.parent, side.parent) == (
            first,
            second,
            first,
        )
        assert first.parent is None
        for snap, count in ((third, 2), (side, 3), (first, 0), (second, 1)):
            m.restore(snap)
            assert m.console.text == "123"[:count]
            assert statuses(m, 1) == [count + 1]


def test_expect_and_input_go_back() -> None:
    with pyvmm.Machine() as m:
        m.load(ECHO)
        m.console.send("one\ntwo\n")
        m.console.expect("one", timeout=20)
        snap = m.snapshot()
        m.console.expect("two", timeout=20)
        m.console.send("three\n")
        m.console.expect("three", timeout=20)
        m.restore(snap)
        m.console.expect("two", timeout=20)
        assert "three" not in m.console.text


def test_timers_keep_the_time_they_had_left() -> None:
    class Alarm(pyvmm.Device):
        size, port = 1, 0x500

        def __init__(self) -> None:
            self.rings = 0

        def write(self, offset: int, size: int, value: int) -> None:
            self.after(0.01, self.ring)

        def ring(self) -> None:
            self.rings += 1
            self.machine.exit(self.rings)

    with make(Alarm(), "mov edx, 0x500; out dx, al; 1: jmp 1b") as m:
        (device,) = m.devices
        m.run(until=m.cpu.rip + 6, timeout=20)
        snap = m.snapshot()
        for _ in range(3):
            assert m.run(timeout=20).status == 1
            m.restore(snap)
            assert device.rings == 0
        one, other = m.clone(2)
        assert other.run(timeout=20).status == 1
        assert one.run(timeout=20).status == 1
        assert [d.rings for (d,) in (one.devices, m.devices)] == [1, 0]
        one.close()
        other.close()


# -- virtio --------------------------------------------------------------------


class Echo(virtio.Device):
    device_id = 63
    queues = {"requests": 64}
    config = virtio.Struct(count="<I", other="<I")

    def __init__(self, notify: str = "inline", wait_for: int = 1 << 30) -> None:
        self.notify = notify
        self.wait_for = wait_for
        self.done = 0
        self.held: list[virtio.Chain] = []

    def on_requests(self, queue: virtio.Queue) -> None:
        for chain in queue:
            self.done += 1
            self.config.count = self.done
            chain.write(b"%02d" % (self.done % 100))
            if self.done == self.wait_for:
                self.machine.exit(77)

    def save(self) -> dict[str, int]:
        return {"done": self.done}

    def restore(self, state: dict[str, int]) -> None:
        self.done = state["done"]
        self.held.clear()


def replies(m: pyvmm.Machine) -> list[str]:
    return [
        line.split()[2]
        for line in m.console.text.splitlines()
        if "bytes" in line and line[0].isdigit()
    ]


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_queues_in_the_middle(notify: str) -> None:
    """Stopped among requests, gone on from there, three times."""
    with pyvmm.Machine() as m:
        device = m.attach(Echo(notify, wait_for=20))
        m.load(REQUEST, cmdline="send=x n=40 depth=8 reply=2 mode=irq")
        assert m.run(timeout=20).status == 77
        snap = m.snapshot()
        printed = m.console.text
        done = device.done
        for _ in range(3):
            stop = m.run(timeout=20)
            assert stop.status == 0, m.console.text
            assert device.done == device.config.count == 40
            wanted = [(b"%02d" % i).hex() for i in range(1, 41)]
            assert sorted(replies(m)) == sorted(wanted)
            m.restore(snap)
            assert (m.console.text, device.done) == (printed, done)
            assert device.config.count == done


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_chains_in_flight_are_handed_out_again(notify: str) -> None:
    class Holder(Echo):
        def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                chain.defer()
                self.held.append(chain)
                if len(self.held) == 8:
                    self.machine.exit(77)

    with pyvmm.Machine() as m:
        device = m.attach(Holder(notify))
        m.load(REQUEST, cmdline="send=x n=8 depth=8 reply=4 mode=irq")
        assert m.run(timeout=20).status == 77
        while len(device.held) < 8:  # its thread may be at the last one
            pass
        heads = [chain.head for chain in device.held]
        kept = list(device.held)
        snap = m.snapshot()
        for _ in range(2):
            m.restore(snap)
            assert not any(chain.alive for chain in kept)
            with pytest.raises(virtio.StaleChain):
                kept[0].write(b"late")
            kept.clear()
            assert m.run(timeout=20).status == 77
            kept = list(device.held)
            assert [chain.head for chain in kept] == heads
        for chain in kept:
            chain.write(b"done")
            chain.complete()
        assert m.run(timeout=20).status == 0
        assert replies(m) == ["646f6e65"] * 8


def test_rng_goes_back_and_on() -> None:
    with pyvmm.Machine() as m:
        m.attach(pyvmm.Rng())
        m.load(str(ROOT / "build/guest/rng.elf"), cmdline="bytes=64")
        m.run(until="virtqueue_kick", timeout=20)
        snap = m.snapshot()
        seen = set()
        for _ in range(3):
            assert m.run(timeout=20).status == 0
            seen.add(m.console.text)
            m.restore(snap)
        assert len(seen) == 3  # entropy is not of the snapshot


# -- clones --------------------------------------------------------------------


def test_clones_are_machines_of_their_own() -> None:
    with make() as m:
        assert statuses(m, 2) == [1, 2]
        clones = m.clone(4)
        assert statuses(m, 1) == [3]
        done: dict[int, object] = {}

        def work(index: int) -> None:
            done[index] = statuses(clones[index], index + 1)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, one in enumerate(clones):
            assert done[i] == list(range(3, 4 + i))
            assert one.console.text == "12" + "3456"[: i + 1]
            (device,) = one.devices
            assert isinstance(device, Counter) and device.machine is one
            assert device.seen == list(range(1, 4 + i))
            one.close()
        assert m.console.text == "123"


def test_a_clone_has_snapshots_and_clones() -> None:
    with make() as m:
        statuses(m, 1)
        (one,) = m.clone()
        statuses(one, 1)
        snap = one.snapshot()
        (two,) = one.clone()
        assert statuses(two, 2) == [3, 4]
        two.restore(snap)
        assert statuses(two, 1) == [3]
        m.restore(snap)  # of the same tree
        assert statuses(m, 1) == [3] and m.console.text == "123"
        one.close()
        two.close()


def test_a_clone_of_a_virtio_machine() -> None:
    with pyvmm.Machine() as m:
        m.attach(Echo(wait_for=20))
        m.attach(pyvmm.Rng())
        m.load(REQUEST, cmdline="send=x n=40 depth=8 reply=2 mode=irq")
        assert m.run(timeout=20).status == 77
        clones = m.clone(2)
        for machine in (m, *clones):
            assert machine.run(timeout=20).status == 0
            assert len(replies(machine)) == 40
            device = machine.devices[0]
            assert device.done == 40 and device.machine is machine
            assert machine.devices[1].machine is machine
        for one in clones:
            one.close()


def test_a_clone_of_a_pc() -> None:
    from pyvmm.devices import PC

    with PC() as m:
        m.load(asm="mov edx, 0x3f8; mov al, 'a'; out dx, al; out 0xf4, al")
        m.run(until=m.cpu.rip + 8, timeout=20)
        (one,) = m.clone()
        assert isinstance(one, PC) and one.serial is not m.serial
        assert one.run(timeout=20).status == ord("a")
        assert (one.console.text, m.console.text) == ("a", "a")
        one.close()


# -- what is refused -----------------------------------------------------------


def test_a_device_that_cannot_be_saved_is_named() -> None:
    import socket

    class Wired(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.wire, self.other = socket.socketpair()

    device = Wired()
    with make(device) as m:
        with pytest.raises(
            pyvmm.Error, match=r"wired cannot .* attribute wire, a socket"
        ):
            m.snapshot()
        assert statuses(m, 1) == [1]
        device.wire.close()
        device.other.close()
        del device.wire, device.other
        snap = m.snapshot()
        m.attach(Counter(), port=0x600)
        with pytest.raises(ValueError, match="devices wired; the machine has"):
            m.restore(snap)


def test_while_it_runs() -> None:
    with make(source="1: jmp 1b") as m:
        snap = m.snapshot()
        m.start()
        for call in (m.snapshot, lambda: m.restore(snap), m.clone):
            with pytest.raises(RuntimeError, match="the machine runs"):
                call()
        m.pause()
        m.restore(snap)
        with pytest.raises(TypeError, match="3 is no Snapshot"):
            m.restore(3)
        with pytest.raises(ValueError, match="n -1"):
            m.clone(-1)
    with pytest.raises(ValueError, match="closed"):
        m.snapshot()


TICKS = """
again:
    inc dword ptr [0x200000]
tick:
    nop
    jmp again
"""


def test_a_breakpoint_that_it_is_at_goes_with_it() -> None:
    """A guest that stands at an address runs on from there, each time."""
    with pyvmm.Machine() as m:
        m.load(asm=TICKS)
        m.run(until="tick", timeout=20)
        snap = m.snapshot()
        for _ in range(2):
            m.run(until="again", timeout=20)
            m.restore(snap)
            m.run(until="tick", timeout=20)
            assert m.mem.read_u32(0x200000) == 2
            m.restore(snap)
        (twin,) = m.clone()
        with twin:
            twin.run(until="tick", timeout=20)
            assert twin.mem.read_u32(0x200000) == 2


def test_exits_that_have_never_been_are_forgotten() -> None:
    with make() as m:
        statuses(m, 1)
        snap = m.snapshot()
        statuses(m, 3)
        assert len(m.cpu.vcpu.past) > 3
        m.restore(snap)
        assert m.cpu.vcpu.past == []
        statuses(m, 1)
        assert len(m.cpu.vcpu.past) == 3

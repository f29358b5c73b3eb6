# SPDX-License-Identifier: Apache-2.0
"""Virtio devices in Python in front of a guest: guest/request."""
# ruff: noqa: RUF012 - queues are written as users write them

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pyvmm
from pyvmm import virtio, wiring
from pyvmm.devices.hasher import Hasher

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
DIGEST = hashlib.sha256(b"abc").hexdigest()


def load(m: pyvmm.Machine, words: str, image: str = "request") -> None:
    m.load(str(ROOT / f"build/guest/{image}.elf"), cmdline=words)


def run(device: object, words: str, image: str = "request") -> list[str]:
    """What the guest printed, with the device in the machine."""
    with pyvmm.Machine() as m:
        m.attach(device)
        load(m, words, image)
        stop = m.run(timeout=20)
    assert stop.status == 0, m.console.text
    return m.console.text.splitlines()


class Scripted(virtio.Device):
    device_id = 63
    queues = {"requests": 64}

    def __init__(
        self, body: Callable[[virtio.Queue], object], notify: str = "inline"
    ) -> None:
        self.body = body
        self.notify = notify

    def on_requests(self, queue: virtio.Queue) -> None:
        self.body(queue)


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize(
    ("image", "mode"),
    [("request", "poll"), ("request", "irq"), ("request-ring3", "poll")],
)
def test_hasher(image: str, mode: str, notify: str) -> None:
    device = Hasher(notify=notify)
    words = f"send=abc n=40 depth=16 split config=2 mode={mode}"
    first, *lines, last = run(device, words, image)
    assert first == f"config: 32 {1 << 20}"
    assert lines == [f"32 bytes {DIGEST}"] * 40
    assert last.startswith("requests 40, bytes 1280, kicks ")
    assert device.faults == 0


def test_too_little_room() -> None:
    device = Hasher()
    lines = run(device, "send=abc n=3 reply=31")
    assert lines[:3] == ["0 bytes "] * 3


def test_place_and_life() -> None:
    device = Hasher()
    with pyvmm.Machine() as m:
        assert m.attach(device, mmio=0xD100_0000, irq=7) is device
        assert (device.base, device.irq_line) == (0xD100_0000, 7)
        assert device.machine is m and device.name == "hasher"
        assert repr(device).startswith("<Hasher inline, mmio 0xd1000000, <Virt")
        load(m, "send=abc mode=irq")
        assert m.run(timeout=20).status == 0
        native = device.native
        m.detach(device)
        assert native is not None and native.closed
        assert device.base is None and device.machine is None
        m.attach(device)
        assert device.base == 0xD000_0000


def test_without_an_irqchip() -> None:
    device = Hasher()
    with pyvmm.Machine(irqchip=False) as m:
        m.attach(device)
        load(m, "send=abc")
        assert m.run(timeout=20).status == 0
        assert device.irq_line is None


def test_exception_leaves_run() -> None:
    fails = [True]

    def body(queue: virtio.Queue) -> None:
        for chain in queue:
            if fails:
                fails.clear()
                raise KeyError("mine")
            chain.write(chain.read())

    device = Scripted(body)
    with pyvmm.Machine() as m:
        m.attach(device)
        load(m, "send=abc mode=irq")
        with pytest.raises(KeyError, match="mine") as caught:
            m.run(timeout=20)
        notes = "\n".join(caught.value.__notes__)
        assert "chain 0 of Scripted.requests went back" in notes
        assert "in the handler of Scripted.requests" in notes
        assert "write of 4 bytes at 0xd0000050" in notes
        device.process()
        assert m.run(timeout=20).status == 0
    assert "3 bytes 616263" in m.console.text


def test_exception_of_the_thread_ends_the_run() -> None:
    def body(queue: virtio.Queue) -> None:
        for _ in queue:
            raise KeyError("mine")

    with pyvmm.Machine() as m:
        m.attach(Scripted(body, "thread"))
        load(m, "send=abc")
        with pytest.raises(KeyError, match="mine") as caught:
            m.run(timeout=20)
        notes = "\n".join(caught.value.__notes__)
        assert "on the worker thread of scripted: mmio 0xd0000000" in notes


def test_deferred_chains_are_completed_elsewhere() -> None:
    """The guest sleeps until a thread of the host completes its chains."""
    threads: list[threading.Thread] = []

    def body(queue: virtio.Queue) -> None:
        for chain in queue:
            chain.defer()
            chain.write(chain.read())
            threads.append(threading.Thread(target=chain.complete))
            threads[-1].start()

    lines = run(Scripted(body), "send=abc n=8 depth=4 mode=irq")
    assert lines[:8] == ["3 bytes 616263"] * 8
    for thread in threads:
        thread.join()
    assert len(threads) == 8


def test_config_change_interrupts() -> None:
    class Growing(virtio.Device):
        device_id = 63
        queues = {"requests": 8}
        config = virtio.Struct(capacity="<I")

        def on_requests(self, queue: virtio.Queue) -> None:
            for _ in queue:
                self.config.capacity += 5

    lines = run(Growing(), "n=1 config=1 change quiet mode=irq")
    assert lines[0] == "config: 0" and lines[1] == "config: 5"


def test_callbacks_in_order() -> None:
    seen: list[object] = []

    class Told(Scripted):
        def reset(self) -> None:
            seen.append("reset")

        def negotiated(self, features: int) -> None:
            seen.append(features >> 32)

        def started(self) -> None:
            seen.append("started")

    run(Told(lambda queue: [c.write(b"x") for c in queue]), "")
    assert seen == ["reset", 1, "started"]


def test_two_devices() -> None:
    with pyvmm.Machine() as m:
        upper = m.attach(Scripted(lambda q: [c.write(b"U") for c in q]))
        m.attach(pyvmm.Rng())
        lower = m.attach(Scripted(lambda q: [c.write(b"L") for c in q]))
        assert (upper.base, lower.base) == (0xD000_0000, 0xD000_2000)
        assert upper.irq_line != lower.irq_line
        load(m, "")
        assert m.run(timeout=20).status == 0
    assert m.console.text.startswith("1 bytes 55\n")


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_a_guest_that_breaks_the_rules(notify: str) -> None:
    """The abuse guest, which looks for a virtio-rng, finds one in Python."""

    class Zeros(Scripted):
        device_id = 4

    device = Zeros(lambda q: [c.write(bytes(c.writable_size)) for c in q])
    device.notify = notify
    with pyvmm.Machine() as m:
        m.attach(device)
        load(m, "", "abuse")
        assert m.run(timeout=20).status == 0, m.console.text
        # A worker may look only after the driver has reset the device.
        assert device.faults > (3 if notify == "inline" else 0)


def test_what_was_rung_is_answered_before_run_returns() -> None:
    """A guest that does not wait for its last requests, and ends."""
    seen: list[bytes] = []

    def body(queue: virtio.Queue) -> None:
        for chain in queue:
            seen.append(chain.read())

    with pyvmm.Machine() as m:
        m.attach(Scripted(body, "thread"))
        load(m, "send=abc n=1 mode=poll")
        for _ in range(20):
            seen.clear()
            snap = m.snapshot()
            # It has offered the request and rung the doorbell, no more.
            m.run(until="virtqueue_wait", timeout=20)
            assert seen == [b"abc"]
            m.restore(snap)


def test_that_is_not_waited_for_longer_than_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wiring, "SETTLE_SECONDS", 60)
    started = time.monotonic()
    with pyvmm.Machine() as m:
        m.attach(Scripted(lambda queue: None, "thread"))
        m.load(asm="again: out 0xf4, al; jmp again")
        for _ in range(2):
            m.run(timeout=20)
    assert time.monotonic() - started < 60


def test_an_exception_at_the_very_end_is_that_of_the_run() -> None:
    def body(queue: virtio.Queue) -> None:
        for _ in queue:
            raise KeyError("late")

    with pyvmm.Machine() as m:
        m.attach(Scripted(body, "thread"))
        load(m, "send=abc n=1 mode=poll")
        with pytest.raises(KeyError, match="late"):
            m.run(until="virtqueue_wait", timeout=20)

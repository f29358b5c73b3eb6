# SPDX-License-Identifier: Apache-2.0
"""New code for virtio devices: driven without KVM, by virtio.driver."""

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pyvmm
from pyvmm import virtio

FIRST = """
from pyvmm import virtio

class Echo(virtio.Device):
    device_id = 63
    features = 1 << 3
    queues = {"requests": 64, "events": 8}
    config = virtio.Struct(limit="<I", _pad="2x", kind="<H")
    notify = "inline"

    def __init__(self):
        self.log = []
        self.kept = []
        self.call = self.tick

    def on_requests(self, queue):
        for chain in queue:
            data = chain.take(1)
            if data == b"k":
                chain.defer()
                self.kept.append(chain)
            else:
                chain.write(data + b"1")

    def on_events(self, queue):
        pass

    def tick(self):
        self.log.append("tick 1")
"""
SECOND = FIRST.replace('b"1"', 'b"2"').replace("tick 1", "tick 2")


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "echo_card.py"
    path.write_text(FIRST)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("echo_card", None)


@pytest.fixture
def make(file) -> Callable[..., virtio.Device]:
    """Makes the file's device, once the file has been changed."""

    def make(**changes: str) -> virtio.Device:
        text = file.read_text()
        for before, after in changes.items():
            text = text.replace(before, after)
        file.write_text(text)
        device: virtio.Device = importlib.import_module("echo_card").Echo()
        return device

    return make


@pytest.mark.parametrize("notify", ["inline", "thread", "asyncio"])
def test_new_handlers(file, make, notify) -> None:
    with virtio.driver(make(inline=notify)) as drv:
        assert drv.requests(b"a", reply=4) == b"a1"
        file.write_text(SECOND.replace("inline", notify))
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a2"
        assert type(drv.device) is sys.modules["echo_card"].Echo
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a2"


def test_coroutines(file, make) -> None:
    """Also of a handler whose task goes on, turn after turn."""
    coroutine = FIRST.replace("def on_requests", "async def on_requests")
    file.write_text(coroutine)
    with virtio.driver(make()) as drv:
        assert drv.requests(b"a", reply=4) == b"a1"
        file.write_text(coroutine.replace('b"1"', 'b"2"'))
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a2"
        # An asyncio device may have plain handlers, too.
        file.write_text(SECOND.replace('b"2"', 'b"3"'))
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a3"


def test_what_stays(file, make) -> None:
    """Chains in flight, what was negotiated, configuration, timers, watches."""
    device = make()
    with virtio.driver(device) as drv:
        device.config.limit = 7
        kept = drv.requests.send(b"k", reply=4)
        left = drv.events.send(b"e", reply=4)
        timer = device.after(5, device.tick)
        features, generation = drv.features, drv.generation
        queue, native = device.queue["requests"], device.native
        file.write_text(SECOND.replace("pass", 'for c in queue: c.write(b"!")'))
        drv.reload()
        assert (drv.features, drv.generation) == (features, generation)
        assert drv.config == {"limit": 7, "kind": 0}
        assert device.queue["requests"] is queue and device.native is native
        device.config.limit = 8
        assert drv.config["limit"] == 8 and drv.generation > generation
        (chain,) = device.kept
        chain.write(b"late")
        assert chain.complete()
        assert kept.wait() == b"late"
        device.process()  # the one that the old handler left there
        assert left.wait() == b"!"
        drv.advance(5)
        assert not timer.pending
        device.call()  # an attribute that is a method
        assert device.log == ["tick 2", "tick 2"]


def test_hooks_that_were_not_there(file, make) -> None:
    hooks = """
    def started(self):
        self.log.append("started")

    def configured(self, offset, data):
        self.log.append((offset, data))
"""
    device = make()
    with virtio.driver(device) as drv:
        drv.write_config(0, b"x")
        file.write_text(FIRST + hooks)
        drv.reload()
        drv.write_config(0, b"y")
        assert device.log == [(0, b"y")]
        drv.reset()
        drv.start()
        assert device.log == [(0, b"y"), "started"]
        file.write_text(FIRST)
        drv.reload()
        drv.write_config(0, b"z")
        assert len(device.log) == 2


def test_save_and_restore(file, make) -> None:
    own = """
    def save(self):
        return {"count": 3, "by": "1"}

    def restore(self, state):
        self.log.append((state, "1"))
"""
    file.write_text(FIRST + own)
    device = make()
    with virtio.driver(device) as drv:
        file.write_text(FIRST + own.replace('"1"', '"2"'))
        drv.reload()
        assert device.log == [({"count": 3, "by": "1"}, "2")]
        # The new class alone has them: nothing to restore.
        file.write_text(FIRST)
        drv.reload()
        file.write_text(FIRST + own)
        drv.reload()
        assert len(device.log) == 1


def test_attributes_of_the_device_itself(file, make) -> None:
    """What __init__ has set for this one is not what the class says."""
    device = make()
    device.features = 1 << 5
    device.queues = {"requests": 16, "events": 4}
    with virtio.driver(device) as drv:
        file.write_text(SECOND.replace("1 << 3", "1 << 7"))
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a2"


@pytest.mark.parametrize(
    ("before", "after", "error", "message"),
    [
        ("= 63", "= 62", ValueError, "Echo has device_id 62 now, before 63"),
        ("1 << 3", "1 << 4", ValueError, "has features 16 now, before 8"),
        ('"events": 8', '"events": 16', ValueError, "has queues {'requests'"),
        ('"events"', '"extra"', ValueError, "has queues {'requests'"),
        (', "events": 8', "", ValueError, "has queues {'requests': 64} now"),
        ('limit="<I"', 'limit="<i"', ValueError, "has config {'bytes': 8, "),
        ('"2x"', '"3x"', ValueError, "has config {'bytes': 9, "),
        ('"<H")', '"<H", _end="x")', ValueError, "has config {'bytes': 9, "),
        ("config =", "other =", ValueError, "has config {'bytes': 0} now"),
        ('"inline"', '"thread"', ValueError, "has notify 'thread' now"),
        ("def on_events", "def off", TypeError, r"Echo needs on_events\(queue"),
        ("def on_req", "async def on_req", ValueError, "has coroutines now"),
        ("class Echo", "class Echa", ValueError, "no device class Echo any"),
        ("virtio.Device", "object", ValueError, "no device class Echo any"),
        ("def tick", "oh no", SyntaxError, "invalid syntax"),
    ],
)  # fmt: skip
def test_what_does_not_fit(file, make, before, after, error, message) -> None:
    """The old device stays in place, whole; a second try may do better."""
    device = make()
    module, cls = sys.modules["echo_card"], type(device)
    with virtio.driver(device) as drv:
        device.config.limit = 7
        text = SECOND.replace(before, after)
        assert text != SECOND
        file.write_text(text)
        with pytest.raises(error, match=message):
            drv.reload()
        assert type(device) is cls and sys.modules["echo_card"] is module
        assert drv.requests(b"a", reply=4) == b"a1"
        device.call()
        assert device.log == ["tick 1"] and drv.config["limit"] == 7
        file.write_text(SECOND)
        drv.reload()
        assert drv.requests(b"a", reply=4) == b"a2"


def test_a_restore_that_fails(file, make) -> None:
    own = """
    def save(self):
        return {}

    def restore(self, state):
        self.new = 1
        1 / 0
"""
    file.write_text(FIRST + own)
    device = make()
    with virtio.driver(device) as drv:
        file.write_text(SECOND + own)
        with pytest.raises(ZeroDivisionError):
            drv.reload()
        assert drv.requests(b"a", reply=4) == b"a1"
        assert not hasattr(device, "new")


def test_a_handler_in_the_middle_of_its_work(file, make) -> None:
    """It ends as it was, super() included; the change waits for that."""
    slow = """
class Base(virtio.Device):
    device_id = 63

    def answer(self, chain):
        chain.write(b"base")

class Slow(Base):
    queues = {"requests": 8}
    notify = "thread"

    def on_requests(self, queue):
        for chain in queue:
            self.begun.set()
            self.go.wait(30)
            super().answer(chain)
"""
    file.write_text(FIRST + slow)
    make()
    device = sys.modules["echo_card"].Slow()
    device.begun, device.go = threading.Event(), threading.Event()
    with virtio.driver(device) as drv:
        request = drv.requests.send(b"a", reply=4)
        assert device.begun.wait(30)
        old = type(device)
        reloading = threading.Thread(target=drv.reload)
        reloading.start()
        while not drv.worker.timers.next_ns():
            pass  # until it waits for its turn
        assert type(device) is old
        device.go.set()
        assert request.wait() == b"base"
        reloading.join(30)
        assert type(device) is not old
        assert drv.requests(b"a", reply=4) == b"base"


def test_a_handler_that_does_not_end(file, make, monkeypatch) -> None:
    """It is not waited for without end."""
    from pyvmm import reload

    monkeypatch.setattr(reload, "PATIENCE", 0.05)
    stuck = FIRST.replace(
        "data = chain.take(1)",
        "self.begun.set(); self.go.wait(30); data = chain.take(1)",
    ).replace("inline", "thread")
    file.write_text(stuck)
    device = make()
    device.begun, device.go = threading.Event(), threading.Event()
    with virtio.driver(device) as drv:
        request = drv.requests.send(b"a", reply=4)
        assert device.begun.wait(30)
        file.write_text(stuck.replace('b"1"', 'b"2"'))
        drv.reload()
        device.go.set()
        assert request.wait() == b"a1"
        assert drv.requests(b"a", reply=4) == b"a2"


def test_from_its_own_handler(file, make) -> None:
    own = FIRST.replace("data = chain.take(1)", "data = chain.take(1); A")
    file.write_text(
        own.replace("A", "self.again()").replace("inline", "thread")
    )
    device = make()
    with virtio.driver(device) as drv:
        device.again = drv.reload
        file.write_text(SECOND.replace("inline", "thread"))
        assert drv.requests(b"a", reply=4) == b"a1"
        assert drv.requests(b"a", reply=4) == b"a2"


def test_in_a_machine_that_does_not_run(file, make) -> None:
    device = make()
    with pyvmm.Machine() as m:
        m.attach(device)
        file.write_text(SECOND)
        m.reload(device)
        device.call()
        assert device.log == ["tick 2"]
        assert m.devices == [device] and device.base == 0xD000_0000


def test_watching_files(file, make) -> None:
    import os

    from pyvmm.reload import Watch

    with pyvmm.Machine() as m:
        m.attach(make())
        watch = Watch(m)
        stamp = file.stat().st_mtime_ns
        file.write_text(SECOND)
        os.utime(file, ns=(stamp + 1, stamp + 1))
        assert watch.look() == [(str(file), None)]


def test_hosts_of_tests(tmp_path: Path, monkeypatch) -> None:
    """testing.bus() can do it as well."""
    from pyvmm import testing

    path = tmp_path / "bus_card.py"
    text = (
        "import pyvmm\n"
        "class Card(pyvmm.Device):\n"
        "    a = pyvmm.Reg(0, 4, reset=1)\n"
        "    ports = pyvmm.Range(1, port=0x300)\n"
        "    @ports.on_read\n"
        "    def look(self, offset, size): return 1\n"
    )
    path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        with testing.bus(importlib.import_module("bus_card").Card()) as bus:
            bus.write_u32(0, 9)
            path.write_text(text.replace("return 1", "return 2"))
            bus.reload()
            assert bus.read_u32(0) == 9
            assert bus.device.ports.read(0, 1) == 2
    finally:
        sys.modules.pop("bus_card", None)

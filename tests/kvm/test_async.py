# SPDX-License-Identifier: Apache-2.0
"""Machines and devices on an asyncio event loop."""
# ruff: noqa: RUF012 - queues are written as users write them

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyvmm
from pyvmm import virtio

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
REQUEST = str(ROOT / "build/guest/request.elf")
DIGEST = hashlib.sha256(b"abc").hexdigest()
SPIN = "again: jmp again"


class Hasher(virtio.Device):
    device_id = 63
    queues = {"requests": 64}
    config = virtio.Struct(size="<I", most="<I")

    def __init__(self) -> None:
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def on_requests(self, queue: virtio.Queue) -> None:
        self.loops.add(asyncio.get_running_loop())
        for chain in queue:
            data = chain.read()
            await asyncio.sleep(0)
            chain.write(hashlib.sha256(data).digest())


def make(words: str = "send=abc n=40 depth=16 mode=irq") -> pyvmm.Machine:
    m = pyvmm.Machine()
    m.load(REQUEST, cmdline=words)
    return m


def check(m: pyvmm.Machine, stop: pyvmm.Stop) -> None:
    assert stop.status == 0, m.console.text
    assert m.console.text.count(f"32 bytes {DIGEST}\n") == 40


def test_on_the_callers_loop() -> None:
    async def main() -> None:
        with make() as m:
            device = m.attach(Hasher())
            check(m, await m.run_async(timeout=20))
            assert device.loops == {asyncio.get_running_loop()}

    asyncio.run(main())


def test_without_a_loop() -> None:
    with make() as m:
        device = m.attach(Hasher())
        check(m, m.run(timeout=20))
        assert len(device.loops) == 1


def test_one_loop_after_the_other() -> None:
    with make() as m:
        device = m.attach(Hasher())
        m.run(until="main", timeout=20)
        asyncio.run(m.run_async(until="virtqueue_add", timeout=20))
        check(m, asyncio.run(m.run_async(timeout=20)))
        assert all(loop.is_closed() for loop in device.loops)


def test_many_machines_on_one_loop() -> None:
    async def one() -> None:
        with make() as m:
            m.attach(Hasher())
            check(m, await m.run_async(timeout=60))

    async def main() -> None:
        await asyncio.gather(*(one() for _ in range(8)))

    asyncio.run(main())


def test_what_a_handler_raises() -> None:
    class Bad(Hasher):
        async def on_requests(self, queue: virtio.Queue) -> None:
            for _ in queue:
                await asyncio.sleep(0)
                raise KeyError("mine")

    async def main() -> None:
        with make() as m:
            m.attach(Bad())
            with pytest.raises(KeyError) as caught:
                await m.run_async(timeout=20)
            assert "in the handler of Bad.requests" in caught.value.__notes__

    asyncio.run(main())


def test_run_on_the_loop_itself_is_refused() -> None:
    async def main() -> None:
        with make() as m:
            m.attach(Hasher())
            await m.run_async(until="main", timeout=20)
            with pytest.raises(RuntimeError, match="would block the event lo"):
                m.run(timeout=20)
            check(m, await m.run_async(timeout=20))

    asyncio.run(main())


def test_cancelling_pauses_the_guest() -> None:
    async def main() -> None:
        with pyvmm.Machine() as m:
            m.load(asm=SPIN)
            task = asyncio.create_task(m.run_async())
            while not m.running:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not m.running
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(m.run_async(), 0.05)
            assert not m.running
            with pytest.raises(pyvmm.GuestTimeout):
                await m.run_async(timeout=0.01)

    asyncio.run(main())


def test_cancelled_before_it_has_begun() -> None:
    async def main() -> None:
        with pyvmm.Machine() as m:
            m.load(asm=SPIN)
            task = asyncio.create_task(m.run_async())
            await asyncio.sleep(0)  # it has asked its thread, no more
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not m.running

    asyncio.run(main())


def test_stopping_the_guest_from_the_loop() -> None:
    async def main() -> None:
        with pyvmm.Machine() as m:
            m.load(asm=SPIN)
            task = asyncio.create_task(m.run_async())
            while not m.running:
                await asyncio.sleep(0)
            m.exit(7)
            assert (await task).status == 7

    asyncio.run(main())


def test_closing_while_a_handler_awaits() -> None:
    class Waiter(Hasher):
        cancelled = False

        async def on_requests(self, queue: virtio.Queue) -> None:
            for _ in queue:
                assert self.machine is not None
                self.machine.exit(3)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled = True
                    raise

    async def main() -> None:
        with make() as m:
            device = m.attach(Waiter())
            assert (await m.run_async(timeout=20)).status == 3
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert device.cancelled

    before = threading.active_count()
    asyncio.run(main())
    assert threading.active_count() <= before


CTRL_C = """
import asyncio, pyvmm

async def main():
    with pyvmm.Machine() as m:
        m.load(asm="mov al, 'x'; out 0xe9, al; again: jmp again")
        task = asyncio.create_task(m.run_async())
        while not m.console.text:
            await asyncio.sleep(0.001)
        print("spins", flush=True)
        await task

asyncio.run(main())
"""


def test_ctrl_c() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CTRL_C],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "spins\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode in (-signal.SIGINT, 130), errors
    assert "KeyboardInterrupt" in errors

# SPDX-License-Identifier: Apache-2.0
"""Who waits for a run, and signals whose handlers raise meanwhile."""

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")


class Alarm(Exception):
    """What the handler raises."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    def raise_alarm(number: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, raise_alarm)
    yield
    signal.signal(signal.SIGALRM, before)


class Ring(pyvmm.Device):
    """The thread that runs the guest takes the signal."""

    size = 1
    port = 0x500

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)


def ringing() -> pyvmm.Machine:
    """Whoever waits has most likely begun to when it rings."""
    m = pyvmm.Machine()
    m.attach(Ring())
    m.load(
        asm="""
        mov ecx, 300000
    early:
        dec ecx
        jnz early
        mov dx, 0x500
        out dx, al
    again:
        jmp again
        """
    )
    return m


def test_a_signal_that_the_guests_thread_has_taken() -> None:
    with ringing() as m:
        m.start()
        with pytest.raises(Alarm):
            m.wait()
        assert m.running
        assert m.pause().reason == "pause"


def test_one_during_expect() -> None:
    with ringing() as m:
        m.start()
        with pytest.raises(Alarm):
            m.console.expect("never")
        assert m.pause().reason == "pause"


def test_one_during_run_async() -> None:
    with ringing() as m:
        with pytest.raises(Alarm):
            asyncio.run(m.run_async())
        assert not m.running
        assert m.run(timeout=0.01, check=False).reason == "timeout"


def test_one_while_the_other_vcpus_come_out() -> None:
    """They are waited for nevertheless; else they would be in the next run."""
    with pyvmm.Machine(cpus=2) as m:
        m.load(asm="again: jmp again")
        assert m.run(timeout=0.01, check=False).reason == "timeout"
        done = m._runner._done
        assert done is not None

        class Once:
            """Raises as a handler does, once."""

            asked = 0

            def get(self, timeout: float | None = None) -> int:
                self.asked += 1
                if self.asked == 1:
                    raise Alarm
                return done.get(timeout=timeout)

            def put(self, index: int) -> None:
                done.put(index)

        once = Once()
        m._runner._done = once  # type: ignore[assignment]
        with pytest.raises(Alarm):
            m.run(timeout=0.01, check=False)
        assert once.asked > 1 and done.empty()
        assert not any(cpu.vcpu.running for cpu in m.cpus)
        assert m.run(timeout=0.01, check=False).reason == "timeout"


def test_where_a_guest_was_when_one_came() -> None:
    with ringing() as m:
        with pytest.raises(Alarm):
            m.run()
        assert m._runner.left is None  # an Exception says it in a note

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            m.run()
        left = m._runner.left
        assert left is not None and left.where.symbol == "again"

# SPDX-License-Identifier: Apache-2.0
"""Signals of the program while a guest runs: none is lost, all are run."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator

import pytest
from bare import LIMIT, MMIO, PORT, Device, exit

from pyvmm import _vmm

LOOPS = {
    "spin": "l: jmp l",
    "exits in C": "mov al, 0; l: out 0xe9, al; jmp l",
    "exits in Python": f"mov dx, {PORT}; l: in al, dx; jmp l",
    "halted": "sti; l: hlt; jmp l",
}


class Presser(threading.Thread):
    """Sends SIGINT after a random while, each time it is told to."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self.go = threading.Semaphore(0)
        self.random = random.Random(seed)
        self.done = False
        self.start()

    def run(self) -> None:
        while self.go.acquire() and not self.done:
            for _ in range(self.random.randrange(100_000)):
                pass
            os.kill(os.getpid(), signal.SIGINT)

    def end(self) -> None:
        self.done = True
        self.go.release()
        self.join(LIMIT)


@contextlib.contextmanager
def handler(number: int, function) -> Iterator[None]:
    before = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("mode", ["protected", "user"])
@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c(bare, loop, mode) -> None:
    """40 at random moments: each is one KeyboardInterrupt, none is lost."""
    if loop == "halted" and mode == "user":
        mode = "long"  # hlt is privileged
    machine = bare(LOOPS[loop], mode, ports={PORT: Device()})
    machine.vm.wakers = 1
    presser = Presser(seed=len(loop) + len(mode))
    with handler(signal.SIGINT, signal.default_int_handler):
        for _ in range(40):
            with pytest.raises(KeyboardInterrupt):
                presser.go.release()
                machine.run()
        assert machine.run(0.02).reason == _vmm.EXIT_TIMEOUT
    presser.end()


def test_ctrl_c_outside_a_device_names_no_access(bare) -> None:
    machine = bare(LOOPS["spin"])
    presser = Presser(seed=1)
    with (
        handler(signal.SIGINT, signal.default_int_handler),
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        presser.go.release()
        machine.run()
    presser.end()
    notes = getattr(caught.value, "__notes__", [])
    assert not [note for note in notes if "in the guest's" in note]


def test_ctrl_c_inside_a_device(bare) -> None:
    class Presses(Device):
        def read(self, offset: int, size: int) -> int:
            signal.raise_signal(signal.SIGINT)
            return 5

    machine = bare(
        f"mov al, [{MMIO}]; mov bl, al\n" + exit(3), devices={MMIO: Presses()}
    )
    with handler(signal.SIGINT, signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt):
            machine.run()
        assert machine.status() == 3
    assert machine.regs.rbx in (5, 0xFF)  # raised after or before the return


@pytest.mark.parametrize("loop", LOOPS)
def test_alarms_of_users(bare, loop) -> None:
    """SIGALRM is the user's: its handler runs, and run() goes on."""
    machine = bare(LOOPS[loop], ports={PORT: Device()})
    machine.vm.wakers = 1
    rings = []

    def ring(number: int, frame: object) -> None:
        rings.append(number)
        if len(rings) == 20:
            machine.cpu.kick()

    with handler(signal.SIGALRM, ring):
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            stop = machine.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert stop.reason == _vmm.EXIT_KICK
    assert len(rings) >= 20


def test_a_handler_may_raise(bare) -> None:
    machine = bare(LOOPS["spin"])

    class RangError(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        raise RangError

    with handler(signal.SIGALRM, ring):
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        with pytest.raises(RangError):
            machine.run()
    assert not machine.cpu.running
    assert machine.run(0).reason == _vmm.EXIT_TIMEOUT


def test_a_handler_may_close(bare) -> None:
    machine = bare(LOOPS["spin"])
    with handler(signal.SIGALRM, lambda *_: machine.vm.close()):
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.cpu.closed


def test_ctrl_c_while_another_thread_runs_the_guest(bare) -> None:
    """It is the main thread's; the guest goes on."""
    machine = bare(LOOPS["spin"])
    stops: list[_vmm.Exit] = []
    thread = threading.Thread(target=lambda: stops.append(machine.run()))
    with handler(signal.SIGINT, signal.default_int_handler):
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            thread.join(LIMIT)
    assert not stops
    machine.cpu.kick()
    thread.join(LIMIT)
    assert stops[0].reason == _vmm.EXIT_KICK


def test_no_handler_before_the_first_run() -> None:
    """Importing and making things installs none; asked in a fresh process."""
    import subprocess
    import sys

    code = (
        "import signal; from pyvmm import _vmm\n"
        "kvm = _vmm.KVM(); memory = _vmm.Memory(); memory.add(0, 4096)\n"
        "vm = _vmm.VM(kvm, memory); cpu = _vmm.VCPU(vm)\n"
        "text = open('/proc/self/status').read()\n"
        "caught = int(text.split('SigCgt:')[1].split()[0], 16)\n"
        "print(caught >> (_vmm.KICK_SIGNAL - 1) & 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_kick_signal_is_a_realtime_one() -> None:
    assert signal.SIGRTMIN <= _vmm.KICK_SIGNAL <= signal.SIGRTMAX


def test_a_stray_kick_signal_does_nothing(bare) -> None:
    """Sent to a thread that runs no guest, or between two runs."""
    machine = bare(exit(1))
    assert machine.status() == 1
    signal.raise_signal(_vmm.KICK_SIGNAL)
    machine.regs.rip = 0x10000
    assert machine.status() == 1


def test_system_calls_of_others_are_not_interrupted(bare) -> None:
    """Kicks that come late restart what the thread does by then."""
    machine = bare(LOOPS["spin"])
    reader, writer = os.pipe()
    ended = threading.Event()

    def storm() -> None:
        for _ in range(200):
            os.kill(os.getpid(), _vmm.KICK_SIGNAL)
        os.write(writer, b"x")
        ended.set()

    assert machine.run(0.001).reason == _vmm.EXIT_TIMEOUT
    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    assert os.read(reader, 1) == b"x"
    thread.join(LIMIT)
    os.close(reader)
    os.close(writer)

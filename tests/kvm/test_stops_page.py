# SPDX-License-Identifier: Apache-2.0
"""docs/stops.md, a row at a time: each is provoked, and no row is missing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

import pyvmm
from pyvmm import _vmm, debug, ends
from pyvmm import stop as stops
from pyvmm.stop import Stop

pytestmark = pytest.mark.usefixtures("kvm")

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/stops.md"
HOLE = 0xD000_0000  # where devices go, and RAM never is


def rows(column: str) -> list[str]:
    """The first cells of the table whose first heading is `column`."""
    table = re.search(
        rf"^\| {column} \|.*\n\| ---.*\n((?:\|.*\n)+)",
        PAGE.read_text(),
        re.MULTILINE,
    )
    assert table
    return [line.split("|")[1].strip() for line in table[1].splitlines()]


def ended(asm: str, mode: str = "protected", **machine: object) -> Stop:
    """How a snippet ends."""
    with pyvmm.Machine(**machine) as m:
        m.load(asm=asm, mode=mode)
        return m.run(timeout=20, check=False)


def classified(reason: int, code: int = 0) -> tuple[str, str]:
    """What is made of an exit that this host's guests cannot cause."""
    exit = _vmm.Exit(
        (reason, False, False, 0, 0, 0, None, None, code, 0, b"", (), 99)
    )
    with pyvmm.Machine() as m:
        return ends.classify(m, exit, None, None)


# -- a Stop is returned --------------------------------------------------------


def provoke_exit() -> str:
    stop = ended("mov ax, 0x1234; out 0xf4, ax")
    assert stop.status == 0x1234
    return stop.reason


def provoke_halt() -> str:
    assert ended("sti; hlt").reason == "halt"
    with pyvmm.Machine(irqchip=False) as m:
        m.load(asm="cli; hlt; out 0xf4, al")
        assert m.run(timeout=20).reason == "halt"
        assert m.run(timeout=20).reason == "exit"
    return ended("cli; hlt").reason


def asked(end: Callable[[pyvmm.Machine], None]) -> str:
    """What a device asks for; then the guest goes on."""

    class Asker(pyvmm.Device):
        size = 1

        def write(self, offset: int, size: int, value: int) -> None:
            end(self.machine)

    with pyvmm.Machine() as m:
        m.attach(Asker(), port=0x80)
        m.load(asm="out 0x80, al; mov al, 7; out 0xf4, al")
        reason = m.run(timeout=20).reason
        assert m.run(timeout=20).status == 7
    return reason


def provoke_reset() -> str:
    reset = classified(_vmm.EXIT_SYSTEM_EVENT, ends.EVENT_RESET)[0]
    assert asked(pyvmm.Machine.reset) == reset
    return reset


def provoke_poweroff() -> str:
    off = classified(_vmm.EXIT_SYSTEM_EVENT, ends.EVENT_SHUTDOWN)[0]
    assert asked(pyvmm.Machine.poweroff) == off
    return off


COUNT = "xor eax, eax\nagain: inc eax\njmp again"


def provoke_until() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        stop = m.run(until="again", timeout=20)
        assert m.cpu.eip == m.symbols["again"]
        assert m.cpu.eax == 0
        stop = m.run(until="again", timeout=20)
        assert m.cpu.eax == 1
        return stop.reason


def provoke_break() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        point = m.breakpoint("again")
        stop = m.run(timeout=20)
        assert stop.point is point
        assert point.hits == 1
        return stop.reason


def provoke_step() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        stop = m.step(4)
        assert m.cpu.eax == 2
        return stop.reason


def provoke_pause() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        m.start(timeout=20)
        return m.pause().reason


MEANT: dict[str, Callable[[], str]] = {
    "exit": provoke_exit,
    "halt": provoke_halt,
    "reset": provoke_reset,
    "poweroff": provoke_poweroff,
    "until": provoke_until,
    "break": provoke_break,
    "step": provoke_step,
    "pause": provoke_pause,
}


# -- GuestError is raised ------------------------------------------------------


def provoke_triple_fault() -> str:
    with pyvmm.Machine() as m:
        m.load(asm="lidt [0x100100]; ud2")
        first = m.run(timeout=20, check=False)
        again = m.run(timeout=20, check=False)
    assert again.reason == first.reason
    return first.reason


def provoke_emulation_failure() -> str:
    # Code where no memory is must be interpreted, everywhere.
    return ended(f"mov edi, {HOLE:#x}; jmp edi").reason


def provoke_internal_error() -> str:
    reason, message = classified(_vmm.EXIT_INTERNAL_ERROR, 3)
    assert "an event could not be delivered" in message
    return reason


def provoke_entry_failure() -> str:
    reason, message = classified(_vmm.EXIT_FAIL_ENTRY, 0x8000_0021)
    assert "0x80000021" in message
    return reason


def provoke_unclaimed() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=f"mov eax, [{HOLE:#x}]; out 0x80, al; out 0xf4, al")
        stop = m.run(timeout=20, check=False)
        assert stop.reason == "unclaimed access"
        assert f"read of 4 bytes at {HOLE:#x}" in stop.message
        assert stop.rip == 0x10_0000
        stop = m.run(timeout=20, check=False)
        assert "write of 1 byte 0xff to port 0x80" in stop.message
        assert m.run(timeout=20).status == 0xFF
    with pyvmm.Machine() as m:
        m.add_memory(HOLE, data=b"rom!", readonly=True)
        m.load(asm=f"mov eax, [{HOLE:#x}]; mov [{HOLE:#x}], ebx; hlt")
        stop = m.run(timeout=20, check=False)
        assert m.cpu.eax == int.from_bytes(b"rom!", "little")
        assert "read-only memory" in stop.message
        assert m.run(timeout=20).reason == "halt"
        assert m.mem.read(HOLE, 4) == b"rom!"
        return stop.reason


def provoke_crash() -> str:
    return classified(_vmm.EXIT_SYSTEM_EVENT, ends.EVENT_CRASH)[0]


def provoke_unknown() -> str:
    reason, message = classified(_vmm.EXIT_UNKNOWN)
    assert "99" in message
    return reason


def provoke_timeout() -> str:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        with pytest.raises(pyvmm.GuestTimeout) as e:
            m.run(timeout=0.01)
        before = m.cpu.eax
        assert m.run(timeout=0.05, check=False).reason == "timeout"
        assert m.cpu.eax > before
        return e.value.stop.reason


CRASHED: dict[str, Callable[[], str]] = {
    "triple fault": provoke_triple_fault,
    "emulation failure": provoke_emulation_failure,
    "internal error": provoke_internal_error,
    "entry failure": provoke_entry_failure,
    "unclaimed access": provoke_unclaimed,
    "crash": provoke_crash,
    "unknown exit": provoke_unknown,
    "timeout": provoke_timeout,
}


def test_all_reasons_are_in_the_page() -> None:
    listed = re.findall(r"\| (?:reason|exception) \|", PAGE.read_text())
    assert len(listed) == 3
    text = PAGE.read_text()
    meant, crashed = text.split("## Ends that nobody means")
    assert rows("reason") == list(MEANT) == list(stops.MEANT)
    for reason in MEANT:
        assert f"\n| {reason} |" in meant
    in_page = re.findall(
        r"^\| ([a-z ]+) \|", crashed.split("\n## ")[0], re.MULTILINE
    )
    assert in_page[1:] == list(CRASHED)
    constants = {
        value
        for name, value in vars(stops).items()
        if name.isupper() and isinstance(value, str)
    }
    assert set(CRASHED) == constants


@pytest.mark.parametrize("reason", MEANT)
def test_meant(reason: str) -> None:
    assert MEANT[reason]() == reason


@pytest.mark.parametrize("reason", CRASHED)
def test_crashed(reason: str) -> None:
    assert CRASHED[reason]() == reason


@pytest.mark.parametrize(
    ("asm", "reason"),
    [
        ("lidt [0x100100]; ud2", "triple fault"),
        (f"mov eax, [{HOLE:#x}]", "unclaimed access"),
        (f"mov edi, {HOLE:#x}; jmp edi", "emulation failure"),
    ],
)
def test_check(asm: str, reason: str) -> None:
    """The same end is raised, or returned with check=False."""
    with pyvmm.Machine() as m:
        m.load(asm=asm)
        with pytest.raises(pyvmm.GuestError) as e:
            m.run(timeout=20)
    assert e.value.stop.reason == reason
    assert str(e.value) == e.value.stop.report
    stop = ended(asm)
    assert stop.reason == reason
    assert stop.crashed
    assert not isinstance(e.value, pyvmm.GuestTimeout)


# -- what else is raised -------------------------------------------------------


class Broken(pyvmm.Device):
    size = 4

    def read(self, offset: int, size: int) -> int:
        raise LookupError("a bug")


def raise_of_device() -> None:
    with pyvmm.Machine() as m:
        m.attach(Broken(), mmio=HOLE)
        m.load(asm=f"mov eax, [{HOLE:#x}]; out 0xf4, al")
        with pytest.raises(LookupError) as e:
            m.run(timeout=20)
        assert e.value.__notes__ == [
            f"in the guest's read of 4 bytes at {HOLE:#x}, rip 0x100000, vCPU 0"
        ]
        assert m.run(timeout=20).status == 0xFF


class Interrupting(pyvmm.Device):
    size = 4

    def write(self, offset: int, size: int, value: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def raise_keyboard_interrupt() -> None:
    with pyvmm.Machine() as m:
        m.attach(Interrupting(), mmio=HOLE)
        m.load(asm=f"mov [{HOLE:#x}], eax\n{COUNT}")
        with pytest.raises(KeyboardInterrupt):
            m.run(timeout=20)
        assert m.run(timeout=0.01, check=False).reason == "timeout"


def raise_unsupported() -> None:
    known = dict(debug._trials)
    debug._trials["protected"] = frozenset({"run"})
    try:
        with pyvmm.Machine() as m:
            m.load(asm=COUNT)
            for run in (lambda: m.run(until="again", timeout=20), m.step):
                with pytest.raises(pyvmm.Unsupported, match="trial"):
                    run()
            assert m.cpu.eip == 0x10_0000  # nothing was run past
    finally:
        debug._trials.clear()
        debug._trials.update(known)


class Closing(pyvmm.Device):
    size = 4

    def write(self, offset: int, size: int, value: int) -> None:
        assert self.machine is not None
        self.machine.close()


def raise_closed_meanwhile() -> None:
    m = pyvmm.Machine()
    m.attach(Closing(), mmio=HOLE)
    m.load(asm=f"mov [{HOLE:#x}], eax\n{COUNT}")
    with pytest.raises(pyvmm.Error, match="closed while it ran") as e:
        m.run(timeout=20)
    assert not isinstance(e.value, pyvmm.GuestError)
    assert m.closed


def raise_value_error() -> None:
    m = pyvmm.Machine()
    with pytest.raises(ValueError, match="nothing is loaded"):
        m.run(timeout=20)
    m.load(asm=COUNT)
    with pytest.raises(ValueError, match="no symbol 'nowhere'"):
        m.run(until="nowhere", timeout=20)
    with pytest.raises(ValueError, match="there are 4 debug registers"):
        m.run(until=[1, 2, 3, 4, 5], timeout=20)
    m.close()
    with pytest.raises(ValueError, match="closed"):
        m.run(timeout=20)


def raise_runtime_error() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        m.start(timeout=20)
        with pytest.raises(RuntimeError, match="running already"):
            m.run(timeout=20)
        assert m.pause().reason == "pause"


def raise_os_error() -> None:
    script = (
        "import os, resource, pyvmm\n"
        "m = pyvmm.Machine('1M'); m.load(raw=b'\\xf4')\n"
        "used = len(os.listdir('/proc/self/fd')) - 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, used + 1))\n"
        "try: m.run(timeout=20)\n"
        "except OSError as e: print(e.errno, e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "24 [Errno 24] KVM_CREATE_VM" in done.stdout, done.stderr


ELSE: dict[str, Callable[[], None]] = {
    "an exception of a device": raise_of_device,
    "KeyboardInterrupt": raise_keyboard_interrupt,
    "pyvmm.Unsupported": raise_unsupported,
    "pyvmm.Error": raise_closed_meanwhile,
    "ValueError": raise_value_error,
    "RuntimeError": raise_runtime_error,
    "OSError": raise_os_error,
}


def test_all_exceptions_are_in_the_page() -> None:
    assert rows("exception") == list(ELSE)


@pytest.mark.parametrize("exception", ELSE)
def test_else(exception: str) -> None:
    ELSE[exception]()


def test_closed_from_another_thread() -> None:
    m = pyvmm.Machine()
    m.load(asm=COUNT)
    m.start(timeout=20)
    thread = Thread(target=m.close)
    thread.start()
    with pytest.raises(pyvmm.Error, match="closed while it ran"):
        m.wait(20)
    thread.join()


@pytest.mark.parametrize("when", ["booting", "in a device"])
def test_closed_at_any_moment(when: str) -> None:
    """Neither the boot nor a device's interrupt finds it closed before."""

    class Ringing(pyvmm.Device):
        size = 1
        irq = pyvmm.Irq()

        def write(self, offset: int, size: int, value: int) -> None:
            close()
            self.irq.pulse()

    def close() -> None:
        thread.start()
        while not m._runner.closed:
            pass

    class Closing(pyvmm.StartInfo):
        def words(self, *args):
            if when == "booting" and not thread.ident:
                close()
            return super().words(*args)

    m = pyvmm.Machine(boot=Closing())
    thread = Thread(target=m.close)
    m.attach(Ringing(), port=0x80)
    m.load(asm="out 0x80, al; w: jmp w")
    with pytest.raises(pyvmm.Error, match="closed while it ran"):
        m.run(timeout=20)
    thread.join()


def test_wait_times_out() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=COUNT)
        m.start(timeout=20)
        with pytest.raises(TimeoutError):
            m.wait(0.01)
        assert m.running
        assert m.pause().reason == "pause"

# SPDX-License-Identifier: Apache-2.0
"""Ends that devices ask for: exit(), reset(), poweroff(), from any thread."""

import threading
import time
from collections.abc import Callable

import pytest
from smp import load_all

import pyvmm
from pyvmm import virtio
from pyvmm.devices import I8042, AcpiPm

pytestmark = pytest.mark.usefixtures("kvm")

TIMEOUT = 30
ENDS: dict[str, Callable[[pyvmm.Machine], None]] = {
    "exit": lambda m: m.exit(300),
    "reset": lambda m: m.reset(),
    "poweroff": lambda m: m.poweroff(),
}
STATUS = {"exit": 300}
MESSAGE = {"exit": "exit with status 300"}


class Asker(pyvmm.Device):
    """Does something with its machine at a write."""

    size, port = 1, 0x80

    def __init__(self, act: Callable[[pyvmm.Machine, int], object]) -> None:
        self.act = act

    def write(self, offset: int, size: int, value: int) -> None:
        self.act(self.machine, value)


def machine(act: Callable[[pyvmm.Machine, int], object], **options):
    m = pyvmm.Machine(**options)
    m.attach(Asker(act))
    return m


@pytest.mark.parametrize("end", ENDS)
def test_from_a_method(end) -> None:
    with machine(lambda m, value: ENDS[end](m)) as m:
        m.load(asm="out 0x80, al; asked: mov al, 9; out 0xf4, al")
        stop = m.run(timeout=TIMEOUT)
        assert (stop.reason, stop.status) == (end, STATUS.get(end))
        assert stop.message == MESSAGE.get(end, end)
        assert not stop.crashed and stop.where.symbol == "asked"
        # Nothing was reset: the guest goes on.
        assert m.run(timeout=TIMEOUT).status == 9


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("until", [None, "never"])
def test_on_the_thread_of_another_vcpu(end, until) -> None:
    """The Stop shows the vCPU that did it, whichever came out first."""
    with machine(lambda m, value: ENDS[end](m), cpus=4) as m:
        ap = "mov cl, 1; lock xadd [0x9000], cl; cmp cl, 2; jne w;"
        load_all(
            m, "w: jmp w; never: nop", ap + "mov al, 1; out 0x80, al; w: jmp w"
        )
        stop = m.run(until, timeout=TIMEOUT)
        assert (stop.reason, stop.status) == (end, STATUS.get(end))
        assert stop.cpu > 0 and stop.registers.al == 1
        assert m.run(timeout=0.02, check=False).reason == "timeout"


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_from_another_thread(end, cpus) -> None:
    with pyvmm.Machine(cpus=cpus) as m:
        m.load(asm="w: jmp w")
        m.start(timeout=TIMEOUT)
        thread = threading.Thread(target=ENDS[end], args=(m,))
        thread.start()
        assert m.wait(TIMEOUT).reason == end
        thread.join()


def test_from_the_thread_of_a_device(root) -> None:
    class Off(virtio.Device):
        device_id = 63
        queues = {"requests": 8}  # noqa: RUF012 - as users write it
        notify = "thread"

        def on_requests(self, queue: virtio.Queue) -> None:
            self.machine.poweroff()

    with pyvmm.Machine() as m:
        m.attach(Off())
        m.load(root / "build/guest/request.elf", cmdline="send=abc")
        assert m.run(timeout=TIMEOUT).reason == "poweroff"


def test_from_a_timer() -> None:
    class Late(pyvmm.Device):
        size = 1

        def attached(self) -> None:
            self.after(0.001, self.machine.reset)

    with pyvmm.Machine() as m:
        m.attach(Late())
        m.load(asm="w: jmp w")
        assert m.run(timeout=TIMEOUT).reason == "reset"


def test_the_first_counts() -> None:
    def act(m: pyvmm.Machine, value: int) -> None:
        m.reset()
        m.exit(value)

    with machine(act) as m:
        m.load(asm="mov al, 7; out 0x80, al; out 0xf4, al")
        assert m.run(timeout=TIMEOUT).reason == "reset"
        assert m.run(timeout=TIMEOUT).status == 7


def test_an_exception_comes_before_it() -> None:
    """Of the same method: the end is that of the next run, before the guest."""

    def act(m: pyvmm.Machine, value: int) -> None:
        m.reset()
        raise KeyError(value)

    with machine(act) as m:
        m.load(asm="mov al, 7; out 0x80, al; asked: out 0xf4, al")
        with pytest.raises(KeyError, match="7"):
            m.run(timeout=TIMEOUT)
        stop = m.run(timeout=TIMEOUT)
        assert (stop.reason, stop.where.symbol) == ("reset", "asked")
        assert m.run(timeout=TIMEOUT).status == 7


@pytest.mark.parametrize("asker", [0, 1])
def test_while_another_vcpu_raises(asker) -> None:
    """Both at once, and none of them is lost."""
    both = threading.Barrier(2)

    def act(m: pyvmm.Machine, value: int) -> None:
        both.wait(TIMEOUT)
        if value == asker:
            m.poweroff()
            return
        raise KeyError(value)

    with machine(act, cpus=2) as m:
        code = "mov al, {}; out 0x80, al; w: jmp w"
        load_all(m, code.format(0), code.format(1))
        with pytest.raises(KeyError, match=str(1 - asker)):
            m.run(timeout=TIMEOUT)
        stop = m.run(timeout=TIMEOUT)
        assert (stop.reason, stop.cpu) == ("poweroff", asker)
        assert m.run(timeout=0.01, check=False).reason == "timeout"


def test_while_another_vcpu_exits() -> None:
    """The guest's own exit and a device's end: one run for each."""
    both = threading.Barrier(2)

    def act(m: pyvmm.Machine, value: int) -> None:
        both.wait(TIMEOUT)
        if value:
            m.reset()

    with machine(act, cpus=2) as m:
        exits = "mov al, 0; out 0x80, al; mov al, 5; out 0xf4, al; w: jmp w"
        load_all(m, exits, "mov al, 1; out 0x80, al; w: jmp w")
        reasons = {m.run(timeout=TIMEOUT).reason for _ in range(2)}
        assert reasons == {"exit", "reset"}


def test_pause_returns_it() -> None:
    asked, paused = threading.Event(), threading.Event()

    def act(m: pyvmm.Machine, value: int) -> None:
        m.exit(value)
        asked.set()
        paused.wait(TIMEOUT)

    with machine(act) as m:
        m.load(asm="mov al, 3; out 0x80, al; w: jmp w")
        m.start(timeout=TIMEOUT)
        assert asked.wait(TIMEOUT)
        stops: list[pyvmm.Stop] = []
        pausing = threading.Thread(target=lambda: stops.append(m.pause()))
        pausing.start()
        while m._runner.wanted is None:
            pass
        paused.set()
        pausing.join()
        assert stops[0].status == 3


def test_time_has_passed_meanwhile() -> None:
    def act(m: pyvmm.Machine, value: int) -> None:
        m.exit(value)
        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            pass

    with machine(act) as m:
        m.load(asm="mov al, 3; out 0x80, al; w: jmp w")
        assert m.run(timeout=0.01).status == 3


def test_expect_has_its_match_as_well() -> None:
    def act(m: pyvmm.Machine, value: int) -> None:
        m.console.native.print(b"bye")
        m.reset()

    with machine(act) as m:
        m.load(asm="out 0x80, al; w: jmp w")
        assert m.console.expect("bye", timeout=TIMEOUT)
        assert m.run(timeout=TIMEOUT).reason == "reset"


def test_a_step_tells_it_too() -> None:
    def act(m: pyvmm.Machine, value: int) -> None:
        m.reset()
        raise KeyError

    with machine(act) as m:
        m.load(asm="out 0x80, al; asked: nop; nop")
        with pytest.raises(KeyError):
            m.run(timeout=TIMEOUT)
        stop = m.step()
        assert (stop.reason, stop.where.symbol) == ("reset", "asked")
        assert m.step().where.offset == 1


def test_when_it_does_not_run() -> None:
    m = pyvmm.Machine()
    for end in ENDS.values():
        with pytest.raises(RuntimeError, match="the machine does not run"):
            end(m)
    m.close()
    for end in ENDS.values():
        with pytest.raises(ValueError, match="closed Machine"):
            end(m)


def test_while_it_is_being_closed() -> None:
    """The device did nothing wrong: the run ends as closed ones do."""
    inside = threading.Event()

    def act(m: pyvmm.Machine, value: int) -> None:
        inside.set()
        while not m._runner.closed:
            pass
        m.reset()

    with machine(act) as m:
        m.load(asm="out 0x80, al; w: jmp w")
        m.start(timeout=TIMEOUT)
        assert inside.wait(TIMEOUT)
        m.close()
        with pytest.raises(pyvmm.Error, match="closed while it ran"):
            m.wait(TIMEOUT)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("mov al, 0xfe; out 0x64, al", "reset"),
        ("mov al, 0xd1; out 0x64, al; mov al, 2; out 0x60, al", "reset"),
        ("mov dx, 0x606; mov al, 1; out dx, al", "reset"),
        ("mov dx, 0x604; mov ax, 0x3400; out dx, ax", "poweroff"),
    ],
)
def test_ready_made_devices(code, reason) -> None:
    with pyvmm.Machine() as m:
        m.attach(I8042())
        m.attach(AcpiPm())
        m.load(asm=f"{code}; mov al, 4; out 0xf4, al")
        assert m.run(timeout=TIMEOUT).reason == reason
        assert m.run(timeout=TIMEOUT).status == 4


def test_going_back_to_a_snapshot() -> None:
    """An end that is still to be told belongs to the state."""

    def act(m: pyvmm.Machine, value: int) -> None:
        m.reset()
        raise KeyError

    with machine(act) as m:
        m.load(asm="out 0x80, al; mov al, 7; out 0xf4, al")
        begin = m.snapshot()
        with pytest.raises(KeyError):
            m.run(timeout=TIMEOUT)
        asked = m.snapshot()
        for _ in range(2):
            m.restore(asked)
            assert m.run(timeout=TIMEOUT).reason == "reset"
            assert m.run(timeout=TIMEOUT).status == 7
        m.restore(asked)
        m.restore(begin)
        with pytest.raises(KeyError):
            m.run(timeout=TIMEOUT)

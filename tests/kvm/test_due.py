# SPDX-License-Identifier: Apache-2.0
"""VCPU.due_ns, and timers of devices in front of guests."""

import threading
import time

import pytest
from bare import exit

import pyvmm
from pyvmm import _vmm

pytestmark = pytest.mark.usefixtures("kvm")

SPIN = "spin: jmp spin\n"
HALT = "again: sti; hlt; jmp again\n"


class Stop(Exception):
    """What a call raises to end a run."""


def test_due_is_called_while_a_guest_spins(bare) -> None:
    machine = bare(SPIN)
    seen: list[int] = []

    def due():
        seen.append(time.monotonic_ns())
        assert threading.get_ident() == here
        assert machine.cpu.due_ns == 0
        raise Stop

    here = threading.get_ident()
    machine.cpu.on_due = due
    machine.cpu.due_ns = when = time.monotonic_ns() + 1_000_000
    with pytest.raises(Stop):
        machine.run()
    assert len(seen) == 1 and seen[0] >= when


def test_what_is_past_is_called_at_once(bare) -> None:
    machine = bare(SPIN)
    machine.cpu.on_due = lambda: machine.cpu.kick()
    machine.cpu.due_ns = 1
    assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.cpu.due_ns == 0


def test_a_halted_guest_that_waits_for_it_has_not_ended(bare) -> None:
    """It is not idle while something is due, and is once nothing is."""
    machine = bare(HALT, irqchip=True)
    seen: list[int] = []

    def due():
        seen.append(1)
        if len(seen) < 3:
            machine.cpu.due_ns = time.monotonic_ns() + 30_000_000

    machine.cpu.on_due = due
    machine.cpu.due_ns = time.monotonic_ns() + 30_000_000
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert len(seen) == 3


def test_halted_for_ever_has_ended_whatever_is_due(bare) -> None:
    machine = bare("cli; hlt\n", irqchip=True)
    machine.cpu.due_ns = time.monotonic_ns() + 10**12
    assert machine.run().reason == _vmm.EXIT_HALT


def test_due_set_by_a_device(bare) -> None:
    class Device:
        def read(self, offset, size):
            return 0

        def write(self, offset, size, value):
            machine.cpu.due_ns = time.monotonic_ns() + 100_000

    machine = bare(
        f"mov dx, 0x500; out dx, al\n{SPIN}", ports={0x500: Device()}
    )
    machine.cpu.on_due = lambda: machine.cpu.kick()
    assert machine.run().reason == _vmm.EXIT_KICK


def test_due_set_by_another_thread(bare) -> None:
    machine = bare(SPIN)
    machine.cpu.on_due = lambda: machine.cpu.kick()
    inside = threading.Event()

    class Device:
        def read(self, offset, size):
            return 0

        def write(self, offset, size, value):
            inside.set()

    machine.vm.pio.add(0x500, 16, Device())
    machine.memory.write(0x10000, b"\xba\x00\x05\x00\x00\xee\xeb\xfe")

    def other():
        inside.wait()
        machine.cpu.due_ns = time.monotonic_ns() + 100_000

    thread = threading.Thread(target=other)
    thread.start()
    assert machine.run().reason == _vmm.EXIT_KICK
    thread.join()


def test_what_is_always_due_leaves_the_guest_some_time(bare) -> None:
    machine = bare(f"mov ecx, 20000\nnext: dec ecx; jnz next\n{exit(3)}")

    def due():
        machine.cpu.due_ns = 1

    machine.cpu.on_due = due
    machine.cpu.due_ns = 1
    assert machine.status() == 3


def test_putting_it_off_does_not_put_off_timeouts(bare) -> None:
    """A guest that arms a device's timer all the time is still stopped."""

    class Device:
        def read(self, offset, size):
            return 0

        def write(self, offset, size, value):
            machine.cpu.due_ns = time.monotonic_ns() + 4_000_000

    machine = bare(
        "mov dx, 0x500\nnext: out dx, al; jmp next", ports={0x500: Device()}
    )
    assert machine.run(0.1).reason == _vmm.EXIT_TIMEOUT


def test_attributes(bare) -> None:
    cpu = bare(SPIN).cpu
    assert (cpu.due_ns, cpu.on_due) == (0, None)
    cpu.on_due = print
    assert cpu.on_due is print
    cpu.on_due = None
    with pytest.raises(TypeError, match="on_due must be callable, not"):
        cpu.on_due = 3
    for value in (-1, 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            cpu.due_ns = value
    with pytest.raises(TypeError):
        del cpu.due_ns
    assert cpu.due_ns == 0


# -- devices -------------------------------------------------------------------


class Alarm(pyvmm.Device):
    """Interrupts `period` microseconds after `go` is written."""

    size = 0x10
    irq = pyvmm.Irq()
    period = pyvmm.Reg(0x0, 4)
    go = pyvmm.Reg(0x4, 4, access="wo")
    fired = pyvmm.Reg(0x8, 4, access="w1c")

    @go.on_write
    def arm(self, value):
        self.after(self.period / 1e6, self.ring)

    def ring(self):
        self.fired = 1
        self.irq.pulse()


ALARM_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static struct arg_device alarm;
static volatile unsigned rings;

static void on_ring(void *data)
{
    (void)data;
    rings += read32(alarm.base + 8);
    write32(alarm.base + 8, 1);
}

int main(void)
{
    assert(arg_device("alarm", &alarm));
    assert(irq_request(alarm.line, on_ring, NULL));
    for (unsigned i = 1; i <= 5; i++) {
        write32(alarm.base, 1000 * i);
        write32(alarm.base + 4, 1);
        while (rings < i)
            irq_wait();
    }
    print("period %u, rings %u, fired %u, go %u\\n", read32(alarm.base), rings,
          read32(alarm.base + 8), read32(alarm.base + 4));
    return 0;
}
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_alarm(cpus: int) -> None:
    with pyvmm.Machine(cpus=cpus) as m:
        alarm = m.attach(Alarm())
        m.load(c=ALARM_GUEST)
        assert m.run(timeout=20).status == 0
    assert m.console.text == "period 5000, rings 5, fired 0, go 0\n"
    assert repr(alarm) == (
        f"<Alarm mmio {alarm.base:#x}+0x10 period=0x1388 go=0x1 fired=0x0>"
    )


class Ticker(pyvmm.Device):
    size = 1
    count = 0

    def attached(self):
        self.every(0.001, self.tick)

    def tick(self):
        self.count += 1
        if self.count == 5:
            self.machine.memory.write_u8(0x10_0100, 7)


def test_every_before_there_is_a_vm() -> None:
    with pyvmm.Machine() as m:
        ticker = m.attach(Ticker())
        m.load(asm="next: mov al, [0x100100]; or al, al; jz next; out 0xf4, al")
        assert m.run(timeout=20).status == 7
    assert ticker.count >= 5


def test_what_a_timer_raises_leaves_run() -> None:
    class Bad(Ticker):
        def tick(self):
            raise Stop("oh")

    with pyvmm.Machine() as m:
        m.attach(Bad())
        m.load(asm="next: jmp next")
        with pytest.raises(Stop) as info:
            m.run(timeout=20)
    assert info.value.__notes__[0].startswith("in a timer's call: <Timer Bad")


def test_a_timer_may_pause_the_machine_and_close_it() -> None:
    class Last(Ticker):
        def tick(self):
            self.machine.close()

    m = pyvmm.Machine()
    m.attach(Last())
    m.load(asm="next: jmp next")
    with pytest.raises(pyvmm.Error, match="was closed while it ran"):
        m.run(timeout=20)
    assert m.closed


def test_timers_from_the_host() -> None:
    """Another thread may start one while the guest runs."""
    seen = threading.Event()

    class Quiet(pyvmm.Device):
        size = 1

    with pyvmm.Machine() as m:
        quiet = m.attach(Quiet())
        m.load(asm="next: jmp next")
        m.start(timeout=20)
        quiet.after(0.001, seen.set)
        assert seen.wait(20)
        assert m.pause().reason == "pause"

# SPDX-License-Identifier: Apache-2.0
"""What is left behind: fds, threads, mappings, references."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import CODE, LIMIT, MMIO, Bare, Device, exit

from pyvmm import _vmm


def falls_to(measure: Callable[[], int], most: int) -> bool:
    """A thread that has ended is in the kernel's books a moment longer."""
    end = time.monotonic() + LIMIT
    while measure() > most and time.monotonic() < end:
        os.sched_yield()
    return measure() <= most


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


class Holdings:
    """What this process has of the kernel."""

    def __init__(self) -> None:
        gc.collect()
        _vmm.reap()
        self.fds = len(os.listdir("/proc/self/fd"))
        self.threads = threads()
        text = Path("/proc/self/maps").read_text().splitlines()
        self.vcpus = sum("kvm-vcpu" in line for line in text)
        self.memfds = sum("pyvmm" in line and "memfd" in line for line in text)
        self.maps = len(text)

    def no_more_than(self, before: "Holdings") -> None:
        assert self.fds <= before.fds
        assert falls_to(threads, before.threads)
        assert (self.vcpus, self.memfds) == (before.vcpus, before.memfds)
        # malloc maps for itself, once in a while.
        assert self.maps <= before.maps + 8


def cycle(kvm: _vmm.KVM, **options) -> None:
    machine = Bare(kvm, exit(1), devices={MMIO: Device()}, **options)
    assert machine.status() == 1
    machine.close()


def test_200_machines_leave_nothing(kvm) -> None:
    shared = ((0x400000, 0x10000, _vmm.MEM_SHARED),)
    for _ in range(5):
        cycle(kvm, regions=shared)
    before = Holdings()
    for _ in range(200):
        cycle(kvm, regions=shared)
    Holdings().no_more_than(before)


def test_machines_that_nobody_closes(kvm) -> None:
    cycle(kvm)
    before = Holdings()
    for _ in range(20):
        Bare(kvm, exit(1), devices={MMIO: Device()}).status()
    Holdings().no_more_than(before)


def test_many_vcpus_and_a_pit(kvm) -> None:
    cycle(kvm)
    before = Holdings()
    for _ in range(5):
        machine = Bare(kvm, exit(1), cpus=8)
        machine.vm.create_pit()
        assert machine.status() == 1
        machine.close()
    Holdings().no_more_than(before)


def test_refused_machines_leave_nothing(kvm) -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    with pytest.raises(OSError):
        _vmm.VM(kvm, memory, tss_addr=0xFFFF_E000)
    before = Holdings()
    for _ in range(50):
        with pytest.raises(OSError):
            _vmm.VM(kvm, memory, tss_addr=0xFFFF_E000)
    Holdings().no_more_than(before)
    memory.close()


def test_threads_that_ran_a_guest(kvm) -> None:
    """Each had a timer of its own, which goes with it."""
    machine = Bare(kvm, exit(1))

    def run() -> None:
        machine.regs.rip = CODE
        machine.status()

    def timers() -> int:
        text = Path("/proc/self/timers").read_text()
        return text.count("ID:")

    run()
    before = timers()
    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(LIMIT)
    assert falls_to(timers, before)
    machine.close()


@pytest.mark.parametrize("close", [True, False])
def test_a_device_that_refers_to_its_vm(kvm, close) -> None:
    class Owner(Device):
        pass

    cycle(kvm)
    before = Holdings()
    machine = Bare(kvm, exit(1))
    device = Owner()
    device.machine = machine  # vm -> bus -> device -> machine -> vm
    machine.vm.mmio.add(MMIO, 16, device)
    gone = weakref.ref(device)
    assert machine.status() == 1
    if close:
        machine.close()
    del machine, device
    gc.collect()
    assert gone() is None
    Holdings().no_more_than(before)


def test_a_console_that_refers_to_its_vm(kvm) -> None:
    cycle(kvm)
    before = Holdings()
    machine = Bare(kvm, exit(1))
    machine.console.on_output = lambda m=machine: m
    gone = weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None
    Holdings().no_more_than(before)


def test_a_trace_that_refers_to_its_vcpu(kvm) -> None:
    cycle(kvm)
    before = Holdings()
    machine = Bare(kvm, exit(1))
    machine.cpu.trace = lambda stop, m=machine: m
    assert machine.status() == 1
    gone = weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None
    Holdings().no_more_than(before)


def test_a_removed_device_is_let_go(kvm) -> None:
    machine = Bare(kvm, exit(1))
    device = Device()
    gone = weakref.ref(device)
    machine.vm.mmio.add(MMIO, 16, device)
    del device
    assert gone() is not None
    machine.vm.mmio.remove(MMIO)
    assert gone() is None
    machine.close()


def test_close_lets_devices_go(kvm) -> None:
    machine = Bare(kvm, exit(1))
    device = Device()
    gone = weakref.ref(device)
    machine.vm.mmio.add(MMIO, 16, device)
    del device
    machine.close()
    assert gone() is None


def test_ram_goes_when_all_its_users_have(kvm) -> None:
    def ram() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:pyvmm")

    machine = Bare(kvm, exit(1), regions=((0x400000, 4096, _vmm.MEM_SHARED),))
    before = ram()
    view = machine.memory.view(0x400000, 16)
    part = view[4:8]
    machine.memory.close()
    assert ram() == before  # the VM and a view
    machine.close()
    assert ram() == before  # a view
    view.release()
    del view
    assert ram() == before  # a part of it
    part.release()
    del part
    gc.collect()
    assert ram() == before - 1


def test_a_vcpu_outlives_its_name(kvm) -> None:
    """The vCPU keeps the VM, the VM the memory."""
    machine = Bare(kvm, exit(9))
    cpu = machine.cpu
    del machine
    gc.collect()
    stop = cpu.run(LIMIT)
    assert (stop.reason, stop.value) == (_vmm.EXIT_STOP, 9)


def test_python_ends_while_a_guest_spins() -> None:
    """On the main thread's end, with a daemon thread inside run()."""
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv[1])\n"
        "from bare import Bare, Device, MMIO\n"
        "from pyvmm import _vmm\n"
        "entered = threading.Event()\n"
        "class Gate(Device):\n"
        "    def write(self, *_): entered.set()\n"
        "m = Bare(_vmm.KVM(), f'mov [{MMIO}], al; l: jmp l',\n"
        "         devices={MMIO: Gate()})\n"
        "threading.Thread(target=m.run, args=(None,), daemon=True).start()\n"
        "entered.wait(60)\n"
        "print('bye')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")

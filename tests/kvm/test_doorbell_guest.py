# SPDX-License-Identifier: Apache-2.0
"""Doorbells that a guest rings: by eventfds, on the device's worker."""

import os
import threading
from collections.abc import Iterator

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

BASE = 0xD000_0000


class Ring(pyvmm.Device):
    """Ends the run with the value of `arg` when it is told to stop."""

    size = 0x40
    ports = pyvmm.Range(8, port=0x300)
    data = pyvmm.Reg(0x0, 4, posted=1000)
    arg = pyvmm.Reg(0x4, 4)
    go = pyvmm.Doorbell(0x20, 4, match=1)
    stop = pyvmm.Doorbell(0x20, 4, match=2)
    port = pyvmm.Doorbell(0x0, 1, range=ports)

    def __init__(self) -> None:
        self.log: list[object] = []
        self.threads: set[str] = set()

    @data.on_writes
    def got(self, values):
        self.log += values

    @go.on_ring
    def on_go(self):
        self.threads.add(threading.current_thread().name)
        self.log.append("go")

    @stop.on_ring
    def on_stop(self):
        self.log.append("stop")
        self.machine.exit(self.arg)

    @port.on_ring
    def on_port(self):
        self.machine.exit(self.arg + 1)


@pytest.fixture
def m() -> Iterator[pyvmm.Machine]:
    with pyvmm.Machine() as machine:
        yield machine


def ring(value: int) -> str:
    return f"mov dword ptr [{BASE + 0x20}], {value};"


def put(value: int) -> str:
    return f"mov dword ptr [{BASE}], {value};"


def test_on_the_devices_worker(m) -> None:
    device = m.attach(Ring())
    # What it does not match, or is of another size, does not ring.
    m.load(
        asm=f"mov dword ptr [{BASE + 4}], 77;"
        + ring(3)
        + ring(1)
        + f"mov word ptr [{BASE + 0x22}], 2;"
        + ring(2)
        + "jmp ."
    )
    assert m.run(timeout=20).status == 77
    assert device.log == ["go", "stop"]
    (name,) = device.threads
    assert "ring" in name
    assert name != threading.current_thread().name


def test_the_write_does_not_exit(m) -> None:
    m.attach(Ring())
    m.load(asm=ring(1) * 1000 + ring(2) + "jmp .")
    m.run(timeout=20)
    assert m.cpu.vcpu.exits < 500


def test_at_a_port(m) -> None:
    m.attach(Ring())
    m.load(asm="mov dx, 0x300; out dx, al; jmp .")
    assert m.run(timeout=20).status == 1


def test_what_was_posted_comes_first(m) -> None:
    """Also what KVM has kept back, of which nobody was told."""
    device = m.attach(Ring())
    m.load(asm=put(1) + put(2) + ring(2) + "jmp .")
    m.run(timeout=20)
    assert device.log == [1, 2, "stop"]


def test_an_exception_leaves_run(m) -> None:
    class Broken(Ring):
        def on_go(self):
            raise ZeroDivisionError("go")

    device = m.attach(Broken())
    m.load(asm=ring(1) + "jmp .")
    with pytest.raises(ZeroDivisionError, match="go") as caught:
        m.run(timeout=20)
    assert "on the worker thread of broken" in "".join(caught.value.__notes__)
    assert device.log == []


def test_the_host_may_ring(m) -> None:
    """Through the bus, and by an access of another size of the guest's."""
    device = m.attach(Ring())
    m.vm.mmio.write(BASE + 0x20, 4, 1)
    m.load(asm=f"mov byte ptr [{BASE + 0x20}], 2; jmp .")
    assert m.run(timeout=20).status == 0
    assert device.log == ["go", "stop"]
    assert device.threads != {threading.current_thread().name}


def test_what_is_detached_is_gone(m) -> None:
    device = m.attach(Ring())
    m.vm.strict = False
    m.load(asm=ring(2) + "jmp .")
    m.detach(device)
    again = m.attach(Ring())  # the same place is free for another
    assert m.run(timeout=20).status == 0
    assert (device.log, again.log) == ([], ["stop"])
    with pytest.raises(AttributeError):
        device.write(0x20, 4, 2)  # calls by itself, without a machine


def test_what_the_kernel_refuses_leaves_nothing(m) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    m.vm.ioeventfd(fd, BASE + 0x20, 4, match=2)
    device = Ring()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="KVM_IOEVENTFD"):
        m.attach(device)
    assert m.devices == [] and device._bells == {} and device.base is None
    assert set(os.listdir("/proc/self/fd")) == before
    m.vm.remove_ioeventfd(fd, BASE + 0x20, 4, match=2)
    m.attach(device)
    m.load(asm=ring(2) + "jmp .")
    assert m.run(timeout=20).status == 0
    os.close(fd)


def test_closing_with_one_that_rings(m) -> None:
    """A ring that nobody has answered is no obstacle."""
    device = m.attach(Ring())
    m.load(asm=ring(1) + "out 0xf4, al")
    m.run(timeout=20)
    m.close()
    assert device._bells == {}
    assert len(device.log) <= 1

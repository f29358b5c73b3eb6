# SPDX-License-Identifier: Apache-2.0
"""KVM objects in the child of a fork, which they do not survive."""

import os
import traceback
from collections.abc import Callable

from bare import CODE, MMIO, Bare, Device, exit

import pyvmm
from pyvmm import _vmm


def in_child(function: Callable[[], object]) -> None:
    """Runs the function in a forked child, which must pass it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(*calls: Callable[[], object]) -> None:
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            assert "before fork()" in str(error), error
        else:
            raise AssertionError("the child may use it")


def test_the_child_is_refused(kvm, bare) -> None:
    machine = bare(exit(3))

    def child() -> None:
        cpu, vm = machine.cpu, machine.vm
        refused(
            cpu.run,
            cpu.kick,
            cpu.nmi,
            lambda: cpu.get("regs"),
            lambda: cpu.set("regs", bytes(144)),
            lambda: cpu.start("protected", bytes(144)),
            lambda: cpu.get_msrs([0x10]),
            cpu.debug,
            vm.create_irqchip,
            vm.create_pit,
            vm.fileno,
            lambda: vm.irq_line(1, True),
            lambda: vm.msi(0xFEE00000, 0x40),
            lambda: vm.irqfd(0, 1),
            lambda: vm.ioeventfd(0, MMIO),
            lambda: vm.coalesce(MMIO, 4),
            lambda: vm.remove_coalesce(MMIO, 4),
            lambda: _vmm.VCPU(vm, cpus=2),
            lambda: _vmm.VM(kvm, _vmm.Memory()),
            lambda: kvm.check(3),
            kvm.msr_indices,
        )

    in_child(child)
    assert machine.status() == 3


def test_the_parent_goes_on(bare) -> None:
    """A fork in the middle of a run, from a device's method."""

    class Forks(Device):
        def read(self, offset: int, size: int) -> int:
            in_child(lambda: refused(lambda: machine.cpu.get("regs")))
            return 0x21

    machine = bare(f"mov al, [{MMIO}]; out 0xf4, al", devices={MMIO: Forks()})
    for _ in range(3):
        assert machine.status() == 0x21
        machine.regs.rip = CODE


def test_the_child_makes_its_own(bare) -> None:
    """With the kick's timer of its own: the parent's did not survive."""
    machine = bare("l: jmp l")
    assert machine.run(0.001).reason == _vmm.EXIT_TIMEOUT

    def child() -> None:
        own = Bare(_vmm.KVM(), exit(5))
        assert own.status() == 5
        own.close()
        spin = Bare(_vmm.KVM(), "l: jmp l")
        assert spin.run(0.001).reason == _vmm.EXIT_TIMEOUT
        halt = Bare(_vmm.KVM(), "cli; hlt")
        assert halt.run(None).reason == _vmm.EXIT_HALT
        spin.close()
        halt.close()
        _vmm.reap()

    in_child(child)
    assert machine.run(0.001).reason == _vmm.EXIT_TIMEOUT


def test_the_child_may_close(bare) -> None:
    """Its copies of the fds; the parent's machine lives."""
    machine = bare(exit(3))

    def child() -> None:
        machine.vm.close()
        assert machine.vm.closed
        _vmm.reap()

    in_child(child)
    assert machine.status() == 3


def test_memory_is_the_childs_too(bare) -> None:
    """RAM is memory like any other: a private copy after the fork."""
    machine = bare(f"mov dword ptr [{0x20000}], 7\n" + exit(3))
    machine.status()

    def child() -> None:
        assert machine.memory.read_u32(0x20000) == 7
        machine.memory.write_u32(0x20000, 8)
        own = _vmm.VM(_vmm.KVM(), machine.memory)
        own.close()

    in_child(child)
    assert machine.memory.read_u32(0x20000) == 7


def test_posted_writes_are_the_parents(bare) -> None:
    """The child has a copy of those in C, and leaves the kernel's alone."""

    class Fifo(pyvmm.Device):
        data = pyvmm.Reg(0x0, 4, posted=100)
        forks = pyvmm.Reg(0x4, 4)

        def __init__(self) -> None:
            self.log: list[int] = []

        @data.on_writes
        def got(self, values):
            self.log += values

        @forks.on_write
        def fork(self, value):
            in_child(self.drain)

    with pyvmm.Machine() as m:
        fifo = m.attach(Fifo())
        m.load(
            asm="mov eax, 5; mov [0xd0000000], eax; mov [0xd0000004], eax;"
            "inc eax; mov [0xd0000000], eax; out 0xf4, al"
        )
        assert m.run(timeout=20).status == 6
        m.vm.mmio.write(0xD000_0000, 4, 7)
        in_child(m.vm.collect)
        assert fifo.log == [5, 6]
        fifo.drain()
        assert fifo.log == [5, 6, 7]


def test_a_child_that_does_nothing_leaves_quietly(bare) -> None:
    machine = bare(exit(3))
    in_child(lambda: None)
    assert machine.status() == 3

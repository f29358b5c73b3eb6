# SPDX-License-Identifier: Apache-2.0
"""VM: creation, its refusals, memory slots of every kind."""

import errno
import mmap
import os

import pytest
from bare import (
    CODE,
    MMIO,
    RAM,
    Bare,
    Device,
    assemble,
    exit,
    pack_regs,
)

from pyvmm import _vmm

GIB = 1 << 30


def test_kvm_says_what_the_host_can(kvm) -> None:
    assert kvm.max_vcpus >= 1
    assert kvm.max_slots >= 32
    assert kvm.check(3) == 1  # KVM_CAP_USER_MEMORY
    assert kvm.check(0x7FFF_FFFF) == 0
    leaves = [entry[0] for entry in kvm.cpuid]
    assert 0 in leaves and 1 in leaves
    assert 0x10 not in leaves or kvm.msr_indices()
    assert repr(kvm).startswith("<KVM fd ")


def test_closed_kvm_makes_no_vm() -> None:
    own = _vmm.KVM()
    own.close()
    own.close()
    assert own.closed and repr(own) == "<KVM closed>"
    with pytest.raises(ValueError, match="closed KVM"):
        _vmm.VM(own, _vmm.Memory())


def test_vm_outlives_the_kvm_it_came_from() -> None:
    own = _vmm.KVM()
    machine = Bare(own, exit(3))
    own.close()
    del own
    assert machine.status() == 3
    machine.close()


@pytest.mark.parametrize("tss", [_vmm.TSS_ADDR, _vmm.TSS_ADDR_FIRMWARE])
def test_tss_addresses(kvm, tss) -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    _vmm.VM(kvm, memory, tss_addr=tss).close()


def test_tss_address_refused(kvm) -> None:
    with pytest.raises(ValueError, match="tss_addr"):
        _vmm.VM(kvm, _vmm.Memory(), tss_addr=1 << 32)
    with pytest.raises(OSError, match="KVM_SET_TSS_ADDR") as caught:
        _vmm.VM(kvm, _vmm.Memory(), tss_addr=0xFFFF_E000)
    assert caught.value.errno == errno.EINVAL
    assert "below 4 GiB" in str(caught.value)


def test_a_vm_freezes_its_memory(kvm) -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    vm = _vmm.VM(kvm, memory)
    with pytest.raises(ValueError, match="regions are added before"):
        memory.add(0x10000, 4096)
    vm.close()


def test_irqchip_once_and_before_the_vcpus(bare) -> None:
    machine = bare()
    with pytest.raises(OSError, match="KVM_CREATE_IRQCHIP") as caught:
        machine.vm.create_irqchip()
    assert caught.value.errno in (errno.EEXIST, errno.EINVAL)
    assert "irqchip" in repr(machine.vm)
    late = bare(irqchip=False)
    with pytest.raises(OSError, match="KVM_CREATE_IRQCHIP") as caught:
        late.vm.create_irqchip()
    assert caught.value.errno == errno.EINVAL
    assert "before the first vCPU" in str(caught.value)


def test_pit(kvm) -> None:
    memory = _vmm.Memory()
    memory.add(0, 4096)
    vm = _vmm.VM(kvm, memory)
    with pytest.raises(OSError, match="KVM_CREATE_PIT2") as caught:
        vm.create_pit()
    assert "interrupt controller first" in str(caught.value)
    vm.create_irqchip()
    vm.create_pit()
    assert "PIT" in repr(vm)
    with pytest.raises(OSError, match=r"KVM_CREATE_PIT2.*has a PIT"):
        vm.create_pit()
    vm.close()


def test_the_pit_counts(kvm) -> None:
    """Port 0x40 is answered by the kernel: nobody here claims it."""
    memory = _vmm.Memory()
    memory.add(0, RAM)
    code = "in al, 0x61; mov al, 0; out 0x43, al; in al, 0x40\n" + exit(1)
    memory.write(CODE, assemble(code, 32))
    vm = _vmm.VM(kvm, memory)
    vm.create_irqchip()
    vm.create_pit()
    vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
    cpu = _vmm.VCPU(vm)
    cpu.start("protected", pack_regs(rip=CODE))
    assert cpu.run(60).value == 1
    vm.close()


@pytest.mark.parametrize(
    ("method", "args", "call"),
    [
        ("irq_line", (3, True), "KVM_IRQ_LINE"),
        ("msi", (0xFEE00000, 0x40), "KVM_SIGNAL_MSI"),
        ("route_pin", (3, 3), "KVM_SET_GSI_ROUTING"),
        ("route_msi", (3, 0xFEE00000, 0x40), "KVM_SET_GSI_ROUTING"),
    ],
)
def test_interrupts_need_an_irqchip(bare, method, args, call) -> None:
    machine = bare(irqchip=False)
    with pytest.raises(OSError, match=f"{call}: .*interrupt controller"):
        getattr(machine.vm, method)(*args)


def test_too_many_vcpus(kvm, bare) -> None:
    machine = bare()
    with pytest.raises(ValueError, match="cpus 1 is outside 2"):
        _vmm.VCPU(machine.vm)
    with pytest.raises(ValueError, match="the host's limit"):
        _vmm.VCPU(machine.vm, cpus=kvm.max_vcpus + 1)
    with pytest.raises(TypeError, match="expected a VM"):
        _vmm.VCPU(machine.memory)


def test_closed_vm(bare) -> None:
    machine = bare()
    machine.vm.close()
    machine.vm.close()
    assert machine.vm.closed and machine.cpu.closed
    assert repr(machine.vm) == "<VM closed>"
    assert repr(machine.cpu) == "<VCPU closed>"
    for call in (
        machine.vm.create_irqchip,
        machine.vm.fileno,
        lambda: machine.vm.irq_line(1, True),
        lambda: machine.vm.pio,
        lambda: _vmm.VCPU(machine.vm, cpus=2),
    ):
        with pytest.raises(ValueError, match="closed VM"):
            call()
    for call in (
        machine.cpu.run,
        machine.cpu.kick,
        lambda: machine.cpu.get("regs"),
        lambda: machine.cpu.set("regs", bytes(144)),
        lambda: machine.cpu.start("real", bytes(144)),
    ):
        with pytest.raises(ValueError, match="closed VCPU"):
            call()


def test_bus_of_a_closed_vm(bare) -> None:
    machine = bare()
    bus = machine.vm.pio
    machine.vm.close()
    with pytest.raises(ValueError, match="closed Bus"):
        bus.find(0xF4)
    assert repr(bus) == "<Bus closed>"


# -- memory slots ------------------------------------------------------------


def test_read_only_region(bare) -> None:
    """Reads are plain memory; a write exits like any that nobody claims."""
    rom = 0x400000
    code = f"mov eax, [{rom}]; mov [{rom + 8}], eax\n" + exit(5)
    machine = bare(code, regions=((rom, 4096, _vmm.MEM_READONLY),))
    machine.memory.write_u32(rom, 0x1234)
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED
    assert (stop.write, stop.addr, stop.size) == (True, rom + 8, 4)
    assert stop.value == 0x1234
    assert machine.memory.read_u32(rom + 8) == 0
    assert machine.status() == 5
    assert machine.memory.read_u32(rom + 8) == 0


def test_device_over_a_read_only_region(bare) -> None:
    """Flash memory: reads from RAM, writes to a device."""
    rom, flash = 0x400000, Device()
    code = f"mov eax, [{rom}]; mov [{rom + 8}], al\n" + exit(0)
    machine = bare(
        code,
        regions=((rom, 4096, _vmm.MEM_READONLY),),
        devices={rom: flash},
    )
    machine.memory.write_u32(rom, 0x42)
    machine.status()
    assert flash.log == [("w", 8, 1, 0x42)]


@pytest.mark.parametrize("mode", ["long", "user"])
def test_region_above_4_gib(bare, mode) -> None:
    high = 5 * GIB
    code = f"""
        mov rsi, {high + 8}
        mov rax, [rsi]
        add rax, 1
        mov [rsi + 4096], rax
    """
    machine = bare(
        code + exit(6), mode, regions=((high, 0x2000),), span=6 * GIB
    )
    machine.memory.write_u64(high + 8, 0x1_2345_6789)
    assert machine.status() == 6
    assert machine.memory.read_u64(high + 8 + 4096) == 0x1_2345_678A


def test_access_across_adjacent_regions(bare) -> None:
    """Two slots side by side are one memory to the guest."""
    edge = RAM + 0x1000
    code = f"mov dword ptr [{edge - 2}], 0x44332211\n" + exit(0)
    machine = bare(code, regions=((RAM, 0x1000), (edge, 0x1000)))
    machine.status()
    assert machine.memory.read(edge - 2, 4) == b"\x11\x22\x33\x44"


def test_hole_is_nobodys(bare) -> None:
    machine = bare(f"mov al, [{RAM}]\n" + exit(0), regions=((RAM * 2, 4096),))
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED
    assert (stop.addr, stop.size, stop.write) == (RAM, 1, False)


def test_shared_region_is_one_with_its_memfd(bare) -> None:
    shared = 0x400000
    code = f"mov eax, [{shared}]; inc eax; mov [{shared + 4096}], eax\n"
    machine = bare(code + exit(0), regions=((shared, 0x2000, _vmm.MEM_SHARED),))
    regions = machine.memory.regions
    assert [r[3] == -1 for r in regions] == [True, False]
    gpa, size, flags, fd = regions[1]
    assert (gpa, size, flags) == (shared, 0x2000, _vmm.MEM_SHARED)
    with mmap.mmap(fd, size) as twin:
        twin[0:4] = (41).to_bytes(4, "little")
        machine.status()
        assert int.from_bytes(twin[4096:4100], "little") == 42
    assert not os.get_inheritable(fd)


def test_huge_pages_or_a_named_refusal(kvm) -> None:
    memory = _vmm.Memory()
    try:
        memory.add(0, 4 << 20, _vmm.MEM_HUGE)
    except OSError as refused:
        assert refused.errno == errno.EINVAL
        assert "madvise(MADV_HUGEPAGE)" in str(refused)
        assert memory.regions == []
    else:
        memory.write(CODE, assemble(exit(1), 32))
        _vmm.VM(kvm, memory).close()


def test_ram_lives_as_long_as_a_view(bare) -> None:
    machine = bare("mov dword ptr [0x20000], 0x64636261\n" + exit(0))
    view = machine.memory.view(0x20000, 4)
    machine.status()
    machine.vm.close()
    machine.memory.close()
    assert machine.memory.closed
    with pytest.raises(ValueError, match="closed Memory"):
        machine.memory.read(0, 1)
    assert bytes(view) == b"abcd"
    view[0] = 0x7A
    assert bytes(view) == b"zbcd"


def test_slot_over_kvms_own_page_is_refused(kvm) -> None:
    """The APIC page: a slot there is refused once a vCPU needs it, or at once,
    or never (an emulated APIC needs no page)."""
    memory = _vmm.Memory()
    memory.add(0xFEE00000, 4096)
    try:
        vm = _vmm.VM(kvm, memory)
        vm.create_irqchip()
        _vmm.VCPU(vm)
    except OSError as refused:
        assert "KVM_" in str(refused)
    else:
        vm.close()


def test_unclaimed_has_limits(bare) -> None:
    """strict and wakers are attributes with types."""
    machine = bare()
    assert machine.vm.strict is True and machine.vm.wakers == 0
    machine.vm.strict = 0
    assert machine.vm.strict is False
    with pytest.raises(ValueError, match="wakers -1"):
        machine.vm.wakers = -1
    with pytest.raises(TypeError):
        del machine.vm.strict
    with pytest.raises(TypeError):
        del machine.vm.wakers


def test_buses(bare) -> None:
    vm, device = bare().vm, Device()
    vm.pio.add(0x500, 4, device)
    with pytest.raises(
        ValueError, match=r"0x503\.\.0x503 overlaps 0x500\.\.0x503"
    ):
        vm.pio.add(0x503, 1, device)
    with pytest.raises(ValueError, match="no range up to 0xffff"):
        vm.pio.add(0xFFFF, 2, device)
    with pytest.raises(ValueError, match="size 0"):
        vm.pio.add(0x600, 0, device)
    with pytest.raises(TypeError, match="no method read"):
        vm.pio.add(0x600, 1, object())
    with pytest.raises(ValueError, match="takes 5 addresses, not 4"):
        vm.pio.add(0x600, 4, _vmm.Console())
    assert vm.pio.find(0x500) is device and vm.pio.find(0x503, 1) is device
    assert vm.pio.find(0x503, 2) is None and vm.mmio.find(0x500) is None
    assert (0x500, 4, device) in vm.pio.ranges
    assert vm.pio.read(0x500, 2) == 0x2211
    vm.pio.write(0x502, 1, 9)
    assert device.log == [("r", 0, 2), ("w", 2, 1, 9)]
    with pytest.raises(ValueError, match="nobody claims 2 bytes at 0x503"):
        vm.pio.read(0x503, 2)
    vm.pio.remove(0x500)
    assert vm.pio.find(0x500) is None
    with pytest.raises(ValueError, match="no range starts at"):
        vm.pio.remove(0x500)
    vm.mmio.add(2**64 - 8, 8, device)
    assert vm.mmio.find(2**64 - 1) is device
    vm.mmio.add(MMIO, 2**33, device)
    assert vm.mmio.find(MMIO + 2**33 - 1) is device


STORES = "mov ecx, 40; next: mov [0xd0000000], ecx; dec ecx; jnz next\n"


def test_writes_that_wait_in_the_kernel(kvm, bare) -> None:
    """They do not exit, and are done before the next exit is handled."""
    device = Device()
    machine = bare(STORES + exit(0), devices={MMIO: device})
    can = kvm.check(15) > 0  # KVM_CAP_COALESCED_MMIO
    assert machine.vm.coalesce(MMIO, 4) is can
    assert machine.status() == 0
    assert device.log == [("w", 0, 4, left) for left in range(40, 0, -1)]
    if can:
        assert machine.cpu.exits < 20
    machine.vm.remove_coalesce(MMIO, 4)
    machine.regs.rip = CODE
    before = machine.cpu.exits
    assert machine.status() == 0
    assert machine.cpu.exits - before >= 41
    machine.vm.collect()
    assert len(device.log) == 80


def test_the_kernels_ring_has_no_end(bare) -> None:
    """When it is full the write exits: behind those that wait."""
    device = Device()
    machine = bare(
        STORES.replace("40", "1000") + exit(0), devices={MMIO: device}
    )
    machine.vm.coalesce(MMIO, 4)
    assert machine.status() == 0
    assert [entry[3] for entry in device.log] == [*range(1000, 0, -1)]


def test_what_cannot_be_coalesced(kvm) -> None:
    memory = _vmm.Memory()
    memory.add(0, 0x1000)
    vm = _vmm.VM(kvm, memory)
    assert vm.coalesce(MMIO, 4) is False  # no vCPU yet
    vm.collect()
    with pytest.raises(ValueError, match="addr -1 is outside"):
        vm.coalesce(-1, 4)
    with pytest.raises(ValueError, match="size 4294967296 is outside"):
        vm.coalesce(MMIO, 1 << 32)
    vm.close()
    vm.collect()
    with pytest.raises(ValueError, match="closed"):
        vm.coalesce(MMIO, 4)


def test_coalesced_writes_that_nobody_claims(bare) -> None:
    machine = bare(STORES + exit(0))
    if not machine.vm.coalesce(MMIO, 4):
        return
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED and stop.value == 40
    # The others wait no longer; that the guest has ended is the next run's.
    assert machine.vm.unclaimed == 39
    before = machine.cpu.exits
    assert machine.status() == 0
    assert machine.cpu.exits == before

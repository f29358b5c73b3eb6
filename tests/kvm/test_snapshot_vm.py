# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a VM: what comes back, what a clone shares, what is refused."""

import os
import struct
from itertools import pairwise

import pytest
from bare import RAM, exit, on_interrupt

from pyvmm import _vmm

DATA = 0x40000
PARTS = (
    "regs", "sregs", "events", "xsave", "xcrs", "debugregs", "lapic",
    "mp_state",
)  # fmt: skip

# Counts in memory and in a register, and says both.
COUNTER = f"""
    mov ebx, {DATA}
again:
    inc dword ptr [ebx]
    inc ecx
    mov eax, [ebx]
    shl eax, 8
    or eax, ecx
    out 0xf4, eax
    jmp again
"""


def state(machine) -> dict[str, bytes]:
    """All of a vCPU, but for the LAPIC's timer, which runs on."""
    found = {name: machine.cpu.get(name) for name in PARTS}
    lapic = bytearray(found["lapic"])
    lapic[0x390:0x394] = bytes(4)
    return {**found, "lapic": bytes(lapic)}


def test_registers_and_memory_come_back(bare) -> None:
    m = bare(COUNTER)
    snap = m.vm.snapshot()
    before = state(m)
    assert [m.status() for _ in range(3)] == [0x101, 0x202, 0x303]
    assert m.vm.restore(snap) == 1
    assert state(m) == before
    assert m.memory.read_u32(DATA) == 0
    assert [m.status() for _ in range(3)] == [0x101, 0x202, 0x303]
    assert "Snapshot of 512 pages" in repr(snap)


def test_a_tree(bare) -> None:
    """Any node from any other, whatever was written between."""
    m = bare(COUNTER)
    nodes = {0: m.vm.snapshot()}
    for count in range(1, 4):
        assert m.status() == 0x101 * count
        m.memory.write_u32(DATA + 0x1000 * count, count)
        nodes[count] = m.vm.snapshot()
        assert nodes[count].changed == sorted(
            {DATA >> 12, (DATA >> 12) + count}
        )
    m.vm.restore(nodes[1])
    m.memory.write_u32(DATA + 0x8000, 9)
    side = m.vm.snapshot()  # a second child of the first
    for there in (3, 0, 2, "side", 3, 1, "side", 0, 0):
        m.memory.write_u32(DATA + 0x9000, 0xBAD)
        if there == "side":
            m.vm.restore(side)
            count, last = 1, 9
        else:
            m.vm.restore(nodes[there])
            count, last = there, 0
        found = [
            m.memory.read_u32(DATA + 0x1000 * i) for i in (0, 1, 2, 3, 8, 9)
        ]
        marks = [i if i <= count else 0 for i in (1, 2, 3)]
        assert found == [count, *marks, last, 0]
        assert m.status() == 0x101 * (count + 1)


def test_nodes_live_as_long_as_they_are_needed(bare) -> None:
    m = bare(COUNTER)
    m.vm.snapshot()
    m.status()
    m.vm.snapshot()
    m.status()
    leaf = m.vm.snapshot()
    m.status()
    m.vm.restore(leaf)
    assert m.status() == 0x303
    m.close()
    m.memory.close()
    assert leaf.page(DATA >> 12)[:4] == b"\2\0\0\0"


def test_writes_by_the_host_are_undone(bare) -> None:
    m = bare(COUNTER)
    view = m.memory.view(DATA + 0x2000, 8)
    snap = m.vm.snapshot()
    m.memory.write(DATA + 0x1000, b"host")
    m.memory.fill(DATA + 0x3000, 0x55, 0x2000)
    view[:4] = b"view"
    assert m.vm.restore(snap) == 4
    # A writable view may be written through at any moment, unseen.
    assert m.vm.restore(snap) == 1
    view[:4] = b"more"
    del view
    assert m.vm.restore(snap) == 1
    assert m.memory.read(DATA, 0x6000) == bytes(0x6000)
    assert m.vm.restore(snap) == 0


def test_a_first_snapshot_leaves_memory_as_it_is(bare) -> None:
    m = bare(COUNTER, regions=((1 << 32, 1 << 20), (1 << 33, 4096)))
    m.memory.write(1 << 32, os.urandom(8192))
    m.memory.write(1 << 33, b"end")
    before = [m.memory.read(gpa, n) for gpa, n, *_ in m.memory.regions]
    view = m.memory.view(1 << 33, 3)
    snap = m.vm.snapshot()
    assert before == [m.memory.read(gpa, n) for gpa, n, *_ in m.memory.regions]
    assert bytes(view) == b"end"  # mapped anew, where it was
    pages = sum(n for _, n, *_ in m.memory.regions) // 4096
    assert snap.pages == pages
    whole = b"".join(snap.page(i) for i in range(pages))
    assert whole == b"".join(before)
    with pytest.raises(ValueError, match=f"number {pages} is outside"):
        snap.page(pages)


def test_many_pages(bare) -> None:
    m = bare(
        f"""
        mov edi, 0x10000000
    1:  mov [edi], edi
        add edi, 4096
        cmp edi, {0x10000000 + (6000 << 12)}
        jb 1b
        {exit(7)}
        """,
        regions=((0x10000000, 6000 << 12),),
    )
    snap = m.vm.snapshot()
    for _ in range(2):
        assert m.status() == 7
        assert m.memory.read_u32(0x10000000 + (5999 << 12)) > 0x10000000
        assert m.vm.restore(snap) == 6000
        assert m.memory.read_u32(0x10000000 + (5999 << 12)) == 0


def test_msrs_lapic_and_debug_registers_come_back(bare) -> None:
    m = bare(
        f"""
        {on_interrupt(0x40)}
        mov ecx, 0xc0000102          # KERNEL_GS_BASE
        mov eax, 0x1234
        xor edx, edx
        wrmsr
        mov eax, 0x5678
        mov dr0, rax
        mov dword ptr [rsi + 0x80], 0x50        # TPR
        mov dword ptr [rsi + 0x320], 0x10041    # timer: masked, vector 0x41
        {exit(1)}
    handler:
        hlt
        """,
        mode="long",
    )
    snap = m.vm.snapshot()
    before = state(m), m.cpu.get_msrs([0xC0000102])
    assert m.status() == 1
    after = state(m), m.cpu.get_msrs([0xC0000102])
    assert after[1] == [0x1234]
    assert after[0]["debugregs"] != before[0]["debugregs"]
    assert after[0]["lapic"] != before[0]["lapic"]
    m.vm.restore(snap)
    assert (state(m), m.cpu.get_msrs([0xC0000102])) == before


def test_xmm_registers_come_back(bare) -> None:
    m = bare(
        f"""
        movd xmm3, ecx
        movd eax, xmm4
        out 0xf4, eax
        mov eax, 0x77
        movd xmm4, eax
        {exit(1)}
        """,
        mode="user",
        rcx=0x99,
    )
    snap = m.vm.snapshot()
    for _ in range(2):
        assert m.status() == 0
        xsave = m.cpu.get("xsave")
        assert struct.unpack_from("<I", xsave, 160 + 16 * 3)[0] == 0x99
        assert m.status() == 1
        m.vm.restore(snap)


def test_a_halt_and_an_interrupt_controller_come_back(bare) -> None:
    m = bare("cli; 1: hlt; jmp 1b")
    running = m.vm.snapshot()
    assert m.run().reason == _vmm.EXIT_HALT
    halted = m.vm.snapshot()
    assert m.cpu.get("mp_state") == b"\3\0\0\0"
    m.vm.restore(running)
    assert m.cpu.get("mp_state") == b"\0\0\0\0"
    assert m.run().reason == _vmm.EXIT_HALT
    m.vm.restore(halted)
    assert m.cpu.get("mp_state") == b"\3\0\0\0"
    assert m.run().reason == _vmm.EXIT_HALT


def test_clones(kvm, bare) -> None:
    """Of one snapshot, with memory that is shared until it is written."""
    m = bare(COUNTER)
    assert m.status() == 0x101
    m.vm.snapshot()
    assert m.status() == 0x202
    snap = m.vm.snapshot()
    assert m.status() == 0x303  # in no clone

    def clone(of):
        vm = _vmm.VM(kvm, of.memory())
        vm.create_irqchip()
        cpu = _vmm.VCPU(vm)
        vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        vm.restore(of)
        return vm, cpu

    clones = [clone(snap) for _ in range(5)]
    for i, (_, cpu) in enumerate(clones):
        for count in range(i):
            assert cpu.run(60).value == 0x101 * (count + 3)
    for vm, cpu in clones:
        vm.restore(snap)
        assert cpu.run(60).value == 0x303
    # A clone is a machine like others: snapshots of its own.
    vm, cpu = clones[0]
    own = vm.snapshot()
    assert cpu.run(60).value == 0x404
    grandchild = clone(own)
    assert grandchild[1].run(60).value == 0x404
    m.vm.restore(own)  # the same tree
    assert m.status() == 0x404
    for vm, _ in [*clones, grandchild]:
        vm.close()


def test_many_in_a_row(bare) -> None:
    """A long line of nodes is no deep recursion, to walk or to free."""
    m = bare(COUNTER)
    nodes = [m.vm.snapshot()]
    for _ in range(300):
        m.status()
        nodes.append(m.vm.snapshot())
    for node, count in zip(nodes[::100], (1, 101, 201), strict=False):
        m.vm.restore(node)
        assert m.status() == 0x10000 * 0 + (count << 8 | count & 0xFF)
    assert all(b.changed == [DATA >> 12] for _, b in pairwise(nodes))


# -- what is refused -----------------------------------------------------------


def test_of_another_machine(bare) -> None:
    m, other = bare(COUNTER), bare(COUNTER)
    snap = m.vm.snapshot()
    with pytest.raises(ValueError, match="of another machine"):
        other.vm.restore(snap)
    other.vm.snapshot()
    with pytest.raises(ValueError, match="of another machine"):
        other.vm.restore(snap)
    with pytest.raises(TypeError, match="expected a Snapshot, not int"):
        m.vm.restore(3)
    assert m.status() == 0x101 and other.status() == 0x101


def test_in_the_middle_of_a_run(bare) -> None:
    class Device:
        def read(self, offset: int, size: int) -> int:
            for call in (m.vm.snapshot, lambda: m.vm.restore(snap)):
                with pytest.raises(RuntimeError, match="vCPU 0 runs"):
                    call()
            return 3

        def write(self, offset: int, size: int, value: int) -> None:
            pass

    m = bare("mov dx, 0x500; in al, dx; out 0xf4, al", ports={0x500: Device()})
    snap = m.vm.snapshot()
    assert m.status() == 3


def test_shared_memory(bare) -> None:
    m = bare(COUNTER, regions=((RAM * 2, 4096, _vmm.MEM_SHARED),))
    with pytest.raises(ValueError, match="shared with other processes"):
        m.vm.snapshot()
    assert m.status() == 0x101


def test_no_files_left(bare, monkeypatch) -> None:
    """The host has no descriptor to give: the machine is as before."""
    import resource

    m = bare(COUNTER)
    _vmm.reap()  # what earlier tests have closed gives none back meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(OSError, match="memfd_create"):
            m.vm.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert m.status() == 0x101
    snap = m.vm.snapshot()
    assert m.status() == 0x202
    m.vm.restore(snap)
    assert m.status() == 0x202

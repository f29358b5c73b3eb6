# SPDX-License-Identifier: Apache-2.0
"""Posted writes of a guest: kept back by KVM or in C, in order, never lost."""

import random
from collections.abc import Iterator

import pytest
from test_smp import LAPIC, WAKE_ALL, Machine

import pyvmm
from pyvmm import _vmm

pytestmark = pytest.mark.usefixtures("kvm")

BASE = 0xD000_0000
KVM_CAP_COALESCED_MMIO = 15


class Fifo(pyvmm.Device):
    """Posted data at an address and at a port; the rest tells the order."""

    size = 0x40
    ports = pyvmm.Range(8, port=0x300)
    data = pyvmm.Reg(0x0, 4, posted=1000)
    more = pyvmm.Reg(0x4, 4, posted=1000)
    plain = pyvmm.Reg(0x8, 4)
    note = pyvmm.Reg(0xC, 4)
    count = pyvmm.Reg(0x10, 4, access="ro")
    byte = pyvmm.Reg(0x0, 1, range=ports, posted=1000)

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.calls = 0

    def got(self, name, values):
        self.calls += 1
        self.count += len(values)
        self.log += [(name, value) for value in values]

    @data.on_writes
    def got_data(self, values):
        self.got("data", values)

    @more.on_writes
    def got_more(self, values):
        self.got("more", values)

    @byte.on_writes
    def got_byte(self, values):
        self.got("byte", values)

    @note.on_write
    def noted(self, value):
        self.log.append(("note", value))


class Other(pyvmm.Device):
    """Another device, which logs where the first one does."""

    size = 4

    def __init__(self, log) -> None:
        self.log = log

    def read(self, offset, size):
        self.log.append(("other", -1))
        return len(self.log)

    def write(self, offset, size, value):
        self.log.append(("other", value))


@pytest.fixture
def m() -> Iterator[pyvmm.Machine]:
    with pyvmm.Machine() as machine:
        yield machine


def loop(count: int, then: str = "out 0xf4, al") -> str:
    """Assembly that posts 1 to `count` and then goes on."""
    return f"""
        xor ecx, ecx
    again:
        inc ecx
        mov [{BASE}], ecx
        cmp ecx, {count}
        jne again
        {then}
    """


def data(*values: int) -> list[tuple[str, int]]:
    return [("data", value) for value in values]


def test_batches(m) -> None:
    """All come, in order, before run() returns, in few calls and exits."""
    fifo = m.attach(Fifo())
    m.load(asm=loop(5000))
    m.run(timeout=20)
    assert fifo.log == data(*range(1, 5001))
    assert fifo.calls < 100  # five, and one for each tick
    if _vmm.KVM().check(KVM_CAP_COALESCED_MMIO):
        assert m.cpu.vcpu.exits < 5000 / 10
    assert repr(fifo).count("posted") == 0


@pytest.mark.parametrize("coalesced", [True, False])
def test_a_thousand_in_one_call(coalesced: bool) -> None:
    """Counted without the ticks of run(): the core alone."""
    memory = _vmm.Memory()
    memory.add(0, 0x1000)
    vm = _vmm.VM(_vmm.KVM(), memory)
    vcpu = _vmm.VCPU(vm)
    fifo = Fifo()
    vm.mmio.add(BASE, 0x40, fifo)
    for value in range(3500):
        vm.mmio.write(BASE, 4, value)
        if coalesced:
            vm.collect()
    assert fifo.calls == 3
    assert fifo._registers.waiting == 500
    fifo.drain()
    assert fifo.log == data(*range(3500))
    vcpu.close()
    vm.close()


def test_without_the_kernels_ring(bare) -> None:
    """A bus of one's own: the writes exit, and are taken in C."""
    machine = bare(loop(3000), devices={BASE: (fifo := Fifo())})
    reasons: dict[int, int] = {}

    def trace(exit) -> None:
        reasons[exit.reason] = reasons.get(exit.reason, 0) + 1

    machine.cpu.trace = trace
    machine.run()
    assert fifo.log == data(*range(1, 3001))
    assert sum(reasons.values()) == 3001  # and the exit port
    assert reasons.get(_vmm.EXIT_OWNER, 0) <= 3
    assert _vmm.EXIT_ACCESS not in reasons


def program(seed: int) -> tuple[str, list[tuple[str, int]]]:
    """A random program, and what Python is to see of it, in that order."""
    dice = random.Random(seed)
    source, order, posted = [], [], 0
    for value in range(1, 200):
        name = dice.choice(
            ("data", "data", "data", "more", "byte", "note", "other", "plain",
             "count", "console")
        )  # fmt: skip
        source.append(f"mov eax, {value}")
        at = {"data": 0, "more": 4, "plain": 8, "note": 0xC, "other": 0x1000}
        if name in at:
            source.append(f"mov [{BASE + at[name]}], eax")
        elif name == "byte":
            source.append("mov edx, 0x300; out dx, al")
        elif name == "console":
            source.append("out 0xe9, al")
        else:  # the count is right whenever the guest looks
            source.append(f"cmp dword ptr [{BASE + 0x10}], {posted}; jne bad")
        if name in ("data", "more", "byte"):
            posted += 1
        if name in ("data", "more", "byte", "note", "other"):
            order.append((name, value))
    source.append("mov al, 0; out 0xf4, al; bad: mov al, 1; out 0xf4, al")
    return "; ".join(source), order


@pytest.mark.parametrize("seed", range(6))
def test_python_sees_the_guests_order(m, seed) -> None:
    """Whatever lies between: registers, C devices, other Python devices."""
    source, order = program(seed)
    fifo = m.attach(Fifo())
    m.attach(Other(fifo.log), mmio=BASE + 0x1000)
    m.load(asm=source)
    assert m.run(timeout=20).status == 0
    assert fifo.log == order
    assert m.console.native.end == source.count("out 0xe9")


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("out 0xf4, al", "exit"),
        ("cli; hlt", "halt"),
        ("lidt [0x100100]; ud2", "triple fault"),
        ("mov al, [0xe0000000]", "unclaimed access"),
        ("jmp .", "timeout"),
    ],
)
def test_before_run_returns(m, then, reason) -> None:
    fifo = m.attach(Fifo())
    m.load(asm=loop(100, then))
    stop = m.run(timeout=0.5, check=False)
    assert stop.reason == reason
    assert fifo.log == data(*range(1, 101))


def test_a_guest_that_only_spins_is_no_obstacle(m) -> None:
    """The tick delivers; nothing else would end this run."""

    class Ends(Fifo):
        def got_data(self, values):
            super().got_data(values)
            if 100 in values:
                self.machine.exit(9)

    fifo = m.attach(Ends())
    m.load(asm=loop(100, "jmp ."))
    assert m.run(timeout=20).status == 9
    assert fifo.log == data(*range(1, 101))


def test_an_exception_leaves_run(m) -> None:
    class Picky(Fifo):
        def got_data(self, values):
            super().got_data(values)
            if 50 in values:
                raise ZeroDivisionError("50")

    fifo = m.attach(Picky())
    m.load(
        asm=loop(100, f"mov [{BASE + 4}], ecx; inc ecx; mov [{BASE}], ecx; ")
        + "mov al, cl; out 0xf4, al"
    )
    with pytest.raises(ZeroDivisionError) as caught:
        m.run(timeout=20)
    assert (
        "posted writes to Picky.data were delivered"
        in (caught.value.__notes__[0])
    )
    # What came behind is not lost, nor is that the guest has ended.
    log = [*data(*range(1, 101)), ("more", 100), *data(101)]
    assert fifo.log == log
    assert m.run(timeout=20).status == 101
    assert fifo.log == log


def test_exceptions_on_the_way_out_become_notes(m) -> None:
    class Twice(Fifo):
        def got_data(self, values):
            super().got_data(values)
            raise ZeroDivisionError("data")

        def got_more(self, values):
            super().got_more(values)
            raise KeyError("more")

    fifo = m.attach(Twice())
    m.load(asm=loop(1, f"mov [{BASE + 4}], ecx; out 0xf4, al"))
    with pytest.raises(ZeroDivisionError) as caught:
        m.run(timeout=20)
    assert "KeyError('more')" in "\n".join(caught.value.__notes__)
    assert fifo.log == [("data", 1), ("more", 1)]


@pytest.mark.parametrize(
    ("then", "status"),
    [("in al, 0xed; add al, 7; out 0xf4, al", 7), ("out 0xf4, al", 5)],
)
def test_nothing_behind_the_ring_is_lost(m, then, status) -> None:
    """The exit that brought it waits while a method raises."""

    class Broken(Fifo):
        def noted(self, value):
            raise ZeroDivisionError

    m.attach(Broken())
    m.vm.coalesce(BASE + 0xC, 4)
    m.load(asm=f"mov eax, 5; mov [{BASE + 0xC}], eax; {then}")
    with pytest.raises(ZeroDivisionError) as caught:
        m.run(timeout=20)
    assert "write of 4 bytes at 0xd000000c = 0x5" in caught.value.__notes__[0]
    assert m.run(timeout=20).status == status


def test_detached_in_between(m) -> None:
    class Detacher(pyvmm.Device):
        size = 4

        def write(self, offset, size, value):
            self.machine.detach(fifo)

    fifo = m.attach(Fifo())
    m.attach(Detacher(), mmio=BASE + 0x1000)
    m.vm.strict = False
    m.load(asm=loop(100, f"mov [{BASE + 0x1000}], eax; mov [{BASE}], ecx; ")
           + "out 0xf4, al")  # fmt: skip
    m.run(timeout=20)
    assert fifo.log == data(*range(1, 101))
    assert m.unclaimed == 1
    assert fifo.base is None and fifo.count == 100


def test_detach_from_a_delivery_is_refused(m) -> None:
    class Leaves(Fifo):
        def got_data(self, values):
            super().got_data(values)
            self.machine.detach(self)

    fifo = m.attach(Leaves())
    m.load(asm=loop(1))
    with pytest.raises(RuntimeError, match="on_writes of leaves cannot take"):
        m.run(timeout=20)
    assert m.devices == [fifo]


def test_closing_delivers(m) -> None:
    class Picky(Fifo):
        def got_more(self, values):
            super().got_more(values)
            raise ZeroDivisionError("more")

    fifo = m.attach(Picky())
    for offset, value in ((0, 1), (4, 2), (0, 3)):
        m.vm.mmio.write(BASE + offset, 4, value)
    assert fifo.log == []
    with pytest.raises(ZeroDivisionError, match="more"):
        m.close()
    assert m.closed and m._vm.closed
    assert fifo.log == [("data", 1), ("more", 2), ("data", 3)]


# Posts 1 to 2000, marked as its own, then says so.
AP_POSTS = f"""
        xor ecx, ecx
    more:
        inc ecx
        mov edx, ecx
        or edx, 0x10000
        mov esi, {BASE}
        mov [esi], edx
        cmp cx, 2000
        jne more
        mov esi, 0x7000
        mov byte ptr [esi], 1
    last:
        hlt
        jmp last
"""
BOTH_POST = (
    LAPIC
    + WAKE_ALL
    + f"""
        mov edi, {BASE}
        xor ecx, ecx
    again:
        inc ecx
        mov [rdi], ecx
        cmp ecx, 2000
        jne again
    other:
        pause
        cmp byte ptr [0x7000], 1
        jne other
        mov eax, [rdi + 0x10]
        xor ecx, ecx
        cmp eax, 4000
        setne al
        out 0xf4, al
    """
)


@pytest.mark.parametrize("coalesced", [True, False])
def test_several_vcpus(bare, coalesced) -> None:
    """Each one's writes in its order; all are there when one of them looks."""
    fifo = Fifo()
    machine = Machine(bare, 2, BOTH_POST, AP_POSTS, devices={BASE: fifo})
    if coalesced:
        machine.bare.vm.coalesce(BASE, 4)
    assert machine.bare.status() == 0
    machine.bare.close()
    assert machine.reasons() == [_vmm.EXIT_KICK]
    for own in (0, 0x10000):
        values = [v - own for _, v in fifo.log if v & 0x10000 == own]
        assert values == [*range(1, 2001)]
    assert len(fifo.log) == 4000

# SPDX-License-Identifier: Apache-2.0
"""VCPU: its state, kicks, limits, and who may do what when."""

import errno
import struct
import threading

import pytest
from bare import CODE, LIMIT, MMIO, PORT, Bare, Device, exit, pack_regs

from pyvmm import _vmm

SPIN = "spin: jmp spin"
PARTS = {
    "regs": 144,
    "sregs": 312,
    "events": 64,
    "fpu": 416,
    "xcrs": 392,
    "debugregs": 128,
    "lapic": 1024,
    "mp_state": 4,
}
STAR, LSTAR, KERNEL_GS_BASE = 0xC000_0081, 0xC000_0082, 0xC000_0102
NO_MSR = 0x4000_00FF


# -- state -------------------------------------------------------------------


@pytest.mark.parametrize("part", [*PARTS, "xsave"])
def test_state_round_trip(bare, part) -> None:
    machine = bare(exit(7))
    state = machine.cpu.get(part)
    assert len(state) == PARTS.get(part, len(state)) and len(state) >= 4
    machine.cpu.set(part, state)
    assert machine.cpu.get(part) == state
    assert machine.status() == 7


@pytest.mark.parametrize("part", [*PARTS, "xsave"])
def test_state_after_a_run(bare, part) -> None:
    machine = bare("mov al, 1; out 0xe9, al\n" + exit(7))
    machine.status()
    state = machine.cpu.get(part)
    machine.cpu.set(part, state)
    assert machine.cpu.get(part) == state


def changed(state: bytes, offset: int, layout: str, value: int) -> bytes:
    data = bytearray(state)
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("part", "offset", "layout", "value"),
    [
        ("regs", 8 * 9, "<Q", 0x1234),  # r9
        ("sregs", 8 * 24 + 2 * 16 + 8, "<Q", 0x5000),  # cr2
        ("fpu", 8 * 16, "<H", 0x27F),  # fcw
        ("fpu", 160, "<Q", 0x1122334455667788),  # xmm0
        ("xsave", 160, "<Q", 0x1122334455667788),  # xmm0
        ("debugregs", 8, "<Q", 0x4000),  # dr1
        ("lapic", 0x80, "<I", 0x20),  # task priority
        ("mp_state", 0, "<I", 3),  # KVM_MP_STATE_HALTED
    ],
)
def test_state_that_is_set_is_there(bare, part, offset, layout, value) -> None:
    machine = bare(exit(7))
    state = machine.cpu.get(part)
    if part == "xsave":  # say that SSE state is in it
        header = struct.unpack_from("<Q", state, 512)[0]
        state = changed(state, 512, "<Q", header | 3)
    machine.cpu.set(part, changed(state, offset, layout, value))
    got = machine.cpu.get(part)
    assert struct.unpack_from(layout, got, offset)[0] == value


def test_registers_reach_the_guest(bare) -> None:
    machine = bare("add eax, ebx; out 0xf4, al")
    machine.regs.rax, machine.regs.rbx = 40, 2
    assert machine.status() == 42
    machine.regs.rip, machine.regs.rax = CODE, 50
    assert machine.status() == 52


def test_system_registers_reach_the_guest(bare) -> None:
    """The base of ds, which protected mode adds to every address."""
    machine = bare("mov al, [0x10]; out 0xf4, al")
    machine.memory.write_u8(0x20010, 9)
    machine.cpu.set(
        "sregs",
        changed(machine.cpu.get("sregs"), 24, "<Q", 0x20000),
    )
    assert machine.status() == 9


def test_events_reach_the_guest(bare) -> None:
    """A #UD injected into a guest without an IDT: a triple fault."""
    machine = bare(exit(1))
    assert machine.run().reason == _vmm.EXIT_STOP
    events = bytearray(machine.cpu.get("events"))
    events[0:2] = b"\x01\x06"  # exception.injected, nr
    machine.cpu.set("events", bytes(events))
    assert machine.run().reason == _vmm.EXIT_SHUTDOWN


def test_setting_registers_after_another_part(bare) -> None:
    """What is cached and what is not are handed over in the order of calls."""
    machine = bare("add eax, 1; out 0xf4, al")
    machine.regs.rax = 4
    machine.cpu.set("mp_state", machine.cpu.get("mp_state"))
    machine.cpu.set("debugregs", machine.cpu.get("debugregs"))
    assert machine.regs.rax == 4
    assert machine.status() == 5


def test_state_is_checked(bare) -> None:
    cpu = bare().cpu
    with pytest.raises(ValueError, match="regs has 144 bytes, not 143"):
        cpu.set("regs", bytes(143))
    with pytest.raises(ValueError, match="'eax' is none of regs, sregs"):
        cpu.get("eax")
    with pytest.raises(TypeError, match="a str"):
        cpu.get(5)
    with pytest.raises(TypeError):
        cpu.set("regs", "text")
    with pytest.raises(OSError, match="KVM_SET_MP_STATE") as caught:
        cpu.set("mp_state", struct.pack("<I", 99))
    assert caught.value.errno == errno.EINVAL


def test_lapic_needs_an_irqchip(bare) -> None:
    with pytest.raises(OSError, match="KVM_GET_LAPIC"):
        bare(irqchip=False).cpu.get("lapic")


def test_msrs(bare) -> None:
    cpu = bare().cpu
    assert cpu.get_msrs([]) == []
    cpu.set_msrs([], [])
    wanted = [STAR, LSTAR, KERNEL_GS_BASE]
    values = [0x0018_0008_0000_0000, 0xFFFF_8000_0000_1000, 0x1234_5000]
    cpu.set_msrs(wanted, values)
    assert cpu.get_msrs(wanted) == values
    assert cpu.get_msrs(tuple(reversed(wanted))) == values[::-1]


def test_every_msr_of_the_host(kvm, bare) -> None:
    """All that KVM lists can be read and written back, in one call each."""
    cpu = bare().cpu
    indices = [i for i in kvm.msr_indices() if readable(cpu, i)]
    assert len(indices) > 10
    values = cpu.get_msrs(indices)
    keep = [(i, v) for i, v in zip(indices, values, strict=True) if i != 0x10]
    cpu.set_msrs([i for i, _ in keep], [v for _, v in keep])


def readable(cpu: _vmm.VCPU, msr: int) -> bool:
    try:
        cpu.get_msrs([msr])
    except ValueError:
        return False
    return True


def test_msr_refusals_name_the_msr(bare) -> None:
    cpu = bare().cpu
    with pytest.raises(ValueError, match="read MSR 0x400000ff"):
        cpu.get_msrs([STAR, NO_MSR, LSTAR])
    with pytest.raises(ValueError, match="set MSR 0x400000ff"):
        cpu.set_msrs([STAR, NO_MSR], [5 << 32, 1])
    assert cpu.get_msrs([STAR]) == [5 << 32]  # those before it are set
    with pytest.raises(ValueError, match="257 MSRs: at most 256"):
        cpu.get_msrs([STAR] * 257)
    with pytest.raises(ValueError, match="a value for each"):
        cpu.set_msrs([STAR], [])
    with pytest.raises(ValueError, match="MSR 4294967296"):
        cpu.get_msrs([1 << 32])
    with pytest.raises(TypeError):
        cpu.get_msrs(STAR)


def test_nmi(bare) -> None:
    """No IDT: an NMI is a triple fault, so it was delivered."""
    machine = bare(SPIN)
    machine.cpu.nmi()
    assert machine.run().reason == _vmm.EXIT_SHUTDOWN


# -- inside a device's method ------------------------------------------------


def test_state_inside_a_device(bare) -> None:
    class Looker(Device):
        def read(self, offset: int, size: int) -> int:
            self.rip = machine.regs.rip
            for part in ("regs", "sregs", "events", "mp_state"):
                with pytest.raises(RuntimeError, match="middle of an instr"):
                    machine.cpu.set(part, machine.cpu.get(part))
            with pytest.raises(RuntimeError, match="middle of an instruction"):
                machine.cpu.set_msrs([STAR], [0])
            with pytest.raises(RuntimeError, match="middle of an instruction"):
                machine.cpu.start("protected", pack_regs())
            with pytest.raises(RuntimeError, match="running already"):
                machine.cpu.run()
            assert machine.cpu.get_msrs([STAR])
            assert machine.cpu.running and "running" in repr(machine.cpu)
            return 0x21

    device = Looker()
    code = f"nop; mov al, [{MMIO}]; out 0xf4, al"
    machine = bare(code, devices={MMIO: device})
    assert machine.status() == 0x21
    assert device.rip == CODE + 1


def test_state_may_be_set_once_run_is_back(bare) -> None:
    """A read's register is written before rip is set, not after."""
    code = f"mov eax, [{MMIO}]; nop; out 0xf4, al"
    machine = bare(code)
    assert machine.run().reason == _vmm.EXIT_UNCLAIMED
    machine.regs.rax = 0x33
    assert machine.regs.rip == CODE + 5
    assert machine.status() == 0x33


def test_kick_inside_a_device(bare) -> None:
    class Kicker(Device):
        def read(self, offset: int, size: int) -> int:
            machine.cpu.kick()
            return 5

    code = f"mov al, [{MMIO}]; out 0xf4, al"
    machine = bare(code, devices={MMIO: Kicker()})
    assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.status() == 5


@pytest.mark.parametrize("how", ["vm", "cpu"])
def test_close_inside_a_device(bare, how) -> None:
    class Closer(Device):
        def read(self, offset: int, size: int) -> int:
            (machine.vm if how == "vm" else machine.cpu).close()
            return 5

    machine = bare(f"mov al, [{MMIO}]\n" + SPIN, devices={MMIO: Closer()})
    assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.cpu.closed


# -- other threads -----------------------------------------------------------


class Runner(threading.Thread):
    """Runs a machine on a thread of its own; `entered` once it is inside."""

    def __init__(self, machine: Bare, entered: threading.Event) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.result: object = None
        self.start()
        assert entered.wait(LIMIT)

    def run(self) -> None:
        try:
            self.result = self.machine.run()
        except BaseException as error:
            self.result = error

    def end(self) -> object:
        self.join(LIMIT)
        assert not self.is_alive()
        return self.result


class Gate(Device):
    """A device that says when the guest has come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()

    def write(self, offset: int, size: int, value: int) -> None:
        self.entered.set()


@pytest.fixture
def spinning(bare):
    """A guest that spins on another thread, and its runner."""
    gate = Gate()
    machine = bare(f"mov [{MMIO}], al\n" + SPIN, devices={MMIO: gate})
    runner = Runner(machine, gate.entered)
    yield machine, runner
    machine.close()
    runner.end()


def test_one_thread_runs_it(spinning) -> None:
    machine, runner = spinning
    assert machine.cpu.running
    with pytest.raises(RuntimeError, match="vCPU 0 is running already"):
        machine.cpu.run()
    for call in (
        lambda: machine.cpu.get("regs"),
        lambda: machine.cpu.set("regs", pack_regs()),
        lambda: machine.cpu.start("protected", pack_regs()),
        lambda: machine.cpu.get_msrs([STAR]),
        lambda: machine.cpu.set_msrs([STAR], [0]),
        lambda: machine.cpu.debug(),
        machine.cpu.nmi,
    ):
        with pytest.raises(RuntimeError, match="runs on another thread"):
            call()
    machine.cpu.kick()
    assert runner.end().reason == _vmm.EXIT_KICK
    assert not machine.cpu.running
    assert machine.regs.rip >= CODE


def test_close_of_the_vm_ends_a_run(spinning) -> None:
    machine, runner = spinning
    machine.vm.close()
    assert runner.end().reason == _vmm.EXIT_KICK
    assert machine.cpu.closed


def test_close_of_the_vcpu_ends_a_run(spinning) -> None:
    machine, runner = spinning
    machine.cpu.close()
    assert runner.end().reason == _vmm.EXIT_KICK
    assert machine.cpu.closed and not machine.vm.closed


def test_close_then_forget(bare) -> None:
    """The runner holds what it needs when everybody else lets go."""
    gate = Gate()
    machine = bare(f"mov [{MMIO}], al\n" + SPIN, devices={MMIO: gate})
    runner = Runner(machine, gate.entered)
    machine.vm.close()
    machine.memory.close()
    assert runner.end().reason == _vmm.EXIT_KICK


def test_kick_before_a_run(bare) -> None:
    machine = bare(exit(1))
    machine.cpu.kick()
    machine.cpu.kick()
    assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.regs.rip == CODE
    assert machine.status() == 1


def test_kick_storm(bare) -> None:
    """Each kick that follows a run() ends the next one; none is lost."""
    machine = bare(SPIN)
    done = threading.Event()
    rounds = 300

    def storm() -> None:
        while not done.is_set():
            machine.cpu.kick()

    stormer = threading.Thread(target=storm, daemon=True)
    stormer.start()
    try:
        for _ in range(rounds):
            assert machine.run().reason == _vmm.EXIT_KICK
    finally:
        done.set()
        stormer.join(LIMIT)


def test_every_kick_counts(bare) -> None:
    """Kicks that alternate with runs, at random moments of these."""
    machine = bare(SPIN)
    ended = threading.Semaphore(0)
    rounds = 300

    def kick() -> None:
        for _ in range(rounds):
            machine.cpu.kick()
            assert ended.acquire(timeout=LIMIT)

    kicker = threading.Thread(target=kick, daemon=True)
    kicker.start()
    for _ in range(rounds):
        assert machine.run().reason == _vmm.EXIT_KICK
        ended.release()
    kicker.join(LIMIT)
    assert not kicker.is_alive()
    assert machine.run(0).reason == _vmm.EXIT_TIMEOUT  # and none is left


def test_kick_storm_with_exits(bare) -> None:
    """Kicks tear no access apart: the device sees each count once."""
    device = Device()
    code = f"mov dx, {PORT}; l: inc eax; out dx, eax; jmp l"
    machine = bare(code, ports={PORT: device}, rax=0)
    done = threading.Event()

    def storm() -> None:
        while not done.is_set():
            machine.cpu.kick()

    stormer = threading.Thread(target=storm, daemon=True)
    stormer.start()
    try:
        while len(device.log) < 300:
            assert machine.run().reason == _vmm.EXIT_KICK
    finally:
        done.set()
        stormer.join(LIMIT)
    values = [entry[3] for entry in device.log]
    assert values == list(range(1, len(values) + 1))


def test_a_vcpu_may_change_threads(bare) -> None:
    code = f"mov dx, {PORT}; l: in al, dx; hlt; jmp l"
    machine = bare(code, irqchip=False, ports={PORT: Device()})
    assert machine.run().reason == _vmm.EXIT_HALT
    for _ in range(5):
        runner = threading.Thread(target=machine.run, daemon=True)
        runner.start()
        runner.join(LIMIT)
        assert machine.run().reason == _vmm.EXIT_HALT
    machine.cpu.kick()
    assert machine.run().reason == _vmm.EXIT_KICK


def test_a_device_goes_while_the_guest_runs(bare) -> None:
    """Removed under a guest that never stops reading: then it is nobody's."""
    device = Device()
    reads = threading.Semaphore(0)
    device.read = lambda offset, size: reads.release() or 7
    code = f"l: mov al, [{MMIO}]; cmp al, 7; je l\n" + exit(2)
    machine = bare(code, devices={MMIO: device})
    machine.vm.strict = False

    def remove() -> None:
        for _ in range(100):
            assert reads.acquire(timeout=LIMIT)
        machine.vm.mmio.remove(MMIO)

    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    assert machine.status() == 2
    remover.join(LIMIT)
    assert machine.vm.unclaimed == 1


# -- time limits and nesting -------------------------------------------------


@pytest.mark.parametrize("mode", ["protected", "user"])
@pytest.mark.parametrize(
    "loop",
    [
        SPIN,
        "mov al, 0; l: out 0xe9, al; jmp l",
        f"mov dx, {PORT}; l: in al, dx; jmp l",
    ],
    ids=["spin", "exits in C", "exits in Python"],
)
def test_timeout(bare, mode, loop) -> None:
    machine = bare(loop, mode, ports={PORT: Device()})
    for timeout in (0, 0.0, 0.001, 0.03):
        assert machine.run(timeout).reason == _vmm.EXIT_TIMEOUT


def test_timeout_is_no_exit_of_the_guest(bare) -> None:
    machine = bare(SPIN)
    stop = machine.run(0.001)
    assert (stop.size, stop.device, stop.code) == (0, None, 0)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_timeout_is_checked(bare, timeout) -> None:
    with pytest.raises(ValueError, match="timeout"):
        bare().cpu.run(timeout)


def test_timeout_may_be_endless(bare) -> None:
    assert bare(exit(1)).run(float("inf")).value == 1
    assert bare(exit(2)).run(None).value == 2
    with pytest.raises(TypeError):
        bare().cpu.run("soon")


class Inner(Device):
    """A device that runs another machine to answer."""

    def __init__(self, machine: Bare, timeout: float | None) -> None:
        super().__init__()
        self.machine = machine
        self.timeout = timeout
        self.stops: list[_vmm.Exit] = []

    def read(self, offset: int, size: int) -> int:
        self.stops.append(self.machine.run(self.timeout))
        return 0x21


def test_a_device_runs_another_machine(bare) -> None:
    device = Inner(bare(exit(3)), LIMIT)
    code = f"mov al, [{MMIO}]; out 0xf4, al"
    assert bare(code, devices={MMIO: device}).status() == 0x21
    assert device.stops[0].value == 3


def test_limits_nest(bare) -> None:
    """The inner limit ends the inner run, the outer one still the outer."""
    device = Inner(bare(SPIN), 0.02)
    code = f"mov al, [{MMIO}]\n" + SPIN
    outer = bare(code, devices={MMIO: device})
    assert outer.run(0.1).reason == _vmm.EXIT_TIMEOUT
    assert [stop.reason for stop in device.stops] == [_vmm.EXIT_TIMEOUT]
    assert outer.regs.rax & 0xFF == 0x21


def test_the_outer_limit_has_passed_inside(bare) -> None:
    device = Inner(bare(SPIN), 0.05)
    outer = bare(f"mov al, [{MMIO}]\n" + SPIN, devices={MMIO: device})
    assert outer.run(0.01).reason == _vmm.EXIT_TIMEOUT
    assert len(device.stops) == 1


def test_three_deep(bare) -> None:
    read = f"mov al, [{MMIO}]; out 0xf4, al"
    third = Inner(bare(SPIN), 0.01)
    second = Inner(bare(read, devices={MMIO: third}), LIMIT)
    outer = bare(read, devices={MMIO: second})
    assert outer.status() == 0x21
    assert second.stops[0].value == 0x21
    assert third.stops[0].reason == _vmm.EXIT_TIMEOUT
    outer.regs.rip = CODE
    outer.cpu.kick()
    assert outer.run().reason == _vmm.EXIT_KICK


def test_kick_of_the_outer_from_the_inner(bare) -> None:
    class Kicker(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            outer.cpu.kick()

    inner = bare(f"mov [{MMIO}], al\n" + exit(0), devices={MMIO: Kicker()})
    device = Inner(inner, LIMIT)
    outer = bare(f"mov al, [{MMIO}]\n" + SPIN, devices={MMIO: device})
    assert outer.run().reason == _vmm.EXIT_KICK
    assert device.stops[0].reason == _vmm.EXIT_STOP


def test_an_exception_passes_through_both(bare) -> None:
    class Bad(Device):
        def read(self, offset: int, size: int) -> int:
            raise KeyError("inner")

    inner = bare(f"mov al, [{MMIO}]\n" + exit(4), devices={MMIO: Bad()})
    outer = bare(
        f"mov al, [{MMIO + 8}]\n" + exit(5),
        devices={MMIO: Inner(inner, LIMIT)},
    )
    with pytest.raises(KeyError) as caught:
        outer.run()
    assert "0xd0000000" in caught.value.__notes__[0]
    assert "0xd0000008" in caught.value.__notes__[1]
    assert inner.status() == 4
    assert outer.status() == 5


def test_two_machines_on_two_threads(bare) -> None:
    """Each has its own limit and its own exits."""
    devices = [Device(), Device()]
    loop = f"mov dx, {PORT}; l: inc eax; out dx, eax; cmp eax, 500; jne l\n"
    machines = [
        bare(loop + exit(3), ports={PORT: device}, rax=0) for device in devices
    ]
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda m=m: results.append(m.status()))
        for m in machines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == [3, 3]
    for device in devices:
        assert [entry[3] for entry in device.log] == list(range(1, 501))

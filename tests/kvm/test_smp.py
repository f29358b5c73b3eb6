# SPDX-License-Identifier: Apache-2.0
"""Several vCPUs: INIT and SIPI, APIC ids, and when all of them sleep."""

import threading

import pytest
from bare import LIMIT, PORT, Bare, Device, assemble, exit

from pyvmm import _vmm

AP_CODE = 0x5000  # SIPI vector 5
STARTED = 0x6000  # how many have come
BY_LAPIC = 0x6100  # a byte for each id that the LAPIC gave
BY_CPUID = 0x6200

# In real mode with a flat ds for the LAPIC, which lies above the first MiB.
AP = f"""
    start:
        cli
        xor ax, ax
        mov ds, ax
        lgdt [{AP_CODE} + gdtr - start]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 8
        mov ds, bx
        mov esi, 0xfee00020
        mov ebx, [esi]
        shr ebx, 24
        inc byte ptr [ebx + {BY_LAPIC}]
        mov eax, 1
        cpuid
        shr ebx, 24
        inc byte ptr [ebx + {BY_CPUID}]
        lock inc dword ptr [{STARTED}]
    end:
        END
    gdt:
        .quad 0
        .quad 0x00cf93000000ffff
    gdtr:
        .word 15
        .long {AP_CODE} + gdt - start
"""

LAPIC = "mov esi, 0xfee00000; mov dword ptr [rsi + 0xf0], 0x1ff\n"
# To all but itself: INIT, then SIPI.
WAKE_ALL = """
    mov dword ptr [rsi + 0x300], 0xc4500
    mov dword ptr [rsi + 0x300], 0xc4605
"""


def wait_for(count: int) -> str:
    return f"w: pause; cmp dword ptr [{STARTED}], {count}; jne w\n"


class Machine:
    """A Bare whose other vCPUs run on threads."""

    def __init__(
        self, bare, cpus: int, code: str, end: str = "hlt", **options
    ) -> None:
        self.bare: Bare = bare(code, "long", cpus=cpus, **options)
        ap = assemble(AP.replace("END", end), 16, 0)
        self.bare.memory.write(AP_CODE, ap)
        self.stops: list[_vmm.Exit | BaseException] = []
        self.threads = [
            threading.Thread(target=self.run_ap, args=(cpu,), daemon=True)
            for cpu in self.bare.cpus[1:]
        ]
        for thread in self.threads:
            thread.start()

    def run_ap(self, cpu: _vmm.VCPU) -> None:
        try:
            self.stops.append(cpu.run())
        except BaseException as error:
            self.stops.append(error)

    def reasons(self) -> list[int]:
        """Why the others ended, when they have."""
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        return [getattr(stop, "reason", stop) for stop in self.stops]


@pytest.mark.parametrize("cpus", [2, 4])
def test_init_and_sipi(bare, cpus) -> None:
    code = LAPIC + WAKE_ALL + wait_for(cpus - 1) + exit(cpus)
    machine = Machine(bare, cpus, code)
    assert machine.bare.status() == cpus
    memory = machine.bare.memory
    ids = memory.read(BY_LAPIC, 8)
    assert ids == bytes([0] + [1] * (cpus - 1) + [0] * (8 - cpus))
    machine.bare.close()
    assert machine.reasons() == [_vmm.EXIT_KICK] * (cpus - 1)


def test_apic_ids_in_cpuid(bare) -> None:
    """What CPUID says is what the LAPIC is, where the host honours it."""
    code = LAPIC + WAKE_ALL + wait_for(3) + exit(4)
    machine = Machine(bare, 4, code)
    machine.bare.status()
    got = machine.bare.memory.read(BY_CPUID, 256)
    assert sum(got) == 3
    honoured = got[:4] == b"\x00\x01\x01\x01"
    # Some hosts show guests the CPUID of the processor they run on.
    assert honoured or got[0] + sum(got[4:]) > 0
    machine.bare.close()
    machine.reasons()


def test_one_by_one(bare) -> None:
    """SIPI by destination: only that one starts."""
    code = LAPIC + (
        "mov dword ptr [rsi + 0x310], 0x2000000\n"
        "mov dword ptr [rsi + 0x300], 0x4500\n"
        "mov dword ptr [rsi + 0x300], 0x4605\n"
    )
    machine = Machine(bare, 4, code + wait_for(1) + exit(1))
    machine.bare.status()
    assert machine.bare.memory.read(BY_LAPIC, 4) == b"\x00\x00\x01\x00"
    machine.bare.close()
    machine.reasons()


def test_indices(bare) -> None:
    machine = bare(cpus=4)
    assert [cpu.index for cpu in machine.cpus] == [0, 1, 2, 3]


@pytest.mark.parametrize("cpus", [2, 4])
def test_all_asleep_ends_all(bare, cpus) -> None:
    """Each halted with interrupts off: every run() returns, without a limit."""
    code = LAPIC + WAKE_ALL + wait_for(cpus - 1) + "cli; hlt"
    machine = Machine(bare, cpus, code)
    assert machine.bare.run(None).reason == _vmm.EXIT_HALT
    assert machine.reasons() == [_vmm.EXIT_HALT] * (cpus - 1)


def test_parked_ones_wait(bare) -> None:
    """Nobody will wake them: the first one's end is the machine's."""
    machine = Machine(bare, 3, "cli; hlt")
    assert machine.bare.run(None).reason == _vmm.EXIT_HALT
    machine.bare.close()
    assert machine.reasons() == [_vmm.EXIT_KICK] * 2


def test_one_awake_keeps_all(bare) -> None:
    code = LAPIC + WAKE_ALL + wait_for(1) + "cli; hlt"
    machine = Machine(bare, 2, code, end="jmp end")
    assert machine.bare.run(0.2).reason == _vmm.EXIT_TIMEOUT
    machine.bare.cpus[1].kick()
    assert machine.reasons() == [_vmm.EXIT_KICK]


def test_a_sleeper_is_woken_by_the_other(bare) -> None:
    """Halted with interrupts on, and the other one still works: no end."""
    ap_end = "mov ecx, 300000; l: dec ecx; jnz l; mov al, 9; out 0xf4, al"
    code = LAPIC + WAKE_ALL + wait_for(1) + "sti; hlt"
    machine = Machine(bare, 2, code, end=ap_end)
    stopped = threading.Event()

    def stop_all() -> None:
        machine.threads[0].join(LIMIT)
        stopped.set()
        machine.bare.cpu.kick()

    watcher = threading.Thread(target=stop_all, daemon=True)
    watcher.start()
    stop = machine.bare.run(LIMIT)
    assert stopped.is_set(), stop
    assert stop.reason == _vmm.EXIT_KICK
    assert machine.stops[0].value == 9
    watcher.join(LIMIT)


def test_all_idle(bare) -> None:
    """Interrupts on, but nobody who could raise one."""
    code = LAPIC + WAKE_ALL + wait_for(1) + "sti; hlt"
    machine = Machine(bare, 2, code)
    assert machine.bare.run(None).reason == _vmm.EXIT_IDLE
    assert machine.reasons() == [_vmm.EXIT_HALT]


def test_devices_are_shared(bare) -> None:
    """Two vCPUs at one Python device: each access arrives, none twice."""
    device = Device()
    ap_end = f"mov dx, {PORT}; mov ecx, 200; l: mov ax, cx; out dx, ax; loop l"
    code = f"""
        mov dx, {PORT + 4}
        mov ecx, 200
    l:  mov eax, ecx
        out dx, eax
        loop l
    """
    source = LAPIC + WAKE_ALL + code + wait_for(1) + "cli; hlt"
    machine = Machine(
        bare, 2, source, end=ap_end + "; hlt", ports={PORT: device}
    )
    assert machine.bare.run(None).reason == _vmm.EXIT_HALT
    assert machine.reasons() == [_vmm.EXIT_HALT]
    for offset, size in ((0, 2), (4, 4)):
        values = [e[3] for e in device.log if e[:3] == ("w", offset, size)]
        assert values == list(range(200, 0, -1))
    assert len(device.log) == 400


def test_close_while_all_run(bare) -> None:
    code = LAPIC + WAKE_ALL + wait_for(3) + "l: jmp l"
    machine = Machine(bare, 4, code, end="jmp end")
    stop: list[_vmm.Exit] = []
    first = threading.Thread(target=lambda: stop.append(machine.bare.run()))
    first.start()
    while machine.bare.memory.read_u32(STARTED) < 3:
        pass
    machine.bare.close()
    first.join(LIMIT)
    assert stop[0].reason == _vmm.EXIT_KICK
    assert machine.reasons() == [_vmm.EXIT_KICK] * 3

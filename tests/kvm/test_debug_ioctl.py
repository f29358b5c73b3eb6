# SPDX-License-Identifier: Apache-2.0
"""VCPU.debug(): hardware breakpoints and single steps in ring 0."""

import pytest
from bare import CODE, MMIO, Device, exit

from pyvmm import _vmm

# Offsets: nop 0, nop 1, inc eax 2 (2 bytes in every mode), nop 4, exit 5.
CODE_OF_TESTS = "nop; nop; .byte 0xff, 0xc0; nop\n" + exit(3)
RING_0 = ["protected", "long"]
ENABLE = [0x2, 0x8, 0x20, 0x80]  # G0 to G3 of dr7


@pytest.mark.parametrize("mode", RING_0)
@pytest.mark.parametrize("number", range(4))
def test_breakpoint(bare, mode, number) -> None:
    machine = bare(CODE_OF_TESTS, mode, rax=1)
    addresses = [0] * number + [CODE + 2]
    machine.cpu.debug(addresses, ENABLE[number])
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_DEBUG
    assert stop.pc == CODE + 2
    assert stop.code & 1 << number
    assert machine.regs.rip == CODE + 2
    assert machine.regs.rax == 1  # stopped before it
    machine.cpu.debug()
    machine.status()
    assert machine.regs.rax & 0xFF == 3


@pytest.mark.parametrize("mode", RING_0)
def test_four_breakpoints(bare, mode) -> None:
    machine = bare(CODE_OF_TESTS, mode)
    places = [CODE + 1, CODE + 2, CODE + 4, CODE + 5]
    met = []
    for _ in places:
        left = [p for p in places if p not in met]
        machine.cpu.debug(left, sum(ENABLE[: len(left)]))
        stop = machine.run()
        assert stop.reason == _vmm.EXIT_DEBUG
        met.append(stop.pc)
    assert met == places
    machine.cpu.debug()
    assert machine.status() == 3


def test_breakpoints_are_at_addresses(bare) -> None:
    machine = bare(CODE_OF_TESTS)
    machine.cpu.debug([CODE + 0x100], ENABLE[0])
    assert machine.status() == 3


def test_disabled_breakpoints(bare) -> None:
    machine = bare(CODE_OF_TESTS)
    machine.cpu.debug([CODE + 2], 0)
    assert machine.status() == 3


@pytest.mark.parametrize("mode", RING_0)
def test_step(bare, mode) -> None:
    machine = bare(CODE_OF_TESTS, mode, rax=1)
    machine.cpu.debug(step=True)
    met = []
    for _ in range(4):
        stop = machine.run()
        assert stop.reason == _vmm.EXIT_DEBUG
        assert stop.code & 0x4000  # DR6.BS
        met.append(machine.regs.rip)
    assert met == [CODE + 1, CODE + 2, CODE + 4, CODE + 5]
    assert machine.regs.rax == 2
    machine.cpu.debug()
    assert machine.status() == 3
    assert not machine.regs.rflags & 0x100  # no trap flag is left


def test_step_over_accesses(bare) -> None:
    """A step of an access ends behind it, and the device sees it once."""
    device = Device()
    code = f"mov al, [{MMIO}]; mov [{MMIO + 1}], al; out 0xe9, al; nop\n"
    machine = bare(code + exit(3), devices={MMIO: device})
    machine.cpu.debug(step=True)
    met = []
    for _ in range(4):
        assert machine.run().reason == _vmm.EXIT_DEBUG
        met.append(machine.regs.rip - CODE)
    assert met == [5, 10, 12, 13]
    assert device.log == [("r", 0, 1), ("w", 1, 1, 0x11)]
    assert machine.console.read() == b"\x11"


def test_breakpoint_behind_an_access(bare) -> None:
    device = Device()
    machine = bare(f"mov al, [{MMIO}]; nop\n" + exit(3), devices={MMIO: device})
    machine.cpu.debug([CODE + 5], ENABLE[0])
    stop = machine.run()
    assert (stop.reason, stop.pc) == (_vmm.EXIT_DEBUG, CODE + 5)
    assert machine.regs.rax & 0xFF == 0x11


def test_step_and_set(bare) -> None:
    """Registers may be set between two steps."""
    machine = bare(CODE_OF_TESTS)
    machine.cpu.debug(step=True)
    machine.run()
    machine.regs.rax = 40
    machine.regs.rip = CODE + 2
    machine.run()
    assert (machine.regs.rax, machine.regs.rip) == (41, CODE + 4)


def test_kick_wins_over_nothing(bare) -> None:
    machine = bare(CODE_OF_TESTS)
    machine.cpu.debug(step=True)
    machine.cpu.kick()
    assert machine.run().reason == _vmm.EXIT_KICK
    assert machine.run().reason == _vmm.EXIT_DEBUG


def test_ring_3_never_hangs(bare) -> None:
    """Some hosts run past breakpoints there; pyvmm.Machine finds out."""
    machine = bare(CODE_OF_TESTS, "user")
    machine.cpu.debug([CODE + 2], ENABLE[0])
    stop = machine.run()
    if stop.reason == _vmm.EXIT_DEBUG:
        assert stop.pc == CODE + 2
    else:
        assert (stop.reason, stop.value) == (_vmm.EXIT_STOP, 3)


def test_arguments(bare) -> None:
    cpu = bare().cpu
    with pytest.raises(ValueError, match="5 breakpoints: the processor has 4"):
        cpu.debug([0] * 5)
    with pytest.raises(ValueError, match="address"):
        cpu.debug([1 << 64])
    with pytest.raises(ValueError, match="dr7"):
        cpu.debug([0], 1 << 32)
    with pytest.raises(TypeError):
        cpu.debug(5)

# SPDX-License-Identifier: Apache-2.0
"""From nothing to the first exit of a machine: 16 MiB, irqchip, one vCPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Protocol

import pyvmm
from pyvmm import _vmm

from .bare import Bare
from .exits import REGS
from .measure import Figure, Found, Step, pairs, ratio
from .table import Row

BASE = 0x100000
SIZE = 16 << 20
CODE = bytes([0xB0, 7, 0xE6, _vmm.EXIT_PORT, 0xF4])  # exit with 7
REGISTERS = REGS.pack(*(BASE if i == 16 else 0 for i in range(18)))


class Closing(Protocol):
    def close(self) -> None: ...


# What is to be closed when nobody looks at the clock: the kernel takes 15 ms
# for a young VM, and what runs then finds cold caches.
KEPT: list[Closing] = []
AT_ONCE = 20


def close_all() -> None:
    for one in KEPT:
        one.close()
    KEPT.clear()
    _vmm.reap()


class LowLevel:
    """The types of the binding, without a Machine above them."""

    def __init__(self) -> None:
        self.kvm = _vmm.KVM()

    def make(self) -> tuple[_vmm.VM, _vmm.VCPU]:
        memory = _vmm.Memory()
        memory.add(BASE, SIZE)
        memory.write(BASE, CODE)
        vm = _vmm.VM(self.kvm, memory)
        vm.create_irqchip()
        cpu = _vmm.VCPU(vm)
        vm.pio.add(_vmm.CONSOLE_PORT, _vmm.CONSOLE_SIZE, _vmm.Console())
        vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        cpu.start("protected", REGISTERS)
        return vm, cpu

    def step(self) -> float:
        start = perf_counter_ns()
        vm, cpu = self.make()
        end = cpu.run()
        took = perf_counter_ns() - start
        if end.value != 7:
            raise RuntimeError(f"the guest ended otherwise: {end}")
        KEPT.append(vm)
        return took


def to_exit(make: Callable[[], pyvmm.Machine]) -> float:
    """Nanoseconds from nothing to the exit with 7 of a machine."""
    start = perf_counter_ns()
    m = make()
    stop = m.run()
    took = perf_counter_ns() - start
    if stop.status != 7:
        raise RuntimeError(f"the guest ended otherwise: {stop}")
    KEPT.append(m)
    return took


def machine_step() -> float:
    """What users write; start_info, the boot stack and the GDT included."""
    return to_exit(machine)


def machine(memory: str = "16M") -> pyvmm.Machine:
    m = pyvmm.Machine(memory=memory)
    m.load(raw=CODE)
    return m


class Raw:
    """The same ioctls in C, on the registers that pyvmm sets."""

    def __init__(self, low: LowLevel) -> None:
        vm, cpu = low.make()
        self.state = cpu.get("sregs"), cpu.get("regs")
        vm.close()
        _vmm.reap()

    def step(self) -> float:
        start = perf_counter_ns()
        bare = Bare(BASE, SIZE, CODE, *self.state)
        bare.run(1)
        took = perf_counter_ns() - start
        KEPT.append(bare)
        return took


def sample(first: Step, second: Step, rounds: int, alive: int) -> Found:
    """Pairs, with a pause to close all after every `alive` of them."""
    found: Found = []
    for _ in range(rounds):
        pairs(first, second, 2)  # warm
        found += pairs(first, second, alive)
        close_all()
    return found


def cold(step: Step) -> Step:
    """The step after the last machine has gone."""

    def run() -> float:
        close_all()
        return step()

    return run


def first_exit(effort: float) -> Iterator[Row]:
    low = LowLevel()
    raw = Raw(low)
    rounds = round(10 * effort)
    for step in (low.step, machine_step):
        found = sample(raw.step, step, rounds, AT_ONCE)
        name = "_vmm" if step == low.step else "Machine"
        cost = Figure([a for a, _ in found]).median / 1e6
        yield Row(
            f"create to first exit, {name}, against raw ioctls", ratio(found),
            1.5, unit="x", note=f"of {cost:.2f} ms",
        )  # fmt: skip
        yield Row(
            f"create to first exit, {name}", Figure([b for _, b in found]), 1,
            unit="ms", scale=1e-6, below=True,
        )  # fmt: skip
    found = sample(cold(raw.step), cold(machine_step), rounds, AT_ONCE // 2)
    cost = Figure([a for a, _ in found]).median / 1e6
    yield Row(
        "the same, after waiting for the last one's close", ratio(found), 1.5,
        unit="x", note=f"of {cost:.2f} ms",
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The repr of a Machine; it never runs or pauses a guest."""

from __future__ import annotations

from . import _vmm
from .stop import past_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine

LINES = 4  # of past exits of each vCPU


def picture(machine: Machine) -> str:
    """A machine as text: map, image, devices, vCPUs, last exits."""
    size = machine._size
    state = "described"
    if machine._closed:
        state = "closed"
    elif machine.running:
        state = "running"
    elif machine._vm is not None:
        state = "stopped" if machine._ran else "ready"
    lines = [
        f"<{type(machine).__name__} {state}, {machine._count} vCPU"
        f"{'s' if machine._count > 1 else ''}, {size // 1024} KiB"
    ]
    for gpa, length, flags, _ in regions(machine):
        kind = "ROM" if flags & _vmm.MEM_READONLY else "RAM"
        lines.append(f"  {gpa:#011x}..{gpa + length - 1:#011x} {kind}")
    if machine._image is not None:
        lines.append(f"  {machine._image!r}")
    lines += [f"  {slot}" for slot in machine._wiring.slots]
    lines += cpu_lines(machine)
    return "\n".join(lines) + ">"


def regions(machine: Machine) -> list[tuple[int, int, int, int]]:
    return [] if machine.memory.closed else machine.memory.regions


def cpu_lines(machine: Machine) -> list[str]:
    lines: list[str] = []
    for cpu in machine._cpus:
        if cpu.vcpu.closed:
            continue
        lines.append(f"  {cpu.vcpu!r}")
        if not cpu.vcpu.running:
            past = past_lines(cpu.vcpu.past[-LINES:])
            lines += [f"    {line}" for line in past]
    return lines

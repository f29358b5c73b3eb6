# SPDX-License-Identifier: Apache-2.0
"""What filters cost: registers answered in C, posted writes, KVM's ring."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm import Device, Reg, _vmm

from .exits import (
    MODES,
    PORTS,
    READ,
    WRITE,
    Group,
    Guest,
    PlainDevice,
    RuledDevice,
    compare,
)
from .measure import Figure, Step, ratio, timed
from .table import Row

POSTED = 1000
KVM_CAP_COALESCED_PIO = 162


class PostedDevice(Device):
    """Gathers what the guest writes."""

    size = 16
    reg = Reg(0x0, 1, posted=POSTED)

    def __init__(self) -> None:
        self.calls = 0
        self.count = 0

    @reg.on_writes
    def got(self, values: memoryview) -> None:
        self.calls += 1
        self.count += len(values)


def batch(group: Group, device: Device) -> Step:
    """A batch of exits to this device."""
    return timed(group.guest(device).batch)


def coalesced(group: Group) -> Step:
    """The same, kept back by KVM."""
    guest = group.guest(PostedDevice())
    guest.vm.coalesce(PORTS[WRITE], 1, pio=True)
    guest.batch()
    return timed(guest.batch)


def calls_for_a_thousand() -> float:
    """How many calls of Python 1000 writes make, fed by the bus."""
    device = PostedDevice()
    guest = Guest(_vmm.KVM(), "protected", WRITE, device)
    for value in range(10 * POSTED):
        guest.vm.pio.write(PORTS[WRITE], 1, value & 0xFF)
    guest.close()
    if device.count != 10 * POSTED:
        raise RuntimeError(f"{device.count} writes came of {10 * POSTED}")
    return device.calls / 10


def filters(effort: float) -> Iterator[Row]:
    """Against the bare loop, which takes the exit and does nothing."""
    rounds, count = round(10 * effort), 30
    for mode, ring in MODES.items():
        for name, op, other in (
            ("register, read", READ, lambda g: batch(g, PlainDevice())),
            ("register, write", WRITE, lambda g: batch(g, PlainDevice())),
            ("register with rules, write", WRITE,
             lambda g: batch(g, RuledDevice())),
            ("posted write", WRITE, lambda g: batch(g, PostedDevice())),
        ):  # fmt: skip
            found, cost = compare(mode, op, other, rounds, count)
            yield Row(
                f"filter, against a bare loop: {name}, {ring}", ratio(found),
                1.05, unit="x", digits=3, note=f"exits of {cost:.1f} us",
            )  # fmt: skip
        if not _vmm.KVM().check(KVM_CAP_COALESCED_PIO):
            yield Row(
                f"the same kept back by KVM, {ring}",
                note="this host cannot: KVM_CAP_COALESCED_PIO",
            )
            continue
        found, cost = compare(mode, WRITE, coalesced, rounds, count)
        yield Row(
            f"the same kept back by KVM, {ring}", ratio(found),
            1, unit="x", below=True, note=f"exits of {cost:.1f} us",
        )  # fmt: skip
    yield Row("calls of Python for 1000 posted writes",
              Figure([calls_for_a_thousand()]), 1, digits=1)  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Lines, routes and messages: how an interrupt reaches a guest."""

import os

import pytest
from bare import exit, ioapic, on_interrupt
from test_eventfd import COUNTER, PIN, VECTOR, Source, counter, eventfd

from pyvmm import _vmm

__all__ = ["eventfd"]  # a fixture

MSI = 0xFEE0_0000  # to the vCPU with APIC id 0


def test_edge(bare) -> None:
    """An edge is one interrupt; a line that stays up makes no other."""
    source = Source(2)
    machine = counter(bare, source)
    source.ready = lambda: machine.vm.irq_line(PIN, True)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 1
    machine.vm.irq_line(PIN, True)  # no edge
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 1
    machine.vm.irq_line(PIN, False)
    machine.vm.irq_line(PIN, True)
    assert machine.status() == 2


def test_level(bare) -> None:
    """A level interrupts until it is lowered.

    A host that ends an interrupt when it injects it, not at the guest's EOI,
    has looked at the line once more by then.
    """
    source = Source(100)
    machine = counter(bare, source, level=True)
    source.ready = lambda: machine.vm.irq_line(PIN, True)
    source.handled = lambda n: n == 3 and machine.vm.irq_line(PIN, False)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen in (3, 4)
    source.count = source.seen + 1
    machine.vm.irq_line(PIN, True)
    assert machine.status() == source.count


def test_masked_pin(bare) -> None:
    """An entry of the IOAPIC that nobody programmed is masked."""
    source = Source(1)
    machine = counter(bare, source)
    source.ready = lambda: machine.vm.irq_line(PIN + 1, True)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 0


def test_low_lines_do_not_reach_the_pic(bare) -> None:
    """The PICs start masked: line 5 comes by the IOAPIC, once."""
    source = Source(1)
    machine = counter(bare, source, pin=5)
    source.ready = lambda: machine.vm.irq_line(5, True)
    assert machine.status() == 1


def test_low_lines_of_a_guest_without_an_ioapic(bare) -> None:
    """Nothing comes in spite of LINT0: not the PIC's vector 0 upwards."""
    source = Source(1)
    code = on_interrupt(VECTOR).replace("0x10000", "0x700") + COUNTER
    machine = bare(code, "long", ports={0x500: source})
    source.ready = lambda: machine.vm.irq_line(5, True)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 0


# -- routes ------------------------------------------------------------------


def test_route_of_a_new_gsi(bare, eventfd) -> None:
    source, fd = Source(1), eventfd()
    machine = counter(bare, source)
    machine.vm.route_pin(100, PIN)
    machine.vm.irqfd(fd, 100)
    source.ready = lambda: os.eventfd_write(fd, 1)
    assert machine.status() == 1


def test_route_in_place_of_the_default(bare) -> None:
    source = Source(1)
    machine = counter(bare, source)
    machine.vm.route_pin(20, PIN)
    machine.vm.route_pin(PIN, 20)
    source.ready = lambda: machine.vm.irq_line(PIN, True)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 0
    machine.vm.irq_line(20, True)
    assert machine.status() == 1


def test_other_routes_stay(bare) -> None:
    """KVM_SET_GSI_ROUTING keeps no defaults; the core does."""
    source = Source(1)
    machine = counter(bare, source)
    for gsi in range(24, 300):
        machine.vm.route_pin(gsi, 3)
    source.ready = lambda: machine.vm.irq_line(PIN, True)
    assert machine.status() == 1


def test_low_lines_lose_the_pic_with_their_route(bare) -> None:
    source = Source(1)
    machine = counter(bare, source)
    machine.vm.route_pin(5, PIN)
    source.ready = lambda: machine.vm.irq_line(5, True)
    assert machine.status() == 1


def test_every_gsi_can_be_routed(bare) -> None:
    """As many as the host takes; its refusal names the call."""
    vm = bare().vm
    for gsi in range(1024):
        vm.route_pin(gsi, gsi % 24)
    with pytest.raises(ValueError, match="gsi 1024 is outside"):
        vm.route_pin(1024, 0)
    with pytest.raises(ValueError, match="pin 24 is outside"):
        vm.route_pin(0, 24)
    with pytest.raises(ValueError, match="gsi 1024"):
        vm.route_msi(1024, MSI, VECTOR)
    with pytest.raises(ValueError, match="gsi 1024"):
        vm.irq_line(1024, True)


# -- messages ----------------------------------------------------------------


def test_msi(bare) -> None:
    source = Source(3)
    machine = bare(
        on_interrupt(VECTOR) + COUNTER, "long", ports={0x500: source}
    )
    sent = []
    source.ready = lambda: sent.append(machine.vm.msi(MSI, VECTOR))
    source.handled = lambda n: sent.append(machine.vm.msi(MSI, VECTOR))
    assert machine.status() == 3
    assert sent == [True] * 4


def test_msi_to_nobody(bare) -> None:
    machine = bare(exit(0))
    assert machine.vm.msi(MSI | 5 << 12, VECTOR) is False


def test_msi_needs_a_vector(bare) -> None:
    with pytest.raises(ValueError, match="data"):
        bare().vm.msi(MSI, 1 << 32)


def test_msi_by_irqfd(bare, eventfd) -> None:
    source, fd = Source(5), eventfd()
    machine = bare(
        on_interrupt(VECTOR) + COUNTER, "long", ports={0x500: source}
    )
    machine.vm.route_msi(200, MSI, VECTOR)
    machine.vm.irqfd(fd, 200)
    source.ready = lambda: os.eventfd_write(fd, 1)
    source.handled = lambda n: os.eventfd_write(fd, 1)
    assert machine.status() == 5


def test_route_changes_under_an_irqfd(bare, eventfd) -> None:
    """The irqfd follows the route of its GSI."""
    source, fd = Source(2), eventfd()
    machine = counter(bare, source)
    machine.vm.route_msi(200, MSI, VECTOR)
    machine.vm.irqfd(fd, 200)

    def handled(n: int) -> None:
        machine.vm.route_pin(200, PIN)
        os.eventfd_write(fd, 1)

    source.ready = lambda: os.eventfd_write(fd, 1)
    source.handled = handled
    assert machine.status() == 2


# -- the PIT ----------------------------------------------------


def test_the_pit_interrupts(bare) -> None:
    """Channel 0, by pin 2 of the IOAPIC, in mode 2."""
    source = Source(3)
    code = (
        on_interrupt(VECTOR)
        + ioapic(2, VECTOR)
        + "mov al, 0x34; out 0x43, al; mov al, 0; out 0x40, al\n"
        + "mov al, 0x10; out 0x40, al\n"
        + COUNTER
    )
    machine = bare(code, "long", ports={0x500: source})
    machine.vm.create_pit()
    machine.vm.wakers += 1
    machine.vm.route_pin(0, 2)  # where the timer of a PC is
    assert machine.status() == 3

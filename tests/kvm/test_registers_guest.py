# SPDX-License-Identifier: Apache-2.0
"""Registers and ranges of devices in front of a guest."""

import functools
import random

import pytest

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")


class Card(pyvmm.Device):
    """A register at each of: an address, a port, another address."""

    size = 0x10
    ports = pyvmm.Range(4, port=0x300)
    window = pyvmm.Range(0x100, mmio=0xE000_0000)
    low = pyvmm.Reg(0x0, 4)
    high = pyvmm.Reg(0x4, 4, access="w1c", reset=0xF0F0)
    select = pyvmm.Reg(0x2, 2, range=ports)

    @window.on_read
    def look(self, offset, size):
        return self.select + offset


GUEST = """
mov eax, 0x11223344
mov [0xd0000000], eax
mov al, [0xd0000001]
mov byte ptr [0xd0000004], 0x30
mov dx, 0x302
mov ax, 7
out dx, ax
in al, dx
mov cl, al
add cl, [0xe0000001]
mov al, cl
out 0xf4, al
"""


def test_a_guest_reaches_them_all() -> None:
    with pyvmm.Machine() as m:
        card = m.attach(Card())
        m.load(asm=GUEST)
        assert m.run(timeout=20).status == 7 + 7 + 1
    assert card.save() == {"low": 0x11223344, "high": 0xF0C0, "select": 7}


def test_what_is_detached_is_gone() -> None:
    with pyvmm.Machine(strict=False) as m:
        card = m.attach(Card())
        m.load(asm="mov al, [0xe0000001]; out 0xf4, al; " * 2)
        assert m.run(timeout=20).status == 1
        m.detach(card)
        assert m.run(timeout=20).status == 0xFF


def test_a_bad_answer_names_the_access() -> None:
    class Bad(pyvmm.Device):
        reg = pyvmm.Reg(0x0, 4)

        @reg.on_read
        def look(self):
            return None

    with pyvmm.Machine() as m:
        m.attach(Bad())
        m.load(asm="mov eax, [0xd0000000]")
        with pytest.raises(TypeError, match=r"Bad.reg, 4 bytes at 0x0, was"):
            m.run(timeout=20)


class Plain(pyvmm.Device):
    reg = pyvmm.Reg(0x0, 4, reset=1)


READ_AND_EXIT = "mov eax, [0xd0000000]; out 0xf4, al; "


def test_values_that_the_host_sets() -> None:
    with pyvmm.Machine() as m:
        device = m.attach(Plain())
        m.load(asm=READ_AND_EXIT * 3)
        assert m.run(timeout=20).status == 1
        device.reg = 2
        assert m.run(timeout=20).status == 2
        device.restore({"reg": 3})
        assert m.run(timeout=20).status == 3


def wrapped(cls):
    """The class with methods around those that were made."""

    class Wrapped(cls):
        @functools.wraps(cls.read)
        def read(self, offset, size):
            return super().read(offset, size) + 1

        @functools.wraps(cls.write)
        def write(self, offset, size, value):
            super().write(offset, size, value + 1)

    return Wrapped


def overridden(cls):
    """The same without traces of the methods around which they are."""

    class Overridden(cls):
        def read(self, offset, size):
            return super().read(offset, size) + 1

        def write(self, offset, size, value):
            super().write(offset, size, value + 1)

    return Overridden


@pytest.mark.parametrize("around", [wrapped, overridden])
def test_own_methods_are_called(around) -> None:
    with pyvmm.Machine() as m:
        device = m.attach(around(Plain)())
        m.load(asm="mov dword ptr [0xd0000000], 5; " + READ_AND_EXIT)
        assert m.run(timeout=20).status == 7
    assert device.reg == 6


def test_methods_of_the_instance_are_called() -> None:
    device = Plain()
    device.read = lambda offset, size: 9
    with pyvmm.Machine() as m:
        m.attach(device)
        m.load(asm=READ_AND_EXIT)
        assert m.run(timeout=20).status == 9


class Mixed(pyvmm.Device):
    """Registers of all kinds, some with methods."""

    size = 0x20
    plain = pyvmm.Reg(0x0, 4)
    wide = pyvmm.Reg(0x8, 8)
    byte = pyvmm.Reg(0x11, 1, mask=0x7F)
    once = pyvmm.Reg(0x12, 2, access="w1c", reset=0xFFFF)
    hidden = pyvmm.Reg(0x14, 4, access="wo")
    fixed = pyvmm.Reg(0x18, 4, access="ro", reset=0x1234)
    called = 0

    @hidden.on_write
    def count(self, value):
        self.called += 1

    @fixed.on_read
    def look(self):
        return self.called & 0xFFFF_FFFF


def test_a_bus_does_what_the_methods_do() -> None:
    """Any traffic, at any size: the binding's short cuts change nothing."""
    rng = random.Random(2)
    one, other = Mixed(), Mixed()
    with pyvmm.Machine() as m:
        bus = m.vm.mmio
        base = m.attach(one).base
        for _ in range(5000):
            size = rng.choice((1, 2, 4, 8, rng.randint(1, 8)))
            offset = rng.randrange(0, 0x20 - size + 1)
            offset -= offset % size if rng.random() < 0.7 else 0
            if rng.random() < 0.5:
                value = rng.randrange(1 << 8 * size)
                bus.write(base + offset, size, value)
                other.write(offset, size, value)
            read = bus.read(base + offset, size)
            assert read == other.read(offset, size)
            assert one.save() == other.save() and one.called == other.called


class Sender(pyvmm.Device):
    """Sends its message a moment after the guest has given it."""

    size = 0x10
    msi = pyvmm.Msi()
    address = pyvmm.Reg(0x0, 4)
    data = pyvmm.Reg(0x4, 4)

    @data.on_write
    def send(self, value):
        self.msi.address, self.msi.data = self.address, value
        self.after(0.001, self.msi.pulse)


SENDER_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static volatile unsigned seen;

static void on_message(void *data)
{
    (void)data;
    seen++;
}

int main(void)
{
    struct arg_device sender;

    assert(arg_device("sender", &sender));
    assert(irq_request(20, on_message, NULL)); /* vector 0x30 + 20 */
    write32(sender.base, 0xfee00000);
    for (unsigned i = 1; i <= 3; i++) {
        write32(sender.base + 4, 0x30 + 20);
        while (seen < i)
            irq_wait();
    }
    return (int)seen;
}
"""


def test_messages_reach_the_guest() -> None:
    with pyvmm.Machine() as m:
        sender = m.attach(Sender())
        m.load(c=SENDER_GUEST)
        assert m.run(timeout=20).status == 3
        assert m.vm.wakers == 1
        m.detach(sender)
        assert m.vm.wakers == 0

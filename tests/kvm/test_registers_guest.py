# SPDX-License-Identifier: Apache-2.0
"""Registers and ranges of devices in front of a guest."""

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
        with pytest.raises(TypeError, match=r"Bad.read\(0, 4\) returned None"):
            m.run(timeout=20)

# SPDX-License-Identifier: Apache-2.0
"""`rep ins`: one call for devices that ask for it; `rep outs`."""

import pytest
from bare import PORT, exit

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")


class Plain:
    """Answers element by element."""

    def __init__(self) -> None:
        self.log: list[tuple] = []

    def read(self, offset, size):
        self.log.append(("read", offset, size))
        return 0x55

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value))


class Port(Plain):
    """Answers with a pattern, in one call."""

    answer: object = None

    def read_many(self, offset, size, count):
        self.log.append(("read_many", offset, size, count))
        if self.answer is not None:
            return self.answer
        return bytes(i & 0xFF for i in range(size * count))


IN = f"""
    mov edx, {PORT}
    mov edi, 0x90000
    mov ecx, 300
    rep insd
    {exit(0)}
"""


def test_in_element_by_element(bare) -> None:
    machine = bare(IN, ports={PORT: (port := Plain())})
    assert machine.status() == 0
    assert port.log == [("read", 0, 4)] * 300
    assert machine.memory.read(0x90000, 1200) == b"\x55\0\0\0" * 300


def test_one_element_is_no_string(bare) -> None:
    machine = bare(
        IN.replace("ecx, 300", "ecx, 1"), ports={PORT: (port := Port())}
    )
    assert machine.status() == 0
    assert port.log == [("read", 0, 4)]


def test_in(bare) -> None:
    """The host may cut a long string into several."""
    port = Port()
    machine = bare(IN, ports={PORT: port})
    assert machine.status() == 0
    counts = [entry[3] for entry in port.log]
    assert sum(counts) == 300 and len(counts) < 10
    expected = b"".join(bytes(i & 0xFF for i in range(4 * n)) for n in counts)
    assert machine.memory.read(0x90000, 1200) == expected


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("x", "returned 'x'; 1200 bytes were due"),
        (b"abc", "returned b'abc'; 1200 bytes were due"),
        (5, "returned 5; 1200 bytes were due"),
    ],
)
def test_answers_are_checked(bare, answer, text) -> None:
    port = Port()
    port.answer = answer
    machine = bare(IN.replace("mov ecx, 300", "mov ecx, 3"), ports={PORT: port})
    with pytest.raises(TypeError, match=text.replace("1200", "12")):
        machine.run()
    # The guest got all ones, all of it, and goes on.
    assert machine.memory.read(0x90000, 12) == b"\xff" * 12
    assert machine.status() == 0
    assert len(port.log) == 1


def test_what_it_raises(bare) -> None:
    class Broken(Port):
        def read_many(self, offset, size, count):
            raise ZeroDivisionError

    machine = bare(IN.replace("ecx, 300", "ecx, 3"), ports={PORT: Broken()})
    with pytest.raises(ZeroDivisionError) as caught:
        machine.run()
    assert "read of 4 bytes at port" in caught.value.__notes__[0]
    assert machine.memory.read(0x90000, 12) == b"\xff" * 12
    assert machine.status() == 0


def test_registers_take_strings_in_c() -> None:
    """A posted register gets them as any other writes."""

    class Text(pyvmm.Device):
        out = pyvmm.Reg(0x0, 1, posted=1000)
        text = b""

        @out.on_writes
        def wrote(self, values):
            self.text += bytes(values)

    with pyvmm.Machine() as m:
        device = m.attach(Text(), port=0x300)
        m.load(
            asm="mov dx, 0x300; lea esi, [text]; mov ecx, 11; rep outsb;"
            'out 0xf4, al; text: .ascii "hello world"'
        )
        m.run(timeout=20)
        assert device.text == b"hello world"

# SPDX-License-Identifier: Apache-2.0
"""The ends that `until=` takes besides addresses."""

import pytest

import pyvmm
from pyvmm import devices

pytestmark = pytest.mark.usefixtures("kvm")

# Prints "hi", writes to a port and to a device, and calls f, which calls
# itself once.
GUEST = """
again:
    mov al, 'h'
    out 0xe9, al
    mov al, 'i'
    out 0xe9, al
    out 0x80, al
    mov [0xd0000000], eax
    call f
    jmp again
f:
    nop
    cmp byte ptr [0x200000], 0
    jne last
    inc byte ptr [0x200000]
    call f
    dec byte ptr [0x200000]
last:
    ret
"""


class Sink(pyvmm.Device):
    size = 16

    def __init__(self) -> None:
        self.values: list[int] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)


class Port(Sink):
    size = 1


@pytest.fixture
def m():
    with pyvmm.Machine(memory="16M") as m:
        m.attach(Sink(), mmio=0xD000_0000)
        m.attach(Port(), port=0x80)
        m.load(asm=GUEST)
        yield m


def test_printed(m) -> None:
    """It ends behind the byte that completes the text, each time anew."""
    for times in range(1, 4):
        stop = m.run(until=pyvmm.printed("hi"), timeout=5)
        assert stop.reason == "until" and "printed(b'hi')" in stop.message
        assert m.console.text == "hi" * times
    assert m.run(until=pyvmm.printed("ihi"), timeout=5).reason == "until"
    assert m.console.text == "hi" * 5  # of the "i" of before none counts


def test_one_of_several_texts(m) -> None:
    texts = [pyvmm.printed("never"), pyvmm.printed(b"ih")]
    stop = m.run(until=texts, timeout=5)
    assert m.console.text == "hih"
    assert "printed(b'ih')" in stop.message


def test_text_that_does_not_come(m) -> None:
    with pytest.raises(pyvmm.GuestTimeout):
        m.run(until=pyvmm.printed("never"), timeout=0.05)
    # The next run does not wait for it any more.
    assert m.run(until=pyvmm.exits(3), timeout=5).reason == "until"


def test_live_output_comes_as_well() -> None:
    seen: list[bytes] = []
    with pyvmm.Machine(console=seen.append) as m:
        m.load(asm="mov al, 'x'; out 0xe9, al; mov al, 10; out 0xe9, al; hlt")
        m.run(until=pyvmm.printed("x\n"), timeout=5)
        assert b"".join(seen) == b"x\n"


def test_text_of_a_uart() -> None:
    """A device is the console: the run is ended from outside."""
    with pyvmm.Machine() as m:
        m.attach(devices.Serial(), port=0x3F8, console=True)
        m.load(
            asm="mov dx, 0x3f8; mov al, 'a'; next: out dx, al; inc al;"
            "cmp al, 'z'; jbe next; spin: jmp spin"
        )
        stop = m.run(until=pyvmm.printed("xyz"), timeout=5)
        assert stop.reason == "until"
        assert m.console.text.endswith("xyz")


def test_written_port(m) -> None:
    """Behind the write, which its device has had."""
    stop = m.run(until=pyvmm.written(port=0x80), timeout=5)
    assert stop.reason == "until" and "written(port=0x80)" in stop.message
    assert m.devices[1].values == [ord("i")]
    assert m.cpu.rip == m.symbols["again"] + 10


@pytest.mark.parametrize("address", [0xD000_0000, 0xD000_0003])
def test_written_address(m, address) -> None:
    stop = m.run(until=pyvmm.written(address, size=1), timeout=5)
    assert stop.reason == "until"
    assert len(m.devices[0].values) == 1


def test_written_beside_it(m) -> None:
    with pytest.raises(pyvmm.GuestTimeout):
        m.run(until=pyvmm.written(0xD000_0004), timeout=0.05)


def test_written_ram_wants_a_watchpoint(m) -> None:
    from pyvmm.debug import trial

    condition = pyvmm.written(0x20_0000, size=1)
    if "watch" in trial("protected"):
        assert m.run(until=condition, timeout=5).reason == "until"
    else:
        with pytest.raises(pyvmm.Unsupported, match="no watchpoints"):
            m.run(until=condition, timeout=5)


def test_exits(m) -> None:
    m.run(until=pyvmm.exits(1), timeout=5)
    assert m.console.text == "h"
    m.run(until=pyvmm.exits(3), timeout=5)
    assert m.devices[0].values and m.devices[1].values
    assert m.console.text == "hi"


def test_elapsed_is_no_failure(m) -> None:
    stop = m.run(until=pyvmm.elapsed(0.02), timeout=5)
    assert stop.reason == "until" and "elapsed(0.02)" in stop.message
    with pytest.raises(pyvmm.GuestTimeout):
        m.run(until=pyvmm.elapsed(5), timeout=0.02)


def test_return_of_this_call(m) -> None:
    """f comes by its own return address, deeper in the stack, first."""
    m.run(until="f", timeout=5)
    stack = m.cpu.rsp
    stop = m.run(until="return", timeout=5)
    assert stop.reason == "until"
    assert m.cpu.rsp == stack + 4
    assert m.cpu.mem.read(0x20_0000, 1) == b"\0"
    m.run(until="f", timeout=5)
    m.run(until=pyvmm.returned(), timeout=5)
    assert m.cpu.rsp == stack + 4


def test_first_of_several(m) -> None:
    stop = m.run(until=["f", pyvmm.exits(2), pyvmm.elapsed(60)], timeout=5)
    assert "exits(2)" in stop.message
    assert m.run(until=["f", pyvmm.exits(200)], timeout=5).where.symbol == "f"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: pyvmm.printed(""), ValueError, "printed"),
        (lambda: pyvmm.exits(0), ValueError, "exits 0 is outside 1"),
        (lambda: pyvmm.elapsed(-1), ValueError, "elapsed -1"),
        (lambda: pyvmm.written(), TypeError, "an address, or port="),
        (lambda: pyvmm.written(port=70000), ValueError, "0x11170"),
        (lambda: pyvmm.written(5, size=0), ValueError, "size 0"),
    ],
)
def test_bad_conditions(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()


def test_too_many(m) -> None:
    with pytest.raises(ValueError, match="5 texts are more than 4"):
        m.run(until=[pyvmm.printed(x) for x in "abcde"])
    with pytest.raises(ValueError, match="one written"):
        m.run(until=[pyvmm.written(port=1), pyvmm.written(port=2)])
    with pyvmm.Machine() as real:
        real.load(asm="nop", mode="real")
        with pytest.raises(ValueError, match="a mode with a C ABI"):
            real.run(until="return")
    assert m.run(until=pyvmm.exits(1), timeout=5).reason == "until"

# SPDX-License-Identifier: Apache-2.0
"""Describing a machine: memory, devices, lines; nothing needs KVM."""

import hashlib
import io

import pytest

import pyvmm
from pyvmm import _vmm
from pyvmm.memory import parse_size, ram_ranges
from pyvmm.rng import CHUNK, byte_source


class Plain(pyvmm.Device):
    size = 0x10


class Loud(pyvmm.Device):
    size = 0x1001
    irq = pyvmm.Irq()
    other = pyvmm.Irq()


@pytest.fixture
def m():
    with pyvmm.Machine("16M") as machine:
        yield machine


def slots(m: pyvmm.Machine) -> list[str]:
    return [str(slot) for slot in m._wiring.slots]


def test_addresses_and_lines_are_chosen(m) -> None:
    plain, loud, rng = Plain(), Loud(), pyvmm.Rng()
    assert m.attach(plain) is plain
    m.attach(loud)
    m.attach(rng)
    m.attach(Plain(), port=0x300, name="uart")
    assert slots(m) == [
        "plain: mmio 0xd0000000..0xd000000f",
        "loud: mmio 0xd0001000..0xd0002000, line 16, line 17",
        "rng: mmio 0xd0003000..0xd00031ff, line 18",
        "uart: port 0x300..0x30f",
    ]
    assert (plain.base, plain.machine, plain.is_port) == (0xD000_0000, m, False)
    assert (loud.irq.line, loud.other.line, rng.irq_line) == (16, 17, 18)
    assert rng.base == 0xD000_3000 and isinstance(rng.native, _vmm.Rng)
    assert repr(loud.irq) == "<IrqLine Loud.irq line 16>"
    assert m.devices[0] is plain


def test_lines_run_out(m) -> None:
    for _ in range(9):
        m.attach(Loud())
    m.attach(pyvmm.Rng())
    lines = [line for slot in m._wiring.slots for line in slot.lines]
    assert lines == [*range(16, 24), *range(5, 16)]
    with pytest.raises(ValueError, match="no interrupt line is left for rng"):
        m.attach(pyvmm.Rng())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mmio": 0xD000_000F}, "overlaps plain: mmio 0xd0000000..0xd000000f"),
        ({"mmio": 0x10_0000}, "overlaps RAM 0x100000..0x10fffff"),
        ({"mmio": 0xFEC0_0010}, "overlaps the IOAPIC"),
        ({"mmio": 0xFEDF_FFF8}, "overlaps the local APIC"),
        ({"mmio": -1}, "outside"),
        ({"mmio": (1 << 52) - 8}, "outside"),
        ({"port": 0xE0}, "overlaps the console"),
        ({"port": 0xF7}, "overlaps the exit port"),
        ({"port": 0xFFF8}, "outside"),
        ({"port": 1, "mmio": 2}, "not both"),
        ({"irq": 16}, "plain has no Irq"),
    ],
)
def test_places_that_are_refused(m, options, message) -> None:
    m.attach(Plain(), mmio=0xD000_0000)
    with pytest.raises(ValueError, match=message):
        m.attach(Plain(), **options)
    assert len(m.devices) == 1


def test_lines_that_are_refused(m) -> None:
    m.attach(Loud(), irq=20)
    with pytest.raises(ValueError, match="irq 20 is taken by loud: mmio"):
        m.attach(Loud(), irq=20)
    with pytest.raises(ValueError, match=r"irq 24 is outside 1\.\.23"):
        m.attach(Loud(), irq=24)


def test_what_is_no_device(m) -> None:
    with pytest.raises(TypeError, match="Plain is a class"):
        m.attach(Plain)
    with pytest.raises(TypeError, match="object needs `size`"):
        m.attach(object())
    with pytest.raises(TypeError, match="no device: it needs read"):
        m.attach(type("Odd", (), {"size": 4})())
    with pytest.raises(ValueError, match=r"size 0 is not above 0"):
        m.attach(type("Odd", (Plain,), {"size": 0})())
    plain = m.attach(Plain())
    with pytest.raises(ValueError, match="attached already"):
        m.attach(plain)


def test_without_an_irqchip() -> None:
    with pyvmm.Machine(irqchip=False) as m:
        with pytest.raises(ValueError, match="irqchip=False"):
            m.attach(Loud())
        rng = m.attach(pyvmm.Rng())
        assert rng.irq_line is None


def test_detaching(m) -> None:
    loud = m.attach(Loud())
    m.detach(loud)
    assert loud.base is None and loud.irq.line is None and not m.devices
    with pytest.raises(ValueError, match="not attached"):
        m.detach(loud)
    with pytest.raises(ValueError, match=r"Loud.irq is not connected"):
        loud.irq.pulse()
    m.attach(loud, mmio=0xD000_8000)
    assert loud.irq.line == 16


def test_a_device_may_define_its_own_init() -> None:
    class Own(pyvmm.Device):
        size = 4
        irq = pyvmm.Irq()

        def __init__(self) -> None:
            self.ready = False

        def attached(self) -> None:
            self.ready = self.machine is not None

    with pyvmm.Machine() as m:
        assert m.attach(Own()).ready


def test_a_subclass_may_drop_the_line(m) -> None:
    class Quiet(Loud):
        other = None

    quiet = m.attach(Quiet())
    assert quiet.irq.line == 16 and quiet.other is None


@pytest.mark.parametrize(
    ("size", "value"),
    [(4096, 4096), ("64K", 65536), ("10M", 10 << 20), ("1g", 1 << 30),
     ("2 MiB", 2 << 20), ("0x1000", 4096)],
)  # fmt: skip
def test_sizes(size, value) -> None:
    assert parse_size(size) == value


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("10X", "memory '10X' is not a size"),
        ("", "not a size"),
        ("M", "not a size"),
        ("1.5M", "not a size"),
        (-4096, "must be more than 0"),
        (0, "must be more than 0"),
        ("-1M", "must be more than 0"),
        (4097, "not a multiple of 4096"),
        ("1000T", r"more than this host has \(\d+ bytes\)"),
    ],
)
def test_sizes_that_are_refused(size, message) -> None:
    with pytest.raises(ValueError, match=message):
        pyvmm.Machine(size)


def test_ram_goes_around_the_hole() -> None:
    assert ram_ranges(10 << 20) == [(1 << 20, 10 << 20)]
    assert ram_ranges(4 << 30) == [
        (1 << 20, (3 << 30) - (1 << 20)),
        (4 << 30, (1 << 30) + (1 << 20)),
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cpus": 0}, ValueError),
        ({"cpus": 2, "irqchip": False}, ValueError),
        ({"pit": True, "irqchip": False}, ValueError),
        ({"cmdline": b"x"}, TypeError),
        ({"cmdline": "a\0b"}, ValueError),
        ({"console": 1.5}, TypeError),
        ({"console": -1}, ValueError),
        ({"console_irq": 3}, ValueError),
        ({"boot": 3}, TypeError),
        ({"memory": 1.5}, TypeError),
    ],
)
def test_arguments_that_are_refused(options, error) -> None:
    with pytest.raises(error):
        pyvmm.Machine(**options)


def test_memory_that_is_added(m) -> None:
    m.add_memory(0, "64K")
    m.add_memory(0x2000_0000, data=b"rom", readonly=True)
    regions = [(gpa, size, flags) for gpa, size, flags, _ in m.memory.regions]
    assert regions == [
        (0, 65536, 0),
        (1 << 20, 16 << 20, 0),
        (0x2000_0000, 4096, _vmm.MEM_READONLY),
    ]
    assert m.memory.read(0x2000_0000, 4) == b"rom\0"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0x10_0000, 4096), {}, "overlaps"),
        ((1, 4096), {}, "multiple"),
        ((0,), {}, "size= or data="),
        ((0, 4096), {"data": b"x" * 4097}, "4097 bytes of data for 4096"),
        ((0xD000_0000, 4096), {}, "overlaps plain"),
        ((0, "9X"), {}, "size '9X'"),
    ],
)
def test_memory_that_is_refused(m, arguments, options, message) -> None:
    m.attach(Plain(), mmio=0xD000_0000)
    with pytest.raises(ValueError, match=message):
        m.add_memory(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"notify": "later"}, ValueError),
        ({"rate": 0}, ValueError),
        ({"queue_size": 3}, ValueError),
        ({"queue_size": 65536}, ValueError),
        ({"source": 3}, TypeError),
        ({"source": hashlib.sha256()}, TypeError),
    ],
)
def test_rngs_that_are_refused(options, error) -> None:
    with pytest.raises(error):
        pyvmm.Rng(**options)


def test_a_rate_implies_a_thread() -> None:
    assert pyvmm.Rng(rate=100).notify == "thread"
    assert pyvmm.Rng().notify == "inline"


def test_sources_of_bytes() -> None:
    assert byte_source(None) is None
    read = byte_source(io.BytesIO(b"abc"))
    assert read is not None and read(2) == b"ab" and read(2) == b"c"
    xof = hashlib.shake_128(b"seed")
    stream = byte_source(xof)
    assert stream is not None
    got = b""
    while len(got) < CHUNK + 100:
        got += bytes(stream(1000))
    expected = b""
    for i in range(2):
        copy = xof.copy()
        copy.update(i.to_bytes(8, "little"))
        expected += copy.digest(CHUNK)
    assert got == expected[: len(got)]


def test_nothing_was_realised(m) -> None:
    m.attach(Loud())
    repr(m)
    assert m._vm is None

# SPDX-License-Identifier: Apache-2.0
"""The firmware configuration device, by bytes and by DMA."""

import struct
from collections.abc import Iterator

import pytest
from traffic import hammer

from pyvmm import testing
from pyvmm.devices import FwCfg

FILES = {"opt/b": b"second", "opt/a": bytes(range(256)) * 300}
AT = 0x100


class Ram:
    """Some memory, and no more."""

    def __init__(self, size: int = 1 << 18) -> None:
        self.data = bytearray(size)
        self.most = 0

    def _check(self, address: int, size: int) -> None:
        self.most = max(self.most, size)
        if address > len(self.data) or size > len(self.data) - address:
            raise ValueError("outside RAM")

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return bytes(self.data[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.data[address : address + len(data)] = data


@pytest.fixture
def bus() -> Iterator[testing.Bus[FwCfg]]:
    with testing.bus(FwCfg(FILES, items={5: b"\1\0"}, ram=Ram())) as bus:
        yield bus


def read(bus: testing.Bus[FwCfg], item: int, size: int) -> bytes:
    bus.write_u16(0, item)
    return bytes(bus.read_u8(1) for _ in range(size))


def request(bus: testing.Bus[FwCfg], what: int, length: int, to: int) -> int:
    """A DMA request; what its first field is after it."""
    ram = bus.device.ram
    ram.write(AT, struct.pack(">IIQ", what, length, to))
    bus.write_u32(4, 0)
    bus.write_u32(8, int.from_bytes(struct.pack(">I", AT), "little"))
    return int.from_bytes(ram.read(AT, 4), "big")


def directory(raw: bytes) -> dict[str, tuple[int, int]]:
    (count,) = struct.unpack_from(">I", raw)
    found = {}
    for i in range(count):
        size, item, _, name = struct.unpack_from(">IHH56s", raw, 4 + 64 * i)
        found[name.rstrip(b"\0").decode()] = (size, item)
    return found


def test_what_it_is(bus) -> None:
    assert read(bus, 0, 6) == b"QEMU\0\0"
    assert read(bus, 1, 4) == b"\3\0\0\0"
    assert read(bus, 5, 3) == b"\1\0\0"
    assert read(bus, 0x1234, 2) == b"\0\0"
    assert bus.read_u64(4).to_bytes(8, "little") == b"QEMU CFG"
    assert bus.read_u32(8).to_bytes(4, "little") == b" CFG"
    assert bus.read_u16(0) == 0


def test_files(bus) -> None:
    found = directory(read(bus, 0x19, 4 + 64 * 2))
    assert list(found) == ["opt/a", "opt/b"]
    for name, (size, item) in found.items():
        assert item == bus.device.item(name)
        assert read(bus, item, size) == FILES[name]
    bus.device.add("opt/b", b"new")
    assert read(bus, bus.device.item("opt/b"), 4) == b"new\0"
    assert len(directory(read(bus, 0x19, 4 + 64 * 2))) == 2


@pytest.mark.parametrize("name", ["", "x" * 56, "a\nb"])
def test_names_that_are_refused(name) -> None:
    with pytest.raises(ValueError, match="name"):
        FwCfg({name: b""})
    with pytest.raises(ValueError, match="item 0x19"):
        FwCfg(items={0x19: b""})


def test_dma(bus) -> None:
    size, item = len(FILES["opt/a"]), bus.device.item("opt/a")
    assert request(bus, item << 16 | 0x0A, size + 10, 0x1000) == 0
    got = bus.device.ram.read(0x1000, size + 10)
    assert got == FILES["opt/a"] + bytes(10)
    item = bus.device.item("opt/b")
    assert request(bus, item << 16 | 0x0C, 2, 0) == 0
    assert request(bus, 0x02, 4, 0x1000) == 0
    assert bus.device.ram.read(0x1000, 4) == b"cond"
    # By one access of eight bytes.
    bus.device.ram.write(AT, struct.pack(">IIQ", 0x08, 0, 0))
    bus.write_u64(4, int.from_bytes(struct.pack(">Q", AT), "little"))
    assert bus.read_u8(1) == ord("Q")


@pytest.mark.parametrize(
    ("what", "length", "to"),
    [
        (0x0A, 4, 1 << 18),
        (0x0A, 0xFFFF_FFFF, 0),
        (0x0A, 0xFFFF_FFFF, (1 << 64) - 8),
        (0x10, 1, 0x1000),
    ],
)
def test_dma_that_is_refused(bus, what, length, to) -> None:
    before = bytes(bus.device.ram.data[0x1000:])
    assert request(bus, what, length, to) == 1
    assert bytes(bus.device.ram.data[0x1000:]) == before
    assert bus.device.ram.most <= 1 << 20


def test_a_request_outside_of_ram(bus) -> None:
    bus.write_u64(4, (1 << 64) - 1)
    assert request(bus, 0x04, 0xFFFF_FFFF, 0) == 0


def test_without_a_machine() -> None:
    with testing.bus(FwCfg()) as bus:
        bus.write_u64(4, 0)


def test_state_is_carried_over(bus) -> None:
    read(bus, 0, 2)
    state = bus.device.save()
    read(bus, 1, 1)
    bus.device.restore(state)
    assert bus.read_u8(1) == ord("M")
    with pytest.raises(ValueError, match="no state colour"):
        bus.device.restore({"colour": 1})


@pytest.mark.parametrize("seed", range(3))
def test_any_traffic(seed) -> None:
    ram = Ram(0x2000)
    ram.data[:] = bytes(range(256)) * 32
    hammer(FwCfg(FILES, ram=ram), seed=seed)
    assert ram.most <= 1 << 20

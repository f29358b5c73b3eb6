# SPDX-License-Identifier: Apache-2.0
"""start_info as bytes, held against the guest's header; no KVM."""

import subprocess
from pathlib import Path

import pytest

from pyvmm import boot
from pyvmm.boot import Placed, Platform, Region, start_info
from pyvmm.boot.start_info import StartInfo
from pyvmm.image import Image
from pyvmm.symbols import Symbols

MIB = 1 << 20


def image(mode: str = "protected", at: int = MIB, size: int = 5000) -> Image:
    return Image("test", mode, at + 16, [(at, size)], Symbols())


def platform(**changes: object) -> Platform:
    values: dict[str, object] = {
        "memory": [Region(MIB, 10 * MIB, False)],
        "image": image(),
        "devices": [],
        "cmdline": "",
        "initrd": None,
        "ioapic": 0xFEC0_0000,
    }
    return Platform(**(values | changes))  # type: ignore[arg-type]


class Memory:
    """What was written, to be read by address."""

    def __init__(self, start: boot.Start) -> None:
        self.writes = start.writes

    def read(self, at: int, size: int) -> bytes:
        for gpa, data in self.writes:
            if gpa <= at and at + size <= gpa + len(data):
                return data[at - gpa : at - gpa + size]
        raise AssertionError(f"nothing was written at {at:#x}")

    def string(self, at: int) -> str:
        out = b""
        while (byte := self.read(at + len(out), 1)) != b"\0":
            out += byte
        return out.decode()


def decode(start: boot.Start) -> dict[str, object]:
    """The structures as a guest finds them."""
    memory = Memory(start)
    info = dict(
        zip(
            start_info.START_INFO_FIELDS,
            start_info.START_INFO.unpack(
                memory.read(start.registers["rbx"], 20)
            ),
            strict=True,
        )
    )
    at = start.registers["rcx"]
    return {
        **info,
        "memory": [
            start_info.MEMORY_MAP_ENTRY.unpack(
                memory.read(info["mem_entries"] + 16 * i, 16)
            )
            for i in range(info["mem_size"])
        ],
        "devices": [
            start_info.DEVICE_MAP_ENTRY.unpack(
                memory.read(info["dev_entries"] + 8 * i, 8)
            )
            for i in range(info["dev_size"])
        ],
        "words": memory.string(at) if at else "",
    }


def test_tables_are_those_of_the_header(tmp_path: Path, root: Path) -> None:
    ours: dict[str, int] = {
        "sizeof(struct start_info)": start_info.START_INFO.size,
        "sizeof(struct memory_map_entry)": start_info.MEMORY_MAP_ENTRY.size,
        "sizeof(struct device_map_entry)": start_info.DEVICE_MAP_ENTRY.size,
        "START_INFO_MAGIC": start_info.START_INFO_MAGIC,
        "START_INFO_STACK_SIZE": start_info.STACK_SIZE,
        "MEMORY_FLAG_READ_ONLY": start_info.MEMORY_FLAG_READ_ONLY,
        "MEMORY_USE_FREE": start_info.MEMORY_USE_FREE,
        "MEMORY_USE_KERNEL": start_info.MEMORY_USE_KERNEL,
        "MEMORY_USE_INIT": start_info.MEMORY_USE_INIT,
    }
    for struct, fields in (
        ("start_info", start_info.START_INFO_FIELDS),
        ("memory_map_entry", start_info.MEMORY_MAP_ENTRY_FIELDS),
        ("device_map_entry", start_info.DEVICE_MAP_ENTRY_FIELDS),
    ):
        for i, field in enumerate(fields):
            ours[f"offsetof(struct {struct}, {field})"] = 4 * i
    checks = "\n".join(
        f'_Static_assert({what} == {value}, "{what}");'
        for what, value in ours.items()
    )
    source = f"#include <pyvmm/start_info.h>\n#include <stddef.h>\n{checks}\n"
    subprocess.run(
        ["cc", f"-I{root}/guest/include", "-fsyntax-only", "-x", "c", "-"],
        input=source,
        text=True,
        check=True,
    )


def test_the_reference_machine() -> None:
    start = StartInfo().start(platform())
    regs = start.registers
    assert start.mode == "protected" and start.tables == 0
    assert regs["rip"] == MIB + 16 and regs["rax"] == 0x6D76_7970
    assert regs["rcx"] == 0
    found = decode(start)
    assert found["ioapic_base"] == 0xFEC0_0000
    init = regs["rbx"]
    assert found["memory"] == [
        (MIB, 0x2000, 0, 1),
        (MIB + 0x2000, init - MIB - 0x2000, 0, 0),
        (init, 11 * MIB - init, 0, 2),
    ]
    assert regs["rsp"] == 11 * MIB and regs["rsp"] % 16 == 0
    blob_end = max(gpa + len(data) for gpa, data in start.writes)
    assert regs["rsp"] - blob_end >= 16384
    assert (found["dev_size"], found["dev_entries"]) == (0, 0)


def test_devices_and_words() -> None:
    devices = [
        Placed("com", 0x3F8, 8, is_port=True, line=4, virtio=False),
        Placed("rng", 0xD000_0000, 512, is_port=False, line=16, virtio=True),
        Placed("alarm", 0xD000_1000, 16, is_port=False, line=17, virtio=False),
        Placed("mute", 0xD000_2000, 4, is_port=False, line=0, virtio=False),
    ]
    found = decode(
        StartInfo().start(platform(devices=devices, cmdline="a b=c"))
    )
    assert found["devices"] == [
        (0xD000_0000, 16), (0xD000_1000, 17), (0xD000_2000, 0),
    ]  # fmt: skip
    assert found["words"] == (
        "a b=c com@port:0x3f8+0x8:4 alarm@0xd0001000+0x10:17 "
        "mute@0xd0002000+0x4:0"
    )


def test_memory_of_several_kinds() -> None:
    memory = [
        Region(0, 0x1000, False),
        Region(MIB, 4 * MIB, False),
        Region(16 * MIB, MIB, True),
        Region(0xFFFF_F000, 0x2000, False),
        Region(1 << 32, MIB, False),
    ]
    found = decode(StartInfo().start(platform(memory=memory)))
    entries = found["memory"]
    assert isinstance(entries, list)
    assert entries[0] == (0, 0x1000, 0, 0)
    assert (16 * MIB, MIB, 1, 0) in entries
    assert entries[-1] == (0xFFFF_F000, 0x1000, 0, 0)
    ends = [base + size for base, size, *_ in entries]
    starts = [base for base, *_ in entries]
    assert all(
        end <= start for end, start in zip(ends, starts[1:], strict=False)
    )
    assert all(base % 4096 == size % 4096 == 0 for base, size, *_ in entries)


def test_an_initrd_has_a_region_of_its_own() -> None:
    start = StartInfo().start(platform(initrd=b"x" * 5000))
    found = decode(start)
    words = str(found["words"])
    at = int(words.removeprefix("initrd@").partition("+")[0], 16)
    assert words == f"initrd@{at:#x}+0x1388"
    assert Memory(start).read(at, 5000) == b"x" * 5000
    assert (at, 0x2000, 0, 2) in found["memory"]  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["long", "user"])
def test_tables_of_the_64_bit_modes(mode: str) -> None:
    start = StartInfo().start(platform(image=image(mode)))
    regs = start.registers
    assert start.tables % 4096 == 0
    assert regs["rbx"] == regs["rdi"] < start.tables < regs["rsp"] - 16384


def test_real_mode() -> None:
    start = StartInfo().start(platform(image=image("real", 0x7C00)))
    assert start.registers == {"rip": 0x7C10, "rsp": 0x7000}


def test_what_does_not_fit_is_refused() -> None:
    tiny = [Region(MIB, 0x2000, False)]
    with pytest.raises(ValueError, match="bytes of RAM are free below 4 GiB"):
        StartInfo().start(platform(memory=tiny))
    high = [Region(1 << 32, MIB, False)]
    with pytest.raises(ValueError, match="below 4 GiB"):
        StartInfo().start(platform(memory=high, image=image(at=1 << 32)))
    with pytest.raises(ValueError, match="nothing is loaded"):
        StartInfo().start(platform(image=None))


def test_a_subclass_tells_something_else() -> None:
    class Mine(StartInfo):
        def words(self, platform, initrd):
            return "mine " + super().words(platform, initrd)

        def device_map(self, platform):
            return [(1, 2)]

    found = decode(Mine().start(platform(cmdline="x")))
    assert found["words"] == "mine x" and found["devices"] == [(1, 2)]


def test_a_subclass_that_says_too_much() -> None:
    class Endless(StartInfo):
        def memory_map(self, platform, initrd, init):
            return [(0, 0, 0, 0)] * 1000

    with pytest.raises(ValueError, match="boot information has"):
        Endless().start(platform())

# SPDX-License-Identifier: Apache-2.0
"""The documents: links lead somewhere, and what they list is what there is."""

import doctest
import inspect
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

import pyvmm
import pyvmm.devices
from pyvmm.boot import start_info
from pyvmm.devices import clock, counter, post

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    if not str(path.relative_to(ROOT)).startswith((".", "build"))
)
DEVICES = sorted(
    {getattr(pyvmm.devices, name).__module__ for name in pyvmm.devices.__all__}
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    folder = (ROOT / page).parent
    text = FENCE.sub("", (ROOT / page).read_text())
    dead = [to for to in LINK.findall(text) if not (folder / to).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES)
def test_paths(page: str) -> None:
    """Files that a page names are there, but for what is built."""
    named = re.findall(
        r"\b(?:docs|examples|devices-py|guest|tests)/[\w./-]+\.\w+",
        (ROOT / page).read_text(),
    )
    missing = [
        name
        for name in named
        if not (ROOT / name).exists()
        and not name.startswith("build/")
        and "NAME" not in name
        and f"build/{name}" not in (ROOT / page).read_text()
    ]
    assert not missing


def test_every_page_is_found() -> None:
    """The README leads to all of them."""
    links = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} <= links


# -- the reference -------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs/reference.md").read_text()


def test_reference_is_generated(reference: str) -> None:
    made = runpy.run_path(str(ROOT / "docs/reference.py"))["generate"]()
    assert made == reference, "run: python docs/reference.py"


@pytest.mark.parametrize("name", sorted(set(pyvmm.__all__)))
def test_reference_has_every_name(reference: str, name: str) -> None:
    assert f"pyvmm.{name}" in reference


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pyvmm", "Machine"),
        ("pyvmm", "Device"),
        ("pyvmm", "Rng"),
        ("pyvmm", "Stop"),
        ("pyvmm.console", "Console"),
        ("pyvmm.device", "IrqLine"),
        ("pyvmm.cpu", "Cpu"),
        ("pyvmm.memory", "PhysicalMemory"),
        ("pyvmm.memory", "VirtualMemory"),
        ("pyvmm.memory", "AddressSpace"),
        ("pyvmm.symbols", "Symbols"),
        ("pyvmm.symbols", "Where"),
        ("pyvmm.boot", "Platform"),
    ],
)
def test_reference_has_every_method(
    reference: str, module: str, name: str
) -> None:
    section = reference.split(f"### {module}.{name}\n")[1].split("\n### ")[0]
    cls = getattr(import_module(module), name)
    listed = set(re.findall(r"^\| `(\w+)", section, re.MULTILINE))
    public = {
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property))
    }
    assert listed == public
    for member in public:
        assert f"`{member}" in section


def test_every_method_says_what_it_does(reference: str) -> None:
    empty = re.findall(r"^\| `(.+)` \|\s*\|$", reference, re.MULTILINE)
    # What a subclass overrides is documented at its base.
    assert not empty


# -- the guest ABI -------------------------------------------------------------


def fields(text: str, name: str) -> list[str]:
    """The fields of a struct in C, in order."""
    body = re.search(rf"struct {name} {{(.*?)}};", text, re.DOTALL)
    assert body
    plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    declared = re.findall(r"uint32_t ([\w, ]+);", plain)
    return [field for line in declared for field in line.split(", ")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("start_info", start_info.START_INFO_FIELDS),
        ("memory_map_entry", start_info.MEMORY_MAP_ENTRY_FIELDS),
        ("device_map_entry", start_info.DEVICE_MAP_ENTRY_FIELDS),
    ],
)
def test_guest_abi(name: str, expected: tuple[str, ...]) -> None:
    page = (ROOT / "docs/guest-abi.md").read_text()
    header = ROOT / "guest/include/pyvmm/start_info.h"
    assert fields(page, name) == list(expected)
    assert fields(header.read_text(), name) == list(expected)


def test_guest_abi_numbers() -> None:
    page = (ROOT / "docs/guest-abi.md").read_text()
    header = (ROOT / "guest/include/pyvmm/start_info.h").read_text()
    numbers = re.findall(r"^#define \w+ +(0x[0-9a-f]+)", header, re.MULTILINE)
    assert len(numbers) == 5
    for number in numbers:
        assert number in page


# -- ready-made devices --------------------------------------------------------


@pytest.mark.parametrize("name", DEVICES)
def test_device_docstring(name: str) -> None:
    """What the manual of a device shows is so."""
    done = doctest.testmod(import_module(name))
    assert done.attempted
    assert not done.failed


@pytest.mark.parametrize("name", pyvmm.devices.__all__)
def test_device_says_what_it_is(name: str, reference: str) -> None:
    module = getattr(pyvmm.devices, name).__module__
    assert f"`{module}.{name}`" in reference


def test_clock_latches() -> None:
    times = iter([0x1_FFFF_FFFF, 0x2_0000_0000])
    device = clock.Clock(now=lambda: next(times))
    low, high = device.read(0, 4), device.read(4, 4)
    assert high << 32 | low == 0x1_FFFF_FFFF
    assert device.read(0, 8) == 0x2_0000_0000


def test_clock_reads_parts() -> None:
    device = clock.Clock(now=lambda: 0x1122_3344_5566_7788)
    assert device.read(0, 1) == 0x88
    assert device.read(4, 2) == 0x3344
    assert device.read(7, 1) == 0x11


def test_clock_is_the_hosts() -> None:
    device = clock.Clock()
    assert device.read(0, 8) <= device.read(0, 8)


@pytest.fixture
def counting() -> counter.Counter:
    device = counter.Counter()
    device.irq = counter.Pulses()
    return device


def test_counter_rings_once(counting: counter.Counter) -> None:
    counting.write(counter.LIMIT, 4, 3)
    for _ in range(5):
        counting.write(counter.COUNT, 4, 1)
    assert counting.irq.count == 1
    assert counting.read(counter.COUNT, 4) == 5
    assert counting.read(counter.STATUS, 4) == 1


def test_counter_rings_again(counting: counter.Counter) -> None:
    counting.limit = 2
    counting.add(2)
    counting.write(counter.STATUS, 4, 0)
    assert counting.reached
    counting.write(counter.STATUS, 4, 1)
    assert not counting.reached
    counting.write(counter.LIMIT, 4, 4)
    counting.add(2)
    assert counting.irq.count == 2


def test_counter_wraps(counting: counter.Counter) -> None:
    counting.add(counter.MASK)
    counting.add(2)
    assert counting.read(counter.COUNT, 4) == 1
    assert counting.irq.count == 0


def test_counter_refuses_other_accesses(counting: counter.Counter) -> None:
    counting.write(counter.COUNT, 1, 1)
    counting.write(counter.COUNT + 2, 4, 1)
    counting.write(0xC, 4, 1)
    assert counting.count == 0
    assert counting.read(counter.COUNT, 1) == 0
    assert counting.read(0xC, 4) == 0


def test_counter_without_a_machine() -> None:
    device = counter.Counter()
    device.limit = 1
    with pytest.raises(ValueError, match="not connected"):
        device.add()


def test_post_codes_are_bounded() -> None:
    device = post.PostCodes()
    assert device.last is None
    assert device.read(0, 1) == 0
    for code in range(1000):
        device.write(0, 1, code & 0xFF)
    assert len(device.codes) == 256
    assert device.read(0, 1) == device.last == 999 & 0xFF

# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference.md from the docstrings: `python docs/reference.py`."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import FunctionType, MethodDescriptorType

import pyvmm
import pyvmm.devices

PAGE = Path(__file__).resolve().parent / "reference.md"

HEAD = """\
# Reference

Every public name, from the docstrings (`help(pyvmm.Machine)` shows the same).
Written by docs/reference.py; a test compares it with the code. Names with an
underscore in front, `pyvmm._vmm` among them, may change between releases.
"""

# Heading, what it begins with, classes by module.
SECTIONS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "Machines",
        "",
        [
            ("pyvmm", "Machine"),
            ("pyvmm", "Snapshot"),
            ("pyvmm", "campaign"),
            ("pyvmm.campaigns", "Campaign"),
            ("pyvmm.campaigns", "Result"),
            ("pyvmm.campaigns", "read_log"),
            ("pyvmm.console", "Console"),
        ],
    ),
    (
        "Devices",
        "[devices.md](devices.md) says how to write them. "
        "`pyvmm.testing.bus(device)`\nmakes a Bus.\n",
        [
            ("pyvmm", "Device"),
            ("pyvmm.services", "Services"),
            ("pyvmm.worker", "Watch"),
            ("pyvmm", "Irq"),
            ("pyvmm.device", "IrqLine"),
            ("pyvmm", "Msi"),
            ("pyvmm.device", "Message"),
            ("pyvmm", "Reg"),
            ("pyvmm", "Doorbell"),
            ("pyvmm", "Range"),
            ("pyvmm.device", "RangeAt"),
            ("pyvmm.timers", "Timer"),
            ("pyvmm.testing", "Bus"),
            ("pyvmm", "Rng"),
        ],
    ),
    (
        "Virtio devices",
        "The module `pyvmm.virtio`; [virtio-devices.md](virtio-devices.md) "
        "says how to use it.\n",
        [
            ("pyvmm.virtio", "Device"),
            ("pyvmm.virtio", "Queue"),
            ("pyvmm.virtio", "Chain"),
            ("pyvmm.virtio", "ShortChain"),
            ("pyvmm.virtio", "StaleChain"),
            ("pyvmm.virtio", "preadv"),
            ("pyvmm.virtio", "pwritev"),
            ("pyvmm.virtio", "Struct"),
            ("pyvmm.virtio", "Config"),
            ("pyvmm.virtio", "driver"),
            ("pyvmm.virtio.frontend", "Driver"),
            ("pyvmm.virtio.frontend", "Requests"),
            ("pyvmm.virtio.frontend", "Request"),
        ],
    ),
    (
        "Building guests",
        "The module `pyvmm.guest`; [guest/](../guest/README.md) is what "
        "guests find there.\n",
        [
            ("pyvmm.guest", "build"),
            ("pyvmm.guest", "CompileError"),
        ],
    ),
    (
        "Ends",
        "[stops.md](stops.md) has the table of all ends.\n",
        [
            ("pyvmm", "Stop"),
            ("pyvmm", "printed"),
            ("pyvmm", "written"),
            ("pyvmm", "exits"),
            ("pyvmm", "elapsed"),
            ("pyvmm", "returned"),
            ("pyvmm", "Error"),
            ("pyvmm", "GuestError"),
            ("pyvmm", "GuestTimeout"),
            ("pyvmm", "Unsupported"),
        ],
    ),
    (
        "Looking inside",
        "`Address` in a signature is an int or a symbol expression: "
        '`"parse"`, `"table+8"`.\n',
        [
            ("pyvmm.cpu", "Cpu"),
            ("pyvmm.stop", "Registers"),
            ("pyvmm.cpu", "Segment"),
            ("pyvmm.x86", "Walk"),
            ("pyvmm.memory", "AddressSpace"),
            ("pyvmm.memory", "PhysicalMemory"),
            ("pyvmm.memory", "VirtualMemory"),
            ("pyvmm.symbols", "Symbols"),
            ("pyvmm.symbols", "Where"),
            ("pyvmm.debug", "Point"),
            ("pyvmm.backtrace", "Backtrace"),
        ],
    ),
    (
        "Tests of guests",
        "The module `pyvmm.testing`; [testing.md](testing.md) says how to use "
        "it.\n",
        [
            ("pyvmm.testing", "machine"),
            ("pyvmm.testing", "GuestStateMachine"),
        ],
    ),
    (
        "Many runs from one snapshot",
        "`Machine.replay()`; [snapshots.md](snapshots.md#many-inputs) shows "
        "it, [fuzzing.md](fuzzing.md) what else there is to it.\n",
        [
            ("pyvmm", "Corpus"),
            ("pyvmm.replay", "Replay"),
            ("pyvmm.replay", "Case"),
            ("pyvmm", "campaign"),
            ("pyvmm.campaigns", "Campaign"),
            ("pyvmm.campaigns", "Result"),
            ("pyvmm.campaigns", "read_log"),
            ("pyvmm.afl", "serve"),
        ],
    ),
    (
        "Boot protocols",
        "The module `pyvmm.boot`; [guest-abi.md](guest-abi.md) says how to "
        "use it.\n",
        [
            ("pyvmm", "Boot"),
            ("pyvmm", "StartInfo"),
            ("pyvmm.boot", "Platform"),
            ("pyvmm.boot", "Region"),
            ("pyvmm.boot", "Placed"),
            ("pyvmm.boot", "Start"),
        ],
    ),
]

# "`name`:" or "`a` and `b`:" begins what becomes an item of a list.
ITEM = re.compile(r"`[^`]+`(?:(?:, | and |, and )`[^`]+`)*:")


def signature(function: object, name: str) -> str:
    """How it is called, without types and self."""
    found = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    shown = found.replace(
        parameters=parameters, return_annotation=inspect.Signature.empty
    )
    return f"{name}{shown}"


def first_line(value: object) -> str:
    """The summary of a docstring."""
    text = inspect.getdoc(value) or ""
    return text.partition("\n")[0].replace("|", "\\|")


def prose(text: str) -> str:
    """A docstring as Markdown: lines that explain a name become a list."""
    summary, _, text = text.partition("\n")
    lines = [summary]
    in_item = False
    for line in text.splitlines():
        if ITEM.match(line):
            if lines and lines[-1] and not in_item:
                lines.append("")
            lines.append(f"* {line}")
            in_item = True
        else:
            in_item = in_item and bool(line)
            lines.append(f"  {line}" if in_item else line)
    return "\n".join(lines)


def members(cls: type) -> list[tuple[str, str]]:
    """(how it is written, summary) of what the class itself defines."""
    found = []
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) or inspect.isgetsetdescriptor(value):
            found.append((name, first_line(value)))
        elif isinstance(value, FunctionType | MethodDescriptorType):
            found.append((signature(value, name), first_line(value)))
    return found


def describe(module: str, name: str) -> str:
    """One class or function."""
    cls = getattr(import_module(module), name)
    written = f"{module}.{name}"
    parts = [f"### {written}", "", prose(inspect.getdoc(cls) or "")]
    if inspect.isroutine(cls):
        parts[2:2] = [f"    {signature(cls, name)}", ""]
        return "\n".join(parts) + "\n"
    made = "__init__" in vars(cls) and module == "pyvmm"
    if made and not issubclass(cls, BaseException):
        parts[2:2] = [f"    {signature(cls, name)}", ""]
    if found := members(cls):
        parts += ["", "| | |", "| --- | --- |"]
        parts += [f"| `{how}` | {what} |" for how, what in found]
    return "\n".join(parts) + "\n"


def ready_made() -> str:
    """The devices that come along."""
    lines = ["## Ready-made devices", "", "| | |", "| --- | --- |"]
    found = [getattr(pyvmm.devices, name) for name in pyvmm.devices.__all__]
    for value in sorted(found, key=lambda value: str(value.__module__)):
        name = f"{value.__module__}.{value.__name__}"
        lines.append(f"| `{name}` | {first_line(value)} |")
    return "\n".join(lines) + "\n"


def generate() -> str:
    """The page."""
    parts = [HEAD]
    for heading, text, classes in SECTIONS:
        parts.append(f"## {heading}\n")
        if text:
            parts.append(text)
        parts += [describe(*cls) for cls in classes]
    parts.append(ready_made())
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(generate())

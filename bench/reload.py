# SPDX-License-Identifier: Apache-2.0
"""New code for a device of a running guest: how long m.reload() takes.

The files are those of devices-py, copied, and edited before each reload: a
constant in them is another number each time. The guest goes on meanwhile, and
each edit is checked to have arrived.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns, thread_time_ns
from typing import Any

import pyvmm

from .measure import Figure
from .table import Row

ROOT = Path(__file__).parent.parent
BOUND_MS = 5
REQUESTS = str(ROOT / "build/guest/request.elf")
# Reads a byte of the device for ever.
POLL = "mov dx, {port:#x}; again: in al, dx; jmp again"


class Edited:
    """A device of devices-py from a copy of its file that is edited."""

    def __init__(self, folder: Path, name: str, cls: str) -> None:
        self.module = f"bench_{name}"
        self.path = folder / f"{self.module}.py"
        self.text = (ROOT / f"devices-py/{name}.py").read_text()
        self.lines = self.text.count("\n")
        self.edit = 0
        self.write()
        self.device: Any = getattr(importlib.import_module(self.module), cls)()

    def write(self) -> None:
        """The file as an editor leaves it, with the next number in it."""
        self.edit += 1
        self.path.write_text(f"{self.text}\n\nEDIT = {self.edit}\n")

    def arrived(self) -> bool:
        return bool(vars(sys.modules[self.module])["EDIT"] == self.edit)


def times(edited: Edited, m: pyvmm.Machine, count: int) -> tuple[Figure, ...]:
    """Nanoseconds of so many reloads: as time passes, and of the thread."""
    wall, work = [], []
    for _ in range(count):
        edited.write()
        start, start_work = perf_counter_ns(), thread_time_ns()
        m.reload(edited.device)
        wall.append(float(perf_counter_ns() - start))
        work.append(float(thread_time_ns() - start_work))
        if not edited.arrived() or not m.running:
            raise RuntimeError(f"{edited.path}: edit {edited.edit} is lost")
    return Figure(wall), Figure(work)


def reload(effort: float) -> Iterator[Row]:
    count = max(20, round(100 * effort))
    with TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, name)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            yield from rows(folder, count)
        finally:
            sys.dont_write_bytecode = before
            sys.path.remove(name)


def rows(folder: Path, count: int) -> Iterator[Row]:
    for kind, name, cls in (
        ("registers", "counter", "Counter"),
        ("virtio", "hasher", "Hasher"),
        ("registers", "i8042", "I8042"),
        ("registers", "serial", "Serial"),
    ):
        edited = Edited(folder, name, cls)
        with pyvmm.Machine(strict=False) as m:
            if kind == "virtio":
                m.attach(edited.device)
                m.load(REQUESTS, cmdline="send=abc n=2000000000 quiet")
            else:
                m.attach(edited.device, port=0x200)
                m.load(asm=POLL.format(port=0x200))
            m.start()
            times(edited, m, 3)
            wall, work = times(edited, m, count)
            yield Row(
                f"reload, {kind}, {edited.lines} lines, guest at it",
                wall, BOUND_MS, unit="ms", scale=1e-6, below=True,
                note=f"{work.median / 1e6:.1f} ms of it CPU time",
            )  # fmt: skip
            m.pause()
        sys.modules.pop(edited.module)

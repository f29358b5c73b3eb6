# SPDX-License-Identifier: Apache-2.0
"""What the report of a test that failed says of its guests.

The sections are part of what is called longrepr: that is what pytest-xdist
carries to the terminal, and what is in junit XML.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

from .. import _vmm
from ..errors import GuestError
from ..machine import Machine
from ..stop import Stop, past_lines
from .left import leave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import pytest

CONSOLE_LINES = 40  # of a guest's output that a report shows
CPUS = 4  # whose registers it shows

PACKAGE = os.path.dirname(_vmm.__file__) + os.sep


def add_sections(item: pytest.Item, call: Any, report: Any) -> None:
    """Put them into a report; nothing that is wrong with a guest stops it."""
    found = list(sections(item, call.excinfo))
    if not found:
        return
    add = getattr(report.longrepr, "addsection", None)
    if add is not None:
        for name, text in found:
            add(name, text)
    elif isinstance(report.longrepr, str):
        parts = [f"-- {name} --\n{text}" for name, text in found]
        report.longrepr = "\n".join([report.longrepr, *parts])


def sections(item: pytest.Item, excinfo: Any) -> Iterator[tuple[str, str]]:
    """Name and text of each section."""
    for name, machine in machines(item, excinfo).items():
        try:
            yield from of_machine(name, machine)
            yield from leave(item, name, machine)
        except Exception as exc:
            yield f"machine {name}", f"cannot be shown: {exc!r}"


def machines(item: pytest.Item, excinfo: Any) -> dict[str, Machine]:
    """The machines that a test uses, by the names that it has for them."""
    from ..plugin import USED

    found: dict[str, Machine] = {}
    for node in item.listchain():
        for name, booted in node.stash.get(USED, {}).items():
            if booted.machine is not None:
                found[name] = booted.machine
    candidates = dict(getattr(item, "funcargs", {}))
    traceback = excinfo.value.__traceback__ if excinfo is not None else None
    while traceback is not None:
        if not is_ours(traceback):
            candidates |= traceback.tb_frame.f_locals
        traceback = traceback.tb_next
    for name, value in candidates.items():
        guest = guest_of(value)
        if guest is not None and all(guest is not m for m in found.values()):
            found[name] = guest
    return found


def guest_of(value: Any) -> Machine | None:
    """The machine that a variable is; any object may be asked."""
    # Its type and not isinstance(), which runs code of proxies and the like.
    if issubclass(type(value), Machine):
        return value  # type: ignore[no-any-return]
    stateful = sys.modules.get("pyvmm.testing.stateful")
    if stateful and issubclass(type(value), stateful.GuestStateMachine):
        return value.guest  # type: ignore[no-any-return]
    return None


def of_machine(name: str, machine: Machine) -> Iterator[tuple[str, str]]:
    """The sections of one machine, which stands still afterwards."""
    runner = machine._runner
    outcome: object = runner.outcome
    if not machine.closed and (machine.running or runner.background):
        try:
            outcome = machine.pause()
        except Exception as exc:
            outcome = exc
    if machine._console is not None and machine.console.text:
        lines = machine.console.text.splitlines()[-CONSOLE_LINES:]
        yield f"console of {name}", "\n".join(lines)
    if not machine.closed and machine._cpus:
        yield from of_cpus(name, machine, final(outcome) or runner.left)
    if outcome is not None:
        yield f"end of the last run of {name}", ended(outcome)
    yield f"machine {name}", repr(machine)


def final(outcome: object) -> Stop | None:
    """The Stop after which a call() has put registers back, if it is one."""
    end = getattr(outcome, "stop", outcome)
    passing = ("until", "break", "step", "pause")
    if isinstance(end, Stop) and end.reason not in passing:
        return end
    return None


def of_cpus(
    name: str, machine: Machine, end: Stop | None
) -> Iterator[tuple[str, str]]:
    """Registers, backtrace and exits of each vCPU; of one, as it ended."""
    for index, cpu in enumerate(machine.cpus[:CPUS]):
        which = name if machine._count == 1 else f"{name}, vCPU {index}"
        if end is not None and end.cpu == index:
            yield f"registers of {which}", f"at {end.where}\n{end.registers}"
            trace = machine.backtrace(at=end)
        else:
            yield f"registers of {which}", repr(cpu)
            trace = machine.backtrace(index)
        yield f"backtrace of {which}", str(trace)
        past = past_lines(cpu.vcpu.past)
        if past:
            yield f"last exits of {which}", "\n".join(past)


def ended(outcome: object) -> str:
    """How a run ended, in a line or two; registers are shown elsewhere."""
    stop = getattr(outcome, "stop", outcome)
    if not isinstance(stop, Stop):
        return f"{type(outcome).__name__}: {outcome}"
    at = "just before" if stop.passed else "at"
    return f"{stop.message}\n{at} {stop.where} (rip {stop.rip:#x})"


# -- tracebacks --------------------------------------------------------------


def is_ours(entry: TracebackType) -> bool:
    """Whether a frame is one of pyvmm's own."""
    return entry.tb_frame.f_code.co_filename.startswith(PACKAGE)


def shorten(call: Any) -> None:
    """What a guest did is the fault of the line that ran it.

    A report, and pdb, begin there and not within pyvmm.
    """
    import pytest

    excinfo = call.excinfo
    if not isinstance(excinfo.value, GuestError | pytest.fail.Exception):
        return
    entries: list[TracebackType] = []
    entry = excinfo.value.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    end = len(entries)
    while end and (
        is_ours(entries[end - 1])
        or entries[end - 1].tb_frame.f_locals.get("__tracebackhide__")
    ):
        end -= 1
    if not end or not any(map(is_ours, entries[end:])):
        return
    short: TracebackType | None = None
    for entry in reversed(entries[:end]):
        short = TracebackType(
            short, entry.tb_frame, entry.tb_lasti, entry.tb_lineno
        )
    value = excinfo.value.with_traceback(short)
    call.excinfo = pytest.ExceptionInfo.from_exception(value)

# SPDX-License-Identifier: Apache-2.0
"""Runs tests inside guests: an image's one by one from a snapshot, and whole
programs by their status, their console and TAP.

A test that does not pass is a GuestTestFailed, whose text is the report.
"""

from __future__ import annotations

import os
import re

from ..errors import Error
from . import guest_image
from .guest_image import FAILURE, RECORD, Record
from .tap import Tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..machine import Machine
    from ..snapshot import Snapshot
    from ..stop import Stop
    from ..symbols import Where
    from .guest_cov import GuestCoverage
    from .guest_image import GuestTest
    from .guest_options import Options

CONSOLE_LINES = 40  # that a report shows
PANIC = 255  # the status of the SDK's panic()

# Frames of the SDK that only lead out of a test, or into it.
WAY_OUT = ("exit", "test_end", "test_skip", "test_failed")
WAY_IN = ("test_main", "main", "runtime_start", "_start", "ring3")


class GuestTestFailed(Error):
    """A test in a guest has failed.

    The text is the report, its first line says why. `file` and `line`: where
    in the source, if that is known.
    """

    def __init__(
        self, text: str, file: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(text)
        self.file = file
        self.line = line


class GuestTestSkipped(Exception):
    """A test in a guest does not apply; the text is its reason."""


# -- tests of an image -------------------------------------------------------


class Tests:
    """An image with tests in it, which boots once and is put back for each.

    `timeout`: seconds for the boot, and for each test that does not say.

    Threads: one.
    """

    def __init__(
        self,
        image: str,
        options: Options,
        timeout: float,
        coverage: GuestCoverage | None = None,
    ) -> None:
        self.image = image
        self.coverage = coverage
        self.options = options
        self.timeout = timeout
        self.machine: Machine | None = None
        self._snap: Snapshot | None = None
        self._failure: GuestTestFailed | None = None

    def _fresh(self) -> Machine:
        """The machine as it was when it was ready for tests."""
        if self.machine is not None and self._snap is not None:
            self.machine.restore(self._snap)
            if self.coverage is not None:
                self.coverage.restored(self.machine)
            return self.machine
        if self._failure is not None:
            raise self._failure
        try:
            self.machine = machine = self._boot()
        except GuestTestFailed as exc:
            self._failure = exc  # the other tests would fare no better
            raise
        self._snap = machine.snapshot()
        if self.coverage is not None:
            self.coverage.booted(machine)
        return machine

    def _boot(self) -> Machine:
        """The machine at the moment in which its tests begin."""
        machine = self.options.machine(guest_image.WORD)
        try:
            machine.load(self.image, initrd=self.options["initrd"])
            stop = machine.run(timeout=self.timeout, check=False)
            if stop.status != guest_image.TEST_EXIT_READY:
                raise GuestTestFailed(
                    f"the guest did not come to its tests: {stop.message}\n"
                    + details(machine, stop)
                )
            data = machine.mem.read(guest_image.RECORD_SYMBOL, RECORD.size)
            magic, version, state, *_ = RECORD.unpack(data)
            due = guest_image.TEST_MAGIC, guest_image.TEST_VERSION
            if (magic, version) != due:
                raise GuestTestFailed(
                    f"the image has tests of version {version} (magic "
                    f"{magic:#x}); this pyvmm runs version {due[1]}: build it "
                    f"with the test.h and the runtime of one SDK"
                )
            if state != guest_image.TEST_STATE_READY:
                raise GuestTestFailed(
                    f"the guest ended with the status of one that is ready "
                    f"for tests, but is not (state {state})"
                )
        except BaseException:
            machine.close()
            raise
        return machine

    def run(self, test: GuestTest) -> None:
        """Run one test from the snapshot.

        Raises GuestTestFailed, GuestTestSkipped, and what making a machine
        raises.
        """
        machine = self._fresh()
        address = machine.symbols.physical(guest_image.RECORD_SYMBOL)
        nonce = int.from_bytes(os.urandom(8), "little")
        machine.mem.write(
            address + guest_image.ASKED_AT,
            guest_image.ASKED.pack(test.index, test.param, nonce),
        )
        try:
            stop = machine.run(
                timeout=test.timeout or self.timeout, check=False
            )
        finally:
            if self.coverage is not None:
                self.coverage.left(machine)
        data = machine.mem.read(address, RECORD.size)
        record = Record(data, address, test, nonce)
        if not record.wrong and stop.status is not None:
            if passed(record, stop):
                return
            if record.state == guest_image.TEST_STATE_SKIPPED and (
                stop.status == guest_image.TEST_EXIT_SKIPPED
            ):
                reader = guest_image.Reader(machine.mem)
                raise GuestTestSkipped(reader.text(record.reason))
        raise failed(machine, stop, record, test, address)

    def close(self) -> None:
        """The machine goes; a further run() boots another one."""
        if self.machine is not None:
            self.machine.close()
        self.machine = self._snap = None


def passed(record: Record, stop: Stop) -> bool:
    """Whether record and status both say so."""
    return (
        record.state == guest_image.TEST_STATE_PASSED
        and record.failures == 0
        and stop.status == guest_image.TEST_EXIT_PASSED
    )


def failed(
    machine: Machine, stop: Stop, record: Record, test: GuestTest, address: int
) -> GuestTestFailed:
    """Why a test has not passed."""
    parts: list[str] = []
    file, line = test.file, test.line
    ending = how_it_ended(machine, stop, record)
    if ending:
        parts.append(ending)
    if not record.wrong:
        found = list(failures(machine, record, address))
        if found and not ending:
            _, file, line = found[0]
        parts += [text for text, _, _ in found]
        if (more := record.failures - len(found)) > 0:
            parts.append(f"... and {more} more failures")
    parts.append(details(machine, stop))
    return GuestTestFailed("\n".join(filter(None, parts)), file, line)


def how_it_ended(machine: Machine, stop: Stop, record: Record) -> str:
    """What is wrong with the end of a test, in a line; "": nothing is."""
    if stop.crashed:
        return f"{stop.message}\n{record.wrong}".strip()
    if record.wrong:
        return record.wrong
    if stop.status is None:
        return f"the run ended inside the test: {stop.message}"
    due = guest_image.EXITS.get(record.state)
    if due is None and stop.status == PANIC:
        return panic_text(machine)
    if due is None:
        return f"the test ended the run itself, with status {stop.status}"
    if due != stop.status:
        state = guest_image.STATES[record.state]
        return (
            f"the record says {state}, and the run ended with status "
            f"{stop.status}, not {due}"
        )
    return ""


def panic_text(machine: Machine) -> str:
    """That it panicked, and what panic() said."""
    lines = machine.console.text.splitlines()[-CONSOLE_LINES:]
    said = [line for line in lines if line.startswith("panic: ")]
    return f"the guest panicked{said[-1][5:] if said else ''}"


def failures(
    machine: Machine, record: Record, address: int
) -> Iterator[tuple[str, str, int]]:
    """Text, file and line of the failures that are kept."""
    reader = guest_image.Reader(machine.mem)
    count = min(record.failures, guest_image.TEST_FAILURES_MAX)
    for i in range(count):
        at = address + RECORD.size + i * FAILURE.size
        data = machine.mem.read(at, FAILURE.size)
        yield guest_image.describe_failure(data, reader)


# -- what a report shows -----------------------------------------------------


def frames(machine: Machine) -> list[Where]:
    """The backtrace without the SDK's ways into a test and out of it."""
    found = list(machine.backtrace())
    while found and found[0].symbol in WAY_OUT:
        del found[0]
    for i, where in enumerate(found):
        name = where.symbol or ""
        if name in WAY_IN or name.startswith("test_run_"):
            return found[:i]
    return found


def details(machine: Machine, stop: Stop) -> str:
    """Where the guest was: registers and exits of a crash, backtrace, console.

    Of a guest that has come to the exit port registers say nothing.
    """
    parts: list[str] = []
    if stop.status is None:
        parts.append(stop.report.partition("\n")[2])
    return "\n".join([*parts, place(machine)])


def place(machine: Machine) -> str:
    """Backtrace and console."""
    parts: list[str] = []
    try:
        found = frames(machine)
    except Exception as exc:
        parts.append(f"there is no backtrace: {exc}")
    else:
        if found:
            parts.append("-- backtrace --")
        parts += [f"#{i} {where}" for i, where in enumerate(found)]
    parts.append(console(machine))
    return "\n".join(filter(None, parts))


def interrupted(machine: Machine) -> str:
    """Where a guest was when something else ended its test."""
    if machine.closed or machine.running:
        return repr(machine)
    return "\n".join([repr(machine.cpu), place(machine)])


def console(machine: Machine) -> str:
    """The last lines of the console under a heading; "": it has none."""
    if machine._console is None or not machine.console.text:
        return ""
    lines = machine.console.text.splitlines()
    return "\n".join(["-- console --", *lines[-CONSOLE_LINES:]])


# -- programs ----------------------------------------------------------------


def run_program(
    path: str,
    options: Options,
    timeout: float,
    coverage: GuestCoverage | None = None,
) -> None:
    """Run an image that is no collection of tests: does it end as it should?

    It should end with the status of `pass` (0), and say what `log` is. With a
    `log` alone it need not end. A console that speaks TAP is believed in what
    it says of failures, and with the flag `tap` it must speak it.

    Raises GuestTestFailed, GuestTestSkipped, and what making a machine raises.
    """
    from ..devices import DebugExit

    machine = options.machine()
    with machine:
        port, status = options["port"], options["pass"]
        own = port is None or port == own_port()
        if not own and not has_debug_exit(machine, port):
            machine.attach(DebugExit(), port=port)
        machine.load(path, initrd=options["initrd"])
        limit = options["timeout"] or timeout
        if coverage is not None:
            coverage.booted(machine)
        log = options["log"]
        if log is not None and status is None and not options["tap"]:
            wait_for(machine, log, limit)
            return
        stop = machine.run(timeout=limit, check=False)
        if coverage is not None:
            coverage.left(machine)
        found = stop.status
        if own and port is not None and found is not None:
            found = found << 1 | 1  # as the device of QEMU has it
        problem = wrong_end(stop, found, 0 if status is None else status)
        text = machine.console.text
        tap = Tap(text)
        if options["tap"] and not tap.found:
            problem = problem or "there is no TAP on the console"
        if tap.found and not tap.ok:
            # What failed says more than the status that follows from it.
            ended = f"\n{problem}" if problem else ""
            problem = f"TAP: {tap}{ended}"
        if not problem and log is not None and log not in text:
            problem = f"the console does not say {log!r}"
        if problem:
            raise GuestTestFailed(f"{problem}\n{details(machine, stop)}")
        if tap.all_skipped:
            raise GuestTestSkipped(tap.why or "all tests were skipped")


def own_port() -> int:
    """The exit port that each machine has."""
    from .._vmm import EXIT_PORT

    return EXIT_PORT


def has_debug_exit(machine: Machine, port: int) -> bool:
    """Whether such a device is at that port, as a preset has one."""
    from ..devices import DebugExit

    return any(
        isinstance(device, DebugExit) and device.base == port
        for device in machine.devices
    )


def wrong_end(stop: Stop, status: int | None, due: int) -> str:
    """Why an end is not the one that was meant; "": it is."""
    if stop.crashed:
        return stop.message
    if status is None:
        return f"the run ended by {stop.message}, not with status {due}"
    if status == due:
        return ""
    return f"the status is {status}, not {due}"


def wait_for(machine: Machine, log: str, timeout: float) -> None:
    """Run until the console says `log`; how the guest ends then is its own."""
    from ..errors import GuestError

    try:
        machine.console.expect(re.escape(log), timeout)
    except GuestError as exc:
        raise GuestTestFailed(
            f"the console does not say {log!r}: {exc.stop.message}\n"
            + details(machine, exc.stop)
        ) from None

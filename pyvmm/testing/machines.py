# SPDX-License-Identifier: Apache-2.0
"""Machines as fixtures: booted once, restored before each test.

@testing.machine(memory="32M")
def kernel(m):
    m.load("kernel.elf")
    m.console.expect("shell> ", timeout=10)

def test_echo(kernel):
    kernel.console.send("echo hi\\n")
    kernel.console.expect("\\nhi", timeout=1)
"""

from __future__ import annotations

import inspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import pytest

    from ..machine import Machine
    from ..snapshot import Snapshot

    Boot = Callable[..., object]

CONSOLE_LINES = 40  # of a guest's output that a report shows


class Booted:
    """A machine that has booted, and the snapshot of that moment.

    Threads: one.
    """

    def __init__(self, make: Callable[[], Machine]) -> None:
        self._make = make
        self.machine: Machine | None = None
        self._snap: Snapshot | None = None
        self.boots = 0

    def fresh(self) -> Machine:
        """The machine as it was when it had booted.

        Booted anew when a test has closed it, or changed its devices.
        """
        machine = self.machine
        if machine is not None and not machine.closed:
            try:
                if machine.running:
                    machine.pause()
            except Exception:
                pass  # how a run ends that was left behind is nobody's affair
            try:
                assert self._snap is not None
                machine.restore(self._snap)
                return machine
            except ValueError:
                machine.close()  # other devices are attached now
        self.machine = machine = self._make()
        self.boots += 1
        try:
            self._snap = machine.snapshot()
        except BaseException:
            machine.close()
            raise
        return machine

    def close(self) -> None:
        """The machine goes."""
        if self.machine is not None:
            self.machine.close()


def machine(
    function: Boot | None = None, /, *, kind: Any = None, **options: Any
) -> Any:
    """Makes a fixture of a function that boots a machine.

    `function(m)` is given a `Machine(**options)`, or a `kind(**options)` such
    as `devices.PC`, and boots it; further parameters are fixtures, of session
    scope. That is done once per process; before each test the machine is put
    back to that moment. The fixture has the function's name, several live side
    by side. A test that closes its machine costs the next one a boot.

    Raises what the function and Machine raise, as errors of the tests.
    """
    if function is not None:
        return machine()(function)

    def decorate(boot: Boot) -> Any:
        import pytest

        from ..plugin import BOOTED

        wanted = list(inspect.signature(boot).parameters)[1:]

        @pytest.fixture(name=boot.__name__)
        def fixture(request: pytest.FixtureRequest) -> Iterator[Machine]:
            all_booted = request.config.stash.setdefault(BOOTED, {})
            booted = all_booted.get(boot)
            if booted is None:
                others = {n: request.getfixturevalue(n) for n in wanted}
                booted = Booted(lambda: start(boot, kind, options, others))
                all_booted[boot] = booted
            yield booted.fresh()

        fixture.__doc__ = boot.__doc__
        return fixture

    return decorate


def start(
    boot: Boot, kind: Any, options: dict[str, Any], others: dict[str, Any]
) -> Machine:
    """A machine, booted."""
    if kind is None:
        from ..machine import Machine

        kind = Machine
    made: Machine = kind(**options)
    try:
        boot(made, **others)
        if made.running:
            made.pause()
    except BaseException:
        made.close()
        raise
    return made


def sections(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """What a report shows of the machines that a test has used."""
    from ..machine import Machine

    for name, value in getattr(item, "funcargs", {}).items():
        if not isinstance(value, Machine):
            continue
        try:
            if value._console is not None and value.console.text:
                lines = value.console.text.splitlines()[-CONSOLE_LINES:]
                yield f"console of {name}", "\n".join(lines)
            if not value.closed and not value.running:
                yield f"registers of {name}", repr(value.cpu)
            yield f"machine {name}", repr(value)
        except Exception as exc:
            yield f"machine {name}", f"cannot be shown: {exc!r}"

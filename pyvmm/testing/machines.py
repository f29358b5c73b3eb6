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

    from ..debug import Point
    from ..machine import Machine
    from ..snapshot import Snapshot
    from .guest_cov import GuestCoverage

    Boot = Callable[..., object]


class Booted:
    """A machine that has booted, and the snapshot of that moment.

    `make` makes one, `boot` boots it; `coverage` is told of both. A boot that
    has failed is not tried again: `failure` is how it ended, and `machine` what
    it has left.

    Threads: one.
    """

    def __init__(
        self,
        make: Callable[[], Machine],
        boot: Callable[[Machine], object],
        coverage: GuestCoverage | None = None,
    ) -> None:
        self._make = make
        self._boot = boot
        self.coverage = coverage
        self.machine: Machine | None = None
        self.failure: BaseException | None = None
        self._snap: Snapshot | None = None
        self._devices: list[object] = []
        self._points: list[Point] = []
        self._trace: Any = None
        self.boots = 0
        self.first = ""  # the test in which the boot has failed

    def fresh(self) -> Machine:
        """The machine as it was when it had booted.

        Booted anew when a test has closed it, or changed its devices. Raises
        what the boot raises, or has raised.
        """
        if self.failure is not None:
            raise self.failure
        machine = self.machine
        if machine is not None and not machine.closed:
            still(machine)
            if self._snap is not None and self._is_whole(machine):
                self._back(machine)
                return machine
            machine.close()
        return self._start()

    def _start(self) -> Machine:
        self._snap = None
        self.machine = machine = self._make()
        self.boots += 1
        try:
            self._boot(machine)
            if machine.running:
                machine.pause()
            self._snap = machine.snapshot()
        except BaseException as exc:
            # It stays, to be looked at, until close().
            self.failure = exc
            raise
        self._devices = machine.devices
        self._points = machine.breakpoints
        self._trace = machine.trace
        if self.coverage is not None:
            self.coverage.booted(machine)
        return machine

    def _is_whole(self, machine: Machine) -> bool:
        """Whether its devices are those that it has booted with."""
        now = [id(device) for device in machine.devices]
        return now == [id(device) for device in self._devices]

    def _back(self, machine: Machine) -> None:
        assert self._snap is not None
        runner = machine._runner
        with runner.changed:
            runner._failures.clear()  # of devices' threads, and of no run
        self.count()
        machine.restore(self._snap)
        if self.coverage is not None:
            self.coverage.restored(machine)
        machine.trace = self._trace
        if machine.breakpoints != self._points:
            machine._debug.points[:] = self._points

    def count(self) -> None:
        """What the guest has run is part of its coverage."""
        if self.coverage is not None and self.machine is not None:
            self.coverage.left(self.machine)

    def leave(self) -> None:
        """The test is over: its guest stands still, and does not keep to
        itself what a start() that nobody has waited for ended with."""
        machine = self.machine
        if machine is None or machine.closed:
            return
        try:
            if machine.running or machine._runner.background is not None:
                machine.pause()
        finally:
            self.count()

    def close(self) -> None:
        """The machine goes."""
        if self.machine is not None:
            self.machine.close()


def still(machine: Machine) -> None:
    """It does not run any more, however that ends."""
    try:
        if machine.running or machine._runner.background is not None:
            machine.pause()
    except Exception:
        pass


def machine(
    function: Boot | None = None,
    /,
    *,
    kind: Any = None,
    scope: Any = "function",
    params: Any = None,
    ids: Any = None,
    **options: Any,
) -> Any:
    """Makes a fixture of a function that boots a machine.

    `function(m)` is given a `Machine(**options)`, or a `kind(**options)` such
    as `devices.PC`, and boots it; further parameters are fixtures, of session
    scope. That is done once per process; before each test the machine is put
    back to that moment. The fixture has the function's name, several live side
    by side. A test that closes its machine, or changes its devices, costs the
    next one a boot; a boot that fails is not tried again.

    `scope`: "class", "module", "package" or "session": it is put back at the
    beginning of each of them instead, and fixtures of that scope may use it.
    `params`, `ids`: as pytest.fixture has them: a machine for each. One that
    is a dict are further options; the function sees others as `request.param`.

    Raises what the function and Machine raise, as errors of the tests;
    TypeError when the function is none that returns when it has booted.
    """
    if function is not None:
        return machine()(function)

    def decorate(boot: Boot) -> Any:
        return make_fixture(boot, kind, options, scope, params, ids)

    return decorate


def make_fixture(
    boot: Boot,
    kind: Any,
    options: dict[str, Any],
    scope: Any,
    params: Any,
    ids: Any,
) -> Any:
    """The fixture of machine()."""
    import pytest

    name = boot.__name__
    if inspect.isgeneratorfunction(boot) or inspect.iscoroutinefunction(boot):
        raise TypeError(
            f"{name}() is no plain function: a boot returns when it is done"
        )
    asked = list(inspect.signature(boot).parameters.values())
    if not asked:
        raise TypeError(f"{name}() has no parameter for its machine")
    if asked[0].name in ("self", "cls"):
        raise TypeError(
            f"{name}() is a method: one machine serves all tests, and is "
            "booted by a function of a module"
        )
    wanted = [one.name for one in asked[1:]]
    if ids is None and params is not None:
        ids = name_of

    def fixture(
        request: pytest.FixtureRequest, **others: Any
    ) -> Iterator[Machine]:
        booted = find(request, boot)
        if booted is None:
            check_scopes(request, name, wanted)
            given = {n: others[n] for n in wanted if n != "request"}
            if "request" in wanted:
                given["request"] = request
            booted = new(request, boot, kind, options, given)
        yield fresh(booted, request, name)
        booted.leave()

    # What pytest is to resolve: as if it were written so.
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    fixture.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(one, plain)
            for one in dict.fromkeys(["request", *wanted])
        ]
    )
    fixture.__doc__ = boot.__doc__
    return pytest.fixture(name=name, scope=scope, params=params, ids=ids)(
        fixture
    )


def name_of(param: Any) -> str | None:
    """What a test's name has of a param; None: pytest's choice."""
    if isinstance(param, dict):
        return "-".join(f"{name}={value}" for name, value in param.items())
    return None


def find(request: pytest.FixtureRequest, boot: Boot) -> Booted | None:
    """The machine of this function and param, if there is one."""
    from ..plugin import BOOTED

    param = getattr(request, "param", None)
    for known, booted in request.config.stash.setdefault(BOOTED, {}).get(
        boot, []
    ):
        try:
            if known is param or bool(known == param):
                return booted
        except Exception:
            pass  # what cannot be compared is another one
    return None


def new(
    request: pytest.FixtureRequest,
    boot: Boot,
    kind: Any,
    options: dict[str, Any],
    given: dict[str, Any],
) -> Booted:
    """One for this function and param, not booted yet."""
    from ..plugin import BOOTED, COVERAGE

    param = getattr(request, "param", None)
    further = param if isinstance(param, dict) else {}

    def make() -> Machine:
        from ..machine import Machine

        one: Machine = (kind or Machine)(**options, **further)
        return one

    booted = Booted(
        make,
        lambda machine: boot(machine, **given),
        request.config.stash.get(COVERAGE, None),
    )
    all_booted = request.config.stash.setdefault(BOOTED, {})
    all_booted.setdefault(boot, []).append((param, booted))
    return booted


def fresh(booted: Booted, request: pytest.FixtureRequest, name: str) -> Machine:
    """Booted.fresh(), for the report of this test."""
    import pytest

    from .. import plugin

    before = booted.failure
    if before is None:
        if request.config.pluginmanager.is_registered(plugin):
            request.getfixturevalue("kvm")  # skips where there is none
        request.node.stash.setdefault(plugin.USED, {})[name] = booted
        try:
            return booted.fresh()
        except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
            booted.failure = None
            raise
        except BaseException:
            booted.first = request.node.nodeid
            raise
    if isinstance(before, pytest.skip.Exception):
        raise before
    lines = str(before).strip().splitlines() or [""]
    pytest.fail(
        f"{name} did not boot, as {booted.first} has shown: "
        f"{type(before).__name__}: {lines[0]}",
        pytrace=False,
    )


def check_scopes(
    request: pytest.FixtureRequest, name: str, wanted: list[str]
) -> None:
    """ValueError when what the boot is given does not live as long as it."""
    active = getattr(request, "_get_active_fixturedef", None)
    for one in wanted:
        if one == "request" or active is None:
            continue
        scope = active(one).scope
        if scope != "session":
            raise ValueError(
                f"{name} boots once per process and takes {one!r}, which is "
                f"made for each {scope}: it may take fixtures of session scope"
            )

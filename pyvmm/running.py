# SPDX-License-Identifier: Apache-2.0
"""What Machine's run(), step() and console.expect() have in common."""

from __future__ import annotations

from time import monotonic

from . import _vmm, ends
from .errors import GuestError, GuestTimeout
from .run import CLOSE, closed_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .console import Console
    from .debug import Point
    from .machine import Machine
    from .run import End
    from .stop import Stop
    from .until import Condition, Until


def guarded(machine: Machine, run: Callable[[], Stop], check: bool) -> Stop:
    """run() as the only one, with its outcome remembered."""
    runner = machine._runner
    runner.begin()
    outcome: Stop | BaseException = closed_error()
    try:
        machine._boot(running=True)
        machine._ran = True
        machine._wiring.begin()
        if machine._console is not None:
            machine._console._prepare()
        outcome = run()
        machine._wiring.settle()
        runner.raise_failures()
        if check and outcome.crashed:
            raise ends.make_error(outcome)
        return outcome
    except BaseException as exc:
        outcome = exc
        if not isinstance(exc, Exception):
            interrupted(machine)
        raise
    finally:
        try:
            if machine._console is not None:
                machine._console.flush()
        finally:
            runner.finish(outcome)
            if machine._close_after:
                machine.close()


def interrupted(machine: Machine) -> None:
    """Ctrl-C, or a test runner's alarm: keep where the guest was."""
    if machine._cpus and not machine._cpus[0].vcpu.closed:
        machine._runner.left = ends.make_pause(machine)


def until(machine: Machine, targets: Until, timeout: float | None) -> Stop:
    check_timeout(timeout)
    if targets is None and machine._debugger is None:
        end = machine._runner.round(timeout)
        return make_stop(machine, end, None, timeout)
    from .until import Armed

    debug = machine._debug
    with Armed(machine, targets) as armed:
        clock = Clock(timeout, armed.limit)
        while True:
            end = debug.run(armed.points, clock.left())
            point = debug.hit(end, armed.points)
            if armed.came_back(point):
                break
            end = debug.step(end[0], clock.left())  # deeper in the stack
            if end[1].reason != _vmm.EXIT_DEBUG:
                break
        met = armed.met(end, timeout)
    return make_stop(machine, end, point, timeout, met)


class Clock:
    """What is left of the shortest of some limits in seconds."""

    def __init__(self, *limits: float | None) -> None:
        given = [limit for limit in limits if limit is not None]
        self._end = monotonic() + min(given) if given else None

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - monotonic())


def check_timeout(timeout: float | None) -> None:
    """ValueError unless it is None or seconds from 0 on."""
    if timeout is not None and not isinstance(timeout, int | float):
        raise TypeError(
            f"timeout is a number of seconds, not {type(timeout).__name__}"
        )
    if timeout is not None and not timeout >= 0:
        raise ValueError(
            f"timeout {timeout!r} is not a number of seconds from 0 on"
        )


def make_stop(
    machine: Machine,
    end: End,
    point: Point | None,
    timeout: float | None,
    met: Condition | None = None,
) -> Stop:
    if machine._runner.wanted == CLOSE:
        raise closed_error()
    if point is not None:
        point.hits += 1
    return ends.make_stop(machine, end, point, timeout, met)


def run_for_match(
    machine: Machine, console: Console, timeout: float | None
) -> None:
    """Run until console._matched, for expect()."""
    runner = machine._runner
    if runner.owner is not None and not runner.inside:
        runner.wait_for(
            lambda: console._matched or runner.owner is None, timeout
        )
        if console._matched:
            return
        if runner.owner is not None:
            raise TimeoutError(
                f"{console._expected} did not come within {timeout:g} s; "
                f"the console ends with:\n{console.tail}"
            )
        stop = machine.wait()
    else:
        console._ends_run = True
        try:
            stop = guarded(
                machine, lambda: until(machine, None, timeout), False
            )
        finally:
            console._ends_run = False
    if console._matched:
        return
    kind = GuestTimeout if stop.reason == "timeout" else GuestError
    raise kind(
        f"{console._expected} did not come: {stop.report}\n"
        f"  the console ends with:\n{console.tail}",
        stop,
    )

# SPDX-License-Identifier: Apache-2.0
"""A guest that hangs, where pytest-timeout would end the whole process.

By its thread method that is what it does at the limit of a test. So guests
that run are ended shortly before, and the test fails as by the other method:
with a report, and with the tests after it still to come.
"""

from __future__ import annotations

from threading import Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pytest

# The report must be made in what is left.
EARLY = 2.0  # seconds before the limit, at most
PART = 0.25  # of the limit, at most

_timers: dict[str, Timer] = {}


def start(item: pytest.Item, timeout: float) -> None:
    """Guests that still run shortly before `timeout` seconds are ended."""
    cancel(item)
    early = timeout - min(EARLY, PART * timeout)
    timer = Timer(early, end_guests, (timeout,))
    timer.name = f"pyvmm limit of {item.nodeid}"
    timer.daemon = True
    _timers[item.nodeid] = timer
    timer.start()


def cancel(item: pytest.Item) -> None:
    """The test has ended."""
    timer = _timers.pop(item.nodeid, None)
    if timer is not None:
        timer.cancel()


def end_guests(timeout: float) -> None:
    """Each guest that runs is ended, as a failure of its test."""
    import pytest

    from ..assembly import alive

    for machine in alive():
        if machine.running:
            machine._runner.fail(
                pytest.fail.Exception(
                    f"Timeout: a guest was still running just before the "
                    f"{timeout:g} s of pytest-timeout's thread method"
                )
            )

# SPDX-License-Identifier: Apache-2.0
"""Hypothesis: a guest as a state machine."""

from __future__ import annotations

import sys

from hypothesis.stateful import RuleBasedStateMachine

from ..machine import Machine
from .machines import Booted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class GuestStateMachine(RuleBasedStateMachine):
    """Rules that are tried on a guest, each run on the same moment of it.

    `class Shell(testing.GuestStateMachine, memory="32M")` has a static
    `boot(m)` and rules that use `self.guest`; `TestShell = Shell.TestCase` is
    the test.

    `boot(m)` is given a `Machine(**options)`, the options being the keyword
    arguments of the class, or a `kind(**options)`; it is called once per
    process, as a fixture's of testing.machine(). `self.guest` is the machine,
    put back to that moment at the beginning of each run.

    Threads: one.
    """

    _kind: Any = Machine
    _options: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed
    _booted: Booted

    def __init_subclass__(cls, kind: Any = None, **options: Any) -> None:
        super().__init_subclass__()
        cls._kind = kind or cls._kind
        cls._options = cls._options | options
        cls._booted = Booted(lambda: cls._kind(**cls._options), cls.boot)

    def __init__(self) -> None:
        super().__init__()
        if not self._booted.boots:
            session = sys.modules.get("pyvmm.testing.guest_cov")
            self._booted.coverage = session.current if session else None
        self.guest = self._booted.fresh()

    @staticmethod
    def boot(m: Machine) -> object:
        """Boots the guest; a class of yours has its own."""
        raise NotImplementedError("a GuestStateMachine has a boot(m)")

    def teardown(self) -> None:
        """The run is over: its guest stands still."""
        self._booted.leave()
        super().teardown()

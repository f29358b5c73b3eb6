# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, in classes.

`Error` is the base of pyvmm's own. The caller's arguments are answered with
ValueError and TypeError, refusals of the host with OSError.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .stop import Stop


class Error(Exception):
    """The base of pyvmm's exceptions."""


class Unsupported(Error):
    """What was asked for does not work on this host; the text says why."""


class GuestError(Error):
    """The guest did what nobody means; the text is a report.

    `stop` is the `Stop` that run(check=False) would have returned.
    """

    def __init__(self, text: str, stop: Stop) -> None:
        super().__init__(text)
        self.stop = stop

    def __reduce__(self) -> tuple[type[GuestError], tuple[str, Stop]]:
        return type(self), (str(self), self.stop)


class GuestTimeout(GuestError):
    """The guest was still running when `timeout` had passed."""

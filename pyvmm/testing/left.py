# SPDX-License-Identifier: Apache-2.0
"""What a failing test leaves behind: its machines as snapshot files.

`pytest --pyvmm-save-failed DIR`, or `pyvmm_save_failed = DIR` in its ini file.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from ..machine import Machine

LONGEST = 200  # characters of a file's name


def leave(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """Save the machines of a test that has failed; sections for its report."""
    from ..machine import Machine

    config = item.config
    folder = config.getoption("pyvmm_save_failed")
    if folder is None:
        folder = config.getini("pyvmm_save_failed")
        folder = folder and os.path.join(config.rootpath, folder)
    if not folder:
        return
    for name, value in getattr(item, "funcargs", {}).items():
        if not isinstance(value, Machine) or value.closed:
            continue
        words = re.sub(r"[^\w.=-]+", "-", f"{item.nodeid}-{name}").strip("-")
        path = os.path.join(folder, f"{words[-LONGEST:]}.snap")
        try:
            os.makedirs(folder, exist_ok=True)
            save(value, path)
            yield f"snapshot of {name}", path
        except Exception as exc:
            yield f"snapshot of {name}", f"cannot be saved: {exc}"


def save(machine: Machine, path: str) -> None:
    """The machine as it is now, in a file; one that runs is paused."""
    if machine.running:
        # How its run ends is nobody's affair: the test has failed.
        with suppress(Exception):
            machine.pause()
    machine.snapshot().save(path)

# SPDX-License-Identifier: Apache-2.0
"""What a failing test leaves behind: its machines as snapshot files.

`pytest --pyvmm-save-failed DIR`, or `pyvmm_save_failed = DIR` in its ini file.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from ..machine import Machine

LONGEST = 200  # characters of a file's name


def leave(
    item: pytest.Item, name: str, machine: Machine
) -> Iterator[tuple[str, str]]:
    """Save a machine that stands still, if that is wanted; a section of it."""
    folder = folder_of(item.config)
    if not folder or machine.closed:
        return
    words = re.sub(r"[^\w.=-]+", "-", f"{item.nodeid}-{name}").strip("-")
    path = os.path.join(folder, f"{words[-LONGEST:]}.snap")
    try:
        os.makedirs(folder, exist_ok=True)
        machine.snapshot().save(path)
        yield f"snapshot of {name}", path
    except Exception as exc:
        yield f"snapshot of {name}", f"cannot be saved: {exc}"


def folder_of(config: pytest.Config) -> str | None:
    """Where files go, or None or "": nowhere."""
    folder: str | None = config.getoption("pyvmm_save_failed")
    if folder is None:
        folder = config.getini("pyvmm_save_failed")
        folder = folder and os.path.join(config.rootpath, folder)
    return folder

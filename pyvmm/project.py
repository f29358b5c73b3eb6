# SPDX-License-Identifier: Apache-2.0
"""`pyvmm new-kernel-project DIR`: a folder with a kernel and its tests.

It is a copy of guest/template, whose licence asks for nothing. There names with
a dot in front begin with `dot-`, for tools that pass over hidden files, and
files say their licence, which a new project chooses itself.
"""

from __future__ import annotations

import os

from .errors import Error
from .guest import SDK

TEMPLATE = os.path.join(SDK, "template")
DOT = "dot-"
NAME = "@NAME@"
LICENCE = "SPDX-License-Identifier"


def create(folder: str) -> list[str]:
    """Make the project; the names of its files.

    The folder may be there if it is empty. Raises Error when it is not, and
    OSError when it cannot be written.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise Error(f"{folder} is there, and no folder")
    if os.path.isdir(folder) and (found := os.listdir(folder)):
        raise Error(
            f"{folder} is not empty: it has {len(found)} entries, such as "
            f"{min(found)}"
        )
    os.makedirs(folder, exist_ok=True)
    name = os.path.basename(os.path.abspath(folder))
    made: list[str] = []
    for source in files():
        parts = os.path.relpath(source, TEMPLATE).split(os.sep)
        target = os.path.join(*(renamed(part) for part in parts))
        path = os.path.join(folder, target)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(source, encoding="utf-8") as file:
            text = file.read()
        with open(path, "x", encoding="utf-8") as file:
            file.write(filled(text, name))
        made.append(target)
    return sorted(made)


def files() -> list[str]:
    """The files of the template."""
    return [
        os.path.join(where, name)
        for where, folders, names in os.walk(TEMPLATE)
        if not os.path.basename(where).startswith(("__", "."))
        for name in names
    ]


def renamed(name: str) -> str:
    """A file's or folder's own name."""
    return f".{name.removeprefix(DOT)}" if name.startswith(DOT) else name


def filled(text: str, name: str) -> str:
    """A file of the template as one of the project `name`."""
    first, _, rest = text.partition("\n")
    if LICENCE in first:
        text = rest
    return text.replace(NAME, name)

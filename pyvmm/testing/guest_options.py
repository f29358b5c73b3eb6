# SPDX-License-Identifier: Apache-2.0
"""Words that say what machine a guest test wants, and how it is built.

They are the same in the ini options and in a comment of a source, within its
first lines:

    /* pyvmm: memory=64M mode=user rng timeout=5 sources=../guest/math.c */
"""

from __future__ import annotations

import os
import re
import shlex

from ..memory import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..machine import Machine

LINE = re.compile(r"^[ \t]*(?:/\*|\*|//|#)?[ \t]*pyvmm:(.*)$", re.MULTILINE)
LOOKED_AT = 4096  # bytes of a source in which the comment is looked for


def number(text: str) -> int:
    return int(text, 0)


def seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError(f"{text!r} is not more than 0")
    return value


def size(text: str) -> str:
    parse_size(text)
    return text


# Word: what makes its value of a text; None: it is a flag.
VALUES: dict[str, Callable[[str], Any] | None] = {
    "memory": size,
    "cpus": number,
    "cmdline": str,
    "preset": str,
    "serial": None,
    "rng": None,
    "device": str,
    "initrd": str,
    "timeout": seconds,
    # How it is built.
    "mode": str,
    "sources": str,
    "include": str,
    "flags": str,
    "compiler": str,
    # Of a kernel that is not made with the SDK.
    "name": str,
    "port": number,
    "pass": number,
    "log": str,
    "tap": None,
}

# Words that mean nothing to an image with tests, and to one that is there.
OF_PROGRAMS = ("name", "port", "pass", "log", "tap")
OF_BUILDS = ("mode", "sources", "include", "flags", "compiler")

LISTS = ("device", "sources", "include", "flags")  # may come again
PATHS = ("sources", "include", "initrd")  # from the folder of the file


class Options:
    """The words of one guest test, by name: `options["memory"]`.

    Words that were not given have None, False or []. ValueError names the word
    that is wrong.

    Threads: one.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {
            name: [] if name in LISTS else None if parse else False
            for name, parse in VALUES.items()
        }
        self.given: list[str] = []  # names, by the last add()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def add(self, text: str, folder: str) -> None:
        """The words in `text`; paths are seen from `folder`."""
        self.given = []
        for word in shlex.split(text):
            name, equals, value = word.partition("=")
            if name not in VALUES:
                raise ValueError(
                    f"{name!r} is none of {', '.join(sorted(VALUES))}"
                )
            self.given.append(name)
            parse = VALUES[name]
            if parse is None:
                if equals:
                    raise ValueError(f"{name} has no value, {word!r} was given")
                self._values[name] = True
                continue
            if not equals:
                raise ValueError(f"{name} needs a value: {name}=...")
            try:
                parsed = parse(value)
            except ValueError as exc:
                raise ValueError(f"{word}: {exc}") from None
            if name in PATHS or (name == "device" and ".py" in parsed):
                parsed = os.path.join(folder, parsed)
            if name in LISTS:
                self._values[name] = [*self._values[name], parsed]
            else:
                self._values[name] = parsed

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """ValueError when the last add() gave one of these."""
        for name in self.given:
            if name in names:
                raise ValueError(f"{name} is {why}")

    def machine(self, cmdline: str = "") -> Machine:
        """A machine as they describe it, with nothing loaded."""
        from .. import cli
        from ..machine import Machine

        preset = self["preset"] or ("pc" if self["serial"] else None)
        if preset is not None and preset not in cli.PRESETS:
            raise ValueError(
                f"preset {preset!r} is none of {', '.join(cli.PRESETS)}"
            )
        make = cli.ready_made(cli.PRESETS[preset]) if preset else Machine
        words = [self["cmdline"] or "", cmdline]
        machine: Machine = make(
            self["memory"] or "16M",
            cpus=self["cpus"] or 1,
            cmdline=" ".join(filter(None, words)),
        )
        try:
            if self["rng"]:
                from ..rng import Rng

                machine.attach(Rng())
            for name in self["device"]:
                name, _, place = name.partition("@")
                mmio, port = cli.parse_place(place)
                machine.attach(cli.make_device(name), mmio=mmio, port=port)
        except BaseException:
            machine.close()
            raise
        return machine


def in_source(path: str) -> str:
    """The words in a comment of a source; "" when there are none."""
    with open(path, "rb") as file:
        text = file.read(LOOKED_AT).decode("utf-8", "replace")
    found = [match[1].partition("*/")[0] for match in LINE.finditer(text)]
    return " ".join(found)

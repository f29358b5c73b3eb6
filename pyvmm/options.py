# SPDX-License-Identifier: Apache-2.0
"""Parsing a command line by a table; argparse alone would double start-up."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class UsageError(Exception):
    """The command line makes no sense; the text says why."""


class Option:
    """An option: `--name VALUE`, or `--name` alone without a `value` word.

    `convert` makes the value of the text (ValueError: refused); `many`: it may
    be repeated, and the value is a list.
    """

    def __init__(
        self,
        name: str,
        help: str,
        *,
        value: str = "",
        default: object = None,
        convert: Callable[[str], object] = str,
        many: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.value = value
        self.default = default
        self.convert = convert
        self.many = many

    @property
    def usage(self) -> str:
        """How it is written."""
        return f"--{self.name} {self.value}".rstrip()


class Values:
    """What was given: an attribute for each argument and option."""

    def __init__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:
        from typing import Any

        def __getattr__(self, name: str) -> Any: ...


class Command:
    """A command: its name, arguments (all required), options and help."""

    def __init__(
        self,
        name: str,
        help: str,
        *,
        arguments: Sequence[tuple[str, str]] = (),
        options: Sequence[Option] = (),
        more: str = "",
    ) -> None:
        self.name = name
        self.help = help
        self.arguments = arguments  # (attribute, word)
        self.options = options
        self.more = more

    @property
    def usage(self) -> str:
        """A line of usage."""
        words = [word for _, word in self.arguments]
        words += [f"[{option.usage}]" for option in self.options]
        return " ".join(["usage: pyvmm", self.name, *words])

    def describe(self) -> str:
        """The help text."""
        width = max((len(option.usage) for option in self.options), default=0)
        lines = [self.usage, "", self.help[0].upper() + self.help[1:] + "."]
        lines += [self.more] if self.more else []
        lines += [""] if self.options else []
        lines += [
            f"  {option.usage:{width}}  {option.help}"
            for option in self.options
        ]
        return "\n".join(lines)

    def parse(self, words: list[str]) -> Values:
        """The values of a command line; UsageError."""
        known = {f"--{option.name}": option for option in self.options}
        values: dict[str, object] = {
            option.name: [] if option.many else option.default
            for option in self.options
        }
        given: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                given += rest
                break
            if not word.startswith("-") or word == "-":
                given.append(word)
                continue
            name, equals, text = word.partition("=")
            option = known.get(name)
            if option is None:
                raise UsageError(f"unknown option {name}")
            if option.value and not equals:
                if not rest:
                    raise UsageError(f"{name} needs a value: {option.usage}")
                text = rest.pop(0)
            elif equals and not option.value:
                raise UsageError(f"{name} takes no value")
            self._set(values, option, text)
        if len(given) != len(self.arguments):
            wanted = " ".join(word for _, word in self.arguments)
            raise UsageError(f"expected {wanted or 'no arguments'}")
        names = (name for name, _ in self.arguments)
        return Values(values | dict(zip(names, given, strict=True)))

    def _set(
        self, values: dict[str, object], option: Option, text: str
    ) -> None:
        if not option.value:
            values[option.name] = True
            return
        try:
            value = option.convert(text)
        except ValueError:
            raise UsageError(
                f"--{option.name}: {text!r} is no {option.value}"
            ) from None
        if option.many:
            values[option.name].append(value)  # type: ignore[attr-defined]
        else:
            values[option.name] = value

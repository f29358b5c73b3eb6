# SPDX-License-Identifier: Apache-2.0
"""Guest tests as items of pytest: plugin.py comes here when it sees a file.

A file of the ini option `pyvmm_guest_files` (guest_*.c, guest_*.S, guest_*.elf)
is compiled while tests are collected, which needs no KVM, and has an item for
each of its tests; without any it is one item, `program`. Each line of
`pyvmm_guests` is an item, too.
"""

from __future__ import annotations

import os
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from .. import guest
from ..errors import Error
from ..plugin import COVERAGE, GUEST_FILES
from . import guest_image
from .guest_options import OF_BUILDS, OF_PROGRAMS, Options, in_source
from .guest_run import (
    GuestTestFailed,
    GuestTestSkipped,
    Tests,
    interrupted,
    run_program,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..machine import Machine
    from .guest_image import GuestTest

# What a backtrace needs to be complete.
FLAGS = ("-fno-optimize-sibling-calls", "-fno-omit-frame-pointer")

# What makes gcc count lines, all of those that the source has.
COUNTERS = (
    "-O0",
    "-fprofile-arcs",
    "-ftest-coverage",
    "-fprofile-info-section",
)


def folder(config: pytest.Config) -> Path:
    """What relative paths in the ini file are seen from."""
    return config.inipath.parent if config.inipath else config.rootpath


def is_at(config: pytest.Config, path: Path, pattern: str) -> bool:
    """Whether a pattern of paths in the ini file means this file."""
    return fnmatch(str(path), os.path.join(folder(config), pattern))


def is_meant(config: pytest.Config, path: Path, pattern: str) -> bool:
    """The same of a pattern that is one of names when it has no slash."""
    if "/" not in pattern:
        return fnmatch(path.name, pattern)
    return is_at(config, path, pattern)


def collect_file(path: Path, parent: pytest.Collector) -> pytest.File | None:
    """The collector of a file, if it is one of guest tests."""
    config = parent.config
    lines = [
        words
        for pattern, words in listed(config)
        if is_at(config, path, pattern)
    ]
    if lines:
        return KernelFile.from_parent(parent, path=path, lines=lines)
    patterns = config.getini("pyvmm_guest_files")
    if not any(is_meant(config, path, pattern) for pattern in patterns):
        return None
    if patterns == GUEST_FILES and is_of_others(path):
        return None
    return GuestFile.from_parent(parent, path=path)


# What a source says that is for us.
WORDS = (b"test.h", b"runtime.h", b"pyvmm")


def is_of_others(path: Path) -> bool:
    """A source that only has such a name: it uses nothing of the SDK."""
    if path.suffix == ".elf":
        return False
    try:
        source = path.read_bytes()
    except OSError:
        return False  # building it says why
    return not any(word in source for word in WORDS)


def listed(config: pytest.Config) -> Iterator[tuple[str, str]]:
    """Pattern and words of each line of `pyvmm_guests`."""
    for line in config.getini("pyvmm_guests"):
        pattern, _, words = line.strip().partition(" ")
        yield pattern, words


def add_arguments(config: pytest.Config) -> None:
    """Let pytest visit the kernels that are listed, unless it was told where.

    One that is not there is then its own complaint.
    """
    if config.args_source == config.ArgsSource.ARGS:
        return
    visited = [
        Path(os.path.abspath(config.invocation_params.dir / arg))
        for arg in config.args
    ]
    for pattern, _ in listed(config):
        base = folder(config)
        wanted = base / pattern
        if "*" in pattern or "?" in pattern or "[" in pattern:
            found = sorted(base.glob(pattern)) or [wanted]
        else:
            found = [wanted]
        for path in found:
            if path.exists() and any(
                path.is_relative_to(each) for each in visited
            ):
                continue
            config.args.append(str(path))
            visited.append(path)


def default_timeout(config: pytest.Config) -> float:
    """The ini option `pyvmm_guest_timeout`, in seconds."""
    text = config.getini("pyvmm_guest_timeout")
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise pytest.UsageError(
            f"pyvmm_guest_timeout: {text!r} is not a number of seconds above 0"
        )
    return value


def make_options(
    config: pytest.Config, words: str, where: str, base: Path
) -> Options:
    """The options of the ini file, then these; a bad one is told with where."""
    options = Options()
    given = [
        (
            config.getini("pyvmm_guest_options"),
            "pyvmm_guest_options",
            folder(config),
        ),
        (words, where, base),
    ]
    for text, place, seen_from in given:
        try:
            options.add(text, str(seen_from))
        except ValueError as exc:
            raise ValueError(f"{place}: {exc}") from None
    return options


# -- files -------------------------------------------------------------------


class GuestFile(pytest.File):
    """A source or an image with guest tests.

    Threads: one.
    """

    tests: Tests | None = None

    def collect(self) -> Iterator[Item]:
        # Not an error of the collection, which would keep all other tests
        # from running.
        try:
            yield from self.items()
        except guest.CompileError as exc:
            yield BrokenItem.from_parent(self, name="build", text=str(exc))
        except (Error, OSError, ValueError) as exc:
            text = f"{self.path.name}: {exc}"
            yield BrokenItem.from_parent(self, name="build", text=text)

    def items(self) -> Iterator[Item]:
        """The tests, or the one program; raises what the build does."""
        is_image = self.path.suffix == ".elf"
        options = make_options(
            self.config,
            "" if is_image else in_source(str(self.path)),
            self.path.name,
            self.path.parent,
        )
        image = str(self.path) if is_image else self.build(options)
        data = Path(image).read_bytes()
        if not guest_image.has_tests(data):
            yield ProgramItem.from_parent(
                self, name="program", image=image, options=options
            )
            return
        options.refuse(OF_PROGRAMS, "of programs, and this file has tests")
        found = guest_image.read_tests(data)
        timeout = options["timeout"] or default_timeout(self.config)
        coverage = self.config.stash.get(COVERAGE, None)
        self.tests = Tests(image, options, timeout, coverage)
        for test in found:
            yield GuestItem.from_parent(self, name=test.name, test=test)

    def build(self, options: Options) -> str:
        """The image of a source."""
        return guest.build(
            self.path,
            *options["sources"],
            mode=options["mode"] or "protected",
            include=[self.path.parent, *options["include"]],
            flags=[
                *FLAGS,
                *(COUNTERS if self.is_measured(options) else ()),
                *(f for text in options["flags"] for f in shlex.split(text)),
            ],
            compiler=options["compiler"],
        )

    def is_measured(self, options: Options) -> bool:
        """Whether the lines that it runs are counted."""
        if self.config.stash.get(COVERAGE, None) is None:
            return False
        return guest.is_gcc(options["compiler"])

    def teardown(self) -> None:
        """All tests of the file are over."""
        if self.tests is not None:
            self.tests.close()


class KernelFile(pytest.File):
    """An image that is listed in `pyvmm_guests`, once or more.

    Threads: one.
    """

    def __init__(self, *, lines: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.lines = lines

    def collect(self) -> Iterator[Item]:
        for number, words in enumerate(self.lines):
            try:
                options = make_options(
                    self.config, words, "pyvmm_guests", folder(self.config)
                )
                options.refuse(OF_BUILDS, "of sources, and this is an image")
            except ValueError as exc:
                yield BrokenItem.from_parent(
                    self, name=f"line-{number}", text=str(exc)
                )
                continue
            name = options["name"] or self.path.stem
            if number and not options["name"]:
                name += f"-{number}"
            yield ProgramItem.from_parent(
                self, name=name, image=str(self.path), options=options
            )


# -- items -------------------------------------------------------------------


class Failure:
    """What pytest is given as the report of a failure: text with a place.

    Threads: any; it does not change.
    """

    def __init__(self, text: str, path: str, line: int) -> None:
        self.text = text
        self.reprcrash = Place(path, line, text.partition("\n")[0])

    def toterminal(self, tw: Any) -> None:
        tw.line(self.text)

    def __str__(self) -> str:
        return self.text


class Place:
    """Where it failed, and why in a line, as the summary shows it.

    Threads: any; it does not change.
    """

    def __init__(self, path: str, line: int, message: str) -> None:
        self.path = path
        self.lineno = line
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


class Item(pytest.Item):
    """What both kinds of items do alike.

    Threads: one.
    """

    line = 1

    def run(self) -> None:
        """Run it; what it raises says how it went."""
        raise NotImplementedError

    def runtest(self) -> None:
        from ..host import kvm

        try:
            kvm()
        except OSError as exc:
            pytest.skip(str(exc))
        try:
            self.run()
        except GuestTestSkipped as exc:
            # At the place of the item, not at this line.
            raise pytest.skip.Exception(
                str(exc), _use_item_location=True
            ) from None

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        error = excinfo.value
        if isinstance(error, GuestTestFailed):
            # Names of files as seen from where pytest was started.
            here = f"{self.config.invocation_params.dir}{os.sep}"
            text = str(error).replace(here, "")
            file = error.file or str(self.path)
            return Failure(text, file, error.line or self.line)
        if isinstance(error, Error | OSError | ValueError | TypeError):
            return Failure(
                f"{type(error).__name__}: {error}", str(self.path), self.line
            )
        if isinstance(error, pytest.fail.Exception) and self.machine:
            # As of pytest-timeout: the stack of this process says nothing.
            text = f"{error.msg}\n{interrupted(self.machine)}"
            return Failure(text, str(self.path), self.line)
        return super().repr_failure(excinfo, style)

    @property
    def machine(self) -> Machine | None:
        """The machine that it runs on, while it is there."""
        return None

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line - 1, self.name


class BrokenItem(Item):
    """What stands for a file that has no tests since something is wrong.

    Threads: one.
    """

    def __init__(self, *, text: str, **options: Any) -> None:
        super().__init__(**options)
        self.text = text

    def runtest(self) -> None:
        raise GuestTestFailed(self.text)


class GuestItem(Item):
    """One test of an image, with one parameter.

    Threads: one.
    """

    def __init__(self, *, test: GuestTest, **options: Any) -> None:
        super().__init__(**options)
        self.test = test
        self.line = test.line

    @property
    def machine(self) -> Machine | None:
        tests = getattr(self.parent, "tests", None)
        return tests.machine if tests is not None else None

    def run(self) -> None:
        assert isinstance(self.parent, GuestFile)
        assert self.parent.tests is not None
        self.parent.tests.run(self.test)


class ProgramItem(Item):
    """A whole program.

    Threads: one.
    """

    def __init__(self, *, image: str, options: Options, **others: Any) -> None:
        super().__init__(**others)
        self.image = image
        self.options = options

    def run(self) -> None:
        run_program(
            self.image,
            self.options,
            default_timeout(self.config),
            self.config.stash.get(COVERAGE, None),
        )

# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: loaded by pytest wherever pyvmm is installed.

It imports nothing of pyvmm until a test asks for something: `testing.machine`
makes fixtures, here is what goes with them. `-p no:pyvmm` leaves it out.
"""

from __future__ import annotations

import sys

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import Any

    from ._vmm import KVM
    from .testing.guest_cov import GuestCoverage
    from .testing.machines import Booted

# Of the configuration: the machines of each boot function, by its param.
BOOTED: pytest.StashKey[dict[object, list[tuple[object, Booted]]]] = (
    pytest.StashKey()
)
# Of the configuration: what collects the coverage of guests, if that is wanted.
COVERAGE: pytest.StashKey[GuestCoverage] = pytest.StashKey()
COVER = "pyvmm.testing.cover"  # the plugin of coverage.py
# Of an item, or of what a wider fixture belongs to: the machines by name.
USED: pytest.StashKey[dict[str, Booted]] = pytest.StashKey()


GUEST_FILES = ["guest_*.c", "guest_*.S", "guest_*.elf"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """docs/testing.md and docs/guest-tests.md say what they are for."""
    text = "save the machines of failing tests to snapshot files in DIR"
    group = parser.getgroup("pyvmm")
    group.addoption("--pyvmm-save-failed", metavar="DIR", help=text)
    group.addoption(
        "--pyvmm-cov",
        metavar="FILE",
        help="write the line coverage of guests to an lcov file",
    )
    add = parser.addini
    add("pyvmm_save_failed", f"{text}, relative to the ini file")
    add("pyvmm_guest_files", "guest tests", "args", default=GUEST_FILES)
    add("pyvmm_guest_timeout", "seconds of each guest test", default="10")
    add("pyvmm_guest_options", "machine and build of guest tests", default="")
    add("pyvmm_guests", "kernels to run, with options", "linelist", default=[])


# Behind pytest-cov, which may have begun only then.
@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Coverage of guests is collected if somebody wants it."""
    config = session.config
    if config.getoption("--pyvmm-cov") is None and COVER not in sys.modules:
        return
    from .testing.guest_cov import wanted

    coverage = wanted(config)
    if coverage is not None:
        config.stash[COVERAGE] = coverage
        config.pluginmanager.register(coverage, "pyvmm guest coverage")


@pytest.fixture(scope="session")
def kvm() -> KVM:
    """This host's KVM, opened once; where there is none, why, as a skip."""
    from .host import kvm

    try:
        return kvm()
    except OSError as exc:
        pytest.skip(str(exc))


def in_use() -> bool:
    """Whether this process has made a machine."""
    return "pyvmm.machine" in sys.modules


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Each example of Hypothesis has its machines fresh."""
    __tracebackhide__ = True
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None or USED not in item.stash:
        return (yield)
    from .testing.examples import restored

    with restored(item, handle):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, Any]:
    """A test that failed shows what its guests were doing."""
    report = yield
    if report.failed and in_use():
        from .testing.failure import add_sections

        add_sections(item, call, report)
    return report


# Behind the hook by which unittest's tests say what they raised, and before the
# one that makes the report.
@pytest.hookimpl(specname="pytest_runtest_makereport")
def pytest_shorten_traceback(call: pytest.CallInfo[Any]) -> None:
    """What a guest did is the fault of the line that ran it."""
    if call.excinfo is not None and in_use():
        from .testing.failure import shorten

        shorten(call)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(
    item: pytest.Item, settings: Any
) -> Generator[None, Any, Any]:
    """By its thread method pytest-timeout ends the process: be earlier."""
    if settings.method == "thread" and "pyvmm.testing.machines" in sys.modules:
        from .testing import limit

        limit.start(item, settings.timeout)
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_cancel_timer(
    item: pytest.Item,
) -> Generator[None, Any, Any]:
    """The test has ended in time."""
    if "pyvmm.testing.limit" in sys.modules:
        from .testing import limit

        limit.cancel(item)
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The machines go."""
    for all_booted in config.stash.get(BOOTED, {}).values():
        for _, booted in all_booted:
            booted.close()


def register_profile() -> None:
    """Called by Hypothesis when it is imported: its settings for guests."""
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "pyvmm",
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


# -- tests inside guests -------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Kernels are visited wherever they are."""
    if config.getini("pyvmm_guests"):
        from .testing.guest_tests import add_arguments

        add_arguments(config)


def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> pytest.File | None:
    """A file of guest tests is collected by a module of its own."""
    config = parent.config
    if file_path.suffix in (".py", ".txt", ".rst", ".md") or not (
        config.getini("pyvmm_guests")
        or config.getini("pyvmm_guest_files") != GUEST_FILES
        or file_path.name.startswith("guest_")
    ):
        return None
    from .testing.guest_tests import collect_file

    return collect_file(file_path, parent)

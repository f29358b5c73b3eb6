# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: loaded by pytest wherever pyvmm is installed.

It imports nothing of pyvmm until a test asks for something: `testing.machine`
makes fixtures, here is what goes with them. `-p no:pyvmm` leaves it out.
"""

from __future__ import annotations

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ._vmm import KVM
    from .testing.machines import Booted

BOOTED: pytest.StashKey[dict[object, Booted]] = pytest.StashKey()


@pytest.fixture(scope="session")
def kvm() -> KVM:
    """This host's KVM, opened once; where there is none, why, as a skip."""
    from .host import kvm

    try:
        return kvm()
    except OSError as exc:
        pytest.skip(str(exc))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, Any]:
    """A test that failed shows what its guests were doing."""
    report = yield
    if (
        report.when == "call"
        and report.failed
        and item.config.stash.get(BOOTED, None)
    ):
        from .testing.machines import sections

        add = getattr(report.longrepr, "addsection", None)
        for name, text in sections(item):
            if add is not None:
                add(name, text)
            else:
                report.sections.append((name, text))
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """The machines go."""
    for booted in config.stash.get(BOOTED, {}).values():
        booted.close()

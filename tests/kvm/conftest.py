# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run guests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bare import Bare
from project import Project, compile_guest

from pyvmm import _vmm


@pytest.fixture(scope="session")
def kvm() -> _vmm.KVM:
    """The host's KVM; a missing device skips, a refusal fails."""
    if not Path("/dev/kvm").exists():
        pytest.skip("there is no /dev/kvm here")
    return _vmm.KVM()


@pytest.fixture
def bare(kvm: _vmm.KVM) -> Iterator[Callable[..., Bare]]:
    """Makes a Bare machine, closed when the test ends."""
    made: list[Bare] = []

    def make(source: str = "hlt", mode: str = "protected", **options) -> Bare:
        made.append(Bare(kvm, source, mode, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture(scope="session")
def project_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest of `project`, compiled once."""
    return compile_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def project(kvm: _vmm.KVM, tmp_path: Path, project_image: Path) -> Project:
    """A project of its own that tests a guest."""
    return Project(tmp_path, project_image)

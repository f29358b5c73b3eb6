# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where the checkout is and which build is tested."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--core",
        default="build",
        help="the build tree whose C tests are run (build)",
    )
    parser.addoption(
        "--sanitized",
        action="store_true",
        help="the extension has sanitizers: leave out what cannot run so",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def core(pytestconfig: pytest.Config) -> Path:
    """The build tree that --core names."""
    return ROOT / pytestconfig.getoption("--core")


@pytest.fixture
def plain(pytestconfig: pytest.Config) -> None:
    """For tests of what is built beside, which `make test` has run already."""
    if pytestconfig.getoption("--sanitized"):
        pytest.skip("not about the sanitized extension")

# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where the checkout is and which build is tested."""

import signal
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
        help="stop unless the extension is the one with sanitizers",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts a job in the background lets it ignore Ctrl-C, and
    # what the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--sanitized"):
        from pyvmm import _vmm

        if Path(_vmm.__file__).resolve() != ROOT / "build/san/_vmm.so":
            pytest.exit(f"not sanitized: {_vmm.__file__}", returncode=3)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def core(pytestconfig: pytest.Config) -> Path:
    """The build tree that --core names."""
    return ROOT / pytestconfig.getoption("--core")

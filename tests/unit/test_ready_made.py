# SPDX-License-Identifier: Apache-2.0
"""pyvmm.devices: its names, and what all that come along have in common."""

import subprocess
import sys

import pytest

import pyvmm
import pyvmm.devices

LAZY = """
import sys
from pyvmm.devices import Serial
ours = {name for name in sys.modules if name.startswith("pyvmm.devices.")}
assert ours == {"pyvmm.devices.serial"}, ours
"""


@pytest.mark.parametrize("name", pyvmm.devices.__all__)
def test_names(name) -> None:
    cls = getattr(pyvmm.devices, name)
    assert issubclass(cls, (pyvmm.Device, pyvmm.virtio.Device))
    assert name in dir(pyvmm.devices)


def test_one_is_loaded_alone() -> None:
    subprocess.run([sys.executable, "-c", LAZY], check=True, timeout=60)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Toaster'"):
        pyvmm.devices.Toaster  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Serial", {"port": 0x3F8, "irq": 4}),
        ("Rtc", {"port": 0x70, "irq": 8}),
        ("I8042", {"port": 0x60, "irq": 1}),
        ("AcpiPm", {"port": 0x600, "irq": 9}),
        ("FwCfg", {"port": 0x510}),
    ],
)
def test_reloading(name, options) -> None:
    """A device keeps its state, and its file can be run again."""
    with pyvmm.Machine() as m:
        device = m.attach(getattr(pyvmm.devices, name)(), **options)
        before = device.save()
        m.reload(device)
        assert device.save() == before
        assert f"port {options['port']:#x}" in repr(device)

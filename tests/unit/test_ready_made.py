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
    if name not in ("Switch", "faulty"):  # for others
        kinds = (pyvmm.Device, pyvmm.virtio.Device, pyvmm.Machine)
        assert issubclass(cls, kinds)
    assert name in dir(pyvmm.devices)


def test_one_is_loaded_alone() -> None:
    subprocess.run([sys.executable, "-c", LAZY], check=True, timeout=60)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Toaster'"):
        pyvmm.devices.Toaster  # noqa: B018


@pytest.mark.parametrize(
    ("name", "port", "line"),
    [
        ("AcpiPm", 0x600, 9),
        ("DebugConsole", 0x402, None),
        ("DebugExit", 0x501, None),
        ("FwCfg", 0x510, None),
        ("I8042", 0x60, 1),
        ("PciHost", 0xCF8, None),
        ("PmTimer", 0x608, None),
        ("PostCodes", 0x80, None),
        ("Rtc", 0x70, 8),
        ("Serial", 0x3F8, 4),
    ],
)
def test_place_and_reload(name, port, line) -> None:
    """It is where a PC has it, and goes on with its file run again."""
    with pyvmm.Machine() as m:
        device = m.attach(getattr(pyvmm.devices, name)())
        assert device.is_port and device.base == port
        assert line is None or device.irq.line == line
        before = device.save()
        m.reload(device)
        assert device.save() == before
        assert device.base == port

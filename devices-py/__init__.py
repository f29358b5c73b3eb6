# SPDX-License-Identifier: Apache-2.0
"""Devices that stand alone: one per file, written on the public API only.

PC, in pc.py, is a whole machine of them.

    from pyvmm.devices import Serial

loads serial.py and nothing else.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .acpi_pm import AcpiPm as AcpiPm
    from .blk import Blk as Blk
    from .clock import Clock as Clock
    from .console import Console as Console
    from .counter import Counter as Counter
    from .debug_console import DebugConsole as DebugConsole
    from .debug_exit import DebugExit as DebugExit
    from .faults import faulty as faulty
    from .fw_cfg import FwCfg as FwCfg
    from .generation_id import GenerationId as GenerationId
    from .hasher import Hasher as Hasher
    from .host_calls import HostCalls as HostCalls
    from .i8042 import I8042 as I8042
    from .net import Net as Net
    from .net_switch import Switch as Switch
    from .ninep import NineP as NineP
    from .pc import PC as PC
    from .pci_host import PciHost as PciHost
    from .pm_timer import PmTimer as PmTimer
    from .post import PostCodes as PostCodes
    from .regex import Regex as Regex
    from .rtc import Rtc as Rtc
    from .serial import Serial as Serial
    from .vsock import Vsock as Vsock

# Class: the module that has it.
_HOME = {
    "AcpiPm": "acpi_pm",
    "Blk": "blk",
    "Clock": "clock",
    "Console": "console",
    "Counter": "counter",
    "DebugConsole": "debug_console",
    "DebugExit": "debug_exit",
    "FwCfg": "fw_cfg",
    "GenerationId": "generation_id",
    "Hasher": "hasher",
    "HostCalls": "host_calls",
    "I8042": "i8042",
    "Net": "net",
    "NineP": "ninep",
    "PC": "pc",
    "PciHost": "pci_host",
    "PmTimer": "pm_timer",
    "PostCodes": "post",
    "Regex": "regex",
    "Rtc": "rtc",
    "Serial": "serial",
    "Switch": "net_switch",
    "Vsock": "vsock",
    "faulty": "faults",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

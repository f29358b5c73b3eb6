# SPDX-License-Identifier: Apache-2.0
"""Virtio devices in Python, and a driver side to test them.

from pyvmm import virtio

class Hasher(virtio.Device):
    device_id = 63
    queues = {"requests": 256}

    def on_requests(self, queue):
        for chain in queue:
            data = chain.read()
            chain.write(hashlib.sha256(data).digest())

with virtio.driver(Hasher()) as drv:
    assert len(drv.requests(b"abc", reply=32)) == 32

device.py      Device: what users subclass
config.py      Struct: the fields of the configuration space
frontend.py    driver(): a device driven without KVM and without a guest
rings.py       registers and rings, from the driver's end
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._vmm import Chain as Chain
    from .._vmm import Queue as Queue
    from .._vmm import ShortChain as ShortChain
    from .._vmm import StaleChain as StaleChain
    from .._vmm import preadv as preadv
    from .._vmm import pwritev as pwritev
    from .config import Config as Config
    from .config import Struct as Struct
    from .device import Device as Device
    from .frontend import Driver as Driver
    from .frontend import driver as driver

# Public name: the module that has it.
_HOME = {
    "Chain": "pyvmm._vmm",
    "Config": "pyvmm.virtio.config",
    "Device": "pyvmm.virtio.device",
    "Driver": "pyvmm.virtio.frontend",
    "Queue": "pyvmm._vmm",
    "ShortChain": "pyvmm._vmm",
    "StaleChain": "pyvmm._vmm",
    "Struct": "pyvmm.virtio.config",
    "driver": "pyvmm.virtio.frontend",
    "preadv": "pyvmm._vmm",
    "pwritev": "pyvmm._vmm",
}

__all__ = [  # noqa: RUF022 - in the order of a first look
    "Device",
    "Queue",
    "Chain",
    "ShortChain",
    "StaleChain",
    "preadv",
    "pwritev",
    "Struct",
    "Config",
    "driver",
    "Driver",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

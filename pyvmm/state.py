# SPDX-License-Identifier: Apache-2.0
"""The state of devices: what a snapshot keeps of each, and gives back.

A class with a save() and a restore(state) of its own is asked. Of any other
device the registers are kept, and a copy of its attributes: what changed is
changed back, what was not there goes. What is the machine's, such as lines,
places, timers and watches, is not the device's to keep; locks, functions and
other devices are kept as they are.
"""

from __future__ import annotations

import copy
import threading
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodType,
    ModuleType,
)

from . import _vmm
from .device import Device, IrqLine, Message, RangeAt
from .errors import Error
from .native import Native
from .services import Services
from .timers import Timer
from .virtio.config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .wiring import Slot

# Attributes that attach() has given, or that follow from the class.
KIT = frozenset((
    "machine", "base", "is_port", "name", "irq_line", "native", "notify",
    "queue", "_told", "_services", "_registers",
))  # fmt: skip

PLAIN = (int, float, complex, str, bytes, bool, type(None))
SHARED = (
    FunctionType, BuiltinFunctionType, type, ModuleType, Timer,
    type(threading.Lock()), type(threading.RLock()), threading.Event,
    threading.Condition, threading.Thread,
)  # fmt: skip


class DeviceState:
    """What one device was like.

    `own`: what its save() returned, or None. `registers`, `attributes`: by
    name. `messages`: address and data of each. `config`: bytes of the
    configuration. `native`: of the part in C.
    """

    __slots__ = (
        "attributes", "config", "messages", "name", "native", "own",
        "registers", "watches",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.own: Any = None
        self.registers: dict[str, int] = {}
        self.attributes: dict[str, Any] = {}
        self.messages: dict[str, tuple[int, int]] = {}
        self.config: dict[str, bytes] = {}
        self.native: bytes | None = None
        self.watches: list[tuple[Any, bool]] = []


def has_own(device: object) -> bool:
    """Whether a device's class says itself what its state is."""
    cls = type(device)
    inherited = (getattr(Device, "save", None), None)
    return (
        getattr(cls, "save", None) not in inherited
        and getattr(cls, "restore", None) is not None
    )


def attributes(device: object) -> dict[str, Any]:
    """What a device keeps beside what the kit gave it."""
    if not hasattr(device, "__dict__"):
        return {}
    return {
        name: value
        for name, value in vars(device).items()
        if name not in KIT
        and not isinstance(value, IrqLine | Message | RangeAt | Config)
    }


def memo(shared: Iterable[object]) -> dict[int, object]:
    """For copy.deepcopy: these are not copied."""
    return {id(value): value for value in shared}


def copied(
    slot: Slot, values: Mapping[str, Any], seen: dict[int, object]
) -> dict[str, Any]:
    """A copy of attributes; Error names the one that cannot be copied."""
    found = {}
    for name, value in values.items():
        if not isinstance(value, PLAIN) and not isinstance(value, SHARED):
            try:
                value = copy.deepcopy(value, seen)
            except Exception as exc:
                raise Error(
                    f"{slot.name} cannot be in a snapshot: its attribute "
                    f"{name}, a {type(value).__name__}, cannot be copied "
                    f"({exc}); give {type(slot.device).__name__} save() and "
                    "restore(state)"
                ) from exc
        found[name] = value
    return found


def save(slot: Slot, shared: Iterable[object]) -> DeviceState:
    """The state of an attached device; Error when it cannot be had."""
    device: Any = slot.device
    state = DeviceState(slot.name)
    if isinstance(device, Device):
        device.drain()
    if isinstance(slot.bus_device, _vmm.VirtioMMIO):
        state.native = slot.bus_device.save()
    if has_own(device):
        state.own = device.save()
    elif isinstance(device, Services) or not isinstance(
        device, _vmm.VirtioMMIO
    ):
        if isinstance(device, Device):
            state.registers = Device.save(device)
        seen = memo(shared)
        if not isinstance(device, Native) or hasattr(device, "queues"):
            state.attributes = copied(slot, attributes(device), seen)
    for name, value in getattr(device, "__dict__", {}).items():
        if isinstance(value, Message):
            state.messages[name] = value.address, value.data
        elif isinstance(value, Config):
            state.config[name] = bytes(value)
    if slot.hired is not None:
        state.watches = [
            (watch, watch.active) for watch in slot.hired.watches(device)
        ]
    return state


def load(slot: Slot, state: DeviceState, seen: dict[int, object]) -> None:
    """Make a device what it was; `seen`: for copy.deepcopy, what is not copied.

    Of a clone it maps what belongs to the one machine to what does to the
    other.
    """
    device: Any = slot.device
    for name, data in state.config.items():
        object.__setattr__(getattr(device, name), "_bytes", bytearray(data))
    for name, (address, content) in state.messages.items():
        message = getattr(device, name)
        message.address, message.data = address, content
    if state.native is not None:
        assert isinstance(slot.bus_device, _vmm.VirtioMMIO)
        slot.bus_device.restore(state.native)
    if has_own(device):
        device.restore(state.own)
    else:
        if isinstance(device, Device) and state.registers:
            Device.restore(device, state.registers)
        if not isinstance(device, Native) or hasattr(device, "queues"):
            now = attributes(device)
            then = copied(slot, state.attributes, seen)
            for name in now.keys() - then.keys():
                delattr(device, name)
            for name, value in then.items():
                if now.get(name, now) is not value:
                    setattr(device, name, value)
    if slot.hired is not None:
        kept = {id(watch): active for watch, active in state.watches}
        for watch in slot.hired.watches(device):
            slot.hired.set_active(watch, kept.get(id(watch), watch.active))


def rebound(call: Any, seen: Mapping[int, object], what: str) -> Any:
    """A bound method of a device as one of the device's clone."""
    if isinstance(call, MethodType):
        there = seen.get(id(call.__self__))
        if there is not None:
            return MethodType(call.__func__, there)
    raise Error(
        f"{what} cannot be in a clone: it calls {call!r}, which is no method "
        "of an attached device"
    )

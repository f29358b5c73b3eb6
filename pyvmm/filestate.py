# SPDX-License-Identifier: Apache-2.0
"""The state of devices in a file: plain values, and what stands for the rest.

Other devices, the machine and timers are numbers in a file. Functions, locks
and threads are not in it: a device keeps those that it has.
"""

from __future__ import annotations

import enum
from types import FunctionType, MethodType

from . import state as states
from .device import Device, Message
from .encoding import Unencodable, decode, encode
from .errors import Error
from .snapfile import REASONS, a
from .state import DeviceState
from .timers import LONGEST, MOST, Timer
from .virtio.config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .encoding import Mark
    from .machine import Machine
    from .snapshot import Snapshot
    from .wiring import Slot

U32 = 1 << 32
U64 = 1 << 64
DONE = U32 - 1  # a timer that is not pending
LONGEST_NS = int(LONGEST * 1e9)


# -- into a file -------------------------------------------------------------


def saved_state(snap: Snapshot) -> dict[str, Any]:
    """The state of a snapshot beside the core's part, as plain values."""
    timers = {id(timer): at for at, (timer, _) in enumerate(snap._timers)}
    shape = snap._shape
    assert shape is not None

    def mark(value: object) -> Mark | None:
        if isinstance(value, Timer):
            return b"X", timers.get(id(value), DONE)
        if id(value) == shape.machine:
            return b"M", 0
        at = shape.ids.get(id(value))
        return None if at is None else (b"D", at)

    asked = snap._asked
    return {
        "devices": [
            saved_device(state, place["class"], shape.ids, mark)
            for state, place in zip(snap._devices, shape.devices, strict=True)
        ],
        "timers": [
            (*method_of(timer.call, shape.ids, timer), timer.every_ns, left)
            for timer, left in snap._timers
        ],
        "console": snap._console,
        "asked": asked and (asked.reason, asked.status, asked.cpu),
        "ran": snap._ran,
        "stopped": snap._stopped,
    }


def saved_device(
    state: DeviceState, cls: str, ids: dict[int, int], mark: Any
) -> dict[str, Any]:
    """The state of one device; Error naming what cannot be in a file."""
    plain: dict[str, Any] = {}
    kept: dict[str, str] = {}
    methods: dict[str, tuple[int, str]] = {}
    for name, value in state.attributes.items():
        if isinstance(value, MethodType) and id(value.__self__) in ids:
            methods[name] = ids[id(value.__self__)], value.__name__
        elif isinstance(value, states.SHARED) and not isinstance(value, Timer):
            kept[name] = kind_of(value)
        else:
            plain[name] = value
    try:
        attributes = encode(plain, mark)
    except Unencodable as exc:
        raise refusal(state.name, cls, "its attribute ", exc) from None
    try:
        own = encode(state.own, mark, "its state")
    except Unencodable as exc:
        raise refusal(state.name, cls, "", exc) from None
    return {
        "registers": state.registers,
        "messages": state.messages,
        "config": state.config,
        "native": state.native,
        "own": own,
        "attributes": attributes,
        "kept": kept,
        "methods": methods,
    }


def refusal(name: str, cls: str, what: str, exc: Unencodable) -> Error:
    """What is said of a device whose state a file cannot keep."""
    return Error(
        f"{name} cannot be saved to a file: {what}{exc}, is no plain value; "
        f"give {cls} save() and restore(state) that use such"
    )


def kind_of(value: object) -> str:
    """What something that is not in a file is: the name, to compare."""
    name = getattr(value, "__qualname__", None)
    if name is None:
        return type(value).__qualname__
    return f"{getattr(value, '__module__', '')}.{name}"


def method_of(
    call: object, ids: dict[int, int], what: object
) -> tuple[int, str]:
    """The number of a device and the name of its method; Error."""
    if isinstance(call, MethodType):
        at = ids.get(id(call.__self__))
        if at is not None:
            return at, call.__name__
    raise Error(
        f"{what!r} cannot be saved to a file: it calls {call!r}, which is no "
        "method of an attached device"
    )


# -- out of it: ValueError for what cannot be --------------------------------


def check_state(
    state: dict[str, Any], devices: list[dict[str, Any]], console: bool
) -> None:
    """What can be said of a state without a machine."""
    rows = a(list, state["devices"], "the devices")
    if len(rows) != len(devices):
        raise ValueError("there is not a state for each device")
    for row in rows:
        check_device(a(dict, row, "a device"))
    a(list, state["timers"], "the timers")
    a(bool, state["ran"], "ran")
    for cpu, address in a(dict, state["stopped"], "stopped").items():
        number(cpu, U32, "a vCPU")
        number(address, U64, "a breakpoint")
    if state["asked"] is not None:
        reason, status, cpu = a(tuple, state["asked"], "asked")
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is no end that is asked for")
        if status is not None:
            number(status, U32, "a status")
        if cpu is not None:
            number(cpu, U32, "a vCPU")
    if (state["console"] is not None) != console:
        raise ValueError("there is no state of the console")
    if console:
        state["console"] = console_state(state["console"])


def console_state(saved: object) -> tuple[bytes, int, bytes, int]:
    """As Console has it, counted from the oldest byte that was kept."""
    output, end, waiting, expect_at = a(tuple, saved, "the console")
    a(bytes, output, "the output")
    a(bytes, waiting, "the input")
    gone = number(end, U64, "the output's end") - len(output)
    if gone < 0:
        raise ValueError("the console has more output than it printed")
    looked = number(expect_at, U64, "what was looked at") - gone
    return output, len(output), waiting, min(max(0, looked), len(output))


def number(value: object, limit: int, what: str) -> int:
    """An int from 0 on and below the limit."""
    found = a(int, value, what)
    if not 0 <= found < limit:
        raise ValueError(f"{what} is {found}")
    return found


def check_device(row: dict[str, Any]) -> None:
    """The types of what is known of one device."""
    for name, value in names(row["registers"], "registers"):
        number(value, U64, f"register {name}")
    for _, value in names(row["messages"], "messages"):
        address, data = a(tuple, value, "a message")
        number(address, U64, "an address")
        number(data, U32, "a message's data")
    for _, value in names(row["config"], "config"):
        a(bytes, value, "a configuration")
    for _, value in names(row["kept"], "kept"):
        a(str, value, "what is kept")
    for _, value in names(row["methods"], "methods"):
        at, name = a(tuple, value, "a method")
        number(at, U32, "a device")
        a(str, name, "a method's name")
    if row["native"] is not None:
        a(bytes, row["native"], "a virtio device")
    decode(a(bytes, row["own"], "a state"))
    a(dict, decode(a(bytes, row["attributes"], "attributes")), "attributes")


def names(value: object, what: str) -> list[tuple[str, object]]:
    """The items of a dict whose keys are names of attributes."""
    items = list(a(dict, value, what).items())
    for name, _ in items:
        if type(name) is not str or not name.isidentifier():
            raise ValueError(f"{what} has the name {name!r:.40}")
    return items


def states_for(
    machine: Machine, state: dict[str, Any]
) -> tuple[list[DeviceState], list[tuple[Timer, int]]]:
    """The states of a machine's devices and its timers, as a snapshot of it.

    ValueError, before anything has changed, when they are none of them.
    """
    slots = machine._wiring.slots
    rows = a(list, state["timers"], "the timers")
    if len(rows) > MOST * max(1, len(slots)):
        raise ValueError(f"{len(rows)} timers are more than devices may have")
    timers = [make_timer(slots, row) for row in rows]

    def find(letter: bytes, at: int) -> object:
        if letter == b"M":
            return machine
        if letter == b"X":
            return timers[at][0] if at < len(timers) else done_timer(machine)
        if letter == b"D" and at < len(slots):
            return slots[at].device
        raise ValueError(f"there is no device {at}")

    devices = [
        state_for(slot, slots, row, find)
        for slot, row in zip(slots, state["devices"], strict=True)
    ]
    return devices, timers


def state_for(
    slot: Slot, slots: list[Slot], row: dict[str, Any], find: Any
) -> DeviceState:
    """The state of one device."""
    device: Any = slot.device
    state = DeviceState(slot.name)
    state.native = row["native"]
    if (state.native is not None) != slot.is_virtio:
        raise ValueError(f"{slot.name} is a virtio device, or is none")
    state.registers = row["registers"]
    if state.registers and not isinstance(device, Device):
        raise ValueError(f"{slot.name} has no registers")
    if isinstance(device, Device):
        check_registers(slot.name, device, state.registers)
    for name, value in row["config"].items():
        config = getattr(device, name, None)
        if not isinstance(config, Config) or len(bytes(config)) != len(value):
            raise ValueError(f"{slot.name} has another configuration")
        state.config[name] = value
    for name, value in row["messages"].items():
        if not isinstance(getattr(device, name, None), Message):
            raise ValueError(f"{slot.name} has no message {name}")
        state.messages[name] = value
    if states.has_own(device):
        state.own = decode(row["own"], find)
    else:
        state.attributes = attributes_for(slot, slots, row, find)
    if slot.hired is not None:
        state.watches = [
            (watch, watch.active) for watch in slot.hired.watches(device)
        ]
    return state


def check_registers(name: str, device: Device, values: dict[str, int]) -> None:
    """ValueError unless they are the device's and fit."""
    if not values:
        return
    before = device._registers.values() if device._layout else {}
    if unknown := sorted(values.keys() - before.keys()):
        raise ValueError(f"{name} has no register {', '.join(unknown)}")
    assert device._layout is not None
    for register, value in values.items():
        if value >> 8 * device._layout.by_name[register].width:
            raise ValueError(f"{name}.{register} cannot be {value:#x}")


def attributes_for(
    slot: Slot, slots: list[Slot], row: dict[str, Any], find: Any
) -> dict[str, Any]:
    """The attributes of a device; those that are kept are its own."""
    device = slot.device
    now = states.attributes(device)
    found: dict[str, Any] = {}
    for name, value in names(decode(row["attributes"], find), "attributes"):
        live = now.get(name)
        if isinstance(live, enum.Enum) and not isinstance(value, enum.Enum):
            value = type(live)(value)
        found[name] = value
    for name, kind in row["kept"].items():
        if name not in now:
            continue
        if kind_of(now[name]) != kind:
            raise ValueError(
                f"{slot.name}.{name} was {kind}, which is in no file; it is "
                f"{kind_of(now[name])} here"
            )
        found[name] = now[name]
    for name, (at, method) in row["methods"].items():
        found[name] = find_method(slots, at, method)
    for name in found:
        there = getattr(type(device), name, None)
        if (
            name.startswith("__")
            or name in states.KIT
            or hasattr(type(there), "__set__")
        ):
            raise ValueError(f"{slot.name} has {name} from its class")
    return found


def find_method(slots: list[Slot], at: int, name: str) -> MethodType:
    """A method that a device's class has written."""
    if at >= len(slots):
        raise ValueError(f"there is no device {at}")
    device = slots[at].device
    function = getattr(type(device), name, None)
    if name.startswith("__") or not isinstance(function, FunctionType):
        raise ValueError(f"{slots[at].name} has no method {name!r:.40}")
    return MethodType(function, device)


def make_timer(slots: list[Slot], row: object) -> tuple[Timer, int]:
    """A timer that is pending, and how long it has."""
    at, name, every_ns, left = a(tuple, row, "a timer")
    call = find_method(
        slots, number(at, U32, "a device"), a(str, name, "a method's name")
    )
    timer = done_timer(slots[at].wiring.machine)
    timer.device = slots[at].device
    timer.call = call
    timer.every_ns = number(every_ns, LONGEST_NS + 1, "a timer's interval")
    return timer, number(left, LONGEST_NS + 1, "a timer's time")


def done_timer(machine: Machine) -> Timer:
    """One that is called no more."""
    timer = Timer.__new__(Timer)
    timer._timers = machine._wiring.timers
    timer.device = None
    timer.call = lambda: None
    timer.due_ns = timer.every_ns = 0
    timer.pending = False
    return timer

# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a machine, the way back to them, and clones.

The core keeps vCPUs, interrupt controllers and memory (csrc/vmm/snap.h); here
come the devices, their timers and the console. Files are snapfile.py's.
"""

from __future__ import annotations

from . import _vmm
from . import state as states
from .device import Device
from .errors import Error
from .run import PASSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Any

    from .machine import Machine
    from .run import Asked, End
    from .snapfile import Loaded
    from .state import DeviceState
    from .symbols import Symbols
    from .timers import Timer


class Shape:
    """What the machine of a snapshot was like, beside its state.

    `ids`: of its devices, their number by id(); they may be in their states.
    """

    __slots__ = ("console", "devices", "ids", "machine", "options", "symbols")

    def __init__(self, machine: Machine) -> None:
        console = machine._console
        slots = machine._wiring.slots
        self.options = {**machine._options, "cmdline": machine.cmdline}
        self.console = console is not None
        self.devices = [place_of(slot) for slot in slots]
        self.ids = {id(slot.device): at for at, slot in enumerate(slots)}
        self.machine = id(machine)
        self.symbols: Symbols = machine._symbols


def place_of(slot: Any) -> dict[str, Any]:
    """Which device it is and where, as plain values."""
    return {
        "name": slot.name,
        "class": type(slot.device).__qualname__,
        "base": slot.base,
        "size": slot.size,
        "port": slot.is_port,
        "lines": list(slot.lines),
        "ranges": {at.name: at.base for at in slot.ranges},
        "rng": rng_of(slot.device),
    }


def rng_of(device: object) -> dict[str, Any] | None:
    """What makes another Rng like this one, if nothing else need be told."""
    from .rng import Rng

    if type(device) is not Rng or device.source or device.rate:
        return None
    return {"notify": device.notify, "queue_size": device.queue_size}


class Snapshot:
    """A moment of a machine: `snap = m.snapshot()`, `m.restore(snap)`.

    Snapshots form a tree: `parent` is the one that the machine was at when
    this was taken, or None. Such a child holds what was written since. A
    machine goes to any node, also one that a clone of it has taken.

    `pages`: how many pages it holds of its own.

    save() writes it to a file, which load() gives back, in any process on such
    a host:

        snap.save("booted.snap")

        snap = pyvmm.Snapshot.load("booted.snap")
        m = snap.machine()                  # or m.restore(snap)

    Threads: any; it never changes.
    """

    __slots__ = (
        "__weakref__", "_asked", "_console", "_devices", "_ends", "_loaded",
        "_native", "_ran", "_shape", "_stopped", "_timers", "parent",
    )  # fmt: skip

    def __init__(self, native: _vmm.Snapshot, parent: Snapshot | None) -> None:
        self._native = native
        self.parent = parent
        self._devices: list[DeviceState] = []
        self._timers: list[tuple[Timer, int]] = []
        self._console: tuple[bytes, int, bytes, int] | None = None
        self._ends: list[End] = []
        self._asked: Asked | None = None
        self._ran = False
        self._stopped: dict[int, int] = {}  # vCPU: the breakpoint it is at
        self._shape: Shape | None = None
        self._loaded: Loaded | None = None  # what a file said

    # -- files ---------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file, whole: an ELF core file with notes of its own.

        gdb and other readers of core files take it as it is. Pages of zeros
        are holes. It is written beside `path`, synced and then renamed: until
        that what was there stays, whatever happens. Works for snapshots of
        machines that have been closed, and of files.

        Raises Error naming the device whose state a file cannot keep, OSError
        when the file cannot be written.
        """
        from .snapfile import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str], *, copy: bool = False) -> Snapshot:
        """The snapshot that save() wrote there.

        The file's memory is mapped, and a page read when it is first wanted.
        So the file may be replaced or removed, but must not be written to, and
        not be shortened, which would end the process; with `copy` it is read
        into memory at once, and nothing depends on it any more.

        Nothing in a file is run, and none of it is believed: raises Error, in
        one sentence, for a file that is none, truncated or damaged (verify()
        tells whether the pages are), of another version, or of a processor
        with features that this host's has not, which are named. OSError when
        it cannot be read.
        """
        from .snapfile import load

        return load(path, copy)

    def verify(self) -> None:
        """Read all pages that load() has left; Error when they have changed.

        Nothing happens for a snapshot that is not of a file.
        """
        if self._loaded is not None:
            self._loaded.verify()

    def machine(
        self,
        setup: Callable[[Machine], object] | None = None,
        **options: Any,
    ) -> Machine:
        """A new machine at this snapshot, which load() has given.

        It has the memory, the vCPUs and the options that the file tells of;
        `options` are those of Machine, `console=` and `strict=` for example.
        `setup(machine)` attaches the devices, each as the file names it and in
        its place. Without any devices but Rngs there is nothing to set up.

        Raises ValueError when the devices or the options are others than in
        the file, RuntimeError for a snapshot that is of no file: clone() makes
        another machine of one that is here.
        """
        from .snapfile import make_machine

        return make_machine(self, setup, options)

    @property
    def pages(self) -> int:
        """Pages of 4096 bytes that only this snapshot has."""
        changed = self._native.changed
        return self._native.pages if changed is None else len(changed)

    def _restore(self, machine: Machine) -> None:
        """Put a machine into the state of this node of its tree."""
        machine._check_open()
        check_still(machine)
        devices, timers = self._devices, self._timers
        if devices or machine._wiring.slots:
            check_devices(machine, self)
        if self._loaded is not None:
            devices, timers = self._loaded.enter(machine)
        vm = machine._realise()
        wiring = machine._wiring
        if not wiring.slots:  # as fast as it can be
            vm.restore(self._native)
            load(machine, self, {}, devices, timers, self._ends)
            return
        with wiring.still():
            vm.restore(self._native)
            seen = states.memo(own(machine))
            load(machine, self, seen, devices, timers, self._ends)

    def __repr__(self) -> str:
        kind = "of the whole memory" if self.parent is None else "changed"
        devices = ", ".join(state.name for state in self._devices)
        return (
            f"<Snapshot: {self.pages} pages {kind}; {devices or 'no devices'}>"
        )


def check_still(machine: Machine) -> None:
    """RuntimeError while the machine runs."""
    if machine._runner.owner is not None:
        raise RuntimeError(
            "the machine runs: a snapshot is taken and gone back to between "
            "two runs; pause() it first"
        )


def own(machine: Machine) -> list[object]:
    """What no copy of a device's attributes may copy."""
    wiring = machine._wiring
    return [
        machine,
        *(slot.device for slot in wiring.slots),
        *wiring.slots,
        *(slot.hired for slot in wiring.slots if slot.hired is not None),
    ]


def take(machine: Machine) -> Snapshot:
    """A snapshot of a machine that does not run; it is at it from then on."""
    machine._check_open()
    check_still(machine)
    machine._boot(running=machine._image is not None)
    vm = machine._realise()
    wiring = machine._wiring
    with wiring.still():
        # First what may fail and changes nothing.
        shared = own(machine)
        devices = [states.save(slot, shared) for slot in wiring.slots]
        snap = Snapshot(vm.snapshot(), machine._at)
        snap._devices = devices
        snap._timers = wiring.save_timers()
        if machine._console is not None:
            snap._console = machine._console._save()
        snap._ends = list(machine._runner._pending)
        snap._asked = machine._runner.asked
        snap._ran = machine._ran
        if machine._debugger is not None:
            snap._stopped = dict(machine._debugger.stopped_at)
        snap._shape = Shape(machine)
    machine._at = snap
    return snap


def load(
    machine: Machine,
    snap: Snapshot,
    seen: dict[int, object],
    devices: list[DeviceState],
    timers: list[tuple[Timer, int]],
    ends: list[End],
) -> None:
    """What is not the core's: its VM is at the snapshot already.

    `seen`: what the states of devices may refer to, by id.
    """
    wiring = machine._wiring
    if wiring.slots:
        for slot, state in zip(wiring.slots, devices, strict=True):
            states.load(slot, state, seen)
        wiring.poll_again()
    wiring.load_timers(timers)
    if machine._console is not None and snap._console is not None:
        machine._console._load(snap._console)
    machine._runner._pending[:] = ends
    machine._runner.asked = snap._asked
    machine._ran = snap._ran
    if snap._stopped or machine._debugger is not None:
        machine._debug.stopped_at = dict(snap._stopped)
    machine._at = snap


def check_devices(machine: Machine, snap: Snapshot) -> None:
    """ValueError unless the devices are those of the snapshot."""
    now = [slot.name for slot in machine._wiring.slots]
    then = [state.name for state in snap._devices]
    if now != then:
        raise ValueError(
            f"the snapshot has the devices {', '.join(then) or '(none)'}; the "
            f"machine has {', '.join(now) or '(none)'}"
        )


# -- clones ------------------------------------------------------------------


def clone(machine: Machine, count: int) -> list[Machine]:
    """`count` machines of the same state, memory shared until it is written."""
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"n {count!r} is not 0 or more")
    machine._check_open()
    check_still(machine)
    snap = take(machine)
    made: list[Machine] = []
    try:
        for _ in range(count):
            made.append(make_clone(machine, snap))
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


def make_clone(machine: Machine, snap: Snapshot) -> Machine:
    """One more machine at this snapshot."""
    from .machine import Machine as Base

    # Not the __init__ of a subclass, which attaches what is here already.
    new = type(machine).__new__(type(machine))
    console = machine._console is not None
    Base.__init__(
        new, snap._native.memory(), **machine._options | {"console": console}
    )
    try:
        twins = attach_devices(machine, new)
        seen: dict[int, object] = {id(machine): new, **twins}
        for name, value in vars(machine).items():
            if name not in vars(new):
                setattr(new, name, seen.get(id(value), value))
        new._symbols = machine._symbols
        if machine._console is not None and new._console is not None:
            device = machine._console.device
            if device is not None:
                new._console._carry(seen[id(device)])
        vm = new._realise()
        vm.restore(snap._native)
        new._image = machine._image
        new._booted = True
        load(
            new, snap, seen, snap._devices,
            [(twin(timer, seen), left) for timer, left in snap._timers],
            [end for end in snap._ends if end[1].reason not in PASSING],
        )  # fmt: skip
    except BaseException:
        new.close()
        raise
    return new


def attach_devices(machine: Machine, new: Machine) -> dict[int, object]:
    """A twin of each device in the same place; by the id of the first."""
    twins: dict[int, object] = {}
    shared = own(machine)
    for slot in machine._wiring.slots:
        device = make_twin(slot, shared)
        places = {at.name: at.base for at in slot.ranges if at.base is not None}
        new.attach(
            device,
            mmio=None if slot.is_port else slot.base,
            port=slot.base if slot.is_port else None,
            irq=slot.lines[0] if slot.lines else None,
            name=slot.name,
            places=places,
        )
        twin_slot = new._wiring.slots[-1]
        assert twin_slot.lines == slot.lines, "lines are chosen in order"
        twins[id(slot.device)] = device
        twins[id(slot)] = twin_slot
    return twins


def make_twin(slot: Any, shared: list[object]) -> Any:
    """A device like that one, not attached."""
    device = slot.device
    own_way = getattr(device, "clone", None)
    if callable(own_way):
        return own_way()
    twin: Any = object.__new__(type(device))
    if isinstance(device, Device):
        twin = type(device).__new__(type(device))
    for name, value in states.copied(
        slot, states.attributes(device), states.memo(shared)
    ).items():
        setattr(twin, name, value)
    return twin


def twin(timer: Timer, seen: dict[int, object]) -> Timer:
    """A timer of a device as one of its twin."""
    from .timers import Timer as TimerType

    new = TimerType.__new__(TimerType)
    device = seen.get(id(timer.device))
    if device is None:
        raise Error(f"{timer!r} cannot be in a clone: whose is it?")
    new._timers = device._services.timers  # type: ignore[attr-defined]
    new.device = device
    new.call = states.rebound(timer.call, seen, repr(timer))
    new.every_ns = timer.every_ns
    new.due_ns = timer.due_ns
    new.pending = True
    return new

# SPDX-License-Identifier: Apache-2.0
"""New code for a device of a machine that lives: Machine.reload().

The file is run as a module of its own. Only when that has worked and the new
class fits where the old one is does anything change: the device, which stays
the same object, becomes one of the new class.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from .device import Device, Msi, Range, declared, irq_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine
    from .wiring import Slot


def reload(machine: Machine, device: Device) -> None:
    """Let the class of `device` be what its file now says."""
    for slot in machine._wiring.slots:
        if slot.device is device:
            break
    else:
        raise ValueError(f"{device!r} is not attached")
    if not isinstance(device, Device):
        raise TypeError(f"{device!r} is no pyvmm.Device: it cannot be reloaded")
    old = type(device)
    module = run_file(old)
    new = find_class(module, old)
    check(old, new)
    adopt(machine, slot, device, new)
    # From now on the module is the new one, for a later reload as well.
    sys.modules[old.__module__] = module


def run_file(cls: type) -> ModuleType:
    """The module of a class, made anew from its file; what that raises."""
    import linecache

    name = cls.__module__
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None or name == "__main__":
        raise ValueError(
            f"{cls.__name__} is not in a file of its own that could be run "
            "again: put it into a module"
        )
    with open(path, "rb") as file:
        source = file.read()
    linecache.checkcache(path)  # tracebacks show the file as it is now
    code = compile(source, path, "exec", dont_inherit=True)
    before = sys.modules[name]
    module = ModuleType(name)
    for key in ("__file__", "__package__", "__spec__", "__loader__"):
        setattr(module, key, getattr(before, key, None))
    if hasattr(before, "__path__"):
        module.__path__ = before.__path__
    sys.modules[name] = module
    try:
        exec(code, vars(module))
    finally:
        sys.modules[name] = before
    return module


def find_class(module: ModuleType, old: type) -> type[Device]:
    """The class of the same name."""
    found: object = module
    for part in old.__qualname__.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, Device):
        raise ValueError(
            f"{module.__file__} has no device class {old.__qualname__} any more"
        )
    return found


def check(old: type[Device], new: type[Device]) -> None:
    """ValueError unless devices of both fit into the same place."""
    shapes = [
        (
            getattr(cls, "size", None),
            irq_names(cls) + declared(cls, Msi),
            [
                (name, at.size, at.is_port)
                for name in declared(cls, Range)
                for at in [getattr(cls, name)]
            ],
        )
        for cls in (old, new)
    ]
    for word, before, now in zip(
        ("size", "lines", "ranges"), *shapes, strict=True
    ):
        if before != now:
            raise ValueError(
                f"{new.__name__} has {word} {now!r} now, before {before!r}: "
                "detach it and attach another"
            )


def adopt(
    machine: Machine, slot: Slot, device: Device, new: type[Device]
) -> None:
    """Make `device` one of the new class, or leave all as it was.

    vCPUs may be in the old methods meanwhile: registers that are no more go
    last.
    """
    old, state = type(device), None
    before = dict(vars(device))
    values = dict(getattr(device, "_registers", {}))
    kept = {}
    if new._layout is not None:
        for name, reg in new._layout.by_name.items():
            kept[name] = values.get(name, reg.reset) & reg.mask
    if new.restore is not Device.restore:
        gone = values.keys() - kept.keys()
        saved = device.save()
        state = {name: saved[name] for name in saved if name not in gone}
    try:
        device._registers = values | kept
        device.__class__ = new
        rebind(machine, slot)
        if state is not None:
            device.restore(state)
        for name in values.keys() - kept.keys():
            del device._registers[name]
    except BaseException:
        device.__class__ = old
        for name in vars(device).keys() - before.keys():
            del vars(device)[name]
        vars(device).update(before, _registers=values)
        rebind(machine, slot)
        raise
    machine._wiring.timers.renew(device)
    if slot.hired is not None:
        slot.hired.renew(device)


def rebind(machine: Machine, slot: Slot) -> None:
    """The buses call the methods of the device's class as it is now."""
    for at in slot.ranges:
        at._bind(getattr(type(slot.device), at.name))
    vm = machine._vm
    if vm is None or vm.closed:
        return
    for base, _, is_port, _ in slot.places():
        (vm.pio if is_port else vm.mmio).refresh(base)


class Watch:
    """The files of a machine's devices, and which of them have changed.

    Threads: one.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._seen: dict[str, tuple[int, int]] = {}
        self.look()

    def look(self) -> list[tuple[str, BaseException | None]]:
        """Reload devices whose files changed since the last look.

        The path of each such file, with what its reload has raised.
        """
        done: list[tuple[str, BaseException | None]] = []
        for path, devices in self._files().items():
            try:
                stat = os.stat(path)
            except OSError:
                continue  # an editor puts a new one in its place
            stamp = stat.st_mtime_ns, stat.st_size
            before = self._seen.get(path)
            self._seen[path] = stamp
            if before in (None, stamp):
                continue
            failure: BaseException | None = None
            for device in devices:
                try:
                    self._machine.reload(device)
                except Exception as exc:
                    if self._machine.closed:
                        return done  # meanwhile
                    failure = exc
            done.append((path, failure))
        return done

    def _files(self) -> dict[str, list[Device]]:
        files: dict[str, list[Device]] = {}
        for device in self._machine.devices:
            module = sys.modules.get(type(device).__module__)
            path = getattr(module, "__file__", None)
            if path is not None and isinstance(device, Device):
                files.setdefault(path, []).append(device)
        return files

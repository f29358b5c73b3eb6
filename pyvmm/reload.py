# SPDX-License-Identifier: Apache-2.0
"""New code for a device of a machine that lives: Machine.reload().

The file is run as a module of its own. Only when that has worked and the new
class fits where the old one is does anything change: the device, which stays
the same object, becomes one of the new class.
"""

from __future__ import annotations

import os
import sys
from threading import Event, Lock, get_ident
from time import monotonic, sleep
from types import MethodType, ModuleType

from .device import Device, Msi, Range, declared, irq_names, ranges
from .errors import Error
from .virtio.config import Struct
from .virtio.device import Device as VirtioDevice
from .wiring import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType
    from typing import Any

    from . import _vmm
    from .machine import Machine
    from .registers import Layout
    from .services import Host
    from .timers import Timers
    from .worker import Worker

    AnyDevice = Device | VirtioDevice

PATIENCE = 1.0  # seconds that a method in the middle of its work is waited for
LOOK = 0.01  # seconds between two looks at whether that makes sense


def reload(machine: Machine, device: object) -> None:
    """Let the class of an attached device be what its file now says."""
    for slot in machine._wiring.slots:
        if slot.device is device:
            break
    else:
        raise ValueError(f"{device!r} is not attached")
    if not isinstance(device, Device | VirtioDevice):
        raise TypeError(f"{device!r} is not in Python: it cannot be reloaded")
    reload_at(device, slot)


def reload_at(device: AnyDevice, host: Host) -> None:
    """The same for a device of any host, such as those of tests."""
    old = type(device)
    module = run_file(old)
    new = find_class(module, old, kind_of(device))
    if isinstance(device, Device):
        device.drain()  # by the methods for which it was posted
    between_calls(device, host, lambda: adopt(device, host, new))
    # From now on the module is the new one, for a later reload as well.
    sys.modules[old.__module__] = module


def kind_of(device: AnyDevice) -> type[AnyDevice]:
    """Which of the two bases a device has."""
    return Device if isinstance(device, Device) else VirtioDevice


# -- the file ----------------------------------------------------------------


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
    source = read_file(path)
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


def read_file(path: str) -> bytes:
    """All of a file, by as few system calls as possible.

    For each of them the GIL is given up, and got back from a guest's vCPU.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = b""
        while part := os.read(fd, 1 << 20):
            source += part
            if len(part) < 1 << 20:
                break
    finally:
        os.close(fd)
    return source


def find_class(
    module: ModuleType, old: type, kind: type[AnyDevice]
) -> type[AnyDevice]:
    """The class of the same name."""
    found: Any = module
    for part in old.__qualname__.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, kind):
        raise ValueError(
            f"{module.__file__} has no device class {old.__qualname__} any more"
        )
    return found


# -- the moment --------------------------------------------------------------


def between_calls(
    device: AnyDevice, host: Host, change: Callable[[], None]
) -> None:
    """Make a change while no method of the device is at work.

    Here and now if there is none. Else on the thread that makes the calls,
    between two of them: the device's worker when it serves the queues, or
    vCPU 0. And in the end in any case.
    """
    sleep(0)  # nobody takes the GIL from us within the next 5 ms
    if not at_work(device):
        change()
        return
    worker = hired(host)
    if getattr(device, "notify", "inline") != "inline" and worker is not None:
        between(worker.timers, lambda: worker.elsewhere, change)
    elif isinstance(host, Slot):
        runner = host.wiring.machine._runner
        between(
            host.timers,
            lambda: runner.owner is not None and not runner.inside,
            change,
        )
    else:
        change()


def at_work(device: AnyDevice) -> bool:
    """Whether another thread is inside a method of the device."""
    here = get_ident()
    for thread, frame in sys._current_frames().items():
        at: FrameType | None = frame if thread != here else None
        while at is not None:
            code = at.f_code
            first = code.co_varnames[:1] if code.co_argcount else ()
            if any(at.f_locals.get(name) is device for name in first):
                return True
            at = at.f_back
    return False


def hired(host: Host) -> Worker | None:
    """The worker of a device, if there is one."""
    return host.hired if isinstance(host, Slot) else host.worker


def between(
    timers: Timers, elsewhere: Callable[[], bool], change: Callable[[], None]
) -> None:
    """Let who calls these timers make a change, and wait for that.

    `elsewhere`: whether that is another thread, which goes on doing so. What
    the change raises is raised here.
    """
    turn, done = Lock(), Event()
    failures: list[BaseException] = []

    def make() -> None:
        if not turn.acquire(blocking=False):
            return
        try:
            change()
        except Exception as exc:
            failures.append(exc)
        except BaseException:  # Ctrl-C, which is that thread's
            failures.append(Error("the reload was interrupted"))
            raise
        finally:
            done.set()

    if elsewhere():
        timer = timers.add(change, 0, make, False)
        deadline = monotonic() + PATIENCE
        try:
            while not done.wait(LOOK):
                if not elsewhere() or monotonic() >= deadline:
                    break
        finally:
            timer.cancel()
    make()
    done.wait()
    if failures:
        raise failures[0]


# -- the change --------------------------------------------------------------


def shape(device: AnyDevice) -> dict[str, object]:
    """What others rely on, and a new class must leave as it is."""
    cls = type(device)
    if isinstance(device, VirtioDevice):
        config = getattr(cls, "config", None)
        fields: dict[str, object] = {}
        if isinstance(config, Struct):
            fields["bytes"] = config.size
            for name, field in config.fields.items():
                fields[name] = field.offset, field.format.format
        else:
            fields["bytes"] = len(bytes(device.config))
        return {
            "device_id": device.device_id,
            "features": device.features,
            "queues": dict(device.queues),
            "config": fields,
            "notify": device.notify,
        }
    return {
        "size": getattr(device, "size", None),
        "lines": irq_names(cls) + declared(cls, Msi),
        "ranges": [
            (name, at.size, at.is_port)
            for name in declared(cls, Range)
            for at in [getattr(cls, name)]
        ],
    }


def check(
    device: AnyDevice, was: Mapping[str, object], now: Mapping[str, object]
) -> None:
    """ValueError unless the device fits into its place as it did."""
    for word, before in was.items():
        if now[word] != before:
            raise ValueError(
                f"{type(device).__name__} has {word} {now[word]!r} now, before "
                f"{before!r}: detach it and attach another"
            )


def adopt(device: AnyDevice, host: Host, new: type[AnyDevice]) -> None:
    """Make `device` one of the new class, or leave all as it was.

    vCPUs may write to its registers meanwhile. Old and new ones of a name share
    the value, so that nothing is lost.
    """
    old, was = type(device), shape(device)
    before = dict(vars(device))
    registers, fresh = before.get("_registers"), make_registers(device, new)
    values = registers.values() if registers is not None else {}
    state = saved(device, new, values.keys())
    try:
        if fresh is not None:
            vars(device)["_registers"] = fresh
        device.__class__ = new
        check(device, was, shape(device))
        renew_attributes(device)
        rebind(device, host)
        if state is not None:
            device.restore(state)  # type: ignore[union-attr]
    except BaseException:
        device.__class__ = old
        for name in vars(device).keys() - before.keys():
            del vars(device)[name]
        vars(device).update(before)
        rebind(device, host)
        if isinstance(device, Device) and state is not None and registers:
            device._layout.load(device, values)  # type: ignore[union-attr]
        if fresh is not None:
            fresh.drain(device)  # what was posted to it
        raise
    host.timers.renew(device)
    if (worker := hired(host)) is not None:
        worker.renew(device)
    # What was posted to the old ones and is not delivered yet.
    if fresh is not None:
        fresh.settle(device)
    elif registers is not None:
        registers.drain(device)


def make_registers(
    device: AnyDevice, new: type[AnyDevice]
) -> _vmm.Registers | None:
    """Those of the new class, with the values that there are by name."""
    layout: Layout | None = getattr(new, "_layout", None)
    if layout is None:
        return None
    return layout.make(vars(device).get("_registers"))


def saved(
    device: AnyDevice, new: type[AnyDevice], names: Iterable[str]
) -> dict[str, Any] | None:
    """What the old class saves, when the new one has a restore() of its own.

    `names`: of its registers; those that the new one has not are left out.
    """
    restore = getattr(new, "restore", None)
    inherited = getattr(kind_of(device), "restore", None)
    save = getattr(device, "save", None)
    if save is None or restore in (None, inherited):
        return None
    layout: Layout | None = getattr(new, "_layout", None)
    gone = set(names) - set(layout.by_name if layout is not None else ())
    return {name: value for name, value in save().items() if name not in gone}


def renew_attributes(device: AnyDevice) -> None:
    """Attributes that are methods of the device are those of its class now."""
    for name, value in vars(device).items():
        if isinstance(value, MethodType) and value.__self__ is device:
            function = getattr(type(device), value.__name__, None)
            if callable(function):
                vars(device)[name] = MethodType(function, device)


def rebind(device: AnyDevice, host: Host) -> None:
    """Who calls the device's methods looks them up in its class as it is."""
    if isinstance(device, VirtioDevice):
        device._rebind()
        return
    for at in ranges(device):
        at._bind(getattr(type(device), at.name))
    if not isinstance(host, Slot):
        return
    vm = host.wiring.vm
    if vm is None or vm.closed:
        return
    host.wiring.release_registers(host)
    for base, _, is_port, _ in host.places():
        (vm.pio if is_port else vm.mmio).refresh(base)
    host.wiring.connect_registers(host)


# -- watching ----------------------------------------------------------------


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

    def _files(self) -> dict[str, list[AnyDevice]]:
        files: dict[str, list[AnyDevice]] = {}
        for device in self._machine.devices:
            module = sys.modules.get(type(device).__module__)
            path = getattr(module, "__file__", None)
            if path is not None and isinstance(device, Device | VirtioDevice):
                files.setdefault(path, []).append(device)
        return files

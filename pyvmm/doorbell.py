# SPDX-License-Identifier: Apache-2.0
"""Doorbell: a write that calls a method beside the guest.

A `Doorbell` is declared in a device's class. Those at one offset are a `Place`
of its layout, which answers where the kernel did not: in tests without a
machine, and for writes of another size. In a machine `Bells` gives each an
ioeventfd, which the device's worker watches.
"""

from __future__ import annotations

import os
from functools import partial

from .device import declared, method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from . import _vmm
    from .device import Device, Range
    from .registers import Row
    from .wiring import Slot
    from .worker import Watch

    F = TypeVar("F", bound=Callable[..., object])
    Key = tuple[int, int, int, int | None]  # range, offset, width, match

WIDTHS = (1, 2, 4, 8)
CO_COROUTINE = 0x80  # of a function's code


class Doorbell:
    """A write that rings: `kick = Doorbell(0x20, 4)` in a class.

        @kick.on_ring
        def go(self): ...

    The guest's write does not exit to this process and does not wait: the
    kernel signals an eventfd (KVM_IOEVENTFD), and the device's worker makes
    the call, a thread of its own unless the device has `notify`. Writes that
    come before it was made are one call. What the guest has posted to the
    device before it rang is delivered first, and its registers have what it
    wrote.

    `offset`, `width`, `range`: as those of a Reg. `match`: only a write of
    this value rings; several doorbells may be at one offset with different
    ones. Other values are ignored, reads give 0. `doc`: for help().

    In testing.bus() the write makes the call itself.

    Raises ValueError and TypeError, at the latest when the class is made.

    Threads: any.
    """

    name = ""

    def __init__(
        self,
        offset: int,
        width: int,
        *,
        match: int | None = None,
        range: Range | None = None,
        doc: str = "",
    ) -> None:
        if not isinstance(offset, int) or offset < 0:
            raise ValueError(f"offset {offset!r} is not 0 or more")
        if width not in WIDTHS:
            raise ValueError(
                f"the doorbell at {offset:#x} has width {width!r}, not 1, 2, "
                "4 or 8"
            )
        limit = (1 << 8 * width) - 1
        if match is not None and not (
            isinstance(match, int) and 0 <= match <= limit
        ):
            raise ValueError(
                f"the doorbell at {offset:#x}: match {match!r} is outside "
                f"0..{limit:#x}"
            )
        self.offset = offset
        self.width = width
        self.match = match
        self.range = range
        self._ring: Callable[..., object] | None = None
        size = f"{width} byte" + "s" * (width > 1)
        only = "" if match is None else f", written {match:#x}"
        text = f": {doc}" if doc else ""
        self.__doc__ = f"{offset:#x}, {size}, a doorbell{only}{text}."

    def on_ring(self, function: F) -> F:
        """Decorates the method that is called, without arguments."""
        if self._ring is not None:
            raise TypeError(f"{self} has an on_ring already")
        self._ring = function
        return function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __get__(self, device: Device | None, owner: type) -> Doorbell:
        return self

    def __str__(self) -> str:
        return self.name or f"the doorbell at {self.offset:#x}"

    def __repr__(self) -> str:
        return f"<Doorbell {self}: {self.__doc__}>"


class Place:
    """The doorbells at one offset, of a class of devices.

    In the class's layout it is where a register would be, but has no value.
    """

    posted = 0

    def __init__(self, cls: type, bells: Sequence[Doorbell]) -> None:
        first = bells[0]
        self.name = "/".join(bell.name for bell in bells)
        self.offset = first.offset
        self.width = first.width
        self.calls: dict[int | None, Callable[[Device], object]] = {}
        for bell in bells:
            name = f"{cls.__name__}.{bell.name}"
            if bell._ring is None:
                raise ValueError(f"{name} needs an on_ring method")
            call = method(cls, bell._ring)
            code = getattr(call, "__code__", None)
            if code is not None and code.co_flags & CO_COROUTINE:
                raise TypeError(f"{name}: its on_ring cannot be async")
            if bell.width != self.width:
                raise ValueError(
                    f"{name} at {bell.offset:#x} is not as wide as {first}"
                )
            if bell.match in self.calls:
                raise ValueError(f"{name} has the match of another doorbell")
            self.calls[bell.match] = call
        if None in self.calls and len(bells) > 1:
            raise ValueError(
                f"{cls.__name__}: of the doorbells at {first.offset:#x} each "
                "needs a match"
            )

    def _row(self, cls: type, range: int) -> Row:
        """What _vmm.Registers has to know: no name, for there is no value."""
        ones = (1 << 8 * self.width) - 1

        def written(device: Device, value: int) -> None:
            match = value if value in self.calls else None
            if match in self.calls:
                fd = device._bells.get((range, self.offset, self.width, match))
                if fd is None:
                    self.calls[match](device)
                else:
                    os.eventfd_write(fd, 1)

        return (
            "", range, self.offset, self.width,
            ones, 0, ones, 0, 0,
            0, None, written, False, 0,
        )  # fmt: skip


def make_places(cls: type) -> list[tuple[Range | None, Place]]:
    """The places of a class's doorbells, with the range of each."""
    found: dict[tuple[Range | None, int], list[Doorbell]] = {}
    for name in declared(cls, Doorbell):
        bell: Doorbell = getattr(cls, name)
        if bell.name != name:
            raise ValueError(
                f"{cls.__name__}.{name} is {bell.name} already: declare "
                "another Doorbell"
            )
        found.setdefault((bell.range, bell.offset), []).append(bell)
    return [(at[0], Place(cls, bells)) for at, bells in found.items()]


class Bells:
    """The eventfds of an attached device's doorbells.

    Threads: one at a time; the machine sees to that.
    """

    def __init__(self, slot: Slot, device: Device) -> None:
        self.slot = slot
        self.device = device
        self._open: dict[Key, tuple[int, Watch]] = {}

    def connect(self, vm: _vmm.VM) -> None:
        """Connect those that the device's class has now, and no others."""
        layout = self.device._layout
        wanted: set[Key] = set()
        if layout is not None:
            wanted = {
                (index, place.offset, place.width, match)
                for index, place in layout.bells
                for match in place.calls
            }
        for key in self._open.keys() - wanted:
            self._remove(vm, key)
        for key in wanted - self._open.keys():
            self._add(vm, key)

    def _place(self, key: Key) -> tuple[int, bool]:
        base, _, is_port, _ = self.slot.places()[key[0]]
        return base + key[1], is_port

    def _add(self, vm: _vmm.VM, key: Key) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.slot.eventfds.append(fd)
        addr, is_port = self._place(key)
        watch = self.slot.worker.watch(
            self.device, fd, partial(answer, self.device, key, fd), False
        )
        try:
            vm.ioeventfd(fd, addr, key[2], pio=is_port, match=key[3])
        except BaseException:
            watch.cancel()
            raise
        self._open[key] = fd, watch
        self._tell()

    def _remove(self, vm: _vmm.VM, key: Key) -> None:
        fd, watch = self._open.pop(key)
        addr, is_port = self._place(key)
        vm.remove_ioeventfd(fd, addr, key[2], pio=is_port, match=key[3])
        watch.cancel()  # the worker may be in its call: the slot closes the fd
        self._tell()

    def _tell(self) -> None:
        self.device._bells = {key: fd for key, (fd, _) in self._open.items()}

    def disconnect(self, vm: _vmm.VM) -> None:
        """The device goes."""
        for key in list(self._open):
            self._remove(vm, key)

    def forget(self) -> None:
        """The worker has ended, the eventfds are about to be closed."""
        self._open.clear()
        self._tell()


def answer(device: Device, key: Key, fd: int) -> None:
    """A doorbell has rung: on the worker."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return
    device.drain()
    for index, place in device._layout.bells if device._layout else ():
        if (index, place.offset, place.width) == key[:3]:
            call = place.calls.get(key[3])
            if call is not None:
                call(device)

# SPDX-License-Identifier: Apache-2.0
"""What a device may ask of its machine: time, file descriptors, memory.

A device that is attached has a host: the machine's Slot, or what stands for it
in tests. The services are the same for all devices and come from there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from typing_extensions import Buffer

    from . import _vmm
    from .machine import Machine
    from .timers import Timer, Timers
    from .worker import Watch, Worker

    class Host(Protocol):
        """Who answers a device's questions."""

        @property
        def memory(self) -> _vmm.Memory | None:
            """The guest's RAM; None: there is none."""

        @property
        def timers(self) -> Timers:
            """Those of the vCPU's thread."""

        @property
        def worker(self) -> Worker:
            """The device's own, made when it is first wanted."""


class Services:
    """What every device has: the base of Device, virtio.Device and Rng.

    The methods are for devices that are attached: ValueError before that.

    `machine`: where it is attached, None in tests without one. `name`: its
    word on the guest's command line.

    Threads: any.
    """

    machine: Machine | None = None
    base: int | None = None
    name: str = ""
    _services: Host | None = None

    # -- what a subclass may override ----------------------------------------

    def attached(self) -> None:
        """Called when the device has been attached: `machine` is set."""

    def detached(self) -> None:
        """Called when it was taken off, or its machine closed.

        Its worker has ended, its timers and watches are cancelled. The place
        to close what it has opened.
        """

    # -- what it can do ------------------------------------------------------

    def after(
        self,
        seconds: float,
        call: Callable[[], object],
        *,
        worker: bool = False,
    ) -> Timer:
        """Call `call()` once, in `seconds`; its cancel() prevents that.

        The time is that of the host's CLOCK_MONOTONIC, and goes on while the
        machine is stopped. The call is made between two exits of vCPU 0, by
        whoever is inside run(); with `worker` by the device's worker, whether
        the machine runs or not. Raises ValueError when the device is not
        attached, for seconds that are no time, and with too many pending.
        """
        return clock(self, worker).add(self, seconds, call, False)

    def every(
        self,
        seconds: float,
        call: Callable[[], object],
        *,
        worker: bool = False,
    ) -> Timer:
        """Call `call()` each `seconds`, until cancel(); as after().

        Calls that are missed, since the machine was stopped or busy, are left
        out.
        """
        return clock(self, worker).add(self, seconds, call, True)

    def watch(
        self, fd: int, call: Callable[[], object], *, write: bool = False
    ) -> Watch:
        """Call `call()` whenever the file descriptor `fd` can be read.

        With `write`, when it can be written. Also when the other end has gone:
        reading or writing tells. It is called again and again for as long as
        that is so: pause() and resume() what is returned, and cancel() it
        before the descriptor is closed.

        The call is made by the device's worker: a thread of its own that is
        made for the first watch or `notify="thread"`, where it runs the
        handlers of the queues as well; with `notify="asyncio"` the event loop.
        ValueError for a descriptor that is watched already, OSError for one
        that cannot be (a regular file).
        """
        return ask(self, "watch()").worker.watch(self, fd, call, write)

    def dma_read(self, gpa: int, size: int) -> bytes:
        """Copy bytes out of guest memory; ValueError outside RAM."""
        return ram(self).read(gpa, size)

    def dma_write(self, gpa: int, data: Buffer) -> None:
        """Copy bytes into guest memory; ValueError outside RAM."""
        ram(self).write(gpa, data)

    def dma_view(
        self, gpa: int, size: int, readonly: bool = False
    ) -> memoryview:
        """Guest memory itself, which the guest may change at any moment.

        `T.from_buffer(view)` of ctypes and `numpy.frombuffer(view, dtype)` see
        it without copying. ValueError when it is not inside one region.
        """
        return ram(self).view(gpa, size, readonly)


def ask(device: Services, what: str) -> Host:
    """The host of a device; ValueError when it has none."""
    if device._services is None:
        raise ValueError(
            f"{type(device).__name__} has no {what} yet: attach it to a "
            "machine that is open"
        )
    return device._services


def clock(device: Services, worker: bool) -> Timers:
    """The timers that the vCPU's thread calls, or the worker's."""
    host = ask(device, "clock")
    return host.worker.timers if worker else host.timers


def ram(device: Services) -> _vmm.Memory:
    """The guest's memory."""
    memory = ask(device, "memory").memory
    if memory is None:
        raise ValueError(
            f"{type(device).__name__} has no memory here: "
            "testing.bus(device, memory=...)"
        )
    return memory

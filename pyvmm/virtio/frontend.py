# SPDX-License-Identifier: Apache-2.0
"""The driver side of a device: no KVM, no guest.

driver()     makes a Driver, for `with`
Driver       owns a Memory, the device's native part and its eventfds
Requests     one queue: descriptors, buffers, what is in flight
Request      one chain in flight
"""

from __future__ import annotations

import os
import select
import time

from .. import _vmm
from ..timers import Clock, Timers
from ..worker import ThreadWorker, Worker
from . import rings
from .rings import NEXT, WRITE, Ring, Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any

    from typing_extensions import Buffer

    from ..eventloop import LoopThread
    from .device import Device

RINGS = 0x1000
BUFFERS_ALIGN = 16
LOOK = 0.01  # seconds between looks at what no interrupt announces


def driver(
    device: Device,
    *,
    features: int | None = None,
    memory: int = 16 << 20,
    queue_size: int | None = None,
    timeout: float = 5,
    start: bool = True,
) -> Driver:
    """Drive a device without KVM and without a guest, for tests.

        with virtio.driver(Hasher()) as drv:
            assert drv.requests(b"abc", reply=32) == sha256(b"abc").digest()

    `features`: what the driver takes; None: all that is offered.
    `memory`: bytes of RAM, for rings and buffers.
    `queue_size`: at most so many entries in each queue.
    `timeout`: seconds after which a request without an answer raises.
    `start`: negotiate and start the queues at once.
    """
    return Driver(device, features, memory, queue_size, timeout, start)


class Driver:
    """The driver of one device: `drv.NAME(data, reply=n)` for each queue.

    `device`: the device; it has `native` and no `machine`.
    `raw`: registers and rings without any care, for hostile drivers.
    `memory`: the RAM.

    Timers of the device follow a clock that only advance() moves. Its worker
    is a thread or an event loop if `notify` says so; else poll() does what it
    would.

    Threads: one.
    """

    def __init__(
        self,
        device: Device,
        features: int | None,
        memory: int,
        queue_size: int | None,
        timeout: float,
        start: bool,
    ) -> None:
        self.device = device
        self.timeout = timeout
        self.memory = _vmm.Memory()
        self.memory.add(0, memory)
        self.native = device.make(self.memory)
        self.raw = Transport(self.native)
        self._features = features
        self._queue_size = queue_size
        self._requests: dict[str, Requests] = {}
        self._end = RINGS
        self._in_flight = 0
        self._fds: list[int] = []
        self._failed: BaseException | None = None
        self._clock = Clock()
        self.timers = Timers(self._clock.now, lambda due_ns: None)
        self._loop: LoopThread | None = None
        self.native.irq_fd = self._irq_fd = self._eventfd()
        if device.notify != "inline":
            self.native.doorbell_fd = self._eventfd()
        self.worker = self._make_worker()
        device._services = self
        device.name = device.name or type(device).__name__.lower()
        try:
            device.attached()
            if start:
                self.start()
        except BaseException:
            self.close()
            raise

    def _make_worker(self) -> Worker:
        name = type(self.device).__name__
        if self.device.notify == "thread":
            return ThreadWorker(name, self._fail, self.native)
        if self.device.notify == "asyncio":
            from ..eventloop import LoopThread, LoopWorker

            worker = LoopWorker(name, self._fail, self.native)
            self._loop = LoopThread(name)
            worker.bind(self._loop.loop)
            return worker
        return Worker(name, self._clock.now)

    # -- life ----------------------------------------------------------------

    def start(self) -> None:
        """From reset to DRIVER_OK (virtio 1.2, 3.1.1); again, after reset()."""
        features = self._features
        if features is None:
            features = self.raw.offered()
        most = self._queue_size or 1 << 15
        sizes = [min(size, most) for size in self.device.queues.values()]
        self.raw.boot(features | rings.VERSION_1, sizes, RINGS)
        self._requests = {
            name: Requests(self, index, ring)
            for index, (name, ring) in enumerate(
                zip(self.device.queues, self.raw.ring, strict=True)
            )
        }
        last = self.raw.ring[-1].end if self.raw.ring else RINGS
        self._first = self._top = -(-last // 4096) * 4096
        self._in_flight = 0

    def reset(self) -> None:
        """Reset the device; what is in flight gets no answer."""
        self.raw.set(rings.STATUS, 0)

    def close(self) -> None:
        """End its worker, and close all; raises what the worker raised."""
        if self.device._services is not self:
            return
        self.worker.stop()
        if self._loop is not None:
            self._loop.close()
        self.timers.drop(self.device)
        self.device._services = None
        if not self.native.closed:
            self.native.irq_fd = self.native.doorbell_fd = -1
            self.native.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.device.detached()
        self._raise()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is not None:
            self._failed = None
        self.close()

    def _eventfd(self) -> int:
        self._fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self._fds[-1]

    def _fail(self, exc: BaseException) -> None:
        self._failed = exc
        os.eventfd_write(self._irq_fd, 1)

    def _raise(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            if self.device._services is self:
                self.worker.resume()
            raise failed

    # -- what the device does by itself ----------------------------------------

    def poll(self, timeout: float | None = 0.0) -> int:
        """Make the calls of watch() that are to be made; how many.

        Waits for one, at most `timeout` seconds. For devices that are inline:
        the others' workers do it by themselves.
        """
        if self.device.notify != "inline":
            raise ValueError(
                f"the worker of {self.device!r} makes its calls by itself"
            )
        return self.worker.poll(timeout)

    def advance(self, seconds: float) -> None:
        """Let time pass, and each timer be called at its time in it."""
        every = [self.timers]
        if self.device.notify == "inline":
            every.append(self.worker.timers)
        self._clock.advance(seconds, *every)

    def reload(self) -> None:
        """Run the file of the device's class again: Machine.reload()."""
        from ..reload import reload_at

        reload_at(self.device, self)

    # -- what it can see -------------------------------------------------------

    @property
    def interrupts(self) -> int:
        """How many interrupts the device raised."""
        return self.native.interrupts

    @property
    def features(self) -> int:
        """The features that both sides have."""
        return self.native.driver_features

    @property
    def broken(self) -> bool:
        """Whether the device needs a reset (NEEDS_RESET)."""
        return bool(self.native.status & rings.NEEDS_RESET)

    @property
    def generation(self) -> int:
        """How often the configuration changed."""
        return self.raw.get(rings.CONFIG_GENERATION)

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of the configuration, of one generation (2.5.3)."""
        while True:
            before = self.generation
            data = bytes(
                self.native.read(rings.CONFIG + offset + i, 1)
                for i in range(size)
            )
            if self.generation == before:
                return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to the configuration, in one access of 1, 2, 4 or 8 bytes."""
        value = int.from_bytes(data, "little")
        self.native.write(rings.CONFIG + offset, len(data), value)

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the device's Struct, as the driver reads them."""
        layout = type(self.device).config
        data = self.read_config(0, layout.size)
        return {
            name: field.unpack(data) for name, field in layout.fields.items()
        }

    def __getitem__(self, name: str) -> Requests:
        """A queue whose name is that of a method here."""
        return self._requests[name]

    def __getattr__(self, name: str) -> Requests:
        requests: dict[str, Requests] = self.__dict__.get("_requests", {})
        if name not in requests:
            raise AttributeError(
                f"{type(self.device).__name__} has no queue {name!r} that "
                "was started"
            )
        return requests[name]

    def __repr__(self) -> str:
        return f"<Driver of {self.device!r}, {self._in_flight} in flight>"

    # -- buffers: all are free again when nothing is in flight -----------------

    def _allocate(self, size: int) -> int:
        gpa = self._top
        top = gpa + -(-size // BUFFERS_ALIGN) * BUFFERS_ALIGN
        if top > self.memory.size:
            raise ValueError(
                f"{size} bytes are more than are left: driver(memory=)"
            )
        self._top = top
        return gpa

    def _begun(self) -> None:
        self._in_flight += 1

    def _ended(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._top = self._first

    def _pause(self, deadline: float, what: str) -> None:
        """Wait for an interrupt, a little while."""
        self._raise()
        if self.broken:
            raise RuntimeError(f"the device is broken: {self.native.fault}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{what} has no answer")
        ready, _, _ = select.select([self._irq_fd], [], [], min(left, LOOK))
        if ready:
            os.eventfd_read(self._irq_fd)
            cause = self.raw.get(rings.INTERRUPT_STATUS)
            self.raw.set(rings.INTERRUPT_ACK, cause)


class Requests:
    """The driver's end of one queue."""

    def __init__(self, drv: Driver, index: int, ring: Ring) -> None:
        self.drv = drv
        self.index = index
        self.ring = ring
        self._free = list(range(ring.size - 1, -1, -1))
        self._by_head: dict[int, Request] = {}

    def __call__(
        self,
        *readable: Buffer,
        reply: int | Sequence[int] = 0,
        timeout: float | None = None,
    ) -> bytes:
        """Send a request and wait: the bytes that the device wrote."""
        return self.send(*readable, reply=reply).wait(timeout)

    def send(
        self,
        *readable: Buffer,
        reply: int | Sequence[int] = 0,
        notify: bool = True,
    ) -> Request:
        """Offer a request: a buffer for each part, then room for the reply.

        `reply`: bytes of room, or those of each part. Without `notify` the
        device is not told: call notify() after the last of a batch.
        """
        rooms = (reply,) if isinstance(reply, int) else tuple(reply)
        if isinstance(reply, int) and not reply:
            rooms = ()
        parts: list[tuple[int, int, int]] = []
        memory = self.drv.memory
        count = len(readable) + len(rooms)
        if not count:
            raise ValueError("a request needs a buffer: readable, or reply=")
        if count > len(self._free):
            raise ValueError(
                f"{count} descriptors are needed, {len(self._free)} of "
                f"{self.ring.size} are free"
            )
        for data in readable:
            data = bytes(data)
            gpa = self.drv._allocate(len(data))
            memory.write(gpa, data)
            parts.append((gpa, len(data), 0))
        for room in rooms:
            parts.append((self.drv._allocate(room), room, WRITE))
        indices = [self._free.pop() for _ in parts]
        for index, after, (gpa, size, flags) in zip(
            indices, [*indices[1:], None], parts, strict=True
        ):
            more = 0 if after is None else NEXT
            self.ring.set_desc(index, gpa, size, flags | more, after or 0)
        request = Request(self, indices, parts)
        self._by_head[indices[0]] = request
        self.drv._begun()
        self.ring.offer(indices[0])
        if notify:
            self.notify()
        return request

    def notify(self) -> None:
        """Tell the device that there are requests."""
        self.drv.raw.notify(self.index)

    def collect(self) -> list[Request]:
        """What the device completed since the last look, in its order."""
        found = []
        while (used := self._take()) is not None:
            request = self._by_head.pop(used[0], None)
            if request is None:
                raise RuntimeError(
                    f"the device completed head {used[0]}, which is not in "
                    "flight"
                )
            self._free.extend(reversed(request.indices))
            request.finish(used[1])
            self.drv._ended()
            found.append(request)
        return found

    def _take(self) -> tuple[int, int] | None:
        used = self.ring.take()
        if used is None and self.drv.features & rings.EVENT_IDX:
            # It interrupts at the next one; some may be there already (2.7.7).
            self.ring.set_used_event(self.ring.taken)
            used = self.ring.take()
        return used

    def wait_all(self, timeout: float | None = None) -> None:
        """Wait until nothing is in flight here."""
        for request in list(self._by_head.values()):
            request.wait(timeout)

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        self.collect()
        return len(self._by_head)


class Request:
    """One request: `written` and `reply` are set when it is `done`."""

    __slots__ = ("done", "indices", "parts", "reply", "requests", "written")

    def __init__(
        self,
        requests: Requests,
        indices: list[int],
        parts: list[tuple[int, int, int]],
    ) -> None:
        self.requests = requests
        self.indices = indices
        self.parts = parts
        self.done = False
        self.written = 0
        self.reply = b""

    def finish(self, written: int) -> None:
        """The device says that it wrote so many bytes."""
        memory = self.requests.drv.memory
        left = written
        for gpa, size, flags in self.parts:
            if flags & WRITE:
                self.reply += memory.read(gpa, min(left, size))
                left -= min(left, size)
        if left:
            raise RuntimeError(
                f"the device says it wrote {written} bytes, {left} more than "
                "there was room for"
            )
        self.written = written
        self.done = True

    def wait(self, timeout: float | None = None) -> bytes:
        """The reply, as soon as it is there; TimeoutError if it is not."""
        drv = self.requests.drv
        deadline = time.monotonic() + (
            drv.timeout if timeout is None else timeout
        )
        self.requests.collect()
        while not self.done:
            drv._pause(deadline, f"the request at head {self.indices[0]}")
            self.requests.collect()
        return self.reply

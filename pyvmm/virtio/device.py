# SPDX-License-Identifier: Apache-2.0
"""Device: what users subclass to make a virtio device."""

from __future__ import annotations

from .. import _vmm
from ..native import Native
from .config import Config, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

NOTIFY = ("inline", "thread", "asyncio")
CO_COROUTINE = 0x80  # of a code object: it is that of an `async def`
FEATURES_OK = 0x8  # virtio 1.2, 2.1
DRIVER_OK = 0x4


class Device(Native):
    """A virtio device in Python (virtio 1.2, on the MMIO transport).

        class Hasher(virtio.Device):
            device_id = 63
            queues = {"requests": 256}
            config = virtio.Struct(block="<I")

            def on_requests(self, queue):
                for chain in queue:
                    data = chain.read()
                    chain.write(hashlib.sha256(data).digest())

    A subclass sets

    `device_id`: what kind of device it is (virtio 1.2, 5); 63 is no one's.
    `queues`: names and greatest sizes, powers of two up to 32768, in order.
    `features`: the feature bits of the device itself, 0 to 23 and 50 to 63.
    `config`: a Struct, the fields of the configuration space.
    `notify`: "inline", handlers run on the vCPU's exit while the guest waits;
    "thread", on a thread behind an eventfd while the guest runs on; "asyncio",
    on an event loop, the default when handlers are `async def`.

    and for each queue a handler `on_NAME(queue)`, called when the driver has
    offered chains there; queues that differ by a number at the end, `receive0`
    and `receive1`, may share `on_receive`. It may leave some: the next call
    finds them. The end of a loop's body completes its chain, unless
    `chain.defer()` was called: then `chain.complete()` does, later and from any
    thread. After break and return the chains that the loop did not reach are
    back in the queue.

    ShortChain, raised by a chain with too little room or too few bytes, is the
    guest's fault: the chain is completed empty, counted in `faults`, and the
    handler called again for the others. Any other exception leaves run() with
    a note that names the queue and the chain, which is back in the queue;
    process() tries again.

    Once attached: `machine`, `base` (address), `irq_line`, `queue` (the Queue
    of each name) and `native`, the `_vmm.VirtioMMIO` with the registers. A
    subclass need not call `super().__init__`.

    Handlers that are coroutines may await in the loop's body; the others of
    that queue wait, unless the chain is deferred and a task completes it. Use
    `await m.run_async()`, and they run on that event loop; with run() on one
    of their own, in a thread. When the device goes they are cancelled, and
    their chains are back in the queues.

    Threads: one call of a queue's handler at a time. Inline they run on the
    thread of the vCPU that notified, else all on the device's worker, as do
    calls of watch(). reset(), negotiated(), started() and configured() run on
    the vCPU's thread.
    """

    device_id: ClassVar[int]
    features: int = 0
    queues: ClassVar[Mapping[str, int]] = {}
    config: Any = Struct()
    queue: Mapping[str, _vmm.Queue]
    _told: tuple[_vmm.Queue, ...] = ()

    # -- what a subclass may override ----------------------------------------

    def reset(self) -> None:
        """Called when the driver reset the device; all chains are stale."""

    def negotiated(self, features: int) -> None:
        """Called when the driver has taken its features (FEATURES_OK)."""

    def started(self) -> None:
        """Called when the driver is ready (DRIVER_OK)."""

    def configured(self, offset: int, data: bytes) -> None:
        """Called when the driver wrote to the configuration space.

        Nothing changes by that, unless this method assigns to a field.
        """

    # -- what it can do -------------------------------------------------------

    @property
    def faults(self) -> int:
        """What the guest did wrong: chains too short, rings broken."""
        native = self.native
        broken = native.faults if native and not native.closed else 0
        return broken + sum(queue.faults for queue in self._told)

    def process(self) -> None:
        """Call every handler, as if the driver had notified.

        For chains that were left in a queue, by a handler or its exception.
        """
        self._attached().process()

    # -- how it is made --------------------------------------------------------

    def make(self, memory: _vmm.Memory) -> _vmm.VirtioMMIO:
        """The device itself, on this memory; TypeError when it is none."""
        cls = type(self)
        if not isinstance(getattr(self, "device_id", None), int):
            raise TypeError(f"{cls.__name__} needs `device_id`")
        if self.notify not in NOTIFY:
            raise ValueError(
                f"{cls.__name__}.notify {self.notify!r} is none of "
                f"{', '.join(map(repr, NOTIFY))}"
            )
        handlers = self._handlers()
        if any(map(is_coroutine, handlers)):
            self.notify = "asyncio"
        config = self.config
        native = _vmm.VirtioMMIO(
            memory,
            self.device_id,
            features=self.features,
            queues=list(self.queues.values()),
            config=bytes(config),
            on_notify=self._notified,
        )
        self._listen(native)
        self._told = tuple(
            _vmm.Queue(
                native,
                index,
                f"{cls.__name__}.{name}",
                plain(handler),
            )
            for index, (name, handler) in enumerate(
                zip(self.queues, handlers, strict=True)
            )
        )
        self.queue = dict(zip(self.queues, self._told, strict=True))
        if isinstance(config, Config):
            config._connect(native)
        self.native = native
        return native

    def _handler(self, name: str) -> Any:
        kind = name.rstrip("0123456789")
        return getattr(self, f"on_{name}", None) or getattr(
            self, f"on_{kind}", None
        )

    def _handlers(self) -> list[Any]:
        """The handlers of the queues; TypeError when one is missing."""
        cls = type(self)
        handlers = [self._handler(name) for name in self.queues]
        for name, handler in zip(self.queues, handlers, strict=True):
            if not callable(handler):
                raise TypeError(
                    f"{cls.__name__} needs on_{name}(queue), the handler of "
                    f"its queue {name!r}"
                )
            if is_coroutine(handler) and self.notify == "thread":
                raise ValueError(
                    f"{cls.__name__}.on_{name} is a coroutine function: "
                    "notify 'thread' cannot run it, 'asyncio' does"
                )
        return handlers

    def _listen(self, native: _vmm.VirtioMMIO) -> None:
        """Be told of what the class has a method for."""
        told = any(
            getattr(type(self), name) is not getattr(Device, name)
            for name in ("reset", "negotiated", "started", "configured")
        )
        native.on_event = self._happened if told else None

    def _rebind(self) -> None:
        """The class is another: from now on its methods are called."""
        handlers = self._handlers()
        if self.notify == "inline" and any(map(is_coroutine, handlers)):
            raise ValueError(
                f"{type(self).__name__} has coroutines now: detach it and "
                "attach another"
            )
        for queue, handler in zip(self._told, handlers, strict=True):
            queue.handler = plain(handler)
        if self.native is not None and not self.native.closed:
            self._listen(self.native)

    def _attached(self) -> _vmm.VirtioMMIO:
        if self.native is None:
            raise ValueError(
                f"{type(self).__name__} is not connected: attach it to a "
                "machine first"
            )
        return self.native

    def _notified(self, index: int) -> None:
        """The handler is a coroutine: others are called by the queue."""
        name = list(self.queues)[index]
        if self._services is not None:
            worker: Any = self._services.worker  # a LoopWorker
            # Looked up for each turn: reload() gives it another.
            worker.start(
                self._told[index], lambda queue: self._handler(name)(queue)
            )

    def _happened(self, what: int, first: int, second: int, third: int) -> None:
        if what == _vmm.EVENT_RESET:
            self.reset()
        elif what == _vmm.EVENT_CONFIG:
            self.configured(first, third.to_bytes(second, "little"))
        else:
            new = second & ~first
            if new & FEATURES_OK:
                self.negotiated(self._attached().driver_features)
            if new & DRIVER_OK:
                self.started()

    def __repr__(self) -> str:
        name = type(self).__name__
        if self.native is None:
            return f"<{name} {self.notify}, not attached>"
        place = "" if self.base is None else f" mmio {self.base:#x},"
        return f"<{name} {self.notify},{place} {self.native!r}>"


def is_coroutine(handler: object) -> bool:
    """Whether it is an `async def` (inspect costs a start more than this)."""
    function = getattr(handler, "__func__", handler)
    code = getattr(function, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & CO_COROUTINE)


def plain(handler: Any) -> Any:
    """A handler that the queue itself may call; None for a coroutine's."""
    return None if is_coroutine(handler) else handler

# SPDX-License-Identifier: Apache-2.0
"""faulty(): makes any device misbehave on a schedule, to test its drivers.

    from pyvmm.devices import Rtc, faulty

    with pyvmm.Machine() as m:
        m.attach(faulty(Rtc(), "flip", "ones", every=100))

The device stays what it is, with its place, its lines and its attributes; each
hundredth access now goes wrong. `at=` names those that do by number, from 1
on; `chance=` lets each one with that probability, the same ones for each
`seed=`; `when=` is a function of the number. `device.injected` lists what was
done: number, kind and where.

| kind | a device with registers | a virtio device |
| --- | --- | --- |
| "flip" | a read with one bit wrong | one bit wrong in an answer |
| "ones" | a read of all ones, as if nothing were there | |
| "stale" | a read that gives the last one's value again | |
| "lost" | a write that never arrives | a request that gets no answer |
| "twice" | a write that arrives twice | |
| "silent" | an access during which no interrupt is raised | |
| "empty" | | an answer without a byte |
| "short" | | an answer that says it is half as long |
| "late" | | an answer that comes `delay` seconds later |

Without kinds it is all that there are for the device. A virtio driver that is
right waits no longer than it must, believes no length, and goes on after a
reset, which gives back what was lost:

>>> from pyvmm.devices import Hasher
>>> with virtio.driver(faulty(Hasher(), "empty", at=[2])) as drv:
...     sizes = [len(drv.requests(b"abc", reply=32)) for _ in range(3)]
...     injected = drv.device.injected
>>> sizes, injected
([32, 0, 32], [(2, 'empty', 'requests')])
"""

import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyvmm
from pyvmm import virtio

READS = ("flip", "ones", "stale")
WRITES = ("lost", "twice")
ACCESSES = ("silent",)
REQUESTS = ("flip", "lost", "empty", "short", "late")
REMEMBERED = 10_000  # faults that `injected` keeps

Injected = tuple[int, str, str]


class Schedule:
    """Which of the accesses or requests go wrong, and how.

    Threads: as the device.
    """

    def __init__(
        self,
        kinds: tuple[str, ...],
        when: Callable[[int], object],
        seed: int,
        delay: float,
    ) -> None:
        self.kinds = kinds
        self.when = when
        self.dice = random.Random(seed)
        self.delay = delay
        self.number = 0
        self.injected: list[Injected] = []

    def draw(self, kinds: Collection[str], where: str) -> str | None:
        """What goes wrong with the next one; None: nothing."""
        self.number += 1
        if not self.when(self.number):
            return None
        possible = [kind for kind in self.kinds if kind in kinds]
        if not possible:
            return None
        kind = self.dice.choice(possible)
        if len(self.injected) < REMEMBERED:
            self.injected.append((self.number, kind, where))
        return kind


def faulty(
    device: Any,
    *kinds: str,
    every: int | None = None,
    at: Collection[int] | None = None,
    chance: float | None = None,
    when: Callable[[int], object] | None = None,
    seed: int = 1,
    delay: float = 0.01,
) -> Any:
    """Let a pyvmm.Device or virtio.Device misbehave, and return it.

    One of `every`, `at`, `chance` and `when` says which accesses or requests
    go wrong. Raises TypeError for other devices, ValueError for kinds that the
    device cannot have and schedules that are none.

    Threads: before the device is attached.
    """
    if isinstance(device, virtio.Device):
        known: tuple[str, ...] = REQUESTS
    elif isinstance(device, pyvmm.Device):
        known = (*READS, *WRITES, *ACCESSES)
    else:
        raise TypeError(f"{device!r} is neither pyvmm.Device nor virtio.Device")
    if device.base is not None:
        raise ValueError(f"{device!r} is attached already")
    if wrong := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"{wrong[0]!r} is none of {', '.join(known)}")
    chosen = choose(every, at, chance, when, random.Random(seed))
    device.faults_to_come = Schedule(kinds or known, chosen, seed, delay)
    device.__class__ = twin(device)
    return device


def choose(
    every: int | None,
    at: Collection[int] | None,
    chance: float | None,
    when: Callable[[int], object] | None,
    dice: random.Random,
) -> Callable[[int], object]:
    """The schedule as a function of the number."""
    given = [x for x in (every, at, chance, when) if x is not None]
    if len(given) != 1:
        raise ValueError("one of every=, at=, chance= and when= is due")
    if when is not None:
        return when
    if at is not None:
        numbers = frozenset(at)
        return numbers.__contains__
    if every is not None:
        if every < 1:
            raise ValueError(f"every {every} is not 1 or more")
        return lambda number: number % every == 0
    assert chance is not None
    if not 0 <= chance <= 1:
        raise ValueError(f"chance {chance} is outside 0..1")
    return lambda number: dice.random() < chance


def twin(device: Any) -> type:
    """A class like that of the device, whose devices misbehave."""
    cls: Any = type(device)
    names: dict[str, object] = {"__doc__": cls.__doc__, "size": cls.size}
    if isinstance(device, virtio.Device):
        for queue in device.queues:  # which may be the device's own
            names[f"on_{queue}"] = handler(cls, queue)
        mixin: type = FaultyQueues
    else:
        mixin = FaultyRegisters
    return type(f"Faulty{cls.__name__}", (mixin, cls), names)


# -- registers -----------------------------------------------------------------


class FaultyRegisters:
    """Reads and writes that go wrong, before those of the device's class."""

    faults_to_come: Schedule
    last_read = 0

    @property
    def injected(self) -> list[Injected]:
        """What went wrong: number of the access, kind, register or offset."""
        return self.faults_to_come.injected

    def place(self, offset: int, size: int) -> str:
        """The register of an access, or its offset."""
        device: Any = self
        return device.where(offset, size) or f"{offset:#x}"

    def read(self, offset: int, size: int) -> int:
        device: Any = super()
        where = self.place(offset, size)
        kind = self.faults_to_come.draw((*READS, *ACCESSES), where)
        ones = (1 << 8 * size) - 1
        if kind == "stale":
            return self.last_read & ones
        if kind == "ones":
            return ones
        value: int = self.quietly(kind, lambda: device.read(offset, size))
        if kind == "flip":
            value ^= 1 << self.faults_to_come.dice.randrange(8 * size)
        self.last_read = value
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        device: Any = super()
        where = self.place(offset, size)
        kind = self.faults_to_come.draw((*WRITES, *ACCESSES), where)
        if kind == "lost":
            return
        if kind == "twice":
            device.write(offset, size, value)
        self.quietly(kind, lambda: device.write(offset, size, value))

    def quietly(self, kind: str | None, call: Callable[[], Any]) -> Any:
        """Do it, and if it is to be silent no line goes up meanwhile."""
        if kind != "silent":
            return call()
        cls = type(self)
        lines = {
            name: getattr(self, name)
            for name in dir(cls)
            if isinstance(getattr(cls, name, None), pyvmm.Irq)
        }
        vars(self).update(dict.fromkeys(lines, Silence()))
        try:
            return call()
        finally:
            vars(self).update(lines)


class Silence:
    """An interrupt line that nobody hears."""

    def set(self) -> None:
        """Nothing."""

    clear = pulse = set


# -- queues --------------------------------------------------------------------


class FaultyQueues:
    """Requests that go wrong, around the handlers of the device's class."""

    faults_to_come: Schedule

    @property
    def injected(self) -> list[Injected]:
        """What went wrong: number of the request, kind, queue."""
        return self.faults_to_come.injected

    def reset(self) -> None:
        """What was lost is the driver's again."""
        vars(self).pop("lost", None)
        device: Any = super()
        device.reset()

    def lose(self, chain: virtio.Chain) -> None:
        """This one is not completed before a reset."""
        chain.defer()
        vars(self).setdefault("lost", []).append(chain)


def handler(cls: Any, name: str) -> Callable[[Any, virtio.Queue], object]:
    """on_NAME of a class, which is given a queue whose requests go wrong."""

    handle = getattr(cls, f"on_{name}", None)
    if handle is None:  # several queues share it
        handle = getattr(cls, f"on_{name.rstrip('0123456789')}")

    def on_queue(self: Any, queue: virtio.Queue) -> object:
        return handle(self, FaultyQueue(self, queue, name))

    return on_queue


class FaultyQueue:
    """A queue as a handler sees it."""

    def __init__(self, device: Any, queue: virtio.Queue, name: str) -> None:
        self._device = device
        self._queue = queue
        self._where = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def __iter__(self) -> Iterator[virtio.Chain]:
        return Turns(self._device, self._queue, self._where)

    def batches(self) -> Iterator[list[virtio.Chain]]:
        """Requests one by one, since each may go wrong."""
        return Batches(Turns(self._device, self._queue, self._where))


class Turns(Iterator[virtio.Chain]):
    """`for chain in queue`, and what goes wrong between two turns.

    No generator: the queue's own loop must see how the handler's ends, be it
    by break or by an exception, and it does when it goes together with this.
    """

    def __init__(self, device: Any, queue: virtio.Queue, where: str) -> None:
        self._device = device
        self._loop = iter(queue)
        self._where = where
        self._now: tuple[str, virtio.Chain] | None = None

    def __next__(self) -> virtio.Chain:
        if self._now is not None:
            (kind, chain), self._now = self._now, None
            self._spoil(kind, chain)
        for chain in self._loop:
            kind = self._device.faults_to_come.draw(REQUESTS, self._where)
            if kind == "lost":
                self._device.lose(chain)
            elif kind != "empty":
                if kind is not None:
                    self._now = kind, chain
                return chain
        raise StopIteration

    def _spoil(self, kind: str, chain: virtio.Chain) -> None:
        """The handler is done with it."""
        schedule: Schedule = self._device.faults_to_come
        if not chain.alive:
            return  # completed already, or taken back
        if kind == "short":
            chain.written //= 2
        elif kind == "late":
            chain.defer()
            self._device.after(schedule.delay, chain.complete)
        elif chain.written:
            bit = schedule.dice.randrange(8 * chain.written)
            at, left = bit // 8, chain.writable
            for part in left:
                if at < len(part):
                    part[at] ^= 1 << bit % 8
                    break
                at -= len(part)


class Batches(Iterator[list[virtio.Chain]]):
    """The same for queue.batches()."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __next__(self) -> list[virtio.Chain]:
        return [next(self._turns)]

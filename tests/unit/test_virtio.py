# SPDX-License-Identifier: Apache-2.0
"""VirtioMMIO: the registers, devices in Python, doorbells, hostile drivers."""

import contextlib
import errno
import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
import vring
from vring import (
    ACKNOWLEDGE,
    BUFFERS,
    CONFIG,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FAILED,
    FEATURES_OK,
    INDIRECT_DESC,
    NEEDS_RESET,
    RAM,
    RINGS,
    STATUS,
    VERSION_1,
    WRITE,
    Driver,
)

from pyvmm._vmm import (
    ELF,
    VIRTIO_MMIO_SIZE,
    Console,
    ExitPort,
    Rng,
    VirtioMMIO,
    VirtQueue,
)

LIVE = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


class Echo:
    """Answers with what it was sent, in capitals."""

    def __init__(self, **settings: object) -> None:
        self.calls: list[int] = []
        self.device = VirtioMMIO(
            vring.make_memory(),
            63,
            on_notify=self.notified,
            **settings,  # type: ignore[arg-type]
        )

    def notified(self, queue: int) -> None:
        self.calls.append(queue)
        while chain := self.device.pop(queue):
            data = chain.read().upper()
            assert self.device.push(queue, chain, chain.write(data))
        self.device.interrupt(queue)


def test_identity() -> None:
    device = VirtioMMIO(vring.make_memory(), 63, features=1 << 5 | 1 << 50)
    driver = Driver(device)
    assert driver.get(vring.MAGIC).to_bytes(4, "little") == b"virt"
    assert driver.get(vring.VERSION) == 2
    assert driver.get(vring.DEVICE_ID) == device.device_id == 63
    assert driver.get(vring.VENDOR_ID).to_bytes(4, "big") == b"mvyp"
    offered = VERSION_1 | EVENT_IDX | INDIRECT_DESC | 1 << 5 | 1 << 50
    assert driver.offered() == device.features == offered
    assert driver.get(vring.QUEUE_NUM_MAX) == 256
    assert VIRTIO_MMIO_SIZE == 0x200


@pytest.mark.parametrize("features", [0, EVENT_IDX, INDIRECT_DESC])
def test_round(features: int) -> None:
    echo = Echo()
    driver = Driver(echo.device).boot(VERSION_1 | features)
    assert echo.device.status == LIVE
    assert echo.device.driver_features == VERSION_1 | features
    for i in range(20):
        driver.request(b"abc", 5)
        assert driver.answer(b"abc") == b"ABC"
        assert len(echo.calls) == echo.device.notifications == i + 1
    assert echo.device.odd == echo.device.faults == 0


def test_interrupts() -> None:
    echo = Echo()
    fd = vring.eventfd()
    try:
        echo.device.irq_fd = fd
        assert echo.device.irq_fd == fd
        driver = Driver(echo.device).boot()
        driver.request(b"a", 1)
        assert vring.rung(fd) == echo.device.interrupts == 1
        assert driver.get(vring.INTERRUPT_STATUS) == 1
        driver.set(vring.INTERRUPT_ACK, 1)
        assert driver.get(vring.INTERRUPT_STATUS) == 0
        driver.ring[0].mute()
        driver.request(b"a", 1)
        assert vring.rung(fd) == 0
        echo.device.irq_fd = -1
        driver.ring[0].mute(False)
        driver.request(b"a", 1)
        assert vring.rung(fd) == 0 and echo.device.interrupts == 2
    finally:
        os.close(fd)


def test_event_idx_asks_for_the_next_chain() -> None:
    echo = Echo()
    driver = Driver(echo.device).boot(VERSION_1 | EVENT_IDX)
    for i in range(1, 4):
        driver.request(b"a", 1)
        assert driver.ring[0].avail_event == i


def test_several_queues() -> None:
    echo = Echo(queues=(8, 4, 2))
    driver = Driver(echo.device).boot(sizes=(8, 4, 2))
    driver.request(b"a", 1, queue=2)
    driver.request(b"a", 1, queue=1)
    assert echo.calls == [2, 1]
    driver.notify(3)
    driver.notify(2**32 - 1)
    assert echo.calls == [2, 1] and echo.device.notifications == 4
    echo.device.process()
    assert echo.calls == [2, 1, 0, 1, 2]


def test_notified_before_driver_ok() -> None:
    echo = Echo()
    driver = Driver(echo.device).boot()
    driver.set(STATUS, 0)
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    driver.accept(VERSION_1)
    driver.set(STATUS, LIVE & ~DRIVER_OK)
    driver.ring[0].clear()
    driver.set_queue(0, driver.ring[0])
    driver.request(b"early", 5)
    assert echo.calls == []
    driver.set(STATUS, LIVE)
    assert echo.calls == [0] and driver.answer(b"early") == b"EARLY"


def test_answered_later() -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    driver = Driver(device).boot()
    driver.request(b"a", 4)
    driver.request(b"b", 4, head=2)
    first, second = device.pop(0), device.pop(0)
    assert first and second and device.pop(0) is None
    device.push(0, second, 2)
    device.push(0, first)
    device.interrupt(0)
    assert driver.ring[0].take() == (2, 2)
    assert driver.ring[0].take() == (0, 0)
    assert device.interrupts == 1


def test_exception_leaves_write() -> None:
    calls = []

    def fails(queue: int) -> None:
        calls.append(queue)
        if len(calls) == 1:
            raise KeyError("by the author")

    device = VirtioMMIO(vring.make_memory(), 63, queues=(8, 8), on_notify=fails)
    driver = Driver(device).boot(sizes=(8, 8))
    with pytest.raises(KeyError, match="by the author"):
        device.process()
    assert calls == [0] and device.fault is None
    driver.notify(0)
    assert calls == [0, 0, 1]  # queue 1 waited for its turn


def test_on_notify_is_replaced() -> None:
    echo = Echo()
    driver = Driver(echo.device).boot()
    assert echo.device.on_notify == echo.notified
    echo.device.on_notify = None
    driver.request(b"a", 1)
    assert echo.calls == [] and echo.device.on_notify is None
    with pytest.raises(TypeError, match="must be callable, not int"):
        echo.device.on_notify = 5  # type: ignore[assignment]
    echo.device.on_notify = echo.notified
    echo.device.process()
    assert driver.answer(b"a") == b"A"
    del echo.device.on_notify
    assert echo.device.on_notify is None


def test_reset_takes_chains_back() -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    driver = Driver(device).boot()
    driver.request(b"a", 4)
    chain = device.pop(0)
    assert chain is not None and chain.alive
    driver.boot()
    assert not chain.alive
    with pytest.raises(ValueError, match="taken back by a reset"):
        chain.read()
    assert device.push(0, chain, 1) is False
    assert driver.ring[0].take() is None and device.fault is None


def test_chains_of_other_queues() -> None:
    device = VirtioMMIO(vring.make_memory(), 63, queues=[8, 8])
    driver = Driver(device).boot(sizes=(8, 8))
    driver.request(b"a", 4)
    chain = device.pop(0)
    assert chain is not None
    with pytest.raises(ValueError, match="of another queue"):
        device.push(1, chain)
    for use in (device.pop, device.interrupt):
        with pytest.raises(ValueError, match=r"queue 2 is outside 0\.\.0x1"):
            use(2)
    with pytest.raises(ValueError, match=r"written 5 is outside 0\.\.4"):
        device.push(0, chain, 5)
    with pytest.raises(TypeError):
        device.push(0)  # type: ignore[call-arg]
    assert device.push(0, chain, 4)
    with pytest.raises(ValueError, match="pushed already"):
        device.push(0, chain, 4)


def test_config() -> None:
    device = VirtioMMIO(vring.make_memory(), 63, config=b"\x01\x02\x03\x04\x05")
    driver = Driver(device).boot()
    assert device.read(CONFIG, 4) == 0x04030201
    assert device.read(CONFIG + 3, 4) == 0x0504
    assert device.read(CONFIG, 8) == 0x0504030201
    device.write(CONFIG, 4, 0xFFFFFFFF)
    assert device.read(CONFIG, 1) == 1
    before = driver.get(vring.CONFIG_GENERATION)
    device.set_config(1, b"\xaa\xbb")
    assert device.read(CONFIG, 4) == 0x04BBAA01
    assert driver.get(vring.CONFIG_GENERATION) != before
    assert driver.get(vring.INTERRUPT_STATUS) == 2
    for offset, data in ((4, b"ab"), (6, b""), (0, bytes(300))):
        with pytest.raises(ValueError, match="outside the configuration"):
            device.set_config(offset, data)
    with pytest.raises(ValueError, match="config of 257 bytes"):
        VirtioMMIO(vring.make_memory(), 63, config=bytes(257))


# -- hostile drivers ----------------------------------------------------------


def test_broken_queue_needs_a_reset() -> None:
    echo = Echo()
    fd = vring.eventfd()
    try:
        echo.device.irq_fd = fd
        driver = Driver(echo.device).boot()
        driver.ring[0].set_desc(0, RAM, 4, WRITE)
        driver.ring[0].offer(0)
        driver.notify()
        assert echo.device.status == LIVE | NEEDS_RESET
        assert echo.device.fault is not None
        assert "outside RAM" in echo.device.fault
        assert "broken: " in repr(echo.device)
        assert vring.rung(fd) == 1 and driver.get(vring.INTERRUPT_STATUS) == 2
        driver.notify()
        assert echo.device.faults == 1 and len(echo.calls) == 1
        driver.boot()
        assert echo.device.fault is None and echo.device.faults == 1
        driver.request(b"again", 5)
        assert driver.answer(b"again") == b"AGAIN"
    finally:
        os.close(fd)


def test_push_into_a_broken_device() -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    driver = Driver(device).boot()
    driver.request(b"a", 4)
    chain = device.pop(0)
    assert chain is not None
    driver.ring[0].offer(99)
    assert device.pop(0) is None and device.fault is not None
    assert device.push(0, chain, 1) is False
    assert driver.ring[0].take() is None


@pytest.mark.parametrize("gpa", [RAM, RAM - 16, 2**63, 2**64 - 16])
def test_rings_outside_ram(gpa: int) -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    driver = Driver(device)
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    ring = vring.Ring(device.memory, RINGS, 8)
    ring.desc = gpa
    driver.set_queue(0, ring)
    assert device.status & NEEDS_RESET and device.faults == 1
    assert driver.get(vring.QUEUE_READY) == 0
    driver.notify()


def test_features_must_be_sound() -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    driver = Driver(device)
    for features in (0, EVENT_IDX, VERSION_1 | 1 << 34, VERSION_1 | 1):
        driver.set(STATUS, 0)
        driver.accept(features)
        driver.set(STATUS, LIVE)
        assert device.status == ACKNOWLEDGE | DRIVER


def test_failed_driver_is_left_alone() -> None:
    echo = Echo()
    driver = Driver(echo.device).boot()
    driver.set(STATUS, LIVE | FAILED)
    driver.request(b"a", 1)
    assert echo.calls == [] and echo.device.pop(0) is None


def test_garbage_in_every_register() -> None:
    echo = Echo(queues=(8, 4), config=b"abc")
    for offset in range(VIRTIO_MMIO_SIZE):
        for size in range(1, 9):
            if offset + size > VIRTIO_MMIO_SIZE:
                continue
            for value in (0, 1, 0x0F, 0xFF, 256**size - 1):
                echo.device.write(offset, size, value & (256**size - 1))
                echo.device.read(offset, size)
    assert echo.device.odd > 1000
    driver = Driver(echo.device).boot(sizes=(8, 4))
    driver.request(b"alive", 5)
    assert driver.answer(b"alive") == b"ALIVE"


def test_queue_registers_keep_still_while_ready() -> None:
    echo = Echo()
    driver = Driver(echo.device).boot()
    driver.set64(vring.QUEUE_DESC, 2**64 - 16)
    driver.set(vring.QUEUE_NUM, 0)
    driver.request(b"a", 1)
    assert driver.answer(b"a") == b"A"


def test_rings_that_change_under_the_device() -> None:
    """A thread writes garbage into the rings while the device reads them."""
    echo = Echo()
    driver = Driver(echo.device).boot()
    memory, ring = echo.device.memory, driver.ring[0]
    stop = threading.Event()

    def spoil() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            memory.write(ring.desc + i * 7 % 128, bytes([i & 255] * 3))
            memory.write_u16(ring.avail + 2, i & 0xFFFF)

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for _ in range(300):
            driver.notify()
            if echo.device.fault:
                driver.boot()
    finally:
        stop.set()
        thread.join()
    driver.boot()
    driver.request(b"alive", 5)
    assert driver.answer(b"alive") == b"ALIVE"


# -- arguments and life -------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"device_id": 0}, "device_id 0"),
        ({"device_id": -1}, "device_id -1 is outside"),
        ({"device_id": 2**32}, "device_id 4294967296 is outside"),
        ({"features": 1 << 28}, "features 0x10000000: bits 24 to 49"),
        ({"features": 1 << 64}, "features 18446744073709551616 is outside"),
        ({"queues": [0]}, "queue size 0 is no power of two"),
        ({"queues": [8, 3]}, "queue size 3 is no power of two"),
        ({"queues": [65536]}, "queue size 65536 is outside"),
        ({"queues": [8] * 65}, "65 queues are more than 64"),
    ],
)
def test_constructor_values(settings: dict[str, object], word: str) -> None:
    memory = vring.make_memory()
    with pytest.raises(ValueError, match=word):
        VirtioMMIO(memory, **{"device_id": 63, **settings})  # type: ignore
    memory.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": b""},
        {"device_id": "63"},
        {"queues": 8},
        {"queues": ["8"]},
        {"config": "text"},
        {"on_notify": 5},
        {"oops": 5},
    ],
)
def test_constructor_types(settings: dict[str, object]) -> None:
    known = {"memory": vring.make_memory(), "device_id": 63}
    with pytest.raises(TypeError):
        VirtioMMIO(**{**known, **settings})  # type: ignore[arg-type]


def test_no_queues_and_most_queues() -> None:
    device = VirtioMMIO(vring.make_memory(), 63, queues=())
    Driver(device).boot(sizes=())
    assert device.status == LIVE
    with pytest.raises(ValueError, match="the device has no queues"):
        device.pop(0)
    echo = Echo(queues=[2] * 64)
    driver = Driver(echo.device).boot(sizes=[2] * 64)
    driver.request(b"last", 4, queue=63)
    assert driver.answer(b"last", queue=63) == b"LAST"


@pytest.mark.parametrize(
    ("offset", "size", "word"),
    [
        (0x200, 4, "offset 512 is outside"),
        (-1, 4, "offset -1 is outside"),
        (0x1FF, 2, r"offset 511 \+ 2 is outside the 512 bytes"),
        (0, 0, r"offset 0 \+ 0"),
        (0, 9, "size 9 is outside"),
    ],
)
def test_accesses_outside(offset: int, size: int, word: str) -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    with pytest.raises(ValueError, match=word):
        device.read(offset, size)
    with pytest.raises(ValueError, match=word):
        device.write(offset, size, 0)
    with pytest.raises(ValueError, match=r"value 256 is outside 0\.\.0xff"):
        device.write(0, 1, 256)


def test_fds() -> None:
    device = VirtioMMIO(vring.make_memory(), 63)
    assert device.irq_fd == device.doorbell_fd == -1
    for value in (-2, 1 << 40):
        with pytest.raises((ValueError, OverflowError)):
            device.irq_fd = value
    with pytest.raises(TypeError):
        device.doorbell_fd = "3"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        del device.irq_fd


def test_close() -> None:
    echo = Echo()
    device, memory = echo.device, echo.device.memory
    driver = Driver(device).boot()
    driver.request(b"a", 4)
    driver.ring[0].offer(0)
    chain = device.pop(0)
    assert chain is not None and device.due_ns == 0 and not device.closed
    device.close()
    device.close()
    assert device.closed and repr(device) == "<VirtioMMIO closed>"
    assert not chain.alive
    with pytest.raises(ValueError, match="taken back"):
        chain.write(b"x")
    for use in (
        lambda: device.read(0, 4),
        lambda: device.write(0, 4, 0),
        lambda: device.set_config(0, b""),
        lambda: device.pop(0),
        lambda: device.push(0, chain),
        lambda: device.interrupt(0),
        lambda: device.process(),
        lambda: device.serve(0),
        lambda: setattr(device, "irq_fd", 3),
        lambda: setattr(device, "on_notify", None),
        lambda: device.memory,
        lambda: device.status,
        lambda: device.fault,
        lambda: device.irq_fd,
        lambda: device.on_notify,
    ):
        with pytest.raises(ValueError, match="operation on closed VirtioMMIO"):
            use()
    memory.close()


def test_subclass_and_cycles_are_collected() -> None:
    class Mine(VirtioMMIO):
        pass

    device = Mine(vring.make_memory(), 63)
    assert repr(device).startswith("<Mine device 63, 1 queues, status 0")
    driver = Driver(device).boot()
    driver.request(b"a", 1)
    device.chain = device.pop(0)  # type: ignore[attr-defined]
    device.on_notify = device.pop
    gone = weakref.ref(device)
    del device, driver
    gc.collect()
    assert gone() is None


# -- behind a doorbell --------------------------------------------------------


@pytest.fixture
def stop_fd() -> Iterator[int]:
    fd = vring.eventfd()
    yield fd
    os.close(fd)


def test_serve(stop_fd: int) -> None:
    echo = Echo(queues=(8, 8))
    bell, irq = vring.eventfd(), os.eventfd(0)
    try:
        echo.device.doorbell_fd, echo.device.irq_fd = bell, irq
        driver = Driver(echo.device).boot(sizes=(8, 8))
        driver.request(b"waits", 5)
        assert echo.calls == []
        thread = threading.Thread(target=echo.device.serve, args=(stop_fd,))
        thread.start()
        for i in range(50):
            os.eventfd_read(irq)  # blocks until the device interrupts
            assert driver.answer(b"waits") == b"WAITS"
            if i < 49:
                driver.request(b"waits", 5)
        os.eventfd_write(stop_fd, 1)
        thread.join(60)
        assert not thread.is_alive()
        assert set(echo.calls) == {0, 1} and echo.device.fault is None
    finally:
        os.close(bell)
        os.close(irq)


def test_serve_does_not_spin_on_chains_left_there(stop_fd: int) -> None:
    """A receiving queue is full of buffers that wait for something to come."""
    calls = []

    def leaves(queue: int) -> None:
        calls.append(queue)
        if len(calls) == 1:
            os.eventfd_write(bell, 1)
        else:
            os.eventfd_write(stop_fd, 1)

    bell = vring.eventfd()
    try:
        device = VirtioMMIO(vring.make_memory(), 63, on_notify=leaves)
        device.doorbell_fd = bell
        driver = Driver(device).boot()
        driver.request(b"", 100)
        device.serve(stop_fd)
        assert len(calls) == 2
    finally:
        os.close(bell)


def test_serve_raises(stop_fd: int) -> None:
    echo = Echo()
    with pytest.raises(OSError, match="poll") as info:
        echo.device.serve(stop_fd)
    assert info.value.errno == errno.EBADF
    with pytest.raises(TypeError):
        echo.device.serve("0")  # type: ignore[arg-type]
    bell = vring.eventfd()
    try:
        echo.device.doorbell_fd = bell
        driver = Driver(echo.device).boot()
        driver.request(b"a", 1)

        def fails(queue: int) -> None:
            raise KeyError(queue)

        echo.device.on_notify = fails
        with pytest.raises(KeyError):
            echo.device.serve(stop_fd)

        def closes(queue: int) -> None:
            echo.device.close()

        echo.device.on_notify = closes
        os.eventfd_write(bell, 1)
        with pytest.raises(ValueError, match="operation on closed"):
            echo.device.serve(stop_fd)
    finally:
        os.close(bell)


def test_threads_share_a_device() -> None:
    """Several vCPUs at once: nothing is lost and nobody waits for ever."""
    echo = Echo()
    driver = Driver(echo.device).boot()
    driver.memory.write(BUFFERS, b"abcd")
    driver.ring[0].set_chain([(BUFFERS, 4, 0), (BUFFERS + 4, 4, WRITE)])

    def spin() -> None:
        for _ in range(300):
            driver.notify()
            driver.get(STATUS)
            assert echo.device.fault is None

    threads = [threading.Thread(target=spin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        driver.ring[0].offer(0)
        driver.notify()
        while driver.ring[0].take() is None:
            pass
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# -- leaks --------------------------------------------------------------------


def test_nothing_leaks() -> None:
    """10 000 of each type, used and refused, leave the process as it was."""

    def resident() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    memory = vring.make_memory()
    echo = Echo()
    driver = Driver(echo.device).boot()

    def once() -> None:
        device = VirtioMMIO(memory, 63, config=b"abc", on_notify=print)
        device.write(STATUS, 4, ACKNOWLEDGE)
        device.close()
        rng = Rng(memory, source=bytes)
        rng.read(0, 4)
        queue = VirtQueue(memory)
        queue.start()
        queue.pop()
        console = Console()
        console.on_output = print
        console.print(b"text")
        ExitPort()
        for refused in (
            lambda: VirtioMMIO(memory, 0),
            lambda: VirtioMMIO(memory, 63, on_notify=5),  # type: ignore
            lambda: VirtioMMIO(memory, 63, queues=[8, 7]),
            lambda: Rng(memory, queue_size=3),
            lambda: VirtQueue(memory, 3),
            lambda: Console(limit=0),
            lambda: ELF(b"\x7fELF"),
        ):
            with contextlib.suppress(TypeError, ValueError):
                refused()
        driver.request(b"abc", 3)
        chain = echo.device.pop(0)
        assert chain is None and driver.answer(b"abc") == b"ABC"
        driver.ring[0].offer(0)
        chain = echo.device.pop(0)
        assert chain is not None
        assert chain.readable and chain.writable and repr(chain)
        echo.device.push(0, chain)
        driver.ring[0].take()
        echo.calls.clear()

    for _ in range(1000):
        once()
    gc.collect()
    before, blocks = resident(), sys.getallocatedblocks()
    for _ in range(10000):
        once()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 500
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        assert resident() - before < 1 << 20

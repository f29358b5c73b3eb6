# SPDX-License-Identifier: Apache-2.0
"""Rng: bytes from the kernel and from Python, limits, doorbells."""

import gc
import hashlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import vring
from vring import BUFFERS, STATUS, WRITE, Driver

from pyvmm._vmm import Rng, VirtioMMIO


def make(**settings: object) -> tuple[Rng, Driver]:
    rng = Rng(vring.make_memory(), **settings)  # type: ignore[arg-type]
    return rng, Driver(rng).boot()


def shake(seed: bytes) -> Callable[[int], bytes]:
    """A source without end: the same for the same seed."""
    stream = hashlib.shake_256(seed).digest(1 << 20)
    at = 0

    def source(n: int) -> bytes:
        nonlocal at
        at += n
        return stream[at - n : at]

    return source


def stream_of(seed: bytes, size: int) -> bytes:
    return hashlib.shake_256(seed).digest(size)


def test_identity() -> None:
    rng, driver = make(queue_size=64)
    assert isinstance(rng, VirtioMMIO)
    assert rng.device_id == driver.get(vring.DEVICE_ID) == 4
    driver.set(vring.QUEUE_SEL, 0)
    assert driver.get(vring.QUEUE_NUM_MAX) == 64
    assert repr(rng) == "<Rng device 4, 1 queues, status 0xf>"


@pytest.mark.parametrize("size", [1, 4, 4096, 4097, 1 << 18])
def test_getrandom(size: int) -> None:
    rng, driver = make()
    driver.request(room=size)
    first = driver.answer()
    driver.request(room=size)
    second = driver.answer()
    assert first and second and len(first) == len(second) == size
    assert size == 1 or first != second
    assert (rng.bytes, rng.requests, rng.interrupts) == (2 * size, 2, 2)


def test_a_request_of_gigabytes_lets_signals_through() -> None:
    """8 descriptors of 512 MiB, all over the same RAM, and a Ctrl-C."""
    rng = Rng(vring.make_memory(512 << 20), queue_size=8)
    driver = Driver(rng).boot()
    huge = (256 << 20, 256 << 20, WRITE)
    driver.ring[0].set_chain([huge] * 8)
    driver.ring[0].offer(0)

    def stop(number: int, frame: object) -> None:
        raise InterruptedError

    old = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(
        0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1)
    )
    try:
        timer.start()
        with pytest.raises(InterruptedError):
            driver.notify()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, old)
    assert rng.requests == 0 and 0 < rng.bytes < 2 << 30
    assert 0 < rng.due_ns < time.monotonic_ns()
    driver.set(STATUS, 0)
    assert rng.due_ns == 0


def test_source() -> None:
    rng, driver = make(source=shake(b"seed"))
    got = b""
    for size in (1, 16, 4095, 5000, 100):
        driver.request(room=size)
        answer = driver.answer()
        assert answer is not None and len(answer) == size
        got += answer
    assert got == stream_of(b"seed", len(got))
    assert rng.bytes == len(got) and rng.requests == 5


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_source_of_few_bytes(kind: Callable[[bytes], object]) -> None:
    asked = []

    def source(n: int) -> object:
        asked.append(n)
        return kind(b"abc")

    _rng, driver = make(source=source)
    driver.request(room=8)
    assert driver.answer() == b"abcabcab" and set(asked) == {4096}
    driver.request(room=2)
    assert driver.answer() == b"ca" and len(asked) == 4


def test_source_is_a_file() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"0123456789")
        _rng, driver = make(source=lambda n: os.read(read, n))
        driver.request(room=10)
        assert driver.answer() == b"0123456789"
    finally:
        os.close(read)
        os.close(write)


def test_source_ends() -> None:
    left = [b"abcd", b""]
    rng, driver = make(source=lambda n: left.pop(0))
    driver.request(room=6)
    assert driver.answer() == b"abcd" and rng.fault is None
    driver.request(room=6)
    assert driver.answer() is None
    assert rng.fault is not None and "ended" in rng.fault
    driver.boot()
    driver.request(room=6)
    assert driver.answer() is None and rng.faults == 2


@pytest.mark.parametrize(
    ("result", "error", "word"),
    [
        (bytes(4097), ValueError, "returned 4097 bytes, asked for up to 4096"),
        ("text", TypeError, r"must return bytes, not str \('text'\)"),
        (None, TypeError, r"must return bytes, not NoneType \(None\)"),
        (7, TypeError, r"must return bytes, not int \(7\)"),
    ],
    ids=["long", "str", "None", "int"],
)
def test_bad_source(result: object, error: type[Exception], word: str) -> None:
    answers = [result, b"good"]
    rng, driver = make(source=lambda n: answers.pop(0))
    with pytest.raises(error, match=word):
        driver.request(room=4)
    assert driver.answer() is None and rng.fault is None
    rng.process()
    assert driver.answer() == b"good"


def test_source_raises() -> None:
    fails = True

    def source(n: int) -> bytes:
        if fails:
            raise KeyError("by the author")
        return b"x" * n

    rng, driver = make(source=source)
    with pytest.raises(KeyError, match="by the author"):
        driver.request(room=4)
    assert rng.fault is None
    fails = False
    driver.notify()
    assert driver.answer() == b"xxxx"


def test_source_closes_the_device() -> None:
    def source(n: int) -> bytes:
        rng.close()
        return b"x" * n

    rng, driver = make(source=source)
    driver.request(room=4)
    assert rng.closed and driver.answer() is None
    with pytest.raises(ValueError, match="operation on closed Rng"):
        _ = rng.bytes
    assert repr(rng) == "<Rng closed>"


def test_source_calls_the_device() -> None:
    def source(n: int) -> bytes:
        rng.process()
        return b"x" * n

    rng, driver = make(source=source)
    driver.request(room=9000)
    assert driver.answer() == b"x" * 9000


def test_source_resets_the_device() -> None:
    """As another vCPU would, in the middle of a request."""

    def source(n: int) -> bytes:
        driver.set(STATUS, 0)
        return b"x" * n

    rng, driver = make(source=source)
    driver.request(room=4)
    assert driver.answer() is None and rng.requests == 0
    assert driver.boot() and rng.fault is None
    driver.request(room=4)
    assert driver.answer() == b"xxxx"


def test_two_threads_one_source() -> None:
    """Bytes are neither lost nor swapped when two vCPUs ask at once."""
    inside = threading.Lock()
    plain = shake(b"two")

    def source(n: int) -> bytes:
        assert inside.acquire(blocking=False), "two calls at a time"
        time.sleep(0)  # give the other thread its chance
        data = plain(min(n, 100))
        inside.release()
        return data

    _rng, driver = make(source=source)
    got = b""
    notifiers = [
        threading.Thread(target=lambda: [driver.notify() for _ in range(500)])
        for _ in range(3)
    ]
    for thread in notifiers:
        thread.start()
    for _ in range(100):
        driver.request(room=77)
        while (answer := driver.answer()) is None:
            time.sleep(0)
        got += answer
    for thread in notifiers:
        thread.join(60)
    assert got == stream_of(b"two", 7700)


def test_rate() -> None:
    rng, driver = make(rate=100, burst=16)
    before = time.monotonic_ns()
    driver.request(room=16)
    answer = driver.answer()
    assert answer is not None and len(answer) == 16 and rng.due_ns == 0
    driver.request(room=16)
    assert driver.answer() is None
    assert before < rng.due_ns < time.monotonic_ns() + 200_000_000
    rng.process()
    driver.set(STATUS, 0)
    assert rng.due_ns == 0


def test_rate_behind_a_doorbell() -> None:
    """serve() waits for the due time by itself."""
    rng = Rng(vring.make_memory(), source=shake(b"rate"), rate=10000, burst=100)
    bell, irq, stop = vring.eventfd(), os.eventfd(0), vring.eventfd()
    try:
        rng.doorbell_fd, rng.irq_fd = bell, irq
        driver = Driver(rng).boot()
        thread = threading.Thread(target=rng.serve, args=(stop,))
        thread.start()
        driver.request(room=300)
        os.eventfd_read(irq)
        assert driver.answer() == stream_of(b"rate", 300)
        os.eventfd_write(stop, 1)
        thread.join(60)
        assert not thread.is_alive()
    finally:
        for fd in (bell, irq, stop):
            os.close(fd)


def test_hostile_driver() -> None:
    rng, driver = make()
    driver.ring[0].set_chain([(BUFFERS, 4, 0), (vring.RAM, 4, WRITE)])
    driver.ring[0].offer(0)
    driver.notify()
    assert rng.faults == 1 and rng.fault is not None
    driver.boot()
    driver.request(data=b"ignored", room=4)
    answer = driver.answer(b"ignored")
    assert answer is not None and len(answer) == 4
    driver.request(data=b"no room")
    assert driver.answer() == b""


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"queue_size": 0}, "queue_size 0 is no power of two"),
        ({"queue_size": 12}, "queue_size 12 is no power of two"),
        ({"queue_size": 65536}, "queue_size 65536 is outside"),
        ({"rate": 2**32 + 1}, r"rate 4294967297 is outside 0\.\.0x100000000"),
        ({"rate": -1}, "rate -1 is outside"),
        ({"burst": 2**64}, "burst 18446744073709551616 is outside"),
    ],
)
def test_constructor_values(settings: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Rng(vring.make_memory(), **settings)


def test_constructor_types() -> None:
    with pytest.raises(TypeError, match="source must be callable, not bytes"):
        Rng(vring.make_memory(), source=b"seed")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a Memory"):
        Rng(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Rng(vring.make_memory(), 256)  # type: ignore[misc]
    memory = vring.make_memory()
    memory.close()
    with pytest.raises(ValueError, match="operation on closed Memory"):
        Rng(memory)
    with pytest.raises(TypeError, match="is not safe"):
        VirtioMMIO.__new__(Rng, vring.make_memory(), 4)


def test_works_for_itself() -> None:
    rng, _ = make()
    assert rng.on_notify is None
    with pytest.raises(AttributeError, match="by itself"):
        rng.on_notify = print


def test_cycle_is_collected() -> None:
    class Source:
        def __call__(self, n: int) -> bytes:
            return b"x"

    source = Source()
    source.rng = Rng(vring.make_memory(), source=source)  # type: ignore
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None


def test_close_in_the_middle_of_a_request() -> None:
    rng, driver = make(rate=1, burst=1, source=lambda n: b"x" * n)
    memory = rng.memory
    driver.request(room=100)
    assert rng.due_ns and driver.ring[0].take() is None
    rng.close()
    memory.close()

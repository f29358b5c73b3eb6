# SPDX-License-Identifier: Apache-2.0
"""VirtQueue and Chain, driven by rings that the test writes."""

import gc

import pytest
import vring
from vring import BUFFERS, INDIRECT, NEXT, RAM, RINGS, WRITE, Ring

from pyvmm._vmm import Chain, Memory, ShortChain, VirtQueue


def start(size: int = 8, **features: bool) -> tuple[VirtQueue, Ring]:
    memory = vring.make_memory()
    ring = Ring(memory, RINGS, size)
    queue = VirtQueue(memory, size)
    for name, value in features.items():
        setattr(queue, name, value)
    queue.desc, queue.avail, queue.used = ring.desc, ring.avail, ring.used
    assert queue.start()
    return queue, ring


def offer(queue: VirtQueue, ring: Ring, *parts: tuple[int, int, int]) -> Chain:
    ring.set_chain(parts)
    ring.offer(0)
    chain = queue.pop()
    assert chain is not None
    return chain


def test_round() -> None:
    queue, ring = start()
    memory = ring.memory
    assert queue.ready and queue.pop() is None
    memory.write(BUFFERS, b"question")
    chain = offer(queue, ring, (BUFFERS, 8, 0), (BUFFERS + 16, 10, WRITE))
    assert (chain.head, chain.readable_size, chain.writable_size) == (0, 8, 10)
    assert chain.alive and chain.read() == b"question"
    assert chain.write(b"answer") == 6
    assert memory.read(BUFFERS + 16, 6) == b"answer"
    assert queue.push(chain, 6) is True
    assert ring.take() == (0, 6) and ring.take() is None
    assert queue.must_interrupt() and not queue.must_interrupt()


def test_many_rounds_wrap_the_indices() -> None:
    queue, ring = start(2)
    ring.set_desc(1, BUFFERS, 4, WRITE)
    for _ in range(65536 + 5):
        ring.offer(1)
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 4)
    assert ring.memory.read_u16(ring.used + 2) == 5
    assert queue.fault is None


def test_read_and_write_pieces() -> None:
    queue, ring = start()
    ring.memory.write(BUFFERS, bytes(range(64)))
    chain = offer(
        queue,
        ring,
        (BUFFERS, 3, 0),
        (BUFFERS + 8, 0, 0),
        (BUFFERS + 16, 5, 0),
        (BUFFERS + 100, 4, WRITE),
        (BUFFERS + 200, 4, WRITE),
    )
    all_of_it = bytes([0, 1, 2, 16, 17, 18, 19, 20])
    assert chain.read(4) + chain.read(1) + chain.read() == all_of_it
    assert chain.read() == chain.read(9) == b""
    assert chain.read(-1, 0) == chain.read(99, 0) == all_of_it
    assert chain.read(4, 0) == chain.read(size=4, offset=0) == all_of_it[:4]
    assert chain.read(3, 2) == chain.read(offset=2, size=3) == all_of_it[2:5]
    assert chain.read(offset=8) == chain.read(0) == b""
    assert chain.read(offset=2**64 - 1) == b""
    with pytest.raises(ShortChain, match="room for 8 bytes, not 9"):
        chain.write(b"abcdefghi")
    assert chain.written == 0
    assert chain.write(b"abc") == 3 and chain.write(b"defgh") == 5
    assert chain.written == 8
    with pytest.raises(ShortChain, match="room for 0 bytes, not 1"):
        chain.write(b"Z", offset=8)
    assert chain.write(b"XY", 3) == 2
    assert chain.write(data=bytearray(b""), offset=0) == 0
    assert ring.memory.read(BUFFERS + 100, 4) == b"abcX"
    assert ring.memory.read(BUFFERS + 200, 4) == b"Yfgh"
    assert [bytes(v) for v in chain.readable] == [all_of_it[:3], all_of_it[3:]]
    assert [len(v) for v in chain.writable] == [4, 4]


def test_large_copies_run_without_the_gil() -> None:
    memory = vring.make_memory(16 << 20)
    ring = Ring(memory, RINGS, 8)
    queue = VirtQueue(memory, 8)
    queue.desc, queue.avail, queue.used = ring.desc, ring.avail, ring.used
    queue.start()
    half = 4 << 20
    chain = offer(queue, ring, (half, half, 0), (2 * half, half, WRITE))
    data = bytes(range(256)) * (half // 256)
    memory.write(half, data)
    assert chain.read() == data
    assert chain.write(chain.read(offset=0)) == half
    assert memory.read(2 * half, half) == data


def test_views_are_guest_memory() -> None:
    queue, ring = start()
    ring.memory.write(BUFFERS, b"abcd")
    chain = offer(queue, ring, (BUFFERS, 4, 0), (BUFFERS + 8, 4, WRITE))
    (readable,), (writable,) = chain.readable, chain.writable
    assert readable.readonly and not writable.readonly
    ring.memory.write(BUFFERS, b"ABCD")
    assert bytes(readable) == b"ABCD"
    ring.memory.take_dirty()
    (writable,) = chain.writable
    writable[:] = b"wxyz"
    assert ring.memory.read(BUFFERS + 8, 4) == b"wxyz"
    assert ring.memory.take_dirty() == [BUFFERS]


def test_views_outlive_everything() -> None:
    queue, ring = start()
    memory = ring.memory
    memory.write(BUFFERS, b"kept")
    (view,) = offer(queue, ring, (BUFFERS, 4, 0)).readable
    memory.close()
    del queue, ring, memory
    gc.collect()
    assert bytes(view) == b"kept"


def test_write_marks_dirty() -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS + 4095, 2, WRITE))
    ring.memory.take_dirty()
    assert chain.write(b"ab") == 2
    assert ring.memory.take_dirty() == [BUFFERS, BUFFERS + 4096]


def test_pushed_chain_is_refused() -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS, 4, WRITE))
    with pytest.raises(ValueError, match=r"written 5 is outside 0\.\.4"):
        queue.push(chain, 5)
    assert chain.alive
    assert queue.push(chain=chain, written=4)
    with pytest.raises(ValueError, match="chain 0 was pushed already"):
        queue.push(chain)
    assert not chain.alive and "pushed" in repr(chain)
    for use in (
        lambda: chain.read(),
        lambda: chain.write(b"x"),
        lambda: chain.readable,
        lambda: chain.writable,
    ):
        with pytest.raises(ValueError, match="it is the driver's again"):
            use()
    assert (chain.head, chain.writable_size) == (0, 4)


def test_stop_takes_chains_back() -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS, 4, WRITE))
    queue.stop()
    assert not queue.ready and not chain.alive and "taken back" in repr(chain)
    with pytest.raises(ValueError, match="taken back by a reset"):
        chain.write(b"x")
    assert queue.start()
    assert not chain.alive
    assert queue.push(chain, 4) is False
    assert ring.memory.read_u16(ring.used + 2) == 0


def test_foreign_chain_is_refused() -> None:
    queue, ring = start()
    other, _ = start()
    chain = offer(queue, ring, (BUFFERS, 4, WRITE))
    with pytest.raises(ValueError, match="chain 0 is of another queue"):
        other.push(chain)
    with pytest.raises(TypeError, match="expected a Chain, not bytes"):
        queue.push(b"")  # type: ignore[arg-type]
    assert queue.push(chain)


def test_chain_outlives_its_queue() -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS, 4, 0))
    del queue
    gc.collect()
    assert chain.read() == bytes(4)


def test_indirect() -> None:
    queue, ring = start(indirect=True)
    ring.memory.write(BUFFERS, b"by way of a table")
    ring.set_chain(
        [(BUFFERS, 6, 0), (BUFFERS + 6, 11, 0), (BUFFERS, 3, WRITE)],
        table=0x40000,
    )
    chain = offer(queue, ring, (0x40000, 3 * 16, INDIRECT))
    assert chain.read() == b"by way of a table"
    assert chain.writable_size == 3


def test_event_idx() -> None:
    queue, ring = start(event_idx=True)
    ring.set_used_event(1)
    first = offer(queue, ring, (BUFFERS, 4, WRITE))
    queue.push(first)
    assert not queue.must_interrupt()
    second = offer(queue, ring, (BUFFERS, 4, WRITE))
    assert not queue.notify_on() and ring.avail_event == 2
    queue.push(second)
    assert queue.must_interrupt()
    ring.offer(0)
    assert queue.notify_on()


def test_flags() -> None:
    queue, ring = start()
    queue.notify_off()
    assert ring.muted
    ring.offer(0)
    assert queue.notify_on() and not ring.muted
    ring.set_desc(0, BUFFERS, 4, WRITE)
    ring.mute()
    chain = queue.pop()
    assert chain is not None
    queue.push(chain)
    assert not queue.must_interrupt()


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([(RAM, 1, 0)], "outside RAM"),
        ([(RAM - 4, 5, 0)], "outside RAM"),
        ([(2**64 - 1, 2, WRITE)], "outside RAM"),
        ([(BUFFERS, 4, WRITE), (BUFFERS, 4, 0)], "to read after one to write"),
        ([(BUFFERS, 16, INDIRECT)], "not negotiated"),
    ],
)
def test_hostile_chain(parts: list[tuple[int, int, int]], word: str) -> None:
    queue, ring = start()
    ring.set_chain(parts)
    ring.offer(0)
    assert queue.pop() is None
    assert queue.fault is not None and word in queue.fault
    assert queue.ready and "broken: " in repr(queue)
    assert queue.pop() is None and not queue.notify_on()
    with pytest.raises(ValueError, match=r"broken: .*stop\(\) it before"):
        queue.start()
    queue.stop()
    assert queue.fault is None and queue.start()


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([(BUFFERS, 16, INDIRECT)], "inside another"),
        ([(BUFFERS, 4, 0)] * 9, "longer than the queue"),
    ],
)
def test_hostile_table(parts: list[tuple[int, int, int]], word: str) -> None:
    queue, ring = start(indirect=True)
    ring.set_chain(parts, table=0x40000)
    ring.set_desc(0, 0x40000, 16 * len(parts), INDIRECT)
    ring.offer(0)
    assert queue.pop() is None
    assert queue.fault is not None and word in queue.fault


def test_loop_and_bad_indices() -> None:
    queue, ring = start()
    ring.set_desc(0, BUFFERS, 4, NEXT, 0)
    ring.offer(0)
    assert queue.pop() is None and "loop" in str(queue.fault)
    queue.stop()
    queue.start()
    ring.clear()
    ring.offer(8)
    assert queue.pop() is None and "head outside" in str(queue.fault)
    queue.stop()
    queue.start()
    ring.clear()
    ring.set_offered(9)
    assert queue.pop() is None and "ahead" in str(queue.fault)


def test_a_pop_reads_each_descriptor_once() -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS, 4, 0))
    ring.set_desc(0, RAM, 2**32 - 1, WRITE)
    assert chain.read() == bytes(4) and chain.writable_size == 0


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("size", 0, "queue size"),
        ("size", 3, "queue size"),
        ("size", 16, "queue size"),
        ("size", 2**32 - 1, "queue size"),
        ("desc", RINGS + 8, "descriptor table"),
        ("desc", RAM - 16, "descriptor table"),
        ("avail", RINGS + 1, "available ring"),
        ("used", RINGS + 2, "used ring"),
        ("used", 2**64 - 4, "used ring"),
    ],
)
def test_impossible_rings(name: str, value: int, word: str) -> None:
    memory = vring.make_memory()
    ring = Ring(memory, RINGS, 8)
    queue = VirtQueue(memory, max_size=8)
    queue.desc, queue.avail, queue.used = ring.desc, ring.avail, ring.used
    setattr(queue, name, value)
    assert queue.start() is False
    assert not queue.ready and word in str(queue.fault)
    assert queue.pop() is None


def test_settings() -> None:
    queue, ring = start(4)
    assert (queue.max_size, queue.size) == (4, 4)
    assert (queue.desc, queue.avail, queue.used) == (
        ring.desc,
        ring.avail,
        ring.used,
    )
    for name in ("size", "desc", "avail", "used", "indirect", "event_idx"):
        with pytest.raises(ValueError, match="queue is started"):
            setattr(queue, name, 0)
        with pytest.raises(AttributeError, match="cannot be deleted"):
            delattr(queue, name)
    queue.stop()
    queue.desc = 2**64 - 1
    assert "0xffffffffffffffff" in repr(queue) and "stopped" in repr(queue)
    with pytest.raises(ValueError, match="size 4294967296 is outside"):
        queue.size = 1 << 32
    with pytest.raises(ValueError, match="gpa -1 is outside"):
        queue.used = -1
    with pytest.raises(AttributeError):
        queue.max_size = 8  # type: ignore[misc]


@pytest.mark.parametrize("size", [0, 3, 65536, -1])
def test_constructor_refuses_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="max_size"):
        VirtQueue(vring.make_memory(), size)


def test_constructor_refuses_memory() -> None:
    with pytest.raises(TypeError, match="expected a Memory"):
        VirtQueue(b"")  # type: ignore[arg-type]
    memory = Memory()
    memory.close()
    with pytest.raises(ValueError, match="operation on closed Memory"):
        VirtQueue(memory)
    with pytest.raises(TypeError, match="cannot create"):
        Chain()


def test_start_freezes_the_regions() -> None:
    queue, ring = start()
    with pytest.raises(ValueError, match="regions"):
        ring.memory.add(RAM, 4096)
    assert queue.ready


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((1, 2, 3), {}),
        ((1,), {"size": 1}),
        ((), {"length": 1}),
        (("1",), {}),
        ((None,), {}),
    ],
)
def test_read_arguments(
    args: tuple[object, ...], names: dict[str, int]
) -> None:
    queue, ring = start()
    chain = offer(queue, ring, (BUFFERS, 4, 0))
    with pytest.raises(TypeError):
        chain.read(*args, **names)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lacks its argument 'data'"):
        chain.write()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="offset -1 is outside"):
        chain.read(offset=-1)

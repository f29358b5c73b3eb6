# SPDX-License-Identifier: Apache-2.0
"""virtio-blk against a model, and against a driver without scruples."""

import os
from collections.abc import Callable
from typing import Any, ClassVar

from blkdriver import IOERR, OK, SECTOR, UNSUPP, Recorder
from hostile import QueueTraffic, cuts
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from pyvmm import virtio
from pyvmm.devices import Blk
from pyvmm.devices.blk import (
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    IN,
    OUT,
    RANGE,
    UNMAP,
    WRITE_ZEROES,
)

SECTORS = 32
START = b"".join(bytes([i + 1]) * SECTOR for i in range(SECTORS))
SERIAL = b"model".ljust(20, b"\0")

places = st.integers(0, SECTORS + 2) | st.sampled_from(
    [1 << 32, 1 << 55, (1 << 64) - 1]
)
counts = st.integers(0, 5) | st.just(SECTORS)


@st.composite
def transfers(draw: st.DrawFn) -> tuple[int, int, bytes, int]:
    """Kind, sector, data, room; neighbours more often than not."""
    kind = draw(st.sampled_from([IN, OUT]))
    size = draw(counts) * SECTOR + draw(st.sampled_from([0] * 8 + [1, 511]))
    byte = draw(st.integers(1, 255))
    if kind == IN:
        return kind, draw(places), b"", size
    return kind, draw(places), bytes([byte]) * size, 0


@st.composite
def others(draw: st.DrawFn) -> tuple[int, int, bytes, int]:
    kind = draw(
        st.sampled_from([FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 2, 5, 0xFFFF])
    )
    if kind == GET_ID:
        return kind, 0, b"", 20
    if kind not in (DISCARD, WRITE_ZEROES):
        return kind, draw(places), b"", draw(st.sampled_from([0, SECTOR]))
    flags = st.sampled_from([0, 0, 0, UNMAP, 2])
    ranges = draw(
        st.lists(st.tuples(places, counts, flags), min_size=1, max_size=3)
    )
    data = b"".join(RANGE.pack(*each) for each in ranges)
    return kind, 0, data + bytes(draw(st.sampled_from([0] * 9 + [3]))), 0


class Model(RuleBasedStateMachine):
    """A disk is bytes. Each request finds what the ones before have left."""

    source: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.bytes = bytearray(START)
        self.limit = SECTORS
        self.unknown: set[int] = set()  # sectors that were discarded

    def make(self) -> Any:
        """A source that has the model's bytes."""
        raise NotImplementedError

    def stored(self) -> bytes:
        """What the source has."""
        raise NotImplementedError

    @initialize(
        readonly=st.sampled_from([False, False, False, True]),
        features=st.sampled_from([None, 0, 1 << 9]),
    )
    def begin(self, readonly: bool, features: int | None) -> None:
        self.readonly = readonly
        self.blk = Blk(
            self.make(), readonly=readonly, serial="model", queue_size=512
        )
        self.drv = virtio.driver(self.blk, features=features)

    def teardown(self) -> None:
        if hasattr(self, "drv"):
            assert self.blk.faults == self.blk.errors == 0
            self.drv.close()

    # -- what should come of a request ---------------------------------------

    def expect(
        self, kind: int, sector: int, data: bytes, room: int
    ) -> tuple[int, bytes | None]:
        if kind in (IN, OUT):
            return self.transfer(kind, sector, data, room)
        if kind == FLUSH:
            return OK, None
        if kind == GET_ID:
            return OK, SERIAL
        if kind in (DISCARD, WRITE_ZEROES):
            return self.ranges(kind, data), None
        return UNSUPP, None

    def transfer(
        self, kind: int, sector: int, data: bytes, room: int
    ) -> tuple[int, bytes | None]:
        size = room if kind == IN else len(data)
        at, end = sector * SECTOR, sector * SECTOR + size
        if kind == OUT and self.readonly:
            return IOERR, None
        if size % SECTOR or end > self.limit * SECTOR:
            return IOERR, None
        touched = set(range(sector, sector + size // SECTOR))
        if kind == OUT:
            self.bytes[at:end] = data
            self.unknown -= touched
            return OK, None
        return OK, None if touched & self.unknown else bytes(self.bytes[at:end])

    def ranges(self, kind: int, data: bytes) -> int:
        if self.readonly or len(data) % RANGE.size:
            return IOERR
        ranges = list(RANGE.iter_unpack(data))
        allowed = UNMAP if kind == WRITE_ZEROES else 0
        if any(flags & ~allowed for _, _, flags in ranges):
            return UNSUPP
        if any(sector + count > self.limit for sector, count, _ in ranges):
            return IOERR
        for sector, count, _ in ranges:
            touched = set(range(sector, sector + count))
            if kind == DISCARD:
                self.unknown |= touched
            else:
                self.unknown -= touched
                at, size = sector * SECTOR, count * SECTOR
                self.bytes[at : at + size] = bytes(size)
        return OK

    # -- what the driver does ------------------------------------------------

    @rule(
        wanted=st.lists(transfers() | transfers() | others(), max_size=8),
        data=st.data(),
    )
    def send(
        self, wanted: list[tuple[int, int, bytes, int]], data: st.DataObject
    ) -> None:
        """Some at a time, each cut anywhere, empty buffers among them."""
        waits: list[Callable[[], None]] = []
        after: dict[int, int] = {}
        for kind, sector, content, room in wanted:
            if kind in after and data.draw(st.booleans()):
                sector = after[kind]  # behind the last of its kind
            after[kind] = sector + (len(content) + room) // SECTOR
            if after[kind] >= 1 << 64:
                del after[kind]
            out = HEADER.pack(kind, 0, sector) + content
            rooms = [len(piece) for piece in data.draw(cuts(bytes(room + 1)))]
            request = self.drv.requests.send(
                *data.draw(cuts(out)), reply=rooms, notify=False
            )
            status, answer = self.expect(kind, sector, content, room)

            def check(
                request: Any = request,
                status: int = status,
                answer: bytes | None = answer,
            ) -> None:
                got = request.wait()
                assert got[-1] == status
                assert answer is None or got[:-1] == answer

            waits.append(check)
        if wanted:
            self.drv.requests.notify()
        for check in waits:
            check()

    @rule(sectors=st.integers(1, SECTORS))
    def resize(self, sectors: int) -> None:
        self.limit = sectors
        self.blk.resize(sectors * SECTOR)

    @rule(byte=st.sampled_from([b"\0", b"\1"]))
    def cache(self, byte: bytes) -> None:
        self.drv.write_config(32, byte)

    @rule()
    def restart(self) -> None:
        self.drv.reset()
        self.drv.start()

    @invariant()
    def what_is_stored(self) -> None:
        if not hasattr(self, "drv"):
            return
        stored = self.stored()
        assert len(stored) == len(self.bytes)
        for sector in set(range(SECTORS)) - self.unknown:
            part = slice(sector * SECTOR, (sector + 1) * SECTOR)
            assert stored[part] == self.bytes[part]


class OfFile(Model):
    def make(self) -> int:
        self.fd = os.memfd_create("model")
        os.write(self.fd, self.bytes)
        return self.fd

    def stored(self) -> bytes:
        return os.pread(self.fd, 1 << 20, 0)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "fd"):
            os.close(self.fd)


class OfBytes(Model):
    def make(self) -> bytearray:
        self.source = bytearray(self.bytes)
        return self.source

    def stored(self) -> bytes:
        return bytes(self.source)


class OfObject(Model):
    def make(self) -> Recorder:
        self.source = Recorder(bytes(self.bytes))
        return self.source

    def stored(self) -> bytes:
        return bytes(self.source.data)


def case_of(model: type[Model]) -> Any:
    case = model.TestCase
    case.settings = settings(
        max_examples=20, stateful_step_count=20, deadline=None
    )
    return case


TestOfFile = case_of(OfFile)
TestOfBytes = case_of(OfBytes)
TestOfObject = case_of(OfObject)


# -- anything ------------------------------------------------------------------

headers = st.builds(
    HEADER.pack,
    st.sampled_from(
        [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 2, 1 << 31]
    ),
    st.just(0),
    places,
)
ranges = st.builds(
    RANGE.pack, places, st.integers(0, 0xFFFFFFFF), st.integers(0, 3)
)


class BlkTraffic(QueueTraffic):
    examples = 30
    payloads: ClassVar[Any] = st.builds(
        lambda header, data: header + data,
        headers,
        st.binary(max_size=20) | ranges | st.just(bytes(SECTOR)),
    ) | st.binary(max_size=20)

    def make(self) -> Blk:
        return Blk(bytearray(SECTORS * SECTOR), queues=2)

    def alive(self, drv: virtio.Driver) -> None:
        header = HEADER.pack(OUT, 0, 1)
        assert drv.requests(header, b"x" * SECTOR, reply=1) == b"\0"
        header = HEADER.pack(IN, 0, 1)
        assert drv.requests1(header, reply=513) == b"x" * SECTOR + b"\0"
        assert drv.device.errors == 0


TestTraffic = BlkTraffic.test_case()

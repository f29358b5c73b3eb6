# SPDX-License-Identifier: Apache-2.0
"""virtio-9p: messages that are none, guests that want out, races."""

import ctypes
import errno
import os
import random
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hostile import QueueTraffic
from hypothesis import strategies as st
from p9client import NOFID, TYPES, Client, client, message, pack, refused
from p9share import make_share, snapshot, writable

from pyvmm import virtio
from pyvmm.devices import NineP

# A message of each kind that succeeds, in this order, after prepare(). What
# follows the count of a Twrite is its data.
SAMPLES: dict[str, tuple[str, tuple[Any, ...], bytes]] = {
    "statfs": ("I", (0,), b""),
    "lopen": ("II", (1, os.O_RDWR), b""),
    "lcreate": ("IsIII", (2, b"new", os.O_RDWR, 0o644, 0), b""),
    "symlink": ("IssI", (0, b"link", b"target", 0), b""),
    "mknod": ("IsIIII", (0, b"node", 0o100644, 0, 0, 0), b""),
    "rename": ("IIs", (2, 0, b"renamed"), b""),
    "readlink": ("I", (3,), b""),
    "getattr": ("IQ", (1, 0x7FF), b""),
    "setattr": ("IIIIIQQQQQ", (1, 0x1, 0o600, 0, 0, 0, 0, 0, 0, 0), b""),
    "readdir": ("IQI", (4, 0, 1000), b""),
    "fsync": ("II", (1, 0), b""),
    "lock": ("IBIQQIs", (1, 1, 0, 0, 0, 1, b"guest"), b""),
    "getlock": ("IBQQIs", (1, 1, 0, 0, 1, b"guest"), b""),
    "link": ("IIs", (0, 1, b"hard"), b""),
    "mkdir": ("IsII", (0, b"made", 0o755, 0), b""),
    "renameat": ("IsIs", (0, b"made", 0, b"moved"), b""),
    "unlinkat": ("IsI", (0, b"moved", 0x200), b""),
    "attach": ("IIssI", (9, NOFID, b"root", b"", 0), b""),
    "flush": ("H", (1,), b""),
    "walk": ("IIHss", (0, 8, 2, b"sub", b"deep"), b""),
    "write": ("IQI", (1, 3, 7), b"written"),
    "read": ("IQI", (1, 0, 100), b""),
    "clunk": ("I", (8,), b""),
    "remove": ("I", (2,), b""),
    "version": ("Is", (8192, b"9P2000.L"), b""),
}


def sample(name: str) -> bytes:
    layout, fields, data = SAMPLES[name]
    return message(TYPES[name], pack(layout, *fields) + data)


def prepare(p9: Client) -> None:
    """The fids that the samples want."""
    p9.walk(0, 1, b"hello")
    p9.walk(0, 2)
    p9.walk(0, 3, b"inside")
    p9.walk(0, 4)
    p9.lopen(4)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return make_share(tmp_path)


@pytest.fixture
def outside(share: Path) -> Iterator[Path]:
    """What is beside the folder, as it was before."""
    path = share.parent / "outside"
    before = snapshot(path)
    yield path
    assert snapshot(path) == before
    assert {*os.listdir(share.parent)} == {"share", "outside"}


def answered(reply: bytes, tag: int = 1) -> int:
    """The errno of an answer, 0 for none; it is a message."""
    size, kind, got = struct.unpack_from("<IBH", reply)
    assert (size, got) == (len(reply), tag)
    return int.from_bytes(reply[7:], "little") if kind == 7 else 0


# -- messages ------------------------------------------------------------------


def test_every_kind_has_a_sample() -> None:
    """But for those that there are not."""
    assert {*TYPES} - {*SAMPLES} == {"auth", "xattrwalk", "xattrcreate"}


def test_the_samples_succeed(share: Path, outside: Path) -> None:
    with client(writable(share)) as p9:
        prepare(p9)
        for name in SAMPLES:
            assert not answered(p9.drv.requests(sample(name), reply=4096)), name


def test_messages_end_anywhere(share: Path, outside: Path) -> None:
    """Of the buffer, of what `size` says, or of both."""
    with client(writable(share)) as p9:
        prepare(p9)
        before = snapshot(share)
        faults = 0
        for name in SAMPLES:
            whole = sample(name)
            for end in range(1, len(whole)):
                reply = p9.drv.requests(whole[:end], reply=4096)
                if end < 7:
                    faults += 1
                    assert reply == b""
                else:
                    assert answered(reply) == errno.EPROTO
                lie = struct.pack("<I", end) + whole[4:]
                reply = p9.drv.requests(lie, reply=4096)
                assert answered(reply) == errno.EPROTO
        for size in (0, 1, 6, 8, 12, 1 << 31, NOFID):
            lie = struct.pack("<I", size) + sample("clunk")[4:]
            reply = p9.drv.requests(lie, reply=4096)
            assert answered(reply) == errno.EPROTO
        assert p9.drv.device.faults == faults
        assert snapshot(share) == before


def test_bytes_behind_a_message(share: Path) -> None:
    """Neither those that `size` counts nor those that only the buffer has."""
    with client(writable(share)) as p9:
        prepare(p9)
        before = snapshot(share)
        for name in SAMPLES:
            longer = message(sample(name)[4], sample(name)[7:] + b"\0")
            reply = p9.drv.requests(longer, reply=4096)
            assert answered(reply) == errno.EPROTO, name
            reply = p9.drv.requests(sample(name), b"more", reply=4096)
            assert answered(reply) == errno.EPROTO, name
        assert snapshot(share) == before


def test_messages_come_in_pieces(share: Path) -> None:
    """Cut at every byte, with room for the answer cut at every byte."""
    for step in (1, 2, 3, 5):
        with client(writable(share), queue_size=128) as p9:
            prepare(p9)
            for name in SAMPLES:
                whole = sample(name)
                edges = [0, *range(step, len(whole), step), len(whole)]
                pieces = [whole[a:b] for a, b in pairwise(edges)][:63]
                pieces[-1] = whole[edges[len(pieces) - 1] :]
                rooms = [step] * 20 + [0, 4096]
                assert not answered(p9.drv.requests(*pieces, reply=rooms)), name
        for path in ("new", "link", "node", "hard"):
            (share / path).unlink(missing_ok=True)


def test_the_largest_numbers(share: Path, outside: Path) -> None:
    """Counts near 2^32, offsets near 2^64: an answer, whatever it is."""
    with client(writable(share)) as p9:
        prepare(p9)
        p9.lopen(1, os.O_RDWR)
        for offset in (0, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            for count in (0, 1, 1 << 31, NOFID - 11, NOFID):
                for kind in ("read", "readdir"):
                    fid = 1 if kind == "read" else 4
                    body = struct.pack("<IQI", fid, offset, count)
                    data = message(TYPES[kind], body)
                    reply = p9.drv.requests(data, reply=[11, 500])
                    if offset >> 63:
                        assert answered(reply) == errno.EINVAL
                    else:
                        assert len(reply) <= 511
                        answered(reply)
                body = struct.pack("<IQI", 1, offset, count) + bytes(8)
                data = message(TYPES["write"], body)
                reply = p9.drv.requests(data, reply=11)
                assert answered(reply) == errno.EPROTO


def test_messages_above_msize(share: Path) -> None:
    with client(writable(share), msize=4096) as p9:
        p9.walk(0, 1, b"empty")
        p9.lopen(1, os.O_RDWR)
        assert p9.write(1, 0, bytes(4096 - 23)) == 4096 - 23
        with refused(errno.EMSGSIZE):
            p9.write(1, 0, bytes(4096 - 22))
        with refused(errno.EMSGSIZE):
            p9.mkdir(0, b"x" * 5000)
        p9.walk(0, 2)
        p9.lopen(2)
        assert len(p9.readdir(2, 0, 6000)) > 2
    device = NineP(share, notify="inline", msize=8192)
    with virtio.driver(device) as drv, refused(errno.EMSGSIZE):
        Client(drv).version(8192, bytes(9000))  # there is no version yet


def test_walks_of_many_names(share: Path) -> None:
    with client(writable(share), msize=1 << 18) as p9:
        body = pack("IIH", 0, 1, 65535) + bytes(2 * 65535)
        with refused(errno.EINVAL):
            p9.send(TYPES["walk"], body)


def test_tags_are_only_said_again(share: Path) -> None:
    with client(writable(share)) as p9:
        for tag in (1, 1, 0, 0xFFFF):
            data = message(TYPES["getattr"], pack("IQ", 0, 0), tag)
            assert answered(p9.drv.requests(data, reply=500), tag) == 0
            data = message(TYPES["clunk"], pack("I", 7), tag)
            got = answered(p9.drv.requests(data, reply=500), tag)
            assert got == errno.EBADF


def test_buffers_that_overlap(share: Path) -> None:
    """The guest's memory is the guest's: what it reads over itself, it gets."""
    with client(writable(share)) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1, os.O_RDWR)
        data = message(TYPES["read"], struct.pack("<IQI", 1, 0, 14))
        gpa = 0x100000
        p9.drv.memory.write(gpa, data)
        ring = p9.drv.raw.ring[0]
        ring.set_chain([(gpa, len(data), 0), (gpa, 11, 2), (gpa + 4, 14, 2)])
        ring.offer(0)
        p9.drv.raw.notify()
        assert p9.drv.memory.read(gpa + 4, 7) == b"\x75\1\0\x0e\0\0\0"
        assert not p9.drv.broken
        # Data of a Twrite that is its own header.
        head = struct.pack("<IBHIQI", 46, 118, 1, 1, 0, 23)
        p9.drv.memory.write(gpa, head)
        ring.set_chain([(gpa, 23, 0), (gpa, 23, 0), (gpa + 100, 11, 2)])
        ring.offer(0)
        p9.drv.raw.notify()
        assert (share / "hello").read_bytes() == head


# -- races ---------------------------------------------------------------------

RENAME_EXCHANGE = 2
ENOUGH = 40  # times that each of two ends was seen
BOUND = 100_000  # attempts


class Swapper:
    """A thread of the host that exchanges two names, again and again."""

    def __init__(self, folder: Path, one: str, other: str) -> None:
        self.names = [os.fsencode(folder / name) for name in (one, other)]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.stop = threading.Event()
        self.failed = 0
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        one, other = self.names
        while not self.stop.is_set():
            done = self.libc.renameat2(-100, one, -100, other, RENAME_EXCHANGE)
            self.failed += done != 0

    def __enter__(self) -> "Swapper":
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        self.thread.join()
        assert not self.failed


def test_a_directory_becomes_a_link(share: Path, outside: Path) -> None:
    """What the guest comes to is inside, or it does not come there."""
    for name in ("folder", "sub/folder"):
        (share / name).mkdir()
        (share / name / "secret").write_bytes(b"inside")
    (share / "link").symlink_to(outside)
    seen = {"inside": 0, "refused": 0}
    with client(writable(share)) as p9, Swapper(share, "folder", "link"):
        for i in range(BOUND):
            if min(seen.values()) >= ENOUGH:
                break
            try:
                if len(p9.walk(0, 1, b"folder", b"secret")) == 2:
                    p9.lopen(1, os.O_RDWR)
                    assert p9.read(1, 0, 100) == b"inside"
                    p9.write(1, 0, b"inside")
                    p9.setattr(1, 0x9, mode=0o600, size=6)
                    p9.clunk(1)
                    seen["inside"] += 1
                else:
                    seen["refused"] += 1  # the link, and no further
                assert len(p9.walk(0, 2, b"folder")) == 1
                name = b"%d" % i
                p9.mkdir(2, name)
                p9.symlink(2, name + b"l", b"x")
                p9.mknod(2, name + b"n", 0o100600)
                p9.walk(2, 3)
                p9.lcreate(3, name + b"f", os.O_RDWR)
                p9.renameat(2, name + b"n", 2, b"secret")
                p9.write(3, 0, b"inside")
                p9.link(2, 3, name + b"h")
                p9.rename(3, 2, b"secret")
                p9.unlinkat(2, name, 0x200)
                p9.unlinkat(2, name + b"l")
                p9.unlinkat(2, name + b"h")
            except OSError as exc:
                assert exc.errno in (errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
                seen["refused"] += 1
            for fid in (1, 2, 3):
                if fid in p9.drv.device._server.fids._by_number:
                    p9.clunk(fid)
        assert min(seen.values()) >= ENOUGH


def test_a_file_becomes_a_link(share: Path, outside: Path) -> None:
    """Between the walk and the open, and while it is created."""
    (share / "file").write_bytes(b"inside")
    (share / "link").symlink_to(outside / "secret")
    seen = {"inside": 0, errno.ELOOP: 0}
    with client(writable(share)) as p9, Swapper(share, "file", "link"):
        for i in range(BOUND):
            if min(seen.values()) >= ENOUGH:
                break
            try:
                if i % 2:
                    p9.walk(0, 1, b"file")
                    p9.lopen(1, os.O_RDWR)
                else:
                    p9.walk(0, 1)
                    p9.lcreate(1, b"file", os.O_RDWR)
                assert p9.read(1, 0, 100) == b"inside"
                p9.write(1, 0, b"inside")
                seen["inside"] += 1
            except OSError as exc:
                assert exc.errno == errno.ELOOP
                seen[errno.ELOOP] += 1
            p9.clunk(1)
        assert min(seen.values()) >= ENOUGH


def test_up_from_where_the_host_moves(share: Path, outside: Path) -> None:
    """A folder goes out and in; what is above it is inside, or not there."""
    (share / "folder/deep").mkdir(parents=True)
    elsewhere = share.parent / "elsewhere"
    elsewhere.mkdir()
    seen = {"inside": 0, errno.ENOENT: 0}
    inside = {(share / name).stat().st_ino for name in (".", "folder")}
    with client(writable(share)) as p9:
        p9.walk(0, 1, b"folder", b"deep")
        with Swapper(share, "folder", "../elsewhere"):
            for _ in range(BOUND):
                if min(seen.values()) >= ENOUGH:
                    break
                try:
                    qids = p9.walk(1, 2, b"..", b"..", b"..")
                    assert {qid.path for qid in qids} <= inside
                    seen["inside"] += 1
                    if len(qids) == 3:
                        p9.clunk(2)
                except OSError as exc:
                    assert exc.errno == errno.ENOENT
                    seen[errno.ENOENT] += 1
        assert min(seen.values()) >= ENOUGH
    shutil.rmtree(elsewhere)


# -- anything ------------------------------------------------------------------

NAMES = (
    *(b"hello", b"sub", b"deep", b"file", b"inside", b"away", b"abs", b"new"),
    *(b"", b".", b"..", b"/", b"../outside", b"sub/deep", b"a\0b", b"x" * 300),
    *(b"fifo", b"secret"),
)
FIDS = (*range(8), NOFID, 1 << 31)
LIKELY: dict[str, Sequence[Any]] = {
    "s": NAMES,
    "H": (0, 1, 2, 0xFFFF),
    "B": (0, 1, 2, 3, 255),
    "I": (
        *(0, 1, 2, 7, 100, 0x200, 1 << 31, NOFID),
        *(0o644, 0o4755, 0o100644, 0o10644),
        *(os.O_TRUNC, os.O_RDWR | os.O_EXCL),
    ),
    "Q": (0, 1, 5, 4096, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
}


def make_message(dice: random.Random) -> bytes:
    """A request: mostly a proper one with unlikely fields."""
    name = dice.choice(sorted({*SAMPLES} - {"version"}))
    layout, fields, data = SAMPLES[name]
    values = list(fields)
    for i, letter in enumerate(layout):
        choices = FIDS if letter == "I" and not i else LIKELY[letter]
        if (name, i) != ("walk", 2) and dice.random() < 0.6:
            values[i] = dice.choice(choices)
    if name == "walk":
        count = dice.randint(0, 3)
        layout = "IIH" + "s" * count
        values[2:] = [count, *dice.choices(NAMES, k=count)]
    body = pack(layout, *values) + data
    kind = TYPES[name]
    if dice.random() < 0.03:
        body = body[: dice.randint(0, len(body))]
    if dice.random() < 0.02:
        kind = dice.randint(0, 255)
    whole = message(kind, body, dice.choice([0, 1, 1, 0xFFFF]))
    if dice.random() < 0.03:
        size = dice.choice([0, 6, 7, 8, 100, 1 << 31, NOFID])
        whole = struct.pack("<I", size) + whole[4:]
    return whole


class Prisoner:
    """A guest in a folder with everything in it that may lead out."""

    LIMIT = 16

    def move_in(self) -> NineP:
        self.folder = Path(tempfile.mkdtemp(prefix="pyvmm-9p-"))
        self.share = make_share(self.folder)
        os.mkfifo(self.share / "fifo")
        self.outside = snapshot(self.folder / "outside")
        return NineP(
            self.share, readonly=False, limit=self.LIMIT, notify="inline"
        )

    def settle(self, drv: virtio.Driver) -> None:
        p9 = Client(drv)
        p9.version()
        p9.attach(0)
        for fid, name in enumerate(os.listdir(os.fsencode(self.share)), 1):
            if fid < 8:
                p9.walk(0, fid, name)

    def has_not_escaped(self, device: virtio.Device) -> None:
        assert snapshot(self.folder / "outside") == self.outside
        assert {*os.listdir(self.folder)} == {"share", "outside"}
        assert isinstance(device, NineP)
        assert device._server.folder.held <= self.LIMIT
        assert len(device._server.fids) <= self.LIMIT


@pytest.mark.parametrize("seed", range(4))
def test_any_messages(seed: int) -> None:
    """Each has an answer, and none leads out."""
    dice = random.Random(seed)
    guest = Prisoner()
    with virtio.driver(guest.move_in()) as drv:
        done: set[int] = set()
        for i in range(1000):
            if i % 50 == 0:
                guest.has_not_escaped(drv.device)
                guest.settle(drv)
            whole = make_message(dice)
            cut = dice.randint(0, 30)
            rooms = dice.choice([[11], [7, 4, 9], [160], [11, 500], [4096]])
            reply = drv.requests(whole[:cut], whole[cut:], reply=rooms)
            number = answered(reply, int.from_bytes(whole[5:7], "little"))
            if not number:
                done.add(whole[4])
        guest.has_not_escaped(drv.device)
        assert drv.device.faults == 0
    assert len(done) > 18  # kinds of requests that were carried out
    shutil.rmtree(guest.folder)


class NinePTraffic(Prisoner, QueueTraffic):
    """Any buffers and rings, too."""

    payloads = st.integers(0, 1 << 32).map(
        lambda seed: make_message(random.Random(seed))
    )
    examples = 25

    def make(self) -> virtio.Device:
        return self.move_in()

    def __init__(self) -> None:
        super().__init__()
        self.settle(self.drv)

    def alive(self, drv: virtio.Driver) -> None:
        p9 = Client(drv)
        p9.version()
        p9.attach(0)
        p9.walk(0, 1)
        p9.lopen(1)
        assert p9.readdir(1)

    def restart(self) -> None:
        super().restart()
        assert isinstance(self.device, NineP)
        assert self.device._server.folder.held == 0
        self.settle(self.drv)

    def check(self, drv: virtio.Driver) -> None:
        self.has_not_escaped(drv.device)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.folder)


TestTraffic = NinePTraffic.test_case()

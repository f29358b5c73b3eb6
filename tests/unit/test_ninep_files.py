# SPDX-License-Identifier: Apache-2.0
"""virtio-9p: attributes, files, directories, locks, and a host that fails."""

import contextlib
import errno
import os
import resource
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from p9client import NOFID, TYPES, Client, client, refused
from p9share import FILE, TREE, ident, make_share, qid_of, writable

from pyvmm import virtio
from pyvmm.devices import ninep
from pyvmm.devices.ninep.wire import REQUESTS, T

# Of what Rgetattr and stat(2) have in common.
SAME = ("mode", "uid", "gid", "nlink", "rdev", "size", "blksize", "blocks")
READ, WRITE, NONE = 0, 1, 2
SUCCESS, BLOCKED = 0, 1


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return make_share(tmp_path)


@pytest.fixture
def p9(share: Path) -> Iterator[Client]:
    """A client that may write."""
    with client(writable(share)) as p9:
        yield p9


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be a user for whom permissions count."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# -- attributes ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["hello", "sub", "away", "fifo"])
def test_getattr(p9: Client, share: Path, name: str) -> None:
    os.mkfifo(share / "fifo")
    os.utime(share / "hello", ns=(-1_500_000_000, 5_000_000_007))
    p9.walk(0, 1, name.encode())
    found, info = p9.getattr(1), (share / name).lstat()
    assert found["valid"] == 0x7FF
    assert (found["type"], found["path"]) == qid_of(share / name)
    for field in SAME:
        assert found[field] == getattr(info, f"st_{field}")
    for field in ("atime", "mtime", "ctime"):
        seconds = struct.unpack("<q", struct.pack("<Q", found[field]))[0]
        ns = seconds * 10**9 + found[f"{field}_ns"]
        assert ns == getattr(info, f"st_{field}_ns")
    assert not found["btime"] | found["gen"] | found["data"]


def test_setattr(p9: Client, share: Path) -> None:
    path = share / "hello"
    p9.walk(0, 1, b"hello")
    p9.setattr(1, 0x1, mode=0o100604)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    p9.setattr(1, 0x8, size=4)
    assert path.read_bytes() == b"from"
    p9.setattr(1, 0x1B0, atime=(5, 6), mtime=((1 << 64) - 1, 7))
    assert path.stat().st_atime_ns == 5_000_000_006
    assert path.stat().st_mtime_ns == -999_999_993
    p9.setattr(1, 0x10)  # the other one stays
    assert path.stat().st_atime_ns > 10**18
    assert path.stat().st_mtime_ns == -999_999_993
    p9.setattr(1, 0x20)
    assert path.stat().st_mtime_ns > 10**18
    p9.setattr(1, 0x46, uid=path.stat().st_uid, gid=NOFID)
    p9.setattr(1, 0)


def test_setattr_of_other_things(p9: Client, share: Path) -> None:
    """What is set is never that of a link's target."""
    secret = share.parent / "outside"
    before = secret.stat()
    p9.walk(0, 1, b"away")
    p9.setattr(1, 0x1B0, atime=(5, 0), mtime=(7, 0))
    assert (share / "away").lstat().st_mtime == 7
    with refused(errno.EOPNOTSUPP):
        p9.setattr(1, 0x1, mode=0o777)
    with refused(errno.EINVAL):
        p9.setattr(1, 0x8, size=0)
    assert (before.st_mtime_ns, before.st_mode) == (
        secret.stat().st_mtime_ns,
        secret.stat().st_mode,
    )
    p9.walk(0, 2, b"sub")
    p9.setattr(2, 0x1, mode=0o41775)
    assert stat.S_IMODE((share / "sub").stat().st_mode) == 0o1775
    with refused(errno.EISDIR):
        p9.setattr(2, 0x8, size=0)
    os.mkfifo(share / "fifo")
    p9.walk(0, 3, b"fifo")
    p9.setattr(3, 0x1, mode=0o600)
    with refused(errno.EINVAL):
        p9.setattr(3, 0x8, size=0)


@pytest.mark.parametrize(
    ("number", "valid", "fields"),
    [
        (errno.EPERM, 0x1, {"mode": 0o104755}),
        (errno.EPERM, 0x9, {"mode": 0o2755, "size": 0}),
        (errno.EPERM, 0x2, {"uid": 12345}),
        (errno.EPERM, 0xE, {"gid": 12345, "size": 0}),
        (errno.EINVAL, 0x8, {"size": 1 << 63}),
        (errno.EINVAL, 0x8, {"size": (1 << 64) - 1}),
        (errno.EINVAL, 0x98, {"atime": (0, 10**9), "size": 0}),
        (errno.EINVAL, 0x120, {"mtime": (0, (1 << 30) - 2)}),
        (errno.EINVAL, 0x200, {}),
        (errno.EINVAL, 1 << 31, {}),
        (errno.EBADF, 0x1, {"mode": 0, "fid": 9}),
    ],
)
def test_setattr_that_is_refused(p9, share, number, valid, fields) -> None:
    before = (share / "hello").stat()
    fid = fields.pop("fid", 1)
    p9.walk(0, 1, b"hello")
    with refused(number):
        p9.setattr(fid, valid, **fields)
    after = (share / "hello").stat()
    assert after == before


def test_truncating_by_an_open_file(p9: Client, share: Path) -> None:
    """Who has it open for writing needs no permission any more."""
    p9.walk(0, 1, b"hello")
    p9.lopen(1, os.O_WRONLY)
    os.chmod(share / "hello", 0)
    with nobody():
        p9.setattr(1, 0x8, size=2)
    assert (share / "hello").stat().st_size == 2
    p9.walk(0, 2, b"empty")
    p9.lopen(2, os.O_RDONLY)
    p9.setattr(2, 0x8, size=1 << 40)
    assert (share / "empty").stat().st_size == 1 << 40


def test_statfs(p9: Client, share: Path) -> None:
    kind, bsize, blocks, *_, namelen = p9.statfs(0)
    info = os.statvfs(share)
    assert kind == 0x01021997
    assert (bsize, blocks, namelen) == (
        info.f_frsize,
        info.f_blocks,
        info.f_namemax,
    )


def test_qids_of_other_file_systems(p9: Client) -> None:
    folder = p9.drv.device._server.folder
    assert folder.number(folder.dev, 1234) == 1234
    others = {folder.number(dev, ino) for dev in (1, 2) for ino in (1, 2)}
    assert len(others) == 4 and all(0 <= n < 1 << 64 for n in others)
    assert folder.number(1, 2) == folder.number(1, 2)


def test_the_qid_changes_with_the_content(p9: Client, share: Path) -> None:
    (first,) = p9.walk(0, 1, b"hello")
    (share / "hello").write_bytes(b"changed")
    os.utime(share / "hello", ns=(1, 1))
    (second,) = p9.walk(0, 2, b"hello")
    assert first.path == second.path and first.version != second.version


# -- open files ----------------------------------------------------------------


def test_lopen(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    with refused(errno.EBADF):
        p9.read(1, 0, 10)
    assert ident(p9.lopen(1)) == qid_of(share / "hello")
    with refused(errno.EINVAL):
        p9.lopen(1)
    with refused(errno.EBADF):
        p9.write(1, 0, b"x")
    p9.walk(1, 2)  # of an open fid: one that is not
    with refused(errno.EBADF):
        p9.read(2, 0, 10)
    p9.lopen(2, os.O_WRONLY)
    with refused(errno.EBADF):
        p9.read(2, 0, 10)
    with refused(errno.EINVAL):
        p9.walk(2, 2, b"x")


def test_flags_of_lopen(p9: Client, share: Path) -> None:
    fid = iter(range(1, 20))

    def opened(name: bytes, flags: int) -> int:
        p9.walk(0, number := next(fid), name)
        p9.lopen(number, flags)
        return number

    with refused(errno.EINVAL):
        opened(b"hello", 3)
    with refused(errno.EISDIR):
        opened(b"sub", os.O_RDWR)
    with refused(errno.ENOTDIR):
        opened(b"hello", os.O_DIRECTORY)
    # What Linux sends along: O_LARGEFILE, O_NOFOLLOW, O_CLOEXEC and so on.
    opened(b"hello", 0o100000 | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT)
    opened(b"hello", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    number = opened(b"hello", os.O_WRONLY | os.O_APPEND)
    assert p9.write(number, 0, b"more") == 4
    assert (share / "hello").read_bytes() == TREE["hello"] + b"more"
    opened(b"hello", os.O_WRONLY | os.O_TRUNC)
    assert (share / "hello").read_bytes() == b""


def test_special_files_are_never_opened(p9: Client, share: Path) -> None:
    os.mkfifo(share / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(share / "socket"))
    names = [b"fifo", b"socket"]
    with contextlib.suppress(PermissionError):  # of who is not root
        os.mknod(share / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        names.append(b"null")
    for name in names:
        (qid,) = p9.walk(0, 1, name)
        assert qid.type == FILE
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with refused(errno.ENXIO):
                p9.lopen(1, flags)
            p9.walk(0, 2)
            with refused(errno.ENXIO):
                p9.lcreate(2, name, flags)
            p9.clunk(2)
        p9.remove(1)
    assert not {*map(os.fsdecode, names)} & {*os.listdir(share)}


def test_lcreate(p9: Client, share: Path) -> None:
    p9.walk(0, 1)
    qid = p9.lcreate(1, b"new", os.O_RDWR, 0o640)
    path = share / "new"
    assert ident(qid) == qid_of(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert p9.write(1, 3, b"data") == 4  # the fid is the file's now
    assert path.read_bytes() == b"\0\0\0data"
    assert p9.getattr(1)["size"] == 7
    with refused(errno.ENOTDIR):
        p9.walk(1, 2, b"x")
    with refused(errno.EINVAL):
        p9.lcreate(1, b"again", os.O_RDWR)
    p9.rename(1, 0, b"renamed")
    assert (share / "renamed").exists()


def test_lcreate_of_what_is_there(p9: Client, share: Path) -> None:
    for fid in range(1, 9):
        p9.walk(0, fid)
    with refused(errno.EEXIST):
        p9.lcreate(1, b"hello", os.O_RDWR | os.O_EXCL)
    p9.lcreate(1, b"hello", os.O_RDWR, 0)
    assert p9.read(1, 0, 100) == TREE["hello"]
    p9.lcreate(2, b"hello", os.O_RDWR | os.O_TRUNC)
    assert (share / "hello").read_bytes() == b""
    with refused(errno.EISDIR):
        p9.lcreate(3, b"sub", os.O_RDWR)
    with refused(errno.EPERM):
        p9.lcreate(3, b"suid", os.O_RDWR, 0o4755)
    with refused(errno.EINVAL):
        p9.lcreate(3, b"mode", 3)
    p9.walk(0, 9, b"empty")
    with refused(errno.ENOTDIR):
        p9.lcreate(9, b"x", os.O_RDWR)
    # A fid that could not create is what it was.
    assert p9.walk(3, 10, b"sub")
    assert not {"suid", "mode"} & {*os.listdir(share)}


def test_read(p9: Client, share: Path) -> None:
    data = os.urandom(20000)
    (share / "big").write_bytes(data)
    p9.walk(0, 1, b"big")
    p9.lopen(1)
    assert p9.read(1, 0, 20000) == data
    assert p9.read(1, 19990, 100) == data[19990:]
    assert p9.read(1, 20000, 100) == b""
    assert p9.read(1, 1 << 40, 100) == b""
    assert p9.read(1, (1 << 63) - 1, 0) == b""
    assert p9.read(1, 5, 0) == b""
    for offset in (1 << 63, (1 << 64) - 1):
        with refused(errno.EINVAL):
            p9.read(1, offset, 100)
    # No more than there is room for, and than msize says.
    assert p9.read(1, 0, NOFID, room=11 + 100) == data[:100]
    assert p9.read(1, 7, 500, room=11) == b""
    p9.version(4096)
    p9.attach(0)
    p9.walk(0, 1, b"big")
    p9.lopen(1)
    assert p9.read(1, 0, 20000, room=20011) == data[: 4096 - 11]


def test_read_into_many_buffers(p9: Client, share: Path) -> None:
    data = os.urandom(5000)
    (share / "big").write_bytes(data)
    p9.walk(0, 1, b"big")
    p9.lopen(1)
    for room in (
        [11, 5000],
        [*[1] * 11, 5000],
        [*[1] * 50, 4961],
        [7, 4, 0, 1, 0, 4000, 999],
        [5, 5006],
        [12, 0, 4999, 100],
    ):
        assert p9.read(1, 0, 5000, room=room) == data
    assert p9.read(1, 4999, 2, room=[11, 1, 1]) == data[4999:]


def test_more_buffers_than_a_readv_has(share: Path) -> None:
    """1024 of them; a chain may have as many descriptors as it likes."""
    device = writable(share)
    device.queues = {"requests": 4096}
    with client(device) as p9:
        data = os.urandom(2000)
        p9.walk(0, 1, b"empty")
        p9.lopen(1, os.O_RDWR)
        assert p9.write(1, 0, data, cut=[*range(1, 2000)]) == 2000
        assert (share / "empty").read_bytes() == data
        assert p9.read(1, 0, 2000, room=[11, *[1] * 2000]) == data


def test_write(p9: Client, share: Path) -> None:
    path = share / "empty"
    p9.walk(0, 1, b"empty")
    p9.lopen(1, os.O_RDWR)
    data = os.urandom(3000)
    assert p9.write(1, 0, data) == 3000
    assert path.read_bytes() == data
    for cut in ([23], [*range(1, 60)], [7, 23, 24, 24, 1000], [22], [30]):
        data = os.urandom(3000)
        assert p9.write(1, 0, data, cut=cut) == 3000
        assert path.read_bytes() == data
    assert p9.write(1, 2, b"") == 0
    assert p9.write(1, 1 << 33, b"x") == 1
    assert path.stat().st_size == (1 << 33) + 1
    for offset in (1 << 63, (1 << 64) - 1):
        with refused(errno.EINVAL):
            p9.write(1, offset, b"x")
    with refused(errno.EFBIG):
        p9.write(1, (1 << 63) - 2, b"x")


def test_directories_are_not_read_as_files(p9: Client) -> None:
    p9.walk(0, 1)
    p9.lopen(1)
    with refused(errno.EISDIR):
        p9.read(1, 0, 100)
    with refused(errno.EBADF):
        p9.write(1, 0, b"x")
    p9.walk(0, 2, b"hello")
    p9.lopen(2)
    with refused(errno.ENOTDIR):
        p9.readdir(2)


def test_fsync(p9: Client) -> None:
    p9.walk(0, 1, b"hello")
    with refused(errno.EBADF):
        p9.fsync(1)
    p9.lopen(1, os.O_RDWR)
    p9.fsync(1)
    p9.fsync(1, 1)
    p9.walk(0, 2)
    p9.lopen(2)
    p9.fsync(2)


# -- directories ---------------------------------------------------------------


def test_readdir(p9: Client, share: Path) -> None:
    os.mkfifo(share / "fifo")
    p9.walk(0, 1)
    with refused(errno.EBADF):
        p9.readdir(1)
    p9.lopen(1)
    found = p9.list(1)
    assert {*found} == {b".", b"..", *map(os.fsencode, os.listdir(share))}
    for name in (b"hello", b"sub", b"away", b"fifo"):
        path = share / name.decode()
        assert ident(found[name].qid) == qid_of(path)
        assert found[name].type == stat.S_IFMT(path.lstat().st_mode) >> 12
    # What is above is not told: not even its number.
    assert ident(found[b".."].qid) == ident(found[b"."].qid) == qid_of(share)
    p9.walk(0, 2, b"sub")
    p9.lopen(2)
    assert ident(p9.list(2)[b".."].qid) == qid_of(share)


def test_readdir_piece_by_piece(p9: Client, share: Path) -> None:
    names = {f"{i:04}".encode() for i in range(200)}
    folder = share / "many"
    folder.mkdir()
    for name in names:
        (folder / name.decode()).touch()
    p9.walk(0, 1, b"many")
    p9.lopen(1)
    for count in (30, 100, 4000):
        assert {*p9.list(1, count)} == names | {b".", b".."}
    with refused(errno.EINVAL):
        p9.readdir(1, 0, 24)
    with refused(errno.EINVAL):
        p9.readdir(1, 0, 0)


def test_cookies(p9: Client, share: Path) -> None:
    """They hold for as long as the directory, whatever is removed."""
    folder = share / "many"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03}").touch()
    p9.walk(0, 1, b"many")
    p9.lopen(1)
    whole = []
    while more := p9.readdir(1, whole[-1].cookie if whole else 0, 1000):
        whole += more
    for at in (0, 7, 100, len(whole) - 2):
        entry = p9.readdir(1, whole[at].cookie, 1000)[0]
        assert entry.name == whole[at + 1].name
    assert p9.readdir(1, whole[-1].cookie) == []
    for entry in whole[::2]:
        with contextlib.suppress(IsADirectoryError):
            (folder / entry.name.decode()).unlink()
    left = {entry.name for entry in whole[101:] if entry.name not in b".."}
    left &= {*map(os.fsencode, os.listdir(folder))}
    offset, found = whole[100].cookie, set()
    while more := p9.readdir(1, offset, 300):
        found |= {entry.name for entry in more}
        offset = more[-1].cookie
    assert left <= found
    for offset in (1 << 63, (1 << 64) - 1):
        with refused(errno.EINVAL):
            p9.readdir(1, offset)


def test_types_that_the_file_system_does_not_tell(
    p9: Client, share: Path, monkeypatch
) -> None:
    entries = ninep.folder.Folder.entries

    def untold(self, fd, size):
        for ino, cookie, _, name in entries(self, fd, size):
            yield ino, cookie, 0, name
        yield 1, 99, 0, b"gone by now"

    p9.walk(0, 1)
    p9.lopen(1)
    before = p9.readdir(1)
    monkeypatch.setattr(ninep.folder.Folder, "entries", untold)
    *after, last = p9.readdir(1)
    assert after == before
    assert (last.type, last.qid.type) == (0, FILE)


# -- locks ---------------------------------------------------------------------


def test_locks(p9: Client) -> None:
    p9.walk(0, 1, b"hello")
    with refused(errno.EBADF):
        p9.lock(1, READ)
    p9.lopen(1, os.O_RDWR)
    p9.walk(0, 2, b"hello")
    p9.lopen(2, os.O_RDWR)
    assert p9.lock(1, READ, 0, 100) == SUCCESS
    assert p9.lock(2, READ, 50, 100, process=2) == SUCCESS
    assert p9.lock(2, WRITE, 99, 1, process=2) == BLOCKED
    assert p9.lock(2, WRITE, 99, 1, process=2, flags=1) == BLOCKED
    assert p9.lock(2, WRITE, 100, 50, process=2) == SUCCESS
    assert p9.getlock(1, READ, 90, 20) == (WRITE, 100, 50, 2, b"guest")
    assert p9.getlock(1, READ, 90, 10) == (NONE, 90, 10, 1, b"guest")
    assert p9.getlock(1, WRITE, 0, 0)[:3] == (READ, 50, 50)
    # Another process is one of another host with the same number, too.
    assert p9.lock(1, WRITE, 0, 10, client=b"other") == BLOCKED
    assert p9.lock(1, NONE, 0, 0) == SUCCESS
    assert p9.lock(1, WRITE, 0, 50, client=b"other") == SUCCESS
    # The end of a file is as far as it can grow.
    assert p9.lock(1, WRITE, 200, 0) == SUCCESS
    assert p9.getlock(2, READ, (1 << 63) - 1, 1, process=2)[:3] == (
        WRITE,
        200,
        0,
    )


def test_a_lock_ends_with_its_file(p9: Client) -> None:
    for fid in (1, 2, 3):
        p9.walk(0, fid, b"hello")
        p9.lopen(fid, os.O_RDWR)
    p9.lock(1, WRITE, 0, 10, process=1)
    p9.lock(2, WRITE, 20, 10, process=1)
    p9.lock(3, WRITE, 40, 10, process=2)
    p9.clunk(1)  # fcntl(2): all of that process on the file
    assert p9.getlock(3, WRITE, 0, 40, process=2)[0] == NONE
    assert p9.getlock(2, WRITE, 40, 1, process=1)[0] == WRITE
    p9.remove(3)
    assert p9.drv.device._server.locks.count == 0


def test_locks_are_cut_and_joined(p9: Client) -> None:
    locks = p9.drv.device._server.locks
    p9.walk(0, 1, b"hello")
    p9.lopen(1, os.O_RDWR)

    def held() -> list[tuple[int, int, bool]]:
        ((_, found),) = locks._of.items()
        return sorted((lock.start, lock.end, lock.exclusive) for lock in found)

    for start in range(0, 100, 10):
        p9.lock(1, READ, start, 10)
    assert held() == [(0, 100, False)]
    p9.lock(1, WRITE, 40, 20)
    assert held() == [(0, 40, False), (40, 60, True), (60, 100, False)]
    p9.lock(1, NONE, 50, 20)
    assert held() == [(0, 40, False), (40, 50, True), (70, 100, False)]
    p9.lock(1, READ, 30, 45)
    assert held() == [(0, 100, False)]
    p9.lock(1, NONE)
    assert locks.count == 0


def test_locks_that_are_refused(p9: Client) -> None:
    p9.walk(0, 1, b"hello")
    p9.lopen(1, os.O_RDWR)
    for fields in (
        {"kind": 3},
        {"kind": 255},
        {"kind": READ, "flags": 2},
        {"kind": READ, "client": b"x" * 257},
    ):
        with refused(errno.EINVAL):
            p9.lock(1, **fields)
    for start, length in ((1 << 63, 0), (1, (1 << 63)), (5, (1 << 64) - 1)):
        with refused(errno.EOVERFLOW):
            p9.lock(1, READ, start, length)


def test_locks_are_limited(p9: Client, monkeypatch) -> None:
    monkeypatch.setattr(ninep.locks, "LIMIT", 40)
    for fid, name in ((1, b"hello"), (2, b"empty")):
        p9.walk(0, fid, name)
        p9.lopen(fid, os.O_RDWR)
    for i in range(40):
        assert p9.lock(1 + i % 2, WRITE, 2 * i, 1) == SUCCESS
    with refused(errno.ENOLCK):
        p9.lock(1, WRITE, 5000, 1)
    p9.lock(1, WRITE, 0, 5000)
    p9.lock(2, NONE)
    for i in range(39):
        p9.lock(1, NONE, 2 * i + 1, 1)
    with refused(errno.ENOLCK):
        p9.lock(1, NONE, 4500, 1)  # would make two of one


# -- failures of the host ------------------------------------------------------


def test_permission_denied(p9: Client, share: Path) -> None:
    (share / "locked").mkdir(0o700)
    (share / "locked/file").touch()
    os.chmod(share / "hello", 0o400)
    os.chmod(share / "locked", 0)
    os.chmod(share, 0o755)
    p9.walk(0, 1, b"hello")
    p9.walk(0, 2, b"locked")
    with nobody():
        for attempt in (
            lambda: p9.walk(2, 3, b"file"),
            lambda: p9.lopen(1, os.O_RDWR),
            lambda: p9.lopen(2),
            lambda: p9.mkdir(2, b"new"),
        ):
            with refused(errno.EACCES):
                attempt()
    os.chmod(share / "locked", 0o700)


def test_a_file_may_not_grow(p9: Client, share: Path) -> None:
    """What fits is written, and is what the guest is told."""
    p9.walk(0, 1, b"empty")
    p9.lopen(1, os.O_RDWR)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert p9.write(1, 900, bytes(200)) == 100
        with refused(errno.EFBIG):
            p9.write(1, 1000, bytes(200))
        with refused(errno.EFBIG):
            p9.setattr(1, 0x8, size=1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (share / "empty").stat().st_size == 1000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_the_disk_fails(p9: Client, monkeypatch, number: int) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    p9.walk(0, 1, b"hello")
    p9.lopen(1, os.O_RDWR)
    for name in ("pwritev", "preadv"):
        monkeypatch.setattr(virtio, name, fail)
    for name in ("fsync", "mkdir", "statvfs"):
        monkeypatch.setattr(os, name, fail)
    for attempt in (
        lambda: p9.write(1, 0, b"x"),
        lambda: p9.read(1, 0, 10),
        lambda: p9.fsync(1),
        lambda: p9.mkdir(0, b"d"),
        lambda: p9.statfs(0),
    ):
        with refused(number):
            attempt()


def test_what_a_network_says_at_the_end(p9: Client, monkeypatch) -> None:
    """Data that was written is lost: who closes the file is told."""
    close = os.close

    def late(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "the server is gone")

    for fid in (1, 2, 3):
        p9.walk(0, fid, b"hello")
        p9.lopen(fid, os.O_RDWR)
    monkeypatch.setattr(os, "close", late)
    with refused(errno.EIO):
        p9.clunk(1)
    with refused(errno.EBADF):
        p9.clunk(1)
    p9.version()
    monkeypatch.undo()
    assert p9.drv.device._server.folder.held == 0


def test_an_error_without_a_number(p9: Client, monkeypatch) -> None:
    def fail(*args: object) -> int:
        raise OSError("of some library")

    monkeypatch.setattr(os, "statvfs", fail)
    with refused(errno.EIO):
        p9.statfs(0)


def test_the_folder_is_removed(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.lopen(1)
    for path in sorted(share.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    share.rmdir()
    with refused(errno.ENOENT):
        p9.mkdir(0, b"new")
    with refused(errno.ENOENT):
        p9.walk(0, 2, b"hello")
    assert p9.read(1, 0, 100) == TREE["hello"]
    assert p9.getattr(0)["nlink"] == 0
    p9.walk(0, 3)
    p9.lopen(3)


def test_a_file_is_truncated(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.lopen(1)
    os.truncate(share / "hello", 4)
    assert p9.read(1, 0, 100) == b"from"
    assert p9.read(1, 5, 100) == b""


def test_all_requests_have_a_method() -> None:
    assert {kind.value for kind in T} == {*REQUESTS} == {*TYPES.values()}
    for request in REQUESTS.values():
        if request.name not in ("read", "write"):  # that is data()
            assert callable(getattr(ninep.server.Server, request.name))

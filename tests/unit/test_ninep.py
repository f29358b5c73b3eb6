# SPDX-License-Identifier: Apache-2.0
"""virtio-9p: device, session and names.

test_ninep_files.py has files, attributes and locks, test_ninep_hostile.py what
is wrong.
"""

import contextlib
import errno
import gc
import os
import resource
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from p9client import NOFID, TYPES, Client, client, refused, request
from p9share import LINK, TREE, ident, make_share, qid_of, snapshot, writable

from pyvmm import virtio
from pyvmm.devices import NineP, ninep
from pyvmm.devices.ninep.wire import REQUESTS

WRITE = 1  # a lock


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return make_share(tmp_path)


@pytest.fixture
def p9(share: Path) -> Iterator[Client]:
    """A client that may write."""
    with client(writable(share)) as p9:
        yield p9


def descriptors() -> set[str]:
    """The files that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {name for name in found if "/share" in name}


# -- the device ----------------------------------------------------------------


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_what_it_is(share: Path, notify: str) -> None:
    device = NineP(share, "Ünder", notify=notify)
    with virtio.driver(device) as drv:
        assert drv.native.device_id == 9
        assert drv.features & 1
        size = drv.config["tag_size"]
        assert drv.config["tag"][:size].decode() == "Ünder"
        assert drv.read_config(2 + size, 1) == b"\0"
        assert repr(device).endswith(f", {str(share)!r} read only>")
    with client(NineP(share, notify=notify)) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1)
        assert p9.read(1, 0, 100) == TREE["hello"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tag": ""}, "tag '' is not 1 to 254 bytes"),
        ({"tag": "x" * 255}, "is not 1 to 254 bytes"),
        ({"tag": "a\0b"}, "without NUL"),
        ({"msize": 4095}, "msize 4095 is not 4096 to 16777216"),
        ({"msize": (16 << 20) + 1}, "msize 16777217 is not"),
        ({"limit": 15}, "limit 15 is less than 16"),
    ],
)
def test_arguments_that_are_refused(share, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        NineP(share, **options)


def test_folders_that_are_none(share: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        NineP(share / "nowhere")
    with pytest.raises(NotADirectoryError, match="hello"):
        NineP(share / "hello")


def test_proc_is_needed(share: Path, monkeypatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(OSError, match="/proc"):
        NineP(share)


@pytest.mark.parametrize(
    ("files", "limit"), [(1024, 512), (20, 16), (-1, 16384), (1 << 20, 16384)]
)
def test_the_usual_limit(share, monkeypatch, files, limit) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    assert NineP(share).limit == limit


def test_a_folder_that_is_renamed_is_still_the_one(share: Path) -> None:
    device = NineP(share, notify="inline")
    share.rename(share.parent / "renamed")
    share.mkdir()
    with client(device) as p9:
        assert len(p9.walk(0, 1, b"hello")) == 1


def test_nothing_stays_open(share: Path) -> None:
    gc.collect()
    before = descriptors()
    device = writable(share)
    with client(device) as p9:
        p9.walk(0, 1, b"sub", b"deep", b"file")
        p9.lopen(1, os.O_RDWR)
        p9.walk(0, 2)
        p9.lcreate(2, b"new", os.O_RDWR)
        p9.walk(1, 3)
        p9.walk(0, 4, b"sub", b"..", b"sub")
        p9.lopen(4)
        p9.rename(3, 0, b"elsewhere")
        assert len(descriptors() - before) > 6
        for fid in range(1, 5):
            p9.clunk(fid)
        assert len(descriptors() - before) == 2  # the folder, and fid 0
        assert device._server.folder.held == 1
        p9.walk(0, 1, b"sub")
    assert len(descriptors() - before) == 1
    del device, p9
    gc.collect()
    assert descriptors() == before


# -- session -------------------------------------------------------------------


def test_version(share: Path) -> None:
    device = NineP(share, notify="inline", msize=1 << 16)
    with virtio.driver(device) as drv:
        p9 = Client(drv)
        assert p9.version(8192) == (8192, b"9P2000.L")
        assert p9.version(NOFID) == (1 << 16, b"9P2000.L")
        with refused(errno.EMSGSIZE):
            p9.version(4095)
        for other in (b"9P2000", b"9P2000.u", b"9P2000.L2", b""):
            assert p9.version(8192, other) == (8192, b"unknown")
            with refused(errno.EPROTO):
                p9.attach(0)


def test_a_version_begins_anew(p9: Client) -> None:
    p9.walk(0, 1, b"hello")
    p9.lopen(1)
    p9.lock(1, 1)
    p9.version()
    with refused(errno.EBADF):
        p9.getattr(1)
    p9.attach(1)
    assert p9.drv.device._server.folder.held == 1
    assert p9.drv.device._server.locks.count == 0


def test_attach(p9: Client, share: Path) -> None:
    assert ident(p9.attach(1)) == qid_of(share)
    assert ident(p9.attach(2, b"/")) == qid_of(share)
    with refused(errno.ENOENT):
        p9.attach(3, b"/etc")
    with refused(errno.EBADF):
        p9.attach(3, afid=1)
    with refused(errno.EBADF):
        p9.attach(1)
    with refused(errno.EBADF):
        p9.attach(NOFID)


def test_flush(p9: Client) -> None:
    p9.flush(p9.tag)
    p9.flush(0xFFFF)


def test_what_there_is_not(p9: Client) -> None:
    with refused(errno.EOPNOTSUPP):
        p9.ask("auth", "IssI", 1, b"root", b"", 0)
    with refused(errno.EOPNOTSUPP):
        p9.ask("xattrwalk", "IIs", 0, 1, b"security.capability")
    with refused(errno.EOPNOTSUPP):
        p9.ask("xattrcreate", "IsQI", 0, b"user.x", 1, 0)
    for kind in {*range(256)} - {*TYPES.values()}:
        with refused(errno.EOPNOTSUPP):
            p9.send(kind, b"")


def test_clunk(p9: Client) -> None:
    p9.clunk(0)
    with refused(errno.EBADF):
        p9.clunk(0)


def test_the_sizes_of_answers_are_known_before(p9: Client) -> None:
    """What has an effect is not done when its answer has no room."""
    p9.walk(0, 1, b"hello")
    p9.lopen(1, os.O_RDWR)
    p9.walk(0, 2)
    p9.walk(0, 3, b"inside")
    p9.walk(0, 4, b"empty")
    asked = {
        "statfs": ("I", 0),
        "lopen": ("II", 4, 0),
        "lcreate": ("IsIII", 2, b"new", 1, 0o644, 0),
        "symlink": ("IssI", 0, b"l", b"t", 0),
        "mknod": ("IsIIII", 0, b"n", 0o100644, 0, 0, 0),
        "getattr": ("IQ", 0, 0),
        "mkdir": ("IsII", 0, b"d", 0o755, 0),
        "attach": ("IIssI", 9, NOFID, b"", b"", 0),
        "walk": ("IIHss", 0, 8, 2, b"sub", b"deep"),
        "readlink": ("I", 3),
        "getlock": ("IBQQIs", 1, 0, 0, 0, 1, b"guest"),
    }
    for name, (layout, *fields) in asked.items():
        with refused(errno.EMSGSIZE):
            size = REQUESTS[TYPES[name]].reply + {"walk": 26}.get(name, 0)
            size = {"readlink": 17, "getlock": 35}.get(name, size)
            p9.ask(name, layout, *fields, room=size - 1)
        assert len(p9.ask(name, layout, *fields, room=size)) == size - 7
    assert p9.drv.device.faults == 0


def test_no_room_for_an_error(p9: Client) -> None:
    body = struct.pack("<II", 0, 1)
    for room in (0, 1, 10):
        assert p9.drv.requests(b"\x0f\0\0\0\x6e\1\0" + body, reply=room) == b""
    assert p9.drv.device.faults == 3


# -- names ---------------------------------------------------------------------


def test_walk(p9: Client, share: Path) -> None:
    qids = p9.walk(0, 1, b"sub", b"deep", b"file")
    paths = (share / "sub", share / "sub/deep", share / "sub/deep/file")
    assert [*map(ident, qids)] == [*map(qid_of, paths)]
    assert p9.walk(1, 2) == []
    assert p9.getattr(2) == p9.getattr(1)
    with refused(errno.EBADF):
        p9.walk(0, 1, b"hello")  # taken
    with refused(errno.EBADF):
        p9.walk(9, 3)
    with refused(errno.EBADF):
        p9.walk(0, NOFID)
    assert p9.walk(1, 1) == []
    # A fid may move itself on, and stays where it was if it cannot.
    p9.walk(0, 3, b"sub")
    assert len(p9.walk(3, 3, b"deep")) == 1
    assert len(p9.walk(3, 3, b"..", b"nothing")) == 1
    assert len(p9.walk(3, 3, b"file")) == 1


def test_partial_walk(p9: Client, share: Path) -> None:
    qids = p9.walk(0, 1, b"sub", b"nothing", b"file")
    assert [*map(ident, qids)] == [qid_of(share / "sub")]
    with refused(errno.EBADF):
        p9.getattr(1)
    with refused(errno.ENOENT):
        p9.walk(0, 1, b"nothing", b"sub")


def test_walk_has_16_names(p9: Client, share: Path) -> None:
    path = share
    for _ in range(17):
        path /= "d"
        path.mkdir()
    assert len(p9.walk(0, 1, *[b"d"] * 16)) == 16
    with refused(errno.EINVAL):
        p9.walk(0, 2, *[b"d"] * 17)
    assert ident(p9.walk(1, 1, b"d")[0]) == qid_of(path)


def test_up(p9: Client, share: Path) -> None:
    top, sub = qid_of(share), qid_of(share / "sub")
    assert [*map(ident, p9.walk(0, 1, b"..", b".."))] == [top, top]
    p9.walk(0, 2, b"sub", b"deep")
    assert [*map(ident, p9.walk(2, 3, b"..", b"..", b".."))] == [sub, top, top]
    p9.walk(0, 4, b"hello")
    with refused(errno.ENOTDIR):
        p9.walk(4, 5, b"..")


def test_up_from_what_was_moved_out(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"sub", b"deep")
    (share / "sub").rename(share.parent / "outside/sub")
    with refused(errno.ENOENT):
        p9.walk(1, 2, b"..")
    (share.parent / "outside/sub").rename(share / "back")
    assert ident(p9.walk(1, 2, b"..")[0]) == qid_of(share / "back")


def test_up_is_bounded(p9: Client, share: Path) -> None:
    fd = os.open(share, os.O_PATH)
    for _ in range(ninep.folder.CLIMB + 2):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    p9.walk(0, 1)
    for _ in range(ninep.folder.CLIMB // 16):
        assert len(p9.walk(1, 1, *[b"d"] * 16)) == 16
    p9.walk(1, 2, b"..")
    p9.walk(1, 1, b"d", b"d")
    with refused(errno.ELOOP):
        p9.walk(1, 3, b"..")


def test_the_root_of_everything(share: Path) -> None:
    """Where the folder is "/" itself, what is above is it again."""
    with client(NineP("/", notify="inline")) as p9:
        assert ident(p9.walk(0, 1, b"proc", b"..")[1]) == qid_of(Path("/"))
        assert p9.drv.device._server.save()["fids"][1][1] == ""
        p9.walk(0, 2, b"proc", b"self")
        assert p9.readlink(2) == str(os.getpid()).encode()
        with refused(errno.ENOTDIR):
            p9.walk(2, 3, b"fd")


@pytest.mark.parametrize(
    "name", [b"", b".", b"sub/deep", b"/", b"/etc", b"a\0", b"\0", b"../.."]
)
def test_names_that_are_none(p9: Client, share: Path, name: bytes) -> None:
    for attempt in (
        lambda: p9.walk(0, 1, name),
        lambda: p9.mkdir(0, name),
        lambda: p9.mknod(0, name, 0o100644),
        lambda: p9.symlink(0, name, b"x"),
        lambda: p9.link(0, 5, name),
        lambda: p9.rename(5, 0, name),
        lambda: p9.renameat(0, name, 0, b"x"),
        lambda: p9.renameat(0, b"hello", 0, name),
        lambda: p9.unlinkat(0, name),
        lambda: p9.unlinkat(0, name, 0x200),
        lambda: p9.lcreate(6, name, os.O_RDWR),
    ):
        p9.walk(0, 5, b"hello")
        p9.walk(0, 6)
        with refused(errno.EINVAL):
            attempt()
        p9.clunk(5)
        p9.clunk(6)
    assert (share / "hello").exists()


def test_dots_are_for_walks_alone(p9: Client) -> None:
    p9.walk(0, 1, b"sub")
    for attempt in (
        lambda: p9.mkdir(1, b".."),
        lambda: p9.unlinkat(1, b"..", 0x200),
        lambda: p9.renameat(1, b"..", 0, b"x"),
        lambda: p9.lcreate(1, b"..", os.O_RDONLY),
    ):
        with refused(errno.EINVAL):
            attempt()


def test_long_names(p9: Client) -> None:
    p9.mkdir(0, b"x" * 255)
    for length in (256, 60000):
        with refused(errno.ENAMETOOLONG):
            p9.mkdir(0, b"x" * length)
        with refused(errno.ENAMETOOLONG):
            p9.walk(0, 1, b"x" * length)


def test_any_bytes_are_a_name(p9: Client, share: Path) -> None:
    name = bytes({*range(1, 256)} - {ord("/")})[:200] + b"\xff\n"
    p9.mkdir(0, name)
    assert name in os.listdir(os.fsencode(share))
    assert len(p9.walk(0, 1, name)) == 1
    p9.walk(0, 2)
    p9.lopen(2)
    assert name in p9.list(2)


def test_links_are_not_followed(p9: Client, share: Path) -> None:
    for name in (b"inside", b"away", b"abs"):
        assert p9.walk(0, 1, name, b"secret")[0].type == LINK
        assert p9.walk(0, 1, name)[0].type == LINK
        assert p9.readlink(1) == os.readlink(os.fsencode(share) + b"/" + name)
        for attempt in (
            lambda: p9.walk(1, 2, b"secret"),
            lambda: p9.mkdir(1, b"new"),
            lambda: p9.unlinkat(1, b"secret"),
            lambda: p9.lcreate(1, b"new", os.O_RDWR),
            lambda: p9.renameat(1, b"secret", 0, b"x"),
        ):
            with refused(errno.ENOTDIR):
                attempt()
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_DIRECTORY):
            with refused(errno.ELOOP):
                p9.lopen(1, flags)
        p9.clunk(1)
    p9.walk(0, 3)
    with refused(errno.ELOOP):
        p9.lcreate(3, b"away", os.O_RDWR)
    p9.walk(0, 4, b"hello")
    with refused(errno.EINVAL):
        p9.readlink(4)


def test_symlink(p9: Client, share: Path) -> None:
    qid = p9.symlink(0, b"link", b"/etc/shadow")
    assert ident(qid) == qid_of(share / "link")
    assert os.readlink(share / "link") == "/etc/shadow"
    with refused(errno.EEXIST):
        p9.symlink(0, b"link", b"x")
    with refused(errno.EINVAL):
        p9.symlink(0, b"other", b"a\0b")
    with refused(errno.ENOENT):
        p9.symlink(0, b"other", b"")
    p9.symlink(0, b"long", b"x" * 4095)
    p9.walk(0, 1, b"long")
    assert p9.ask("readlink", "I", 1, room=8192)[2:] == b"x" * 4095
    with refused(errno.ENAMETOOLONG):
        p9.symlink(0, b"other", b"x" * 4096)


def test_mkdir(p9: Client, share: Path) -> None:
    assert ident(p9.mkdir(0, b"d", 0o6750)) == qid_of(share / "d")
    assert stat.S_IMODE((share / "d").stat().st_mode) == 0o750
    with refused(errno.EEXIST):
        p9.mkdir(0, b"d")
    p9.walk(0, 1, b"hello")
    with refused(errno.ENOTDIR):
        p9.mkdir(1, b"d")


def test_mknod(p9: Client, share: Path) -> None:
    """Linux makes files so, too; anything else is not for a guest."""
    assert ident(p9.mknod(0, b"f", 0o100640)) == qid_of(share / "f")
    assert stat.S_IMODE((share / "f").stat().st_mode) == 0o640
    p9.mknod(0, b"g", 0o600)
    with refused(errno.EEXIST):
        p9.mknod(0, b"f", 0o100600)
    for form in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        with refused(errno.EPERM):
            p9.mknod(0, b"special", form | 0o600)
    with refused(errno.EPERM):
        p9.mknod(0, b"suid", 0o104755)
    assert not {"special", "suid"} & {*os.listdir(share)}


def test_link(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.walk(0, 2, b"sub")
    p9.link(2, 1, b"hard")
    assert (share / "sub/hard").samefile(share / "hello")
    p9.walk(0, 3, b"away")
    p9.link(0, 3, b"away too")
    assert os.readlink(share / "away too") == "../outside"
    with refused(errno.EPERM):
        p9.link(0, 2, b"directory")
    with refused(errno.EEXIST):
        p9.link(2, 1, b"hard")
    with refused(errno.ENOTDIR):
        p9.link(1, 1, b"x")


def test_rename(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.walk(0, 2, b"sub")
    p9.rename(1, 2, b"moved")
    assert (share / "sub/moved").read_bytes() == TREE["hello"]
    p9.rename(1, 2, b"again")
    assert (share / "sub/again").exists()
    with refused(errno.EBUSY):
        p9.rename(0, 2, b"root")
    (share / "sub/again").rename(share / "by the host")
    with refused(errno.ENOENT):
        p9.rename(1, 0, b"x")
    (share / "sub/again").write_bytes(b"another one")
    with refused(errno.ENOENT):
        p9.rename(1, 0, b"x")
    p9.walk(0, 3, b"sub", b"..")
    with refused(errno.EBUSY):
        p9.rename(3, 2, b"x")


def test_renameat(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"sub")
    p9.renameat(0, b"hello", 1, b"moved")
    assert (share / "sub/moved").exists()
    p9.renameat(1, b"moved", 0, b"empty")  # replaces
    assert (share / "empty").read_bytes() == TREE["hello"]
    with refused(errno.ENOENT):
        p9.renameat(0, b"nothing", 1, b"x")
    with refused(errno.EINVAL):
        p9.renameat(0, b"sub", 1, b"into itself")
    with refused(errno.ENOTDIR):
        p9.renameat(0, b"sub", 0, b"empty")
    p9.renameat(0, b"away", 1, b"away")  # the link, not what it says
    assert os.readlink(share / "sub/away") == "../outside"


def test_unlinkat(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.unlinkat(0, b"hello")
    assert not (share / "hello").exists()
    assert p9.getattr(1)["nlink"] == 0
    p9.lopen(1)
    assert p9.read(1, 0, 100) == TREE["hello"]  # it is still held
    p9.unlinkat(0, b"away")
    assert (share.parent / "outside").exists()
    with refused(errno.EISDIR):
        p9.unlinkat(0, b"sub")
    with refused(errno.ENOTEMPTY):
        p9.unlinkat(0, b"sub", 0x200)
    with refused(errno.ENOTDIR):
        p9.unlinkat(0, b"empty", 0x200)
    with refused(errno.EINVAL):
        p9.unlinkat(0, b"empty", 0x201)
    (share / "dir").mkdir()
    p9.unlinkat(0, b"dir", 0x200)
    assert not (share / "dir").exists()


def test_remove(p9: Client, share: Path) -> None:
    p9.walk(0, 1, b"hello")
    p9.lopen(1)
    p9.remove(1)
    assert not (share / "hello").exists()
    p9.walk(0, 1, b"sub")
    with refused(errno.ENOTEMPTY):
        p9.remove(1)
    with refused(errno.EBADF):
        p9.remove(1)  # ended all the same
    (share / "dir").mkdir()
    p9.walk(0, 1, b"dir")
    p9.remove(1)
    assert not (share / "dir").exists()
    p9.walk(0, 1)
    with refused(errno.EBUSY):
        p9.remove(1)


# -- read only -----------------------------------------------------------------


def test_read_only(share: Path) -> None:
    before = snapshot(share)
    with client(NineP(share, notify="inline")) as p9:
        for fid, name in ((1, b"hello"), (2, b"sub"), (3, b"hello")):
            p9.walk(0, fid, name)
        p9.walk(0, 4)
        p9.lopen(3, os.O_RDONLY | os.O_APPEND)
        changes = {
            "lcreate": lambda: p9.lcreate(4, b"new", os.O_RDONLY),
            "symlink": lambda: p9.symlink(0, b"new", b"x"),
            "mknod": lambda: p9.mknod(0, b"new", 0o100644),
            "rename": lambda: p9.rename(1, 2, b"new"),
            "setattr": lambda: p9.setattr(1, 0x1FF),
            "xattrcreate": lambda: p9.ask(
                "xattrcreate", "IsQI", 1, b"user.x", 1, 0
            ),
            "link": lambda: p9.link(0, 1, b"new"),
            "mkdir": lambda: p9.mkdir(0, b"new"),
            "renameat": lambda: p9.renameat(0, b"hello", 0, b"new"),
            "unlinkat": lambda: p9.unlinkat(0, b"hello"),
            "write": lambda: p9.write(3, 0, b"x"),
            "remove": lambda: p9.remove(1),
        }
        assert {*changes} == {r.name for r in REQUESTS.values() if r.changes}
        for attempt in changes.values():
            with refused(errno.EROFS):
                attempt()
        with refused(errno.EBADF):
            p9.getattr(1)  # remove() ends a fid in any case
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC):
            p9.walk(0, 1, b"hello")
            with refused(errno.EROFS):
                p9.lopen(1, flags)
            p9.clunk(1)
        assert p9.read(3, 0, 100) == TREE["hello"]
        assert p9.lock(3, 0) == 0
    assert snapshot(share) == before


# -- limits --------------------------------------------------------------------


def test_fids_are_limited(share: Path) -> None:
    with client(NineP(share, limit=16, notify="inline")) as p9:
        for fid in range(1, 16):
            p9.walk(0, fid)  # of the same inode: no descriptors
        for attempt in (lambda: p9.walk(0, 16), lambda: p9.attach(16)):
            with refused(errno.EMFILE):
                attempt()
        p9.clunk(5)
        p9.walk(0, 16)


def test_descriptors_are_limited(share: Path) -> None:
    with client(NineP(share, readonly=False, limit=16, notify="inline")) as p9:
        for fid in range(1, 8):
            p9.walk(0, fid, b"hello")
            p9.lopen(fid)
        p9.walk(0, 8, b"sub")
        for attempt in (
            lambda: p9.walk(0, 9, b"hello"),
            lambda: p9.walk(0, 9, b".."),
            lambda: p9.lopen(8),
            lambda: p9.mknod(0, b"new", 0o100644),
        ):
            with refused(errno.EMFILE):
                attempt()
        p9.walk(0, 9)
        with refused(errno.EMFILE):
            p9.lcreate(9, b"new", os.O_RDWR)
        p9.clunk(8)
        with refused(errno.EMFILE):
            p9.lcreate(9, b"new", os.O_RDWR)  # needs two
        assert not (share / "new").exists()
        p9.clunk(7)
        p9.lcreate(9, b"new", os.O_RDWR)


def test_the_process_has_no_descriptors_left(p9: Client, monkeypatch) -> None:
    def full(*args: object, **options: object) -> int:
        raise OSError(errno.EMFILE, "too many")

    held = p9.drv.device._server.folder.held
    monkeypatch.setattr(os, "open", full)
    for attempt in (
        lambda: p9.walk(0, 1, b"sub"),
        lambda: p9.walk(0, 1, b"sub", b".."),
        lambda: p9.lopen(0),
        lambda: p9.attach(1),
    ):
        with refused(errno.EMFILE):
            attempt()
    assert p9.drv.device._server.folder.held == held


# -- life ----------------------------------------------------------------------


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_reset(share: Path, notify: str) -> None:
    device = NineP(share, notify=notify)
    with client(device) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1)
        p9.drv.reset()
        assert device._server.folder.held == 0
        p9.drv.start()
        with refused(errno.EPROTO):
            p9.getattr(0)
        p9.version()
        p9.attach(0)


def test_reset_while_the_disk_is_slow(share: Path, monkeypatch) -> None:
    """The vCPU that resets does not wait for it; what it had open goes after.

    The next session knows nothing of the one before, nor of a request that the
    driver had made then and that had no turn.
    """
    device = NineP(share, notify="thread")
    done, go_on = threading.Semaphore(0), threading.Semaphore(0)
    answer = ninep.answer

    def slow(server, chain):
        answer(server, chain)
        done.release()
        assert go_on.acquire(timeout=10)

    with client(device) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1)
        first = device._server
        monkeypatch.setattr(ninep, "answer", slow)
        send = p9.drv.requests.send
        send(request("read", "IQI", 1, 0, 10), reply=100)
        assert done.acquire(timeout=10)
        send(request("read", "IQI", 1, 0, 10), reply=100)
        send(request("version", "Is", 8192, b"9P2000.L"), reply=100)
        go_on.release()
        assert done.acquire(timeout=10)  # the device has taken both
        p9.drv.reset()
        assert first.folder.held == 3
        p9.drv.start()
        go_on.release(9)
        with refused(errno.EPROTO):
            p9.getattr(0)
        p9.version()
        p9.attach(1)
        assert first.folder.held == 0 and len(first.fids) == 0
        assert device._server.folder.held == 1


def test_detached_twice(share: Path) -> None:
    device = NineP(share, notify="inline")
    with client(device) as p9:
        p9.walk(0, 1)
    device.detached()
    assert device._server.folder.held == 0
    with client(device) as p9:
        p9.walk(0, 1, b"hello")


# -- state ---------------------------------------------------------------------


def test_save_and_restore(share: Path) -> None:
    first = writable(share)
    with client(first) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1, os.O_RDWR)
        p9.walk(0, 2, b"sub", b"deep")
        p9.lopen(2)
        p9.readdir(2, 0, 60)
        p9.walk(0, 3, b"away")
        p9.walk(0, 4, b"empty")
        p9.lopen(4, os.O_WRONLY | os.O_TRUNC)
        p9.walk(0, 5, b"sub")
        p9.walk(5, 6, b"deep", b"file")
        p9.walk(0, 7)
        p9.lcreate(7, b"gone", os.O_RDWR)
        p9.walk(0, 8, b"sub", b"deep", b"..")
        p9.lock(1, WRITE, 5, 10)
        p9.lock(7, WRITE)
        p9.renameat(0, b"sub", 0, b"renamed")
        p9.unlinkat(0, b"gone")
        state = first.save()
        p9.write(4, 0, b"kept")
    (share / "renamed/deep/file").rename(share / "renamed/deep/other")
    (share / "renamed/deep/file").write_bytes(b"another")
    assert eval(repr(state)) == state  # numbers and strings

    second = writable(share)
    with virtio.driver(second) as drv:
        second.restore(state)
        p9 = Client(drv)
        assert p9.read(1, 0, 100) == TREE["hello"]
        assert p9.write(1, 0, b"F") == 1
        assert {*p9.list(2)} == {b".", b"..", b"file", b"other"}
        assert p9.readlink(3) == b"../outside"
        assert p9.write(4, 4, b"!") == 1
        assert (share / "empty").read_bytes() == b"kept!"
        assert len(p9.walk(5, 10, b"deep")) == 1
        p9.rename(5, 0, b"sub")
        assert len(p9.walk(8, 11, b"deep")) == 1
        for fid in (6, 7):
            for attempt in (
                lambda fid=fid: p9.getattr(fid),
                lambda fid=fid: p9.read(fid, 0, 1),
                lambda fid=fid: p9.walk(fid, 20),
                lambda fid=fid: p9.lopen(fid),
                lambda fid=fid: p9.mkdir(fid, b"x"),
                lambda fid=fid: p9.rename(fid, 0, b"x"),
            ):
                with refused(errno.ESTALE):
                    attempt()
        p9.clunk(6)
        with refused(errno.ESTALE):
            p9.remove(7)
        with refused(errno.EBADF):
            p9.clunk(7)
        assert p9.getlock(1, WRITE, process=2)[:3] == (WRITE, 5, 10)
        assert second._server.locks.count == 1


def test_restore_keeps_what_is_there(share: Path) -> None:
    """An open file that has no name any more lives through a reload."""
    device = writable(share)
    with client(device) as p9:
        p9.walk(0, 1, b"hello")
        p9.lopen(1, os.O_RDWR)
        p9.walk(0, 2, b"sub")
        p9.lopen(2)
        p9.lock(1, WRITE)
        p9.unlinkat(0, b"hello")
        entries = p9.readdir(2, 0, 60)
        p9.drv.reload()
        assert p9.read(1, 0, 100) == TREE["hello"]
        assert p9.getlock(1, WRITE, process=2)[0] == WRITE
        assert p9.readdir(2, entries[-1].cookie)
        # Back to then: what came since is gone, what is open otherwise too.
        state = device.save()
        p9.walk(0, 3)
        p9.clunk(2)
        p9.walk(0, 2, b"sub")
        p9.clunk(1)
        device.restore(state)
        assert {*p9.list(2)} == {b".", b"..", b"deep"}
        for fid, number in ((1, errno.ESTALE), (3, errno.EBADF)):
            with refused(number):
                p9.getattr(fid)


def test_restore_does_not_trust(share: Path) -> None:
    """A state that was tampered with leads nowhere but into the folder."""
    secret = (share.parent / "outside/secret").stat()
    inode = [secret.st_dev, secret.st_ino]
    device = NineP(share, notify="inline")
    with virtio.driver(device) as drv:
        paths = ["../outside/secret", "away/secret", "/etc/passwd", "a//b", "x"]
        fids = [[i, path, inode, 0] for i, path in enumerate(paths)]
        fids += [[10, None, None, 0], [11, "hello", None, 0]]
        info = (share / "hello").stat()
        same = [info.st_dev, info.st_ino]
        fids.append([12, "hello", same, os.O_RDWR])  # it is read only here
        fids.append([13, "hello", same, None])
        device.restore({"msize": 8192, "fids": fids, "locks": []})
        p9 = Client(drv)
        for fid, *_ in fids[:-1]:
            with refused(errno.ESTALE):
                p9.getattr(fid)
        assert p9.getattr(13)["size"] == len(TREE["hello"])
        assert device._server.folder.held == 2
    for state in ({}, {"msize": 1, "fids": [], "locks": [], "more": 1}):
        with pytest.raises(ValueError, match="state of a session"):
            device.restore(state)

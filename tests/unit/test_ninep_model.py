# SPDX-License-Identifier: Apache-2.0
"""virtio-9p against a model of a file system made of dicts."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from p9client import Client, Entry
from p9share import DIR, FILE, LINK, writable

from pyvmm import virtio

E = errno
NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
ODD = st.sampled_from([b"", b".", b"..", b"..", b"a/b", b"a\0"])
ANY_NAME = st.one_of(NAMES, NAMES, NAMES, NAMES, ODD)
ALL_FIDS = range(6)
PATHS = st.lists(NAMES, max_size=2) | st.lists(ANY_NAME, max_size=4)
MODES = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
FLAGS = st.sampled_from([0, os.O_TRUNC, os.O_EXCL])
TYPES = {DIR: stat.S_IFDIR, LINK: stat.S_IFLNK, FILE: stat.S_IFREG}


class Refused(Exception):
    """The model says that it cannot be done, and why."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


class Inode:
    """A directory (`entries`), a file (`data`) or a link (`target`)."""

    def __init__(self, kind: int, parent: "Inode | None" = None) -> None:
        self.kind = kind
        self.entries: dict[bytes, Inode] = {}
        self.data = bytearray()
        self.target = b""
        self.links = 1
        self.parent = parent  # of a directory
        self.removed = False

    def folder(self) -> "Inode":
        if self.kind != DIR:
            raise Refused(E.ENOTDIR)
        return self

    def find(self, name: bytes) -> "Inode":
        if name not in self.entries:
            raise Refused(E.ENOENT)
        return self.entries[name]

    def check_new(self, name: bytes) -> None:
        if name in self.entries:
            raise Refused(E.EEXIST)
        if self.removed:
            raise Refused(E.ENOENT)

    def above(self) -> "list[Inode]":
        """Itself and all directories above."""
        found = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found


class Fid:
    def __init__(
        self, inode: Inode, place: "tuple[Inode, bytes] | None" = None
    ) -> None:
        self.inode = inode
        self.place = place
        self.mode: int | None = None  # how it is open

    def closed(self) -> Inode:
        if self.mode is not None:
            raise Refused(E.EINVAL)
        return self.inode

    def opened(self, *modes: int) -> Inode:
        if self.mode is None or (modes and self.mode not in modes):
            raise Refused(E.EBADF)
        return self.inode


def checked(name: bytes) -> bytes:
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise Refused(E.EINVAL)
    return name


class Model:
    """What each request does, or why it cannot."""

    def __init__(self) -> None:
        self.root = Inode(DIR)
        self.fids = {0: Fid(self.root)}

    def get(self, fid: int) -> Fid:
        if fid not in self.fids:
            raise Refused(E.EBADF)
        return self.fids[fid]

    def walk(self, fid: int, new: int, *names: bytes) -> int:
        start = self.get(fid)
        if new != fid and new in self.fids:
            raise Refused(E.EBADF)
        if new == fid and names:
            start.closed()
        if new == fid and not names:
            return 0
        here = Fid(start.inode, start.place)
        for i, name in enumerate(names):
            try:
                here = self.step(here, name)
            except Refused:
                if not i:
                    raise
                return i
        self.fids[new] = here
        return len(names)

    def step(self, here: Fid, name: bytes) -> Fid:
        folder = here.inode.folder()
        if name == b"..":
            return Fid(folder.parent or folder)
        return Fid(folder.find(checked(name)), (folder, name))

    def clunk(self, fid: int) -> None:
        self.get(fid)
        del self.fids[fid]

    def getattr(self, fid: int) -> tuple[int, int | None, int | None]:
        inode = self.get(fid).inode
        if inode.kind == DIR:
            return TYPES[DIR], None, None
        size = len(inode.data) or len(inode.target)
        return TYPES[inode.kind], size, inode.links

    def mkdir(self, fid: int, name: bytes) -> None:
        folder = self.get(fid).inode.folder()
        folder.check_new(checked(name))
        folder.entries[name] = Inode(DIR, folder)

    def mknod(self, fid: int, name: bytes, mode: int = 0) -> None:
        folder = self.get(fid).inode.folder()
        folder.check_new(checked(name))
        folder.entries[name] = Inode(FILE)

    def symlink(self, fid: int, name: bytes, target: bytes) -> None:
        folder = self.get(fid).inode.folder()
        folder.check_new(checked(name))
        folder.entries[name] = Inode(LINK)
        folder.entries[name].target = target

    def readlink(self, fid: int) -> bytes:
        inode = self.get(fid).inode
        if inode.kind != LINK:
            raise Refused(E.EINVAL)
        return inode.target

    def link(self, directory: int, fid: int, name: bytes) -> None:
        folder = self.get(directory).inode.folder()
        inode = self.get(fid).inode
        if inode.kind == DIR:
            raise Refused(E.EPERM)
        folder.check_new(checked(name))
        if not inode.links:
            raise Refused(E.ENOENT)
        folder.entries[name] = inode
        inode.links += 1

    def renameat(self, fid: int, name: bytes, into: int, new: bytes) -> None:
        before = self.get(fid).inode.folder()
        self._rename(before, name, self.get(into).inode.folder(), new)

    def rename(self, fid: int, into: int, new: bytes) -> None:
        moved = self.get(fid)
        folder = self.get(into).inode.folder()
        before, name = self.place(moved)
        self._rename(before, name, folder, new)
        moved.place = folder, new

    def place(self, fid: Fid) -> tuple[Inode, bytes]:
        if fid.place is None:
            raise Refused(E.EBUSY)
        folder, name = fid.place
        if folder.entries.get(name) is not fid.inode:
            raise Refused(E.ENOENT)
        return fid.place

    def _rename(
        self, before: Inode, name: bytes, into: Inode, new: bytes
    ) -> None:
        moved = before.find(checked(name) and checked(new) and name)
        there = into.entries.get(new)
        if moved in into.above():
            raise Refused(E.EINVAL)
        if there is not None and there in before.above():
            raise Refused(E.ENOTEMPTY)
        if into.removed:
            raise Refused(E.ENOENT)
        if there is moved:
            return
        if there is not None:
            if moved.kind == DIR and there.kind != DIR:
                raise Refused(E.ENOTDIR)
            if moved.kind != DIR and there.kind == DIR:
                raise Refused(E.EISDIR)
            if there.entries:
                raise Refused(E.ENOTEMPTY)
            there.links -= 1
            there.removed = there.kind == DIR
        del before.entries[name]
        into.entries[new] = moved
        if moved.kind == DIR:
            moved.parent = into

    def unlinkat(self, fid: int, name: bytes, rmdir: bool) -> None:
        folder = self.get(fid).inode.folder()
        inode = folder.find(checked(name))
        if rmdir and inode.kind != DIR:
            raise Refused(E.ENOTDIR)
        if not rmdir and inode.kind == DIR:
            raise Refused(E.EISDIR)
        if inode.entries:
            raise Refused(E.ENOTEMPTY)
        inode.links -= 1
        inode.removed = rmdir
        del folder.entries[name]

    def remove(self, fid: int) -> None:
        gone = self.get(fid)
        del self.fids[fid]
        folder, name = self.place(gone)
        self.fids[-1] = Fid(folder)
        try:
            self.unlinkat(-1, name, gone.inode.kind == DIR)
        finally:
            del self.fids[-1]

    def lopen(self, fid: int, mode: int, flags: int) -> None:
        opened = self.get(fid)
        inode = opened.closed()
        if inode.kind == LINK:
            raise Refused(E.ELOOP)
        truncates = flags & os.O_TRUNC
        if inode.kind == DIR and (mode != os.O_RDONLY or truncates):
            raise Refused(E.EISDIR)
        if truncates:
            inode.data.clear()
        opened.mode = mode

    def lcreate(self, fid: int, name: bytes, mode: int, flags: int) -> None:
        created = self.get(fid)
        created.closed()
        folder = created.inode.folder()
        try:
            folder.check_new(checked(name))
        except Refused as exc:
            if exc.number != E.EEXIST or flags & os.O_EXCL:
                raise
            self.fids[-1] = Fid(folder.entries[name], (folder, name))
            try:
                self.lopen(-1, mode, flags)
            finally:
                opened = self.fids.pop(-1)
            self.fids[fid] = opened
            return
        folder.entries[name] = Inode(FILE)
        self.fids[fid] = Fid(folder.entries[name], (folder, name))
        self.fids[fid].mode = mode

    def read(self, fid: int, offset: int, count: int) -> bytes:
        inode = self.get(fid).opened(os.O_RDONLY, os.O_RDWR)
        if inode.kind == DIR:
            raise Refused(E.EISDIR)
        return bytes(inode.data[offset : offset + count])

    def write(self, fid: int, offset: int, data: bytes) -> int:
        inode = self.get(fid).opened(os.O_WRONLY, os.O_RDWR)
        if data:
            gap = offset - len(inode.data)
            inode.data += bytes(max(gap, 0))
            inode.data[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, fid: int, size: int) -> None:
        inode = self.get(fid).inode
        if inode.kind == DIR:
            raise Refused(E.EISDIR)
        if inode.kind == LINK:
            raise Refused(E.EINVAL)
        del inode.data[size:]
        inode.data += bytes(size - len(inode.data))

    def list(self, fid: int) -> dict[bytes, int]:
        folder = self.get(fid).opened().folder()
        if folder.removed:
            raise Refused(E.ENOENT)
        found = {name: inode.kind for name, inode in folder.entries.items()}
        return found | {b".": DIR, b"..": DIR}


def choose(
    wanted: Callable[[Fid | None], object],
) -> st.SearchStrategy[int]:
    """The number of a fid like that, as a rule; sometimes any other."""

    def find(both: "Both") -> st.SearchStrategy[int]:
        fids = both.model.fids
        found = [n for n in ALL_FIDS if wanted(fids.get(n))]
        return st.sampled_from(found or ALL_FIDS)

    likely = st.runner().flatmap(find)
    return st.one_of(*[likely] * 5, st.sampled_from(ALL_FIDS))


LIVE = choose(lambda fid: fid)
FREE = choose(lambda fid: not fid)
FOLDER = choose(lambda fid: fid and fid.inode.kind == DIR)
CLOSED = choose(lambda fid: fid and fid.mode is None)
OPENED = choose(lambda fid: fid and fid.mode is not None)
OPEN_FILE = choose(lambda fid: fid and fid.mode and fid.inode.kind == FILE)
OPEN_FOLDER = choose(
    lambda fid: fid and fid.mode is not None and fid.inode.kind == DIR
)
CLOSED_FOLDER = choose(
    lambda fid: fid and fid.mode is None and fid.inode.kind == DIR
).filter(bool)
A_LINK = choose(lambda fid: fid and fid.inode.kind == LINK)


class Both(RuleBasedStateMachine):
    """Every request goes to the device and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.share = Path(tempfile.mkdtemp(prefix="pyvmm-9p-"))
        self.drv = virtio.driver(writable(self.share))
        self.p9 = Client(self.drv)
        self.p9.version()
        self.p9.attach(0)
        self.model = Model()
        for does in (self.p9, self.model):
            does.mkdir(0, b"a")
            does.mknod(0, b"b", 0o100644)
            does.symlink(0, b"c", b"a")
            for fid, name in enumerate((b"a", b"b", b"c"), 1):
                does.walk(0, fid, name)
        self.p9.lopen(2, os.O_RDWR)
        self.model.lopen(2, os.O_RDWR, 0)

    def teardown(self) -> None:
        self.drv.close()
        shutil.rmtree(self.share)

    def same(
        self,
        real: Callable[[], Any],
        model: Callable[[], Any],
        seen: Callable[[Any], Any] = lambda answer: None,
    ) -> None:
        """Both do it, with the same answer, or both refuse it."""
        try:
            expected: Any = model()
        except Refused as exc:
            expected = exc.number
        try:
            found = seen(real())
        except OSError as exc:
            found = exc.errno
        assert found == expected

    @rule(fid=FOLDER | LIVE, new=FREE, names=PATHS)
    def walk(self, fid: int, new: int, names: list[bytes]) -> None:
        self.same(
            lambda: self.p9.walk(fid, new, *names),
            lambda: self.model.walk(fid, new, *names),
            len,
        )

    @rule(fid=LIVE.filter(bool))
    def clunk(self, fid: int) -> None:
        self.same(lambda: self.p9.clunk(fid), lambda: self.model.clunk(fid))

    @rule(fid=LIVE)
    def getattr(self, fid: int) -> None:
        def seen(answer: dict[str, int]) -> tuple[int, int | None, int | None]:
            form = stat.S_IFMT(answer["mode"])
            if form == stat.S_IFDIR:
                return form, None, None
            return form, answer["size"], answer["nlink"]

        self.same(
            lambda: self.p9.getattr(fid), lambda: self.model.getattr(fid), seen
        )

    @rule(fid=FOLDER, name=ANY_NAME)
    def mkdir(self, fid: int, name: bytes) -> None:
        self.same(
            lambda: self.p9.mkdir(fid, name),
            lambda: self.model.mkdir(fid, name),
        )

    @rule(fid=FOLDER, name=ANY_NAME)
    def mknod(self, fid: int, name: bytes) -> None:
        self.same(
            lambda: self.p9.mknod(fid, name, 0o100644),
            lambda: self.model.mknod(fid, name),
        )

    @rule(fid=FOLDER, name=ANY_NAME, says=NAMES)
    def symlink(self, fid: int, name: bytes, says: bytes) -> None:
        self.same(
            lambda: self.p9.symlink(fid, name, says),
            lambda: self.model.symlink(fid, name, says),
        )

    @rule(fid=A_LINK)
    def readlink(self, fid: int) -> None:
        self.same(
            lambda: self.p9.readlink(fid),
            lambda: self.model.readlink(fid),
            bytes,
        )

    @rule(directory=FOLDER, fid=LIVE, name=ANY_NAME)
    def link(self, directory: int, fid: int, name: bytes) -> None:
        self.same(
            lambda: self.p9.link(directory, fid, name),
            lambda: self.model.link(directory, fid, name),
        )

    @rule(fid=FOLDER, name=ANY_NAME, into=FOLDER, new=ANY_NAME)
    def renameat(self, fid: int, name: bytes, into: int, new: bytes) -> None:
        self.same(
            lambda: self.p9.renameat(fid, name, into, new),
            lambda: self.model.renameat(fid, name, into, new),
        )

    @rule(fid=LIVE, into=FOLDER, new=ANY_NAME)
    def rename(self, fid: int, into: int, new: bytes) -> None:
        self.same(
            lambda: self.p9.rename(fid, into, new),
            lambda: self.model.rename(fid, into, new),
        )

    @rule(fid=FOLDER, name=ANY_NAME, rmdir=st.booleans())
    def unlinkat(self, fid: int, name: bytes, rmdir: bool) -> None:
        self.same(
            lambda: self.p9.unlinkat(fid, name, 0x200 * rmdir),
            lambda: self.model.unlinkat(fid, name, rmdir),
        )

    @rule(fid=LIVE.filter(bool))
    def remove(self, fid: int) -> None:
        self.same(lambda: self.p9.remove(fid), lambda: self.model.remove(fid))

    @rule(fid=CLOSED, mode=MODES, flags=FLAGS)
    def lopen(self, fid: int, mode: int, flags: int) -> None:
        self.same(
            lambda: self.p9.lopen(fid, mode | flags),
            lambda: self.model.lopen(fid, mode, flags),
        )

    @rule(
        fid=CLOSED_FOLDER,
        name=ANY_NAME,
        mode=MODES,
        flags=FLAGS,
    )
    def lcreate(self, fid: int, name: bytes, mode: int, flags: int) -> None:
        self.same(
            lambda: self.p9.lcreate(fid, name, mode | flags),
            lambda: self.model.lcreate(fid, name, mode, flags),
        )

    @rule(fid=OPENED, offset=st.integers(0, 60), count=st.integers(0, 60))
    def read(self, fid: int, offset: int, count: int) -> None:
        self.same(
            lambda: self.p9.read(fid, offset, count),
            lambda: self.model.read(fid, offset, count),
            bytes,
        )

    @rule(fid=OPEN_FILE, offset=st.integers(0, 60), data=st.binary(max_size=40))
    def write(self, fid: int, offset: int, data: bytes) -> None:
        self.same(
            lambda: self.p9.write(fid, offset, data),
            lambda: self.model.write(fid, offset, data),
            int,
        )

    @rule(fid=LIVE, size=st.integers(0, 60))
    def truncate(self, fid: int, size: int) -> None:
        self.same(
            lambda: self.p9.setattr(fid, 0x8, size=size),
            lambda: self.model.truncate(fid, size),
        )

    @rule(fid=OPEN_FOLDER, count=st.sampled_from([60, 4000]))
    def list(self, fid: int, count: int) -> None:
        def seen(answer: dict[bytes, Entry]) -> dict[bytes, int]:
            return {name: entry.qid.type for name, entry in answer.items()}

        self.same(
            lambda: self.p9.list(fid, count),
            lambda: self.model.list(fid),
            seen,
        )

    @invariant()
    def the_trees_are_the_same(self) -> None:
        def compare(path: bytes, inode: Inode) -> None:
            info = os.lstat(path)
            assert stat.S_IFMT(info.st_mode) == TYPES[inode.kind]
            if inode.kind == DIR:
                assert {*os.listdir(path)} == {*inode.entries}
                for name, below in inode.entries.items():
                    compare(path + b"/" + name, below)
            elif inode.kind == LINK:
                assert os.readlink(path) == inode.target
            else:
                with open(path, "rb") as file:
                    assert file.read() == inode.data

        compare(os.fsencode(self.share), self.model.root)


TestModel = Both.TestCase
TestModel.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, derandomize=True
)

# SPDX-License-Identifier: Apache-2.0
"""virtio-9p in front of a guest that works with files: guest/ninep."""

import os
import re
import stat
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices import NineP

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = 70_000  # more than a message


@pytest.fixture
def share(tmp_path: Path) -> Path:
    root = tmp_path / "share"
    (root / "sub/deep").mkdir(parents=True)
    (root / "hello").write_text("from the host\n")
    (root / "sub/deep/big").write_bytes(os.urandom(SIZE))
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo")
    return root


def run(device: NineP, words: str, image: str = "ninep") -> list[str]:
    """What the guest printed, with the device in the machine."""
    with pyvmm.Machine() as m:
        m.attach(device)
        m.load(ROOT / f"build/guest/{image}.elf", cmdline=words)
        stop = m.run(timeout=30)
    assert stop.status == 0, m.console.text
    return m.console.text.splitlines()


def sum_of(data: bytes) -> str:
    """As the guest sums up a file."""
    total = 0
    for byte in data:
        total = (total * 31 + byte) & 0xFFFF_FFFF
    return f"{len(data)} bytes, sum {total:08x}"


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize(
    ("image", "mode"),
    [("ninep", "irq"), ("ninep", "poll"), ("ninep-ring3", "poll")],
)
def test_reading(share: Path, image: str, mode: str, notify: str) -> None:
    device = NineP(share, "share", notify=notify)
    *lines, last = run(
        device,
        f"tag=share mode={mode} cat=/hello sum=/sub/deep/big stat=/hello "
        "readlink=/link cat=/link cat=/fifo cat=/nothing ls=/sub cat=/sub",
        image,
    )
    data = (share / "sub/deep/big").read_bytes()
    assert (
        lines[:8]
        == [
            "from the host",
            sum_of(data),
            "mode 0081a4 links 1 size 14",
            "/etc/passwd",
            "cat: errno 40",  # ELOOP
            "cat: errno 6",  # ENXIO
            "cat: errno 2",  # ENOENT
            *sorted(lines[7:10])[:1],
        ]
    )
    assert {*lines[7:10]} == {"4 .", "4 ..", "4 deep"}
    assert lines[10:] == ["cat: errno 21"]  # EISDIR
    found = re.match(r"msize 65536, kicks (\d+), interrupts (\d+)", last)
    assert found
    kicks, interrupts = map(int, found.groups())
    assert kicks > 20
    # Inline, an answer is there before a guest could wait for it.
    assert interrupts == 0 or (mode == "irq" and notify == "thread")
    assert device.faults == 0


def test_listing(share: Path) -> None:
    for i in range(500):
        (share / f"file {i}" if i % 2 else share / f"{i}").touch()
    kinds = {
        stat.S_IFDIR: 4,
        stat.S_IFREG: 8,
        stat.S_IFLNK: 10,
        stat.S_IFIFO: 1,
    }
    expected = {
        f"{kinds[stat.S_IFMT(path.lstat().st_mode)]} {path.name}"
        for path in share.iterdir()
    }
    *lines, _ = run(NineP(share), "msize=4096 ls=/")
    assert {*lines} == expected | {"4 .", "4 .."}
    assert len(lines) == len(expected) + 2


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_writing(share: Path, notify: str) -> None:
    device = NineP(share, readonly=False, notify=notify)
    *lines, _ = run(
        device,
        "mode=irq mkdir=/made write=/made/text:abc write=/hello:short "
        f"fill=/sub/filled:{SIZE} sum=/sub/filled "
        "rename=/sub/deep/big:/made/big symlink=/made/up:../hello "
        "rm=/link rm=/fifo rmdir=/sub/deep rmdir=/sub rm=/made mkdir=/made "
        "write=/../out:text sum=/made/text",
    )
    filled = bytes(i % 251 for i in range(SIZE))
    assert lines == [
        "mkdir: done",
        "write: done",
        "write: done",
        "fill: done",
        sum_of(filled),
        "rename: done",
        "symlink: done",
        "rm: done",
        "rm: done",
        "rmdir: done",
        "rmdir: errno 39",  # ENOTEMPTY
        "rm: errno 21",  # EISDIR
        "mkdir: errno 17",  # EEXIST
        "write: done",  # what is above the root is the root
        sum_of(b"abc"),
    ]
    found = {str(path.relative_to(share)) for path in share.rglob("*")}
    assert found == {
        *("made", "made/text", "made/big", "made/up"),
        *("hello", "sub", "sub/filled", "out"),
    }
    assert (share / "hello").read_text() == "short"
    assert (share / "made/text").read_text() == "abc"
    assert (share / "sub/filled").read_bytes() == filled
    assert (share / "made/big").stat().st_size == SIZE
    assert os.readlink(share / "made/up") == "../hello"
    assert {*os.listdir(share.parent)} == {"share"}


def test_read_only(share: Path) -> None:
    before = {*share.rglob("*")}
    words = (
        "write=/hello:x fill=/new:9 mkdir=/d symlink=/l:x rename=/hello:/x "
        "rm=/hello rmdir=/sub cat=/hello"
    )
    *lines, _ = run(NineP(share), words)
    verbs = ["write", "fill", "mkdir", "symlink", "rename", "rm", "rmdir"]
    assert lines == [f"{verb}: errno 30" for verb in verbs] + ["from the host"]
    assert {*share.rglob("*")} == before


def test_two_folders(share: Path, tmp_path: Path) -> None:
    """A guest finds each by its tag."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/hello").write_text("from elsewhere\n")
    with pyvmm.Machine() as m:
        m.attach(NineP(share, "one"))
        m.attach(NineP(tmp_path / "other", "two"))
        m.load(ROOT / "build/guest/ninep.elf", cmdline="tag=two cat=/hello")
        assert m.run(timeout=30).status == 0
        assert m.console.text.startswith("from elsewhere\n")


def test_life(share: Path) -> None:
    """What a guest had open is closed with it; the device serves another."""
    device = NineP(share)
    for _ in range(2):
        with pyvmm.Machine() as m:
            m.attach(device)
            m.load(ROOT / "build/guest/ninep.elf", cmdline="cat=/hello")
            assert m.run(timeout=30).status == 0
            assert device._server.folder.held == 1  # the root
        assert device._server.folder.held == 0
        assert m.console.text.startswith("from the host\n")
    with pyvmm.Machine() as m:
        m.attach(device)
        m.detach(device)
        assert device.machine is None

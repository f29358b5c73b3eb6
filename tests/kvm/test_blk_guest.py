# SPDX-License-Identifier: Apache-2.0
"""Disks in front of a guest that drives them: guest/blk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices import Blk

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
SECTOR = 512
SECTORS = 512
DATA = b"".join(bytes([i % 251]) * SECTOR for i in range(SECTORS))


def load(m: pyvmm.Machine, words: str, image: str = "blk") -> None:
    m.load(str(ROOT / f"build/guest/{image}.elf"), cmdline=words)


def run(blk: Blk, words: str, image: str = "blk", cpus: int = 1) -> list[str]:
    """What the guest printed, with the disk in the machine."""
    with pyvmm.Machine(cpus=cpus) as m:
        if cpus > 1:
            m.memory.add(0, 0x10000)  # where other vCPUs begin
        m.attach(blk)
        load(m, words, image)
        stop = m.run(timeout=20)
    assert stop.status == 0, m.console.text
    return m.console.text.splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    return path


def sectors(first: int, count: int) -> bytes:
    return DATA[first * SECTOR : (first + count) * SECTOR]


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize(
    ("image", "mode"), [("blk", "poll"), ("blk", "irq"), ("blk-ring3", "poll")]
)
def test_all_of_it(path: Path, image: str, mode: str, notify: str) -> None:
    blk = Blk(path, serial="pyvmm-1", notify=notify)
    words = f"info serial copy=100 from=3 to=200 flush mode={mode}"
    first, serial, copied, flushed, interrupts = run(blk, words, image)
    assert first == "sectors 512, features 006a00, queues 1, cache on"
    assert serial == 'serial "pyvmm-1" ok'
    assert (copied, flushed) == ("copy ok", "flush ok")
    assert (interrupts != "interrupts: 0") == (mode == "irq")
    assert blk.faults == blk.errors == 0
    assert path.read_bytes() == (
        sectors(0, 200) + sectors(3, 100) + sectors(300, 212)
    )


@pytest.mark.parametrize("piece", [1, 7, 128])
def test_pieces(path: Path, piece: int) -> None:
    """Requests of half a KiB up to 64 KiB, 16 at a time."""
    words = f"copy=250 to=256 depth=16 piece={piece}"
    assert run(Blk(path), words)[0] == "copy ok"
    assert path.read_bytes()[256 * SECTOR : 506 * SECTOR] == sectors(0, 250)


@pytest.mark.parametrize("notify", ["inline", "thread"])
@pytest.mark.parametrize("cpus", [2, 4])
def test_a_queue_for_each_cpu(path: Path, cpus: int, notify: str) -> None:
    """They all copy at the same time."""
    blk = Blk(path, queues=cpus, notify=notify)
    words = f"info copy=203 to=256 cpus={cpus}"
    lines = run(blk, words, cpus=cpus)
    assert f"queues {cpus}" in lines[0] and lines[1] == "copy ok"
    assert path.read_bytes() == (
        sectors(0, 256) + sectors(0, 203) + sectors(459, 53)
    )
    assert blk.faults == blk.errors == 0


def test_zeros_and_holes(path: Path) -> None:
    assert run(Blk(path), "zero=9 to=8 unmap")[0] == "zero ok"
    assert run(Blk(path), "zero=1 to=40")[0] == "zero ok"
    assert run(Blk(path), "discard=8 to=80")[0] == "discard ok"
    data = path.read_bytes()
    assert data[: 80 * SECTOR] == (
        sectors(0, 8)
        + bytes(9 * SECTOR)
        + sectors(17, 23)
        + bytes(SECTOR)
        + sectors(41, 39)
    )
    assert data[88 * SECTOR :] == sectors(88, 424)


def test_readonly(path: Path) -> None:
    path.chmod(0o400)
    lines = run(Blk(path, readonly=True), "info copy=8 to=100 zero=1 read=2")
    assert "features 000a20" in lines[0]
    assert lines[1:4] == ["copy ioerr", "zero ioerr", "read: 00 01"]
    assert path.read_bytes() == DATA


def test_the_end_of_the_disk() -> None:
    lines = run(Blk(bytearray(DATA)), "read=4 from=510 copy=8 to=508")
    assert lines[:2] == ["copy ioerr", "read: 08 09 ioerr ioerr"]


def test_the_write_cache() -> None:
    """Off: each write is flushed before the guest hears of it."""

    class Noted:
        size = len(DATA)

        def pread(self, size: int, offset: int) -> bytes:
            return DATA[offset : offset + size]

        def pwrite(self, data: bytes, offset: int) -> None:
            calls.append("write")

        def flush(self) -> None:
            calls.append("flush")

    calls: list[str] = []
    assert run(Blk(Noted()), "wce=1 copy=8 to=8") == [
        "cache on", "copy ok", "interrupts: 0"
    ]  # fmt: skip
    assert calls == ["write"]
    calls.clear()
    assert run(Blk(Noted()), "wce=0 copy=8 to=8")[0] == "cache off"
    assert calls == ["write", "flush"]


def test_resize_wakes_the_guest(path: Path) -> None:
    with pyvmm.Machine() as m:
        blk = m.attach(Blk(path))
        load(m, "info resize mode=irq")
        m.start(timeout=20)
        m.console.expect("waiting\n", timeout=20)
        blk.resize(1000 * SECTOR)
        assert m.wait(20).status == 0
    assert "now 1000 sectors" in m.console.text
    assert path.stat().st_size == 1000 * SECTOR


def test_a_file_that_becomes_shorter(path: Path) -> None:
    """The guest gets an error, and lives."""
    with pyvmm.Machine() as m:
        blk = m.attach(Blk(path))
        os.truncate(path, 6 * SECTOR)
        load(m, "read=4 from=4")
        assert m.run(timeout=20).status == 0
        assert "read: 04 05 ioerr ioerr" in m.console.text
        assert blk.errors == 2


def test_a_bug_of_the_author() -> None:
    class Buggy:
        size = len(DATA)

        def pread(self, size: int, offset: int) -> bytes:
            if fails:
                raise fails.pop()
            return DATA[offset : offset + size]

    fails = [KeyError("mine")]
    with pyvmm.Machine() as m:
        blk = m.attach(Blk(Buggy()))
        load(m, "read=2 from=9")
        with pytest.raises(KeyError, match="mine"):
            m.run(timeout=20)
        blk.process()
        assert m.run(timeout=20).status == 0
    assert m.console.text.startswith("read: 09 0a")


def test_the_file_is_free_again(path: Path) -> None:
    device = Blk(path)
    for _ in range(2):
        with pyvmm.Machine() as m:
            m.attach(device)
            with pytest.raises(BlockingIOError):
                Blk(path)
            load(m, "read=1 from=7")
            assert m.run(timeout=20).status == 0
            m.detach(device)
            Blk(path).detached()
            m.attach(device)
        Blk(path).detached()


def test_taken_off_while_it_works(path: Path) -> None:
    """No handler is cut short, and nobody sees an exception."""
    with pyvmm.Machine(strict=False) as m:
        blk = m.attach(Blk(path))
        load(m, "copy=500 piece=1 depth=16")
        m.start(timeout=20)
        while not blk.native.notifications:
            pass
        m.detach(blk)
        m.pause()
    assert blk.errors <= 1


def test_new_code_while_the_guest_waits(path: Path) -> None:
    with pyvmm.Machine() as m:
        blk = m.attach(Blk(path))
        load(m, "resize mode=irq")
        m.start(timeout=20)
        m.console.expect("waiting\n", timeout=20)
        m.reload(blk)
        blk.resize(2000 * SECTOR)
        assert m.wait(20).status == 0
    assert "now 2000 sectors" in m.console.text


def test_from_a_shell(path: Path, tmp_path: Path) -> None:
    device = tmp_path / "disk.py"
    device.write_text(
        "from pyvmm.devices import Blk\n\n\n"
        "class Disk(Blk):\n"
        "    def __init__(self):\n"
        f"        super().__init__({str(path)!r}, readonly=True)\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "pyvmm", "run",
            ROOT / "build/guest/blk.elf", "--device", device,
            "--cmdline", "read=3 from=5",
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("read: 05 06 07\n"), done.stderr
    assert done.returncode == 0

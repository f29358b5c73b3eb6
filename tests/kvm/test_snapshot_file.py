# SPDX-License-Identifier: Apache-2.0
"""Snapshots in files: saved, loaded, gone on from; and files that are not."""

import gc
import os
import resource
import shutil
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

import pytest

import pyvmm
from pyvmm import corefile, snapfile, virtio
from pyvmm.encoding import decode, encode

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
REQUEST = str(ROOT / "build/guest/request.elf")
RNG = str(ROOT / "build/guest/rng.elf")
HELLO = str(ROOT / "build/guest/hello.elf")

# Counts in memory, prints the count and exits, again and again.
COUNT = """
again:
    inc dword ptr [0x200000]
    mov al, [0x200000]
    add al, '0'
    out 0xe9, al
    out 0xf4, al
    jmp again
"""

# The same with a count that a device keeps.
ASK = """
again:
    mov edx, 0x500
    in al, dx
    add al, '0'
    out 0xe9, al
    sub al, '0'
    out 0xf4, al
    jmp again
"""


class Mood(IntEnum):
    CALM = 0
    BUSY = 1


class Counter(pyvmm.Device):
    """Counts its reads, and has attributes of all kinds."""

    size = 1
    port = 0x500
    total = pyvmm.Reg(0, 1)

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []
        self.last: deque[int] = deque(maxlen=2)
        self.both = {"seen": self.seen}
        self.mood = Mood.CALM
        self.lock = threading.Lock()
        self.then = self.first
        self.me = self

    @total.on_read
    def more(self) -> int:
        self.then()
        self.total = self.count
        self.seen.append(self.count)
        self.last.append(self.count)
        return self.count

    def first(self) -> None:
        self.mood = Mood.BUSY
        self.then = self.next
        self.count += 1

    def next(self) -> None:
        self.count += 1


def make(
    *devices: object, source: str = COUNT, **options: object
) -> pyvmm.Machine:
    m = pyvmm.Machine(**options)
    for device in devices:
        m.attach(device)
    m.load(asm=source)
    return m


def statuses(m: pyvmm.Machine, count: int) -> list[int | None]:
    return [m.run(timeout=20).status for _ in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.snap"


@pytest.fixture
def saved(path: Path) -> Iterator[Path]:
    """The file of a machine that has counted to 2."""
    with make() as m:
        m.run(timeout=20)
        m.run(timeout=20)
        m.snapshot().save(path)
    yield path


def load(path: Path) -> pyvmm.Snapshot:
    return pyvmm.Snapshot.load(path)


# -- there and back ------------------------------------------------------------


def test_another_machine_goes_on(saved: Path) -> None:
    snap = load(saved)
    snap.verify()
    with snap.machine() as m:
        assert m.console.text == "12"
        assert m.mem.read_u32(0x200000) == 2
        for _ in range(2):
            m.run(timeout=20)
            m.run(timeout=20)
            assert m.console.text == "1234"
            m.restore(snap)
            assert m.console.text == "12"


def test_another_process_goes_on(saved: Path) -> None:
    code = (
        "import sys, pyvmm\n"
        "with pyvmm.Snapshot.load(sys.argv[1]).machine() as m:\n"
        "    m.run(timeout=20)\n"
        "    print(m.console.text, m.symbols['again'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, saved],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["123", str(0x100000)]


def test_a_machine_of_the_same_shape_goes_on(saved: Path) -> None:
    with make() as m:  # not made yet
        m.restore(load(saved))
        m.run(timeout=20)
        assert m.console.text == "123"
    with make() as m:  # has run, and has a snapshot of its own
        m.run(timeout=20)
        own = m.snapshot()
        m.run(timeout=20)
        snap = load(saved)
        for _ in range(2):
            m.restore(snap)
            m.run(timeout=20)
            assert m.console.text == "123"
        with pytest.raises(ValueError, match="another machine"):
            m.restore(own)
        m.run(timeout=20)
        assert m.console.text == "1234"


def test_children_clones_and_files_of_it(saved: Path, tmp_path: Path) -> None:
    snap = load(saved)
    with snap.machine() as m:
        m.run(timeout=20)
        child = m.snapshot()
        assert child.parent is snap and child.pages == 1
        (one,) = m.clone()
        m.run(timeout=20)
        one.run(timeout=20)
        assert one.console.text == m.console.text == "1234"
        one.close()
        child.save(tmp_path / "child")
        m.restore(child)
        m.run(timeout=20)
        assert m.console.text == "1234"
    again = load(tmp_path / "child")
    again.verify()
    with again.machine() as m:
        m.run(timeout=20)
        assert m.console.text == "1234"
        assert m.symbols["again"] == 0x100000
    snap.save(tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == saved.read_bytes()


def test_a_machine_that_was_closed(path: Path) -> None:
    with make() as m:
        m.run(timeout=20)
        first = m.snapshot()
        m.run(timeout=20)
        second = m.snapshot()
    for snap, text in ((second, "12"), (first, "1")):
        snap.save(path)
        with load(path).machine() as m:
            assert m.console.text == text


def test_pages_of_zeros_are_holes(path: Path) -> None:
    with make(memory="256M") as m:
        m.mem.write(0x0900_0000, b"x")
        m.snapshot().save(path)
    about = path.stat()
    assert about.st_size > 256 << 20
    assert about.st_blocks * 512 < 1 << 20
    snap = load(path)
    snap.verify()
    with snap.machine() as m:
        assert m.mem.read(0x0900_0000, 2) == b"x\0"


def test_regions_and_options(path: Path) -> None:
    with pyvmm.Machine(
        memory="2M", cpus=2, strict=False, cmdline="one two", pit=True
    ) as m:
        m.add_memory(0x1000_0000, 8192, readonly=True, data=b"rom")
        m.load(asm=COUNT)
        m.run(timeout=20)
        m.snapshot().save(path)
        regions = [row[:3] for row in m.memory.regions]
    with load(path).machine(strict=True) as m:
        assert [row[:3] for row in m.memory.regions] == regions
        assert m.cmdline == "one two" and len(m.cpus) == 2
        assert m.mem.read(0x1000_0000, 3) == b"rom"
        m.run(timeout=20)
        assert m.console.text == "12"


def test_console_input_waits(path: Path) -> None:
    echo = str(ROOT / "build/guest/echo.elf")
    with pyvmm.Machine() as m:
        m.load(echo)
        m.console.send("one\ntwo\n")
        m.console.expect("one", timeout=20)
        m.snapshot().save(path)
    with load(path).machine() as m:
        m.console.expect("two", timeout=20)
        m.console.send("three\n")
        m.console.expect("three", timeout=20)


def test_the_file_may_be_replaced(saved: Path) -> None:
    snap = load(saved)
    with snap.machine() as m:
        statuses(m, 3)
        m.snapshot().save(saved)  # over itself
        m.restore(snap)
        statuses(m, 1)
        assert m.console.text == "123"
        os.unlink(saved)
        m.restore(snap)
        assert m.console.text == "12"
        snap.verify()


def test_a_copy_needs_the_file_no_more(saved: Path) -> None:
    snap = pyvmm.Snapshot.load(saved, copy=True)
    snap.verify()
    os.truncate(saved, 0)
    snap.verify()
    with snap.machine() as m:
        m.run(timeout=20)
        assert m.console.text == "123"


def test_symbols_of_an_image_that_is_there(path: Path, tmp_path: Path) -> None:
    image = tmp_path / "guest.elf"
    shutil.copy(HELLO, image)
    with pyvmm.Machine() as m:
        m.load(image)
        m.run(timeout=20)
        m.snapshot().save(path)
        main = m.symbols["main"]
    with load(path).machine() as m:
        assert m.symbols["main"] == main
    image.write_bytes(image.read_bytes() + b"x")
    with load(path).machine() as m:
        assert not m.symbols and m.console.text
    image.unlink()
    image.mkdir()
    with load(path).machine() as m:
        assert not m.symbols


# -- devices -------------------------------------------------------------------


def test_devices_go_on(path: Path) -> None:
    with make(Counter(), source=ASK) as m:
        statuses(m, 3)
        m.snapshot().save(path)
    snap = load(path)
    for build in (
        lambda: snap.machine(lambda m: m.attach(Counter())),
        lambda: make(Counter(), source=ASK),
    ):
        with build() as m:
            m.restore(snap)
            (device,) = m.devices
            for _ in range(2):
                assert (device.count, device.total) == (3, 3)
                assert device.mood is Mood.BUSY
                assert device.last == deque([2, 3], 2)
                assert device.both["seen"] is device.seen
                assert device.then == device.next and device.me is device
                assert device.lock.acquire(blocking=False)
                device.lock.release()
                assert statuses(m, 2) == [4, 5]
                assert m.console.text == "12345"
                m.restore(snap)
            child = m.snapshot()
            statuses(m, 1)
            m.restore(child)
            assert device.count == 3


def test_timers_keep_the_time_they_had_left(path: Path) -> None:
    class Alarm(pyvmm.Device):
        size, port = 1, 0x500

        def __init__(self) -> None:
            self.rings = 0
            self.timer = self.old = None

        def write(self, offset: int, size: int, value: int) -> None:
            self.old = self.after(0, self.ring)
            self.old.cancel()
            self.timer = self.after(0.01, self.ring)

        def ring(self) -> None:
            self.rings += 1
            self.machine.exit(self.rings)

    source = "mov edx, 0x500; out dx, al; 1: jmp 1b"
    with make(Alarm(), source=source) as m:
        m.run(until=m.cpu.rip + 6, timeout=20)
        m.snapshot().save(path)
    snap = load(path)
    with snap.machine(lambda m: m.attach(Alarm())) as m:
        (device,) = m.devices
        for _ in range(2):
            assert device.timer.pending and not device.old.pending
            device.old.cancel()
            assert m.run(timeout=20).status == 1
            m.restore(snap)
            assert device.rings == 0
        device.timer.cancel()
        assert m.run(timeout=0.1, check=False).reason == "timeout"


class Echo(virtio.Device):
    device_id = 63
    queues = {"requests": 64}  # noqa: RUF012 - as users write them
    config = virtio.Struct(count="<I", other="<I")

    def __init__(self, notify: str, stop_at: int = 1 << 30) -> None:
        self.notify = notify
        self.stop_at = stop_at
        self.done = 0

    def on_requests(self, queue: virtio.Queue) -> None:
        for chain in queue:
            self.done += 1
            self.config.count = self.done
            chain.write(b"%02d" % (self.done % 100))
            if self.done == self.stop_at:
                self.machine.exit(77)


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_queues_in_the_middle(notify: str, path: Path) -> None:
    with pyvmm.Machine() as m:
        m.attach(Echo(notify, 20))
        m.load(REQUEST, cmdline="send=x n=40 depth=8 reply=2 mode=irq")
        assert m.run(timeout=20).status == 77
        m.snapshot().save(path)
        done = m.devices[0].done
    snap = load(path)
    with snap.machine(lambda m: m.attach(Echo(notify))) as m:
        (device,) = m.devices
        for _ in range(2):
            assert device.done == device.config.count == done
            assert m.run(timeout=20).status == 0, m.console.text
            assert device.done == 40
            m.restore(snap)


def test_an_rng_needs_no_setup(path: Path) -> None:
    with pyvmm.Machine() as m:
        m.attach(pyvmm.Rng(queue_size=64))
        m.load(RNG, cmdline="bytes=64")
        m.run(until="virtqueue_kick", timeout=20)
        m.snapshot().save(path)
        device = m.devices[0]
        place = device.base, device.irq_line
    with load(path).machine() as m:
        (device,) = m.devices
        assert (device.base, device.irq_line) == place
        assert device.queue_size == 64
        assert m.run(timeout=20).status == 0


def test_what_a_file_cannot_keep_is_named(path: Path) -> None:
    class Wire(pyvmm.Device):
        size = 4

        def late(self) -> None:
            pass

    def refusal(**attributes: object) -> str:
        with pyvmm.Machine() as m:
            wire = m.attach(Wire())
            vars(wire).update(attributes)
            snap = m.snapshot()
            with pytest.raises(pyvmm.Error) as caught:
                snap.save(path)
            assert not path.exists()
        return str(caught.value)

    text = refusal(ends=[0, {"far": Path()}])
    assert "its attribute ends[1]['far'], a PosixPath, is no plain" in text
    assert text.startswith("wire cannot be saved to a file: ")
    assert "save() and restore(state)" in text

    with pyvmm.Machine() as m:
        wire = m.attach(Wire())
        wire.after(1, lambda: None)
        snap = m.snapshot()
        with pytest.raises(pyvmm.Error, match="no method of an attached"):
            snap.save(path)

    class Own(Wire):
        def save(self) -> object:
            return {"a": object()}

        def restore(self, state: object) -> None:
            pass

    with pyvmm.Machine() as m:
        m.attach(Own())
        with pytest.raises(
            pyvmm.Error, match=r"file: its state\[.a.\], a object"
        ):
            m.snapshot().save(path)


def test_functions_are_the_devices_own(path: Path) -> None:
    def one() -> None:
        pass

    class Calls(pyvmm.Device):
        size = 4

        def __init__(self, call: Callable[[], None]) -> None:
            self.call = call

    with pyvmm.Machine() as m:
        m.attach(Calls(one))
        m.snapshot().save(path)
    snap = load(path)
    with snap.machine(lambda m: m.attach(Calls(one))) as m:
        assert m.devices[0].call is one
    with pytest.raises(ValueError, match=r"calls\.call was .*one, which is in"):
        snap.machine(lambda m: m.attach(Calls(lambda: None)))


# -- machines of another shape -------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": "8M"}, "has memory at 0x100000..0x10fffff; the machine ha"),
        ({"cpus": 2}, "of a machine with cpus=1, this one has cpus=2"),
        ({"pit": True}, "with pit=False, this one has pit=True"),
        ({"irqchip": False}, "with irqchip=True, this one has irqchip=False"),
    ],
)
def test_another_shape(options: dict, text: str, saved: Path) -> None:
    snap = load(saved)
    with make(**options) as m:
        m.run(timeout=20)
        with pytest.raises(ValueError, match=text):
            m.restore(snap)
        m.run(timeout=20)
        assert m.console.text == "12"


def test_other_devices(path: Path) -> None:
    with make(Counter(), source=ASK) as m:
        m.snapshot().save(path)
    snap = load(path)

    class Other(Counter):
        pass

    with pytest.raises(
        ValueError, match=r"devices counter; the machine has .n"
    ):
        snap.machine(lambda m: None)
    with pytest.raises(ValueError, match=r"devices counter: machine.setup."):
        snap.machine()
    with pytest.raises(
        ValueError, match=r"counter has base 0x500, the mach.*6"
    ):
        snap.machine(lambda m: m.attach(Counter(), port=0x600))
    with pytest.raises(
        ValueError, match=r"has class Counter, the machine's .*O"
    ):
        snap.machine(lambda m: m.attach(Other(), name="counter"))
    with pytest.raises(ValueError, match="cpus=1, this one has cpus=2"):
        snap.machine(lambda m: m.attach(Counter()), cpus=2)
    with make() as m, pytest.raises(RuntimeError, match="not of a file"):
        m.snapshot().machine()


def test_a_device_in_the_place_of_another(path: Path) -> None:
    with make(Counter(), source=ASK) as m:
        statuses(m, 3)
        m.snapshot().save(path)
    snap = load(path)
    with snap.machine(lambda m: m.attach(Counter())) as m:
        (old,) = m.devices
        m.detach(old)
        new = m.attach(Counter())
        m.restore(snap)
        assert statuses(m, 1) == [4] and (old.count, new.count) == (3, 4)
        assert new.me is new and new.lock is not old.lock


def test_machines_of_a_snapshot_are_forgotten(saved: Path) -> None:
    snap = load(saved)
    gone = []
    for _ in range(3):
        with snap.machine() as m:
            m.run(timeout=20)
            gone.append(weakref.ref(m))
        del m
    gc.collect()
    assert not any(ref() for ref in gone)


# -- files that are no snapshots -----------------------------------------------


def refused(path: Path) -> str:
    """What load() says of a file, in one sentence that names it."""
    with pytest.raises(pyvmm.Error) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


def head_size(path: Path) -> int:
    with open(path, "rb") as file:
        return len(corefile.read_head(file.fileno(), "")[0])


def test_every_byte_of_the_head_is_checked(saved: Path) -> None:
    with open(saved, "r+b") as file:
        fd = file.fileno()
        for at in range(head_size(saved)):
            (byte,) = os.pread(fd, 1, at)
            for flip in (1 << at % 8, 0xFF):
                os.pwrite(fd, bytes([byte ^ flip]), at)
                with pytest.raises(pyvmm.Error):
                    load(saved)
            os.pwrite(fd, bytes([byte]), at)
    load(saved).verify()


@pytest.mark.parametrize("gpa", [0x100000, 0x200000, 0x10FFFFF])
def test_verify_finds_a_page_that_changed(gpa: int, saved: Path) -> None:
    at = head_size(saved) + gpa - 0x100000
    with open(saved, "r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    snap = load(saved)
    with pytest.raises(pyvmm.Error) as caught:
        snap.verify()
    start = gpa - gpa % (64 * 4096)
    assert f"guest memory from {start:#x} on, have changed" in str(caught.value)


def test_truncated_files(saved: Path) -> None:
    size, head = saved.stat().st_size, head_size(saved)
    for left in (size - 1, size - 4096, head + 1, head, head - 1, 4096, 100):
        os.truncate(saved, left)
        assert "truncated" in refused(saved), left
    os.truncate(saved, 20)
    assert "truncated: it has 20 bytes" in refused(saved)
    os.truncate(saved, 0)
    assert "no ELF file" in refused(saved)


def test_a_longer_file(saved: Path) -> None:
    os.truncate(saved, saved.stat().st_size + 7)
    assert "7 bytes follow its end" in refused(saved)


def test_truncated_after_load(saved: Path) -> None:
    """verify() says so; a machine would be ended by it."""
    snap = load(saved)
    os.truncate(saved, head_size(saved))
    with pytest.raises(pyvmm.Error, match="truncated"):
        snap.verify()


def test_what_is_no_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "is a directory" in refused(folder)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no regular file" in refused(pipe)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    text = tmp_path / "text"
    text.write_text("no machine\n" * 100)
    assert "no ELF file" in refused(text)
    shutil.copy(HELLO, tmp_path / "elf")
    assert "but no core file" in refused(tmp_path / "elf")
    core = tmp_path / "core"
    core.write_bytes(corefile.make_head([], [(b"CORE", 1, bytes(336))]))
    assert "but no snapshot of pyvmm" in refused(core)


def rewrite(
    path: Path, kind: int, change: Callable[[bytes], bytes | None]
) -> None:
    """Change a note as somebody would who means it: the checksum is right."""
    whole = path.read_bytes()
    with open(path, "rb") as file:
        head, notes = corefile.read_head(file.fileno(), "")
    rows = corefile.PROGRAM.iter_unpack(head[64 : 64 + 56 * head[56]])
    segments = [
        (row[2] - len(head), row[3], row[4], row[5]) for row in list(rows)[1:]
    ]
    changed = []
    for name, number, content in notes[:-1]:
        new = change(content) if number == kind else content
        if new is not None:
            changed.append((name, number, new))
    path.write_bytes(corefile.make_head(segments, changed) + whole[len(head) :])


def rewrite_values(
    path: Path, kind: int, change: Callable[[dict], object]
) -> None:
    def changed(content: bytes) -> bytes:
        values = decode(content)
        change(values)
        return encode(values)

    rewrite(path, kind, changed)


def test_another_version(saved: Path) -> None:
    rewrite(saved, snapfile.NT_FORMAT, lambda data: b"\7\0\0\0" + b"9.9")
    text = refused(saved)
    assert "is of version 7 of the format, written by pyvmm 9.9; pyvmm" in text
    assert "reads version 1" in text


def test_another_cpu(saved: Path) -> None:
    def lacking(data: bytes) -> bytes:
        rows = [list(row) for row in snapfile.ROW.iter_unpack(data)]
        for row in rows:
            if row[:2] == [7, 0]:
                row[4] |= 1 << 2  # sgx
            if row[:2] == [0x8000_0001, 0]:
                row[5] |= 1 << 15 | 1 << 31  # lwp, and one without a name
        return b"".join(snapfile.ROW.pack(*row) for row in rows)

    rewrite(saved, snapfile.NT_CPUID, lacking)
    text = refused(saved)
    assert "of another CPU: this host's has no sgx, lwp, CPUID" in text
    assert "0x80000001.0 ecx bit 31" in text

    def maker(data: bytes) -> bytes:
        row = [0, 0, 0, 22, *(int.from_bytes(b"CPUs", "little"),) * 3]
        return snapfile.ROW.pack(*row) + data[snapfile.ROW.size :]

    rewrite(saved, snapfile.NT_CPUID, maker)
    assert "one of 'CPUsCPUsCPUs', and this is one of" in refused(saved)


def test_other_msrs(saved: Path) -> None:
    rewrite_values(
        saved,
        snapfile.NT_VCPU,
        lambda cpu: cpu.update(msrs=b"\xef\xbe\xad\xde" + bytes(8)),
    )
    assert "this host has no MSR 0xdeadbeef" in refused(saved)


NOTES = ("MACHINE", "CPUID", "VM", "VCPU", "STATE", "PAGES")


@pytest.mark.parametrize("name", NOTES)
def test_notes_that_are_missing_or_empty(name: str, saved: Path) -> None:
    kind = getattr(snapfile, f"NT_{name}")
    before = saved.read_bytes()
    rewrite(saved, kind, lambda data: None)
    assert "no snapshot that can be" in refused(saved)
    if name == "CPUID":
        return  # no features are wanted: none is missing
    for content in (b"", b"N", encode({}), encode([1])):
        saved.write_bytes(before)
        rewrite(saved, kind, lambda data, content=content: content)
        assert "no snapshot that can be" in refused(saved)


VALUES = (None, True, -1, 1 << 70, "x", b"x", [], {})


@pytest.mark.parametrize("name", ["MACHINE", "VM", "VCPU", "STATE"])
def test_values_that_cannot_be(name: str, path: Path) -> None:
    """Each value of each note is replaced: refused, or it makes no harm."""
    chips = name == "VM"  # without, machines are closed in no time
    with make(Counter(), source=ASK, irqchip=chips) as m:
        m.devices[0].after(100, m.devices[0].next)
        statuses(m, 1)
        m.snapshot().save(path)
    kind = getattr(snapfile, f"NT_{name}")
    before = path.read_bytes()
    with open(path, "rb") as file:
        notes = corefile.read_head(file.fileno(), "")[1]
    whole = next(data for _, number, data in notes if number == kind)

    def places(value: object, at: tuple) -> Iterator[tuple]:
        items = value.items() if isinstance(value, dict) else ()
        if isinstance(value, list | tuple):
            items = enumerate(value)
        for key, item in items:
            yield (*at, key)
            yield from places(item, (*at, key))

    def put(value: object, at: tuple, new: object) -> object:
        if not at:
            return new
        inside = put(value[at[0]], at[1:], new)
        if isinstance(value, tuple):
            return (*value[: at[0]], inside, *value[at[0] + 1 :])
        value[at[0]] = inside
        return value

    def setup(m: pyvmm.Machine) -> None:
        m.attach(Counter())

    count = 0
    for at in places(decode(whole), ()):
        for new in VALUES:
            path.write_bytes(before)
            rewrite(
                path,
                kind,
                lambda data, at=at, new=new: encode(put(decode(data), at, new)),
            )
            try:
                load(path).machine(setup).close()
            except (pyvmm.Error, ValueError, OSError, TypeError):
                count += 1
    assert count > 50


def test_names_that_are_not_the_devices(path: Path) -> None:
    def refusal(change: Callable[[dict], object]) -> str:
        with make(Counter(), source=ASK) as m:
            m.devices[0].after(100, m.devices[0].next)
            m.snapshot().save(path)
        rewrite_values(path, snapfile.NT_STATE, change)
        snap = load(path)
        with pytest.raises(ValueError) as caught:
            snap.machine(lambda m: m.attach(Counter()))
        return str(caught.value)

    def attribute(name: str) -> str:
        return refusal(
            lambda state: state["devices"][0].update(
                attributes=encode({name: 1})
            )
        )

    assert "has __class__ from its class" in attribute("__class__")
    assert "has _services from its class" in attribute("_services")
    assert "has total from its class" in attribute("total")

    def method(name: str) -> str:
        row = (0, name, 0, 1)
        return refusal(lambda state: state.update(timers=[row]))

    assert "has no method '__init__'" in method("__init__")
    assert "has no method 'system'" in method("system")
    assert "has no method 'total'" in method("total")


# -- saving fails --------------------------------------------------------------


def test_a_file_too_large_for_the_limit(saved: Path) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with make() as m:
        m.run(timeout=20)
        snap = m.snapshot()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(OSError, match=r"File too large.*a\.snap"):
                snap.save(saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(saved.parent) == [saved.name]
        assert saved.read_bytes() == before
        m.run(timeout=20)
        assert m.console.text == "12"


def test_the_disk_is_full(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of writes, the last of which is short."""
    before = saved.read_bytes()
    write = os.pwrite
    count = room = 0

    def full(fd: int, data: memoryview, at: int) -> int:
        nonlocal count
        count += 1
        if count > room:
            raise OSError(28, "No space left on device")
        return write(fd, data[: -(-len(data) // 2)], at)

    with make() as m:
        m.mem.write(0x300000, b"x")
        m.mem.write(0x500000, b"y")
        snap = m.snapshot()
        monkeypatch.setattr(os, "pwrite", full)
        done = False
        while not done:
            count = 0
            try:
                snap.save(saved)
                done = True
            except OSError as exc:
                assert exc.errno == 28 and exc.filename == str(saved)
                assert saved.read_bytes() == before
                room += 1
            assert os.listdir(saved.parent) == [saved.name]
        assert room == count > 20
        load(saved).verify()
        m.run(timeout=20)


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with make() as m:
        snap = m.snapshot()
        with pytest.raises(IsADirectoryError):
            snap.save(tmp_path)
        with pytest.raises(FileNotFoundError) as caught:
            snap.save(tmp_path / "no" / "where")
        assert caught.value.filename == str(tmp_path / "no" / "where")
        with pytest.raises(pyvmm.Error, match="no regular file"):
            snap.save("/dev/null")
        target = tmp_path / "target"
        (tmp_path / "link").symlink_to(target)
        snap.save(tmp_path / "link")
        assert load(target) and (tmp_path / "link").is_symlink()


# Without what a sanitized interpreter wants, which gdb does not bear.
PLAIN = {"PATH": os.environ["PATH"], "HOME": "/"}


# -- for debuggers -------------------------------------------------------------


def test_gdb_reads_it(path: Path) -> None:
    with make(cpus=2) as m:
        m.run(timeout=20)
        m.snapshot().save(path)
        rip = m.cpu.rip
    done = subprocess.run(
        ["gdb", "-batch", "-nx", "-c", path, "-ex", "info threads",
         "-ex", "info registers rip", "-ex", "x/1wx 0x200000"],
        check=True, capture_output=True, text=True, env=PLAIN,
    )  # fmt: skip
    assert f"{rip:#x}" in done.stdout
    assert "0x200000:\t0x00000001" in done.stdout
    assert "LWP 1" in done.stdout and "LWP 2" in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_gdb_reads_virtual_addresses(path: Path) -> None:
    """Memory that is mapped elsewhere, and over what is there otherwise."""
    with pyvmm.Machine() as m:
        m.load(asm="out 0xf4, al; hlt", mode="long")
        m.run(timeout=20)
        table = m.cpu.walk(0x200000)[1].entry & ~0xFFF  # of 2 MiB pages
        m.mem.write_u32(0x400010, 0x1234)
        m.mem.write_u32(0x800010, 0x5678)
        m.mem.write_u64(table + 8 * 9, 0x400083)
        m.mem.write_u64(table + 8 * 4, 0x400083)
        assert m.cpu.mem.read_u32(0x800010) == 0x1234
        m.snapshot().save(path)
    done = subprocess.run(
        ["gdb", "-batch", "-nx", "-c", path, "-ex", "x/1wx 0x1200010",
         "-ex", "x/1wx 0x400010", "-ex", "x/1wx 0x800010"],
        check=True, capture_output=True, text=True, env=PLAIN,
    )  # fmt: skip
    for at in (0x1200010, 0x400010, 0x800010):
        assert f"{at:#x}:\t0x00001234" in done.stdout


def test_a_guest_that_is_linux_has_the_notes_of_one(path: Path) -> None:
    text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
    for mode, wanted in (("long", True), ("protected", False)):
        with pyvmm.Machine() as m:
            m.load(asm="out 0xf4, al; hlt", mode=mode)
            m.mem.write(0x500000, corefile.pack_note((b"VMCOREINFO", 0, text)))
            m.run(timeout=20)
            m.snapshot().save(path)
        with open(path, "rb") as file:
            notes = corefile.read_head(file.fileno(), "")[1]
        found = {name: content for name, _, content in notes}
        assert (found.get(b"VMCOREINFO") == text) == wanted
        assert (b"QEMU" in found) == wanted
        load(path).machine().close()


def test_replays_of_a_file(saved: Path) -> None:
    snap = load(saved)
    with snap.machine() as m:
        cases = list(
            m.replay(
                snap, [b"\1", b"\7"], into=0x200000, max_size=4, report="all",
                timeout=20,
            )
        )  # fmt: skip
    assert [case.reason for case in cases] == ["exit", "exit"]
    assert [case.status for case in cases] == [ord("2"), ord("8")]


def test_replays_with_timers_of_a_file(path: Path) -> None:
    """They are no turns for the fast loop, though it sees no timer."""

    class Late(pyvmm.Device):
        size, port = 1, 0x500

        def write(self, offset: int, size: int, value: int) -> None:
            self.after(0.2, self.ring)

        def ring(self) -> None:
            self.machine.exit(7)

    with make(Late(), source="mov edx, 0x500; out dx, al; 1: jmp 1b") as m:
        m.run(until=m.cpu.rip + 6, timeout=20)
        m.snapshot().save(path)
    snap = load(path)
    with snap.machine(lambda m: m.attach(Late())) as m:
        cases = list(m.replay(snap, [b"", b""], report="all", timeout=20))
        assert [case.status for case in cases] == [7, 7]

# SPDX-License-Identifier: Apache-2.0
"""Snapshots in files: what is in one, how it is written and read.

A file is an ELF core file (corefile.py) whose notes named PYVMM hold the rest
of the state: kernel structures and plain values (encoding.py). The page is
docs/snapshot-file.md. What is read is not believed: each value is looked at
before it is used, no class or function is found by what a file says.
"""

from __future__ import annotations

import os
import stat
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from zlib import crc32

from . import _vmm, corefile, features, x86
from .corefile import OURS, PAGE
from .encoding import decode, encode
from .errors import Error
from .host import kvm
from .memory import check_host
from .run import Asked
from .snapshot import Snapshot, place_of
from .stop import Registers
from .symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Any, TypeVar

    from .corefile import Note
    from .machine import Machine
    from .state import DeviceState
    from .timers import Timer

    T = TypeVar("T")
    States = tuple[list[DeviceState], list[tuple[Timer, int]]]

VERSION = 1

# Types of the notes named PYVMM. Debuggers take small ones for theirs, whatever
# the name.
NT_FORMAT = 0x5059_0001  # FORMAT, and the version of pyvmm that wrote it
NT_MACHINE = 0x5059_0002  # options, devices and their places, the image
NT_CPUID = 0x5059_0003  # rows of seven numbers
NT_VM = 0x5059_0004  # regions, interrupt controllers, PIT, clock
NT_VCPU = 0x5059_0005  # one for each
NT_STATE = 0x5059_0006  # devices, timers, console
NT_PAGES = 0x5059_0007  # CHUNK, then the checksum of each chunk of the memory

FORMAT = Struct("<I")
CHUNK_SIZE = Struct("<I")
CHUNK = 64  # pages that have a checksum together
SUM = Struct("<I")
ROW = Struct("<7I")
ZERO = bytes(PAGE)

# Options of Machine that a file keeps, and their types.
OPTIONS: dict[str, tuple[type, ...]] = {
    "cpus": (int,),
    "cmdline": (str,),
    "strict": (bool,),
    "irqchip": (bool,),
    "pit": (bool,),
    "console_irq": (int, bool, type(None)),
}
SHAPE = ("cpus", "irqchip", "pit")  # those that are as they are
MOST_MAPPED = 4096  # pieces of memory at virtual addresses
INLINE_IMAGE = 1 << 20  # bytes of an image without a path that are kept
REASONS = ("exit", "reset", "poweroff")


# -- writing -----------------------------------------------------------------


def save(snap: Snapshot, path: str | PathLike[str]) -> None:
    """Snapshot.save()."""
    target = os.path.realpath(os.fsdecode(path))
    check_target(target)
    machine, state = contents(snap)
    temporary = os.path.join(
        os.path.dirname(target),
        f".pyvmm-{os.getpid()}-{os.urandom(6).hex()}.tmp",
    )
    try:
        fd = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
        )
        try:
            write(snap, machine, state, fd)
            os.fsync(fd)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        sync_folder(os.path.dirname(target))
    except OSError as exc:
        # The name that the caller knows, not ours.
        raise OSError(exc.errno, exc.strerror, os.fsdecode(path)) from None


def check_target(target: str) -> None:
    """A file is replaced, nothing else: no directory, no device."""
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return  # it is not there, or opening tells
    if stat.S_ISDIR(mode):
        from errno import EISDIR

        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), target)
    if not stat.S_ISREG(mode):
        raise Error(f"{target} is no regular file: it is not replaced")


def sync_folder(folder: str) -> None:
    """The new name is on the disk, too."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def contents(snap: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the notes on the machine and on its state hold."""
    if snap._loaded is not None:
        return snap._loaded.machine, snap._loaded.state
    from .filestate import saved_state

    assert snap._shape is not None
    shape = snap._shape
    if snap._ends:
        raise Error(
            "the snapshot cannot be saved: the end of another vCPU waits to "
            "be told by run()"
        )
    from . import __version__

    machine = {
        "pyvmm": __version__,
        "options": {name: shape.options[name] for name in OPTIONS},
        "console": shape.console,
        "devices": shape.devices,
        "image": image_record(shape.symbols),
    }
    return machine, saved_state(snap)


def image_record(symbols: Symbols) -> dict[str, Any] | None:
    """Where the image with the symbols is; those without a path are kept."""
    data = symbols._data
    if data is None:
        return None
    if symbols._path is not None:
        return {"path": symbols._path, "size": len(data), "sum": crc32(data)}
    return {"data": data} if len(data) <= INLINE_IMAGE else None


def write(
    snap: Snapshot, machine: dict[str, Any], state: dict[str, Any], fd: int
) -> None:
    """All of a file. The head, with the checksums, comes last."""
    native = snap._native
    parts = native.state()
    cpus = parts.pop("cpus")
    notes: list[Note] = [
        (OURS, NT_FORMAT, FORMAT.pack(VERSION) + machine["pyvmm"].encode())
    ]
    info = vmcoreinfo(native, cpus[0])
    for index, cpu in enumerate(cpus):
        registers = Registers(cpu["regs"], cpu["sregs"])
        status = corefile.prstatus(index, registers)
        notes += [
            (b"CORE", corefile.NT_PRSTATUS, status),
            (b"CORE", corefile.NT_FPREGSET, cpu["xsave"][: corefile.FXSAVE]),
        ]
        if info is not None:  # without, drgn and crash would not take them
            notes.append((b"QEMU", 0, corefile.qemu_state(registers)))
    if info is not None:
        notes.append((corefile.VMCOREINFO, 0, info))
    rows = b"".join(ROW.pack(*row) for row in kvm().cpuid)
    notes += [
        (OURS, NT_MACHINE, encode(machine)),
        (OURS, NT_CPUID, rows),
        (OURS, NT_VM, encode(parts)),
        *((OURS, NT_VCPU, encode(cpu)) for cpu in cpus),
        (OURS, NT_STATE, encode(state)),
    ]
    segments = make_segments(native, parts["regions"], cpus[0])
    size = CHUNK_SIZE.size - -native.pages // CHUNK * SUM.size
    empty = (OURS, NT_PAGES, bytes(size))
    start = len(corefile.make_head(segments, [*notes, empty]))
    if start > corefile.MOST_HEAD:
        raise Error(
            f"the snapshot cannot be saved: what is beside its memory has "
            f"{start} bytes, more than {corefile.MOST_HEAD}"
        )
    os.ftruncate(fd, start + native.pages * PAGE)
    sums = write_pages(native, fd, start)
    filled = (OURS, NT_PAGES, CHUNK_SIZE.pack(CHUNK) + sums)
    write_all(fd, corefile.make_head(segments, [*notes, filled]), 0)


def vmcoreinfo(native: _vmm.Snapshot, cpu: dict[str, bytes]) -> bytes | None:
    """What Linux tells debuggers of itself, if it is the guest.

    It keeps that ready, as a note at the start of a page.
    """
    if not Registers(cpu["regs"], cpu["sregs"]).efer & x86.EFER_LMA:
        return None
    buffer = bytearray(CHUNK * PAGE)
    first = native.next(0)
    while first < native.pages:
        count = min(CHUNK, native.pages - first)
        with memoryview(buffer)[: count * PAGE] as view:
            native.copy(first, view)
        found = corefile.find_vmcoreinfo(buffer, count * PAGE)
        if found is not None:
            return found
        first = native.next(first + count)
    return None


def make_segments(
    native: _vmm.Snapshot,
    regions: list[tuple[int, int, int]],
    cpu: dict[str, bytes],
) -> list[corefile.Segment]:
    """What vCPU 0 has mapped, as debuggers want it, then all regions."""
    from itertools import islice

    from .mapped import mapped, within

    places = []
    at = 0
    for gpa, size, _ in regions:
        places.append((at, gpa, gpa, size))
        at += size

    def read(address: int) -> bytes | None:
        for offset, gpa, _, size in places:
            if gpa <= address < gpa + size:
                return native.page((offset + address - gpa) // PAGE)
        return None

    registers = Registers(cpu["regs"], cpu["sregs"])
    runs = within(mapped(read, registers), regions)
    virtual = [(offset, *run) for offset, run in islice(runs, MOST_MAPPED)]
    return virtual + places


def write_pages(native: _vmm.Snapshot, fd: int, start: int) -> bytes:
    """All pages but those of zeros; the checksum of each chunk."""
    sums = []
    buffer = bytearray(CHUNK * PAGE)
    after = -1  # the next page that may not be zeros
    for first in range(0, native.pages, CHUNK):
        count = min(CHUNK, native.pages - first)
        if after < first:
            after = native.next(first)
        if after >= first + count:
            sums.append(SUM.pack(crc32(bytes(count * PAGE))))
            continue
        with memoryview(buffer)[: count * PAGE] as view:
            native.copy(first, view)
            sums.append(SUM.pack(crc32(view)))
            for begin, end in runs(buffer, count):
                write_all(fd, view[begin:end], start + first * PAGE + begin)
    return b"".join(sums)


def runs(buffer: bytearray, count: int) -> list[tuple[int, int]]:
    """Where the first `count` pages are not zeros: begin and end of each."""
    found = []
    begin = None
    for at in range(0, count * PAGE, PAGE):
        zero = buffer[at : at + PAGE] == ZERO
        if zero and begin is not None:
            found.append((begin, at))
            begin = None
        elif not zero and begin is None:
            begin = at
    if begin is not None:
        found.append((begin, count * PAGE))
    return found


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """All of the data, however much a write takes."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view = view[done:]
        at += done


# -- reading -----------------------------------------------------------------


def load(path: str | PathLike[str], copy: bool) -> Snapshot:
    """Snapshot.load()."""
    name = os.fsdecode(path)
    fd = corefile.open_regular(name)
    try:
        head, notes = corefile.read_head(fd, name)
        check_version(notes, name)
        checksum = corefile.check_head(head, notes, name)
        try:
            snap = read(fd, len(head), notes, name, copy)
        except (ValueError, TypeError, LookupError, StructError) as exc:
            # The checksum is right: whoever made it meant it so.
            raise Error(f"{name} is no snapshot that can be: {exc}") from None
        assert snap._loaded is not None
        snap._loaded.checksum = checksum
        return snap
    finally:
        os.close(fd)


def checksum_of(path: str) -> int:
    """The checksum of a file's head, and so of all of it; as load() raises."""
    fd = corefile.open_regular(path)
    try:
        head, notes = corefile.read_head(fd, path)
        check_version(notes, path)
        return corefile.check_head(head, notes, path)
    finally:
        os.close(fd)


def check_version(notes: list[Note], path: str) -> None:
    """Error unless the first note says that this is ours and of our version."""
    name, kind, content = notes[0] if notes else (b"", 0, b"")
    if (name, kind) != (OURS, NT_FORMAT) or len(content) < FORMAT.size:
        raise Error(f"{path} is a core file, but no snapshot of pyvmm")
    (version,) = FORMAT.unpack_from(content)
    if version != VERSION:
        from . import __version__

        author = content[FORMAT.size :].decode("ascii", "replace")
        raise Error(
            f"{path} is of version {version} of the format, written by pyvmm "
            f"{author}; pyvmm {__version__} reads version {VERSION}"
        )


def read(
    fd: int, start: int, notes: list[Note], path: str, copy: bool
) -> Snapshot:
    """The snapshot of a file whose head is as it was written."""
    ours: dict[int, list[bytes]] = {}
    for name, kind, content in notes:
        if name == OURS:
            ours.setdefault(kind, []).append(content)
    for kind in (NT_MACHINE, NT_CPUID, NT_VM, NT_STATE, NT_PAGES):
        if len(ours.get(kind, [])) != 1:
            raise ValueError(f"it has not one note of type {kind:#x}")
    parts = a(dict, decode(ours[NT_VM][0]), "the VM")
    parts["cpus"] = [decode(data) for data in ours.get(NT_VCPU, [])]
    size = 0
    for region in a(list, parts["regions"], "the memory"):
        size += a(int, a(tuple, region, "a region")[1], "a region's size")
    check_size(os.fstat(fd).st_size, start, size, path)
    check_host(size, "its memory")
    check_cpu(ours[NT_CPUID][0], parts["cpus"], path)
    loaded = Loaded(
        path,
        start,
        a(dict, decode(ours[NT_MACHINE][0]), "the machine"),
        a(dict, decode(ours[NT_STATE][0]), "the state"),
        ours[NT_PAGES][0],
    )
    loaded.check(parts, size)
    if copy:
        fd, loaded.start = copied(fd, start, size), 0
    try:
        native = _vmm.Snapshot.open(kvm(), fd, loaded.start, parts)
    finally:
        if copy:
            os.close(fd)
    loaded.native = native
    return loaded.snapshot()


def check_size(size: int, start: int, memory: int, path: str) -> None:
    """Error unless the file is as long as it says."""
    if size < start + memory:
        raise Error(
            f"{path} is truncated: {size} bytes of {start + memory} are there"
        )
    if size > start + memory:
        raise Error(
            f"{path} is damaged: {size - start - memory} bytes follow its end"
        )


def check_cpu(rows: bytes, cpus: list[Any], path: str) -> None:
    """Error naming what the guest has seen of its CPU and is not here."""
    then = list(ROW.iter_unpack(rows))
    now = kvm().cpuid
    gone = features.missing(then, now)
    makers = [features.vendor(features.table(one)) for one in (then, now)]
    lacks = f"this host's has no {', '.join(gone)}" if gone else ""
    if makers[0] != makers[1]:
        raise Error(
            f"{path} is of another CPU: one of {makers[0]!r}, and this is one "
            f"of {makers[1]!r}{'; ' if gone else ''}{lacks}"
        )
    if gone:
        raise Error(f"{path} is of another CPU: {lacks}")
    here = set(kvm().msr_indices())
    there = {
        int.from_bytes(cpu["msrs"][at : at + 4], "little")
        for cpu in cpus
        for at in range(0, len(cpu["msrs"]), 12)
    }
    if there - here:
        names = ", ".join(f"{msr:#x}" for msr in sorted(there - here))
        raise Error(f"{path} is of another CPU: this host has no MSR {names}")


def copied(fd: int, start: int, size: int) -> int:
    """A sealed file in memory of the file's pages, but for its holes."""
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE
    from fcntl import fcntl as control

    memory = os.memfd_create("pyvmm snapshot", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        for begin, end in extents(fd, start, start + size):
            while begin < end:
                data = os.pread(fd, min(end - begin, 1 << 20), begin)
                if not data:
                    break  # shortened meanwhile: the rest is zeros
                write_all(memory, data, begin - start)
                begin += len(data)
        control(memory, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE)
    except BaseException:
        os.close(memory)
        raise
    return memory


def extents(fd: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Where a file has data: begin and end of each piece, of whole pages."""
    found: list[tuple[int, int]] = []
    while begin < end:
        try:
            first = os.lseek(fd, begin, os.SEEK_DATA)
            last = os.lseek(fd, first, os.SEEK_HOLE)
        except OSError:
            break  # holes up to the end
        first -= first % PAGE
        last += -last % PAGE
        if first < end:
            found.append((max(first, begin), min(last, end)))
        begin = last
    return found


def a(kind: type[T], value: object, what: str) -> T:
    """The value, which is of just that type; ValueError."""
    if type(value) is not kind:
        raise ValueError(
            f"{what} is a {type(value).__name__}, not a {kind.__name__}"
        )
    return value


class Loaded:
    """What a file says beside the core's part, looked at but not yet used.

    `machine`, `state`: as they were written. `start`: where the pages begin.
    `checksum`: that of the head, and so of the whole file.

    Threads: as the machines that enter it.
    """

    def __init__(
        self,
        path: str,
        start: int,
        machine: dict[str, Any],
        state: dict[str, Any],
        sums: bytes,
    ) -> None:
        self.path = path
        self.start = start
        self.machine = machine
        self.state = state
        self.sums = sums
        self.native: _vmm.Snapshot
        self.checksum = 0

    def check(self, parts: dict[str, Any], size: int) -> None:
        """ValueError unless all is of the types that it is used as."""
        from .filestate import check_state

        machine = self.machine
        a(str, machine["pyvmm"], "the version")
        options = a(dict, machine["options"], "the options")
        if set(options) != set(OPTIONS):
            raise ValueError("its options are others than a machine has")
        for name, kinds in OPTIONS.items():
            if type(options[name]) not in kinds:
                raise ValueError(f"its {name} is a {type(options[name])}")
        has = (len(parts["cpus"]), parts["irqchip"], parts["pit"])
        if options["cpus"] != has[0] or [bool(v) for v in has[1:]] != [
            options["irqchip"],
            options["pit"],
        ]:
            raise ValueError("its options and its state do not go together")
        a(bool, machine["console"], "the console")
        for place in a(list, machine["devices"], "the devices"):
            check_place(place)
        check_image(machine["image"])
        check_state(self.state, machine["devices"], machine["console"])
        if len(self.sums) < CHUNK_SIZE.size:
            raise ValueError("there are no checksums of its pages")
        (chunk,) = CHUNK_SIZE.unpack_from(self.sums)
        wanted = -(-size // PAGE // max(chunk, 1)) if chunk else 0
        if not chunk or len(self.sums) != CHUNK_SIZE.size + wanted * SUM.size:
            raise ValueError("its pages and their checksums do not go together")

    def snapshot(self) -> Snapshot:
        """The Snapshot."""
        from .state import DeviceState

        snap = Snapshot(self.native, None)
        snap._loaded = self
        # Their names; what they hold depends on the machine that enters.
        snap._devices = [
            DeviceState(place["name"]) for place in self.machine["devices"]
        ]
        state = self.state
        snap._console = state["console"]
        snap._ran = state["ran"]
        snap._stopped = state["stopped"]
        if state["asked"] is not None:
            snap._asked = Asked(*state["asked"])
        return snap

    # -- pages ---------------------------------------------------------------

    def verify(self) -> None:
        """Snapshot.verify()."""
        fd, pages = self.native.fileno(), self.native.pages
        (chunk,) = CHUNK_SIZE.unpack_from(self.sums)
        size = chunk * PAGE
        end = self.start + pages * PAGE
        data = iter(extents(fd, self.start, end))
        piece = next(data, (end, end))
        zeros = SUM.pack(crc32(bytes(min(size, pages * PAGE))))
        for index, at in enumerate(range(self.start, end, size)):
            length = min(size, end - at)
            while piece[1] <= at:
                piece = next(data, (end, end + 1))
            place = CHUNK_SIZE.size + index * SUM.size
            wanted = self.sums[place : place + SUM.size]
            if piece[0] >= at + length and length == min(size, pages * PAGE):
                found = zeros  # a hole
            else:
                content = corefile.read_exactly(fd, length, at, self.path)
                found = SUM.pack(crc32(content))
            if found != wanted:
                where = self.where((at - self.start) // PAGE)
                raise Error(
                    f"{self.path} is damaged: the {length} bytes at offset "
                    f"{at:#x}, guest memory from {where:#x} on, have changed"
                )

    def where(self, number: int) -> int:
        """The guest-physical address of a page."""
        at = number * PAGE
        for gpa, size, _ in self.native.state()["regions"]:
            if at < size:
                return int(gpa + at)
            at -= size
        raise ValueError(f"page {number}")

    # -- machines ------------------------------------------------------------

    def enter(self, machine: Machine) -> States:
        """Make the machine one of the snapshot's; what its devices were like.

        ValueError when it is of another shape; nothing has changed then.
        """
        from .filestate import states_for

        # They refer to the machine's own devices, so it is it that keeps them.
        slots = tuple(machine._wiring.slots)
        entered = machine._entered
        if entered is not None and entered[:2] == (self, slots):
            return entered[2]
        self._check_shape(machine)
        try:
            found = states_for(machine, self.state)
        except ValueError as exc:
            raise ValueError(f"{self.path}: {exc}") from None
        # Of a tree that it is in already nothing is mapped anew.
        self.native.adopt(machine.memory)
        if machine._image is None and not len(machine._symbols):
            machine._symbols = self._symbols()
        machine._booted = True
        machine._entered = (self, slots, found)
        return found

    def _check_shape(self, machine: Machine) -> None:
        options = self.machine["options"]
        now = (machine._count, machine._irqchip, machine._pit)
        for name, value in zip(SHAPE, now, strict=True):
            if value != options[name]:
                raise ValueError(
                    f"the snapshot in {self.path} is of a machine with "
                    f"{name}={options[name]}, this one has {name}={value}"
                )
        readonly = _vmm.MEM_READONLY
        there = [
            (gpa, size, flags & readonly)
            for gpa, size, flags in self.native.state()["regions"]
        ]
        here = [
            (gpa, size, flags & (readonly | _vmm.MEM_SHARED))
            for gpa, size, flags, *_ in machine.memory.regions
        ]
        if here != there:
            raise ValueError(
                f"the snapshot in {self.path} has memory at {spans(there)}; "
                f"the machine has it at {spans(here)}"
            )
        for then, slot in zip(
            self.machine["devices"], machine._wiring.slots, strict=True
        ):
            compare_places(then, place_of(slot))

    def _symbols(self) -> Symbols:
        """The image's symbols, if they can be had as they were."""
        record = self.machine["image"]
        if record is None:
            return Symbols()
        try:
            path = record.get("path")
            data = record.get("data")
            if path is not None:
                data = read_unchanged(path, record["size"], record["sum"])
            return Symbols(_vmm.ELF(data), data, path) if data else Symbols()
        except (OSError, ValueError, Error):
            return Symbols()


def read_unchanged(path: str, size: int, wanted: int) -> bytes | None:
    """A file, if it has that size and checksum still."""
    fd = corefile.open_regular(path)
    try:
        if os.fstat(fd).st_size != size:
            return None
        data = corefile.read_exactly(fd, size, 0, path)
    finally:
        os.close(fd)
    return data if crc32(data) == wanted else None


def spans(regions: list[tuple[int, int, int]]) -> str:
    """Regions in words."""
    words = [
        f"{gpa:#x}..{gpa + size - 1:#x}{' (read-only)' if flags else ''}"
        for gpa, size, flags in regions
    ]
    return ", ".join(words) or "(none)"


def check_place(place: object) -> None:
    """ValueError unless it is what place_of() gives."""
    row = a(dict, place, "a device")
    kinds = {
        "name": str, "class": str, "base": int, "size": int, "port": bool,
        "lines": list, "ranges": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        a(kind, row[name], f"the {name} of a device")
    rng = row["rng"]
    if rng is not None:
        a(str, a(dict, rng, "an Rng")["notify"], "notify")
        a(int, rng["queue_size"], "queue_size")


def check_image(record: object) -> None:
    """ValueError unless it is what image_record() gives."""
    if record is None:
        return
    row = a(dict, record, "the image")
    if "data" in row:
        a(bytes, row["data"], "the image")
    else:
        a(str, row["path"], "the image's path")
        a(int, row["size"], "the image's size")
        a(int, row["sum"], "the image's checksum")


def compare_places(then: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError unless a device is of that class and where it was."""
    for name in ("class", "port", "base", "size", "lines", "ranges"):
        if then[name] != now[name]:
            old, new = (
                f"{v:#x}" if type(v) is int else f"{v}"
                for v in (then[name], now[name])
            )
            raise ValueError(
                f"the snapshot's {now['name']} has {name} {old}, the machine's "
                f"{new}"
            )


def make_machine(
    snap: Snapshot,
    setup: Callable[[Machine], object] | None,
    options: dict[str, Any],
) -> Machine:
    """Snapshot.machine()."""
    from .machine import Machine

    loaded = snap._loaded
    if loaded is None:
        raise RuntimeError(
            "the snapshot is not of a file: m.clone() makes another machine"
        )
    wanted = {
        **loaded.machine["options"],
        "console": loaded.machine["console"],
        **options,
    }
    machine = Machine(snap._native.memory(), **wanted)
    try:
        if setup is not None:
            setup(machine)
        else:
            attach_rngs(machine, loaded.machine["devices"])
        machine.restore(snap)
    except BaseException:
        machine.close()
        raise
    return machine


def attach_rngs(machine: Machine, places: list[dict[str, Any]]) -> None:
    """The devices that need nobody to make them; ValueError for others."""
    from .rng import Rng

    others = [place["name"] for place in places if place["rng"] is None]
    if others:
        raise ValueError(
            f"the snapshot has the devices {', '.join(others)}: machine(setup) "
            "wants a function that attaches them"
        )
    for place in places:
        lines = place["lines"]
        machine.attach(
            Rng(**place["rng"]),
            mmio=place["base"],
            irq=lines[0] if lines else None,
            name=place["name"],
        )

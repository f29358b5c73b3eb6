# SPDX-License-Identifier: Apache-2.0
"""Machine.replay(): one snapshot, many inputs, all ends as values.

The loop itself is C (csrc/vmm/replay.h): Python hears of a turn only when there
is news. Turns that a device of Python's takes part in are done here, one by
one.
"""

from __future__ import annotations

import os
from hashlib import sha256
from itertools import islice
from time import monotonic

from . import _vmm, running, x86
from .blocks import starts
from .corpus import Corpus, write_whole
from .debug import INT3, MODE_WORDS, int3_works, mode_of
from .errors import Unsupported
from .run import closed_error
from .stop import MEANT
from .symbols import parse
from .until import Armed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

    from typing_extensions import Buffer

    from .machine import Machine
    from .snapshot import Snapshot
    from .stop import Stop
    from .symbols import Address
    from .until import Until

    Piece = tuple[int, int]

REPORTS = {"new": 0, "all": 1, "crashed": 2}
# Inputs that are taken from the iterable at once; from a corpus fewer, so that
# news soon have descendants.
BATCH = 1024
CORPUS_BATCH = 256

# enum vmm_turn_flags of csrc/vmm/replay.h.
NEW, TOUCHED, OWNER, TIMEOUT, IDLE, AT_STOP = 1, 2, 4, 8, 16, 32

EDGES, BLOCKS = "edges", "blocks"
FRAMES = 5  # innermost functions that say whether two crashes are the same
MAP_SYMBOL = "pyvmm_coverage"
MAP_SIZE = 65536

# What a turn's end is called; the rest is by its flags, or nobody's meaning.
ENDS = {
    _vmm.EXIT_DEBUG: "until",
    _vmm.EXIT_UNTIL: "until",
    _vmm.EXIT_STOP: "exit",
    _vmm.EXIT_HALT: "halt",
    _vmm.EXIT_SHUTDOWN: "triple fault",
    _vmm.EXIT_FAIL_ENTRY: "entry failure",
    _vmm.EXIT_INTERNAL_ERROR: "internal error",
    _vmm.EXIT_UNCLAIMED: "unclaimed access",
}
EVENTS = {1: "poweroff", 2: "reset", 3: "crash"}  # KVM_SYSTEM_EVENT_
SUBERROR_EMULATION = 1


class Case:
    """How one input ended.

    `data`: the input; `index`: its number, from 0 on; `reason` and `status` as
    a Stop has them; `address`: where the guest stood, or None; `new`: how many
    bytes of the coverage map show something that no input before had;
    `collected`: what `collect=` asked for, in its order, ints of registers and
    bytes of memory. `stop`
    is the Stop with registers and all: the turn is done once more for it, on
    its machine, which restore() leaves where the case ended.

    Threads: one.
    """

    __slots__ = (
        "_replay", "_stop", "address", "collected", "data", "index", "new",
        "reason", "status",
    )  # fmt: skip

    def __init__(
        self,
        replay: Replay,
        index: int,
        data: bytes,
        reason: str,
        status: int | None,
        address: int | None,
        new: int,
        collected: list[int | bytes],
        stop: Stop | None = None,
    ) -> None:
        self._replay = replay
        self._stop = stop
        self.index = index
        self.data = data
        self.reason = reason
        self.status = status
        self.address = address
        self.new = new
        self.collected = collected

    @property
    def crashed(self) -> bool:
        """Whether the end is one that nobody means, a timeout included."""
        return self.reason not in MEANT

    @property
    def stop(self) -> Stop:
        """The Stop of it; see above."""
        if self._stop is None:
            self._stop = self.restore()
        return self._stop

    def restore(self) -> Stop:
        """Do the turn once more: the machine is where the case ended."""
        return self._replay.redo(self.data)

    def name(self) -> str:
        """A name for what happened: the end, and a hash of the stack."""
        return self._replay.name(self)

    def save(self, folder: str | PathLike[str]) -> str:
        """Write the input, and the machine as a core file, to a folder.

        Returns the input's path. The files are named by the end and a hash of
        the backtrace, so the same crash is kept once: what is there stays. The
        core file is a snapshot (`Snapshot.load`) that gdb reads. OSError.
        """
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, self.name())
        if not os.path.exists(path):
            # name() has left the machine where the case ended.
            self._replay.machine.snapshot().save(path + ".core")
            self._replay.machine.restore(self._replay.snap)
            write_whole(path, self.data)
        return path

    def __repr__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        new = f", {self.new} new" if self.new else ""
        status = "" if self.status is None else f" {self.status}"
        return (
            f"<Case {self.index}: {self.reason}{status}{where}, "
            f"{len(self.data)} bytes{new}>"
        )


class Replay:
    """The cases of Machine.replay(): an iterator, and a context manager.

    `turns`: done so far, those that were done twice too; `pages`: copied back
    by them; `whole`: whether all of the vCPU's state is put back each time, and
    `why`: what was found changed, or None; `edges`: bytes of the coverage map
    that any input has reached.

    Threads: one.
    """

    def __init__(
        self,
        machine: Machine,
        snap: Snapshot,
        inputs: Iterable[bytes],
        *,
        into: Address | None,
        length: Address | tuple[Address, int] | None,
        max_size: int | None,
        until: Until,
        timeout: float | None,
        coverage: str | tuple[Address, int] | None,
        report: str,
        whole: bool,
        seconds: float | None,
        blocks: Iterable[Address] | None = None,
        collect: Iterable[str | tuple[Address, int]] = (),
    ) -> None:
        if report not in REPORTS:
            raise ValueError(f"report {report!r} is none of {[*REPORTS]}")
        running.check_timeout(timeout)
        running.check_timeout(seconds)
        machine._check_open()
        if machine._count != 1:
            raise ValueError(
                f"replay() wants a machine of one vCPU, not {machine._count}"
            )
        if isinstance(inputs, Corpus) and max_size:
            inputs.limit(max_size)
        self.machine = machine
        self.snap = snap
        self.until = until
        self.timeout = timeout
        self.report = report
        self._deadline = None if seconds is None else monotonic() + seconds
        machine.restore(snap)
        self._alone = needs_python(machine, snap)
        self._armed = armed = Armed(machine, until)
        limits = [s for s in (timeout, armed.limit) if s is not None]
        self._elapsed = armed.limit is not None and armed.limit == min(limits)
        self.max_size = max_size
        self._into = self._pieces(into, max_size)
        self._to = self._length(length)
        self._collect = self._collection(collect)
        self._elsewhere = False  # the machine may be anywhere
        stops = self._stops()
        counters = self._map(None if coverage == BLOCKS else coverage)
        # What turns begin at; and the same without int3, for redo().
        self._base = self._clean = snap
        if coverage == EDGES:
            self._base = self._clean = self._clear(counters)
        patches: list[tuple[int, int, int]] = []
        if coverage == BLOCKS or blocks is not None:
            patches = self._patches(blocks, stops)
            self._patch(patches)
        self.blocks = [address for address, _, _ in patches]
        self._native = _vmm.Replay(
            machine.cpu.vcpu,
            self._base._native,
            into=self._into,
            length=self._to,
            stops=stops,
            map=counters,
            write=armed.write if armed.write[2] else None,
            exits=armed.exits,
            stop_sp=armed.stack or 0,
            limit=min(limits, default=0.0),
            wants=bool(armed.texts),
            strict=machine._options["strict"],
            whole=whole,
            console=machine._console.native if machine._console else None,
            blocks=patches,
            take=[piece for pieces in self._memory() for piece in pieces],
            registers=any(isinstance(wanted, str) for wanted in self._collect),
        )
        self._batch = BATCH
        if self._alone:
            self._batch = 1
        elif isinstance(inputs, Corpus):
            self._batch = CORPUS_BATCH
        self._cases = self._run(iter(inputs))

    # -- what the C loop is told ---------------------------------------------

    def _pieces(
        self, into: Address | None, max_size: int | None
    ) -> list[Piece]:
        if into is None:
            return []
        if max_size is None or max_size < 1:
            raise ValueError(
                f"into wants a max_size of 1 or more, not {max_size!r}"
            )
        return physical(self.machine, self._pointed(into), max_size)

    def _collection(
        self, collect: Iterable[str | tuple[Address, int]]
    ) -> list[str | list[Piece]]:
        """Each item as the name of a register or as pieces of RAM."""
        if isinstance(collect, str):
            raise TypeError(f"collect is a list, as in [{collect!r}]")
        found: list[str | list[Piece]] = []
        for item in collect:
            if isinstance(item, tuple):
                place, size = item
                if not isinstance(size, int) or size < 1:
                    raise ValueError(f"collect has a size of {size!r} bytes")
                found.append(physical(self.machine, self._pointed(place), size))
            elif item in x86.REGS or item in x86.PARTS:
                found.append(item)
            else:
                raise ValueError(
                    f"collect has {item!r}, which is no register; of memory it "
                    "takes (address, size)"
                )
        return found

    def _memory(self) -> list[list[Piece]]:
        """What is to be collected of memory."""
        return [each for each in self._collect if not isinstance(each, str)]

    def _sorted(
        self, regs: bytes | None, memory: bytes | None
    ) -> list[int | bytes]:
        """What was collected, in the order in which it was asked for."""
        named: dict[str, int] = {}
        if regs is not None:
            values = x86.REGS_STRUCT.unpack(regs)
            named = dict(zip(x86.REGS, values, strict=True))
        found: list[int | bytes] = []
        at = 0
        for wanted in self._collect:
            if isinstance(wanted, str):
                name, shift, bits = x86.PARTS.get(wanted, (wanted, 0, 64))
                found.append(named[name] >> shift & ((1 << bits) - 1))
            else:
                size = sum(piece[1] for piece in wanted)
                found.append((memory or b"")[at : at + size])
                at += size
        return found

    def _pointed(self, place: Address) -> int:
        """A virtual address: "*rdi" is where the register points.

        "*esp+8" is 8 bytes behind that, as the snapshot has it.
        """
        cpu, symbols = self.machine.cpu, self.machine.symbols
        if not isinstance(place, str) or not place.startswith("*"):
            return symbols.address(place)
        inner = place[1:].strip()
        name, number = parse(inner)
        if name in x86.REGS or name in x86.PARTS:
            return int(cpu.registers[whole_register(name)]) + number
        width = 8 if cpu.registers.efer & x86.EFER_LMA else 4
        return int.from_bytes(cpu.mem.read(inner, width), "little")

    def _length(
        self, length: Address | tuple[Address, int] | None
    ) -> int | Piece | None:
        if length is None:
            return None
        if isinstance(length, str) and (
            length in x86.REGS or length in x86.PARTS
        ):
            return x86.REGS.index(whole_register(length))
        wide = self.machine.cpu.registers.efer & x86.EFER_LMA
        place, size = length, 8 if wide else 4
        if isinstance(length, tuple):
            place, size = length
            if size not in (1, 2, 4, 8):
                raise ValueError(f"length of {size} bytes: 1, 2, 4 or 8")
        assert not isinstance(place, tuple)
        found = physical(self.machine, self._pointed(place), size)
        if len(found) != 1:
            raise ValueError("length lies across the border of a page")
        return found[0]

    def _stops(self) -> list[int]:
        debug = self.machine._debug
        points = self._armed.points
        if debug.points:
            raise ValueError("replay() wants all breakpoints to be removed")
        if any(point.kind != "x" for point in points):
            raise ValueError("replay() ends at no watchpoint")
        if points:
            debug._require("break")
        return [point.address for point in points]

    def _map(self, coverage: str | tuple[Address, int] | None) -> list[Piece]:
        if coverage is None:
            return []
        symbols = self.machine.symbols
        if isinstance(coverage, tuple):
            return physical(
                self.machine, symbols.address(coverage[0]), coverage[1]
            )
        if coverage != EDGES:
            raise ValueError(
                f"coverage {coverage!r} is neither 'edges' nor 'blocks' nor "
                "(address, size)"
            )
        if MAP_SYMBOL not in symbols:
            raise ValueError(
                f"the image has no {MAP_SYMBOL}: build it with coverage, or "
                "give coverage=(address, size)"
            )
        return physical(self.machine, symbols[MAP_SYMBOL], MAP_SIZE)

    def _clear(self, counters: list[Piece]) -> Snapshot:
        """The snapshot, or a child of it that has counted nothing.

        What was counted on the way there hides what an input does, all of it
        where a counter is at its end.
        """
        memory = self.machine.memory
        if not any(any(memory.read(gpa, size)) for gpa, size in counters):
            return self.snap
        for gpa, size in counters:
            memory.write(gpa, bytes(size))
        return self.machine.snapshot()

    # -- blocks, by int3 -----------------------------------------------------

    def _patches(
        self, blocks: Iterable[Address] | None, stops: list[int]
    ) -> list[tuple[int, int, int]]:
        """Address, gpa and byte of each block, ascending."""
        machine = self.machine
        if self._alone:
            raise ValueError(
                "blocks are seen by the fast loop alone, and a device of this "
                "machine takes part in each turn"
            )
        registers = machine.cpu.registers
        mode = mode_of(registers)
        if not int3_works(mode):
            raise Unsupported(
                f"this host does not report int3 in {MODE_WORDS[mode]}, which "
                "coverage of blocks is made of (a trial run showed it)"
            )
        if blocks is None:
            known = starts(machine)
            if not known:
                raise ValueError("the image has no functions: give blocks=")
        else:
            places = map(machine.symbols.address, blocks)
            known = dict.fromkeys(sorted(places), -1)
        found = []
        for address, byte in known.items():
            if address in stops:
                continue  # it is seen as an end
            now = machine.cpu.mem.read(address, 1)[0]
            if byte in (-1, now):
                gpa = physical(machine, address, 1)[0][0]
                found.append((address, gpa, now))
        return found

    def _patch(self, patches: list[tuple[int, int, int]]) -> None:
        """A child of the snapshot with an int3 at each."""
        for _, gpa, _ in patches:
            self.machine.memory.write(gpa, INT3)
        self._base = self.machine.snapshot()

    @property
    def reached(self) -> list[int]:
        """The blocks that inputs have reached, in that order: addresses."""
        return self._native.reached

    # -- turns ---------------------------------------------------------------

    def _run(self, inputs: Iterator[bytes]) -> Iterator[Case]:
        index = 0
        while batch := list(islice(inputs, self._batch)):
            at = 0
            while at < len(batch):
                if self._alone:
                    cases = [self._do_in_python(index + at, batch[at])]
                    at += 1
                else:
                    at, cases = self._do_in_c(index, at, batch, self.report)
                for case in cases:
                    if self._wanted(case):
                        self._elsewhere = True
                        yield case
                if self._over():
                    return
            index += len(batch)

    def one(self, data: bytes) -> Case | None:
        """One turn, whatever its end; None when pause() or close() ended it.

        The machine is where the turn ended. `trusting` says whether that is
        believed without a look at the whole state (csrc/vmm/replay.h).
        """
        index = self.turns
        try:
            if self._alone:
                return self._do_in_python(index, data)
            cases = self._do_in_c(index, 0, [data], "all")[1]
            return cases[0] if cases else None
        except BaseException:
            self._elsewhere = True  # given up in the middle
            raise

    def _over(self) -> bool:
        if self.machine.closed:
            return True
        runner = self.machine._runner
        if runner.wanted is not None:  # pause() or close() of another thread
            return True
        return self._deadline is not None and monotonic() >= self._deadline

    def _wanted(self, case: Case) -> bool:
        if self.report == "all" or case.crashed:
            return True
        return self.report == "new" and case.new > 0

    def _do_in_c(
        self, index: int, at: int, batch: list[bytes], report: str
    ) -> tuple[int, list[Case]]:
        """Turns of a batch from number `at` on: the next one, and the cases."""
        native = self._native
        runner = self.machine._runner
        if self._elsewhere:
            self._go_back()
        runner.begin()
        try:
            self._arm_console()
            at, turns = native.run(batch, at, REPORTS[report])
        finally:
            runner.finish(closed_error())
            if runner.closed:
                self.machine.close()
        cases = []
        for turn in turns:
            number = turn[0]
            if turn[2] & OWNER:
                cases.append(self._do_in_python(index + number, batch[number]))
            else:
                cases.append(self._case(index, turn, batch[number]))
        self._elsewhere = self._elsewhere or native.touched
        return at, cases

    def _arm_console(self) -> None:
        if self._armed.texts:
            texts = [text.wanted for text in self._armed.texts]
            self.machine.console.native.want(texts)

    def _case(self, index: int, turn: _vmm._Turn, data: bytes) -> Case:
        number, reason, flags, code, value, pc, found, collected = turn
        status = None
        if flags & TIMEOUT:
            name = "until" if self._elapsed else "timeout"
        elif flags & IDLE:
            name = "halt"
        elif reason == _vmm.EXIT_SYSTEM_EVENT:
            name = EVENTS.get(code, "unknown exit")
        elif reason == _vmm.EXIT_INTERNAL_ERROR and code == SUBERROR_EMULATION:
            name = "emulation failure"
        else:
            name = ENDS.get(reason, "unknown exit")
        if reason == _vmm.EXIT_STOP:
            status = value
        return Case(
            self, index + number, data, name, status, pc or None, found,
            self._sorted(*collected) if collected is not None else [],
        )  # fmt: skip

    def _do_in_python(self, index: int, data: bytes) -> Case:
        """A turn in which devices of Python's may take part."""
        stop = self.redo(data)
        found = 0 if self.machine.closed else self._native.look()
        address = stop.where.address if stop.where is not None else None
        collected: list[int | bytes] = []
        if self._collect and not self.machine.closed:
            read = self.machine.memory.read
            pieces = [read(*each) for part in self._memory() for each in part]
            regs = self.machine.cpu.vcpu.get("regs")
            collected = self._sorted(regs, b"".join(pieces))
        return Case(
            self, index, data, stop.reason, stop.status, address, found,
            collected, stop,
        )  # fmt: skip

    def _go_back(self) -> None:
        """All is as in the snapshot, devices too."""
        self.machine.restore(self._base)
        self._native.left()
        self._elsewhere = False

    def redo(self, data: bytes) -> Stop:
        """One turn by itself, to its Stop."""
        self.machine.restore(self._clean)
        self._elsewhere = True
        self._place(data)
        return self.machine.run(self.until, self.timeout, check=False)

    def _place(self, data: bytes) -> None:
        """What the C loop does with an input."""
        memory, cpu = self.machine.memory, self.machine.cpu
        at = 0
        for gpa, size in self._into:
            memory.write(gpa, data[at : at + size])
            at += size
        if isinstance(self._to, int):
            setattr(cpu, x86.REGS[self._to], len(data))
        elif self._to is not None:
            gpa, size = self._to
            memory.write(gpa, len(data).to_bytes(size, "little"))

    def name(self, case: Case) -> str:
        """See Case.name()."""
        case.restore()
        words = [case.reason.replace(" ", "-")]
        frames = [
            frame.symbol or f"{frame.address:#x}"
            for frame in self.machine.backtrace(limit=FRAMES)
        ]
        words.append(sha256("\n".join(frames).encode()).hexdigest()[:16])
        return "-".join(words)

    # -- what is known -------------------------------------------------------

    @property
    def turns(self) -> int:
        """Turns done so far."""
        return self._native.turns

    @property
    def pages(self) -> int:
        """Pages copied back so far."""
        return self._native.pages

    @property
    def whole(self) -> bool:
        """Whether each turn begins by putting back all of the state."""
        return self._native.whole or self._alone

    @property
    def why(self) -> str | None:
        """What made it so: a part of the vCPU's state, or None."""
        return self._native.why

    @property
    def trusting(self) -> bool:
        """Whether one() believes plain ends without a look. Settable."""
        return self._native.trusting

    @trusting.setter
    def trusting(self, value: bool) -> None:
        self._native.trusting = value

    def copy_map(self, buffer: Buffer) -> None:
        """The counters of the last turn, into a writable buffer of zeros.

        ValueError when the coverage map is larger than the buffer.
        """
        self._native.copy_map(buffer)

    @property
    def edges(self) -> int:
        """Bytes of the coverage map that some input has reached."""
        unseen = self._native.unseen
        return len(unseen) - unseen.count(0xFF)

    @property
    def unseen(self) -> bytes:
        """What no input has shown yet: 8 classes of counts for each byte.

        Settable, with what an earlier replay of the same map had.
        """
        return self._native.unseen

    @unseen.setter
    def unseen(self, value: bytes) -> None:
        self._native.unseen = value

    def close(self) -> None:
        """Give the vCPU's debug registers back. Twice is once.

        With blocks the machine goes to the snapshot, which has no int3.
        """
        self._native.close()
        if self._base is not self._clean and not self.machine.closed:
            self._base = self._clean
            if self.machine._runner.owner is None:
                self.machine.restore(self.snap)
        if self._armed.texts and not self.machine.closed:
            self.machine.console.native.want([])

    def __iter__(self) -> Iterator[Case]:
        return self

    def __next__(self) -> Case:
        try:
            return next(self._cases)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        why = f" for its {self.why}" if self.why else ""
        state = f"whole state{why}" if self.whole else "state looked at"
        return f"<Replay: {self.turns} turns, {self.edges} edges, {state}>"


def whole_register(name: str) -> str:
    """ "rsi" of "esi"."""
    return x86.PARTS[name][0] if name in x86.PARTS else name


def physical(machine: Machine, address: int, size: int) -> list[Piece]:
    """Where a virtual range is: pieces, those that follow each other as one."""
    pieces: list[Piece] = []
    for gpa, length in machine.cpu.mem._pieces(address, size):
        if pieces and sum(pieces[-1]) == gpa:
            pieces[-1] = pieces[-1][0], pieces[-1][1] + length
        else:
            pieces.append((gpa, length))
        if machine.memory.span(gpa, length) != length:
            raise ValueError(f"gpa {gpa:#x} + {length} is outside RAM")
    return pieces


def needs_python(machine: Machine, snap: Snapshot) -> bool:
    """Whether devices may act in a turn without an exit that shows it."""
    wiring = machine._wiring
    if snap._timers or snap._asked is not None or snap._ends:
        return True
    if snap._loaded is not None and snap._loaded.state["timers"]:
        return True
    if machine.trace is not None:
        return True
    for slot in wiring.slots:
        if slot.hired is not None or slot.zones or slot.bells is not None:
            return True
        if isinstance(slot.bus_device, _vmm.VirtioMMIO):
            return True  # requests may be in its queues
    return False

# SPDX-License-Identifier: Apache-2.0
"""Breakpoints, watchpoints and steps, by the processor's debug registers.

Whether they work depends on host and mode: on some hosts a breakpoint in ring 3
is run past and a step ends in a triple fault, and where ring 0 is interpreted
no watchpoint is seen. A trial finds out, once per process and mode, in a VM
that is thrown away; what does not work is refused before anything runs.
"""

from __future__ import annotations

from . import _vmm, x86
from .errors import Unsupported
from .stop import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .machine import Machine
    from .run import End
    from .symbols import Address

POINTS = 4  # debug registers

# How long a guest that may go where breakpoints are blind runs unwatched.
GLANCE = 0.05

MODES = ("real", "protected", "long", "user")
MODE_WORDS = {
    "real": "real mode",
    "protected": "32-bit protected mode",
    "long": "64-bit ring 0",
    "user": "64-bit ring 3",
}
FEATURE_WORDS = {
    "run": "running",
    "break": "breakpoints",
    "step": "single steps",
    "watch": "watchpoints",
}


class Point:
    """A breakpoint or a watchpoint: what m.breakpoint() returns.

    `address`; `kind`: "x", "w" or "rw"; `size` of what is watched; `hits`
    counted; remove() takes it off.
    """

    __slots__ = ("_debugger", "address", "hits", "kind", "size", "until")

    def __init__(
        self,
        debugger: Debugger,
        address: int,
        kind: str,
        size: int,
        until: bool = False,
    ) -> None:
        self._debugger = debugger
        self.address = address
        self.kind = kind
        self.size = size
        self.until = until
        self.hits = 0

    @property
    def feature(self) -> str:
        """What the host must be able to do: "break" or "watch"."""
        return "break" if self.kind == "x" else "watch"

    def remove(self) -> None:
        """Take it off; nothing happens when it is off already."""
        if self in self._debugger.points:
            self._debugger.points.remove(self)

    def __repr__(self) -> str:
        # A message for each stop: lines would be read at the first.
        where = self._debugger.machine.symbols.where(self.address).name
        name = "breakpoint" if self.kind == "x" else f"watch {self.kind}"
        return f"<{name} {self.address:#x} {where}, {self.hits} hits>"


class Debugger:
    """The breakpoints of a machine, and running with them.

    Threads: as Machine.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.points: list[Point] = []
        self.stopped_at: dict[int, int] = {}  # vCPU: linear address

    def add(self, address: Address, kind: str, size: int) -> Point:
        """A new point; see Machine.breakpoint and Machine.watchpoint."""
        if kind not in x86.DR7_KIND:
            raise ValueError(f"kind {kind!r} is neither 'w' nor 'rw'")
        point = self.make(self.machine.symbols.address(address), kind, size)
        if len(self.points) == POINTS:
            raise ValueError(f"all {POINTS} debug registers are taken")
        self.points.append(point)
        return point

    def make(
        self, where: int, kind: str, size: int, until: bool = False
    ) -> Point:
        """A point that is not among those that are set."""
        if size not in x86.DR7_SIZE:
            raise ValueError(f"size {size} is not 1, 2, 4 or 8")
        if where % size:
            raise ValueError(
                f"address {where:#x} is not a multiple of the size {size}"
            )
        return Point(self, where, kind, size, until)

    def targets(self, addresses: list[Address]) -> list[Point]:
        """The addresses of `until=`, as points."""
        address = self.machine.symbols.address
        unique = dict.fromkeys(address(target) for target in addresses)
        return [self.make(target, "x", 1, True) for target in unique]

    def check_room(self, points: list[Point]) -> None:
        """ValueError unless there are as many debug registers left."""
        if len(points) + len(self.points) > POINTS:
            raise ValueError(
                f"until has {len(points)} addresses and {len(self.points)} "
                f"points are set: there are {POINTS} debug registers"
            )

    # -- running -------------------------------------------------------------

    def run(self, points: list[Point], timeout: float | None) -> End:
        """A round with these points and those that are set."""
        # The until points come first: where both are hit it is an "until".
        points = points + self.points
        if not points:
            return self.machine._runner.round(timeout)
        for feature in {point.feature for point in points}:
            self._require(feature)
        try:
            end = self._leave(points, timeout)
            if end is None:
                end = self._run_armed(points, timeout)
        finally:
            self._disarm()
        self._remember(end)
        return end

    def step(self, index: int, timeout: float | None) -> End:
        """One instruction of one vCPU."""
        self._require("step", index)
        vcpu = self.machine._runner.vcpus[index]
        try:
            end = self._step(vcpu, timeout)
        finally:
            self._disarm()
        self._remember(end)
        return end

    def hit(self, end: End, points: list[Point]) -> Point | None:
        """Which point this end is due to, if it is."""
        _, exit = end
        if exit.reason != _vmm.EXIT_DEBUG:
            return None
        points = points + self.points
        for point in points:
            if point.kind == "x" and point.address == exit.pc:
                return point
        for i, point in enumerate(points[:POINTS]):
            if exit.code >> i & 1:
                return point
        return None

    def check_seen(self, end: End, registers: Registers) -> None:
        """Raises Unsupported when points may have been passed unseen."""
        if registers.ring == 3 and (
            missing := "break" not in trial(mode_of(registers))
        ):
            assert missing
            raise Unsupported(
                "the guest has entered ring 3, where this host does not "
                "honour breakpoints: it may have passed one"
            )

    def _require(self, feature: str, index: int | None = None) -> None:
        vcpus = self.machine._runner.vcpus
        for vcpu in vcpus if index is None else [vcpus[index]]:
            mode = mode_of(Registers(vcpu.get("regs"), vcpu.get("sregs")))
            if feature not in trial(mode):
                raise Unsupported(
                    f"this host has no {FEATURE_WORDS[feature]} in "
                    f"{MODE_WORDS[mode]} (a trial run showed it)"
                )

    def _leave(self, points: list[Point], timeout: float | None) -> End | None:
        """Step the vCPUs that were stopped at a breakpoint off it."""
        here = {point.address for point in points if point.kind == "x"}
        runner = self.machine._runner
        for index, vcpu in enumerate(runner.vcpus):
            if index not in self.stopped_at:
                continue
            regs = Registers(vcpu.get("regs"), vcpu.get("sregs"))
            if regs.pc != self.stopped_at.pop(index) or regs.pc not in here:
                continue
            if "step" not in trial(mode_of(regs)):
                raise Unsupported(
                    "this host cannot step off the breakpoint at "
                    f"{regs.pc:#x}; remove it to run on"
                )
            end = self._step(vcpu, timeout)
            stepped = end[1].reason == _vmm.EXIT_DEBUG
            if not stepped or end[1].pc in here:
                return end
        return None

    def _step(self, vcpu: _vmm.VCPU, timeout: float | None) -> End:
        vcpu.debug(step=True)
        runner = self.machine._runner
        while True:
            if runner.leaving:
                vcpu.kick()  # asked for before it is run
            exit = vcpu.run(timeout)
            if exit.reason != _vmm.EXIT_KICK:
                return vcpu.index, exit
            runner.raise_failures()
            if runner.leaving:
                return vcpu.index, exit

    def _run_armed(self, points: list[Point], timeout: float | None) -> End:
        addresses = [point.address for point in points]
        dr7 = x86.dr7([(point.kind, point.size) for point in points])
        runner = self.machine._runner
        for vcpu in runner.vcpus:
            vcpu.debug(addresses, dr7)
        features = {point.feature for point in points}
        if features <= trial("user"):
            return runner.round(timeout)
        # Look now and then whether it has gone where points are not seen.
        from time import monotonic

        deadline = None if timeout is None else monotonic() + timeout
        while True:
            glance = GLANCE
            if deadline is not None:
                glance = min(GLANCE, max(0.0, deadline - monotonic()))
            end = runner.round(glance)
            if end[1].reason != _vmm.EXIT_TIMEOUT:
                if end[1].reason != _vmm.EXIT_DEBUG:
                    self._check_rings(end)
                return end
            self._check_rings(end)
            if deadline is not None and monotonic() >= deadline:
                return end

    def _check_rings(self, end: End) -> None:
        for vcpu in self.machine._runner.vcpus:
            regs = Registers(vcpu.get("regs"), vcpu.get("sregs"))
            self.check_seen(end, regs)

    def _remember(self, end: End) -> None:
        index, exit = end
        if exit.reason == _vmm.EXIT_DEBUG:
            self.stopped_at[index] = exit.pc

    def _disarm(self) -> None:
        for vcpu in self.machine._runner.vcpus:
            if not vcpu.closed:
                vcpu.debug()


# -- trials ------------------------------------------------------------------


def mode_of(registers: Registers) -> str:
    """Which of MODES a vCPU with these registers is in."""
    if not registers.cr0 & x86.CR0_PE:
        return "real"
    if not registers.efer & x86.EFER_LMA:
        return "protected"
    return "user" if registers.ring == 3 else "long"


# nop; nop; mov byte [rbx], 1 (real mode: [bp + di]); nop; out 0xf4, al; hlt
TRIAL_CODE = bytes.fromhex("90 90 c60301 90 e6f4 f4")
TRIAL_ENTRY = 0x1000
INT3 = b"\xcc"
TRIAL_DATA = 0x2000
TRIAL_TABLES = 0x4000
TRIAL_SIZE = 0x10000
TRIAL_TIMEOUT = 2.0

_trials: dict[str, frozenset[str]] = {}
_int3: dict[str, bool] = {}


def trial(mode: str) -> frozenset[str]:
    """What works in a mode: of "run", "break", "step" and "watch".

    Tried once per process. Raises OSError when there is no KVM.
    """
    if mode not in _trials:
        works = [name for name in FEATURE_WORDS if _try(mode, name)]
        _trials[mode] = frozenset(works)
    return _trials[mode]


def int3_works(mode: str) -> bool:
    """Whether an int3 of ours leaves the guest, and it can go on from there.

    As a debug exit or, where KVM interprets the code, as an instruction that it
    does not know. Tried once per process and mode.
    """
    if mode not in _int3:
        _int3[mode] = _try(mode, "int3")
    return _int3[mode]


def _try(mode: str, feature: str) -> bool:
    """One feature in one mode, in a VM of its own."""
    from .host import kvm

    ram = _vmm.Memory()
    ram.add(0, TRIAL_SIZE)
    ram.write(TRIAL_ENTRY, TRIAL_CODE)
    vm = _vmm.VM(kvm(), ram)
    try:
        vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        vcpu = _vmm.VCPU(vm)
        _vmm.x86_tables(ram, TRIAL_TABLES, 0)
        values = dict.fromkeys(x86.REGS, 0)
        values["rbx"] = values["rbp"] = TRIAL_DATA
        values["rip"] = TRIAL_ENTRY
        regs = x86.REGS_STRUCT.pack(*values.values())
        vcpu.start(mode, regs, TRIAL_TABLES)
        if feature == "int3":
            return _observe_int3(vcpu, ram)
        return _observe(vcpu, feature)
    except OSError:
        return False
    finally:
        vm.close()
        ram.close()


def _observe(vcpu: _vmm.VCPU, feature: str) -> bool:
    entry = TRIAL_ENTRY
    if feature == "run":
        exit = vcpu.run(TRIAL_TIMEOUT)
        return exit.reason == _vmm.EXIT_STOP
    if feature == "break":
        vcpu.debug([entry + 1], x86.dr7([("x", 1)]))
        expected = [entry + 1]
    elif feature == "watch":
        vcpu.debug([TRIAL_DATA], x86.dr7([("w", 1)]))
        expected = [entry + 5]  # it comes after the access
    else:
        vcpu.debug(step=True)
        expected = [entry + 1, entry + 2]
    for rip in expected:
        exit = vcpu.run(TRIAL_TIMEOUT)
        now = x86.REGS_STRUCT.unpack(vcpu.get("regs"))[16]
        if exit.reason != _vmm.EXIT_DEBUG or now != rip:
            return False
    return True


def _observe_int3(vcpu: _vmm.VCPU, ram: _vmm.Memory) -> bool:
    place = TRIAL_ENTRY + 1
    ram.write(place, INT3)
    vcpu.debug(soft=True)
    exit = vcpu.run(TRIAL_TIMEOUT)
    now = x86.REGS_STRUCT.unpack(vcpu.get("regs"))[16]
    if exit.reason == _vmm.EXIT_INTERNAL_ERROR:
        vcpu.set("events", bytes(len(vcpu.get("events"))))
    elif exit.reason != _vmm.EXIT_DEBUG:
        return False
    ram.write(place, TRIAL_CODE[1:2])
    return now == place and vcpu.run(TRIAL_TIMEOUT).reason == _vmm.EXIT_STOP

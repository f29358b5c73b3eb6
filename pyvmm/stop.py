# SPDX-License-Identifier: Apache-2.0
"""Why run() ended, and the report that a GuestError's text is."""

from __future__ import annotations

from . import x86

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import _vmm
    from .symbols import Where

# The ends that a guest, or whoever called, may mean. Any other reason is one
# that nobody means: run() raises it.
MEANT = (
    "exit", "halt", "reset", "poweroff", "until", "break", "step", "pause",
)  # fmt: skip

# The others.
TRIPLE_FAULT = "triple fault"
EMULATION = "emulation failure"
INTERNAL = "internal error"
ENTRY = "entry failure"
UNCLAIMED = "unclaimed access"
CRASH = "crash"
UNKNOWN = "unknown exit"
TIMEOUT = "timeout"

HISTORY = 8  # lines of past exits in a report


class Registers:
    """The registers of a vCPU at one moment: attributes, and items by name.

    All of kvm_regs and kvm_sregs but for segments, which are tuples in the
    order of `x86.SEGMENT`; read only.
    """

    __slots__ = ("_all", "_regs", "_sregs")

    def __init__(self, regs: bytes, sregs: bytes) -> None:
        # Taken apart when somebody looks: each end of a run makes one.
        self._regs = regs
        self._sregs = sregs
        self._all: dict[str, object] | None = None

    def _find(self, name: str) -> object:
        """One value; KeyError."""
        if self._all is not None:
            return self._all[name]
        if name in x86.SREGS:
            at, layout = x86.SREGS[name]
            fields = layout.unpack_from(self._sregs, at)
            return fields[0] if len(fields) == 1 else fields
        if name not in x86.REGS:
            raise KeyError(name)
        at = 8 * x86.REGS.index(name)
        return int.from_bytes(self._regs[at : at + 8], "little")

    @property
    def _values(self) -> dict[str, object]:
        """All of them, by name."""
        if self._all is None:
            names = (*x86.REGS, *x86.SREGS)
            self._all = {name: self._find(name) for name in names}
        return self._all

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in x86.PARTS:
            whole, shift, bits = x86.PARTS[name]
            return self[whole] >> shift & ((1 << bits) - 1)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no register {name!r}") from None

    def __getitem__(self, name: str) -> int:
        return self._find(name)  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __dir__(self) -> list[str]:
        return [*self._values, *x86.PARTS]

    def segment(self, name: str) -> dict[str, int]:
        """The fields of a segment register, gdt or idt by name."""
        fields = x86.SEGMENT if name in x86.SEGMENTS else x86.DTABLE
        values: tuple[int, ...] = self._find(name)  # type: ignore[assignment]
        return dict(zip(fields, values, strict=True))

    @property
    def mode(self) -> str:
        """In which mode the CPU runs, in words."""
        cs = self.segment("cs")
        return x86.mode_name(self.cr0, cs["l"], cs["db"], self.efer)

    @property
    def ring(self) -> int:
        """The privilege level, 0 to 3."""
        if not self.cr0 & x86.CR0_PE:
            return 0
        if self.rflags & x86.RFLAGS_VM:
            return 3
        return self.segment("ss")["dpl"]

    @property
    def pc(self) -> int:
        """The linear address of the next instruction."""
        return linear_pc(self.segment("cs"), self.efer, self.rip)

    def __getstate__(self) -> dict[str, object]:
        return self._values

    def __setstate__(self, state: dict[str, object]) -> None:
        self._all = state

    def __str__(self) -> str:
        return "\n".join(register_lines(self, set()))

    def __repr__(self) -> str:
        return f"<Registers\n{self}>"


def linear_pc(cs: dict[str, int], efer: int, rip: int) -> int:
    """The linear address of cs:rip; in 64-bit code the base is ignored."""
    if efer & x86.EFER_LMA and cs["l"]:
        return rip
    return (cs["base"] + rip) & 0xFFFF_FFFF


def register_lines(regs: Registers, marked: set[str]) -> list[str]:
    """Registers as lines of text; those in `marked` have a * in front."""
    wide = bool(regs.efer & x86.EFER_LMA)
    lines: list[str] = []

    def row(names: tuple[str, ...], digits: int) -> None:
        cells = [
            f"{'*' if name in marked else ' '}{name:>6} {regs[name]:0{digits}x}"
            for name in names
        ]
        lines.append("".join(cells))

    digits = 16 if wide else 8
    general = x86.REGS[:16] if wide else x86.REGS[:8]
    for i in range(0, len(general), 4):
        row(general[i : i + 4], digits)
    row(("rip", "rflags"), digits)
    flags = [name for name, bit in x86.RFLAGS.items() if regs.rflags & bit]
    lines[-1] += f" [{' '.join(flags)}]"
    row(("cr0", "cr2", "cr3", "cr4"), digits)
    lines[-1] += f"  efer {regs.efer:x}"
    cells = []
    for name in x86.SEGMENTS[:6]:
        mark = "*" if name in marked else " "
        cells.append(f"{mark}{name} {regs.segment(name)['selector']:04x}")
    lines.append("    " + " ".join(cells))
    lines[-1] += f"  ({regs.mode}, ring {regs.ring})"
    return lines


def describe_access(
    pio: bool, write: bool, size: int, addr: int, value: int
) -> str:
    """One access in words: `write of 4 bytes 0x12 to port 0x1234`."""
    place = f"port {addr:#x}" if pio else f"{addr:#x}"
    unit = "byte" if size == 1 else "bytes"
    if write:
        return f"write of {size} {unit} {value:#x} to {place}"
    return f"read of {size} {unit} at {place}"


class Stop:
    """Why run() ended, and the state of the vCPU that ended it.

    `reason`: one of "exit", "halt", "reset", "poweroff", "until", "break",
    "step", "pause" (`crashed` is False), or one that nobody means: "triple
    fault", "emulation failure", "internal error", "entry failure", "unclaimed
    access", "crash", "unknown exit", "timeout".
    `status`: what the guest wrote to the exit port, for "exit"; else None.
    `message`: the reason with its details, in a line.
    `cpu`: index of the vCPU. `registers`: its registers then.
    `rip`: its instruction pointer, at the instruction that did it where known.
    `where`: that as symbol, offset, file and line.
    `passed`: rip is behind the instruction that did it, as it is for writes.
    `insn`: bytes of the instruction (of those before rip when it is `passed`),
    b"" when they cannot be read or the end is one that guests mean.
    `exit`: the `_vmm.Exit` below, or None. `past`: the exits before it, oldest
    first, as (reason, port?, write?, size, address, value).
    `point`: the breakpoint or watchpoint of "break" and "until".

    Threads: any; it does not change.
    """

    __slots__ = (
        "cpu", "exit", "insn", "message", "passed", "past", "point", "reason",
        "registers", "status", "where",
    )  # fmt: skip

    reason: str
    status: int | None
    message: str
    cpu: int
    registers: Registers
    where: Where
    passed: bool
    insn: bytes
    exit: _vmm.Exit | None
    past: list[tuple[int, bool, bool, int, int, int]]
    point: object | None

    def __init__(
        self,
        reason: str,
        *,
        cpu: int,
        registers: Registers,
        where: Where,
        message: str = "",
        status: int | None = None,
        passed: bool = False,
        insn: bytes = b"",
        exit: _vmm.Exit | None = None,
        past: list[tuple[int, bool, bool, int, int, int]] | None = None,
        point: object | None = None,
    ) -> None:
        self.reason = reason
        self.status = status
        self.message = message or reason
        self.cpu = cpu
        self.registers = registers
        self.where = where
        self.passed = passed
        self.insn = insn
        self.exit = exit
        self.past = past or []
        self.point = point

    @property
    def rip(self) -> int:
        """The instruction pointer, linear."""
        return self.where.address

    @property
    def crashed(self) -> bool:
        """Whether it is an end that nobody means; a timeout counts."""
        return self.reason not in MEANT

    @property
    def report(self) -> str:
        """All of it as text: what happened, where, registers, exits."""
        at = "just before" if self.passed else "at"
        lines = [
            self.message,
            f"  {at} {self.where} (rip {self.rip:#x}) on vCPU {self.cpu}",
        ]
        if self.insn:
            what = "bytes before rip" if self.passed else "bytes at rip"
            lines.append(f"  {what}: {self.insn.hex(' ')}")
        lines += register_lines(self.registers, set())
        past = self.past[-HISTORY:]
        if past:
            lines.append("  last exits, newest last:")
        lines += [f"    {line}" for line in past_lines(past)]
        return "\n".join(lines)

    def __getstate__(self) -> tuple[object, ...]:
        # The exit holds the device, which may not be picklable.
        return tuple(
            None if name == "exit" else getattr(self, name)
            for name in self.__slots__
        )

    def __setstate__(self, state: tuple[object, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)

    def __repr__(self) -> str:
        status = "" if self.status is None else f" {self.status}"
        return f"<Stop {self.reason}{status} at {self.where}>"


def past_lines(
    past: list[tuple[int, bool, bool, int, int, int]],
) -> list[str]:
    """Past exits as lines, equal ones in a row counted."""
    lines: list[str] = []
    counts: list[int] = []
    for reason, pio, write, size, addr, value in past:
        if size:
            line = describe_access(pio, write, size, addr, value)
            if not write:
                line += f" gave {value:#x}"
        else:
            line = exit_name(reason)
        if lines and lines[-1] == line:
            counts[-1] += 1
        else:
            lines.append(line)
            counts.append(1)
    return [
        line if count == 1 else f"{line} ({count} times)"
        for line, count in zip(lines, counts, strict=True)
    ]


def exit_name(reason: int) -> str:
    """The name of an EXIT_ constant of _vmm, in lower case."""
    from . import _vmm

    for name in dir(_vmm):
        if not name.startswith("EXIT_") or name in ("EXIT_PORT", "EXIT_SIZE"):
            continue
        if getattr(_vmm, name) == reason:
            return name[5:].lower().replace("_", " ")
    return f"exit {reason}"

# SPDX-License-Identifier: Apache-2.0
"""Who called whom: the stack of a vCPU as places in the guest's code.

Each step goes by the image's call frame information (.debug_frame, .eh_frame),
read by pyelftools if it is there, which is right for all that a compiler has
made. Without, it searches the stack for the next return address, which is one
in a function and behind a call. The one that the frame pointer leads to is
sure; the others may be what an earlier call has left, and have a question mark,
as in the reports of Linux.

Source: DWARF 5, 6.4; the System V ABI for i386 and for x86-64.
"""

from __future__ import annotations

from .debug import mode_of
from .dwarf import evaluate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cpu import Cpu
    from .dwarf import Expression, Frames
    from .stop import Registers
    from .symbols import Where

LIMIT = 32  # frames
SEARCHED = 1024  # bytes of stack, for each frame that must be searched for
FRAME_MAX = 1 << 14  # bytes between a frame pointer and the next

# Numbers of DWARF, in their order.
NAMES_32 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip")
NAMES_64 = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip


class Backtrace:
    """Frames as `Where`, the innermost first: a sequence; its str has a line
    for each.

    `guessed`: the indices of those that were found by a search of the stack.

    Threads: any; it does not change.
    """

    __slots__ = ("_frames", "guessed")

    def __init__(self, frames: list[Where], guessed: set[int]) -> None:
        self._frames = tuple(frames)
        self.guessed = frozenset(guessed)

    def __iter__(self) -> Iterator[Where]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Where:
        return self._frames[index]

    def __str__(self) -> str:
        return "\n".join(
            f"#{i:<2} {where.address:#x} {where}"
            + (" ?" if i in self.guessed else "")
            for i, where in enumerate(self._frames)
        )

    def __repr__(self) -> str:
        return f"<Backtrace\n{self}>"


def backtrace(
    cpu: Cpu, limit: int = LIMIT, registers: Registers | None = None
) -> Backtrace:
    """The stack of a vCPU that stands still, or had these registers."""
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit {limit!r} is not 1 or more")
    return Unwinder(cpu, registers or cpu.registers).walk(limit)


class Unwinder:
    """Goes from frame to frame. The guest's memory may hold anything.

    Threads: one.
    """

    def __init__(self, cpu: Cpu, now: Registers) -> None:
        self.cpu = cpu
        self.symbols = cpu.machine.symbols
        mode = mode_of(now)
        self.flat = mode != "real"
        wide = mode in ("long", "user")
        self.width = 8 if wide else 4
        self.names = NAMES_64 if wide else NAMES_32
        self.known: dict[str, int] = {name: now[name] for name in self.names}
        self.pc = now.pc
        self.called = False  # whether pc is behind a call
        self.frames: Frames = self.symbols._call_frames()

    def walk(self, limit: int) -> Backtrace:
        """The frames."""
        found = [self.symbols.where(self.pc)]
        guessed: set[int] = set()
        while self.flat and len(found) < limit:
            stack = self.known["rsp"]
            if not self._by_frames():
                sure = self._by_search()
                if sure is None:
                    break
                if not sure:
                    guessed.add(len(found))
            if self.known["rsp"] <= stack:
                break  # it would go on for ever
            found.append(self.symbols.where(self.pc, passed=self.called))
        return Backtrace(found, guessed)

    def _word(self, address: int) -> int | None:
        try:
            address &= (1 << 8 * self.width) - 1
            data = self.cpu.mem.read(address, self.width)
        except (ValueError, OverflowError):
            return None
        return int.from_bytes(data, "little")

    def _is_return(self, address: int | None) -> bool:
        """Whether it is in a function, behind a call."""
        if (
            not address
            or self.symbols.where(address, passed=True).symbol is None
        ):
            return False
        for size in range(7, 1, -1):
            try:
                code = self.cpu.mem.read(address - size, size)
            except (ValueError, OverflowError):
                continue
            if is_call(code):
                return True
        return False

    def _enter(self, pc: int, stack: int) -> None:
        self.pc = self.known["rip"] = pc
        self.called = self._is_return(pc)
        self.known["rsp"] = stack

    def _by_frames(self) -> bool:
        """By call frame information."""
        # A call may be the last instruction of its function.
        row = self.frames.row(self.pc - 1 if self.called else self.pc)
        if row is None:
            return False
        base, saved = row
        cfa = self._value(base)
        if cfa is None:
            return False
        values = dict(self.known)
        for number, place in saved.items():
            at = self._value(place, cfa)
            value = None if at is None else self._word(at)
            name = self.names[number] if number < len(self.names) else ""
            if value is None:
                values.pop(name, None)
            else:
                values[name] = value
        back = values.get("rip")
        if not back or len(self.names) - 1 not in saved:
            return False
        # It need not be behind a call: Machine.call() returns to where the
        # guest stood.
        if (
            not self._is_return(back)
            and self.symbols.where(back).symbol is None
        ):
            return False
        self.known = values
        self._enter(back, cfa)
        return True

    def _value(
        self, expression: Expression, start: int | None = None
    ) -> int | None:
        """Of an expression in the frame that it is at."""

        def register(number: int) -> int | None:
            if number >= len(self.names):
                return None
            return self.known.get(self.names[number])

        value = evaluate(expression, register, self._word, start)
        return None if value is None else value & (1 << 8 * self.width) - 1

    def _pointed(self) -> int | None:
        """Where the return address is, if there is a frame pointer."""
        pointer, stack = self.known.get("rbp", 0), self.known["rsp"]
        if not stack <= pointer < stack + FRAME_MAX or pointer % self.width:
            return None
        if not self._is_return(self._word(pointer + self.width)):
            return None
        return pointer + self.width

    def _by_search(self) -> bool | None:
        """By the first word on the stack that is a return address.

        True where the frame pointer has led to it; None: there is none.
        """
        pointed = self._pointed()
        stack = -(-self.known["rsp"] // self.width) * self.width
        end = stack + SEARCHED if pointed is None else pointed + 1
        for at in range(stack, end, self.width):
            value = self._word(at)
            if value is None:
                return None
            if self._is_return(value):
                if at == pointed:
                    self.known["rbp"] = self._word(at - self.width) or 0
                self._enter(value, at + self.width)
                return at == pointed
        return None


def is_call(code: bytes) -> bool:
    """Whether these bytes are one call instruction (Intel SDM 2, CALL)."""
    if len(code) == 5 and code[0] == 0xE8:
        return True
    if code[0] != 0xFF or code[1] >> 3 & 7 != 2:
        return False
    mod, rm = code[1] >> 6, code[1] & 7
    size = 2 + (0, 1, 4, 0)[mod]
    if mod != 3 and rm == 4:
        size += 1
    if mod == 0 and (rm == 5 or (rm == 4 and len(code) == 7)):
        size += 4
    return len(code) == size

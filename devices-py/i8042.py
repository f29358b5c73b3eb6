# SPDX-License-Identifier: Apache-2.0
"""The keyboard controller of a PC, by which guests also reset the machine.

    with pyvmm.Machine() as m:
        keyboard = m.attach(I8042())        # line 1
        m.load("kernel.elf")
        keyboard.send(b"\\x1e\\x9e")          # press and release A, in set 1
        stop = m.run(timeout=5)
    print(stop.reason)                      # "reset" when the guest asked so

or `pyvmm run kernel.elf --device I8042`. Data is at port 0x60, status and
commands are at 0x64 (`places={"control": ...}` moves that).

| command | |
| --- | --- |
| 0x20 to 0x3f, 0x60 to 0x7f | read, write the command byte and 31 others |
| 0xaa, 0xab | self test, test of the keyboard's wires |
| 0xad, 0xae | keyboard off, on |
| 0xc0, 0xd0, 0xd1 | read the input port, read and write the output port |
| 0xd2 | put a byte before the guest as if the keyboard had sent it |
| 0xf0 to 0xff | pulse lines of the output port; the even ones reset |

The keyboard knows the commands that drivers send, and answers them. There is no
mouse: commands for one are taken and nothing comes of them.

A reset ends the run with a Stop "reset", or calls what
`I8042(on_reset=callable)` was given:

>>> keyboard = I8042(on_reset=lambda: print("reset"))
>>> keyboard.control.write(0, 1, 0xAA)
>>> hex(keyboard.read(0, 1))
'0x55'
>>> keyboard.control.write(0, 1, 0xFE)
reset

Source: IBM PS/2 Hardware Interface Technical Reference, 1988, keyboard and
auxiliary device controller; keyboards (101- and 102-key).
"""

from collections import deque
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

import pyvmm

# Status.
FULL = 0x01  # the output buffer: there is a byte to read
SYSTEM = 0x04  # of the command byte
WAS_COMMAND = 0x08
UNLOCKED = 0x10

# The command byte.
INTERRUPT = 0x01
KEYBOARD_OFF = 0x10
MOUSE_OFF = 0x20
TRANSLATE = 0x40

# Commands of the controller.
READ_RAM = 0x20
WRITE_RAM = 0x60
SELF_TEST = 0xAA
TEST_KEYBOARD = 0xAB
DISABLE = 0xAD
ENABLE = 0xAE
READ_INPUT = 0xC0
READ_OUTPUT = 0xD0
WRITE_OUTPUT = 0xD1
ECHO = 0xD2
ECHO_MOUSE = 0xD3
TO_MOUSE = 0xD4
PULSE = 0xF0
RAM = 0x20

# The output port.
NO_RESET = 0x01
A20 = 0x02
OUTPUT_FULL = 0x10

# What the keyboard answers.
ACK = 0xFA
RESEND = 0xFE
WITH_PARAMETER = (0xED, 0xF0, 0xF3)  # a byte follows, which is acknowledged
ANSWERS = {
    0xED: (ACK,),  # lights
    0xEE: (0xEE,),  # echo
    0xF0: (ACK,),  # set of scan codes
    0xF2: (ACK, 0xAB, 0x83),  # who are you
    0xF3: (ACK,),  # repetition
    0xF4: (ACK,),  # on
    0xF5: (ACK,),  # off
    0xF6: (ACK,),  # defaults
    0xFF: (ACK, 0xAA),  # reset and self test
}
ID_TRANSLATED = {0x83: 0x41}  # as set 1 has it


class I8042(pyvmm.Device):
    """A keyboard controller, the keyboard at it, and the reset line.

    `on_reset`: called when the guest pulls that, on the thread of its vCPU;
    without it the run ends with a Stop "reset". `resets` counts.

    Threads: any may call send().
    """

    size = 1
    port = 0x60
    irq = pyvmm.Irq(1)
    control = pyvmm.Range(1, port=0x64)
    data = pyvmm.Reg(0, 1, doc="what the keyboard or the controller says")
    command = pyvmm.Reg(0, 1, range=control, doc="status and commands")

    def __init__(self, on_reset: Callable[[], object] | None = None) -> None:
        self.on_reset = on_reset
        self.resets = 0
        self._lock = RLock()
        self._ram = bytearray(RAM)  # the first is the command byte
        # As a PC's firmware leaves it.
        self._ram[0] = INTERRUPT | SYSTEM | MOUSE_OFF | TRANSLATE
        self._output_port = NO_RESET | A20
        self._was_command = False
        self._waits_for = 0  # the controller's command that wants a byte
        self._keyboard_for = 0  # the keyboard's
        self._scans = True
        # What there is to read; a new command drops the answers to others.
        self._answers: deque[int] = deque()
        self._replies: deque[int] = deque()  # of the keyboard
        self._keys: deque[int] = deque()  # from send()
        self._last = 0
        self._is_up = False

    def attached(self) -> None:
        with self._lock:
            self._is_up = False
            self._update()

    def send(self, codes: bytes) -> None:
        """Let the keyboard send: scan codes as the guest is to read them.

        They wait until it does.
        """
        with self._lock:
            self._keys.extend(codes)
            self._update()

    @property
    def waiting(self) -> int:
        """How many bytes of send() the guest has not read yet."""
        return len(self._keys)

    # -- inside --------------------------------------------------------------

    def _pending(self) -> deque[int] | None:
        """Where the next byte to read comes from."""
        if self._answers:
            return self._answers
        if self._ram[0] & KEYBOARD_OFF:
            return None
        if self._replies:
            return self._replies
        return self._keys if self._keys and self._scans else None

    def _update(self) -> None:
        up = bool(self._ram[0] & INTERRUPT) and self._pending() is not None
        self._drive(up)

    def _drive(self, up: bool) -> None:
        if up == self._is_up or self.base is None:
            return
        self._is_up = up
        if up:
            self.irq.set()
        else:
            self.irq.clear()

    def _answer(self, *values: int) -> None:
        self._answers.clear()
        self._answers.extend(values)

    def _reset(self) -> None:
        self.resets += 1
        if self.on_reset is not None:
            self.on_reset()
        elif self.machine is not None:
            self.machine.reset()

    # -- the guest's side ----------------------------------------------------

    @data.on_read
    def _read_data(self) -> int:
        with self._lock:
            source = self._pending()
            if source is not None:
                self._last = source.popleft()
                # One edge for each byte.
                self._drive(False)
                self._update()
            return self._last

    @data.on_write
    def _write_data(self, value: int) -> None:
        reset = False
        with self._lock:
            self._was_command = False
            waits_for, self._waits_for = self._waits_for, 0
            if WRITE_RAM <= waits_for < WRITE_RAM + RAM:
                self._ram[waits_for - WRITE_RAM] = value
            elif waits_for == WRITE_OUTPUT:
                self._output_port = value & A20 | NO_RESET
                reset = not value & NO_RESET
            elif waits_for == ECHO:
                self._answer(value)
            elif not waits_for:
                self._ram[0] &= ~KEYBOARD_OFF
                self._tell_keyboard(value)
            self._update()
        if reset:
            self._reset()

    def _tell_keyboard(self, value: int) -> None:
        parameter_of, self._keyboard_for = self._keyboard_for, 0
        self._replies.clear()
        if parameter_of and value not in ANSWERS:
            self._replies.append(ACK)
            if parameter_of == 0xF0 and not value:
                self._replies.append(0x02)  # which set it is
            return
        if value in WITH_PARAMETER:
            self._keyboard_for = value
        if value in (0xF4, 0xF6, 0xFF):
            self._scans = True
        elif value == 0xF5:
            self._scans = False
        answer = ANSWERS.get(value, (RESEND,))
        if self._ram[0] & TRANSLATE:
            answer = tuple(ID_TRANSLATED.get(byte, byte) for byte in answer)
        self._replies.extend(answer)

    @command.on_read
    def _read_status(self) -> int:
        with self._lock:
            status = UNLOCKED | self._ram[0] & SYSTEM
            if self._was_command:
                status |= WAS_COMMAND
            if self._pending() is not None:
                status |= FULL
            return status

    @command.on_write
    def _write_command(self, value: int) -> None:
        with self._lock:
            self._was_command = True
            self._waits_for = 0
            if READ_RAM <= value < READ_RAM + RAM:
                self._answer(self._ram[value - READ_RAM])
            elif WRITE_RAM <= value < WRITE_RAM + RAM:
                self._waits_for = value
            elif value == SELF_TEST:
                self._ram[0] |= SYSTEM
                self._answer(0x55)
            elif value == TEST_KEYBOARD:
                self._answer(0x00)
            elif value == DISABLE:
                self._ram[0] |= KEYBOARD_OFF
            elif value == ENABLE:
                self._ram[0] &= ~KEYBOARD_OFF
            elif value == READ_INPUT:
                self._answer(0x80)
            elif value == READ_OUTPUT:
                full = OUTPUT_FULL * (self._pending() is not None)
                self._answer(self._output_port | full)
            elif value in (WRITE_OUTPUT, ECHO, ECHO_MOUSE, TO_MOUSE):
                self._waits_for = value
            self._update()
        if value >= PULSE and not value & NO_RESET:
            self._reset()

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """The registers, and what waits to be read."""
        with self._lock:
            state = super().save()
            state |= {name: getattr(self, "_" + name) for name in PLAIN}
            state |= {name: bytes(getattr(self, "_" + name)) for name in BYTES}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        left = dict(state)
        more = {name: left.pop(name) for name in state if name in PLAIN + BYTES}
        if len(more.get("ram", self._ram)) != RAM:
            raise ValueError(f"{len(more['ram'])} bytes of ram, not {RAM}")
        with self._lock:
            super().restore(left)
            for name, value in more.items():
                kind = type(getattr(self, "_" + name))
                setattr(self, "_" + name, kind(value))
            self._update()


PLAIN = (
    "output_port", "was_command", "waits_for", "keyboard_for", "scans", "last",
)  # fmt: skip
BYTES = ("ram", "answers", "replies", "keys")

# SPDX-License-Identifier: Apache-2.0
"""A 16550A UART, the serial port of a PC.

    with pyvmm.Machine(cmdline="console=ttyS0") as m:
        serial = m.attach(Serial())
        m.load("kernel.elf")
        serial.send("help\\n")
        m.run(timeout=5)
    print(serial.text)

That is a PC's first one, at port 0x3f8 and line 4; `attach(Serial(),
port=0x2F8, irq=3)` is the second. `Serial(output=callable)` hands on what the
guest sends while it runs. From a shell: `pyvmm run kernel.elf --device Serial`.

| offset | read | written | with the divisor latch open (LCR bit 7) |
| --- | --- | --- | --- |
| 0 | RBR, received data | THR, data to send | DLL, the divisor's low byte |
| 1 | IER, interrupts on | | DLM, its high byte |
| 2 | IIR, which interrupt | FCR, the FIFOs | |
| 3 | LCR, the line's format | | |
| 4 | MCR, modem lines out, loopback | | |
| 5 | LSR, what has happened | nothing | |
| 6 | MSR, modem lines in | nothing | |
| 7 | SCR, a byte to keep | | |

All registers have one byte; a longer access is one to each of its bytes. The
interrupt is a level, and follows the FIFO's trigger level, its time-out (four
characters long at the speed and format that are set), errors, an empty
transmitter and the modem's lines, in the data sheet's order of priority.

What a guest sends has left at once, so the transmitter is always empty; no bits
are cut off when the format is one of less than 8. What it is sent waits until
its FIFO has room:

>>> from pyvmm import testing
>>> with testing.bus(Serial()) as bus:
...     bus.device.send("ok")
...     for byte in b"hi":
...         bus.write_u8(THR, byte)
...     ready = bus.read_u8(LSR) & DR
...     bus.device.output, ready, bus.read_u8(RBR), bus.read_u8(RBR)
(b'hi', 1, 111, 107)

With `wait=False` it does not, as on a wire: what is too much is lost, and the
guest is told.

>>> with testing.bus(Serial()) as bus:
...     bus.write_u8(FCR, 0x01)
...     bus.device.send(bytes(17), wait=False)
...     bool(bus.read_u8(LSR) & OE)
True

Source: National Semiconductor, PC16550D data sheet, 1995, section 8.
"""

from collections import deque
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any

import pyvmm
from pyvmm.timers import Timer

# Registers by offset; where two share one, it is for reads and for writes.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7
NAMES = ("rbr/thr", "ier", "iir/fcr", "lcr", "mcr", "lsr", "msr", "scr")

# IER: which interrupts there are.
ON_DATA = 0x01
ON_EMPTY = 0x02
ON_ERROR = 0x04
ON_MODEM = 0x08

# IIR: the one of highest priority.
NOTHING = 0x01
IS_ERROR = 0x06
IS_DATA = 0x04
IS_TIMEOUT = 0x0C
IS_EMPTY = 0x02
IS_MODEM = 0x00
FIFOS_ON = 0xC0

# FCR.
FIFO_ON = 0x01
CLEAR_RECEIVER = 0x02
FCR_KEPT = 0xC9
TRIGGERS = (1, 4, 8, 14)
DEPTH = 16

# LCR.
STOP_2 = 0x04
PARITY = 0x08
DLAB = 0x80

# MCR; the four lines are what loopback turns into MSR's.
DTR = 0x01
RTS = 0x02
OUT1 = 0x04
OUT2 = 0x08
LOOP = 0x10
MCR_BITS = 0x1F

# LSR.
DR = 0x01
OE = 0x02
PE = 0x04
FE = 0x08
BI = 0x10
THRE = 0x20
TEMT = 0x40
FIFO_ERROR = 0x80

# MSR: lines in the upper half, what has changed of them in the lower.
CTS = 0x10
DSR = 0x20
RI = 0x40
DCD = 0x80

# Of a byte in the FIFO: it had waited, and is not lost when that is cleared.
WAITED = 0x100

BAUD_MOST = 115200  # with a divisor of 1, from 1.8432 MHz
TIMEOUT_CHARACTERS = 4


class Serial(pyvmm.Device):
    """A 16550A UART; what the guest sends is kept and given to a callable.

    `output`: called with the bytes of each write to the transmitter, on the
    thread of the vCPU. `keep`: how many of them `Serial.output` has at most,
    the newest.

    Threads: any may call send(), send_break() and modem().
    """

    size = 8
    port = 0x3F8
    irq = pyvmm.Irq(4)

    def __init__(
        self,
        output: Callable[[bytes], object] | None = None,
        *,
        keep: int = 1 << 20,
    ) -> None:
        self.on_output = output
        self.keep = keep
        self._lock = RLock()
        self._sent = bytearray()
        self._waiting: deque[int] = deque()  # sent by us, without room yet
        # Received: a byte, with its error bits of LSR and WAITED.
        self._fifo: deque[tuple[int, int]] = deque()
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._scr = 0
        self._divisor = 1
        self._errors = 0  # OE to BI of LSR
        self._wires = CTS | DSR | DCD  # what comes in, when not looped back
        self._changed = 0  # the lower half of MSR
        self._emptied = False  # and neither told nor written since
        self._timed_out = False
        self._timer: Timer | None = None
        self._is_up = False  # the interrupt line

    def attached(self) -> None:
        with self._lock:
            self._is_up = False
            self._quiet()
            self._update()

    # -- the other end of the line -------------------------------------------

    @property
    def output(self) -> bytes:
        """What the guest has sent, the last `keep` bytes of it."""
        return bytes(self._sent)

    @property
    def text(self) -> str:
        """The same as text: UTF-8, what is none as U+FFFD."""
        return self.output.decode("utf-8", "replace")

    @property
    def waiting(self) -> int:
        """How many bytes of input the guest has not read yet."""
        return len(self._waiting) + len(self._fifo)

    @property
    def dtr(self) -> bool:
        """Whether the guest holds data terminal ready."""
        return self._mcr & (DTR | LOOP) == DTR

    @property
    def rts(self) -> bool:
        """Whether the guest holds request to send."""
        return self._mcr & (RTS | LOOP) == RTS

    @property
    def baud(self) -> float:
        """The speed that the guest has set; nothing is slowed down to it."""
        return BAUD_MOST / (self._divisor or 1 << 16)

    def send(self, data: str | bytes, *, wait: bool = True) -> None:
        """Give input to the guest: text (as UTF-8) or bytes.

        What its FIFO has no room for waits, and so does again what the guest
        clears from there while it sets itself up. With `wait=False` both are
        lost, and of the first the guest finds an overrun.
        """
        if isinstance(data, str):
            data = data.encode()
        with self._lock:
            if wait:
                self._waiting.extend(data)
                self._refill()
            elif not self._mcr & LOOP:
                for byte in data:
                    self._receive(byte)
            self._update()

    def send_break(self) -> None:
        """Hold the line longer than a character: the guest sees a break."""
        with self._lock:
            if not self._mcr & LOOP:
                self._receive(0, BI)
            self._update()

    def modem(
        self,
        *,
        cts: bool | None = None,
        dsr: bool | None = None,
        ri: bool | None = None,
        dcd: bool | None = None,
    ) -> None:
        """Change lines that the guest sees; at first all but `ri` are up."""
        with self._lock:
            before = self._modem()
            for bit, up in ((CTS, cts), (DSR, dsr), (RI, ri), (DCD, dcd)):
                if up is not None:
                    self._wires = self._wires & ~bit | bit * up
            self._compare(before)
            self._update()

    # -- receiving -----------------------------------------------------------

    @property
    def _room(self) -> int:
        return (DEPTH if self._fcr & FIFO_ON else 1) - len(self._fifo)

    @property
    def _trigger(self) -> int:
        return TRIGGERS[self._fcr >> 6] if self._fcr & FIFO_ON else 1

    def _receive(self, byte: int, error: int = 0) -> None:
        """A character has come in."""
        if self._room > 0:
            self._fifo.append((byte, error))
        else:
            self._errors |= OE
            if not self._fcr & FIFO_ON:
                self._fifo[0] = byte, error  # the old one is destroyed
        if len(self._fifo) == 1:
            self._errors |= error & ~WAITED
        self._quiet()

    def _take(self) -> int:
        """The guest reads RBR."""
        if not self._fifo:
            return 0
        byte, _ = self._fifo.popleft()
        if self._fifo:
            self._errors |= self._fifo[0][1] & ~WAITED
        self._refill()
        self._quiet()
        return byte

    def _refill(self) -> None:
        """What waits goes in as far as there is room."""
        while self._waiting and self._room > 0 and not self._mcr & LOOP:
            self._receive(self._waiting.popleft(), WAITED)

    def _quiet(self) -> None:
        """The time without a character or a read of one begins again."""
        self._timed_out = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wanted = self._ier & ON_DATA and 0 < len(self._fifo) < self._trigger
        if wanted and self.base is not None:
            bits = 7 + (self._lcr & 3)  # with start and stop
            bits += bool(self._lcr & STOP_2) + bool(self._lcr & PARITY)
            length = TIMEOUT_CHARACTERS * bits / self.baud
            self._timer = self.after(length, self._time_out)

    def _time_out(self) -> None:
        with self._lock:
            self._timer = None
            self._timed_out = True
            self._update()

    # -- modem lines ---------------------------------------------------------

    def _modem(self) -> int:
        """The lines that come in, the upper half of MSR."""
        if not self._mcr & LOOP:
            return self._wires
        looped = ((RTS, CTS), (DTR, DSR), (OUT1, RI), (OUT2, DCD))
        return sum(into for out, into in looped if self._mcr & out)

    def _compare(self, before: int) -> None:
        """Lines may have changed; of RI only the end counts."""
        now = self._modem()
        self._changed |= ((now ^ before) & (CTS | DSR | DCD)) >> 4
        self._changed |= (before & ~now & RI) >> 4

    # -- interrupts ----------------------------------------------------------

    def _cause(self) -> int:
        """IIR, without the bits that say that there are FIFOs."""
        if self._ier & ON_ERROR and self._errors:
            return IS_ERROR
        if self._ier & ON_DATA and len(self._fifo) >= self._trigger:
            return IS_DATA
        if self._ier & ON_DATA and self._timed_out:
            return IS_TIMEOUT
        if self._ier & ON_EMPTY and self._emptied:
            return IS_EMPTY
        if self._ier & ON_MODEM and self._changed:
            return IS_MODEM
        return NOTHING

    def _update(self) -> None:
        """The line follows the cause."""
        up = self._cause() != NOTHING
        if up == self._is_up or self.base is None:
            return
        self._is_up = up
        if up:
            self.irq.set()
        else:
            self.irq.clear()

    # -- the guest's side ----------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        with self._lock:
            value = 0
            for i in range(size):
                value |= self._read_byte(offset + i) << 8 * i
            self._update()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        sent = bytearray()
        with self._lock:
            for i in range(size):
                self._write_byte(offset + i, value >> 8 * i & 0xFF, sent)
            self._update()
        if sent and self.on_output is not None:
            self.on_output(bytes(sent))

    def _read_byte(self, offset: int) -> int:
        match offset:
            case 0 if self._lcr & DLAB:
                return self._divisor & 0xFF
            case 0:
                return self._take()
            case 1 if self._lcr & DLAB:
                return self._divisor >> 8
            case 1:
                return self._ier
            case 2:
                return self._read_iir()
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                return self._read_lsr()
            case 6:
                value = self._modem() | self._changed
                self._changed = 0
                return value
        return self._scr

    def _write_byte(self, offset: int, value: int, sent: bytearray) -> None:
        match offset:
            case 0 if self._lcr & DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            case 0:
                self._transmit(value, sent)
            case 1 if self._lcr & DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            case 1:
                # Turning it on asks whether the transmitter is empty: it is.
                if value & ~self._ier & ON_EMPTY:
                    self._emptied = True
                self._ier = value & 0x0F
                if not self._timed_out:
                    self._quiet()
            case 2:
                self._write_fcr(value)
            case 3:
                self._lcr = value
            case 4:
                before = self._modem()
                self._mcr = value & MCR_BITS
                self._compare(before)
                self._refill()
            case 7:
                self._scr = value

    def _transmit(self, byte: int, sent: bytearray) -> None:
        self._emptied = True
        if self._mcr & LOOP:
            self._receive(byte)
            return
        sent.append(byte)
        self._sent.append(byte)
        if len(self._sent) > self.keep:
            del self._sent[: len(self._sent) - self.keep]

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IS_EMPTY:
            self._emptied = False
        return cause | FIFOS_ON * (self._fcr & FIFO_ON)

    def _write_fcr(self, value: int) -> None:
        changes = (value ^ self._fcr) & FIFO_ON
        if changes or value & CLEAR_RECEIVER:
            back = [byte for byte, error in self._fifo if error & WAITED]
            self._waiting.extendleft(reversed(back))
            self._fifo.clear()
        # Without the first bit the others are not taken.
        self._fcr = value & FCR_KEPT if value & FIFO_ON else 0
        self._refill()
        self._quiet()

    def _read_lsr(self) -> int:
        value = THRE | TEMT | self._errors
        if self._fifo:
            value |= DR
            if self._fcr & FIFO_ON and any(e & ~WAITED for _, e in self._fifo):
                value |= FIFO_ERROR
            # The first one's have been told now.
            byte, error = self._fifo[0]
            self._fifo[0] = byte, error & WAITED
        self._errors = 0
        return value

    def where(self, offset: int, size: int = 1) -> str:
        return "..".join(
            dict.fromkeys((NAMES[offset], NAMES[offset + size - 1]))
        )

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """The registers, and what was received and waits."""
        with self._lock:
            state = {name: getattr(self, "_" + name) for name in STATE}
            state["fifo"] = list(self._fifo)
            state["waiting"] = bytes(self._waiting)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        wrong = sorted({*state} - {*STATE, "fifo", "waiting"})
        if wrong:
            raise ValueError(f"Serial has no state {', '.join(wrong)}")
        with self._lock:
            for name, value in state.items():
                kept = name in STATE
                setattr(self, "_" + name, value if kept else deque(value))
            timed_out = self._timed_out
            self._quiet()
            self._timed_out = timed_out
            self._update()


STATE = (
    "ier", "fcr", "lcr", "mcr", "scr", "divisor", "errors", "wires",
    "changed", "emptied", "timed_out",
)  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""A virtio console: one port or many, wired to whatever takes bytes.

    with pyvmm.Machine() as m:
        con = m.attach(Console())
        m.load("kernel.elf", cmdline="console=hvc0")
        con.expect("login: ", timeout=60)       # runs the machine
        con.send("root\\n")
        con.expect("# ", timeout=5)
    print(con.text)

What the guest sends is kept, and goes to who is at the other end:

    from pyvmm.devices.console import Console, Pty, Socket, Stdio

    Console(input=b"ls\\n", output=callable)     # given bytes, as they come
    Console(output=open("log", "wb"))           # a file, a pipe, a socket
    Console(Stdio())                            # this terminal, in raw mode
    Console(Pty(print))                         # `screen /dev/pts/7`
    Console(Socket("/tmp/guest"))               # `nc -U /tmp/guest`
    Console(Socket("/tmp/guest", connect=True)) # `nc -lU /tmp/guest`

or a `Peer` of your own. From a shell, until the guest ends or you press Ctrl-]:

    pyvmm run GUEST.elf --device devices-py/console.py:stdio
    pyvmm run GUEST.elf --device devices-py/console.py:pty

There may be more ports, which a guest finds by name (Linux has them at
/dev/virtio-ports/cmd):

    con = Console(ports={"log": open("log", "wb"), "cmd": Socket("/tmp/cmd")})
    con.ports["cmd"].send(b"go")
    con.add("later", Pty())                     # at any time; con.remove()

The guest is told who is there: `con.ports["cmd"].connected`, and tells whether
it listens: `opened`. Until then it gets no input there.

Neither a guest nor KVM is needed to try it:

>>> with virtio.driver(Console(input="hi", notify="inline")) as drv:
...     room = drv.receive.send(reply=16)
...     reply = drv.transmit(b"hello") + room.wait()
...     drv.device.text, reply
('hello', b'hi')

**When the other end is slow, or not there,** the guest waits, and nobody else.
A request is completed when its bytes were taken over; up to `buffer` of them
wait here for the peer, then requests wait in their queue. What a driver does
meanwhile is its own affair: that of Linux sleeps, but for consoles, where it
spins. `lossy=True` forgets the oldest bytes instead, as one wants of a console
that is seldom looked at. A peer is read from as fast as the guest takes it.

When the device goes, peers have one second to take what they are still owed.
`lost` counts what they did not, what `lossy` forgot, and what was sent to a
peer that has gone for good, as a closed pipe has.

| queue | |
| --- | --- |
| 0 `receive`, 1 `transmit` | the console |
| 2 `control_receive`, 3 `control_transmit` | what is said about ports |
| 4 `receive1`, 5 `transmit1`, and so on | the other ports |

| configuration | |
| --- | --- |
| 0x0, twice 2 bytes | columns and rows |
| 0x4, 4 bytes | how many ports there may be |
| 0x8, 4 bytes | a byte written here is output, before any set-up too |

A terminal's window is the guest's, also when it changes; `con.resize(132, 43)`
is for the others.

Source: virtio 1.2, 5.3.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from functools import partial
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any

from pyvmm import virtio
from pyvmm.devices.console_control import CONTROL, Control
from pyvmm.devices.console_peers import Call, Peer, Stream, as_peer
from pyvmm.devices.console_port import CHUNK, Port, check_window
from pyvmm.devices.console_socket import Socket
from pyvmm.devices.console_terminals import Pty, Stdio

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping

__all__ = [
    "Call",
    "Console",
    "Peer",
    "Port",
    "Pty",
    "Socket",
    "Stdio",
    "Stream",
    "pty",
    "stdio",
]

F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1
F_EMERG_WRITE = 1 << 2

EMERG_WR = 8  # its offset in the configuration

QUEUE_SIZE = 256
CONTROL_SIZE = 64
PORTS_MOST = 31  # two queues each, two for control, and a device has 64
NAME_MOST = 255  # bytes
BUDGET = 1 << 20  # bytes of one port, before others have their turn
FLUSH = 1.0  # seconds


class Full(Exception):
    """The chain goes back to its queue: it, or its rest, is for later."""


class Console(virtio.Device):
    """A virtio-console, wired to a terminal, a socket, a file or Python.

    `peer`: what the console itself is wired to: a Peer, a callable that takes
    bytes, a binary file or a socket; `output` says the same. None: its output
    is only kept. `input`: what the guest reads first.
    `ports`: peers of further ports, by name. `max_ports`: how many there may
    be in all, at most 31, when add() shall have room.
    `window`: columns and rows, until a terminal says otherwise.
    `buffer`: bytes of output of each port that wait for its peer. `lossy`: the
    oldest of them are forgotten rather than that the guest waits. `keep`: how
    many bytes `output` has at most, the newest.
    `rows_first`: with `ports`, a window is told as nearly every Linux expects
    it, and not as the specification says.

    The console itself is `con.ports[""]`, and `con` has its methods.

    Threads: any may use it. Peers are called on the device's worker.
    """

    device_id = 3
    config = virtio.Struct(size="<HH", max_nr_ports="<I", emerg_wr="<I")

    def __init__(
        self,
        peer: object = None,
        *,
        input: str | bytes = b"",
        output: object = None,
        ports: Mapping[str, object] | None = None,
        max_ports: int | None = None,
        window: tuple[int, int] = (80, 24),
        buffer: int = 1 << 20,
        lossy: bool = False,
        keep: int = 1 << 20,
        rows_first: bool = False,
        notify: str = "thread",
    ) -> None:
        if peer is not None and output is not None:
            raise ValueError("peer and output are the same: give one of them")
        ports = ports or {}
        most = 1 + len(ports) if max_ports is None else max_ports
        if not 1 + len(ports) <= most <= PORTS_MOST:
            raise ValueError(
                f"{most} ports are outside {1 + len(ports)}..{PORTS_MOST}"
            )
        for name, value in (("buffer", buffer), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name} {value} is not above 0")
        self.notify = notify
        self.buffer = buffer
        self.lossy = lossy
        self.keep = keep
        self.lock = RLock()  # for notify="inline": handlers and the worker
        self.active = False  # attached
        self._most = most
        self._ports: dict[int, Port] = {}
        self._control = Control(self._ports, self.wake, rows_first)
        self._events: deque[Callable[[], None]] = deque()  # of other threads
        self._woken = False
        self.config.size = check_window(window)
        self.config.max_nr_ports = most
        self.features = F_SIZE | F_EMERG_WRITE
        self.features |= F_MULTIPORT if most > 1 else 0
        self.queues = name_queues(most)  # type: ignore[misc]
        self._console = self._new("", output if peer is None else peer, True)
        for name, other in ports.items():
            self.add(name, other)
        self.send(input)

    # -- for users -----------------------------------------------------------

    @property
    def ports(self) -> dict[str, Port]:
        """All ports by name; "" is the console itself."""
        return {port.name: port for port in list(self._ports.values())}

    @property
    def window(self) -> tuple[int, int]:
        """Columns and rows of the console."""
        return self._console.window

    @property
    def output(self) -> bytes:
        """What the guest has sent, the last `keep` bytes of it."""
        return self._console.output

    @property
    def text(self) -> str:
        """The same as text: UTF-8, what is none as U+FFFD."""
        return self._console.text

    @property
    def waiting(self) -> int:
        """How many bytes of input the guest has not taken yet."""
        return self._console.waiting

    @property
    def lost(self) -> int:
        """Bytes that were taken from the guest and cannot be delivered."""
        return self._console.lost

    @property
    def reads_stdin(self) -> bool:
        """Whether it takes the input that `pyvmm run` would give elsewhere."""
        peers = (port.peer for port in self._ports.values())
        return any(isinstance(peer, Stdio) for peer in peers)

    def send(self, data: str | bytes) -> None:
        """Give input to the guest, as Port.send()."""
        self._console.send(data)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest another size, as Port.resize()."""
        self._console.resize(columns, rows)

    def expect(
        self, pattern: str | bytes, timeout: float | None = None
    ) -> re.Match[Any]:
        """Wait for output and run the machine meanwhile, as Port.expect()."""
        return self._console.expect(pattern, timeout)

    def add(
        self, name: str, peer: object = None, *, console: bool = False
    ) -> Port:
        """Another port, which the guest is told of at once.

        `peer` as in Console(). `console`: the guest shall treat it as one, for
        logins; else it is a pipe. ValueError for a name that is taken, and when
        there are `max_ports`.
        """
        size = len(name.encode())
        if not 0 < size <= NAME_MOST or "\0" in name:
            raise ValueError(
                f"name {name!r} of {size} bytes is no name of 1 to {NAME_MOST}"
            )
        with self.lock:
            if name in self.ports:
                raise ValueError(f"there is a port {name!r} already")
            return self._new(name, peer, console)

    def remove(self, name: str) -> None:
        """Take a port away; the guest is told. ValueError when it is none.

        Its peer has a second to take what it is still owed.
        """
        with self.lock:
            port = self.ports.get(name)
            if port is None or port is self._console:
                raise ValueError(f"there is no port {name!r} to be removed")
            del self._ports[port.id]
            self._control.remove(port)
            port.stop(FLUSH)

    def _new(self, name: str, peer: object, is_console: bool) -> Port:
        for id in range(self._most):
            if id not in self._ports and id not in self._control.leaving:
                break
        else:
            raise ValueError(
                f"the {self._most} ports of this device are taken: max_ports="
            )
        end = as_peer(peer)
        for port in self._ports.values():
            if port.peer is end:
                raise ValueError(f"{end!r} has a port already: {port!r}")
        window = self.window if self._ports else self.config.size
        port = Port(self, id, name, end, is_console, window)
        if self.active:
            port.start()
        self._ports[id] = port
        self._control.add(port)
        return port

    # -- life ----------------------------------------------------------------

    def attached(self) -> None:
        with self.lock:
            self.active = True
            try:
                for port in self._ports.values():
                    port.start()
            except BaseException:
                self.detached()
                raise
            self._woken = False
            self.wake()

    def detached(self) -> None:
        with self.lock:
            self.active = False
            until = monotonic() + FLUSH
            failed: list[BaseException] = []
            for port in self._ports.values():
                try:
                    port.stop(until - monotonic())
                except Exception as exc:
                    failed.append(exc)
            if failed:
                raise failed[0]

    def reset(self) -> None:
        self.post(self._was_reset)

    def negotiated(self, features: int) -> None:
        self.post(partial(self._has_features, features))

    def started(self) -> None:
        self.post(self._has_started)

    def configured(self, offset: int, data: bytes) -> None:
        at = EMERG_WR - offset
        if 0 <= at < len(data):  # the lower byte (5.3.5.1)
            self._console.write_urgent(data[at : at + 1])
            self.wake()

    def _was_reset(self) -> None:
        self._control.reset()
        for port in self._ports.values():
            port.reset()

    def _has_features(self, features: int) -> None:
        self._control.on = bool(features & self.features & F_MULTIPORT)

    def _has_started(self) -> None:
        if not self._control.on:
            self._console.opened = True

    # -- the worker ----------------------------------------------------------

    def post(self, event: Callable[[], None]) -> None:
        """Let the worker do it, before anything that the guest does next."""
        self._events.append(event)
        if self.active:
            self.wake()
        else:
            with self.lock:
                self._settle()

    def wake(self) -> None:
        """Let the worker look at all queues and peers."""
        if self.active and not self._woken:
            self._woken = True
            with suppress(ValueError):  # detached meanwhile
                self.after(0, self._turn, worker=True)

    def work(self, name: str) -> None:
        """Call the handler of a queue."""
        self.queue[name].work()

    def _turn(self) -> None:
        self._woken = False
        with self.lock:
            self._settle()
            for id in list(self._ports):
                self.work(f"transmit{id or ''}")
                self.work(f"receive{id or ''}")
            if self._control.news:
                self.work("control_receive")

    def _settle(self) -> None:
        """Do what other threads have posted.

        A reset is known before a chain that was offered after it is looked at:
        whoever has a chain calls this first.
        """
        while self._events:
            self._events.popleft()()

    # -- data ----------------------------------------------------------------

    def on_transmit(self, queue: virtio.Queue) -> None:
        with self.lock:
            self._settle()
            port = self._ports.get(port_of(queue))
            if port is None:
                return
            try:
                if self._send_on(port, queue):
                    self.wake()
            except BaseException:
                self.wake()  # for what was left behind
                raise

    def _send_on(self, port: Port, queue: virtio.Queue) -> bool:
        """From the queue to the peer; whether there may be more."""
        budget = BUDGET
        while True:
            port.take_urgent()
            port.flush()
            room = min(port.room, budget)
            if room <= 0:
                return budget <= 0
            taken = self._take(port, queue, room)
            if not taken and not port.urgent:
                return False
            budget -= taken

    def _take(self, port: Port, queue: virtio.Queue, room: int) -> int:
        """Take so much output from the queue, not more; how much."""
        taken = 0
        with suppress(Full):
            for chain in queue:
                self._settle()
                size = chain.readable_size
                if not size:
                    raise virtio.ShortChain("nothing to be sent")
                left = max(0, size - port.skip)
                data = chain.read(min(left, room - taken), port.skip)
                port.take(data)
                taken += len(data)
                if len(data) < left:
                    port.skip += len(data)
                    raise Full
                port.skip = 0
                if taken == room:
                    break
        return taken

    def on_receive(self, queue: virtio.Queue) -> None:
        with self.lock:
            self._settle()
            port = self._ports.get(port_of(queue))
            if port is None:
                return
            if port.pending and port.opened:
                self._give(port, queue)
            port.hold()

    def _give(self, port: Port, queue: virtio.Queue) -> None:
        """Give the guest the input that waits, as far as it has room."""
        with suppress(Full):
            for chain in queue:
                self._settle()
                if not (port.pending and port.opened):
                    raise Full
                room = chain.writable_size
                if not room:
                    raise virtio.ShortChain("no room for input")
                data = port.pending[: min(room, CHUNK)]
                chain.write(data)
                del port.pending[: len(data)]
                if not port.pending:
                    break

    # -- control -------------------------------------------------------------

    def on_control_receive(self, queue: virtio.Queue) -> None:
        with self.lock, suppress(Full):
            self._settle()
            if not self._control.message():
                return
            for chain in queue:
                self._settle()
                message = self._control.message()
                if not message:
                    raise Full
                chain.write(message)
                self._control.told()
                if not self._control.news:
                    break

    def on_control_transmit(self, queue: virtio.Queue) -> None:
        with self.lock:
            self._settle()
            for chain in queue:
                self._settle()
                self._control.hear(chain.take(CONTROL.size))

    def connected(self, port: Port) -> None:
        """Someone has come to the port's end, or gone."""
        self._control.connected(port)

    def resized(self, port: Port) -> None:
        """The port has another window."""
        if port is self._console and self.config.size != port.window:
            self.config.size = port.window
        self._control.resized(port)

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What the guest knows, and the bytes that are on their way."""
        with self.lock:
            self._settle()
            return {
                "control": self._control.save(),
                "ports": {id: p.save() for id, p in self._ports.items()},
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() of a console with these ports has returned.

        Who is at the other end is not part of it: the guest is told that anew.
        ValueError for other ports.
        """
        names = {id: port["name"] for id, port in state["ports"].items()}
        with self.lock:
            here = {id: port.name for id, port in self._ports.items()}
            if names != here:
                raise ValueError(f"a state of ports {names}, not {here}")
            self._events.clear()
            self._control.restore(state["control"])
            for id, port in self._ports.items():
                port.restore(state["ports"][id])
                self._control.connected(port)
            self.resized(self._console)
            self.wake()


def name_queues(ports: int) -> dict[str, int]:
    """The queues of a device with so many ports, in order (5.3.2)."""
    queues: dict[str, int] = {}
    for id in range(ports):
        queues[f"receive{id or ''}"] = QUEUE_SIZE
        queues[f"transmit{id or ''}"] = QUEUE_SIZE
        if id == 0 and ports > 1:
            queues["control_receive"] = CONTROL_SIZE
            queues["control_transmit"] = CONTROL_SIZE
    return queues


def port_of(queue: virtio.Queue) -> int:
    """The port that a queue belongs to; 2 and 3 are those for control."""
    return max(0, queue.index // 2 - 1)


# -- for a shell: pyvmm run --device devices-py/console.py:stdio ---------------


def stdio() -> Console:
    """A console on the terminal of this process."""
    return Console(Stdio(signals=True))


def pty() -> Console:
    """A console on a pseudo terminal, whose path is printed."""
    return Console(
        Pty(lambda path: print(f"console at {path}", file=sys.stderr))
    )

# SPDX-License-Identifier: Apache-2.0
"""What a Console and its driver tell each other about ports.

    device                          driver
                               <--  DEVICE_READY
    PORT_ADD, for each port    -->
                               <--  PORT_READY
    CONSOLE_PORT, PORT_NAME,
    RESIZE, PORT_OPEN          -->
                               <--  PORT_OPEN

and later PORT_OPEN from either side, RESIZE, PORT_ADD and PORT_REMOVE.

Source: virtio 1.2, 5.3.6.2.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from pyvmm import virtio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyvmm.devices.console_port import Port

CONTROL = struct.Struct("<IHH")  # port, event, value
DEVICE_READY = 0
PORT_ADD = 1
PORT_REMOVE = 2
PORT_READY = 3
CONSOLE_PORT = 4
RESIZE = 5  # and columns, rows
PORT_OPEN = 6
PORT_NAME = 7  # and the name

WINDOW = struct.Struct("<HH")


class Control:
    """The conversation of one console.

    `news`: what the driver is to be told, in order: (port, event). The message
    is made when there is room for it, of what is so then: so there is at most
    one of each, however long the driver does not listen.

    Threads: the console's lock is held.
    """

    def __init__(
        self,
        ports: Mapping[int, Port],
        wake: Callable[[], None],
        rows_first: bool,
    ) -> None:
        self.ports = ports
        self.rows_first = rows_first
        self.on = False  # the driver has taken the feature
        self.ready = False  # it has said DEVICE_READY
        self.news: dict[tuple[int, int], None] = {}
        self.leaving: set[int] = set()  # numbers whose PORT_REMOVE is to come
        self._wake = wake

    def reset(self) -> None:
        """The driver has reset the device."""
        self.on = self.ready = False
        self.news.clear()
        self.leaving.clear()

    # -- what the driver says ------------------------------------------------

    def hear(self, message: bytes) -> None:
        """A message; ShortChain when it makes no sense."""
        id, event, value = CONTROL.unpack(message)
        port = self.ports.get(id)
        if event == DEVICE_READY and self.on:
            self.ready = bool(value)
            for each in self.ports.values():
                if value and not each.added:
                    self._tell(each.id, PORT_ADD)
        elif port is None or not port.added:
            raise virtio.ShortChain(f"event {event} of no port, {id}")
        elif event == PORT_READY:
            if value and not port.accepted:
                port.accepted = True
                self._introduce(port)
        elif event == PORT_OPEN:
            port.opened = bool(value)
            self._wake()
        else:
            raise virtio.ShortChain(f"no event {event}")

    def _introduce(self, port: Port) -> None:
        """All there is to be said about a port that can be used."""
        if port.is_console:
            self._tell(port.id, CONSOLE_PORT)
        if port.name:
            self._tell(port.id, PORT_NAME)
        if port.is_console:
            self._tell(port.id, RESIZE)
        if port.connected:
            self._tell(port.id, PORT_OPEN)

    # -- what it is told -----------------------------------------------------

    def add(self, port: Port) -> None:
        """There is another port."""
        if self.ready:
            self._tell(port.id, PORT_ADD)

    def remove(self, port: Port) -> None:
        """There is one less."""
        for key in [key for key in self.news if key[0] == port.id]:
            del self.news[key]
        if port.added:
            self.leaving.add(port.id)
            self._tell(port.id, PORT_REMOVE)

    def connected(self, port: Port) -> None:
        """Someone has come to the port's end, or gone."""
        if port.accepted:
            self._tell(port.id, PORT_OPEN)

    def resized(self, port: Port) -> None:
        """The port has another window."""
        if port.accepted and port.is_console:
            self._tell(port.id, RESIZE)

    def _tell(self, id: int, event: int) -> None:
        self.news[id, event] = None
        self._wake()

    def message(self) -> bytes:
        """The next message; b"" when there is none."""
        if not (self.on and self.news):
            return b""
        id, event = next(iter(self.news))
        port = self.ports.get(id)
        value, more = 0, b""
        if port is None:
            pass  # it was removed: that is what is told
        elif event == CONSOLE_PORT:
            value = 1  # Linux ignores it otherwise
        elif event == RESIZE:
            window = port.window
            more = WINDOW.pack(*(window[::-1] if self.rows_first else window))
        elif event == PORT_OPEN:
            value = int(port.connected)
        elif event == PORT_NAME:
            more = port.name.encode()
        return CONTROL.pack(id, event, value) + more

    def told(self) -> None:
        """The driver has got that message."""
        id, event = next(iter(self.news))
        del self.news[id, event]
        if event == PORT_ADD:
            self.ports[id].added = True
        elif event == PORT_REMOVE:
            self.leaving.discard(id)

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What the driver knows, and what it is yet to be told."""
        return {
            "on": self.on,
            "ready": self.ready,
            "news": list(self.news),
            "leaving": sorted(self.leaving),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What save() has returned."""
        self.on = state["on"]
        self.ready = state["ready"]
        self.news = dict.fromkeys((id, event) for id, event in state["news"])
        self.leaving = set(state["leaving"])

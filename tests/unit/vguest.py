# SPDX-License-Identifier: Apache-2.0
"""Both ends of a virtio-console, for tests: its driver, and a slow peer."""

import struct
from typing import Any

from pyvmm import virtio
from pyvmm.devices.console import Console, Peer

CONTROL = struct.Struct("<IHH")
(
    DEVICE_READY,
    PORT_ADD,
    PORT_REMOVE,
    PORT_READY,
    CONSOLE_PORT,
    RESIZE,
    PORT_OPEN,
    PORT_NAME,
) = range(8)
ROOMS = 16  # control messages that there is room for
ROOM = 300  # bytes, enough for the longest name


class Guest:
    """The driver of an inline Console with several ports."""

    def __init__(self, con: Console, **options: Any) -> None:
        self.con = con
        self.drv = virtio.driver(con, **options)
        self.rooms: list[Any] = []

    def __enter__(self) -> "Guest":
        self.drv.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.drv.__exit__(*args)

    def say(self, id: int, event: int, value: int = 1) -> None:
        """Send a control message."""
        self.drv.control_transmit(CONTROL.pack(id, event, value))

    def hear(self) -> list[tuple[Any, ...]]:
        """What the device has to say: (port, event, value or content)."""
        heard = []
        while True:
            missing = ROOMS - len(self.rooms)
            self.rooms += [
                self.drv.control_receive.send(reply=ROOM)
                for _ in range(missing)
            ]
            self.drv.poll()
            self.drv.control_receive.collect()
            done = [room for room in self.rooms if room.done]
            if not done:
                return heard
            self.rooms = [room for room in self.rooms if not room.done]
            for room in done:
                id, event, value = CONTROL.unpack_from(room.reply)
                more = room.reply[CONTROL.size :]
                heard.append((id, event, more or value))

    def boot(self, *ports: int) -> list[tuple[Any, ...]]:
        """Say that all is ready; what is heard about the ports then."""
        self.say(0xFFFF_FFFF, DEVICE_READY)
        added = self.hear()
        assert added == [(id, PORT_ADD, 0) for id in sorted(ports)]
        for id in ports:
            self.say(id, PORT_READY)
        return self.hear()

    def open(self, id: int) -> None:
        """The guest opens a port."""
        self.say(id, PORT_OPEN)
        self.drv.poll()


class Slow(Peer):
    """Takes as many bytes as it has room for."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.taken = bytearray()
        self.asked = 0  # for news of more room
        self.held: list[bool] = []

    def write(self, data: bytes) -> int:
        size = min(self.room, len(data))
        self.room -= size
        self.taken += data[:size]
        return size

    def more(self) -> None:
        self.asked += 1

    def hold(self, full: bool) -> None:
        self.held.append(full)

    def widen(self, room: int) -> None:
        self.room += room
        self.port.ready()

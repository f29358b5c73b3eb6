# SPDX-License-Identifier: Apache-2.0
"""Console: queues, control messages, state. No KVM, no guest."""

import pickle
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from vguest import (
    CONSOLE_PORT,
    CONTROL,
    DEVICE_READY,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORT_REMOVE,
    RESIZE,
    Guest,
    Slow,
)

from pyvmm import virtio
from pyvmm.devices.console import Console, Pty

SIZE, MULTIPORT, EMERG_WRITE = 1, 2, 4
PTY = Pty()


def console(*args: Any, **options: Any) -> Console:
    return Console(*args, notify="inline", **options)


# -- one port ------------------------------------------------------------------


def test_output_and_input() -> None:
    with virtio.driver(console(input="first ")) as drv:
        con = drv.device
        assert drv.transmit(b"hel", b"", b"lo \xff") == b""
        assert (con.output, con.text) == (b"hello \xff", "hello \ufffd")
        con.send("sécond")
        assert con.waiting == 13
        assert drv.poll() == 1
        assert drv.receive(reply=[6, 2]) == b"first s\xc3"
        assert drv.receive(reply=64) == b"\xa9cond"
        assert con.waiting == 0 and con.faults == 0


def test_input_wakes_a_driver_that_waits() -> None:
    with virtio.driver(console()) as drv:
        rooms = [drv.receive.send(reply=4) for _ in range(3)]
        before = drv.interrupts
        drv.device.send(b"abcdef")
        drv.poll()
        assert [room.wait() for room in rooms[:2]] == [b"abcd", b"ef"]
        assert drv.interrupts == before + 1
        assert not rooms[2].done


def test_output_to_a_callable_input_from_bytes() -> None:
    seen: list[bytes] = []
    with virtio.driver(console(input=b"in", output=seen.append)) as drv:
        drv.transmit(b"out")
        drv.transmit(b"put")
        assert drv.receive(reply=9) == b"in"
    assert seen == [b"out", b"put"]


def test_on_its_own_thread() -> None:
    threads: list[threading.Thread] = []
    con = Console(
        lambda data: threads.append(threading.current_thread()), input=b"in"
    )
    assert con.notify == "thread"
    with virtio.driver(con) as drv:
        drv.transmit(b"x")
        assert drv.receive(reply=9) == b"in"
    assert threads[0] is not threading.current_thread()


def test_an_exception_of_the_callable_is_its_authors() -> None:
    fails = [True]
    seen: list[bytes] = []

    def output(data: bytes) -> None:
        if fails:
            fails.clear()
            raise KeyError("mine")
        seen.append(data)

    with virtio.driver(console(output)) as drv:
        with pytest.raises(KeyError, match="mine"):
            drv.transmit(b"abc")
        drv.transmit.wait_all()
        drv.transmit(b"def")
    assert seen == [b"abc", b"def"]


def test_only_the_newest_output_is_kept() -> None:
    with virtio.driver(console(keep=4)) as drv:
        drv.transmit(b"abc")
        drv.transmit(b"def")
        assert drv.device.text == "cdef"


def test_features_of_one_port() -> None:
    with virtio.driver(console(), start=False) as drv:
        assert drv.raw.offered() & 0xFF == SIZE | EMERG_WRITE
        assert list(drv.device.queues) == ["receive", "transmit"]
    assert drv.device.device_id == 3


def test_output_before_the_driver_is_live_is_an_emergency() -> None:
    with virtio.driver(console(), start=False) as drv:
        for size, char in enumerate(b"a!", 1):
            drv.write_config(8, bytes([char]) + bytes(2 * size - 2))
        drv.write_config(4, bytes(4) + b"b...")  # it covers the register
        drv.write_config(9, b"c")
        drv.write_config(4, b"...c")
        drv.write_config(0, b"d")
        assert drv.device.text == "a!b"
        drv.start()
        drv.transmit(b"c")
        drv.write_config(8, b"d\0\0\0")
        drv.poll()
        drv.raw.ring[1].set_offered(9999)
        drv.raw.notify(1)
        assert drv.broken
        drv.write_config(8, b"e\0\0\0")
        drv.poll()
        assert drv.device.text == "a!bcde"


def test_an_emergency_that_goes_on_is_bounded() -> None:
    peer = Slow()
    with virtio.driver(console(peer, buffer=4), start=False) as drv:
        for _ in range(3):
            for char in b"abcde":
                drv.write_config(8, bytes([char]))
            drv.poll()
        con = drv.device
        assert con.text == "abcde" * 3 and con.lost == 15 - 2 * 4
        peer.widen(99)
        drv.poll()
        assert bytes(peer.taken) == b"abcd" + b"abcd"


def test_sizes() -> None:
    con = console(window=(132, 43))
    with virtio.driver(con) as drv:
        assert drv.config == {
            "size": (132, 43),
            "max_nr_ports": 1,
            "emerg_wr": 0,
        }
        assert drv.read_config(0, 4) == struct.pack("<HH", 132, 43)
        before = drv.generation, drv.interrupts
        con.resize(100, 30)
        drv.poll()
        assert con.window == drv.config["size"] == (100, 30)
        assert (drv.generation, drv.interrupts) == (
            before[0] + 1,
            before[1] + 1,
        )
        con.resize(100, 30)
        drv.poll()
        assert drv.generation == before[0] + 1


def test_a_size_of_before_it_is_attached() -> None:
    con = console()
    con.resize(1, 2)
    with virtio.driver(con) as drv:
        assert drv.config["size"] == (1, 2)


def test_the_driver_starts_again() -> None:
    con = console(input=b"abc")
    with virtio.driver(con) as drv:
        drv.transmit(b"one ")
        drv.receive.send(reply=1)
        drv.reset()
        con.send(b"def")
        drv.poll()
        drv.start()
        assert drv.receive(reply=9) == b"bcdef"
        drv.transmit(b"two")
        assert con.text == "one two"


# -- more than one -------------------------------------------------------------


def ports(**options: Any) -> Console:
    return console(ports={"log": None, "cmd": None}, **options)


def test_ports_are_introduced() -> None:
    con = ports(window=(90, 30))
    with Guest(con) as guest:
        assert guest.drv.features & 0xFF == SIZE | MULTIPORT | EMERG_WRITE
        assert guest.drv.config["max_nr_ports"] == 3
        assert guest.boot(0, 1, 2) == [
            (0, CONSOLE_PORT, 1),
            (0, RESIZE, struct.pack("<HH", 90, 30)),
            (0, PORT_OPEN, 1),
            (1, PORT_NAME, b"log"),
            (1, PORT_OPEN, 1),
            (2, PORT_NAME, b"cmd"),
            (2, PORT_OPEN, 1),
        ]
        # Said again, it is no news (5.3.6.2.1).
        guest.say(0, DEVICE_READY)
        guest.say(1, PORT_READY)
        assert guest.hear() == []
        assert con.faults == 0


def test_data_of_ports() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        guest.drv.transmit(b"console")
        guest.drv.transmit1(b"log")
        guest.drv.transmit2(b"cmd")
        texts = {name: port.text for name, port in con.ports.items()}
        assert texts == {"": "console", "log": "log", "cmd": "cmd"}


def test_input_waits_until_the_guest_opens_the_port() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        room = guest.drv.receive2.send(reply=8)
        con.ports["cmd"].send(b"go")
        guest.drv.poll()
        assert not con.ports["cmd"].opened and not room.done
        guest.open(2)
        assert con.ports["cmd"].opened and room.wait() == b"go"
        guest.say(2, PORT_OPEN, 0)
        room = guest.drv.receive2.send(reply=8)
        con.ports["cmd"].send(b"on")
        guest.drv.poll()
        assert not con.ports["cmd"].opened
        assert not room.done and con.ports["cmd"].waiting == 2


def test_a_driver_that_wants_one_port_only() -> None:
    con = ports(input=b"in")
    with virtio.driver(con, features=0) as drv:
        assert drv.receive(reply=9) == b"in"
        drv.transmit(b"out")
        drv.control_transmit.send(CONTROL.pack(0, DEVICE_READY, 1))
        drv.control_receive.send(reply=64)
        drv.poll()
        assert con.text == "out" and drv.control_receive.in_flight == 1


def test_resize_of_a_port() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        con.resize(10, 20)
        con.resize(11, 21)
        con.ports["log"].resize(5, 5)  # no terminal: not told
        assert guest.hear() == [(0, RESIZE, struct.pack("<HH", 11, 21))]
        assert guest.drv.config["size"] == (11, 21)


def test_rows_first() -> None:
    con = ports(rows_first=True)
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        con.resize(11, 21)
        assert guest.hear() == [(0, RESIZE, struct.pack("<HH", 21, 11))]
        assert guest.drv.config["size"] == (11, 21)


def test_ports_come_and_go() -> None:
    con = ports(max_ports=4)
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        port = con.add("tty", console=True)
        assert port.id == 3 and guest.hear() == [(3, PORT_ADD, 0)]
        guest.say(3, PORT_READY)
        assert guest.hear() == [
            (3, CONSOLE_PORT, 1),
            (3, PORT_NAME, b"tty"),
            (3, RESIZE, struct.pack("<HH", 80, 24)),
            (3, PORT_OPEN, 1),
        ]
        with pytest.raises(ValueError, match="the 4 ports of this device"):
            con.add("more")
        guest.drv.transmit3(b"hi")
        con.remove("tty")
        assert list(con.ports) == ["", "log", "cmd"]
        # Its number is free when the guest has heard of it.
        with pytest.raises(ValueError, match="are taken"):
            con.add("more")
        assert guest.hear() == [(3, PORT_REMOVE, 0)]
        assert con.add("more").id == 3
        assert guest.hear() == [(3, PORT_ADD, 0)]
        assert con.faults == 0


def test_a_port_that_goes_before_the_guest_has_heard_of_it() -> None:
    con = ports(max_ports=4)
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        con.add("brief")
        con.remove("brief")
        assert guest.hear() == []
        assert con.add("next").id == 3


def test_output_of_a_port_that_has_gone_waits() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        con.remove("cmd")
        sent = guest.drv.transmit2.send(b"late")
        guest.hear()
        assert not sent.done
        con.add("cmd")
        guest.drv.poll()
        assert sent.wait() == b"" and con.ports["cmd"].text == "late"


def test_a_guest_that_cannot_use_a_port() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.say(0, DEVICE_READY, 0)
        assert guest.hear() == []
        guest.say(0, DEVICE_READY, 1)
        guest.hear()
        guest.say(1, PORT_READY, 0)
        assert guest.hear() == []
        guest.say(1, PORT_READY, 1)
        assert (1, PORT_NAME, b"log") in guest.hear()


@pytest.mark.parametrize(
    ("id", "event"),
    [
        (3, PORT_OPEN),
        (0xFFFF_FFFF, PORT_READY),
        (1, PORT_ADD),
        (1, PORT_NAME),
        (1, 8),
        (1, 0xFFFF),
    ],
)
def test_control_messages_that_make_no_sense(id: int, event: int) -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        guest.say(id, event)
        assert con.faults == 1 and guest.hear() == []
        guest.drv.control_transmit(CONTROL.pack(1, PORT_OPEN, 1) + b"more")
        assert con.faults == 1 and con.ports["log"].opened


def test_a_port_opened_before_it_was_added() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.say(1, PORT_OPEN)
        assert con.faults == 1 and not con.ports["log"].opened


@pytest.mark.parametrize("cut", range(8))
def test_control_messages_in_parts(cut: int) -> None:
    message = CONTROL.pack(0, DEVICE_READY, 1)
    con = ports()
    with Guest(con) as guest:
        guest.drv.control_transmit(message[:cut], b"")
        assert con.faults == 1
        guest.drv.control_transmit(message[:cut], message[cut:])
        assert len(guest.hear()) == 3


def test_too_little_room_for_a_control_message() -> None:
    con = ports()
    with virtio.driver(con) as drv:
        drv.control_transmit(CONTROL.pack(0, DEVICE_READY, 1))
        drv.poll()
        assert drv.control_receive(reply=7) == b""
        assert drv.control_receive(reply=8) == CONTROL.pack(0, PORT_ADD, 0)
        assert con.faults == 1


def test_a_guest_that_reads_no_control_messages_costs_nothing() -> None:
    con = ports()
    with virtio.driver(con) as drv:
        drv.control_transmit(CONTROL.pack(0, DEVICE_READY, 1))
        for value in range(300):
            con.resize(value, 1)
            con.ports["log"].connect(bool(value % 2))
            for event in (DEVICE_READY, PORT_READY):
                drv.control_transmit(CONTROL.pack(1, event, 1))
        drv.poll()
        assert len(con.save()["control"]["news"]) <= 3 * 6


def test_reset_forgets_what_the_guest_knew() -> None:
    con = ports()
    with Guest(con) as guest:
        guest.boot(0, 1, 2)
        guest.open(1)
        con.resize(3, 4)
        guest.drv.reset()
        guest.drv.poll()
        assert not con.ports["log"].opened
        guest.rooms.clear()
        guest.drv.start()
        assert guest.hear() == []
        assert len(guest.boot(0, 1, 2)) == 7


# -- when the other end is slow, or gone ---------------------------------------


def test_output_waits_in_the_buffer_then_in_the_queue() -> None:
    peer = Slow()
    with virtio.driver(console(peer, buffer=8)) as drv:
        sent = [drv.transmit.send(b"abcd") for _ in range(4)]
        drv.transmit.collect()
        assert [request.done for request in sent] == [True, True, False, False]
        assert drv.device.text == "abcdabcd" and peer.asked
        peer.widen(4)
        drv.transmit.collect()
        assert [request.done for request in sent] == [True, True, True, False]
        peer.widen(99)
        drv.transmit.wait_all()
        assert bytes(peer.taken) == b"abcd" * 4


def test_a_request_larger_than_the_buffer() -> None:
    data = bytes(range(256)) * 5
    peer = Slow()
    with virtio.driver(console(peer, buffer=100)) as drv:
        sent = drv.transmit.send(data[:700], data[700:])
        while len(peer.taken) < len(data) - 100:
            assert not sent.done and len(drv.device.output) <= len(data)
            peer.widen(77)
            drv.transmit.collect()
        peer.widen(100)
        assert sent.wait() == b"" and drv.device.output == data
        drv.transmit(b"next")
        peer.widen(100)
        assert bytes(peer.taken) == data + b"next" and drv.device.lost == 0


def test_a_reset_in_the_middle_of_a_request() -> None:
    peer = Slow()
    with virtio.driver(console(peer, buffer=4)) as drv:
        drv.transmit.send(b"abcdefgh")
        drv.reset()
        drv.start()
        sent = drv.transmit.send(b"12345678")
        peer.widen(99)
        sent.wait()
        assert bytes(peer.taken) == b"abcd12345678"


def test_lossy_waits_for_nobody() -> None:
    peer = Slow()
    with virtio.driver(console(peer, buffer=4, lossy=True)) as drv:
        drv.transmit(b"abcdef")
        drv.transmit(b"gh")
        assert drv.device.lost == 4
        peer.widen(99)
        assert bytes(peer.taken) == b"efgh"


def test_a_peer_that_has_gone_for_good() -> None:
    peer = Slow()
    with virtio.driver(console(peer, buffer=4)) as drv:
        sent = drv.transmit.send(b"abcdefgh")
        peer.port.lose()
        drv.poll()
        sent.wait()
        assert drv.device.lost == 8 and drv.device.text == "abcdefgh"
        assert not drv.device.ports[""].connected


def test_connections_are_told() -> None:
    peer = Slow()
    con = console(ports={"cmd": peer})
    with Guest(con) as guest:
        peer.port.connect(False)
        assert guest.boot(0, 1)[3:] == [(1, PORT_NAME, b"cmd")]
        sent = guest.drv.transmit1.send(b"x")
        peer.port.connect(True)
        assert guest.hear() == [(1, PORT_OPEN, 1)]
        peer.port.connect(False)
        peer.port.connect(True)
        peer.port.connect(False)
        assert guest.hear() == [(1, PORT_OPEN, 0)]
        assert sent.wait() == b""  # in the buffer


def test_a_peer_is_held_while_the_guest_has_enough() -> None:
    peer = Slow()
    with virtio.driver(console(peer)) as drv:
        peer.port.receive(b"x" * 0x10000)
        peer.port.receive(b"y")
        assert peer.held == [True]
        assert len(drv.receive(reply=2)) == 2
        assert peer.held == [True, False]


def test_what_is_owed_is_delivered_when_the_device_goes() -> None:
    class Waits(Slow):
        def wait(self, seconds: float) -> bool:
            assert 0 < seconds <= 1
            self.room += 3
            return len(self.taken) < 6

    peer = Waits()
    with virtio.driver(console(peer)) as drv:
        drv.transmit(b"abcdefghij")
        assert not peer.taken
    assert bytes(peer.taken) == b"abcdef" and drv.device.lost == 4


def test_bursts_leave_others_their_turn() -> None:
    """One call of a handler takes no more than a MiB."""
    seen: list[int] = []
    with virtio.driver(console(lambda data: seen.append(len(data)))) as drv:
        parts = [(0, 1 << 20, 0)] * 4
        drv.raw.ring[1].set_chain(parts)
        drv.raw.ring[1].offer(0)
        drv.raw.notify(1)
        assert sum(seen) == 1 << 20
        while sum(seen) < 4 << 20:
            before = sum(seen)
            assert drv.poll() == 1 and sum(seen) - before <= 1 << 20
        assert max(seen) <= 1 << 16


# -- bad input -----------------------------------------------------------------


def test_buffers_of_the_wrong_kind() -> None:
    """5.3.6.1: a driver must not, and it is harmless when it does."""
    with virtio.driver(console(input=b"in")) as drv:
        assert drv.transmit(reply=64) == b""
        assert drv.device.faults == 1
        assert drv.receive(b"what") == b""
        assert drv.device.faults == 2
        assert drv.receive(b"what", reply=1) == b"i"
        assert drv.transmit(b"out", reply=4) == b""
        assert drv.device.text == "out" and drv.device.waiting == 1


def test_a_chain_of_more_bytes_than_there_is_memory() -> None:
    """Its buffers overlap; the host takes no more than it has room for."""
    peer = Slow()
    with virtio.driver(console(peer, buffer=1000)) as drv:
        ring = drv.raw.ring[1]
        ring.set_chain([(0, 16 << 20, 0)] * 256)
        ring.offer(0)
        drv.raw.notify(1)
        assert len(drv.device.output) == 1000
        drv.reset()
        drv.start()
        peer.widen(2000)
        drv.transmit(b"ok")
        assert bytes(peer.taken[1000:]) == b"ok"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Console(1), TypeError, "not int"),
        (lambda: Console("path"), TypeError, "not str"),
        (lambda: Console(print, output=print), ValueError, "one of them"),
        (lambda: Console(window=(1, 65536)), ValueError, "65536 is outside"),
        (lambda: Console(buffer=0), ValueError, "buffer 0"),
        (lambda: Console(keep=0), ValueError, "keep 0"),
        (lambda: Console(max_ports=32), ValueError, "32 ports are outside"),
        (lambda: Console(ports={"a": None}, max_ports=1), ValueError, "2..31"),
        (lambda: Console(ports={"": None}), ValueError, "of 0 bytes"),
        (lambda: Console(ports={"a\0": None}), ValueError, "no name"),
        (lambda: Console(ports={"é" * 128: None}), ValueError, "256 bytes"),
        (lambda: Console(max_ports=2).remove(""), ValueError, "no port ''"),
        (lambda: Console(max_ports=2).remove("a"), ValueError, "no port 'a'"),
        (lambda: Console(ports={"a": None}).add("a"), ValueError, "already"),
        (lambda: Console().add("a"), ValueError, "max_ports="),
        (lambda: Console(PTY, ports={"a": PTY}), ValueError, "port already"),
        (lambda: Console().resize(-1, 2), ValueError, "-1 is outside"),
    ],
)
def test_arguments(
    make: Callable[[], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


# -- expect --------------------------------------------------------------------


def test_expect() -> None:
    with virtio.driver(console(), timeout=5) as drv:
        con = drv.device
        drv.transmit(b"one two \xff one")
        match = con.expect(r"(o\w+) (\w+)")
        assert match.groups() == ("one", "two")
        assert con.expect(rb"\xff (one)")[1] == b"one"
        with pytest.raises(TimeoutError, match=r"'one' did not come"):
            con.expect("one", timeout=0)


def test_expect_of_a_thread() -> None:
    with virtio.driver(Console()) as drv:
        sender = threading.Thread(target=drv.transmit, args=(b"late",))
        sender.start()
        assert drv.device.expect("late", timeout=20)
        sender.join()


# -- state ---------------------------------------------------------------------


def test_state() -> None:
    peer = Slow()
    con = console(peer, ports={"log": None}, buffer=4)
    with Guest(con) as guest:
        guest.boot(0, 1)
        guest.open(1)
        con.ports["log"].send(b"waits")
        guest.drv.transmit.send(b"abcdef")
        con.resize(7, 8)
        state = pickle.loads(pickle.dumps(con.save()))
        assert state["ports"][0]["skip"] == 4
        assert guest.hear() == [(0, RESIZE, struct.pack("<HH", 7, 8))]
        # The guest goes back with the device, to where it has not heard yet.
        con.ports["log"].opened = False
        con.ports["log"].pending.clear()
        con.resize(1, 1)
        con.restore(state)
        assert con.save()["ports"] == state["ports"]
        assert (0, RESIZE, struct.pack("<HH", 7, 8)) in guest.hear()
        assert guest.drv.receive1(reply=9) == b"waits"
        peer.widen(9)
        assert bytes(peer.taken) == b"abcdef"


def test_state_of_another_console() -> None:
    with pytest.raises(ValueError, match=r"{0: '', 1: 'a'}, not {0: ''}"):
        console().restore(console(ports={"a": None}).save())


def test_attached_twice() -> None:
    con = ports(input=b"abc")
    for _ in range(2):
        with Guest(con) as guest:
            guest.boot(0, 1, 2)
            guest.open(0)
            assert guest.drv.receive(reply=1)
            guest.drv.transmit(b"x")
    assert con.text == "xx" and con.waiting == 1


def test_repr() -> None:
    with virtio.driver(console()) as drv:
        drv.poll()
        port = drv.device.ports[""]
        assert repr(port) == "<Port 0 console opened, <Peer> connected>"
        port.connect(False)
        assert repr(port).endswith("<Peer> nobody there>")
    assert repr(ports().ports["log"]).startswith("<Port 1 'log' not opened")


def test_resets_that_race_the_worker() -> None:
    con = Console(ports={"log": None}, buffer=100)
    with virtio.driver(con) as drv:
        for round in range(60):
            for i in range(8):
                drv.transmit.send(b"%d" % i * 20, notify=i % 3 == 0)
                drv.receive.send(reply=3, notify=i % 2 == 0)
                drv.control_receive.send(reply=64)
            drv.control_transmit.send(CONTROL.pack(0, DEVICE_READY, 1))
            con.send(b"input")
            con.resize(round, 1)
            drv.reset()
            drv.start()
        drv.control_transmit(CONTROL.pack(0, DEVICE_READY, 1))
        added = drv.control_receive(reply=64), drv.control_receive(reply=64)
        assert added == (
            CONTROL.pack(0, PORT_ADD, 0),
            CONTROL.pack(1, PORT_ADD, 0),
        )
        drv.transmit(b"alive")
        assert con.text.endswith("alive")
        assert not con.ports[""].opened and con.waiting > 0

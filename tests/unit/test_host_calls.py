# SPDX-License-Identifier: Apache-2.0
"""Calls between guest and host: the wire, both directions, what is refused."""

import contextlib
import struct

import pytest
from hostile import QueueTraffic
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import virtio
from pyvmm.devices import HostCalls
from pyvmm.devices.host_calls import (
    CALL_MAX,
    WAITING_MAX,
    CallError,
    WireError,
    call,
    pack,
    parse_call,
    result,
    success,
    unpack,
)

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9)
)


@given(VALUES)
def test_values_come_back(value: object) -> None:
    data = pack(value)
    back, end = unpack(data, 0)
    assert back == value and type(back) is type(value) and end == len(data)
    for i in range(len(data)):
        with pytest.raises(WireError):
            unpack(data[:i], 0)


@given(st.text("abc", min_size=1, max_size=9), st.lists(VALUES, max_size=5))
def test_calls_come_back(name: str, args: list) -> None:
    assert parse_call(call(name, *args)) == (name, args)


@given(st.binary(max_size=30))
def test_any_bytes_are_a_call_or_none(data: bytes) -> None:
    for parse in (parse_call, result):
        with contextlib.suppress(WireError, CallError):
            parse(data)


@pytest.mark.parametrize(
    ("value", "error"),
    [(1 << 63, OverflowError), ([1], TypeError), ({}, TypeError)],
)
def test_what_has_no_type(value: object, error: type) -> None:
    with pytest.raises(error):
        pack(value)


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_names(name: str) -> None:
    with pytest.raises(ValueError, match="has not 1 to 255 bytes"):
        call(name)


# -- the guest calls -----------------------------------------------------------


def make() -> HostCalls:
    calls = HostCalls()

    @calls.export
    def add(a: int, b: int) -> int:
        return a + b

    @calls.export
    def shout(text: str, times: int) -> str:
        return text.upper() * times

    @calls.export
    def nothing() -> None:
        pass

    @calls.export
    def refuse() -> None:
        raise HostCalls.Error("not today")

    @calls.export
    def lie() -> int:
        return "no"  # type: ignore[return-value]

    return calls


def ask(drv, name: str, *args: object) -> object:
    return result(drv.calls(call(name, *args), reply=256))


def test_calls() -> None:
    with virtio.driver(make()) as drv:
        assert ask(drv, "add", 40, 2) == 42
        assert ask(drv, "shout", "hé", 2) == "HÉHÉ"
        assert ask(drv, "nothing") is None
        # Cut anywhere.
        data = call("add", -1, 1 << 40)
        for i in range(1, len(data)):
            answer = drv.calls(data[:i], data[i:], reply=[1, 2, 30])
            assert result(answer) == (1 << 40) - 1


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("sub", (1, 2), "the host has no function sub"),
        ("add", (1,), "add takes 2 arguments, not 1"),
        ("add", (1, 2, 3), "add takes 2 arguments, not 3"),
        ("add", (1, 2.0), "add: argument 2 is float, not int"),
        ("add", (True, 2), "add: argument 1 is bool, not int"),
        ("shout", (b"x", 2), "shout: argument 1 is bytes, not str"),
        ("refuse", (), "not today"),
    ],
)
def test_what_the_guest_is_refused(name, args, why) -> None:
    with (
        virtio.driver(make()) as drv,
        pytest.raises(CallError, match=f"^{why}$"),
    ):
        ask(drv, name, *args)


def test_a_result_of_the_wrong_type_is_the_authors() -> None:
    with (
        virtio.driver(make()) as drv,
        pytest.raises(TypeError, match="lie returned 'no', no int"),
    ):
        ask(drv, "lie")


def test_requests_that_make_no_sense() -> None:
    device = make()
    with virtio.driver(device, memory=32 << 20) as drv:
        for data in (b"\0", b"\5ab", b"\1\xff", b"\1az", b"\1ai\0", b"\0\0"):
            with pytest.raises(CallError):
                result(drv.calls(data, reply=256))
        with pytest.raises(CallError, match="a call has at most"):
            result(drv.calls(bytes(CALL_MAX + 1), reply=256))
        with pytest.raises(CallError, match="the result has"):
            result(drv.calls(call("shout", "x", 1000), reply=100))
        assert device.faults == 0
        assert drv.calls(call("nothing"), reply=1) == b""
        assert device.faults == 1
        assert ask(drv, "add", 1, 1) == 2


def test_functions_without_types() -> None:
    with virtio.driver(HostCalls(max, min)) as drv:
        assert ask(drv, "max", 1, 2.5) == 2.5
        assert ask(drv, "min", "a", "b") == "a"
        with pytest.raises(CallError, match="no function sum"):
            ask(drv, "sum")


def test_what_cannot_be_exported() -> None:
    def untyped(a):
        pass

    def lists(a: int) -> list:
        return [a]

    with pytest.raises(TypeError, match="untyped: a has no type of int"):
        HostCalls(untyped)
    with pytest.raises(TypeError, match="lists returns none of int"):
        HostCalls(lists)


# -- the host calls ------------------------------------------------------------


def numbered(data: bytes) -> tuple[int, str, list]:
    name, args = parse_call(data[4:])
    return int.from_bytes(data[:4], "little"), name, args


def test_calls_of_the_host() -> None:
    calls = HostCalls()
    with virtio.driver(calls) as drv:
        early = calls.guest.blink(3)  # before there is a room
        room = drv.invites.send(reply=64)
        number, name, args = numbered(room.wait())
        assert (name, args) == ("blink", [3]) and not early.done()
        answer = struct.pack("<I", number) + success("done")
        room = drv.invites.send(answer, reply=64)
        assert early.result(timeout=5) == "done" and not room.done
        second = calls.guest.again()
        number, name, args = numbered(room.wait())
        assert (name, args) == ("again", [])
        drv.invites.send(
            struct.pack("<I", number) + b"\1" + pack("tired"), reply=64
        )
        with pytest.raises(HostCalls.Error, match="tired"):
            second.result(timeout=5)
        # Answers to nothing, and answers that are none.
        drv.invites.send(struct.pack("<I", 77) + success(1), reply=64)
        third = calls.guest.third()
        drv.invites.send(b"\3\0\0\0\7", reply=64)
        with pytest.raises(HostCalls.Error, match="neither value nor error"):
            third.result(timeout=5)


def test_rooms_that_are_too_small() -> None:
    calls = HostCalls()
    with virtio.driver(calls) as drv:
        small = drv.invites.send(reply=8)
        with pytest.raises(HostCalls.Error, match="has no room for the call"):
            calls.guest.a_long_name(1).result(timeout=5)
        future = calls.guest.f()
        assert numbered(small.wait())[1:] == ("f", []) and not future.done()


def test_too_many_wait() -> None:
    calls = HostCalls()
    with virtio.driver(calls):
        waiting = [calls.guest.f() for _ in range(WAITING_MAX)]
        with pytest.raises(ValueError, match=f"{WAITING_MAX} calls wait"):
            calls.guest.f()
    for future in waiting:  # detached
        with pytest.raises(HostCalls.Error, match="was detached"):
            future.result(timeout=0)


def test_a_reset_ends_what_is_under_way() -> None:
    calls = HostCalls()
    with virtio.driver(calls) as drv:
        drv.invites.send(reply=64)
        asked, waits = calls.guest.asked(), calls.guest.waits()
        drv.reset()
        with pytest.raises(HostCalls.Error, match="has reset the device"):
            asked.result(timeout=5)
        assert not waits.done()  # it was not handed over
        drv.start()
        room = drv.invites.send(reply=64)
        assert numbered(room.wait())[1] == "waits"


class Traffic(QueueTraffic):
    payloads = st.binary(max_size=40) | st.builds(
        lambda name, value: call(name, value, value),
        st.sampled_from(["add", "shout", "x"]),
        VALUES,
    )

    def make(self) -> virtio.Device:
        calls = make()
        del calls.exports["lie"]
        return calls

    def check(self, drv: virtio.Driver) -> None:
        device = drv.device
        assert isinstance(device, HostCalls)
        if len(device._waiting) < 9:
            device.guest.ping(1, "two")

    def alive(self, drv: virtio.Driver) -> None:
        assert result(drv.calls(call("add", 1, 2), reply=64)) == 3


TestTraffic = Traffic.test_case()

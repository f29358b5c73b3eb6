# SPDX-License-Identifier: Apache-2.0
"""after() and every(), on a clock that the tests move."""

import pytest

import pyvmm
from pyvmm import testing
from pyvmm.timers import MOST, Timers


class Plain(pyvmm.Device):
    size = 4


@pytest.fixture
def bus():
    with testing.bus(Plain()) as bus:
        yield bus


def test_in_the_order_of_time(bus) -> None:
    seen: list[tuple[str, float]] = []

    def note(name):
        return lambda: seen.append((name, bus.now))

    bus.device.after(3, note("c"))
    bus.device.after(1, note("a"))
    bus.device.after(2, note("b"))
    bus.device.after(1, note("a2"))
    bus.advance(2.5)
    assert seen == [("a", 1), ("a2", 1), ("b", 2)]
    bus.advance(0.5)
    assert seen[3:] == [("c", 3)]
    bus.advance(100)
    assert len(seen) == 4 and bus.now == 103


def test_at_once_is_later_than_now(bus) -> None:
    seen: list[float] = []
    bus.device.after(0, lambda: seen.append(bus.now))
    assert not seen
    bus.advance(0)
    assert seen == [0]


def test_every(bus) -> None:
    seen: list[float] = []
    timer = bus.device.every(0.5, lambda: seen.append(bus.now))
    bus.advance(1.6)
    assert seen == [0.5, 1, 1.5] and timer.pending
    timer.cancel()
    timer.cancel()
    bus.advance(2)
    assert len(seen) == 3 and not timer.pending


def test_what_was_missed_is_left_out() -> None:
    device, seen, armed = Plain(), [], []
    now = [0]
    timers = Timers(lambda: now[0], armed.append)
    timers.add(device, 1e-6, lambda: seen.append(now[0]), True)
    assert armed == [1000]
    now[0] = 5500
    timers.run_due()
    assert (seen, armed[-1]) == ([5500], 6000)
    now[0] = 6000
    timers.run_due()
    assert (seen, armed[-1]) == ([5500, 6000], 7000)


def test_calls_may_start_and_cancel(bus) -> None:
    seen: list[str] = []
    device = bus.device

    def first():
        seen.append("first")
        device.after(1, lambda: seen.append("third"))
        second.cancel()

    device.after(1, first)
    second = device.after(1, lambda: seen.append("second"))
    bus.advance(1)
    assert seen == ["first"]
    bus.advance(1)
    assert seen == ["first", "third"]


def test_every_may_cancel_itself(bus) -> None:
    seen: list[int] = []

    def call():
        seen.append(1)
        if len(seen) == 3:
            timer.cancel()

    timer = bus.device.every(1, call)
    bus.advance(10)
    assert len(seen) == 3


def test_what_becomes_due_meanwhile_waits() -> None:
    """A call that starts itself anew does not keep run_due() for ever."""
    device, seen, armed = Plain(), [], []
    timers = Timers(lambda: 7, armed.append)

    def again():
        seen.append(1)
        timers.add(device, 0, again, False)

    timers.add(device, 0, again, False)
    timers.run_due()
    assert len(seen) == 1 and armed == [7, 7]


def test_an_exception_leaves_the_others_due(bus) -> None:
    seen: list[int] = []

    def bad():
        raise KeyError("oh")

    bus.device.after(1, bad)
    bus.device.after(1, lambda: seen.append(1))
    with pytest.raises(KeyError) as info:
        bus.advance(1)
    assert info.value.__notes__ == ["in a timer's call: <Timer Plain.bad done>"]
    bus.advance(0)
    assert seen == [1]


def test_a_guest_cannot_fill_memory(bus) -> None:
    device = bus.device
    timers = [device.after(1, print) for _ in range(MOST)]
    with pytest.raises(ValueError, match=f"Plain has {MOST} timers pending"):
        device.after(1, print)
    for timer in timers:
        timer.cancel()
    for _ in range(5 * MOST):
        device.after(1, print).cancel()
    assert len(device._services.timers._heap) < 2 * MOST
    device.after(1, print)


@pytest.mark.parametrize(
    ("seconds", "call", "error"),
    [
        (-1, print, ValueError),
        (float("nan"), print, ValueError),
        (float("inf"), print, ValueError),
        (1e10, print, ValueError),
        (1, None, TypeError),
        ("1", print, TypeError),
    ],
)
def test_what_is_refused(bus, seconds, call, error) -> None:
    with pytest.raises(error):
        bus.device.after(seconds, call)
    with pytest.raises(error):
        bus.device.every(seconds, call)
    with pytest.raises(ValueError, match="more than 0 seconds"):
        bus.device.every(0, print)
    assert not bus.device._services.timers._heap


def test_without_a_machine() -> None:
    with pytest.raises(ValueError, match="Plain has no clock yet: attach it"):
        Plain().after(1, print)


def test_detaching_cancels() -> None:
    with pyvmm.Machine() as m:
        one, other = m.attach(Plain()), m.attach(Plain())
        timers = one.after(100, print), other.every(100, print)
        m.detach(one)
        assert [timer.pending for timer in timers] == [False, True]
        with pytest.raises(ValueError, match="no clock"):
            one.after(1, print)
    assert not timers[1].pending
    with pytest.raises(ValueError, match="machine that is open"):
        other.after(1, print)


def test_the_repr(bus) -> None:
    def ring():
        pass

    timer = bus.device.after(1, ring)
    assert repr(timer) == "<Timer Plain.ring pending>"

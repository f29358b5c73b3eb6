# SPDX-License-Identifier: Apache-2.0
"""Machine.reload(): new code for a device, its state carried over."""

import importlib
import os
import sys

import pytest

import pyvmm
from pyvmm.reload import Watch

FIRST = """
import pyvmm

class Card(pyvmm.Device):
    size = 0x20
    irq = pyvmm.Irq()
    ports = pyvmm.Range(4, port=0x300)
    a = pyvmm.Reg(0x0, 4)
    b = pyvmm.Reg(0x4, 4, reset=5)
    p = pyvmm.Reg(0x0, 4, range=ports)

    def __init__(self):
        self.log = []

    @a.on_write
    def a_written(self, value):
        self.log.append(("first", value))

    def tick(self):
        self.log.append("first tick")
"""

SECOND = FIRST.replace("first", "second")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A module `card` whose text a test may change."""
    path = tmp_path / "card.py"
    path.write_text(FIRST)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("card", None)


@pytest.fixture
def card(file):
    return importlib.import_module("card").Card()


@pytest.fixture
def m(card):
    with pyvmm.Machine() as machine:
        machine.attach(card)
        yield machine


def test_new_code_old_state(m, card, file) -> None:
    card.write(0x0, 4, 7)
    card.ports.write(0, 4, 9)
    timer = card.after(100, card.tick)
    line, base = card.irq.line, card.base
    file.write_text(SECOND)
    m.reload(card)
    assert (card.a, card.b, card.p) == (7, 5, 9)
    card.write(0x0, 4, 8)
    timer.call()
    assert card.log == [("first", 7), ("second", 8), "second tick"]
    assert (card.irq.line, card.base, m.devices) == (line, base, [card])
    assert type(card) is sys.modules["card"].Card
    m.reload(card)


def test_registers_come_and_go(m, card, file) -> None:
    card.a, card.b = 0x1FF, 6
    text = FIRST.replace(
        "b = pyvmm.Reg(0x4, 4, reset=5)", "c = pyvmm.Reg(0x8, 2, reset=3)"
    )
    file.write_text(
        text.replace(
            "a = pyvmm.Reg(0x0, 4)", "a = pyvmm.Reg(0x0, 4, mask=0xFF)"
        )
    )
    m.reload(card)
    assert card.save() == {"a": 0xFF, "c": 3, "p": 0}
    assert card.read(0x8, 2) == 3 and card.read(0x4, 4) == 0


def test_ranges_get_the_new_methods(m, card, file) -> None:
    method = (
        "\n    @ports.on_read\n    def look(self, offset, size): return 4\n"
    )
    file.write_text(FIRST + method)
    m.reload(card)
    assert card.ports.read(0, 1) == 4


def test_restore_gets_what_save_gave(file) -> None:
    own = """
    def save(self):
        return {**super().save(), "log": self.log}

    def restore(self, state):
        self.log = [*state.pop("log"), "restored"]
        super().restore(state)
"""
    file.write_text(FIRST + own)
    card = importlib.import_module("card").Card()
    with pyvmm.Machine() as m:
        m.attach(card)
        card.b = 9
        file.write_text((SECOND + own).replace("b = ", "z = "))
        m.reload(card)
    assert card.log == ["restored"] and card.z == 5


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("class Card(:\n", SyntaxError, "invalid syntax"),
        ("import no_such_thing\n", ModuleNotFoundError, "no_such_thing"),
        ("Card = 5\n", ValueError, "has no device class Card any more"),
        (FIRST.replace("0x20", "0x40"), ValueError, "size 64 now, before 32"),
        (FIRST.replace("irq =", "line ="), ValueError, r"lines \['line'\] now"),
        (FIRST.replace("Range(4", "Range(8"), ValueError, "has ranges"),
        (FIRST.replace("Reg(0x4", "Reg(0x2"), ValueError, "overlaps"),
        (
            FIRST
            + "    def restore(self, state): self.x = 1; raise KeyError(3)",
            KeyError,
            "3",
        ),
    ],
)
def test_what_fails_changes_nothing(
    m, card, file, text, error, message
) -> None:
    module, cls = sys.modules["card"], type(card)
    card.a = 3
    file.write_text(text)
    with pytest.raises(error, match=message):
        m.reload(card)
    assert type(card) is cls and sys.modules["card"] is module
    assert card.save() == {"a": 3, "b": 5, "p": 0} and not hasattr(card, "x")
    card.write(0x0, 4, 8)
    assert card.log == [("first", 8)]
    file.write_text(SECOND)
    m.reload(card)
    assert card.a == 8


def test_what_cannot_be_reloaded(m, card) -> None:
    class Inner(pyvmm.Device):
        size = 4

    inner = m.attach(Inner())
    with pytest.raises(ValueError, match="has no device class"):
        m.reload(inner)
    Inner.__module__ = "__main__"
    with pytest.raises(ValueError, match="not in a file of its own"):
        m.reload(inner)
    with pytest.raises(TypeError, match="cannot be reloaded"):
        m.reload(m.attach(pyvmm.Rng()))
    m.detach(card)
    with pytest.raises(ValueError, match="not attached"):
        m.reload(card)


def test_watching(m, card, file) -> None:
    def change(text):
        stamp = file.stat().st_mtime_ns
        file.write_text(text)
        os.utime(file, ns=(stamp + 1, stamp + 1))

    watch = Watch(m)
    assert watch.look() == []
    change(SECOND)
    assert watch.look() == [(str(file), None)]
    assert watch.look() == []
    change("oh no")
    ((path, exc),) = watch.look()
    assert path == str(file) and isinstance(exc, SyntaxError)
    file.unlink()
    assert watch.look() == []


POSTED = """
import pyvmm

class Card(pyvmm.Device):
    size = 0x20
    data = pyvmm.Reg(0x0, 4, posted=100)
    bell = pyvmm.Doorbell(0x8, 4)
    plain = pyvmm.Reg(0xC, 4)

    def __init__(self):
        self.log = []

    @data.on_writes
    def got(self, values):
        self.log.append(("first", values.tolist()))

    @bell.on_ring
    def ring(self):
        self.log.append("first ring")
"""


@pytest.fixture
def posted(file):
    file.write_text(POSTED)
    return importlib.import_module("card").Card()


def test_what_is_posted_goes_to_the_old_code(posted, file) -> None:
    with pyvmm.Machine() as m:
        m.attach(posted)
        posted.write(0x0, 4, 1)
        posted.write(0x8, 4, 0)
        posted.write(0x0, 4, 2)
        posted.write(0x0, 4, 3)
        file.write_text(POSTED.replace("first", "second"))
        m.reload(posted)
        assert posted.data == 3
        posted.write(0x0, 4, 4)
        posted.write(0x8, 4, 0)
    assert posted.log == [
        ("first", [1]), "first ring", ("first", [2, 3]),
        ("second", [4]), "second ring",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "data = pyvmm.Reg(0x0, 4, posted=100)\n",
            "data = pyvmm.Reg(0x0, 4)\n",
        ),
        ("posted=100", "posted=2"),
        ("    data = pyvmm.Reg(0x0, 4, posted=100)\n", ""),
    ],
)
def test_posting_itself_changes(posted, file, old, new) -> None:
    with pyvmm.Machine() as m:
        m.attach(posted)
        posted.write(0x0, 4, 1)
        text = POSTED.replace(old, new).replace("first", "second")
        if "posted" not in text:
            text = text.replace("@data.on_writes", "")
        file.write_text(text)
        m.reload(posted)
        assert posted.log == [("first", [1])]
        for value in (5, 6, 7):
            posted.write(0x0, 4, value)
        if "posted" in text:
            assert posted.log[1:] == [("second", [5, 6])]
            assert posted._registers.waiting == 1
        else:
            assert posted._registers.waiting == 0
        # Registers are answered in C again.
        assert posted.read(0xC, 4) == 0


def test_a_delivery_that_raises_leaves_the_old_code(posted, file) -> None:
    with pyvmm.Machine() as m:
        m.attach(posted)
        posted.write(0x0, 4, 1)
        posted.log = None
        file.write_text(POSTED.replace("first", "second"))
        with pytest.raises(AttributeError):
            m.reload(posted)
        posted.log = []
        posted.write(0x0, 4, 2)
        posted.drain()
        assert posted.log == [("first", [2])]


def test_a_restore_that_fails_loses_nothing(posted, file) -> None:
    """It posts, then raises: the new code is told, the old one stays."""
    text = (
        POSTED.replace("first", "second")
        + """
    def restore(self, state):
        self.write(0x0, 4, 9)
        self.plain = 7
        raise ZeroDivisionError
"""
    )
    with pyvmm.Machine() as m:
        m.attach(posted)
        posted.plain = 6
        file.write_text(text)
        with pytest.raises(ZeroDivisionError):
            m.reload(posted)
        posted.write(0x0, 4, 2)
        assert posted.read(0xC, 4) == 6
        assert posted.log == [("second", [9]), ("first", [2])]

# SPDX-License-Identifier: Apache-2.0
"""The console of a running guest: output live, input, expect()."""

import io
import os
from pathlib import Path

import pytest

import pyvmm

TIMEOUT = 20


@pytest.fixture
def echo(root: Path):
    with pyvmm.Machine() as m:
        m.load(root / "build/guest/echo.elf")
        yield m


def test_a_dialogue(echo) -> None:
    assert echo.console.expect("> ", timeout=TIMEOUT)[0] == "> "
    echo.console.send("echo this\n")
    match = echo.console.expect(r"echo (\w+)\n> ", timeout=TIMEOUT)
    assert match[1] == "this"
    echo.console.send(b"bytes \xff\n")
    found = echo.console.expect(rb"bytes (.)\n", timeout=TIMEOUT)
    assert found[1] == b"\xff"
    echo.console.send("quit\n")
    assert echo.run(timeout=TIMEOUT).status == 0
    assert echo.console.text.endswith("> ")
    assert "bytes \ufffd\n" in echo.console.text


def test_output_that_is_there_already(echo) -> None:
    echo.console.send("one\ntwo\nquit\n")
    echo.run(timeout=TIMEOUT)
    assert echo.console.expect("one").start() >= 0
    assert echo.console.expect("two")
    with pytest.raises(pyvmm.Error):
        echo.console.expect("one", timeout=0.05)  # it was consumed


def test_unicode(echo) -> None:
    echo.console.send("grüße\n")
    assert echo.console.expect("gr(..)e", timeout=TIMEOUT)[1] == "üß"
    echo.console.expect("\n> ", timeout=TIMEOUT)


def test_what_does_not_come(echo, root: Path) -> None:
    with pytest.raises(pyvmm.GuestTimeout) as e:
        echo.console.expect("nobody", timeout=0.1)
    assert "'nobody' did not come" in str(e.value)
    assert str(e.value).endswith("the console ends with:\n> ")
    with pyvmm.Machine() as m:
        m.load(root / "build/guest/hello.elf")
        with pytest.raises(pyvmm.GuestError, match="exit with status 0") as e:
            m.console.expect("nobody", timeout=TIMEOUT)
        assert e.value.stop.status == 0
        assert "hello from a pyvmm guest" in str(e.value)
    with pytest.raises(ValueError, match="closed Machine"):
        m.console.expect("nobody")
    assert m.console.expect("hello")[0] == "hello"


def test_in_the_background(echo) -> None:
    echo.start()
    echo.console.expect("> ", timeout=TIMEOUT)
    echo.console.send("abc\n")
    echo.console.expect("abc\n> ", timeout=TIMEOUT)
    with pytest.raises(TimeoutError, match="'nobody' did not come within"):
        echo.console.expect("nobody", timeout=0.05)
    assert echo.running
    echo.console.send("quit\n")
    assert echo.wait(timeout=TIMEOUT).status == 0


def lines_of(root: Path, console: object) -> pyvmm.Machine:
    m = pyvmm.Machine(console=console)
    m.load(root / "build/guest/echo.elf")
    m.console.send("a\nb\nquit\n")
    m.run(timeout=TIMEOUT)
    m.close()
    return m


def test_output_that_comes_during_the_search(monkeypatch) -> None:
    with pyvmm.Machine() as m:
        m.load(
            c="#include <runtime.h>\nint main(void)"
            '{ puts("one"); getchar(); puts("two"); for (;;); }'
        )
        m.console.expect("one\n", timeout=TIMEOUT)
        m.start(timeout=TIMEOUT)
        search = m.console._search

        def slow() -> None:
            assert search() is None
            monkeypatch.undo()
            m.console.send("x")
            while not m.console.native.watch and "two\n" not in m.console.text:
                pass

        monkeypatch.setattr(m.console, "_search", slow)
        assert m.console.expect("two\n", timeout=TIMEOUT)
        m.pause()


def test_a_callable_gets_lines(root: Path) -> None:
    got: list[bytes] = []
    m = lines_of(root, got.append)
    assert got == [b"> a\n", b"> b\n", b"> "]
    assert m.console.bytes == b"".join(got)


def test_a_callable_that_fails_leaves_run(root: Path) -> None:
    def fail(line: bytes) -> None:
        raise RuntimeError(f"no {line!r}")

    with pytest.raises(RuntimeError, match="no b'> a"):
        lines_of(root, fail)


@pytest.mark.parametrize("file", [io.StringIO(), io.BytesIO()])
def test_files_in_memory(root: Path, file) -> None:
    m = lines_of(root, file)
    value = file.getvalue()
    assert value in (m.console.text, m.console.bytes)


def test_files_and_descriptors(root: Path, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as file:
        file.write("before ")
        m = lines_of(root, file)
    assert (tmp_path / "out").read_text() == "before " + m.console.text
    fd = os.open(tmp_path / "fd", os.O_CREAT | os.O_WRONLY)
    m = lines_of(root, fd)
    os.close(fd)
    assert (tmp_path / "fd").read_text() == m.console.text


def test_no_console(root: Path) -> None:
    with pyvmm.Machine(console=False) as m:
        with pytest.raises(ValueError, match="console=False"):
            m.console  # noqa: B018
        m.load(root / "build/guest/hello.elf")
        with pytest.raises(pyvmm.GuestError, match="port 0xe9"):
            m.run(timeout=TIMEOUT)


def test_an_interrupt_for_input(root: Path) -> None:
    with pyvmm.Machine(console_irq=True) as m:
        m.load(root / "build/guest/irq.elf", cmdline="irq=16")
        m.console.expect("ready", timeout=TIMEOUT)
        m.console.send("x")
        assert m.run(timeout=TIMEOUT).status == 0
        assert m.attach(pyvmm.Rng()).irq_line == 17

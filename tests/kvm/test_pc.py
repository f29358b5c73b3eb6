# SPDX-License-Identifier: Apache-2.0
"""The preset of a PC in front of guest/pc, and a UART as the console."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices import PC, Serial

pytestmark = pytest.mark.usefixtures("kvm")

TIMEOUT = 30
GUEST = "build/guest/pc.elf"


def boot(root: Path, words: str = "", **options) -> PC:
    m = PC(cmdline=words, **options)
    m.load(root / GUEST)
    return m


@pytest.mark.parametrize(
    ("words", "reason", "status"),
    [
        ("", "halt", None),
        ("end=exit", "exit", 33),
        ("end=reset", "reset", None),
        ("end=i8042", "reset", None),
        ("end=acpi", "reset", None),
        ("end=off", "poweroff", None),
    ],
)
def test_all_devices(root, words, reason, status) -> None:
    with boot(root, words) as m:
        stop = m.run(timeout=TIMEOUT)
        assert (stop.reason, stop.status) == (reason, status)
        assert m.console.text == m.serial.text
    assert m.console.text.endswith("done\n")
    assert "wrong" not in m.console.text
    assert m.console.text.count(": ok\n") == 14
    assert m.debug_console.text == "!"
    assert m.unclaimed == 3  # an address, a port, and the console's


def test_the_uart_is_the_console(root) -> None:
    """Output, matches and input, the last one by interrupts."""
    with boot(root, "echo press") as m:
        assert m.console.expect(r"serial: (\w+)\n", timeout=TIMEOUT)[1] == "ok"
        m.console.send("hello")
        m.console.expect("hello", timeout=TIMEOUT)
        m.console.send(b", PC.")
        m.console.expect("press\n", timeout=TIMEOUT)
        m.pm.press()
        assert m.run(timeout=TIMEOUT).reason == "halt"
    assert m.console.text.endswith("\nhello, PC.\npress\ndone\n")
    assert m.console.bytes == m.serial.output


def test_several_vcpus(root) -> None:
    with boot(root, cpus=2) as m:
        assert m.run(timeout=TIMEOUT).reason == "halt"
        assert "wrong" not in m.console.text


@pytest.mark.parametrize("kind", [io.StringIO, io.BytesIO])
def test_the_console_goes_on_to_a_file(root, kind) -> None:
    file = kind()
    with boot(root, console=file) as m:
        m.run(timeout=TIMEOUT)
    text = file.getvalue()
    assert m.console.text == (text if kind is io.StringIO else text.decode())


def test_without_a_console(root) -> None:
    with boot(root, console=False) as m:
        assert m.run(timeout=TIMEOUT).reason == "halt"
        assert m.serial.text.endswith("done\n")
        with pytest.raises(ValueError, match="console=False"):
            m.console  # noqa: B018


def test_what_is_unclaimed_if_strict(root) -> None:
    with (
        boot(root, strict=True) as m,
        pytest.raises(pyvmm.GuestError, match="unclaimed access"),
    ):
        m.run(timeout=TIMEOUT)


def test_what_it_looks_like() -> None:
    with PC("32M", cmdline="quiet") as m:
        lines = repr(m).splitlines()
        assert lines[0] == "<PC described, 1 vCPU, 33408 KiB"
        assert "  serial: port 0x3f8..0x3ff, line 4" in lines
        for device in (
            m.serial, m.keyboard, m.rtc, m.pci, m.pm, m.pm_timer, m.fw_cfg,
            m.debug_exit, m.debug_console,
        ):  # fmt: skip
            assert device in m.devices
        assert len(m.devices) == 9


def test_arguments_that_are_refused() -> None:
    with pytest.raises(ValueError, match="pit=True needs irqchip=True"):
        PC(irqchip=False)
    with pytest.raises(ValueError, match="console_irq is for the console"):
        PC(console_irq=True)
    with pytest.raises(TypeError, match="colour"):
        PC(colour="beige")


def test_snapshots_and_clones(root) -> None:
    """All of it goes back, and the devices of a clone are its attributes."""
    with boot(root, "echo end=off") as m:
        m.console.expect("nothing there: ok\n", timeout=TIMEOUT)
        snap = m.snapshot()
        for word in ("one.", "two."):
            m.restore(snap)
            m.console.send(word)
            assert m.run(timeout=TIMEOUT).reason == "poweroff"
            assert m.console.text.endswith(f"ok\n{word}\ndone\n")
        m.restore(snap)
        (copy,) = m.clone(1)
        with copy:
            assert isinstance(copy, PC) and copy.serial in copy.devices
            assert copy.serial is not m.serial
            copy.console.send("three.")
            assert copy.run(timeout=TIMEOUT).reason == "poweroff"
            assert copy.console.text.endswith("ok\nthree.\ndone\n")
            assert m.console.text.endswith("nothing there: ok\n")


class Line(pyvmm.Device):
    """The least that a console needs: bytes out, bytes in."""

    size, port = 1, 0x300
    on_output = None

    def __init__(self) -> None:
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data

    def read(self, offset: int, size: int) -> int:
        if not self.sent:
            return 0
        self.sent, first = self.sent[1:], self.sent[0]
        return first

    def write(self, offset: int, size: int, value: int) -> None:
        if self.on_output is not None:
            self.on_output(bytes((value,)))


def test_a_device_of_ones_own_is_the_console() -> None:
    lines: list[bytes] = []
    with pyvmm.Machine(console=lines.append) as m:
        m.attach(Line(), console=True)
        m.console.send("ab")
        copy = "mov dx, 0x300; in al, dx; out dx, al;"
        m.load(asm=f"{copy} {copy} mov al, 10; out dx, al; l: jmp l")
        m.console.expect("ab\n", timeout=TIMEOUT)
    assert lines == [b"ab\n"]


def test_devices_that_cannot_be_the_console() -> None:
    with pyvmm.Machine() as m:
        with pytest.raises(TypeError, match="Rng is no console: it needs send"):
            m.attach(pyvmm.Rng(), console=True)
        with pytest.raises(ValueError, match="Serial hands its output to"):
            m.attach(Serial(print), console=True)
        with pytest.raises(ValueError, match="overlaps the exit port"):
            m.attach(Line(), port=0xF4, console=True)
        assert m.devices == []
        serial = m.attach(Serial(), console=True)
        with pytest.raises(
            ValueError, match=r"the console is <Serial .*alread"
        ):
            m.attach(Line(), console=True)
        assert m.devices == [serial]
        m.attach(Line(), port=0xE9)  # is free now
    with (
        pyvmm.Machine(console=False) as m,
        pytest.raises(ValueError, match="console=False"),
    ):
        m.attach(Serial(), console=True)
    with pyvmm.Machine() as m:
        assert m.mem is not None
        with pytest.raises(ValueError, match="attach Serial earlier"):
            m.attach(Serial(), console=True)


def test_from_a_shell(root) -> None:
    """Input is a pipe that stays open until the guest has gone."""
    command = [
        sys.executable, "-m", "pyvmm", "run", GUEST, "--preset", "pc",
        "--cmdline", "echo end=off", "--timeout", str(TIMEOUT),
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdin.write("typed.")
        process.stdin.flush()
        output, complaints = process.stdout.read(), process.stderr.read()
        assert process.wait() == 0
    assert output.endswith("nothing there: ok\ntyped.\ndone\n")
    assert complaints == "pyvmm: poweroff\n"


def test_a_preset_that_is_none(root) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", GUEST, "--preset", "mac"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "invalid choice: 'mac'" in done.stderr

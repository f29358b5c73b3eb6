# SPDX-License-Identifier: Apache-2.0
"""Machine.reload() while the guest runs, --watch, names in traces."""

import importlib
import subprocess
import sys

import pytest

import pyvmm
from pyvmm import _vmm

pytestmark = pytest.mark.usefixtures("kvm")

TEXT = """
import pyvmm

class Card(pyvmm.Device):
    reg = pyvmm.Reg(0x0, 4)
    seen = 0

    @reg.on_read
    def look(self):
        self.seen += 1
        return {answer}
"""

# Until it reads 7.
GUEST = "next: mov eax, [0xd0000000]; cmp eax, 7; jne next; out 0xf4, al"


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "card_guest.py"
    path.write_text(TEXT.format(answer=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    sys.modules.pop("card_guest", None)


def test_between_two_exits(file) -> None:
    card = importlib.import_module("card_guest").Card()
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(asm=GUEST)
        m.start(timeout=30)
        while not card.seen and m.running:
            pass
        file.write_text("oh no")
        with pytest.raises(SyntaxError):
            m.reload(card)
        assert m.running
        file.write_text(TEXT.format(answer=7))
        m.reload(card)
        assert m.wait(30).status == 7


def test_from_a_method_of_the_device(file) -> None:
    own = """        self.machine.reload(self)
        return 1
"""
    text = TEXT.replace("        return {answer}\n", own)
    file.write_text(text)
    card = importlib.import_module("card_guest").Card()
    file.write_text(TEXT.format(answer=7))
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(asm=GUEST)
        assert m.run(timeout=30).status == 7
    assert card.seen == 2


def test_refresh_looks_methods_up_again(bare) -> None:
    class Device:
        def read(self, offset, size):
            return 1

        def write(self, offset, size, value):
            pass

    device = Device()
    pio = bare("hlt", ports={0x500: device}).vm.pio
    assert pio.read(0x500, 1) == 1
    device.read = lambda offset, size: 2
    assert pio.read(0x500, 1) == 1
    pio.refresh(0x500)
    assert pio.read(0x500, 1) == 2
    for base in (0x501, 0x700, _vmm.EXIT_PORT):
        with pytest.raises(ValueError, match="no range of a Python device"):
            pio.refresh(base)
    device.write = 5
    with pytest.raises(TypeError, match="has no method write"):
        pio.refresh(0x500)
    assert pio.read(0x500, 1) == 2


WATCHED = """
import pyvmm

class Card(pyvmm.Device):
    size = 4
    state = pyvmm.Reg(0x0, 4, reset=5)

    def attached(self):
        self.every(0.001, self.tick)

    def tick(self):
        if self.state == 5:
            with open(__file__, "w") as file:
                file.write(TEXT)
        self.state = 6

TEXT = '''
import pyvmm

class Card(pyvmm.Device):
    size = 4
    state = pyvmm.Reg(0x0, 4)

    def tick(self):
        self.machine.exit(self.state)
'''
"""


def test_the_command_line_watches(root, tmp_path) -> None:
    """The device changes its own file; what comes then ends the run."""
    path = tmp_path / "watched.py"
    path.write_text(WATCHED)
    guest = root / "build/guest/echo.elf"
    command = ["run", guest, "--device", path, "--watch", "--timeout", "30"]
    with subprocess.Popen(
        [sys.executable, "-m", "pyvmm", *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as process:
        assert process.stderr is not None
        complaints = process.stderr.read()
        status = process.wait()
    assert (status, complaints) == (6, f"pyvmm: reloaded {path}\n")


def test_traces_name_registers(capsys) -> None:
    from pyvmm.cli import print_exit

    class Named(pyvmm.Device):
        go = pyvmm.Reg(0x4, 4)
        more = pyvmm.Range(4, mmio=0xE000_0000)
        far = pyvmm.Reg(0x0, 4, range=more)

    with pyvmm.Machine() as m:
        m.attach(Named())
        m.load(asm="mov [0xd0000004], eax; mov al, [0xe0000001]; out 0xf4, al")
        m.trace = print_exit
        m.run(timeout=20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("(Named.go)")
    assert lines[1].endswith("(Named.far+1)")

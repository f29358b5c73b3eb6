# SPDX-License-Identifier: Apache-2.0
"""Machine.reload() while the guest runs, --watch, names in traces."""

import importlib
import subprocess
import sys
import threading

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


VIRTIO = """
from pyvmm import virtio

class Card(virtio.Device):
    device_id = 63
    queues = {"requests": 64}
    notify = "NOTIFY"
    count = seen = 0

    def on_requests(self, queue):
        for chain in queue:
            self.count += 1
            chain.write(chain.read())
            self.machine.exit(7)
"""
OLD = VIRTIO.replace("            self.machine.exit(7)\n", "")


@pytest.mark.parametrize(
    ("notify", "cpus"),
    [("inline", 1), ("inline", 2), ("thread", 1), ("asyncio", 1)],
)
def test_virtio_between_two_notifications(file, root, notify, cpus) -> None:
    """The guest sends on and on; what comes last is the new handler's."""
    file.write_text(OLD.replace("NOTIFY", notify))
    card = importlib.import_module("card_guest").Card()
    with pyvmm.Machine(cpus=cpus) as m:
        m.attach(card)
        m.load(
            root / "build/guest/request.elf",
            cmdline="send=abc n=100000000 quiet depth=4 mode=irq",
        )
        m.start(timeout=60)
        while card.count < 100 and m.running:
            pass
        file.write_text("oh no")
        with pytest.raises(SyntaxError):
            m.reload(card)
        file.write_text(VIRTIO.replace("NOTIFY", notify).replace("64", "32"))
        with pytest.raises(ValueError, match="has queues"):
            m.reload(card)
        before = card.count
        while card.count == before and m.running:
            pass
        file.write_text(VIRTIO.replace("NOTIFY", notify))
        m.reload(card)
        assert m.wait(60).status == 7
    assert card.count > 100 and card.faults == 0


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_virtio_again_and_again(file, root, notify) -> None:
    """Each answer is that of the class before or behind a change, whole."""
    text = OLD.replace("NOTIFY", notify).replace(
        "chain.write(chain.read())", "chain.write(b'ANSWER'); self.seen = N"
    )
    file.write_text(text.replace("ANSWER", "0").replace("N", "0"))
    card = importlib.import_module("card_guest").Card()
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(
            root / "build/guest/request.elf",
            cmdline="send=abc n=100000000 quiet depth=8 mode=poll",
        )
        m.start(timeout=60)
        for i in range(1, 31):
            file.write_text(text.replace("ANSWER", str(i)).replace("N", str(i)))
            m.reload(card)
            while card.seen != i and m.running:
                pass
        assert m.pause().reason == "pause"
        assert card.faults == 0


@pytest.mark.parametrize("notify", ["inline", "thread", "asyncio"])
def test_virtio_mended_after_its_exception(file, root, notify) -> None:
    """The run ends, the file is mended, and nothing of the guest is lost."""
    text = OLD.replace("NOTIFY", notify)
    file.write_text(text.replace("chain.read()", "1 // 0"))
    card = importlib.import_module("card_guest").Card()
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(
            root / "build/guest/request.elf", cmdline="send=abc n=2 mode=irq"
        )
        with pytest.raises(ZeroDivisionError):
            m.run(timeout=30)
        file.write_text(text)
        m.reload(card)
        card.process()
        assert m.run(timeout=30).status == 0
    assert m.console.text.count("3 bytes 616263\n") == 2


def test_a_method_with_super_in_the_middle_of_its_work(file) -> None:
    """A register device's, on the thread of the vCPU: it is waited for."""
    slow = """
import pyvmm

class Base(pyvmm.Device):
    size = 4

    def read(self, offset, size):
        return ANSWER

class Card(Base):
    def read(self, offset, size):
        self.begun.set()
        self.go.wait(30)
        return super().read(offset, size)
"""
    file.write_text(slow.replace("ANSWER", "1"))
    card = importlib.import_module("card_guest").Card()
    card.begun, card.go = threading.Event(), threading.Event()
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(asm=GUEST)
        m.start(timeout=30)
        assert card.begun.wait(30)
        file.write_text(slow.replace("ANSWER", "7"))
        reloading = threading.Thread(target=m.reload, args=(card,))
        reloading.start()
        while not m._wiring.timers.next_ns():
            pass  # until it waits for its turn
        card.go.set()
        assert m.wait(30).status == 7
        reloading.join(30)


POSTED = """
import pyvmm

class Card(pyvmm.Device):
    size = 0x20
    data = pyvmm.Reg(0x0, 4{posted})
    bell = pyvmm.Doorbell(0x8, 4)
    end = pyvmm.Reg(0xC, 4)

    @data.on_write{s}
    def got(self, values):
        {how}
        self.log += [({tag}, value) for value in values]

    @bell.on_ring
    def ring(self):
        self.rung.append({tag})

    @end.on_read
    def look(self):
        return self.over
"""


def posted_text(tag: int) -> str:
    """Now posted, now not: the guest must not notice, nor the device."""
    if tag % 3 == 2:
        how = "values = [values]"
        return POSTED.format(posted="", s="", how=how, tag=tag)
    posted = f", posted={10 + tag}"
    return POSTED.format(posted=posted, s="s", how="pass", tag=tag)


def test_no_posted_write_is_lost(tmp_path, monkeypatch) -> None:
    """Reloads from another thread, while the guest writes 1, 2, 3, ..."""
    path = tmp_path / "card_posted.py"
    path.write_text(posted_text(0))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    card = importlib.import_module("card_posted").Card()
    card.log, card.rung, card.over = [], [], 0
    with pyvmm.Machine() as m:
        m.attach(card)
        m.load(
            asm="xor ecx, ecx; next: inc ecx; mov [0xd0000000], ecx;"
            "test cl, 63; jnz next; mov [0xd0000008], ecx;"
            "cmp dword ptr [0xd000000c], 0; je next; out 0xf4, al"
        )
        m.start(timeout=60)
        for tag in range(1, 9):
            seen = len(card.log)
            while len(card.log) < seen + 500 and m.running:
                pass
            path.write_text(posted_text(tag))
            m.reload(card)
        card.over = 1
        m.wait(60)
    values = [value for _, value in card.log]
    assert values == [*range(1, len(values) + 1)]
    tags = [tag for tag, _ in card.log]
    assert tags == sorted(tags) and set(tags) >= {*range(8)}
    assert card.rung == sorted(card.rung)
    sys.modules.pop("card_posted", None)

# SPDX-License-Identifier: Apache-2.0
"""Mistakes of devices' authors: what run() raises, debuggers, Ctrl-C."""

import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import pytest
from smp import load_all

import pyvmm
from pyvmm import virtio

pytestmark = pytest.mark.usefixtures("kvm")

TIMEOUT = 30
PORT = 0x300
BASE = 0xD000_0000


class MistakeError(Exception):
    """What the methods below raise."""


class Card(pyvmm.Device):
    """Registers and methods, at an address and at ports, all mistaken."""

    size = 0x10
    plain = pyvmm.Reg(0x0, 4)
    getter = pyvmm.Reg(0x4, 4)
    setter = pyvmm.Reg(0x8, 2)
    ports = pyvmm.Range(8, port=PORT)
    answer: object = None

    @getter.on_read
    def read_getter(self) -> object:
        if self.answer is not None:
            return self.answer
        raise MistakeError

    @setter.on_write
    def write_setter(self, value: int) -> None:
        raise MistakeError(value)

    @ports.on_read
    def read_ports(self, offset: int, size: int) -> object:
        if self.answer is not None:
            return self.answer
        raise MistakeError(offset, size)

    @ports.on_write
    def write_ports(self, offset: int, size: int, value: int) -> None:
        raise MistakeError(offset, size, value)


class Free(pyvmm.Device):
    """read() and write() by hand."""

    size = 0x10
    answer: object = None

    def read(self, offset: int, size: int) -> object:  # type: ignore[override]
        if self.answer is not None:
            return self.answer
        raise MistakeError(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        raise MistakeError(offset)


def raised(
    device: object, asm: str, mode: str = "protected"
) -> tuple[BaseException, pyvmm.Machine]:
    """What a guest of one access and an exit gets out of run()."""
    with pyvmm.Machine() as m:
        m.attach(device)
        m.load(asm=f"access: {asm}; after: mov al, 9; out 0xf4, al", mode=mode)
        with pytest.raises((MistakeError, TypeError, ValueError)) as caught:
            m.run(timeout=TIMEOUT)
        # The machine runs on behind the access.
        assert m.run(timeout=TIMEOUT).status == 9
        return caught.value, m


# -- wrong answers -------------------------------------------------------------

PLACES = [
    (Card, f"mov eax, [{BASE:#x} + 4]", "Card", 4, 4),
    (Card, f"mov dx, {PORT + 3}; in al, dx", "Card.ports", 3, 1),
    (Card, f"mov dx, {PORT + 2}; in ax, dx", "Card.ports", 2, 2),
    (Free, f"mov ax, [{BASE:#x} + 6]", "Free", 6, 2),
]


@pytest.mark.parametrize(("cls", "asm", "name", "offset", "size"), PLACES)
@pytest.mark.parametrize("answer", ["x", 1.0, b"\1", [], object])
def test_a_wrong_type(cls, asm, name, offset, size, answer) -> None:
    device = cls()
    device.answer = answer
    exc, _ = raised(device, asm)
    assert isinstance(exc, TypeError)
    check_text(str(exc), name, offset, size, answer)


@pytest.mark.parametrize(("cls", "asm", "name", "offset", "size"), PLACES)
@pytest.mark.parametrize("answer", [-1, 1 << 32, 1 << 64, -(1 << 70)])
def test_a_value_out_of_range(cls, asm, name, offset, size, answer) -> None:
    device = cls()
    device.answer = answer
    exc, _ = raised(device, asm)
    assert isinstance(exc, ValueError)
    check_text(str(exc), name, offset, size, answer)


def check_text(text: str, name: str, offset: int, size: int, answer) -> None:
    """The device, the offset, the value, and what would have been right."""
    assert text.startswith((f"{name}.read({offset:#x}, {size}) ", f"{name}."))
    assert f"{offset:#x}" in text and repr(answer) in text
    assert f"0 to {(1 << 8 * size) - 1:#x} was due" in text


def test_answers_that_just_fit() -> None:
    device = Free()
    with pyvmm.Machine() as m:
        m.attach(device)
        m.load(asm=f"mov eax, [{BASE:#x}]; out 0xf4, eax", mode="protected")
        device.answer = (1 << 32) - 1
        assert m.run(timeout=TIMEOUT).status == (1 << 32) - 1


def test_no_value_at_all() -> None:
    class Forgetful(pyvmm.Device):
        size = 4

        def read(self, offset: int, size: int) -> int:
            pass  # and no return

    exc, _ = raised(Forgetful(), f"mov eax, [{BASE:#x}]")
    assert "Forgetful.read(0" in str(exc) and "returned None" in str(exc)


# -- exceptions ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["protected", "long", "user"])
@pytest.mark.parametrize(
    ("cls", "asm", "method", "what"),
    [
        (
            Card,
            "mov eax, [rbx + 4]",
            "read_getter",
            "read of 4 bytes at 0xd000",
        ),
        (Card, "mov [rbx + 8], ax", "write_setter", "write of 2 bytes at 0xd0"),
        (Card, "in al, dx", "read_ports", "read of 1 byte at port 0x300"),
        (Card, "out dx, ax", "write_ports", "write of 2 bytes at port 0x300 ="),
        (Free, "mov al, [rbx + 15]", "read", "read of 1 byte at 0xd000000f"),
        (Free, "mov [rbx], eax", "write", "write of 4 bytes at 0xd0000000 ="),
    ],
)
def test_traceback_and_note(cls, asm, method, what, mode) -> None:
    """Its own traceback, and a note that names access, rip and vCPU."""
    if mode == "protected":
        asm = asm.replace("rbx", "ebx")
    exc, m = raised(cls(), f"mov ebx, {BASE:#x}; mov dx, {PORT}; {asm}", mode)
    frames = traceback.extract_tb(exc.__traceback__)
    assert frames[-1].name == method and frames[-1].filename == __file__
    assert [frame for frame in frames if frame.name == "run"]
    (note,) = exc.__notes__
    assert note.startswith("in the guest's ") and what in note
    assert note.endswith(", vCPU 0")
    rip = int(note.split("rip ")[1].split(",")[0], 16)
    assert m.symbols["access"] <= rip <= m.symbols["after"]


def test_what_the_guest_got() -> None:
    """All ones; a write has happened as far as the guest knows."""
    with pyvmm.Machine() as m:
        m.attach(Free())
        m.load(asm=f"mov ax, [{BASE:#x}]; out 0xf4, ax")
        with pytest.raises(MistakeError):
            m.run(timeout=TIMEOUT)
        assert m.run(timeout=TIMEOUT).status == 0xFFFF


def test_exceptions_of_every_run() -> None:
    """Nothing is worn out: the same again, 50 times."""
    with pyvmm.Machine() as m:
        m.attach(Free())
        m.load(asm=f"again: mov al, [{BASE:#x}]; jmp again")
        for _ in range(50):
            with pytest.raises(MistakeError) as caught:
                m.run(timeout=TIMEOUT)
            assert len(caught.value.__notes__) == 1


# -- several vCPUs -------------------------------------------------------------


class Together(pyvmm.Device):
    """All vCPUs are inside its method before the first one goes on."""

    size, port = 4, PORT

    def __init__(self, count: int, act: Callable[[int], object]) -> None:
        self.barrier = threading.Barrier(count)
        self.act = act

    def write(self, offset: int, size: int, value: int) -> None:
        self.barrier.wait(TIMEOUT)
        self.act(value)


# Each vCPU writes its number, counts itself and goes on.
EACH = """
    mov dx, {port}; lock xadd [0x9000], al; out dx, al
    lock inc byte ptr [0x9004]
"""
EACH_FIRST = f"mov eax, 1; {EACH.format(port=PORT)}"
EACH_OTHER = f"mov al, 1; {EACH.format(port=PORT)} w: jmp w"
ALL_WENT_ON = """
    w: pause; cmp byte ptr [0x9004], {count}; jne w
    mov al, 5; out 0xf4, al
"""


@pytest.mark.parametrize("count", [2, 4])
def test_all_vcpus_raise_at_once(count) -> None:
    """None is lost: the first, and a note of each other with its own notes."""

    def act(value: int) -> None:
        raise MistakeError(f"by {value}")

    with pyvmm.Machine(cpus=count) as m:
        m.attach(Together(count, act))
        load_all(m, EACH_FIRST + ALL_WENT_ON.format(count=count), EACH_OTHER)
        with pytest.raises(MistakeError) as caught:
            m.run(timeout=TIMEOUT)
        text = "".join(traceback.format_exception(caught.value))
        for number in range(count):
            assert f"MistakeError: by {number}\n" in text
            assert f", vCPU {number}\n" in text
            assert (f"on the thread of vCPU {number}" in text) == (number > 0)
        assert text.count("at the same time:") == count - 1
        # The guest lost nothing either.
        assert m.run(timeout=TIMEOUT).status == 5


def test_a_vcpu_raises_while_a_devices_thread_does(root) -> None:
    both, inside = threading.Barrier(2), threading.Event()

    class Threaded(virtio.Device):
        device_id = 63
        queues = {"requests": 8}  # noqa: RUF012 - as users write it
        notify = "thread"

        def on_requests(self, queue: virtio.Queue) -> None:
            inside.set()
            both.wait(TIMEOUT)
            raise KeyError("of the thread")

    class Timed(pyvmm.Device):
        size = 1

        def attached(self) -> None:
            self.timer = self.every(0.001, self.due)

        def due(self) -> None:
            if inside.is_set():
                self.timer.cancel()
                both.wait(TIMEOUT)
                raise MistakeError("of the vCPU")

    with pyvmm.Machine() as m:
        m.attach(Threaded())
        m.attach(Timed())
        m.load(root / "build/guest/request.elf", cmdline="send=abc")
        text = ""
        both_said = "KeyError: 'of the thread'", "MistakeError: of the vCPU"
        for _ in range(2):  # at once, or one after the other
            if not all(said in text for said in both_said):
                with pytest.raises((KeyError, MistakeError)) as caught:
                    m.run(timeout=TIMEOUT)
                text += "".join(traceback.format_exception(caught.value))
        assert all(said in text for said in both_said)


def test_an_exception_and_an_unclaimed_access() -> None:
    """The second end is that of the next run."""

    def act(value: int) -> None:
        if value == 0:
            raise MistakeError

    with pyvmm.Machine(cpus=2) as m:
        m.attach(Together(2, act))
        # Whoever comes second, which is not at once then, has an end as well.
        load_all(m, f"mov al, 0; mov dx, {PORT}; out dx, al; w: jmp w",
                 f"mov al, 1; mov dx, {PORT}; out dx, al; out 0x55, al;"
                 "w: jmp w")  # fmt: skip
        ends: set[type] = set()
        for _ in range(2):
            with pytest.raises((MistakeError, pyvmm.GuestError)) as caught:
                m.run(timeout=TIMEOUT)
            ends.add(caught.type)
        assert ends == {MistakeError, pyvmm.GuestError}


# -- debuggers -----------------------------------------------------------------

DEBUGGED = """
import pyvmm
from pyvmm import virtio

class Card(pyvmm.Device):
    size, port = 1, 0x300

    def write(self, offset, size, value):
        twice = 2 * value
        {here}
        self.seen = twice

class Echo(virtio.Device):
    device_id = 63
    queues = {{"requests": 8}}
    notify = "thread"

    def on_requests(self, queue):
        for chain in queue:
            twice = 2 * len(chain.read())
            {here}
            chain.write(b"x" * twice)

m = pyvmm.Machine(cpus={cpus})
card = m.attach({cls}())
{load}
"""
ONE_CPU = 'm.load(asm="mov dx, 0x300; mov al, 21; out dx, al; out 0xf4, al")\n'
# vCPU 1 makes the access, in real mode.
TWO_CPUS = """
import sys
sys.path.insert(0, "tests/kvm")
from smp import load_all
load_all(m, "w: cmp byte ptr [0x9000], 0; je w; mov al, 21; out 0xf4, al",
    "mov dx, 0x300; mov al, 21; out dx, al; inc byte ptr [0x9000]; w: jmp w")
"""
REQUEST = 'm.load("build/guest/request.elf", cmdline="send=' + 21 * "a" + '")\n'
RUN = "stop = m.run(timeout=30)\nprint('status', stop.status)\n"


def debug(
    root,
    commands: str,
    *,
    here: str = "breakpoint()",
    cls: str = "Card",
    cpus: int = 1,
    load: str = ONE_CPU,
    run: str = RUN,
) -> str:
    """What a program prints whose debugger is given these commands."""
    text = DEBUGGED.format(here=here, cls=cls, cpus=cpus, load=load) + run
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=root,
        input=commands,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


PLACES_TO_STOP = pytest.mark.parametrize(
    "place",
    [
        {},
        {"cpus": 2, "load": TWO_CPUS},
        {"cls": "Echo", "load": REQUEST},
    ],
    ids=["run()'s thread", "another vCPU's", "the device's worker"],
)
HOOKS = pytest.mark.parametrize(
    "here", ["breakpoint()", "import pdb; pdb.set_trace()"]
)


@HOOKS
@PLACES_TO_STOP
def test_pdb_inside_a_device(root, place, here) -> None:
    """Look, change, go up and on: the guest goes on with what was changed."""
    output = debug(
        root,
        "p 'twice is', twice\nn\np 'next', twice\nup\ndown\n"
        "p self is self\nc\n",
        here=here,
        **place,
    )
    assert "('twice is', 42)" in output and "('next', 42)" in output
    status = 0 if place.get("cls") else 21
    assert output.endswith(f"status {status}\n"), output


@PLACES_TO_STOP
def test_quitting_pdb_leaves_run(root, place) -> None:
    """BdbQuit is an exception as any other, and the machine may run on.

    A worker that saw the request before its doorbell has that one again.
    """
    status = "None" if place.get("cls") else "21"
    again = (
        "import bdb\n"
        "try: m.run(timeout=30)\n"
        "except bdb.BdbQuit as exc: print('quit', exc.__notes__)\n"
        "try: status = m.run(timeout=1, check=False).status\n"
        "except bdb.BdbQuit: status = None\n"
        "print('status', status)\n"
    )
    output = debug(root, "q\n", run=again, **place)
    assert "quit [" in output, output
    assert output.endswith(f"status {status}\n"), output


def test_stepping_out_of_a_method(root) -> None:
    """The next line behind its end is that of the next method called."""
    twice = ONE_CPU.replace("out dx, al", "out dx, al; inc al; out dx, al", 1)
    output = debug(root, "n\nn\np 'again', value\nc\nc\n", load=twice)
    assert "('again', 22)" in output
    assert output.endswith("status 22\n"), output


def test_time_goes_on_in_the_debugger(root) -> None:
    """A time limit that passes meanwhile ends the run behind the access."""
    output = debug(
        root,
        "import time; time.sleep(0.2)\nc\n",
        run=(
            "try: m.run(timeout=0.1)\n"
            "except pyvmm.GuestTimeout as exc: print(exc.stop.reason)\n"
            "print('seen', card.seen, m.run(timeout=30).status)\n"
        ),
    )
    assert output.endswith("timeout\nseen 42 21\n"), output


def test_post_mortem(root) -> None:
    """What run() raised still has the method's frame."""
    output = debug(
        root,
        "p 'at', twice\nq\n",
        here="1 // 0",
        run=(
            "import pdb\n"
            "try: m.run(timeout=30)\n"
            "except ZeroDivisionError as exc: "
            "pdb.post_mortem(exc.__traceback__)\n"
            "print('status', m.run(timeout=30).status)\n"
        ),
    )
    assert "('at', 42)" in output
    assert output.endswith("status 21\n"), output


# -- Ctrl-C --------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """KeyboardInterrupt as programs have it; call it to press once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def press(inside: threading.Event, ctrl_c: Callable[[], None]):
    """A thread that presses once somebody is inside."""

    def target() -> None:
        assert inside.wait(TIMEOUT)
        ctrl_c()

    thread = threading.Thread(target=target)
    thread.start()
    return thread


class Endless(pyvmm.Device):
    """Its method never ends; a second call does nothing."""

    size, port = 1, PORT

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.calls: list[int] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(value)
        if len(self.calls) > 1:
            return
        self.inside.set()
        while True:
            pass


WRITE = f"mov dx, {PORT}; mov al, 6; out dx, al;"


def test_ctrl_c_in_a_method(ctrl_c) -> None:
    with pyvmm.Machine() as m:
        device = m.attach(Endless())
        m.load(asm=f"{WRITE} out dx, al; out 0xf4, al")
        presses = press(device.inside, ctrl_c)
        with pytest.raises(KeyboardInterrupt) as caught:
            m.run(timeout=TIMEOUT)
        presses.join()
        assert "write of 1 byte at port 0x300" in caught.value.__notes__[0]
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert frames[-1].name == "write"
        assert m.run(timeout=TIMEOUT).status == 6
        assert device.calls == [6, 6]


def test_ctrl_c_in_a_method_on_another_vcpu(ctrl_c) -> None:
    """It is interrupted as well, or run() could not return."""
    with pyvmm.Machine(cpus=2) as m:
        device = m.attach(Endless())
        load_all(m, "w: cmp byte ptr [0x9000], 0; je w; out 0xf4, al",
                 f"{WRITE} out dx, al; inc byte ptr [0x9000]; w: jmp w",
        )  # fmt: skip
        presses = press(device.inside, ctrl_c)
        with pytest.raises(KeyboardInterrupt) as caught:
            m.run(timeout=TIMEOUT)
        presses.join()
        text = "".join(traceback.format_exception(caught.value))
        assert "in write\n" in text and "on the thread of vCPU 1" in text
        assert m.run(timeout=TIMEOUT).reason == "exit"
        assert device.calls == [6, 6]


def test_ctrl_c_leaves_methods_time_to_end(ctrl_c) -> None:
    """One on another vCPU that ends by itself is left alone."""

    class Slow(Endless):
        def write(self, offset: int, size: int, value: int) -> None:
            self.inside.set()
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                pass
            self.calls.append(value)

    with pyvmm.Machine(cpus=2) as m:
        device = m.attach(Slow())
        load_all(m, "w: jmp w", f"{WRITE} w: jmp w")
        presses = press(device.inside, ctrl_c)
        with pytest.raises(KeyboardInterrupt) as caught:
            m.run(timeout=TIMEOUT)
        presses.join()
        assert device.calls == [6]
        text = "".join(traceback.format_exception(caught.value))
        assert "vCPU 1" not in text


def test_ctrl_c_while_a_devices_worker_is_busy(ctrl_c, root) -> None:
    """run() is left; the worker is the device's, and goes on."""

    class Busy(virtio.Device):
        device_id = 63
        queues = {"requests": 8}  # noqa: RUF012 - as users write it
        notify = "thread"

        def __init__(self) -> None:
            self.inside, self.go = threading.Event(), threading.Event()

        def on_requests(self, queue: virtio.Queue) -> None:
            for chain in queue:
                self.inside.set()
                self.go.wait(TIMEOUT)
                chain.write(chain.read())

    with pyvmm.Machine() as m:
        device = m.attach(Busy())
        m.load(root / "build/guest/request.elf", cmdline="send=abc mode=irq")
        presses = press(device.inside, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            m.run(timeout=TIMEOUT)
        presses.join()
        device.go.set()
        assert m.run(timeout=TIMEOUT).status == 0
    assert m.console.text.startswith("3 bytes 616263\n")


@pytest.mark.parametrize("cpus", [1, 2])
def test_ctrl_c_in_the_guest(ctrl_c, cpus) -> None:
    went = threading.Event()

    class Starts(pyvmm.Device):
        size, port = 1, PORT

        def write(self, offset: int, size: int, value: int) -> None:
            went.set()

    with pyvmm.Machine(cpus=cpus) as m:
        m.attach(Starts())
        m.load(asm=f"{WRITE} w: jmp w")
        presses = press(went, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            m.run(timeout=TIMEOUT)
        presses.join()
        assert m.run(timeout=0.01, check=False).reason == "timeout"


def test_ctrl_c_comes_before_a_mistake(ctrl_c) -> None:
    """Who goes on after exceptions of devices must not miss it."""

    def act(value: int) -> None:
        if value:
            raise MistakeError
        ctrl_c()
        while True:
            pass

    with pyvmm.Machine(cpus=2) as m:
        m.attach(Together(2, act))
        code = f"mov dx, {PORT}; mov al, {{}}; out dx, al; w: jmp w"
        load_all(m, code.format(0), code.format(1))
        with pytest.raises(KeyboardInterrupt) as caught:
            m.run(timeout=TIMEOUT)
        text = "".join(traceback.format_exception(caught.value))
        assert "MistakeError" in text


def test_throw_reaches_methods_only(bare) -> None:
    """What comes while no method is at work is forgotten with the run."""
    machine = bare("w: jmp w")
    assert machine.cpu.throw(KeyboardInterrupt) is False
    with pytest.raises(TypeError, match="no class of exceptions"):
        machine.cpu.throw(KeyboardInterrupt())
    thread = threading.Thread(target=machine.run)
    thread.start()
    while not machine.cpu.running:
        pass
    assert machine.cpu.throw(KeyboardInterrupt) is True
    machine.cpu.kick()
    thread.join(TIMEOUT)
    assert not thread.is_alive()

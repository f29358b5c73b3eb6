# SPDX-License-Identifier: Apache-2.0
"""Machines that run guests: the API as a user writes it."""

import gc
import hashlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyvmm
from pyvmm import _vmm, boot

TIMEOUT = 20


@pytest.fixture
def guest(root: Path):
    return lambda name: root / f"build/guest/{name}.elf"


class Adder(pyvmm.Device):
    """Adds what is written to 0; 4 reads the sum."""

    size = 8
    sum = 0

    def read(self, offset: int, size: int) -> int:
        return self.sum

    def write(self, offset: int, size: int, value: int) -> None:
        self.sum += value


def test_hello(guest) -> None:
    with pyvmm.Machine(memory="10M") as m:
        m.load(guest("hello"))
        stop = m.run(timeout=TIMEOUT)
    assert (stop.reason, stop.status) == ("exit", 0)
    assert m.console.text == "hello from a pyvmm guest\n"
    assert m.closed and "Machine closed" in repr(m)


@pytest.mark.parametrize("ring", ["", "-ring3"])
@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_rng(guest, ring: str, notify: str) -> None:
    with pyvmm.Machine() as m:
        m.load(guest("rng" + ring), cmdline="bytes=100")
        rng = m.attach(pyvmm.Rng(hashlib.shake_128(b"seed"), notify=notify))
        assert m.run(timeout=TIMEOUT).status == 0
    xof = hashlib.shake_128(b"seed")
    xof.update(bytes(8))
    words = m.console.text.partition("\n")[2]
    assert bytes.fromhex(words) == xof.digest(100)
    assert "line 16" in m.console.text and rng.base == 0xD000_0000


def test_several_rngs_and_interrupts(guest) -> None:
    with pyvmm.Machine() as m:
        m.load(guest("rng"), cmdline="mode=irq bytes=32")
        m.attach(pyvmm.Rng(io.BytesIO(bytes(range(32)))), irq=20)
        m.attach(pyvmm.Rng(rate=1000))
        m.attach(pyvmm.Rng())
        assert m.run(timeout=TIMEOUT).status == 0
    assert "line 20, irq: 32 bytes" in m.console.text
    assert "1c 1d 1e 1f" in m.console.text


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_an_exception_of_a_source_leaves_run(guest, notify: str) -> None:
    def source(size: int) -> bytes:
        raise KeyError("no bytes")

    with pyvmm.Machine() as m:
        m.load(guest("rng"))
        m.attach(pyvmm.Rng(source, notify=notify))
        with pytest.raises(KeyError, match="no bytes") as e:
            m.run(timeout=TIMEOUT)
        assert "rng" in e.value.__notes__[0] or "write" in e.value.__notes__[0]


def test_a_python_device_and_what_goes_on_after_it_fails() -> None:
    class Picky(Adder):
        def write(self, offset: int, size: int, value: int) -> None:
            if value == 3:
                raise LookupError("three")
            super().write(offset, size, value)

    with pyvmm.Machine() as m:
        adder = m.attach(Picky())
        m.load(
            asm="mov edi, 0xd0000000; mov dword ptr [edi], 5;"
            "mov dword ptr [edi], 3; mov dword ptr [edi], 7;"
            "mov eax, [edi + 4]; out 0xf4, eax"
        )
        with pytest.raises(LookupError, match="three") as e:
            m.run(timeout=TIMEOUT)
        assert "write of 4 bytes at 0xd0000000" in e.value.__notes__[0]
        assert m.run(timeout=TIMEOUT).status == 12
        assert adder.sum == 12


def test_a_device_on_a_port_attached_while_stopped() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="mov eax, 1; out 0xf4, eax; in eax, 0x40; out 0xf4, eax")
        assert m.run(timeout=TIMEOUT).status == 1
        adder = m.attach(Adder(), port=0x40)
        adder.sum = 99
        assert m.run(timeout=TIMEOUT).status == 99
        m.detach(adder)


def test_interrupts_of_a_python_device(guest) -> None:
    class Bell(pyvmm.Device):
        size = 4
        irq = pyvmm.Irq()

    with pyvmm.Machine() as m:
        bell = m.attach(Bell())
        m.load(guest("irq"), cmdline=f"irq={bell.irq.line} count=3")
        m.console.expect("ready\n", timeout=TIMEOUT)
        for i in range(1, 4):
            bell.irq.pulse()
            m.console.expect(f"irq 16: {i}\n", timeout=TIMEOUT)
        assert m.run(timeout=TIMEOUT).status == 0


def test_memmap_is_what_was_described(guest) -> None:
    with pyvmm.Machine("3G", cmdline="hi") as m:
        m.add_memory(0, "640K")
        m.add_memory(0xE000_0000, data=b"rom", readonly=True)
        m.add_memory(5 << 30, "1M")
        m.attach(Adder(), name="sum")
        m.attach(pyvmm.Rng())
        m.load(guest("memmap"), initrd=b"init")
        m.run(timeout=TIMEOUT)
    text = m.console.text
    assert "ioapic 0xfec00000" in text
    assert "memory 0x00000000 0x000a0000 rw free" in text
    assert "memory 0xe0000000 0x00001000 ro free" in text
    assert "device 0xd0000000 line 0\n" in text
    assert "device 0xd0001000 line 16 virtio 4" in text
    assert 'cmdline "hi initrd@0x' in text
    assert 'sum@0xd0000000+0x8:0"' in text


def test_without_an_irqchip(guest) -> None:
    with pyvmm.Machine(irqchip=False) as m:
        m.load(guest("memmap"))
        m.run(timeout=TIMEOUT)
        assert "ioapic 0x00000000" in m.console.text


def test_with_a_pit(guest) -> None:
    with pyvmm.Machine(pit=True) as m:
        m.load(guest("hello"))
        assert m.run(timeout=TIMEOUT).status == 0


def test_a_boot_of_ones_own() -> None:
    class Mine(boot.Boot):
        def start(self, platform: boot.Platform) -> boot.Start:
            code = b"\xe6\xf4"  # out 0xf4, al
            return boot.Start(
                "protected", {"rip": 0x20_0000, "rax": 42}, [(0x20_0000, code)]
            )

    with pyvmm.Machine(boot=Mine()) as m:
        assert m.run(timeout=TIMEOUT).status == 42


def test_the_bare_boot_knows_nothing() -> None:
    for mode in ("protected", "long", "user"):
        with pyvmm.Machine(boot=pyvmm.Boot()) as m:
            m.load(asm="add eax, ebx; add eax, ecx; out 0xf4, eax", mode=mode)
            assert m.run(timeout=TIMEOUT).status == 0


def test_looking_and_loading_before_the_first_run(guest) -> None:
    with pyvmm.Machine() as m:
        m.load(guest("memmap"))
        assert m.mem[m.symbols["main"]] != 0
        assert m.cpu.rip == m._image.entry
        m.load(guest("hello"))  # replaces it
        m.attach(Adder())
        assert m.run(timeout=TIMEOUT).status == 0
        assert m.console.text.startswith("hello")
        with pytest.raises(RuntimeError, match="has run: make another"):
            m.load(guest("hello"))
        with pytest.raises(ValueError):
            m.add_memory(0, 4096)


def test_the_background(guest) -> None:
    with pyvmm.Machine() as m:
        m.load(guest("faults"), cmdline="spin")
        with pytest.raises(RuntimeError, match="start"):
            m.pause()
        for _ in range(3):
            m.start()
            assert m.running
            with pytest.raises(RuntimeError, match="running already"):
                m.run()
            assert m.pause().reason == "pause"
        m.start(timeout=0.01)
        with pytest.raises(pyvmm.GuestTimeout):
            m.wait(timeout=TIMEOUT)
        m.start()
        with pytest.raises(TimeoutError, match=r"still runs after 0.01 s"):
            m.wait(timeout=0.01)


def test_the_background_keeps_what_ended_it(guest) -> None:
    with pyvmm.Machine() as m:
        m.load(guest("hello"))
        m.start()
        assert m.wait(timeout=TIMEOUT).status == 0
    with pyvmm.Machine() as m:
        m.load(guest("faults"), cmdline="triple")
        m.start()
        with pytest.raises(pyvmm.GuestError, match="triple fault"):
            m.wait(timeout=TIMEOUT)


def test_close_from_another_thread_ends_run(guest) -> None:
    m = pyvmm.Machine()
    m.load(guest("echo"))
    m.console.expect("> ", timeout=TIMEOUT)
    closer_started = threading.Event()

    def late() -> None:
        closer_started.wait()
        m.close()

    closer = threading.Thread(target=late)
    closer.start()
    m.trace = lambda exit: closer_started.set()
    with pytest.raises(pyvmm.Error, match="closed while it ran"):
        m.run(timeout=TIMEOUT)
    closer.join()
    assert m.closed
    with pytest.raises(ValueError, match="closed Machine"):
        m.run()


def test_close_inside_a_device() -> None:
    class Suicidal(Adder):
        def write(self, offset: int, size: int, value: int) -> None:
            assert self.machine is not None
            self.machine.close()

    m = pyvmm.Machine()
    m.attach(Suicidal(), port=0x40)
    m.load(asm="out 0x40, al; 1: jmp 1b")
    with pytest.raises(pyvmm.Error, match="closed while it ran"):
        m.run(timeout=TIMEOUT)
    assert m.closed


def test_two_cpus(guest) -> None:
    # vCPU 0 wakes vCPU 1 by INIT and SIPI; that one counts and says so.
    start_ap = """
        mov edi, 0xfee00000
        mov dword ptr [edi + 0xf0], 0x1ff
        mov dword ptr [edi + 0x310], 0x01000000
        mov dword ptr [edi + 0x300], 0x4500
        mov dword ptr [edi + 0x310], 0x01000000
        mov dword ptr [edi + 0x300], 0x4608
    1:  pause
        cmp dword ptr [0x9000], 0
        je 1b
        mov eax, [0x9000]
        out 0xf4, eax
        cli; hlt
    """
    with pyvmm.Machine(cpus=2) as m:
        m.add_memory(0, "64K")
        m.load(asm=start_ap)
        # 16 bits at 0x8000: mov word ptr [0x9000], 33; cli; hlt
        m.mem.write(0x8000, bytes.fromhex("c70600902100 fa f4"))
        stop = m.run(timeout=TIMEOUT)
        assert stop.status == 33 and stop.cpu == 0
        assert len(m.cpus) == 2
        assert m.run(timeout=TIMEOUT).reason == "halt"


def test_the_others_stop_when_one_ends_the_run(guest) -> None:
    with pyvmm.Machine(cpus=4) as m:
        m.load(guest("faults"), cmdline="spin")
        stop = m.run(timeout=0.1, check=False)
        assert stop.reason == "timeout"
        assert not any(cpu.vcpu.running for cpu in m.cpus)


def test_nothing_is_left_behind(guest) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pyvmm.Machine(cpus=2) as m:
            m.load(guest("rng"))
            m.attach(pyvmm.Rng(notify="thread"))
            m.run(timeout=TIMEOUT)
    m = pyvmm.Machine()
    m.load(guest("hello"))
    m.attach(pyvmm.Rng(notify="thread"))
    m.run(timeout=TIMEOUT)
    del m  # without close
    gc.collect()
    _vmm.reap()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("pyvmm ")]
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # /dev/kvm


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )


SPIN = (
    "import pyvmm, signal, os\n"
    "m = pyvmm.Machine(cpus={cpus})\n"
    "m.load(raw=bytes.fromhex('ebfe'))\n"
)


@pytest.mark.parametrize("cpus", [1, 2])
def test_exit_of_the_interpreter_while_a_guest_spins(cpus: int) -> None:
    done = python(SPIN.format(cpus=cpus) + "m.start()\nprint('bye')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


@pytest.mark.parametrize("cpus", [1, 2])
def test_ctrl_c(cpus: int) -> None:
    done = python(
        SPIN.format(cpus=cpus) + "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "try: m.run(timeout=30)\n"
        "except KeyboardInterrupt: print('interrupted', hex(m.cpu.rip))\n"
        "print(m.run(timeout=0.01, check=False).reason)\n"
    )
    assert done.stdout == "interrupted 0x100000\ntimeout\n", done.stderr


def test_a_forked_child_is_told() -> None:
    done = python(
        SPIN.format(cpus=1) + "m.run(timeout=0.01, check=False)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try: m.run(timeout=1)\n"
        "    except Exception as e: print(type(e).__name__, e, flush=True)\n"
        "    n = pyvmm.Machine(); n.load(raw=bytes.fromhex('e6f4'))\n"
        "    print(n.run(timeout=5).reason, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    assert "fork" in done.stdout and "exit" in done.stdout, done
    assert done.stdout.endswith("\n0\n")


def test_a_device_ends_the_run() -> None:
    class Ender(Adder):
        def write(self, offset: int, size: int, value: int) -> None:
            assert self.machine is not None
            with pytest.raises(RuntimeError, match="exit\\(\\) ends it"):
                self.machine.pause()
            with pytest.raises(RuntimeError, match="cannot run its machine"):
                self.machine.run()
            self.machine.exit(value + 1)

    with pyvmm.Machine() as m:
        m.attach(Ender(), port=0x80)
        m.load(asm="mov al, 8; out 0x80, al; mov al, 2; out 0xf4, al")
        with pytest.raises(RuntimeError, match="does not run"):
            m.exit()
        stop = m.run(timeout=TIMEOUT)
        assert (stop.reason, stop.status) == ("exit", 9)
        assert m.run(timeout=TIMEOUT).status == 2
        with pytest.raises(ValueError, match="status -1 is outside"):
            m.exit(-1)


def test_another_thread_ends_the_run() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="x: jmp x")
        m.start()
        m.exit(3)
        assert m.wait(TIMEOUT).status == 3


def test_nothing_is_loaded() -> None:
    with pyvmm.Machine() as m:
        assert m.cpu.rip == 0xFFF0
        with pytest.raises(ValueError, match="nothing is loaded"):
            m.run(timeout=TIMEOUT)
        m.load(asm="mov al, 1; out 0xf4, al")
        assert m.run(timeout=TIMEOUT).status == 1


def test_a_halt_without_an_irqchip_says_so() -> None:
    with pyvmm.Machine(irqchip=False) as m:
        m.load(asm="sti; hlt")
        assert "without an irqchip" in m.run(timeout=TIMEOUT).message


def test_a_report_shows_what_is_before_a_write() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="mov [0xd0000000], al")
        with pytest.raises(pyvmm.GuestError, match="a2 00 00 00 d0"):
            m.run(timeout=TIMEOUT)


def test_ctrl_c_says_where_the_guest_was() -> None:
    timer = threading.Timer(0.05, os.kill, (os.getpid(), 2))

    class Entered(pyvmm.Device):
        """The guest runs: from here on Ctrl-C finds it there."""

        size, port = 1, 0x80

        def write(self, offset: int, size: int, value: int) -> None:
            timer.start()

    with pyvmm.Machine() as m:
        m.attach(Entered())
        m.load(asm="out 0x80, al; x: jmp x")
        with pytest.raises(KeyboardInterrupt) as caught:
            m.run(timeout=TIMEOUT)
        timer.join()
    assert caught.value.__notes__ == ["the guest was at rip 0x100002, vCPU 0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mmio": "0xd0000000"}, "mmio is an int, not str"),
        ({"port": 1.5}, "port is an int, not float"),
        ({"irq": "16"}, "irq is an int, not str"),
    ],
)
def test_places_are_ints(words, message: str) -> None:
    with pyvmm.Machine() as m, pytest.raises(TypeError, match=message):
        m.attach(Adder(), **words)
    with pyvmm.Machine() as m, pytest.raises(TypeError, match="not str"):
        m.load(asm="hlt")
        m.run(timeout="5")  # type: ignore[arg-type]

# SPDX-License-Identifier: Apache-2.0
"""How runs end: what returns, what raises, and what the report says."""

import pickle
from pathlib import Path

import pytest

import pyvmm
from pyvmm import debug

TIMEOUT = 20


@pytest.fixture
def faults(root: Path):
    machines = []

    def make(word: str, **options) -> pyvmm.Machine:
        m = pyvmm.Machine(**options)
        machines.append(m)
        m.load(root / "build/guest/faults.elf", cmdline=word)
        return m

    yield make
    for m in machines:
        m.close()


@pytest.mark.parametrize(
    ("word", "reason", "words"),
    [
        ("triple", "triple fault", ["triple fault\n", "at triple+", "0f 0b"]),
        (
            "unclaimed",
            "unclaimed access",
            ["read of 4 bytes at 0xd0000000, where no device", "unclaimed+"],
        ),
        (
            "unclaimed-write",
            "unclaimed access",
            ["write of 4 bytes 0x12345678 to 0xd0000000", "78 56 34 12"],
        ),
        ("port", "unclaimed access", ["write of 1 byte 0x5a to port 0x1234"]),
    ],
)
def test_what_nobody_means(faults, word, reason, words) -> None:
    m = faults(word)
    with pytest.raises(pyvmm.GuestError) as e:
        m.run(timeout=TIMEOUT)
    stop = e.value.stop
    assert stop.reason == reason and stop.crashed
    assert stop.where.symbol == word.replace("-", "_")
    text = str(e.value)
    for part in (*words, "rflags", "on vCPU 0", "last exits"):
        assert part in text
    assert str(pickle.loads(pickle.dumps(e.value))) == text
    assert pickle.loads(pickle.dumps(stop)).report == stop.report


def test_check_false_returns_it(faults) -> None:
    stop = faults("triple").run(timeout=TIMEOUT, check=False)
    assert stop.reason == "triple fault" and stop.status is None
    assert repr(stop).startswith("<Stop triple fault at triple+")


def test_emulation_failures_are_decoded(faults) -> None:
    m = faults("emul")
    stop = m.run(timeout=TIMEOUT, check=False)
    if stop.reason == "exit":  # this host runs it
        assert "fwait works" in m.console.text
        return
    assert stop.reason == "emulation failure" and stop.insn[0] == 0x9B
    assert "cannot emulate the instruction" in stop.message
    assert stop.where.symbol == "emul"


def test_read_only_memory(faults) -> None:
    m = faults("readonly ro=0x4000000")
    m.add_memory(0x400_0000, data=b"\x11\x22\x33\x44", readonly=True)
    with pytest.raises(pyvmm.GuestError, match="is read-only memory"):
        m.run(timeout=TIMEOUT)


def test_not_strict(faults) -> None:
    m = faults("unclaimed", strict=False)
    assert m.run(timeout=TIMEOUT).status == 0
    assert m.console.text == "read 0xffffffff\n" and m.unclaimed == 1
    m.close()
    assert m.unclaimed == 1


def test_halt(faults) -> None:
    m = faults("halt")
    assert m.run(timeout=TIMEOUT).reason == "halt"
    assert m.run(timeout=TIMEOUT).reason == "halt"


@pytest.mark.parametrize("irqchip", [True, False])
def test_halt_that_nothing_can_wake(irqchip: bool) -> None:
    with pyvmm.Machine(irqchip=irqchip) as m:
        m.load(asm="sti; hlt")
        assert m.run(timeout=TIMEOUT).reason == "halt"


def test_timeout(faults) -> None:
    m = faults("spin")
    with pytest.raises(pyvmm.GuestTimeout, match=r"still running after 0.05 s"):
        m.run(timeout=0.05)
    stop = m.run(timeout=0, check=False)
    assert stop.reason == "timeout" and stop.where.symbol == "spin"
    with pytest.raises(ValueError):
        m.run(timeout=-1)


def test_a_panic_is_an_exit(faults) -> None:
    m = faults("divide")
    assert m.run(timeout=TIMEOUT).status == 255
    assert "divide error" in m.console.text


def test_exit_statuses_of_all_sizes() -> None:
    with pyvmm.Machine() as m:
        m.load(
            asm="mov eax, 0x12345678; out 0xf4, al; out 0xf4, ax; out 0xf4, eax"
        )
        statuses = [m.run(timeout=TIMEOUT).status for _ in range(3)]
        assert statuses == [0x78, 0x5678, 0x12345678]


# -- breakpoints and steps -----------------------------------------------------


def cannot(feature: str, mode: str = "protected") -> bool:
    """Whether this host cannot do that; then the refusal has been tested."""
    if feature in debug.trial(mode):
        return False
    with pyvmm.Machine() as m:
        m.load(asm="nop; nop; out 0xf4, al", mode=mode)
        with pytest.raises(pyvmm.Unsupported, match="this host has no"):
            if feature == "step":
                m.step()
            elif feature == "watch":
                m.watchpoint(0x10_0000)
                m.run(timeout=TIMEOUT)
            else:
                m.run(until=0x10_0001, timeout=TIMEOUT)
        assert m.cpu.rip == 0x10_0000
    return True


CODE = """
_start: xor eax, eax
again:  inc eax
        call bump
        cmp eax, 6
        jb again
        out 0xf4, eax
bump:   inc eax
done:   ret
"""


def test_until() -> None:
    if cannot("break"):
        return
    with pyvmm.Machine() as m:
        m.load(asm=CODE)
        stop = m.run(until="bump", timeout=TIMEOUT)
        assert stop.reason == "until" and stop.where.symbol == "bump"
        assert m.cpu.eax == 1
        assert m.run(until="bump", timeout=TIMEOUT).reason == "until"
        assert m.cpu.eax == 3
        stop = m.run(until=["again", "bump+1"], timeout=TIMEOUT)
        assert m.symbols["done"] == stop.rip
        assert m.run(timeout=TIMEOUT).status == 6


def test_until_where_it_stands() -> None:
    if cannot("break"):
        return
    with pyvmm.Machine() as m:
        m.load(asm=CODE)
        assert m.run(until="_start", timeout=TIMEOUT).rip == 0x10_0000
        assert m.run(until="again", timeout=TIMEOUT).reason == "until"


def test_breakpoints() -> None:
    if cannot("break"):
        return
    with pyvmm.Machine() as m:
        m.load(asm=CODE)
        point = m.breakpoint("bump")
        for hits in (1, 2, 3):
            stop = m.run(timeout=TIMEOUT)
            assert stop.reason == "break" and stop.point is point
            assert point.hits == hits
        assert "breakpoint" in repr(point) and "bump" in repr(point)
        point.remove()
        point.remove()
        assert m.run(timeout=TIMEOUT).status == 6 and not m.breakpoints


def test_step() -> None:
    if cannot("step"):
        return
    with pyvmm.Machine() as m:
        m.load(asm=CODE)
        assert m.step().rip == m.symbols["again"]
        stop = m.step(2)
        assert (stop.reason, stop.where.symbol) == ("step", "bump")
        assert m.step(1000).status == 6
        with pytest.raises(ValueError):
            m.step(0)


def test_step_over_a_device() -> None:
    if cannot("step"):
        return

    class Thirty(pyvmm.Device):
        size = 4

        def read(self, offset: int, size: int) -> int:
            return 30

    with pyvmm.Machine() as m:
        m.attach(Thirty(), port=0x40)
        m.load(asm="in eax, 0x40; inc eax; out 0xf4, eax")
        m.step()
        assert m.cpu.eax == 30
        m.cpu.eax = 7
        assert m.run(timeout=TIMEOUT).status == 8


def test_watchpoint() -> None:
    if cannot("watch"):
        return
    with pyvmm.Machine() as m:
        m.load(asm="mov eax, 5; mov [0x200000], eax; out 0xf4, eax")
        point = m.watchpoint(0x20_0000)
        stop = m.run(timeout=TIMEOUT)
        assert stop.reason == "break" and stop.point is point
        assert m.mem.read_u32(0x20_0000) == 5


@pytest.mark.parametrize("mode", ["long", "user"])
def test_until_in_64_bits(mode: str) -> None:
    if cannot("break", mode):
        return
    with pyvmm.Machine() as m:
        m.load(asm=CODE, mode=mode)
        assert m.run(until="bump", timeout=TIMEOUT).where.symbol == "bump"


def test_breakpoints_are_never_run_past(root: Path) -> None:
    with pyvmm.Machine() as m:
        m.load(root / "build/guest/ring3.elf")
        if "break" in debug.trial("user"):
            assert m.run(until="main", timeout=TIMEOUT).reason == "until"
        else:
            with pytest.raises(pyvmm.Unsupported, match="entered ring 3"):
                m.run(until="main", timeout=TIMEOUT)


def test_points_that_are_refused() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=CODE)
        for _ in range(4):
            m.breakpoint("bump")
        with pytest.raises(ValueError, match="all 4 debug registers"):
            m.breakpoint("bump")
        with pytest.raises(ValueError, match="4 debug registers"):
            m.run(until="again")
        with pytest.raises(
            ValueError, match=r"no symbol 'bumb'.*there are bump"
        ):
            m.run(until="bumb")
        with pytest.raises(ValueError, match="not a multiple"):
            m.watchpoint(0x1001)
        with pytest.raises(ValueError, match="size 3"):
            m.watchpoint(0x1000, 3)
        with pytest.raises(ValueError, match="kind"):
            m.watchpoint(0x1000, 4, "q")


def test_a_stop_that_is_meant_reads_no_source_lines() -> None:
    """They come from the DWARF of the whole image, which takes its time."""
    with pyvmm.Machine() as m:
        m.load(asm="start: nop; here: nop; out 0xf4, al")
        stop = m.run(until="here", timeout=20)
        assert m.symbols._lines is None
        assert stop.message.endswith("here, 1 hits")
        assert str(stop.where) and m.symbols._lines is not None

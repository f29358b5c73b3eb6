# SPDX-License-Identifier: Apache-2.0
"""Machine.replay(): the reset loop, and what it tells."""

import signal
import threading
from collections.abc import Iterator

import pytest
from turns import Target

import pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

# parse(buf, len) at a buffer; its map has a counter a letter.
PARSER = r"""
#include <runtime.h>

unsigned char pyvmm_coverage[65536];
char buf[4096];
unsigned calls;

__attribute__((noipa)) int parse(const char *p, unsigned n)
{
    unsigned sum = 0;

    calls++;
    for (unsigned i = 0; i < n; i++) {
        pyvmm_coverage[(unsigned char)p[i]]++;
        sum += (unsigned char)p[i];
    }
    if (n > 1 && p[0] == 'L')
        for (;;);
    if (n > 1 && p[0] == 'X')
        panic("x");
    if (n > 1 && p[0] == 'U')
        *(volatile int *)0xe0000000 = 1;
    if (n > 1 && p[0] == 'P')
        print("said %u\n", n);
    if (n > 1 && p[0] == 'H')
        __asm__ volatile("cli; hlt");
    return (int)(sum + calls);
}

int main(void) { return parse(buf, 4); }
"""

KINDS = [b"abc", b"LL", b"XX", b"UU", b"PP", b"HH", b"", b"zz"]
ENDS = [
    "until", "timeout", "exit", "unclaimed access", "until", "halt", "until",
    "until",
]  # fmt: skip


def make() -> Target:
    return Target(PARSER, timeout=1.0, coverage="edges", report="all")


@pytest.fixture(scope="module")
def booted() -> Iterator[Target]:
    booted = make()
    yield booted
    booted.m.close()


@pytest.fixture
def target(booted) -> Target:
    booted.m.restore(booted.snap)
    return booted


def test_each_end_is_a_value(target) -> None:
    cases = list(target.replay(KINDS))
    assert [case.data for case in cases] == KINDS
    assert [case.index for case in cases] == list(range(len(KINDS)))
    assert [case.reason for case in cases] == ENDS
    assert cases[2].status == 255
    assert [case.crashed for case in cases] == [
        False, True, False, True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_each_begins_at_the_snapshot(target, whole) -> None:
    """`calls` would count on."""
    inputs = [bytes([97 + i % 20]) * (i % 5) for i in range(700)]
    with target.replay(inputs, whole=whole) as replay:
        cases = list(replay)
        assert replay.whole is whole and replay.why is None
        assert replay.turns == len(inputs)
        assert replay.pages >= 2 * (len(inputs) - 1)
    for case in cases[::233]:
        assert case.stop.reason == "until"
        assert target.m.cpu.eax == sum(case.data) + 1


def test_only_news(target) -> None:
    inputs = [b"aa", b"bb", b"ab", b"ab", b"aaaa", b"UU", b"bb", b"cc"]
    with target.replay(inputs, report="new") as replay:
        cases = list(replay)
        assert replay.edges == 4
    # "aaaa": so often it was not seen before. "ab": once, each of them.
    assert [c.data for c in cases] == [
        b"aa", b"bb", b"ab", b"aaaa", b"UU", b"cc",
    ]  # fmt: skip
    assert [c.new for c in cases] == [1, 1, 2, 1, 1, 1]


def test_only_crashes(target) -> None:
    cases = list(target.replay(KINDS, report="crashed"))
    assert [c.data for c in cases] == [b"LL", b"UU"]


def test_coverage_goes_on_where_it_was(target) -> None:
    with target.replay([b"aa"], report="new") as first:
        assert len(list(first)) == 1
    with target.replay([b"aa", b"bb"], report="new") as second:
        second.unseen = first.unseen
        assert [c.data for c in second] == [b"bb"]
    with pytest.raises(ValueError, match="closed"):
        second.unseen = first.unseen


def test_collected(target) -> None:
    """Registers and memory at each end, without another turn."""
    inputs = [bytes([97 + i % 3]) * (i % 4) for i in range(600)]
    wanted = ["eax", ("buf", 4), ("calls", 4), "al"]
    with target.replay(inputs, collect=wanted) as replay:
        cases = list(replay)
        assert replay.turns == len(inputs)
    for case in cases:
        total = sum(case.data) + 1
        assert case.collected == [
            total, case.data.ljust(4, b"\0")[:4], b"\1\0\0\0", total & 0xFF,
        ]  # fmt: skip


def test_collected_of_a_turn_in_python() -> None:
    source = """
        mov eax, [0xd0000000]
        add eax, [0x200000]
        mov [0x200004], eax
        out 0xf4, al
    """
    with pyvmm.Machine() as m:
        m.attach(Adder(), mmio=0xD000_0000).total = 1
        m.load(asm=source)
        place = {"into": 0x20_0000, "max_size": 1}
        options = {"report": "all", "collect": [(0x20_0004, 4), "rax"]}
        cases = list(m.replay(m.snapshot(), [b"a", b"b"], **place, **options))
        assert [case.collected for case in cases] == [
            [b"b\0\0\0", 98], [b"c\0\0\0", 99],
        ]  # fmt: skip


def test_stop_shows_the_guest(target) -> None:
    """Lazily: the turn is done once more, and the machine stands there."""
    m = target.m
    cases = list(target.replay(KINDS))
    stop = cases[3].stop
    assert stop.crashed and stop.where.symbol == "parse"
    assert cases[4].stop.reason == "until"
    assert m.console.text == "said 2\n"
    assert cases[0].restore().reason == "until"
    assert m.console.text == ""
    assert m.mem.read_u32(m.symbols["calls"]) == 1


def test_news_come_while_it_goes_on(target) -> None:
    """What is looked at between two cases does not disturb the loop."""
    inputs = [b"aa", b"UU", b"PP"] * 400
    seen = 0
    for case in target.replay(inputs, report="crashed"):
        if seen < 3:
            assert case.stop.where.symbol == "parse"
            target.m.restore(target.snap)
        seen += 1
    assert seen == 400


def test_input_of_full_size_across_pages(target) -> None:
    data = bytes(range(1, 251)) * 12
    case = next(target.replay([data], max_size=3000))
    assert case.new == 250
    case.restore()
    assert target.m.cpu.mem.read("buf", 3000) == data


def test_until_other_things(target) -> None:
    m, snap = target.m, target.snap
    for until, text in [
        (pyvmm.printed("said"), "said"),
        (pyvmm.exits(2), "said "),
        (pyvmm.written(port=0xE9), "said"),
    ]:
        cases = list(target.replay([b"PP"] * 3, until=until))
        assert [c.reason for c in cases] == ["until"] * 3
        assert cases[1].stop.reason == "until"
        assert m.console.text == text
    cases = list(target.replay([b"LL", b"LL"], until=pyvmm.elapsed(0.03)))
    assert [c.reason for c in cases] == ["until", "until"]
    m.restore(snap)
    assert next(target.replay([b"XX"], until=None)).status == 255


def test_input_of_the_console() -> None:
    """What waits is there again in each turn."""
    with pyvmm.Machine() as m:
        m.load(asm="in al, 0xe9; out 0xe9, al; out 0xf4, al")
        m.console.send("abc")
        snap = m.snapshot()
        cases = list(m.replay(snap, [b""] * 5, report="all", timeout=1))
        assert [c.status for c in cases] == [ord("a")] * 5
        assert cases[0].stop.status == ord("a")
        assert m.console.text == "a"


# Exits with what an MSR holds, and counts it up.
LEAK = """
    mov ecx, 0x174
    rdmsr
    mov ebx, eax
    inc eax
    wrmsr
    mov eax, ebx
    out 0xf4, al
"""


@pytest.mark.parametrize("inputs", [1, 3, 300])
def test_state_that_no_exit_shows(inputs) -> None:
    """A guest that changes an MSR: found behind the batch, and done again."""
    with pyvmm.Machine() as m:
        m.load(asm=LEAK)
        snap = m.snapshot()
        with m.replay(snap, [b""] * inputs, report="all") as replay:
            cases = list(replay)
            assert [c.status for c in cases] == [0] * inputs
            assert replay.whole and replay.why == "MSRs"


def test_whole_state_from_the_start() -> None:
    with pyvmm.Machine() as m:
        m.load(asm=LEAK)
        snap = m.snapshot()
        with m.replay(snap, [b""] * 9, report="all", whole=True) as replay:
            assert [c.status for c in replay] == [0] * 9
            assert replay.turns == 9 and replay.why is None


def test_crash_among_turns_that_leak() -> None:
    """A turn that crashes ends its batch; those before are not believed."""
    source = """
        mov ecx, 0x174
        rdmsr
        mov ebx, eax
        inc eax
        wrmsr
        cmp byte ptr [0x200000], 'U'
        jne fine
        mov [0xe0000000], eax
    fine:
        mov eax, ebx
        out 0xf4, al
    """
    with pyvmm.Machine() as m:
        m.load(asm=source)
        snap = m.snapshot()
        inputs = [b"a", b"b", b"U", b"c"] * 3
        options = {"into": 0x20_0000, "max_size": 1, "report": "all"}
        with m.replay(snap, inputs, **options) as replay:
            cases = list(replay)
        assert [c.data for c in cases] == inputs
        assert [c.reason for c in cases] == [
            "exit", "exit", "unclaimed access", "exit",
        ] * 3  # fmt: skip
        assert {c.status for c in cases} == {0, None}


class Adder(pyvmm.Device):
    """Its sum goes up by what is written."""

    size = 8
    total = pyvmm.Reg(0x0, 4)
    more = pyvmm.Reg(0x4, 4)

    @more.on_write
    def add(self, value: int) -> None:
        self.total = self.total + value


class Plain(pyvmm.Device):
    """Without methods: answered in C, its state is to be put back all the
    same."""

    size = 8
    total = pyvmm.Reg(0x0, 4)
    more = pyvmm.Reg(0x4, 4)


@pytest.mark.parametrize("device", [Adder, Plain])
def test_devices_are_put_back(device) -> None:
    """Only the turns that use it are done in Python, and end as the others."""
    source = """
        mov al, [0x200000]
        cmp al, 'D'
        jne last
        mov eax, [0xd0000000]
        add eax, 5
        mov [0xd0000004], eax
        mov [0xd0000000], eax
        mov eax, [0xd0000000]
    last:
        out 0xf4, al
    """
    with pyvmm.Machine() as m:
        adder = m.attach(device(), mmio=0xD000_0000)
        m.load(asm=source)
        snap = m.snapshot()
        inputs = [b"a", b"D", b"b", b"D", b"D", b"a"] * 2
        options = {"into": 0x20_0000, "max_size": 1, "report": "all"}
        cases = list(m.replay(snap, inputs, timeout=5, **options))
        assert [c.status for c in cases] == [97, 5, 98, 5, 5, 97] * 2
        assert [c.index for c in cases] == list(range(12))
        assert adder.total == 0


def test_failure_of_a_device_leaves_it() -> None:
    class Bad(pyvmm.Device):
        size = 4

        def read(self, offset: int, size: int) -> int:
            raise LookupError("no such thing")

    with pyvmm.Machine() as m:
        m.attach(Bad(), mmio=0xD000_0000)
        m.load(asm="mov eax, [0xd0000000]; out 0xf4, al")
        snap = m.snapshot()
        with pytest.raises(LookupError, match="no such thing"):
            next(m.replay(snap, [b""], timeout=5))
        assert not m.running
        m.restore(snap)


def test_long_turns_are_not_begun_anew() -> None:
    """A turn that takes several ticks goes on behind each."""
    with pyvmm.Machine() as m:
        m.load(asm="mov ecx, 150000; next: dec ecx; jnz next; out 0xf4, al")
        snap = m.snapshot()
        with m.replay(snap, [b""] * 2, report="all") as replay:
            assert [c.reason for c in replay] == ["exit", "exit"]
            assert replay.turns == 2


def test_pause_ends_it(target) -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield b"aa"

    began = threading.Event()

    def stop() -> None:
        began.wait(20)
        while not target.m.running:
            pass
        target.m._runner.interrupt("pause")

    thread = threading.Thread(target=stop)
    thread.start()
    replay = target.replay(forever(), report="crashed")
    began.set()
    assert list(replay) == []
    thread.join(20)
    assert replay.turns > 0
    assert next(target.replay([b"aa"])).reason == "until"


def test_time_is_over(target) -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield b"aa"

    assert list(target.replay(forever(), report="new", seconds=0.1)) != []


def test_closed_meanwhile() -> None:
    target = make()
    replay = target.replay([b"aa"] * 3000)
    next(replay)
    target.m.close()
    for _ in replay:  # those that are done already may come
        pass
    with pytest.raises(ValueError, match="closed"):
        target.replay([b"aa"])


def test_another_snapshot_meanwhile(target) -> None:
    """Between two cases the machine is the caller's: it goes back."""
    replay = target.replay([b"aa"] * 3000)
    case = next(replay)
    target.m.run(until="main+5", timeout=0.01, check=False)
    target.m.snapshot()
    assert [c.reason for c in replay] == ["until"] * 2999
    target.m.cpu.mem.write_u32("calls", 7)
    assert case.restore().reason == "until"
    assert target.m.cpu.mem.read_u32("calls") == 1


@pytest.mark.parametrize("length", ["*esp+8", "*esp + 0x8"])
def test_length_on_the_stack(target, length) -> None:
    """The register of the snapshot counts, wherever the machine is."""
    target.m.run(timeout=5)
    cases = list(target.replay([b"abc", b""], length=length))
    assert cases[0].new == 3 and cases[1].new == 0
    target.m.restore(target.snap)
    with target.replay([], into="*esp + 4", max_size=4) as replay:
        assert replay._into == [(target.m.cpu.esp + 4, 4)]


class Alarm(Exception):
    """Of a signal's handler."""


@pytest.mark.parametrize("blocks", [False, True])
def test_news_of_a_turn_that_was_given_up(target, blocks) -> None:
    """An exception ends it in the middle: later it is news still."""

    def kick() -> None:
        vcpu = target.m.cpu.vcpu
        while not vcpu.running:
            pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def on_signal(number, frame) -> None:
        raise Alarm

    options = {"blocks": ["print", "parse"]} if blocks else {}
    previous = signal.signal(signal.SIGUSR1, on_signal)
    try:
        with target.replay([], timeout=None, **options) as replay:
            before = replay.unseen, replay.reached
            thread = threading.Thread(target=kick)
            thread.start()
            with pytest.raises(Alarm):
                replay.one(b"LL")
            thread.join()
            assert (replay.unseen, replay.reached) == before
            case = replay.one(b"PP")
            assert case.new == (3 if blocks else 1)
            assert len(replay.reached) == (2 if blocks else 0)
    finally:
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"report": "some"}, ValueError, "report 'some' is none of"),
        ({"max_size": 0}, ValueError, "max_size of 1 or more, not 0"),
        ({"into": "nobody"}, ValueError, "nobody"),
        ({"max_size": 1 << 30}, ValueError, "more than all RAM"),
        ({"length": ("buf", 3)}, ValueError, "3 bytes: 1, 2, 4 or 8"),
        ({"coverage": "lines"}, ValueError, "'lines' is neither"),
        ({"coverage": (0xFFF0_0000, 8)}, ValueError, "outside RAM"),
        ({"until": ["main"] * 1 + [1, 2, 3, 4]}, ValueError, "4 debug reg"),
        ({"timeout": -1}, ValueError, "timeout -1"),
        ({"collect": ["eaz"]}, ValueError, "'eaz', which is no register"),
        ({"collect": "eax"}, TypeError, "collect is a list"),
        ({"collect": [("buf", 0)]}, ValueError, "size of 0 bytes"),
        ({"collect": [("buf", 65537)]}, ValueError, "more than 65536 bytes"),
    ],
)
def test_bad_arguments(target, options, error, words) -> None:
    with pytest.raises(error, match=words):
        target.replay([b""], **options)
    assert next(target.replay([b"aa"])).reason == "until"


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("text", TypeError, "an input is bytes, not str"),
        (b"x" * 65, ValueError, "65 bytes is more than max_size, 64"),
    ],
)
def test_bad_inputs(target, data, error, words) -> None:
    with pytest.raises(error, match=words):
        list(target.replay([b"aa", data]))
    assert next(target.replay([b"aa"])).reason == "until"


def test_several_vcpus_are_refused() -> None:
    with pyvmm.Machine(cpus=2) as m:
        m.load(asm="hlt")
        snap = m.snapshot()
        with pytest.raises(ValueError, match="one vCPU, not 2"):
            m.replay(snap, [b""])


def test_snapshot_of_another_machine(target) -> None:
    with pyvmm.Machine() as other:
        other.load(asm="hlt")
        snap = other.snapshot()
    with pytest.raises(ValueError):
        target.m.replay(snap, [b""])


def test_repr(target) -> None:
    with target.replay([b"UU", b"aa"]) as replay:
        bad, good = replay
        assert "2 turns, 2 edges" in repr(replay)
    assert repr(bad).startswith("<Case 0: unclaimed access at 0x")
    assert repr(good).endswith("2 bytes, 1 new>")


def test_saved_once_for_each_place(target, tmp_path) -> None:
    """The input, and a name that the same functions give again."""
    inputs = [b"UU", b"UUU", b"LL", b"UUUU"]
    cases = list(target.replay(inputs, report="crashed"))
    paths = [case.save(tmp_path) for case in cases]
    assert paths[0] == paths[1] == paths[3] != paths[2]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len([name for name in names if "." not in name]) == 2
    assert not [name for name in names if name.endswith(".tmp")]
    with open(paths[0], "rb") as file:
        assert file.read() == b"UU"
    assert next(target.replay([b"aa"])).reason == "until"

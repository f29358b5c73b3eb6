# SPDX-License-Identifier: Apache-2.0
"""Machine.backtrace(): by call frame information, frame pointers, a search."""

import pytest

import pyvmm
from pyvmm.backtrace import is_call

pytestmark = pytest.mark.usefixtures("kvm")

# Volatile, so that no call is the last thing that its function does.
NESTED = """
#include <runtime.h>

__attribute__((noinline)) int leaf(volatile int *p)
{
    exit(p[1]);
}

__attribute__((noinline)) int middle(int n)
{
    volatile int x[20] = {n, 7};

    return leaf(x) + x[1];
}

int main(void)
{
    return middle(1) + middle(2);
}
"""
CALLS = ["exit", "leaf", "middle", "main", "runtime_start"]


class Nothing:
    """An image without call frame information."""

    def row(self, address: int) -> None:
        return None


def stopped(mode: str) -> pyvmm.Machine:
    m = pyvmm.Machine()
    m.load(c=NESTED, mode=mode)
    assert m.run(timeout=20).status == 7
    return m


@pytest.mark.parametrize("mode", ["protected", "user"])
@pytest.mark.parametrize("dwarf", [True, False])
def test_the_calls_that_it_is_in(mode: str, dwarf: bool) -> None:
    with stopped(mode) as m:
        if not dwarf:
            m.symbols._frames = Nothing()  # type: ignore[assignment]
        found = m.backtrace()
        names = [where.symbol for where in found]
        if dwarf:
            assert names == [*CALLS, names[-1]], found
        else:
            assert list(dict.fromkeys(names))[:5] == CALLS, found
        # main() of 32 bits aligns its stack: its frame is an expression.
        assert found.guessed.isdisjoint(range(5)) is dwarf
        assert len(found) >= 6 and found[2].file == "<stdin>"
        line = NESTED.splitlines().index("    return leaf(x) + x[1];") + 1
        assert found[2].line == line
        text = str(found).splitlines()
        assert text[2].startswith("#2 ") and f"<stdin>:{line}" in text[2]
        assert text[2].endswith(" ?") is not dwarf
        assert len(m.backtrace(limit=2)) == 2


def test_frame_pointers() -> None:
    source = """
    start: call outer
    outer: push ebp; mov ebp, esp; sub esp, 64; call inner; nop
    inner: push ebp; mov ebp, esp; push 0; out 0xf4, al; hlt
    """
    with pyvmm.Machine() as m:
        m.load(asm=source)
        m.run(timeout=20)
        found = m.backtrace()
        assert [where.symbol for where in found] == ["inner", "outer", "start"]
        assert not found.guessed & {1}


def test_a_stack_that_is_hostile() -> None:
    """Nowhere, in a circle, or full of what looks like an address."""
    source = """
    start: mov esp, 0x200000; call next
    next: mov ebp, esp; out 0xf4, al; hlt
    """
    with pyvmm.Machine() as m:
        m.load(asm=source)
        m.run(timeout=20)
        back = m.mem.read_u32(0x1FFFFC)
        assert m.symbols.where(back, passed=True).symbol == "start"
        for at in range(0x1F0000, 0x201000, 8):
            m.mem.write_u32(at, at)  # frame pointers to themselves
            m.mem.write_u32(at + 4, back)
        m.cpu.esp = m.cpu.ebp = 0x1F0000
        assert len(m.backtrace(limit=100)) <= 100
        for wild in (0, 0xFFFF_FFFC, 0xFFFF_FFFF, 0x8000_0000):
            m.cpu.esp = m.cpu.ebp = wild
            assert len(m.backtrace()) >= 1


def test_where_a_call_has_ended() -> None:
    """Registers are put back by then; the memory is not."""
    with pyvmm.Machine() as m:
        m.load(c=NESTED)
        m.run(until="main", timeout=20)
        with pytest.raises(pyvmm.GuestError) as caught:
            m.call("middle", 1, timeout=20)
        then = m.backtrace(at=caught.value.stop)
        assert [where.symbol for where in then][:4] == [*CALLS[:3], "main"]
        assert m.backtrace()[0].symbol == "main"


def test_arguments_that_are_none() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="out 0xf4, al")
        with pytest.raises(ValueError, match=r"cpu 1 is outside 0\.\.0"):
            m.backtrace(1)
        with pytest.raises(ValueError, match="limit 0 is not 1 or more"):
            m.backtrace(limit=0)
        assert len(m.backtrace()) == 1  # where it will start


def test_real_mode_has_its_place_only() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="here: out 0xf4, al", mode="real")
        m.run(timeout=20)
        assert [where.address for where in m.backtrace()] == [m.cpu.rip]


def test_what_is_a_call() -> None:
    calls = ["e800000000", "ffd0", "ff10", "ff5008", "ff9000000000"]
    calls += ["ff1500000000", "ff1424", "ff542408", "ff942400000000"]
    calls += ["ff142500000000"]
    for code in calls:
        assert is_call(bytes.fromhex(code)), code
    for code in ("e900000000", "ffe0", "ff20", "ff5000ff", "9090", "ff1500"):
        assert not is_call(bytes.fromhex(code)), code

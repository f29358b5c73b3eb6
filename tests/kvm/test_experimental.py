# SPDX-License-Identifier: Apache-2.0
"""The devices that nobody else has, in front of guests of ours."""

import asyncio
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices import Counter, Hasher, HostCalls, Regex, faulty

pytestmark = pytest.mark.usefixtures("kvm")

GUESTS = Path(__file__).resolve().parent.parent.parent / "build/guest"


def make(device: object, image: str, words: str = "") -> pyvmm.Machine:
    m = pyvmm.Machine()
    m.attach(device)
    m.load(str(GUESTS / f"{image}.elf"), cmdline=words)
    return m


def exports(calls: HostCalls) -> None:
    @calls.export
    def add(a: int, b: int) -> int:
        return a + b

    @calls.export
    def greet(name: str) -> str:
        return f"hello {name}"


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_calls_in_both_directions(notify: str) -> None:
    calls = HostCalls(notify=notify)
    exports(calls)
    with make(calls, "host-call") as m:
        m.console.expect("serving", timeout=20)
        assert m.console.text.splitlines() == [
            "add: 42",
            "greet: hello you",
            "missing: refused: the host has no function missing",
            "serving",
        ]
        m.start(timeout=20)
        futures = [calls.guest.double(n) for n in range(50)]
        assert [f.result(timeout=20) for f in futures] == [
            2 * n for n in range(50)
        ]
        assert calls.guest.name().result(timeout=20) == "guest"
        with pytest.raises(HostCalls.Error, match="double takes an int"):
            calls.guest.double("x").result(timeout=20)
        with pytest.raises(HostCalls.Error, match="no such function"):
            calls.guest.triple(1).result(timeout=20)
        calls.guest.stop()
        assert m.wait(timeout=20).status == 0


def test_calls_from_a_coroutine() -> None:
    calls = HostCalls()
    exports(calls)

    async def main() -> None:
        with make(calls, "host-call") as m:
            run = asyncio.create_task(m.run_async(timeout=20))
            doubled = await asyncio.gather(
                *(asyncio.wrap_future(calls.guest.double(n)) for n in range(9))
            )
            assert doubled == [2 * n for n in range(9)]
            calls.guest.stop()
            assert (await run).status == 0

    asyncio.run(main())


@pytest.mark.parametrize("notify", ["inline", "thread"])
def test_a_search(notify: str) -> None:
    # request sends words of its command line: a pattern of 0x2e2e bytes is
    # longer than the request, which is refused as too short.
    with make(Regex(notify=notify), "request", "id=61 send=..x reply=64") as m:
        stop = m.run(timeout=20)
    assert stop.status == 0 and "0 bytes" in m.console.text


def test_a_driver_meets_faults() -> None:
    device = faulty(Hasher(), "empty", at=[2, 5])
    with make(device, "request", "send=abc n=6 reply=32 mode=irq") as m:
        assert m.run(timeout=20).status == 0
    lengths = [line[:2].strip() for line in m.console.text.splitlines()[:6]]
    assert lengths == ["32", "0", "32", "32", "0", "32"]


def test_registers_meet_faults() -> None:
    device = faulty(Counter(), "ones", every=2)
    with pyvmm.Machine() as m:
        m.attach(device, mmio=0xD000_0000)
        m.load(
            asm="mov ebx, 0xd0000000; mov eax, [ebx]; mov eax, [ebx]; "
            "out 0xf4, eax"
        )
        assert m.run(timeout=20).status == 0xFFFF_FFFF
    assert [n for n, _, _ in device.injected] == [2]

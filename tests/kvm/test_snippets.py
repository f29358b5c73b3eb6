# SPDX-License-Identifier: Apache-2.0
"""Assembly, C and raw bytes loaded as guests."""

import pytest

import pyvmm
from pyvmm import snippet

TIMEOUT = 20


@pytest.mark.parametrize("mode", ["real", "protected", "long", "user"])
def test_assembly_in_each_mode(mode: str) -> None:
    with pyvmm.Machine() as m:
        m.load(asm="mov al, 7; out 0xf4, al", mode=mode)
        assert m.run(timeout=TIMEOUT).status == 7


def test_the_ring_that_was_asked_for() -> None:
    for mode, ring in (("protected", 0), ("long", 0), ("user", 3)):
        with pyvmm.Machine() as m:
            m.load(asm="mov ecx, cs; mov eax, ecx; out 0xf4, eax", mode=mode)
            stop = m.run(timeout=TIMEOUT)
            assert stop.status & 3 == ring == stop.registers.ring


def test_memory_above_4_gib_in_long_mode() -> None:
    with pyvmm.Machine() as m:
        m.add_memory(4 << 30, "1M")
        m.load(
            asm="mov rbx, 0x100000010; mov dword ptr [rbx], 5;"
            "mov eax, [rbx]; out 0xf4, eax",
            mode="user",
        )
        assert m.run(timeout=TIMEOUT).status == 5
        assert m.mem.read_u32((4 << 30) + 16) == 5


def test_at_and_entry() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="ud2; here: mov al, 3; out 0xf4, al", at=0x20_0000,
               entry="here")  # fmt: skip
        assert m.symbols["here"] == 0x20_0002
        assert m.run(timeout=TIMEOUT).status == 3


def test_raw_bytes() -> None:
    code = bytes.fromhex("b005 e6f4")
    with pyvmm.Machine() as m:
        m.load(raw=bytearray(code), at=0x20_0000)
        assert m.run(timeout=TIMEOUT).status == 5
    with pyvmm.Machine() as m:
        m.load(raw=b"\xf4" + code, mode="real", entry=0x7C01)
        assert m.run(timeout=TIMEOUT).status == 5


@pytest.mark.parametrize(("mode", "bits"), [(None, 32), ("user", 64)])
def test_c(mode: str | None, bits: int) -> None:
    source = """
    #include <runtime.h>
    int main(void)
    {
        print("%d bits\\n", 8 * (int)sizeof(long));
        return 4;
    }
    """
    with pyvmm.Machine() as m:
        m.load(c=source, mode=mode)
        assert m.run(timeout=TIMEOUT).status == 4
        assert m.console.text == f"{bits} bits\n"
        assert "main" in m.symbols


def test_complaints_are_the_tools_own() -> None:
    with pyvmm.Machine() as m:
        with pytest.raises(
            pyvmm.Error, match=r":2: Error: no such instruction"
        ):
            m.load(asm="nop\nfrobnicate eax")
        with pytest.raises(
            pyvmm.Error, match="undefined reference to `nobody'"
        ):
            m.load(asm="jmp nobody")
        with pytest.raises(pyvmm.Error, match=r"<stdin>:1:\d+: error"):
            m.load(c="int main(void) { return x; }")


def test_a_missing_tool_names_its_package(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(pyvmm.Error, match=r"'as'.*apt-get install binutils"):
        snippet.assemble("nop", "long", 0x10_0000)
    with pytest.raises(pyvmm.Error, match=r"'gcc'.*apt-get install gcc"):
        snippet.compile_c("", "user")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "one of a path"),
        ({"asm": "nop", "raw": b"x"}, TypeError, "one of a path"),
        ({"asm": "nop", "mode": "vm86"}, ValueError, "mode 'vm86' is none of"),
        ({"asm": "nop", "at": 0x10}, ValueError, "outside RAM|not wholly|RAM"),
        ({"raw": b""}, ValueError, "empty"),
        ({"raw": b"x", "at": 0}, ValueError, "outside RAM"),
        ({"c": "x", "mode": "real"}, ValueError, "C snippets run in"),
        ({"c": "x", "at": 5}, ValueError, "at= goes with"),
        ({"source": 5}, TypeError, "a path or the bytes"),
        ({"source": b"MZ"}, ValueError, "image: "),
        ({"source": "/nonexistent.elf"}, FileNotFoundError, "nonexistent"),
    ],
)
def test_what_is_refused(options, error, message) -> None:
    with pyvmm.Machine() as m:
        with pytest.raises(error, match=message):
            m.load(options.pop("source", None), **options)
        with pytest.raises(ValueError, match="nothing is loaded"):
            m.run()

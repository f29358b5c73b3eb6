# SPDX-License-Identifier: Apache-2.0
"""Images and hosts that are not as they should be."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm


@pytest.fixture
def elf(root: Path) -> bytes:
    return (root / "build/guest/hello.elf").read_bytes()


def refused(data: bytes, memory: str = "16M") -> str:
    with pyvmm.Machine(memory) as m:
        with pytest.raises(ValueError) as e:
            m.load(data)
        return str(e.value)


def test_elf_files_that_are_refused(elf: bytes) -> None:
    assert "image: " in refused(b"")
    assert "image: " in refused(elf[:40])
    assert "image: " in refused(elf[:100])
    assert "image: " in refused(b"\x7fELF" + bytes(200))
    arm = bytearray(elf)
    arm[18] = 40
    assert "image: " in refused(bytes(arm))


def test_an_image_larger_than_ram(elf: bytes) -> None:
    text = refused(elf, "8K")
    assert "segment" in text and "RAM" in text


def test_truncations_never_crash(elf: bytes) -> None:
    with pyvmm.Machine() as m:
        for size in (*range(0, 400, 7), *range(400, len(elf), 997)):
            try:
                m.load(elf[:size])
            except ValueError as exc:
                assert str(exc)


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )


def test_a_machine_that_could_not_be_made_is_closed() -> None:
    done = child(
        "import pyvmm, resource\n"
        "m = pyvmm.Machine()\n"
        "m.load(raw=b'\\xf4')\n"
        "m.attach(pyvmm.Rng(notify='thread'))\n"
        "import pyvmm.host; pyvmm.host.kvm()\n"
        "import os; n = len(os.listdir('/proc/self/fd')) + 1\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (n, hard))\n"
        "try: m.run()\n"
        "except OSError as e: print('refused')\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "pyvmm._vmm.reap()\n"
        "print(m.closed, len(os.listdir('/proc/self/fd')) < n)\n"
    )
    assert done.stdout == "refused\nTrue True\n", done.stderr


def test_why_there_is_no_kvm(monkeypatch, tmp_path: Path) -> None:
    from pyvmm import host

    monkeypatch.setattr(host, "DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(host, "_cpu_flags", lambda: {"vmx"})
    assert host.why_not() == f"no {tmp_path}/kvm: `sudo modprobe kvm_intel`"
    monkeypatch.setattr(host, "_cpu_flags", lambda: set())
    assert "shows no virtualization" in str(host.why_not())
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(host.os, "access", lambda *args: False)
    (tmp_path / "kvm").chmod(0o600)
    assert "chmod 660" in str(host.why_not())
    (tmp_path / "kvm").chmod(0o660)
    assert "is for a group: `sudo usermod -aG root" in str(host.why_not())

# SPDX-License-Identifier: Apache-2.0
"""The command line, as a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEVICE = """
import pyvmm

class Adder(pyvmm.Device):
    size = 8
    def read(self, offset, size):
        return 41
{more}
"""


@pytest.fixture
def pyvmm_(root: Path):
    def run(*words: object, input: str = "", **options):
        return subprocess.run(
            [sys.executable, "-m", "pyvmm", *map(str, words)],
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=root,
            **options,
        )

    return run


GUEST = "build/guest/{}.elf"


def test_run(pyvmm_) -> None:
    done = pyvmm_("run", GUEST.format("hello"))
    assert (done.returncode, done.stdout, done.stderr) == (
        0, "hello from a pyvmm guest\n", "",
    )  # fmt: skip


def test_rng_and_cmdline(pyvmm_) -> None:
    done = pyvmm_(
        "run", GUEST.format("rng"), "--rng", "--memory", "10M",
        "--cmdline", "bytes=32 mode=irq", "--cpus", 2,
    )  # fmt: skip
    assert done.returncode == 0 and "irq: 32 bytes" in done.stdout


def test_input_is_piped(pyvmm_, tmp_path: Path) -> None:
    done = pyvmm_("run", GUEST.format("echo"), input="abc\nquit\n")
    assert (done.returncode, done.stdout) == (0, "> abc\n> ")
    (tmp_path / "in").write_text("def\nquit\n")
    with open(tmp_path / "in") as file:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", "run", GUEST.format("echo")],
            stdin=file,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "> def\n> "


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--cmdline", "panic"), 255, ""),
        (("--cmdline", "triple"), 125, "triple fault\n  at triple+"),
        (("--cmdline", "halt"), 125, "halt"),
        (("--cmdline", "spin", "--timeout", "0.1"), 124, "timeout: still"),
        (("--memory", "10X"), 125, "memory '10X' is not a size"),
        (("--device", "nobody.py"), 125, "no file 'nobody.py'"),
        (("--initrd", "nobody"), 125, "No such file"),
    ],
)
def test_statuses(pyvmm_, words, status, message) -> None:
    done = pyvmm_("run", GUEST.format("faults"), *words)
    assert done.returncode == status
    assert message in done.stderr
    if message:
        assert done.stderr.startswith("pyvmm: ")
    assert "Traceback" not in done.stderr


def test_statuses_above_255(pyvmm_, tmp_path: Path) -> None:
    from pyvmm import snippet

    path = tmp_path / "guest.elf"
    path.write_bytes(
        snippet.assemble("mov eax, 300; out 0xf4, eax", "protected", 0x10_0000)
    )
    assert pyvmm_("run", path).returncode == 255


def test_a_guest_that_is_none(pyvmm_) -> None:
    done = pyvmm_("run", "README.md")
    assert done.returncode == 125
    assert done.stderr.startswith("pyvmm: README.md: ")
    assert pyvmm_("run", "nobody.elf").returncode == 125
    assert pyvmm_("run").returncode == 2
    assert pyvmm_().returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "x", "--no-such"], "unrecognized arguments: --no-such"),
        (["run", "x", "--cpus"], "--cpus: expected one argument"),
        (["run", "x", "--cpus=two"], "--cpus: invalid int value: 'two'"),
        (["run", "x", "--timeout", "-1"], "--timeout: invalid seconds value"),
        (["run", "x", "--rng=1"], "--rng: ignored explicit argument '1'"),
        (["run", "x", "y"], "unrecognized arguments: y"),
        (["info", "x"], "unrecognized arguments: x"),
        (["boot"], "invalid choice: 'boot'"),
    ],
)
def test_usage(pyvmm_, words, message) -> None:
    done = pyvmm_(*words)
    assert done.returncode == 2 and message in done.stderr


def test_devices(pyvmm_, tmp_path: Path) -> None:
    path = tmp_path / "adder.py"
    path.write_text(DEVICE.format(more=""))
    guest = GUEST.format("faults")
    done = pyvmm_("run", guest, "--cmdline", "unclaimed", "--device", path)
    assert done.stdout == "read 0x00000029\n", done.stderr
    path.write_text(DEVICE.format(more="class Other(Adder): pass"))
    done = pyvmm_("run", guest, "--device", path)
    assert "not one device class but Adder, Other" in done.stderr
    done = pyvmm_(
        "run", guest, "--cmdline", "unclaimed", "--device", f"{path}:Other"
    )
    assert done.returncode == 0
    done = pyvmm_("run", guest, "--device", f"{path}:Nobody")
    assert done.returncode == 125 and "has no Nobody" in done.stderr
    place = f"{path}:Other@0xd0000100"
    done = pyvmm_(
        "run", guest, "--cmdline", "unclaimed addr=0xd0000100",
        "--device", place,
    )  # fmt: skip
    assert done.stdout == "read 0x00000029\n", done.stderr
    place = f"{path}:Other@port:0x1234"
    done = pyvmm_("run", guest, "--cmdline", "port", "--device", place)
    assert done.stdout == "read 0x29\n", done.stderr
    done = pyvmm_("run", guest, "--device", f"{path}:Other@here")
    assert "'here' is not a place like 0xd0000000" in done.stderr


def test_ready_made_devices(pyvmm_) -> None:
    """By name, at their own place and elsewhere."""
    guest = GUEST.format("faults")
    place = "PostCodes@port:0x1234"
    done = pyvmm_("run", guest, "--cmdline", "port", "--device", place)
    assert (done.stdout, done.returncode) == ("read 0x5a\n", 0)
    done = pyvmm_(
        "run", guest, "--device", "Rtc", "--device", "Serial@port:0x2f8"
    )
    words = '"rtc@port:0x70+0x2:8 serial@port:0x2f8+0x8:4"'
    assert words in done.stdout
    done = pyvmm_("run", guest, "--device", "Toaster")
    assert done.returncode == 125
    assert "'Toaster' is no FILE.py and none of AcpiPm, " in done.stderr


def test_an_exception_of_a_device_is_shown_whole(
    pyvmm_, tmp_path: Path
) -> None:
    path = tmp_path / "adder.py"
    path.write_text(DEVICE.format(more="").replace("41", "{}['x']"))
    done = pyvmm_(
        "run", GUEST.format("faults"), "--cmdline", "unclaimed",
        "--device", path,
    )  # fmt: skip
    assert done.returncode == 125
    assert "KeyError: 'x'" in done.stderr and "adder.py" in done.stderr
    assert "in the guest's read of 4 bytes at 0xd0000000" in done.stderr


def test_trace(pyvmm_) -> None:
    done = pyvmm_("run", GUEST.format("hello"), "--trace")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert lines[0] == "native: write of 4 bytes 0x6c6c6568 to port 0xe9"
    assert lines[-1] == "stop: write of 4 bytes 0x0 to port 0xf4"


def test_ctrl_c(root: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pyvmm", "run", GUEST.format("echo"),
        ],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"> x\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors


def test_output_that_nobody_reads(root: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", GUEST.format("hello")],
        cwd=root,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert process.stderr == b"" and process.returncode in (0, 125)


def test_info(pyvmm_) -> None:
    done = pyvmm_("info")
    assert done.returncode == 0
    for word in ("KVM API version", "READONLY_MEM", "trial in 64-bit ring 3"):
        assert word in done.stdout


def test_info_without_kvm(root: Path) -> None:
    code = (
        "import pyvmm._vmm as v, pyvmm.host as h, sys\n"
        "def no(): raise FileNotFoundError(2, 'open /dev/kvm: not there')\n"
        "v.KVM = no\n"
        "h.why_not = lambda: 'try modprobe'\n"
        "from pyvmm.cli import main\n"
        "sys.exit(main(['info']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "pyvmm: open /dev/kvm: not there\ntry modprobe\n"


def test_help_and_version(pyvmm_) -> None:
    assert "GUEST.elf" in pyvmm_("run", "--help").stdout
    assert pyvmm_("--version").stdout.strip()

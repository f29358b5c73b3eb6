# SPDX-License-Identifier: Apache-2.0
"""The devices of devices-py in front of guests, as users attach them."""

import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm.devices.clock import Clock
from pyvmm.devices.counter import Counter
from pyvmm.devices.post import PostCodes

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent

COUNTER_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static struct arg_device counter;
static volatile unsigned rings;

static void on_limit(void *data)
{
    (void)data;
    rings++;
    write32(counter.base + 8, 1);
}

int main(void)
{
    assert(arg_device("counter", &counter));
    assert(irq_request(counter.line, on_limit, NULL));
    write32(counter.base + 4, 10);
    for (int i = 0; i < 12; i++)
        write32(counter.base, 1);
    while (!rings)
        irq_wait();
    print("count %u, rings %u, status %u\\n", read32(counter.base), rings,
          read32(counter.base + 8));
    return 0;
}
"""

CLOCK_GUEST = """
#include <runtime.h>

static uint64_t now(const struct arg_device *clock)
{
    uint64_t low = read32(clock->base);

    return (uint64_t)read32(clock->base + 4) << 32 | low;
}

int main(void)
{
    struct arg_device clock;
    uint64_t first;

    assert(arg_device("clock", &clock));
    first = now(&clock);
    print("%llu %llu\\n", first, now(&clock));
    return 0;
}
"""


def test_counter() -> None:
    with pyvmm.Machine() as m:
        counter = m.attach(Counter())
        m.load(c=COUNTER_GUEST)
        assert m.run(timeout=20).status == 0
    assert m.console.text == "count 12, rings 1, status 0\n"
    assert counter.count == 12


def test_counter_from_the_host() -> None:
    with pyvmm.Machine() as m:
        counter = m.attach(Counter())
        m.load(c=COUNTER_GUEST.replace("i < 12", "i < 9"))
        m.start(timeout=20)
        while counter.count < 9 and m.running:
            pass
        counter.add()
        assert m.wait(20).status == 0
    assert m.console.text == "count 10, rings 1, status 0\n"


def test_clock() -> None:
    times = iter([0x1_FFFF_FFFF, 0x2_0000_0000])
    with pyvmm.Machine() as m:
        m.attach(Clock(now=lambda: next(times)))
        m.load(c=CLOCK_GUEST)
        assert m.run(timeout=20).status == 0
    assert m.console.text == f"{0x1_FFFF_FFFF} {0x2_0000_0000}\n"


@pytest.mark.parametrize("port", [0x80, 0x84])
def test_post_codes(port: int) -> None:
    code = "".join(f"mov al, {n}; out {port}, al; " for n in (1, 2, 0x7F))
    with pyvmm.Machine() as m:
        post = m.attach(PostCodes(), port=port)
        m.load(asm=f"{code} in al, {port}; out 0xf4, al")
        assert m.run(timeout=20).status == 0x7F
    assert repr(post) == "<PostCodes 01 02 7f>"


@pytest.mark.parametrize("which", ["", ":Counter"])
def test_device_on_the_command_line(tmp_path: Path, which: str) -> None:
    """As guest/README.md builds a guest, and the launcher runs it."""
    source, image = tmp_path / "guest.c", tmp_path / "guest.elf"
    source.write_text(COUNTER_GUEST)
    lib = ROOT / "guest/lib"
    files = [path for path in lib.iterdir() if path.suffix in (".c", ".S")]
    flags = [
        f"@{lib}/compile.flags",
        f"@{lib}/link.flags",
        f"-I{lib}/../include",
    ]
    compile = ["gcc", "-m32", *flags, "-T", lib / "link.ld", *files, source]
    subprocess.run([*compile, "-o", image], check=True)
    # Two classes are in the file, but only one of them is a Device.
    device = f"{ROOT}/devices-py/counter.py{which}"
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", image, "--device", device],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "count 12, rings 1, status 0\n"

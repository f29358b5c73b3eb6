# SPDX-License-Identifier: Apache-2.0
"""The reset loop as a target of AFL++: by a fuzzer of ours, and by the real."""

import ctypes
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm import afl, snippet

pytestmark = pytest.mark.usefixtures("kvm")

LIMIT = 120  # seconds after which something hangs
SIZE = 65536

# Goes wrong behind a magic of four bytes; has other ends, too.
GUEST = """
#include <runtime.h>

char buf[64];
volatile unsigned depth;

__attribute__((noipa)) int parse(const char *p, unsigned n)
{
    if (n < 4)
        return 0;
    if (p[0] == 'p' && ++depth)
        if (p[1] == 'y' && ++depth)
            if (p[2] == 'v' && ++depth)
                if (p[3] == 'm' && ++depth)
                    return *(volatile int *)(0xe0000000 + n);
    if (!memcmp(p, "EXIT", 4))
        exit(77);
    if (!memcmp(p, "SPIN", 4))
        for (;;);
    return 0;
}

int main(void) { return parse(buf, 0); }
"""

# A program as users write it.
TARGET = """
import sys
import pyvmm
import pyvmm.afl

with pyvmm.Machine(memory="16M") as m:
    m.load("IMAGE")
    m.run(until="parse", timeout=10)
    pyvmm.afl.serve(
        m, m.snapshot(), into="buf", length="*esp+8", max_size=64,
        until="return", timeout=1, versioned="versioned" in sys.argv[2:],
    )
"""

libc = ctypes.CDLL(None, use_errno=True)
libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]


class Shared:
    """A System V segment that goes with the last who has it."""

    def __init__(self, size: int) -> None:
        self.number = libc.shmget(0, size, 0o1600)  # IPC_PRIVATE, IPC_CREAT
        assert self.number >= 0
        self.bytes = afl.Segment(self.number).bytes

    def remove(self) -> None:
        libc.shmctl(self.number, 0, None)  # IPC_RMID


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("guest") / "parse.elf"
    path.write_bytes(snippet.compile_c(GUEST, "protected", coverage=True))
    return path


@pytest.fixture
def target(image, tmp_path) -> Path:
    path = tmp_path / "target.py"
    path.write_text(TARGET.replace("IMAGE", str(image)))
    return path


class Fuzzer:
    """The fuzzer's end of the protocol, as far as it goes."""

    def __init__(self, target: Path, *words: str, shared: bool = True) -> None:
        self.map = Shared(SIZE)
        self.input = Shared(1 << 20)
        self.file = target.parent / "input"
        self.file.touch()
        env = {**os.environ, "__AFL_SHM_ID": str(self.map.number)}
        if shared:
            env["__AFL_SHM_FUZZ_ID"] = str(self.input.number)
        control, self._control = os.pipe()
        self._status, status = os.pipe()
        self.stdin = open(self.file, "r+b", buffering=0)  # noqa: SIM115

        def place() -> None:
            os.dup2(control, 198)
            os.dup2(status, 199)

        self.process = subprocess.Popen(
            [sys.executable, target, *words],
            stdin=self.stdin,
            env=env,
            preexec_fn=place,
            close_fds=False,
        )
        os.close(control)
        os.close(status)
        self.killed = 0

    def hear(self) -> int:
        data = os.read(self._status, 4)
        assert len(data) == 4, "the target has gone"
        return struct.unpack("<I", data)[0]

    def say(self, word: int) -> None:
        os.write(self._control, struct.pack("<I", word))

    def give(self, data: bytes) -> None:
        self.map.bytes[:] = bytes(SIZE)
        self.input.bytes[: 4 + len(data)] = struct.pack("<I", len(data)) + data
        os.pwrite(self.stdin.fileno(), data, 0)
        os.ftruncate(self.stdin.fileno(), len(data))

    def run(self, data: bytes, kill: bool = False) -> tuple[int, bytes]:
        """The wait status, and the map."""
        self.give(data)
        self.say(self.killed)
        pid = self.hear()
        self.killed = int(kill)
        os.kill(pid, signal.SIGKILL if kill else 0)
        return self.hear(), bytes(self.map.bytes)

    def __enter__(self) -> "Fuzzer":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for fd in (self._control, self._status):
            os.close(fd)
        self.stdin.close()
        self.map.remove()
        self.input.remove()
        if kind is not None:
            self.process.kill()
        code = self.process.wait(LIMIT)
        assert kind or code in (0, -signal.SIGKILL)


INPUTS = [b"", b"hello", b"p...", b"py..", b"pyv.", b"pyvm", b"EXIT"]
ENDS = [0, 0, 0, 0, 0, signal.SIGABRT, 77 << 8]


def edges(found: bytes) -> set[int]:
    return {edge for edge, count in enumerate(found) if count}


def check_runs(fuzzer: Fuzzer) -> None:
    """Each end as wait() has it; the same map for the same input."""
    first = [fuzzer.run(data) for data in INPUTS]
    assert [status for status, _ in first] == ENDS
    for _ in range(100):  # beyond the first, which are looked at one by one
        assert [fuzzer.run(data) for data in INPUTS] == first
    maps = [edges(found) for _, found in first]
    for number in range(2, len(maps)):  # each goes where none has been
        assert maps[number] - set().union(*maps[:number])


def test_shared_memory_and_flags(target) -> None:
    with Fuzzer(target) as fuzzer:
        hello = fuzzer.hear()
        assert hello & 0x8000_0001 == 0x8000_0001
        assert hello & 0x4000_0000 and hello & 0x0100_0000
        assert ((hello & 0x00FF_FFFE) >> 1) + 1 == SIZE
        fuzzer.say(0x8100_0001)
        check_runs(fuzzer)


def test_versioned(target) -> None:
    with Fuzzer(target, "unused", "versioned") as fuzzer:
        assert fuzzer.hear() == 0x4146_4C01
        fuzzer.say(0x4146_4C01 ^ 0xFFFF_FFFF)
        assert fuzzer.hear() == 3
        assert fuzzer.hear() == SIZE
        assert fuzzer.hear() == 0x4146_4C01
        check_runs(fuzzer)


@pytest.mark.parametrize("words", [[], ["unused", "versioned"], ["file"]])
def test_a_client_that_knows_no_flags(target, words) -> None:
    """Its first word is a request already; the input comes by a file."""
    words = [str(target.parent / "input") if w == "file" else w for w in words]
    if "unused" in words:
        words[0] = str(target.parent / "input")
    with Fuzzer(target, *words, shared=False) as fuzzer:
        fuzzer.hear()
        check_runs(fuzzer)


def test_offered_but_declined(target) -> None:
    """Shared memory that the client does not confirm is not used."""
    with Fuzzer(target) as fuzzer:
        fuzzer.hear()
        fuzzer.give(b"pyvm")
        fuzzer.input.bytes[:4] = bytes(4)
        fuzzer.say(0)
        os.kill(fuzzer.hear(), 0)
        assert fuzzer.hear() == signal.SIGABRT


def test_a_turn_that_takes_too_long(target) -> None:
    """Killing the stand-in ends it; what comes next is as ever."""
    with Fuzzer(target) as fuzzer:
        fuzzer.hear()
        fuzzer.say(0x8100_0001)
        before = fuzzer.run(b"hello")
        for _ in range(20):
            assert fuzzer.run(b"SPIN", kill=True)[0] == signal.SIGKILL
            assert fuzzer.run(b"hello") == before
        for _ in range(20):  # killed when the turn may be over already
            assert fuzzer.run(b"hello", kill=True)[0] in (0, signal.SIGKILL)
        assert fuzzer.run(b"hello") == before


def test_the_stand_in_goes_with_the_target(target) -> None:
    with Fuzzer(target) as fuzzer:
        fuzzer.hear()
        fuzzer.say(0x8100_0001)
        fuzzer.give(b"")
        fuzzer.say(0)
        pid = fuzzer.hear()
        watch = os.pidfd_open(pid)
        assert fuzzer.hear() == 0
        fuzzer.process.kill()
        poll = select.poll()
        poll.register(watch)
        assert poll.poll(LIMIT * 1000), "it lives on"
        os.close(watch)


# -- the real one --------------------------------------------------------------

ENVIRONMENT = {
    "AFL_SKIP_BIN_CHECK": "1",
    "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1",
    "AFL_SKIP_CPUFREQ": "1",
    "AFL_NO_UI": "1",
    "AFL_NO_AFFINITY": "1",
    "AFL_FORKSRV_INIT_TMOUT": "100000",
}


def environment(**more: str) -> dict[str, str]:
    """For AFL's tools. What is preloaded (make san) is for the target alone."""
    found = {**os.environ, **ENVIRONMENT, **more}
    preload = found.pop("LD_PRELOAD", "")
    found.pop("ASAN_OPTIONS", None)  # AFL has its own
    return found | ({"AFL_PRELOAD": preload} if preload else {})


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, "tools/setup installs afl++"
    return path


@pytest.mark.parametrize("by", ["shared memory", "@@"])
def test_afl_fuzz_finds_the_crash(target, tmp_path, by) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "hello").write_text("hello")
    done = subprocess.run(
        [
            tool("afl-fuzz"), "-i", "seeds", "-o", "out", "-s", "1",
            "-V", str(LIMIT), "-t", "1000", "--", sys.executable, target,
            *(["@@"] if by == "@@" else []),
        ],
        cwd=tmp_path,
        env=environment(AFL_BENCH_UNTIL_CRASH="1"),
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )  # fmt: skip
    out = tmp_path / "out" / "default"
    said = f"{done.stdout}\n{done.stderr}"
    assert out.exists(), said
    crashes = list((out / "crashes").glob("id*"))
    assert [path.read_bytes()[:4] for path in crashes] == [b"pyvm"], said
    assert "sig:06" in crashes[0].name
    assert len(list((out / "queue").glob("id*"))) >= 4
    assert re.search(
        r"^stability +: 100\.00%$", (out / "fuzzer_stats").read_text(), re.M
    )


def test_afl_showmap(target, tmp_path) -> None:
    """It starts the target anew for each input, or has a fork server."""
    for name, text in [("a", "p..."), ("b", "py.."), ("c", "pyvm")]:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    subprocess.run(
        [
            tool("afl-showmap"), "-i", "in", "-o", "out", "-t", "10000", "--",
            sys.executable, target, "@@",
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )  # fmt: skip
    maps = [
        set((tmp_path / "out" / name).read_text().split()) for name in "abc"
    ]
    assert maps[1] - maps[0] and maps[2] - maps[1] - maps[0]


# -- by hand -------------------------------------------------------------------


def by_hand(
    target: Path, *words: str, **options
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, target, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        **options,
    )


def test_a_file_by_hand(target, tmp_path) -> None:
    (tmp_path / "case").write_text("pyvm")
    done = by_hand(target, str(tmp_path / "case"))
    assert done.returncode == 0
    assert "<Stop unclaimed access at parse" in done.stdout
    (tmp_path / "case").write_text("SPIN")
    assert (
        "<Stop timeout at parse" in by_hand(target, "case", cwd=tmp_path).stdout
    )


def test_standard_input_by_hand(target) -> None:
    assert "<Stop until at main" in by_hand(target, input="p" * 100).stdout


def test_with_a_map_but_no_fork_server(target) -> None:
    """As AFL_NO_FORKSRV and small tools do it: a crash is one of ours."""
    shared = Shared(SIZE)
    env = {**os.environ, "__AFL_SHM_ID": str(shared.number)}
    assert by_hand(target, input="hello", env=env).returncode == 0
    few = sum(map(bool, shared.bytes))
    shared.bytes[:] = bytes(SIZE)
    done = by_hand(target, input="pyvm", env=env)
    assert done.returncode == -signal.SIGABRT
    assert sum(map(bool, shared.bytes)) > few > 1
    shared.remove()


@pytest.mark.parametrize(
    ("value", "words"), [("x", "'x', not a number"), ("99999999", "shmat")]
)
def test_bad_environment(target, value, words) -> None:
    env = {**os.environ, "__AFL_SHM_ID": value}
    done = by_hand(target, input="", env=env)
    assert done.returncode == 1 and words in done.stderr


def test_blocks_are_no_counters() -> None:
    with pyvmm.Machine() as m:
        m.load(asm="f: hlt")
        with pytest.raises(ValueError, match="wants counters"):
            afl.serve(m, m.snapshot(), into=0, max_size=1, coverage="blocks")


def test_a_map_that_is_too_small(target) -> None:
    shared = Shared(4096)
    env = {**os.environ, "__AFL_SHM_ID": str(shared.number)}
    done = by_hand(target, input="", env=env)
    assert "the map has 65536 bytes, the buffer 4096" in done.stderr
    shared.remove()


def test_one_turn_at_a_time() -> None:
    """What serve() is made of: a turn, its map, and nothing of the last one."""
    source = """
        mov al, [0x200000]
        inc byte ptr [0x210000]
        test al, al
        jz end
        inc byte ptr [0x212000]
        end: out 0xf4, al
    """
    with pyvmm.Machine(memory="16M") as m:
        m.load(asm=source)
        options = {"into": 0x20_0000, "max_size": 1, "report": "all"}
        with m.replay(
            m.snapshot(), (), coverage=(0x21_0000, 0x4000), **options
        ) as replay:
            for trusting in (False, True):
                replay.trusting = trusting
                assert replay.trusting is trusting
                for data in (b"a", b"\0", b"b"):
                    case = replay.one(data)
                    assert (case.reason, case.status) == ("exit", data[0])
                    counters = bytearray(0x4000)
                    replay.copy_map(counters)
                    assert counters[0] == 1
                    assert counters[0x2000] == (data != b"\0")
            with pytest.raises(BufferError):
                replay.copy_map(b"x" * 0x4000)

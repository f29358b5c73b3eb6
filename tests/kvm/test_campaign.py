# SPDX-License-Identifier: Apache-2.0
"""Campaigns over executors whose workers end, and logs that end anywhere."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path

import campaign_guest
import pytest
from campaign_guest import OPTIONS, refuses, setup

import pyvmm
from pyvmm import campaign_worker, campaigns
from pyvmm.campaigns import read_log

pytestmark = pytest.mark.usefixtures("kvm")


@pytest.fixture
def snap(tmp_path: Path) -> Path:
    path = tmp_path / "guest.snap"
    campaign_guest.save(path)
    return path


class Here(Executor):
    """Runs tasks at once, in this process: for what workers do not matter."""

    def __init__(self) -> None:
        self.tasks: list[tuple] = []

    def submit(self, call, *args):
        self.tasks.append((call, args))
        future: Future = Future()
        try:
            future.set_result(call(*args))
        except BaseException as exc:
            future.set_exception(exc)
        return future


def letters(count: int) -> list[bytes]:
    return [bytes([ord("A") + i % 20]) for i in range(count)]


def start(snap: Path, inputs, **options) -> campaigns.Campaign:
    options = {"setup": setup, "timeout": 20, "executor": Here()} | options
    return pyvmm.campaign(snap, inputs, **OPTIONS, **options)


# -- results -------------------------------------------------------------------


def test_each_input_has_its_result(snap: Path) -> None:
    inputs = letters(1000)
    c = start(snap, inputs, batch=64)
    results = list(c)
    assert [r.index for r in results] == list(range(1000))
    assert [r.status for r in results] == [data[0] for data in inputs]
    assert [r.data for r in results] == inputs
    assert {r.reason for r in results} == {"exit"}
    assert (c.done, c.total, c.counts, c.deaths) == (
        1000,
        1000,
        {"exit": 1000},
        0,
    )


def test_ends_that_nobody_means(snap: Path) -> None:
    inputs = [b"A", b"!", b"", b"o", b"B", b"h", b"o"]
    c = start(snap, iter(inputs), timeout=0.05)
    results = list(c)
    assert [r.reason for r in results] == [
        "exit", "unclaimed access", "exit", "error", "exit", "timeout", "error",
    ]  # fmt: skip
    assert [r.crashed for r in results] == [0, 1, 0, 1, 0, 1, 1]
    assert results[1].where.startswith("bad") and results[5].where.startswith(
        "hang"
    )
    assert results[3].message == "LookupError: odd"
    assert results[2].status == 0
    assert "write of 4 bytes" in results[1].message
    assert "at bad+" in repr(results[1])
    assert c.total == 7


@pytest.mark.parametrize("report", ["crashed", "new"])
def test_only_what_crashed(report: str, snap: Path) -> None:
    c = start(snap, [b"A", b"!", b"B", b"o"] * 50, report=report, batch=64)
    found = list(c)
    assert [r.index for r in found] == [
        i for i in range(200) if i % 4 in (1, 3)
    ]
    assert c.counts == {"unreported": 100, "unclaimed access": 50, "error": 50}


def test_news_of_coverage(snap: Path) -> None:
    """The length is a counter: three values of it are new."""
    inputs = [b"A", b"A", b"AA", b"AA", b"A", b"A" * 4]
    c = start(snap, inputs, report="new", coverage=(campaign_guest.SIZE, 4))
    assert [(r.index, r.new) for r in c] == [(0, 1), (2, 1), (5, 1)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"report": "some"}, ValueError, "none of all, new, crashed"),
        ({"batch": 0}, ValueError, "batch 0 is not 1 or more"),
        ({"tries": True}, ValueError, "tries True is not 1"),
        ({"workers": 0}, ValueError, "workers 0 is not 1"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"executor": 7}, TypeError, "a function that makes one, not int"),
    ],
)
def test_arguments_that_make_no_sense(
    options: dict, error: type, text: str, snap: Path
) -> None:
    with pytest.raises(error, match=text):
        start(snap, [], **options)


def test_inputs_that_cannot_be(snap: Path) -> None:
    c = start(snap, [b"A", bytearray(b"B"), memoryview(b"C"), "D"], batch=3)
    with pytest.raises(TypeError, match="input 3 is a str, not bytes"):
        list(c)
    with pytest.raises(ValueError, match="input 1 has 65 bytes, more than m"):
        list(start(snap, [b"A", bytes(65)]))


def test_a_file_that_is_no_snapshot(snap: Path) -> None:
    with pytest.raises(pyvmm.Error, match="no ELF file"):
        start(Path(__file__), [])
    with open(snap, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(pyvmm.Error, match="have changed"):
        start(snap, [])
    assert start(snap, [b"A"], verify=False).total == 1


def test_the_pages_are_looked_at_once(
    snap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = pyvmm.Snapshot.verify

    def verify(self: pyvmm.Snapshot) -> None:
        looks.append(self)
        real(self)

    monkeypatch.setattr(pyvmm.Snapshot, "verify", verify)
    list(start(snap, letters(100), batch=10))
    assert len(looks) == 1
    # A worker on another host does it itself, once.
    monkeypatch.setattr(campaigns, "verified", lambda path: ("elsewhere",))
    list(start(snap, letters(100), batch=10))
    assert len(looks) == 2


def test_a_file_that_was_replaced(snap: Path) -> None:
    c = start(snap, letters(10))
    campaign_guest.save(snap, device=False)
    with pytest.raises(pyvmm.Error, match="is another file here"):
        list(c)


def test_inputs_are_read_as_they_are_wanted(snap: Path) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"A"

    with start(snap, endless(), batch=10, workers=2) as c:
        for _, result in zip(range(100), c, strict=False):
            assert result.status == ord("A")
    assert taken <= 100 + 10 * 2 * campaigns.AHEAD
    with pytest.raises(StopIteration):
        next(c)


def test_progress(snap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    list(start(
        snap, letters(100), batch=40,
        progress=lambda done, total: seen.append((done, total)),
    ))  # fmt: skip
    assert seen == [(0, 100), (40, 100), (80, 100), (100, 100)]
    list(start(snap, letters(100), progress=True))
    assert "100" in capsys.readouterr().err


# -- workers -------------------------------------------------------------------


def test_threads(snap: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        c = start(snap, letters(500), batch=50, executor=executor)
        assert sorted(r.index for r in c) == list(range(500))
        assert executor.submit(int).result() == 0  # it is the caller's


def test_processes_are_the_default(snap: Path) -> None:
    inputs = letters(2000)
    c = start(snap, inputs, executor=None, workers=2, batch=100, ordered=True)
    results = list(c)
    assert [r.index for r in results] == list(range(2000))
    assert [r.status for r in results] == [data[0] for data in inputs]


def test_inputs_that_end_workers_are_set_aside(snap: Path) -> None:
    inputs = letters(300)
    for index in (7, 150, 299):
        inputs[index] = b"k"
    inputs[200] = b"!"
    c = start(
        snap, inputs, executor=None, workers=2, batch=64, tries=2, ordered=True
    )
    results = list(c)
    assert [r.index for r in results] == list(range(300))
    assert c.aside == [7, 150, 299]
    for result in results:
        if result.index in c.aside:
            assert result.reason == "lost" and result.crashed
            assert "has ended, 2 times" in result.message
        elif result.index == 200:
            assert result.reason == "unclaimed access"
        else:
            assert result.status == inputs[result.index][0]
    assert c.counts == {"exit": 296, "lost": 3, "unclaimed access": 1}
    assert c.deaths >= 6


def test_a_worker_that_is_killed(snap: Path) -> None:
    """From outside, while it works: nothing is lost, nothing there twice."""
    inputs = letters(4000)
    pool: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        from multiprocessing import get_context

        pool.append(ProcessPoolExecutor(2, get_context("forkserver")))
        return pool[-1]

    seen = []
    c = start(snap, inputs, executor=make, workers=2, batch=50)
    for result in c:
        seen.append(result.index)
        if len(seen) in (500, 2000):
            pid = next(iter(pool[-1]._processes))
            os.kill(pid, signal.SIGKILL)
    assert sorted(seen) == list(range(4000))
    assert c.aside == [] and c.deaths >= 2 and len(pool) >= 3
    assert c.counts == {"exit": 4000}


def test_an_executor_that_cannot_be_made_anew(snap: Path) -> None:
    from multiprocessing import get_context

    with (
        ProcessPoolExecutor(1, get_context("forkserver")) as executor,
        pytest.raises(pyvmm.Error, match="pass a function that makes"),
    ):
        list(start(snap, [b"A", b"k"], executor=executor))


def test_what_is_wrong_with_all_workers(snap: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="no machine today"):
        list(start(snap, letters(5), setup=refuses))
    with pytest.raises(ValueError, match="wants a function that attaches"):
        list(start(snap, letters(5), setup=None))
    with pytest.raises(pyvmm.Error, match="the workers end before they run"):
        list(start(snap, letters(5), setup=campaign_guest.dies, executor=None,
                   workers=1))  # fmt: skip


class KilledWorker(Exception):
    """As a scheduler says it."""


def test_workers_that_end_again_and_again(snap: Path) -> None:
    class Bad(Here):
        def submit(self, call, *args):
            if call is campaign_worker.prepare:
                return super().submit(call, *args)
            future: Future = Future()
            future.set_exception(KilledWorker())
            return future

    with pytest.raises(pyvmm.Error, match="ended 41 times in a row"):
        list(start(snap, letters(1000), executor=Bad(), tries=1000))


def test_what_a_worker_raises_leaves_it(snap: Path) -> None:
    class Bad(Here):
        def submit(self, call, *args):
            if call is campaign_worker.run and args[1] >= 20:
                args = (None, *args[1:])
            return super().submit(call, *args)

    c = start(snap, letters(100), executor=Bad(), batch=10)
    with pytest.raises(AttributeError) as caught:
        list(c)
    assert "at inputs 20 to 29" in caught.value.__notes__[0]


# -- the log -------------------------------------------------------------------


def test_a_log_is_gone_on_with(snap: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    inputs = letters(500)
    inputs[33] = b"!"
    with start(snap, inputs, batch=50, log=log) as c:
        first = [next(c).index for _ in range(170)]
    c = start(snap, inputs, batch=70, log=log, ordered=True)
    assert (c.done, c.counts["unclaimed access"]) == (200, 1)
    rest = [r.index for r in c]
    assert rest == list(range(200, 500)) and first == list(range(170))
    assert c.counts == {"exit": 499, "unclaimed access": 1}
    whole = list(read_log(log))
    assert [r.index for r in whole] == list(range(500))
    assert (
        whole[33].where.startswith("bad") and whole[34].status == inputs[34][0]
    )
    c = start(snap, inputs, log=log)
    assert list(c) == [] and c.done == 500


def test_a_log_that_was_cut_off_anywhere(snap: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    inputs = letters(60)
    list(start(snap, inputs, batch=20, log=log))
    whole = log.read_bytes()
    head = whole.index(b"\n")
    for left in [*range(0, head, 60), *range(head, len(whole), 17)]:
        log.write_bytes(whole[:left])
        here = Here()
        c = start(snap, inputs, batch=20, log=log, executor=here)
        before = c.done
        assert before == 20 * max(0, whole[:left].count(b"\n") - 1)
        assert [r.index for r in c] == list(range(before, 60))
        assert log.read_bytes() == whole
        assert len(here.tasks) == 1 + (60 - before) // 20


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from campaign_guest import OPTIONS, setup
import pyvmm

if __name__ == "__main__":
    print("go", flush=True)
    for r in pyvmm.campaign(
        {snap!r}, [bytes([65 + i % 20]) for i in range(20000)], setup=setup,
        timeout=20, log={log!r}, workers=2, batch=20, **OPTIONS,
    ):
        print(r.index, flush=True)
"""


def test_a_campaign_that_is_killed(snap: Path, tmp_path: Path) -> None:
    log, script = tmp_path / "log", tmp_path / "script.py"
    folder = str(Path(__file__).parent)
    script.write_text(
        KILLED.format(folder=folder, snap=str(snap), log=str(log))
    )
    told: set[int] = set()
    for count in (1, 300, 1000):
        child = subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        for _, line in zip(range(count), child.stdout, strict=False):
            assert int(line) not in told
            told.add(int(line))
        child.kill()
        child.wait()
        # Its workers have the other end, too, and go with it.
        child.stdout.read()
        child.stdout.close()
    # What was told is in the log, and what is there goes on being so.
    logged = {r.index for r in read_log(log)}
    assert told <= logged and len(logged) < 20000
    inputs = [bytes([65 + i % 20]) for i in range(20000)]
    rest = [r.index for r in start(snap, inputs, log=log, report="all")]
    assert sorted([*logged, *rest]) == list(range(20000))


def test_logs_of_something_else(snap: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    inputs = letters(100)
    list(start(snap, inputs, batch=50, log=log))
    other = [*inputs[:60], b"Z", *inputs[61:]]
    with pytest.raises(pyvmm.Error, match="other inputs: 50 to 99 differ"):
        list(start(snap, other, log=log))
    with pytest.raises(pyvmm.Error, match="other inputs: 50 to 99 differ"):
        list(start(snap, inputs[:70], log=log))
    with pytest.raises(pyvmm.Error, match="another campaign: its timeout is"):
        start(snap, inputs, log=log, timeout=5)
    text = tmp_path / "text"
    text.write_text("hello\n")
    with pytest.raises(pyvmm.Error, match="is no log of a campaign"):
        start(snap, inputs, log=text)
    assert text.read_text() == "hello\n"
    used = tmp_path / "used"
    with (
        start(snap, inputs, log=used),
        pytest.raises(pyvmm.Error, match="of a campaign that runs"),
    ):
        start(snap, inputs, log=used)


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1},
        {"end": 7},
        {"end": "x"},
        {"outcomes": [["exit", 1]]},
        {"runs": [[50, 99]]},
        {"runs": [[1, -1]]},
        {"runs": None},
        {"start": 10, "end": 60},
    ],
)
def test_logs_that_are_damaged(
    change: dict, snap: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    list(start(snap, letters(100), batch=50, log=log))
    lines = log.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(pyvmm.Error, match="is damaged"):
        start(snap, letters(100), log=log)

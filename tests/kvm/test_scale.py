# SPDX-License-Identifier: Apache-2.0
"""A thousand machines alive in one process, and nothing left of them."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pyvmm

COUNT = 1000
FEWEST = 100
FDS_OF_EACH = 2  # the VM's and the vCPU's
FDS_SPARE = 100
PAGE = 4096
MIB = 1 << 20

# mov $7, %al; out %al, $0xe9; out %al, $0xf4; hlt
CODE = bytes.fromhex("b007 e6e9 e6f4 f4")


def how_many() -> int:
    """COUNT, or what RLIMIT_NOFILE has room for; the limit is raised."""
    need = FDS_OF_EACH * COUNT + FDS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return COUNT
    if hard != resource.RLIM_INFINITY and hard < need:
        need = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return (need - FDS_SPARE) // FDS_OF_EACH


def resident() -> int:
    """Pages of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def wait_for_threads(count: int) -> None:
    """A thread that has ended is listed until the kernel has buried it."""
    deadline = monotonic() + 10
    while threads() > count and monotonic() < deadline:
        sleep(0.001)


def one_round(count: int) -> dict[str, Any]:
    """Machines that all live at once, run once each, then closed."""
    pages = resident()
    machines = []
    for _ in range(count):
        m = pyvmm.Machine(memory="16M")
        m.load(raw=CODE)
        machines.append(m)
    statuses = {m.run(timeout=60).status for m in machines}
    most = resident()
    taken = len(fds())
    outputs = {m.console.bytes for m in machines}
    for m in machines:
        m.close()
    del machines, m
    pyvmm._vmm.reap()
    gc.collect()
    return {
        "statuses": sorted(statuses),
        "outputs": sorted(repr(text) for text in outputs),
        "taken": taken,
        "pages_of_each": (most - pages) / count,
        "pages_left_of_each": (resident() - pages) / count,
    }


def in_child() -> None:
    """What the test runs in a process of its own."""
    count = how_many()
    one_round(1)  # /dev/kvm, modules
    wait_for_threads(1)
    before = fds()
    one_round(count)  # what the allocators keep
    rounds = [one_round(count) for _ in range(2)]
    least = min(rounds, key=lambda r: r["pages_left_of_each"])
    wait_for_threads(1)
    left = sorted(set(fds()) - set(before))
    print(json.dumps({
        **least, "count": count, "fds_left": left, "threads": threads(),
    }))  # fmt: skip


def test_a_thousand_machines(pytestconfig) -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    count = found["count"]
    assert count >= FEWEST, "RLIMIT_NOFILE: raise it with ulimit -Hn"
    print(f"{count} machines")
    assert found["statuses"] == [7]
    assert found["outputs"] == [repr(b"\x07")]
    assert found["taken"] >= FDS_OF_EACH * count
    assert found["fds_left"] == []
    assert found["threads"] == 1
    if not pytestconfig.getoption("--sanitized"):  # which keeps what was freed
        assert found["pages_of_each"] * PAGE < MIB
        # Allocators keep some; what is forgotten is at least a page each.
        assert found["pages_left_of_each"] < 1


if __name__ == "__main__":
    in_child()

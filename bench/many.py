# SPDX-License-Identifier: Apache-2.0
"""Many machines in one process: what an idle one costs, and nothing left.

A child process does the work, so that its memory is that of its machines:

    python -m bench.many COUNT ROUNDS HOW      HOW: Machine or _vmm

prints one JSON object for each round, see one_round().
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter_ns, sleep

import pyvmm
from pyvmm import _vmm

from .create import CODE, Closing, LowLevel
from .measure import Figure
from .table import Row

ROOT = Path(__file__).parent.parent
FDS_OF_EACH = 2  # the VM's and the vCPU's
FDS_SPARE = 100
PAGE = 4096

# Of the kernel's memory, what is counted apart. The pages of kvm_run and of
# the like are in none of these; those that are mapped count as the process's.
KERNEL = ("Slab", "KernelStack", "PageTables", "SecPageTables", "VmallocUsed",
          "Percpu")  # fmt: skip


def fields(path: str) -> dict[str, int]:
    """Lines of "Name: 12 kB", in bytes."""
    found = {}
    with open(path) as file:
        for text in file:
            name, _, rest = text.partition(":")
            parts = rest.split()
            if len(parts) == 2 and parts[1] == "kB":
                found[name] = int(parts[0]) * 1024
    return found


class Look:
    """What the process and the kernel use now."""

    def __init__(self) -> None:
        self.rss = fields("/proc/self/smaps_rollup")["Rss"]
        system = fields("/proc/meminfo")
        self.kernel = sum(system.get(name, 0) for name in KERNEL)
        self.fds = len(os.listdir("/proc/self/fd"))
        self.threads = len(os.listdir("/proc/self/task"))
        with open("/proc/self/maps") as maps:
            self.maps = sum(1 for _ in maps)


def make_machine() -> Callable[[], Closing]:
    def make() -> Closing:
        m = pyvmm.Machine(memory="16M")
        m.load(raw=CODE)
        if m.run(timeout=30).status != 7:
            raise RuntimeError("the guest ended otherwise")
        return m

    return make


def make_vmm() -> Callable[[], Closing]:
    low = LowLevel()

    def make() -> Closing:
        vm, cpu = low.make()
        if cpu.run(30).value != 7:
            raise RuntimeError("the guest ended otherwise")
        return Both(cpu, vm)

    return make


class Both:
    """A VM with its vCPU kept alive."""

    def __init__(self, cpu: Closing, vm: Closing) -> None:
        self.cpu = cpu
        self.vm = vm

    def close(self) -> None:
        self.vm.close()


def raise_limit(count: int) -> None:
    """Let the process have the fds of so many machines, or say who will not."""
    need = FDS_OF_EACH * count + FDS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise SystemExit(
                f"{count} machines need {need} files, RLIMIT_NOFILE allows "
                f"{hard}: ulimit -Hn {need}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def wait_for_threads(count: int) -> None:
    """A thread that has ended is listed until the kernel has buried it."""
    deadline = monotonic() + 1
    while len(os.listdir("/proc/self/task")) > count:
        if monotonic() > deadline:
            break
        sleep(0.001)


def one_round(make: Callable[[], Closing], count: int) -> dict[str, float]:
    """Make them, run each once, close all."""
    gc.collect()
    before = Look()
    start = perf_counter_ns()
    alive = [make() for _ in range(count)]
    made = perf_counter_ns()
    during = Look()
    start_close = perf_counter_ns()
    for one in alive:
        one.close()
    del alive[:]
    _vmm.reap()
    end = perf_counter_ns()
    gc.collect()
    wait_for_threads(before.threads)
    after = Look()
    return {
        "process": (during.rss - before.rss) / count,
        "kernel": (during.kernel - before.kernel) / count,
        "make_ms": (made - start) / count / 1e6,
        "close_ms": (end - start_close) / count / 1e6,
        "fds": after.fds - before.fds,
        "threads": after.threads - before.threads,
        "mappings": (after.maps - before.maps) / count,
        "pages": (after.rss - before.rss) / PAGE / count,
    }


def work(count: int, rounds: int, how: str) -> None:
    raise_limit(count)
    make = make_machine() if how == "Machine" else make_vmm()
    # What the first ones leave for good: modules, thread stacks, arenas.
    one_round(make, count)
    wait_for_threads(1)
    for _ in range(rounds):
        print(json.dumps(one_round(make, count)), flush=True)


def in_child(count: int, rounds: int, how: str) -> list[dict[str, float]]:
    command = [
        sys.executable, "-m", "bench.many", str(count), str(rounds), how,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=300
    )
    return [json.loads(text) for text in done.stdout.splitlines()]


def figure(results: list[dict[str, float]], *names: str) -> Figure:
    return Figure([sum(r[name] for name in names) for r in results])


def idle(effort: float) -> Iterator[Row]:
    for how in ("_vmm", "Machine"):
        found = in_child(100, max(3, round(9 * effort)), how)
        kernel = figure(found, "kernel").median / 1024
        yield Row(
            f"memory of an idle VM, 100 in a process, {how}",
            figure(found, "process", "kernel"), 1024, unit="KiB",
            scale=1 / 1024, digits=0, below=True,
            note=f"{kernel:.0f} KiB of it the kernel's",
        )  # fmt: skip


def scale(effort: float) -> Iterator[Row]:
    found = in_child(1000, 3 if effort >= 1 else 1, "Machine")
    make = figure(found, "make_ms").median
    close = figure(found, "close_ms").median
    yield Row(
        "memory of a VM, 1000 alive, each run once",
        figure(found, "process", "kernel"), 1024, unit="KiB",
        scale=1 / 1024, digits=0, below=True,
        note=f"create and run {make:.1f} ms, close {close:.1f} ms",
    )  # fmt: skip
    for name in ("fds", "threads"):
        yield Row(f"1000 VMs closed: {name} left", figure(found, name), 0,
                  digits=0)  # fmt: skip
    # Allocators keep some; what is forgotten is at least one of each VM.
    for name in ("mappings", "pages"):
        yield Row(f"1000 VMs closed: {name} left, of each VM",
                  figure(found, name), 1, below=True)  # fmt: skip


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

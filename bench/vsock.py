# SPDX-License-Identifier: Apache-2.0
"""virtio-vsock: bytes between a guest and Python, over a socketpair's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from time import perf_counter_ns

import pyvmm
from pyvmm import _vmm
from pyvmm.devices import Vsock

from .measure import Figure, pairs, ratio
from .table import Row

ROOT = Path(__file__).parent.parent
GUEST = ROOT / "build/guest/vsock-ring3.elf"
PORT = 52
SIZE = 32 << 20  # bytes of a run
PART = 1 << 16  # of a send
PATIENCE = 60

Measure = Callable[[socket.socket], float]


def receive(sock: socket.socket) -> float:
    """ns from the first byte to the end."""
    buffer = bytearray(1 << 18)
    count = sock.recv_into(buffer)
    start = perf_counter_ns()
    while got := sock.recv_into(buffer):
        count += got
    took = perf_counter_ns() - start
    if count < SIZE:
        raise RuntimeError(f"{count} bytes came, not {SIZE}")
    return took


def send(sock: socket.socket) -> float:
    """ns until all has been read."""
    part = bytes(PART)
    start = perf_counter_ns()
    for _ in range(SIZE // PART):
        sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(PART):
        pass
    return perf_counter_ns() - start


def by_vsock(measure: Measure, words: str) -> float:
    """The guest has the other end."""
    device = Vsock()
    with pyvmm.Machine() as m, device.listen(PORT) as listener:
        m.attach(device)
        m.load(GUEST, cmdline=f"connect={PORT} plain {words}")
        m.start()
        sock, _ = listener.accept(PATIENCE)
        with sock:
            took = measure(sock)
        status = m.wait(PATIENCE).status
    _vmm.reap()
    if status:
        raise RuntimeError(m.console.text)
    return took


def by_socketpair(measure: Measure, other: Measure) -> float:
    """A thread has the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = Thread(target=at_the_other_end, args=(other, theirs))
        thread.start()
        took = measure(ours)
        thread.join()
    return took


def at_the_other_end(measure: Measure, sock: socket.socket) -> None:
    if measure is send:
        part = bytes(PART)
        for _ in range(SIZE // PART):
            sock.sendall(part)
    else:
        measure(sock)
    sock.shutdown(socket.SHUT_WR)


def streams(effort: float) -> Iterator[Row]:
    count = max(5, round(20 * effort))
    for name, measure, other, words in (
        ("guest to host", receive, send, f"bytes={SIZE}"),
        ("host to guest", send, receive, "bytes=4"),
    ):
        found = pairs(
            partial(by_socketpair, measure, other),
            partial(by_vsock, measure, words),
            count,
        )
        rate = Figure([SIZE / vsock for _, vsock in found])
        yield Row(
            f"vsock, {name}, time of a socketpair's", ratio(found), unit="x",
            digits=1, note=f"{rate.median * 1e3:,.0f} MB/s",
        )  # fmt: skip

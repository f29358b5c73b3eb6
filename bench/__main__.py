# SPDX-License-Identifier: Apache-2.0
"""python -m bench: see README.md."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from time import monotonic

from . import (
    blk,
    campaign,
    create,
    exits,
    filters,
    guest_tests,
    load,
    many,
    net,
    ninep,
    reload,
    restore,
    rng,
    start,
    virtio,
    vsock,
)
from .table import HEAD, Row, line

BENCHES: dict[str, Callable[[float], Iterator[Row]]] = {
    "exits-c": exits.in_c,
    "exits-python": exits.in_python,
    "dispatch": exits.dispatch,
    "filters": filters.filters,
    "create": create.first_exit,
    "load": load.load,
    "campaign": campaign.campaign,
    "start": start.start,
    "rng": rng.requests,
    "vsock": vsock.streams,
    "net": net.frames,
    "virtio": virtio.requests,
    "ninep": ninep.reads,
    "blk": blk.requests,
    "reload": reload.reload,
    "restore": restore.loops,
    "clone": restore.clones,
    "guest-tests": guest_tests.guest_tests,
    "idle": many.idle,
    "scale": many.scale,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer pairs, less certainty"
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=BENCHES,
        help=f"one of {', '.join(BENCHES)}; may be given again",
    )
    args = parser.parse_args()
    effort = 0.2 if args.quick else 1.0
    broken = over = 0
    began = monotonic()
    load, cpus = os.getloadavg()[0], os.cpu_count()
    print(f"load {load:.1f} on {cpus} CPUs, Linux {os.uname().release}\n")
    print(line(HEAD))
    for name in args.only or BENCHES:
        gc.collect()
        try:
            for row in BENCHES[name](effort):
                over += row.verdict.startswith("over")
                print(line(row.cells()), flush=True)
        except Exception:
            broken += 1
            print(f"{name}: broken", flush=True)
            traceback.print_exc()
    took = monotonic() - began
    print(f"{over} over their bound, {broken} broken, {took:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

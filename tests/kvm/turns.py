# SPDX-License-Identifier: Apache-2.0
"""A guest that stands before parse(buf, len), for tests of replay()."""

from collections.abc import Iterable

import pyvmm
from pyvmm.replay import Replay


class Target:
    """`source`: C with such a function and a `buf`. `options`: of replays."""

    def __init__(self, source: str, **options: object) -> None:
        self.m = pyvmm.Machine(memory="16M")
        self.m.load(c=source)
        self.m.run(until="parse", timeout=10)
        self.snap = self.m.snapshot()
        self.length = (self.m.cpu.esp + 8, 4)
        self.options = options

    def replay(self, inputs: Iterable[bytes], **options) -> Replay:
        given = {
            "into": "buf",
            "length": self.length,
            "max_size": 64,
            "until": "return",
        }
        return self.m.replay(
            self.snap, inputs, **given | self.options | options
        )

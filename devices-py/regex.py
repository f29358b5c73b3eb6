# SPDX-License-Identifier: Apache-2.0
"""A regular expression accelerator: what a guest searches, the host finds.

    with pyvmm.Machine() as m:
        m.attach(Regex())

or `pyvmm run kernel.elf --device devices-py/regex.py`. A virtio device with the
id 61 and one queue. A request is

| bytes | to be read by the device |
| --- | --- |
| 2 | P, the length of the pattern, little endian |
| P | the pattern: devices-py/regex_engine.py says what is understood |
| the rest | the text, at most `limit` bytes |

and room for the answer: 4 bytes with the number of matches, then start and end
of each, 4 bytes each, as many as there is room for; the first from the left, at
each place the longest, none that overlap. A number with the highest bit set
means that there is none: BAD, the pattern is wrong; LONG, the text is longer
than `limit`; WORK, the search takes too many steps. Words for people follow
then, as far as there is room.

| configuration | |
| --- | --- |
| 0x0, 4 bytes | `limit`, the most bytes of a text |
| 0x4, 4 bytes | the most bytes of a pattern |

>>> with virtio.driver(Regex()) as drv:
...     found = drv.requests(ask(b"[a-c]+\\\\d?", b"xx abc1 zz cab"), reply=64)
...     wrong = drv.requests(ask(b"a(b", b""), reply=64)
>>> matches(found)
[(3, 7), (11, 14)]
>>> hex(int.from_bytes(wrong[:4], "little")), wrong[4:]
('0x80000001', b'the pattern ends at byte 3')
"""

import struct
from functools import lru_cache
from typing import ClassVar

from pyvmm import virtio
from pyvmm.devices import regex_engine

BAD, LONG, WORK = 0x8000_0001, 0x8000_0002, 0x8000_0003
PATTERNS = 16  # that are kept compiled
STEPS = 64  # of the automaton that each byte of a text is worth
STEPS_LEAST = 4096


class Regex(virtio.Device):
    """Finds all matches of a regular expression, in bounded time.

    Threads: as virtio.Device; behind a doorbell unless told otherwise, so that
    the guest can do something else meanwhile.
    """

    device_id = 61
    queues: ClassVar[dict[str, int]] = {"requests": 64}
    config = virtio.Struct(limit="<I", pattern_limit="<I")

    def __init__(self, *, limit: int = 1 << 16, notify: str = "thread") -> None:
        if not 0 < limit <= 1 << 24:
            raise ValueError(f"limit {limit} is outside 1..{1 << 24}")
        self.notify = notify
        self.compile = lru_cache(PATTERNS)(regex_engine.Pattern)
        self.config.limit = limit
        self.config.pattern_limit = regex_engine.PATTERN_MAX

    def on_requests(self, queue: virtio.Queue) -> None:
        for chain in queue:
            (length,) = struct.unpack("<H", chain.take(2))
            if chain.writable_size < 4:
                raise virtio.ShortChain("no room for an answer")
            room = (chain.writable_size - 4) // 8
            if chain.readable_size - 2 > length + self.config.limit:
                self.refuse(
                    chain, LONG, f"more than {self.config.limit} bytes of text"
                )
                continue
            pattern, text = chain.take(length), chain.read()
            work = STEPS_LEAST + STEPS * len(text)
            try:
                found = self.compile(pattern).finditer(
                    text, min(room, 1 << 20), work
                )
            except regex_engine.PatternError as exc:
                self.refuse(chain, BAD, str(exc))
            except regex_engine.WorkError as exc:
                self.refuse(chain, WORK, str(exc))
            else:
                numbers = [n for match in found for n in match]
                chain.write(struct.pack("<I", len(found)))
                chain.write(struct.pack(f"<{len(numbers)}I", *numbers))

    def refuse(self, chain: virtio.Chain, why: int, text: str) -> None:
        """An answer that is none."""
        chain.write(struct.pack("<I", why))
        chain.write(text.encode()[: chain.writable_size - 4])


def ask(pattern: bytes, text: bytes) -> bytes:
    """A request, for tests."""
    return struct.pack("<H", len(pattern)) + pattern + text


def matches(answer: bytes) -> list[tuple[int, int]]:
    """The matches of an answer, for tests."""
    (count,) = struct.unpack_from("<I", answer)
    return list(struct.iter_unpack("<II", answer[4 : 4 + 8 * count]))

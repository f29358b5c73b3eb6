# SPDX-License-Identifier: Apache-2.0
"""The port to which PC firmware and early kernels write how far they are.

Guests that write to port 0x80 (many do, some only to wait a moment) end with an
unclaimed access on a strict machine. This claims it, and keeps what is written:

    with pyvmm.Machine() as m:
        post = m.attach(PostCodes())
        m.load("firmware.elf")
        stop = m.run(timeout=5, check=False)
    print(post)                 # <PostCodes 01 02 7f>

>>> post = PostCodes(keep=2)
>>> for code in (1, 2, 0x7F):
...     post.write(0, 1, code)
>>> post
<PostCodes 02 7f>
>>> post.last == 0x7F == post.read(0, 1)
True
"""

from collections import deque

import pyvmm


class PostCodes(pyvmm.Device):
    """Keeps the last `keep` codes that a guest has written; reads the last.

    Threads: as Device.
    """

    size = 1
    port = 0x80

    def __init__(self, keep: int = 256) -> None:
        # Bounded: a guest may write for ever.
        self.codes: deque[int] = deque(maxlen=keep)

    @property
    def last(self) -> int | None:
        """The code written last, None when there is none."""
        return self.codes[-1] if self.codes else None

    def read(self, offset: int, size: int) -> int:
        return self.last or 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.codes.append(value)

    def __repr__(self) -> str:
        return f"<PostCodes {' '.join(f'{code:02x}' for code in self.codes)}>"

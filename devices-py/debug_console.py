# SPDX-License-Identifier: Apache-2.0
"""The port to which firmware prints: what Bochs has at 0xe9, and OVMF at 0x402.

    with pyvmm.Machine(strict=False) as m:
        console = m.attach(DebugConsole())  # at port 0x402
        m.load("firmware.elf")
        m.run(timeout=5, check=False)
    print(console.text)

`attach(DebugConsole(), port=0xE9)` is Bochs's, for a machine that is made with
`console=False`: others have a console of their own there. A guest finds out
whether there is one of these by a read, which gives 0xe9:

>>> console = DebugConsole()
>>> for byte in b"SEC":
...     console.write(0, 1, byte)
>>> console.output, hex(console.read(0, 1))
(b'SEC', '0xe9')
"""

from collections.abc import Callable

import pyvmm

ANSWER = 0xE9


class DebugConsole(pyvmm.Device):
    """Keeps the bytes that a guest writes, and gives them to a callable.

    `output`: called with each byte, as bytes, on the thread of the vCPU.
    `keep`: how many `DebugConsole.output` has at most, the newest.

    Threads: as Device.
    """

    size = 1
    port = 0x402

    def __init__(
        self,
        output: Callable[[bytes], object] | None = None,
        *,
        keep: int = 1 << 20,
    ) -> None:
        self.on_output = output
        self.keep = keep
        self._written = bytearray()

    @property
    def output(self) -> bytes:
        """What the guest has written, the last `keep` bytes of it."""
        return bytes(self._written)

    @property
    def text(self) -> str:
        """The same as text: UTF-8, what is none as U+FFFD."""
        return self.output.decode("utf-8", "replace")

    def read(self, offset: int, size: int) -> int:
        return ANSWER

    def write(self, offset: int, size: int, value: int) -> None:
        self._written.append(value)
        if len(self._written) > self.keep:
            del self._written[: len(self._written) - self.keep]
        if self.on_output is not None:
            self.on_output(bytes((value,)))

# SPDX-License-Identifier: Apache-2.0
"""A native virtio-rng: the description that a machine makes a device of."""

from __future__ import annotations

from . import _vmm
from .native import Native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from typing_extensions import Buffer

    class Reader(Protocol):
        """Anything like a binary file."""

        def read(self, size: int, /) -> Buffer: ...

    class Xof(Protocol):
        """hashlib's SHAKE objects."""

        def copy(self) -> Xof: ...
        def update(self, data: Buffer, /) -> None: ...
        def digest(self, length: int, /) -> bytes: ...

    Source = Callable[[int], Buffer] | Reader | Xof


CHUNK = 65536


class Rng(Native):
    """A virtio-rng device (virtio 1.2, 5.4), handled in C.

    `source`: where the bytes come from. None: getrandom(). A callable that
    takes n and returns 1 to n bytes (b"": it has ended). An object with
    read(n), such as a file opened "rb". A hashlib XOF (`shake_128(b"seed")`),
    for the same bytes in each run: the stream is the concatenation of digests
    of 65536 bytes of its copies, the i-th updated with i as 8 little-endian
    bytes.
    `rate`: at most so many bytes a second; implies notify="thread".
    `notify`: "inline", requests are answered on the vCPU's exit; or "thread",
    they ring an eventfd and a thread answers while the guest runs on.
    `queue_size`: a power of two up to 32768.

    Once attached: `base` (address), `irq_line`, `machine`, and `native`, the
    `_vmm.Rng` that does the work and counts `bytes` and `requests`.

    Raises ValueError and TypeError for arguments that make no sense.

    Threads: a description; `source` is called on the thread that answers.
    """

    name = "rng"
    native: _vmm.Rng | None = None

    def __init__(
        self,
        source: Source | None = None,
        *,
        rate: int | None = None,
        notify: str = "inline",
        queue_size: int = 256,
    ) -> None:
        if notify not in ("inline", "thread"):
            raise ValueError(
                f"notify {notify!r} is neither 'inline' nor 'thread'"
            )
        if rate is not None and rate <= 0:
            raise ValueError(f"rate {rate} must be more than 0 bytes a second")
        if queue_size & (queue_size - 1) or not 0 < queue_size <= 32768:
            raise ValueError(
                f"queue_size {queue_size} is not a power of two up to 32768"
            )
        self.source = source
        self._take = byte_source(source)
        self.rate = rate
        self.notify = "thread" if rate else notify
        self.queue_size = queue_size

    def make(self, memory: _vmm.Memory) -> _vmm.Rng:
        """The device itself, on this memory."""
        return _vmm.Rng(
            memory,
            queue_size=self.queue_size,
            source=self._take,
            rate=self.rate or 0,
        )

    def __repr__(self) -> str:
        if self.base is None:
            return f"<Rng {self.notify}, not attached>"
        return f"<Rng {self.notify}, mmio {self.base:#x}, {self.native!r}>"


def byte_source(source: Source | None) -> Callable[[int], Buffer] | None:
    """What was given as a source, as a callable; TypeError if it is none."""
    if source is None:
        return None
    if getattr(source, "digest_size", None) == 0:
        return XofStream(source)  # type: ignore[arg-type]
    if hasattr(source, "digest_size"):
        raise TypeError(
            f"{source!r} is a hash of fixed length; hashlib.shake_128 or "
            "shake_256 give a stream"
        )
    read = getattr(source, "read", None)
    if callable(read):
        return read  # type: ignore[no-any-return]
    if callable(source):
        return source
    raise TypeError(
        "a source is None, a callable, an object with read(n) or a hashlib "
        f"XOF, not {type(source).__name__}"
    )


class XofStream:
    """An endless stream of bytes from a XOF: see Rng."""

    def __init__(self, xof: Xof) -> None:
        self._xof = xof.copy()
        self._next = 0
        self._chunk = b""
        self._at = 0

    def __call__(self, size: int) -> bytes:
        """The next 1 to `size` bytes."""
        if self._at == len(self._chunk):
            xof = self._xof.copy()
            xof.update(self._next.to_bytes(8, "little"))
            self._chunk = xof.digest(CHUNK)
            self._next += 1
            self._at = 0
        start = self._at
        self._at = min(start + size, len(self._chunk))
        return self._chunk[start : self._at]

# SPDX-License-Identifier: Apache-2.0
"""Corpus: the inputs that a fuzz loop has found of interest, and new ones."""

from __future__ import annotations

import os
from hashlib import sha256

from . import _vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

    Bytes = bytes | bytearray | memoryview
    Seeds = str | PathLike[str] | Bytes | Iterable[Bytes]

# What inputs have at most, when neither the caller nor a replay says it.
DEFAULT_MAX = 4096


class Corpus:
    """Inputs made of other inputs: an iterator without end, for replay().

        corpus = pyvmm.Corpus("seeds/", seed=1)
        for case in m.replay(snap, corpus, ...):
            if not case.crashed:
                corpus.add(case.data)

    `seeds`: a folder of files, in the order of their names; bytes; or several
    of these. They come first, as they are; then changed ones: bits, numbers
    and blocks, pieces of other inputs, and `tokens`, short bytes that the
    format has (1 to 256 each). `seed`, 0 to 2**64 - 1, decides all: with the
    same calls come the same inputs, on every host. `max_size`: bytes that an
    input has at most, 4096, or what the replay() has that this is given to.

    `len()` is how many it holds, `in` whether it has some bytes; `entries` are
    those. Raises ValueError for no seeds or one above `max_size`, OSError for
    a folder that cannot be read.

    Threads: one at a time.
    """

    def __init__(
        self,
        seeds: Seeds = b"",
        *,
        seed: int = 0,
        max_size: int | None = None,
        tokens: Iterable[Bytes] = (),
    ) -> None:
        self._entries: dict[bytes, str] = {}  # and where it is from
        self._given = max_size
        self._native = _vmm.Mutator(
            seed, DEFAULT_MAX if max_size is None else max_size
        )
        for name, data in named(seeds):
            self._keep(data, name, True)
        if not self._entries:
            raise ValueError(f"{seeds!r} holds no seeds")
        for token in tokens:
            self._native.token(token)

    def add(self, data: Bytes) -> None:
        """One more input to make others of: news. Twice is once."""
        self._keep(bytes(data), "an input", False)

    def _keep(self, data: bytes, name: str, try_it: bool) -> None:
        if self._given is not None:
            check(data, name, self._given)
        if data not in self._entries:
            self._native.add(data, try_it)
            self._entries[data] = name

    def limit(self, max_size: int) -> None:
        """What a replay() says: inputs have `max_size` bytes at most.

        ValueError when one that was given is longer.
        """
        if self._given is not None and self._given < max_size:
            return
        for data, name in self._entries.items():
            check(data, name, max_size)
        self._native.max_size = max_size

    def save(self, folder: str | PathLike[str]) -> None:
        """Write all inputs to a folder, each named by its hash; OSError.

        What is there stays, so a folder can be saved to again and again, and
        be the seeds of the next corpus.
        """
        os.makedirs(folder, exist_ok=True)
        for data in self._entries:
            path = os.path.join(folder, sha256(data).hexdigest()[:16])
            if not os.path.exists(path):
                write_whole(path, data)

    @property
    def entries(self) -> list[bytes]:
        """The inputs that it holds, the oldest first."""
        return list(self._entries)

    @property
    def max_size(self) -> int:
        """Bytes that an input has at most."""
        return self._native.max_size

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, data: object) -> bool:
        return data in self._entries

    def __iter__(self) -> Iterator[bytes]:
        return self._native

    def __next__(self) -> bytes:
        return next(self._native)

    def __repr__(self) -> str:
        return f"<Corpus of {len(self)}, up to {self.max_size} bytes>"


def named(seeds: Seeds) -> Iterator[tuple[str, bytes]]:
    """The seeds, and what messages call them."""
    if isinstance(seeds, bytes | bytearray | memoryview):
        yield "the seed", bytes(seeds)
    elif isinstance(seeds, str | os.PathLike):
        with os.scandir(seeds) as entries:
            paths = sorted(entry.path for entry in entries if entry.is_file())
        for path in paths:
            with open(path, "rb") as file:
                yield path, file.read()
    else:
        for number, data in enumerate(seeds):
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(
                    f"seed {number} is bytes, not {type(data).__name__}"
                )
            yield f"seed {number}", bytes(data)


def check(data: bytes, name: str, max_size: int) -> None:
    if len(data) > max_size:
        raise ValueError(
            f"{name} has {len(data)} bytes, more than max_size, {max_size}"
        )


def write_whole(path: str, data: bytes) -> None:
    """A file that is there as a whole, or not."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)

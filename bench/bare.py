# SPDX-License-Identifier: Apache-2.0
"""The same guest on raw ioctls: build/bench/bare.so."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "build/bench/bare.so"


class _Library:
    """The functions of bare.c, loaded when they are first needed."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(str(LIBRARY), use_errno=True)
        lib.bare_host.restype = c_void_p
        lib.bare_new.restype = c_void_p
        lib.bare_new.argtypes = [
            c_void_p, c_int, c_uint64, c_uint64, c_char_p, c_uint64,
            c_char_p, c_char_p,
        ]  # fmt: skip
        lib.bare_run.restype = c_int
        lib.bare_run.argtypes = [c_void_p, c_uint64]
        lib.bare_keep.restype = c_int
        lib.bare_keep.argtypes = [c_void_p, c_uint64]
        lib.bare_reset.restype = c_int64
        lib.bare_reset.argtypes = [c_void_p, c_uint64]
        lib.bare_free.restype = None
        lib.bare_free.argtypes = [c_void_p]
        self.new = lib.bare_new
        self.run = lib.bare_run
        self.keep = lib.bare_keep
        self.reset = lib.bare_reset
        self.free = lib.bare_free
        self.host = lib.bare_host()
        if not self.host:
            refuse("/dev/kvm")


_library: _Library | None = None


def library() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


def refuse(what: str) -> None:
    err = ctypes.get_errno()
    raise OSError(err, f"{what}: {os.strerror(err)}")


class Bare:
    """A VM made by raw ioctls; `regs` and `sregs` as VCPU.get() gives them.

    `fd`: a file that RAM is a private mapping of; -1: none.
    """

    def __init__(
        self,
        gpa: int,
        size: int,
        image: bytes,
        sregs: bytes,
        regs: bytes,
        fd: int = -1,
    ) -> None:
        lib = library()
        self._lib = lib
        self._bare = lib.new(
            lib.host, fd, gpa, size, image, len(image), sregs, regs
        )
        if not self._bare:
            refuse("bare_new")

    def run(self, exits: int) -> None:
        """Enter the guest again and again until it has left so often."""
        if self._lib.run(self._bare, exits):
            refuse("bare_run")

    def keep(self, stop: int) -> None:
        """What reset() goes back to is the state now; it runs up to `stop`."""
        if self._lib.keep(self._bare, stop):
            refuse("bare_keep")

    def reset(self, times: int) -> int:
        """Run to the stop and go back, so often; how many pages were copied."""
        count: int = self._lib.reset(self._bare, times)
        if count < 0:
            refuse("bare_reset")
        return count

    def close(self) -> None:
        if self._bare:
            self._lib.free(self._bare)
            self._bare = None

# SPDX-License-Identifier: Apache-2.0
"""The configuration space of a virtio device, as fields with names."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .._vmm import VirtioMMIO
    from .device import Device

LIMIT = 256  # bytes (csrc/vmm/virtio_mmio.h)


class Field:
    """One field: where it is and how its bytes are to be read."""

    __slots__ = ("format", "many", "offset", "size")

    def __init__(self, layout: str, offset: int) -> None:
        self.format = struct.Struct(layout)
        self.offset = offset
        self.size = self.format.size
        values = len(self.format.unpack(bytes(self.size)))
        self.many = values != 1

    def unpack(self, data: bytes | bytearray) -> Any:
        """Its value: one, or a tuple of what its format names."""
        values = self.format.unpack_from(data, self.offset)
        return values if self.many else values[0]

    def pack(self, value: Any) -> bytes:
        """The bytes of a value; struct.error when they do not fit."""
        return (
            self.format.pack(*value) if self.many else self.format.pack(value)
        )


class Struct:
    """The layout of a device's configuration: `config = Struct(block="<I")`.

    Fields follow each other in the order given, without gaps, each a format of
    the module `struct` ("<" is implied: virtio is little-endian). A field
    whose name begins with an underscore is padding. On a device `config` is a
    Config. At most 256 bytes. Raises ValueError for what is no such layout.
    """

    def __init__(self, **fields: str) -> None:
        self.fields: dict[str, Field] = {}
        self.size = 0
        self.name = "config"
        for name, layout in fields.items():
            if layout[:1] in ("@", "=", ">", "!"):
                raise ValueError(
                    f"{name}={layout!r}: a configuration is little-endian, '<'"
                )
            try:
                field = Field("<" + layout.removeprefix("<"), self.size)
            except struct.error as exc:
                raise ValueError(f"{name}={layout!r}: {exc}") from None
            self.size += field.size
            if not name.startswith("_"):
                self.fields[name] = field
        if self.size > LIMIT:
            raise ValueError(f"{self.size} bytes are more than {LIMIT}")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, device: Device | None, owner: type | None = None) -> Any:
        if device is None:
            return self
        # Not a data descriptor: from now on the instance's own is found.
        config = Config(self)
        device.__dict__[self.name] = config
        return config

    def __repr__(self) -> str:
        return f"<Struct {', '.join(self.fields)}: {self.size} bytes>"


class Config:
    """The configuration of one device: the fields of its Struct.

    Assigning to a field changes the bytes that the driver reads, counts the
    generation and interrupts a driver that is live (virtio 1.2, 2.5). Raises
    AttributeError for a field that there is not, ValueError for a value that
    does not fit.

    Threads: any; a field is changed at once.
    """

    __slots__ = ("_bytes", "_fields", "_native")

    _fields: dict[str, Field]
    _bytes: bytearray
    _native: VirtioMMIO | None

    def __init__(self, layout: Struct) -> None:
        object.__setattr__(self, "_fields", layout.fields)
        object.__setattr__(self, "_bytes", bytearray(layout.size))
        object.__setattr__(self, "_native", None)

    def _connect(self, native: VirtioMMIO | None) -> None:
        object.__setattr__(self, "_native", native)

    def _field(self, name: str) -> Field:
        field = self._fields.get(name)
        if field is None:
            raise AttributeError(f"the configuration has no field {name!r}")
        return field

    def __getattr__(self, name: str) -> Any:
        return self._field(name).unpack(self._bytes)

    def __setattr__(self, name: str, value: Any) -> None:
        field = self._field(name)
        try:
            data = field.pack(value)
        except (struct.error, TypeError) as exc:
            raise ValueError(f"{name} = {value!r}: {exc}") from None
        self._bytes[field.offset : field.offset + field.size] = data
        native = self._native
        if native is not None and not native.closed:
            native.set_config(field.offset, data)

    def __bytes__(self) -> bytes:
        return bytes(self._bytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __dir__(self) -> list[str]:
        return list(self._fields)

    def __repr__(self) -> str:
        fields = (f" {name}={getattr(self, name)!r}" for name in self)
        return f"<Config{''.join(fields)}>"

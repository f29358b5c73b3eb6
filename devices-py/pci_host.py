# SPDX-License-Identifier: Apache-2.0
"""The PCI host of a PC, behind which there is nothing.

    with pyvmm.Machine() as m:
        m.attach(PciHost())                 # at port 0xcf8
        m.load("kernel.elf")
        stop = m.run(timeout=5)
    print(stop.reason)                      # "reset" after a write to 0xcf9

or `pyvmm run kernel.elf --device PciHost`. Kernels look for PCI by
configuration mechanism 1: they write a function and a register to
CONFIG_ADDRESS and find that register at CONFIG_DATA. Here they find the
mechanism and no function: all ones.

| offset | size | |
| --- | --- | --- |
| 0 | 4 | CONFIG_ADDRESS: bit 31 on, bus, device, function, register |
| 1 | 1 | reset control: 2 the kind, 4 resets, 8 as if by the power switch |
| 4 | 1, 2, 4 | CONFIG_DATA |

Other sizes at the first two are no registers: they read all ones, by which
kernels see that there is no mechanism 2. A reset ends the run with a Stop
"reset", or calls what `PciHost(on_reset=callable)` was given:

>>> host = PciHost(on_reset=lambda: print("reset"))
>>> host.write(0, 4, 0x8000_0000)
>>> hex(host.read(0, 4)), hex(host.read(4, 2))
('0x80000000', '0xffff')
>>> host.write(1, 1, 0x06)
reset

Linux only believes in the mechanism when there is a function that it knows by
its class. `PciHost(bridge=True)` has a host bridge as 0:0.0, which does
nothing:

>>> hex(PciHost(bridge=True).config(0, 0, 0)[0x0B])
'0x6'

Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 and 6.1; Intel PIIX3 data
sheet, reset control register.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyvmm

ADDRESS, RESET, DATA = 0, 1, 4  # offsets

# CONFIG_ADDRESS; the other bits read 0.
ENABLE = 1 << 31
ADDRESS_BITS = ENABLE | 0x00FF_FFFC

# Reset control.
SYSTEM = 0x02
CPU = 0x04
FULL = 0x08

CONFIG_SIZE = 256
# Red Hat's number for a host bridge that needs no driver of its own.
BRIDGE_IDS = 0x0008_1B36
HOST_BRIDGE = 0x0600  # base class and subclass


class PciHost(pyvmm.Device):
    """Configuration mechanism 1 without functions, or with a host bridge.

    `bridge`: whether there is one, 0:0.0. `on_reset`: called when the guest
    resets by reset control, on the thread of its vCPU; without it the run ends
    with a Stop "reset". `address` is CONFIG_ADDRESS.

    Threads: as Device; what several vCPUs write is theirs to keep in order.
    """

    size = 8
    port = 0xCF8

    def __init__(
        self,
        *,
        bridge: bool = False,
        on_reset: Callable[[], object] | None = None,
    ) -> None:
        self.on_reset = on_reset
        self.address = 0
        self.reset_control = 0
        self._functions: dict[tuple[int, int, int], bytes] = {}
        if bridge:
            space = bytearray(CONFIG_SIZE)
            space[0x00:0x04] = BRIDGE_IDS.to_bytes(4, "little")
            space[0x0A:0x0C] = HOST_BRIDGE.to_bytes(2, "little")
            self._functions[0, 0, 0] = bytes(space)

    def config(self, bus: int, device: int, function: int) -> bytes:
        """The configuration space of a function; all ones where none is."""
        space = self._functions.get((bus, device, function))
        return b"\xff" * CONFIG_SIZE if space is None else space

    def read(self, offset: int, size: int) -> int:
        if offset == ADDRESS and size == 4:
            return self.address
        if offset == RESET and size == 1:
            return self.reset_control
        if offset >= DATA and self.address & ENABLE:
            space = self.config(
                self.address >> 16 & 0xFF,
                self.address >> 11 & 0x1F,
                self.address >> 8 & 0x07,
            )
            at = (self.address & 0xFC) + offset - DATA
            return int.from_bytes(space[at : at + size], "little")
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == ADDRESS and size == 4:
            self.address = value & ADDRESS_BITS
        elif offset == RESET and size == 1:
            self.reset_control = value & (SYSTEM | FULL)
            if value & CPU:
                self._reset()

    def _reset(self) -> None:
        if self.on_reset is not None:
            self.on_reset()
        elif self.machine is not None:
            self.machine.reset()

    def where(self, offset: int, size: int = 1) -> str:
        if offset == RESET and size == 1:
            return "reset_control"
        return "config_data" if offset >= DATA else "config_address"

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What the guest has written, not which functions there are."""
        return {name: getattr(self, name) for name in STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        if wrong := sorted({*state} - {*STATE}):
            raise ValueError(f"PciHost has no state {', '.join(wrong)}")
        for name, value in state.items():
            setattr(self, name, value)


STATE = ("address", "reset_control")

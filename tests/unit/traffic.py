# SPDX-License-Identifier: Apache-2.0
"""What a hostile guest does to a device: any access, in any order."""

import random
from collections.abc import Callable
from typing import Any

import pyvmm
from pyvmm import testing
from pyvmm.device import RangeAt

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1)


def hammer(
    device: pyvmm.Device,
    *ranges: RangeAt,
    seed: int = 1,
    steps: int = 4000,
    check: Callable[[Any], object] = lambda bus: None,
) -> testing.Bus[Any]:
    """Accesses of every size at every place, and time that goes by.

    The same for each seed. Answers are checked to be ints of their size;
    `check(bus)` is called after each step. Returns the bus, closed.
    """
    dice = random.Random(seed)
    with testing.bus(device) as bus:
        for _ in range(steps):
            place = dice.choice((bus, *ranges))
            limit = getattr(place, "size", device.size)
            size = dice.randint(1, min(8, limit))
            offset = dice.randint(0, limit - size)
            if dice.random() < 0.1:
                bus.advance(dice.choice((1e-6, 1e-3, 0.1, 1.1)))
            elif dice.random() < 0.5:
                value = dice.choice((*INTERESTING, dice.getrandbits(64)))
                place.write(offset, size, value & (1 << 8 * size) - 1)
            else:
                value = place.read(offset, size)
                assert type(value) is int and 0 <= value < 1 << 8 * size
            check(bus)
    return bus

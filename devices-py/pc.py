# SPDX-License-Identifier: Apache-2.0
"""A minimal PC: a machine with the devices that kernels expect of one.

    from pyvmm.devices import PC

    with PC(memory="64M") as m:
        m.load("kernel.elf")
        m.console.expect("login: ", timeout=20)
        m.console.send("root\\n")
        m.run(timeout=60)

or `pyvmm run kernel.elf --preset pc`. It is a `pyvmm.Machine`, which takes the
same arguments, with these devices attached, each of them an attribute:

| attribute | device | at |
| --- | --- | --- |
| `serial` | Serial, which is `m.console` as well | ports 0x3f8, line 4 |
| `keyboard` | I8042 | ports 0x60, 0x64, line 1 |
| `rtc` | Rtc | port 0x70, line 8 |
| `pci` | PciHost, without functions | ports 0xcf8 |
| `pm` | AcpiPm | ports 0x600, line 9 |
| `pm_timer` | PmTimer | port 0x608 |
| `fw_cfg` | FwCfg | ports 0x510 |
| `debug_exit` | DebugExit | port 0x501 |
| `debug_console` | DebugConsole | port 0x402 |

and, inside the kernel, the PICs, the IOAPIC and the PIT. `memory` is at 1 MiB
as in every machine, and there are 640 KiB below. As on a PC, a port or an
address where nothing is reads as all ones: `strict=False`, unless given. There
is no HPET, no firmware and no table that says all this.

>>> with PC(cmdline="console=ttyS0") as m:
...     m.serial.write(0, 1, ord("A"))          # as the guest would
...     m.serial, m.console.text
(<Serial port 0x3f8+0x8>, 'A')

Another set of devices is another such class: it is as long as this one.
"""

from typing import Any

import pyvmm
from pyvmm.devices import (
    I8042,
    AcpiPm,
    DebugConsole,
    DebugExit,
    FwCfg,
    PciHost,
    PmTimer,
    Rtc,
    Serial,
)

BASE_MEMORY = "640K"  # from address 0 to where a PC has its screen


class PC(pyvmm.Machine):
    """A machine with the devices of a minimal PC, as its attributes.

    The arguments are those of Machine; `strict` is False and `pit` True unless
    given. With `console=False` the UART is there all the same, and keeps its
    output to itself: `m.serial.text`.

    Threads: as Machine.
    """

    def __init__(self, memory: int | str = "16M", **options: Any) -> None:
        super().__init__(memory, **{"strict": False, "pit": True} | options)
        try:
            self.add_memory(0, BASE_MEMORY)
            is_console = options.get("console", True) not in (False, None)
            self.serial = self.attach(Serial(), console=is_console)
            self.keyboard = self.attach(I8042())
            self.rtc = self.attach(Rtc())
            self.pci = self.attach(PciHost())
            self.pm = self.attach(AcpiPm())
            self.pm_timer = self.attach(PmTimer())
            self.fw_cfg = self.attach(FwCfg())
            self.debug_exit = self.attach(DebugExit())
            self.debug_console = self.attach(DebugConsole())
        except BaseException:
            self.close()
            raise

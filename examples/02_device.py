# SPDX-License-Identifier: Apache-2.0
"""A device in Python: two registers that the guest reads and writes.

The device says how many bytes its range has; offsets count from its start.
attach() chooses where it is and tells the guest by a word on the command line,
which arg_device() of the guest runtime finds.
"""

import pyvmm


class Adder(pyvmm.Device):
    """Writing 0x0 adds to the sum, reading gives it; writing 0x4 clears it."""

    size = 8
    total = 0

    def read(self, offset: int, size: int) -> int:
        return self.total if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.total = (self.total + value) & 0xFFFFFFFF if offset == 0 else 0


with pyvmm.Machine() as m:
    adder = m.attach(Adder())
    m.load(
        c="""
        #include <runtime.h>
        int main(void) {
            struct arg_device adder;
            assert(arg_device("adder", &adder));
            write32(adder.base, 40), write32(adder.base, 2);
            print("the device says %u\\n", read32(adder.base));
        }"""
    )
    m.run(timeout=5)
print(m.console.text, end="")
print(f"total is {adder.total}, {adder}")

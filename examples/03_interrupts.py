# SPDX-License-Identifier: Apache-2.0
"""A device that interrupts the guest.

`irq = pyvmm.Irq()` in the class declares a line; attach() chooses its number.
pulse() is one interrupt; any thread may raise one.
"""

import pyvmm


class Twice(pyvmm.Device):
    size, value = 4, 0
    irq = pyvmm.Irq()

    def read(self, offset: int, size: int) -> int:
        return self.value * 2

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value
        self.irq.pulse()


with pyvmm.Machine() as m:
    m.attach(Twice())
    m.load(
        c="""
        #include <runtime.h>
        #include <interrupt.h>
        static volatile bool ready;
        static void on_irq(void *data) { (void)data, ready = true; }
        int main(void) {
            struct arg_device twice;
            assert(arg_device("twice", &twice));
            assert(irq_request(twice.line, on_irq, NULL));
            write32(twice.base, 21);
            while (!ready) irq_wait();
            print("line %u: %u\\n", twice.line, read32(twice.base));
        }"""
    )
    m.run(timeout=5)
print(m.console.text, end="")

# SPDX-License-Identifier: Apache-2.0
"""Talk to a guest, and let one run in the background.

expect() runs the machine until the output matches a regular expression. With
start() it runs on a thread of its own; pause() stops it to look, wait() waits
for its end. `console=` shows the output live: True only keeps it, a file, a
file descriptor or a callable gets it too.
"""

import pyvmm

GUEST = """
#include <runtime.h>

int main(void)
{
    for (unsigned sum = 0;;) {
        char c = getchar();

        if (c == '\\n')
            print("sum %u\\n", sum);
        else if (c == 'q')
            return (int)sum;
        else
            sum += c - '0';
    }
}
"""

with pyvmm.Machine(console=lambda line: print("guest:", line)) as m:
    m.load(c=GUEST)
    m.console.send("1234\n")
    print("expect:", m.console.expect(r"sum (\d+)\n", timeout=5)[1])
    m.start()
    print("pause:", m.pause().reason)
    m.start(timeout=5)
    m.console.send("56q")
    print("wait:", m.wait())

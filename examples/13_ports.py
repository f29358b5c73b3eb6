# SPDX-License-Identifier: Apache-2.0
"""A virtio console, and a port beside it for whatever host and guest agree on.

What the guest sends goes to a callable here, or to a file, a terminal, a
socket. expect() runs the machine until it has sent what matches.
"""

import pyvmm
from pyvmm.devices import Console

GUEST = """
#include <runtime.h>
#include <vconsole.h>

static struct vconsole con;

int main(void)
{
    char order[16] = "";
    int port;

    assert(vconsole_open(&con, 2) == NULL);
    vconsole_write(&con, 0, "up", 2);
    while ((port = vconsole_find(&con, "cmd")) < 0)
        vconsole_wait(&con);
    vconsole_set_open(&con, port, true);
    while (!vconsole_read(&con, port, order, sizeof(order) - 1))
        vconsole_wait(&con);
    vconsole_write(&con, port, "did ", 4);
    vconsole_write(&con, port, order, strlen(order));
    return 5;
}
"""

with pyvmm.Machine() as m:
    con = m.attach(Console(print, ports={"cmd": None}))
    m.load(c=GUEST)
    con.expect("up", timeout=5)
    con.ports["cmd"].send("this")
    print(m.run(timeout=5).status, con.ports["cmd"].text)

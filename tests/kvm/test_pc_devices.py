# SPDX-License-Identifier: Apache-2.0
"""The devices of a PC in front of guests that drive them."""

import time

import pytest

import pyvmm
from pyvmm.devices import (
    I8042,
    AcpiPm,
    DebugConsole,
    DebugExit,
    FwCfg,
    PmTimer,
    Rtc,
    Serial,
)

pytestmark = pytest.mark.usefixtures("kvm")

SERIAL_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static struct arg_device uart;
static volatile bool done;
static unsigned interrupts;

/* Echoes what comes, turned round by lines, until a full stop. */
static void on_interrupt(void *data)
{
    unsigned cause;

    (void)data;
    interrupts++;
    while (!((cause = inb(uart.base + 2)) & 1)) {
        while (inb(uart.base + 5) & 1) {
            char c = inb(uart.base);

            outb(uart.base, c ^ 0x20);
            done = done || c == '.';
        }
    }
}

int main(void)
{
    assert(arg_device("serial", &uart) && uart.port);
    assert(irq_request(uart.line, on_interrupt, NULL));

    /* Loopback first, as drivers do to see whether there is one. */
    outb(uart.base + 4, 0x10);
    outb(uart.base + 2, 0x07);
    outb(uart.base, 'L');
    assert(inb(uart.base + 5) & 1);
    assert(inb(uart.base) == 'L');

    outb(uart.base + 3, 0x83);
    outb(uart.base, 1);
    outb(uart.base + 1, 0);
    outb(uart.base + 3, 0x03);
    outb(uart.base + 2, 0xc1);
    outb(uart.base + 4, 0x0b);
    outb(uart.base + 1, 0x01);
    while (!done)
        irq_wait();
    return interrupts > 0 ? 7 : 0;
}
"""


@pytest.mark.parametrize("text", ["short.", "longer than the fifo is, by far."])
def test_serial(text: str) -> None:
    """The short one is found by the time-out, which wakes a halted guest."""
    with pyvmm.Machine() as m:
        serial = m.attach(Serial())
        serial.send(text)
        m.load(c=SERIAL_GUEST)
        assert m.run(timeout=20).status == 7
    assert serial.text == "".join(chr(ord(c) ^ 0x20) for c in text)
    assert serial.dtr and serial.rts
    assert serial.baud == 115200


def test_serial_of_a_running_guest() -> None:
    with pyvmm.Machine() as m:
        serial = m.attach(Serial())
        m.load(c=SERIAL_GUEST)
        m.start(timeout=20)
        serial.send("later.")
        assert m.wait(20).status == 7
    assert serial.text.endswith("\x0e")


def test_debug_exit() -> None:
    """The guest does not come to its next instruction."""
    with pyvmm.Machine() as m:
        m.attach(DebugExit())
        m.load(asm="mov dx, 0x501; mov eax, 16; out dx, eax; out 0xf4, al")
        stop = m.run(timeout=20)
        assert (stop.reason, stop.status) == ("exit", 33)
        assert m.run(timeout=20).status == 16


def test_debug_console() -> None:
    with pyvmm.Machine(console=False) as m:
        console = m.attach(DebugConsole(), port=0xE9)
        m.load(
            asm="mov dx, 0xe9; lea esi, text; mov ecx, 5; cld; rep outsb;"
            'in al, dx; out 0xf4, al; text: .ascii "hello"'
        )
        assert m.run(timeout=20).status == 0xE9
    assert console.text == "hello"


RTC_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static struct arg_device rtc;
static volatile unsigned ticks, alarms;

static unsigned get(unsigned index)
{
    outb(rtc.base, index);
    return inb(rtc.base + 1);
}

static void put(unsigned index, unsigned value)
{
    outb(rtc.base, index);
    outb(rtc.base + 1, value);
}

static void on_interrupt(void *data)
{
    unsigned cause = get(0x0c);

    (void)data;
    assert(cause & 0x80);
    ticks += !!(cause & 0x40);
    alarms += !!(cause & 0x20);
}

int main(void)
{
    assert(arg_device("rtc", &rtc) && rtc.port);
    assert(irq_request(rtc.line, on_interrupt, NULL));
    print("%02x%02x-%02x-%02x %02x:%02x\\n", get(0x32), get(9), get(8),
          get(7), get(4), get(2));
    put(1, 0xff);   /* an alarm each second */
    put(3, 0xff);
    put(5, 0xff);
    put(0x0b, 0x62);
    while (ticks < 20 || !alarms)
        irq_wait();
    put(0x0b, 0x02);
    return 3;
}
"""


def test_rtc() -> None:
    """Periodic interrupts, 1024 in a second, and an alarm, soon."""
    started = time.monotonic()
    with pyvmm.Machine() as m:
        m.attach(Rtc(lambda: 1_000_000_000.8 + time.monotonic() - started))
        m.load(c=RTC_GUEST)
        assert m.run(timeout=20).status == 3
    assert m.console.text == "2001-09-09 01:46\n"


I8042_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static volatile unsigned keys;

static void on_key(void *data)
{
    (void)data;
    while (inb(0x64) & 1) {
        print("%02x ", inb(0x60));
        keys++;
    }
}

int main(void)
{
    struct arg_device keyboard;

    assert(arg_device("i8042", &keyboard) && keyboard.base == 0x60);
    outb(0x64, 0xaa);
    assert(inb(0x64) & 1);
    assert(inb(0x60) == 0x55);
    assert(irq_request(keyboard.line, on_key, NULL));
    print("ready\\n");
    while (keys < 4)
        irq_wait();
    print("\\n");
    outb(0x64, 0xfe);
    panic("no reset");
}
"""


def test_i8042() -> None:
    with pyvmm.Machine() as m:
        keyboard = m.attach(I8042())
        m.load(c=I8042_GUEST)
        m.console.expect("ready\n", timeout=20)
        keyboard.send(b"\x1e\x9e\x1f\x9f")
        stop = m.run(timeout=20)
        assert (stop.reason, stop.status) == ("reset", None)
    assert keyboard.resets == 1
    assert m.console.text == "ready\n1e 9e 1f 9f \n"


def test_pm_timer() -> None:
    """It goes forward, in steps of less than a second."""
    with pyvmm.Machine() as m:
        m.attach(PmTimer(bits=32))
        m.load(
            asm="mov dx, 0x608; in eax, dx; mov ebx, eax; in eax, dx;"
            "sub eax, ebx; out 0xf4, eax"
        )
        assert 0 < m.run(timeout=20).status < 3579545 * 20


ACPI_GUEST = """
#include <runtime.h>
#include <interrupt.h>

static struct arg_device pm;
static volatile bool pressed;

static void on_sci(void *data)
{
    (void)data;
    pressed = inw(pm.base) & 0x100;
    outw(pm.base, 0x100);
}

int main(void)
{
    assert(arg_device("acpipm", &pm) && pm.port);
    assert(irq_request(pm.line, on_sci, NULL));
    outw(pm.base + 2, 0x100);
    print("ready\\n");
    while (!pressed)
        irq_wait();
    outw(pm.base + 4, 0x2000 | 5 << 10);
    panic("awake");
}
"""


def test_acpi_pm() -> None:
    with pyvmm.Machine() as m:
        pm = m.attach(AcpiPm())
        m.load(c=ACPI_GUEST)
        m.console.expect("ready\n", timeout=20)
        pm.press()
        stop = m.run(timeout=20)
        assert (stop.reason, stop.status) == ("poweroff", None)
    assert pm.slept == 5


FW_CFG_GUEST = """
#include <runtime.h>

static struct arg_device config;
static unsigned char text[8];

static struct {
    uint32_t what, length, high, low;
} request;

static uint32_t dma(uint32_t what, uint32_t length, uint32_t to, uint32_t high)
{
    request.what = __builtin_bswap32(what);
    request.length = __builtin_bswap32(length);
    request.high = __builtin_bswap32(high);
    request.low = __builtin_bswap32(to);
    outl(config.base + 4, 0);
    outl(config.base + 8, __builtin_bswap32((uint32_t)(uintptr_t)&request));
    return __builtin_bswap32(*(volatile uint32_t *)&request.what);
}

int main(void)
{
    assert(arg_device("fwcfg", &config) && config.port);
    outw(config.base, 0);
    for (int i = 0; i < 4; i++)
        print("%c", inb(config.base + 1));
    assert(dma(0x20 << 16 | 0x0a, 7, (uint32_t)(uintptr_t)text, 0) == 0);
    print(" %s\\n", (char *)text);
    assert(dma(0x02, 0xffffffff, 0, 0) == 1);
    assert(dma(0x02, 16, 0xfffffff8, 0xffffffff) == 1);
    outl(config.base + 4, 0xffffffff);
    outl(config.base + 8, 0xffffffff);
    return 5;
}
"""


def test_fw_cfg() -> None:
    with pyvmm.Machine() as m:
        m.attach(FwCfg({"opt/test": b"by DMA"}))
        m.load(c=FW_CFG_GUEST)
        assert m.run(timeout=20).status == 5
    assert m.console.text == "QEMU by DMA\n"

/* SPDX-License-Identifier: 0BSD */
/*
 * pc.c - pokes all devices of a minimal PC and says so on the serial port
 *
 * end=WORD   how it ends: halt (without it), exit by the debug exit port, reset
 *            by reset, i8042 or acpi, off
 * echo       before that, sends back what comes in until a full stop, by
 *            interrupts
 * press      and waits for the power button
 *
 * It prints by the UART and not by the console port, which such a machine does
 * not have. What it does not find as it should ends it with status 1.
 */
#include <runtime.h>

#include <interrupt.h>

#define UART          0x3f8
#define UART_LINE     4
#define KEYBOARD      0x60
#define KEYBOARD_LINE 1
#define RTC           0x70
#define RTC_LINE      8
#define PCI           0xcf8
#define PM            0x600
#define PM_LINE       9
#define PM_TIMER      0x608
#define FW_CFG        0x510
#define DEBUG_EXIT    0x501
#define DEBUG_CONSOLE 0x402
#define PIT           0x40
#define PIC           0x20

static volatile unsigned rtc_ticks, keys, presses;
static volatile bool stopped;

static void
say(const char *text)
{
    for (; *text; text++) {
        while (!(inb(UART + 5) & 0x20))
            cpu_relax();
        outb(UART, (uint8_t)*text);
    }
}

static void
found(const char *what, bool good)
{
    say(what);
    say(good ? ": ok\n" : ": wrong\n");
    if (!good)
        exit(1);
}

static void
serial(void)
{
    bool good;

    outb(UART + 3, 0x83); /* 8 bits, 115200 */
    outb(UART, 1);
    outb(UART + 1, 0);
    outb(UART + 3, 0x03);
    outb(UART + 4, 0x10); /* loopback: nothing comes from outside */
    outb(UART + 2, 0xc7); /* FIFOs on, and emptied */
    outb(UART, 'L');
    good = (inb(UART + 5) & 1) && inb(UART) == 'L';
    outb(UART + 4, 0x0b);
    found("serial", good);
}

static void
on_input(void *unused)
{
    (void)unused;
    while (!(inb(UART + 2) & 1))
        while (inb(UART + 5) & 1) {
            uint8_t c = inb(UART);

            outb(UART, c);
            stopped = stopped || c == '.';
        }
}

static void
echo(void)
{
    if (!irq_request(UART_LINE, on_input, NULL))
        exit(1);
    outb(UART + 1, 1);
    while (!stopped)
        irq_wait();
    outb(UART + 1, 0);
    irq_release(UART_LINE);
    say("\n");
}

static void
on_key(void *unused)
{
    (void)unused;
    while (inb(KEYBOARD + 4) & 1) {
        inb(KEYBOARD);
        keys++;
    }
}

/* The keyboard answers an echo, by an interrupt. */
static void
keyboard(void)
{
    outb(KEYBOARD + 4, 0xaa);
    found("i8042", inb(KEYBOARD) == 0x55);
    irq_request(KEYBOARD_LINE, on_key, NULL);
    outb(KEYBOARD, 0xee);
    while (!keys)
        irq_wait();
    irq_release(KEYBOARD_LINE);
}

static uint8_t
cmos(uint8_t index)
{
    outb(RTC, index);
    return inb(RTC + 1);
}

static void
on_rtc(void *unused)
{
    (void)unused;
    if (cmos(0x0c) & 0x40)
        rtc_ticks++;
}

static void
rtc(void)
{
    found("rtc", cmos(0x32) >= 0x20 && (cmos(0x0d) & 0x80));
    irq_request(RTC_LINE, on_rtc, NULL);
    outw(RTC, 0x420b); /* periodic interrupts, 24 hours */
    while (rtc_ticks < 3)
        irq_wait();
    outw(RTC, 0x020b);
    irq_release(RTC_LINE);
}

static void
pci(void)
{
    uint32_t all = 0xffffffff;

    outl(PCI, 0x80000000);
    found("pci mechanism 1", inl(PCI) == 0x80000000);
    for (uint32_t device = 0; device < 32; device++) {
        outl(PCI, 0x80000000 | device << 11);
        all &= inl(PCI + 4);
    }
    found("no pci function", all == 0xffffffff);
}

static void
on_sci(void *unused)
{
    (void)unused;
    if (inw(PM) & 0x100)
        presses++;
    outw(PM, 0x100);
}

static void
acpi(void)
{
    uint32_t before = inl(PM_TIMER), now;

    found("acpi", (inw(PM + 4) & 1) && !presses);
    irq_request(PM_LINE, on_sci, NULL);
    outw(PM + 2, 0x100);
    now = inl(PM_TIMER);
    found("pm timer", now != before && ((now - before) & 0xffffff) < 0x800000);
}

static void
fw_cfg(void)
{
    static const char name[] = "QEMU";
    bool good = true;

    outw(FW_CFG, 0);
    for (int i = 0; i < 4; i++)
        good = good && inb(FW_CFG + 1) == (uint8_t)name[i];
    found("fw_cfg", good);
}

static unsigned
pit_count(void)
{
    unsigned low;

    outb(PIT + 3, 0x00); /* latches counter 0 */
    low = inb(PIT);
    return (unsigned)inb(PIT) << 8 | low;
}

static void
kernel_devices(void)
{
    uint8_t mask = inb(PIC + 1);
    unsigned before;

    outb(PIC + 1, 0x5a);
    found("pic", inb(PIC + 1) == 0x5a);
    outb(PIC + 1, mask);
    found("ioapic", start_info->ioapic_base != 0);
    outb(PIT + 3, 0x34); /* counter 0, mode 2 */
    outb(PIT, 0xff);
    outb(PIT, 0xff);
    before = pit_count();
    while (pit_count() == before)
        cpu_relax();
    found("pit", true);
}

static void
memory(void)
{
    volatile uint32_t *low = (volatile uint32_t *)0x8000;

    *low = 0x12345678;
    found("memory below 640K", *low == 0x12345678);
    found("nothing there", read32(0xd0000000) == 0xffffffff &&
                               inb(0x300) == 0xff && inb(0xe9) == 0xff);
}

static void
end(const char *how)
{
    if (!strcmp(how, "exit"))
        outl(DEBUG_EXIT, 16);
    if (!strcmp(how, "reset"))
        outb(PCI + 1, 0x06);
    if (!strcmp(how, "i8042"))
        outb(KEYBOARD + 4, 0xfe);
    if (!strcmp(how, "acpi"))
        outb(PM + 6, 1);
    if (!strcmp(how, "off"))
        outw(PM + 4, 0x2000);
    __asm__ volatile("cli; hlt");
    exit(1); /* whoever resets this machine does not run it on */
}

int
main(void)
{
    const char *how = arg("end");

    serial();
    keyboard();
    rtc();
    pci();
    acpi();
    fw_cfg();
    outb(DEBUG_CONSOLE, '!');
    found("debug console", inb(DEBUG_CONSOLE) == 0xe9);
    kernel_devices();
    memory();
    if (arg("echo"))
        echo();
    if (arg("press")) {
        say("press\n");
        while (!presses)
            irq_wait();
    }
    say("done\n");
    end(how ? how : "halt");
    return 1;
}

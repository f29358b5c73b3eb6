/* SPDX-License-Identifier: 0BSD */
/*
 * faults.c - does what a guest should not do; one word says what
 *
 * triple                     an exception without an IDT
 * unclaimed [addr=A]         reads an address that no device has (0xd0000000)
 * unclaimed-write [addr=A]   writes 0x12345678 there
 * port [port=P]              writes 0x5a to a port that no device has (0x1234)
 *                            and reads it
 * readonly ro=A              reads read-only memory, writes it, reads again
 * spin                       never ends
 * halt                       stops for ever: cli; hlt
 * emul                       fwait, which some hosts cannot emulate in ring 0
 * int3                       a breakpoint; the same, and else a panic
 * divide                     divides by zero: a panic
 * panic                      panics
 * assert                     fails an assertion
 */
#include <runtime.h>

static void
triple(void)
{
    static const struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) no_idt = {0, 0};

    __asm__ volatile("lidt %0; ud2" : : "m"(no_idt));
}

static void
unclaimed(void)
{
    print("read 0x%08x\n", read32(arg_number("addr", 0xd0000000)));
}

static void
unclaimed_write(void)
{
    write32(arg_number("addr", 0xd0000000), 0x12345678);
    puts("written");
}

static void
port(void)
{
    uint16_t number = (uint16_t)arg_number("port", 0x1234);

    outb(number, 0x5a);
    print("read 0x%02x\n", inb(number));
}

static void
readonly(void)
{
    uint32_t addr = arg_number("ro", 0);

    if (!addr)
        panic("readonly needs ro=ADDR");
    print("before 0x%08x\n", read32(addr));
    write32(addr, 0xdeadbeef);
    print("after 0x%08x\n", read32(addr));
}

static void
spin(void)
{
    for (;;)
        barrier();
}

static void
halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void
emul(void)
{
    __asm__ volatile("fwait");
    puts("fwait works here");
}

static void
breakpoint(void)
{
    __asm__ volatile("int3");
}

static void
divide(void)
{
    uint32_t low = 1, high = 0, zero = 0;

    /* In C this is undefined, and compilers make use of that. */
    __asm__ volatile("divl %2" : "+a"(low), "+d"(high) : "r"(zero) : "cc");
}

static void
panics(void)
{
    panic("asked for");
}

static void
asserts(void)
{
    volatile int one = 1;

    assert(one == 2);
}

static const struct {
    const char *word;
    void (*fault)(void);
} faults[] = {
    {"triple", triple},
    {"unclaimed", unclaimed},
    {"unclaimed-write", unclaimed_write},
    {"port", port},
    {"readonly", readonly},
    {"spin", spin},
    {"halt", halt},
    {"emul", emul},
    {"int3", breakpoint},
    {"divide", divide},
    {"panic", panics},
    {"assert", asserts},
};

int
main(const struct start_info *si, const char *cmdline)
{
    (void)si;
    for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++) {
        const char *value = arg(faults[i].word);

        if (value && !*value) {
            faults[i].fault();
            return 0;
        }
    }
    print("faults: which? \"%s\" names none\n", cmdline);
    return 2;
}

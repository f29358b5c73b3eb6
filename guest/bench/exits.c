/* SPDX-License-Identifier: 0BSD */
/*
 * exits.c - leaves the guest n times, in a loop of a few instructions
 *
 * n=N             how often (100000)
 * mode=pio|mmio   through a port or an address (pio)
 * port=P          the port (0x80), one byte at a time
 * addr=A          the address (0xd0000000), four bytes at a time
 * dir=w|r         write or read (w)
 * cycles          print how many TSC cycles it took
 */
#include <runtime.h>

static bool
word_is(const char *name, const char *value)
{
    const char *given = arg(name);

    return given && !strcmp(given, value);
}

int
main(void)
{
    uint32_t n = arg_number("n", 100000);
    uint16_t port = (uint16_t)arg_number("port", 0x80);
    uintptr_t addr = arg_number("addr", 0xd0000000);
    bool reads = word_is("dir", "r");
    uint64_t start = rdtsc();

    if (word_is("mode", "mmio")) {
        if (reads)
            while (n--)
                read32(addr);
        else
            while (n--)
                write32(addr, 0);
    } else {
        if (reads)
            while (n--)
                inb(port);
        else
            while (n--)
                outb(port, 0);
    }
    if (arg("cycles"))
        print("cycles %llu\n", (unsigned long long)(rdtsc() - start));
    return 0;
}

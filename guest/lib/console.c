/* SPDX-License-Identifier: 0BSD */
/* console.c - the console port, with output collected to save exits */
#include <runtime.h>

#include "internal.h"

unsigned console_width = 4;

static char buffer[256] __attribute__((aligned(4)));
static unsigned used;

void
console_flush(void)
{
    unsigned i = 0;

    /*
     * KVM ends `rep outsb` once per byte, so four bytes at a time is the
     * cheapest way out that the port has.
     */
    for (; console_width >= 4 && used - i >= 4; i += 4)
        outl(CONSOLE_PORT_DATA, *(const uint32_t *)(buffer + i));
    for (; i < used; i++)
        outb(CONSOLE_PORT_DATA, (uint8_t)buffer[i]);
    used = 0;
}

void
putchar(char c)
{
    buffer[used++] = c;
    if (c == '\n' || used == sizeof(buffer))
        console_flush();
}

void
console_write(const char *s, size_t len)
{
    bool line = len && s[len - 1] == '\n';

    while (len) {
        size_t n = sizeof(buffer) - used;

        n = n < len ? n : len;
        memcpy(buffer + used, s, n);
        used += (unsigned)n;
        s += n;
        len -= n;
        if (used == sizeof(buffer))
            console_flush();
    }
    if (line)
        console_flush();
}

void
puts(const char *s)
{
    console_write(s, strlen(s));
    putchar('\n');
}

unsigned
console_pending(void)
{
    console_flush();
    return inb(CONSOLE_PORT_PENDING);
}

char
getchar(void)
{
    while (!console_pending())
        cpu_relax();
    return (char)inb(CONSOLE_PORT_DATA);
}

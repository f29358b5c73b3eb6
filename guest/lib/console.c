/* SPDX-License-Identifier: 0BSD */
/* console.c - the console port, with output collected to save exits */
#include <runtime.h>

#include "internal.h"

unsigned console_width = 4;

static char buffer[256];
static unsigned used;

void
console_flush(void)
{
    unsigned i = 0;

    /*
     * KVM ends `rep outsb` once per byte, so four bytes at a time is the
     * cheapest way out that the port has.
     */
    for (; console_width >= 4 && used - i >= 4; i += 4) {
        uint32_t word;

        memcpy(&word, buffer + i, 4);
        outl(CONSOLE_PORT_DATA, word);
    }
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
puts(const char *s)
{
    while (*s)
        putchar(*s++);
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

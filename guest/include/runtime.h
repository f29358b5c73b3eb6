/* SPDX-License-Identifier: 0BSD */
/*
 * runtime.h - what a guest program can use: output, input, arguments, the end
 *
 *     #include <runtime.h>
 *
 *     int main(const struct start_info *si, const char *cmdline)
 *     {
 *         print("%u pieces of memory\n", si->mem_size);
 *         return 0;               (the status of the run)
 *     }
 *
 * `int main(void)` does as well. The library is built in two ways:
 *
 *   -m32  the program runs in ring 0, 32-bit protected mode, paging off. It
 *         may use interrupts (interrupt.h).
 *   -m64  the program runs in ring 3 of long mode with IOPL 3: memory below
 *         4 GiB is mapped at its own address and all ports are open, but
 *         instructions such as hlt and mov to cr3 fault. Fast on hosts that
 *         interpret ring 0.
 *
 * In both an exception prints its vector, error code and address, and panics.
 * The image also boots by PVH (QEMU -kernel); the runtime then makes the
 * start_info itself, with the virtio-mmio devices found at the addresses that
 * QEMU's microvm gives them.
 */
#ifndef GUEST_RUNTIME_H
#define GUEST_RUNTIME_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pyvmm/start_info.h>

#include <io.h>
#include <string.h>

/* Where this machine's description is, from the entry on. */
extern const struct start_info *start_info;

/*
 * Output. Collected, and written out when a piece of it ends in a newline, when
 * the buffer is full, when input is read, by console_flush() and at the end:
 * as few exits as possible.
 */
void putchar(char c);
void puts(const char *s); /* and a newline */
void console_write(const char *s, size_t len);
void console_flush(void);

/*
 * printf with %d %i %u %x %X %p %s %c %%, the flags 0 and -, a width (or *),
 * and the lengths l, ll, z, h, hh. Anything else is printed as it stands.
 */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vprint(const char *format, va_list args);

/* Input. getchar() waits, asking again and again. */
char getchar(void);
unsigned console_pending(void); /* bytes that wait, at most 255 */

/* Ends the run. panic() prints "panic: ..." and exits with 255. */
void exit(uint32_t status) __attribute__((noreturn));
void panic(const char *format, ...)
    __attribute__((noreturn, cold, format(printf, 1, 2)));

#define assert(condition)                                                      \
    ((condition) ? (void)0                                                     \
                 : panic("%s:%d: assertion failed: %s", __FILE__, __LINE__,    \
                         #condition))

/*
 * The word `name` or `name=value` of the command line: its value, "" when it
 * has none, NULL when there is no such word. Words are separated by spaces.
 */
const char *arg(const char *name);

/* The number (decimal, or hexadecimal after 0x) of name=..., or `otherwise`. */
uint32_t arg_number(const char *name, uint32_t otherwise);

/*
 * The word NAME@0xBASE+0xSIZE:LINE by which the host announces a device that
 * cannot identify itself (port:0xBASE when it is on ports).
 */
struct arg_device {
    uint32_t base;
    uint32_t size;
    uint32_t line; /* 0: no interrupt */
    bool port;     /* base is a port */
};

bool arg_device(const char *name, struct arg_device *out);

#endif

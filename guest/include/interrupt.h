/* SPDX-License-Identifier: 0BSD */
/*
 * interrupt.h - exceptions, and interrupts of devices
 *
 * An exception or interrupt that nobody handles prints itself and panics.
 * Handlers run with interrupts off, and so does the program, except inside
 * irq_wait(): what a handler changes needs no lock.
 */
#ifndef GUEST_INTERRUPT_H
#define GUEST_INTERRUPT_H

#include <stdbool.h>
#include <stdint.h>

/* What was interrupted. A handler may change it: returning goes there. */
struct interrupt_frame {
#ifdef __x86_64__
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
    uint64_t di, si, bp, bx, dx, cx, ax;
#else
    uint32_t di, si, bp, unused, bx, dx, cx, ax;
#endif
    uintptr_t vector;
    uintptr_t error; /* 0 when the vector has no error code */
    uintptr_t ip;
    uintptr_t cs;
    uintptr_t flags;
#ifdef __x86_64__
    uintptr_t sp;
    uintptr_t ss;
#endif
};

/*
 * Calls `handler` for a vector from now on; NULL: nobody. With -m64 it runs
 * in ring 0.
 */
void interrupt_handler(unsigned vector,
                       void (*handler)(struct interrupt_frame *frame));

#ifdef __i386__

/*
 * Calls `handler` with `data` on each rising edge of an IOAPIC line, 1 to 23.
 * Returns false when there is no interrupt controller or no such line.
 */
bool irq_request(unsigned line, void (*handler)(void *data), void *data);

void irq_release(unsigned line);

/*
 * Sleeps until an interrupt has been handled. One that arrived before, while
 * interrupts were off, ends the sleep too, so this loses nothing:
 *
 *     while (!done)
 *         irq_wait();
 */
void irq_wait(void);

#else

/* Ring 3 takes no interrupts. */
static inline bool
irq_request(unsigned line, void (*handler)(void *data), void *data)
{
    (void)line, (void)handler, (void)data;
    return false;
}

static inline void
irq_wait(void)
{
}

#endif
#endif

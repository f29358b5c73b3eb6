/* SPDX-License-Identifier: 0BSD */
/* smp.h - the other vCPUs; in ring 0 alone, where the local APIC starts them */
#ifndef GUEST_SMP_H
#define GUEST_SMP_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Starts the vCPU with this APIC id, not one's own: it calls run(id) with
 * interrupts off, on a stack of `size` bytes from `stack` on, and halts when
 * that returns. Waits until it has begun. False: in ring 3, or there is no RAM
 * below 1 MiB for it to start in.
 */
bool cpu_start(unsigned id, void *stack, size_t size, void (*run)(unsigned id));

#endif

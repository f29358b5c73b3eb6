/* SPDX-License-Identifier: 0BSD */
/* smp.h - the other vCPUs; in ring 0 alone, where the local APIC starts them */
#ifndef GUEST_SMP_H
#define GUEST_SMP_H

#include <stdbool.h>

#define CPUS_MAX 8

/*
 * Starts the vCPU with this APIC id, 1 to CPUS_MAX - 1: it calls run(id) on a
 * stack of its own, interrupts off, and halts when that returns. Waits until it
 * has begun. False: in ring 3, or there is no RAM below 1 MiB to start in.
 */
bool cpu_start(unsigned id, void (*run)(unsigned id));

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base.h - what every module of the core uses
 *
 * The core is plain C: libc, <linux/kvm.h>, libelf. It does not print, log,
 * exit, install signal handlers, create threads that nobody asked for, or
 * know that Python exists.
 *
 * Errors. A function that can fail returns an int: 0 or a count when it
 * succeeded, else -errno; results go through the last parameter, which is
 * untouched on failure. Three kinds of failure, three answers:
 *   our own bug              assert(), without side effects
 *   the host said no         -errno at once; the struct's `call` names the
 *                            system call that was refused
 *   the guest misbehaves     the access is refused, the device marked broken
 *                            and the event counted; the host goes on
 */
#ifndef VMM_BASE_H
#define VMM_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define VMM_PAGE_SIZE 4096ULL

#define vmm_container_of(ptr, type, member)                                    \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline uint64_t
vmm_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* All ones in the low `len` bytes: what nobody's read answers. 1 <= len <= 8 */
static inline uint64_t
vmm_ones(unsigned len)
{
    return len >= 8 ? UINT64_MAX : (1ULL << (8 * len)) - 1;
}

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline uint64_t
vmm_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

#endif

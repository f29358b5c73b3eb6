/* SPDX-License-Identifier: 0BSD */
/*
 * io.h - ports, registers of devices, barriers, the time stamp counter
 *
 * A register is read and written by exactly one mov of the size asked for,
 * so the host sees one access of that size.
 */
#ifndef GUEST_IO_H
#define GUEST_IO_H

#include <stdint.h>

static inline uint8_t
inb(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t
inw(uint16_t port)
{
    uint16_t value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t
inl(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void
outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void
outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void
outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t
read8(uintptr_t addr)
{
    uint8_t value;

    __asm__ volatile("movb %1, %0"
                     : "=q"(value)
                     : "m"(*(volatile uint8_t *)addr)
                     : "memory");
    return value;
}

static inline uint16_t
read16(uintptr_t addr)
{
    uint16_t value;

    __asm__ volatile("movw %1, %0"
                     : "=r"(value)
                     : "m"(*(volatile uint16_t *)addr)
                     : "memory");
    return value;
}

static inline uint32_t
read32(uintptr_t addr)
{
    uint32_t value;

    __asm__ volatile("movl %1, %0"
                     : "=r"(value)
                     : "m"(*(volatile uint32_t *)addr)
                     : "memory");
    return value;
}

static inline void
write8(uintptr_t addr, uint8_t value)
{
    __asm__ volatile("movb %1, %0"
                     : "=m"(*(volatile uint8_t *)addr)
                     : "qi"(value)
                     : "memory");
}

static inline void
write16(uintptr_t addr, uint16_t value)
{
    __asm__ volatile("movw %1, %0"
                     : "=m"(*(volatile uint16_t *)addr)
                     : "ri"(value)
                     : "memory");
}

static inline void
write32(uintptr_t addr, uint32_t value)
{
    __asm__ volatile("movl %1, %0"
                     : "=m"(*(volatile uint32_t *)addr)
                     : "ri"(value)
                     : "memory");
}

/* Keeps the compiler from moving memory accesses across. */
static inline void
barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

/*
 * Keeps the CPU from reading ahead of its own earlier writes, the only
 * reordering that x86 does. Not mfence: some hosts cannot emulate it.
 */
static inline void
full_barrier(void)
{
#ifdef __x86_64__
    __asm__ volatile("lock; addl $0, -4(%%rsp)" : : : "memory", "cc");
#else
    __asm__ volatile("lock; addl $0, -4(%%esp)" : : : "memory", "cc");
#endif
}

static inline void
cpu_relax(void)
{
    __asm__ volatile("pause" : : : "memory");
}

static inline uint64_t
rdtsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

#endif

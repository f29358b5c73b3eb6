/* SPDX-License-Identifier: Apache-2.0 */
/* cpuid.c - APIC ids and topology filled into the host's CPUID */
#include "cpuid.h"

#include <string.h>

#define LEAF1_EDX_HTT        (1U << 28)
#define LEAF1_ECX_HYPERVISOR (1U << 31)
#define LEVEL_THREAD         1U
#define LEVEL_CORE           2U

/* How many bits number `count` things: the smallest n with 2^n >= count. */
static unsigned
bits_for(unsigned count)
{
    unsigned bits = 0;

    while ((1U << bits) < count)
        bits++;
    return bits;
}

static void
leaf_1(struct kvm_cpuid_entry2 *e, unsigned index, unsigned cpus)
{
    unsigned room = 1U << bits_for(cpus);

    e->ebx &= 0x0000ffffU;
    e->ebx |= (room > 255 ? 255 : room) << 16 | (index & 0xff) << 24;
    e->edx &= ~LEAF1_EDX_HTT;
    if (cpus > 1)
        e->edx |= LEAF1_EDX_HTT;
    e->ecx |= LEAF1_ECX_HYPERVISOR;
}

/* Deterministic cache parameters: caches above level 2 are the package's. */
static void
leaf_4(struct kvm_cpuid_entry2 *e, unsigned cpus)
{
    unsigned level = e->eax >> 5 & 7;
    unsigned room = 1U << bits_for(cpus);
    unsigned sharing = level > 2 ? room : 1;

    if (!(e->eax & 0x1f))
        return; /* the end of the list */
    if (room > 64)
        room = 64;
    e->eax &= 0x3fffU;
    e->eax |= (sharing - 1) << 14 | (room - 1) << 26;
}

/* Extended topology: sub-leaf 0 is threads, 1 cores, the rest nothing. */
static void
leaf_topology(struct kvm_cpuid_entry2 *e, unsigned index, unsigned cpus)
{
    e->eax = e->ebx = 0;
    e->ecx = e->index & 0xff;
    e->edx = index;
    if (e->index == 0) {
        e->ebx = 1;
        e->ecx |= LEVEL_THREAD << 8;
    } else if (e->index == 1) {
        e->eax = bits_for(cpus);
        e->ebx = cpus;
        e->ecx |= LEVEL_CORE << 8;
    }
}

void
vmm_cpuid_make(const struct vmm_cpuid *host, unsigned index, unsigned cpus,
               struct vmm_cpuid *out)
{
    memcpy(out, host, sizeof *out);
    for (unsigned i = 0; i < out->nent; i++) {
        struct kvm_cpuid_entry2 *e = &out->entry[i];

        switch (e->function) {
        case 0x1:
            leaf_1(e, index, cpus);
            break;
        case 0x4:
            leaf_4(e, cpus);
            break;
        case 0xb:
        case 0x1f:
            leaf_topology(e, index, cpus);
            break;
        case 0x80000008:
            e->ecx &= ~0xf0ffU;
            e->ecx |= (cpus - 1) | bits_for(cpus) << 12;
            break;
        case 0x8000001e:
            e->eax = index;
            e->ebx = index & 0xff;
            e->ecx = 0;
            break;
        }
    }
}

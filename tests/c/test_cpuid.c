/* SPDX-License-Identifier: Apache-2.0 */
/* test_cpuid.c - the place of a vCPU among its fellows, in its CPUID */
#include <string.h>

#include "check.h"
#include "vmm/cpuid.h"

static struct vmm_cpuid host, made;

/* Leaves as a host of 96 threads may give them: bits everywhere. */
static void
begin(void)
{
    static const struct kvm_cpuid_entry2 entries[] = {
        {.function = 0x0, .eax = 0x20, .ebx = 0x756e6547},
        {.function = 0x1,
         .eax = 0x806f8,
         .ebx = 0x2f600842, /* APIC id 47, 96 of them, clflush 8, brand 42 */
         .ecx = 0x7ffefbff, /* all but bit 31 */
         .edx = 0xbfebfbff},
        {.function = 0x4, .index = 0, .eax = 0xfc004121, .ebx = 1, .ecx = 2},
        {.function = 0x4, .index = 2, .eax = 0xfc004143, .ebx = 3, .ecx = 4},
        {.function = 0x4, .index = 3, .eax = 0xfc1fc163, .ebx = 5, .ecx = 6},
        {.function = 0x4, .index = 4, .eax = 0, .ecx = 7},
        {.function = 0xb, .index = 0, .eax = 1, .ebx = 2, .edx = 47},
        {.function = 0xb, .index = 1, .eax = 7, .ebx = 96, .edx = 47},
        {.function = 0xb, .index = 2, .eax = 9, .ebx = 9, .edx = 47},
        {.function = 0x1f, .index = 0, .eax = 1, .ebx = 2, .edx = 47},
        {.function = 0x1f, .index = 1, .eax = 7, .ebx = 96, .edx = 47},
        {.function = 0x80000008, .eax = 0x3039, .ecx = 0x705f},
        {.function = 0x8000001e, .eax = 47, .ebx = 0x123, .ecx = 0x201},
    };

    memset(&host, 0, sizeof host);
    memset(&made, 0xff, sizeof made);
    memcpy(host.entry, entries, sizeof entries);
    host.nent = sizeof entries / sizeof *entries;
}

static struct kvm_cpuid_entry2
leaf(uint32_t function, uint32_t index)
{
    struct kvm_cpuid_entry2 none = {0};

    for (unsigned i = 0; i < made.nent; i++) {
        if (made.entry[i].function == function && made.entry[i].index == index)
            return made.entry[i];
    }
    CHECK(!"the leaf is there");
    return none;
}

static void
apic_id_is_the_index(void)
{
    begin();
    for (unsigned index = 0; index < 256; index++) {
        vmm_cpuid_make(&host, index, 256, &made);
        CHECK_EQ(leaf(1, 0).ebx >> 24, index);
        CHECK_EQ(leaf(0xb, 0).edx, index);
        CHECK_EQ(leaf(0xb, 1).edx, index);
        CHECK_EQ(leaf(0xb, 2).edx, index);
        CHECK_EQ(leaf(0x1f, 1).edx, index);
        CHECK_EQ(leaf(0x8000001e, 0).eax, index);
    }
    /* Beyond eight bits the old leaf has what is left of it. */
    vmm_cpuid_make(&host, 0x1234, 0x2000, &made);
    CHECK_EQ(leaf(1, 0).ebx >> 24, 0x34);
    CHECK_EQ(leaf(0xb, 0).edx, 0x1234);
    CHECK_EQ(leaf(0x8000001e, 0).eax, 0x1234);
}

static void
one_package_of_cores(void)
{
    static const struct {
        unsigned cpus, bits;
    } cases[] = {{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {64, 6}, {255, 8}};

    begin();
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned cpus = cases[i].cpus, bits = cases[i].bits;

        vmm_cpuid_make(&host, 0, cpus, &made);
        CHECK_EQ(leaf(1, 0).ebx >> 16 & 0xff, bits == 8 ? 255 : 1 << bits);
        CHECK_EQ(leaf(1, 0).edx >> 28 & 1, cpus > 1);
        /* Threads: one each, no bits of the APIC id. */
        CHECK_EQ(leaf(0xb, 0).eax, 0);
        CHECK_EQ(leaf(0xb, 0).ebx, 1);
        CHECK_EQ(leaf(0xb, 0).ecx, 0x100);
        /* Cores. */
        CHECK_EQ(leaf(0xb, 1).eax, bits);
        CHECK_EQ(leaf(0xb, 1).ebx, cpus);
        CHECK_EQ(leaf(0xb, 1).ecx, 0x201);
        CHECK_EQ(leaf(0x1f, 1).eax, bits);
        CHECK_EQ(leaf(0x1f, 1).ecx, 0x201);
        /* No further level. */
        CHECK_EQ(leaf(0xb, 2).eax, 0);
        CHECK_EQ(leaf(0xb, 2).ebx, 0);
        CHECK_EQ(leaf(0xb, 2).ecx, 2);
        /* AMD: threads less one, bits of the APIC id. */
        CHECK_EQ(leaf(0x80000008, 0).ecx & 0xff, cpus - 1);
        CHECK_EQ(leaf(0x80000008, 0).ecx >> 12 & 0xf, bits);
        CHECK_EQ(leaf(0x8000001e, 0).ebx >> 8, 0); /* a thread a core */
        CHECK_EQ(leaf(0x8000001e, 0).ecx, 0);      /* one node */
    }
}

static void
caches_are_shared_by_level(void)
{
    begin();
    vmm_cpuid_make(&host, 1, 6, &made);
    /* Type and level stay; the first two levels are a core's own. */
    CHECK_EQ(leaf(4, 0).eax, 0x121U | 7U << 26);
    CHECK_EQ(leaf(4, 2).eax, 0x143U | 7U << 26);
    CHECK_EQ(leaf(4, 3).eax, 0x163U | 7U << 14 | 7U << 26);
    CHECK_EQ(leaf(4, 4).eax, 0); /* the end of the list stays its end */
    CHECK_EQ(leaf(4, 3).ebx, 5);
    CHECK_EQ(leaf(4, 3).ecx, 6);
    /* The field has six bits. */
    vmm_cpuid_make(&host, 1, 200, &made);
    CHECK_EQ(leaf(4, 0).eax, 0x121U | 63U << 26);
    CHECK_EQ(leaf(4, 3).eax, 0x163U | 255U << 14 | 63U << 26);
}

static void
the_rest_is_the_hosts(void)
{
    struct vmm_cpuid before;

    begin();
    before = host;
    vmm_cpuid_make(&host, 3, 4, &made);
    CHECK(!memcmp(&before, &host, sizeof host));
    CHECK_EQ(made.nent, host.nent); /* no leaf is invented */
    CHECK_EQ(leaf(0, 0).eax, 0x20);
    CHECK_EQ(leaf(0, 0).ebx, 0x756e6547);
    CHECK_EQ(leaf(1, 0).eax, 0x806f8);
    CHECK_EQ(leaf(1, 0).ebx & 0xffff, 0x0842);
    CHECK_EQ(leaf(1, 0).ecx, 0xfffefbff); /* and a hypervisor */
    CHECK_EQ(leaf(1, 0).edx | 1 << 28, 0xbfebfbff);
    CHECK_EQ(leaf(0x80000008, 0).eax, 0x3039);
    CHECK_EQ(leaf(0x80000008, 0).ecx & 0xf00, 0);

    host.nent = 1; /* none of the leaves that are filled in */
    vmm_cpuid_make(&host, 3, 4, &made);
    CHECK_EQ(made.nent, 1);
    CHECK_EQ(leaf(0, 0).eax, 0x20);
}

int
main(void)
{
    RUN(apic_id_is_the_index);
    RUN(one_package_of_cores);
    RUN(caches_are_shared_by_level);
    RUN(the_rest_is_the_hosts);
    return check_done();
}

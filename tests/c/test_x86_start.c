/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_x86_start.c - page tables, descriptors and the TSS in guest memory, and
 * the registers of each start mode
 *
 * No KVM: the vCPU is a struct whose getter and setters are replaced.
 *
 * link: -Wl,--wrap=vmm_vcpu_get_sregs,--wrap=vmm_vcpu_set_sregs
 * link: -Wl,--wrap=vmm_vcpu_set_regs
 */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "vmm/x86_start.h"

#define PAGE   VMM_PAGE_SIZE
#define BASE   0x100000ULL
#define TABLES (BASE + 0x3000)
#define GIB    (1ULL << 30)

static struct vmm_mem mem;
static struct kvm_sregs sregs;
static struct kvm_regs regs;
static int refuse; /* what the host answers */
static bool was_set;

int __wrap_vmm_vcpu_get_sregs(struct vmm_vcpu *cpu, struct kvm_sregs *out);
int __wrap_vmm_vcpu_set_sregs(struct vmm_vcpu *cpu, const struct kvm_sregs *in);
int __wrap_vmm_vcpu_set_regs(struct vmm_vcpu *cpu, const struct kvm_regs *in);

/* What a vCPU has after reset, and some dirt in what a start must clear. */
int
__wrap_vmm_vcpu_get_sregs(struct vmm_vcpu *cpu, struct kvm_sregs *out)
{
    (void)cpu;
    memset(out, 0, sizeof *out);
    out->apic_base = 0xfee00900;
    out->cr4 = 0x100000;
    out->efer = 0xd01;
    out->cr0 = 0x80000031;
    out->cs.base = 0xffff0000;
    out->ds.base = 0x123;
    return 0;
}

int
__wrap_vmm_vcpu_set_sregs(struct vmm_vcpu *cpu, const struct kvm_sregs *in)
{
    (void)cpu;
    sregs = *in;
    was_set = true;
    return refuse;
}

int
__wrap_vmm_vcpu_set_regs(struct vmm_vcpu *cpu, const struct kvm_regs *in)
{
    (void)cpu;
    regs = *in;
    return 0;
}

/* -- tables ---------------------------------------------------------------- */

static void
begin(uint64_t len)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, BASE, len, 0), 0);
    CHECK_EQ(vmm_mem_fill(&mem, BASE, 0xa5, len, VMM_MEM_HOST), 0);
}

static void
end(void)
{
    vmm_mem_fini(&mem);
}

static uint64_t
get(uint64_t gpa, unsigned len)
{
    uint64_t val = 0;

    CHECK_EQ(vmm_mem_read(&mem, gpa, &val, len), 0);
    return val;
}

/* Where the tables at `cr3` lead, as a processor in ring 3 that writes. */
static uint64_t
walk(uint64_t cr3, uint64_t addr)
{
    uint64_t table = cr3;

    for (int shift = 39; shift >= 21; shift -= 9) {
        uint64_t entry = get(table + 8 * (addr >> shift & 511), 8);

        if ((entry & 7) != 7) /* present, writable, user's */
            return UINT64_MAX;
        if (shift == 21) {
            CHECK_EQ(entry & 0x80, 0x80); /* 2 MiB */
            return (entry & ~0x1fffffULL) | (addr & 0x1fffff);
        }
        CHECK_EQ(entry & 0x80, 0);
        table = entry & ~0xfffULL;
    }
    return UINT64_MAX;
}

static void
sizes_grow_by_gib(void)
{
    uint64_t least = vmm_x86_tables_size(0);

    CHECK_EQ(least % PAGE, 0);
    CHECK_EQ(vmm_x86_tables_size(1), least);
    CHECK_EQ(vmm_x86_tables_size(4 * GIB), least);
    CHECK_EQ(vmm_x86_tables_size(4 * GIB + 1), least + PAGE);
    CHECK_EQ(vmm_x86_tables_size(5 * GIB), least + PAGE);
    CHECK_EQ(vmm_x86_tables_size(512 * GIB), least + 508 * PAGE);
}

static void
memory_is_mapped_one_to_one(void)
{
    static const uint64_t spans[] = {0, 4 * GIB, 4 * GIB + 1, 6 * GIB};
    uint64_t cr3;

    for (unsigned i = 0; i < sizeof spans / sizeof *spans; i++) {
        uint64_t size = vmm_x86_tables_size(spans[i]);
        uint64_t mapped = spans[i] < 4 * GIB ? 4 * GIB : spans[i];

        mapped = (mapped + GIB - 1) / GIB * GIB;
        begin(0x20000);
        CHECK_EQ(vmm_x86_tables(&mem, TABLES, spans[i]), 0);
        CHECK_EQ(vmm_x86_start(NULL, VMM_X86_LONG, &regs, TABLES), 0);
        cr3 = sregs.cr3;
        CHECK(cr3 >= TABLES && cr3 < TABLES + size);
        for (uint64_t at = 0; at < mapped; at += 2 << 20)
            CHECK_EQ(walk(cr3, at + 0x12345), at + 0x12345);
        CHECK_EQ(walk(cr3, mapped), UINT64_MAX);
        CHECK_EQ(walk(cr3, 1ULL << 39), UINT64_MAX);
        /* Nothing before, nothing behind. */
        CHECK_EQ(get(TABLES - 1, 1), 0xa5);
        CHECK_EQ(get(TABLES + size, 1), 0xa5);
        end();
    }
}

static void
the_largest_span(void)
{
    begin(0x300000);
    CHECK_EQ(vmm_x86_tables(&mem, BASE, VMM_X86_MAX_SPAN), 0);
    CHECK_EQ(vmm_x86_start(NULL, VMM_X86_LONG, &regs, BASE), 0);
    CHECK_EQ(walk(sregs.cr3, 512 * GIB - 1), 512 * GIB - 1);
    CHECK_EQ(vmm_x86_tables(&mem, BASE, VMM_X86_MAX_SPAN + 1), -EINVAL);
    CHECK_EQ(vmm_x86_tables(&mem, BASE, UINT64_MAX), -EINVAL);
    end();
}

static void
tables_lie_in_ram(void)
{
    uint64_t size = vmm_x86_tables_size(0);

    begin(0x20000);
    CHECK_EQ(vmm_x86_tables(&mem, TABLES + 8, 0), -EINVAL);
    CHECK_EQ(vmm_x86_tables(&mem, BASE - PAGE, 0), -EFAULT);
    CHECK_EQ(vmm_x86_tables(&mem, BASE + 0x20000 - size + PAGE, 0), -EFAULT);
    CHECK_EQ(vmm_x86_tables(&mem, 1ULL << 60, 0), -EFAULT);
    for (uint64_t at = BASE; at < BASE + 0x20000; at += 8)
        CHECK_EQ(get(at, 8), 0xa5a5a5a5a5a5a5a5);
    CHECK_EQ(vmm_x86_tables(&mem, BASE + 0x20000 - size, 0), 0);
    end();
}

/* The descriptor in the GDT says what the hidden part of `seg` does. */
static void
agrees(const struct kvm_segment *seg)
{
    uint64_t at = sregs.gdt.base + (seg->selector & ~7);
    uint64_t d = get(at, 8);
    uint64_t base = (d >> 16 & 0xffffff) | (d >> 56) << 24;
    uint64_t limit = (d & 0xffff) | (d >> 48 & 0xf) << 16;

    CHECK((seg->selector & ~7) + 7 <= sregs.gdt.limit);
    if (!seg->s) /* a system descriptor has 16 bytes in long mode */
        base |= get(at + 8, 8) << 32;
    if (d >> 55 & 1)
        limit = limit << 12 | 0xfff;
    CHECK_EQ(base, seg->base);
    CHECK_EQ(limit, seg->limit);
    CHECK_EQ(d >> 40 & 0xf, seg->type);
    CHECK_EQ(d >> 44 & 1, seg->s);
    CHECK_EQ(d >> 45 & 3, seg->dpl);
    CHECK_EQ(d >> 47 & 1, seg->present);
    CHECK_EQ(d >> 53 & 1, seg->l);
    CHECK_EQ(d >> 54 & 1, seg->db);
    CHECK_EQ(d >> 55 & 1, seg->g);
}

static void
descriptors_are_what_is_loaded(void)
{
    begin(0x20000);
    CHECK_EQ(vmm_x86_tables(&mem, TABLES, 0), 0);
    for (int user = 0; user < 2; user++) {
        CHECK_EQ(vmm_x86_start(NULL, user ? VMM_X86_USER : VMM_X86_LONG, &regs,
                               TABLES),
                 0);
        CHECK_EQ(get(sregs.gdt.base, 8), 0); /* the null descriptor */
        agrees(&sregs.cs);
        agrees(&sregs.ss);
        agrees(&sregs.ds);
        agrees(&sregs.tr);
    }
    /* Protected mode has the same selectors: it may load this GDT. */
    CHECK_EQ(vmm_x86_start(NULL, VMM_X86_PROTECTED, &regs, 0), 0);
    sregs.gdt.base = TABLES;
    sregs.gdt.limit = 63;
    agrees(&sregs.cs);
    agrees(&sregs.ds);
    end();
}

static void
the_tss_permits_all_ports(void)
{
    uint64_t tss, bitmap;

    begin(0x20000);
    CHECK_EQ(vmm_x86_tables(&mem, TABLES, 0), 0);
    CHECK_EQ(vmm_x86_start(NULL, VMM_X86_USER, &regs, TABLES), 0);
    tss = sregs.tr.base;
    bitmap = tss + get(tss + 102, 2);
    for (uint64_t at = 0; at < 8192; at += 8)
        CHECK_EQ(get(bitmap + at, 8), 0);
    CHECK_EQ(get(bitmap + 8192, 1), 0xff); /* SDM 1, 19.5.2 */
    CHECK_EQ(sregs.tr.limit, bitmap + 8192 - tss);
    CHECK(tss + sregs.tr.limit < sregs.cr3);
    end();
}

/* -- registers ------------------------------------------------------------- */

static int
start(enum vmm_x86_mode mode, uint64_t rip)
{
    struct kvm_regs in = {.rip = rip, .rax = 5, .rsp = 0x9000, .rflags = 0x40};

    memset(&sregs, 0xff, sizeof sregs);
    memset(&regs, 0xff, sizeof regs);
    was_set = false;
    return vmm_x86_start(NULL, mode, &in, 0x7000);
}

static void
is_flat(const struct kvm_segment *seg, unsigned type, unsigned dpl, bool l)
{
    CHECK_EQ(seg->base, 0);
    CHECK_EQ(seg->limit, 0xffffffff);
    CHECK_EQ(seg->type, type);
    CHECK_EQ(seg->dpl, dpl);
    CHECK_EQ(seg->selector & 3, dpl);
    CHECK_EQ(seg->present, 1);
    CHECK_EQ(seg->s, 1);
    CHECK_EQ(seg->g, 1);
    CHECK_EQ(seg->l, l);
    CHECK_EQ(seg->db, !l);
    CHECK_EQ(seg->unusable, 0);
}

static void
data_is_flat(unsigned dpl)
{
    is_flat(&sregs.ds, 3, dpl, false);
    is_flat(&sregs.es, 3, dpl, false);
    is_flat(&sregs.fs, 3, dpl, false);
    is_flat(&sregs.gs, 3, dpl, false);
    is_flat(&sregs.ss, 3, dpl, false);
}

static void
real_mode(void)
{
    static const uint64_t entries[] = {0, 0x7c00, 0xffff, 0x10000, 0xffff0};

    for (unsigned i = 0; i < sizeof entries / sizeof *entries; i++) {
        CHECK_EQ(start(VMM_X86_REAL, entries[i]), 0);
        CHECK_EQ(sregs.cs.base, entries[i] & 0xf0000);
        CHECK_EQ(sregs.cs.selector, (entries[i] & 0xf0000) >> 4);
        CHECK_EQ(regs.rip, entries[i] & 0xffff);
        CHECK_EQ(sregs.cs.limit, 0xffff);
        CHECK_EQ(sregs.ds.base, 0);
        CHECK_EQ(sregs.ds.limit, 0xffff);
        CHECK_EQ(sregs.ss.selector, 0);
        CHECK_EQ(sregs.cs.db | sregs.cs.l | sregs.cs.g, 0);
        CHECK_EQ(sregs.cr0 & 0x80000001, 0);
        CHECK_EQ(sregs.cr4, 0);
        CHECK_EQ(sregs.efer, 0);
        CHECK_EQ(regs.rflags, 0x42);
        CHECK_EQ(regs.rax, 5);
    }
    CHECK_EQ(start(VMM_X86_REAL, 0x100000), -EINVAL);
    CHECK_EQ(start(VMM_X86_REAL, UINT64_MAX), -EINVAL);
    CHECK(!was_set);
}

/* guest-abi.md, "Entry" */
static void
protected_mode(void)
{
    CHECK_EQ(start(VMM_X86_PROTECTED, 0x100000), 0);
    is_flat(&sregs.cs, 0xb, 0, false);
    data_is_flat(0);
    CHECK_EQ(sregs.cr0 & 0x80000001, 1); /* PE, not PG */
    CHECK_EQ(sregs.cr4, 0);
    CHECK_EQ(sregs.efer, 0);
    CHECK_EQ(sregs.apic_base, 0xfee00900); /* stays */
    CHECK_EQ(regs.rip, 0x100000);
    CHECK_EQ(regs.rsp, 0x9000);
    CHECK_EQ(regs.rax, 5);
}

static void
long_mode(void)
{
    for (unsigned user = 0; user < 2; user++) {
        CHECK_EQ(start(user ? VMM_X86_USER : VMM_X86_LONG, 0x100000), 0);
        is_flat(&sregs.cs, 0xb, user ? 3 : 0, true);
        data_is_flat(user ? 3 : 0);
        CHECK_EQ(sregs.cr0 & 0x80000001, 0x80000001);
        CHECK_EQ(sregs.cr4 & 0x20, 0x20);
        CHECK_EQ(sregs.efer, 0x500);
        CHECK_EQ(sregs.gdt.base, 0x7000);
        CHECK_EQ(sregs.tr.type, 0xb); /* busy, 64-bit */
        CHECK_EQ(sregs.tr.s, 0);
        CHECK_EQ(sregs.tr.present, 1);
        CHECK_EQ(regs.rflags, user ? 0x3042 : 0x42); /* IOPL */
        CHECK_EQ(regs.rip, 0x100000);
    }
}

static void
refusals_are_passed_on(void)
{
    CHECK_EQ(start((enum vmm_x86_mode)4, 0), -EINVAL);
    CHECK(!was_set);
    refuse = -EIO;
    CHECK_EQ(start(VMM_X86_LONG, 0), -EIO);
    refuse = 0;
}

int
main(void)
{
    RUN(sizes_grow_by_gib);
    RUN(memory_is_mapped_one_to_one);
    RUN(the_largest_span);
    RUN(tables_lie_in_ram);
    RUN(descriptors_are_what_is_loaded);
    RUN(the_tss_permits_all_ports);
    RUN(real_mode);
    RUN(protected_mode);
    RUN(long_mode);
    RUN(refusals_are_passed_on);
    return check_done();
}

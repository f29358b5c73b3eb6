/* SPDX-License-Identifier: Apache-2.0 */
/* x86_start.c - start modes: descriptors, page tables, control registers */
#include "x86_start.h"

#include <errno.h>
#include <string.h>

#define CR0_PE 0x1U
#define CR0_MP 0x2U
#define CR0_ET 0x10U
#define CR0_NE 0x20U
#define CR0_WP 0x10000U
#define CR0_PG 0x80000000U

#define CR4_PAE        0x20U
#define CR4_OSFXSR     0x200U
#define CR4_OSXMMEXCPT 0x400U

#define EFER_LME 0x100U
#define EFER_LMA 0x400U

#define RFLAGS_FIXED 0x2U
#define RFLAGS_IOPL3 0x3000U

#define PTE_PRESENT 0x1U
#define PTE_WRITE   0x2U
#define PTE_USER    0x4U
#define PTE_LARGE   0x80U
#define PTE_LINK    (PTE_PRESENT | PTE_WRITE | PTE_USER)
#define PTE_PAGE    (PTE_LINK | PTE_LARGE)

/* Segment types: SDM volume 3, table 3-1 and 3-2; accessed bit set. */
#define TYPE_DATA 0x3U
#define TYPE_CODE 0xbU
#define TYPE_TSS  0xbU

/*
 * The tables, in pages: the GDT (page 0), the TSS and its I/O bitmap (1 to 3),
 * PML4 (4), PDPT (5), then a page directory for each GiB.
 */
#define PAGE_TSS       1U
#define PAGE_PML4      4U
#define PAGE_PDPT      5U
#define PAGE_DIRECTORY 6U

#define IO_BITMAP_OFFSET 104U
#define IO_BITMAP_BYTES  8192U
#define TSS_LIMIT        (IO_BITMAP_OFFSET + IO_BITMAP_BYTES)

enum selector {
    SEL_CODE32 = 1 << 3,
    SEL_DATA = 2 << 3,
    SEL_CODE64 = 3 << 3,
    SEL_USER_DATA = 4 << 3,
    SEL_USER_CODE64 = 5 << 3,
    SEL_TSS = 6 << 3, /* two entries */
    GDT_BYTES = 8 << 3,
};

static struct kvm_segment
flat_segment(uint16_t selector, uint8_t type, uint8_t dpl, bool is_long)
{
    struct kvm_segment seg = {
        .limit = 0xffffffff,
        .selector = selector | dpl,
        .type = type,
        .present = 1,
        .dpl = dpl,
        .s = 1,
        .g = 1,
    };

    seg.l = is_long;
    seg.db = !is_long;
    return seg;
}

static struct kvm_segment
tss_segment(uint64_t base)
{
    struct kvm_segment seg = {
        .base = base,
        .limit = TSS_LIMIT,
        .selector = SEL_TSS,
        .type = TYPE_TSS,
        .present = 1,
    };

    return seg;
}

/* The eight bytes of the GDT that describe a segment. */
static uint64_t
descriptor(const struct kvm_segment *seg)
{
    uint64_t limit = seg->g ? seg->limit >> 12 : seg->limit;
    uint64_t base = seg->base;

    return (limit & 0xffff) | (base & 0xffffff) << 16 |
           (uint64_t)seg->type << 40 | (uint64_t)seg->s << 44 |
           (uint64_t)seg->dpl << 45 | (uint64_t)seg->present << 47 |
           (limit >> 16 & 0xf) << 48 | (uint64_t)seg->l << 53 |
           (uint64_t)seg->db << 54 | (uint64_t)seg->g << 55 |
           (base >> 24 & 0xff) << 56;
}

static int
put64(struct vmm_mem *mem, uint64_t gpa, uint64_t val)
{
    return vmm_mem_write(mem, gpa, &val, sizeof val, VMM_MEM_HOST);
}

static int
write_gdt(struct vmm_mem *mem, uint64_t gpa)
{
    struct kvm_segment code32 = flat_segment(SEL_CODE32, TYPE_CODE, 0, false);
    struct kvm_segment data = flat_segment(SEL_DATA, TYPE_DATA, 0, false);
    struct kvm_segment code64 = flat_segment(SEL_CODE64, TYPE_CODE, 0, true);
    struct kvm_segment user = flat_segment(SEL_USER_DATA, TYPE_DATA, 3, false);
    struct kvm_segment user64 =
        flat_segment(SEL_USER_CODE64, TYPE_CODE, 3, true);
    uint64_t tss_base = gpa + PAGE_TSS * VMM_PAGE_SIZE;
    struct kvm_segment tss = tss_segment(tss_base);
    uint64_t gdt[8] = {
        0,
        descriptor(&code32),
        descriptor(&data),
        descriptor(&code64),
        descriptor(&user),
        descriptor(&user64),
        descriptor(&tss),
        tss_base >> 32,
    };

    return vmm_mem_write(mem, gpa, gdt, sizeof gdt, VMM_MEM_HOST);
}

/* A TSS of zeros but for the bitmap's place and the byte that ends it. */
static int
write_tss(struct vmm_mem *mem, uint64_t gpa)
{
    uint16_t bitmap = IO_BITMAP_OFFSET;
    uint8_t end = 0xff;
    int err = vmm_mem_write(mem, gpa + 102, &bitmap, 2, VMM_MEM_HOST);

    if (err)
        return err;
    return vmm_mem_write(mem, gpa + TSS_LIMIT, &end, 1, VMM_MEM_HOST);
}

uint64_t
vmm_x86_tables_size(uint64_t span)
{
    if (span < VMM_X86_MIN_SPAN)
        span = VMM_X86_MIN_SPAN;
    return (PAGE_DIRECTORY + ((span - 1) >> 30) + 1) * VMM_PAGE_SIZE;
}

int
vmm_x86_tables(struct vmm_mem *mem, uint64_t gpa, uint64_t span)
{
    uint64_t pml4 = gpa + PAGE_PML4 * VMM_PAGE_SIZE;
    uint64_t pdpt = gpa + PAGE_PDPT * VMM_PAGE_SIZE;
    uint64_t directory = gpa + PAGE_DIRECTORY * VMM_PAGE_SIZE;
    uint64_t size = vmm_x86_tables_size(span);
    uint64_t count = size / VMM_PAGE_SIZE - PAGE_DIRECTORY;
    int err;

    if (gpa % VMM_PAGE_SIZE || span > VMM_X86_MAX_SPAN)
        return -EINVAL;
    err = vmm_mem_fill(mem, gpa, 0, size, VMM_MEM_HOST);
    if (!err)
        err = write_gdt(mem, gpa);
    if (!err)
        err = write_tss(mem, gpa + PAGE_TSS * VMM_PAGE_SIZE);
    if (!err)
        err = put64(mem, pml4, pdpt | PTE_LINK);
    for (uint64_t i = 0; !err && i < count; i++)
        err = put64(mem, pdpt + 8 * i,
                    (directory + i * VMM_PAGE_SIZE) | PTE_LINK);
    for (uint64_t i = 0; !err && i < 512 * count; i++)
        err = put64(mem, directory + 8 * i, i << 21 | PTE_PAGE);
    return err;
}

static int
start_real(struct kvm_sregs *sregs, struct kvm_regs *regs)
{
    uint16_t paragraph;
    struct kvm_segment seg = {
        .limit = 0xffff,
        .type = TYPE_DATA,
        .present = 1,
        .s = 1,
    };

    if (regs->rip >= 1 << 20)
        return -EINVAL;
    paragraph = (uint16_t)(regs->rip >> 4 & 0xf000);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = seg;
    seg.type = TYPE_CODE;
    seg.selector = paragraph;
    seg.base = (uint64_t)paragraph << 4;
    sregs->cs = seg;
    sregs->cr0 = CR0_ET;
    regs->rip -= seg.base;
    return 0;
}

static void
start_protected(struct kvm_sregs *sregs)
{
    struct kvm_segment data = flat_segment(SEL_DATA, TYPE_DATA, 0, false);

    sregs->cs = flat_segment(SEL_CODE32, TYPE_CODE, 0, false);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->cr0 = CR0_PE | CR0_ET;
}

static void
start_long(struct kvm_sregs *sregs, uint64_t tables, bool user)
{
    struct kvm_segment data =
        user ? flat_segment(SEL_USER_DATA, TYPE_DATA, 3, false)
             : flat_segment(SEL_DATA, TYPE_DATA, 0, false);

    sregs->cs = user ? flat_segment(SEL_USER_CODE64, TYPE_CODE, 3, true)
                     : flat_segment(SEL_CODE64, TYPE_CODE, 0, true);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
    sregs->tr = tss_segment(tables + PAGE_TSS * VMM_PAGE_SIZE);
    sregs->gdt.base = tables;
    sregs->gdt.limit = GDT_BYTES - 1;
    sregs->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs->cr3 = tables + PAGE_PML4 * VMM_PAGE_SIZE;
    sregs->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs->efer = EFER_LME | EFER_LMA;
}

int
vmm_x86_start(struct vmm_vcpu *cpu, enum vmm_x86_mode mode,
              const struct kvm_regs *regs, uint64_t tables)
{
    struct kvm_regs start = *regs;
    struct kvm_sregs sregs;
    int err = vmm_vcpu_get_sregs(cpu, &sregs);

    if (err)
        return err;
    sregs.cr4 = 0;
    sregs.efer = 0;
    start.rflags |= RFLAGS_FIXED;
    switch (mode) {
    case VMM_X86_REAL:
        err = start_real(&sregs, &start);
        break;
    case VMM_X86_PROTECTED:
        start_protected(&sregs);
        break;
    case VMM_X86_LONG:
        start_long(&sregs, tables, false);
        break;
    case VMM_X86_USER:
        start_long(&sregs, tables, true);
        start.rflags |= RFLAGS_IOPL3;
        break;
    default:
        err = -EINVAL;
        break;
    }
    if (!err)
        err = vmm_vcpu_set_sregs(cpu, &sregs);
    if (!err)
        err = vmm_vcpu_set_regs(cpu, &start);
    return err;
}

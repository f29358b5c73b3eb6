/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86_start.h - the states in which a vCPU may begin
 *
 * Each function sets the system registers and general registers for one mode;
 * general registers that are not named come from `regs`, of which rip is the
 * entry point. The caller fills what its boot protocol asks for.
 *
 * Long mode needs tables in guest memory, written by vmm_x86_tables: identity
 * mapping by 2 MiB pages, a GDT, and a TSS whose I/O bitmap permits all ports.
 * Ring 3 is the fast ring on hosts that emulate ring 0; there IOPL is 3, so
 * that port I/O, cli and sti work.
 *
 * Sources: Intel SDM volume 3, 9.1 (state after reset), 4.5 (4-level paging),
 * 3.4.5 (segment descriptors), 8.7 (64-bit TSS).
 */
#ifndef VMM_X86_START_H
#define VMM_X86_START_H

#include "vcpu.h"

/* The least that is mapped: RAM and the device area below 4 GiB. */
#define VMM_X86_MIN_SPAN (4ULL << 30)
#define VMM_X86_MAX_SPAN (512ULL << 30)

enum vmm_x86_mode {
    VMM_X86_REAL,      /* cs.base = rip & ~0xffff's paragraph; below 1 MiB */
    VMM_X86_PROTECTED, /* 32-bit, flat, paging off: guest-abi.md */
    VMM_X86_LONG,      /* 64-bit, ring 0 */
    VMM_X86_USER,      /* 64-bit, ring 3, IOPL 3 */
};

/* Bytes of the tables that map `span` bytes from 0 on; a multiple of 4096. */
uint64_t vmm_x86_tables_size(uint64_t span);

/*
 * Writes the tables at `gpa` (page aligned). -EINVAL: not aligned, or span
 * above VMM_X86_MAX_SPAN. -EFAULT: not all of it is RAM.
 */
int vmm_x86_tables(struct vmm_mem *mem, uint64_t gpa, uint64_t span);

/*
 * Sets the registers. `tables` is where vmm_x86_tables wrote, for the two
 * 64-bit modes. -EINVAL: rip of real mode is 1 MiB or more, or `mode` is none.
 */
int vmm_x86_start(struct vmm_vcpu *cpu, enum vmm_x86_mode mode,
                  const struct kvm_regs *regs, uint64_t tables);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vcpu_save.h - the whole state of a vCPU, taken and put back
 *
 * Whole: registers, system registers, pending events, MP state, xsave area,
 * extended control registers, debug registers, the local APIC, and all MSRs of
 * the host's list that it takes back. Not the time stamp counter, which runs on
 * (MSR 0x10 and its adjustment): kernels synchronise what is written there, or
 * refuse it.
 *
 * No exit tells which of it a guest has changed: many of the instructions that
 * do are carried out by KVM or by the processor alone. So all of it is put
 * back, an ioctl each but for registers, system registers and events, which
 * travel with the next KVM_RUN where the host has KVM_CAP_SYNC_REGS.
 *
 * Threads: as the vCPU.
 */
#ifndef VMM_VCPU_SAVE_H
#define VMM_VCPU_SAVE_H

#include "vcpu.h"

struct vmm_vcpu_save {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    uint32_t mp_state;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    bool has_lapic;
    struct kvm_lapic_state lapic;
    unsigned msrs;
    uint32_t msr_index[VMM_VCPU_MAX_MSRS];
    uint64_t msr_value[VMM_VCPU_MAX_MSRS];
    size_t xsave_size;
    void *xsave;
};

/*
 * Takes the state of a settled vCPU (-EBUSY otherwise) into `save`, which is
 * zeroed or was filled before. -ENOMEM, or what an ioctl said.
 */
int vmm_vcpu_save(struct vmm_vcpu *cpu, struct vmm_vcpu_save *save);

/* Puts it back, all of it; the vCPU is settled. */
int vmm_vcpu_load(struct vmm_vcpu *cpu, const struct vmm_vcpu_save *save);

/*
 * The same for registers, system registers and events alone: they travel with
 * the next KVM_RUN where the host can, and cost no ioctl then.
 */
int vmm_vcpu_load_registers(struct vmm_vcpu *cpu,
                            const struct vmm_vcpu_save *save);

/*
 * What of the rest, which vmm_vcpu_load_registers leaves as it is, differs
 * between two states of a vCPU: its name, or NULL. What runs on by itself (the
 * count of the APIC's timer) does not count.
 */
const char *vmm_vcpu_save_differs(const struct vmm_vcpu_save *one,
                                  const struct vmm_vcpu_save *other);

/* Frees what it holds; safe on a zeroed one. */
void vmm_vcpu_save_fini(struct vmm_vcpu_save *save);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvm.h - /dev/kvm: open it, check it, ask what it can do
 *
 * One struct vmm_kvm serves any number of machines of a process. KVM objects
 * do not survive fork(): a child must open its own.
 *
 * Threads: any, once it is open.
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include <linux/kvm.h>

#include "base.h"

#define VMM_KVM_MAX_CPUID 256
#define VMM_KVM_MAX_MSRS  1024

struct vmm_cpuid {
    uint32_t nent;
    uint32_t padding;
    struct kvm_cpuid_entry2 entry[VMM_KVM_MAX_CPUID];
}; /* laid out like struct kvm_cpuid2, with room */

struct vmm_kvm {
    int fd;
    size_t run_size;    /* bytes to mmap for a vCPU */
    uint64_t sync_regs; /* KVM_SYNC_X86_* that the host offers */
    bool xsave2;        /* KVM_GET_XSAVE2, of xsave_size bytes */
    size_t xsave_size;
    unsigned max_vcpus;
    unsigned max_slots;
    unsigned ring_page;     /* of a vCPU's mapping: coalesced writes. 0: none */
    bool ring_pio;          /* those to ports, too */
    struct vmm_cpuid cpuid; /* KVM_GET_SUPPORTED_CPUID */
    const char *call;       /* what was refused last */
};

/*
 * Opens /dev/kvm, checks that the API version is 12 and that what pyvmm cannot
 * do without is there. -ENOENT, -EACCES, ... from open; -EPROTO: another API
 * version; -ENOTSUP: a capability is missing, which `call` names.
 */
int vmm_kvm_init(struct vmm_kvm *kvm);
void vmm_kvm_fini(struct vmm_kvm *kvm);

/* KVM_CHECK_EXTENSION: 0 when the host lacks it, else its positive value. */
int vmm_kvm_check(struct vmm_kvm *kvm, unsigned cap);

/*
 * KVM_GET_MSR_INDEX_LIST: the MSRs that make up a vCPU's state. Writes up to
 * `room` of them to `index` and returns how many there are.
 */
int vmm_kvm_msr_list(struct vmm_kvm *kvm, uint32_t *index, unsigned room);

/*
 * What it means that `call` failed with the positive errno `err`: a sentence
 * for people, or NULL when the errno says enough.
 */
const char *vmm_kvm_hint(const char *call, int err);

/*
 * One ioctl, retried on EINTR. Returns its value or -errno, and then sets *call
 * to `name`. For the other modules of the core.
 */
int vmm_kvm_ioctl(int fd, unsigned long request, void *arg, const char *name,
                  const char **call);

#endif

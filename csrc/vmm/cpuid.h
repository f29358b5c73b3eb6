/* SPDX-License-Identifier: Apache-2.0 */
/* cpuid.h - the CPUID that a vCPU is given: the host's, with its own place */
#ifndef VMM_CPUID_H
#define VMM_CPUID_H

#include "kvm.h"

/*
 * From what the host supports (KVM_GET_SUPPORTED_CPUID) makes the table of the
 * vCPU `index` of `cpus`, all cores of one package without threads, its APIC
 * id being its index: leaf 1 (initial APIC id, logical processors), leaf 4
 * (cores sharing each cache), leaves 0xb and 0x1f (topology), and AMD's
 * 0x80000008 and 0x8000001e. Leaves that the host lacks are not invented.
 * Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
 */
void vmm_cpuid_make(const struct vmm_cpuid *host, unsigned index, unsigned cpus,
                    struct vmm_cpuid *out);

#endif

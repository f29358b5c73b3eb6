/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snap_file.h - snapshots and files: a root that is in one, pages for one
 *
 * What such a file looks like is its owner's affair. Here is what that needs of
 * the core: a root whose image is a part of a file instead of a memfd, with the
 * state of the vCPUs and the VM as plain structures; and the pages of any node,
 * those that hold something first.
 *
 * The file is mapped, not read: a page comes from it when it is first touched.
 * Whoever writes to the file changes pages that no machine has written yet, and
 * whoever shortens it ends processes that touch what is gone (SIGBUS). Files
 * are to be replaced, not changed.
 *
 * Threads: as snap.h.
 */
#ifndef VMM_SNAP_FILE_H
#define VMM_SNAP_FILE_H

#include "snap.h"

/* What a root is made of, but for its pages. All of it stays the caller's. */
struct vmm_snap_parts {
    unsigned regions;
    const struct vmm_snap_region *region;
    unsigned cpus;
    const struct vmm_vcpu_save *cpu;
    const struct kvm_irqchip *chip; /* three, or NULL: there is none */
    const struct kvm_pit_state2 *pit;
    const uint64_t *clock;
};

/*
 * A root of the pages that are in the file `fd` from `offset` on, the regions
 * one after the other, for machines of this host's KVM. The fd stays the
 * caller's. Nothing is believed of the parts: -EINVAL: regions that are none,
 * overlap or are not in order, an offset that is not page aligned, no vCPU or
 * more MSRs than a vCPU has; -ERANGE: an xsave area that is larger than this
 * host's; -ENODATA: the file is too short. -ENOMEM or what *call said.
 */
int vmm_snap_open(const struct vmm_kvm *kvm, int fd, uint64_t offset,
                  const struct vmm_snap_parts *parts, const char **call,
                  struct vmm_snap **out);

/*
 * The number of the first page from `number` on that may hold anything but
 * zeros, or snap->pages: none does.
 */
uint64_t vmm_snap_next(const struct vmm_snap *snap, uint64_t number);

/* Copies `count` pages from `number` on, all of which there are. */
void vmm_snap_copy(const struct vmm_snap *snap, uint64_t number, uint64_t count,
                   void *out);

#endif

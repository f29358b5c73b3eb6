/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dirty.h - which pages a guest has written, as KVM tells
 *
 * KVM keeps a bitmap for each slot (KVM_GET_DIRTY_LOG). Its bits are moved into
 * the dirty bits of the memory (mem.h), beside those of pages that the host has
 * written: one place to ask. Where the host can (KVM_CAP_MANUAL_DIRTY_LOG_
 * PROTECT2) reading the bitmap and clearing it are two calls, and only the
 * words that have bits are cleared: a memory of 1 GiB of which a few pages were
 * written then costs 3 us, and not 20.
 *
 * Dirty rings, whose cost does not go with the size of memory at all, are not
 * used: a host that emulates a guest's instructions enters one for each of its
 * writes, and does not stop the guest when the ring is full; entries are lost.
 *
 * Threads: while no vCPU runs.
 */
#ifndef VMM_DIRTY_H
#define VMM_DIRTY_H

#include "vm.h"

/*
 * Before the slots are made: they will log from the start. The first change of
 * slots soon after the interrupt controller takes the kernel milliseconds, and
 * a clone wants to run at once. -ENOMEM.
 */
int vmm_dirty_prepare(struct vmm_vm *vm);

/*
 * From now on writes of guests are noted. -ENOMEM, or -errno of an ioctl; what
 * was begun is ended then. Twice is once.
 */
int vmm_dirty_start(struct vmm_vm *vm);

/* Marks the pages written since the last call in the memory. */
int vmm_dirty_harvest(struct vmm_vm *vm);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snap.h - snapshots: the state of a machine, and the way back to it
 *
 * The first snapshot of a machine is a *root*: all of its memory, as a file
 * without a name (memfd) in which the regions follow each other. Taking it
 * moves the pages that were touched there, and maps the machine's regions anew,
 * privately, over that file: what the machine writes from now on is its own,
 * page by page, and the file never changes again. Other machines may map it
 * too (vmm_snap_map): they are clones, and cost what they write.
 *
 * Later snapshots are *children* of the one that the machine was at: they hold
 * the pages that were written since. So snapshots form a tree, and a machine is
 * always at one of its nodes, give or take the pages that are dirty (dirty.h,
 * mem.h). Going back copies those, and what lies between the two nodes, in
 * place; no mapping and no slot changes.
 *
 * Devices are their owners' business, and so is that nothing works on queues
 * meanwhile. All vCPUs are settled, and none of them runs.
 *
 * Ownership: nodes are counted; a child holds its parent, a machine the node it
 * is at.
 *
 * Threads: counting is atomic, and a finished node never changes but by
 * vmm_snap_poke; taking and going back want the machine for themselves.
 */
#ifndef VMM_SNAP_H
#define VMM_SNAP_H

#include "vcpu_save.h"

struct vmm_snap {
    struct vmm_snap *parent; /* NULL: a root */
    unsigned refs;           /* atomic */

    /* Pages are numbered through the regions, in their order. */
    uint64_t pages; /* of the whole memory */

    /* A root: the regions, the file, and all of it mapped to be read. */
    unsigned regions;
    struct vmm_snap_region {
        uint64_t gpa, len;
        uint32_t flags;
    } region[VMM_MEM_MAX_REGIONS];
    int fd;          /* -1 in a child */
    uint64_t offset; /* where in the file the first region begins */
    const uint8_t *image;

    /* A child: what differs from the parent, by number. */
    uint32_t count;
    uint64_t *number;
    uint8_t *data; /* mapped, `count` pages */

    unsigned cpus;
    struct vmm_vcpu_save *cpu;
    bool irqchip;
    struct kvm_irqchip chip[3];
    bool pit;
    struct kvm_pit_state2 pit_state;
    bool clock;
    struct kvm_clock_data clock_data;
};

/*
 * Takes a snapshot of a machine, which is at it from then on: *out, with one
 * reference for the caller. -EBUSY: a vCPU is not settled. -EINVAL: memory is
 * shared with other processes (VMM_MEM_SHARED), whose writes nobody notes.
 * -ENOMEM, or what a call said; the machine is then as before.
 */
int vmm_snap_take(struct vmm_vm *vm, struct vmm_vcpu *const *cpu, unsigned cpus,
                  struct vmm_snap **out);

/*
 * Puts a machine into the state of a node of its own tree. Returns how many
 * pages were copied. -EXDEV: the node is of another tree, or of a machine of
 * another shape. -EBUSY: a vCPU is not settled. What a call said: then the
 * memory is that of the node and the vCPUs' state is not.
 */
int64_t vmm_snap_restore(struct vmm_vm *vm, struct vmm_vcpu *const *cpu,
                         unsigned cpus, struct vmm_snap *snap);

/*
 * The parts of that which a loop does again and again (replay.h): copying back
 * what is dirty in a machine that is at this node, once it was harvested, and
 * how many pages it were; the irqchip, the PIT and the clock; and whether what
 * these are now, or would be put to, differs from the node's.
 */
int64_t vmm_snap_copy_back(struct vmm_mem *mem, const struct vmm_snap *snap);
int vmm_snap_load_chips(struct vmm_vm *vm, const struct vmm_snap *snap);
int vmm_snap_chips_differ(struct vmm_vm *vm, const struct vmm_snap *snap,
                          bool *differ);

/*
 * Makes a memory without regions one like that of the snapshot's root, which
 * costs no more than mapping it. A VM made of it is at the snapshot after
 * vmm_snap_restore. -ENOMEM or what mmap said; `mem` is to be finished then.
 */
int vmm_snap_map(struct vmm_snap *snap, struct vmm_mem *mem);

/*
 * Maps the regions of a memory over the file of the snapshot's root, where they
 * are, also those of a VM: it is at the root then, whatever it was before, and
 * vmm_snap_restore does the rest. Nothing happens when it is in that tree
 * already. No vCPU runs. -EXDEV: its regions are others. What mmap said: then
 * some are mapped and some are not.
 */
int vmm_snap_adopt(struct vmm_snap *snap, struct vmm_mem *mem);

/* The memory is at no node any more; before vmm_mem_fini. */
void vmm_snap_leave(struct vmm_mem *mem);

/* One reference more, or less: the last one frees it. */
struct vmm_snap *vmm_snap_hold(struct vmm_snap *snap);
void vmm_snap_drop(struct vmm_snap *snap);

/* Where in a child's list the first page from `number` on is, or `count`. */
uint32_t vmm_snap_first(const struct vmm_snap *snap, uint64_t number);

/*
 * Changes a byte of a child, at an offset into all pages, for who has the node
 * to himself. -ENOENT: the page is not one of those that it holds.
 */
int vmm_snap_poke(struct vmm_snap *snap, uint64_t offset, uint8_t byte);

/* The page of that number: 4096 bytes that do not change. */
const uint8_t *vmm_snap_page(const struct vmm_snap *snap, uint64_t number);

#endif

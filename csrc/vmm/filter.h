/* SPDX-License-Identifier: Apache-2.0 */
/*
 * filter.h - registers that are answered here, and writes that wait
 *
 * The accesses of most devices are handled by their owner (the binding calls
 * Python). For many registers there is little to do: they keep a value. A
 * filter is what is known of the registers in one range of such a device. On a
 * bus, as the device of vmm_filter_ops, it answers what it can and leaves the
 * rest to the owner (VMM_BUS_OUTSIDE):
 *
 *   VMM_REG_READ    a read gives the value's readable bits
 *   VMM_REG_WRITE   a write sets the stored bits and clears w1c bits that are 1
 *   VMM_REG_POSTED  so does this, and what was written waits in the device's
 *                   struct vmm_post until the owner takes it, many at a time
 *
 * Answered are accesses of a register's own place and size; the owner puts
 * others together (vmm_filter_first). The value is shared with the owner.
 *
 * Order. While writes wait, everything else of the device is left to the
 * owner, who takes them first: so he sees what the guest did in its order.
 *
 * Ownership: a filter borrows its registers, their values and the post.
 *
 * Threads: any. Values are atomic, a post has a lock; the tables do not change
 * while they are on a bus.
 */
#ifndef VMM_FILTER_H
#define VMM_FILTER_H

#include <pthread.h>

#include "bus.h"

enum vmm_reg_here { /* what is answered here */
                    VMM_REG_READ = 1,
                    VMM_REG_WRITE = 2,
                    VMM_REG_POSTED = 4,
};

struct vmm_reg {
    uint64_t offset; /* in its range */
    unsigned len;    /* 1, 2, 4 or 8 */
    unsigned here;   /* enum vmm_reg_here */
    unsigned number; /* the owner's */
    uint64_t *value; /* atomic */
    uint64_t readable;
    uint64_t stored;
    uint64_t w1c;
};

struct vmm_filter {
    const struct vmm_reg *reg; /* by offset, never overlapping */
    unsigned count;
    unsigned here;         /* what is answered at all: READ, WRITE; atomic */
    struct vmm_post *post; /* shared by the device's filters; or NULL */
};

extern const struct vmm_bus_ops vmm_filter_ops; /* dev: struct vmm_filter */

/* The register that an access of this place and size is, or NULL. */
const struct vmm_reg *vmm_filter_find(const struct vmm_filter *filter,
                                      uint64_t offset, unsigned len);

/*
 * The index of the first register that ends behind `offset`. An access touches
 * this one and those after it that begin before its end.
 */
unsigned vmm_filter_first(const struct vmm_filter *filter, uint64_t offset);

/* What a guest's read gives. */
uint64_t vmm_reg_read(const struct vmm_reg *reg);

/* What a guest's write does, but for posting. Returns the value before. */
uint64_t vmm_reg_write(const struct vmm_reg *reg, uint64_t val);

/* -- posted writes --------------------------------------------------------- */

#define VMM_POST_MOST  65536U /* the greatest limit */
#define VMM_POST_SPARE 64U    /* for vCPUs that post while the owner comes */

struct vmm_posted {
    uint64_t val;
    unsigned number; /* whose: struct vmm_reg's */
};

/* The posted writes of a device, oldest first: a ring. */
struct vmm_post {
    pthread_mutex_t lock;
    struct vmm_posted *ring;
    unsigned room; /* its size, limit + VMM_POST_SPARE; 0: not made */
    unsigned head;
    unsigned count;
    unsigned waiting; /* not handled: count, and what was taken; atomic */
};

/* `limit` is at most VMM_POST_MOST. -ENOMEM, -EINVAL. */
int vmm_post_init(struct vmm_post *post, unsigned limit);
void vmm_post_fini(struct vmm_post *post);

/*
 * A guest's write to a posted register: its value changes and the write, its
 * bits that take writes, waits. VMM_BUS_DONE; VMM_BUS_OWNER when the post is
 * full by now; VMM_BUS_OUTSIDE when there was no room, and nothing was done.
 */
int vmm_post_write(struct vmm_post *post, const struct vmm_reg *reg,
                   uint64_t val);

/* How many writes are not handled yet. */
static inline unsigned
vmm_post_waiting(const struct vmm_post *post)
{
    return post ? __atomic_load_n(&post->waiting, __ATOMIC_ACQUIRE) : 0;
}

/* How many of them can be taken. */
unsigned vmm_post_count(struct vmm_post *post);

/* As if one more were not handled, until vmm_post_done says so. */
void vmm_post_hold(struct vmm_post *post);

/*
 * How many of the oldest writes are to one register, whose number is in *out;
 * at most `most`. 0: there are none. For one thread at a time, up to done.
 */
unsigned vmm_post_run(struct vmm_post *post, unsigned most, unsigned *out);

/*
 * Takes the `count` oldest, as values of `len` bytes in a row at `out`. They
 * are handled when vmm_post_done says so.
 */
void vmm_post_take(struct vmm_post *post, unsigned count, unsigned len,
                   void *out);
void vmm_post_done(struct vmm_post *post, unsigned count);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus.h - who answers at a port or at a guest-physical address
 *
 * A bus is a sorted set of ranges that never overlap; a machine has one for
 * ports and one for addresses. A range with `ops` is a native device and is
 * handled here; one without is only looked up, and whoever runs the vCPU does
 * the rest (the binding calls Python). An access belongs to a range only when
 * all of its bytes do: one that straddles a range's end goes to nobody.
 *
 * Threads: any. Accesses run under a read lock, so when vmm_bus_remove
 * returns no op of the removed range is running or will run; an op must
 * therefore not add or remove ranges.
 */
#ifndef VMM_BUS_H
#define VMM_BUS_H

#include <pthread.h>

#include "base.h"

/* What an op answers, and what vmm_bus_read and vmm_bus_write pass on. */
enum vmm_bus_answer {
    VMM_BUS_DONE = 0,
    VMM_BUS_OWNER = 1,   /* done, and the owner has something to do now */
    VMM_BUS_STOP = 2,    /* done, and the run ends here (the exit port) */
    VMM_BUS_UNTIL = 4,   /* done, and what the caller waits for has come */
    VMM_BUS_OUTSIDE = 3, /* the caller handles it; a range without ops */
};

struct vmm_bus_ops {
    /* `len` is 1 to 8 and offset + len is inside the range. */
    int (*read)(void *dev, uint64_t offset, unsigned len, uint64_t *val);
    int (*write)(void *dev, uint64_t offset, unsigned len, uint64_t val);
};

struct vmm_range {
    uint64_t base;
    uint64_t last;                 /* the last address, so 2^64 - 1 works */
    const struct vmm_bus_ops *ops; /* NULL: not native */
    void *dev;                     /* first argument of the ops */
    void *owner;                   /* the caller's; never read here */
};

struct vmm_bus {
    pthread_rwlock_t lock;
    struct vmm_range *range; /* sorted by base */
    unsigned count;
    unsigned room;
    unsigned hit; /* index that the last look-up found; atomic, a hint */
    uint64_t limit;
};

/* `limit` is the highest address: 0xffff for ports. */
int vmm_bus_init(struct vmm_bus *bus, uint64_t limit);
void vmm_bus_fini(struct vmm_bus *bus);

/*
 * -EINVAL: no length, or the end is past the limit. -EEXIST: overlaps a range,
 * which is copied to `other` unless that is NULL. -ENOMEM.
 */
int vmm_bus_add(struct vmm_bus *bus, const struct vmm_range *range,
                struct vmm_range *other);

/* Removes the range that starts at `base`; -ENOENT when none does. */
int vmm_bus_remove(struct vmm_bus *bus, uint64_t base);

/*
 * Gives the range that starts at `base` and has this owner other ops and
 * another device; -ENOENT when none does. When it returns 0 no op of the old
 * device runs or will run. -EBUSY: that would have to be waited for, and `wait`
 * is false.
 */
int vmm_bus_replace(struct vmm_bus *bus, uint64_t base, void *owner,
                    const struct vmm_bus_ops *ops, void *dev, bool wait);

/* Copies out the range that holds all of [addr, addr + len), or -ENOENT. */
int vmm_bus_find(struct vmm_bus *bus, uint64_t addr, unsigned len,
                 struct vmm_range *out);

/*
 * One access. Returns an enum vmm_bus_answer, or -ENOENT when nobody claims
 * it. For every answer but VMM_BUS_DONE `out` receives the range. A read that
 * nobody answered leaves *val alone.
 */
int vmm_bus_read(struct vmm_bus *bus, uint64_t addr, unsigned len,
                 uint64_t *val, struct vmm_range *out);
int vmm_bus_write(struct vmm_bus *bus, uint64_t addr, unsigned len,
                  uint64_t val, struct vmm_range *out);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rng.h - the virtio entropy device (virtio 1.2, 5.4)
 *
 * One queue; every writable byte of every chain is filled, readable ones are
 * ignored (5.4.6.2). The bytes come from getrandom(), straight into guest
 * memory, or from a source of the owner's, for runs that can be repeated: then
 * the core keeps a small pool and asks for more.
 *
 * Whoever attaches the device (the *owner*) acts when a register access,
 * vmm_rng_process or vmm_virtio_mmio_serve answers VMM_BUS_OWNER:
 *
 *     if ((n = vmm_rng_wanted(rng)))     the pool is dry: feed up to n bytes,
 *         vmm_rng_feed(rng, buf, got);   0 when the source has ended
 *     else
 *         wait until vmm_rng_due_ns();   at once when that is past
 *     again = vmm_rng_process(rng);      unless serve is called again
 *
 * Only a source of the owner's, a rate limit or a request of more than
 * VMM_RNG_BATCH bytes makes it answer so, and with serve only the first.
 *
 * A chain whose bytes are not all there stays with the device meanwhile, and
 * chains are finished in order. A reset takes it away: fed bytes that were not
 * used are kept for the next request, those already written into it are gone.
 *
 * The end of the source: a chain that got some bytes is completed with them.
 * A chain that got none cannot be (5.4.6.2 wants at least one), so the device
 * sets NEEDS_RESET; after a reset the next request finds the same.
 * A chain without room for a single byte is returned with length 0.
 *
 * Threads: any.
 */
#ifndef VMM_RNG_H
#define VMM_RNG_H

#include "virtio_mmio.h"

#define VMM_RNG_QUEUE_SIZE 256U

/* The work of one call of notify: bytes, with 64 for each descriptor. Keeps a
 * vCPU that asks for 4 GiB within reach of a kick. */
#define VMM_RNG_BATCH (2U << 20)

struct vmm_rng {
    struct vmm_virtio_mmio mmio;
    struct vmm_virtq requestq;

    /* The chain in progress, if in flight. */
    struct vmm_chain chain;
    unsigned seg;     /* the segment to write next */
    uint32_t seg_pos; /* and the byte in it */
    uint64_t written; /* bytes written into the chain */

    /* A source of the owner's. */
    uint8_t *pool; /* NULL: getrandom */
    uint64_t pool_size;
    uint64_t pool_pos; /* bytes pool_pos .. pool_end are left */
    uint64_t pool_end;
    bool dry;   /* a chain waits for bytes of the pool */
    bool ended; /* the source has no more */

    /* The rate limit: a bucket that fills with time. */
    uint64_t rate; /* bytes a second, 0: none */
    uint64_t burst;
    uint64_t tokens; /* billionths of a byte */
    uint64_t refilled_ns;

    uint64_t bytes;    /* given to the guest */
    uint64_t requests; /* chains completed */
};

/*
 * A device that takes bytes from getrandom, without limit; `queue_size` is a
 * power of two up to VMM_VIRTQ_MAX_SIZE, else -EINVAL. Its place on the bus,
 * irq_fd and doorbell_fd are those of `mmio`.
 */
int vmm_rng_init(struct vmm_rng *rng, struct vmm_mem *mem, uint32_t queue_size);

/* Safe on a zeroed struct; else under the conditions of
 * vmm_virtio_mmio_fini. */
void vmm_rng_fini(struct vmm_rng *rng);

/*
 * Takes bytes from the owner instead, through a pool of `pool_size` bytes (1 to
 * 2^30, else -EINVAL; -ENOMEM). Before the guest's first access; -EBUSY twice.
 */
int vmm_rng_external(struct vmm_rng *rng, uint64_t pool_size);

/* How many bytes the device wants now: 0 when no chain waits for them, else
 * the size of the pool. */
uint64_t vmm_rng_wanted(struct vmm_rng *rng);

/*
 * Puts bytes into the pool and returns how many fitted. With `len` 0 the source
 * has ended, for good. Does no work on chains: vmm_rng_process does.
 */
uint64_t vmm_rng_feed(struct vmm_rng *rng, const void *buf, uint64_t len);

/*
 * No more than `rate` bytes a second on average and `burst` at once (0: a tenth
 * of a second's); what exceeds it waits. The bucket starts full. A rate of 0
 * lifts the limit. -EINVAL: either above 2^32.
 */
int vmm_rng_limit(struct vmm_rng *rng, uint64_t rate, uint64_t burst);

/* Goes on with what waits. VMM_BUS_DONE, or VMM_BUS_OWNER as above. */
int vmm_rng_process(struct vmm_rng *rng);

/* The same at a time given by the caller: `now_ns` of CLOCK_MONOTONIC, 0 not
 * being one. */
int vmm_rng_process_at(struct vmm_rng *rng, uint64_t now_ns);

/* When to call vmm_rng_process (CLOCK_MONOTONIC), 0: no need. */
uint64_t vmm_rng_due_ns(struct vmm_rng *rng);

#endif

/* SPDX-License-Identifier: 0BSD */
/* rng.h - random bytes from a virtio-rng device (virtio 1.2, 5.4) */
#ifndef GUEST_RNG_H
#define GUEST_RNG_H

#include <virtio.h>

struct rng {
    struct virtio_device dev;
    struct virtqueue vq;
    volatile unsigned interrupts; /* how many came */
};

/*
 * Finds and starts the first rng. With `interrupts` reads sleep until the
 * device interrupts, else they poll. Returns NULL or what is missing.
 */
const char *rng_open(struct rng *rng, bool interrupts);

/* Fills all of `buf`; returns `len`, or -1 when the device is broken. */
int rng_read(struct rng *rng, void *buf, uint32_t len);

/*
 * One request for `count` buffers (at most the size of the queue) that are
 * filled in order. Returns how many bytes came, which may be less than all,
 * or -1 when the device is broken.
 */
int rng_read_scatter(struct rng *rng, const struct virtio_buffer *buffers,
                     unsigned count);

#endif

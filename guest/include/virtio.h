/* SPDX-License-Identifier: 0BSD */
/*
 * virtio.h - the driver side of virtio-mmio (version 2) and split virtqueues
 *
 * From the specification, virtio 1.2: 3.1 (initialisation), 4.2 (MMIO), 2.7
 * (split virtqueues). A driver goes through
 *
 *     virtio_find(), virtio_start(), virtqueue_init() for each queue,
 *     virtio_ready(),
 *     then virtqueue_add(), virtqueue_kick(), virtqueue_take() again and again
 *
 * A virtqueue has three parts in memory. The driver describes buffers in the
 * descriptor table and puts the number of a chain's first descriptor, its
 * head, in the available ring; the device puts the head in the used ring when
 * it is done, with how many bytes it wrote. Each ring is written by one side
 * only and has an index that counts up for ever, modulo 65536.
 */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#define VIRTIO_ID_CONSOLE 3
#define VIRTIO_ID_RNG     4

/* Feature bits. */
#define VIRTIO_F_EVENT_IDX (1ULL << 29)
#define VIRTIO_F_VERSION_1 (1ULL << 32)

/* Device status. */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER      0x02
#define VIRTIO_STATUS_DRIVER_OK   0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED      0x80

/* Registers, by offset. */
#define VIRTIO_MMIO_MAGIC               0x000
#define VIRTIO_MMIO_VERSION             0x004
#define VIRTIO_MMIO_DEVICE_ID           0x008
#define VIRTIO_MMIO_DEVICE_FEATURES     0x010
#define VIRTIO_MMIO_DEVICE_FEATURES_SEL 0x014
#define VIRTIO_MMIO_DRIVER_FEATURES     0x020
#define VIRTIO_MMIO_DRIVER_FEATURES_SEL 0x024
#define VIRTIO_MMIO_QUEUE_SEL           0x030
#define VIRTIO_MMIO_QUEUE_NUM_MAX       0x034
#define VIRTIO_MMIO_QUEUE_NUM           0x038
#define VIRTIO_MMIO_QUEUE_READY         0x044
#define VIRTIO_MMIO_QUEUE_NOTIFY        0x050
#define VIRTIO_MMIO_INTERRUPT_STATUS    0x060
#define VIRTIO_MMIO_INTERRUPT_ACK       0x064
#define VIRTIO_MMIO_STATUS              0x070
#define VIRTIO_MMIO_QUEUE_DESC          0x080 /* low, high half at + 4 */
#define VIRTIO_MMIO_QUEUE_AVAIL         0x090
#define VIRTIO_MMIO_QUEUE_USED          0x0a0
#define VIRTIO_MMIO_CONFIG_GENERATION   0x0fc
#define VIRTIO_MMIO_CONFIG              0x100

/* Causes of an interrupt. */
#define VIRTIO_INTERRUPT_VRING  0x1
#define VIRTIO_INTERRUPT_CONFIG 0x2

#define VIRTQUEUE_MAX 256 /* descriptors; smaller ones are powers of two */

#define VIRTQ_DESC_F_NEXT          1
#define VIRTQ_DESC_F_WRITE         2 /* by the device */
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1
#define VIRTQ_USED_F_NO_NOTIFY     1

struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct virtq_used_elem {
    uint32_t id;
    uint32_t len; /* bytes written */
};

struct virtio_device {
    uintptr_t base;
    unsigned line;     /* of the IOAPIC, 0: no interrupt */
    uint32_t status;   /* the bits that the driver has set */
    uint64_t features; /* negotiated */
};

/*
 * A queue and its rings, to be put in static memory. The tables are laid out
 * for VIRTQUEUE_MAX and used up to `size`; what follows a ring's entries,
 * the other side's event index, is found by `size` too.
 */
struct virtqueue {
    struct virtq_desc desc[VIRTQUEUE_MAX];
    uint16_t avail[2 + VIRTQUEUE_MAX + 1]; /* flags, index, ring, used_event */
    uint16_t used[2 + 4 * VIRTQUEUE_MAX + 1] __attribute__((aligned(4)));
    struct virtio_device *dev;
    unsigned index;
    unsigned size;
    bool interrupts;
    uint16_t free_head; /* of the chain of free descriptors */
    uint16_t free_count;
    uint16_t avail_next; /* value of the available index to come */
    uint16_t kicked;     /* the available index at the last kick */
    uint16_t used_next;  /* value of the used index to be taken next */
    unsigned kicks;      /* notifications sent, for whoever counts them */
} __attribute__((aligned(16)));

struct virtio_buffer {
    void *data;
    uint32_t len;
};

/* The `nth` device (0: first) of the device map with this id. */
bool virtio_find(uint32_t id, unsigned nth, struct virtio_device *dev);

/*
 * Resets the device and negotiates VERSION_1 and those of `features` that it
 * offers (dev->features tells). False: the device refused.
 */
bool virtio_start(struct virtio_device *dev, uint64_t features);

/* The queues are there: the device may go. */
void virtio_ready(struct virtio_device *dev);

/* To be called by the handler of the device's interrupt; returns its cause. */
uint32_t virtio_interrupt(struct virtio_device *dev);

/*
 * Reads `len` bytes of the device's configuration from `offset` on, all of one
 * generation (2.5.3).
 */
void virtio_config_read(const struct virtio_device *dev, unsigned offset,
                        void *buf, unsigned len);

/* The device gave up: only virtio_start() helps. */
bool virtio_broken(struct virtio_device *dev);

/*
 * Makes queue `index` with at most `size` descriptors. Without `interrupts`
 * the device is asked for none. False: there is no such queue.
 */
bool virtqueue_init(struct virtqueue *vq, struct virtio_device *dev,
                    unsigned index, unsigned size, bool interrupts);

/*
 * Queues one chain: `readable` buffers for the device to read, then
 * `writable` ones to write, at least one in all. Returns its head, or -1 when
 * too few descriptors are free.
 */
int virtqueue_add(struct virtqueue *vq, const struct virtio_buffer *buffers,
                  unsigned readable, unsigned writable);

/* Tells the device of what was added, unless it asked not to be told. */
void virtqueue_kick(struct virtqueue *vq);

/* True when virtqueue_take() has something to return. */
bool virtqueue_pending(const struct virtqueue *vq);

/*
 * Takes the next finished chain: returns its head, and in *written how many
 * bytes the device wrote; -1 when none is finished.
 */
int virtqueue_take(struct virtqueue *vq, uint32_t *written);

/* The same, but waits for one. -1: the device is broken. */
int virtqueue_wait(struct virtqueue *vq, uint32_t *written);

#endif

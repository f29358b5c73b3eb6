/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.h - a fake driver: writes rings into guest memory, as a guest would
 *
 * Nothing here checks anything: a test can be as wrong as it wants to.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <stdlib.h>
#include <string.h>

#include "vmm/virtio_mmio.h"

#define D_NEXT     VRING_DESC_F_NEXT
#define D_WRITE    VRING_DESC_F_WRITE
#define D_INDIRECT VRING_DESC_F_INDIRECT

/* The rings of one queue and the driver's own indices. */
struct driver {
    struct vmm_mem *mem;
    uint32_t size;
    uint64_t desc, avail, used; /* gpas */
    uint16_t avail_idx;         /* the next to offer */
    uint16_t used_idx;          /* the next to take back */
};

static inline uint64_t
desc_bytes(uint32_t size)
{
    return 16ULL * size;
}

static inline uint64_t
avail_bytes(uint32_t size)
{
    return 6 + 2ULL * size;
}

static inline uint64_t
used_bytes(uint32_t size)
{
    return 6 + 8ULL * size;
}

/* A pointer to RAM for the driver, whatever the flags of the region. */
static inline void *
driver_ptr(struct vmm_mem *mem, uint64_t gpa)
{
    uint64_t got;
    void *ptr = vmm_mem_ptr(mem, gpa, 1, false, VMM_MEM_HOST, &got);

    if (!ptr)
        abort();
    return ptr;
}

static inline void
poke16(struct vmm_mem *mem, uint64_t gpa, uint16_t val)
{
    __atomic_store_n((uint16_t *)driver_ptr(mem, gpa), val, __ATOMIC_RELEASE);
}

static inline uint16_t
peek16(struct vmm_mem *mem, uint64_t gpa)
{
    return __atomic_load_n((uint16_t *)driver_ptr(mem, gpa), __ATOMIC_ACQUIRE);
}

static inline uint32_t
peek32(struct vmm_mem *mem, uint64_t gpa)
{
    return __atomic_load_n((uint32_t *)driver_ptr(mem, gpa), __ATOMIC_ACQUIRE);
}

/* Lays the rings out one after the other from `gpa` on (16-byte aligned). */
static inline void
driver_init(struct driver *drv, struct vmm_mem *mem, uint64_t gpa,
            uint32_t size)
{
    drv->mem = mem;
    drv->size = size;
    drv->desc = gpa;
    drv->avail = gpa + desc_bytes(size);
    drv->used = (drv->avail + avail_bytes(size) + 3) & ~3ULL;
    drv->avail_idx = 0;
    drv->used_idx = 0;
    memset(driver_ptr(mem, gpa), 0, drv->used + used_bytes(size) - drv->desc);
}

/* Entry `i` of the table at `gpa`, which may be misaligned. */
static inline void
table_set(struct vmm_mem *mem, uint64_t gpa, uint32_t i, uint64_t addr,
          uint32_t len, uint16_t flags, uint16_t next)
{
    struct vring_desc desc = {addr, len, flags, next};

    if (vmm_mem_write(mem, gpa + 16ULL * i, &desc, sizeof desc, VMM_MEM_HOST))
        abort();
}

static inline void
driver_desc(struct driver *drv, uint32_t i, uint64_t addr, uint32_t len,
            uint16_t flags, uint16_t next)
{
    table_set(drv->mem, drv->desc, i, addr, len, flags, next);
}

static inline void
driver_set_avail(struct driver *drv, uint16_t idx)
{
    drv->avail_idx = idx;
    poke16(drv->mem, drv->avail + 2, idx);
}

/* Offers the chain that starts at `head`. */
static inline void
driver_offer(struct driver *drv, uint16_t head)
{
    uint32_t slot = drv->avail_idx % drv->size;

    poke16(drv->mem, drv->avail + 4 + 2ULL * slot, head);
    driver_set_avail(drv, (uint16_t)(drv->avail_idx + 1));
}

/* Takes one used chain back: its length, or -1 when there is none. */
static inline int64_t
driver_take(struct driver *drv, uint32_t *head)
{
    uint64_t elem = drv->used + 4 + 8ULL * (drv->used_idx % drv->size);

    if (peek16(drv->mem, drv->used + 2) == drv->used_idx)
        return -1;
    drv->used_idx++;
    *head = peek32(drv->mem, elem);
    return peek32(drv->mem, elem + 4);
}

static inline void
driver_set_avail_flags(struct driver *drv, uint16_t flags)
{
    poke16(drv->mem, drv->avail, flags);
}

static inline void
driver_set_used_event(struct driver *drv, uint16_t event)
{
    poke16(drv->mem, drv->avail + 4 + 2ULL * drv->size, event);
}

static inline uint16_t
driver_used_flags(struct driver *drv)
{
    return peek16(drv->mem, drv->used);
}

static inline uint16_t
driver_avail_event(struct driver *drv)
{
    return peek16(drv->mem, drv->used + 4 + 8ULL * drv->size);
}

/* Points a queue at the rings, as the transport does. */
static inline void
driver_connect(const struct driver *drv, struct vmm_virtq *vq)
{
    vq->size = drv->size;
    vq->desc_gpa = drv->desc;
    vq->avail_gpa = drv->avail;
    vq->used_gpa = drv->used;
}

/* The registers of a device, as a vCPU's exits reach them. */
static inline uint32_t
reg_read(struct vmm_virtio_mmio *dev, unsigned offset)
{
    uint64_t val = 0;

    vmm_virtio_mmio_ops.read(dev, offset, 4, &val);
    return (uint32_t)val;
}

static inline int
reg_write(struct vmm_virtio_mmio *dev, unsigned offset, uint32_t val)
{
    return vmm_virtio_mmio_ops.write(dev, offset, 4, val);
}

static inline void
reg_features(struct vmm_virtio_mmio *dev, uint64_t features)
{
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
}

/* Configures queue `index` on the driver's rings and sets it ready. */
static inline void
reg_queue(struct vmm_virtio_mmio *dev, unsigned index, const struct driver *drv)
{
    reg_write(dev, VIRTIO_MMIO_QUEUE_SEL, index);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NUM, drv->size);
    reg_write(dev, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)drv->desc);
    reg_write(dev, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(drv->desc >> 32));
    reg_write(dev, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)drv->avail);
    reg_write(dev, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(drv->avail >> 32));
    reg_write(dev, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)drv->used);
    reg_write(dev, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(drv->used >> 32));
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 1);
}

/* From reset to DRIVER_OK with one queue, by the book (3.1.1). */
static inline void
reg_boot(struct vmm_virtio_mmio *dev, uint64_t features,
         const struct driver *drv)
{
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    reg_write(dev, VIRTIO_MMIO_STATUS, 1);
    reg_write(dev, VIRTIO_MMIO_STATUS, 3);
    reg_features(dev, features);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xb);
    reg_queue(dev, 0, drv);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xf);
}

#endif

/* SPDX-License-Identifier: 0BSD */
/* virtio.c - virtio-mmio transport and split virtqueues, driver side */
#include <runtime.h>

#include <interrupt.h>
#include <virtio.h>

#define SPINS_PER_LOOK 4096 /* polls between two looks at the status */

static uint32_t
reg_read(const struct virtio_device *dev, unsigned offset)
{
    return read32(dev->base + offset);
}

static void
reg_write(const struct virtio_device *dev, unsigned offset, uint32_t value)
{
    write32(dev->base + offset, value);
}

static void
status_add(struct virtio_device *dev, uint32_t bits)
{
    dev->status |= bits;
    reg_write(dev, VIRTIO_MMIO_STATUS, dev->status);
}

bool
virtio_find(uint32_t id, unsigned nth, struct virtio_device *dev)
{
    const struct device_map_entry *map =
        (const struct device_map_entry *)(uintptr_t)start_info->dev_entries;

    for (uint32_t i = 0; i < start_info->dev_size; i++) {
        *dev = (struct virtio_device){
            .base = map[i].base_addr,
            .line = map[i].interrupt_num,
        };
        if (reg_read(dev, VIRTIO_MMIO_MAGIC) == DEVICE_MAGIC_VIRTIO &&
            reg_read(dev, VIRTIO_MMIO_VERSION) == 2 &&
            reg_read(dev, VIRTIO_MMIO_DEVICE_ID) == id && nth-- == 0)
            return true;
    }
    return false;
}

bool
virtio_start(struct virtio_device *dev, uint64_t features)
{
    uint64_t offered;

    dev->status = 0;
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    while (reg_read(dev, VIRTIO_MMIO_STATUS) != 0)
        cpu_relax(); /* the reset ends when the device says so: 2.4.1 */
    status_add(dev, VIRTIO_STATUS_ACKNOWLEDGE);
    status_add(dev, VIRTIO_STATUS_DRIVER);

    reg_write(dev, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    offered = reg_read(dev, VIRTIO_MMIO_DEVICE_FEATURES);
    reg_write(dev, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    offered |= (uint64_t)reg_read(dev, VIRTIO_MMIO_DEVICE_FEATURES) << 32;

    dev->features = offered & (features | VIRTIO_F_VERSION_1);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)dev->features);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES,
              (uint32_t)(dev->features >> 32));
    status_add(dev, VIRTIO_STATUS_FEATURES_OK);

    if (!(dev->features & VIRTIO_F_VERSION_1) ||
        !(reg_read(dev, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_FEATURES_OK)) {
        status_add(dev, VIRTIO_STATUS_FAILED);
        return false;
    }
    return true;
}

void
virtio_ready(struct virtio_device *dev)
{
    status_add(dev, VIRTIO_STATUS_DRIVER_OK);
}

uint32_t
virtio_interrupt(struct virtio_device *dev)
{
    uint32_t cause = reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS);

    reg_write(dev, VIRTIO_MMIO_INTERRUPT_ACK, cause);
    return cause;
}

void
virtio_config_read(const struct virtio_device *dev, unsigned offset, void *buf,
                   unsigned len)
{
    uint32_t before, after;

    do {
        before = reg_read(dev, VIRTIO_MMIO_CONFIG_GENERATION);
        for (unsigned i = 0; i < len; i++)
            ((uint8_t *)buf)[i] =
                read8(dev->base + VIRTIO_MMIO_CONFIG + offset + i);
        after = reg_read(dev, VIRTIO_MMIO_CONFIG_GENERATION);
    } while (before != after);
}

bool
virtio_broken(struct virtio_device *dev)
{
    return reg_read(dev, VIRTIO_MMIO_STATUS) &
           (VIRTIO_STATUS_NEEDS_RESET | VIRTIO_STATUS_FAILED);
}

/*
 * The fields of the rings that the device reads or writes while we run. x86
 * keeps loads in order, and stores too; volatile and barrier() keep the
 * compiler from changing that.
 */
static volatile uint16_t *
avail_flags(struct virtqueue *vq)
{
    return &vq->avail[0];
}

static volatile uint16_t *
avail_index(struct virtqueue *vq)
{
    return &vq->avail[1];
}

static volatile uint16_t *
used_event(struct virtqueue *vq)
{
    return &vq->avail[2 + vq->size];
}

static const volatile uint16_t *
used_flags(const struct virtqueue *vq)
{
    return &vq->used[0];
}

static const volatile uint16_t *
used_index(const struct virtqueue *vq)
{
    return &vq->used[1];
}

static const volatile uint16_t *
avail_event(const struct virtqueue *vq)
{
    return &vq->used[2 + 4 * vq->size];
}

/*
 * Asks for an interrupt at the next used entry, or for none: then the event
 * is the entry before, which comes after 65535 others (2.7.7.1).
 */
static void
ask_for_interrupts(struct virtqueue *vq)
{
    if (vq->dev->features & VIRTIO_F_EVENT_IDX)
        *used_event(vq) = (uint16_t)(vq->used_next - !vq->interrupts);
    else
        *avail_flags(vq) = vq->interrupts ? 0 : VIRTQ_AVAIL_F_NO_INTERRUPT;
    /* Who sleeps now has looked at the used index after this was out. */
    if (vq->interrupts)
        full_barrier();
}

static void
write_address(const struct virtio_device *dev, unsigned offset, const void *p)
{
    reg_write(dev, offset, (uint32_t)(uintptr_t)p);
    reg_write(dev, offset + 4, 0); /* all memory of a guest is below 4 GiB */
}

bool
virtqueue_init(struct virtqueue *vq, struct virtio_device *dev, unsigned index,
               unsigned size, bool interrupts)
{
    uint32_t max;

    assert(size && size <= VIRTQUEUE_MAX && !(size & (size - 1)));
    reg_write(dev, VIRTIO_MMIO_QUEUE_SEL, index);
    max = reg_read(dev, VIRTIO_MMIO_QUEUE_NUM_MAX);
    if (max == 0)
        return false;
    while (size > max)
        size /= 2;

    memset(vq, 0, sizeof(*vq));
    vq->dev = dev;
    vq->index = index;
    vq->size = size;
    vq->interrupts = interrupts;
    vq->free_count = (uint16_t)size;
    for (unsigned i = 0; i < size; i++)
        vq->desc[i].next = (uint16_t)(i + 1);
    ask_for_interrupts(vq);

    reg_write(dev, VIRTIO_MMIO_QUEUE_NUM, size);
    write_address(dev, VIRTIO_MMIO_QUEUE_DESC, vq->desc);
    write_address(dev, VIRTIO_MMIO_QUEUE_AVAIL, vq->avail);
    write_address(dev, VIRTIO_MMIO_QUEUE_USED, vq->used);
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 1);
    return true;
}

int
virtqueue_add(struct virtqueue *vq, const struct virtio_buffer *buffers,
              unsigned readable, unsigned writable)
{
    unsigned count = readable + writable;
    unsigned head = vq->free_head, i = head;
    struct virtq_desc *desc = NULL;

    assert(count);
    if (count > vq->free_count)
        return -1;
    for (unsigned n = 0; n < count; n++, i = desc->next) {
        desc = &vq->desc[i];
        desc->addr = (uintptr_t)buffers[n].data;
        desc->len = buffers[n].len;
        desc->flags = VIRTQ_DESC_F_NEXT;
        if (n >= readable)
            desc->flags |= VIRTQ_DESC_F_WRITE;
    }
    desc->flags &= (uint16_t)~VIRTQ_DESC_F_NEXT;
    vq->free_head = (uint16_t)i;
    vq->free_count = (uint16_t)(vq->free_count - count);

    vq->avail[2 + (vq->avail_next & (vq->size - 1))] = (uint16_t)head;
    vq->avail_next++;
    barrier();
    *avail_index(vq) = vq->avail_next;
    return (int)head;
}

void
virtqueue_kick(struct virtqueue *vq)
{
    uint16_t added = (uint16_t)(vq->avail_next - vq->kicked);
    bool wanted;

    /* Our index must be out before we read what the device wants: 2.7.13.4 */
    full_barrier();
    if (vq->dev->features & VIRTIO_F_EVENT_IDX)
        wanted = (uint16_t)(vq->avail_next - *avail_event(vq) - 1) < added;
    else
        wanted = added && !(*used_flags(vq) & VIRTQ_USED_F_NO_NOTIFY);
    vq->kicked = vq->avail_next;
    if (wanted) {
        vq->kicks++;
        reg_write(vq->dev, VIRTIO_MMIO_QUEUE_NOTIFY, vq->index);
    }
}

bool
virtqueue_pending(const struct virtqueue *vq)
{
    return *used_index(vq) != vq->used_next;
}

int
virtqueue_take(struct virtqueue *vq, uint32_t *written)
{
    const struct virtq_used_elem *elem;
    unsigned count = 1;
    unsigned last;

    if (!virtqueue_pending(vq))
        return -1;
    barrier(); /* the entry is read after the index that covers it */
    elem = (const struct virtq_used_elem *)&vq
               ->used[2 + 4 * (vq->used_next & (vq->size - 1))];
    vq->used_next++;
    if (elem->id >= vq->size)
        panic("virtqueue %u: the device returned descriptor %u of %u",
              vq->index, elem->id, vq->size);

    for (last = elem->id; vq->desc[last].flags & VIRTQ_DESC_F_NEXT; count++)
        last = vq->desc[last].next;
    vq->desc[last].next = vq->free_head;
    vq->free_head = (uint16_t)elem->id;
    vq->free_count = (uint16_t)(vq->free_count + count);
    ask_for_interrupts(vq);
    *written = elem->len;
    return (int)elem->id;
}

int
virtqueue_wait(struct virtqueue *vq, uint32_t *written)
{
    for (unsigned spins = 1; !virtqueue_pending(vq); spins++) {
        if (vq->interrupts) {
            irq_wait();
            if (!virtqueue_pending(vq) && virtio_broken(vq->dev))
                return -1;
            continue;
        }
        cpu_relax();
        if (spins % SPINS_PER_LOOK == 0 && virtio_broken(vq->dev))
            return -1;
    }
    return virtqueue_take(vq, written);
}

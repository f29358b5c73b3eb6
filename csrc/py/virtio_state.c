/* SPDX-License-Identifier: Apache-2.0 */
/* virtio_state.c - the state of a virtio device, as bytes and back */
#include <string.h>

#include "py.h"

/* How it is laid out: this, then for each queue a struct queue_state and
 * the heads of its chains in flight. */
#define STATE_MAGIC 0x31747376U /* "vst1" */

struct device_state {
    uint32_t magic;
    uint32_t size; /* of all */
    struct vmm_virtio_mmio_state mmio;
};

struct queue_state {
    struct vmm_virtq_state vq;
    uint32_t count;
    uint32_t padding;
};

/* Whether a chain is in flight in a queue. */
static bool
is_in_flight(const struct chain *chain, unsigned queue,
             const struct vmm_virtq *vq)
{
    return chain->queue == queue && !chain->pushed && !chain->returned &&
           vmm_chain_alive(&chain->chain, vq);
}

/* The heads in flight in a queue, in the order they were popped. */
static uint32_t
heads_of(const struct virtio *self, unsigned queue, uint16_t *heads)
{
    const struct vmm_virtq *vq = &self->dev->queue[queue];
    uint16_t age[VMM_VIRTQ_MAX_SIZE]; /* how many pops ago */
    uint32_t count = 0;

    for (const struct chain *c = self->chains; c; c = c->next) {
        uint16_t mine = (uint16_t)(vq->next_avail - c->chain.index);
        uint32_t at = count;

        if (!is_in_flight(c, queue, vq) || count == vq->size)
            continue;
        /* By insertion: there are few. */
        for (; at > 0 && age[at - 1] < mine; at--) {
            age[at] = age[at - 1];
            heads[at] = heads[at - 1];
        }
        age[at] = mine;
        heads[at] = c->chain.head;
        count++;
    }
    return count;
}

size_t
virtio_state_most(const struct virtio *self)
{
    size_t most = sizeof(struct device_state);

    for (unsigned i = 0; i < self->dev->queues; i++)
        most += sizeof(struct queue_state) + 2UL * self->dev->queue[i].max_size;
    return most;
}

size_t
virtio_state_write(const struct virtio *self, bool in_flight, void *to)
{
    const struct vmm_virtio_mmio *dev = self->dev;
    struct device_state *state = to;
    uint8_t *at = (uint8_t *)(state + 1);

    vmm_virtio_mmio_save(dev, &state->mmio);
    for (unsigned i = 0; i < dev->queues; i++) {
        struct queue_state queue = {.count = 0};
        uint16_t *heads = (uint16_t *)(void *)(at + sizeof queue);

        vmm_virtq_save(&dev->queue[i], &queue.vq);
        if (in_flight)
            queue.count = heads_of(self, i, heads);
        else /* works in order, and begins its last one anew */
            queue.vq.next_avail = queue.vq.next_used;
        memcpy(at, &queue, sizeof queue);
        at += sizeof queue + (queue.count * sizeof *heads + 7) / 8 * 8;
    }
    state->magic = STATE_MAGIC;
    state->size = (uint32_t)(at - (uint8_t *)to);
    return state->size;
}

int
virtio_state_read(struct virtio *self, const uint8_t *from, size_t len)
{
    struct vmm_virtio_mmio *dev = self->dev;
    struct device_state state;
    int err = -EINVAL;

    if (len < sizeof state)
        return err;
    memcpy(&state, from, sizeof state);
    if (state.magic != STATE_MAGIC || state.size != len)
        return err;
    from += sizeof state;
    len -= sizeof state;
    err = vmm_virtio_mmio_load(dev, &state.mmio);
    for (unsigned i = 0; !err && i < dev->queues; i++) {
        struct queue_state queue;
        uint16_t heads[VMM_VIRTQ_MAX_SIZE];
        size_t size;

        if (len < sizeof queue)
            return -EINVAL;
        memcpy(&queue, from, sizeof queue);
        size = (queue.count * sizeof *heads + 7) / 8 * 8;
        if (queue.count > VMM_VIRTQ_MAX_SIZE || len - sizeof queue < size)
            return -EINVAL;
        memcpy(heads, from + sizeof queue, queue.count * sizeof *heads);
        err = vmm_virtq_load(&dev->queue[i], &queue.vq, heads, queue.count);
        from += sizeof queue + size;
        len -= sizeof queue + size;
    }
    return err;
}

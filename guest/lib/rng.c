/* SPDX-License-Identifier: 0BSD */
/* rng.c - the virtio-rng driver: one queue, buffers for the device to fill */
#include <runtime.h>

#include <interrupt.h>
#include <rng.h>

static void
handle_interrupt(void *data)
{
    struct rng *rng = data;

    virtio_interrupt(&rng->dev);
    rng->interrupts++;
}

const char *
rng_open(struct rng *rng, bool interrupts)
{
    if (!virtio_find(VIRTIO_ID_RNG, 0, &rng->dev))
        return "no virtio-rng in the device map";
    if (!virtio_start(&rng->dev, VIRTIO_F_EVENT_IDX))
        return "the device refused the features";
    if (!virtqueue_init(&rng->vq, &rng->dev, 0, VIRTQUEUE_MAX, interrupts))
        return "the device has no queue";
    rng->interrupts = 0;
    if (interrupts && !irq_request(rng->dev.line, handle_interrupt, rng))
        return "no interrupt of the device can be taken";
    virtio_ready(&rng->dev);
    return NULL;
}

int
rng_read_scatter(struct rng *rng, const struct virtio_buffer *buffers,
                 unsigned count)
{
    uint32_t written, room = 0;

    for (unsigned i = 0; i < count; i++)
        room += buffers[i].len;
    if (virtqueue_add(&rng->vq, buffers, 0, count) < 0)
        return -1;
    virtqueue_kick(&rng->vq);
    if (virtqueue_wait(&rng->vq, &written) < 0 || written > room)
        return -1;
    return (int)written;
}

int
rng_read(struct rng *rng, void *buf, uint32_t len)
{
    uint32_t done = 0;

    while (done < len) {
        struct virtio_buffer rest = {(char *)buf + done, len - done};
        int n = rng_read_scatter(rng, &rest, 1);

        if (n <= 0)
            return -1;
        done += (uint32_t)n;
    }
    return (int)len;
}

/* SPDX-License-Identifier: 0BSD */
/* blk.c - the virtio-blk driver */
#include <runtime.h>

#include <blk.h>

#define CONFIG            0x100
#define CONFIG_GENERATION 0x0fc
#define CAPACITY          0x00
#define WRITEBACK         0x20
#define NUM_QUEUES        0x22

const char *
blk_find(struct blk *blk, uint64_t features)
{
    if (!virtio_find(VIRTIO_ID_BLK, 0, &blk->dev))
        return "no virtio-blk in the device map";
    if (!virtio_start(&blk->dev, features))
        return "the device refused the features";
    blk->queues = 1;
    if (blk->dev.features & BLK_F_MQ)
        blk->queues = read16(blk->dev.base + CONFIG + NUM_QUEUES);
    return NULL;
}

uint64_t
blk_capacity(const struct blk *blk)
{
    uintptr_t config = blk->dev.base + CONFIG + CAPACITY;
    uint32_t generation, low, high;

    /* Of one generation, both halves: 2.5.3 */
    do {
        generation = read32(blk->dev.base + CONFIG_GENERATION);
        low = read32(config);
        high = read32(config + 4);
    } while (generation != read32(blk->dev.base + CONFIG_GENERATION));
    return (uint64_t)high << 32 | low;
}

bool
blk_writeback(const struct blk *blk)
{
    return read8(blk->dev.base + CONFIG + WRITEBACK);
}

void
blk_set_writeback(const struct blk *blk, bool on)
{
    write8(blk->dev.base + CONFIG + WRITEBACK, on);
}

int
blk_add(struct virtqueue *vq, struct blk_request *request, uint32_t type,
        uint64_t sector, void *data, uint32_t len)
{
    bool fills = type == BLK_T_IN || type == BLK_T_GET_ID;
    struct virtio_buffer buffers[3] = {
        {&request->header, sizeof(request->header)},
        {data, len},
    };
    unsigned parts = len ? 2 : 1;

    request->header.type = type;
    request->header.reserved = 0;
    request->header.sector = sector;
    request->status = BLK_S_PENDING;
    buffers[parts] =
        (struct virtio_buffer){(void *)(uintptr_t)&request->status, 1};
    if (len && fills)
        return virtqueue_add(vq, buffers, 1, 2);
    return virtqueue_add(vq, buffers, parts, 1);
}

int
blk_do(struct virtqueue *vq, struct blk_request *request, uint32_t type,
       uint64_t sector, void *data, uint32_t len)
{
    uint32_t written;

    if (blk_add(vq, request, type, sector, data, len) < 0)
        return -1;
    virtqueue_kick(vq);
    if (virtqueue_wait(vq, &written) < 0 || written == 0)
        return -1;
    return request->status;
}

/* SPDX-License-Identifier: 0BSD */
/*
 * blk.h - disks: the driver side of virtio-blk (virtio 1.2, 5.2)
 *
 *     struct blk blk;
 *     struct blk_request request;
 *
 *     assert(!blk_find(&blk, VIRTIO_F_EVENT_IDX | BLK_F_FLUSH));
 *     virtqueue_init(&vq, &blk.dev, 0, VIRTQUEUE_MAX, false);
 *     virtio_ready(&blk.dev);
 *     if (blk_do(&vq, &request, BLK_T_IN, sector, data, 512) == BLK_S_OK)
 *         ...
 *
 * or blk_add() for many at a time, virtqueue_kick(), and virtqueue_take(),
 * whose head is what blk_add() returned.
 */
#ifndef GUEST_BLK_H
#define GUEST_BLK_H

#include <virtio.h>

#define VIRTIO_ID_BLK 2
#define BLK_SECTOR    512

#define BLK_F_RO         (1ULL << 5)
#define BLK_F_FLUSH      (1ULL << 9)
#define BLK_F_CONFIG_WCE (1ULL << 11)
#define BLK_F_MQ         (1ULL << 12)
#define BLK_F_DISCARD    (1ULL << 13)
#define BLK_F_ZEROES     (1ULL << 14)

#define BLK_T_IN      0
#define BLK_T_OUT     1
#define BLK_T_FLUSH   4
#define BLK_T_GET_ID  8
#define BLK_T_DISCARD 11
#define BLK_T_ZEROES  13

#define BLK_S_OK      0
#define BLK_S_IOERR   1
#define BLK_S_UNSUPP  2
#define BLK_S_PENDING 0xff /* none of the device's */

#define BLK_ID_SIZE 20

struct blk {
    struct virtio_device dev;
    unsigned queues; /* that the device has, 1 without BLK_F_MQ */
};

/* To be kept until the request is done. */
struct blk_request {
    struct {
        uint32_t type;
        uint32_t reserved;
        uint64_t sector;
    } header;
    volatile uint8_t status;
};

/* The data of BLK_T_DISCARD and BLK_T_ZEROES: some of these. */
struct blk_range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t unmap;
};

/* Finds the first disk and takes those of `features` that it has. Returns NULL
 * or what is missing. */
const char *blk_find(struct blk *blk, uint64_t features);

/* Sectors of the disk, as of now. */
uint64_t blk_capacity(const struct blk *blk);

/* The write cache (BLK_F_CONFIG_WCE). */
bool blk_writeback(const struct blk *blk);
void blk_set_writeback(const struct blk *blk, bool on);

/*
 * Queues a request whose data, of `len` bytes, the device reads or, for
 * BLK_T_IN and BLK_T_GET_ID, writes. Returns its head, -1 when the queue is
 * full.
 */
int blk_add(struct virtqueue *vq, struct blk_request *request, uint32_t type,
            uint64_t sector, void *data, uint32_t len);

/* One request, alone in its queue; its status, or -1: the device is broken. */
int blk_do(struct virtqueue *vq, struct blk_request *request, uint32_t type,
           uint64_t sector, void *data, uint32_t len);

#endif

/* SPDX-License-Identifier: 0BSD */
/*
 * blk.c - n requests to virtio-blk, some of them at a time, polling
 *
 * n=N       requests (1000)
 * size=S    bytes of each (4096), a multiple of 512, at most 1 MiB
 * depth=D   how many are in flight (1), at most 64 and 8 MiB together
 * write     write instead of reading
 * random    anywhere on the disk, else one behind the other, round and round
 */
#include <runtime.h>

#include <blk.h>

#define DEPTH_MAX      64
#define SIZE_MAX_BYTES (1U << 20)
#define ALL_MAX_BYTES  (8U << 20)

static struct blk blk;
static struct virtqueue vq;
static struct blk_request request[DEPTH_MAX];
static uint8_t of_head[VIRTQUEUE_MAX]; /* the request of each chain */
static unsigned char bytes[ALL_MAX_BYTES] __attribute__((aligned(4096)));

static int
fail(const char *why)
{
    print("blk: %s\n", why);
    return 1;
}

/* Where the next request goes, in sectors. */
static uint64_t
place(uint32_t sectors, uint32_t count, bool random)
{
    static uint32_t slot, state = 1;
    uint32_t slots = sectors / count;

    if (random) {
        state = state * 1664525 + 1013904223; /* Numerical Recipes */
        slot = (state >> 8) % slots;
    } else {
        slot = (slot + 1) % slots;
    }
    return (uint64_t)slot * count;
}

int
main(void)
{
    uint32_t n = arg_number("n", 1000), size = arg_number("size", 4096);
    unsigned depth = arg_number("depth", 1), offered = 0, done = 0;
    bool write = arg("write") != NULL, random = arg("random") != NULL;
    static unsigned idle[DEPTH_MAX]; /* requests not in flight, a stack */
    unsigned idles = 0;
    const char *problem;
    uint64_t sectors, start;

    if (size == 0 || size % BLK_SECTOR || size > SIZE_MAX_BYTES)
        return fail("size is a multiple of 512 up to 1048576");
    if (depth == 0 || depth > DEPTH_MAX || depth > ALL_MAX_BYTES / size)
        return fail("depth is 1 to 64, and 8 MiB together");
    /* With FLUSH, which it never asks for, writes need not be stable. */
    problem = blk_find(&blk, VIRTIO_F_EVENT_IDX | BLK_F_FLUSH);
    if (problem)
        return fail(problem);
    if (!virtqueue_init(&vq, &blk.dev, 0, VIRTQUEUE_MAX, false))
        return fail("the disk has no queue");
    virtio_ready(&blk.dev);
    sectors = blk_capacity(&blk);
    if (sectors < size / BLK_SECTOR || sectors >> 32)
        return fail("the disk is smaller than a request, or 2 TiB");

    for (; idles < depth; idles++)
        idle[idles] = idles;
    start = rdtsc();
    while (done < n) {
        uint32_t written;
        int head;

        while (idles && offered < n) {
            unsigned i = idle[--idles];
            uint64_t sector =
                place((uint32_t)sectors, size / BLK_SECTOR, random);

            head = blk_add(&vq, &request[i], write ? BLK_T_OUT : BLK_T_IN,
                           sector, bytes + i * size, size);
            assert(head >= 0);
            of_head[head] = (uint8_t)i;
            offered++;
        }
        virtqueue_kick(&vq);
        head = virtqueue_wait(&vq, &written);
        if (head < 0)
            return fail("the device is broken");
        for (; head >= 0; head = virtqueue_take(&vq, &written)) {
            unsigned i = of_head[head];

            if (request[i].status != BLK_S_OK)
                return fail("a request failed");
            if (written != (write ? 1 : size + 1))
                return fail("a request came back with other bytes");
            idle[idles++] = i;
            done++;
        }
    }
    print("cycles %llu requests %u kicks %u\n",
          (unsigned long long)(rdtsc() - start), done, vq.kicks);
    return 0;
}

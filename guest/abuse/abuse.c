/* SPDX-License-Identifier: 0BSD */
/*
 * abuse.c - breaks the rules of virtio in front of a virtio-rng device
 *
 * Each way ends in a reset, after which the device must work again. One word
 * chooses one of them, none means all. It says whether the device asked for
 * that reset ("refused"; a device that works on a thread of its own may be too
 * late to) or went on ("borne").
 *
 * garbage   writes noise into every register, by 4, 2 and 1 bytes
 * rings     rings outside memory
 * buffer    a buffer outside memory
 * loop      a descriptor that is its own successor
 * next      a successor past the end of the table
 * head      the head of a chain past the end of the table
 * jump      an available index that runs ahead of the ring
 * readable  a request without room for a single byte
 */
#include <runtime.h>

#include <rng.h>

#define OUTSIDE 0xfff00000 /* where no memory is */

static struct rng rng;
static unsigned char bytes[16];

static uint32_t
noise(void)
{
    static uint32_t x = 1;

    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return x;
}

static void
notify(void)
{
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

/* One buffer in descriptor 0, made available, the device not yet told. */
static struct virtq_desc *
request(void)
{
    struct virtio_buffer buffer = {bytes, sizeof(bytes)};

    virtqueue_add(&rng.vq, &buffer, 0, 1);
    return &rng.vq.desc[0];
}

static void
garbage(void)
{
    for (unsigned offset = 0; offset < 0x200; offset += 4) {
        write32(rng.dev.base + offset, noise());
        write16(rng.dev.base + offset + 2, (uint16_t)noise());
        write8(rng.dev.base + offset + 1, (uint8_t)noise());
        read32(rng.dev.base + offset);
        read8(rng.dev.base + offset + 3);
    }
    notify();
}

static void
rings(void)
{
    virtio_start(&rng.dev, 0);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_SEL, 0);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_NUM, 8);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_DESC, OUTSIDE);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_AVAIL, OUTSIDE);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_USED, OUTSIDE);
    write32(rng.dev.base + VIRTIO_MMIO_QUEUE_READY, 1);
    virtio_ready(&rng.dev);
    notify();
}

static void
buffer(void)
{
    request()->addr = OUTSIDE;
    notify();
}

static void
loop(void)
{
    struct virtq_desc *desc = request();

    desc->flags |= VIRTQ_DESC_F_NEXT;
    desc->next = 0;
    notify();
}

static void
next(void)
{
    struct virtq_desc *desc = request();

    desc->flags |= VIRTQ_DESC_F_NEXT;
    desc->next = 0xffff;
    notify();
}

static void
head(void)
{
    request();
    rng.vq.avail[2] = VIRTQUEUE_MAX;
    notify();
}

static void
jump(void)
{
    request();
    *(volatile uint16_t *)&rng.vq.avail[1] = VIRTQUEUE_MAX + 1;
    notify();
}

static void
readable(void)
{
    request()->flags = 0;
    notify();
}

static const struct {
    const char *word;
    void (*abuse)(void);
} abuses[] = {
    {"garbage", garbage}, {"rings", rings},       {"buffer", buffer},
    {"loop", loop},       {"next", next},         {"head", head},
    {"jump", jump},       {"readable", readable},
};

/* Starts the device afresh, breaks the rule, looks what the device says. */
static bool
run(const char *word, void (*abuse)(void))
{
    const char *problem = rng_open(&rng, false);

    print("%s: ", word);
    if (!problem) {
        abuse();
        print("%s, ", virtio_broken(&rng.dev) ? "refused" : "borne");
        problem = rng_open(&rng, false);
    }
    if (!problem && rng_read(&rng, bytes, sizeof(bytes)) < 0)
        problem = "the device is broken";
    print("%s\n", problem ? problem : "works after a reset");
    return !problem;
}

int
main(void)
{
    const unsigned count = sizeof(abuses) / sizeof(*abuses);
    bool chosen = false, fine = true;

    for (unsigned i = 0; i < count; i++)
        chosen |= arg(abuses[i].word) != NULL;
    for (unsigned i = 0; i < count; i++)
        if (!chosen || arg(abuses[i].word))
            fine &= run(abuses[i].word, abuses[i].abuse);
    return fine ? 0 : 1;
}

/* SPDX-License-Identifier: 0BSD */
/*
 * request.c - sends requests to any virtio device and prints the answers
 *
 * id=N            what kind of device (63)
 * queue=N         which of its queues (0)
 * send=WORD       the bytes of each request (none: only room for an answer)
 * split           each byte of a request in a buffer of its own
 * reply=N         room for an answer (64), at most 4096
 * n=N             how many requests (1)
 * depth=N         how many at a time (1), at most 32
 * mode=poll|irq   how to wait for them (poll)
 * config=N        first print so many words of the configuration (0)
 * change          wait for a change of the configuration, and print it again
 * quiet           count the answers, do not print them
 */
#include <runtime.h>

#include <interrupt.h>
#include <virtio.h>

#define DEPTH_MAX     32
#define REPLY_MAX     4096
#define REQUEST_MAX   128 /* bytes, and buffers */
#define CONFIG        0x100
#define CONFIG_MAX    64
#define CAUSE_CHANGED 2

struct request {
    unsigned char reply[REPLY_MAX];
};

static struct virtio_device dev;
static struct virtqueue vq;
static struct request request[DEPTH_MAX];
static uint8_t of_head[VIRTQUEUE_MAX]; /* the request of each chain */
static volatile unsigned interrupts, changes;

static void
handle_interrupt(void *data)
{
    (void)data;
    interrupts++;
    if (virtio_interrupt(&dev) & CAUSE_CHANGED)
        changes++;
}

static int
fail(const char *why)
{
    print("request: %s\n", why);
    return 1;
}

static void
print_config(unsigned words)
{
    print("config:");
    for (unsigned i = 0; i < words; i++)
        print(" %u", read32(dev.base + CONFIG + 4 * i));
    puts("");
}

static void
print_reply(const unsigned char *reply, uint32_t len)
{
    static char line[2 * REPLY_MAX];

    for (uint32_t i = 0; i < len; i++) {
        line[2 * i] = "0123456789abcdef"[reply[i] >> 4];
        line[2 * i + 1] = "0123456789abcdef"[reply[i] & 15];
    }
    print("%u bytes ", len);
    console_write(line, 2 * len);
    puts("");
}

/* Offers request `i`, of these bytes and so much room. */
static bool
offer(unsigned i, const char *bytes, bool split, uint32_t room)
{
    static struct virtio_buffer buffers[REQUEST_MAX + 1];
    uint32_t len = (uint32_t)strlen(bytes);
    unsigned readable = 0;
    int head;

    if (split)
        for (; readable < len; readable++)
            buffers[readable] = (struct virtio_buffer){
                (void *)(uintptr_t)(bytes + readable), 1};
    else if (len)
        buffers[readable++] =
            (struct virtio_buffer){(void *)(uintptr_t)bytes, len};
    if (room)
        buffers[readable] = (struct virtio_buffer){request[i].reply, room};
    head = virtqueue_add(&vq, buffers, readable, room != 0);
    if (head < 0)
        return false;
    of_head[head] = (uint8_t)i;
    return true;
}

int
main(void)
{
    const char *mode = arg("mode"), *bytes = arg("send");
    uint32_t room = arg_number("reply", 64), written, total = 0;
    unsigned n = arg_number("n", 1), depth = arg_number("depth", 1);
    unsigned words = arg_number("config", 0), offered = 0, seen = 0;
    bool irq = mode && !strcmp(mode, "irq");
    bool split = arg("split") != NULL, quiet = arg("quiet") != NULL;

    if (!bytes)
        bytes = "";
    if (mode && !irq && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    if (depth == 0 || depth > DEPTH_MAX)
        return fail("depth is 1 to 32");
    if (room > REPLY_MAX || strlen(bytes) > REQUEST_MAX || words > CONFIG_MAX)
        return fail("that is too long");
    if (room == 0 && *bytes == '\0')
        return fail("a request needs send= or reply=");

    if (!virtio_find(arg_number("id", 63), 0, &dev))
        return fail("no such device in the device map");
    if (!virtio_start(&dev, VIRTIO_F_EVENT_IDX))
        return fail("the device refused the features");
    if (!virtqueue_init(&vq, &dev, arg_number("queue", 0), VIRTQUEUE_MAX, irq))
        return fail("the device has no such queue");
    if (irq && !irq_request(dev.line, handle_interrupt, NULL))
        return fail("no interrupt of the device can be taken");
    virtio_ready(&dev);
    if (words)
        print_config(words);

    while (seen < n) {
        int head;

        while (offered < n && offered - seen < depth &&
               offer(offered % depth, bytes, split, room))
            offered++;
        virtqueue_kick(&vq);
        /* All of them, so that the next batch is as large. */
        while (seen < offered) {
            head = virtqueue_wait(&vq, &written);
            if (head < 0)
                return fail("the device is broken");
            if (written > room)
                return fail("the device wrote more than there is room for");
            seen++;
            total += written;
            if (!quiet)
                print_reply(request[of_head[head]].reply, written);
        }
    }
    if (arg("change")) {
        while (irq && !changes)
            irq_wait();
        print_config(words);
    }
    print("requests %u, bytes %u, kicks %u, interrupts %u\n", seen, total,
          vq.kicks, interrupts);
    return 0;
}

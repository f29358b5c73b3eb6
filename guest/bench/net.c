/* SPDX-License-Identifier: 0BSD */
/*
 * net.c - n frames by virtio-net, as many at a time as the queue has
 *
 * n=N          frames (10000)
 * size=S       bytes of each (60), 14 to 1514
 * depth=D      how many are on their way (64), at most 128
 * dir=out|in   we send them, or count those that come (out)
 */
#include <runtime.h>

#include <net.h>

#define DEPTH_MAX 128
#define SIZE_MOST 1514

static struct net net;
static unsigned char frame[SIZE_MOST];
static unsigned char memory[DEPTH_MAX * 2048];

/* All that is on its way is done before the next batch goes. */
static bool
send(uint32_t n, uint32_t size, uint32_t depth)
{
    static const struct virtio_net_header header;
    struct virtio_buffer parts[] = {
        {(void *)(uintptr_t)&header, sizeof header},
        {frame, size},
    };
    uint32_t written;

    for (uint32_t sent = 0; sent < n;) {
        uint32_t batch = n - sent < depth ? n - sent : depth;

        for (uint32_t i = 0; i < batch; i++)
            virtqueue_add(&net.transmit, parts, 2, 0);
        virtqueue_kick(&net.transmit);
        for (uint32_t i = 0; i < batch; i++)
            if (virtqueue_wait(&net.transmit, &written) < 0)
                return false;
        sent += batch;
    }
    return true;
}

/* The frame that we send first asks for them. */
static bool
receive(uint32_t n)
{
    if (!net_send(&net, frame, 60))
        return false;
    while (n--)
        if (net_wait(&net, frame, sizeof frame) < 0)
            return false;
    return true;
}

int
main(void)
{
    uint32_t n = arg_number("n", 10000), size = arg_number("size", 60);
    uint32_t depth = arg_number("depth", 64);
    const char *dir = arg("dir"), *problem;
    bool in = dir && !strcmp(dir, "in");
    uint64_t start;

    if (size < 14 || size > SIZE_MOST || depth == 0 || depth > DEPTH_MAX) {
        puts("net: size is 14 to 1514, depth 1 to 128");
        return 1;
    }
    problem = net_open(&net, 0, memory, depth, 2048, false);
    if (problem) {
        print("net: %s\n", problem);
        return 1;
    }
    memset(frame, 0xff, 6);
    memcpy(frame + 6, net.mac, 6);
    frame[12] = 0x88;
    frame[13] = 0xb5;
    start = rdtsc();
    if (!(in ? receive(n) : send(n, size, depth))) {
        puts("net: the device is broken");
        return 1;
    }
    print("cycles %llu bytes %llu kicks %u\n",
          (unsigned long long)(rdtsc() - start), (unsigned long long)n * size,
          net.transmit.kicks);
    return 0;
}

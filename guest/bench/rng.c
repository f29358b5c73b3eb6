/* SPDX-License-Identifier: 0BSD */
/*
 * rng.c - n requests to virtio-rng, one after the other, polling the used ring
 *
 * n=N      requests (1000)
 * size=S   bytes of each (64), at most 1 MiB
 */
#include <runtime.h>

#include <rng.h>

#define SIZE_MAX_BYTES (1U << 20)

static struct rng rng;
static unsigned char bytes[SIZE_MAX_BYTES];

int
main(void)
{
    uint32_t n = arg_number("n", 1000);
    uint32_t size = arg_number("size", 64);
    struct virtio_buffer buffer = {bytes, size};
    uint64_t total = 0;
    const char *problem;
    uint64_t start;

    if (size == 0 || size > SIZE_MAX_BYTES) {
        puts("rng: size is 1 to 1048576");
        return 1;
    }
    problem = rng_open(&rng, false);
    if (problem) {
        print("rng: %s\n", problem);
        return 1;
    }
    start = rdtsc();
    for (uint32_t i = 0; i < n; i++) {
        int got = rng_read_scatter(&rng, &buffer, 1);

        if (got < 0) {
            puts("rng: the device is broken");
            return 1;
        }
        total += (uint32_t)got;
    }
    print("cycles %llu bytes %llu kicks %u\n",
          (unsigned long long)(rdtsc() - start), (unsigned long long)total,
          rng.vq.kicks);
    return 0;
}

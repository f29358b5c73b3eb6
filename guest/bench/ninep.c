/* SPDX-License-Identifier: 0BSD */
/*
 * ninep.c - reads a file of virtio-9p from its start to its end, n times
 *
 * file=PATH   which (/data)
 * size=S      bytes of each read (65536), at most 1 MiB
 * n=N         how often (1)
 */
#include <runtime.h>

#include <ninep.h>

#define SIZE_MAX_BYTES (1U << 20)
#define OVERHEAD       24 /* of a message, beside its data */
#define FID            1

static struct ninep p9;
static unsigned char bytes[SIZE_MAX_BYTES];

static int
fail(const char *why)
{
    print("ninep: %s\n", why);
    return 1;
}

int
main(void)
{
    uint32_t n = arg_number("n", 1), size = arg_number("size", 65536);
    const char *path = arg("file"), *problem;
    uint64_t total = 0, start;
    uint32_t got;

    if (size == 0 || size > SIZE_MAX_BYTES)
        return fail("size is 1 to 1048576");
    problem = ninep_open(&p9, NULL, SIZE_MAX_BYTES + OVERHEAD, false);
    if (problem)
        return fail(problem);
    if (ninep_walk(&p9, FID, path ? path : "/data") ||
        ninep_lopen(&p9, FID, NINEP_RDONLY))
        return fail("there is no such file");
    start = rdtsc();
    for (uint32_t i = 0; i < n; i++) {
        uint64_t offset = 0;

        do {
            if (ninep_read(&p9, FID, offset, bytes, size, &got))
                return fail("a read failed");
            offset += got;
        } while (got);
        total += offset;
    }
    print("cycles %llu bytes %llu kicks %u\n",
          (unsigned long long)(rdtsc() - start), (unsigned long long)total,
          p9.vq.kicks);
    return 0;
}

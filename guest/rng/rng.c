/* SPDX-License-Identifier: 0BSD */
/*
 * rng.c - prints random bytes of a virtio-rng device
 *
 * bytes=N         how many (64), at most 65536
 * mode=poll|irq   how to wait for them (poll)
 * pieces=N        ask once, for N buffers instead of one (at most 256)
 */
#include <runtime.h>

#include <interrupt.h>
#include <rng.h>

#define BYTES_MAX    65536
#define PIECES_MAX   VIRTQUEUE_MAX
#define BYTES_A_LINE 16

static struct rng rng;
static unsigned char bytes[BYTES_MAX];

/* The first buffers are one byte long, the last one takes the rest. */
static int
read_pieces(unsigned len, unsigned pieces)
{
    static struct virtio_buffer buffers[PIECES_MAX];

    for (unsigned i = 0; i < pieces; i++)
        buffers[i] = (struct virtio_buffer){bytes + i, 1};
    buffers[pieces - 1].len = len - (pieces - 1);
    return rng_read_scatter(&rng, buffers, pieces);
}

/* Not by print(): slow where a host interprets ring 0. */
static void
print_line(const unsigned char *p, unsigned len)
{
    static char line[3 * BYTES_A_LINE];

    for (unsigned i = 0; i < len; i++) {
        line[3 * i] = "0123456789abcdef"[p[i] >> 4];
        line[3 * i + 1] = "0123456789abcdef"[p[i] & 15];
        line[3 * i + 2] = ' ';
    }
    line[3 * len - 1] = '\n';
    console_write(line, 3 * len);
}

static int
fail(const char *why)
{
    print("rng: %s\n", why);
    return 1;
}

int
main(void)
{
    unsigned len = arg_number("bytes", 64);
    unsigned pieces = arg_number("pieces", 1);
    const char *mode = arg("mode");
    bool irq = mode && !strcmp(mode, "irq");
    const char *problem;
    int n;

    if (mode && !irq && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    if (len == 0 || len > BYTES_MAX)
        return fail("bytes is 1 to 65536");
    if (pieces == 0 || pieces > PIECES_MAX || pieces > len)
        return fail("pieces is 1 to 256, and not more than bytes");
    problem = rng_open(&rng, irq);
    if (problem)
        return fail(problem);

    if (pieces > 1)
        n = read_pieces(len, pieces);
    else
        n = rng_read(&rng, bytes, len);
    if (n < 0)
        return fail("the device is broken");

    while (irq && rng.interrupts == 0) /* a fast device needs no waiting */
        irq_wait();

    print("rng at 0x%08x, line %u, %s: %d bytes\n", (unsigned)rng.dev.base,
          rng.dev.line, irq ? "irq" : "poll", n);
    for (unsigned i = 0; i < (unsigned)n; i += BYTES_A_LINE)
        print_line(bytes + i, n - i < BYTES_A_LINE ? n - i : BYTES_A_LINE);
    if (irq)
        print("interrupts: %u\n", rng.interrupts);
    return 0;
}

/* SPDX-License-Identifier: 0BSD */
/*
 * irq.c - waits for interrupts of a line and prints each
 *
 * irq=LINE   the line (16)
 * count=N    how many to wait for (1)
 */
#include <runtime.h>

#include <interrupt.h>

static unsigned arrived;

static void
count_one(void *data)
{
    (void)data;
    arrived++;
}

int
main(void)
{
    unsigned line = arg_number("irq", 16);
    unsigned count = arg_number("count", 1);

    if (!irq_request(line, count_one, NULL)) {
        print("no line %u\n", line);
        return 1;
    }
    puts("ready");
    for (unsigned seen = 0; seen < count;) {
        while (arrived == seen)
            irq_wait();
        seen++;
        print("irq %u: %u\n", line, seen);
    }
    return 0;
}

/* SPDX-License-Identifier: 0BSD */
/*
 * ring3.c - a computation at the native speed of ring 3
 *
 * below=N   count the primes below N (1000000), at most 4000000
 */
#include <runtime.h>

#define BELOW_MAX 4000000

static unsigned char composite[BELOW_MAX];

static unsigned
count_primes(unsigned below)
{
    unsigned count = 0;

    for (unsigned n = 2; n < below; n++) {
        if (composite[n])
            continue;
        count++;
        for (uint64_t k = (uint64_t)n * n; k < below; k += n)
            composite[k] = 1;
    }
    return count;
}

int
main(void)
{
    unsigned below = arg_number("below", 1000000);
    unsigned cs;

    if (below > BELOW_MAX)
        below = BELOW_MAX;
    __asm__("movl %%cs, %0" : "=r"(cs));
    print("ring %u: cs 0x%02x, %u-bit\n", cs & 3, cs,
          8 * (unsigned)sizeof(void *));
    print("ring %u: %u primes below %u\n", cs & 3, count_primes(below), below);
    return 0;
}

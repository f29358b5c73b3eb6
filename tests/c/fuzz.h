/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h - what the fuzzers of devices share: their input, taken in pieces */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct input {
    const uint8_t *at;
    size_t left;
};

/* The next `n` bytes, little-endian, zeros after the end. */
static inline uint64_t
next(struct input *in, unsigned n)
{
    uint64_t val = 0;

    for (unsigned i = 0; i < n && in->left; i++, in->left--)
        val |= (uint64_t)*in->at++ << 8 * i;
    return val;
}

static inline void
must(bool true_always)
{
    if (!true_always)
        abort();
}

#endif

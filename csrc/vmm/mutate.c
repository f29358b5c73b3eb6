/* SPDX-License-Identifier: Apache-2.0 */
/* mutate.c - see mutate.h */
#include "mutate.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ARITH_MAX 35U

/* The ends of the types that programs count in, and their neighbours. */
static const int32_t interesting[] = {
    INT8_MIN,  -1,       0,          1,     16,        32,        64,
    100,       INT8_MAX, INT16_MIN,  -129,  128,       UINT8_MAX, 256,
    512,       1000,     1024,       4096,  INT16_MAX, INT32_MIN, INT32_MIN + 1,
    -32769,    32768,    UINT16_MAX, 65536, 1 << 20,   1 << 24,   INT32_MAX - 1,
    INT32_MAX,
};
#define INTERESTING_8  9U /* so many of them fit into 8 bits */
#define INTERESTING_16 19U
#define INTERESTING_32 (sizeof interesting / sizeof interesting[0])

/* -- chance ---------------------------------------------------------------- */

static uint64_t
rotate(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256** of Blackman and Vigna, whose state splitmix64 fills. */
static uint64_t
chance(struct vmm_mutate *mutate)
{
    uint64_t *s = mutate->state, ret = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return ret;
}

/* 0 to n - 1, n > 0. Below 2^32 it is even to within 2^-32, without a division.
 */
static size_t
below(struct vmm_mutate *mutate, size_t n)
{
    if (n > UINT32_MAX)
        return chance(mutate) % n;
    return (chance(mutate) >> 32) * n >> 32;
}

/* The length of a block, 1 to `most`: short ones are as frequent as all of the
 * longer ones together. */
static size_t
block_len(struct vmm_mutate *mutate, size_t most)
{
    uint64_t how = chance(mutate) & 7;
    size_t limit = how < 4 ? 8 : how < 6 ? 32 : how < 7 ? 256 : most;

    return 1 + below(mutate, vmm_min(limit, most));
}

static void
fill_by_chance(struct vmm_mutate *mutate, uint8_t *out, size_t len)
{
    while (len) {
        uint64_t bytes = htole64(chance(mutate));
        size_t part = vmm_min(len, sizeof bytes);

        memcpy(out, &bytes, part);
        out += part;
        len -= part;
    }
}

/* -- taking and giving back ------------------------------------------------ */

void
vmm_mutate_init(struct vmm_mutate *mutate, uint64_t seed)
{
    memset(mutate, 0, sizeof *mutate);
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15ULL;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
        mutate->state[i] = z ^ z >> 31;
    }
}

static void
free_blobs(struct vmm_blob *blob, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(blob[i].data);
    free(blob);
}

void
vmm_mutate_fini(struct vmm_mutate *mutate)
{
    free_blobs(mutate->input, mutate->inputs);
    free_blobs(mutate->token, mutate->tokens);
    free(mutate->untried);
    memset(mutate, 0, sizeof *mutate);
}

/* Room for one more of `size` bytes each. */
static int
grow(void **array, size_t count, size_t *room, size_t size)
{
    size_t more = *room ? 2 * *room : 16;
    void *grown;

    if (count < *room)
        return 0;
    grown = reallocarray(*array, more, size);
    if (!grown)
        return -ENOMEM;
    *array = grown;
    *room = more;
    return 0;
}

static int
keep(struct vmm_blob **blob, size_t *count, size_t *room, const void *data,
     size_t len)
{
    void *array = *blob;
    uint8_t *copy;
    int err = grow(&array, *count, room, sizeof **blob);

    *blob = array;
    if (err)
        return err;
    copy = malloc(len + 1); /* of 0 bytes, too */
    if (!copy)
        return -ENOMEM;
    if (len)
        memcpy(copy, data, len);
    (*blob)[(*count)++] = (struct vmm_blob){copy, len};
    return 0;
}

int
vmm_mutate_add(struct vmm_mutate *mutate, const void *data, size_t len,
               bool try_it)
{
    void *untried = mutate->untried;
    int err;

    if (len > VMM_MUTATE_MAX_LEN)
        return -EINVAL;
    err = grow(&untried, mutate->untrieds, &mutate->untried_room,
               sizeof *mutate->untried);
    mutate->untried = untried;
    if (!err)
        err = keep(&mutate->input, &mutate->inputs, &mutate->input_room, data,
                   len);
    if (!err && try_it)
        mutate->untried[mutate->untrieds++] = mutate->inputs - 1;
    return err;
}

int
vmm_mutate_token(struct vmm_mutate *mutate, const void *data, size_t len)
{
    if (!len || len > VMM_MUTATE_TOKEN || mutate->tokens == VMM_MUTATE_TOKENS)
        return -EINVAL;
    return keep(&mutate->token, &mutate->tokens, &mutate->token_room, data,
                len);
}

/* -- operations ------------------------------------------------------------
 *
 * Each gets a buffer of `len` <= `max` bytes and returns the length then. Those
 * that change bytes in place need at least one.
 */

static uint64_t
load(const uint8_t *at, unsigned size, bool big)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)at[i] << 8 * (big ? size - 1 - i : i);
    return value;
}

static void
store(uint8_t *at, unsigned size, bool big, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> 8 * (big ? size - 1 - i : i));
}

/* 1, 2 or 4 bytes, as many as fit. */
static unsigned
width(struct vmm_mutate *mutate, size_t len)
{
    unsigned size = 1U << below(mutate, 3);

    while (size > len)
        size /= 2;
    return size;
}

/* Makes room for `more` bytes at `at`; how many of them fit. */
static size_t
open_gap(uint8_t *buf, size_t len, size_t max, size_t at, size_t more)
{
    more = vmm_min(more, max - len);
    memmove(buf + at + more, buf + at, len - at);
    return more;
}

static void
change_number(struct vmm_mutate *mutate, enum vmm_mutate_op op, uint8_t *buf,
              size_t len)
{
    unsigned size = width(mutate, len);
    bool big = chance(mutate) & 1;
    uint8_t *at = buf + below(mutate, len - size + 1);
    uint64_t value;

    if (op == VMM_MUTATE_INTERESTING) {
        size_t count = size == 1   ? INTERESTING_8
                       : size == 2 ? INTERESTING_16
                                   : INTERESTING_32;

        value = (uint64_t)(int64_t)interesting[below(mutate, count)];
    } else {
        uint64_t by = 1 + below(mutate, ARITH_MAX);

        value = load(at, size, big);
        value = chance(mutate) & 1 ? value + by : value - by;
    }
    store(at, size, big, value);
}

static size_t
delete_block(struct vmm_mutate *mutate, uint8_t *buf, size_t len)
{
    size_t gone = block_len(mutate, len - 1);
    size_t at = below(mutate, len - gone + 1);

    memmove(buf + at, buf + at + gone, len - at - gone);
    return len - gone;
}

/* Bytes of `from`, which may be the buffer itself, at a place of it. */
static size_t
put(struct vmm_mutate *mutate, uint8_t *buf, size_t len, size_t max,
    const struct vmm_blob *from, bool between)
{
    size_t most = vmm_min(from->len, between ? max - len : len);
    size_t size, source, at;

    if (!most)
        return len;
    size = block_len(mutate, most);
    source = below(mutate, from->len - size + 1);
    if (!between) {
        at = below(mutate, len - size + 1);
        memmove(buf + at, from->data + source, size);
        return len;
    }
    at = below(mutate, len + 1);
    size = open_gap(buf, len, max, at, size);
    if (from->data == buf && at < source + size) {
        /* The gap has parted the block, or moved it. */
        size_t before = at > source ? at - source : 0;

        memmove(buf + at, buf + source, before);
        memmove(buf + at + before, buf + source + before + size, size - before);
    } else {
        memmove(buf + at, from->data + source, size);
    }
    return len + size;
}

static size_t
insert_block(struct vmm_mutate *mutate, uint8_t *buf, size_t len, size_t max)
{
    size_t at = below(mutate, len + 1), size;

    if (len == max)
        return len;
    size = open_gap(buf, len, max, at, block_len(mutate, max - len));
    if (chance(mutate) & 1)
        memset(buf + at, (int)(chance(mutate) & 0xff), size);
    else
        fill_by_chance(mutate, buf + at, size);
    return len + size;
}

static void
fill_block(struct vmm_mutate *mutate, uint8_t *buf, size_t len)
{
    size_t size = block_len(mutate, len);
    size_t at = below(mutate, len - size + 1);
    int with = chance(mutate) & 1 ? buf[below(mutate, len)]
                                  : (int)(chance(mutate) & 0xff);

    memset(buf + at, with, size);
}

/* The begin of this one, and the rest of another. */
static size_t
splice(struct vmm_mutate *mutate, uint8_t *buf, size_t len, size_t max)
{
    const struct vmm_blob *other;
    size_t at, size;

    if (!mutate->inputs)
        return len;
    other = &mutate->input[below(mutate, mutate->inputs)];
    at = below(mutate, vmm_min(len, other->len) + 1);
    size = vmm_min(other->len - at, max - at);
    if (!size)
        return len;
    memcpy(buf + at, other->data + at, size);
    return at + size;
}

static size_t
put_token(struct vmm_mutate *mutate, uint8_t *buf, size_t len, size_t max,
          bool between)
{
    const struct vmm_blob *token;
    size_t at;

    if (!mutate->tokens)
        return len;
    token = &mutate->token[below(mutate, mutate->tokens)];
    if (token->len > (between ? max - len : len))
        return len;
    if (between) {
        at = below(mutate, len + 1);
        open_gap(buf, len, max, at, token->len);
        len += token->len;
    } else {
        at = below(mutate, len - token->len + 1);
    }
    memcpy(buf + at, token->data, token->len);
    return len;
}

size_t
vmm_mutate_apply(struct vmm_mutate *mutate, enum vmm_mutate_op op, uint8_t *buf,
                 size_t len, size_t max)
{
    struct vmm_blob self = {buf, len}, *other;

    assert(len <= max);
    switch (op) {
    case VMM_MUTATE_BIT:
        if (len)
            buf[below(mutate, len)] ^= (uint8_t)(1U << (chance(mutate) & 7));
        break;
    case VMM_MUTATE_BYTE:
        if (len)
            buf[below(mutate, len)] ^= (uint8_t)(1 + below(mutate, 255));
        break;
    case VMM_MUTATE_INTERESTING:
    case VMM_MUTATE_ADD:
        if (len)
            change_number(mutate, op, buf, len);
        break;
    case VMM_MUTATE_DELETE:
        return len > 1 ? delete_block(mutate, buf, len) : len;
    case VMM_MUTATE_DUPLICATE:
        return put(mutate, buf, len, max, &self, true);
    case VMM_MUTATE_INSERT:
        return insert_block(mutate, buf, len, max);
    case VMM_MUTATE_COPY:
        return put(mutate, buf, len, max, &self, false);
    case VMM_MUTATE_FILL:
        if (len)
            fill_block(mutate, buf, len);
        break;
    case VMM_MUTATE_SPLICE:
        return splice(mutate, buf, len, max);
    case VMM_MUTATE_GRAFT:
        if (!mutate->inputs)
            break;
        other = &mutate->input[below(mutate, mutate->inputs)];
        return put(mutate, buf, len, max, other, chance(mutate) & 1);
    case VMM_MUTATE_TOKEN_OVER:
    case VMM_MUTATE_TOKEN_IN:
        return put_token(mutate, buf, len, max, op == VMM_MUTATE_TOKEN_IN);
    case VMM_MUTATE_OPS:
        break;
    }
    return len;
}

/* -- the next one ---------------------------------------------------------- */

static size_t
copy_of(const struct vmm_blob *input, uint8_t *out, size_t max)
{
    size_t len = vmm_min(input->len, max);

    memcpy(out, input->data, len);
    return len;
}

static const struct vmm_blob *
pick(struct vmm_mutate *mutate)
{
    size_t from = 0, count = mutate->inputs;

    if (count > VMM_MUTATE_NEW && chance(mutate) & 1) {
        from = count - VMM_MUTATE_NEW;
        count = VMM_MUTATE_NEW;
    }
    return &mutate->input[from + below(mutate, count)];
}

size_t
vmm_mutate_next(struct vmm_mutate *mutate, uint8_t *out, size_t max)
{
    unsigned ops = mutate->tokens ? VMM_MUTATE_OPS : VMM_MUTATE_TOKEN_OVER;
    unsigned count;
    size_t len;

    if (mutate->given < mutate->untrieds)
        return copy_of(&mutate->input[mutate->untried[mutate->given++]], out,
                       max);
    if (!mutate->inputs)
        return 0;
    len = copy_of(pick(mutate), out, max);
    count = 1U << below(mutate, VMM_MUTATE_STACK);
    for (unsigned i = 0; i < count; i++) {
        enum vmm_mutate_op op = (enum vmm_mutate_op)below(mutate, ops);

        mutate->done[op]++;
        len = vmm_mutate_apply(mutate, op, out, len, max);
    }
    return len;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutate.h - inputs made of other inputs
 *
 * A mutator holds a corpus: inputs that are of interest, and tokens, short
 * pieces that the format is known to have. vmm_mutate_next gives each input
 * that is yet to be tried as it is, in the order in which they came, and from
 * then on changed copies without end: one is picked, and some operations are
 * done to it, one on top of the other. Half the picks are among the newest
 * VMM_MUTATE_NEW inputs, which are where the last news came from.
 *
 * All is decided by the seed: the same calls give the same bytes on every host.
 * An input is never longer than `max`; operations that would make it so do as
 * much as fits. One operation costs some 10 to 50 ns.
 *
 * Ownership: inputs and tokens are copied. Threads: one.
 */
#ifndef VMM_MUTATE_H
#define VMM_MUTATE_H

#include "base.h"

#define VMM_MUTATE_NEW     8U
#define VMM_MUTATE_STACK   5U   /* 2^0 to 2^(this - 1) operations at once */
#define VMM_MUTATE_TOKEN   256U /* bytes of a token at most */
#define VMM_MUTATE_TOKENS  65536U
#define VMM_MUTATE_MAX_LEN (1ULL << 30)

enum vmm_mutate_op {
    VMM_MUTATE_BIT,         /* one is flipped */
    VMM_MUTATE_BYTE,        /* one is any other */
    VMM_MUTATE_INTERESTING, /* 8, 16 or 32 bits: a border of some type */
    VMM_MUTATE_ADD,         /* 8, 16 or 32 bits: 1 to 35 more or less */
    VMM_MUTATE_DELETE,      /* a block */
    VMM_MUTATE_DUPLICATE,   /* a block is inserted once more elsewhere */
    VMM_MUTATE_INSERT,      /* a block of one byte, or of random ones */
    VMM_MUTATE_COPY,        /* a block is written over another place */
    VMM_MUTATE_FILL,        /* a block becomes one byte */
    VMM_MUTATE_SPLICE,      /* what follows is that of another input */
    VMM_MUTATE_GRAFT,       /* a block of another input, over or in between */
    VMM_MUTATE_TOKEN_OVER,  /* a token, over what is there */
    VMM_MUTATE_TOKEN_IN,    /* a token, in between */
    VMM_MUTATE_OPS,
};

struct vmm_blob {
    uint8_t *data;
    size_t len;
};

struct vmm_mutate {
    uint64_t state[4]; /* of xoshiro256** */
    struct vmm_blob *input;
    size_t inputs, input_room;
    size_t given; /* of those that are yet to be tried: so many were */
    size_t *untried;
    size_t untrieds, untried_room;
    struct vmm_blob *token;
    size_t tokens, token_room;
    uint64_t done[VMM_MUTATE_OPS]; /* how often each operation */
};

void vmm_mutate_init(struct vmm_mutate *mutate, uint64_t seed);
/* Safe on a zeroed struct, and twice. */
void vmm_mutate_fini(struct vmm_mutate *mutate);

/*
 * One more input. `try_it`: it is to come out as it is. -ENOMEM; -EINVAL when
 * it has more than VMM_MUTATE_MAX_LEN bytes.
 */
int vmm_mutate_add(struct vmm_mutate *mutate, const void *data, size_t len,
                   bool try_it);

/* One more token. -EINVAL: it is empty or too long, or there are too many. */
int vmm_mutate_token(struct vmm_mutate *mutate, const void *data, size_t len);

/*
 * The next one, into `out`, which has room for `max` bytes: its length. An
 * input that is longer than that is cut. 0 bytes without any inputs.
 */
size_t vmm_mutate_next(struct vmm_mutate *mutate, uint8_t *out, size_t max);

/* One operation on the `len` bytes of `buf`, which has room for `max`: the
 * length then. One for which there is nothing does nothing. */
size_t vmm_mutate_apply(struct vmm_mutate *mutate, enum vmm_mutate_op op,
                        uint8_t *buf, size_t len, size_t max);

#endif

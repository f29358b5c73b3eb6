/* SPDX-License-Identifier: Apache-2.0 */
/* filter.c - looking registers up, their values, the ring of posted writes */
#include "filter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

unsigned
vmm_filter_first(const struct vmm_filter *filter, uint64_t offset)
{
    unsigned low = 0, high = filter->count;

    while (low < high) {
        unsigned mid = (low + high) / 2;
        const struct vmm_reg *reg = &filter->reg[mid];

        if (reg->offset + (reg->len - 1) < offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

const struct vmm_reg *
vmm_filter_find(const struct vmm_filter *filter, uint64_t offset, unsigned len)
{
    unsigned at = vmm_filter_first(filter, offset);
    const struct vmm_reg *reg;

    if (at == filter->count)
        return NULL;
    reg = &filter->reg[at];
    return reg->offset == offset && reg->len == len ? reg : NULL;
}

uint64_t
vmm_reg_read(const struct vmm_reg *reg)
{
    return __atomic_load_n(reg->value, __ATOMIC_ACQUIRE) & reg->readable;
}

uint64_t
vmm_reg_write(const struct vmm_reg *reg, uint64_t val)
{
    uint64_t old = __atomic_load_n(reg->value, __ATOMIC_ACQUIRE), new;

    do
        new = (old & ~(reg->stored | (val & reg->w1c))) | (val & reg->stored);
    while (!__atomic_compare_exchange_n(reg->value, &old, new, false,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return old;
}

/* The register of an access that is answered here, or NULL. */
static const struct vmm_reg *
answered(const struct vmm_filter *filter, uint64_t offset, unsigned len,
         unsigned here)
{
    const struct vmm_reg *reg;

    if (!(__atomic_load_n(&filter->here, __ATOMIC_RELAXED) & here))
        return NULL;
    reg = vmm_filter_find(filter, offset, len);
    return reg && reg->here & here ? reg : NULL;
}

static int
filter_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    const struct vmm_filter *filter = dev;
    const struct vmm_reg *reg = answered(filter, offset, len, VMM_REG_READ);

    if (!reg || vmm_post_waiting(filter->post))
        return VMM_BUS_OUTSIDE;
    *val = vmm_reg_read(reg);
    return VMM_BUS_DONE;
}

static int
filter_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    const struct vmm_filter *filter = dev;
    const struct vmm_reg *reg = answered(filter, offset, len, VMM_REG_WRITE);

    if (!reg)
        return VMM_BUS_OUTSIDE;
    if (reg->here & VMM_REG_POSTED)
        return vmm_post_write(filter->post, reg, val);
    if (vmm_post_waiting(filter->post))
        return VMM_BUS_OUTSIDE;
    vmm_reg_write(reg, val);
    return VMM_BUS_DONE;
}

const struct vmm_bus_ops vmm_filter_ops = {
    .read = filter_read,
    .write = filter_write,
};

/* -- posted writes --------------------------------------------------------- */

int
vmm_post_init(struct vmm_post *post, unsigned limit)
{
    int err;

    memset(post, 0, sizeof *post);
    if (limit > VMM_POST_MOST)
        return -EINVAL;
    err = -pthread_mutex_init(&post->lock, NULL);
    if (err)
        return err;
    post->room = limit + VMM_POST_SPARE;
    post->ring = calloc(post->room, sizeof *post->ring);
    if (post->ring)
        return 0;
    vmm_post_fini(post);
    return -ENOMEM;
}

void
vmm_post_fini(struct vmm_post *post)
{
    if (post->room)
        pthread_mutex_destroy(&post->lock);
    free(post->ring);
    memset(post, 0, sizeof *post);
}

/* With the lock held: the i-th oldest. */
static struct vmm_posted *
posted(const struct vmm_post *post, unsigned i)
{
    unsigned at = post->head + i;

    return &post->ring[at < post->room ? at : at - post->room];
}

int
vmm_post_write(struct vmm_post *post, const struct vmm_reg *reg, uint64_t val)
{
    int answer = VMM_BUS_OUTSIDE;

    pthread_mutex_lock(&post->lock);
    if (post->count < post->room) {
        *posted(post, post->count++) = (struct vmm_posted){
            .val = val & (reg->stored | reg->w1c),
            .number = reg->number,
        };
        __atomic_fetch_add(&post->waiting, 1, __ATOMIC_RELEASE);
        vmm_reg_write(reg, val);
        answer = post->count + VMM_POST_SPARE < post->room ? VMM_BUS_DONE
                                                           : VMM_BUS_OWNER;
    }
    pthread_mutex_unlock(&post->lock);
    return answer;
}

unsigned
vmm_post_count(struct vmm_post *post)
{
    unsigned count;

    pthread_mutex_lock(&post->lock);
    count = post->count;
    pthread_mutex_unlock(&post->lock);
    return count;
}

void
vmm_post_hold(struct vmm_post *post)
{
    __atomic_fetch_add(&post->waiting, 1, __ATOMIC_RELEASE);
}

unsigned
vmm_post_run(struct vmm_post *post, unsigned most, unsigned *out)
{
    unsigned len = 0;

    pthread_mutex_lock(&post->lock);
    most = (unsigned)vmm_min(most, post->count);
    while (len < most && posted(post, len)->number == posted(post, 0)->number)
        len++;
    if (len)
        *out = posted(post, 0)->number;
    pthread_mutex_unlock(&post->lock);
    return len;
}

void
vmm_post_take(struct vmm_post *post, unsigned count, unsigned len, void *out)
{
    uint8_t *to = out;

    pthread_mutex_lock(&post->lock);
    for (unsigned i = 0; i < count; i++) {
        /* Of a little-endian value the low bytes come first. */
        memcpy(to, &posted(post, i)->val, len);
        to += len;
    }
    post->head = (post->head + count) % post->room;
    post->count -= count;
    pthread_mutex_unlock(&post->lock);
}

void
vmm_post_done(struct vmm_post *post, unsigned count)
{
    __atomic_fetch_sub(&post->waiting, count, __ATOMIC_RELEASE);
}

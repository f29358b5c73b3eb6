/* SPDX-License-Identifier: Apache-2.0 */
/* rng.c - the virtio entropy device */
#include "rng.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define POOL_MAX (1ULL << 30)

/* The bucket is counted in billionths of a byte: then a nanosecond adds `rate`
 * of them and nothing is rounded. 2^32 bytes of them fit 64 bits. */
#define TOKEN     1000000000ULL
#define LIMIT_MAX (1ULL << 32)

/* What a look at the queue or walking a descriptor costs, in bytes. */
#define DESC_COST 64

/* How long to leave a queue alone for which the host had no memory. */
#define RETRY_NS 100000000ULL

static int rng_notify(struct vmm_virtio_mmio *mmio, unsigned queue);

static const struct vmm_virtio_mmio_dev_ops rng_ops = {
    .notify = rng_notify,
};

int
vmm_rng_init(struct vmm_rng *rng, struct vmm_mem *mem, uint32_t queue_size)
{
    int err;

    memset(rng, 0, sizeof *rng);
    err = vmm_virtq_init(&rng->requestq, mem, queue_size);
    if (err)
        return err;
    return vmm_virtio_mmio_init(&rng->mmio, mem, &rng_ops, VIRTIO_ID_RNG, 0,
                                &rng->requestq, 1);
}

void
vmm_rng_fini(struct vmm_rng *rng)
{
    vmm_virtio_mmio_fini(&rng->mmio);
    vmm_chain_fini(&rng->chain);
    free(rng->pool);
    rng->pool = NULL;
}

int
vmm_rng_external(struct vmm_rng *rng, uint64_t pool_size)
{
    if (!pool_size || pool_size > POOL_MAX)
        return -EINVAL;
    if (rng->pool)
        return -EBUSY;
    rng->pool = malloc(pool_size);
    if (!rng->pool)
        return -ENOMEM;
    rng->pool_size = pool_size;
    return 0;
}

int
vmm_rng_limit(struct vmm_rng *rng, uint64_t rate, uint64_t burst)
{
    if (rate > LIMIT_MAX || burst > LIMIT_MAX)
        return -EINVAL;
    if (!burst)
        burst = rate < 10 ? 1 : rate / 10;
    pthread_mutex_lock(&rng->mmio.lock);
    rng->rate = rate;
    rng->burst = burst;
    rng->tokens = burst * TOKEN;
    rng->refilled_ns = 0;
    pthread_mutex_unlock(&rng->mmio.lock);
    return 0;
}

/* How many bytes the limit lets through now. */
static uint64_t
allowance(struct vmm_rng *rng, uint64_t now_ns)
{
    uint64_t room = rng->burst * TOKEN - rng->tokens;
    uint64_t ns = 0;

    if (!rng->rate)
        return UINT64_MAX;
    if (now_ns > rng->refilled_ns) {
        ns = now_ns - rng->refilled_ns;
        rng->refilled_ns = now_ns;
    }
    if (ns > room / rng->rate)
        rng->tokens += room;
    else
        rng->tokens += ns * rng->rate;
    return rng->tokens / TOKEN;
}

/* When `len` more bytes, or as many as go at once, will be let through. */
static uint64_t
allowed_at(const struct vmm_rng *rng, uint64_t len, uint64_t now_ns)
{
    uint64_t lack = vmm_min(len, rng->burst) * TOKEN - rng->tokens;

    return now_ns + (lack + rng->rate - 1) / rng->rate;
}

/* Fills up to `len` bytes. Their number, 0 when the pool is empty, -errno. */
static int64_t
take(struct vmm_rng *rng, uint8_t *to, uint64_t len)
{
    ssize_t got;

    if (rng->pool) {
        len = vmm_min(len, rng->pool_end - rng->pool_pos);
        memcpy(to, rng->pool + rng->pool_pos, len);
        rng->pool_pos += len;
        return (int64_t)len;
    }
    do
        got = getrandom(to, len, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

enum filled {
    COMPLETE,
    WAITING,
    FAILED,
};

/*
 * Goes on with the chain in progress. `work` is what is left of this call's
 * bytes. WAITING: for the pool (dry), or for due_ns.
 */
static enum filled
fill_chain(struct vmm_rng *rng, uint64_t now_ns, int64_t *work, bool resumed)
{
    const struct vmm_chain *chain = &rng->chain;
    unsigned count = chain->readable + chain->writable;

    while (rng->seg < count) {
        const struct vmm_segment *seg = &chain->seg[rng->seg];
        uint64_t len = seg->len - rng->seg_pos;
        uint64_t allowed = allowance(rng, now_ns);
        uint64_t left = chain->writable_len - rng->written;
        int64_t got;

        if (*work <= 0) {
            rng->mmio.due_ns = 1;
            return WAITING;
        }
        if (!allowed) {
            rng->mmio.due_ns = allowed_at(rng, left, now_ns);
            return WAITING;
        }
        len = vmm_min(vmm_min(len, allowed), (uint64_t)*work);
        got = take(rng, seg->hva + rng->seg_pos, len);
        if (got < 0) {
            vmm_virtio_mmio_fail(&rng->mmio, "getrandom failed");
            return FAILED;
        }
        if (!got && !rng->ended) {
            rng->dry = true;
            return WAITING;
        }
        if (!got && !rng->written) {
            vmm_virtio_mmio_fail(&rng->mmio, "the source of bytes has ended");
            return FAILED;
        }
        if (!got)
            return COMPLETE;
        /* Popping marked the pages, but that may have been long ago. */
        if (resumed)
            vmm_mem_mark(rng->mmio.mem, seg->gpa + rng->seg_pos, (uint64_t)got);
        if (rng->rate)
            rng->tokens -= (uint64_t)got * TOKEN;
        *work -= got;
        rng->written += (uint64_t)got;
        rng->bytes += (uint64_t)got;
        rng->seg_pos += (uint32_t)got;
        if (rng->seg_pos == seg->len) {
            rng->seg++;
            rng->seg_pos = 0;
        }
    }
    return COMPLETE;
}

/* The next chain, if there is one. 1, 0 or -errno, as vmm_virtq_pop. */
static int
next_chain(struct vmm_rng *rng)
{
    int ret = vmm_virtio_mmio_pop(&rng->mmio, 0, &rng->chain);

    rng->seg = rng->chain.readable;
    rng->seg_pos = 0;
    rng->written = 0;
    return ret;
}

/* Completes one chain, or goes on with the one in progress. */
static enum filled
complete_chain(struct vmm_rng *rng, uint64_t now_ns, int64_t *work,
               bool resumed)
{
    enum filled filled;

    if (!resumed)
        *work -= DESC_COST * (int64_t)rng->chain.descs;
    filled = fill_chain(rng, now_ns, work, resumed);
    if (filled != COMPLETE)
        return filled;
    vmm_virtio_mmio_push(&rng->mmio, 0, &rng->chain,
                         (uint32_t)vmm_min(rng->written, UINT32_MAX));
    rng->requests++;
    return COMPLETE;
}

/*
 * Works until the queue is empty, or something has to be waited for. In the
 * second case the driver is not asked to notify: what waits is looked at again
 * anyhow. One interrupt for all that was completed.
 */
static int
work_on_queue(struct vmm_rng *rng, uint64_t now_ns)
{
    struct vmm_virtq *vq = &rng->requestq;
    int64_t work = VMM_RNG_BATCH;
    enum filled filled = COMPLETE;
    int ret;

    /* After a reset the chain in progress is stale, and is forgotten. */
    rng->dry = false;
    rng->mmio.due_ns = 0;
    vmm_virtq_notify_off(vq);
    if (vmm_chain_alive(&rng->chain, vq))
        filled = complete_chain(rng, now_ns, &work, true);
    while (filled == COMPLETE) {
        if (work <= 0) {
            rng->mmio.due_ns = 1;
            break;
        }
        ret = next_chain(rng);
        if (ret == -ENOMEM)
            rng->mmio.due_ns = vmm_now_ns() + RETRY_NS;
        if (ret < 0 || (ret == 0 && !vmm_virtq_notify_on(vq)))
            break;
        work -= DESC_COST;
        if (ret > 0)
            filled = complete_chain(rng, now_ns, &work, false);
    }
    vmm_virtio_mmio_used(&rng->mmio, 0);
    return rng->dry || rng->mmio.due_ns ? VMM_BUS_OWNER : VMM_BUS_DONE;
}

static int
rng_notify(struct vmm_virtio_mmio *mmio, unsigned queue)
{
    struct vmm_rng *rng = vmm_container_of(mmio, struct vmm_rng, mmio);

    (void)queue;
    return work_on_queue(rng, rng->rate ? vmm_now_ns() : 0);
}

int
vmm_rng_process(struct vmm_rng *rng)
{
    return vmm_virtio_mmio_process(&rng->mmio);
}

int
vmm_rng_process_at(struct vmm_rng *rng, uint64_t now_ns)
{
    int answer = VMM_BUS_DONE;

    pthread_mutex_lock(&rng->mmio.lock);
    if (vmm_virtio_mmio_live(&rng->mmio) && rng->requestq.ready)
        answer = work_on_queue(rng, now_ns);
    pthread_mutex_unlock(&rng->mmio.lock);
    return answer;
}

uint64_t
vmm_rng_due_ns(struct vmm_rng *rng)
{
    uint64_t due;

    pthread_mutex_lock(&rng->mmio.lock);
    due = rng->mmio.due_ns;
    pthread_mutex_unlock(&rng->mmio.lock);
    return due;
}

uint64_t
vmm_rng_wanted(struct vmm_rng *rng)
{
    uint64_t wanted = 0;

    pthread_mutex_lock(&rng->mmio.lock);
    if (rng->dry && vmm_virtio_mmio_live(&rng->mmio) &&
        vmm_chain_alive(&rng->chain, &rng->requestq))
        wanted = rng->pool_size;
    pthread_mutex_unlock(&rng->mmio.lock);
    return wanted;
}

uint64_t
vmm_rng_feed(struct vmm_rng *rng, const void *buf, uint64_t len)
{
    pthread_mutex_lock(&rng->mmio.lock);
    rng->dry = false;
    rng->ended |= !len;
    if (rng->pool_pos == rng->pool_end) {
        rng->pool_pos = 0;
        rng->pool_end = 0;
    }
    len = vmm_min(len, rng->pool_size - rng->pool_end);
    if (len)
        memcpy(rng->pool + rng->pool_end, buf, len);
    rng->pool_end += len;
    pthread_mutex_unlock(&rng->mmio.lock);
    return len;
}

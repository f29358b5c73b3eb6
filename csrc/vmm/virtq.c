/* SPDX-License-Identifier: Apache-2.0 */
/* virtq.c - the device's end of a split virtqueue */
#include "virtq.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* 2.7.5.2: the driver adds no more to one chain. */
#define CHAIN_LEN_MAX (1ULL << 32)

/* `next` has 16 bits, so nothing beyond this many entries can be named. */
#define TABLE_MAX 65536U

static int
broken(struct vmm_virtq *vq, const char *why)
{
    vq->fault = why;
    vq->faults++;
    return -EPROTO;
}

int
vmm_virtq_init(struct vmm_virtq *vq, struct vmm_mem *mem, uint32_t max_size)
{
    if (!max_size || max_size > VMM_VIRTQ_MAX_SIZE ||
        (max_size & (max_size - 1)))
        return -EINVAL;
    memset(vq, 0, sizeof *vq);
    vq->mem = mem;
    vq->max_size = max_size;
    vq->size = max_size;
    vq->lent = (pthread_rwlock_t)PTHREAD_RWLOCK_INITIALIZER;
    return 0;
}

int
vmm_virtq_start(struct vmm_virtq *vq)
{
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t n = vq->size;

    if (vq->ready || vq->fault)
        return -EBUSY;
    if (!n || n > vq->max_size || (n & (n - 1)))
        return broken(vq, "queue size is no power of two or too large");
    /* The event words belong to the rings whether negotiated or not (2.7). */
    desc =
        vmm_mem_map(vq->mem, vq->desc_gpa, 16ULL * n, 16, false, VMM_MEM_GUEST);
    if (!desc)
        return broken(vq, "descriptor table misaligned or outside RAM");
    avail = vmm_mem_map(vq->mem, vq->avail_gpa, 6 + 2ULL * n, 2, false,
                        VMM_MEM_GUEST);
    if (!avail)
        return broken(vq, "available ring misaligned or outside RAM");
    used = vmm_mem_map(vq->mem, vq->used_gpa, 6 + 8ULL * n, 4, true,
                       VMM_MEM_GUEST);
    if (!used)
        return broken(vq, "used ring misaligned, outside RAM or read-only");

    vq->desc = desc;
    vq->avail = avail;
    vq->used = used;
    vq->next_avail = 0;
    vq->next_used = 0;
    vq->unsignalled = 0;
    vq->life++;
    vq->ready = true;
    return 0;
}

void
vmm_virtq_stop(struct vmm_virtq *vq)
{
    /* Who lends has the same lock as we, so no loan begins meanwhile. */
    pthread_rwlock_wrlock(&vq->lent);
    pthread_rwlock_unlock(&vq->lent);
    vq->ready = false;
    vq->fault = NULL;
    vq->desc = NULL;
    vq->avail = NULL;
    vq->used = NULL;
    free(vq->again);
    vq->again = NULL;
    vq->agains = 0;
}

void
vmm_virtq_reset(struct vmm_virtq *vq)
{
    vmm_virtq_stop(vq);
    vq->size = vq->max_size;
    vq->desc_gpa = 0;
    vq->avail_gpa = 0;
    vq->used_gpa = 0;
    vq->indirect = false;
    vq->event_idx = false;
}

/*
 * Pairs with the driver's release of its index: what it wrote to the ring and
 * to the descriptors before is visible after.
 */
static uint16_t
avail_idx(const struct vmm_virtq *vq)
{
    return le16toh(__atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE));
}

/* The entry after the last is used_event. */
static uint16_t
avail_ring(const struct vmm_virtq *vq, uint32_t i)
{
    return le16toh(__atomic_load_n(&vq->avail->ring[i], __ATOMIC_RELAXED));
}

static uint16_t
in_flight(const struct vmm_virtq *vq)
{
    return (uint16_t)(vq->next_avail - vq->next_used);
}

/* A table being walked: the queue's own or an indirect one. */
struct table {
    const uint8_t *hva; /* NULL: not contiguous on the host, read by gpa */
    uint64_t gpa;
    uint32_t entries;
};

/* Eight bytes at any alignment, loaded as one and only once. */
struct loose64 {
    uint64_t v;
} __attribute__((packed, may_alias));

/*
 * The copy that everything is checked on and taken from. The driver may be
 * writing there, so the loads are volatile; a torn descriptor is as good as
 * any other that a hostile driver may offer, hence not a race to report.
 */
__attribute__((no_sanitize("thread"))) static struct vring_desc
load_desc(const uint8_t *hva)
{
    const volatile struct loose64 *from = (const void *)hva;
    uint64_t word[2] = {from[0].v, from[1].v};
    struct vring_desc desc;

    memcpy(&desc, word, sizeof desc);
    return desc;
}

static int
table_read(struct vmm_virtq *vq, const struct table *table, uint32_t i,
           struct vring_desc *out)
{
    struct vring_desc desc;

    if (table->hva)
        desc = load_desc(table->hva + 16ULL * i);
    else if (vmm_mem_read(vq->mem, table->gpa + 16ULL * i, &desc, sizeof desc))
        return broken(vq, "indirect table outside RAM");
    out->addr = le64toh(desc.addr);
    out->len = le32toh(desc.len);
    out->flags = le16toh(desc.flags);
    out->next = le16toh(desc.next);
    return 0;
}

/* The table that `desc`, an entry of the ring's own table, names. */
static int
table_enter(struct vmm_virtq *vq, const struct vring_desc *desc,
            struct table *out)
{
    uint64_t got = 0;

    if (!vq->indirect)
        return broken(vq, "indirect descriptor that was not negotiated");
    if (desc->flags & VRING_DESC_F_NEXT)
        return broken(vq, "descriptor with both INDIRECT and NEXT");
    if (!desc->len || desc->len % 16 || desc->len / 16 > TABLE_MAX)
        return broken(vq, "indirect table of an impossible length");
    if (vmm_mem_span(vq->mem, desc->addr, desc->len) != desc->len)
        return broken(vq, "indirect table outside RAM");
    out->gpa = desc->addr;
    out->entries = desc->len / 16;
    out->hva =
        vmm_mem_ptr(vq->mem, desc->addr, desc->len, false, VMM_MEM_GUEST, &got);
    if (got != desc->len)
        out->hva = NULL;
    return 0;
}

static int
chain_room(struct vmm_virtq *vq, struct vmm_chain *chain, unsigned count)
{
    unsigned limit = vq->size + VMM_MEM_MAX_REGIONS;
    struct vmm_segment *seg;
    unsigned room;

    if (count < chain->room)
        return 0;
    if (count >= limit)
        return broken(vq, "chain of overlapping buffers in too many pieces");
    room = count ? (unsigned)vmm_min(2ULL * count, limit) : 4;
    seg = realloc(chain->seg, room * sizeof *seg);
    if (!seg)
        return -ENOMEM;
    chain->seg = seg;
    chain->room = room;
    return 0;
}

/* Adds a descriptor's buffer: a segment, or one for each region it is in. */
static int
chain_add(struct vmm_virtq *vq, struct vmm_chain *chain,
          const struct vring_desc *desc)
{
    bool write = desc->flags & VRING_DESC_F_WRITE;
    uint64_t gpa = desc->addr, len = desc->len, got = 0;

    if (chain->readable_len + chain->writable_len + len > CHAIN_LEN_MAX)
        return broken(vq, "chain of more than 2^32 bytes");
    for (; len; len -= got, gpa += got) {
        unsigned count = chain->readable + chain->writable;
        uint8_t *hva;
        int err;

        hva = vmm_mem_ptr(vq->mem, gpa, len, write, VMM_MEM_GUEST, &got);
        if (!hva)
            return broken(vq, write ? "buffer outside RAM or not writable"
                                    : "buffer outside RAM");
        err = chain_room(vq, chain, count);
        if (err)
            return err;
        chain->seg[count] = (struct vmm_segment){hva, gpa, (uint32_t)got};
        if (write)
            chain->writable++;
        else
            chain->readable++;
    }
    *(write ? &chain->writable_len : &chain->readable_len) += desc->len;
    return 0;
}

/* Each turn counts a descriptor or enters a table, which happens once. */
static int
chain_walk(struct vmm_virtq *vq, struct vmm_chain *chain)
{
    struct table table = {(const uint8_t *)vq->desc, vq->desc_gpa, vq->size};
    bool inside = false, writing = false;
    struct vring_desc desc;
    uint32_t i = chain->head;
    int err;

    for (;;) {
        err = table_read(vq, &table, i, &desc);
        if (err)
            return err;
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            if (inside)
                return broken(vq, "indirect table inside another");
            err = table_enter(vq, &desc, &table);
            if (err)
                return err;
            inside = true;
            i = 0;
            continue;
        }
        if (++chain->descs > vq->size)
            return broken(vq, "chain longer than the queue, or a loop");
        if (desc.flags & VRING_DESC_F_WRITE)
            writing = true;
        else if (writing)
            return broken(vq, "buffer to read after one to write");
        err = chain_add(vq, chain, &desc);
        if (err)
            return err;
        if (!(desc.flags & VRING_DESC_F_NEXT))
            return 0;
        if (desc.next >= table.entries)
            return broken(vq, "next descriptor outside its table");
        i = desc.next;
    }
}

/* Of the chain to pop next: one that was in flight in a snapshot comes first.
 */
static uint16_t
next_head(const struct vmm_virtq *vq)
{
    uint16_t left = (uint16_t)(vq->again_end - vq->next_avail);

    if (left && left <= vq->agains)
        return vq->again[vq->agains - left];
    return avail_ring(vq, vq->next_avail & (vq->size - 1));
}

int
vmm_virtq_pop(struct vmm_virtq *vq, struct vmm_chain *chain)
{
    uint16_t offered, head;
    int err;

    assert(!vmm_chain_alive(chain, vq));
    if (vq->fault)
        return -EPROTO;
    if (!vq->ready)
        return 0;
    /* All that is offered and not yet used is in the table, so there is never
     * more of it than entries, however often a head is repeated. */
    offered = (uint16_t)(avail_idx(vq) - vq->next_avail);
    if (offered > vq->size - in_flight(vq))
        return broken(vq, "available index ahead by more than the queue size");
    if (!offered)
        return 0;
    head = next_head(vq);
    if (head >= vq->size)
        return broken(vq, "head outside the descriptor table");

    chain->life = 0;
    chain->head = head;
    chain->index = vq->next_avail;
    chain->descs = 0;
    chain->readable = 0;
    chain->writable = 0;
    chain->readable_len = 0;
    chain->writable_len = 0;
    err = chain_walk(vq, chain);
    if (err)
        return err;
    chain->life = vq->life;
    vq->next_avail++;
    return 1;
}

int
vmm_virtq_unpop(struct vmm_virtq *vq, struct vmm_chain *chain)
{
    uint16_t last = (uint16_t)(vq->next_avail - 1);

    if (!vmm_chain_alive(chain, vq)) {
        chain->life = 0;
        return -ESTALE;
    }
    if (chain->index != last)
        return -EINVAL;
    chain->life = 0;
    vq->next_avail = last;
    return 0;
}

int
vmm_virtq_put(struct vmm_virtq *vq, struct vmm_chain *chain, uint32_t written)
{
    uint32_t slot = vq->next_used & (vq->size - 1);
    vring_used_elem_t *elem;

    if (!vmm_chain_alive(chain, vq)) {
        chain->life = 0;
        return -ESTALE;
    }
    if (written > chain->writable_len)
        return -EINVAL;
    chain->life = 0;
    if (vq->fault)
        return -EPROTO;

    elem = &vq->used->ring[slot];
    __atomic_store_n(&elem->id, htole32(chain->head), __ATOMIC_RELAXED);
    __atomic_store_n(&elem->len, htole32(written), __ATOMIC_RELAXED);
    vq->next_used++;
    vmm_mem_mark(vq->mem, vq->used_gpa + 4 + 8ULL * slot, 8);
    /* Beyond a whole turn of the index every used_event has been passed. */
    if (vq->unsignalled <= UINT16_MAX)
        vq->unsignalled++;
    return 0;
}

void
vmm_virtq_publish(struct vmm_virtq *vq)
{
    if (!vq->ready)
        return;
    /* Pairs with the driver's acquire of the index: it then sees the entries
     * and what the device wrote into the buffers. */
    __atomic_store_n(&vq->used->idx, htole16(vq->next_used), __ATOMIC_RELEASE);
    vmm_mem_mark(vq->mem, vq->used_gpa, 4);
}

int
vmm_virtq_push(struct vmm_virtq *vq, struct vmm_chain *chain, uint32_t written)
{
    int err = vmm_virtq_put(vq, chain, written);

    if (!err)
        vmm_virtq_publish(vq);
    return err;
}

/*
 * Both sides publish an index and then read what the other published; for one
 * of the two to see the other's, each needs a full barrier between (2.7.7,
 * 2.7.10). The driver's is between its index and avail_event or used->flags.
 */
static void
full_barrier(void)
{
    __sync_synchronize();
}

bool
vmm_virtq_must_interrupt(struct vmm_virtq *vq)
{
    uint32_t pushed = vq->unsignalled;
    uint16_t event;

    if (!pushed || !vq->ready || vq->fault)
        return false;
    vq->unsignalled = 0;
    full_barrier();
    if (!vq->event_idx)
        return !(le16toh(__atomic_load_n(&vq->avail->flags, __ATOMIC_RELAXED)) &
                 VRING_AVAIL_F_NO_INTERRUPT);
    /* Wanted: the interrupt for entry `event`. Was it among the last ones? */
    event = avail_ring(vq, vq->size);
    return (uint16_t)(vq->next_used - event - 1) < pushed;
}

static void
set_used_flags(struct vmm_virtq *vq, uint16_t flags)
{
    __atomic_store_n(&vq->used->flags, htole16(flags), __ATOMIC_RELAXED);
    vmm_mem_mark(vq->mem, vq->used_gpa, 2);
}

/* 2.7.10: after the last entry of the used ring. */
static void
set_avail_event(struct vmm_virtq *vq, uint16_t event)
{
    __virtio16 *at = (__virtio16 *)&vq->used->ring[vq->size];

    __atomic_store_n(at, htole16(event), __ATOMIC_RELAXED);
    vmm_mem_mark(vq->mem, vq->used_gpa + 4 + 8ULL * vq->size, 2);
}

void
vmm_virtq_notify_off(struct vmm_virtq *vq)
{
    /* With EVENT_IDX an avail_event that stays behind does it. */
    if (vq->ready && !vq->fault && !vq->event_idx)
        set_used_flags(vq, VRING_USED_F_NO_NOTIFY);
}

bool
vmm_virtq_notify_on(struct vmm_virtq *vq)
{
    if (!vq->ready || vq->fault)
        return false;
    if (vq->event_idx)
        set_avail_event(vq, vq->next_avail);
    else
        set_used_flags(vq, 0);
    full_barrier();
    return avail_idx(vq) != vq->next_avail;
}

void
vmm_virtq_lend(struct vmm_virtq *vq)
{
    pthread_rwlock_rdlock(&vq->lent);
}

void
vmm_virtq_return(struct vmm_virtq *vq)
{
    pthread_rwlock_unlock(&vq->lent);
}

void
vmm_chain_init(struct vmm_chain *chain)
{
    memset(chain, 0, sizeof *chain);
}

void
vmm_chain_fini(struct vmm_chain *chain)
{
    free(chain->seg);
    vmm_chain_init(chain);
}

void
vmm_chain_drop(struct vmm_chain *chain)
{
    chain->life = 0;
}

uint64_t
vmm_chain_read(const struct vmm_chain *chain, uint64_t offset, void *buf,
               uint64_t len)
{
    uint8_t *to = buf;
    uint64_t done = 0;

    for (unsigned i = 0; i < chain->readable && done < len; i++) {
        const struct vmm_segment *seg = &chain->seg[i];
        uint64_t part;

        if (offset >= seg->len) {
            offset -= seg->len;
            continue;
        }
        part = vmm_min(seg->len - offset, len - done);
        memcpy(to + done, seg->hva + offset, part);
        done += part;
        offset = 0;
    }
    return done;
}

uint64_t
vmm_chain_write(const struct vmm_chain *chain, struct vmm_mem *mem,
                uint64_t offset, const void *buf, uint64_t len)
{
    const uint8_t *from = buf;
    uint64_t done = 0;

    for (unsigned i = 0; i < chain->writable && done < len; i++) {
        const struct vmm_segment *seg = &chain->seg[chain->readable + i];
        uint64_t part;

        if (offset >= seg->len) {
            offset -= seg->len;
            continue;
        }
        part = vmm_min(seg->len - offset, len - done);
        memcpy(seg->hva + offset, from + done, part);
        vmm_mem_mark(mem, seg->gpa + offset, part);
        done += part;
        offset = 0;
    }
    return done;
}

/* -- snapshots ------------------------------------------------------------- */

void
vmm_virtq_save(const struct vmm_virtq *vq, struct vmm_virtq_state *out)
{
    *out = (struct vmm_virtq_state){
        .desc_gpa = vq->desc_gpa,
        .avail_gpa = vq->avail_gpa,
        .used_gpa = vq->used_gpa,
        .size = vq->size,
        .next_avail = vq->next_avail,
        .next_used = vq->next_used,
        .ready = vq->ready,
        .indirect = vq->indirect,
        .event_idx = vq->event_idx,
        .broken = vq->fault != NULL,
    };
}

int
vmm_virtq_load(struct vmm_virtq *vq, const struct vmm_virtq_state *state,
               const uint16_t *heads, unsigned count)
{
    uint16_t popped = (uint16_t)(state->next_avail - state->next_used);
    int err;

    vmm_virtq_stop(vq);
    vq->size = state->size;
    vq->desc_gpa = state->desc_gpa;
    vq->avail_gpa = state->avail_gpa;
    vq->used_gpa = state->used_gpa;
    vq->indirect = state->indirect;
    vq->event_idx = state->event_idx;
    if (!state->ready) {
        if (state->broken)
            broken(vq, "broken before the snapshot was taken");
        return count ? -EINVAL : 0;
    }
    if (popped > state->size || count > popped)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++)
        if (heads[i] >= state->size)
            return -EINVAL;
    err = vmm_virtq_start(vq);
    if (err)
        return err;
    if (count) {
        vq->again = malloc(count * sizeof *vq->again);
        if (!vq->again) {
            vmm_virtq_stop(vq);
            return -ENOMEM;
        }
        memcpy(vq->again, heads, count * sizeof *vq->again);
        vq->agains = (uint16_t)count;
    }
    vq->again_end = state->next_avail;
    vq->next_used = state->next_used;
    vq->next_avail = (uint16_t)(state->next_avail - count);
    if (state->broken)
        broken(vq, "broken before the snapshot was taken");
    return 0;
}

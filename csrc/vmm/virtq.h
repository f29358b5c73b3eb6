/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtq.h - the device's end of a split virtqueue (virtio 1.2, 2.7)
 *
 * A virtqueue carries buffers from a driver in the guest to a device and back.
 * It is three arrays in guest memory, made by the driver:
 *
 *   descriptor table   size x 16 bytes: a buffer's address and length, whether
 *                      the device reads or writes it, and which entry is next.
 *                      Entries linked by NEXT are a *chain*: one request.
 *   available ring     written by the driver: an index that only grows (modulo
 *                      65536) and the number of each offered chain's first
 *                      descriptor, its *head*. 6 + 2 x size bytes.
 *   used ring          written by the device: an index likewise, and for each
 *                      finished chain its head and how many bytes were written
 *                      into it. 6 + 8 x size bytes.
 *
 * So a request makes one round: the driver fills descriptors, puts the head in
 * the available ring and raises its index; the device *pops* the chain, works,
 * *pushes* it into the used ring and raises that index; the driver takes its
 * descriptors back. Chains may finish in any order.
 *
 * A descriptor with INDIRECT names a table of descriptors elsewhere in memory
 * instead of a buffer, so that a long chain takes one entry of the ring.
 *
 * Each side can tell the other to be quiet. Without EVENT_IDX it is a flag at
 * the start of the ring that one writes. With it, each side publishes, after
 * the last entry of its own ring, the index at which it wants to hear next:
 * the driver `used_event`, the device `avail_event`. "Have I anything to do?"
 * and "does the other one want to hear?" race, so whoever asks to be told looks
 * at the ring once more afterwards (vmm_virtq_notify_on).
 *
 * The driver is hostile and its memory may change while it is read. Each field
 * is loaded once, into a copy that is then checked and used. Nothing it writes
 * makes a walk longer than the queue's size, an allocation larger than
 * size + VMM_MEM_MAX_REGIONS segments, or a pointer outside RAM. A queue that
 * breaks the rules is *broken*: `fault` says how, and it answers -EPROTO to
 * everything until it is stopped. What breaks it:
 *   - the available index is ahead of the used one by more than the size
 *   - a head or a next is no index of its table
 *   - a chain of more descriptors than the queue has entries, so every loop
 *     (2.7.5.3.1; entries of an indirect table count, the descriptor that
 *     names the table does not)
 *   - more than 2^32 bytes in one chain (2.7.5.2)
 *   - a descriptor to be read after one to be written (2.7.4.2)
 *   - a buffer outside RAM, or to be written in a read-only region
 *   - INDIRECT when not negotiated, inside an indirect table or with NEXT; a
 *     table outside RAM, empty, or not a multiple of 16 bytes (2.7.5.3)
 *   - a chain whose buffers cross borders of regions more than
 *     VMM_MEM_MAX_REGIONS times, which only overlapping buffers can
 * A descriptor of length 0 is in order (the specification does not forbid it):
 * it counts as a descriptor, obeys the order of reading before writing, yields
 * no segment, and its address is not looked at. WRITE on a descriptor that
 * names a table is ignored (2.7.5.3.2).
 *
 * Threads: none of its own; all calls for one queue under one lock (that of
 * the device). Guest memory is shared with the vCPUs by acquire and release.
 */
#ifndef VMM_VIRTQ_H
#define VMM_VIRTQ_H

#include <linux/virtio_ring.h>
#include <pthread.h>

#include "mem.h"

#define VMM_VIRTQ_MAX_SIZE 32768U

/* A part of a buffer that is contiguous on the host. Never empty. */
struct vmm_segment {
    uint8_t *hva;
    uint64_t gpa;
    uint32_t len;
};

/*
 * One request: a driver's buffers, those to be read first, in order, then those
 * to be written. Reused from request to request: the array grows to what the
 * largest chain needed and is freed by vmm_chain_fini.
 *
 * A chain taken from a queue is *in flight* until it is pushed. It knows from
 * which life of the queue it comes: once the driver has reset the device or
 * stopped the queue the chain is stale, its buffers belong to the driver again
 * and must not be touched.
 */
struct vmm_chain {
    uint16_t head;
    uint16_t index;        /* in the available ring, for vmm_virtq_unpop */
    uint32_t descs;        /* descriptors walked, empty ones as well */
    unsigned readable;     /* seg[0 .. readable) are to be read */
    unsigned writable;     /* the next `writable` ones to be written */
    uint64_t readable_len; /* bytes; the sum of both is at most 2^32 */
    uint64_t writable_len;
    struct vmm_segment *seg;
    unsigned room; /* allocated */
    uint64_t life; /* of the queue; 0: not in flight */
};

struct vmm_virtq {
    struct vmm_mem *mem;
    uint32_t max_size;

    /* What the driver configured, unchecked until vmm_virtq_start. Written by
     * the owner (the transport) while the queue is stopped. */
    uint32_t size;
    uint64_t desc_gpa;
    uint64_t avail_gpa;
    uint64_t used_gpa;
    bool indirect;  /* VIRTIO_RING_F_INDIRECT_DESC was negotiated */
    bool event_idx; /* VIRTIO_RING_F_EVENT_IDX was negotiated */

    /* The rest is written by virtq.c alone. */
    bool ready;            /* started and not stopped; a broken one too */
    const char *fault;     /* how the driver broke it; NULL: it is sound */
    uint64_t faults;       /* times it was broken, ever */
    uint64_t life;         /* how often it was started, ever */
    uint16_t next_avail;   /* available index of the chain to pop next */
    uint16_t next_used;    /* used index of the chain to push next */
    uint32_t unsignalled;  /* pushed since the last vmm_virtq_must_interrupt */
    pthread_rwlock_t lent; /* for reading: buffers are in use, see _lend */
    uint16_t *again;       /* heads to pop before those of the ring, owned */
    uint16_t agains;       /* how many, */
    uint16_t again_end;    /* up to this available index */
    const struct vring_desc *desc; /* NULL unless ready */
    struct vring_avail *avail;
    struct vring_used *used;
};

/*
 * A stopped queue of at most `max_size` entries, a power of two up to
 * VMM_VIRTQ_MAX_SIZE, else -EINVAL. Stopped, it owns no resources: there is no
 * fini.
 * `mem` must be frozen before the queue is started and outlive it.
 */
int vmm_virtq_init(struct vmm_virtq *vq, struct vmm_mem *mem,
                   uint32_t max_size);

/*
 * Starts the queue on the rings that `size` and the three addresses name; both
 * indices begin at 0. -EPROTO, and the queue is broken (not ready, `fault`
 * set), when the size is 0, no power of two or above max_size, when a ring is
 * misaligned (16, 2 and 4 bytes) or not inside one region of RAM, or the used
 * ring in a read-only one. -EBUSY when ready or broken.
 */
int vmm_virtq_start(struct vmm_virtq *vq);

/* Stops it, sound again: all chains in flight are stale. What the driver
 * configured stays. Waits for buffers that are on loan. */
void vmm_virtq_stop(struct vmm_virtq *vq);

/* Stops it and forgets what was configured: size max_size, addresses 0, no
 * features. */
void vmm_virtq_reset(struct vmm_virtq *vq);

/*
 * Takes the next chain off the available ring into `chain`, which must not be
 * in flight (a stale one is dropped). 1: taken. 0: there is none, or the queue
 * is not ready. -EPROTO: the queue is broken, now or before. -ENOMEM: the
 * segments found no memory; nothing has changed.
 *
 * Pages of writable segments are marked dirty here. Whoever writes into one
 * after guest memory may have been saved marks them again (vmm_mem_mark).
 */
int vmm_virtq_pop(struct vmm_virtq *vq, struct vmm_chain *chain);

/*
 * Gives back a chain that was popped and not worked on: it will be the next to
 * be popped. Several go back the other way round, the last one popped first.
 * The chain is no longer in flight. -ESTALE: it was not in flight in this life
 * of the queue. -EINVAL: one that was popped after it has not been given back;
 * nothing has changed. The driver is not asked to notify of it again.
 */
int vmm_virtq_unpop(struct vmm_virtq *vq, struct vmm_chain *chain);

/*
 * Returns a chain to the driver through the used ring, `written` bytes of its
 * writable segments having been filled from the start on. -EINVAL: more
 * than writable_len; nothing has changed. With every other answer the chain is
 * no longer in flight. -ESTALE: it was not in flight in this life of the queue;
 * nothing was written. -EPROTO: the queue is broken.
 * The driver is not told: ask vmm_virtq_must_interrupt after a batch.
 */
int vmm_virtq_push(struct vmm_virtq *vq, struct vmm_chain *chain,
                   uint32_t written);

/*
 * The same in two steps, for chains that the driver shall find all at once: put
 * each, then publish. Until then it sees none of them.
 */
int vmm_virtq_put(struct vmm_virtq *vq, struct vmm_chain *chain,
                  uint32_t written);
void vmm_virtq_publish(struct vmm_virtq *vq);

/*
 * Whether the driver wants an interrupt for what has been pushed since the last
 * call (2.7.7). False when nothing was. To be asked at least once a batch, and
 * each true acted upon.
 */
bool vmm_virtq_must_interrupt(struct vmm_virtq *vq);

/* Tells the driver that it need not notify for now. A hint: it may. */
void vmm_virtq_notify_off(struct vmm_virtq *vq);

/*
 * Asks the driver to notify at the next chain. True when chains are there
 * already, which it may have offered without a notification: go on popping.
 * Whoever stops popping must have seen false here, or else come back without
 * being asked.
 *
 *     do {
 *         vmm_virtq_notify_off(vq);
 *         while (vmm_virtq_pop(vq, chain) > 0)
 *             ...
 *     } while (vmm_virtq_notify_on(vq));
 *
 * It is false for a queue that is broken or not ready.
 */
bool vmm_virtq_notify_on(struct vmm_virtq *vq);

/*
 * The buffers of chains in flight are on loan to the caller until _return:
 * that long nobody stops the queue, so a driver that was told of the reset of
 * its device finds them at rest. For a transfer that takes too long to be made
 * under the lock. Lent under it, given back with or without; several at a time.
 */
void vmm_virtq_lend(struct vmm_virtq *vq);
void vmm_virtq_return(struct vmm_virtq *vq);

/*
 * What a queue is like, for a snapshot: all but what is in guest memory. Chains
 * in flight are their owner's to name.
 */
struct vmm_virtq_state {
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint32_t size;
    uint16_t next_avail, next_used;
    uint8_t ready, indirect, event_idx, broken;
};
void vmm_virtq_save(const struct vmm_virtq *vq, struct vmm_virtq_state *out);

/*
 * Makes the queue one like that, on memory that is as it was then. All chains
 * in flight become stale; those that were in flight when it was saved, `count`
 * heads in the order they were popped, are popped again before others. -EINVAL:
 * no queue can be like that (a size, more in flight than the indices say, a
 * head outside the table); -EPROTO: its rings are not in RAM; -ENOMEM. It is
 * then stopped.
 */
int vmm_virtq_load(struct vmm_virtq *vq, const struct vmm_virtq_state *state,
                   const uint16_t *heads, unsigned count);

/* An empty chain: the same as a zeroed one. */
void vmm_chain_init(struct vmm_chain *chain);
void vmm_chain_fini(struct vmm_chain *chain);

/* The chain is no longer in flight here; keeps the memory for the next. */
void vmm_chain_drop(struct vmm_chain *chain);

/* Whether the chain is in flight in this life of the queue. */
static inline bool
vmm_chain_alive(const struct vmm_chain *chain, const struct vmm_virtq *vq)
{
    return vq->ready && chain->life == vq->life;
}

/*
 * Copies out of the readable, or into the writable bytes, from byte `offset`
 * of these on. Returns the number of bytes copied: fewer than `len` when the
 * chain ends before. The write marks the pages dirty.
 */
uint64_t vmm_chain_read(const struct vmm_chain *chain, uint64_t offset,
                        void *buf, uint64_t len);
uint64_t vmm_chain_write(const struct vmm_chain *chain, struct vmm_mem *mem,
                         uint64_t offset, const void *buf, uint64_t len);

#endif

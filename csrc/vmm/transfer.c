/* SPDX-License-Identifier: Apache-2.0 */
/* transfer.c - bytes between the buffers of chains and a file */
#include "transfer.h"

#include <errno.h>
#include <limits.h>
#include <sys/uio.h>

/* What one call takes. */
struct batch {
    unsigned count;
    uint64_t len;
    uint64_t most; /* of len */
    struct iovec iov[IOV_MAX];
    uint64_t gpa[IOV_MAX];
};

static void
batch_add(struct batch *batch, const struct vmm_segment *seg, uint64_t offset,
          uint64_t len)
{
    batch->iov[batch->count] =
        (struct iovec){.iov_base = seg->hva + offset, .iov_len = len};
    batch->gpa[batch->count] = seg->gpa + offset;
    batch->count++;
    batch->len += len;
}

static bool
batch_full(const struct batch *batch)
{
    return batch->count == IOV_MAX || batch->len == batch->most;
}

/* Adds of `segs` segments what lies in `len` bytes from `offset` on. */
static void
batch_stretch(struct batch *batch, const struct vmm_segment *seg, unsigned segs,
              uint64_t offset, uint64_t len)
{
    for (unsigned i = 0; i < segs && len && !batch_full(batch); i++) {
        uint64_t part;

        if (offset >= seg[i].len) {
            offset -= seg[i].len;
            continue;
        }
        part = vmm_min(seg[i].len - offset, len);
        part = vmm_min(part, batch->most - batch->len);
        batch_add(batch, &seg[i], offset, part);
        offset = 0;
        len -= part;
    }
}

/* The bytes behind the first `done` ones, as many as one call can take. */
static void
batch_fill(struct batch *batch, bool write, const struct vmm_stretch *stretch,
           unsigned count, uint64_t done)
{
    batch->count = 0;
    batch->len = 0;
    batch->most = VMM_TRANSFER_MOST - done;
    for (unsigned i = 0; i < count && !batch_full(batch); i++) {
        const struct vmm_chain *chain = stretch[i].chain;
        uint64_t skip = vmm_min(done, stretch[i].len);

        done -= skip;
        if (skip == stretch[i].len)
            continue;
        if (write)
            batch_stretch(batch, chain->seg, chain->readable,
                          stretch[i].offset + skip, stretch[i].len - skip);
        else
            batch_stretch(batch, chain->seg + chain->readable, chain->writable,
                          stretch[i].offset + skip, stretch[i].len - skip);
    }
}

static int64_t
batch_move(const struct batch *batch, bool write, int fd, int64_t offset)
{
    const struct iovec *iov = batch->iov;
    int count = (int)batch->count;
    ssize_t moved;

    if (offset < 0)
        moved = write ? writev(fd, iov, count) : readv(fd, iov, count);
    else
        moved = write ? pwritev(fd, iov, count, offset)
                      : preadv(fd, iov, count, offset);
    return moved < 0 ? -errno : moved;
}

/* `mem` is NULL when it writes. */
static int64_t
transfer(struct vmm_mem *mem, int fd, int64_t offset,
         const struct vmm_stretch *stretch, unsigned count)
{
    struct batch batch;
    uint64_t done = 0;

    for (;;) {
        int64_t moved;

        batch_fill(&batch, !mem, stretch, count, done);
        if (!batch.count)
            return (int64_t)done;
        moved = batch_move(&batch, !mem, fd, offset);
        /* Even a call that failed may have got some way. */
        for (unsigned i = 0; mem && i < batch.count; i++)
            vmm_mem_mark(mem, batch.gpa[i], batch.iov[i].iov_len);
        if (moved <= 0)
            return done ? (int64_t)done : moved;
        done += (uint64_t)moved;
        if (offset >= 0)
            offset += moved;
        else if ((uint64_t)moved < batch.len)
            return (int64_t)done;
    }
}

int64_t
vmm_transfer_read(struct vmm_mem *mem, int fd, int64_t offset,
                  const struct vmm_stretch *stretch, unsigned count)
{
    return transfer(mem, fd, offset, stretch, count);
}

int64_t
vmm_transfer_write(int fd, int64_t offset, const struct vmm_stretch *stretch,
                   unsigned count)
{
    return transfer(NULL, fd, offset, stretch, count);
}

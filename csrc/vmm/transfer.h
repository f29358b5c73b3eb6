/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transfer.h - bytes between the buffers of chains and a file, by no copy
 *
 * A device that serves a file, a socket or a TAP moves bytes between its
 * descriptor and what a driver offered. The kernel does that by itself when it
 * is told where the buffers are; requests that follow each other in the file
 * become one call.
 *
 * A call may take as long as the file does, so it is not made under the
 * device's lock, but with the queue on loan: see vmm_virtq_lend.
 *
 * Threads: none of its own.
 */
#ifndef VMM_TRANSFER_H
#define VMM_TRANSFER_H

#include "virtq.h"

/* `len` of the readable, or of the writable bytes of a chain, from byte
 * `offset` of these on. Never beyond their end. */
struct vmm_stretch {
    const struct vmm_chain *chain;
    uint64_t offset;
    uint64_t len;
};

/*
 * Reads from `fd` at `offset` into writable bytes, or writes readable bytes
 * there: all stretches, one behind the other. With offset -1 at the place where
 * the file is, or from what has none: that is one call only, and so one frame
 * of a TAP or a datagram, as long as there are no more than 1024 segments.
 *
 * Returns the number of bytes moved. Fewer than all: they are more than
 * VMM_TRANSFER_MOST, the file ended, or it failed behind the first byte; asking
 * for the rest tells which. -errno when nothing was moved; -EINTR is a signal.
 * Pages read into are marked dirty.
 */
#define VMM_TRANSFER_MOST (64ULL << 20)
int64_t vmm_transfer_read(struct vmm_mem *mem, int fd, int64_t offset,
                          const struct vmm_stretch *stretch, unsigned count);
int64_t vmm_transfer_write(int fd, int64_t offset,
                           const struct vmm_stretch *stretch, unsigned count);

#endif

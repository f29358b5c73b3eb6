/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.h - the ports every machine has: console at 0xe9, exit at 0xf4
 *
 * Console (guest-abi.md): offset 0: a write of 1, 2 or 4 bytes appends them to
 * the output, a read takes the next byte of input, 0 when there is none.
 * Offset 4: a read gives the number of input bytes waiting, at most 255.
 *
 * The output is kept in memory up to `limit` bytes; a guest that prints more
 * loses the oldest (counted in `dropped`), so it cannot exhaust the host. With
 * out_fd it is also written there, a line at a time. With `watch` set each
 * write returns to the owner, who looks at what came; with `lines`, each
 * newline does.
 *
 * Exit: any write ends the run; its value is in the exit.
 *
 * Threads: any; `lock` guards all.
 */
#ifndef VMM_CONSOLE_H
#define VMM_CONSOLE_H

#include <pthread.h>

#include "bus.h"

#define VMM_CONSOLE_PORT 0xe9U
#define VMM_CONSOLE_SIZE 5U
#define VMM_EXIT_PORT    0xf4U
#define VMM_EXIT_SIZE    4U

#define VMM_CONSOLE_WANT 4U /* texts at most that a run may wait for */

extern const struct vmm_bus_ops vmm_console_ops;   /* dev: vmm_console */
extern const struct vmm_bus_ops vmm_exit_port_ops; /* dev: unused */

struct vmm_console {
    pthread_mutex_t lock;
    uint8_t *out; /* output bytes `dropped` to `dropped + out_len` */
    size_t out_len;
    size_t out_room;
    size_t limit;
    uint64_t dropped;
    uint8_t *in; /* input that waits: in_at to in_len */
    size_t in_len;
    size_t in_at;
    int out_fd;     /* -1: none; the caller's */
    size_t written; /* of `out`, how much went to out_fd */
    uint8_t *want;  /* what a caller waits for, one text after the other */
    size_t want_len[VMM_CONSOLE_WANT];
    unsigned wants, wants_all; /* now; once they are wanted again */
    uint64_t want_from;        /* the position from which on it counts */
    bool watch;                /* atomic */
    bool lines;                /* atomic */
};

/* `limit` is at least 1. */
int vmm_console_init(struct vmm_console *con, size_t limit);
void vmm_console_fini(struct vmm_console *con);

/*
 * Appends what the guest printed. Whether one of the texts that are wanted is
 * there with it; it is not wanted any more then, nor are the others.
 */
bool vmm_console_print(struct vmm_console *con, const void *data, size_t len);

/*
 * From now on a guest's write that completes one of these texts answers
 * VMM_BUS_UNTIL, once; none: none does. Each has 1 byte at least and `limit` at
 * most. -EINVAL, -ENOMEM.
 */
int vmm_console_want(struct vmm_console *con, const void *const *text,
                     const size_t *len, unsigned count);
/* The same texts again, in what comes from now on. */
void vmm_console_want_again(struct vmm_console *con);

/* Appends to the input. -ENOMEM. */
int vmm_console_send(struct vmm_console *con, const void *data, size_t len);

/*
 * Copies the output from position `from` (counted from the very first byte
 * that the guest printed) on, `len` bytes at most; *from moves up to the
 * oldest byte kept. Returns the number of bytes copied.
 */
size_t vmm_console_copy(struct vmm_console *con, uint64_t *from, void *buf,
                        size_t len);

/* The position behind the last byte printed. */
uint64_t vmm_console_end(struct vmm_console *con);

/*
 * Goes back: output behind position `end` is forgotten, though out_fd may have
 * it, and the input that waits is these bytes. -ENOMEM, and nothing changed.
 */
int vmm_console_rewind(struct vmm_console *con, uint64_t end, const void *in,
                       size_t len);

/* Copies the input that waits, `len` bytes at most. How many there are. */
size_t vmm_console_waiting(struct vmm_console *con, void *buf, size_t len);

/* Writes what is left to out_fd, whole lines or not. */
void vmm_console_flush(struct vmm_console *con);

#endif

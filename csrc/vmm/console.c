/* SPDX-License-Identifier: Apache-2.0 */
/* console.c - the console's buffers and the exit port */
#include "console.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REG_DATA  0
#define REG_COUNT 4

int
vmm_console_init(struct vmm_console *con, size_t limit)
{
    memset(con, 0, sizeof *con);
    con->limit = limit;
    con->out_fd = -1;
    return -pthread_mutex_init(&con->lock, NULL);
}

void
vmm_console_fini(struct vmm_console *con)
{
    if (con->limit)
        pthread_mutex_destroy(&con->lock);
    free(con->out);
    free(con->in);
    free(con->want);
    memset(con, 0, sizeof *con);
    con->out_fd = -1;
}

/* With the lock held. A reader that went away must not stop the guest. */
static void
write_out(struct vmm_console *con, size_t end)
{
    while (con->out_fd >= 0 && con->written < end) {
        ssize_t n =
            write(con->out_fd, con->out + con->written, end - con->written);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            con->out_fd = -1;
        else
            con->written += (size_t)n;
    }
}

/* With the lock held: room for `len` more bytes, by growing or by forgetting.
 */
static bool
make_room(struct vmm_console *con, size_t len)
{
    size_t room = con->out_room ? con->out_room : 256;
    void *more;
    size_t drop;

    while (room - con->out_len < len && room < con->limit)
        room *= 2;
    room = (size_t)vmm_min(room, con->limit);
    if (room > con->out_room) {
        more = realloc(con->out, room);
        if (more) {
            con->out = more;
            con->out_room = room;
        }
    }
    if (con->out_room < len)
        return false;
    if (con->out_room - con->out_len >= len)
        return true;
    /* Half at a time, so that a byte costs one move on average at most. */
    drop = con->out_len - con->out_room / 2;
    if (con->out_room / 2 < len)
        drop = con->out_len;
    write_out(con, drop);
    memmove(con->out, con->out + drop, con->out_len - drop);
    con->out_len -= drop;
    con->written -= vmm_min(con->written, drop);
    con->dropped += drop;
    return true;
}

/* With the lock held: whether the last `len` bytes have completed a text. */
static bool
look_for_wanted(struct vmm_console *con, size_t len)
{
    const uint8_t *text = con->want;

    for (unsigned i = 0; i < con->wants; text += con->want_len[i++]) {
        size_t all = (size_t)vmm_min(len + con->want_len[i] - 1, con->out_len);
        uint64_t end = con->dropped + con->out_len;

        all = (size_t)vmm_min(all, end - con->want_from);
        if (memmem(con->out + con->out_len - all, all, text,
                   con->want_len[i])) {
            con->wants = 0;
            return true;
        }
    }
    return false;
}

int
vmm_console_want(struct vmm_console *con, const void *const *text,
                 const size_t *len, unsigned count)
{
    uint8_t *want = NULL, *at;
    size_t all = 0;

    if (count > VMM_CONSOLE_WANT)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        if (!len[i] || len[i] > con->limit)
            return -EINVAL;
        all += len[i];
    }
    if (count && !(want = malloc(all)))
        return -ENOMEM;
    pthread_mutex_lock(&con->lock);
    free(con->want);
    con->want = at = want;
    con->wants = con->wants_all = count;
    for (unsigned i = 0; i < count; i++) {
        memcpy(at, text[i], len[i]);
        con->want_len[i] = len[i];
        at += len[i];
    }
    con->want_from = con->dropped + con->out_len;
    pthread_mutex_unlock(&con->lock);
    return 0;
}

void
vmm_console_want_again(struct vmm_console *con)
{
    pthread_mutex_lock(&con->lock);
    con->wants = con->wants_all;
    con->want_from = con->dropped + con->out_len;
    pthread_mutex_unlock(&con->lock);
}

bool
vmm_console_print(struct vmm_console *con, const void *data, size_t len)
{
    const uint8_t *bytes = data;
    bool came = false;

    pthread_mutex_lock(&con->lock);
    if (len > con->limit) {
        con->dropped += len - con->limit;
        bytes += len - con->limit;
        len = con->limit;
    }
    if (!make_room(con, len)) {
        con->dropped += len;
    } else {
        memcpy(con->out + con->out_len, bytes, len);
        con->out_len += len;
        if (memchr(bytes, '\n', len))
            write_out(con, con->out_len);
        came = con->wants && look_for_wanted(con, len);
    }
    pthread_mutex_unlock(&con->lock);
    return came;
}

int
vmm_console_send(struct vmm_console *con, const void *data, size_t len)
{
    size_t waiting;
    uint8_t *more;

    pthread_mutex_lock(&con->lock);
    waiting = con->in_len - con->in_at;
    more = malloc(waiting + len + 1);
    if (more) {
        if (waiting)
            memcpy(more, con->in + con->in_at, waiting);
        memcpy(more + waiting, data, len);
        free(con->in);
        con->in = more;
        con->in_at = 0;
        con->in_len = waiting + len;
    }
    pthread_mutex_unlock(&con->lock);
    return more ? 0 : -ENOMEM;
}

size_t
vmm_console_copy(struct vmm_console *con, uint64_t *from, void *buf, size_t len)
{
    size_t at;

    pthread_mutex_lock(&con->lock);
    if (*from < con->dropped)
        *from = con->dropped;
    at = (size_t)vmm_min(*from - con->dropped, con->out_len);
    len = (size_t)vmm_min(len, con->out_len - at);
    if (len)
        memcpy(buf, con->out + at, len);
    pthread_mutex_unlock(&con->lock);
    return len;
}

uint64_t
vmm_console_end(struct vmm_console *con)
{
    uint64_t end;

    pthread_mutex_lock(&con->lock);
    end = con->dropped + con->out_len;
    pthread_mutex_unlock(&con->lock);
    return end;
}

int
vmm_console_rewind(struct vmm_console *con, uint64_t end, const void *in,
                   size_t len)
{
    uint8_t *fresh = malloc(len + 1);

    if (!fresh)
        return -ENOMEM;
    memcpy(fresh, in, len);
    pthread_mutex_lock(&con->lock);
    free(con->in);
    con->in = fresh;
    con->in_at = 0;
    con->in_len = len;
    if (end < con->dropped) {
        con->dropped = end; /* none of what was there then is left */
        con->out_len = 0;
    } else if (end - con->dropped < con->out_len) {
        con->out_len = (size_t)(end - con->dropped);
    }
    con->written = (size_t)vmm_min(con->written, con->out_len);
    con->want_from = vmm_min(con->want_from, end);
    pthread_mutex_unlock(&con->lock);
    return 0;
}

size_t
vmm_console_waiting(struct vmm_console *con, void *buf, size_t len)
{
    size_t waiting;

    pthread_mutex_lock(&con->lock);
    waiting = con->in_len - con->in_at;
    len = (size_t)vmm_min(waiting, len);
    if (len) /* buf may be NULL with 0: how much is there? */
        memcpy(buf, con->in + con->in_at, len);
    pthread_mutex_unlock(&con->lock);
    return waiting;
}

void
vmm_console_flush(struct vmm_console *con)
{
    pthread_mutex_lock(&con->lock);
    write_out(con, con->out_len);
    pthread_mutex_unlock(&con->lock);
}

static int
console_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    struct vmm_console *con = dev;

    (void)len;
    *val = 0;
    pthread_mutex_lock(&con->lock);
    switch (offset) {
    case REG_DATA:
        if (con->in_at < con->in_len)
            *val = con->in[con->in_at++];
        break;
    case REG_COUNT:
        *val = vmm_min(con->in_len - con->in_at, 255);
        break;
    }
    pthread_mutex_unlock(&con->lock);
    return __atomic_load_n(&con->watch, __ATOMIC_RELAXED) ? VMM_BUS_OWNER
                                                          : VMM_BUS_DONE;
}

static int
console_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    struct vmm_console *con = dev;
    uint8_t bytes[8];

    if (offset != REG_DATA)
        return VMM_BUS_DONE;
    memcpy(bytes, &val, sizeof bytes);
    if (vmm_console_print(con, bytes, len))
        return VMM_BUS_UNTIL;
    if (__atomic_load_n(&con->watch, __ATOMIC_RELAXED))
        return VMM_BUS_OWNER;
    if (__atomic_load_n(&con->lines, __ATOMIC_RELAXED) &&
        memchr(bytes, '\n', len))
        return VMM_BUS_OWNER;
    return VMM_BUS_DONE;
}

const struct vmm_bus_ops vmm_console_ops = {
    .read = console_read,
    .write = console_write,
};

static int
exit_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    (void)dev;
    (void)offset;
    *val = vmm_ones(len);
    return VMM_BUS_DONE;
}

static int
exit_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    (void)dev;
    (void)len;
    (void)val;
    return offset ? VMM_BUS_DONE : VMM_BUS_STOP;
}

const struct vmm_bus_ops vmm_exit_port_ops = {
    .read = exit_read,
    .write = exit_write,
};

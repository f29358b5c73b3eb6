/* SPDX-License-Identifier: 0BSD */
/*
 * host_call.h - calls of Python functions, and functions for Python to call
 *
 * The other side is devices-py/host_calls.py, which has the format. Values have
 * a type of one letter: i int64_t, t bool, s text, b bytes, n nothing. (d,
 * double, is passed on as its eight bytes: this runtime does no floating
 * point.)
 *
 *     static struct host host;
 *     struct host_value sum;
 *
 *     host_init(&host, functions, 1);
 *     if (host_call(&host, "add", (struct host_value[]){host_int(2),
 *                   host_int(3)}, 2, &sum))
 *         print("%d\n", (int)sum.number);
 *     host_poll(&host);
 */
#ifndef GUEST_HOST_CALL_H
#define GUEST_HOST_CALL_H

#include <virtio.h>

#define VIRTIO_ID_HOST_CALLS 62

#define HOST_CALL_MAX 1024 /* bytes of a call or a result */
#define HOST_ARGS_MAX 8
#define HOST_INVITES  4

struct host_value {
    char type;
    int64_t number;   /* of i, t and d */
    const char *data; /* of s and b; not ended by a NUL */
    uint32_t len;
};

static inline struct host_value
host_int(int64_t number)
{
    return (struct host_value){.type = 'i', .number = number};
}

static inline struct host_value
host_text(const char *text)
{
    uint32_t len = 0;

    while (text[len])
        len++;
    return (struct host_value){.type = 's', .data = text, .len = len};
}

/*
 * A function that the host may call. *result is nothing unless it sets it.
 * False: it refuses, and *result is a text that says why.
 */
struct host_function {
    const char *name;
    bool (*call)(const struct host_value *args, unsigned count,
                 struct host_value *result);
};

struct host_invite {
    uint8_t answer[HOST_CALL_MAX];
    uint8_t room[HOST_CALL_MAX];
};

struct host {
    struct virtio_device dev;
    struct virtqueue calls, invites;
    const struct host_function *functions;
    unsigned count;
    uint8_t call[HOST_CALL_MAX];
    uint8_t result[HOST_CALL_MAX];
    struct host_invite invite[HOST_INVITES];
    uint8_t of_head[VIRTQUEUE_MAX]; /* the invite of each chain */
};

/* Finds the device and offers rooms for the host's calls. False: there is none.
 */
bool host_init(struct host *host, const struct host_function *functions,
               unsigned count);

/*
 * Calls a function of the host's and waits for the result, which lasts until
 * the next call. False: the host refused, and *result is a text that says why.
 */
bool host_call(struct host *host, const char *name,
               const struct host_value *args, unsigned count,
               struct host_value *result);

/* Answers the calls of the host that are there. How many there were. */
unsigned host_poll(struct host *host);

#endif

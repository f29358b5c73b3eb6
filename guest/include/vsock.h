/* SPDX-License-Identifier: 0BSD */
/*
 * vsock.h - stream sockets between guest and host by virtio-vsock (virtio 1.2,
 * 5.10)
 *
 *     static struct vsock vsock;
 *     static struct vsock_socket s;
 *
 *     vsock_open(&vsock, true);
 *     vsock_connect(&vsock, &s, 52);
 *     vsock_send(&s, "hello", 5);
 *     n = vsock_recv(&s, buf, sizeof buf);
 *     vsock_close(&s);
 *
 * Calls wait, by interrupts or by polling, and do meanwhile what other sockets
 * need. A program with many looks at `arrived`, `ended` and `is_open` of each
 * and calls vsock_wait() when none has anything for it.
 */
#ifndef GUEST_VSOCK_H
#define GUEST_VSOCK_H

#include <virtio.h>

#define VIRTIO_ID_VSOCK 19
#define VSOCK_HOST      2 /* its CID */
#define VSOCK_STREAM    1

#define VSOCK_RECEIVE 1 /* flags of vsock_shutdown() */
#define VSOCK_SEND    2

/* Header of each packet. */
struct vsock_header {
    uint64_t src_cid;
    uint64_t dst_cid;
    uint32_t src_port;
    uint32_t dst_port;
    uint32_t len;
    uint16_t type;
    uint16_t op;
    uint32_t flags;
    uint32_t buf_alloc;
    uint32_t fwd_cnt;
} __attribute__((packed));

#define VSOCK_PACKET  65536 /* most bytes of a packet that is sent */
#define VSOCK_ROOM    65536 /* bytes that a socket keeps until they are read */
#define VSOCK_BUFFER  4096  /* bytes of a packet that is received, at most */
#define VSOCK_BUFFERS 64
#define VSOCK_SENDING 64 /* packets on their way out */
#define VSOCK_REPLIES 64 /* that wait for a place among them */
#define VSOCK_WAITING 64 /* connections that wait for vsock_accept() */

/* One connection. Zeros before the first use. */
struct vsock_socket {
    struct vsock *vsock;
    struct vsock_socket *next; /* of the open ones */
    uint32_t port;             /* ours */
    uint32_t peer_port;        /* the host's */
    bool is_open;              /* not refused, reset or closed */
    bool is_connected;         /* the host has accepted */
    uint32_t ended;            /* what the host will not do: VSOCK_SEND... */
    uint32_t arrived;          /* bytes to be read */
    uint32_t begin;            /* of these, in room */
    uint32_t fwd_cnt;          /* bytes read, all in all */
    uint32_t told;             /* fwd_cnt as the host knows it */
    uint32_t sent;             /* bytes sent, all in all */
    uint32_t peer_room;        /* buf_alloc of the host */
    uint32_t peer_read;        /* fwd_cnt of the host */
    bool update;               /* the host wants to know ours */
    uint8_t room[VSOCK_ROOM];
};

struct vsock {
    struct virtio_device dev;
    struct virtqueue rx, tx, events;
    uint64_t cid;
    uint32_t next_port;
    struct vsock_socket *sockets;
    uint32_t listening; /* on this port, with is_listening */
    bool is_listening;
    unsigned waiting; /* to be accepted */
    struct vsock_header request[VSOCK_WAITING];
    unsigned replies;
    struct vsock_header reply[VSOCK_REPLIES];
    unsigned resets; /* TRANSPORT_RESET events */
    volatile unsigned interrupts;
    uint32_t event;
    struct vsock_header sending[VSOCK_SENDING];
    uint8_t slot_of[VIRTQUEUE_MAX]; /* of a head in tx, in sending */
    uint64_t slots;                 /* those that are free, a bit each */
    uint8_t buffer_of[VIRTQUEUE_MAX];
    struct {
        struct vsock_header header;
        uint8_t data[VSOCK_BUFFER];
    } __attribute__((packed)) buffer[VSOCK_BUFFERS];
};

/*
 * Finds and starts the first vsock. With `interrupts` calls sleep until the
 * device interrupts, else they poll. Returns NULL or what is missing.
 */
const char *vsock_open(struct vsock *vsock, bool interrupts);

/* Connects to a port of the host; false: refused. */
bool vsock_connect(struct vsock *vsock, struct vsock_socket *socket,
                   uint32_t port);

/* Lets the host connect to `port`, one at a time. */
void vsock_listen(struct vsock *vsock, uint32_t port);

/* Accepts who waits; false: nobody does. */
bool vsock_accept(struct vsock *vsock, struct vsock_socket *socket);

/*
 * Sends all of `data`, which the device has read when it returns; false: the
 * host does not take it.
 */
bool vsock_send(struct vsock_socket *socket, const void *data, uint32_t len);

/*
 * Takes what has arrived, up to `len` bytes, and waits for at least one: how
 * many. 0: the end.
 */
uint32_t vsock_recv(struct vsock_socket *socket, void *buf, uint32_t len);

/* We will not VSOCK_RECEIVE or VSOCK_SEND any more. */
void vsock_shutdown(struct vsock_socket *socket, uint32_t flags);

/* Waits until the host has all that was sent. Twice is once. */
void vsock_close(struct vsock_socket *socket);

/* Waits until something has happened. */
void vsock_wait(struct vsock *vsock);

#endif

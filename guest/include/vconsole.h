/* SPDX-License-Identifier: 0BSD */
/*
 * vconsole.h - the virtio-console driver (virtio 1.2, 5.3): bytes to and from
 * ports, with interrupts
 *
 *     static struct vconsole con;
 *
 *     problem = vconsole_open(&con, VCONSOLE_PORTS_MAX);
 *     vconsole_write(&con, 0, "hello\n", 6);
 *     while (!(len = vconsole_read(&con, 0, buf, sizeof(buf))))
 *         vconsole_wait(&con);
 */
#ifndef GUEST_VCONSOLE_H
#define GUEST_VCONSOLE_H

#include <virtio.h>

#define VCONSOLE_PORTS_MAX 4
#define VCONSOLE_BUFFERS   4 /* of input of a port */
#define VCONSOLE_BUFFER    256
#define VCONSOLE_NAME_MAX  32

/* Feature bits. */
#define VIRTIO_CONSOLE_F_SIZE        (1ULL << 0)
#define VIRTIO_CONSOLE_F_MULTIPORT   (1ULL << 1)
#define VIRTIO_CONSOLE_F_EMERG_WRITE (1ULL << 2)

/* Configuration, by offset. */
#define VIRTIO_CONSOLE_COLS         0
#define VIRTIO_CONSOLE_ROWS         2
#define VIRTIO_CONSOLE_MAX_NR_PORTS 4
#define VIRTIO_CONSOLE_EMERG_WR     8

/* Events of control messages. */
#define VIRTIO_CONSOLE_DEVICE_READY 0
#define VIRTIO_CONSOLE_PORT_ADD     1
#define VIRTIO_CONSOLE_PORT_REMOVE  2
#define VIRTIO_CONSOLE_PORT_READY   3
#define VIRTIO_CONSOLE_CONSOLE_PORT 4
#define VIRTIO_CONSOLE_RESIZE       5
#define VIRTIO_CONSOLE_PORT_OPEN    6
#define VIRTIO_CONSOLE_PORT_NAME    7

struct virtio_console_control {
    uint32_t id;
    uint16_t event;
    uint16_t value;
};

struct vconsole_queue {
    struct virtqueue vq;
    unsigned char buffer[VCONSOLE_BUFFERS][VCONSOLE_BUFFER];
    uint8_t of_head[VIRTQUEUE_MAX]; /* the buffer of each chain */
    unsigned current;               /* which is being read */
    uint32_t read, len;             /* bytes of it: len 0, none is */
};

struct vconsole_port {
    struct vconsole_queue in;
    struct virtqueue out;
    bool there;
    bool is_console;
    bool host_open; /* somebody is at the other end */
    char name[VCONSOLE_NAME_MAX];
    uint16_t cols, rows;
};

struct vconsole {
    struct virtio_device dev;
    bool multiport;
    struct vconsole_queue control_in;
    struct virtqueue control_out;
    struct vconsole_port port[VCONSOLE_PORTS_MAX];
    unsigned ports;               /* that there may be */
    volatile unsigned interrupts; /* how many came */
    volatile unsigned changes;    /* of the configuration: a new size */
    unsigned handled, seen;       /* those that were looked at */
    void (*told)(struct vconsole *con, unsigned port,
                 unsigned event); /* after each control message, or NULL */
};

/*
 * Finds and starts the first console, with at most so many ports: 1 does
 * without control queues. Returns NULL or what is missing.
 */
const char *vconsole_open(struct vconsole *con, unsigned ports);

/*
 * Does what interrupts asked for: a new size, control messages. Port 0 has a
 * size without the latter.
 */
void vconsole_service(struct vconsole *con);

/* Sleeps until there may be more to do than at the last call, and does that. */
void vconsole_wait(struct vconsole *con);

/* Writes all of it, and waits until it was taken. -1: the device is broken. */
int vconsole_write(struct vconsole *con, unsigned port, const void *data,
                   uint32_t len);

/* Reads what has come, at most `len` bytes; 0: nothing has. */
uint32_t vconsole_read(struct vconsole *con, unsigned port, void *buf,
                       uint32_t len);

/* The port of that name, once the host has told of it; -1: there is none. */
int vconsole_find(const struct vconsole *con, const char *name);

/* Tells the host that a port is used, or no longer. -1: as above. */
int vconsole_set_open(struct vconsole *con, unsigned port, bool open);

/* Writes one character, by a register; before vconsole_open() too. */
void vconsole_emergency(const struct virtio_device *dev, char c);

#endif

/* SPDX-License-Identifier: 0BSD */
/* net.h - frames by a virtio network interface (virtio 1.2, 5.1) */
#ifndef GUEST_NET_H
#define GUEST_NET_H

#include <virtio.h>

#define VIRTIO_ID_NET 1

/* Features. */
#define VIRTIO_NET_F_MTU            (1ULL << 3)
#define VIRTIO_NET_F_MAC            (1ULL << 5)
#define VIRTIO_NET_F_MRG_RXBUF      (1ULL << 15)
#define VIRTIO_NET_F_STATUS         (1ULL << 16)
#define VIRTIO_NET_F_CTRL_VQ        (1ULL << 17)
#define VIRTIO_NET_F_CTRL_RX        (1ULL << 18)
#define VIRTIO_NET_F_GUEST_ANNOUNCE (1ULL << 21)

#define VIRTIO_NET_S_LINK_UP  1
#define VIRTIO_NET_S_ANNOUNCE 2

/* Commands: their class and, for one of it, the number. */
#define VIRTIO_NET_CTRL_RX       0
#define VIRTIO_NET_CTRL_MAC      1
#define VIRTIO_NET_CTRL_ANNOUNCE 3

/* In front of each frame. */
struct virtio_net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* of a received frame */
};

#define NET_FRAME_MAX 65553

struct net {
    struct virtio_device dev;
    struct virtqueue receive;
    struct virtqueue transmit;
    struct virtqueue control;
    unsigned char mac[6];
    unsigned mtu;
    unsigned char *memory; /* buffers for what comes */
    uint32_t room;         /* bytes of each */
    uint8_t of_head[VIRTQUEUE_MAX];
    volatile unsigned interrupts;
    volatile unsigned changes; /* of the configuration */
};

/*
 * Finds and starts the first interface, with those of `features` that it has,
 * and `buffers` of `room` bytes in `memory` for what comes. With `interrupts`
 * it waits for these, else it polls. Returns NULL or what is missing.
 */
const char *net_open(struct net *net, uint64_t features, void *memory,
                     unsigned buffers, uint32_t room, bool interrupts);

/* Sends a frame, and waits until the device has it. False: it is broken. */
bool net_send(struct net *net, const void *frame, uint32_t len);

/*
 * Takes the next frame that has come: its length, 0 when there is none, -1 when
 * it was longer than `size` or makes no sense.
 */
int net_receive(struct net *net, void *frame, uint32_t size);

/* The same, but waits for one. */
int net_wait(struct net *net, void *frame, uint32_t size);

/* The status of the configuration: VIRTIO_NET_S_... */
unsigned net_status(const struct net *net);

/* Gives a command; its answer, 0 when it was obeyed, -1: the device is broken.
 */
int net_command(struct net *net, uint8_t class, uint8_t command,
                const void *data, uint32_t len);

#endif

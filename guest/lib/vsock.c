/* SPDX-License-Identifier: 0BSD */
/* vsock.c - the virtio-vsock driver: packets, credit, connections */
#include <runtime.h>

#include <interrupt.h>
#include <vsock.h>

#define RX     0 /* queues */
#define TX     1
#define EVENTS 2

#define CID        0x100 /* of the configuration */
#define FIRST_PORT 1024

enum {
    REQUEST = 1,
    RESPONSE,
    RST,
    SHUTDOWN,
    RW,
    CREDIT_UPDATE,
    CREDIT_REQUEST,
};

/* -- packets --------------------------------------------------------------- */

static void
offer_buffer(struct vsock *vsock, unsigned i)
{
    struct virtio_buffer buffer = {&vsock->buffer[i], sizeof vsock->buffer[i]};
    int head = virtqueue_add(&vsock->rx, &buffer, 0, 1);

    assert(head >= 0);
    vsock->buffer_of[head] = (uint8_t)i;
}

static void
offer_event(struct vsock *vsock)
{
    struct virtio_buffer buffer = {&vsock->event, sizeof vsock->event};

    virtqueue_add(&vsock->events, &buffer, 0, 1);
}

/* Slots of packets that the device has read are free again. */
static bool
collect_sent(struct vsock *vsock)
{
    uint32_t written;
    bool any = false;
    int head;

    while ((head = virtqueue_take(&vsock->tx, &written)) >= 0) {
        vsock->slots |= 1ULL << vsock->slot_of[head];
        any = true;
    }
    return any;
}

/* Sends a packet if there is a free slot. The device reads `data` later. */
static bool
send_packet(struct vsock *vsock, const struct vsock_header *header,
            const void *data)
{
    struct virtio_buffer buffer[2];
    unsigned i = 0;
    int head;

    collect_sent(vsock);
    if (!vsock->slots || vsock->tx.free_count < 2)
        return false;
    while (!(vsock->slots >> i & 1))
        i++;
    vsock->slots &= ~(1ULL << i);
    vsock->sending[i] = *header;
    buffer[0] = (struct virtio_buffer){&vsock->sending[i], sizeof *header};
    buffer[1] = (struct virtio_buffer){(void *)(uintptr_t)data, header->len};
    head = virtqueue_add(&vsock->tx, buffer, header->len ? 2 : 1, 0);
    assert(head >= 0);
    vsock->slot_of[head] = (uint8_t)i;
    virtqueue_kick(&vsock->tx);
    return true;
}

static void
fill_header(struct vsock_socket *socket, struct vsock_header *header,
            unsigned op)
{
    *header = (struct vsock_header){
        .src_cid = socket->vsock->cid,
        .dst_cid = VSOCK_HOST,
        .src_port = socket->port,
        .dst_port = socket->peer_port,
        .type = VSOCK_STREAM,
        .op = (uint16_t)op,
        .buf_alloc = VSOCK_ROOM,
        .fwd_cnt = socket->fwd_cnt,
    };
    socket->told = socket->fwd_cnt;
}

/* A packet without data, as soon as there is a slot. */
static void
send_control(struct vsock_socket *socket, unsigned op, uint32_t flags)
{
    struct vsock_header header;

    fill_header(socket, &header, op);
    header.flags = flags;
    while (!send_packet(socket->vsock, &header, NULL))
        vsock_wait(socket->vsock);
}

/* Tells the sender of a packet that there is no such connection. */
static void
reply_rst(struct vsock *vsock, const struct vsock_header *to)
{
    if (to->op == RST)
        return;
    vsock->reply[vsock->replies++] = (struct vsock_header){
        .src_cid = to->dst_cid,
        .dst_cid = to->src_cid,
        .src_port = to->dst_port,
        .dst_port = to->src_port,
        .type = to->type,
        .op = RST,
    };
}

/* -- what comes in --------------------------------------------------------- */

static struct vsock_socket *
find(struct vsock *vsock, const struct vsock_header *header)
{
    struct vsock_socket *socket = vsock->sockets;

    while (socket && (socket->port != header->dst_port ||
                      socket->peer_port != header->src_port))
        socket = socket->next;
    return socket;
}

static void
forget(struct vsock_socket *socket)
{
    struct vsock_socket **at = &socket->vsock->sockets;

    while (*at && *at != socket)
        at = &(*at)->next;
    if (*at)
        *at = socket->next;
    socket->is_open = false;
}

static void
keep(struct vsock_socket *socket, const uint8_t *data, uint32_t len)
{
    uint32_t end = (socket->begin + socket->arrived) % VSOCK_ROOM;
    uint32_t first = VSOCK_ROOM - end < len ? VSOCK_ROOM - end : len;

    if (len > VSOCK_ROOM - socket->arrived)
        panic("vsock: %u bytes came, there is room for %u", len,
              VSOCK_ROOM - socket->arrived);
    memcpy(socket->room + end, data, first);
    memcpy(socket->room, data + first, len - first);
    socket->arrived += len;
}

static void
handle_packet(struct vsock *vsock, const struct vsock_header *header,
              const uint8_t *data)
{
    struct vsock_socket *socket = find(vsock, header);

    if (!socket) {
        if (header->op == REQUEST && vsock->is_listening &&
            header->dst_port == vsock->listening &&
            vsock->waiting < VSOCK_WAITING)
            vsock->request[vsock->waiting++] = *header;
        else
            reply_rst(vsock, header);
        return;
    }
    socket->peer_room = header->buf_alloc;
    socket->peer_read = header->fwd_cnt;
    switch (header->op) {
    case RESPONSE:
        socket->is_connected = true;
        break;
    case RW:
        keep(socket, data, header->len);
        break;
    case SHUTDOWN:
        socket->ended |= header->flags;
        if (socket->ended == (VSOCK_RECEIVE | VSOCK_SEND)) {
            reply_rst(vsock, header);
            forget(socket);
        }
        break;
    case CREDIT_UPDATE:
        break;
    case CREDIT_REQUEST:
        socket->update = true;
        break;
    default:
        reply_rst(vsock, header);
        forget(socket);
    }
}

/* Connections are no more: the host has said so (5.10.6.7). */
static void
handle_reset(struct vsock *vsock)
{
    vsock->resets++;
    vsock->waiting = 0;
    while (vsock->sockets)
        forget(vsock->sockets);
    vsock->cid = read32(vsock->dev.base + CID);
}

static void
send_replies(struct vsock *vsock)
{
    unsigned n = 0;

    while (n < vsock->replies && send_packet(vsock, &vsock->reply[n], NULL))
        n++;
    vsock->replies -= n;
    memmove(vsock->reply, vsock->reply + n,
            vsock->replies * sizeof *vsock->reply);
    for (struct vsock_socket *s = vsock->sockets; s; s = s->next) {
        struct vsock_header header;

        if (!s->update && s->fwd_cnt - s->told < VSOCK_ROOM / 2)
            continue;
        fill_header(s, &header, CREDIT_UPDATE);
        s->update = !send_packet(vsock, &header, NULL);
    }
}

/* All that has come. False: nothing has. */
static bool
work(struct vsock *vsock)
{
    bool any = collect_sent(vsock);
    uint32_t written;
    int head;

    /* Each packet may want a reply; see 5.10.6.1. */
    while (vsock->replies < VSOCK_REPLIES &&
           (head = virtqueue_take(&vsock->rx, &written)) >= 0) {
        unsigned i = vsock->buffer_of[head];
        const struct vsock_header *header = &vsock->buffer[i].header;

        if (written < sizeof *header || written - sizeof *header != header->len)
            panic("vsock: a packet of %u bytes", written);
        handle_packet(vsock, header, vsock->buffer[i].data);
        offer_buffer(vsock, i);
        any = true;
    }
    while (virtqueue_take(&vsock->events, &written) >= 0) {
        if (written == sizeof vsock->event && vsock->event == 0)
            handle_reset(vsock);
        offer_event(vsock);
        virtqueue_kick(&vsock->events);
        any = true;
    }
    send_replies(vsock);
    virtqueue_kick(&vsock->rx);
    return any;
}

void
vsock_wait(struct vsock *vsock)
{
    while (!work(vsock)) {
        if (virtio_broken(&vsock->dev))
            panic("vsock: the device is broken");
        if (vsock->rx.interrupts)
            irq_wait();
        for (unsigned i = 0; !vsock->rx.interrupts && i < 100; i++)
            cpu_relax();
    }
}

/* -- sockets --------------------------------------------------------------- */

static void
begin(struct vsock *vsock, struct vsock_socket *socket, uint32_t port,
      uint32_t peer_port)
{
    memset(socket, 0, offsetof(struct vsock_socket, room));
    socket->vsock = vsock;
    socket->port = port;
    socket->peer_port = peer_port;
    socket->is_open = true;
    socket->next = vsock->sockets;
    vsock->sockets = socket;
}

bool
vsock_connect(struct vsock *vsock, struct vsock_socket *socket, uint32_t port)
{
    begin(vsock, socket, vsock->next_port++, port);
    send_control(socket, REQUEST, 0);
    while (socket->is_open && !socket->is_connected)
        vsock_wait(vsock);
    return socket->is_connected;
}

void
vsock_listen(struct vsock *vsock, uint32_t port)
{
    vsock->listening = port;
    vsock->is_listening = true;
}

bool
vsock_accept(struct vsock *vsock, struct vsock_socket *socket)
{
    const struct vsock_header *request = vsock->request;

    if (!vsock->waiting)
        return false;
    begin(vsock, socket, request->dst_port, request->src_port);
    socket->is_connected = true;
    socket->peer_room = request->buf_alloc;
    socket->peer_read = request->fwd_cnt;
    vsock->waiting--;
    memmove(vsock->request, request + 1, vsock->waiting * sizeof *request);
    send_control(socket, RESPONSE, 0);
    return true;
}

bool
vsock_send(struct vsock_socket *socket, const void *data, uint32_t len)
{
    struct vsock *vsock = socket->vsock;
    const uint8_t *at = data;

    while (len && socket->is_open && !(socket->ended & VSOCK_RECEIVE)) {
        uint32_t credit =
            socket->peer_room - (socket->sent - socket->peer_read);
        uint32_t n = len < VSOCK_PACKET ? len : VSOCK_PACKET;
        struct vsock_header header;

        if ((int32_t)credit <= 0) {
            vsock_wait(vsock);
            continue;
        }
        n = n < credit ? n : credit;
        fill_header(socket, &header, RW);
        header.len = n;
        if (!send_packet(vsock, &header, at)) {
            vsock_wait(vsock);
            continue;
        }
        socket->sent += n;
        at += n;
        len -= n;
    }
    while (vsock->slots != ~0ULL)
        vsock_wait(vsock);
    return !len;
}

uint32_t
vsock_recv(struct vsock_socket *socket, void *buf, uint32_t len)
{
    uint32_t n, first;

    while (!socket->arrived && socket->is_open && !(socket->ended & VSOCK_SEND))
        vsock_wait(socket->vsock);
    n = len < socket->arrived ? len : socket->arrived;
    first = VSOCK_ROOM - socket->begin;
    first = n < first ? n : first;
    memcpy(buf, socket->room + socket->begin, first);
    memcpy((uint8_t *)buf + first, socket->room, n - first);
    socket->begin = (socket->begin + n) % VSOCK_ROOM;
    socket->arrived -= n;
    socket->fwd_cnt += n;
    if (socket->is_open)
        send_replies(socket->vsock);
    return n;
}

void
vsock_shutdown(struct vsock_socket *socket, uint32_t flags)
{
    if (socket->is_open)
        send_control(socket, SHUTDOWN, flags);
}

void
vsock_close(struct vsock_socket *socket)
{
    vsock_shutdown(socket, VSOCK_RECEIVE | VSOCK_SEND);
    while (socket->is_open)
        vsock_wait(socket->vsock);
}

static void
handle_interrupt(void *data)
{
    struct vsock *vsock = data;

    virtio_interrupt(&vsock->dev);
    vsock->interrupts++;
}

const char *
vsock_open(struct vsock *vsock, bool interrupts)
{
    struct virtio_device *dev = &vsock->dev;

    if (!virtio_find(VIRTIO_ID_VSOCK, 0, dev))
        return "no virtio-vsock in the device map";
    if (!virtio_start(dev, VIRTIO_F_EVENT_IDX))
        return "the device refused the features";
    if (!virtqueue_init(&vsock->rx, dev, RX, VSOCK_BUFFERS, interrupts) ||
        !virtqueue_init(&vsock->tx, dev, TX, 2 * VSOCK_SENDING, interrupts) ||
        !virtqueue_init(&vsock->events, dev, EVENTS, 1, interrupts))
        return "the device has not all queues";
    if (interrupts && !irq_request(dev->line, handle_interrupt, vsock))
        return "no interrupt of the device can be taken";
    vsock->cid = read32(dev->base + CID);
    vsock->next_port = FIRST_PORT;
    vsock->slots = ~0ULL;
    virtio_ready(dev);
    offer_event(vsock);
    virtqueue_kick(&vsock->events);
    for (unsigned i = 0; i < VSOCK_BUFFERS; i++)
        offer_buffer(vsock, i);
    virtqueue_kick(&vsock->rx);
    return NULL;
}

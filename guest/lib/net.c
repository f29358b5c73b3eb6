/* SPDX-License-Identifier: 0BSD */
/* net.c - the virtio-net driver: frames in and out, and commands */
#include <runtime.h>

#include <interrupt.h>
#include <net.h>

/* The configuration, and where it is. */
#define CONFIG        0x100
#define CONFIG_MAC    (CONFIG + 0)
#define CONFIG_STATUS (CONFIG + 6)
#define CONFIG_MTU    (CONFIG + 10)
#define CAUSE_CHANGED 2

#define MTU_USUAL      1500
#define POLLS_PER_LOOK 4096

enum { RECEIVE, TRANSMIT, CONTROL };

static void
handle_interrupt(void *data)
{
    struct net *net = data;

    if (virtio_interrupt(&net->dev) & CAUSE_CHANGED)
        net->changes++;
    net->interrupts++;
}

/* Gives the device buffer `i` to fill. */
static void
offer(struct net *net, unsigned i)
{
    struct virtio_buffer buffer = {net->memory + i * net->room, net->room};
    int head = virtqueue_add(&net->receive, &buffer, 0, 1);

    assert(head >= 0);
    net->of_head[head] = (uint8_t)i;
}

const char *
net_open(struct net *net, uint64_t features, void *memory, unsigned buffers,
         uint32_t room, bool interrupts)
{
    if (buffers == 0 || buffers > VIRTQUEUE_MAX ||
        room < sizeof(struct virtio_net_header))
        return "frames cannot be received without buffers";
    if (!virtio_find(VIRTIO_ID_NET, 0, &net->dev))
        return "no virtio-net in the device map";
    if (!virtio_start(&net->dev, features | VIRTIO_F_EVENT_IDX |
                                     VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS))
        return "the device refused the features";
    if (!virtqueue_init(&net->receive, &net->dev, RECEIVE, VIRTQUEUE_MAX,
                        interrupts) ||
        !virtqueue_init(&net->transmit, &net->dev, TRANSMIT, VIRTQUEUE_MAX,
                        interrupts))
        return "the device has no queues";
    if (net->dev.features & VIRTIO_NET_F_CTRL_VQ &&
        !virtqueue_init(&net->control, &net->dev, CONTROL, 8, interrupts))
        return "the device has no queue for commands";
    if (interrupts && !irq_request(net->dev.line, handle_interrupt, net))
        return "no interrupt of the device can be taken";
    for (unsigned i = 0; i < sizeof net->mac; i++)
        net->mac[i] = read8(net->dev.base + CONFIG_MAC + i);
    net->mtu = MTU_USUAL;
    if (net->dev.features & VIRTIO_NET_F_MTU)
        net->mtu = read16(net->dev.base + CONFIG_MTU);
    net->memory = memory;
    net->room = room;
    virtio_ready(&net->dev);
    for (unsigned i = 0; i < buffers; i++)
        offer(net, i);
    virtqueue_kick(&net->receive);
    return NULL;
}

bool
net_send(struct net *net, const void *frame, uint32_t len)
{
    static const struct virtio_net_header header;
    struct virtio_buffer parts[] = {
        {(void *)(uintptr_t)&header, sizeof header},
        {(void *)(uintptr_t)frame, len},
    };
    uint32_t written;

    if (virtqueue_add(&net->transmit, parts, 2, 0) < 0)
        return false;
    virtqueue_kick(&net->transmit);
    return virtqueue_wait(&net->transmit, &written) >= 0;
}

/* Whether a frame has come. The device may be about to decide whether we want
 * an interrupt: what we want must be out before we look for the last time. */
static bool
pending(struct net *net)
{
    if (virtqueue_pending(&net->receive))
        return true;
    full_barrier();
    return virtqueue_pending(&net->receive);
}

/* Appends what buffer `i` has from `skip` on; false when it does not fit. */
static bool
append(struct net *net, unsigned i, uint32_t skip, uint32_t written,
       unsigned char *frame, uint32_t size, uint32_t *len)
{
    if (written < skip || written > net->room || written - skip > size - *len)
        return false;
    memcpy(frame + *len, net->memory + i * net->room + skip, written - skip);
    *len += written - skip;
    return true;
}

int
net_receive(struct net *net, void *frame, uint32_t size)
{
    const struct virtio_net_header *header;
    uint32_t len = 0, written;
    unsigned count = 1;
    bool good = true;

    if (!pending(net))
        return 0;
    for (unsigned n = 0; n < count; n++) {
        int head = virtqueue_take(&net->receive, &written);
        unsigned i;

        if (head < 0) /* all buffers of a frame are to come at once */
            return -1;
        i = net->of_head[head];
        header = (const void *)(net->memory + i * net->room);
        if (n == 0 && net->dev.features & VIRTIO_NET_F_MRG_RXBUF)
            count = header->num_buffers;
        good = good && append(net, i, n ? 0 : sizeof *header, written, frame,
                              size, &len);
        offer(net, i);
    }
    virtqueue_kick(&net->receive);
    return good ? (int)len : -1;
}

int
net_wait(struct net *net, void *frame, uint32_t size)
{
    bool polls = !net->receive.interrupts;
    int len;

    for (unsigned n = 1; !(len = net_receive(net, frame, size)); n++) {
        if ((!polls || n % POLLS_PER_LOOK == 0) && virtio_broken(&net->dev))
            return -1;
        if (polls)
            cpu_relax();
        else
            irq_wait();
    }
    return len;
}

unsigned
net_status(const struct net *net)
{
    return read16(net->dev.base + CONFIG_STATUS);
}

int
net_command(struct net *net, uint8_t class, uint8_t command, const void *data,
            uint32_t len)
{
    unsigned char which[2] = {class, command};
    volatile unsigned char answer = 0xff;
    struct virtio_buffer parts[] = {
        {which, sizeof which},
        {(void *)(uintptr_t)data, len},
        {(void *)(uintptr_t)&answer, 1},
    };
    uint32_t written;

    if (virtqueue_add(&net->control, parts, 2, 1) < 0)
        return -1;
    virtqueue_kick(&net->control);
    if (virtqueue_wait(&net->control, &written) < 0)
        return -1;
    return answer;
}

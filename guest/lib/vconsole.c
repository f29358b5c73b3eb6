/* SPDX-License-Identifier: 0BSD */
/* vconsole.c - the virtio-console driver */
#include <runtime.h>

#include <interrupt.h>
#include <vconsole.h>

/* Queues: receive and transmit of port 0, of control, of port 1, ... */
#define QUEUE_CONTROL 2
#define QUEUE_PORT(n) ((n) ? 2 * (n) + 2 : 0)

static void
handle_interrupt(void *data)
{
    struct vconsole *con = data;

    con->interrupts++;
    if (virtio_interrupt(&con->dev) & VIRTIO_INTERRUPT_CONFIG)
        con->changes++;
}

/* -- queues that the device fills ------------------------------------------ */

static void
offer(struct vconsole_queue *queue, unsigned i)
{
    struct virtio_buffer room = {queue->buffer[i], VCONSOLE_BUFFER};
    int head = virtqueue_add(&queue->vq, &room, 0, 1);

    assert(head >= 0);
    queue->of_head[head] = (uint8_t)i;
}

static bool
queue_init(struct vconsole_queue *queue, struct vconsole *con, unsigned index)
{
    if (!virtqueue_init(&queue->vq, &con->dev, index, VCONSOLE_BUFFERS, true))
        return false;
    queue->len = 0;
    for (unsigned i = 0; i < VCONSOLE_BUFFERS; i++)
        offer(queue, i);
    return true;
}

/* The next buffer that was filled, until queue_drop(); NULL: none. */
static const unsigned char *
queue_next(struct vconsole_queue *queue)
{
    while (queue->len == 0) {
        int head = virtqueue_take(&queue->vq, &queue->len);

        if (head < 0)
            return NULL;
        queue->current = queue->of_head[head];
        queue->read = 0;
        if (queue->len > VCONSOLE_BUFFER)
            panic("vconsole: %u bytes in a buffer of %u", queue->len,
                  VCONSOLE_BUFFER);
        if (queue->len == 0)
            offer(queue, queue->current);
    }
    return queue->buffer[queue->current];
}

/* It has been read: the device may fill it again. */
static void
queue_drop(struct vconsole_queue *queue)
{
    queue->len = 0;
    offer(queue, queue->current);
    virtqueue_kick(&queue->vq);
}

/* -- control messages ------------------------------------------------------ */

static int
write_all(struct virtqueue *vq, const void *data, uint32_t len)
{
    struct virtio_buffer buffer = {(void *)(uintptr_t)data, len};
    uint32_t written;

    if (virtqueue_add(vq, &buffer, 1, 0) < 0)
        return -1;
    virtqueue_kick(vq);
    return virtqueue_wait(vq, &written) < 0 ? -1 : 0;
}

static int
say(struct vconsole *con, uint32_t id, uint16_t event, uint16_t value)
{
    struct virtio_console_control message = {id, event, value};

    return write_all(&con->control_out, &message, sizeof(message));
}

static void
set_name(struct vconsole_port *port, const unsigned char *name, uint32_t len)
{
    if (len >= VCONSOLE_NAME_MAX)
        len = VCONSOLE_NAME_MAX - 1;
    memcpy(port->name, name, len);
    port->name[len] = '\0';
}

static void
hear(struct vconsole *con, const unsigned char *data, uint32_t len)
{
    struct virtio_console_control message;
    struct vconsole_port *port;
    uint16_t size[2];

    assert(len >= sizeof(message));
    memcpy(&message, data, sizeof(message));
    data += sizeof(message);
    len -= (uint32_t)sizeof(message);
    assert(message.id < con->ports);
    port = &con->port[message.id];

    switch (message.event) {
    case VIRTIO_CONSOLE_PORT_ADD:
        assert(!port->there);
        port->there = true;
        say(con, message.id, VIRTIO_CONSOLE_PORT_READY, 1);
        break;
    case VIRTIO_CONSOLE_PORT_REMOVE:
        assert(port->there);
        port->there = port->is_console = port->host_open = false;
        port->name[0] = '\0';
        break;
    case VIRTIO_CONSOLE_CONSOLE_PORT:
        port->is_console = true;
        vconsole_set_open(con, message.id, true);
        break;
    case VIRTIO_CONSOLE_RESIZE:
        assert(len >= sizeof(size));
        memcpy(size, data, sizeof(size));
        port->cols = size[0];
        port->rows = size[1];
        break;
    case VIRTIO_CONSOLE_PORT_OPEN:
        port->host_open = message.value;
        break;
    case VIRTIO_CONSOLE_PORT_NAME:
        set_name(port, data, len);
        break;
    }
    if (con->told)
        con->told(con, message.id, message.event);
}

static void
read_size(struct vconsole *con)
{
    uint16_t size[2];

    virtio_config_read(&con->dev, VIRTIO_CONSOLE_COLS, size, sizeof(size));
    con->port[0].cols = size[0];
    con->port[0].rows = size[1];
}

void
vconsole_service(struct vconsole *con)
{
    const unsigned char *data;
    unsigned changes = con->changes;

    con->handled = con->interrupts;
    if (changes != con->seen) {
        con->seen = changes;
        read_size(con);
        if (con->told)
            con->told(con, 0, VIRTIO_CONSOLE_RESIZE);
    }
    while (con->multiport && (data = queue_next(&con->control_in))) {
        /* Copied, so that the device may go on before we answer. */
        unsigned char copy[VCONSOLE_BUFFER];
        uint32_t len = con->control_in.len;

        memcpy(copy, data, len);
        queue_drop(&con->control_in);
        hear(con, copy, len);
    }
}

void
vconsole_wait(struct vconsole *con)
{
    /* One that came while something else was waited for counts, too. */
    while (con->handled == con->interrupts)
        irq_wait();
    vconsole_service(con);
}

/* -- ports ----------------------------------------------------------------- */

static bool
port_init(struct vconsole *con, unsigned n)
{
    struct vconsole_port *port = &con->port[n];

    port->there = n == 0 && !con->multiport;
    return queue_init(&port->in, con, QUEUE_PORT(n)) &&
           virtqueue_init(&port->out, &con->dev, QUEUE_PORT(n) + 1, 16, true);
}

const char *
vconsole_open(struct vconsole *con, unsigned ports)
{
    uint64_t wanted = VIRTIO_CONSOLE_F_SIZE | VIRTIO_F_EVENT_IDX;
    uint32_t most;

    if (ports > 1)
        wanted |= VIRTIO_CONSOLE_F_MULTIPORT;
    if (!virtio_find(VIRTIO_ID_CONSOLE, 0, &con->dev))
        return "no virtio-console in the device map";
    if (!virtio_start(&con->dev, wanted))
        return "the device refused the features";
    con->multiport = con->dev.features & VIRTIO_CONSOLE_F_MULTIPORT;
    con->ports = 1;
    if (con->multiport) {
        virtio_config_read(&con->dev, VIRTIO_CONSOLE_MAX_NR_PORTS, &most,
                           sizeof(most));
        con->ports = most < ports ? most : ports;
    }
    for (unsigned n = 0; n < con->ports; n++)
        if (!port_init(con, n))
            return "the device has too few queues";
    if (con->multiport && (!queue_init(&con->control_in, con, QUEUE_CONTROL) ||
                           !virtqueue_init(&con->control_out, &con->dev,
                                           QUEUE_CONTROL + 1, 16, true)))
        return "the device has no control queues";
    if (!irq_request(con->dev.line, handle_interrupt, con))
        return "no interrupt of the device can be taken";
    read_size(con);
    virtio_ready(&con->dev);
    for (unsigned n = 0; n < con->ports; n++)
        virtqueue_kick(&con->port[n].in.vq);
    if (con->multiport) {
        virtqueue_kick(&con->control_in.vq);
        say(con, ~0U, VIRTIO_CONSOLE_DEVICE_READY, 1);
    }
    return NULL;
}

int
vconsole_write(struct vconsole *con, unsigned port, const void *data,
               uint32_t len)
{
    return write_all(&con->port[port].out, data, len);
}

uint32_t
vconsole_read(struct vconsole *con, unsigned port, void *buf, uint32_t len)
{
    struct vconsole_queue *in = &con->port[port].in;
    const unsigned char *data = queue_next(in);

    if (!data)
        return 0;
    if (len > in->len - in->read)
        len = in->len - in->read;
    memcpy(buf, data + in->read, len);
    in->read += len;
    if (in->read == in->len)
        queue_drop(in);
    return len;
}

int
vconsole_find(const struct vconsole *con, const char *name)
{
    for (unsigned n = 0; n < con->ports; n++)
        if (con->port[n].there && !strcmp(con->port[n].name, name))
            return (int)n;
    return -1;
}

int
vconsole_set_open(struct vconsole *con, unsigned port, bool open)
{
    return say(con, port, VIRTIO_CONSOLE_PORT_OPEN, open);
}

void
vconsole_emergency(const struct virtio_device *dev, char c)
{
    write32(dev->base + VIRTIO_MMIO_CONFIG + VIRTIO_CONSOLE_EMERG_WR,
            (unsigned char)c);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* virtio_mmio.c - the virtio transport for a range of addresses */
#include "virtio_mmio.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define MAGIC   0x74726976U /* "virt" */
#define VERSION 2U

/* The feature bits that belong to transports and queues (2.2), but for those
 * that promise something of the device alone. */
#define RESERVED_FEATURES                                                      \
    (((1ULL << 50) - (1ULL << 24)) &                                           \
     ~(1ULL << VIRTIO_F_IN_ORDER | 1ULL << VIRTIO_F_ACCESS_PLATFORM |          \
       1ULL << VIRTIO_F_ORDER_PLATFORM))

/* What the driver may set (2.1); NEEDS_RESET is the device's. */
#define DRIVER_STATUS                                                          \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |                    \
     VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK |                 \
     VIRTIO_CONFIG_S_FAILED)

int
vmm_virtio_mmio_init(struct vmm_virtio_mmio *dev, struct vmm_mem *mem,
                     const struct vmm_virtio_mmio_dev_ops *ops,
                     uint32_t device_id, uint64_t features,
                     struct vmm_virtq *queue, unsigned queues)
{
    if (!device_id || queues > VMM_VIRTIO_MMIO_MAX_QUEUES ||
        (features & RESERVED_FEATURES))
        return -EINVAL;
    memset(dev, 0, sizeof *dev);
    dev->mem = mem;
    dev->ops = ops;
    dev->features = features | VMM_VIRTIO_MMIO_FEATURES;
    dev->irq_fd = -1;
    dev->doorbell_fd = -1;
    dev->device_id = device_id;
    dev->queue = queue;
    dev->queues = queues;
    return -pthread_mutex_init(&dev->lock, NULL);
}

void
vmm_virtio_mmio_fini(struct vmm_virtio_mmio *dev)
{
    if (!dev->ops)
        return;
    for (unsigned i = 0; i < dev->queues; i++)
        vmm_virtq_stop(&dev->queue[i]); /* they may own heads to pop again */
    pthread_mutex_destroy(&dev->lock);
    dev->ops = NULL;
}

/* An eventfd is full after 2^64 - 2 events that nobody read; then one more
 * makes no difference. */
static void
signal_fd(int fd)
{
    uint64_t one = 1;

    if (fd >= 0 && write(fd, &one, sizeof one) < 0)
        return;
}

void
vmm_virtio_mmio_raise(struct vmm_virtio_mmio *dev, uint32_t bits)
{
    __atomic_fetch_or(&dev->interrupt_status, bits, __ATOMIC_SEQ_CST);
    dev->interrupts++;
    signal_fd(dev->irq_fd);
}

void
vmm_virtio_mmio_fail(struct vmm_virtio_mmio *dev, const char *why)
{
    if (dev->status & VIRTIO_CONFIG_S_NEEDS_RESET)
        return;
    dev->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    dev->fault = why;
    dev->faults++;
    if (dev->status & VIRTIO_CONFIG_S_DRIVER_OK)
        vmm_virtio_mmio_raise(dev, VIRTIO_MMIO_INT_CONFIG);
}

int
vmm_virtio_mmio_pop(struct vmm_virtio_mmio *dev, unsigned queue,
                    struct vmm_chain *chain)
{
    struct vmm_virtq *vq = &dev->queue[queue];
    int ret;

    assert(queue < dev->queues);
    if (!vmm_virtio_mmio_live(dev))
        return 0;
    ret = vmm_virtq_pop(vq, chain);
    if (ret == -EPROTO)
        vmm_virtio_mmio_fail(dev, vq->fault);
    return ret;
}

int
vmm_virtio_mmio_put(struct vmm_virtio_mmio *dev, unsigned queue,
                    struct vmm_chain *chain, uint32_t written)
{
    assert(queue < dev->queues);
    if (!vmm_virtio_mmio_live(dev)) {
        vmm_chain_drop(chain);
        return -ESTALE;
    }
    return vmm_virtq_put(&dev->queue[queue], chain, written);
}

void
vmm_virtio_mmio_publish(struct vmm_virtio_mmio *dev, unsigned queue)
{
    assert(queue < dev->queues);
    vmm_virtq_publish(&dev->queue[queue]);
}

int
vmm_virtio_mmio_push(struct vmm_virtio_mmio *dev, unsigned queue,
                     struct vmm_chain *chain, uint32_t written)
{
    int err = vmm_virtio_mmio_put(dev, queue, chain, written);

    if (!err)
        vmm_virtio_mmio_publish(dev, queue);
    return err;
}

void
vmm_virtio_mmio_used(struct vmm_virtio_mmio *dev, unsigned queue)
{
    assert(queue < dev->queues);
    if (vmm_virtq_must_interrupt(&dev->queue[queue]))
        vmm_virtio_mmio_raise(dev, VIRTIO_MMIO_INT_VRING);
}

static int
reset(struct vmm_virtio_mmio *dev)
{
    dev->status = 0;
    __atomic_store_n(&dev->interrupt_status, 0, __ATOMIC_SEQ_CST);
    dev->driver_features = 0;
    dev->alien_features = false;
    dev->features_sel = 0;
    dev->driver_features_sel = 0;
    dev->queue_sel = 0;
    dev->early = 0;
    dev->due_ns = 0;
    dev->fault = NULL;
    for (unsigned i = 0; i < dev->queues; i++)
        vmm_virtq_reset(&dev->queue[i]);
    return dev->ops->reset ? dev->ops->reset(dev) : VMM_BUS_DONE;
}

/* A notification, or the suspicion of one, handled here and now. */
static int
notify(struct vmm_virtio_mmio *dev, unsigned queue)
{
    if (!vmm_virtio_mmio_live(dev) || !dev->queue[queue].ready)
        return VMM_BUS_DONE;
    return dev->ops->notify(dev, queue);
}

static int
write_notify(struct vmm_virtio_mmio *dev, uint32_t queue)
{
    dev->notifications++;
    if (queue >= dev->queues)
        return VMM_BUS_DONE;
    if (!(dev->status & VIRTIO_CONFIG_S_DRIVER_OK))
        dev->early |= 1ULL << queue;
    return notify(dev, queue);
}

/* The device goes live: what was notified too early is due now. */
static int
go_live(struct vmm_virtio_mmio *dev)
{
    uint64_t early = dev->early;
    int answer = VMM_BUS_DONE;

    dev->early = 0;
    if (dev->doorbell_fd >= 0)
        signal_fd(dev->doorbell_fd);
    for (unsigned i = 0; i < dev->queues; i++)
        if (early & 1ULL << i)
            answer |= notify(dev, i);
    return answer;
}

/* 3.1.1, step 6: whether FEATURES_OK may stick. */
static bool
features_ok(const struct vmm_virtio_mmio *dev)
{
    return !dev->alien_features &&
           (dev->driver_features & 1ULL << VIRTIO_F_VERSION_1) &&
           !(dev->driver_features & ~dev->features);
}

static int
write_status(struct vmm_virtio_mmio *dev, uint32_t val)
{
    uint32_t old = dev->status;
    uint32_t status = old | (val & DRIVER_STATUS);
    int answer = VMM_BUS_DONE;

    if (!val)
        return reset(dev);
    if (!(old & VIRTIO_CONFIG_S_FEATURES_OK) && !features_ok(dev))
        status &= ~(uint32_t)VIRTIO_CONFIG_S_FEATURES_OK;
    if (!(status & VIRTIO_CONFIG_S_FEATURES_OK))
        status &= ~(uint32_t)VIRTIO_CONFIG_S_DRIVER_OK;
    if (status == old)
        return VMM_BUS_DONE;

    dev->status = status;
    if (status & ~old & VIRTIO_CONFIG_S_FEATURES_OK) {
        uint64_t has = dev->driver_features;

        for (unsigned i = 0; i < dev->queues; i++) {
            dev->queue[i].indirect = has >> VIRTIO_RING_F_INDIRECT_DESC & 1;
            dev->queue[i].event_idx = has >> VIRTIO_RING_F_EVENT_IDX & 1;
        }
    }
    if (dev->ops->status)
        answer |= dev->ops->status(dev, old);
    if (status & ~old & VIRTIO_CONFIG_S_DRIVER_OK)
        answer |= go_live(dev);
    return answer;
}

static void
write_driver_features(struct vmm_virtio_mmio *dev, uint32_t val)
{
    unsigned shift = dev->driver_features_sel ? 32 : 0;

    if (dev->status & VIRTIO_CONFIG_S_FEATURES_OK)
        return;
    if (dev->driver_features_sel > 1) {
        dev->alien_features |= val != 0;
        return;
    }
    dev->driver_features &= ~(0xffffffffULL << shift);
    dev->driver_features |= (uint64_t)val << shift;
}

/* The selected queue, or NULL when there is none. */
static struct vmm_virtq *
selected(const struct vmm_virtio_mmio *dev)
{
    return dev->queue_sel < dev->queues ? &dev->queue[dev->queue_sel] : NULL;
}

static void
write_ready(struct vmm_virtio_mmio *dev, uint32_t val)
{
    struct vmm_virtq *vq = selected(dev);

    if (!vq)
        return;
    if (!val) {
        vmm_virtq_stop(vq);
        return;
    }
    if (vq->ready || !(dev->status & VIRTIO_CONFIG_S_DRIVER) ||
        (dev->status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED)))
        return;
    if (vmm_virtq_start(vq))
        vmm_virtio_mmio_fail(dev, vq->fault);
}

static void
set_low(uint64_t *reg, uint32_t val)
{
    *reg = (*reg & 0xffffffff00000000ULL) | val;
}

static void
set_high(uint64_t *reg, uint32_t val)
{
    *reg = (*reg & 0xffffffffULL) | (uint64_t)val << 32;
}

/* The registers of one queue, which keep still while it is ready. */
static void
write_queue(struct vmm_virtio_mmio *dev, unsigned offset, uint32_t val)
{
    struct vmm_virtq *vq = selected(dev);

    if (!vq || vq->ready)
        return;
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NUM:
        vq->size = val;
        break;
    case VIRTIO_MMIO_QUEUE_DESC_LOW:
        set_low(&vq->desc_gpa, val);
        break;
    case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        set_high(&vq->desc_gpa, val);
        break;
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
        set_low(&vq->avail_gpa, val);
        break;
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        set_high(&vq->avail_gpa, val);
        break;
    case VIRTIO_MMIO_QUEUE_USED_LOW:
        set_low(&vq->used_gpa, val);
        break;
    case VIRTIO_MMIO_QUEUE_USED_HIGH:
        set_high(&vq->used_gpa, val);
        break;
    }
}

static uint32_t
read_features(const struct vmm_virtio_mmio *dev)
{
    if (dev->features_sel > 1)
        return 0;
    return (uint32_t)(dev->features >> (dev->features_sel ? 32 : 0));
}

static uint32_t
read_register(const struct vmm_virtio_mmio *dev, unsigned offset)
{
    const struct vmm_virtq *vq = selected(dev);

    switch (offset) {
    case VIRTIO_MMIO_MAGIC_VALUE:
        return MAGIC;
    case VIRTIO_MMIO_VERSION:
        return VERSION;
    case VIRTIO_MMIO_DEVICE_ID:
        return dev->device_id;
    case VIRTIO_MMIO_VENDOR_ID:
        return VMM_VIRTIO_MMIO_VENDOR;
    case VIRTIO_MMIO_DEVICE_FEATURES:
        return read_features(dev);
    case VIRTIO_MMIO_QUEUE_NUM_MAX:
        return vq ? vq->max_size : 0;
    case VIRTIO_MMIO_QUEUE_READY:
        return vq ? vq->ready : 0;
    case VIRTIO_MMIO_STATUS:
        return dev->status;
    case VIRTIO_MMIO_SHM_LEN_LOW: /* all ones: no such region (4.2.2) */
    case VIRTIO_MMIO_SHM_LEN_HIGH:
    case VIRTIO_MMIO_SHM_BASE_LOW:
    case VIRTIO_MMIO_SHM_BASE_HIGH:
        return UINT32_MAX;
    case VIRTIO_MMIO_CONFIG_GENERATION:
        return dev->config_generation;
    default:
        return 0;
    }
}

static int
write_register(struct vmm_virtio_mmio *dev, unsigned offset, uint32_t val)
{
    switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
        dev->features_sel = val;
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES:
        write_driver_features(dev, val);
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
        dev->driver_features_sel = val;
        break;
    case VIRTIO_MMIO_QUEUE_SEL:
        dev->queue_sel = val;
        break;
    case VIRTIO_MMIO_QUEUE_NUM:
    case VIRTIO_MMIO_QUEUE_DESC_LOW:
    case VIRTIO_MMIO_QUEUE_DESC_HIGH:
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
    case VIRTIO_MMIO_QUEUE_USED_LOW:
    case VIRTIO_MMIO_QUEUE_USED_HIGH:
        write_queue(dev, offset, val);
        break;
    case VIRTIO_MMIO_QUEUE_READY:
        write_ready(dev, val);
        break;
    case VIRTIO_MMIO_QUEUE_NOTIFY:
        return write_notify(dev, val);
    case VIRTIO_MMIO_STATUS:
        return write_status(dev, val);
    }
    return VMM_BUS_DONE;
}

static int
read_config(struct vmm_virtio_mmio *dev, uint64_t offset, unsigned len,
            uint64_t *val)
{
    *val = 0;
    if (offset > VMM_VIRTIO_MMIO_CONFIG_MAX - len)
        return VMM_BUS_DONE;
    if (dev->ops->config_read)
        return dev->ops->config_read(dev, (unsigned)offset, len, val);
    for (unsigned i = 0; i < len && offset + i < dev->config_len; i++)
        *val |= (uint64_t)dev->config[offset + i] << 8 * i;
    return VMM_BUS_DONE;
}

static int
write_config(struct vmm_virtio_mmio *dev, uint64_t offset, unsigned len,
             uint64_t val)
{
    if (!dev->ops->config_write || offset > VMM_VIRTIO_MMIO_CONFIG_MAX - len)
        return VMM_BUS_DONE;
    return dev->ops->config_write(dev, (unsigned)offset, len, val);
}

/*
 * The registers of the hot path, without the lock: a worker may hold that for
 * as long as a batch takes. True: answered.
 */
static bool
read_unlocked(struct vmm_virtio_mmio *dev, uint64_t offset, uint64_t *val)
{
    if (offset != VIRTIO_MMIO_INTERRUPT_STATUS)
        return false;
    *val = __atomic_load_n(&dev->interrupt_status, __ATOMIC_SEQ_CST);
    return true;
}

static bool
write_unlocked(struct vmm_virtio_mmio *dev, uint64_t offset, uint32_t val)
{
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NOTIFY:
        if (dev->doorbell_fd < 0)
            return false;
        signal_fd(dev->doorbell_fd);
        return true;
    case VIRTIO_MMIO_INTERRUPT_ACK:
        __atomic_fetch_and(&dev->interrupt_status, ~val, __ATOMIC_SEQ_CST);
        return true;
    default:
        return false;
    }
}

static int
mmio_read(void *arg, uint64_t offset, unsigned len, uint64_t *val)
{
    struct vmm_virtio_mmio *dev = arg;
    bool whole = len == 4 && offset % 4 == 0;
    int answer = VMM_BUS_DONE;

    if (whole && read_unlocked(dev, offset, val))
        return VMM_BUS_DONE;
    pthread_mutex_lock(&dev->lock);
    if (offset >= VIRTIO_MMIO_CONFIG) {
        answer = read_config(dev, offset - VIRTIO_MMIO_CONFIG, len, val);
    } else if (whole) {
        *val = read_register(dev, (unsigned)offset);
    } else {
        dev->odd++;
        *val = 0;
    }
    pthread_mutex_unlock(&dev->lock);
    return answer;
}

static int
mmio_write(void *arg, uint64_t offset, unsigned len, uint64_t val)
{
    struct vmm_virtio_mmio *dev = arg;
    bool whole = len == 4 && offset % 4 == 0;
    int answer = VMM_BUS_DONE;

    if (whole && write_unlocked(dev, offset, (uint32_t)val))
        return VMM_BUS_DONE;
    pthread_mutex_lock(&dev->lock);
    if (offset >= VIRTIO_MMIO_CONFIG)
        answer = write_config(dev, offset - VIRTIO_MMIO_CONFIG, len, val);
    else if (whole)
        answer = write_register(dev, (unsigned)offset, (uint32_t)val);
    else
        dev->odd++;
    pthread_mutex_unlock(&dev->lock);
    return answer;
}

const struct vmm_bus_ops vmm_virtio_mmio_ops = {
    .read = mmio_read,
    .write = mmio_write,
};

/* With the lock held. */
static int
process(struct vmm_virtio_mmio *dev)
{
    int answer = VMM_BUS_DONE;

    dev->due_ns = 0;
    for (unsigned i = 0; i < dev->queues; i++)
        answer |= notify(dev, i);
    return answer;
}

int
vmm_virtio_mmio_process(struct vmm_virtio_mmio *dev)
{
    int answer;

    pthread_mutex_lock(&dev->lock);
    answer = process(dev);
    pthread_mutex_unlock(&dev->lock);
    return answer;
}

/* The time from now until `due_ns`, none when that is past. */
static struct timespec
until(uint64_t due_ns)
{
    uint64_t now = vmm_now_ns();
    uint64_t wait = due_ns > now ? due_ns - now : 0;

    return (struct timespec){.tv_sec = (time_t)(wait / 1000000000),
                             .tv_nsec = (long)(wait % 1000000000)};
}

/*
 * The doorbell is read before the queues are looked at, so a notification that
 * comes while they are stays in it. The first round does not wait: the owner
 * may have acted since the last call. Nor does one that is the last leave
 * anything undone, so that whoever stops it often starves no queue.
 */
int
vmm_virtio_mmio_serve(struct vmm_virtio_mmio *dev, int stop_fd,
                      uint64_t until_ns, bool *over)
{
    struct pollfd fds[2] = {{.fd = dev->doorbell_fd, .events = POLLIN},
                            {.fd = stop_fd, .events = POLLIN}};
    uint64_t due = 1, rung;
    int answer;

    *over = false;
    if (dev->doorbell_fd < 0)
        return -EBADF;
    for (;;) {
        /* The earlier one; 0, which is never, comes last. */
        uint64_t wake = until_ns - 1 < due - 1 ? until_ns : due;
        struct timespec wait = until(wake);
        int n = ppoll(fds, 2, wake ? &wait : NULL, NULL);

        if (n < 0)
            return -errno;
        if (n > 0 && ((fds[0].revents | fds[1].revents) & POLLNVAL))
            return -EBADF;
        if (n > 0 && fds[0].revents &&
            read(dev->doorbell_fd, &rung, sizeof rung) < 0 && errno != EAGAIN &&
            errno != EINTR)
            return -errno;

        pthread_mutex_lock(&dev->lock);
        if (n > 0 && fds[0].revents)
            dev->notifications++;
        answer = process(dev);
        due = dev->due_ns;
        pthread_mutex_unlock(&dev->lock);
        *over =
            (n > 0 && fds[1].revents) || (until_ns && vmm_now_ns() >= until_ns);
        if (answer == VMM_BUS_OWNER && !due)
            return VMM_BUS_OWNER;
        if (*over)
            return 0;
    }
}

int
vmm_virtio_mmio_config_set(struct vmm_virtio_mmio *dev, uint32_t offset,
                           const void *buf, uint32_t len)
{
    if (!len || offset > dev->config_len || len > dev->config_len - offset)
        return -EINVAL;
    pthread_mutex_lock(&dev->lock);
    memcpy(dev->config + offset, buf, len);
    dev->config_generation++;
    if (vmm_virtio_mmio_live(dev))
        vmm_virtio_mmio_raise(dev, VIRTIO_MMIO_INT_CONFIG);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

void
vmm_virtio_mmio_save(const struct vmm_virtio_mmio *dev,
                     struct vmm_virtio_mmio_state *out)
{
    memset(out, 0, sizeof *out); /* padding, too: it may go into a file */
    out->device_id = dev->device_id;
    out->queues = dev->queues;
    out->features = dev->features;
    out->driver_features = dev->driver_features;
    out->early = dev->early;
    out->status = dev->status;
    out->interrupt_status =
        __atomic_load_n(&dev->interrupt_status, __ATOMIC_RELAXED);
    out->config_generation = dev->config_generation;
    out->features_sel = dev->features_sel;
    out->driver_features_sel = dev->driver_features_sel;
    out->queue_sel = dev->queue_sel;
    out->alien_features = dev->alien_features;
    out->config_len = dev->config_len;
    if (dev->config_len)
        memcpy(out->config, dev->config, dev->config_len);
}

int
vmm_virtio_mmio_load(struct vmm_virtio_mmio *dev,
                     const struct vmm_virtio_mmio_state *state)
{
    if (state->device_id != dev->device_id || state->queues != dev->queues ||
        state->features != dev->features ||
        state->config_len != dev->config_len)
        return -EINVAL;
    dev->driver_features = state->driver_features;
    dev->early = state->early;
    dev->status = state->status;
    __atomic_store_n(&dev->interrupt_status, state->interrupt_status,
                     __ATOMIC_RELAXED);
    dev->config_generation = state->config_generation;
    dev->features_sel = state->features_sel;
    dev->driver_features_sel = state->driver_features_sel;
    dev->queue_sel = state->queue_sel;
    dev->alien_features = state->alien_features;
    dev->due_ns = 0;
    dev->fault = state->status & VIRTIO_CONFIG_S_NEEDS_RESET
                     ? "broken before the snapshot was taken"
                     : NULL;
    if (dev->config_len)
        memcpy(dev->config, state->config, dev->config_len);
    return 0;
}

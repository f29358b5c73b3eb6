/* SPDX-License-Identifier: Apache-2.0 */
/* test_virtio_mmio.c - the registers, the status machine and the worker */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

#define RAM      0x10000ULL
#define RAM_LEN  0x10000ULL
#define BUF      (RAM + 0x8000)
#define VERSION1 (1ULL << VIRTIO_F_VERSION_1)
#define INDIRECT (1ULL << VIRTIO_RING_F_INDIRECT_DESC)
#define EVENT    (1ULL << VIRTIO_RING_F_EVENT_IDX)

/* A device that returns each chain at once and remembers what it saw. */
struct echo {
    struct vmm_virtio_mmio mmio;
    struct vmm_virtq queue[2];
    struct vmm_chain chain;
    uint8_t config[6];
    unsigned notified[2], chains, resets, statuses;
    uint32_t old;
    unsigned config_offset, config_len;
    uint64_t config_val;
    int answer;
};

static struct vmm_mem mem;
static struct echo echo;
static struct vmm_virtio_mmio *const dev = &echo.mmio;
static struct driver drv;

static int
echo_notify(struct vmm_virtio_mmio *mmio, unsigned queue)
{
    struct echo *e = vmm_container_of(mmio, struct echo, mmio);
    struct vmm_virtq *vq = &e->queue[queue];

    e->notified[queue]++;
    do {
        vmm_virtq_notify_off(vq);
        while (vmm_virtio_mmio_pop(mmio, queue, &e->chain) > 0) {
            e->chains++;
            vmm_virtio_mmio_push(mmio, queue, &e->chain, 0);
        }
    } while (vmm_virtq_notify_on(vq));
    vmm_virtio_mmio_used(mmio, queue);
    return e->answer;
}

static int
echo_reset(struct vmm_virtio_mmio *mmio)
{
    vmm_container_of(mmio, struct echo, mmio)->resets++;
    return VMM_BUS_DONE;
}

static int
echo_status(struct vmm_virtio_mmio *mmio, uint32_t old)
{
    struct echo *e = vmm_container_of(mmio, struct echo, mmio);

    e->statuses++;
    e->old = old;
    return VMM_BUS_DONE;
}

static int
echo_config_write(struct vmm_virtio_mmio *mmio, unsigned offset, unsigned len,
                  uint64_t val)
{
    struct echo *e = vmm_container_of(mmio, struct echo, mmio);

    e->config_offset = offset;
    e->config_len = len;
    e->config_val = val;
    return VMM_BUS_OWNER;
}

static const struct vmm_virtio_mmio_dev_ops echo_ops = {
    .notify = echo_notify,
    .reset = echo_reset,
    .status = echo_status,
    .config_write = echo_config_write,
};

static void
begin(void)
{
    memset(&echo, 0, sizeof echo);
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, RAM, RAM_LEN, 0), 0);
    vmm_mem_freeze(&mem);
    CHECK_EQ(vmm_virtq_init(&echo.queue[0], &mem, 8), 0);
    CHECK_EQ(vmm_virtq_init(&echo.queue[1], &mem, 32768), 0);
    CHECK_EQ(vmm_virtio_mmio_init(dev, &mem, &echo_ops, 63, 1ULL << 5 | 1,
                                  echo.queue, 2),
             0);
    memcpy(echo.config, "\x11\x22\x33\x44\x55\x66", 6);
    dev->config = echo.config;
    dev->config_len = 6;
    dev->irq_fd = eventfd(0, EFD_NONBLOCK);
    driver_init(&drv, &mem, RAM, 8);
    driver_desc(&drv, 0, BUF, 16, D_WRITE, 0);
}

static void
end(void)
{
    close(dev->irq_fd);
    vmm_virtio_mmio_fini(dev);
    vmm_virtio_mmio_fini(dev);
    vmm_chain_fini(&echo.chain);
    vmm_mem_fini(&mem);
}

/* How often the interrupt line was raised since the last look. */
static unsigned
interrupts(void)
{
    uint64_t count = 0;

    return read(dev->irq_fd, &count, 8) == 8 ? (unsigned)count : 0;
}

static uint32_t
status(void)
{
    return reg_read(dev, VIRTIO_MMIO_STATUS);
}

static void
test_init(void)
{
    static struct vmm_virtio_mmio other;

    begin();
    CHECK_EQ(vmm_virtio_mmio_init(&other, &mem, &echo_ops, 0, 0, NULL, 0),
             -EINVAL);
    CHECK_EQ(vmm_virtio_mmio_init(&other, &mem, &echo_ops, 1, 0, NULL, 65),
             -EINVAL);
    for (unsigned bit = 0; bit < 64; bit++) {
        bool ours =
            bit < 24 || bit >= 50 || bit == 33 || bit == 35 || bit == 36;
        int ret = vmm_virtio_mmio_init(&other, &mem, &echo_ops, 1, 1ULL << bit,
                                       NULL, 0);

        CHECK_EQ(ret, ours ? 0 : -EINVAL);
    }
    end();
}

static void
test_read_only_registers(void)
{
    static const unsigned ones[] = {0xb0, 0xb4, 0xb8, 0xbc};

    begin();
    CHECK_EQ(reg_read(dev, 0), 0x74726976);
    CHECK_EQ(reg_read(dev, 4), 2);
    CHECK_EQ(reg_read(dev, 8), 63);
    CHECK_EQ(reg_read(dev, 0xc), VMM_VIRTIO_MMIO_VENDOR);
    CHECK_EQ(reg_read(dev, 0x10), 1U << 5 | 1U | 1U << 28 | 1U << 29);
    reg_write(dev, 0x14, 1);
    CHECK_EQ(reg_read(dev, 0x10), 1);
    reg_write(dev, 0x14, 2);
    CHECK_EQ(reg_read(dev, 0x10), 0);
    for (unsigned i = 0; i < 4; i++) {
        reg_write(dev, VIRTIO_MMIO_SHM_SEL, i);
        CHECK_EQ(reg_read(dev, ones[i]), 0xffffffff);
    }
    CHECK_EQ(reg_read(dev, 0xfc), 0);
    /* All others, written and unknown ones, read 0. */
    for (unsigned i = 0x14; i < 0x100; i += 4)
        if (i != 0x34 && (i < 0xb0 || i > 0xbc) && reg_read(dev, i))
            CHECK_EQ(i, -1);
    CHECK_EQ(reg_read(dev, 0x34), 8);
    reg_write(dev, 0x30, 1);
    CHECK_EQ(reg_read(dev, 0x34), 32768);
    reg_write(dev, 0x30, 2);
    CHECK_EQ(reg_read(dev, 0x34), 0);
    CHECK_EQ(reg_read(dev, 0x44), 0);
    reg_write(dev, 0x44, 1);
    reg_write(dev, 0x30, UINT32_MAX);
    CHECK_EQ(reg_read(dev, 0x34), 0);
    CHECK_EQ(status(), 0);
    end();
}

static void
test_odd_accesses(void)
{
    uint64_t val;
    unsigned count = 0;

    begin();
    for (uint64_t offset = 0; offset < 0x100; offset++)
        for (unsigned len = 1; len <= 8; len++) {
            if (len == 4 && offset % 4 == 0)
                continue;
            val = 99;
            vmm_virtio_mmio_ops.write(dev, offset, len, ~0ULL);
            vmm_virtio_mmio_ops.read(dev, offset, len, &val);
            if (val)
                CHECK_EQ(offset, -1);
            count += 2;
        }
    CHECK_EQ(dev->odd, count);
    CHECK_EQ(status(), 0);
    CHECK_EQ(dev->faults, 0);
    end();
}

static void
test_config(void)
{
    uint64_t val;

    begin();
    for (uint64_t offset = 0; offset < VMM_VIRTIO_MMIO_CONFIG_MAX; offset++)
        for (unsigned len = 1; len <= 8; len++) {
            uint64_t want = 0;

            if (offset + len > VMM_VIRTIO_MMIO_CONFIG_MAX)
                continue;
            for (unsigned i = 0; i < len && offset + i < 6; i++)
                want |= (uint64_t)echo.config[offset + i] << 8 * i;
            val = 99;
            vmm_virtio_mmio_ops.read(dev, 0x100 + offset, len, &val);
            if (val != want)
                CHECK_EQ(offset, -1);
        }
    CHECK_EQ(vmm_virtio_mmio_ops.write(dev, 0x103, 2, 0xbeef), VMM_BUS_OWNER);
    CHECK_EQ(echo.config_offset, 3);
    CHECK_EQ(echo.config_len, 2);
    CHECK_EQ(echo.config_val, 0xbeef);
    /* On a range that is larger than it need be. */
    CHECK_EQ(vmm_virtio_mmio_ops.write(dev, 0x1fe, 4, 1), VMM_BUS_DONE);
    CHECK_EQ(vmm_virtio_mmio_ops.read(dev, 0xffffff000, 4, &val), 0);
    CHECK_EQ(val, 0);
    CHECK_EQ(vmm_virtio_mmio_config_set(dev, 5, "ab", 2), -EINVAL);
    CHECK_EQ(vmm_virtio_mmio_config_set(dev, 7, "ab", 0), -EINVAL);
    CHECK_EQ(vmm_virtio_mmio_config_set(dev, UINT32_MAX, "ab", 2), -EINVAL);
    CHECK_EQ(vmm_virtio_mmio_config_set(dev, 4, "ab", 2), 0);
    CHECK_EQ(reg_read(dev, 0xfc), 1);
    CHECK_EQ(interrupts(), 0);
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(vmm_virtio_mmio_config_set(dev, 0, "ab", 2), 0);
    CHECK_EQ(reg_read(dev, 0xfc), 2);
    CHECK_EQ(interrupts(), 1);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    end();
}

static void
test_features(void)
{
    static const struct {
        uint64_t features;
        bool ok;
    } tries[] = {
        {VERSION1, true},
        {VERSION1 | 1 | 1ULL << 5 | INDIRECT | EVENT, true},
        {0, false},
        {1, false},
        {VERSION1 | 2, false},
        {VERSION1 | 1ULL << 34, false},
        {VERSION1 | 1ULL << 63, false},
    };

    begin();
    for (unsigned i = 0; i < sizeof tries / sizeof tries[0]; i++) {
        reg_write(dev, VIRTIO_MMIO_STATUS, 0);
        reg_write(dev, VIRTIO_MMIO_STATUS, 3);
        reg_features(dev, tries[i].features);
        reg_write(dev, VIRTIO_MMIO_STATUS, 0xb);
        CHECK_EQ(status(), tries[i].ok ? 0xb : 3);
        /* Too late, and DRIVER_OK needs FEATURES_OK. */
        reg_features(dev, VERSION1 | 1);
        CHECK_EQ(dev->driver_features,
                 tries[i].ok ? tries[i].features : (VERSION1 | 1));
        reg_write(dev, VIRTIO_MMIO_STATUS, 7);
        CHECK_EQ(status(), tries[i].ok ? 0xf : 3);
        CHECK_EQ(echo.queue[1].event_idx,
                 tries[i].features & EVENT && tries[i].ok);
        CHECK_EQ(echo.queue[1].indirect,
                 tries[i].features & INDIRECT && tries[i].ok);
    }
    /* A bit beyond the 64th was accepted. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    reg_features(dev, VERSION1);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 7);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, 0);
    reg_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xf);
    CHECK_EQ(status(), 3);
    /* What the owner took from the offer is refused. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    dev->features &= ~EVENT;
    reg_features(dev, VERSION1 | EVENT);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xf);
    CHECK_EQ(status(), 3);
    end();
}

static void
test_status(void)
{
    begin();
    reg_features(dev, VERSION1);
    /* All at once; the device's own bit cannot be written. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 0x4f);
    CHECK_EQ(status(), 0xf);
    CHECK_EQ(echo.statuses, 1);
    CHECK_EQ(echo.old, 0);
    /* Bits stay. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 1);
    CHECK_EQ(status(), 0xf);
    CHECK_EQ(echo.statuses, 1);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0x80);
    CHECK_EQ(status(), 0x8f);
    CHECK(!vmm_virtio_mmio_live(dev));
    CHECK_EQ(echo.statuses, 2);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    CHECK_EQ(status(), 0);
    CHECK_EQ(echo.resets, 1);
    CHECK_EQ(dev->driver_features, 0);
    end();
}

static void
test_round_trip(void)
{
    uint32_t head;

    begin();
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 1);
    driver_offer(&drv, 0);
    CHECK_EQ(reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0), VMM_BUS_DONE);
    CHECK_EQ(echo.notified[0], 1);
    CHECK_EQ(driver_take(&drv, &head), 0);
    CHECK_EQ(interrupts(), 1);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    reg_write(dev, VIRTIO_MMIO_INTERRUPT_ACK, 2);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    reg_write(dev, VIRTIO_MMIO_INTERRUPT_ACK, 1);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    /* Not wanted. */
    driver_set_avail_flags(&drv, VRING_AVAIL_F_NO_INTERRUPT);
    driver_offer(&drv, 0);
    echo.answer = VMM_BUS_OWNER;
    CHECK_EQ(reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0), VMM_BUS_OWNER);
    CHECK_EQ(driver_take(&drv, &head), 0);
    CHECK_EQ(interrupts(), 0);
    CHECK_EQ(dev->interrupts, 1);
    CHECK_EQ(dev->notifications, 2);
    /* Queues that are not there, or not started. */
    CHECK_EQ(reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 1), VMM_BUS_DONE);
    CHECK_EQ(reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 2), VMM_BUS_DONE);
    CHECK_EQ(reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, ~0U), VMM_BUS_DONE);
    CHECK_EQ(echo.notified[1], 0);
    CHECK_EQ(vmm_virtio_mmio_process(dev), VMM_BUS_OWNER);
    CHECK_EQ(echo.notified[0], 3);
    end();
}

static void
test_no_work_unless_live(void)
{
    uint32_t head;

    begin();
    reg_write(dev, VIRTIO_MMIO_STATUS, 3);
    reg_features(dev, VERSION1);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xb);
    reg_queue(dev, 0, &drv);
    driver_offer(&drv, 0);
    /* Too early: remembered. */
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 9);
    CHECK_EQ(vmm_virtio_mmio_process(dev), VMM_BUS_DONE);
    CHECK_EQ(echo.notified[0], 0);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xf);
    CHECK_EQ(echo.notified[0], 1);
    CHECK_EQ(echo.notified[1], 0);
    CHECK_EQ(driver_take(&drv, &head), 0);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0x8f);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(vmm_virtio_mmio_process(dev), VMM_BUS_DONE);
    CHECK_EQ(echo.notified[0], 1);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(echo.notified[0], 1);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    end();
}

static void
test_queue_registers(void)
{
    begin();
    /* Before DRIVER nothing starts. */
    reg_queue(dev, 0, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    CHECK_EQ(status(), 0);
    reg_boot(dev, VERSION1, &drv);
    /* While ready nothing changes. */
    for (unsigned offset = 0x80; offset < 0xa8; offset += 4)
        reg_write(dev, offset, 0xfffffff0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NUM, 3);
    CHECK_EQ(echo.queue[0].size, 8);
    CHECK_EQ(echo.queue[0].desc_gpa, drv.desc);
    CHECK_EQ(echo.queue[0].avail_gpa, drv.avail);
    CHECK_EQ(echo.queue[0].used_gpa, drv.used);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(echo.chains, 1);
    /* Stopped and started: indices from 0 again. */
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 0);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    driver_init(&drv, &mem, RAM, 4);
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    reg_queue(dev, 0, &drv);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(echo.chains, 2);
    CHECK_EQ(dev->faults, 0);
    /* The high halves count. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    drv.desc |= 1ULL << 40;
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    CHECK_EQ(status(), 0x4f);
    end();
}

static void
test_bad_rings(void)
{
    begin();
    drv.used = RAM + RAM_LEN - 8;
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    CHECK_EQ(status(), 0x4f);
    CHECK_EQ(dev->faults, 1);
    CHECK(dev->fault != NULL);
    /* DRIVER_OK was not set when it happened, so there was no interrupt. */
    CHECK_EQ(interrupts(), 0);
    /* Good ones do not help without a reset. */
    driver_init(&drv, &mem, RAM, 8);
    reg_queue(dev, 0, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_QUEUE_READY), 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 0);
    CHECK_EQ(dev->faults, 1);
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(status(), 0xf);
    CHECK(dev->fault == NULL);
    /* And after DRIVER_OK with one. */
    reg_write(dev, VIRTIO_MMIO_QUEUE_SEL, 1);
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 1);
    CHECK_EQ(status(), 0x4f);
    CHECK_EQ(interrupts(), 1);
    CHECK_EQ(dev->faults, 2);
    end();
}

static void
test_broken_queue(void)
{
    uint32_t head;

    begin();
    reg_boot(dev, VERSION1, &drv);
    driver_desc(&drv, 1, BUF, 1, D_NEXT, 1);
    driver_offer(&drv, 0);
    driver_offer(&drv, 1);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(echo.chains, 1);
    CHECK_EQ(status(), 0x4f);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    CHECK_EQ(dev->faults, 1);
    /* No more work, until a reset. */
    CHECK_EQ(driver_take(&drv, &head), 0);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(driver_take(&drv, &head), -1);
    reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 0);
    CHECK_EQ(status(), 0x4f);
    driver_init(&drv, &mem, RAM, 8);
    reg_boot(dev, VERSION1, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    CHECK_EQ(driver_take(&drv, &head), 0);
    CHECK_EQ(status(), 0xf);
    end();
}

static void
test_event_idx(void)
{
    begin();
    reg_boot(dev, VERSION1 | EVENT, &drv);
    for (uint16_t i = 0; i < 5; i++) {
        CHECK_EQ(driver_avail_event(&drv), i);
        driver_offer(&drv, 0);
        driver_set_used_event(&drv, 3);
        reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        CHECK_EQ(interrupts(), i == 3);
    }
    end();
}

static int stop_fd;

/* A worker that acts for the owner by doing nothing, until it is stopped. */
static void *
worker(void *arg)
{
    int *ret = arg;
    bool over;

    do
        *ret = vmm_virtio_mmio_serve(dev, stop_fd, 0, &over);
    while (*ret == VMM_BUS_OWNER && !over);
    return NULL;
}

/* Waits in the kernel until the worker has interrupted. */
static void
wait_interrupt(void)
{
    uint64_t count;

    CHECK_EQ(read(dev->irq_fd, &count, 8), 8);
}

static void
test_serve(void)
{
    uint64_t one = 1;
    pthread_t thread;
    uint32_t head;
    bool over;
    int ret = 1;

    begin();
    CHECK_EQ(vmm_virtio_mmio_serve(dev, 0, 0, &over), -EBADF);
    CHECK_EQ(fcntl(dev->irq_fd, F_SETFL, 0), 0);
    dev->doorbell_fd = eventfd(0, 0);
    stop_fd = eventfd(0, 0);
    CHECK_EQ(pthread_create(&thread, NULL, worker, &ret), 0);
    /* Offered and rung before the device is live: done when it is. */
    reg_write(dev, VIRTIO_MMIO_STATUS, 3);
    reg_features(dev, VERSION1 | EVENT);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xb);
    reg_queue(dev, 0, &drv);
    driver_offer(&drv, 0);
    reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    reg_write(dev, VIRTIO_MMIO_STATUS, 0xf);
    wait_interrupt();
    CHECK_EQ(driver_take(&drv, &head), 0);
    /* One at a time, notifying only when asked to: nothing may be lost. */
    for (unsigned i = 0; i < 5000; i++) {
        uint16_t old = drv.avail_idx;

        driver_set_used_event(&drv, drv.used_idx);
        driver_offer(&drv, 0);
        __sync_synchronize();
        if (vring_need_event(driver_avail_event(&drv), drv.avail_idx, old))
            CHECK_EQ(write(dev->doorbell_fd, &one, 8), 8); /* an ioeventfd */
        wait_interrupt();
        CHECK_EQ(driver_take(&drv, &head), 0);
    }
    CHECK_EQ(write(stop_fd, &one, 8), 8);
    pthread_join(thread, NULL);
    CHECK_EQ(ret, 0);
    CHECK_EQ(echo.chains, 5001);
    /* Stopped before it starts, or its time is over. */
    CHECK_EQ(vmm_virtio_mmio_serve(dev, stop_fd, 0, &over), 0);
    CHECK(over);
    CHECK_EQ(vmm_virtio_mmio_serve(dev, -1, 1, &over), 0);
    CHECK(over);
    /* The owner has to act; it is told, too, when it is over. */
    echo.answer = VMM_BUS_OWNER;
    CHECK_EQ(vmm_virtio_mmio_serve(dev, -1, 0, &over), VMM_BUS_OWNER);
    CHECK(!over);
    CHECK_EQ(vmm_virtio_mmio_serve(dev, stop_fd, 0, &over), VMM_BUS_OWNER);
    CHECK(over);
    CHECK_EQ(vmm_virtio_mmio_serve(dev, -1, 1, &over), VMM_BUS_OWNER);
    CHECK(over);
    close(dev->doorbell_fd);
    CHECK_EQ(vmm_virtio_mmio_serve(dev, stop_fd, 0, &over), -EBADF);
    close(stop_fd);
    end();
}

/* Registers from one thread while a worker and a reset are at it. */
static void
test_serve_and_reset(void)
{
    uint64_t one = 1;
    pthread_t thread;
    int ret = 1;

    begin();
    dev->doorbell_fd = eventfd(0, 0);
    stop_fd = eventfd(0, 0);
    CHECK_EQ(pthread_create(&thread, NULL, worker, &ret), 0);
    for (unsigned i = 0; i < 2000; i++) {
        reg_write(dev, VIRTIO_MMIO_STATUS, 0);
        driver_init(&drv, &mem, RAM, 8);
        driver_desc(&drv, 0, BUF, 16, D_WRITE, 0);
        reg_boot(dev, VERSION1, &drv);
        driver_offer(&drv, 0);
        reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        reg_write(dev, VIRTIO_MMIO_INTERRUPT_ACK,
                  reg_read(dev, VIRTIO_MMIO_INTERRUPT_STATUS));
    }
    CHECK_EQ(write(stop_fd, &one, 8), 8);
    pthread_join(thread, NULL);
    CHECK_EQ(ret, 0);
    CHECK_EQ(dev->faults, 0);
    close(dev->doorbell_fd);
    close(stop_fd);
    end();
}

int
main(void)
{
    RUN(test_init);
    RUN(test_read_only_registers);
    RUN(test_odd_accesses);
    RUN(test_config);
    RUN(test_features);
    RUN(test_status);
    RUN(test_round_trip);
    RUN(test_no_work_unless_live);
    RUN(test_queue_registers);
    RUN(test_bad_rings);
    RUN(test_broken_queue);
    RUN(test_event_idx);
    RUN(test_serve);
    RUN(test_serve_and_reset);
    return check_done();
}

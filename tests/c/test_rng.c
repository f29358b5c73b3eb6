/* SPDX-License-Identifier: Apache-2.0 */
/* test_rng.c - the entropy device: shapes, sources, limits, resets */
#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"
#include "vmm/rng.h"

#define RAM      0x100000ULL
#define RAM_LEN  0x800000ULL
#define BUF      (RAM + 0x100000)
#define FEATURES (1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_RING_F_EVENT_IDX)
#define SECOND   1000000000ULL

static struct vmm_mem mem;
static struct vmm_rng rng;
static struct vmm_virtio_mmio *const dev = &rng.mmio;
static struct driver drv;

static void
boot(void)
{
    driver_init(&drv, &mem, RAM, 8);
    reg_boot(dev, FEATURES, &drv);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_STATUS), 0xf);
}

static void
begin(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, RAM, RAM_LEN, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, RAM + RAM_LEN, 0x1000, 0), 0);
    vmm_mem_freeze(&mem);
    CHECK_EQ(vmm_rng_init(&rng, &mem, VMM_RNG_QUEUE_SIZE), 0);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_DEVICE_ID), 4);
    boot();
}

static void
end(void)
{
    vmm_rng_fini(&rng);
    vmm_rng_fini(&rng);
    vmm_mem_fini(&mem);
}

static int
notify(void)
{
    return reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

/* Offers one writable buffer. */
static void
ask(uint64_t gpa, uint32_t len)
{
    driver_desc(&drv, 0, gpa, len, D_WRITE, 0);
    driver_offer(&drv, 0);
}

static int64_t
answered(void)
{
    uint32_t head;

    return driver_take(&drv, &head);
}

/* How many of the bytes are not what they were set to. */
static uint64_t
touched(uint64_t gpa, uint64_t len)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < len; i++)
        count += *(uint8_t *)driver_ptr(&mem, gpa + i) != 0;
    return count;
}

static void
test_sizes(void)
{
    static const uint32_t sizes[] = {1, 2, 64, 255, 256, 4095, 65537, 1 << 20};

    vmm_rng_fini(&(struct vmm_rng){0});
    CHECK_EQ(vmm_rng_init(&rng, &mem, 0), -EINVAL);
    CHECK_EQ(vmm_rng_init(&rng, &mem, 65536), -EINVAL);
    begin();
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        vmm_mem_fill(&mem, BUF, 0, sizes[i] + 16, VMM_MEM_HOST);
        ask(BUF + 8, sizes[i]);
        CHECK_EQ(notify(), VMM_BUS_DONE);
        CHECK_EQ(answered(), sizes[i]);
        if (sizes[i] >= 64)
            CHECK(touched(BUF + 8, sizes[i]) > sizes[i] / 2);
        CHECK_EQ(touched(BUF, 8), 0);
        CHECK_EQ(touched(BUF + 8 + sizes[i], 8), 0);
    }
    CHECK_EQ(rng.requests, 8);
    end();
}

/* Readable ones are ignored, empty ones passed over, borders crossed. */
static void
test_shapes(void)
{
    begin();
    driver_desc(&drv, 0, BUF, 100, D_NEXT, 1);
    driver_desc(&drv, 1, BUF + 0x1000, 50, D_NEXT | D_WRITE, 2);
    driver_desc(&drv, 2, BUF, 0, D_NEXT | D_WRITE, 3);
    driver_desc(&drv, 3, RAM + RAM_LEN - 40, 80, D_WRITE, 0);
    driver_offer(&drv, 0);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    CHECK_EQ(answered(), 130);
    CHECK_EQ(touched(BUF, 100), 0);
    CHECK(touched(BUF + 0x1000, 50) > 25);
    CHECK(touched(RAM + RAM_LEN - 40, 40) > 20);
    CHECK(touched(RAM + RAM_LEN, 40) > 20);
    CHECK_EQ(touched(RAM + RAM_LEN + 40, 100), 0);
    /* No room for a single byte. */
    driver_desc(&drv, 4, BUF, 100, 0, 0);
    driver_offer(&drv, 4);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    CHECK_EQ(answered(), 0);
    end();
}

static void
test_more_than_a_batch(void)
{
    unsigned rounds = 0;
    int answer;

    begin();
    ask(BUF, 5 << 20);
    answer = notify();
    while (answer == VMM_BUS_OWNER) {
        CHECK_EQ(vmm_rng_wanted(&rng), 0);
        CHECK_EQ(vmm_rng_due_ns(&rng), 1);
        CHECK_EQ(answered(), -1);
        answer = vmm_rng_process(&rng);
        rounds++;
    }
    CHECK_EQ(answer, VMM_BUS_DONE);
    CHECK_EQ(answered(), 5 << 20);
    CHECK_EQ(rounds, 2);
    CHECK_EQ(vmm_rng_due_ns(&rng), 0);
    end();
}

static void
test_external(void)
{
    char got[16] = "";

    begin();
    CHECK_EQ(vmm_rng_external(&rng, 0), -EINVAL);
    CHECK_EQ(vmm_rng_external(&rng, UINT64_MAX), -EINVAL);
    CHECK_EQ(vmm_rng_external(&rng, 4), 0);
    CHECK_EQ(vmm_rng_external(&rng, 4), -EBUSY);
    CHECK_EQ(vmm_rng_wanted(&rng), 0);
    ask(BUF, 10);
    CHECK_EQ(notify(), VMM_BUS_OWNER);
    CHECK_EQ(vmm_rng_due_ns(&rng), 0);
    CHECK_EQ(vmm_rng_wanted(&rng), 4);
    CHECK_EQ(vmm_rng_feed(&rng, "abcdef", 6), 4);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
    CHECK_EQ(vmm_rng_feed(&rng, "ef", 2), 2);
    CHECK_EQ(vmm_rng_wanted(&rng), 0);
    CHECK_EQ(vmm_rng_feed(&rng, "ghij", 4), 2);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
    CHECK_EQ(answered(), -1);
    CHECK_EQ(vmm_rng_feed(&rng, "ijkl", 4), 4);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_DONE);
    CHECK_EQ(answered(), 10);
    /* What is left goes to the next. */
    ask(BUF + 10, 2);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    CHECK_EQ(answered(), 2);
    CHECK_EQ(vmm_mem_read(&mem, BUF, got, 13), 0);
    CHECK(!memcmp(got, "abcdefghijkl", 13));
    end();
}

static void
test_source_ends(void)
{
    begin();
    CHECK_EQ(vmm_rng_external(&rng, 64), 0);
    ask(BUF, 10);
    CHECK_EQ(notify(), VMM_BUS_OWNER);
    CHECK_EQ(vmm_rng_feed(&rng, "abc", 3), 3);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
    CHECK_EQ(vmm_rng_feed(&rng, NULL, 0), 0);
    CHECK_EQ(vmm_rng_wanted(&rng), 0);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_DONE);
    CHECK_EQ(answered(), 3);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_STATUS), 0xf);
    ask(BUF, 10);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    CHECK_EQ(answered(), -1);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_STATUS), 0x4f);
    CHECK_EQ(dev->faults, 1);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_DONE);
    end();
}

/* A page is dirty again when a later call writes there. */
static void
test_resumed_is_dirty(void)
{
    uint64_t bits[RAM_LEN / VMM_PAGE_SIZE / 64];
    uint64_t page = (BUF - RAM) / VMM_PAGE_SIZE;

    begin();
    CHECK_EQ(vmm_rng_external(&rng, 0x1000), 0);
    ask(BUF + 0x1000 - 1, 3);
    CHECK_EQ(notify(), VMM_BUS_OWNER);
    vmm_mem_take_dirty(&mem, 0, bits);
    CHECK_EQ(bits[page / 64] >> page % 64 & 7, 3);
    vmm_rng_feed(&rng, "a", 1);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
    vmm_mem_take_dirty(&mem, 0, bits);
    CHECK_EQ(bits[page / 64] >> page % 64 & 7, 1);
    vmm_rng_feed(&rng, "b", 1);
    CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
    vmm_mem_take_dirty(&mem, 0, bits);
    CHECK_EQ(bits[page / 64] >> page % 64 & 7, 2);
    end();
}

/* A chain in progress is not touched any more once it was taken back. */
static void
test_reset_in_progress(void)
{
    for (int how = 0; how < 3; how++) {
        begin();
        CHECK_EQ(vmm_rng_external(&rng, 64), 0);
        ask(BUF, 10);
        CHECK_EQ(notify(), VMM_BUS_OWNER);
        CHECK_EQ(vmm_rng_feed(&rng, "abc", 3), 3);
        CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_OWNER);
        CHECK_EQ(touched(BUF, 10), 3);
        switch (how) {
        case 0:
            reg_write(dev, VIRTIO_MMIO_STATUS, 0);
            break;
        case 1:
            reg_write(dev, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
            break;
        case 2:
            reg_write(dev, VIRTIO_MMIO_QUEUE_READY, 0);
            break;
        }
        CHECK_EQ(vmm_rng_wanted(&rng), 0);
        CHECK_EQ(vmm_rng_feed(&rng, "defghijklmno", 12), 12);
        CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_DONE);
        CHECK_EQ(touched(BUF, 10), 3);
        CHECK_EQ(answered(), -1);
        if (how == 2) {
            driver_init(&drv, &mem, RAM, 8);
            reg_queue(dev, 0, &drv);
        } else {
            boot();
        }
        CHECK_EQ(vmm_rng_process(&rng), VMM_BUS_DONE);
        CHECK_EQ(answered(), -1);
        CHECK_EQ(touched(BUF, 10), 3);
        ask(BUF + 100, 12);
        CHECK_EQ(notify(), VMM_BUS_DONE);
        CHECK_EQ(answered(), 12);
        CHECK_EQ(touched(BUF, 10), 3);
        CHECK_EQ(touched(BUF + 100, 20), 12);
        end();
    }
}

static void
test_limit(void)
{
    uint64_t now = 5 * SECOND;

    begin();
    CHECK_EQ(vmm_rng_limit(&rng, 1ULL << 33, 0), -EINVAL);
    CHECK_EQ(vmm_rng_limit(&rng, 1, 1ULL << 33), -EINVAL);
    CHECK_EQ(vmm_rng_limit(&rng, 1000, 100), 0);
    ask(BUF, 350);
    CHECK_EQ(vmm_rng_process_at(&rng, now), VMM_BUS_OWNER);
    CHECK_EQ(rng.bytes, 100);
    CHECK_EQ(vmm_rng_due_ns(&rng), now + SECOND / 10);
    /* Too early: what there is, and the same moment still. */
    CHECK_EQ(vmm_rng_process_at(&rng, now + SECOND / 100), VMM_BUS_OWNER);
    CHECK_EQ(rng.bytes, 110);
    now += SECOND / 10 + SECOND / 100;
    CHECK_EQ(vmm_rng_due_ns(&rng), now);
    CHECK_EQ(vmm_rng_process_at(&rng, now), VMM_BUS_OWNER);
    CHECK_EQ(rng.bytes, 210);
    /* A clock that goes back gives nothing, a long wait no more than a burst */
    CHECK_EQ(vmm_rng_process_at(&rng, 1), VMM_BUS_OWNER);
    CHECK_EQ(rng.bytes, 210);
    CHECK_EQ(vmm_rng_process_at(&rng, now + 1000 * SECOND), VMM_BUS_OWNER);
    CHECK_EQ(rng.bytes, 310);
    now += 1000 * SECOND;
    CHECK_EQ(vmm_rng_due_ns(&rng), now + 40 * SECOND / 1000);
    CHECK_EQ(vmm_rng_process_at(&rng, UINT64_MAX), VMM_BUS_DONE);
    CHECK_EQ(answered(), 350);
    CHECK_EQ(rng.bytes, 350);
    /* Nanosecond by nanosecond nothing is lost or won. */
    CHECK_EQ(vmm_rng_limit(&rng, 3, 2), 0);
    ask(BUF, 5);
    now = 7 * SECOND;
    CHECK_EQ(vmm_rng_process_at(&rng, now), VMM_BUS_OWNER);
    CHECK_EQ(vmm_rng_due_ns(&rng), now + 666666667);
    for (unsigned i = 1; i < 1000; i++)
        vmm_rng_process_at(&rng, now + SECOND / 1000 * i);
    CHECK_EQ(rng.bytes, 350 + 4);
    CHECK_EQ(vmm_rng_process_at(&rng, now + SECOND), VMM_BUS_DONE);
    CHECK_EQ(answered(), 5);
    CHECK_EQ(vmm_rng_limit(&rng, 1ULL << 32, 1ULL << 32), 0);
    ask(BUF, 1 << 20);
    CHECK_EQ(vmm_rng_process_at(&rng, now), VMM_BUS_DONE);
    CHECK_EQ(vmm_rng_limit(&rng, 0, 0), 0);
    ask(BUF, 1 << 20);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    end();
}

static void
test_many_at_once(void)
{
    uint32_t head = 0;

    begin();
    for (uint16_t i = 0; i < 8; i++) {
        driver_desc(&drv, i, BUF, i + 1U, D_WRITE, 0);
        driver_offer(&drv, i);
    }
    driver_set_used_event(&drv, 7);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    for (uint16_t i = 0; i < 8; i++) {
        CHECK_EQ(driver_take(&drv, &head), i + 1);
        CHECK_EQ(head, i);
    }
    CHECK_EQ(dev->interrupts, 1);
    CHECK_EQ(driver_avail_event(&drv), 8);
    /* A broken chain leaves the good ones before it served. */
    ask(BUF, 10);
    driver_desc(&drv, 1, BUF, 1, D_NEXT | D_WRITE, 1);
    driver_offer(&drv, 1);
    CHECK_EQ(notify(), VMM_BUS_DONE);
    CHECK_EQ(answered(), 10);
    CHECK_EQ(reg_read(dev, VIRTIO_MMIO_STATUS), 0x4f);
    end();
}

/* The rings themselves as the buffer: random garbage in every field. */
static void
test_overwrites_its_rings(void)
{
    begin();
    for (unsigned i = 0; i < 2000; i++) {
        if (reg_read(dev, VIRTIO_MMIO_STATUS) != 0xf)
            boot();
        ask(RAM, 0x1000);
        if (notify() == VMM_BUS_OWNER)
            vmm_rng_process(&rng);
    }
    CHECK(dev->faults > 0);
    end();
}

static int stop_fd;
static uint64_t fed;

/* The thread of an owner with a source of its own. */
static void *
worker(void *arg)
{
    int *ret = arg;
    bool over;

    for (;;) {
        uint64_t n;

        *ret = vmm_virtio_mmio_serve(dev, stop_fd, 0, &over);
        if (*ret != VMM_BUS_OWNER || over)
            return NULL;
        n = vmm_rng_wanted(&rng);
        if (n)
            fed += vmm_rng_feed(&rng, "0123456789abcdef", vmm_min(n, 16));
    }
}

static void
serve_with(uint64_t pool, uint64_t rate)
{
    uint64_t one = 1, count, total = 0;
    pthread_t thread;
    int ret = 1;

    begin();
    reg_write(dev, VIRTIO_MMIO_STATUS, 0);
    fed = 0;
    if (pool)
        CHECK_EQ(vmm_rng_external(&rng, pool), 0);
    CHECK_EQ(vmm_rng_limit(&rng, rate, 1000), 0);
    dev->irq_fd = eventfd(0, 0);
    dev->doorbell_fd = eventfd(0, 0);
    stop_fd = eventfd(0, 0);
    CHECK_EQ(pthread_create(&thread, NULL, worker, &ret), 0);
    boot();
    for (uint32_t len = 1; len <= 500; len++) {
        driver_set_used_event(&drv, drv.used_idx);
        ask(BUF, len);
        CHECK_EQ(notify(), VMM_BUS_DONE);
        CHECK_EQ(read(dev->irq_fd, &count, 8), 8);
        CHECK_EQ(answered(), len);
        total += len;
    }
    CHECK_EQ(write(stop_fd, &one, 8), 8);
    pthread_join(thread, NULL);
    CHECK_EQ(ret, 0);
    CHECK_EQ(rng.bytes, total);
    CHECK_EQ(rng.bytes + rng.pool_end - rng.pool_pos, pool ? fed : total);
    close(dev->irq_fd);
    close(dev->doorbell_fd);
    close(stop_fd);
    end();
}

static void
test_serve(void)
{
    serve_with(0, 0);
}

static void
test_serve_external(void)
{
    serve_with(13, 0);
}

/* The limit is only there to make the worker wait; it is a short wait. */
static void
test_serve_limit(void)
{
    serve_with(0, 10000000);
}

int
main(void)
{
    RUN(test_sizes);
    RUN(test_shapes);
    RUN(test_more_than_a_batch);
    RUN(test_external);
    RUN(test_source_ends);
    RUN(test_resumed_is_dirty);
    RUN(test_reset_in_progress);
    RUN(test_limit);
    RUN(test_many_at_once);
    RUN(test_overwrites_its_rings);
    RUN(test_serve);
    RUN(test_serve_external);
    RUN(test_serve_limit);
    return check_done();
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_virtq.c - the device's end of a queue against a driver that may lie */
#include <errno.h>
#include <pthread.h>

#include "check.h"
#include "driver.h"
#include "vmm/virtq.h"

/*
 * LOW      64 KiB of RAM, the rings at its start
 * NEXT_TO  64 KiB that begin where LOW ends, another region
 * ROM      a read-only page, after a hole
 * HIGH     a page above 4 GiB
 */
#define LOW     0x10000ULL
#define NEXT_TO 0x20000ULL
#define HOLE    0x30000ULL
#define ROM     0x40000ULL
#define HIGH    0x100000000ULL
#define BUF     (LOW + 0x8000)
#define TABLE   (LOW + 0x6000)

static struct vmm_mem mem;
static struct vmm_virtq vq;
static struct vmm_chain chain;
static struct driver drv;

/* A started queue of `size` and its driver; indirect is negotiated. */
static void
begin(uint32_t size)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, LOW, 0x10000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, NEXT_TO, 0x10000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, ROM, 0x1000, VMM_MEM_READONLY), 0);
    CHECK_EQ(vmm_mem_add(&mem, HIGH, 0x1000, 0), 0);
    vmm_mem_freeze(&mem);
    CHECK_EQ(vmm_virtq_init(&vq, &mem, size), 0);
    driver_init(&drv, &mem, LOW, size);
    driver_connect(&drv, &vq);
    vq.indirect = true;
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    vmm_chain_init(&chain);
}

static void
end(void)
{
    vmm_chain_fini(&chain);
    vmm_mem_fini(&mem);
}

/* Both sides afresh, after a queue was broken. */
static void
again(void)
{
    vmm_chain_drop(&chain);
    vmm_virtq_stop(&vq);
    driver_init(&drv, &mem, drv.desc, drv.size);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
}

/* The chain from descriptor 0 is refused, and the queue broken by it. */
static void
refused(const char *why)
{
    uint64_t before = vq.faults;

    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    CHECK(vq.fault != NULL);
    if (vq.fault && !strstr(vq.fault, why)) {
        printf("# fault is \"%s\", expected \"%s\"\n", vq.fault, why);
        CHECK(!"the expected fault");
    }
    CHECK_EQ(vq.faults, before + 1);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    CHECK_EQ(vq.faults, before + 1);
    CHECK(!vmm_virtq_notify_on(&vq));
    CHECK(!vmm_chain_alive(&chain, &vq));
    again();
}

/* The chain from descriptor 0 is taken. */
static void
taken(unsigned readable, unsigned writable, uint64_t readable_len,
      uint64_t writable_len)
{
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(chain.readable, readable);
    CHECK_EQ(chain.writable, writable);
    CHECK_EQ(chain.readable_len, readable_len);
    CHECK_EQ(chain.writable_len, writable_len);
    CHECK_EQ(vmm_virtq_push(&vq, &chain, 0), 0);
}

static void
test_init_sizes(void)
{
    vmm_mem_init(&mem);
    for (uint64_t size = 0; size <= 65536; size++) {
        bool good = size && size <= 32768 && !(size & (size - 1));

        if (vmm_virtq_init(&vq, &mem, (uint32_t)size) != (good ? 0 : -EINVAL))
            CHECK_EQ(size, -1);
    }
    CHECK_EQ(vmm_virtq_init(&vq, &mem, UINT32_MAX), -EINVAL);
    CHECK_EQ(vmm_virtq_init(&vq, &mem, 0x80000000U), -EINVAL);
}

static void
start_refused(void)
{
    uint64_t before = vq.faults;

    CHECK_EQ(vmm_virtq_start(&vq), -EPROTO);
    CHECK(!vq.ready);
    CHECK(vq.fault != NULL);
    CHECK_EQ(vq.faults, before + 1);
    CHECK_EQ(vmm_virtq_start(&vq), -EBUSY);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    vmm_virtq_stop(&vq);
    driver_connect(&drv, &vq);
}

static void
test_start(void)
{
    static const uint64_t outside[] = {0,
                                       LOW - 16,
                                       NEXT_TO - 16,
                                       NEXT_TO + 0x10000 - 16,
                                       HOLE,
                                       1ULL << 52,
                                       UINT64_MAX & ~15ULL,
                                       HIGH - 16,
                                       HIGH + 0x1000};
    static const uint32_t sizes[] = {0, 3, 5, 6, 7, 9, 16, 0x10008, UINT32_MAX};

    begin(8);
    CHECK_EQ(vmm_virtq_start(&vq), -EBUSY);
    vmm_virtq_stop(&vq);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 0);
    CHECK(!vmm_virtq_notify_on(&vq));
    CHECK(!vmm_virtq_must_interrupt(&vq));
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        vq.size = sizes[i];
        start_refused();
    }
    for (unsigned i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        vq.desc_gpa = outside[i];
        start_refused();
        vq.avail_gpa = outside[i];
        start_refused();
        vq.used_gpa = outside[i];
        start_refused();
    }
    vq.desc_gpa += 8;
    start_refused();
    vq.avail_gpa += 1;
    start_refused();
    vq.used_gpa += 2;
    start_refused();
    vq.used_gpa = ROM;
    start_refused();
    /* Smaller than the maximum is fine. */
    vq.size = 1;
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    vmm_virtq_reset(&vq);
    CHECK_EQ(vq.size, 8);
    CHECK_EQ(vq.desc_gpa, 0);
    CHECK(!vq.indirect);
    end();
}

static void
test_start_in_rom(void)
{
    begin(8);
    vmm_virtq_stop(&vq);
    /* The device only reads these two. */
    drv.desc = ROM;
    drv.avail = ROM + 0x100;
    driver_connect(&drv, &vq);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    driver_desc(&drv, 0, BUF, 10, 0, 0);
    taken(1, 0, 10, 0);
    end();
}

/* Rings that end with the last byte of RAM, and one byte too far. */
static void
test_start_at_the_end(void)
{
    uint64_t ends[] = {HIGH + 0x1000, NEXT_TO};

    for (unsigned i = 0; i < 2; i++) {
        begin(4);
        vmm_virtq_stop(&vq);
        /* 6 + 8 * 4 = 38 bytes; the next multiple of 4 holds it. */
        drv.used = ends[i] - 40;
        driver_connect(&drv, &vq);
        CHECK_EQ(vmm_virtq_start(&vq), 0);
        vmm_virtq_stop(&vq);
        vq.used_gpa = ends[i] - 36;
        start_refused();
        /* 6 + 2 * 4 = 14 */
        drv.avail = ends[i] - 40 - 14;
        driver_connect(&drv, &vq);
        CHECK_EQ(vmm_virtq_start(&vq), 0);
        vmm_virtq_stop(&vq);
        vq.avail_gpa = ends[i] - 12;
        start_refused();
        drv.desc = ends[i] - 128;
        driver_connect(&drv, &vq);
        CHECK_EQ(vmm_virtq_start(&vq), 0);
        driver_desc(&drv, 0, BUF, 10, 0, 0);
        taken(1, 0, 10, 0);
        vmm_virtq_stop(&vq);
        vq.desc_gpa = ends[i] - 48;
        start_refused();
        end();
    }
}

static void
test_round_trip(void)
{
    struct vmm_chain second = {0};
    uint32_t head;

    begin(8);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 0);
    driver_desc(&drv, 3, BUF, 100, D_NEXT, 5);
    driver_desc(&drv, 5, BUF + 0x100, 20, D_WRITE, 0);
    driver_desc(&drv, 6, HIGH + 1, 7, D_WRITE, 0);
    driver_offer(&drv, 3);
    driver_offer(&drv, 6);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(vmm_virtq_pop(&vq, &second), 1);
    CHECK_EQ(vmm_virtq_pop(&vq, &(struct vmm_chain){0}), 0);
    CHECK_EQ(chain.head, 3);
    CHECK_EQ(chain.descs, 2);
    CHECK_EQ(chain.readable, 1);
    CHECK_EQ(chain.writable, 1);
    CHECK_EQ(chain.seg[0].gpa, BUF);
    CHECK_EQ(chain.seg[0].len, 100);
    CHECK(chain.seg[0].hva == driver_ptr(&mem, BUF));
    CHECK_EQ(chain.seg[1].gpa, BUF + 0x100);
    CHECK_EQ(chain.seg[1].len, 20);
    CHECK_EQ(second.head, 6);
    CHECK(second.seg[0].hva == driver_ptr(&mem, HIGH + 1));
    /* Out of order, as devices may. */
    CHECK_EQ(driver_take(&drv, &head), -1);
    CHECK_EQ(vmm_virtq_push(&vq, &second, 8), -EINVAL);
    CHECK_EQ(vmm_virtq_push(&vq, &second, 7), 0);
    CHECK_EQ(vmm_virtq_push(&vq, &chain, 0), 0);
    CHECK_EQ(driver_take(&drv, &head), 7);
    CHECK_EQ(head, 6);
    CHECK_EQ(driver_take(&drv, &head), 0);
    CHECK_EQ(head, 3);
    CHECK_EQ(driver_take(&drv, &head), -1);
    /* Nothing is pushed twice. */
    CHECK_EQ(vmm_virtq_push(&vq, &chain, 0), -ESTALE);
    CHECK_EQ(driver_take(&drv, &head), -1);
    vmm_chain_fini(&second);
    end();
}

static void
test_borders(void)
{
    begin(8);
    /* To the last byte of RAM, and one further. */
    driver_desc(&drv, 0, HIGH + 0xfff, 1, D_WRITE, 0);
    taken(0, 1, 0, 1);
    driver_desc(&drv, 0, HIGH + 0xfff, 2, D_WRITE, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, HIGH, 0x1001, 0, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, HIGH, UINT32_MAX, 0, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, HIGH - 1, 2, 0, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, HOLE, 1, 0, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, UINT64_MAX, 1, 0, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, UINT64_MAX - 1, UINT32_MAX, D_WRITE, 0);
    refused("outside RAM");
    /* From one region into the next: two segments. */
    driver_desc(&drv, 0, NEXT_TO - 3, 10, 0, 0);
    taken(2, 0, 10, 0);
    CHECK_EQ(chain.seg[0].len, 3);
    CHECK_EQ(chain.seg[1].len, 7);
    CHECK_EQ(chain.seg[1].gpa, NEXT_TO);
    CHECK(chain.seg[1].hva == driver_ptr(&mem, NEXT_TO));
    driver_desc(&drv, 0, BUF, HOLE - BUF, 0, 0);
    taken(2, 0, HOLE - BUF, 0);
    driver_desc(&drv, 0, BUF, (uint32_t)(HOLE - BUF + 1), 0, 0);
    refused("outside RAM");
    /* Read-only memory is to be read. */
    driver_desc(&drv, 0, ROM, 0x1000, 0, 0);
    taken(1, 0, 0x1000, 0);
    driver_desc(&drv, 0, ROM, 1, D_WRITE, 0);
    refused("not writable");
    end();
}

static void
test_loops_and_order(void)
{
    begin(4);
    driver_desc(&drv, 0, BUF, 1, D_NEXT, 0);
    refused("loop");
    driver_desc(&drv, 0, BUF, 1, D_NEXT, 1);
    driver_desc(&drv, 1, BUF, 1, D_NEXT, 0);
    refused("loop");
    driver_desc(&drv, 0, BUF, 0, D_NEXT, 0);
    refused("loop");
    driver_desc(&drv, 0, BUF, 1, D_NEXT, 4);
    refused("next descriptor");
    driver_desc(&drv, 0, BUF, 1, D_NEXT, 65535);
    refused("next descriptor");
    /* All of the queue in one chain. */
    for (uint16_t i = 0; i < 4; i++)
        driver_desc(&drv, i, BUF, 1, i < 3 ? D_NEXT : 0, i + 1);
    taken(4, 0, 4, 0);
    driver_desc(&drv, 0, BUF, 1, D_WRITE | D_NEXT, 1);
    driver_desc(&drv, 1, BUF, 1, 0, 0);
    refused("to read after");
    /* Unknown flags mean nothing. */
    driver_desc(&drv, 0, BUF, 1, 0xfff8, 9);
    taken(1, 0, 1, 0);
    end();
}

static void
test_empty_descriptors(void)
{
    begin(4);
    driver_desc(&drv, 0, HOLE, 0, 0, 0);
    taken(0, 0, 0, 0);
    CHECK_EQ(chain.descs, 1);
    CHECK_EQ(vmm_chain_read(&chain, 0, &(char){0}, 1), 0);
    CHECK_EQ(vmm_chain_write(&chain, &mem, 0, "x", 1), 0);
    driver_desc(&drv, 0, UINT64_MAX, 0, D_NEXT, 1);
    driver_desc(&drv, 1, BUF, 5, D_WRITE | D_NEXT, 2);
    driver_desc(&drv, 2, ROM, 0, D_WRITE, 0);
    taken(0, 1, 0, 5);
    CHECK_EQ(chain.descs, 3);
    driver_desc(&drv, 2, BUF, 0, 0, 0);
    refused("to read after");
    end();
}

static void
test_indirect(void)
{
    begin(4);
    table_set(&mem, TABLE, 0, BUF, 10, D_NEXT, 2);
    table_set(&mem, TABLE, 2, BUF + 16, 20, D_WRITE, 0);
    driver_desc(&drv, 0, TABLE, 48, D_INDIRECT, 0);
    taken(1, 1, 10, 20);
    CHECK_EQ(chain.descs, 2);
    /* WRITE on it is ignored; zero or more direct ones may come before. */
    driver_desc(&drv, 0, TABLE, 48, D_INDIRECT | D_WRITE, 0);
    taken(1, 1, 10, 20);
    driver_desc(&drv, 0, BUF, 5, D_NEXT, 1);
    driver_desc(&drv, 1, TABLE, 48, D_INDIRECT, 0);
    taken(2, 1, 15, 20);
    driver_desc(&drv, 0, BUF, 5, D_NEXT | D_WRITE, 1);
    refused("to read after");
    /* As long as the queue, and one longer. */
    for (uint16_t i = 0; i < 5; i++)
        table_set(&mem, TABLE, i, BUF, 1, i < 4 ? D_NEXT : 0, i + 1);
    driver_desc(&drv, 0, TABLE + 16, 64, D_INDIRECT, 0);
    refused("next descriptor"); /* the links count from the table's start */
    table_set(&mem, TABLE, 3, BUF, 1, 0, 0);
    driver_desc(&drv, 0, TABLE, 64, D_INDIRECT, 0);
    taken(4, 0, 4, 0);
    table_set(&mem, TABLE, 3, BUF, 1, D_NEXT, 4);
    driver_desc(&drv, 0, TABLE, 80, D_INDIRECT, 0);
    refused("longer than the queue");
    end();
}

static void
test_indirect_refused(void)
{
    begin(4);
    table_set(&mem, TABLE, 0, BUF, 10, 0, 0);
    driver_desc(&drv, 0, TABLE, 0, D_INDIRECT, 0);
    refused("impossible length");
    driver_desc(&drv, 0, TABLE, 15, D_INDIRECT, 0);
    refused("impossible length");
    driver_desc(&drv, 0, TABLE, 17, D_INDIRECT, 0);
    refused("impossible length");
    driver_desc(&drv, 0, LOW, 0xfffffff0, D_INDIRECT, 0);
    refused("impossible length");
    driver_desc(&drv, 0, TABLE, 16, D_INDIRECT | D_NEXT, 1);
    refused("both INDIRECT and NEXT");
    driver_desc(&drv, 0, HOLE, 16, D_INDIRECT, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, HOLE - 16, 32, D_INDIRECT, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, UINT64_MAX - 15, 32, D_INDIRECT, 0);
    refused("outside RAM");
    driver_desc(&drv, 0, TABLE, 16, D_INDIRECT, 0);
    taken(1, 0, 10, 0);
    table_set(&mem, TABLE, 0, BUF, 10, D_NEXT, 1);
    refused("next descriptor");
    /* Inside another, and itself. */
    table_set(&mem, TABLE, 0, TABLE + 16, 16, D_INDIRECT, 0);
    table_set(&mem, TABLE, 1, BUF, 16, 0, 0);
    driver_desc(&drv, 0, TABLE, 32, D_INDIRECT, 0);
    refused("inside another");
    driver_desc(&drv, 0, drv.desc, 16, D_INDIRECT, 0);
    refused("inside another");
    vq.indirect = false;
    driver_desc(&drv, 0, TABLE + 16, 16, D_INDIRECT, 0);
    refused("not negotiated");
    end();
}

/* Tables wherever they may be: odd addresses, across regions, read-only. */
static void
test_indirect_places(void)
{
    static const uint64_t at[] = {TABLE + 1,   NEXT_TO - 16, NEXT_TO - 24,
                                  NEXT_TO - 1, HOLE - 32,    HIGH,
                                  ROM + 3};

    begin(4);
    for (unsigned i = 0; i < sizeof at / sizeof at[0]; i++) {
        table_set(&mem, at[i], 0, BUF, 10, D_NEXT, 1);
        table_set(&mem, at[i], 1, BUF + 16, 20, D_WRITE, 0);
        driver_desc(&drv, 0, at[i], 32, D_INDIRECT, 0);
        taken(1, 1, 10, 20);
    }
    end();
}

/* 2^32 bytes in one chain are in order, one more is not. */
static void
test_total_length(void)
{
    begin(8);
    vmm_mem_fini(&mem);
    CHECK_EQ(vmm_mem_add(&mem, LOW, 0x10000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, HIGH, 1ULL << 30, 0), 0);
    vmm_virtq_stop(&vq);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    for (uint16_t i = 0; i < 4; i++)
        driver_desc(&drv, i, HIGH, 1U << 30, i < 3 ? D_NEXT : 0, i + 1);
    taken(4, 0, 1ULL << 32, 0);
    driver_desc(&drv, 3, HIGH, 1U << 30, D_NEXT, 4);
    driver_desc(&drv, 4, HIGH, 0, D_WRITE, 0);
    taken(4, 0, 1ULL << 32, 0);
    driver_desc(&drv, 4, HIGH, 1, D_WRITE, 0);
    refused("2^32");
    /* Both kinds count together. */
    for (uint16_t i = 0; i < 4; i++)
        driver_desc(&drv, i, HIGH, 1U << 30, i < 3 ? D_NEXT : D_NEXT | D_WRITE,
                    i + 1);
    driver_desc(&drv, 4, HIGH, 0, D_WRITE, 0);
    taken(3, 1, 3ULL << 30, 1ULL << 30);
    driver_desc(&drv, 4, HIGH, 1, D_WRITE, 0);
    refused("2^32");
    end();
}

/* Overlapping buffers, each across the border: pieces are bounded. */
static void
test_pieces(void)
{
    uint32_t size = 256, most = VMM_MEM_MAX_REGIONS;

    begin(size);
    for (uint32_t n = most; n <= most + 1; n++) {
        for (uint32_t i = 0; i < size; i++)
            driver_desc(&drv, i, i < n ? NEXT_TO - 1 : BUF, 2,
                        i < size - 1 ? D_NEXT : 0, (uint16_t)(i + 1));
        if (n == most)
            taken(size + most, 0, 2 * size, 0);
        else
            refused("too many pieces");
    }
    end();
}

static void
test_avail_index(void)
{
    struct vmm_chain many[4] = {0};
    static const uint16_t wrong[] = {5, 0x100, 0x8000, 0xffff};

    begin(4);
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    for (unsigned i = 0; i < 4; i++) {
        driver_set_avail(&drv, wrong[i]);
        CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
        again();
    }
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    /* One head offered for ever: no more than 4 are taken before one is
     * used, so what is in flight stays bounded. */
    for (unsigned i = 0; i < 4; i++) {
        driver_offer(&drv, 0);
        CHECK_EQ(vmm_virtq_pop(&vq, &many[i]), 1);
    }
    CHECK_EQ(vmm_virtq_push(&vq, &many[0], 0), 0);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &many[0]), 1);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    /* A broken queue takes nothing back either. */
    CHECK_EQ(vmm_virtq_push(&vq, &many[0], 0), -EPROTO);
    again();
    /* Backwards. */
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    driver_set_avail(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &many[0]), -EPROTO);
    again();
    /* A head outside the table. */
    driver_offer(&drv, 4);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    again();
    driver_offer(&drv, 65535);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    for (unsigned i = 0; i < 4; i++)
        vmm_chain_fini(&many[i]);
    end();
}

static void
test_stale(void)
{
    struct vmm_chain other = {0};
    uint32_t head;

    begin(4);
    driver_desc(&drv, 0, BUF, 8, D_WRITE, 0);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK(vmm_chain_alive(&chain, &vq));
    vmm_virtq_stop(&vq);
    CHECK(!vmm_chain_alive(&chain, &vq));
    CHECK_EQ(vmm_virtq_push(&vq, &chain, 8), -ESTALE);
    driver_init(&drv, &mem, drv.desc, drv.size);
    driver_desc(&drv, 0, BUF, 8, D_WRITE, 0);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    vmm_virtq_stop(&vq);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    CHECK_EQ(vmm_virtq_unpop(&vq, &chain), -ESTALE);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    vmm_virtq_stop(&vq);
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    /* A stale chain may be used for the next. */
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(vmm_virtq_push(&vq, &chain, 8), 0);
    CHECK_EQ(driver_take(&drv, &head), 8);
    CHECK_EQ(driver_take(&drv, &head), -1);
    vmm_chain_fini(&other);
    end();
}

static void
test_unpop(void)
{
    struct vmm_chain three[3] = {0};

    begin(4);
    for (uint16_t i = 0; i < 3; i++) {
        driver_desc(&drv, i, BUF, i + 1U, 0, 0);
        driver_offer(&drv, i);
        CHECK_EQ(vmm_virtq_pop(&vq, &three[i]), 1);
    }
    CHECK_EQ(vmm_virtq_unpop(&vq, &three[1]), -EINVAL);
    CHECK_EQ(vmm_virtq_unpop(&vq, &three[2]), 0);
    CHECK_EQ(vmm_virtq_unpop(&vq, &three[2]), -ESTALE);
    CHECK_EQ(vmm_virtq_push(&vq, &three[0], 0), 0);
    CHECK_EQ(vmm_virtq_unpop(&vq, &three[1]), 0);
    CHECK(vmm_virtq_notify_on(&vq));
    CHECK_EQ(vmm_virtq_pop(&vq, &three[1]), 1);
    CHECK_EQ(three[1].head, 1);
    CHECK_EQ(vmm_virtq_pop(&vq, &three[2]), 1);
    CHECK_EQ(three[2].head, 2);
    for (unsigned i = 0; i < 3; i++)
        vmm_chain_fini(&three[i]);
    end();
}

/* The driver finds all of a group or none of it. */
static void
test_put(void)
{
    struct vmm_chain second = {0};
    uint32_t head;

    begin(4);
    for (uint16_t i = 0; i < 2; i++) {
        driver_desc(&drv, i, BUF, 8, D_WRITE, 0);
        driver_offer(&drv, i);
    }
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(vmm_virtq_pop(&vq, &second), 1);
    CHECK_EQ(vmm_virtq_put(&vq, &chain, 9), -EINVAL);
    CHECK_EQ(vmm_virtq_put(&vq, &chain, 8), 0);
    CHECK_EQ(vmm_virtq_put(&vq, &chain, 8), -ESTALE);
    CHECK_EQ(vmm_virtq_put(&vq, &second, 3), 0);
    CHECK_EQ(driver_take(&drv, &head), -1);
    vmm_virtq_publish(&vq);
    CHECK_EQ(driver_take(&drv, &head), 8);
    CHECK_EQ(head, 0);
    CHECK_EQ(driver_take(&drv, &head), 3);
    CHECK_EQ(head, 1);
    CHECK_EQ(driver_take(&drv, &head), -1);
    CHECK(vmm_virtq_must_interrupt(&vq));
    vmm_virtq_stop(&vq);
    vmm_virtq_publish(&vq);
    vmm_chain_fini(&second);
    end();
}

/* Saved in the middle, gone back to after more has happened. */
static void
test_snapshot(void)
{
    struct vmm_chain chains[4] = {0};
    struct vmm_virtq_state state;
    uint16_t heads[2], used, bad = 8;
    uint32_t head;

    begin(8);
    for (uint16_t i = 0; i < 8; i++)
        driver_desc(&drv, i, BUF + 64ULL * i, 64, D_WRITE, 0);
    for (uint32_t i = 0; i < 6; i++)
        driver_offer(&drv, (uint16_t)(7 - i));
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[i]), 1);
    CHECK_EQ(vmm_virtq_push(&vq, &chains[0], 1), 0);
    CHECK_EQ(vmm_virtq_push(&vq, &chains[2], 2), 0);
    vmm_virtq_save(&vq, &state);
    heads[0] = chains[1].head;
    heads[1] = chains[3].head;
    used = peek16(&mem, drv.used + 2);

    for (unsigned turn = 0; turn < 2; turn++) {
        CHECK_EQ(vmm_virtq_push(&vq, &chains[3], 3), 0);
        CHECK_EQ(vmm_virtq_push(&vq, &chains[1], 4), 0);
        poke16(&mem, drv.used + 2, used); /* memory goes back by itself */
        CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 2), 0);
        /* What was in flight comes first, in its order, then the ring. */
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[1]), 1);
        CHECK_EQ(chains[1].head, 6);
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[3]), 1);
        CHECK_EQ(chains[3].head, 4);
        CHECK_EQ(vmm_virtq_unpop(&vq, &chains[3]), 0);
        CHECK_EQ(vmm_virtq_unpop(&vq, &chains[1]), 0);
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[1]), 1);
        CHECK_EQ(chains[1].head, 6);
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[3]), 1);
        CHECK_EQ(chains[3].head, 4);
        CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
        CHECK_EQ(chain.head, 3);
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[0]), 1);
        CHECK_EQ(chains[0].head, 2);
        CHECK_EQ(vmm_virtq_pop(&vq, &chains[2]), 0);
        vmm_chain_drop(&chain);
    }
    /* A chain of before is stale, and takes nothing along. */
    CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 2), 0);
    CHECK_EQ(vmm_virtq_push(&vq, &chains[1], 0), -ESTALE);
    CHECK_EQ(vmm_virtq_unpop(&vq, &chains[3]), -ESTALE);
    while (!driver_take(&drv, &head))
        ;
    CHECK_EQ(peek16(&mem, drv.used + 2), used);

    /* States that no queue can have been in. */
    CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 3), -EINVAL);
    CHECK(!vq.ready);
    CHECK_EQ(vmm_virtq_load(&vq, &state, &bad, 1), -EINVAL);
    state.next_avail = (uint16_t)(state.next_used + 9);
    CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 2), -EINVAL);
    state.next_avail = (uint16_t)(state.next_used + 2);
    state.size = 7;
    CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 2), -EPROTO);
    CHECK(!vq.again);
    state.size = 8;
    state.used_gpa = HOLE;
    CHECK_EQ(vmm_virtq_load(&vq, &state, heads, 2), -EPROTO);
    vmm_virtq_reset(&vq);
    state.ready = 0;
    CHECK_EQ(vmm_virtq_load(&vq, &state, NULL, 0), 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 0);
    state.broken = 1;
    CHECK_EQ(vmm_virtq_load(&vq, &state, NULL, 0), 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), -EPROTO);
    for (unsigned i = 0; i < 4; i++)
        vmm_chain_fini(&chains[i]);
    end();
}

static void
test_interrupt_flag(void)
{
    begin(4);
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    CHECK(!vmm_virtq_must_interrupt(&vq));
    taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    CHECK(!vmm_virtq_must_interrupt(&vq));
    driver_set_avail_flags(&drv, VRING_AVAIL_F_NO_INTERRUPT);
    taken(1, 0, 1, 0);
    CHECK(!vmm_virtq_must_interrupt(&vq));
    driver_set_avail_flags(&drv, 0);
    CHECK(!vmm_virtq_must_interrupt(&vq));
    taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    end();
}

static void
test_interrupt_event(void)
{
    begin(4);
    vmm_virtq_stop(&vq);
    vq.event_idx = true;
    CHECK_EQ(vmm_virtq_start(&vq), 0);
    driver_desc(&drv, 0, BUF, 1, 0, 0);
    /* 2.7.7.2: with EVENT_IDX the flag is ignored. */
    driver_set_avail_flags(&drv, VRING_AVAIL_F_NO_INTERRUPT);
    driver_set_used_event(&drv, 0);
    taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    taken(1, 0, 1, 0);
    CHECK(!vmm_virtq_must_interrupt(&vq));
    driver_set_used_event(&drv, 3);
    taken(1, 0, 1, 0);
    CHECK(!vmm_virtq_must_interrupt(&vq));
    taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    /* In the middle of a batch. */
    driver_set_used_event(&drv, 5);
    taken(1, 0, 1, 0);
    taken(1, 0, 1, 0);
    taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    /* A batch of more than a turn of the index. */
    driver_set_used_event(&drv, vq.next_used - 1);
    for (unsigned i = 0; i < 65536; i++)
        taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    for (unsigned i = 0; i < 70000; i++)
        taken(1, 0, 1, 0);
    CHECK(vmm_virtq_must_interrupt(&vq));
    end();
}

/* The arithmetic against the specification's formula, for every event. */
static void
test_interrupt_event_formula(void)
{
    static const uint16_t starts[] = {0, 1, 0x7ffe, 0x8000, 0xfffd, 0xffff};

    begin(4);
    vq.event_idx = true;
    for (unsigned s = 0; s < 6; s++)
        for (uint16_t batch = 1; batch <= 4; batch++)
            for (uint32_t event = 0; event < 65536; event++) {
                uint16_t to = (uint16_t)(starts[s] + batch);
                bool want = vring_need_event((uint16_t)event, to, starts[s]);

                driver_set_used_event(&drv, (uint16_t)event);
                vq.next_used = to;
                vq.unsignalled = batch;
                if (vmm_virtq_must_interrupt(&vq) != want)
                    CHECK_EQ(event, -1);
            }
    end();
}

static void
test_notify(void)
{
    for (int event = 0; event < 2; event++) {
        begin(4);
        vmm_virtq_stop(&vq);
        vq.event_idx = event;
        CHECK_EQ(vmm_virtq_start(&vq), 0);
        driver_desc(&drv, 0, BUF, 1, 0, 0);
        vmm_virtq_notify_off(&vq);
        CHECK_EQ(driver_used_flags(&drv), event ? 0 : VRING_USED_F_NO_NOTIFY);
        CHECK(!vmm_virtq_notify_on(&vq));
        CHECK_EQ(driver_used_flags(&drv), 0);
        CHECK_EQ(driver_avail_event(&drv), 0);
        taken(1, 0, 1, 0);
        /* Not told yet: the driver would not notify for the second. */
        CHECK_EQ(driver_avail_event(&drv), 0);
        vmm_virtq_notify_off(&vq);
        driver_offer(&drv, 0);
        CHECK(vmm_virtq_notify_on(&vq));
        CHECK_EQ(driver_avail_event(&drv), event ? 1 : 0);
        CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
        CHECK(!vmm_virtq_notify_on(&vq));
        CHECK_EQ(driver_avail_event(&drv), event ? 2 : 0);
        end();
    }
}

/* Indices run from 65535 to 0 with every size's own number of turns. */
static void
test_wrap_around(void)
{
    static const uint32_t sizes[] = {1, 2, 256, 32768};

    for (unsigned s = 0; s < 4; s++)
        for (int event = 0; event < 2; event++) {
            uint32_t size = sizes[s], head = 0;
            bool good = true;

            vmm_mem_init(&mem);
            CHECK_EQ(vmm_mem_add(&mem, LOW, 0x200000, 0), 0);
            CHECK_EQ(vmm_virtq_init(&vq, &mem, size), 0);
            driver_init(&drv, &mem, LOW, size);
            driver_connect(&drv, &vq);
            vq.event_idx = event;
            CHECK_EQ(vmm_virtq_start(&vq), 0);
            for (uint32_t i = 0; i < size; i++)
                driver_desc(&drv, i, LOW + 0x180000, i + 1, D_WRITE, 0);
            for (uint32_t i = 0; i < 150000; i++) {
                uint16_t at = (uint16_t)(i % size);

                driver_set_used_event(&drv, (uint16_t)i);
                driver_offer(&drv, at);
                good &= vmm_virtq_pop(&vq, &chain) == 1;
                good &= chain.head == at && chain.writable_len == at + 1U;
                good &= !vmm_virtq_notify_on(&vq);
                good &= !event || driver_avail_event(&drv) == drv.avail_idx;
                good &= !vmm_virtq_push(&vq, &chain, at + 1U);
                good &= vmm_virtq_must_interrupt(&vq);
                good &= driver_take(&drv, &head) == at + 1 && head == at;
            }
            CHECK(good);
            CHECK_EQ(driver_take(&drv, &head), -1);
            /* All entries at once, at an index where it wraps. */
            while (drv.avail_idx != (uint16_t)(65536 - size / 2)) {
                driver_offer(&drv, 0);
                good &= vmm_virtq_pop(&vq, &chain) == 1;
                good &= !vmm_virtq_push(&vq, &chain, 0);
            }
            for (uint32_t i = 0; i < size; i++)
                driver_offer(&drv, (uint16_t)i);
            for (uint32_t i = 0; i < size; i++) {
                good &= vmm_virtq_pop(&vq, &chain) == 1 && chain.head == i;
                vmm_chain_drop(&chain);
            }
            CHECK(good);
            CHECK_EQ(vmm_virtq_pop(&vq, &chain), 0);
            end();
        }
}

static void
test_chain_copies(void)
{
    char buf[32] = "0123456789abcdefghij";
    char got[32] = "";

    begin(8);
    CHECK_EQ(vmm_mem_write(&mem, NEXT_TO - 3, buf, 10, VMM_MEM_HOST), 0);
    CHECK_EQ(vmm_mem_write(&mem, BUF, buf + 10, 5, VMM_MEM_HOST), 0);
    driver_desc(&drv, 0, NEXT_TO - 3, 10, D_NEXT, 1);
    driver_desc(&drv, 1, BUF, 5, D_NEXT, 2);
    driver_desc(&drv, 2, BUF + 0x100, 4, D_NEXT | D_WRITE, 3);
    driver_desc(&drv, 3, NEXT_TO - 1, 2, D_WRITE, 0);
    driver_offer(&drv, 0);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(vmm_chain_read(&chain, 0, got, 32), 15);
    CHECK(!memcmp(got, buf, 15));
    CHECK_EQ(vmm_chain_read(&chain, 2, got, 2), 2);
    CHECK(!memcmp(got, "23", 2));
    CHECK_EQ(vmm_chain_read(&chain, 14, got, 9), 1);
    CHECK_EQ(got[0], 'e');
    CHECK_EQ(vmm_chain_read(&chain, 15, got, 9), 0);
    CHECK_EQ(vmm_chain_read(&chain, UINT64_MAX, got, 9), 0);
    CHECK_EQ(vmm_chain_write(&chain, &mem, 0, "ABCDEFGH", 8), 6);
    CHECK_EQ(vmm_chain_write(&chain, &mem, 3, "xyz", 2), 2);
    CHECK_EQ(vmm_chain_write(&chain, &mem, 6, "xyz", 2), 0);
    CHECK_EQ(vmm_mem_read(&mem, BUF + 0x100, got, 4), 0);
    CHECK(!memcmp(got, "ABCx", 4));
    CHECK_EQ(vmm_mem_read(&mem, NEXT_TO - 1, got, 2), 0);
    CHECK(!memcmp(got, "yF", 2));
    end();
}

/* All that the device writes shows in the dirty bitmap, whenever it does. */
static void
test_dirty(void)
{
    uint64_t bits[1];

    begin(256);
    driver_desc(&drv, 0, BUF + 0xfff, 2, D_WRITE, 0);
    driver_offer(&drv, 0);
    vmm_mem_take_dirty(&mem, 0, bits);
    CHECK_EQ(vmm_virtq_pop(&vq, &chain), 1);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 2);
    CHECK_EQ(bits[0], 3ULL << 8);
    vmm_chain_write(&chain, &mem, 1, "x", 1);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 1);
    CHECK_EQ(bits[0], 2ULL << 8);
    vmm_virtq_push(&vq, &chain, 2);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 1);
    CHECK_EQ(bits[0], 1ULL << ((drv.used - LOW) >> 12));
    vmm_virtq_notify_off(&vq);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 1);
    vq.event_idx = true;
    vmm_virtq_notify_on(&vq);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 1);
    CHECK_EQ(bits[0], 1ULL << ((drv.used + 4 + 8 * 256 - LOW) >> 12));
    end();
}

/* Every segment lies in RAM, wherever the descriptors came from. */
static bool
sound(const struct vmm_chain *c, uint32_t size)
{
    unsigned count = c->readable + c->writable;
    uint64_t len[2] = {0, 0};

    if (c->descs > size || count > size + VMM_MEM_MAX_REGIONS)
        return false;
    for (unsigned i = 0; i < count; i++) {
        const struct vmm_segment *s = &c->seg[i];
        const struct vmm_region *r = vmm_mem_find(&mem, s->gpa);

        if (!r || !s->len || s->len > r->len - (s->gpa - r->gpa) ||
            s->hva != r->hva + (s->gpa - r->gpa))
            return false;
        if (i >= c->readable && (r->flags & VMM_MEM_READONLY))
            return false;
        len[i >= c->readable] += s->len;
    }
    return len[0] == c->readable_len && len[1] == c->writable_len;
}

static bool flipping;

static void *
flipper(void *arg)
{
    static const uint64_t addrs[] = {BUF,   NEXT_TO - 1, HOLE,
                                     TABLE, ROM,         UINT64_MAX};
    static const uint32_t lens[] = {0, 1, 2, 16, 64, UINT32_MAX};
    uint32_t x = 1;

    (void)arg;
    while (__atomic_load_n(&flipping, __ATOMIC_RELAXED)) {
        uint64_t at;

        x = x * 1664525 + 1013904223;
        at = x >> 31 ? drv.desc : TABLE;
        table_set(&mem, at, x >> 8 & 3, addrs[(x >> 10) % 6],
                  lens[(x >> 13) % 6], x >> 20 & 7, x >> 23 & 3);
        if (!(x >> 28 & 7))
            poke16(&mem, drv.avail + 4 + (x >> 10 & 6), x >> 4 & 3);
    }
    return NULL;
}

/* Descriptors change while they are walked. */
static void
test_changed_meanwhile(void)
{
    unsigned good = 0, bad = 0;
    bool all_sound = true;
    pthread_t thread;

    begin(4);
    __atomic_store_n(&flipping, true, __ATOMIC_RELAXED);
    CHECK_EQ(pthread_create(&thread, NULL, flipper, NULL), 0);
    while (good < 20000 || bad < 20000) {
        driver_set_avail(&drv, (uint16_t)(drv.avail_idx + 1));
        if (vmm_virtq_pop(&vq, &chain) == 1) {
            good++;
            all_sound &= sound(&chain, 4);
            vmm_virtq_push(&vq, &chain, 0);
        } else {
            bad++;
            vmm_virtq_stop(&vq);
            driver_set_avail(&drv, 0);
            vmm_virtq_start(&vq);
        }
    }
    __atomic_store_n(&flipping, false, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    CHECK(all_sound);
    end();
}

int
main(void)
{
    RUN(test_init_sizes);
    RUN(test_start);
    RUN(test_start_in_rom);
    RUN(test_start_at_the_end);
    RUN(test_round_trip);
    RUN(test_borders);
    RUN(test_loops_and_order);
    RUN(test_empty_descriptors);
    RUN(test_indirect);
    RUN(test_indirect_refused);
    RUN(test_indirect_places);
    RUN(test_total_length);
    RUN(test_pieces);
    RUN(test_avail_index);
    RUN(test_stale);
    RUN(test_unpop);
    RUN(test_put);
    RUN(test_snapshot);
    RUN(test_interrupt_flag);
    RUN(test_interrupt_event);
    RUN(test_interrupt_event_formula);
    RUN(test_notify);
    RUN(test_wrap_around);
    RUN(test_chain_copies);
    RUN(test_dirty);
    RUN(test_changed_meanwhile);
    return check_done();
}

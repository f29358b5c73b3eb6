/* SPDX-License-Identifier: Apache-2.0 */
/* test_filter.c - registers answered on the bus, and writes that wait */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "vmm/filter.h"

#define BASE 0x1000

enum { PLAIN, MIXED, CALLED, WIDE, BYTE, DATA, MORE, REGS };

static uint64_t value[REGS];
static struct vmm_reg reg[REGS];
static struct vmm_filter filter;
static struct vmm_post post;
static struct vmm_bus bus;

static void
declare(unsigned number, uint64_t offset, unsigned len, unsigned here)
{
    value[number] = 0;
    reg[number] = (struct vmm_reg){
        .offset = offset,
        .len = len,
        .here = here,
        .number = number,
        .value = &value[number],
        .readable = vmm_ones(len),
        .stored = vmm_ones(len),
    };
}

/* All of them on a bus; DATA and MORE are posted, `limit` writes are full. */
static void
set_up(unsigned limit)
{
    struct vmm_range range = {
        .base = BASE,
        .last = BASE + 0xff,
        .ops = &vmm_filter_ops,
        .dev = &filter,
        .owner = &filter,
    };
    unsigned both = VMM_REG_READ | VMM_REG_WRITE;

    declare(PLAIN, 0x00, 4, both);
    declare(MIXED, 0x04, 4, both);
    declare(CALLED, 0x08, 4, 0);
    declare(WIDE, 0x10, 8, both);
    declare(BYTE, 0x19, 1, both);
    declare(DATA, 0x20, 4, both | VMM_REG_POSTED);
    declare(MORE, 0x24, 2, both | VMM_REG_POSTED);
    reg[MIXED].readable = 0xff00ffff;
    reg[MIXED].stored = 0xffff0000;
    reg[MIXED].w1c = 0x0000ff00;
    reg[DATA].stored = 0x0fffffff;
    CHECK_EQ(vmm_post_init(&post, limit), 0);
    filter = (struct vmm_filter){
        .reg = reg, .count = REGS, .here = both, .post = &post};
    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(vmm_bus_add(&bus, &range, NULL), 0);
}

static void
tear_down(void)
{
    vmm_bus_fini(&bus);
    vmm_post_fini(&post);
}

/* What the bus answers; *val is 99 when it leaves the read alone. */
static int
get(uint64_t offset, unsigned len, uint64_t *val)
{
    struct vmm_range range;

    *val = 99;
    return vmm_bus_read(&bus, BASE + offset, len, val, &range);
}

static int
put(uint64_t offset, unsigned len, uint64_t val)
{
    struct vmm_range range;

    return vmm_bus_write(&bus, BASE + offset, len, val, &range);
}

static void
values_are_kept(void)
{
    uint64_t val;

    set_up(4);
    CHECK_EQ(put(0x00, 4, 0x12345678), VMM_BUS_DONE);
    CHECK_EQ(value[PLAIN], 0x12345678);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0x12345678);
    value[PLAIN] = 7; /* the owner's side */
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 7);
    CHECK_EQ(put(0x10, 8, UINT64_MAX), VMM_BUS_DONE);
    CHECK_EQ(get(0x10, 8, &val), VMM_BUS_DONE);
    CHECK_EQ(val, UINT64_MAX);
    CHECK_EQ(put(0x19, 1, 0xab), VMM_BUS_DONE);
    CHECK_EQ(get(0x19, 1, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0xab);
    tear_down();
}

static void
bits_have_rules(void)
{
    uint64_t val;

    set_up(4);
    value[MIXED] = 0x4433ff11;
    CHECK_EQ(put(0x04, 4, 0xaabb0fcc), VMM_BUS_DONE);
    /* ro kept, four of w1c cleared, the rest set. */
    CHECK_EQ(value[MIXED], 0xaabbf011);
    CHECK_EQ(get(0x04, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0xaa00f011);
    CHECK_EQ(vmm_reg_write(&reg[MIXED], 0x00001000), 0xaabbf011);
    CHECK_EQ(value[MIXED], 0x0000e011);
    tear_down();
}

static void
the_rest_is_the_owners(void)
{
    static const struct {
        uint64_t offset;
        unsigned len;
    } other[] = {
        {0x08, 4},                                  /* has a method */
        {0x00, 1}, {0x00, 2}, {0x02, 2},            /* parts */
        {0x00, 8}, {0x03, 2}, {0x06, 4},            /* several, or between */
        {0x0c, 4}, {0x18, 1}, {0x18, 2}, {0xf8, 8}, /* none */
        {0x20, 2}, {0x22, 4}, {0x1c, 8},            /* part of a posted one */
    };
    uint64_t val;

    set_up(4);
    for (unsigned i = 0; i < sizeof other / sizeof *other; i++) {
        CHECK_EQ(get(other[i].offset, other[i].len, &val), VMM_BUS_OUTSIDE);
        CHECK_EQ(val, 99);
        CHECK_EQ(put(other[i].offset, other[i].len, 1), VMM_BUS_OUTSIDE);
    }
    for (unsigned i = 0; i < REGS; i++)
        CHECK_EQ(value[i], 0);
    CHECK_EQ(vmm_post_count(&post), 0);
    filter.here = VMM_REG_READ; /* he has a write() of his own */
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(put(0x00, 4, 1), VMM_BUS_OUTSIDE);
    CHECK_EQ(put(0x20, 4, 1), VMM_BUS_OUTSIDE);
    filter.here = VMM_REG_WRITE;
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_OUTSIDE);
    CHECK_EQ(put(0x00, 4, 1), VMM_BUS_DONE);
    tear_down();
}

static void
registers_are_found(void)
{
    static const unsigned first[] = {
        [0x00] = PLAIN, [0x03] = PLAIN, [0x04] = MIXED, [0x0b] = CALLED,
        [0x0c] = WIDE,  [0x17] = WIDE,  [0x18] = BYTE,  [0x19] = BYTE,
        [0x1a] = DATA,  [0x23] = DATA,  [0x25] = MORE,  [0x26] = REGS,
    };

    set_up(1);
    for (unsigned i = 0; i < sizeof first / sizeof *first; i++) {
        if (first[i] || i < 4)
            CHECK_EQ(vmm_filter_first(&filter, i), first[i]);
    }
    CHECK_EQ(vmm_filter_first(&filter, UINT64_MAX), REGS);
    for (unsigned i = 0; i < REGS; i++) {
        CHECK(vmm_filter_find(&filter, reg[i].offset, reg[i].len) == &reg[i]);
        CHECK(!vmm_filter_find(&filter, reg[i].offset, reg[i].len + 1));
        CHECK(!vmm_filter_find(&filter, reg[i].offset + 1, reg[i].len));
    }
    filter.count = 0;
    CHECK_EQ(vmm_filter_first(&filter, 0), 0);
    CHECK(!vmm_filter_find(&filter, 0, 4));
    tear_down();
}

static void
writes_wait_in_order(void)
{
    uint32_t data[4];
    uint16_t more[4];
    unsigned number = REGS;

    set_up(4);
    CHECK_EQ(vmm_post_run(&post, 9, &number), 0);
    CHECK_EQ(number, REGS); /* untouched */
    CHECK_EQ(put(0x20, 4, 0xf1234567), VMM_BUS_DONE);
    CHECK_EQ(value[DATA], 0x01234567); /* the bits that there are */
    CHECK_EQ(put(0x20, 4, 2), VMM_BUS_DONE);
    CHECK_EQ(put(0x24, 2, 3), VMM_BUS_DONE);
    CHECK_EQ(put(0x20, 4, 4), VMM_BUS_OWNER); /* full */
    CHECK_EQ(put(0x24, 2, 5), VMM_BUS_OWNER); /* there is some more room */
    CHECK_EQ(vmm_post_count(&post), 5);
    CHECK_EQ(vmm_post_run(&post, 1, &number), 1); /* no more than asked for */
    CHECK_EQ(vmm_post_run(&post, 9, &number), 2);
    CHECK_EQ(number, DATA);
    vmm_post_take(&post, 2, 4, data);
    CHECK_EQ(data[0], 0x01234567);
    CHECK_EQ(data[1], 2);
    CHECK_EQ(vmm_post_count(&post), 3);
    CHECK_EQ(vmm_post_waiting(&post), 5); /* not handled yet */
    vmm_post_done(&post, 2);
    CHECK_EQ(vmm_post_waiting(&post), 3);
    CHECK_EQ(vmm_post_run(&post, 9, &number), 1);
    CHECK_EQ(number, MORE);
    vmm_post_take(&post, 1, 2, more);
    CHECK_EQ(more[0], 3);
    CHECK_EQ(vmm_post_run(&post, 9, &number), 1);
    CHECK_EQ(number, DATA);
    tear_down();
}

static void
what_waits_comes_first(void)
{
    uint32_t data;
    uint64_t val;
    unsigned number;

    set_up(4);
    CHECK_EQ(put(0x20, 4, 1), VMM_BUS_DONE);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_OUTSIDE);
    CHECK_EQ(put(0x00, 4, 5), VMM_BUS_OUTSIDE);
    CHECK_EQ(get(0x20, 4, &val), VMM_BUS_OUTSIDE);
    CHECK_EQ(value[PLAIN], 0);
    CHECK_EQ(vmm_post_run(&post, 9, &number), 1);
    vmm_post_take(&post, 1, 4, &data);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_OUTSIDE); /* the owner works on it */
    vmm_post_done(&post, 1);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(get(0x20, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 1);
    vmm_post_hold(&post);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_OUTSIDE);
    CHECK_EQ(vmm_post_count(&post), 0);
    vmm_post_done(&post, 1);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    tear_down();
}

/* An owner that never comes: the write that finds no room is not done. */
static void
a_full_post_takes_no_more(void)
{
    unsigned room = 3 + VMM_POST_SPARE;

    set_up(3);
    for (unsigned i = 0; i < room; i++)
        CHECK_EQ(put(0x20, 4, i), i < 2 ? VMM_BUS_DONE : VMM_BUS_OWNER);
    CHECK_EQ(put(0x20, 4, 1234), VMM_BUS_OUTSIDE);
    CHECK_EQ(value[DATA], room - 1);
    CHECK_EQ(vmm_post_count(&post), room);
    CHECK_EQ(vmm_post_waiting(&post), room);
    tear_down();
}

/* Many times around the ring, runs of every length across its end. */
static void
the_ring_goes_round(void)
{
    uint32_t out[200], sent = 0, got = 0;
    unsigned number;

    set_up(100);
    for (unsigned i = 0; i < 1000; i++) {
        unsigned len = 1 + i * 7 % 150;

        for (unsigned j = 0; j < len; j++)
            CHECK(put(0x20, 4, sent++) != VMM_BUS_OUTSIDE);
        CHECK_EQ(vmm_post_run(&post, 200, &number), len);
        vmm_post_take(&post, len, 4, out);
        vmm_post_done(&post, len);
        for (unsigned j = 0; j < len; j++)
            CHECK_EQ(out[j], got++);
    }
    CHECK_EQ(vmm_post_waiting(&post), 0);
    tear_down();
}

static void
limits_are_checked(void)
{
    memset(&post, 0, sizeof post);
    CHECK_EQ(vmm_post_init(&post, VMM_POST_MOST + 1), -EINVAL);
    vmm_post_fini(&post);
    CHECK_EQ(vmm_post_init(&post, VMM_POST_MOST), 0);
    vmm_post_fini(&post);
    vmm_post_fini(&post);
    CHECK_EQ(vmm_post_init(&post, 0), 0); /* always full */
    declare(DATA, 0, 4, 0);
    CHECK_EQ(vmm_post_write(&post, &reg[DATA], 1), VMM_BUS_OWNER);
    vmm_post_fini(&post);
    CHECK_EQ(vmm_post_waiting(NULL), 0);
}

static void
a_filter_is_replaced(void)
{
    uint64_t other = 0x77, val;
    struct vmm_reg same = {.offset = 0x0,
                           .len = 4,
                           .here = VMM_REG_READ,
                           .value = &other,
                           .readable = 0xff};
    struct vmm_filter next = {.reg = &same, .count = 1, .here = VMM_REG_READ};

    set_up(4);
    CHECK_EQ(
        vmm_bus_replace(&bus, BASE + 1, &filter, &vmm_filter_ops, &next, true),
        -ENOENT);
    CHECK_EQ(vmm_bus_replace(&bus, BASE + 0x100, &filter, NULL, NULL, true),
             -ENOENT);
    CHECK_EQ(vmm_bus_replace(&bus, BASE, &next, &vmm_filter_ops, &next, true),
             -ENOENT); /* somebody else's by now */
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0);
    CHECK_EQ(vmm_bus_replace(&bus, BASE, &filter, &vmm_filter_ops, &next, true),
             0);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0x77);
    CHECK_EQ(put(0x00, 4, 1), VMM_BUS_OUTSIDE);
    pthread_rwlock_rdlock(&bus.lock); /* an op runs */
    CHECK_EQ(vmm_bus_replace(&bus, BASE, &filter, NULL, NULL, false), -EBUSY);
    pthread_rwlock_unlock(&bus.lock);
    CHECK_EQ(vmm_bus_replace(&bus, BASE, &filter, NULL, NULL, false), 0);
    CHECK_EQ(get(0x00, 4, &val), VMM_BUS_OUTSIDE);
    tear_down();
}

int
main(void)
{
    RUN(values_are_kept);
    RUN(bits_have_rules);
    RUN(the_rest_is_the_owners);
    RUN(registers_are_found);
    RUN(writes_wait_in_order);
    RUN(what_waits_comes_first);
    RUN(a_full_post_takes_no_more);
    RUN(the_ring_goes_round);
    RUN(limits_are_checked);
    RUN(a_filter_is_replaced);
    return check_done();
}

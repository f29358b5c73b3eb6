/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_threads.c - what threads share in the core, under ThreadSanitizer
 *
 * Includes the sources instead of linking them, so that they are instrumented
 * whichever way libvmm.a was built.
 *
 * link: -fno-sanitize=all -fsanitize=thread
 */
#include "vmm/bus.c"
#include "vmm/console.c"
#include "vmm/filter.c"
#include "vmm/mem.c"

#include "check.h"

#define ROUNDS 2000

static pthread_barrier_t start;

/* Runs fn(0) to fn(count - 1), each on a thread that waits for `start`. */
static void
together(void *(*fn)(void *), unsigned count)
{
    pthread_t thread[8];

    pthread_barrier_init(&start, NULL, count);
    for (uintptr_t i = 0; i < count; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, fn, (void *)i), 0);
    for (unsigned i = 0; i < count; i++)
        CHECK_EQ(pthread_join(thread[i], NULL), 0);
    pthread_barrier_destroy(&start);
}

/* -- bus ------------------------------------------------------------------- */

/* A device whose op must not run once it has been removed. */
struct guard {
    bool gone;     /* atomic; set by the remover when vmm_bus_remove is back */
    unsigned late; /* atomic; ops that ran after that */
    unsigned calls;
};

static struct vmm_bus bus;
static struct guard guards[2];
static bool done; /* atomic */

static int
guard_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    struct guard *guard = dev;

    if (__atomic_load_n(&guard->gone, __ATOMIC_SEQ_CST))
        __atomic_fetch_add(&guard->late, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&guard->calls, 1, __ATOMIC_RELAXED);
    *val = offset + len;
    return VMM_BUS_DONE;
}

static int
guard_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    uint64_t ignored;

    (void)val;
    return guard_read(dev, offset, len, &ignored);
}

static const struct vmm_bus_ops guard_ops = {
    .read = guard_read,
    .write = guard_write,
};

/* Adds and removes its range again and again, never twice the same memory. */
static void
change(uintptr_t who)
{
    struct guard *guard = &guards[who];
    struct vmm_range range = {
        .base = 0x1000 * (who + 1),
        .last = 0x1000 * (who + 1) + 0xff,
        .ops = &guard_ops,
        .dev = guard,
    };

    for (unsigned i = 0; i < ROUNDS; i++) {
        __atomic_store_n(&guard->gone, false, __ATOMIC_SEQ_CST);
        if (vmm_bus_add(&bus, &range, NULL))
            CHECK(!"added");
        if (vmm_bus_remove(&bus, range.base))
            CHECK(!"removed");
        __atomic_store_n(&guard->gone, true, __ATOMIC_SEQ_CST);
    }
    __atomic_store_n(&done, true, __ATOMIC_SEQ_CST);
}

static void *
change_or_access(void *arg)
{
    uintptr_t who = (uintptr_t)arg;
    struct vmm_range range;
    uint64_t val;

    pthread_barrier_wait(&start);
    if (who < 2) {
        change(who);
        return NULL;
    }
    do {
        for (uint64_t at = 0x1000; at <= 0x3000; at += 0x1000) {
            vmm_bus_read(&bus, at + 8, 4, &val, &range);
            vmm_bus_write(&bus, at + 8, 4, 7, &range);
            vmm_bus_find(&bus, at, 1, &range);
        }
    } while (!__atomic_load_n(&done, __ATOMIC_SEQ_CST));
    return NULL;
}

static void
ranges_come_and_go_under_accesses(void)
{
    struct guard stays = {0};
    struct vmm_range range = {
        .base = 0x3000, .last = 0x30ff, .ops = &guard_ops, .dev = &stays};

    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(vmm_bus_add(&bus, &range, NULL), 0);
    together(change_or_access, 5);
    CHECK_EQ(guards[0].late, 0);
    CHECK_EQ(guards[1].late, 0);
    CHECK(stays.calls > 0);
    CHECK_EQ(bus.count, 1);
    vmm_bus_fini(&bus);
}

/* -- memory ---------------------------------------------------------------- */

static struct vmm_mem mem;

/* Pages who, who + 4, ...: neighbours share a word of bits. */
static void *
write_pages(void *arg)
{
    uintptr_t who = (uintptr_t)arg;

    pthread_barrier_wait(&start);
    for (unsigned page = (unsigned)who; page < 4096; page += 4)
        vmm_mem_write(&mem, page * VMM_PAGE_SIZE, &page, 4, VMM_MEM_GUEST);
    return NULL;
}

static void
no_dirty_bit_is_lost(void)
{
    uint64_t bits[4096 / 64];

    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, 4096 * VMM_PAGE_SIZE, 0), 0);
    vmm_mem_freeze(&mem);
    together(write_pages, 4);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 4096);
    vmm_mem_fini(&mem);
}

/* One thread takes while others write: a page is in one of the answers. */
static uint64_t taken[4096 / 64];

static void
take(void)
{
    uint64_t bits[4096 / 64];

    vmm_mem_take_dirty(&mem, 0, bits);
    for (unsigned i = 0; i < 4096 / 64; i++)
        taken[i] |= bits[i];
}

static void *
write_or_take(void *arg)
{
    if (arg)
        return write_pages(arg);
    pthread_barrier_wait(&start);
    for (unsigned i = 0; i < 100; i++)
        take();
    return NULL;
}

static void
taking_loses_nothing(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, 4096 * VMM_PAGE_SIZE, 0), 0);
    vmm_mem_freeze(&mem);
    together(write_or_take, 4); /* 1 to 3 write */
    take();
    for (unsigned page = 0; page < 4096; page++)
        CHECK_EQ(taken[page / 64] >> page % 64 & 1, page % 4 != 0);
    vmm_mem_fini(&mem);
}

/* -- console --------------------------------------------------------------- */

static struct vmm_console con;

static void *
print_or_read(void *arg)
{
    uintptr_t who = (uintptr_t)arg;
    uint64_t from = 0, val;
    char buf[64];

    pthread_barrier_wait(&start);
    for (unsigned i = 0; i < ROUNDS; i++) {
        if (who < 2) {
            vmm_console_ops.write(&con, 0, 4, 0x0a636261); /* "abc\n" */
            vmm_console_ops.read(&con, 0, 1, &val);
            vmm_console_ops.read(&con, 4, 1, &val);
        } else {
            vmm_console_copy(&con, &from, buf, sizeof buf);
            vmm_console_send(&con, "x", 1);
            vmm_console_end(&con);
            vmm_console_flush(&con);
        }
    }
    return NULL;
}

static void
a_console_is_anyones(void)
{
    CHECK_EQ(vmm_console_init(&con, 1000), 0);
    together(print_or_read, 4);
    CHECK_EQ(vmm_console_end(&con), 2 * 4 * ROUNDS);
    vmm_console_fini(&con);
}

/* -- filters --------------------------------------------------------------- */

/*
 * Three vCPUs post numbers of their own and change a register that is not
 * posted; the owner takes, and sets bits that they clear.
 */
static struct vmm_filter filter;
static struct vmm_post post;
static uint64_t posted_value, plain_value;
static uint64_t next_of[4]; /* of each vCPU, the number to come */
static unsigned left;       /* vCPUs; atomic */

static void
take_posted(void)
{
    uint64_t out[16];
    unsigned number, run = vmm_post_run(&post, 16, &number);

    vmm_post_take(&post, run, 8, out);
    for (unsigned i = 0; i < run; i++) {
        if (out[i] >> 32 > 3 || (uint32_t)out[i] != next_of[out[i] >> 32]++)
            CHECK(!"in order");
    }
    vmm_post_done(&post, run);
}

static void *
post_or_take(void *arg)
{
    uintptr_t who = (uintptr_t)arg;
    uint64_t val;

    pthread_barrier_wait(&start);
    if (!who) {
        while (__atomic_load_n(&left, __ATOMIC_SEQ_CST) ||
               vmm_post_waiting(&post))
            take_posted();
        return NULL;
    }
    for (uint64_t i = 0; i < ROUNDS; i++) {
        while (vmm_filter_ops.write(&filter, 0, 8, who << 32 | i) ==
               VMM_BUS_OUTSIDE)
            ;
        vmm_filter_ops.read(&filter, 8, 8, &val);
        vmm_reg_write(&filter.reg[1], 1ULL << who); /* w1c */
    }
    __atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void
posted_writes_keep_their_order(void)
{
    const struct vmm_reg reg[2] = {
        {.offset = 0,
         .len = 8,
         .here = VMM_REG_WRITE | VMM_REG_POSTED,
         .value = &posted_value,
         .stored = UINT64_MAX},
        {.offset = 8,
         .len = 8,
         .here = VMM_REG_READ | VMM_REG_WRITE,
         .number = 1,
         .value = &plain_value,
         .readable = UINT64_MAX,
         .w1c = UINT64_MAX},
    };

    CHECK_EQ(vmm_post_init(&post, 32), 0);
    filter = (struct vmm_filter){.reg = reg,
                                 .count = 2,
                                 .here = VMM_REG_READ | VMM_REG_WRITE,
                                 .post = &post};
    plain_value = 0x1e;
    left = 3;
    together(post_or_take, 4);
    for (unsigned i = 1; i < 4; i++)
        CHECK_EQ(next_of[i], ROUNDS);
    CHECK_EQ(plain_value, 0x10); /* each has cleared its own bit */
    vmm_post_fini(&post);
}

int
main(void)
{
    RUN(ranges_come_and_go_under_accesses);
    RUN(no_dirty_bit_is_lost);
    RUN(taking_loses_nothing);
    RUN(a_console_is_anyones);
    RUN(posted_writes_keep_their_order);
    return check_done();
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_virtq_enum.c - the walker on all small rings, against a plain reading
 * of the specification
 *
 * All combinations of addresses at the borders of RAM, of lengths, flags and
 * next links in tables of one and two descriptors, direct and indirect, and of
 * a reduced set in tables of four. For each, the queue must take or break the
 * chain exactly as the model below does, and every segment must be where the
 * model says: inside RAM, and when it is to be written, in RAM that may be.
 */
#include <errno.h>

#include "check.h"
#include "driver.h"

/*
 * RAM        a page with the rings and a table
 * ROM        a read-only page that begins where RAM ends
 * (a hole of one page)
 * FAR        a page
 */
#define RAM     0x10000ULL
#define ROM     0x11000ULL
#define HOLE    0x12000ULL
#define FAR     0x13000ULL
#define FAR_END 0x14000ULL
#define RINGS   RAM
#define TABLE   (RAM + 0x800)

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct vmm_mem mem;
static struct vmm_virtq vq;
static struct vmm_chain chain;
static struct driver drv;
static uint64_t cases, takens;

struct piece {
    uint64_t gpa;
    uint32_t len;
    bool write;
};

/* The model: what is RAM, by arithmetic. */
static bool
is_ram(uint64_t gpa, uint64_t len, bool write)
{
    if (gpa >= RAM && gpa < HOLE && len <= HOLE - gpa)
        return !write || (gpa < ROM && len <= ROM - gpa);
    return gpa >= FAR && gpa < FAR_END && len <= FAR_END - gpa;
}

/* The pieces of the chain from `head`, their number, or -1: broken. */
static int
model(uint64_t table, uint32_t head, struct piece *piece)
{
    uint32_t entries = vq.size, at = head, descs = 0;
    bool writing = false, inside = false;
    int count = 0;

    if (head >= vq.size)
        return -1;
    for (;;) {
        struct vring_desc d;
        bool write;

        if (vmm_mem_read(&mem, table + 16ULL * at, &d, sizeof d))
            return -1;
        write = d.flags & D_WRITE;
        if (d.flags & D_INDIRECT) {
            if (inside || !vq.indirect || (d.flags & D_NEXT))
                return -1;
            if (!d.len || d.len % 16 || !is_ram(d.addr, d.len, false))
                return -1;
            entries = d.len / 16;
            table = d.addr;
            inside = true;
            at = 0;
            continue;
        }
        if (++descs > vq.size || (writing && !write))
            return -1;
        writing = write;
        if (d.len && !is_ram(d.addr, d.len, write))
            return -1;
        if (d.len && d.addr < ROM && d.len > ROM - d.addr) {
            piece[count++] =
                (struct piece){d.addr, (uint32_t)(ROM - d.addr), write};
            piece[count++] =
                (struct piece){ROM, (uint32_t)(d.len - (ROM - d.addr)), write};
        } else if (d.len) {
            piece[count++] = (struct piece){d.addr, d.len, write};
        }
        if (!(d.flags & D_NEXT))
            return count;
        if (d.next >= entries)
            return -1;
        at = d.next;
    }
}

static bool
agrees(const struct piece *piece, int count)
{
    uint64_t len[2] = {0, 0};

    if ((int)(chain.readable + chain.writable) != count)
        return false;
    for (int i = 0; i < count; i++) {
        const struct vmm_segment *s = &chain.seg[i];
        bool write = i >= (int)chain.readable;

        if (s->gpa != piece[i].gpa || s->len != piece[i].len ||
            write != piece[i].write || s->hva != driver_ptr(&mem, s->gpa))
            return false;
        len[write] += s->len;
    }
    return len[0] == chain.readable_len && len[1] == chain.writable_len &&
           chain.descs <= vq.size;
}

/* Offers `head` to a fresh queue and compares. False when they differ. */
static bool
offer(uint32_t head)
{
    struct piece piece[16];
    int count = model(drv.desc, head, piece);
    int ret;

    driver_set_avail(&drv, 0);
    driver_offer(&drv, (uint16_t)head);
    if (!vq.ready && vmm_virtq_start(&vq))
        return false;
    vq.next_avail = 0;
    ret = vmm_virtq_pop(&vq, &chain);
    vmm_chain_drop(&chain);
    cases++;
    if (ret != 1) {
        vmm_virtq_stop(&vq);
        return ret == -EPROTO && count < 0;
    }
    takens++;
    return count >= 0 && agrees(piece, count);
}

/* One of the descriptors to be tried, by number. */
struct choice {
    const uint64_t *addr;
    const uint32_t *len;
    const uint16_t *flags;
    unsigned addrs, lens, flagss, nexts;
};

static uint32_t
choices(const struct choice *c)
{
    return c->addrs * c->lens * c->flagss * c->nexts;
}

static void
choose(const struct choice *c, uint32_t n, uint64_t table, uint32_t i)
{
    struct vring_desc *d = driver_ptr(&mem, table + 16ULL * i);

    d->next = (uint16_t)(n % c->nexts);
    n /= c->nexts;
    d->flags = c->flags[n % c->flagss];
    n /= c->flagss;
    d->len = c->len[n % c->lens];
    d->addr = c->addr[n / c->lens];
}

static const uint64_t all_addrs[] = {
    RAM - 1,      RAM,   ROM - 1, HOLE - 1, HOLE,       FAR,     FAR_END - 1,
    FAR_END - 16, RINGS, TABLE,   ROM - 16, UINT64_MAX, FAR_END,
};
static const uint32_t all_lens[] = {0,  1,      2,      16,
                                    32, 0x1000, 0x1001, UINT32_MAX};
static const uint16_t all_flags[] = {0, 1, 2, 3, 4, 5, 6, 7};

static const uint64_t some_addrs[] = {
    RAM, ROM - 1, HOLE - 1, HOLE, FAR_END - 1, RINGS, TABLE, UINT64_MAX};
static const uint32_t some_lens[] = {0, 1, 2, 16, 32, UINT32_MAX};

static const uint64_t few_addrs[] = {ROM - 1};
static const uint32_t few_lens[] = {0, 2};
static const uint16_t few_flags[] = {0, 1, 2, 3, 4};

static const struct choice all = {
    all_addrs, all_lens, all_flags, COUNT(all_addrs), COUNT(all_lens), 8, 3};
static const struct choice some = {
    some_addrs,       some_lens, all_flags, COUNT(some_addrs),
    COUNT(some_lens), 8,         3};
static const struct choice few = {few_addrs, few_lens, few_flags, 1, 2, 5, 5};

static void
begin(uint32_t size, bool indirect)
{
    vmm_virtq_init(&vq, &mem, size);
    driver_init(&drv, &mem, RINGS, size);
    memset(driver_ptr(&mem, TABLE), 0, 64);
    driver_connect(&drv, &vq);
    vq.indirect = indirect;
}

/* Tables of `n` descriptors at `table`, each one being any of the choices. */
static void
try_all(const struct choice *c, uint64_t table, uint32_t n, uint32_t heads)
{
    uint32_t pick[4] = {0}, kinds = choices(c), i;
    bool good = true;

    for (i = 0; i < n; i++)
        choose(c, 0, table, i);
    do {
        for (uint32_t head = 0; head < heads; head++)
            good &= offer(head);
        for (i = 0; i < n; i++) {
            pick[i] = pick[i] + 1 < kinds ? pick[i] + 1 : 0;
            choose(c, pick[i], table, i);
            if (pick[i])
                break;
        }
    } while (i < n && good);
    for (i = 0; !good && i < n; i++) {
        const struct vring_desc *d = driver_ptr(&mem, table + 16ULL * i);

        printf("# desc %" PRIu32 ": addr %#" PRIx64 " len %#" PRIx32
               " flags %u next %u\n",
               i, (uint64_t)d->addr, (uint32_t)d->len, d->flags, d->next);
    }
    CHECK(good);
}

static void
test_one(void)
{
    for (int indirect = 0; indirect < 2; indirect++) {
        begin(1, indirect);
        try_all(&all, drv.desc, 1, 2);
    }
}

static void
test_two(void)
{
    begin(2, false);
    try_all(&some, drv.desc, 2, 3);
    begin(2, true);
    try_all(&some, drv.desc, 2, 2);
}

/* One descriptor of the ring names a table: of one entry, or of two. */
static void
test_indirect(void)
{
    for (uint32_t size = 1; size <= 2; size++) {
        begin(size, true);
        driver_desc(&drv, 0, TABLE, 16, D_INDIRECT, 0);
        try_all(&all, TABLE, 1, 1);
        driver_desc(&drv, 0, TABLE, 32, D_INDIRECT | D_WRITE, 0);
        try_all(&some, TABLE, 2, 1);
    }
    /* After a direct one, across the border, in read-only memory. */
    begin(2, true);
    driver_desc(&drv, 0, RAM, 1, D_NEXT, 1);
    driver_desc(&drv, 1, ROM - 16, 32, D_INDIRECT, 0);
    try_all(&all, ROM - 16, 1, 2);
    driver_desc(&drv, 1, ROM, 16, D_INDIRECT, 0);
    try_all(&all, ROM, 1, 2);
}

static void
test_four(void)
{
    begin(4, false);
    try_all(&few, drv.desc, 4, 1);
    begin(4, true);
    driver_desc(&drv, 0, TABLE, 64, D_INDIRECT, 0);
    try_all(&few, TABLE, 3, 1);
}

int
main(void)
{
    vmm_mem_init(&mem);
    if (vmm_mem_add(&mem, RAM, 0x1000, 0) ||
        vmm_mem_add(&mem, ROM, 0x1000, VMM_MEM_READONLY) ||
        vmm_mem_add(&mem, FAR, 0x1000, 0))
        return 1;
    vmm_mem_freeze(&mem);
    RUN(test_one);
    RUN(test_two);
    RUN(test_indirect);
    RUN(test_four);
    printf("# %" PRIu64 " rings, %" PRIu64 " taken\n", cases, takens);
    vmm_chain_fini(&chain);
    vmm_mem_fini(&mem);
    return check_done();
}

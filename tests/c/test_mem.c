/* SPDX-License-Identifier: Apache-2.0 */
/* test_mem.c - guest memory: regions, bounds, copies, dirty pages */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"
#include "vmm/mem.h"

/*
 * The memory of most tests, one page each but for A:
 *   A     4 pages      B  adjacent to A      hole
 *   ROM   read-only    HIGH  above 4 GiB, adjacent to HIGH2
 */
#define PAGE  VMM_PAGE_SIZE
#define A     0x10000ULL
#define B     0x14000ULL
#define HOLE  0x15000ULL
#define ROM   0x20000ULL
#define HIGH  0x100000000ULL
#define HIGH2 0x100001000ULL

#define TOP (1ULL << 52)

static struct vmm_mem mem;

static void
begin(void)
{
    vmm_mem_init(&mem);
    /* Not in order of address, so that adding must sort. */
    CHECK_EQ(vmm_mem_add(&mem, HIGH, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, A, 4 * PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, HIGH2, PAGE, VMM_MEM_SHARED), 0);
    CHECK_EQ(vmm_mem_add(&mem, ROM, PAGE, VMM_MEM_READONLY), 0);
    CHECK_EQ(vmm_mem_add(&mem, B, PAGE, 0), 0);
    vmm_mem_freeze(&mem);
}

static void
end(void)
{
    vmm_mem_fini(&mem);
}

/* Open file descriptors of this process. */
static int
open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* Mappings of this process. */
static int
mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    int count = 0, c;

    while ((c = getc(maps)) != EOF)
        count += c == '\n';
    fclose(maps);
    return count;
}

static void
regions_are_checked(void)
{
    static const struct {
        uint64_t gpa, len;
        uint32_t flags;
    } bad[] = {
        {0, 0, 0},                    /* empty */
        {0x1000, 0, 0},               /* empty */
        {0x1001, PAGE, 0},            /* address not aligned */
        {0x800, PAGE, 0},             /* address not aligned */
        {0x1000, PAGE + 1, 0},        /* size not aligned */
        {0x1000, 1, 0},               /* size not aligned */
        {TOP, PAGE, 0},               /* begins at the limit */
        {TOP - PAGE, 2 * PAGE, 0},    /* ends past it */
        {0, TOP + PAGE, 0},           /* ends past it */
        {PAGE, UINT64_MAX - 4095, 0}, /* the end wraps */
        {UINT64_MAX - 4095, PAGE, 0}, /* the last page of 2^64 */
        {0x1000, PAGE, 8},            /* no such flag */
        {0x1000, PAGE, 1U << 31},     /* no such flag */
    };

    vmm_mem_init(&mem);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_EQ(vmm_mem_add(&mem, bad[i].gpa, bad[i].len, bad[i].flags),
                 -EINVAL);
    CHECK_EQ(mem.count, 0);
    CHECK_EQ(vmm_mem_add(&mem, TOP - PAGE, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGE, 0), 0);
    CHECK_EQ(mem.count, 2);
    end();
}

static void
overlaps_are_refused(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0x10000, 0x4000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0x20000, 0x4000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0x10000, 0x4000, 0), -EEXIST); /* the same */
    CHECK_EQ(vmm_mem_add(&mem, 0x10000, PAGE, 0), -EEXIST);   /* its start */
    CHECK_EQ(vmm_mem_add(&mem, 0x11000, PAGE, 0), -EEXIST);   /* inside */
    CHECK_EQ(vmm_mem_add(&mem, 0x13000, PAGE, 0), -EEXIST);   /* its end */
    CHECK_EQ(vmm_mem_add(&mem, 0xf000, 2 * PAGE, 0), -EEXIST);
    CHECK_EQ(vmm_mem_add(&mem, 0x13000, 2 * PAGE, 0), -EEXIST);
    CHECK_EQ(vmm_mem_add(&mem, 0xf000, 0x6000, 0), -EEXIST);  /* around */
    CHECK_EQ(vmm_mem_add(&mem, 0x1f000, 0x6000, 0), -EEXIST); /* the other */
    CHECK_EQ(vmm_mem_add(&mem, 0, 0x30000, 0), -EEXIST);      /* both */
    CHECK_EQ(mem.count, 2);
    /* Neighbours are none. */
    CHECK_EQ(vmm_mem_add(&mem, 0xf000, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0x14000, 0xc000, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0x24000, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_span(&mem, 0xf000, UINT64_MAX), 0x16000);
    end();
}

static void
regions_have_a_limit(void)
{
    vmm_mem_init(&mem);
    for (unsigned i = 0; i < VMM_MEM_MAX_REGIONS; i++) /* downwards */
        CHECK_EQ(vmm_mem_add(&mem, (1000 - i) * 2 * PAGE, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGE, 0), -ENOSPC);
    CHECK_EQ(mem.count, VMM_MEM_MAX_REGIONS);
    for (unsigned i = 1; i < mem.count; i++)
        CHECK(mem.region[i - 1].gpa < mem.region[i].gpa);
    for (unsigned i = 0; i < mem.count; i++) {
        CHECK(vmm_mem_find(&mem, mem.region[i].gpa) == &mem.region[i]);
        CHECK(!vmm_mem_find(&mem, mem.region[i].gpa + PAGE));
    }
    end();
}

static void
frozen_stays_as_it_is(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGE, 0), 0);
    vmm_mem_freeze(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0x10000, PAGE, 0), -EBUSY);
    CHECK_EQ(mem.count, 1);
    vmm_mem_fini(&mem);
    CHECK(!mem.frozen);
}

/* A region of 2^47 bytes fits in no address space. */
static void
host_refusals_leave_nothing(void)
{
    int fds, maps;

    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGE, 0), 0);
    /* Once before: an allocator may keep what it mapped. */
    CHECK_EQ(vmm_mem_add(&mem, PAGE, 1ULL << 47, 0), -ENOMEM);
    fds = open_fds();
    maps = mappings();
    for (uint32_t shared = 0; shared <= VMM_MEM_SHARED; shared += 2) {
        mem.call = NULL;
        CHECK_EQ(vmm_mem_add(&mem, PAGE, 1ULL << 47, shared), -ENOMEM);
        CHECK_EQ(mem.count, 1);
        CHECK_EQ(open_fds(), fds);
        CHECK_EQ(mappings(), maps);
    }
    end();
}

static void
found_by_address(void)
{
    begin();
    CHECK_EQ(mem.count, 5);
    CHECK(!vmm_mem_find(&mem, 0));
    CHECK(!vmm_mem_find(&mem, A - 1));
    CHECK(vmm_mem_find(&mem, A) == &mem.region[0]);
    CHECK(vmm_mem_find(&mem, B - 1) == &mem.region[0]);
    CHECK(vmm_mem_find(&mem, B) == &mem.region[1]);
    CHECK(vmm_mem_find(&mem, HOLE - 1) == &mem.region[1]);
    CHECK(!vmm_mem_find(&mem, HOLE));
    CHECK(vmm_mem_find(&mem, ROM) == &mem.region[2]);
    CHECK(!vmm_mem_find(&mem, ROM + PAGE));
    CHECK(vmm_mem_find(&mem, HIGH) == &mem.region[3]);
    CHECK(vmm_mem_find(&mem, HIGH2) == &mem.region[4]);
    CHECK(!vmm_mem_find(&mem, HIGH2 + PAGE));
    CHECK(!vmm_mem_find(&mem, UINT64_MAX));
    end();
}

static void
spans_end_at_holes(void)
{
    begin();
    CHECK_EQ(vmm_mem_span(&mem, A, 0), 0);
    CHECK_EQ(vmm_mem_span(&mem, A, 1), 1);
    CHECK_EQ(vmm_mem_span(&mem, A, 5 * PAGE), 5 * PAGE);
    CHECK_EQ(vmm_mem_span(&mem, A + 1, UINT64_MAX), 5 * PAGE - 1);
    CHECK_EQ(vmm_mem_span(&mem, HOLE, 1), 0);
    CHECK_EQ(vmm_mem_span(&mem, HIGH + 1, UINT64_MAX), 2 * PAGE - 1);
    CHECK_EQ(vmm_mem_span(&mem, UINT64_MAX, UINT64_MAX), 0);
    end();
}

static void
pointers_stay_in_their_region(void)
{
    const uint8_t *hva;
    uint64_t len = 77;

    begin();
    CHECK(!vmm_mem_ptr(&mem, HOLE, 1, false, VMM_MEM_HOST, &len));
    CHECK(!vmm_mem_ptr(&mem, A - 1, 2, false, VMM_MEM_HOST, &len));
    CHECK(!vmm_mem_ptr(&mem, A, 0, false, VMM_MEM_HOST, &len));
    CHECK(!vmm_mem_ptr(&mem, ROM, 1, true, VMM_MEM_GUEST, &len));
    CHECK_EQ(len, 77); /* untouched on failure */

    hva = vmm_mem_ptr(&mem, A, UINT64_MAX, false, VMM_MEM_GUEST, &len);
    CHECK(hva == mem.region[0].hva);
    CHECK_EQ(len, 4 * PAGE);
    hva = vmm_mem_ptr(&mem, B - 1, 2, true, VMM_MEM_GUEST, &len);
    CHECK(hva == mem.region[0].hva + 4 * PAGE - 1);
    CHECK_EQ(len, 1);
    CHECK(vmm_mem_ptr(&mem, ROM, 1, false, VMM_MEM_GUEST, &len));
    CHECK(vmm_mem_ptr(&mem, ROM, 1, true, VMM_MEM_HOST, &len));
    CHECK(vmm_mem_ptr(&mem, HIGH, 9, true, VMM_MEM_GUEST, &len));
    CHECK_EQ(len, 9);
    end();
}

static void
maps_are_whole_and_aligned(void)
{
    begin();
    CHECK(vmm_mem_map(&mem, A, 4 * PAGE, 4096, true, VMM_MEM_GUEST));
    CHECK(vmm_mem_map(&mem, A + 2, 2, 2, false, VMM_MEM_GUEST));
    CHECK(vmm_mem_map(&mem, A + 1, 2, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, A + 1, 2, 2, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, A + 8, 16, 16, false, VMM_MEM_GUEST));
    /* A and B are neighbours, but not one piece of host memory. */
    CHECK(!vmm_mem_map(&mem, A, 4 * PAGE + 1, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, B - 1, 2, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, A, UINT64_MAX, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, A, 0, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, HOLE, 1, 1, false, VMM_MEM_GUEST));
    CHECK(!vmm_mem_map(&mem, ROM, 1, 1, true, VMM_MEM_GUEST));
    CHECK(vmm_mem_map(&mem, ROM, 1, 1, true, VMM_MEM_HOST));
    CHECK(vmm_mem_map(&mem, ROM, 1, 1, false, VMM_MEM_GUEST));
    end();
}

static void
copies_cross_borders(void)
{
    uint8_t out[2 * VMM_PAGE_SIZE], in[2 * VMM_PAGE_SIZE];

    begin();
    for (unsigned i = 0; i < sizeof out; i++)
        out[i] = (uint8_t)(i * 7 + 1);
    /* A, B: 100 bytes before the border to the last byte. */
    CHECK_EQ(vmm_mem_write(&mem, B - 100, out, PAGE + 100, VMM_MEM_GUEST), 0);
    memset(in, 0, sizeof in);
    CHECK_EQ(vmm_mem_read(&mem, B - 100, in, PAGE + 100), 0);
    CHECK(!memcmp(in, out, PAGE + 100));
    CHECK_EQ(mem.region[0].hva[4 * PAGE - 100], 1);
    CHECK_EQ(mem.region[0].hva[4 * PAGE - 101], 0);
    CHECK_EQ(mem.region[1].hva[0], out[100]);
    /* An anonymous region, then a memfd. */
    CHECK_EQ(vmm_mem_write(&mem, HIGH, out, 2 * PAGE, VMM_MEM_GUEST), 0);
    CHECK_EQ(vmm_mem_read(&mem, HIGH, in, 2 * PAGE), 0);
    CHECK(!memcmp(in, out, 2 * PAGE));
    /* Nothing at all is in order, anywhere. */
    CHECK_EQ(vmm_mem_write(&mem, HOLE, out, 0, VMM_MEM_GUEST), 0);
    CHECK_EQ(vmm_mem_read(&mem, UINT64_MAX, in, 0), 0);
    end();
}

/* `len` bytes at gpa are refused to read, write and fill; nothing changes. */
static void
refused(uint64_t gpa, uint64_t len, uint64_t ram, uint64_t ram_len)
{
    uint8_t buf[8192], before[8192], after[8192], bits[8192] = {0};
    uint64_t dirty = 0;

    for (unsigned i = 0; i < mem.count; i++)
        vmm_mem_take_dirty(&mem, i, (uint64_t *)(void *)bits);
    CHECK_EQ(vmm_mem_read(&mem, ram, before, ram_len), 0);
    memset(buf, 0x5a, sizeof buf);
    CHECK_EQ(vmm_mem_read(&mem, gpa, buf, len), -EFAULT);
    for (unsigned i = 0; i < sizeof buf; i++)
        CHECK_EQ(buf[i], 0x5a);
    CHECK_EQ(vmm_mem_write(&mem, gpa, buf, len, VMM_MEM_HOST), -EFAULT);
    CHECK_EQ(vmm_mem_fill(&mem, gpa, 0x5a, len, VMM_MEM_HOST), -EFAULT);
    CHECK_EQ(vmm_mem_read(&mem, ram, after, ram_len), 0);
    CHECK(!memcmp(before, after, ram_len));
    for (unsigned i = 0; i < mem.count; i++)
        dirty += vmm_mem_take_dirty(&mem, i, (uint64_t *)(void *)bits);
    CHECK_EQ(dirty, 0);
}

static void
copies_are_all_or_nothing(void)
{
    begin();
    refused(HOLE, 1, A, PAGE);
    refused(A - 1, 2, A, PAGE);                   /* begins outside */
    refused(HOLE - 1, 2, B, PAGE);                /* ends outside */
    refused(B - 8, PAGE + 9, B - PAGE, 2 * PAGE); /* two regions, then not */
    refused(HIGH2, PAGE + 1, HIGH, 2 * PAGE);
    refused(HIGH, UINT64_MAX, HIGH, 2 * PAGE);
    refused(UINT64_MAX, 2, A, PAGE); /* the address wraps */
    refused(UINT64_MAX - 7, 8, A, PAGE);
    end();
}

static void
read_only_to_the_guest(void)
{
    uint8_t byte = 9;

    begin();
    CHECK_EQ(vmm_mem_write(&mem, ROM, &byte, 1, VMM_MEM_GUEST), -EFAULT);
    CHECK_EQ(vmm_mem_fill(&mem, ROM, 9, PAGE, VMM_MEM_GUEST), -EFAULT);
    CHECK_EQ(mem.region[2].hva[0], 0);
    CHECK_EQ(vmm_mem_write(&mem, ROM, &byte, 1, VMM_MEM_HOST), 0);
    byte = 0;
    CHECK_EQ(vmm_mem_read(&mem, ROM, &byte, 1), 0);
    CHECK_EQ(byte, 9);
    CHECK_EQ(vmm_mem_fill(&mem, ROM, 3, PAGE, VMM_MEM_HOST), 0);
    CHECK_EQ(mem.region[2].hva[PAGE - 1], 3);
    end();

    /* Writable, then read-only: nothing of it is written. */
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, PAGE, PAGE, VMM_MEM_READONLY), 0);
    CHECK_EQ(vmm_mem_fill(&mem, 0, 9, PAGE + 1, VMM_MEM_GUEST), -EFAULT);
    CHECK_EQ(mem.region[0].hva[0], 0);
    CHECK_EQ(vmm_mem_fill(&mem, 0, 9, PAGE + 1, VMM_MEM_HOST), 0);
    CHECK_EQ(mem.region[0].hva[0], 9);
    CHECK_EQ(mem.region[1].hva[0], 9);
    CHECK_EQ(mem.region[1].hva[1], 0);
    end();
}

/* Region 0 has 200 pages, more than three words of bits. */
#define PAGES 200

static void
begin_dirty(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, 0, PAGES * PAGE, 0), 0);
    CHECK_EQ(vmm_mem_add(&mem, (PAGES + 2) * PAGE, PAGE, 0), 0);
    vmm_mem_freeze(&mem);
}

/* Exactly the pages from `first` to `last` of region 0 are dirty. */
static void
dirty_is(unsigned first, unsigned last)
{
    uint64_t bits[(PAGES + 63) / 64];

    memset(bits, 0xff, sizeof bits);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), last - first + 1);
    for (unsigned page = 0; page < 64 * sizeof bits / sizeof *bits; page++)
        CHECK_EQ(bits[page / 64] >> page % 64 & 1,
                 page >= first && page <= last);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    for (unsigned i = 0; i < sizeof bits / sizeof *bits; i++)
        CHECK_EQ(bits[i], 0);
}

static void
writes_make_pages_dirty(void)
{
    uint64_t bits[(PAGES + 63) / 64], len;
    uint8_t buf[3 * VMM_PAGE_SIZE] = {0};

    begin_dirty();
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    CHECK_EQ(vmm_mem_read(&mem, 0, buf, sizeof buf), 0);
    CHECK(vmm_mem_ptr(&mem, 0, PAGE, false, VMM_MEM_HOST, &len));
    CHECK(vmm_mem_map(&mem, 0, PAGE, 1, false, VMM_MEM_HOST));
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);

    CHECK_EQ(vmm_mem_write(&mem, 5 * PAGE, buf, 1, VMM_MEM_GUEST), 0);
    dirty_is(5, 5);
    CHECK_EQ(vmm_mem_write(&mem, 6 * PAGE - 1, buf, 2, VMM_MEM_HOST), 0);
    dirty_is(5, 6);
    CHECK_EQ(vmm_mem_write(&mem, 63 * PAGE, buf, 2 * PAGE, VMM_MEM_HOST), 0);
    dirty_is(63, 64);
    CHECK_EQ(vmm_mem_fill(&mem, 127 * PAGE + 9, 1, PAGE, VMM_MEM_HOST), 0);
    dirty_is(127, 128);
    CHECK_EQ(vmm_mem_fill(&mem, 0, 1, PAGES * PAGE, VMM_MEM_HOST), 0);
    dirty_is(0, PAGES - 1);
    CHECK(vmm_mem_ptr(&mem, 199 * PAGE + 8, 1, true, VMM_MEM_HOST, &len));
    dirty_is(199, 199);
    CHECK(vmm_mem_map(&mem, 16 * PAGE, 2 * PAGE, 1, true, VMM_MEM_GUEST));
    dirty_is(16, 17);
    CHECK_EQ(vmm_mem_write(&mem, 0, buf, 0, VMM_MEM_HOST), 0);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    end();
}

static void
words_of_dirty_bits_are_taken(void)
{
    uint64_t bits[(PAGES + 63) / 64], word = 0;
    uint8_t byte = 1;

    begin_dirty();
    vmm_mem_take_dirty(&mem, 0, bits);
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 0);
    CHECK_EQ(word, sizeof bits / sizeof *bits);
    vmm_mem_mark_pages(&mem, 0, 62, 4);
    vmm_mem_mark_bits(&mem, 0, 1, 1ULL << 63 | 1);
    CHECK_EQ(vmm_mem_write(&mem, 0, &byte, 1, VMM_MEM_HOST), 0);
    vmm_mem_mark_hva(&mem, mem.region[0].hva + PAGE, PAGE + 1);
    vmm_mem_mark_hva(&mem, &byte, 1); /* not RAM */
    word = 0;
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 3ULL << 62 | 7);
    CHECK_EQ(word, 0);
    word++;
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 1ULL << 63 | 3);
    CHECK_EQ(word, 1);
    /* What is marked again, before or behind where the walk is. */
    vmm_mem_mark_pages(&mem, 0, 0, 1);
    vmm_mem_mark_pages(&mem, 0, PAGES - 1, 1);
    word++;
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 1ULL << (PAGES - 1) % 64);
    CHECK_EQ(word, (PAGES - 1) / 64);
    word = 0;
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 1);
    word = 0;
    CHECK_EQ(vmm_mem_take_word(&mem, 0, &word), 0);
    end();
}

static void
marks_pass_over_holes(void)
{
    uint64_t bits[(PAGES + 63) / 64];

    begin_dirty();
    vmm_mem_mark(&mem, 0, 0);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    vmm_mem_mark(&mem, 64 * PAGE - 1, 2);
    dirty_is(63, 64);
    vmm_mem_mark(&mem, 198 * PAGE + 1, 10 * PAGE);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 1, bits), 1);
    CHECK_EQ(bits[0], 1);
    dirty_is(198, 199);
    vmm_mem_mark(&mem, 201 * PAGE + 1, PAGE); /* begins in the hole */
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 1, bits), 1);
    vmm_mem_mark(&mem, TOP, 5 * PAGE);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 1, bits), 0);
    end();
}

static void
shared_regions_can_be_mapped(void)
{
    const struct vmm_region *region;
    int fds = open_fds();
    uint8_t *twin;

    begin();
    CHECK_EQ(open_fds(), fds + 1);
    region = vmm_mem_find(&mem, HIGH2);
    CHECK(region->fd >= 0);
    CHECK_EQ(vmm_mem_find(&mem, HIGH)->fd, -1);
    twin = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
    CHECK(twin != MAP_FAILED);
    CHECK_EQ(vmm_mem_fill(&mem, HIGH2 + 7, 3, 1, VMM_MEM_GUEST), 0);
    CHECK_EQ(twin[7], 3);
    twin[8] = 4;
    CHECK_EQ(region->hva[8], 4);
    munmap(twin, PAGE);
    end();
    CHECK_EQ(open_fds(), fds);
}

/* Advice that the host cannot take is refused by name. */
static void
huge_pages_or_a_reason(void)
{
    int fds = open_fds(), maps = mappings(), err;

    vmm_mem_init(&mem);
    err = vmm_mem_add(&mem, 0, 2 << 20, VMM_MEM_HUGE | VMM_MEM_SHARED);
    if (err) {
        CHECK_EQ(err, -EINVAL);
        CHECK(mem.call && !strcmp(mem.call, "madvise(MADV_HUGEPAGE)"));
        CHECK_EQ(mem.count, 0);
        CHECK_EQ(open_fds(), fds);
        CHECK_EQ(mappings(), maps);
    }
    end();
    CHECK_EQ(open_fds(), fds);
}

static void
fini_is_safe(void)
{
    int fds = open_fds(), maps = mappings();

    memset(&mem, 0, sizeof mem);
    vmm_mem_fini(&mem);
    vmm_mem_fini(&mem);
    begin();
    CHECK(mappings() > maps);
    vmm_mem_fini(&mem);
    vmm_mem_fini(&mem);
    CHECK_EQ(mem.count, 0);
    CHECK_EQ(open_fds(), fds);
    CHECK_EQ(mappings(), maps);
}

int
main(void)
{
    /* The first of each makes mappings of its own. */
    open_fds();
    mappings();
    RUN(regions_are_checked);
    RUN(overlaps_are_refused);
    RUN(regions_have_a_limit);
    RUN(frozen_stays_as_it_is);
    RUN(host_refusals_leave_nothing);
    RUN(found_by_address);
    RUN(spans_end_at_holes);
    RUN(pointers_stay_in_their_region);
    RUN(maps_are_whole_and_aligned);
    RUN(copies_cross_borders);
    RUN(copies_are_all_or_nothing);
    RUN(read_only_to_the_guest);
    RUN(writes_make_pages_dirty);
    RUN(words_of_dirty_bits_are_taken);
    RUN(marks_pass_over_holes);
    RUN(shared_regions_can_be_mapped);
    RUN(huge_pages_or_a_reason);
    RUN(fini_is_safe);
    return check_done();
}

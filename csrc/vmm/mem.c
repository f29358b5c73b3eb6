/* SPDX-License-Identifier: Apache-2.0 */
/* mem.c - guest memory: regions, bounds, copies, dirty pages */
#include "mem.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* No x86 processor addresses more than 52 bits of physical memory. */
#define GPA_LIMIT (1ULL << 52)

static uint64_t
pages_to_words(uint64_t pages)
{
    return (pages + 63) / 64;
}

static void
region_fini(struct vmm_region *region)
{
    if (region->hva)
        munmap(region->hva, region->len);
    if (region->fd >= 0)
        close(region->fd);
    free(region->dirty);
    free(region->where);
}

/* Maps the memory of a region whose gpa, len and flags are set. */
static int
region_init(struct vmm_region *region, const char **call)
{
    int map = MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS;
    int prot = PROT_READ | PROT_WRITE;
    uint64_t words = pages_to_words(region->len / VMM_PAGE_SIZE);
    void *hva;
    int err;

    region->hva = NULL;
    region->fd = -1;
    *call = "malloc";
    region->dirty = calloc(words, sizeof *region->dirty);
    region->where = calloc(pages_to_words(words), sizeof *region->where);
    if (!region->dirty || !region->where) {
        region_fini(region);
        return -ENOMEM;
    }
    if (region->flags & VMM_MEM_SHARED) {
        map = MAP_NORESERVE | MAP_SHARED;
        *call = "memfd_create";
        region->fd = memfd_create("pyvmm", MFD_CLOEXEC);
        if (region->fd < 0)
            goto fail;
        *call = "ftruncate";
        if (ftruncate(region->fd, (off_t)region->len))
            goto fail;
    }
    *call = "mmap";
    hva = mmap(NULL, region->len, prot, map, region->fd, 0);
    if (hva == MAP_FAILED)
        goto fail;
    region->hva = hva;
    if (region->flags & VMM_MEM_HUGE) {
        *call = "madvise(MADV_HUGEPAGE)";
        if (madvise(hva, region->len, MADV_HUGEPAGE))
            goto fail;
    }
    return 0;

fail:
    err = -errno;
    region_fini(region);
    return err;
}

void
vmm_mem_init(struct vmm_mem *mem)
{
    memset(mem, 0, sizeof *mem);
}

void
vmm_mem_fini(struct vmm_mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++)
        region_fini(&mem->region[i]);
    vmm_mem_init(mem);
}

int
vmm_mem_add(struct vmm_mem *mem, uint64_t gpa, uint64_t len, uint32_t flags)
{
    struct vmm_region region = {.gpa = gpa, .len = len, .flags = flags};
    unsigned at = 0;
    int err;

    if ((gpa | len) % VMM_PAGE_SIZE || !len)
        return -EINVAL;
    if (gpa >= GPA_LIMIT || len > GPA_LIMIT - gpa)
        return -EINVAL;
    if (flags & ~(VMM_MEM_READONLY | VMM_MEM_SHARED | VMM_MEM_HUGE))
        return -EINVAL;
    if (mem->frozen)
        return -EBUSY;
    if (mem->count == VMM_MEM_MAX_REGIONS)
        return -ENOSPC;
    while (at < mem->count && mem->region[at].gpa < gpa)
        at++;
    if (at < mem->count && mem->region[at].gpa - gpa < len)
        return -EEXIST;
    if (at > 0 && gpa - mem->region[at - 1].gpa < mem->region[at - 1].len)
        return -EEXIST;

    err = region_init(&region, &mem->call);
    if (err)
        return err;
    memmove(&mem->region[at + 1], &mem->region[at],
            (mem->count - at) * sizeof region);
    mem->region[at] = region;
    mem->count++;
    return 0;
}

int
vmm_mem_map_file(struct vmm_mem *mem, unsigned index, int fd, uint64_t offset)
{
    const struct vmm_region *region = &mem->region[index];
    void *hva =
        mmap(region->hva, region->len, PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE, fd, (off_t)offset);

    mem->call = "mmap";
    return hva == MAP_FAILED ? -errno : 0;
}

void
vmm_mem_freeze(struct vmm_mem *mem)
{
    mem->frozen = true;
}

const struct vmm_region *
vmm_mem_find(const struct vmm_mem *mem, uint64_t gpa)
{
    unsigned low = 0, high = mem->count;

    while (low < high) {
        unsigned mid = (low + high) / 2;
        const struct vmm_region *region = &mem->region[mid];

        if (gpa < region->gpa)
            high = mid;
        else if (gpa - region->gpa >= region->len)
            low = mid + 1;
        else
            return region;
    }
    return NULL;
}

uint64_t
vmm_mem_span(const struct vmm_mem *mem, uint64_t gpa, uint64_t len)
{
    uint64_t done = 0;

    while (done < len) {
        const struct vmm_region *region = vmm_mem_find(mem, gpa + done);

        if (!region)
            break;
        done += vmm_min(region->len - (gpa + done - region->gpa), len - done);
    }
    return done;
}

/* Reading first keeps the line shared when all are set already. */
static void
set_bits(uint64_t *word, uint64_t bits)
{
    if (bits & ~__atomic_load_n(word, __ATOMIC_RELAXED))
        __atomic_fetch_or(word, bits, __ATOMIC_RELEASE);
}

static void
region_mark_word(const struct vmm_region *region, uint64_t word, uint64_t bits)
{
    /* The word before the bit that tells of it: see vmm_mem_take_word. */
    set_bits(&region->dirty[word], bits);
    set_bits(&region->where[word / 64], 1ULL << word % 64);
}

static void
region_mark_pages(const struct vmm_region *region, uint64_t page,
                  uint64_t count)
{
    while (count) {
        uint64_t first = page % 64, part = vmm_min(64 - first, count);

        region_mark_word(region, page / 64, (~0ULL >> (64 - part)) << first);
        page += part;
        count -= part;
    }
}

static void
region_mark(const struct vmm_region *region, uint64_t offset, uint64_t len)
{
    uint64_t page = offset / VMM_PAGE_SIZE;
    uint64_t last = (offset + len - 1) / VMM_PAGE_SIZE;

    region_mark_pages(region, page, last - page + 1);
}

void *
vmm_mem_ptr(struct vmm_mem *mem, uint64_t gpa, uint64_t len, bool write,
            enum vmm_mem_who who, uint64_t *out_len)
{
    const struct vmm_region *region = vmm_mem_find(mem, gpa);
    uint64_t offset;

    if (!region || !len)
        return NULL;
    if (write && who == VMM_MEM_GUEST && (region->flags & VMM_MEM_READONLY))
        return NULL;
    offset = gpa - region->gpa;
    len = vmm_min(len, region->len - offset);
    if (write)
        region_mark(region, offset, len);
    *out_len = len;
    return region->hva + offset;
}

void *
vmm_mem_map(struct vmm_mem *mem, uint64_t gpa, uint64_t len, uint64_t align,
            bool write, enum vmm_mem_who who)
{
    const struct vmm_region *region = vmm_mem_find(mem, gpa);
    uint64_t got = 0;

    if (gpa & (align - 1))
        return NULL;
    if (!region || region->len - (gpa - region->gpa) < len)
        return NULL;
    return vmm_mem_ptr(mem, gpa, len, write, who, &got);
}

/* True when all of the range is RAM and, to write, writable to `who`. */
static bool
range_ok(const struct vmm_mem *mem, uint64_t gpa, uint64_t len, bool write,
         enum vmm_mem_who who)
{
    uint64_t done = 0;

    while (done < len) {
        const struct vmm_region *region = vmm_mem_find(mem, gpa + done);

        if (!region)
            return false;
        if (write && who == VMM_MEM_GUEST && (region->flags & VMM_MEM_READONLY))
            return false;
        done += vmm_min(region->len - (gpa + done - region->gpa), len - done);
    }
    return true;
}

int
vmm_mem_read(struct vmm_mem *mem, uint64_t gpa, void *buf, uint64_t len)
{
    uint8_t *to = buf;
    uint64_t got = 0;

    if (!range_ok(mem, gpa, len, false, VMM_MEM_HOST))
        return -EFAULT;
    for (; len; len -= got, gpa += got, to += got) {
        const void *from =
            vmm_mem_ptr(mem, gpa, len, false, VMM_MEM_HOST, &got);

        memcpy(to, from, got);
    }
    return 0;
}

int
vmm_mem_write(struct vmm_mem *mem, uint64_t gpa, const void *buf, uint64_t len,
              enum vmm_mem_who who)
{
    const uint8_t *from = buf;
    uint64_t got = 0;

    if (!range_ok(mem, gpa, len, true, who))
        return -EFAULT;
    for (; len; len -= got, gpa += got, from += got) {
        void *to = vmm_mem_ptr(mem, gpa, len, true, who, &got);

        memcpy(to, from, got);
    }
    return 0;
}

int
vmm_mem_fill(struct vmm_mem *mem, uint64_t gpa, uint8_t value, uint64_t len,
             enum vmm_mem_who who)
{
    uint64_t got = 0;

    if (!range_ok(mem, gpa, len, true, who))
        return -EFAULT;
    for (; len; len -= got, gpa += got) {
        void *to = vmm_mem_ptr(mem, gpa, len, true, who, &got);

        memset(to, value, got);
    }
    return 0;
}

void
vmm_mem_mark(struct vmm_mem *mem, uint64_t gpa, uint64_t len)
{
    while (len) {
        const struct vmm_region *region = vmm_mem_find(mem, gpa);
        uint64_t part = VMM_PAGE_SIZE - gpa % VMM_PAGE_SIZE;

        if (region) {
            part = region->len - (gpa - region->gpa);
            region_mark(region, gpa - region->gpa, vmm_min(part, len));
        }
        part = vmm_min(part, len);
        gpa += part;
        len -= part;
    }
}

void
vmm_mem_mark_hva(struct vmm_mem *mem, const void *hva, uint64_t len)
{
    for (unsigned i = 0; len && i < mem->count; i++) {
        const struct vmm_region *region = &mem->region[i];
        uint64_t offset = (uintptr_t)hva - (uintptr_t)region->hva;

        if (offset < region->len)
            region_mark(region, offset, vmm_min(len, region->len - offset));
    }
}

void
vmm_mem_mark_pages(struct vmm_mem *mem, unsigned index, uint64_t page,
                   uint64_t count)
{
    const struct vmm_region *region = &mem->region[index];

    assert(index < mem->count);
    assert(page + count <= region->len / VMM_PAGE_SIZE);
    region_mark_pages(region, page, count);
}

void
vmm_mem_mark_bits(struct vmm_mem *mem, unsigned index, uint64_t word,
                  uint64_t bits)
{
    const struct vmm_region *region = &mem->region[index];

    assert(index < mem->count);
    assert(word < pages_to_words(region->len / VMM_PAGE_SIZE));
    region_mark_word(region, word, bits);
}

uint64_t
vmm_mem_take_word(struct vmm_mem *mem, unsigned index, uint64_t *word)
{
    const struct vmm_region *region = &mem->region[index];
    uint64_t words = pages_to_words(region->len / VMM_PAGE_SIZE);

    assert(index < mem->count);
    for (uint64_t at = *word; at < words;) {
        uint64_t *where = &region->where[at / 64], bit = 1ULL << at % 64;
        uint64_t set = __atomic_load_n(where, __ATOMIC_RELAXED) & -bit;
        uint64_t bits;

        if (!set) {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at = at / 64 * 64 + (uint64_t)__builtin_ctzll(set);
        /* First the bit, then the word: what is marked meanwhile sets it
         * again. */
        __atomic_fetch_and(where, ~(1ULL << at % 64), __ATOMIC_ACQUIRE);
        bits = __atomic_exchange_n(&region->dirty[at], 0, __ATOMIC_ACQUIRE);
        if (bits) {
            *word = at;
            return bits;
        }
        at++;
    }
    *word = words;
    return 0;
}

uint64_t
vmm_mem_take_dirty(struct vmm_mem *mem, unsigned index, uint64_t *bits)
{
    const struct vmm_region *region = &mem->region[index];
    uint64_t words = pages_to_words(region->len / VMM_PAGE_SIZE);
    uint64_t word = 0, taken, count = 0;

    memset(bits, 0, words * sizeof *bits);
    while ((taken = vmm_mem_take_word(mem, index, &word))) {
        bits[word++] = taken;
        count += (uint64_t)__builtin_popcountll(taken);
    }
    return count;
}

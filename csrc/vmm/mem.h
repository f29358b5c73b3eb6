/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h - guest memory: the only place where a guest address becomes a pointer
 *
 * A memory is a set of regions, each a range of guest-physical addresses (gpa)
 * backed by host memory (hva). Regions are page aligned and never overlap;
 * between them are holes. Add the regions first, then make virtual machines of
 * it: the first one freezes the set, so that look-ups need no lock.
 *
 * Every access names who makes it, because read-only regions mean different
 * things to the two: a guest or a device acting for it (VMM_MEM_GUEST) may not
 * write there, the host that loads an image (VMM_MEM_HOST) may.
 *
 * Writes by the host do not show in KVM's dirty log, so each region keeps a
 * bitmap of its own, a bit a page, set by every write through this interface.
 * Whoever wants all dirty pages adds those of the guest to it
 * (vmm_dirty_harvest). A second, small bitmap tells where bits are, so that
 * finding the few that are set takes no time that grows with the memory.
 *
 * Threads: adding regions wants one thread; all else may be called from any,
 * once the set is frozen. Bytes of guest memory may change at any moment:
 * whoever reads a guest structure copies it once and checks the copy.
 */
#ifndef VMM_MEM_H
#define VMM_MEM_H

#include "base.h"

#define VMM_MEM_READONLY 1U /* the guest's writes exit as MMIO */
#define VMM_MEM_SHARED   2U /* a memfd, for other processes to map */
#define VMM_MEM_HUGE     4U /* advise the kernel to use huge pages */

#define VMM_MEM_MAX_REGIONS 64

enum vmm_mem_who { VMM_MEM_GUEST, VMM_MEM_HOST };

struct vmm_region {
    uint64_t gpa;
    uint64_t len;
    uint8_t *hva;
    uint32_t flags;
    int fd;          /* the memfd, or -1 */
    uint64_t *dirty; /* one bit a page; atomic */
    uint64_t *where; /* one bit a word of `dirty` that is not 0; atomic */
};

struct vmm_mem {
    struct vmm_region region[VMM_MEM_MAX_REGIONS]; /* sorted by gpa */
    unsigned count;
    bool frozen;
    struct vmm_snap *at; /* the snapshot that it is at, or NULL (snap.h) */
    const char *call;    /* the system call that failed last */
};

void vmm_mem_init(struct vmm_mem *mem);

/* Unmaps all; safe on a zeroed struct, and twice. No VM may be left on it. */
void vmm_mem_fini(struct vmm_mem *mem);

/*
 * Adds a region of zeros. -EINVAL: gpa or len not page aligned, len zero or
 * the end past 2^52. -EEXIST: overlaps another region. -EBUSY: frozen.
 * -ENOSPC: VMM_MEM_MAX_REGIONS reached. Else what mmap or memfd_create said.
 */
int vmm_mem_add(struct vmm_mem *mem, uint64_t gpa, uint64_t len,
                uint32_t flags);

/*
 * Maps region `index` anew, where it is: privately, over `fd` from `offset` on.
 * What it held is gone. What mmap said.
 */
int vmm_mem_map_file(struct vmm_mem *mem, unsigned index, int fd,
                     uint64_t offset);

/* No more regions from now on. Called by vmm_vm_init. */
void vmm_mem_freeze(struct vmm_mem *mem);

/* The region that holds gpa, or NULL. */
const struct vmm_region *vmm_mem_find(const struct vmm_mem *mem, uint64_t gpa);

/*
 * How many bytes from gpa on, `len` at most, lie without a gap in regions
 * (several adjacent ones count as one).
 */
uint64_t vmm_mem_span(const struct vmm_mem *mem, uint64_t gpa, uint64_t len);

/*
 * The gpa-to-pointer function. Of the `len` bytes at gpa, gives a pointer to
 * those that lie in gpa's region, and their number through `out_len` (1 to
 * len). NULL when gpa is not in RAM, len is 0, or `write` is asked of a
 * read-only region by the guest. With `write`, the pages are marked dirty.
 */
void *vmm_mem_ptr(struct vmm_mem *mem, uint64_t gpa, uint64_t len, bool write,
                  enum vmm_mem_who who, uint64_t *out_len);

/*
 * Like vmm_mem_ptr for exactly `len` bytes in one region aligned to `align`
 * (a power of two): what rings use. NULL when any of it is not so.
 */
void *vmm_mem_map(struct vmm_mem *mem, uint64_t gpa, uint64_t len,
                  uint64_t align, bool write, enum vmm_mem_who who);

/*
 * Copies across region borders. All or nothing: -EFAULT, and nothing copied,
 * when any byte is outside RAM or may not be written.
 */
int vmm_mem_read(struct vmm_mem *mem, uint64_t gpa, void *buf, uint64_t len);
int vmm_mem_write(struct vmm_mem *mem, uint64_t gpa, const void *buf,
                  uint64_t len, enum vmm_mem_who who);

/* Sets the bytes to `value`; the pages are dirty. -EFAULT as above. */
int vmm_mem_fill(struct vmm_mem *mem, uint64_t gpa, uint8_t value, uint64_t len,
                 enum vmm_mem_who who);

/* Marks the pages of a range dirty; bytes outside RAM are passed over. */
void vmm_mem_mark(struct vmm_mem *mem, uint64_t gpa, uint64_t len);

/* The same for a range of host addresses that lies in one region. */
void vmm_mem_mark_hva(struct vmm_mem *mem, const void *hva, uint64_t len);

/* Marks `count` pages of region `index` dirty, from number `page` on. */
void vmm_mem_mark_pages(struct vmm_mem *mem, unsigned index, uint64_t page,
                        uint64_t count);

/* Marks the pages of the bits that are set in `bits`: 64 times `word` on. */
void vmm_mem_mark_bits(struct vmm_mem *mem, unsigned index, uint64_t word,
                       uint64_t bits);

/*
 * Takes 64 dirty bits of region `index`: those of the first word at or after
 * *word that has any. Returns them and clears them, *word is its number (its
 * first page is 64 times that); 0 when there are none.
 */
uint64_t vmm_mem_take_word(struct vmm_mem *mem, unsigned index, uint64_t *word);

/*
 * Moves the dirty bits of region `index` into `bits` (one bit a page, rounded
 * up to 64) and clears them. Returns the number of dirty pages.
 */
uint64_t vmm_mem_take_dirty(struct vmm_mem *mem, unsigned index,
                            uint64_t *bits);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * elf.h - executables: what goes where, the entry point, symbols
 *
 * Reads ELF32 (EM_386) and ELF64 (EM_X86_64) executables, little-endian, of
 * type ET_EXEC. Position-independent ones (ET_DYN) are refused: nobody here
 * relocates, and one loaded at its link address by chance is worse.
 *
 * A file is as hostile as a guest. vmm_elf_open checks all that the file alone
 * can tell and builds bounded tables; vmm_elf_check adds what depends on the
 * memory; vmm_elf_load writes only after both. Each refusal leaves a sentence
 * in `error` that names the segment, its address and the limit that it broke.
 *
 * Addresses: a segment is loaded at `paddr`. Symbols have virtual addresses,
 * like the program counters they are compared with; the two are the same
 * unless the image was linked with separate load addresses.
 *
 * Ownership: the bytes of the file stay the caller's, who keeps them alive and
 * unchanged until vmm_elf_fini (names of symbols point into them).
 * Threads: once open, a struct is only read, but for `error`, which belongs to
 * whoever calls check or load.
 */
#ifndef VMM_ELF_H
#define VMM_ELF_H

#include "base.h"

struct vmm_mem;

#define VMM_ELF_MAX_SEGMENTS 64
#define VMM_ELF_MAX_SYMBOLS  (1U << 20)
#define VMM_ELF_MAX_NAME     1024 /* longer symbols are passed over */

struct vmm_elf_segment {
    unsigned index; /* in the file's program headers, as in `readelf -l` */
    uint32_t flags; /* PF_R, PF_W, PF_X of <elf.h> */
    uint64_t paddr;
    uint64_t vaddr;
    uint64_t offset; /* in the file */
    uint64_t filesz;
    uint64_t memsz; /* not 0; bytes from filesz on are zeroed */
};

struct vmm_elf_symbol {
    const char *name; /* not empty */
    uint64_t addr;
    uint64_t size; /* 0: the file does not say */
    uint8_t type;  /* STT_NOTYPE, STT_OBJECT or STT_FUNC */
    uint8_t bind;  /* STB_LOCAL, STB_GLOBAL, STB_WEAK, ... */
    bool absolute; /* a number (SHN_ABS) and not a place */
};

/* From `start` to the next range's start, addresses belong to a symbol. */
struct vmm_elf_range {
    uint64_t start;
    uint32_t symbol; /* index, or UINT32_MAX: nobody's */
};

struct vmm_elf {
    const uint8_t *data;
    uint64_t len;
    bool is_64;
    uint64_t entry;     /* as in the file */
    uint64_t entry_gpa; /* where it is loaded */

    struct vmm_elf_segment segment[VMM_ELF_MAX_SEGMENTS]; /* file order */
    unsigned segments;

    struct vmm_elf_symbol *symbol; /* sorted by addr */
    uint32_t symbols;
    uint32_t *by_name; /* indices of symbols; the preferred first */
    struct vmm_elf_range *range;
    uint32_t ranges;

    char error[256]; /* why the last call refused */
};

/*
 * Reads `len` bytes at `data`. -ENOEXEC: not an executable that we take, or a
 * damaged one. -EFBIG: more segments or symbols than the limits above.
 * -ENOMEM. On failure only `error` is of use, and fini is not needed.
 *
 * The entry point must be inside a loaded segment, at its physical address, or
 * else at its virtual one (entry_gpa is then translated).
 */
int vmm_elf_open(struct vmm_elf *elf, const void *data, uint64_t len);

/* Frees the tables; safe on a zeroed struct, and twice. */
void vmm_elf_fini(struct vmm_elf *elf);

/* Would it fit? -EFAULT: a segment is not wholly in RAM. */
int vmm_elf_check(struct vmm_elf *elf, const struct vmm_mem *mem);

/*
 * Checks, then copies every segment to its paddr and zeroes its rest. The host
 * writes: segments may lie in regions that are read-only to the guest.
 */
int vmm_elf_load(struct vmm_elf *elf, struct vmm_mem *mem);

/*
 * The symbol of that name, or -ENOENT. Of several: global before weak before
 * local, functions before the rest, then the lowest address.
 */
int vmm_elf_find(const struct vmm_elf *elf, const char *name,
                 const struct vmm_elf_symbol **out);

/*
 * The symbol that `addr` belongs to, or -ENOENT; addr - (*out)->addr is the
 * offset. That is the innermost symbol whose size contains it. Outside all of
 * those, one without a size (assembly) reaches up to the next symbol or the
 * end of its segment. Of several at one address, global functions win.
 */
int vmm_elf_where(const struct vmm_elf *elf, uint64_t addr,
                  const struct vmm_elf_symbol **out);

#endif

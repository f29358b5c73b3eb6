/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_elf.c - the ELF loader over mutated files
 *
 * A file that opens is loaded, and then the answers must hang together: every
 * symbol is found by its name, and no look-up by address answers with a symbol
 * that starts after it. RAM is small, so that a case is quick. The file ends
 * where a page without access begins: libelf is not instrumented.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "elf_image.h"
#include "vmm/elf.h"
#include "vmm/mem.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max,
                               unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Starts from a sample, since no fuzzer guesses an ELF header. */
size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed)
{
    static struct image image;

    if (len < sizeof(Elf32_Ehdr) || seed % 1024 == 0) {
        image_sample(&image, seed & 1024);
        if (image.len <= max) {
            memcpy(data, image.data, image.len);
            len = image.len;
        }
    }
    return LLVMFuzzerMutate(data, len, max);
}

/* A copy that ends at a guard page; there is one at a time. */
static const uint8_t *
guarded(const uint8_t *data, size_t len)
{
    static uint8_t *end;
    const size_t room = 1 << 20;

    if (len > room)
        abort();
    if (!end) {
        end = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (end == MAP_FAILED || mprotect(end + room, 4096, PROT_NONE))
            abort();
        end += room;
    }
    memcpy(end - len, data, len);
    return end - len;
}

static void
check_symbols(const struct vmm_elf *elf)
{
    const struct vmm_elf_symbol *sym;

    for (uint32_t i = 0; i < elf->symbols; i++) {
        const struct vmm_elf_symbol *own = &elf->symbol[i];

        if (vmm_elf_find(elf, own->name, &sym) || strcmp(sym->name, own->name))
            abort();
        if (!vmm_elf_where(elf, own->addr, &sym) && sym->addr > own->addr)
            abort();
        if (own->size && !own->absolute && vmm_elf_where(elf, own->addr, &sym))
            abort();
        vmm_elf_where(elf, own->addr + own->size, &sym);
    }
    for (uint32_t i = 1; i < elf->ranges; i++) {
        if (elf->range[i - 1].start >= elf->range[i].start)
            abort();
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct vmm_elf elf;
    struct vmm_mem mem;

    vmm_mem_init(&mem);
    if (vmm_mem_add(&mem, 0x100000, 0x2000, VMM_MEM_READONLY) ||
        vmm_mem_add(&mem, 0x102000, 0x2000, 0))
        abort();
    if (!vmm_elf_open(&elf, guarded(data, len), len)) {
        if (vmm_elf_load(&elf, &mem) && !*elf.error)
            abort();
        check_symbols(&elf);
    } else if (!*elf.error || memchr(elf.error, 0, sizeof(elf.error)) == NULL) {
        abort();
    }
    vmm_elf_fini(&elf);
    vmm_mem_fini(&mem);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* elf_image.h - writes small ELF files of both classes for tests and fuzzing */
#ifndef ELF_IMAGE_H
#define ELF_IMAGE_H

#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define IMAGE_SEGMENTS 8
#define IMAGE_SYMBOLS  16

struct image_segment {
    uint32_t type, flags;
    uint64_t paddr, vaddr, filesz, memsz;
    uint64_t offset; /* 0: where the image puts the bytes, 1, 2, 3, ... */
};

struct image_symbol {
    const char *name;
    uint64_t addr, size;
    unsigned type, bind, shndx; /* shndx 0 becomes 1: some section */
};

/* Describe, build, then spoil the header through the pointers. */
struct image {
    bool is_64;
    uint64_t entry;
    struct image_segment segment[IMAGE_SEGMENTS];
    unsigned segments;
    struct image_symbol symbol[IMAGE_SYMBOLS];
    unsigned symbols;

    uint8_t data[65536] __attribute__((aligned(16)));
    uint64_t len;
    Elf32_Ehdr *eh32;
    Elf64_Ehdr *eh64;
};

/* Copies `from` to the end of the file and gives back its offset. */
static inline uint64_t
image_append(struct image *image, const void *from, uint64_t len)
{
    uint64_t offset = image->len;

    memcpy(image->data + offset, from, len);
    image->len += len;
    return offset;
}

/* Every structure of both classes has the same members: write them once. */
#define IMAGE_DEFINE(N)                                                        \
    static inline void image_build_##N(struct image *image)                    \
    {                                                                          \
        Elf##N##_Ehdr *eh = (void *)image->data;                               \
        Elf##N##_Phdr *ph = (void *)(eh + 1);                                  \
        Elf##N##_Sym sym[IMAGE_SYMBOLS + 1] = {{0}};                           \
        Elf##N##_Shdr sh[3] = {{0}};                                           \
        char names[4096] = "";                                                 \
        uint64_t names_len = 1, byte = 0;                                      \
        unsigned i;                                                            \
                                                                               \
        memset(image->data, 0, sizeof(image->data));                           \
        image->len = sizeof(*eh) + image->segments * sizeof(*ph);              \
        memcpy(eh->e_ident, ELFMAG, SELFMAG);                                  \
        eh->e_ident[EI_CLASS] = ELFCLASS##N;                                   \
        eh->e_ident[EI_DATA] = ELFDATA2LSB;                                    \
        eh->e_ident[EI_VERSION] = EV_CURRENT;                                  \
        eh->e_type = ET_EXEC;                                                  \
        eh->e_machine = N == 64 ? EM_X86_64 : EM_386;                          \
        eh->e_version = EV_CURRENT;                                            \
        eh->e_entry = image->entry;                                            \
        eh->e_phoff = sizeof(*eh);                                             \
        eh->e_ehsize = sizeof(*eh);                                            \
        eh->e_phentsize = sizeof(*ph);                                         \
        eh->e_phnum = image->segments;                                         \
        eh->e_shentsize = sizeof(*sh);                                         \
        for (i = 0; i < image->segments; i++) {                                \
            const struct image_segment *s = &image->segment[i];                \
                                                                               \
            ph[i].p_type = s->type;                                            \
            ph[i].p_flags = s->flags;                                          \
            ph[i].p_paddr = s->paddr;                                          \
            ph[i].p_vaddr = s->vaddr;                                          \
            ph[i].p_filesz = s->filesz;                                        \
            ph[i].p_memsz = s->memsz;                                          \
            ph[i].p_offset = s->offset;                                        \
            if (s->offset)                                                     \
                continue;                                                      \
            ph[i].p_offset = image->len;                                       \
            for (uint64_t j = 0; j < s->filesz; j++)                           \
                image->data[image->len++] = ++byte;                            \
        }                                                                      \
        if (image->symbols) {                                                  \
            for (i = 0; i < image->symbols; i++) {                             \
                const struct image_symbol *s = &image->symbol[i];              \
                                                                               \
                sym[i + 1].st_name = names_len;                                \
                sym[i + 1].st_value = s->addr;                                 \
                sym[i + 1].st_size = s->size;                                  \
                sym[i + 1].st_info = ELF##N##_ST_INFO(s->bind, s->type);       \
                sym[i + 1].st_shndx = s->shndx ? s->shndx : 1;                 \
                strcpy(names + names_len, s->name);                            \
                names_len += strlen(s->name) + 1;                              \
            }                                                                  \
            image->len = (image->len + 7) & ~7ULL;                             \
            sh[1].sh_type = SHT_SYMTAB;                                        \
            sh[1].sh_link = 2;                                                 \
            sh[1].sh_entsize = sizeof(*sym);                                   \
            sh[1].sh_size = (image->symbols + 1) * sizeof(*sym);               \
            sh[1].sh_offset = image_append(image, sym, sh[1].sh_size);         \
            sh[2].sh_type = SHT_STRTAB;                                        \
            sh[2].sh_size = names_len;                                         \
            sh[2].sh_offset = image_append(image, names, names_len);           \
            image->len = (image->len + 7) & ~7ULL;                             \
            eh->e_shoff = image_append(image, sh, sizeof(sh));                 \
            eh->e_shnum = 3;                                                   \
        }                                                                      \
        image->eh##N = eh;                                                     \
    }

IMAGE_DEFINE(32)
IMAGE_DEFINE(64)

static inline void
image_build(struct image *image)
{
    if (image->is_64)
        image_build_64(image);
    else
        image_build_32(image);
}

/*
 * A small kernel: text at 0x100000, data with bss at 0x102000 linked high, a
 * note, an empty segment, and symbols with every trait that look-ups weigh.
 */
static inline void
image_sample(struct image *image, bool is_64)
{
    uint64_t high = is_64 ? 0xffffffff80102000 : 0xc0102000;

    memset(image, 0, sizeof(*image));
    image->is_64 = is_64;
    image->entry = 0x100010;
    image->segments = 4;
    image->segment[0] = (struct image_segment){
        PT_LOAD, PF_R | PF_X, 0x100000, 0x100000, 0x100, 0x100, 0};
    image->segment[1] =
        (struct image_segment){PT_NOTE, PF_R, 0x5000, 0x5000, 16, 16, 0};
    image->segment[2] = (struct image_segment){
        PT_LOAD, PF_R | PF_W, 0x102000, high, 0x40, 0x1000, 0};
    image->segment[3] =
        (struct image_segment){PT_LOAD, PF_R | PF_W, 0, 0, 0, 0, 0};
    image->symbols = 13;
    memcpy(image->symbol,
           ((struct image_symbol[]){
               {"text_start", 0x100000, 0, STT_NOTYPE, STB_GLOBAL, 0},
               {"_start", 0x100010, 0x20, STT_FUNC, STB_GLOBAL, 0},
               {"entry_alias", 0x100010, 0x30, STT_FUNC, STB_LOCAL, 0},
               {"label_in_start", 0x100018, 0, STT_NOTYPE, STB_LOCAL, 0},
               {"inner", 0x100020, 0x8, STT_FUNC, STB_LOCAL, 0},
               {"twice", 0x100060, 0x10, STT_FUNC, STB_LOCAL, 0},
               {"twice", 0x100080, 0x10, STT_OBJECT, STB_GLOBAL, 0},
               {"asm_routine", 0x1000a0, 0, STT_NOTYPE, STB_GLOBAL, 0},
               {"asm_next", 0x1000b0, 0, STT_NOTYPE, STB_GLOBAL, 0},
               {"LIMIT", 0x1000b8, 0, STT_NOTYPE, STB_GLOBAL, SHN_ABS},
               {"table", high + 0x10, 0x20, STT_OBJECT, STB_GLOBAL, 0},
               {"file.c", 0, 0, STT_FILE, STB_LOCAL, SHN_ABS},
               {"_end", high + 0x1000, 0, STT_NOTYPE, STB_GLOBAL, 0},
           }),
           13 * sizeof(image->symbol[0]));
    image_build(image);
}

#endif

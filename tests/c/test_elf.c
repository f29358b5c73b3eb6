/* SPDX-License-Identifier: Apache-2.0 */
/* test_elf.c - ELF files, good ones and every kind of bad one */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "elf_image.h"
#include "vmm/elf.h"
#include "vmm/mem.h"

static struct image image;
static struct vmm_elf elf;
static struct vmm_mem mem;

static int
open_image(void)
{
    return vmm_elf_open(&elf, image.data, image.len);
}

/* Opening the image as it is now is refused in words that have `text`. */
#define CHECK_REFUSED(err, text)                                               \
    do {                                                                       \
        CHECK_EQ(open_image(), err);                                           \
        if (!strstr(elf.error, text)) {                                        \
            printf("# error: %s\n", elf.error);                                \
            CHECK(!text);                                                      \
        }                                                                      \
        vmm_elf_fini(&elf);                                                    \
    } while (0)

static void
ram(uint64_t gpa, uint64_t len)
{
    CHECK_EQ(vmm_mem_add(&mem, gpa, len, 0), 0);
}

static void
check_where(uint64_t addr, const char *name, uint64_t offset)
{
    const struct vmm_elf_symbol *sym = NULL;
    int ret = vmm_elf_where(&elf, addr, &sym);

    CHECK_EQ(ret, name ? 0 : -ENOENT);
    if (ret || !name)
        return;
    if (strcmp(sym->name, name))
        printf("# %#" PRIx64 " is %s, not %s\n", addr, sym->name, name);
    CHECK(!strcmp(sym->name, name));
    CHECK_EQ(addr - sym->addr, offset);
}

static void
segments_of_both_classes(void)
{
    for (int is_64 = 0; is_64 < 2; is_64++) {
        image_sample(&image, is_64);
        CHECK_EQ(open_image(), 0);
        CHECK_EQ(elf.is_64, is_64);
        CHECK_EQ(elf.entry, 0x100010);
        CHECK_EQ(elf.entry_gpa, 0x100010);
        CHECK_EQ(elf.segments, 2); /* no note, no empty one */
        CHECK_EQ(elf.segment[0].index, 0);
        CHECK_EQ(elf.segment[0].paddr, 0x100000);
        CHECK_EQ(elf.segment[0].flags, PF_R | PF_X);
        CHECK_EQ(elf.segment[1].index, 2);
        CHECK_EQ(elf.segment[1].paddr, 0x102000);
        CHECK_EQ(elf.segment[1].vaddr, is_64 ? 0xffffffff80102000 : 0xc0102000);
        CHECK_EQ(elf.segment[1].filesz, 0x40);
        CHECK_EQ(elf.segment[1].memsz, 0x1000);
        vmm_elf_fini(&elf);
        vmm_elf_fini(&elf);
    }
}

static void
load_copies_and_zeroes(void)
{
    static const uint8_t zeros[0x1000];
    uint8_t buf[0x1000];

    for (int is_64 = 0; is_64 < 2; is_64++) {
        vmm_mem_init(&mem);
        /* The data segment crosses a border; the guest may write neither. */
        CHECK_EQ(vmm_mem_add(&mem, 0x100000, 0x2000, VMM_MEM_READONLY), 0);
        CHECK_EQ(vmm_mem_add(&mem, 0x102000, 0x1000, VMM_MEM_READONLY), 0);
        CHECK_EQ(vmm_mem_fill(&mem, 0x100000, 0xaa, 0x3000, VMM_MEM_HOST), 0);
        image_sample(&image, is_64);
        image.segment[2].paddr = 0x101800;
        image_build(&image);
        CHECK_EQ(open_image(), 0);
        CHECK_EQ(vmm_elf_check(&elf, &mem), 0);
        CHECK_EQ(vmm_mem_read(&mem, 0x100000, buf, 1), 0);
        CHECK_EQ(buf[0], 0xaa); /* a check writes nothing */
        CHECK_EQ(vmm_elf_load(&elf, &mem), 0);

        CHECK_EQ(vmm_mem_read(&mem, 0x100000, buf, 0x101), 0);
        CHECK(!memcmp(buf, image.data + elf.segment[0].offset, 0x100));
        CHECK_EQ(buf[0x100], 0xaa);
        CHECK_EQ(vmm_mem_read(&mem, 0x101800, buf, 0x1000), 0);
        CHECK(!memcmp(buf, image.data + elf.segment[1].offset, 0x40));
        CHECK(!memcmp(buf + 0x40, zeros, 0x1000 - 0x40));
        CHECK_EQ(vmm_mem_read(&mem, 0x102800, buf, 1), 0);
        CHECK_EQ(buf[0], 0xaa);
        vmm_elf_fini(&elf);
        vmm_mem_fini(&mem);
    }
}

static void
outside_ram(void)
{
    uint8_t byte;

    image_sample(&image, true);
    CHECK_EQ(open_image(), 0);

    vmm_mem_init(&mem);
    ram(0x102000, 0x1000);
    CHECK_EQ(vmm_elf_check(&elf, &mem), -EFAULT);
    CHECK(strstr(elf.error, "segment 0: 0x100000 + 0x100 is outside RAM"));
    vmm_mem_fini(&mem);

    /* The first fits, the second does not: neither is written. */
    vmm_mem_init(&mem);
    ram(0x100000, 0x2000);
    CHECK_EQ(vmm_elf_load(&elf, &mem), -EFAULT);
    CHECK(strstr(elf.error, "segment 2: 0x102000 + 0x1000 is outside RAM"));
    CHECK_EQ(vmm_mem_read(&mem, 0x100000, &byte, 1), 0);
    CHECK_EQ(byte, 0);
    vmm_mem_fini(&mem);
    vmm_elf_fini(&elf);

    image.segment[2].memsz = 0x1001;
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    vmm_mem_init(&mem);
    ram(0x100000, 0x3000);
    CHECK_EQ(vmm_elf_load(&elf, &mem), -EFAULT);
    CHECK(strstr(elf.error, "ends at 0x103000"));
    vmm_mem_fini(&mem);
    vmm_elf_fini(&elf);
}

/* Up to the very last address, where a sum would wrap. */
static void
address_overflow(void)
{
    image_sample(&image, false);
    image.segment[2].paddr = 0xfffff000;
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    vmm_elf_fini(&elf);
    image.segment[2].memsz = 0x1001;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "past the last address, 0xffffffff");

    image_sample(&image, true);
    image.segment[2].paddr = 0xfffffffffffff000;
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    vmm_mem_init(&mem);
    ram(0x100000, 0x1000);
    CHECK_EQ(vmm_elf_check(&elf, &mem), -EFAULT);
    vmm_mem_fini(&mem);
    vmm_elf_fini(&elf);
    image.segment[2].memsz = UINT64_MAX;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "past the last address");
}

static void
bad_segments(void)
{
    image_sample(&image, true);
    image.segment[2].memsz = 0x3f;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "segment 2 at 0x102000 has 0x40 bytes in the file "
                            "for 0x3f bytes of memory");

    image_sample(&image, true);
    image.segment[2].offset = image.len - 0x3f;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "truncated: segment 2 at 0x102000");
    image.segment[2].offset = UINT64_MAX - 0x3f;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "truncated: segment 2 at 0x102000");

    image_sample(&image, true);
    image.segment[2].paddr = 0x1000ff;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "segment 2 at 0x1000ff + 0x1000 overlaps segment 0 "
                            "at 0x100000 + 0x100");
    image.segment[2].paddr = 0xff001;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "overlaps");
    image.segment[2].paddr = 0xff000; /* touches */
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    vmm_elf_fini(&elf);

    image_sample(&image, true);
    image.segment[0].type = image.segment[2].type = PT_NULL;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "no segment to load");
    image.segments = 0;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "no segment to load");
}

static void
too_many_segments(void)
{
    Elf64_Phdr ph = {.p_type = PT_LOAD, .p_memsz = 16};

    for (unsigned n = VMM_ELF_MAX_SEGMENTS; n < VMM_ELF_MAX_SEGMENTS + 2; n++) {
        image_sample(&image, true);
        image.len = (image.len + 7) & ~7ULL;
        image.eh64->e_phoff = image.len;
        image.eh64->e_phnum = n;
        image.eh64->e_entry = 0;
        for (unsigned i = 0; i < n; i++) {
            ph.p_paddr = ph.p_vaddr = 16 * i;
            image_append(&image, &ph, sizeof(ph));
        }
        CHECK_EQ(open_image(), n > VMM_ELF_MAX_SEGMENTS ? -EFBIG : 0);
        vmm_elf_fini(&elf);
    }
    image.eh64->e_phnum = PN_XNUM;
    CHECK_REFUSED(-EFBIG, "program headers");
}

static void
bad_headers(void)
{
    image_sample(&image, true);
    image.eh64->e_machine = EM_AARCH64;
    CHECK_REFUSED(-ENOEXEC, "ELF machine 183, expected 62 (x86-64)");
    image.eh64->e_machine = EM_386;
    CHECK_REFUSED(-ENOEXEC, "in a 64-bit file");

    image_sample(&image, false);
    image.eh32->e_machine = EM_X86_64;
    CHECK_REFUSED(-ENOEXEC, "expected 3 (386) in a 32-bit file");

    image_sample(&image, true);
    image.eh64->e_ident[EI_DATA] = ELFDATA2MSB;
    CHECK_REFUSED(-ENOEXEC, "not little-endian");

    image_sample(&image, true);
    image.eh64->e_ident[EI_CLASS] = 3;
    CHECK_REFUSED(-ENOEXEC, "ELF class 3");

    image_sample(&image, true);
    image.eh64->e_ident[EI_VERSION] = 2;
    CHECK_REFUSED(-ENOEXEC, "ELF version 2");

    image_sample(&image, true);
    image.eh64->e_type = ET_DYN;
    CHECK_REFUSED(-ENOEXEC, "-no-pie");
    image.eh64->e_type = ET_REL;
    CHECK_REFUSED(-ENOEXEC, "ELF type 1");

    image_sample(&image, true);
    image.eh64->e_phentsize--;
    CHECK_REFUSED(-ENOEXEC, "entries of the program header table");
    image_sample(&image, true);
    image.eh64->e_phoff = UINT64_MAX - 8;
    CHECK_REFUSED(-ENOEXEC, "truncated: the program header table");
    image_sample(&image, true);
    image.eh64->e_shnum = 0;
    CHECK_REFUSED(-ENOEXEC, "no entries");

    image_sample(&image, true);
    memcpy(image.data, "#!/bin/sh", 9);
    CHECK_REFUSED(-ENOEXEC, "not an ELF file");
    image.len = 0;
    CHECK_REFUSED(-ENOEXEC, "not an ELF file");
}

static void
entry_points(void)
{
    image_sample(&image, true);
    image.entry = 0x101000;
    image_build(&image);
    CHECK_REFUSED(-ENOEXEC, "the entry point 0x101000 is in none");

    image.entry = 0xffffffff80102004; /* linked high, loaded low */
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    CHECK_EQ(elf.entry, 0xffffffff80102004);
    CHECK_EQ(elf.entry_gpa, 0x102004);
    vmm_elf_fini(&elf);
}

/* A file cut anywhere is refused, from a heap block of exactly its size. */
static void
every_truncation(void)
{
    for (int is_64 = 0; is_64 < 2; is_64++) {
        image_sample(&image, is_64);
        for (uint64_t len = 0; len < image.len; len++) {
            uint8_t *copy = malloc(len);

            memcpy(copy, image.data, len);
            CHECK_EQ(vmm_elf_open(&elf, copy, len), -ENOEXEC);
            CHECK(*elf.error);
            vmm_elf_fini(&elf);
            free(copy);
        }
    }
}

/* Every byte of a file set to every value, at an odd address. */
static void
every_byte(void)
{
    const struct vmm_elf_symbol *sym;
    uint8_t *copy;

    vmm_mem_init(&mem);
    ram(0x100000, 0x4000);
    for (int is_64 = 0; is_64 < 2; is_64++) {
        image_sample(&image, is_64);
        copy = malloc(image.len + 1);
        memcpy(copy + 1, image.data, image.len);
        for (uint64_t i = 1; i <= image.len; i++) {
            uint8_t keep = copy[i];

            for (unsigned value = 0; value < 256; value++) {
                copy[i] = value;
                if (vmm_elf_open(&elf, copy + 1, image.len)) {
                    CHECK(*elf.error);
                    continue;
                }
                if (vmm_elf_load(&elf, &mem))
                    CHECK(*elf.error);
                for (uint32_t j = 0; j < elf.symbols; j++)
                    CHECK_EQ(vmm_elf_find(&elf, elf.symbol[j].name, &sym), 0);
                vmm_elf_fini(&elf);
            }
            copy[i] = keep;
        }
        free(copy);
    }
    vmm_mem_fini(&mem);
}

static void
symbols_by_name(void)
{
    const struct vmm_elf_symbol *sym = NULL;

    for (int is_64 = 0; is_64 < 2; is_64++) {
        image_sample(&image, is_64);
        CHECK_EQ(open_image(), 0);
        CHECK_EQ(elf.symbols, 12); /* without file.c */
        CHECK_EQ(vmm_elf_find(&elf, "_start", &sym), 0);
        CHECK_EQ(sym->addr, 0x100010);
        CHECK_EQ(sym->size, 0x20);
        CHECK_EQ(vmm_elf_find(&elf, "twice", &sym), 0);
        CHECK_EQ(sym->addr, 0x100080); /* the global one */
        CHECK_EQ(vmm_elf_find(&elf, "LIMIT", &sym), 0);
        CHECK(sym->absolute);
        sym = NULL;
        CHECK_EQ(vmm_elf_find(&elf, "file.c", &sym), -ENOENT);
        CHECK_EQ(vmm_elf_find(&elf, "", &sym), -ENOENT);
        CHECK_EQ(vmm_elf_find(&elf, "zzz", &sym), -ENOENT);
        CHECK(!sym);
        vmm_elf_fini(&elf);
    }
}

static void
symbols_by_address(void)
{
    for (int is_64 = 0; is_64 < 2; is_64++) {
        uint64_t high = is_64 ? 0xffffffff80102000 : 0xc0102000;

        image_sample(&image, is_64);
        CHECK_EQ(open_image(), 0);
        check_where(0, NULL, 0);
        check_where(0xfffff, NULL, 0);
        check_where(0x100000, "text_start", 0);
        check_where(0x10000f, "text_start", 0xf);
        check_where(0x100010, "_start", 0); /* global before local */
        check_where(0x100018, "_start", 8); /* no label hides a function */
        check_where(0x100020, "inner", 0);  /* the innermost */
        check_where(0x100027, "inner", 7);
        check_where(0x100028, "_start", 0x18);
        check_where(0x10002f, "_start", 0x1f);
        check_where(0x100030, "entry_alias", 0x20);
        check_where(0x10003f, "entry_alias", 0x2f);
        check_where(0x100040, NULL, 0); /* padding */
        check_where(0x10006f, "twice", 0xf);
        check_where(0x1000a0, "asm_routine", 0);
        check_where(0x1000af, "asm_routine", 0xf);
        check_where(0x1000b0, "asm_next", 0);
        check_where(0x1000b9, "asm_next", 9); /* numbers are not places */
        check_where(0x1000ff, "asm_next", 0x4f);
        check_where(0x100100, NULL, 0); /* the end of the segment */
        check_where(high, NULL, 0);
        check_where(high + 0x2f, "table", 0x1f);
        check_where(high + 0x1000, NULL, 0); /* _end */
        check_where(UINT64_MAX, NULL, 0);
        vmm_elf_fini(&elf);
    }
}

/* Whatever overlaps, a look-up answers as the slow definition does. */
static void
symbols_that_overlap(void)
{
    const struct vmm_elf_symbol *sym;
    uint32_t seed = 1;

    for (unsigned round = 0; round < 2000; round++) {
        image_sample(&image, true);
        image.segments = 1;
        image.symbols = IMAGE_SYMBOLS;
        for (unsigned i = 0; i < IMAGE_SYMBOLS; i++) {
            seed = seed * 1664525 + 1013904223;
            image.symbol[i] = (struct image_symbol){
                .name = "s",
                .addr = 0x100000 + (seed >> 8) % 32,
                .size = 1 + (seed >> 16) % 16,
                .type = STT_FUNC,
            };
            if (seed >> 29 == 0)
                image.symbol[i].size = UINT64_MAX - (seed >> 16) % 2;
        }
        image_build(&image);
        CHECK_EQ(open_image(), 0);
        for (uint64_t addr = 0xfffff; addr < 0x100040; addr++) {
            uint64_t start = 0;

            for (unsigned i = 0; i < IMAGE_SYMBOLS; i++) {
                const struct image_symbol *s = &image.symbol[i];

                if (addr >= s->addr && addr - s->addr < s->size &&
                    s->addr > start)
                    start = s->addr;
            }
            CHECK_EQ(vmm_elf_where(&elf, addr, &sym), start ? 0 : -ENOENT);
            if (start)
                CHECK_EQ(sym->addr, start);
        }
        vmm_elf_fini(&elf);
    }
}

static void
bad_symbol_tables(void)
{
    Elf64_Shdr *sh;

    image_sample(&image, true);
    sh = (void *)(image.data + image.eh64->e_shoff);
    sh[1].sh_entsize = 0;
    CHECK_REFUSED(-ENOEXEC, "symbol table has");
    sh[1].sh_entsize = sizeof(Elf64_Sym);
    sh[1].sh_size--;
    CHECK_REFUSED(-ENOEXEC, "symbol table has");
    sh[1].sh_size++;
    sh[1].sh_offset = image.len;
    CHECK_REFUSED(-ENOEXEC, "truncated: the symbol table");

    image_sample(&image, true);
    sh[1].sh_link = 3;
    CHECK_REFUSED(-ENOEXEC, "section 3");
    sh[1].sh_link = 1;
    CHECK_REFUSED(-ENOEXEC, "not a string table");

    /* Names past the table's end, and one that nothing terminates. */
    image_sample(&image, true);
    sh[2].sh_size -= 2;
    CHECK_EQ(open_image(), 0);
    CHECK_EQ(elf.symbols, 11);
    vmm_elf_fini(&elf);
    sh[2].sh_size = 0;
    CHECK_EQ(open_image(), 0);
    CHECK_EQ(elf.symbols, 0);
    check_where(0x100010, NULL, 0);
    vmm_elf_fini(&elf);

    image_sample(&image, true);
    image.symbols = 0; /* stripped */
    image_build(&image);
    CHECK_EQ(open_image(), 0);
    CHECK_EQ(elf.symbols, 0);
    vmm_elf_fini(&elf);
}

static void
too_many_symbols(void)
{
    uint64_t count = VMM_ELF_MAX_SYMBOLS + 1;
    Elf64_Shdr *sh;
    uint8_t *copy;

    image_sample(&image, true);
    copy = calloc(1, image.len + count * sizeof(Elf64_Sym));
    sh = (void *)(image.data + image.eh64->e_shoff);
    sh[1].sh_offset = image.len;
    sh[1].sh_size = count * sizeof(Elf64_Sym);
    memcpy(copy, image.data, image.len);
    CHECK_EQ(vmm_elf_open(&elf, copy, image.len + count * sizeof(Elf64_Sym)),
             -EFBIG);
    CHECK(strstr(elf.error, "1048577 symbols"));
    free(copy);
}

int
main(void)
{
    RUN(segments_of_both_classes);
    RUN(load_copies_and_zeroes);
    RUN(outside_ram);
    RUN(address_overflow);
    RUN(bad_segments);
    RUN(too_many_segments);
    RUN(bad_headers);
    RUN(entry_points);
    RUN(every_truncation);
    RUN(every_byte);
    RUN(symbols_by_name);
    RUN(symbols_by_address);
    RUN(symbols_that_overlap);
    RUN(bad_symbol_tables);
    RUN(too_many_symbols);
    return check_done();
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * elf.c - executables: what goes where, the entry point, symbols
 *
 * libelf decodes the tables of both classes; that each table lies inside the
 * file is checked here first, so that libelf never sees one that does not.
 * Strings are read here: elf_strptr looks for a terminator in the whole table
 * for each name, which a hostile file turns into quadratic time.
 */
#include <assert.h>
#include <errno.h>
#include <gelf.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "elf.h"
#include "mem.h"

#define NOBODY UINT32_MAX

/* Says why, and gives back `err`, so that refusing is one statement. */
__attribute__((format(printf, 3, 4))) static int
refuse(struct vmm_elf *elf, int err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(elf->error, sizeof(elf->error), format, args);
    va_end(args);
    return err;
}

/* Do `len` bytes at `offset` lie in the file? */
static bool
inside(const struct vmm_elf *elf, uint64_t offset, uint64_t len)
{
    return offset <= elf->len && len <= elf->len - offset;
}

static bool
contains(uint64_t start, uint64_t size, uint64_t addr)
{
    return addr >= start && addr - start < size;
}

/* The bytes that say how to read the rest. */
static int
read_ident(struct vmm_elf *elf)
{
    const uint8_t *ident = elf->data;
    union {
        Elf32_Ehdr e32;
        Elf64_Ehdr e64;
    } head;
    uint64_t need;

    if (elf->len < SELFMAG || memcmp(ident, ELFMAG, SELFMAG))
        return refuse(elf, -ENOEXEC, "not an ELF file");
    need = sizeof(Elf32_Ehdr);
    if (elf->len > EI_CLASS && ident[EI_CLASS] == ELFCLASS64)
        need = sizeof(Elf64_Ehdr);
    if (elf->len < need)
        return refuse(elf, -ENOEXEC,
                      "truncated: the file has %" PRIu64
                      " bytes, the ELF header alone %" PRIu64,
                      elf->len, need);
    if (ident[EI_CLASS] != ELFCLASS32 && ident[EI_CLASS] != ELFCLASS64)
        return refuse(elf, -ENOEXEC,
                      "ELF class %u, expected 1 (32 bit) or 2 (64 bit)",
                      ident[EI_CLASS]);
    if (ident[EI_DATA] != ELFDATA2LSB)
        return refuse(elf, -ENOEXEC,
                      "not little-endian: ELF data encoding %u, expected 1",
                      ident[EI_DATA]);
    if (ident[EI_VERSION] != EV_CURRENT)
        return refuse(elf, -ENOEXEC, "ELF version %u, expected 1",
                      ident[EI_VERSION]);
    elf->is_64 = ident[EI_CLASS] == ELFCLASS64;
    /*
     * A table without a count has it in section 0, where a hostile file has
     * libelf allocate for as many sections as it likes. Executables never need
     * that many.
     */
    memcpy(&head, ident, need);
    if (elf->is_64 ? head.e64.e_shoff && !head.e64.e_shnum
                   : head.e32.e_shoff && !head.e32.e_shnum)
        return refuse(elf, -ENOEXEC, "a section header table of no entries");
    return 0;
}

/* Is a table of `count` entries where the header says, and of our shape? */
static int
check_table(struct vmm_elf *elf, const char *name, uint64_t offset,
            uint64_t count, uint64_t entry, uint64_t expected)
{
    if (count && entry != expected)
        return refuse(elf, -ENOEXEC,
                      "entries of the %s table have %" PRIu64
                      " bytes, expected %" PRIu64,
                      name, entry, expected);
    if (count && !inside(elf, offset, count * entry))
        return refuse(elf, -ENOEXEC,
                      "truncated: the %s table is %" PRIu64
                      " bytes at file offset %#" PRIx64
                      ", the file has %" PRIu64 " bytes",
                      name, count * entry, offset, elf->len);
    return 0;
}

static int
check_header(struct vmm_elf *elf, Elf *e, const GElf_Ehdr *eh)
{
    unsigned machine = elf->is_64 ? EM_X86_64 : EM_386;
    int ret;

    if (eh->e_machine != machine)
        return refuse(elf, -ENOEXEC,
                      "ELF machine %u, expected %u (%s) in a %d-bit file",
                      eh->e_machine, machine, elf->is_64 ? "x86-64" : "386",
                      elf->is_64 ? 64 : 32);
    if (eh->e_type == ET_DYN)
        return refuse(elf, -ENOEXEC,
                      "a position-independent file (ET_DYN), expected an "
                      "executable (ET_EXEC): link with -no-pie");
    if (eh->e_type != ET_EXEC)
        return refuse(elf, -ENOEXEC, "ELF type %u, expected %u (an executable)",
                      eh->e_type, ET_EXEC);
    /* Counts too large for the header are kept in section 0: not for us. */
    if (eh->e_phnum == PN_XNUM)
        return refuse(elf, -EFBIG, "more than %u program headers", PN_XNUM - 1);
    ret =
        check_table(elf, "program header", eh->e_phoff, eh->e_phnum,
                    eh->e_phentsize, gelf_fsize(e, ELF_T_PHDR, 1, EV_CURRENT));
    if (ret)
        return ret;
    return check_table(elf, "section header", eh->e_shoff, eh->e_shnum,
                       eh->e_shentsize,
                       gelf_fsize(e, ELF_T_SHDR, 1, EV_CURRENT));
}

/* What the file alone tells about a segment. */
static int
check_segment(struct vmm_elf *elf, const struct vmm_elf_segment *seg)
{
    uint64_t last = elf->is_64 ? UINT64_MAX : UINT32_MAX;
    const struct vmm_elf_segment *other;

    if (seg->filesz > seg->memsz)
        return refuse(elf, -ENOEXEC,
                      "segment %u at %#" PRIx64 " has %#" PRIx64
                      " bytes in the file for %#" PRIx64 " bytes of memory",
                      seg->index, seg->paddr, seg->filesz, seg->memsz);
    if (!inside(elf, seg->offset, seg->filesz))
        return refuse(elf, -ENOEXEC,
                      "truncated: segment %u at %#" PRIx64 " is %#" PRIx64
                      " bytes at file offset %#" PRIx64
                      ", the file has %#" PRIx64 " bytes",
                      seg->index, seg->paddr, seg->filesz, seg->offset,
                      elf->len);
    if (seg->memsz && (seg->memsz - 1 > last - seg->paddr ||
                       seg->memsz - 1 > last - seg->vaddr))
        return refuse(elf, -ENOEXEC,
                      "segment %u at %#" PRIx64 " (virtual %#" PRIx64
                      ") has %#" PRIx64 " bytes, which go past the last "
                      "address, %#" PRIx64,
                      seg->index, seg->paddr, seg->vaddr, seg->memsz, last);
    for (other = elf->segment; other < elf->segment + elf->segments; other++) {
        if (contains(other->paddr, other->memsz, seg->paddr) ||
            contains(seg->paddr, seg->memsz, other->paddr))
            return refuse(elf, -ENOEXEC,
                          "segment %u at %#" PRIx64 " + %#" PRIx64
                          " overlaps segment %u at %#" PRIx64 " + %#" PRIx64,
                          seg->index, seg->paddr, seg->memsz, other->index,
                          other->paddr, other->memsz);
    }
    return 0;
}

static int
read_segments(struct vmm_elf *elf, Elf *e, unsigned count)
{
    struct vmm_elf_segment seg;
    GElf_Phdr ph;
    unsigned i;
    int ret;

    for (i = 0; i < count; i++) {
        if (!gelf_getphdr(e, (int)i, &ph))
            return refuse(elf, -ENOEXEC, "program header %u: %s", i,
                          elf_errmsg(-1));
        if (ph.p_type != PT_LOAD)
            continue;
        seg = (struct vmm_elf_segment){
            .index = i,
            .flags = ph.p_flags,
            .paddr = ph.p_paddr,
            .vaddr = ph.p_vaddr,
            .offset = ph.p_offset,
            .filesz = ph.p_filesz,
            .memsz = ph.p_memsz,
        };
        ret = check_segment(elf, &seg);
        if (ret)
            return ret;
        if (!seg.memsz)
            continue; /* linkers leave empty ones */
        if (elf->segments == VMM_ELF_MAX_SEGMENTS)
            return refuse(elf, -EFBIG, "more than %u segments to load",
                          VMM_ELF_MAX_SEGMENTS);
        elf->segment[elf->segments++] = seg;
    }
    if (!elf->segments)
        return refuse(elf, -ENOEXEC, "no segment to load (PT_LOAD)");
    return 0;
}

static int
read_entry(struct vmm_elf *elf, uint64_t entry)
{
    const struct vmm_elf_segment *seg, *end = elf->segment + elf->segments;

    elf->entry = entry;
    for (seg = elf->segment; seg < end; seg++) {
        if (contains(seg->paddr, seg->memsz, entry)) {
            elf->entry_gpa = entry;
            return 0;
        }
    }
    for (seg = elf->segment; seg < end; seg++) {
        if (contains(seg->vaddr, seg->memsz, entry)) {
            elf->entry_gpa = entry - seg->vaddr + seg->paddr;
            return 0;
        }
    }
    return refuse(elf, -ENOEXEC,
                  "the entry point %#" PRIx64
                  " is in none of the %u loaded segments",
                  entry, elf->segments);
}

static int
bind_rank(const struct vmm_elf_symbol *sym)
{
    return sym->bind == STB_GLOBAL ? 2 : sym->bind == STB_WEAK ? 1 : 0;
}

/*
 * For a look-up by address the preferred comes last. Those without a size come
 * after those with one, which then hide them.
 */
static int
order_by_addr(const void *left, const void *right)
{
    const struct vmm_elf_symbol *a = left, *b = right;
    int ret;

    if (a->addr != b->addr)
        return a->addr < b->addr ? -1 : 1;
    if (!a->size != !b->size)
        return !a->size - !b->size;
    ret = (a->type == STT_FUNC) - (b->type == STT_FUNC);
    if (!ret)
        ret = bind_rank(a) - bind_rank(b);
    return ret ? ret : (a->name > b->name) - (a->name < b->name);
}

static int
order_by_name(const void *left, const void *right, void *arg)
{
    const struct vmm_elf *elf = arg;
    uint32_t i = *(const uint32_t *)left, j = *(const uint32_t *)right;
    const struct vmm_elf_symbol *a = &elf->symbol[i], *b = &elf->symbol[j];
    int ret;

    ret = strcmp(a->name, b->name);
    if (!ret)
        ret = bind_rank(b) - bind_rank(a);
    if (!ret)
        ret = (b->type == STT_FUNC) - (a->type == STT_FUNC);
    return ret ? ret : (i > j) - (i < j);
}

/* A symbol that is open in the sweep below. */
struct cover {
    uint64_t last;
    uint32_t symbol;
};

static void
add_range(struct vmm_elf *elf, uint64_t start, uint32_t symbol)
{
    if (elf->ranges && elf->range[elf->ranges - 1].start == start)
        elf->ranges--;
    elf->range[elf->ranges++] = (struct vmm_elf_range){start, symbol};
}

/* Closes what ends before `addr`; what lies below shows again. */
static unsigned
close_before(struct vmm_elf *elf, struct cover *stack, unsigned depth,
             uint64_t addr)
{
    uint64_t last;

    while (depth && stack[depth - 1].last < addr) {
        last = stack[--depth].last;
        while (depth && stack[depth - 1].last <= last)
            depth--;
        add_range(elf, last + 1, depth ? stack[depth - 1].symbol : NOBODY);
    }
    return depth;
}

/* The last address of the segment that `addr` is in, or 0. */
static uint64_t
segment_last(const struct vmm_elf *elf, uint64_t addr)
{
    const struct vmm_elf_segment *seg = elf->segment;

    for (; seg < elf->segment + elf->segments; seg++) {
        if (contains(seg->vaddr, seg->memsz, addr))
            return seg->vaddr + (seg->memsz - 1);
    }
    return 0;
}

/*
 * One sweep over the sorted symbols cuts the addresses into ranges, each of
 * the symbol that started last among those that contain it: a look-up is then
 * one binary search, whatever overlaps a file makes up. Each symbol opens at
 * most one range and closes at most one, so 2 * symbols of them suffice.
 */
static void
build_ranges(struct vmm_elf *elf, struct cover *stack)
{
    uint32_t i, next = 0;
    unsigned depth = 0;

    for (i = 0; i < elf->symbols; i++) {
        const struct vmm_elf_symbol *sym = &elf->symbol[i];
        uint64_t last;

        if (sym->absolute)
            continue;
        depth = close_before(elf, stack, depth, sym->addr);
        if (sym->size) {
            last = sym->size - 1 > UINT64_MAX - sym->addr
                       ? UINT64_MAX
                       : sym->addr + (sym->size - 1);
        } else {
            if (depth && elf->symbol[stack[depth - 1].symbol].size)
                continue; /* a label in a function */
            last = segment_last(elf, sym->addr);
            if (!last)
                continue; /* the like of _end */
            while (next < elf->symbols && (elf->symbol[next].absolute ||
                                           elf->symbol[next].addr <= sym->addr))
                next++;
            if (next < elf->symbols)
                last = vmm_min(last, elf->symbol[next].addr - 1);
        }
        stack[depth++] = (struct cover){last, i};
        add_range(elf, sym->addr, i);
    }
    /* One that reaches the last address has no end to note. */
    close_before(elf, stack, depth, UINT64_MAX);
}

/* The symbol's name when it is one to keep, else NULL. */
static const char *
symbol_name(const GElf_Sym *sym, const char *strings, uint64_t len)
{
    uint64_t room;

    if (sym->st_shndx == SHN_UNDEF || !sym->st_name || sym->st_name >= len)
        return NULL;
    switch (GELF_ST_TYPE(sym->st_info)) {
    case STT_NOTYPE:
    case STT_OBJECT:
    case STT_FUNC:
        break;
    default:
        return NULL;
    }
    strings += sym->st_name;
    room = vmm_min(len - sym->st_name, VMM_ELF_MAX_NAME + 1);
    if (!*strings || strnlen(strings, room) == room)
        return NULL;
    return strings;
}

/* Fills the tables from `count` entries, some of which are passed over. */
static int
build_symbols(struct vmm_elf *elf, Elf_Data *entries, unsigned count,
              const char *strings, uint64_t strings_len)
{
    struct cover *stack = NULL;
    GElf_Sym sym;
    unsigned i;
    int ret = -ENOMEM;

    elf->symbol = calloc(count, sizeof(*elf->symbol));
    elf->by_name = calloc(count, sizeof(*elf->by_name));
    elf->range = calloc(count, 2 * sizeof(*elf->range));
    stack = calloc(count, sizeof(*stack));
    if (!elf->symbol || !elf->by_name || !elf->range || !stack) {
        refuse(elf, ret, "no memory for %u symbols", count);
        goto out;
    }
    for (i = 0; i < count; i++) {
        const char *name;

        if (!gelf_getsym(entries, (int)i, &sym)) {
            ret = refuse(elf, -ENOEXEC, "symbol %u: %s", i, elf_errmsg(-1));
            goto out;
        }
        name = symbol_name(&sym, strings, strings_len);
        if (!name)
            continue;
        elf->by_name[elf->symbols] = elf->symbols;
        elf->symbol[elf->symbols++] = (struct vmm_elf_symbol){
            .name = name,
            .addr = sym.st_value,
            .size = sym.st_size,
            .type = GELF_ST_TYPE(sym.st_info),
            .bind = GELF_ST_BIND(sym.st_info),
            .absolute = sym.st_shndx == SHN_ABS,
        };
    }
    qsort(elf->symbol, elf->symbols, sizeof(*elf->symbol), order_by_addr);
    qsort_r(elf->by_name, elf->symbols, sizeof(*elf->by_name), order_by_name,
            elf);
    build_ranges(elf, stack);
    ret = 0;
out:
    free(stack);
    return ret;
}

/* The symbol table, or that of dynamic linking when there is no other. */
static Elf_Scn *
find_table(Elf *e, GElf_Shdr *out)
{
    Elf_Scn *scn = NULL, *found = NULL;
    GElf_Shdr sh;

    while ((scn = elf_nextscn(e, scn))) {
        if (!gelf_getshdr(scn, &sh))
            continue;
        if (sh.sh_type == SHT_SYMTAB || (sh.sh_type == SHT_DYNSYM && !found)) {
            *out = sh;
            found = scn;
        }
        if (sh.sh_type == SHT_SYMTAB)
            break;
    }
    return found;
}

static int
read_symbols(struct vmm_elf *elf, Elf *e)
{
    uint64_t entry = gelf_fsize(e, ELF_T_SYM, 1, EV_CURRENT);
    GElf_Shdr table, names;
    Elf_Data *entries;
    Elf_Scn *scn;

    scn = find_table(e, &table);
    if (!scn || !table.sh_size)
        return 0; /* stripped */
    if (table.sh_entsize != entry || table.sh_size % entry ||
        table.sh_flags & SHF_COMPRESSED)
        return refuse(elf, -ENOEXEC,
                      "the symbol table has %" PRIu64 " bytes in entries of "
                      "%" PRIu64 ", expected entries of %" PRIu64,
                      table.sh_size, table.sh_entsize, entry);
    if (!inside(elf, table.sh_offset, table.sh_size))
        return refuse(elf, -ENOEXEC,
                      "truncated: the symbol table is %" PRIu64
                      " bytes at file offset %#" PRIx64
                      ", the file has %" PRIu64 " bytes",
                      table.sh_size, table.sh_offset, elf->len);
    if (table.sh_size / entry > VMM_ELF_MAX_SYMBOLS)
        return refuse(elf, -EFBIG, "%" PRIu64 " symbols, at most %u are taken",
                      table.sh_size / entry, VMM_ELF_MAX_SYMBOLS);
    if (!gelf_getshdr(elf_getscn(e, table.sh_link), &names) ||
        names.sh_type != SHT_STRTAB ||
        !inside(elf, names.sh_offset, names.sh_size))
        return refuse(elf, -ENOEXEC,
                      "the symbol names should be in section %u, which is "
                      "not a string table inside the file",
                      table.sh_link);
    entries = elf_getdata(scn, NULL);
    if (!entries || entries->d_size != table.sh_size)
        return refuse(elf, -ENOEXEC, "the symbol table: %s", elf_errmsg(-1));
    return build_symbols(elf, entries, table.sh_size / entry,
                         (const char *)elf->data + names.sh_offset,
                         names.sh_size);
}

int
vmm_elf_open(struct vmm_elf *elf, const void *data, uint64_t len)
{
    GElf_Ehdr eh;
    Elf *e;
    int ret;

    memset(elf, 0, sizeof(*elf));
    elf->data = data;
    elf->len = len;
    ret = read_ident(elf);
    if (ret)
        return ret;
    elf_version(EV_CURRENT);
    /* Only read: libelf lacks the const. */
    e = elf_memory((char *)(uintptr_t)data, len);
    if (!e || elf_kind(e) != ELF_K_ELF || !gelf_getehdr(e, &eh)) {
        ret =
            refuse(elf, -ENOEXEC, "not a usable ELF file: %s", elf_errmsg(-1));
        goto out;
    }
    ret = check_header(elf, e, &eh);
    if (!ret)
        ret = read_segments(elf, e, eh.e_phnum);
    if (!ret)
        ret = read_entry(elf, eh.e_entry);
    if (!ret)
        ret = read_symbols(elf, e);
out:
    elf_end(e);
    if (ret)
        vmm_elf_fini(elf);
    return ret;
}

void
vmm_elf_fini(struct vmm_elf *elf)
{
    free(elf->symbol);
    free(elf->by_name);
    free(elf->range);
    elf->symbol = NULL;
    elf->by_name = NULL;
    elf->range = NULL;
    elf->symbols = 0;
    elf->ranges = 0;
    elf->segments = 0;
    elf->data = NULL;
    elf->len = 0;
}

int
vmm_elf_check(struct vmm_elf *elf, const struct vmm_mem *mem)
{
    const struct vmm_elf_segment *seg = elf->segment;
    uint64_t span;

    for (; seg < elf->segment + elf->segments; seg++) {
        span = vmm_mem_span(mem, seg->paddr, seg->memsz);
        if (span == seg->memsz)
            continue;
        if (!span)
            return refuse(elf, -EFAULT,
                          "segment %u: %#" PRIx64 " + %#" PRIx64
                          " is outside RAM (there is none at its start)",
                          seg->index, seg->paddr, seg->memsz);
        return refuse(elf, -EFAULT,
                      "segment %u: %#" PRIx64 " + %#" PRIx64
                      " is outside RAM (which ends at %#" PRIx64 ")",
                      seg->index, seg->paddr, seg->memsz, seg->paddr + span);
    }
    return 0;
}

int
vmm_elf_load(struct vmm_elf *elf, struct vmm_mem *mem)
{
    const struct vmm_elf_segment *seg = elf->segment;
    int ret;

    ret = vmm_elf_check(elf, mem);
    for (; !ret && seg < elf->segment + elf->segments; seg++) {
        ret = vmm_mem_write(mem, seg->paddr, elf->data + seg->offset,
                            seg->filesz, VMM_MEM_HOST);
        if (!ret)
            ret = vmm_mem_fill(mem, seg->paddr + seg->filesz, 0,
                               seg->memsz - seg->filesz, VMM_MEM_HOST);
        assert(!ret); /* the set of regions only grows */
    }
    return ret;
}

int
vmm_elf_find(const struct vmm_elf *elf, const char *name,
             const struct vmm_elf_symbol **out)
{
    uint32_t low = 0, high = elf->symbols;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (strcmp(elf->symbol[elf->by_name[mid]].name, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == elf->symbols ||
        strcmp(elf->symbol[elf->by_name[low]].name, name))
        return -ENOENT;
    *out = &elf->symbol[elf->by_name[low]];
    return 0;
}

int
vmm_elf_where(const struct vmm_elf *elf, uint64_t addr,
              const struct vmm_elf_symbol **out)
{
    uint32_t low = 0, high = elf->ranges;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (elf->range[mid].start <= addr)
            low = mid + 1;
        else
            high = mid;
    }
    if (!low || elf->range[low - 1].symbol == NOBODY)
        return -ENOENT;
    *out = &elf->symbol[elf->range[low - 1].symbol];
    return 0;
}

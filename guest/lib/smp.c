/* SPDX-License-Identifier: 0BSD */
/* smp.c - INIT and SIPI for the other vCPUs */
#include "internal.h"

#include <smp.h>

#ifdef __i386__

#define PAGE    4096U
#define LOW_END 0xa0000U

#define LAPIC_SPURIOUS 0xfee000f0
#define LAPIC_ENABLED  0x100
#define LAPIC_ICR_LOW  0xfee00300
#define LAPIC_ICR_HIGH 0xfee00310
#define ICR_INIT       0x4500
#define ICR_SIPI       0x4600 /* and the number of the page */

/* ap.S: real mode code to be copied to such a page, and where it goes on. */
extern const char ap_begin[], ap_end[];
extern const char gdt_pointer[6];
extern char ap_gdt[6];

static void (*volatile to_run)(unsigned id);
static volatile unsigned starting;
void *volatile ap_stack; /* its end */

void ap_main(void) __attribute__((noreturn));

void
ap_main(void)
{
    unsigned id = starting;
    void (*run)(unsigned) = to_run;

    starting = 0;
    run(id);
    for (;;)
        __asm__ volatile("cli; hlt" : : : "memory");
}

/* A page below 1 MiB that nobody uses; 0: there is none. */
static uint32_t
low_page(void)
{
    const struct memory_map_entry *map =
        (const struct memory_map_entry *)(uintptr_t)start_info->mem_entries;

    for (uint32_t i = 0; i < start_info->mem_size; i++) {
        uint32_t base = map[i].base ? map[i].base : PAGE;

        if (map[i].use == MEMORY_USE_FREE && base + PAGE <= LOW_END &&
            map[i].base + map[i].size >= base + PAGE)
            return base;
    }
    return 0;
}

bool
cpu_start(unsigned id, void *stack, size_t size, void (*run)(unsigned id))
{
    uint32_t page = low_page();

    if (!page)
        return false;
    memcpy((void *)page, ap_begin, (size_t)(ap_end - ap_begin));
    memcpy((void *)(page + (uint32_t)(ap_gdt - ap_begin)), gdt_pointer,
           sizeof(gdt_pointer));
    ap_stack = (void *)(((uintptr_t)stack + size) & ~15UL);
    to_run = run;
    starting = id;
    write32(LAPIC_SPURIOUS, read32(LAPIC_SPURIOUS) | LAPIC_ENABLED);
    write32(LAPIC_ICR_HIGH, id << 24);
    write32(LAPIC_ICR_LOW, ICR_INIT);
    write32(LAPIC_ICR_HIGH, id << 24);
    write32(LAPIC_ICR_LOW, ICR_SIPI | page / PAGE);
    while (starting)
        cpu_relax();
    return true;
}

#else

bool
cpu_start(unsigned id, void *stack, size_t size, void (*run)(unsigned id))
{
    (void)id, (void)stack, (void)size, (void)run;
    return false;
}

#endif

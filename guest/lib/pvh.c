/* SPDX-License-Identifier: 0BSD */
/*
 * pvh.c - the same image under the PVH protocol, as QEMU -kernel boots it
 *
 * The machine is expected to be QEMU's microvm: virtio-mmio devices every
 * 0x200 bytes from 0xfeb00000. PVH does not say which interrupt they have
 * and the IOAPIC varies, so both are left out: guests poll there.
 */
#include "internal.h"

#define MICROVM_VIRTIO_BASE  0xfeb00000
#define MICROVM_VIRTIO_STEP  0x200
#define MICROVM_VIRTIO_COUNT 24
#define VIRTIO_DEVICE_ID     0x8

#define MEMORY_MAX     16
#define PVH_MEMORY_RAM 1
#define PAGE_MASK      0xfffULL
#define FOUR_GIB       0x100000000ULL

/* Xen's struct hvm_start_info and hvm_memmap_table_entry. */
struct pvh_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t nr_modules;
    uint64_t modlist_paddr;
    uint64_t cmdline_paddr;
    uint64_t rsdp_paddr;
    uint64_t memmap_paddr; /* from version 1 on */
    uint32_t memmap_entries;
    uint32_t reserved;
};

struct pvh_memory {
    uint64_t addr;
    uint64_t size;
    uint32_t type;
    uint32_t reserved;
};

static struct start_info info_made;
static struct memory_map_entry memory_made[MEMORY_MAX];
static struct device_map_entry devices_made[MICROVM_VIRTIO_COUNT];

static void
make_memory(const struct pvh_info *pvh)
{
    const struct pvh_memory *entry =
        (const struct pvh_memory *)(uintptr_t)pvh->memmap_paddr;

    if (pvh->version < 1)
        return;
    for (uint32_t i = 0; i < pvh->memmap_entries; i++, entry++) {
        uint64_t base = (entry->addr + PAGE_MASK) & ~PAGE_MASK;
        uint64_t end = (entry->addr + entry->size) & ~PAGE_MASK;

        if (entry->type != PVH_MEMORY_RAM || base >= FOUR_GIB || base >= end)
            continue;
        if (end > FOUR_GIB)
            end = FOUR_GIB - PAGE_MASK - 1;
        if (info_made.mem_size == MEMORY_MAX)
            return;
        memory_made[info_made.mem_size++] = (struct memory_map_entry){
            .base = (uint32_t)base,
            .size = (uint32_t)(end - base),
            .use = MEMORY_USE_FREE,
        };
    }
}

static void
make_devices(void)
{
    for (uint32_t i = 0; i < MICROVM_VIRTIO_COUNT; i++) {
        uint32_t base = MICROVM_VIRTIO_BASE + i * MICROVM_VIRTIO_STEP;

        if (read32(base) == DEVICE_MAGIC_VIRTIO &&
            read32(base + VIRTIO_DEVICE_ID))
            devices_made[info_made.dev_size++].base_addr = base;
    }
}

const struct start_info *
pvh_start_info(uint32_t info, const char **cmdline)
{
    const struct pvh_info *pvh = (const struct pvh_info *)(uintptr_t)info;

    if (pvh->magic != PVH_MAGIC)
        panic("PVH information at 0x%08x has magic 0x%08x", info, pvh->magic);
    *cmdline = "";
    if (pvh->cmdline_paddr)
        *cmdline = (const char *)(uintptr_t)pvh->cmdline_paddr;
    make_memory(pvh);
    make_devices();
    info_made.mem_entries = (uint32_t)(uintptr_t)memory_made;
    info_made.dev_entries = (uint32_t)(uintptr_t)devices_made;
    return &info_made;
}

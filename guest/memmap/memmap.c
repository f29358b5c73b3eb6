/* SPDX-License-Identifier: 0BSD */
/* memmap.c - prints all that start_info says about the machine */
#include <runtime.h>

#include <virtio.h>

static const char *
use_name(uint32_t use)
{
    static const char *const names[] = {
        [MEMORY_USE_FREE] = "free",
        [MEMORY_USE_KERNEL] = "kernel",
        [MEMORY_USE_INIT] = "init",
    };

    return use < 3 ? names[use] : "unknown";
}

int
main(const struct start_info *si, const char *cmdline)
{
    const struct memory_map_entry *mem =
        (const struct memory_map_entry *)(uintptr_t)si->mem_entries;
    const struct device_map_entry *dev =
        (const struct device_map_entry *)(uintptr_t)si->dev_entries;

    print("ioapic 0x%08x\n", si->ioapic_base);
    for (uint32_t i = 0; i < si->mem_size; i++)
        print("memory 0x%08x 0x%08x %s %s\n", mem[i].base, mem[i].size,
              mem[i].flags & MEMORY_FLAG_READ_ONLY ? "ro" : "rw",
              use_name(mem[i].use));
    for (uint32_t i = 0; i < si->dev_size; i++) {
        print("device 0x%08x line %u", dev[i].base_addr, dev[i].interrupt_num);
        if (read32(dev[i].base_addr) == DEVICE_MAGIC_VIRTIO)
            print(" virtio %u",
                  read32(dev[i].base_addr + VIRTIO_MMIO_DEVICE_ID));
        print("\n");
    }
    print("cmdline \"%s\"\n", cmdline);
    return 0;
}

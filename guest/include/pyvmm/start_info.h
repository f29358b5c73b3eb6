/* SPDX-License-Identifier: 0BSD */
/*
 * start_info.h - the start_info guest ABI: how a guest of pyvmm is started
 *
 * This file is the one source of truth. It depends on <stdint.h> alone, is
 * plain C (and the constants are plain assembly), and may be copied into any
 * kernel. All fields are 32-bit little endian, all addresses guest-physical
 * and below 4 GiB.
 *
 * At the ELF entry point the vCPU is in 32-bit protected mode, paging and
 * interrupts off, cs, ds, es, ss flat (base 0, limit 0xffffffff), and
 *
 *   eax   START_INFO_MAGIC, so that one image can serve other protocols too
 *   ebx   address of struct start_info
 *   ecx   address of the NUL-terminated command line, or 0
 *   esp   top of a 16 KiB boot stack, 16-byte aligned
 *   rest  0; eflags is 2
 *
 * No GDT and no IDT can be relied upon: load your own before the first far
 * jump, segment load or interrupt. Both PICs are fully masked.
 */
#ifndef PYVMM_START_INFO_H
#define PYVMM_START_INFO_H

#define START_INFO_MAGIC 0x6d767970 /* eax at entry: the bytes "pyvm" */

#define START_INFO_STACK_SIZE 16384 /* bytes below the initial esp */

/* memory_map_entry.flags */
#define MEMORY_FLAG_READ_ONLY 1 /* reads are memory, writes leave the guest */

/* memory_map_entry.use */
#define MEMORY_USE_FREE   0 /* nothing in it */
#define MEMORY_USE_KERNEL 1 /* the loaded image */
#define MEMORY_USE_INIT   2 /* initrd, this information, the boot stack */

/*
 * Console. Write 1, 2 or 4 bytes to CONSOLE_PORT_DATA: they are appended to
 * the output, lowest byte first. Read one byte from it: the next byte of
 * input, 0 when there is none. Reading CONSOLE_PORT_PENDING gives how many
 * bytes of input wait, at most 255.
 */
#define CONSOLE_PORT_DATA    0xe9
#define CONSOLE_PORT_PENDING 0xed

/* Writing a status of 1, 2 or 4 bytes here ends the run with it. */
#define EXIT_PORT 0xf4

/* A virtio-mmio device answers this ("virt") at offset 0 of its registers. */
#define DEVICE_MAGIC_VIRTIO 0x74726976

#ifndef __ASSEMBLER__

#include <stdint.h>

struct start_info {
    uint32_t ioapic_base; /* 0xfec00000, or 0: no interrupt controller */
    uint32_t mem_size;    /* number of memory_map_entry */
    uint32_t mem_entries; /* address of the first memory_map_entry */
    uint32_t dev_size;    /* number of device_map_entry */
    uint32_t dev_entries; /* address of the first device_map_entry */
};

/* Sorted by base, never overlapping, page aligned; below 4 GiB only. */
struct memory_map_entry {
    uint32_t base;
    uint32_t size;  /* bytes */
    uint32_t flags; /* MEMORY_FLAG_* */
    uint32_t use;   /* MEMORY_USE_* */
};

/* Every device with a range of addresses, sorted by base_addr. */
struct device_map_entry {
    uint32_t base_addr;     /* guest-physical address of the registers */
    uint32_t interrupt_num; /* IOAPIC pin, edge, active high; 0: none */
};

#endif
#endif

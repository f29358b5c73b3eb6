/* SPDX-License-Identifier: 0BSD */
/* internal.h - what the files of the runtime share among themselves */
#ifndef GUEST_INTERNAL_H
#define GUEST_INTERNAL_H

/* Selectors of start.S. In 64-bit code the last two bits are the ring. */
#define SELECTOR_CODE      0x08
#define SELECTOR_DATA      0x10
#define SELECTOR_USER_DATA 0x1b
#define SELECTOR_USER_CODE 0x23
#define SELECTOR_TSS       0x28

#define PVH_MAGIC 0x336ec578

#ifndef __ASSEMBLER__

#include <runtime.h>

/* Bytes that the console port takes at once. */
extern unsigned console_width;

/* start.S comes here with the registers of the entry. */
void runtime_start(uint32_t magic, uint32_t info, uint32_t cmdline)
    __attribute__((noreturn));

/* Makes a start_info out of PVH's; *cmdline is set too. */
const struct start_info *pvh_start_info(uint32_t info, const char **cmdline);

#endif
#endif

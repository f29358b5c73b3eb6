/* SPDX-License-Identifier: 0BSD */
/* internal.h - what the files of the runtime share among themselves */
#ifndef GUEST_INTERNAL_H
#define GUEST_INTERNAL_H

/*
 * Selectors of start.S. Those of ring 3 are Linux's: a host that runs ring 3
 * as one of its own processes may show those whatever the guest asked for.
 */
#define SELECTOR_CODE      0x08
#define SELECTOR_DATA      0x10
#define SELECTOR_USER_DATA 0x2b
#define SELECTOR_USER_CODE 0x33
#define SELECTOR_TSS       0x38

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

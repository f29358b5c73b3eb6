/* SPDX-License-Identifier: 0BSD */
/*
 * gcov.c - what code compiled with -fprofile-arcs asks of a runtime
 *
 * The host reads the counters: with -fprofile-info-section their descriptions
 * are in the section .gcov_info. These functions only say, by their addresses,
 * which kinds of counters an object has; nobody calls them.
 */
#include "internal.h"

void __gcov_merge_add(void);
void __gcov_merge_ior(void);
void __gcov_merge_time_profile(void);
void __gcov_merge_topn(void);

void
__gcov_merge_add(void)
{
}

void
__gcov_merge_ior(void)
{
}

void
__gcov_merge_time_profile(void)
{
}

void
__gcov_merge_topn(void)
{
}

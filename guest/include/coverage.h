/* SPDX-License-Identifier: 0BSD */
/*
 * coverage.h - which edges of a program were taken, for who fuzzes it
 *
 * A program whose own files are compiled with lib/coverage.flags calls the
 * functions below at the begin of each basic block; they count in a map that
 * the host reads (Machine.replay(coverage="edges")). Nothing needs to be
 * included for that: this is for code that wants to look at the map, to clear
 * it, or to be left out of it.
 *
 * A counter belongs to the way from one block to the next: AFL's hash, in which
 * the previous block is shifted so that A to B and B to A are two, and a loop
 * of one block is not zero. Different edges may share one. Counters stay at
 * 255. With several vCPUs, or handlers that interrupt, edges of both mix.
 *
 * With lib/compare.flags each comparison of integers counts as well, by how
 * many of their bytes are equal: an input that has one byte more of a magic
 * number is then one that got further. That takes as long again.
 *
 * gcc and clang: -fsanitize-coverage=trace-pc,trace-cmp. clang also has
 * trace-pc-guard, which tells edges apart itself: counters are then given in
 * the order of the image, and are shared only beyond 65536.
 */
#ifndef GUEST_COVERAGE_H
#define GUEST_COVERAGE_H

#include <stdint.h>

#define COVERAGE_SIZE 65536U

/* The host knows it by this name. Page aligned. */
extern unsigned char pyvmm_coverage[COVERAGE_SIZE];

/* Before a function: its blocks are not counted. */
#ifdef __has_attribute
#if __has_attribute(no_sanitize_coverage)
#define NO_COVERAGE __attribute__((no_sanitize_coverage))
#elif __has_attribute(no_sanitize)
#define NO_COVERAGE __attribute__((no_sanitize("coverage")))
#endif
#endif
#ifndef NO_COVERAGE
#define NO_COVERAGE
#endif

/* What compilers call. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b);
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b);
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b);
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b);
void __sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b);
void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b);
void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b);
void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b);
void __sanitizer_cov_trace_switch(uint64_t value, const uint64_t *cases);
void __sanitizer_cov_trace_pc_guard(uint32_t *guard);
void __sanitizer_cov_trace_pc_guard_init(uint32_t *start, uint32_t *stop);

#endif

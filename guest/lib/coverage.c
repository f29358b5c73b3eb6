/* SPDX-License-Identifier: 0BSD */
/* coverage.c - see coverage.h */
#include <coverage.h>

#define GOLDEN_RATIO 0x9e3779b1U /* of 2^32: spreads what is near */

unsigned char pyvmm_coverage[COVERAGE_SIZE] __attribute__((aligned(4096)));

static uint32_t previous;

/* Where clang's guards begin, one for each edge; made by the linker. */
extern uint32_t __start___sancov_guards[]
    __attribute__((weak, visibility("hidden")));

NO_COVERAGE static inline void
count(uint32_t edge)
{
    unsigned char *counter = &pyvmm_coverage[edge % COVERAGE_SIZE];

    *counter += *counter != 255;
}

NO_COVERAGE void
__sanitizer_cov_trace_pc(void)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uint32_t here = (uint32_t)pc * GOLDEN_RATIO >> 16;

    count(here ^ previous);
    previous = here >> 1;
}

NO_COVERAGE void
__sanitizer_cov_trace_pc_guard(uint32_t *guard)
{
    count((uint32_t)(guard - __start___sancov_guards));
}

/* Guards are told apart by where they are: there is nothing to number, and so
 * nobody needs to call this. */
NO_COVERAGE void
__sanitizer_cov_trace_pc_guard_init(uint32_t *start, uint32_t *stop)
{
    (void)start;
    (void)stop;
}

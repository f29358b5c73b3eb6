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

NO_COVERAGE static inline uint32_t
place(uintptr_t pc)
{
    return (uint32_t)pc * GOLDEN_RATIO >> 16;
}

NO_COVERAGE void
__sanitizer_cov_trace_pc(void)
{
    uint32_t here = place((uintptr_t)__builtin_return_address(0));

    count(here ^ previous);
    previous = here >> 1;
}

/*
 * Two values of `size` bytes that are compared at `pc`. Nothing is counted when
 * no byte of them is equal, or all are: then an edge tells.
 */
NO_COVERAGE static void
compare(uintptr_t pc, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t differs = a ^ b;
    unsigned equal = 0;

    for (unsigned i = 0; i < size; i++)
        equal += !(differs >> 8 * i & 0xff);
    if (equal && equal < size)
        count(place(pc + equal));
}

#define COMPARE(name, type)                                                    \
    NO_COVERAGE void name(type a, type b)                                      \
    {                                                                          \
        compare((uintptr_t)__builtin_return_address(0), a, b, sizeof(a));      \
    }

COMPARE(__sanitizer_cov_trace_cmp2, uint16_t)
COMPARE(__sanitizer_cov_trace_cmp4, uint32_t)
COMPARE(__sanitizer_cov_trace_cmp8, uint64_t)
COMPARE(__sanitizer_cov_trace_const_cmp2, uint16_t)
COMPARE(__sanitizer_cov_trace_const_cmp4, uint32_t)
COMPARE(__sanitizer_cov_trace_const_cmp8, uint64_t)

/* A byte is equal or not, which an edge tells. */
NO_COVERAGE void
__sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b)
{
    (void)a;
    (void)b;
}

NO_COVERAGE void
__sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b)
{
    (void)a;
    (void)b;
}

/* cases: how many there are, how many bits the value has, and each of them. */
NO_COVERAGE void
__sanitizer_cov_trace_switch(uint64_t value, const uint64_t *cases)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);

    for (uint64_t i = 0; i < cases[0]; i++)
        compare(pc + 8 * (uintptr_t)i, value, cases[2 + i],
                (unsigned)cases[1] / 8);
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

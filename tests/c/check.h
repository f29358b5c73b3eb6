/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - the few lines that the C tests need: checks that show both sides */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

static int check_failed_here;
static int check_failed_all;
static int check_count;

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            printf("# %s:%d: not true: %s\n", __FILE__, __LINE__, #cond);      \
            check_failed_here = 1;                                             \
        }                                                                      \
    } while (0)

#define CHECK_EQ(a, b)                                                         \
    do {                                                                       \
        int64_t check_a = (int64_t)(a), check_b = (int64_t)(b);                \
        if (check_a != check_b) {                                              \
            printf("# %s:%d: %s is %" PRId64 " (%#" PRIx64                     \
                   "), expected %s = %" PRId64 " (%#" PRIx64 ")\n",            \
                   __FILE__, __LINE__, #a, check_a, (uint64_t)check_a, #b,     \
                   check_b, (uint64_t)check_b);                                \
            check_failed_here = 1;                                             \
        }                                                                      \
    } while (0)

#define RUN(fn)                                                                \
    do {                                                                       \
        check_failed_here = 0;                                                 \
        fn();                                                                  \
        check_count++;                                                         \
        check_failed_all += check_failed_here;                                 \
        printf("%s %s\n", check_failed_here ? "not ok" : "ok", #fn);           \
        fflush(stdout);                                                        \
    } while (0)

static inline int
check_done(void)
{
    printf("# %d tests, %d failed\n", check_count, check_failed_all);
    return check_failed_all || !check_count;
}

#endif

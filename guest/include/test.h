/* SPDX-License-Identifier: 0BSD */
/*
 * test.h - tests that run inside the guest, each from the same snapshot
 *
 *     #include <test.h>
 *
 *     TEST(addition)
 *     {
 *         EXPECT_EQ(add(2, 2), 4);
 *         ASSERT_TRUE(ready());           (the test ends if it is not)
 *     }
 *
 *     TEST_PARAMS(doubled, int, 0, 1, -5)
 *     {
 *         EXPECT_EQ(twice(param), param + param);
 *     }
 *
 *     TEST(slow, .timeout = 60) { ... }   (seconds)
 *
 * In a file guest_NAME.c pytest collects them, where pyvmm is installed: the
 * guest boots once, test_setup() is called, a snapshot is taken, and each test
 * begins from there, whatever the others have done. In other monitors, and by
 * `pyvmm run`, the same image runs all tests one after the other and prints
 * TAP; the status is then 0 or 1.
 *
 * There is a main() in here, which calls test_main(). Who has one of his own
 * says #define TEST_OWN_MAIN before the #include, and calls that.
 *
 * How a host finds the tests and gets the result is below: pyvmm_test and
 * pyvmm_test_record. All numbers are little endian, and the structures are the
 * same with -m32 and -m64. In assembly TEST(name) begins a test, which ends by
 * `ret`, and ASSERT_CC(e) ends it as failed unless the condition holds.
 */
#ifndef GUEST_TEST_H
#define GUEST_TEST_H

#define TEST_MAGIC   0x74737470 /* "ptst" */
#define TEST_VERSION 1

/* pyvmm_test_record.state */
#define TEST_STATE_READY   1 /* the host may take its snapshot */
#define TEST_STATE_RUNNING 2
#define TEST_STATE_PASSED  3
#define TEST_STATE_FAILED  4
#define TEST_STATE_SKIPPED 5

/* The status of the run that goes with a state. */
#define TEST_EXIT_PASSED  0
#define TEST_EXIT_FAILED  1
#define TEST_EXIT_SKIPPED 77
#define TEST_EXIT_READY   0x5e7

/* What kind of values a failure and a parameter have. */
#define TEST_KIND_NONE     0
#define TEST_KIND_SIGNED   1
#define TEST_KIND_UNSIGNED 2
#define TEST_KIND_POINTER  3
#define TEST_KIND_STRING   4
#define TEST_KIND_MEMORY   5

#define TEST_FAILURES_MAX 8  /* that are kept of one test; all are counted */
#define TEST_DATA_MAX     64 /* bytes that are kept of a string or memory */

/* What pyvmm_test_record.check grows by with each failure. */
#define TEST_CHECK_STEP 0x9e3779b97f4a7c15

#ifndef __ASSEMBLER__

#include <runtime.h>

union pyvmm_test_pointer {
    const void *at;
    void (*call)(const void *param);
    uint64_t number;
};

/*
 * One test; they lie in the section pyvmm_tests, between the symbols
 * pyvmm_tests_start and pyvmm_tests_stop.
 */
struct pyvmm_test {
    union pyvmm_test_pointer name;
    union pyvmm_test_pointer run;
    union pyvmm_test_pointer file;
    uint32_t line;
    uint32_t timeout;                /* seconds; 0: the host's own */
    union pyvmm_test_pointer params; /* an array; NULL: run(NULL), once */
    uint32_t param_count;
    uint32_t param_size; /* bytes of one */
    uint32_t param_kind; /* TEST_KIND_*, by which the host names it */
    uint32_t magic;
    uint64_t reserved;
} __attribute__((aligned(64)));

/* An expectation that failed. */
struct pyvmm_test_failure {
    uint64_t file;       /* address of a text */
    uint64_t expression; /* the same */
    uint64_t left;       /* the values; of memory the first place that */
    uint64_t right;      /* differs, and how many bytes were compared */
    uint32_t line;
    uint32_t kind;
    uint32_t left_len; /* bytes in left_data: texts, or memory from there */
    uint32_t right_len;
    uint8_t left_data[TEST_DATA_MAX];
    uint8_t right_data[TEST_DATA_MAX];
};

/*
 * The symbol pyvmm_test_record, by which host and guest talk. The host gives
 * the word `pyvmm.test` on the command line and runs until the status
 * TEST_EXIT_READY. For each test it writes `test`, `param` and a `nonce` that
 * was never used before, and runs on. At the end the status is that of
 * `state`, and
 *
 *     check == nonce + failures * TEST_CHECK_STEP + state
 *
 * modulo 2^64, or else the record is not what the runner wrote.
 */
struct pyvmm_test_record {
    uint32_t magic;
    uint32_t version;
    uint32_t state;
    uint32_t failures;
    uint32_t test;  /* which, from 0 on */
    uint32_t param; /* the same of its parameters */
    uint64_t nonce;
    uint64_t check;
    uint64_t reason; /* address of the text of SKIP() */
    struct pyvmm_test_failure failure[TEST_FAILURES_MAX];
};

extern struct pyvmm_test_record pyvmm_test_record;

/* Called once, before the snapshot, if the program has it. */
void test_setup(void);

/* Runs the tests that the host asks for, or all; the status of the run. */
int test_main(void);

/* What the macros are made of. */
void test_failed(const char *file, unsigned line, const char *expression,
                 unsigned kind, uint64_t left, uint64_t right)
    __attribute__((cold));
bool test_strings(const char *file, unsigned line, const char *expression,
                  const char *left, const char *right);
bool test_memory(const char *file, unsigned line, const char *expression,
                 const void *left, const void *right, size_t len);
void test_end(void) __attribute__((noreturn, cold));
void test_skip(const char *reason) __attribute__((noreturn, cold));

#ifndef TEST_OWN_MAIN
int main(void) __attribute__((weak));
int
main(void)
{
    return test_main();
}
#endif

/* In the order of the source; clang does so anyway. */
#ifdef __clang__
#define TEST_IN_ORDER
#else
#define TEST_IN_ORDER no_reorder,
#endif

#define TEST_ENTRY(id, ...)                                                    \
    static const struct pyvmm_test pyvmm_test_##id                             \
        __attribute__((TEST_IN_ORDER section("pyvmm_tests"), used)) = {        \
            .name = {#id},                                                     \
            .run = {.call = test_run_##id},                                    \
            .file = {__FILE__},                                                \
            .line = __LINE__,                                                  \
            .magic = TEST_MAGIC,                                               \
            __VA_ARGS__}

/* TEST(name) { ... }, or TEST(name, .timeout = 60) { ... } */
#define TEST(id, ...)                                                          \
    static void test_##id(void) __attribute__((noinline));                     \
    static void test_run_##id(const void *param)                               \
    {                                                                          \
        (void)param;                                                           \
        test_##id();                                                           \
    }                                                                          \
    TEST_ENTRY(id, ##__VA_ARGS__);                                             \
    static void test_##id(void)

/*
 * TEST_PARAMS(name, type, values...) { ... }: once for each value, as `param`.
 * Numbers and texts are in the test's name; of other types it is the index.
 */
#define TEST_PARAMS(id, type, ...)                                             \
    static __typeof__(type) const test_values_##id[] = {__VA_ARGS__};          \
    static void test_##id(__typeof__(type) const param)                        \
        __attribute__((noinline));                                             \
    static void test_run_##id(const void *param)                               \
    {                                                                          \
        test_##id(*(__typeof__(type) const *)param);                           \
    }                                                                          \
    TEST_ENTRY(id, .params = {test_values_##id},                               \
               .param_count = sizeof(test_values_##id) / sizeof(type),         \
               .param_size = sizeof(type),                                     \
               .param_kind = TEST_KIND((type){0}, TEST_KIND_NONE));            \
    static void test_##id(__typeof__(type) const param)

#define TEST_KIND(value, otherwise)                                            \
    _Generic((value),                                                          \
        char: TEST_KIND_SIGNED,                                                \
        signed char: TEST_KIND_SIGNED,                                         \
        short: TEST_KIND_SIGNED,                                               \
        int: TEST_KIND_SIGNED,                                                 \
        long: TEST_KIND_SIGNED,                                                \
        long long: TEST_KIND_SIGNED,                                           \
        bool: TEST_KIND_UNSIGNED,                                              \
        unsigned char: TEST_KIND_UNSIGNED,                                     \
        unsigned short: TEST_KIND_UNSIGNED,                                    \
        unsigned: TEST_KIND_UNSIGNED,                                          \
        unsigned long: TEST_KIND_UNSIGNED,                                     \
        unsigned long long: TEST_KIND_UNSIGNED,                                \
        char *: TEST_KIND_STRING,                                              \
        const char *: TEST_KIND_STRING,                                        \
        default: otherwise)

/* clang-format off */

/* A value as 64 bits: numbers keep their sign, the rest is an address. */
#define TEST_NUMBER(value)                                                     \
    ((uint64_t)_Generic((value),                                               \
        int: (value),                                                          \
        unsigned: (value),                                                     \
        long: (value),                                                         \
        unsigned long: (value),                                                \
        long long: (value),                                                    \
        unsigned long long: (value),                                           \
        default: (uintptr_t)(value)))

/* A text is compared as the address that it is. */
#define TEST_VALUE_KIND(value)                                                 \
    (TEST_KIND(value, TEST_KIND_POINTER) == TEST_KIND_STRING                   \
         ? TEST_KIND_POINTER                                                   \
         : TEST_KIND(value, TEST_KIND_POINTER))

/*
 * Both sides are evaluated once. The ?: makes of bit fields, arrays and small
 * numbers what a variable can have.
 */
#define TEST_COMPARE(a, operation, b, text, end)                               \
    do {                                                                       \
        _Pragma("GCC diagnostic push")                                         \
        _Pragma("GCC diagnostic ignored \"-Wsign-compare\"")                   \
        __typeof__(1 ? (a) : (a)) left_ = (a);                                 \
        __typeof__(1 ? (b) : (b)) right_ = (b);                                \
        if (!(left_ operation right_)) {                                       \
            test_failed(__FILE__, __LINE__, text, TEST_VALUE_KIND(left_),      \
                        TEST_NUMBER(left_), TEST_NUMBER(right_));              \
            end;                                                               \
        }                                                                      \
        _Pragma("GCC diagnostic pop")                                          \
    } while (0)

#define TEST_THAT(condition, text, end)                                        \
    do {                                                                       \
        if (!(condition)) {                                                    \
            test_failed(__FILE__, __LINE__, text, TEST_KIND_NONE, 0, 0);       \
            end;                                                               \
        }                                                                      \
    } while (0)

#define TEST_CALL(call, end)                                                   \
    do {                                                                       \
        if (!(call))                                                           \
            end;                                                               \
    } while (0)

#define EXPECT_EQ(a, b) TEST_COMPARE(a, ==, b, "EXPECT_EQ(" #a ", " #b ")", (void)0)
#define EXPECT_NE(a, b) TEST_COMPARE(a, !=, b, "EXPECT_NE(" #a ", " #b ")", (void)0)
#define EXPECT_LT(a, b) TEST_COMPARE(a, <, b, "EXPECT_LT(" #a ", " #b ")", (void)0)
#define EXPECT_LE(a, b) TEST_COMPARE(a, <=, b, "EXPECT_LE(" #a ", " #b ")", (void)0)
#define EXPECT_GT(a, b) TEST_COMPARE(a, >, b, "EXPECT_GT(" #a ", " #b ")", (void)0)
#define EXPECT_GE(a, b) TEST_COMPARE(a, >=, b, "EXPECT_GE(" #a ", " #b ")", (void)0)
#define EXPECT_TRUE(a)  TEST_THAT(a, "EXPECT_TRUE(" #a ")", (void)0)
#define EXPECT_FALSE(a) TEST_THAT(!(a), "EXPECT_FALSE(" #a ")", (void)0)
#define EXPECT_STR_EQ(a, b) TEST_CALL(test_strings(__FILE__, __LINE__, "EXPECT_STR_EQ(" #a ", " #b ")", a, b), (void)0)
#define EXPECT_MEM_EQ(a, b, len) TEST_CALL(test_memory(__FILE__, __LINE__, "EXPECT_MEM_EQ(" #a ", " #b ", " #len ")", a, b, len), (void)0)

#define ASSERT_EQ(a, b) TEST_COMPARE(a, ==, b, "ASSERT_EQ(" #a ", " #b ")", test_end())
#define ASSERT_NE(a, b) TEST_COMPARE(a, !=, b, "ASSERT_NE(" #a ", " #b ")", test_end())
#define ASSERT_LT(a, b) TEST_COMPARE(a, <, b, "ASSERT_LT(" #a ", " #b ")", test_end())
#define ASSERT_LE(a, b) TEST_COMPARE(a, <=, b, "ASSERT_LE(" #a ", " #b ")", test_end())
#define ASSERT_GT(a, b) TEST_COMPARE(a, >, b, "ASSERT_GT(" #a ", " #b ")", test_end())
#define ASSERT_GE(a, b) TEST_COMPARE(a, >=, b, "ASSERT_GE(" #a ", " #b ")", test_end())
#define ASSERT_TRUE(a)  TEST_THAT(a, "ASSERT_TRUE(" #a ")", test_end())
#define ASSERT_FALSE(a) TEST_THAT(!(a), "ASSERT_FALSE(" #a ")", test_end())
#define ASSERT_STR_EQ(a, b) TEST_CALL(test_strings(__FILE__, __LINE__, "ASSERT_STR_EQ(" #a ", " #b ")", a, b), test_end())
#define ASSERT_MEM_EQ(a, b, len) TEST_CALL(test_memory(__FILE__, __LINE__, "ASSERT_MEM_EQ(" #a ", " #b ", " #len ")", a, b, len), test_end())
/* clang-format on */

/* Ends the test: as failed, or as one that does not apply here, and why. */
#define FAIL(why)                                                              \
    (test_failed(__FILE__, __LINE__, why, TEST_KIND_NONE, 0, 0), test_end())
#define SKIP(why) test_skip(why)

#else /* __ASSEMBLER__ */

/* clang-format off */
    .weak main
    .type main, @function
main:
    jmp test_main
    .size main, . - main

#ifdef __i386__
#define TEST_ADDRESS(symbol) .long symbol, 0
#define TEST_FAIL_CALL pushl $0; pushl $0; pushl $0; pushl $0; pushl $0; \
    pushl $79f; pushl $__LINE__; pushl $78f; call test_failed; call test_end
#else
#define TEST_ADDRESS(symbol) .quad symbol
#define TEST_FAIL_CALL andq $-16, %rsp; movl $78f, %edi; movl $__LINE__, %esi; \
    movl $79f, %edx; xorl %ecx, %ecx; xorl %r8d, %r8d; xorl %r9d, %r9d; \
    call test_failed; call test_end
#endif

#define TEST(id) \
    .section .rodata; \
    70: .asciz #id; \
    71: .asciz __FILE__; \
    .section pyvmm_tests, "a", @progbits; \
    .balign 64; \
    TEST_ADDRESS(70b); TEST_ADDRESS(id); TEST_ADDRESS(71b); \
    .long __LINE__, 0; .quad 0; .long 0, 0, 0, TEST_MAGIC; .quad 0; \
    .text; \
    .type id, @function; \
    id:

#define ASSERT_CC(cc) \
    j##cc 77f; \
    TEST_FAIL_CALL; \
    .pushsection .rodata; \
    78: .asciz __FILE__; \
    79: .ascii "ASSERT_CC("; .ascii #cc; .asciz ")"; \
    .popsection; \
    77:
/* clang-format on */

#endif
#endif

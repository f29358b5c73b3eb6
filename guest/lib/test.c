/* SPDX-License-Identifier: 0BSD */
/* test.c - runs the tests of an image: one for the host, or all of them */
#include <test.h>

extern const struct pyvmm_test pyvmm_tests_start[], pyvmm_tests_stop[];

struct pyvmm_test_record pyvmm_test_record;

static bool hosted; /* a host asks for tests, one at a time */
static bool skipped;

/* guarded.S: the way out of a test for when nobody is. */
void call_guarded(void (*run)(const void *param), const void *param);
void leave_guarded(void) __attribute__((noreturn));

void __attribute__((weak)) test_setup(void)
{
}

static unsigned
test_count(void)
{
    return (unsigned)(pyvmm_tests_stop - pyvmm_tests_start);
}

/* Sets the state so that a host can tell it from what was overwritten. */
static void
set_state(uint32_t state)
{
    struct pyvmm_test_record *record = &pyvmm_test_record;

    record->check += state - (uint64_t)record->state;
    record->state = state;
}

static void
begin(void)
{
    struct pyvmm_test_record *record = &pyvmm_test_record;

    record->failures = 0;
    record->check = record->nonce + TEST_STATE_RUNNING;
    record->state = TEST_STATE_RUNNING;
}

static const void *
param_of(const struct pyvmm_test *test, unsigned param)
{
    const char *params = test->params.at;

    return params ? params + param * test->param_size : NULL;
}

/* The host put us back to where we were ready, and has said what to run. */
static void __attribute__((noreturn)) run_one(void)
{
    struct pyvmm_test_record *record = &pyvmm_test_record;
    const struct pyvmm_test *test;

    if (record->test >= test_count())
        panic("there is no test %u", record->test);
    test = pyvmm_tests_start + record->test;
    begin();
    test->run.call(param_of(test, record->param));
    test_end();
}

static int
run_all(void)
{
    struct pyvmm_test_record *record = &pyvmm_test_record;
    unsigned total = 0, number = 0, failed = 0;

    for (const struct pyvmm_test *t = pyvmm_tests_start; t < pyvmm_tests_stop;
         t++)
        total += t->params.at ? t->param_count : 1;
    print("TAP version 13\n1..%u\n", total);
    test_setup();
    for (const struct pyvmm_test *t = pyvmm_tests_start; t < pyvmm_tests_stop;
         t++) {
        unsigned count = t->params.at ? t->param_count : 1;

        for (unsigned param = 0; param < count; param++) {
            const char *name = t->name.at;

            begin();
            skipped = false;
            call_guarded(t->run.call, param_of(t, param));
            failed += record->failures != 0;
            print("%sok %u - %s", record->failures ? "not " : "", ++number,
                  name);
            if (t->params.at)
                print(" %u", param);
            if (skipped && !record->failures)
                print(" # SKIP %s", (const char *)(uintptr_t)record->reason);
            print("\n");
        }
    }
    return failed ? 1 : 0;
}

int
test_main(void)
{
    hosted = arg("pyvmm.test") != NULL;
    if (!hosted)
        return run_all();
    test_setup();
    pyvmm_test_record.magic = TEST_MAGIC;
    pyvmm_test_record.version = TEST_VERSION;
    pyvmm_test_record.state = TEST_STATE_READY;
    console_flush();
    outl(EXIT_PORT, TEST_EXIT_READY);
    run_one();
}

void
test_end(void)
{
    bool failed = pyvmm_test_record.failures != 0;

    if (!hosted)
        leave_guarded();
    set_state(failed ? TEST_STATE_FAILED : TEST_STATE_PASSED);
    exit(failed ? TEST_EXIT_FAILED : TEST_EXIT_PASSED);
}

void
test_skip(const char *reason)
{
    pyvmm_test_record.reason = (uintptr_t)reason;
    skipped = true;
    if (!hosted || pyvmm_test_record.failures)
        test_end();
    set_state(TEST_STATE_SKIPPED);
    exit(TEST_EXIT_SKIPPED);
}

/* Counts a failure; where its details go, or NULL. */
static struct pyvmm_test_failure *
count_failure(const char *file, unsigned line, const char *expression,
              unsigned kind)
{
    struct pyvmm_test_record *record = &pyvmm_test_record;
    uint32_t number = record->failures++;
    struct pyvmm_test_failure *failure;

    record->check += TEST_CHECK_STEP;
    if (!hosted)
        print("# %s:%u: %s\n", file, line, expression);
    if (number >= TEST_FAILURES_MAX)
        return NULL;
    failure = &record->failure[number];
    failure->file = (uintptr_t)file;
    failure->expression = (uintptr_t)expression;
    failure->line = line;
    failure->kind = kind;
    return failure;
}

void
test_failed(const char *file, unsigned line, const char *expression,
            unsigned kind, uint64_t left, uint64_t right)
{
    struct pyvmm_test_failure *failure;

    failure = count_failure(file, line, expression, kind);
    if (failure) {
        failure->left = left;
        failure->right = right;
    }
    if (hosted || kind == TEST_KIND_NONE)
        return;
    if (kind == TEST_KIND_SIGNED)
        print("#   left %lld, right %lld\n", (long long)left, (long long)right);
    else
        print("#   left 0x%llx, right 0x%llx\n", (unsigned long long)left,
              (unsigned long long)right);
}

static uint32_t
keep(uint8_t *to, const void *from, size_t len)
{
    if (len > TEST_DATA_MAX)
        len = TEST_DATA_MAX;
    memcpy(to, from, len);
    return (uint32_t)len;
}

bool
test_strings(const char *file, unsigned line, const char *expression,
             const char *left, const char *right)
{
    struct pyvmm_test_failure *failure;

    if (left == right || (left && right && !strcmp(left, right)))
        return true;
    failure = count_failure(file, line, expression, TEST_KIND_STRING);
    if (failure) {
        failure->left = (uintptr_t)left;
        failure->right = (uintptr_t)right;
        failure->left_len =
            left ? keep(failure->left_data, left, strlen(left)) : 0;
        failure->right_len =
            right ? keep(failure->right_data, right, strlen(right)) : 0;
    }
    if (!hosted)
        print("#   left \"%s\", right \"%s\"\n", left, right);
    return false;
}

bool
test_memory(const char *file, unsigned line, const char *expression,
            const void *left, const void *right, size_t len)
{
    const uint8_t *a = left, *b = right;
    struct pyvmm_test_failure *failure;
    size_t at = 0;

    if (!memcmp(left, right, len))
        return true;
    while (at < len - 1 && a[at] == b[at])
        at++;
    failure = count_failure(file, line, expression, TEST_KIND_MEMORY);
    if (failure) {
        failure->left = at;
        failure->right = len;
        failure->left_len = keep(failure->left_data, a + at, len - at);
        failure->right_len = keep(failure->right_data, b + at, len - at);
    }
    if (!hosted)
        print("#   byte %u of %u: left 0x%02x, right 0x%02x\n", (unsigned)at,
              (unsigned)len, a[at], b[at]);
    return false;
}

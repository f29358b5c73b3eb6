/* SPDX-License-Identifier: Apache-2.0 */
/* test_mutate.c - inputs made of other inputs: each operation, bounds, order */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vmm/mutate.h"

#define GUARD 0xa5

static struct vmm_mutate m;

static void
begin(uint64_t seed)
{
    vmm_mutate_fini(&m);
    vmm_mutate_init(&m, seed);
}

static void
add(const char *text, bool try_it)
{
    CHECK_EQ(vmm_mutate_add(&m, text, strlen(text), try_it), 0);
}

/* One operation on `text`: the result in `out`, of 64 bytes. */
static size_t
apply(enum vmm_mutate_op op, const char *text, size_t max, uint8_t *out)
{
    size_t len = strlen(text);

    memset(out, GUARD, 64);
    memcpy(out, text, len);
    len = vmm_mutate_apply(&m, op, out, len, max);
    CHECK(len <= max);
    for (size_t i = max; i < 64; i++)
        CHECK_EQ(out[i], GUARD);
    return len;
}

static unsigned
differing(const uint8_t *out, const char *text, size_t len)
{
    unsigned count = 0;

    for (size_t i = 0; i < len; i++)
        count += out[i] != (uint8_t)text[i];
    return count;
}

static void
test_untried_come_first(void)
{
    uint8_t out[8];

    begin(1);
    add("one", true);
    add("two", false);
    add("threefold", true);
    CHECK_EQ(vmm_mutate_next(&m, out, sizeof out), 3);
    CHECK(!memcmp(out, "one", 3));
    CHECK_EQ(vmm_mutate_next(&m, out, sizeof out), 8); /* cut */
    CHECK(!memcmp(out, "threefol", 8));
    for (int op = 0; op < VMM_MUTATE_OPS; op++)
        CHECK_EQ(m.done[op], 0);
    vmm_mutate_next(&m, out, sizeof out);
    add("four", true); /* at any time */
    CHECK_EQ(vmm_mutate_next(&m, out, sizeof out), 4);
    CHECK(!memcmp(out, "four", 4));
}

static void
test_nothing_to_begin_with(void)
{
    uint8_t out[8];
    size_t most = 0;

    begin(1);
    CHECK_EQ(vmm_mutate_next(&m, out, sizeof out), 0);
    add("", false);
    for (int i = 0; i < 100; i++) {
        size_t len = vmm_mutate_next(&m, out, sizeof out);

        most = len > most ? len : most;
    }
    CHECK_EQ(most, sizeof out);
}

/* A digest of 20000 inputs. */
static uint64_t
run(uint64_t seed)
{
    uint64_t hash = 0xcbf29ce484222325ULL;
    uint8_t out[64];

    begin(seed);
    add("some words of text", true);
    add("0123456789", true);
    CHECK_EQ(vmm_mutate_token(&m, "TOKEN", 5), 0);
    for (int i = 0; i < 20000; i++) {
        size_t len = vmm_mutate_next(&m, out, sizeof out);

        CHECK(len <= sizeof out);
        for (size_t j = 0; j < len; j++)
            hash = (hash ^ out[j]) * 0x100000001b3ULL;
        hash = (hash ^ len) * 0x100000001b3ULL;
        if (i % 1000 == 0)
            CHECK_EQ(vmm_mutate_add(&m, out, len, false), 0);
    }
    return hash;
}

static void
test_the_seed_decides(void)
{
    CHECK(run(1) == run(1));
    CHECK(run(1) != run(2));
    CHECK(run(0) != run(1ULL << 63));
}

static void
test_each_operation_happens(void)
{
    uint64_t all = 0;

    run(7);
    for (int op = 0; op < VMM_MUTATE_OPS; op++)
        all += m.done[op];
    for (int op = 0; op < VMM_MUTATE_OPS; op++) {
        CHECK(m.done[op] > all / VMM_MUTATE_OPS / 2);
        CHECK(m.done[op] < all / VMM_MUTATE_OPS * 2);
    }
}

static void
test_in_place(void)
{
    const char *text = "abcdefghij";
    uint8_t out[64];

    begin(3);
    for (int i = 0; i < 1000; i++) {
        unsigned bits = 0;

        CHECK_EQ(apply(VMM_MUTATE_BIT, text, 10, out), 10);
        for (int j = 0; j < 10; j++)
            bits += (unsigned)__builtin_popcount(out[j] ^ (unsigned)text[j]);
        CHECK_EQ(bits, 1);
        CHECK_EQ(apply(VMM_MUTATE_BYTE, text, 10, out), 10);
        CHECK_EQ(differing(out, text, 10), 1);
        CHECK_EQ(apply(VMM_MUTATE_ADD, text, 10, out), 10);
        CHECK(differing(out, text, 10) >= 1 && differing(out, text, 10) <= 4);
        CHECK_EQ(apply(VMM_MUTATE_INTERESTING, text, 10, out), 10);
        CHECK(differing(out, text, 10) <= 4);
        CHECK_EQ(apply(VMM_MUTATE_FILL, text, 10, out), 10);
        CHECK_EQ(apply(VMM_MUTATE_COPY, text, 10, out), 10);
        for (int j = 0; j < 10; j++)
            CHECK(out[j] >= 'a' && out[j] <= 'j');
    }
}

/* Numbers of each size, both ends first, become what they should. */
static void
test_numbers(void)
{
    bool less = false, more = false, big = false, little = false, ends[3] = {0};
    uint8_t out[64];

    begin(5);
    for (int i = 0; i < 20000; i++) {
        uint32_t le, be;

        apply(VMM_MUTATE_ADD, "\x10\x20\x30\x40", 4, out);
        memcpy(&le, out, 4);
        be = __builtin_bswap32(le);
        less |= le == 0x40302010 - 35;
        more |= le == 0x40302010 + 35;
        big |= be == 0x10203040 + 35;
        apply(VMM_MUTATE_INTERESTING, "....", 4, out);
        memcpy(&le, out, 4);
        little |= le == 0x7fffffff;
        ends[0] |= le == 0xffffff7f;
        ends[1] |= out[2] == 0xff && out[3] == 0x7f && out[0] == '.';
        ends[2] |= out[1] == 0x80 && out[0] == '.' && out[2] == '.';
    }
    CHECK(less && more && big && little);
    CHECK(ends[0] && ends[1] && ends[2]);
}

static void
test_delete(void)
{
    uint8_t out[64];

    begin(9);
    for (int i = 0; i < 1000; i++) {
        size_t len = apply(VMM_MUTATE_DELETE, "abcdefghij", 10, out);

        CHECK(len >= 1 && len < 10);
        for (size_t j = 1; j < len; j++)
            CHECK(out[j] > out[j - 1]);
    }
    CHECK_EQ(apply(VMM_MUTATE_DELETE, "a", 10, out), 1);
    CHECK_EQ(apply(VMM_MUTATE_DELETE, "", 10, out), 0);
}

/* What came in between is a piece of the text, wherever the gap was. */
static void
test_duplicate(void)
{
    const char *text = "abcdefghij";
    unsigned inside = 0;
    uint8_t out[64];

    begin(11);
    for (int i = 0; i < 5000; i++) {
        size_t max = 10 + (size_t)i % 20;
        size_t len = apply(VMM_MUTATE_DUPLICATE, text, max, out);
        size_t more = len - 10, at = 0;
        bool found = false;

        CHECK(max == 10 ? len == 10 : len > 10);
        /* Some gap explains it. */
        for (at = 0; at <= 10 && !found; at++) {
            uint8_t *in = out + at;

            found = !memcmp(out, text, at) &&
                    !memcmp(in + more, text + at, 10 - at) &&
                    (!more || memmem(text, 10, in, more));
            inside += found && more && at && at < 10;
        }
        CHECK(found);
    }
    CHECK(inside > 1000);
}

static void
test_insert(void)
{
    unsigned same = 0, full = 0;
    uint8_t out[64];

    begin(13);
    for (int i = 0; i < 1000; i++) {
        size_t len = apply(VMM_MUTATE_INSERT, "", 30, out);

        CHECK(len >= 1);
        full += len == 30;
        same += len > 4 && !memcmp(out, out + 1, len - 1);
        len = apply(VMM_MUTATE_INSERT, "abcde", 30, out);
        CHECK(len > 5 && (out[0] == 'a' || out[len - 1] == 'e'));
        CHECK_EQ(apply(VMM_MUTATE_INSERT, "abcde", 5, out), 5);
    }
    CHECK(full > 0 && same > 200 && same < 800);
    CHECK(apply(VMM_MUTATE_INSERT, "", 1, out) == 1);
}

static void
test_others(void)
{
    bool cut = false, grafted = false;
    uint8_t out[64];

    begin(15);
    CHECK_EQ(apply(VMM_MUTATE_SPLICE, "abc", 10, out), 3);
    CHECK_EQ(apply(VMM_MUTATE_GRAFT, "abc", 10, out), 3);
    add("ABCDEFGHIJ", false);
    for (int i = 0; i < 1000; i++) {
        size_t len = apply(VMM_MUTATE_SPLICE, "abcdefghij", 10, out);

        for (size_t j = 0; j < len; j++)
            CHECK_EQ(out[j] & 0x5f, 'A' + (int)j);
        for (size_t j = 1; j < len; j++)
            CHECK(out[j] < 'a' || out[j - 1] >= 'a');
        cut |= out[3] == 'd' && out[4] == 'E';
        len = apply(VMM_MUTATE_GRAFT, "abcdefghij", 12, out);
        CHECK(len >= 10 && len <= 12);
        grafted |= memmem(out, len, "aFb", 3) != NULL;
    }
    CHECK(cut && grafted);
}

static void
test_tokens(void)
{
    uint8_t out[64];

    begin(17);
    CHECK_EQ(apply(VMM_MUTATE_TOKEN_IN, "abc", 10, out), 3);
    CHECK_EQ(vmm_mutate_token(&m, "", 0), -EINVAL);
    CHECK_EQ(vmm_mutate_token(&m, out, VMM_MUTATE_TOKEN + 1), -EINVAL);
    CHECK_EQ(vmm_mutate_token(&m, "MAGIC", 5), 0);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(apply(VMM_MUTATE_TOKEN_IN, "abc", 8, out), 8);
        CHECK(memmem(out, 8, "MAGIC", 5));
        CHECK_EQ(apply(VMM_MUTATE_TOKEN_OVER, "abcdef", 6, out), 6);
        CHECK(memmem(out, 6, "MAGIC", 5));
        /* where there is no room nothing happens */
        CHECK_EQ(apply(VMM_MUTATE_TOKEN_IN, "abc", 7, out), 3);
        CHECK_EQ(apply(VMM_MUTATE_TOKEN_OVER, "abcd", 64, out), 4);
        CHECK_EQ(differing(out, "abcd", 4), 0);
    }
}

/* All operations at all lengths: on the heap, for the sanitizers. */
static void
test_bounds(void)
{
    begin(19);
    add("a longer input than any of these buffers has room for", false);
    add("", false);
    add("x", false);
    CHECK_EQ(vmm_mutate_token(&m, "tok", 3), 0);
    for (size_t max = 0; max < 40; max++)
        for (size_t len = 0; len <= max; len++)
            for (int i = 0; i < 40 * VMM_MUTATE_OPS; i++) {
                uint8_t *buf = malloc(max ? max : 1);
                size_t now;

                memset(buf, 'b', max);
                now = vmm_mutate_apply(&m,
                                       (enum vmm_mutate_op)(i % VMM_MUTATE_OPS),
                                       buf, len, max);
                CHECK(now <= max && (now || !len));
                free(buf);
            }
}

static void
test_too_long(void)
{
    begin(21);
    CHECK_EQ(vmm_mutate_add(&m, "", VMM_MUTATE_MAX_LEN + 1, true), -EINVAL);
    CHECK_EQ(m.inputs, 0);
}

/* The newest are picked more often than each of the others. */
static void
test_new_ones_are_preferred(void)
{
    unsigned newest = 0;
    uint8_t out[64];

    begin(23);
    for (int i = 0; i < 100; i++)
        add(i < 92 ? "oooooooooooooooooooooooooooooooooooooooo"
                   : "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
            false);
    for (int i = 0; i < 10000; i++) {
        size_t len = vmm_mutate_next(&m, out, sizeof out);
        unsigned n = 0, o = 0;

        for (size_t j = 0; j < len; j++) {
            n += out[j] == 'n';
            o += out[j] == 'o';
        }
        newest += n > o;
    }
    CHECK(newest > 3000 && newest < 6500);
}

int
main(void)
{
    RUN(test_untried_come_first);
    RUN(test_nothing_to_begin_with);
    RUN(test_the_seed_decides);
    RUN(test_each_operation_happens);
    RUN(test_in_place);
    RUN(test_numbers);
    RUN(test_delete);
    RUN(test_duplicate);
    RUN(test_insert);
    RUN(test_others);
    RUN(test_tokens);
    RUN(test_bounds);
    RUN(test_too_long);
    RUN(test_new_ones_are_preferred);
    vmm_mutate_fini(&m);
    return check_done();
}

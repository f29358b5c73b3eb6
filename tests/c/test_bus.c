/* SPDX-License-Identifier: Apache-2.0 */
/* test_bus.c - who answers at an address: ranges, borders, look-ups */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "vmm/bus.h"

static struct vmm_bus bus;

/* A device that remembers the last access and answers what it is told. */
struct probe {
    int answer;
    unsigned calls;
    uint64_t offset;
    unsigned len;
    uint64_t val;
};

static int
probe_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    struct probe *probe = dev;

    probe->calls++;
    probe->offset = offset;
    probe->len = len;
    *val = probe->val;
    return probe->answer;
}

static int
probe_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    struct probe *probe = dev;

    probe->calls++;
    probe->offset = offset;
    probe->len = len;
    probe->val = val;
    return probe->answer;
}

static const struct vmm_bus_ops probe_ops = {
    .read = probe_read,
    .write = probe_write,
};

static int
add(uint64_t base, uint64_t last)
{
    struct vmm_range range = {.base = base, .last = last};

    return vmm_bus_add(&bus, &range, NULL);
}

/* The base of the range that holds the access; 1 when none does. */
static uint64_t
found(uint64_t addr, unsigned len)
{
    struct vmm_range range = {.base = 2};

    if (vmm_bus_find(&bus, addr, len, &range) == -ENOENT) {
        CHECK_EQ(range.base, 2); /* untouched on failure */
        return 1;
    }
    return range.base;
}

static void
ranges_are_checked(void)
{
    CHECK_EQ(vmm_bus_init(&bus, 0xffff), 0);
    CHECK_EQ(add(0x10, 0x0f), -EINVAL); /* no length */
    CHECK_EQ(add(0x10000, 0x10000), -EINVAL);
    CHECK_EQ(add(0xfff0, 0x10000), -EINVAL);
    CHECK_EQ(add(0, UINT64_MAX), -EINVAL);
    CHECK_EQ(add(0xffff, 0xffff), 0);
    CHECK_EQ(add(0, 0), 0);
    CHECK_EQ(add(1, 0xfffe), 0);
    CHECK_EQ(bus.count, 3);
    vmm_bus_fini(&bus);
}

static void
overlaps_are_refused(void)
{
    static const struct {
        uint64_t base, last;
    } bad[] = {
        {0x100, 0x1ff},                      /* the same */
        {0x100, 0x100},                      /* its first */
        {0x1ff, 0x1ff},                      /* its last */
        {0x180, 0x181},                      /* inside */
        {0x0ff, 0x100},      {0x1ff, 0x200}, /* across a border */
        {0x0ff, 0x200},                      /* around */
        {0x000, UINT64_MAX},
    };
    struct vmm_range other = {0};
    int owner;
    struct vmm_range range = {.base = 0x100, .last = 0x1ff, .owner = &owner};

    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(vmm_bus_add(&bus, &range, NULL), 0);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        range = (struct vmm_range){.base = bad[i].base, .last = bad[i].last};
        memset(&other, 0, sizeof other);
        CHECK_EQ(vmm_bus_add(&bus, &range, &other), -EEXIST);
        CHECK_EQ(other.base, 0x100);
        CHECK(other.owner == &owner);
        CHECK_EQ(vmm_bus_add(&bus, &range, NULL), -EEXIST);
    }
    CHECK_EQ(bus.count, 1);
    CHECK_EQ(add(0xff, 0xff), 0);
    CHECK_EQ(add(0x200, 0x2ff), 0);
    /* Of several that it overlaps, the first one is named. */
    range = (struct vmm_range){.base = 0xff, .last = 0x200};
    CHECK_EQ(vmm_bus_add(&bus, &range, &other), -EEXIST);
    CHECK_EQ(other.base, 0xff);
    vmm_bus_fini(&bus);
}

static void
whole_accesses_only(void)
{
    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(add(0x100, 0x107), 0);
    CHECK_EQ(add(0x108, 0x10b), 0); /* a neighbour */
    CHECK_EQ(found(0x100, 8), 0x100);
    CHECK_EQ(found(0x107, 1), 0x100);
    CHECK_EQ(found(0x0ff, 1), 1);
    CHECK_EQ(found(0x0ff, 2), 1); /* straddles the start */
    CHECK_EQ(found(0x107, 2), 1); /* straddles two devices */
    CHECK_EQ(found(0x108, 4), 0x108);
    CHECK_EQ(found(0x108, 8), 1); /* straddles the end */
    CHECK_EQ(found(0x10b, 2), 1);
    CHECK_EQ(found(0x10c, 1), 1);
    vmm_bus_fini(&bus);
}

static void
the_last_address_works(void)
{
    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(add(UINT64_MAX - 7, UINT64_MAX), 0);
    CHECK_EQ(add(UINT64_MAX, UINT64_MAX), -EEXIST);
    CHECK_EQ(found(UINT64_MAX - 7, 8), UINT64_MAX - 7);
    CHECK_EQ(found(UINT64_MAX, 1), UINT64_MAX - 7);
    CHECK_EQ(found(UINT64_MAX, 2), 1); /* its end wraps */
    CHECK_EQ(found(UINT64_MAX - 6, 8), 1);
    CHECK_EQ(found(0, 1), 1);
    CHECK_EQ(vmm_bus_remove(&bus, UINT64_MAX - 7), 0);
    CHECK_EQ(add(0, UINT64_MAX), 0); /* all of it, one range */
    CHECK_EQ(found(0, 8), 0);
    CHECK_EQ(found(UINT64_MAX, 1), 0);
    CHECK_EQ(found(UINT64_MAX, 8), 1);
    vmm_bus_fini(&bus);
}

static void
removal_forgets_the_last_hit(void)
{
    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(add(0x100, 0x10f), 0);
    CHECK_EQ(add(0x200, 0x20f), 0);
    CHECK_EQ(add(0x300, 0x30f), 0);
    CHECK_EQ(vmm_bus_remove(&bus, 0x101), -ENOENT); /* inside, not its base */
    CHECK_EQ(vmm_bus_remove(&bus, 0), -ENOENT);
    CHECK_EQ(vmm_bus_remove(&bus, 0x400), -ENOENT);
    CHECK_EQ(found(0x308, 1), 0x300); /* the hint is the last index */
    CHECK_EQ(vmm_bus_remove(&bus, 0x300), 0);
    CHECK_EQ(found(0x308, 1), 1);
    CHECK_EQ(found(0x208, 1), 0x200);
    CHECK_EQ(vmm_bus_remove(&bus, 0x100), 0); /* the others move down */
    CHECK_EQ(found(0x108, 1), 1);
    CHECK_EQ(found(0x208, 1), 0x200);
    CHECK_EQ(add(0x000, 0x00f), 0); /* and up */
    CHECK_EQ(found(0x208, 1), 0x200);
    CHECK_EQ(found(0x008, 1), 0);
    CHECK_EQ(vmm_bus_remove(&bus, 0x200), 0);
    CHECK_EQ(vmm_bus_remove(&bus, 0), 0);
    CHECK_EQ(bus.count, 0);
    CHECK_EQ(found(0x208, 1), 1);
    CHECK_EQ(vmm_bus_remove(&bus, 0), -ENOENT);
    vmm_bus_fini(&bus);
}

/* Many ranges, added in a scattered order, each found and removed. */
static void
many_ranges(void)
{
    enum { COUNT = 1009 }; /* a prime, so that i * 7 meets all */

    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    for (unsigned i = 0; i < COUNT; i++)
        CHECK_EQ(add(i * 7 % COUNT * 0x20, i * 7 % COUNT * 0x20 + 0xf), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        CHECK_EQ(found(i * 0x20 + 8, 8), i * 0x20);
        CHECK_EQ(found(i * 0x20 + 9, 8), 1);
        CHECK_EQ(found(i * 0x20 + 0x10, 1), 1);
    }
    for (unsigned i = 0; i < COUNT; i += 2)
        CHECK_EQ(vmm_bus_remove(&bus, i * 0x20), 0);
    for (unsigned i = 0; i < COUNT; i++)
        CHECK_EQ(found(i * 0x20, 1), i % 2 ? i * 0x20 : 1);
    vmm_bus_fini(&bus);
}

static void
native_devices_answer(void)
{
    struct probe probe = {.val = 0x1234};
    struct vmm_range range = {
        .base = 0x1000, .last = 0x10ff, .ops = &probe_ops, .dev = &probe};
    struct vmm_range out;
    uint64_t val = 0;

    CHECK_EQ(vmm_bus_init(&bus, UINT64_MAX), 0);
    CHECK_EQ(vmm_bus_add(&bus, &range, NULL), 0);
    CHECK_EQ(vmm_bus_read(&bus, 0x1004, 4, &val, &out), VMM_BUS_DONE);
    CHECK_EQ(val, 0x1234);
    CHECK_EQ(probe.offset, 4);
    CHECK_EQ(probe.len, 4);
    CHECK_EQ(vmm_bus_write(&bus, 0x10ff, 1, 0x77, &out), VMM_BUS_DONE);
    CHECK_EQ(probe.offset, 0xff);
    CHECK_EQ(probe.val, 0x77);
    CHECK_EQ(probe.calls, 2);
    for (int answer = VMM_BUS_OWNER; answer <= VMM_BUS_STOP; answer++) {
        probe.answer = answer;
        memset(&out, 0, sizeof out);
        CHECK_EQ(vmm_bus_write(&bus, 0x1000, 8, 1, &out), answer);
        CHECK(out.dev == &probe);
        memset(&out, 0, sizeof out);
        CHECK_EQ(vmm_bus_read(&bus, 0x1000, 8, &val, &out), answer);
        CHECK_EQ(out.base, 0x1000);
    }
    CHECK_EQ(vmm_bus_remove(&bus, 0x1000), 0);
    probe.calls = 0;
    val = 99;
    CHECK_EQ(vmm_bus_read(&bus, 0x1004, 4, &val, &out), -ENOENT);
    CHECK_EQ(vmm_bus_write(&bus, 0x1004, 4, 1, &out), -ENOENT);
    CHECK_EQ(val, 99); /* left alone */
    CHECK_EQ(probe.calls, 0);
    vmm_bus_fini(&bus);
}

static void
others_are_handed_out(void)
{
    int owner;
    struct vmm_range range = {.base = 0x10, .last = 0x1f, .owner = &owner};
    struct vmm_range out = {0};
    uint64_t val = 99;

    CHECK_EQ(vmm_bus_init(&bus, 0xffff), 0);
    CHECK_EQ(vmm_bus_add(&bus, &range, NULL), 0);
    CHECK_EQ(vmm_bus_read(&bus, 0x10, 4, &val, &out), VMM_BUS_OUTSIDE);
    CHECK(out.owner == &owner);
    CHECK_EQ(val, 99);
    memset(&out, 0, sizeof out);
    CHECK_EQ(vmm_bus_write(&bus, 0x1e, 2, 5, &out), VMM_BUS_OUTSIDE);
    CHECK(out.owner == &owner);
    CHECK_EQ(vmm_bus_write(&bus, 0x1e, 4, 5, &out), -ENOENT);
    vmm_bus_fini(&bus);
}

static void
fini_is_safe(void)
{
    memset(&bus, 0, sizeof bus);
    vmm_bus_fini(&bus);
    CHECK_EQ(vmm_bus_init(&bus, 0xffff), 0);
    CHECK_EQ(add(0, 1), 0);
    vmm_bus_fini(&bus);
    vmm_bus_fini(&bus);
}

int
main(void)
{
    RUN(ranges_are_checked);
    RUN(overlaps_are_refused);
    RUN(whole_accesses_only);
    RUN(the_last_address_works);
    RUN(removal_forgets_the_last_hit);
    RUN(many_ranges);
    RUN(native_devices_answer);
    RUN(others_are_handed_out);
    RUN(fini_is_safe);
    return check_done();
}

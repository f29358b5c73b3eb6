/* SPDX-License-Identifier: Apache-2.0 */
/* bus.c - sorted ranges, a look-up with a memory, accesses to native devices */
#include "bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int
vmm_bus_init(struct vmm_bus *bus, uint64_t limit)
{
    memset(bus, 0, sizeof *bus);
    bus->limit = limit;
    return -pthread_rwlock_init(&bus->lock, NULL);
}

void
vmm_bus_fini(struct vmm_bus *bus)
{
    if (bus->limit)
        pthread_rwlock_destroy(&bus->lock);
    free(bus->range);
    memset(bus, 0, sizeof *bus);
}

/* The first range whose last address is not below addr, or count. */
static unsigned
first_at_or_after(const struct vmm_bus *bus, uint64_t addr)
{
    unsigned low = 0, high = bus->count;

    while (low < high) {
        unsigned mid = (low + high) / 2;

        if (bus->range[mid].last < addr)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int
add_locked(struct vmm_bus *bus, const struct vmm_range *range,
           struct vmm_range *other)
{
    unsigned at = first_at_or_after(bus, range->base);

    if (at < bus->count && bus->range[at].base <= range->last) {
        if (other)
            *other = bus->range[at];
        return -EEXIST;
    }
    if (bus->count == bus->room) {
        unsigned room = bus->room ? 2 * bus->room : 8;
        void *more = realloc(bus->range, room * sizeof *range);

        if (!more)
            return -ENOMEM;
        bus->range = more;
        bus->room = room;
    }
    memmove(&bus->range[at + 1], &bus->range[at],
            (bus->count - at) * sizeof *range);
    bus->range[at] = *range;
    bus->count++;
    return 0;
}

int
vmm_bus_add(struct vmm_bus *bus, const struct vmm_range *range,
            struct vmm_range *other)
{
    int err;

    if (range->last < range->base || range->last > bus->limit)
        return -EINVAL;
    pthread_rwlock_wrlock(&bus->lock);
    err = add_locked(bus, range, other);
    pthread_rwlock_unlock(&bus->lock);
    return err;
}

int
vmm_bus_remove(struct vmm_bus *bus, uint64_t base)
{
    unsigned at;
    int err = -ENOENT;

    pthread_rwlock_wrlock(&bus->lock);
    at = first_at_or_after(bus, base);
    if (at < bus->count && bus->range[at].base == base) {
        bus->count--;
        memmove(&bus->range[at], &bus->range[at + 1],
                (bus->count - at) * sizeof *bus->range);
        err = 0;
    }
    pthread_rwlock_unlock(&bus->lock);
    return err;
}

int
vmm_bus_replace(struct vmm_bus *bus, uint64_t base, void *owner,
                const struct vmm_bus_ops *ops, void *dev, bool wait)
{
    int err = -ENOENT;
    unsigned at;

    if (wait)
        pthread_rwlock_wrlock(&bus->lock);
    else if (pthread_rwlock_trywrlock(&bus->lock))
        return -EBUSY;
    at = first_at_or_after(bus, base);
    if (at < bus->count && bus->range[at].base == base &&
        bus->range[at].owner == owner) {
        bus->range[at].ops = ops;
        bus->range[at].dev = dev;
        err = 0;
    }
    pthread_rwlock_unlock(&bus->lock);
    return err;
}

static bool
holds(const struct vmm_range *range, uint64_t addr, unsigned len)
{
    return addr >= range->base && addr <= range->last &&
           range->last - addr >= len - 1;
}

/* With the lock held: the range that holds the access, or NULL. */
static const struct vmm_range *
look_up(struct vmm_bus *bus, uint64_t addr, unsigned len)
{
    unsigned at = __atomic_load_n(&bus->hit, __ATOMIC_RELAXED);

    if (at < bus->count && holds(&bus->range[at], addr, len))
        return &bus->range[at];
    at = first_at_or_after(bus, addr);
    if (at == bus->count || !holds(&bus->range[at], addr, len))
        return NULL;
    __atomic_store_n(&bus->hit, at, __ATOMIC_RELAXED);
    return &bus->range[at];
}

int
vmm_bus_find(struct vmm_bus *bus, uint64_t addr, unsigned len,
             struct vmm_range *out)
{
    const struct vmm_range *range;

    pthread_rwlock_rdlock(&bus->lock);
    range = look_up(bus, addr, len);
    if (range)
        *out = *range;
    pthread_rwlock_unlock(&bus->lock);
    return range ? 0 : -ENOENT;
}

static int
access_range(struct vmm_bus *bus, uint64_t addr, unsigned len, bool write,
             uint64_t *val, struct vmm_range *out)
{
    const struct vmm_range *range;
    int answer = VMM_BUS_OUTSIDE;
    uint64_t offset;

    pthread_rwlock_rdlock(&bus->lock);
    range = look_up(bus, addr, len);
    offset = range ? addr - range->base : 0;
    if (!range)
        answer = -ENOENT;
    else if (range->ops && write)
        answer = range->ops->write(range->dev, offset, len, *val);
    else if (range->ops)
        answer = range->ops->read(range->dev, offset, len, val);
    if (answer > 0)
        *out = *range;
    pthread_rwlock_unlock(&bus->lock);
    return answer;
}

int
vmm_bus_read(struct vmm_bus *bus, uint64_t addr, unsigned len, uint64_t *val,
             struct vmm_range *out)
{
    return access_range(bus, addr, len, false, val, out);
}

int
vmm_bus_write(struct vmm_bus *bus, uint64_t addr, unsigned len, uint64_t val,
              struct vmm_range *out)
{
    return access_range(bus, addr, len, true, &val, out);
}

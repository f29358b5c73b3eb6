/* SPDX-License-Identifier: Apache-2.0 */
/* snap_file.c - snapshots and files: a root that is in one, pages for one */
#include "snap_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GPA_LIMIT (1ULL << 52) /* as mem.c has it */

/* -- a root of a file ------------------------------------------------------ */

static int
set_regions(struct vmm_snap *snap, const struct vmm_snap_parts *parts)
{
    uint64_t end = 0;

    if (!parts->regions || parts->regions > VMM_MEM_MAX_REGIONS)
        return -EINVAL;
    for (unsigned i = 0; i < parts->regions; i++) {
        const struct vmm_snap_region *region = &parts->region[i];

        if (!region->len || (region->gpa | region->len) % VMM_PAGE_SIZE ||
            region->gpa < end || region->gpa >= GPA_LIMIT ||
            region->len > GPA_LIMIT - region->gpa ||
            region->flags & ~(VMM_MEM_READONLY | VMM_MEM_HUGE))
            return -EINVAL;
        end = region->gpa + region->len;
        snap->region[i] = *region;
        snap->pages += region->len / VMM_PAGE_SIZE;
    }
    snap->regions = parts->regions;
    return 0;
}

static int
set_cpus(struct vmm_snap *snap, const struct vmm_kvm *kvm,
         const struct vmm_snap_parts *parts)
{
    if (!parts->cpus)
        return -EINVAL;
    snap->cpu = calloc(parts->cpus, sizeof *snap->cpu);
    if (!snap->cpu)
        return -ENOMEM;
    snap->cpus = parts->cpus;
    for (unsigned i = 0; i < parts->cpus; i++) {
        const struct vmm_vcpu_save *from = &parts->cpu[i];
        struct vmm_vcpu_save *to = &snap->cpu[i];

        if (from->msrs > VMM_VCPU_MAX_MSRS)
            return -EINVAL;
        if (from->xsave_size > kvm->xsave_size)
            return -ERANGE;
        *to = *from;
        /* KVM reads as much as this host has: the rest is in its first state */
        to->xsave_size = kvm->xsave_size;
        to->xsave = calloc(1, kvm->xsave_size);
        if (!to->xsave)
            return -ENOMEM;
        memcpy(to->xsave, from->xsave, from->xsave_size);
    }
    return 0;
}

static void
set_vm(struct vmm_snap *snap, const struct vmm_snap_parts *parts)
{
    snap->irqchip = parts->chip;
    for (unsigned i = 0; parts->chip && i < 3; i++) {
        snap->chip[i] = parts->chip[i];
        snap->chip[i].chip_id = i;
    }
    snap->pit = parts->pit;
    if (parts->pit)
        snap->pit_state = *parts->pit;
    snap->clock = parts->clock;
    if (parts->clock)
        snap->clock_data.clock = *parts->clock;
}

static int
set_image(struct vmm_snap *snap, int fd, uint64_t offset, const char **call)
{
    uint64_t size = snap->pages * VMM_PAGE_SIZE;
    struct stat st;
    void *image;

    if (offset % VMM_PAGE_SIZE)
        return -EINVAL;
    *call = "fstat";
    if (fstat(fd, &st))
        return -errno;
    if ((uint64_t)st.st_size < offset || (uint64_t)st.st_size - offset < size)
        return -ENODATA;
    *call = "fcntl(F_DUPFD_CLOEXEC)";
    snap->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (snap->fd < 0)
        return -errno;
    *call = "mmap";
    image = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, snap->fd,
                 (off_t)offset);
    if (image == MAP_FAILED)
        return -errno;
    snap->image = image;
    snap->offset = offset;
    return 0;
}

int
vmm_snap_open(const struct vmm_kvm *kvm, int fd, uint64_t offset,
              const struct vmm_snap_parts *parts, const char **call,
              struct vmm_snap **out)
{
    struct vmm_snap *snap = calloc(1, sizeof *snap);
    int err;

    *call = "malloc";
    if (!snap)
        return -ENOMEM;
    snap->refs = 1;
    snap->fd = -1;
    err = set_regions(snap, parts);
    if (!err)
        err = set_cpus(snap, kvm, parts);
    if (!err) {
        set_vm(snap, parts);
        err = set_image(snap, fd, offset, call);
    }
    if (err) {
        vmm_snap_drop(snap);
        return err;
    }
    *out = snap;
    return 0;
}

/* -- pages for a file ------------------------------------------------------ */

uint64_t
vmm_snap_next(const struct vmm_snap *snap, uint64_t number)
{
    uint64_t next = snap->pages;
    off_t at;

    if (number >= snap->pages)
        return snap->pages;
    for (; snap->parent; snap = snap->parent) {
        uint32_t i = vmm_snap_first(snap, number);

        if (i < snap->count)
            next = vmm_min(next, snap->number[i]);
    }
    at = lseek(snap->fd, (off_t)(snap->offset + number * VMM_PAGE_SIZE),
               SEEK_DATA);
    if (at < 0)
        return errno == ENXIO ? next : number; /* no data; or cannot tell */
    return vmm_min(next, ((uint64_t)at - snap->offset) / VMM_PAGE_SIZE);
}

void
vmm_snap_copy(const struct vmm_snap *snap, uint64_t number, uint64_t count,
              void *out)
{
    uint8_t *to = out;

    assert(number <= snap->pages && count <= snap->pages - number);
    for (uint64_t i = 0; i < count; i++)
        memcpy(to + i * VMM_PAGE_SIZE, vmm_snap_page(snap, number + i),
               VMM_PAGE_SIZE);
}

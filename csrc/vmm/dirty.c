/* SPDX-License-Identifier: Apache-2.0 */
/* dirty.c - the dirty log of the memory slots */
#include "dirty.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t
words_of(const struct vmm_region *region)
{
    return (region->len / VMM_PAGE_SIZE + 63) / 64;
}

/* Has the slots note what is written, or not. */
static int
set_logging(struct vmm_vm *vm, bool on)
{
    for (unsigned i = 0; i < vm->mem->count; i++) {
        const struct vmm_region *region = &vm->mem->region[i];
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
            .guest_phys_addr = region->gpa,
            .memory_size = region->len,
            .userspace_addr = (uintptr_t)region->hva,
        };
        int err;

        if (region->flags & VMM_MEM_READONLY)
            continue;
        err = vmm_kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot,
                            "KVM_SET_USER_MEMORY_REGION", &vm->call);
        if (err)
            return err;
    }
    return 0;
}

int
vmm_dirty_prepare(struct vmm_vm *vm)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                 .args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE}};
    uint64_t most = 0;
    const char *call;

    for (unsigned i = 0; i < vm->mem->count; i++) {
        uint64_t words = words_of(&vm->mem->region[i]);

        most = words > most ? words : most;
    }
    vm->call = "malloc";
    vm->log = calloc(most, sizeof *vm->log);
    if (!vm->log)
        return -ENOMEM;
    vm->log_manual = !vmm_kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap, "", &call);
    return 0;
}

int
vmm_dirty_start(struct vmm_vm *vm)
{
    const char *call;
    int err;

    if (vm->log)
        return 0;
    err = vmm_dirty_prepare(vm);
    if (!err)
        err = set_logging(vm, true);
    if (err && vm->log) {
        call = vm->call;
        set_logging(vm, false);
        vm->call = call;
        free(vm->log);
        vm->log = NULL;
    }
    return err;
}

/* The first word from `at` on that is not 0, or `words`. */
static uint64_t
next_word(const uint64_t *bits, uint64_t at, uint64_t words)
{
    /* Eight at a time: most of a large memory was not written. */
    while (at % 8 && at < words && !bits[at])
        at++;
    if (at % 8 == 0)
        while (at + 8 <= words &&
               !(bits[at] | bits[at + 1] | bits[at + 2] | bits[at + 3] |
                 bits[at + 4] | bits[at + 5] | bits[at + 6] | bits[at + 7]))
            at += 8;
    while (at < words && !bits[at])
        at++;
    return at;
}

static int
clear_log(struct vmm_vm *vm, unsigned index, uint64_t first, uint64_t end)
{
    const struct vmm_region *region = &vm->mem->region[index];
    uint64_t pages = region->len / VMM_PAGE_SIZE - 64 * first;
    struct kvm_clear_dirty_log clear = {
        .slot = index,
        .num_pages = (uint32_t)vmm_min(64 * (end - first), pages),
        .first_page = 64 * first,
        .dirty_bitmap = vm->log + first,
    };

    return vmm_kvm_ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear,
                         "KVM_CLEAR_DIRTY_LOG", &vm->call);
}

static int
harvest_region(struct vmm_vm *vm, unsigned index)
{
    struct kvm_dirty_log log = {.slot = index, .dirty_bitmap = vm->log};
    uint64_t words = words_of(&vm->mem->region[index]), first, end = 0, at;
    int err = vmm_kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log,
                            "KVM_GET_DIRTY_LOG", &vm->call);

    if (err)
        return err;
    first = at = next_word(vm->log, 0, words);
    for (; at < words; at = next_word(vm->log, end, words)) {
        vmm_mem_mark_bits(vm->mem, index, at, vm->log[at]);
        end = at + 1;
    }
    return end && vm->log_manual ? clear_log(vm, index, first, end) : 0;
}

int
vmm_dirty_harvest(struct vmm_vm *vm)
{
    int err = 0;

    for (unsigned i = 0; vm->log && !err && i < vm->mem->count; i++) {
        if (!(vm->mem->region[i].flags & VMM_MEM_READONLY))
            err = harvest_region(vm, i);
    }
    return err;
}

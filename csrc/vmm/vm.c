/* SPDX-License-Identifier: Apache-2.0 */
/* vm.c - KVM_CREATE_VM and every ioctl of a VM */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dirty.h"

static int
vm_ioctl(struct vmm_vm *vm, unsigned long request, void *arg, const char *name)
{
    return vmm_kvm_ioctl(vm->fd, request, arg, name, &vm->call);
}

static int
set_slots(struct vmm_vm *vm)
{
    vmm_mem_freeze(vm->mem);
    for (unsigned i = 0; i < vm->mem->count; i++) {
        const struct vmm_region *region = &vm->mem->region[i];
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .guest_phys_addr = region->gpa,
            .memory_size = region->len,
            .userspace_addr = (uintptr_t)region->hva,
        };
        int err;

        if (region->flags & VMM_MEM_READONLY)
            slot.flags = KVM_MEM_READONLY;
        else if (vm->log)
            slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
        err = vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot,
                       "KVM_SET_USER_MEMORY_REGION");
        if (err)
            return err;
    }
    return 0;
}

static int
set_tss(struct vmm_vm *vm, uint64_t tss_addr)
{
    uint64_t identity = tss_addr - VMM_PAGE_SIZE;
    int err;

    if (tss_addr != VMM_TSS_ADDR) {
        err = vm_ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity,
                       "KVM_SET_IDENTITY_MAP_ADDR");
        if (err)
            return err;
    }
    return vm_ioctl(vm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)tss_addr,
                    "KVM_SET_TSS_ADDR");
}

int
vmm_vm_init(struct vmm_vm *vm, struct vmm_kvm *kvm, struct vmm_mem *mem,
            uint64_t tss_addr)
{
    int err;

    memset(vm, 0, sizeof *vm);
    vm->kvm = kvm;
    vm->mem = mem;
    vm->fd = -1;
    vm->vcpu_fd = -1;
    vm->call = "pthread_rwlock_init";
    err = vmm_bus_init(&vm->pio, 0xffff);
    if (err)
        return err;
    err = vmm_bus_init(&vm->mmio, UINT64_MAX);
    if (err)
        goto fail;
    err =
        vmm_kvm_ioctl(kvm->fd, KVM_CREATE_VM, NULL, "KVM_CREATE_VM", &vm->call);
    if (err < 0)
        goto fail;
    vm->fd = err;
    err = mem->at ? vmm_dirty_prepare(vm) : 0;
    if (!err)
        err = set_slots(vm);
    if (err)
        goto fail;
    err = set_tss(vm, tss_addr);
    if (err)
        goto fail;
    return 0;

fail:
    vmm_vm_fini(vm);
    return err;
}

static void
unmap_ring(struct vmm_vm *vm)
{
    struct kvm_coalesced_mmio_ring *ring =
        __atomic_exchange_n(&vm->ring, NULL, __ATOMIC_ACQ_REL);

    if (!ring)
        return;
    munmap(ring, VMM_PAGE_SIZE);
    pthread_mutex_destroy(&vm->ring_lock);
}

void
vmm_vm_fini(struct vmm_vm *vm)
{
    if (!vm->kvm)
        return;
    if (vm->fd >= 0)
        close(vm->fd);
    vm->fd = -1;
    vmm_bus_fini(&vm->pio);
    vmm_bus_fini(&vm->mmio);
    unmap_ring(vm);
    free(vm->route);
    free(vm->log);
    vm->route = NULL;
    vm->log = NULL;
    vm->kvm = NULL;
}

int
vmm_vm_detach(struct vmm_vm *vm)
{
    int fd = vm->fd;

    unmap_ring(vm); /* it keeps the VM */
    vm->fd = -1;
    return fd;
}

/* A line below 16 also reaches the PIC and would come as an exception. */
static int
mask_pic(struct vmm_vm *vm, uint32_t which)
{
    struct kvm_irqchip chip = {.chip_id = which};
    int err;

    err = vm_ioctl(vm, KVM_GET_IRQCHIP, &chip, "KVM_GET_IRQCHIP");
    if (err)
        return err;
    chip.chip.pic.imr = 0xff;
    return vm_ioctl(vm, KVM_SET_IRQCHIP, &chip, "KVM_SET_IRQCHIP");
}

int
vmm_vm_irqchip(struct vmm_vm *vm)
{
    int err;

    err = vm_ioctl(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    if (err)
        return err;
    vm->irqchip = true;
    err = mask_pic(vm, KVM_IRQCHIP_PIC_MASTER);
    if (err)
        return err;
    return mask_pic(vm, KVM_IRQCHIP_PIC_SLAVE);
}

int
vmm_vm_pit(struct vmm_vm *vm)
{
    struct kvm_pit_config config = {.flags = KVM_PIT_SPEAKER_DUMMY};
    int err = vm_ioctl(vm, KVM_CREATE_PIT2, &config, "KVM_CREATE_PIT2");

    if (err)
        return err;
    vm->pit = true;
    return 0;
}

int
vmm_vm_irq_line(struct vmm_vm *vm, unsigned gsi, bool level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};

    return vm_ioctl(vm, KVM_IRQ_LINE, &line, "KVM_IRQ_LINE");
}

int
vmm_vm_msi(struct vmm_vm *vm, uint64_t addr, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)addr,
        .address_hi = (uint32_t)(addr >> 32),
        .data = data,
    };
    int ret = vm_ioctl(vm, KVM_SIGNAL_MSI, &msi, "KVM_SIGNAL_MSI");

    return ret > 0 ? 1 : ret;
}

/* What KVM routes when nobody asked: every pin to the PIC and the IOAPIC. */
static int
default_routes(struct vmm_vm *vm)
{
    struct kvm_irq_routing_entry *route;

    if (!vm->irqchip) {
        vm->call = "KVM_SET_GSI_ROUTING";
        return -ENXIO;
    }
    if (vm->route)
        return 0;
    route = calloc(VMM_MAX_GSI + 16, sizeof *route);
    if (!route)
        return -ENOMEM;
    for (unsigned gsi = 0; gsi < VMM_IOAPIC_PINS; gsi++) {
        route[vm->routes].gsi = gsi;
        route[vm->routes].type = KVM_IRQ_ROUTING_IRQCHIP;
        route[vm->routes].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
        route[vm->routes++].u.irqchip.pin = gsi;
        if (gsi >= 16)
            continue;
        route[vm->routes].gsi = gsi;
        route[vm->routes].type = KVM_IRQ_ROUTING_IRQCHIP;
        route[vm->routes].u.irqchip.irqchip =
            gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
        route[vm->routes++].u.irqchip.pin = gsi % 8;
    }
    vm->route = route;
    return 0;
}

/* The table is ours only once the kernel has taken it. */
static int
set_route(struct vmm_vm *vm, const struct kvm_irq_routing_entry *entry)
{
    struct kvm_irq_routing *table;
    int err = default_routes(vm);

    if (err)
        return err;
    table = calloc(1, sizeof *table + (vm->routes + 1) * sizeof *entry);
    if (!table)
        return -ENOMEM;
    for (unsigned i = 0; i < vm->routes; i++) {
        if (vm->route[i].gsi != entry->gsi)
            table->entries[table->nr++] = vm->route[i];
    }
    table->entries[table->nr++] = *entry;
    err = vm_ioctl(vm, KVM_SET_GSI_ROUTING, table, "KVM_SET_GSI_ROUTING");
    if (!err) {
        memcpy(vm->route, table->entries, table->nr * sizeof *entry);
        vm->routes = table->nr;
    }
    free(table);
    return err;
}

int
vmm_vm_route_pin(struct vmm_vm *vm, unsigned gsi, unsigned pin)
{
    struct kvm_irq_routing_entry entry = {
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = pin},
    };

    vm->call = "KVM_SET_GSI_ROUTING";
    if (gsi >= VMM_MAX_GSI || pin >= VMM_IOAPIC_PINS)
        return -EINVAL;
    return set_route(vm, &entry);
}

int
vmm_vm_route_msi(struct vmm_vm *vm, unsigned gsi, uint64_t addr, uint32_t data)
{
    struct kvm_irq_routing_entry entry = {
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_MSI,
        .u.msi = {.address_lo = (uint32_t)addr,
                  .address_hi = (uint32_t)(addr >> 32),
                  .data = data},
    };

    vm->call = "KVM_SET_GSI_ROUTING";
    if (gsi >= VMM_MAX_GSI)
        return -EINVAL;
    return set_route(vm, &entry);
}

int
vmm_vm_irqfd(struct vmm_vm *vm, int fd, unsigned gsi, int resample_fd)
{
    struct kvm_irqfd irqfd = {.fd = (uint32_t)fd, .gsi = gsi};
    int err;

    if (resample_fd >= 0) {
        irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
        irqfd.resamplefd = (uint32_t)resample_fd;
    }
    err = vm_ioctl(vm, KVM_IRQFD, &irqfd, "KVM_IRQFD");
    if (!err)
        __atomic_fetch_add(&vm->wakers, 1, __ATOMIC_RELAXED);
    return err;
}

int
vmm_vm_irqfd_remove(struct vmm_vm *vm, int fd, unsigned gsi)
{
    struct kvm_irqfd irqfd = {
        .fd = (uint32_t)fd,
        .gsi = gsi,
        .flags = KVM_IRQFD_FLAG_DEASSIGN,
    };
    int err = vm_ioctl(vm, KVM_IRQFD, &irqfd, "KVM_IRQFD");

    if (!err)
        __atomic_fetch_sub(&vm->wakers, 1, __ATOMIC_RELAXED);
    return err;
}

static int
ioeventfd(struct vmm_vm *vm, const struct vmm_doorbell *bell, uint32_t flags)
{
    struct kvm_ioeventfd event = {
        .datamatch = bell->data,
        .addr = bell->addr,
        .len = bell->len,
        .fd = bell->fd,
        .flags = flags,
    };

    if (bell->pio)
        event.flags |= KVM_IOEVENTFD_FLAG_PIO;
    if (bell->match)
        event.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
    return vm_ioctl(vm, KVM_IOEVENTFD, &event, "KVM_IOEVENTFD");
}

int
vmm_vm_ioeventfd(struct vmm_vm *vm, const struct vmm_doorbell *bell)
{
    return ioeventfd(vm, bell, 0);
}

int
vmm_vm_ioeventfd_remove(struct vmm_vm *vm, const struct vmm_doorbell *bell)
{
    return ioeventfd(vm, bell, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

/*
 * The ring is a page that every vCPU's fd maps; this mapping is the VM's own,
 * so that it does not matter who takes from the ring.
 */
static int
map_ring(struct vmm_vm *vm)
{
    void *ring;
    int err;

    if (vm->ring)
        return 0;
    vm->call = "KVM_REGISTER_COALESCED_MMIO";
    if (!vm->kvm->ring_page || vm->vcpu_fd < 0)
        return -ENXIO;
    ring = mmap(NULL, VMM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                vm->vcpu_fd, (off_t)(vm->kvm->ring_page * VMM_PAGE_SIZE));
    if (ring == MAP_FAILED)
        return -errno;
    err = -pthread_mutex_init(&vm->ring_lock, NULL);
    if (err) {
        munmap(ring, VMM_PAGE_SIZE);
        return err;
    }
    __atomic_store_n(&vm->ring, ring, __ATOMIC_RELEASE);
    return 0;
}

int
vmm_vm_coalesce(struct vmm_vm *vm, const struct vmm_zone *zone)
{
    struct kvm_coalesced_mmio_zone arg = {
        .addr = zone->addr,
        .size = zone->len,
        .pio = zone->pio,
    };
    int err = map_ring(vm);

    if (err)
        return err;
    if (zone->pio && !vm->kvm->ring_pio) {
        vm->call = "KVM_REGISTER_COALESCED_MMIO";
        return -ENXIO;
    }
    return vm_ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &arg,
                    "KVM_REGISTER_COALESCED_MMIO");
}

int
vmm_vm_coalesce_remove(struct vmm_vm *vm, const struct vmm_zone *zone)
{
    struct kvm_coalesced_mmio_zone arg = {
        .addr = zone->addr,
        .size = zone->len,
        .pio = zone->pio,
    };

    return vm_ioctl(vm, KVM_UNREGISTER_COALESCED_MMIO, &arg,
                    "KVM_UNREGISTER_COALESCED_MMIO");
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vm.h - a virtual machine: its fd, memory slots, interrupts and eventfds
 *
 * The order matters (docs/architecture.md, "Life of a machine"): memory first,
 * which vmm_vm_init does, then the interrupt controller, vCPUs, eventfds. The
 * first slot change soon after the others waits for a kernel grace period.
 *
 * Ownership: borrows the struct vmm_kvm and the struct vmm_mem, which must
 * outlive it; owns its fd, the two buses and a mapping of KVM's ring. Closing a
 * young VM takes about 15 ms inside the kernel: vmm_vm_detach hands the fd to
 * whoever has the time.
 *
 * Threads: any; the kernel serialises. vm->call is the last refusal, so one
 * thread at a time can be told what was refused.
 */
#ifndef VMM_VM_H
#define VMM_VM_H

#include <linux/kvm.h>

#include "bus.h"
#include "kvm.h"
#include "mem.h"

#define VMM_TSS_ADDR          0xffffd000U /* without firmware */
#define VMM_TSS_ADDR_FIRMWARE 0xfffbd000U /* below 256 KiB of firmware */
#define VMM_IOAPIC_BASE       0xfec00000U
#define VMM_IOAPIC_PINS       24U
#define VMM_MAX_GSI           1024U /* of the routing table kept here */

struct vmm_vm {
    struct vmm_kvm *kvm;
    struct vmm_mem *mem;
    int fd;
    struct vmm_bus pio;
    struct vmm_bus mmio;
    bool irqchip;
    bool pit;
    uint64_t *log;   /* of dirty pages, the largest slot's; or NULL: none */
    bool log_manual; /* it is cleared by a call of its own */
    unsigned vcpus;  /* made so far */
    int vcpu_fd;     /* of the first one, while that is open */
    unsigned wakers; /* what may raise an interrupt at any time; atomic */
    struct kvm_irq_routing_entry *route;
    unsigned routes;
    struct kvm_coalesced_mmio_ring *ring; /* once there is a zone; atomic */
    pthread_mutex_t ring_lock;            /* for whoever takes from it */
    const char *call;                     /* what was refused last */
};

/*
 * KVM_CREATE_VM, a slot for each region of `mem` (which is frozen by it), and
 * KVM_SET_TSS_ADDR with `tss_addr`; the identity map page goes below it when
 * it is not the default. On failure nothing stays open.
 */
int vmm_vm_init(struct vmm_vm *vm, struct vmm_kvm *kvm, struct vmm_mem *mem,
                uint64_t tss_addr);

/* Closes the fd, if it is still here, and frees the buses. */
void vmm_vm_fini(struct vmm_vm *vm);

/* The fd is the caller's to close from now on; the VM is unusable. */
int vmm_vm_detach(struct vmm_vm *vm);

/*
 * KVM_CREATE_IRQCHIP: two PICs, fully masked (guest-abi.md), an IOAPIC of 24
 * pins and a LAPIC in each vCPU. Before the first vCPU.
 */
int vmm_vm_irqchip(struct vmm_vm *vm);

/* KVM_CREATE_PIT2, with its speaker port stubbed. After the irqchip. */
int vmm_vm_pit(struct vmm_vm *vm);

/* KVM_IRQ_LINE: sets the line of a GSI to 0 or 1. */
int vmm_vm_irq_line(struct vmm_vm *vm, unsigned gsi, bool level);

/* KVM_SIGNAL_MSI. Returns 1 delivered, 0 masked or refused by the guest. */
int vmm_vm_msi(struct vmm_vm *vm, uint64_t addr, uint32_t data);

/*
 * KVM_SET_GSI_ROUTING keeps no defaults, so the table is kept here, defaults
 * included. Routes `gsi` to an IOAPIC pin or to an MSI, in place of what it
 * went to. -EINVAL: gsi not below VMM_MAX_GSI or pin not below 24. -ENXIO: no
 * irqchip.
 */
int vmm_vm_route_pin(struct vmm_vm *vm, unsigned gsi, unsigned pin);
int vmm_vm_route_msi(struct vmm_vm *vm, unsigned gsi, uint64_t addr,
                     uint32_t data);

/*
 * KVM_IRQFD: a write to the eventfd `fd` raises `gsi` (edge). With
 * `resample_fd` >= 0 the line stays up until the guest's EOI, which is told
 * there (level). The fds stay the caller's.
 */
int vmm_vm_irqfd(struct vmm_vm *vm, int fd, unsigned gsi, int resample_fd);
int vmm_vm_irqfd_remove(struct vmm_vm *vm, int fd, unsigned gsi);

/*
 * KVM_IOEVENTFD: a guest's write of `len` bytes (0: any length) to the port or
 * address signals `fd` and does not exit. With `match`, only a write of the
 * value `data`.
 */
struct vmm_doorbell {
    int fd;
    bool pio;
    bool match;
    unsigned len; /* 0, 1, 2, 4, 8 */
    uint64_t addr;
    uint64_t data;
};

int vmm_vm_ioeventfd(struct vmm_vm *vm, const struct vmm_doorbell *bell);
int vmm_vm_ioeventfd_remove(struct vmm_vm *vm, const struct vmm_doorbell *bell);

/*
 * KVM_REGISTER_COALESCED_MMIO: a guest's write that lies in this zone does not
 * exit. It waits in the VM's ring, which vmm_vcpu_run empties before it looks
 * at anything else that the guest did; so does whoever handles a doorbell
 * (vmm_vcpu_coalesced). When the ring is full, after 169 writes, they exit.
 * -ENXIO: the host cannot do that, or there is no vCPU yet. -ENOSPC: it has
 * too many zones.
 */
#define VMM_RING_ENTRIES /* KVM_COALESCED_MMIO_MAX wants a PAGE_SIZE */        \
    ((VMM_PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) /                \
     sizeof(struct kvm_coalesced_mmio))

struct vmm_zone {
    bool pio;
    unsigned len;
    uint64_t addr;
};

int vmm_vm_coalesce(struct vmm_vm *vm, const struct vmm_zone *zone);
/* What is in the ring stays there. */
int vmm_vm_coalesce_remove(struct vmm_vm *vm, const struct vmm_zone *zone);

/* Whether a write waits in the ring. */
static inline bool
vmm_vm_ring_waits(const struct vmm_vm *vm)
{
    const struct kvm_coalesced_mmio_ring *ring =
        __atomic_load_n(&vm->ring, __ATOMIC_ACQUIRE);

    return ring && __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE) !=
                       __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu_state.c - getting and setting the state of a vCPU */
#include <errno.h>
#include <string.h>

#include "vcpu.h"

static int
cpu_ioctl(struct vmm_vcpu *cpu, unsigned long request, void *arg,
          const char *name)
{
    return vmm_kvm_ioctl(cpu->fd, request, arg, name, &cpu->call);
}

/*
 * Hands over to the kernel what was set in the register cache, before an
 * ioctl that depends on it or overlaps with it.
 */
static int
flush(struct vmm_vcpu *cpu)
{
    struct kvm_sync_regs *s = &cpu->run->s.regs;
    uint64_t dirty = cpu->run->kvm_dirty_regs;
    int err = 0;

    if (!err && (dirty & KVM_SYNC_X86_SREGS))
        err = cpu_ioctl(cpu, KVM_SET_SREGS, &s->sregs, "KVM_SET_SREGS");
    if (!err && (dirty & KVM_SYNC_X86_REGS))
        err = cpu_ioctl(cpu, KVM_SET_REGS, &s->regs, "KVM_SET_REGS");
    if (!err && (dirty & KVM_SYNC_X86_EVENTS))
        err = cpu_ioctl(cpu, KVM_SET_VCPU_EVENTS, &s->events,
                        "KVM_SET_VCPU_EVENTS");
    if (!err)
        cpu->run->kvm_dirty_regs = 0;
    return err;
}

/* Before a setter: nothing unfinished, nothing of ours left to hand over. */
static int
ready_to_set(struct vmm_vcpu *cpu)
{
    if (cpu->unsettled)
        return -EBUSY;
    return cpu->run->kvm_dirty_regs ? flush(cpu) : 0;
}

static int
plain_get(struct vmm_vcpu *cpu, unsigned long request, void *out,
          const char *name)
{
    int err = cpu->run->kvm_dirty_regs ? flush(cpu) : 0;

    return err ? err : cpu_ioctl(cpu, request, out, name);
}

/* Another register set may change with it: none is fresh any more. */
static int
plain_set(struct vmm_vcpu *cpu, unsigned long request, const void *arg,
          const char *name)
{
    int err = ready_to_set(cpu);

    if (err)
        return err;
    cpu->fresh = 0;
    return cpu_ioctl(cpu, request, (void *)(uintptr_t)arg, name);
}

/* A register set that may be in the cache: fetches it there if it is not. */
static int
cached_get(struct vmm_vcpu *cpu, uint64_t bit, unsigned long request,
           void *cache, const char *name)
{
    int err;

    if (cpu->fresh & bit)
        return 0;
    err = plain_get(cpu, request, cache, name);
    /* In the middle of an instruction the next look may differ. */
    if (!err && !cpu->unsettled)
        cpu->fresh |= bit;
    return err;
}

/* The cache was changed: now, or with the next KVM_RUN where that is offered */
static int
cached_set(struct vmm_vcpu *cpu, uint64_t bit, unsigned long request,
           void *cache, const char *name)
{
    cpu->fresh |= bit;
    if (cpu->vm->kvm->sync_regs & bit) {
        cpu->run->kvm_dirty_regs |= bit;
        return 0;
    }
    return cpu_ioctl(cpu, request, cache, name);
}

int
vmm_vcpu_get_regs(struct vmm_vcpu *cpu, struct kvm_regs *out)
{
    struct kvm_regs *cache = &cpu->run->s.regs.regs;
    int err =
        cached_get(cpu, KVM_SYNC_X86_REGS, KVM_GET_REGS, cache, "KVM_GET_REGS");

    if (!err)
        *out = *cache;
    return err;
}

int
vmm_vcpu_set_regs(struct vmm_vcpu *cpu, const struct kvm_regs *regs)
{
    struct kvm_regs *cache = &cpu->run->s.regs.regs;

    if (cpu->unsettled)
        return -EBUSY;
    *cache = *regs;
    return cached_set(cpu, KVM_SYNC_X86_REGS, KVM_SET_REGS, cache,
                      "KVM_SET_REGS");
}

int
vmm_vcpu_get_sregs(struct vmm_vcpu *cpu, struct kvm_sregs *out)
{
    struct kvm_sregs *cache = &cpu->run->s.regs.sregs;
    int err = cached_get(cpu, KVM_SYNC_X86_SREGS, KVM_GET_SREGS, cache,
                         "KVM_GET_SREGS");

    if (!err)
        *out = *cache;
    return err;
}

int
vmm_vcpu_set_sregs(struct vmm_vcpu *cpu, const struct kvm_sregs *sregs)
{
    struct kvm_sregs *cache = &cpu->run->s.regs.sregs;

    if (cpu->unsettled)
        return -EBUSY;
    *cache = *sregs;
    return cached_set(cpu, KVM_SYNC_X86_SREGS, KVM_SET_SREGS, cache,
                      "KVM_SET_SREGS");
}

int
vmm_vcpu_get_events(struct vmm_vcpu *cpu, struct kvm_vcpu_events *out)
{
    struct kvm_vcpu_events *cache = &cpu->run->s.regs.events;
    int err = cached_get(cpu, KVM_SYNC_X86_EVENTS, KVM_GET_VCPU_EVENTS, cache,
                         "KVM_GET_VCPU_EVENTS");

    if (!err)
        *out = *cache;
    return err;
}

int
vmm_vcpu_set_events(struct vmm_vcpu *cpu, const struct kvm_vcpu_events *events)
{
    struct kvm_vcpu_events *cache = &cpu->run->s.regs.events;

    if (cpu->unsettled)
        return -EBUSY;
    *cache = *events;
    return cached_set(cpu, KVM_SYNC_X86_EVENTS, KVM_SET_VCPU_EVENTS, cache,
                      "KVM_SET_VCPU_EVENTS");
}

int
vmm_vcpu_get_fpu(struct vmm_vcpu *cpu, struct kvm_fpu *out)
{
    return plain_get(cpu, KVM_GET_FPU, out, "KVM_GET_FPU");
}

int
vmm_vcpu_set_fpu(struct vmm_vcpu *cpu, const struct kvm_fpu *fpu)
{
    return plain_set(cpu, KVM_SET_FPU, fpu, "KVM_SET_FPU");
}

int
vmm_vcpu_get_xcrs(struct vmm_vcpu *cpu, struct kvm_xcrs *out)
{
    return plain_get(cpu, KVM_GET_XCRS, out, "KVM_GET_XCRS");
}

int
vmm_vcpu_set_xcrs(struct vmm_vcpu *cpu, const struct kvm_xcrs *xcrs)
{
    return plain_set(cpu, KVM_SET_XCRS, xcrs, "KVM_SET_XCRS");
}

int
vmm_vcpu_get_debugregs(struct vmm_vcpu *cpu, struct kvm_debugregs *out)
{
    return plain_get(cpu, KVM_GET_DEBUGREGS, out, "KVM_GET_DEBUGREGS");
}

int
vmm_vcpu_set_debugregs(struct vmm_vcpu *cpu, const struct kvm_debugregs *regs)
{
    return plain_set(cpu, KVM_SET_DEBUGREGS, regs, "KVM_SET_DEBUGREGS");
}

int
vmm_vcpu_get_lapic(struct vmm_vcpu *cpu, struct kvm_lapic_state *out)
{
    return plain_get(cpu, KVM_GET_LAPIC, out, "KVM_GET_LAPIC");
}

int
vmm_vcpu_set_lapic(struct vmm_vcpu *cpu, const struct kvm_lapic_state *lapic)
{
    return plain_set(cpu, KVM_SET_LAPIC, lapic, "KVM_SET_LAPIC");
}

int
vmm_vcpu_get_mp_state(struct vmm_vcpu *cpu, uint32_t *out)
{
    struct kvm_mp_state state;
    int err = plain_get(cpu, KVM_GET_MP_STATE, &state, "KVM_GET_MP_STATE");

    if (!err)
        *out = state.mp_state;
    return err;
}

int
vmm_vcpu_set_mp_state(struct vmm_vcpu *cpu, uint32_t state)
{
    struct kvm_mp_state arg = {.mp_state = state};

    return plain_set(cpu, KVM_SET_MP_STATE, &arg, "KVM_SET_MP_STATE");
}

int
vmm_vcpu_get_xsave(struct vmm_vcpu *cpu, void *out)
{
    if (cpu->vm->kvm->xsave2)
        return plain_get(cpu, KVM_GET_XSAVE2, out, "KVM_GET_XSAVE2");
    return plain_get(cpu, KVM_GET_XSAVE, out, "KVM_GET_XSAVE");
}

int
vmm_vcpu_set_xsave(struct vmm_vcpu *cpu, const void *xsave)
{
    return plain_set(cpu, KVM_SET_XSAVE, xsave, "KVM_SET_XSAVE");
}

struct msr_list {
    uint32_t nmsrs;
    uint32_t pad;
    struct kvm_msr_entry entry[VMM_VCPU_MAX_MSRS];
}; /* laid out like struct kvm_msrs, with room */

int
vmm_vcpu_get_msrs(struct vmm_vcpu *cpu, const uint32_t *index, unsigned count,
                  uint64_t *out)
{
    struct msr_list list = {.nmsrs = count};
    int ret;

    cpu->call = "KVM_GET_MSRS";
    if (count > VMM_VCPU_MAX_MSRS)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++)
        list.entry[i].index = index[i];
    ret = plain_get(cpu, KVM_GET_MSRS, &list, "KVM_GET_MSRS");
    for (int i = 0; i < ret; i++)
        out[i] = list.entry[i].data;
    return ret;
}

int
vmm_vcpu_set_msrs(struct vmm_vcpu *cpu, const uint32_t *index,
                  const uint64_t *value, unsigned count)
{
    struct msr_list list = {.nmsrs = count};

    cpu->call = "KVM_SET_MSRS";
    if (count > VMM_VCPU_MAX_MSRS)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        list.entry[i].index = index[i];
        list.entry[i].data = value[i];
    }
    return plain_set(cpu, KVM_SET_MSRS, &list, "KVM_SET_MSRS");
}

int
vmm_vcpu_nmi(struct vmm_vcpu *cpu)
{
    return cpu_ioctl(cpu, KVM_NMI, NULL, "KVM_NMI");
}

int
vmm_vcpu_debug(struct vmm_vcpu *cpu, const uint64_t dr[4], uint64_t dr7,
               bool step)
{
    struct kvm_guest_debug debug = {0};
    int err;

    if (dr7)
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    if (step)
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    if (cpu->soft)
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    if (dr7) {
        memcpy(debug.arch.debugreg, dr, 4 * sizeof *dr);
        debug.arch.debugreg[7] = dr7;
    }
    err = plain_set(cpu, KVM_SET_GUEST_DEBUG, &debug, "KVM_SET_GUEST_DEBUG");
    if (!err) {
        cpu->debugging = debug.control != 0;
        cpu->stepping = step;
    }
    return err;
}

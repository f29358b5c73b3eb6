/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu_save.c - the whole state of a vCPU, taken and put back */
#include "vcpu_save.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Which the kernel synchronises or refuses: they run on. */
#define MSR_TSC        0x10U
#define MSR_TSC_ADJUST 0x3bU

#define XSTATE_BV  512   /* in an xsave area */
#define APIC_COUNT 0x390 /* current count of the timer (SDM 3, 11.5.4) */

void
vmm_vcpu_save_fini(struct vmm_vcpu_save *save)
{
    free(save->xsave);
    save->xsave = NULL;
}

/* The MSRs of the host's list that exist for this vCPU, with their values. */
static int
get_msrs(struct vmm_vcpu *cpu, struct vmm_vcpu_save *save)
{
    uint32_t list[VMM_KVM_MAX_MSRS];
    int count = vmm_kvm_msr_list(cpu->vm->kvm, list, VMM_KVM_MAX_MSRS);
    unsigned wanted = 0;
    int got;

    if (count < 0) {
        cpu->call = cpu->vm->kvm->call;
        return count;
    }
    for (int i = 0; i < count && wanted < VMM_VCPU_MAX_MSRS; i++) {
        if (list[i] != MSR_TSC && list[i] != MSR_TSC_ADJUST)
            save->msr_index[wanted++] = list[i];
    }
    /* One that the host lists and does not give is left out. */
    save->msrs = 0;
    while (save->msrs < wanted) {
        unsigned at = save->msrs;

        got = vmm_vcpu_get_msrs(cpu, save->msr_index + at, wanted - at,
                                save->msr_value + at);
        if (got < 0)
            return got;
        save->msrs += (unsigned)got;
        if (save->msrs == wanted)
            break;
        wanted--;
        memmove(save->msr_index + save->msrs, save->msr_index + save->msrs + 1,
                (wanted - save->msrs) * sizeof *save->msr_index);
    }
    return 0;
}

/* Drops those that the host does not take back: they hold what it wants. */
static int
try_msrs(struct vmm_vcpu *cpu, struct vmm_vcpu_save *save)
{
    unsigned at = 0;

    while (at < save->msrs) {
        int set = vmm_vcpu_set_msrs(cpu, save->msr_index + at,
                                    save->msr_value + at, save->msrs - at);

        if (set < 0)
            return set;
        at += (unsigned)set;
        if (at == save->msrs)
            break;
        save->msrs--;
        memmove(save->msr_index + at, save->msr_index + at + 1,
                (save->msrs - at) * sizeof *save->msr_index);
        memmove(save->msr_value + at, save->msr_value + at + 1,
                (save->msrs - at) * sizeof *save->msr_value);
    }
    return 0;
}

int
vmm_vcpu_save(struct vmm_vcpu *cpu, struct vmm_vcpu_save *save)
{
    int err;

    if (cpu->unsettled)
        return -EBUSY;
    if (!save->xsave) {
        save->xsave_size = cpu->vm->kvm->xsave_size;
        save->xsave = calloc(1, save->xsave_size);
        if (!save->xsave)
            return -ENOMEM;
    }
    /* The MP state first: asking for it lets pending INITs and SIPIs act. */
    err = vmm_vcpu_get_mp_state(cpu, &save->mp_state);
    if (!err)
        err = vmm_vcpu_get_regs(cpu, &save->regs);
    if (!err)
        err = vmm_vcpu_get_sregs(cpu, &save->sregs);
    if (!err)
        err = vmm_vcpu_get_xsave(cpu, save->xsave);
    if (!err)
        err = vmm_vcpu_get_xcrs(cpu, &save->xcrs);
    if (!err)
        err = vmm_vcpu_get_debugregs(cpu, &save->debugregs);
    save->has_lapic = cpu->vm->irqchip;
    if (!err && save->has_lapic)
        err = vmm_vcpu_get_lapic(cpu, &save->lapic);
    if (!err)
        err = get_msrs(cpu, save);
    if (!err)
        err = vmm_vcpu_get_events(cpu, &save->events);
    return err ? err : try_msrs(cpu, save);
}

int
vmm_vcpu_load_registers(struct vmm_vcpu *cpu, const struct vmm_vcpu_save *save)
{
    int err = vmm_vcpu_set_regs(cpu, &save->regs);

    if (!err)
        err = vmm_vcpu_set_sregs(cpu, &save->sregs);
    if (!err)
        err = vmm_vcpu_set_events(cpu, &save->events);
    return err;
}

/*
 * In an order that works: what others depend on goes first (LAPIC after the
 * APIC base in the system registers, the TSC deadline among the MSRs after the
 * LAPIC, events last since they may name an exception that sets registers).
 */
int
vmm_vcpu_load(struct vmm_vcpu *cpu, const struct vmm_vcpu_save *save)
{
    int err = vmm_vcpu_set_mp_state(cpu, save->mp_state);

    if (!err)
        err = vmm_vcpu_set_sregs(cpu, &save->sregs);
    if (!err)
        err = vmm_vcpu_set_xsave(cpu, save->xsave);
    if (!err)
        err = vmm_vcpu_set_xcrs(cpu, &save->xcrs);
    if (!err)
        err = vmm_vcpu_set_debugregs(cpu, &save->debugregs);
    if (!err && save->has_lapic)
        err = vmm_vcpu_set_lapic(cpu, &save->lapic);
    if (!err && save->msrs) {
        err = vmm_vcpu_set_msrs(cpu, save->msr_index, save->msr_value,
                                save->msrs);
        if (err >= 0)
            err = (unsigned)err == save->msrs ? 0 : -EINVAL;
    }
    /* The setters above have handed over the system registers. */
    if (!err)
        err = vmm_vcpu_load_registers(cpu, save);
    return err;
}

/* An index and a value are one MSR; the order is that of the host's list. */
static bool
same_msrs(const struct vmm_vcpu_save *one, const struct vmm_vcpu_save *other)
{
    return one->msrs == other->msrs &&
           !memcmp(one->msr_index, other->msr_index,
                   one->msrs * sizeof *one->msr_index) &&
           !memcmp(one->msr_value, other->msr_value,
                   one->msrs * sizeof *one->msr_value);
}

static bool
same_lapic(const struct vmm_vcpu_save *one, const struct vmm_vcpu_save *other)
{
    struct kvm_lapic_state a = one->lapic, b = other->lapic;

    if (one->has_lapic != other->has_lapic)
        return false;
    memset(a.regs + APIC_COUNT, 0, 4);
    memset(b.regs + APIC_COUNT, 0, 4);
    return !memcmp(&a, &b, sizeof a);
}

/*
 * But for the word that says which parts are not as after a reset (SDM 1,
 * 13.4.2): the kernel gives the values of the others as well, and sets bits for
 * parts that it has looked after itself.
 */
static bool
same_xsave(const struct vmm_vcpu_save *one, const struct vmm_vcpu_save *other)
{
    const char *a = one->xsave, *b = other->xsave;

    return one->xsave_size == other->xsave_size && !memcmp(a, b, XSTATE_BV) &&
           !memcmp(a + XSTATE_BV + 8, b + XSTATE_BV + 8,
                   one->xsave_size - XSTATE_BV - 8);
}

const char *
vmm_vcpu_save_differs(const struct vmm_vcpu_save *one,
                      const struct vmm_vcpu_save *other)
{
    if (one->mp_state != other->mp_state)
        return "MP state";
    if (!same_xsave(one, other))
        return "FPU";
    if (memcmp(&one->xcrs, &other->xcrs, sizeof one->xcrs) != 0)
        return "XCRs";
    if (memcmp(&one->debugregs, &other->debugregs, sizeof one->debugregs) != 0)
        return "debug registers";
    if (!same_lapic(one, other))
        return "local APIC";
    return same_msrs(one, other) ? NULL : "MSRs";
}

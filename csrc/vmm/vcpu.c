/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu.c - creating a vCPU, the KVM_RUN loop and the decoding of exits */
#include "vcpu.h"

#include "console.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpuid.h"

#define LAPIC_LVT_TIMER     0x320
#define LAPIC_TIMER_INITIAL 0x380
#define LAPIC_TIMER_CURRENT 0x390
#define LVT_MASKED          (1U << 16)
#define LVT_TSC_DEADLINE    (2U << 17)
#define LVT_MODE            (3U << 17)
#define MSR_TSC_DEADLINE    0x6e0U
#define RFLAGS_IF           0x200U
#define DR6_STEP            0x4000U /* BS */

int
vmm_vcpu_init(struct vmm_vcpu *cpu, struct vmm_vm *vm, unsigned cpus)
{
    struct vmm_cpuid cpuid;
    void *run;
    int ret;

    memset(cpu, 0, sizeof *cpu);
    cpu->fd = -1;
    cpu->index = vm->vcpus;
    ret = vmm_kvm_ioctl(vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)cpu->index,
                        "KVM_CREATE_VCPU", &cpu->call);
    if (ret < 0)
        return ret;
    cpu->fd = ret;
    cpu->vm = vm;
    if (!cpu->index)
        vm->vcpu_fd = cpu->fd;
    run = mmap(NULL, vm->kvm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
               cpu->fd, 0);
    if (run == MAP_FAILED) {
        cpu->call = "mmap of a vCPU";
        ret = -errno;
        goto fail;
    }
    cpu->run = run;
    vmm_cpuid_make(&vm->kvm->cpuid, cpu->index, cpus, &cpuid);
    ret = vmm_kvm_ioctl(cpu->fd, KVM_SET_CPUID2, &cpuid, "KVM_SET_CPUID2",
                        &cpu->call);
    if (ret)
        goto fail;
    vm->vcpus++;
    return 0;

fail:
    vmm_vcpu_fini(cpu);
    return ret;
}

struct vmm_vcpu_rest
vmm_vcpu_detach(struct vmm_vcpu *cpu)
{
    struct vmm_vcpu_rest rest = {.fd = -1};

    if (!cpu->vm)
        return rest;
    rest.fd = cpu->fd;
    rest.run = cpu->run;
    rest.run_size = cpu->vm->kvm->run_size;
    if (cpu->vm->vcpu_fd == cpu->fd)
        cpu->vm->vcpu_fd = -1;
    cpu->fd = -1;
    cpu->run = NULL;
    cpu->vm = NULL;
    return rest;
}

void
vmm_vcpu_rest_close(struct vmm_vcpu_rest *rest)
{
    if (rest->run)
        munmap(rest->run, rest->run_size);
    if (rest->fd >= 0)
        close(rest->fd);
    rest->run = NULL;
    rest->fd = -1;
}

void
vmm_vcpu_fini(struct vmm_vcpu *cpu)
{
    struct vmm_vcpu_rest rest = vmm_vcpu_detach(cpu);

    vmm_vcpu_rest_close(&rest);
}

/* -- exits --------------------------------------------------------------- */

static uint64_t
load_le(const uint8_t *data, unsigned len)
{
    uint64_t val = 0;

    memcpy(&val, data, len);
    return le64toh(val);
}

static void
store_le(uint8_t *data, unsigned len, uint64_t val)
{
    val = htole64(val);
    memcpy(data, &val, len);
}

/* Where the value of the access that `exit` describes lies in kvm_run. */
static uint8_t *
access_data(struct vmm_vcpu *cpu, bool pio)
{
    struct kvm_run *run = cpu->run;

    if (!pio)
        return run->mmio.data;
    return (uint8_t *)run + run->io.data_offset +
           (size_t)run->io.size * (cpu->string_next - 1);
}

void
vmm_vcpu_answer(struct vmm_vcpu *cpu, const struct vmm_exit *exit, uint64_t val)
{
    struct vmm_past *past = &cpu->past[(cpu->past_count - 1) % VMM_PAST];

    assert(!exit->write);
    past->val = val;
    store_le(access_data(cpu, exit->pio), exit->len, val);
}

uint8_t *
vmm_vcpu_string(struct vmm_vcpu *cpu, const struct vmm_exit *exit)
{
    assert(exit->count > 1);
    return access_data(cpu, true);
}

void
vmm_vcpu_string_done(struct vmm_vcpu *cpu)
{
    cpu->string_next = cpu->run->io.count;
}

/* Whether it is to the two devices that every machine has. */
static bool
is_of_machine(const struct vmm_exit *exit)
{
    return exit->pio && (exit->addr - VMM_CONSOLE_PORT < VMM_CONSOLE_SIZE ||
                         exit->addr - VMM_EXIT_PORT < VMM_EXIT_SIZE);
}

static void
remember(struct vmm_vcpu *cpu, const struct vmm_exit *exit)
{
    struct vmm_past *past = &cpu->past[cpu->past_count++ % VMM_PAST];
    const struct vmm_until *until = &cpu->until;

    if (is_of_machine(exit))
        cpu->used = true;
    else if (exit->len)
        cpu->touched = true;
    if (until->len && exit->write && exit->pio == until->pio &&
        exit->addr < until->addr + until->len &&
        until->addr < exit->addr + exit->len)
        cpu->until_met = true;
    past->reason = (uint8_t)exit->reason;
    past->len = (uint8_t)exit->len;
    past->pio = exit->pio;
    past->write = exit->write;
    past->addr = exit->addr;
    past->val = exit->val;
}

/* The access that `exit` describes: what came of it is its reason. */
static void
ask_bus(struct vmm_vm *vm, struct vmm_exit *exit)
{
    struct vmm_bus *bus = exit->pio ? &vm->pio : &vm->mmio;
    int answer;

    if (exit->write)
        answer =
            vmm_bus_write(bus, exit->addr, exit->len, exit->val, &exit->range);
    else
        answer =
            vmm_bus_read(bus, exit->addr, exit->len, &exit->val, &exit->range);
    switch (answer) {
    case VMM_BUS_DONE:
        exit->reason = VMM_EXIT_NATIVE;
        break;
    case VMM_BUS_OWNER:
        exit->reason = VMM_EXIT_OWNER;
        break;
    case VMM_BUS_STOP:
        exit->reason = VMM_EXIT_STOP;
        break;
    case VMM_BUS_UNTIL:
        exit->reason = VMM_EXIT_UNTIL;
        break;
    case VMM_BUS_OUTSIDE:
        exit->reason = VMM_EXIT_ACCESS;
        break;
    default:
        exit->reason = VMM_EXIT_UNCLAIMED;
        break;
    }
}

/*
 * One access of the exit. Returns true when the caller of vmm_vcpu_run must see
 * it.
 */
static bool
do_access(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    uint8_t *data = access_data(cpu, exit->pio);

    exit->val = exit->write ? load_le(data, exit->len) : vmm_ones(exit->len);
    ask_bus(cpu->vm, exit);
    if (!exit->write)
        store_le(data, exit->len, exit->val);
    remember(cpu, exit);
    return exit->reason != VMM_EXIT_NATIVE || cpu->trace;
}

/*
 * The lock is held until the write is done, and only then has it left the
 * ring: a vCPU that finds it empty can go on to what its guest did afterwards.
 */
bool
vmm_vcpu_coalesced(struct vmm_vm *vm, struct vmm_exit *exit)
{
    struct kvm_coalesced_mmio_ring *ring =
        __atomic_load_n(&vm->ring, __ATOMIC_ACQUIRE);
    const struct kvm_coalesced_mmio *entry;
    bool found;

    if (!ring)
        return false;
    pthread_mutex_lock(&vm->ring_lock);
    found = vmm_vm_ring_waits(vm);
    if (found) {
        entry = &ring->coalesced_mmio[ring->first];
        exit->kvm_reason = entry->pio ? KVM_EXIT_IO : KVM_EXIT_MMIO;
        exit->pio = entry->pio;
        exit->count = 1;
        exit->write = true;
        exit->len = (unsigned)vmm_min(entry->len, sizeof entry->data);
        exit->addr = entry->phys_addr;
        exit->val = load_le(entry->data, exit->len);
        ask_bus(vm, exit);
        __atomic_store_n(&ring->first, (ring->first + 1) % VMM_RING_ENTRIES,
                         __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&vm->ring_lock);
    return found;
}

/*
 * What the guest wrote before its exit, with no exit for each. No more than
 * the ring holds: what comes meanwhile is of other vCPUs, and for them to do.
 */
static bool
do_ring(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    for (unsigned i = 0; i < VMM_RING_ENTRIES && vmm_vm_ring_waits(cpu->vm);
         i++) {
        if (!vmm_vcpu_coalesced(cpu->vm, exit))
            break; /* another vCPU was faster */
        remember(cpu, exit);
        if (exit->reason != VMM_EXIT_NATIVE || cpu->trace)
            return true;
    }
    return false;
}

/* The elements of a string I/O that were not looked at yet. */
static bool
do_pio(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    const struct kvm_run *run = cpu->run;

    while (cpu->string_next < run->io.count) {
        exit->count = run->io.count - cpu->string_next++;
        exit->pio = true;
        exit->write = run->io.direction == KVM_EXIT_IO_OUT;
        exit->len = run->io.size;
        exit->addr = run->io.port;
        if (do_access(cpu, exit))
            return true;
    }
    return false;
}

static bool
do_mmio(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    const struct kvm_run *run = cpu->run;

    exit->pio = false;
    exit->count = 1;
    exit->write = run->mmio.is_write;
    exit->len = run->mmio.len;
    exit->addr = run->mmio.phys_addr;
    return do_access(cpu, exit);
}

static void
decode_internal_error(const struct kvm_run *run, struct vmm_exit *exit)
{
    exit->reason = VMM_EXIT_INTERNAL_ERROR;
    exit->code = run->internal.suberror;
    exit->ndata = (unsigned)vmm_min(run->internal.ndata, 16);
    memcpy(exit->data, run->internal.data, sizeof exit->data);
    if (exit->code != KVM_INTERNAL_ERROR_EMULATION || exit->ndata < 3)
        return;
    if (run->emulation_failure.flags &
        KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
        exit->insn_len =
            (unsigned)vmm_min(run->emulation_failure.insn_size, 15);
        memcpy(exit->insn, run->emulation_failure.insn_bytes, 15);
    }
}

static void
decode_system_event(const struct kvm_run *run, struct vmm_exit *exit)
{
    exit->reason = VMM_EXIT_SYSTEM_EVENT;
    exit->code = run->system_event.type;
    exit->ndata = (unsigned)vmm_min(run->system_event.ndata, 16);
    memcpy(exit->data, run->system_event.data, sizeof exit->data);
}

/* The exit that KVM_RUN returned with. False: handled, run on. */
static bool
decode(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    const struct kvm_run *run = cpu->run;

    exit->kvm_reason = run->exit_reason;
    exit->code = exit->pc = 0;
    exit->ndata = exit->insn_len = 0;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        cpu->unsettled = true;
        cpu->string_next = 0;
        return do_pio(cpu, exit);
    case KVM_EXIT_MMIO:
        cpu->unsettled = true;
        return do_mmio(cpu, exit);
    case KVM_EXIT_HLT:
        exit->reason = VMM_EXIT_HALT;
        break;
    case KVM_EXIT_SHUTDOWN:
        exit->reason = VMM_EXIT_SHUTDOWN;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        exit->reason = VMM_EXIT_FAIL_ENTRY;
        exit->code = run->fail_entry.hardware_entry_failure_reason;
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        decode_internal_error(run, exit);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        decode_system_event(run, exit);
        break;
    case KVM_EXIT_DEBUG:
        exit->reason = VMM_EXIT_DEBUG;
        exit->code = run->debug.arch.dr6;
        exit->pc = run->debug.arch.pc;
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        exit->reason = VMM_EXIT_INTR;
        return true;
    default:
        exit->reason = VMM_EXIT_UNKNOWN;
        break;
    }
    exit->len = exit->count = 0;
    exit->pio = exit->write = false;
    exit->addr = exit->pc;
    exit->val = exit->code;
    remember(cpu, exit);
    return true;
}

/* The same, behind what the ring had before it. */
static bool
decode_in_order(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    cpu->undecoded = cpu->unsettled = true;
    if (do_ring(cpu, exit))
        return true;
    cpu->undecoded = false;
    cpu->unsettled = false;
    return decode(cpu, exit);
}

/* What is left of the last exit, before the guest is entered. */
static bool
do_rest(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    if (cpu->undecoded)
        return decode_in_order(cpu, exit);
    return cpu->unsettled && cpu->run->exit_reason == KVM_EXIT_IO &&
           do_pio(cpu, exit);
}

/* -- running ------------------------------------------------------------- */

static void
set_immediate_exit(struct vmm_vcpu *cpu, uint8_t on)
{
    __atomic_store_n(&cpu->run->immediate_exit, on, __ATOMIC_SEQ_CST);
}

/*
 * One KVM_RUN. 0: an exit to decode. -EINTR: the guest was not entered or was
 * left for a signal, and nothing is unfinished any more.
 */
static int
enter(struct vmm_vcpu *cpu)
{
    int ret = ioctl(cpu->fd, KVM_RUN, NULL) ? -errno : 0;

    cpu->exits++;
    cpu->fresh = cpu->run->kvm_valid_regs;
    cpu->run->kvm_dirty_regs = 0;
    if (ret == -EAGAIN) /* an AP that left INIT: enter again */
        ret = -EINTR;
    if (ret == -EINTR)
        cpu->unsettled = false;
    else if (ret)
        cpu->call = "KVM_RUN";
    return ret;
}

/*
 * KVM posts writes: it is past the instruction when it exits for one, and then
 * forgets that it was to stop behind it (x86_emulate_instruction). Whether
 * that is so here.
 */
static bool
step_is_lost(const struct vmm_vcpu *cpu)
{
    const struct kvm_run *run = cpu->run;

    if (!cpu->stepping || !cpu->unsettled)
        return false;
    if (run->exit_reason == KVM_EXIT_IO)
        return run->io.direction == KVM_EXIT_IO_OUT;
    return run->mmio.is_write;
}

/* Finishes the write and reports the step as KVM would have. */
static int
end_step(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    int err = vmm_vcpu_settle(cpu, exit);

    if (err || exit->reason != VMM_EXIT_NONE)
        return err; /* another part of the access */
    err = vmm_vcpu_get_regs(cpu, &regs);
    if (!err)
        err = vmm_vcpu_get_sregs(cpu, &sregs);
    if (err)
        return err;
    *exit = (struct vmm_exit){
        .reason = VMM_EXIT_DEBUG,
        .kvm_reason = KVM_EXIT_DEBUG,
        .code = DR6_STEP,
        .pc = sregs.cs.base + regs.rip,
    };
    exit->addr = exit->pc;
    exit->val = exit->code;
    remember(cpu, exit);
    return 0;
}

/* Whether what the caller waits for has come, now that all before is done. */
static bool
until_over(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    if (!cpu->until_met && (!cpu->until.exits || cpu->exits < cpu->until.exits))
        return false;
    cpu->until_met = false;
    cpu->until.exits = 0;
    exit->reason = VMM_EXIT_UNTIL;
    return true;
}

int
vmm_vcpu_run(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    int ret;

    if (do_rest(cpu, exit))
        return 0;
    for (;;) {
        if (until_over(cpu, exit))
            return 0;
        if (step_is_lost(cpu))
            return end_step(cpu, exit);
        ret = enter(cpu);
        if (ret == -EINTR) {
            if (do_ring(cpu, exit)) {
                set_immediate_exit(cpu, 1); /* come back for the signal */
                return 0;
            }
            /*
             * Clear first, look after: a kick from now on sets the flag
             * again and is seen at the next entry.
             */
            set_immediate_exit(cpu, 0);
            exit->code = __atomic_exchange_n(&cpu->kicked, 0, __ATOMIC_SEQ_CST);
            exit->reason = VMM_EXIT_INTR;
            exit->kvm_reason = KVM_EXIT_INTR;
            return 0;
        }
        if (ret)
            return ret;
        if (decode_in_order(cpu, exit))
            return 0;
    }
}

/* Settling brings the registers along where the host can. */
int
vmm_vcpu_settle(struct vmm_vcpu *cpu, struct vmm_exit *exit)
{
    int ret = 0;

    if (do_rest(cpu, exit))
        return 0;
    cpu->run->kvm_valid_regs = cpu->vm->kvm->sync_regs;
    while (cpu->unsettled) {
        set_immediate_exit(cpu, 1);
        ret = enter(cpu);
        if (ret == -EINTR) {
            ret = 0;
            break;
        }
        if (ret)
            break;
        if (decode_in_order(cpu, exit))
            goto out;
    }
    exit->reason = VMM_EXIT_NONE;

out:
    cpu->run->kvm_valid_regs = 0;
    /* A kick that came meanwhile is for the next run. */
    set_immediate_exit(cpu, 0);
    if (__atomic_load_n(&cpu->kicked, __ATOMIC_SEQ_CST))
        set_immediate_exit(cpu, 1);
    return ret;
}

void
vmm_vcpu_tick(struct vmm_vcpu *cpu)
{
    struct kvm_run *run = cpu->run;

    if (run)
        __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

void
vmm_vcpu_kick(struct vmm_vcpu *cpu, int signal)
{
    pid_t tid;

    /* One signal until it is consumed: they would queue by the thousand. */
    if (__atomic_exchange_n(&cpu->kicked, 1, __ATOMIC_SEQ_CST))
        return;
    vmm_vcpu_tick(cpu);
    tid = __atomic_load_n(&cpu->tid, __ATOMIC_SEQ_CST);
    if (tid)
        syscall(SYS_tgkill, getpid(), tid, signal);
}

static uint32_t
lapic_reg(const struct kvm_lapic_state *lapic, unsigned offset)
{
    uint32_t val;

    memcpy(&val, lapic->regs + offset, sizeof val);
    return val;
}

/* Whether the LAPIC's own timer may still fire. */
static int
timer_armed(struct vmm_vcpu *cpu, bool *out)
{
    struct kvm_lapic_state lapic;
    uint32_t index = MSR_TSC_DEADLINE, lvt;
    uint64_t deadline = 0;
    int err = vmm_vcpu_get_lapic(cpu, &lapic);

    if (err)
        return err;
    lvt = lapic_reg(&lapic, LAPIC_LVT_TIMER);
    *out = false;
    if (lvt & LVT_MASKED)
        return 0;
    if ((lvt & LVT_MODE) == LVT_TSC_DEADLINE) {
        err = vmm_vcpu_get_msrs(cpu, &index, 1, &deadline);
        *out = err == 1 && deadline;
        return err < 0 ? err : 0;
    }
    *out = lapic_reg(&lapic, LAPIC_TIMER_INITIAL) &&
           (lapic_reg(&lapic, LAPIC_TIMER_CURRENT) || (lvt & LVT_MODE));
    return 0;
}

int
vmm_vcpu_mood(struct vmm_vcpu *cpu, enum vmm_vcpu_mood *out)
{
    struct kvm_regs regs;
    uint32_t state;
    bool armed;
    int err;

    *out = VMM_VCPU_AWAKE;
    if (!cpu->vm->irqchip)
        return 0; /* HLT comes as an exit */
    err = vmm_vcpu_get_mp_state(cpu, &state);
    if (err)
        return err;
    if (state == KVM_MP_STATE_UNINITIALIZED ||
        state == KVM_MP_STATE_INIT_RECEIVED)
        *out = VMM_VCPU_PARKED;
    if (state != KVM_MP_STATE_HALTED)
        return 0;
    err = vmm_vcpu_get_regs(cpu, &regs);
    if (err)
        return err;
    if (!(regs.rflags & RFLAGS_IF)) {
        *out = VMM_VCPU_ASLEEP;
        return 0;
    }
    err = timer_armed(cpu, &armed);
    if (!err && !armed)
        *out = VMM_VCPU_IDLE;
    return err;
}

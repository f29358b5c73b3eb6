/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_replay.c - the reset loop's int3 on every kind of host
 *
 * ioctl is wrapped: KVM_RUN interprets code of one-byte instructions (nop,
 * int3, hlt as a shutdown). As an ordinary kernel it answers an int3 with a
 * debug exit; as one that interprets ring 0, with a failure and an exception
 * that it has queued. A host gives away only one of these.
 *
 * link: -Wl,--wrap=ioctl
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vmm/replay.h"

#define FD      4711
#define RAM     0x1000ULL
#define END     0x1020ULL /* where a turn ends: dr0 */
#define HANDLER 0x1800ULL /* of the guest's exceptions */
#define NOP     0x90
#define INT3    0xcc

/* -- the kernel ------------------------------------------------------------ */

static struct vmm_mem mem;
static struct kvm_regs regs;
static struct kvm_vcpu_events events;
static struct kvm_guest_debug debug;
static struct kvm_run *run;
static bool interprets;
static unsigned delivered[32]; /* exceptions that the guest got */

int __wrap_ioctl(int fd, unsigned long request, ...);

static int
leave(uint32_t reason)
{
    run->exit_reason = reason;
    return 0;
}

static int
leave_by_debug(unsigned exception)
{
    memset(&run->debug, 0, sizeof run->debug);
    run->debug.arch.exception = exception;
    run->debug.arch.pc = regs.rip;
    return leave(KVM_EXIT_DEBUG);
}

static int
int3(void)
{
    if (!interprets) {
        if (debug.control & KVM_GUESTDBG_USE_SW_BP)
            return leave_by_debug(3);
        delivered[3]++;
        regs.rip = HANDLER;
        return -1;
    }
    events.exception.pending = 1;
    events.exception.nr = 6;
    memset(&run->internal, 0, sizeof run->internal);
    run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    return leave(KVM_EXIT_INTERNAL_ERROR);
}

static int
enter(void)
{
    for (;;) {
        uint8_t code = mem.region[0].hva[regs.rip - RAM];

        if (events.exception.injected || events.exception.pending) {
            delivered[events.exception.nr % 32]++;
            memset(&events, 0, sizeof events);
            regs.rip = HANDLER;
            continue;
        }
        if (debug.control & KVM_GUESTDBG_USE_HW_BP &&
            regs.rip == debug.arch.debugreg[0])
            return leave_by_debug(1);
        if (code == NOP)
            regs.rip++;
        else if (code != INT3)
            return leave(KVM_EXIT_SHUTDOWN);
        else if (int3() == 0)
            return 0;
    }
}

int
__wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    void *arg;

    (void)fd;
    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    switch (request) {
    case KVM_RUN:
        if (!run->immediate_exit)
            return enter();
        errno = EINTR;
        return -1;
    case KVM_GET_REGS:
        memcpy(arg, &regs, sizeof regs);
        return 0;
    case KVM_SET_REGS:
        memcpy(&regs, arg, sizeof regs);
        return 0;
    case KVM_GET_VCPU_EVENTS:
        memcpy(arg, &events, sizeof events);
        return 0;
    case KVM_SET_VCPU_EVENTS:
        memcpy(&events, arg, sizeof events);
        return 0;
    case KVM_SET_GUEST_DEBUG:
        memcpy(&debug, arg, sizeof debug);
        return 0;
    case KVM_GET_MSR_INDEX_LIST:
        ((struct kvm_msr_list *)arg)->nmsrs = 0;
        return 0;
    default:
        if (_IOC_DIR(request) == _IOC_READ)
            memset(arg, 0, _IOC_SIZE(request));
        return 0;
    }
}

/* -- the machine ----------------------------------------------------------- */

static struct vmm_kvm kvm;
static struct vmm_vm vm;
static struct vmm_vcpu cpu;
static struct vmm_snap *root, *base;
static struct vmm_replay replay;
static struct vmm_block block[3];
static unsigned reached[3];

/* Nops with an int3 at 0x1004, 0x1008 and 0x1010, of which the loop is told. */
static void
begin(bool how)
{
    struct vmm_vcpu *cpus[] = {&cpu};

    interprets = how;
    memset(delivered, 0, sizeof delivered);
    memset(&events, 0, sizeof events);
    memset(&debug, 0, sizeof debug);
    memset(&regs, 0, sizeof regs);
    regs.rip = RAM;
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, RAM, VMM_PAGE_SIZE, 0), 0);
    vmm_mem_freeze(&mem);
    memset(&kvm, 0, sizeof kvm);
    memset(&vm, 0, sizeof vm);
    memset(&cpu, 0, sizeof cpu);
    kvm.xsave_size = 4096;
    vm.kvm = &kvm;
    vm.fd = cpu.fd = FD;
    vm.mem = &mem;
    vm.vcpus = 1;
    vmm_bus_init(&vm.pio, 0xffff);
    vmm_bus_init(&vm.mmio, UINT64_MAX);
    cpu.vm = &vm;
    cpu.run = run = calloc(1, 8192);
    CHECK_EQ(vmm_mem_fill(&mem, RAM, NOP, VMM_PAGE_SIZE, VMM_MEM_HOST), 0);
    CHECK_EQ(vmm_snap_take(&vm, cpus, 1, &root), 0);
    memset(&replay, 0, sizeof replay);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t at = RAM + (4ULL << i);

        block[i] = (struct vmm_block){.address = at, .gpa = at, .byte = NOP};
        CHECK_EQ(vmm_mem_fill(&mem, at, INT3, 1, VMM_MEM_HOST), 0);
    }
    CHECK_EQ(vmm_snap_take(&vm, cpus, 1, &base), 0);
    replay.vm = &vm;
    replay.cpu = &cpu;
    replay.snap = base;
    replay.length_reg = -1;
    replay.stop[0] = END;
    replay.stops = 1;
    replay.block = block;
    replay.blocks = 3;
    replay.reached = reached;
    CHECK_EQ(vmm_replay_init(&replay), 0);
}

static void
end(void)
{
    vmm_replay_fini(&replay);
    CHECK_EQ(debug.control, 0);
    free(replay.unseen);
    vmm_snap_leave(&mem);
    vmm_snap_drop(base);
    vmm_snap_drop(root);
    free(vm.log);
    vmm_mem_fini(&mem);
    vmm_bus_fini(&vm.pio);
    vmm_bus_fini(&vm.mmio);
    free(run);
}

static struct vmm_turn
turn(void)
{
    struct vmm_input input = {"", 0};
    struct vmm_turn out = {0};
    bool kicked;

    CHECK_EQ(vmm_replay_run(&replay, &input, 1, &out, &kicked), 1);
    return out;
}

static uint8_t
code_at(uint64_t gpa)
{
    return vmm_snap_page(base, 0)[gpa - RAM];
}

/* -- tests ----------------------------------------------------------------- */

static void
each_is_reached_once(bool how)
{
    struct vmm_turn out;

    begin(how);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(code_at(block[i].gpa), INT3);
    out = turn();
    CHECK_EQ(out.found, 3);
    CHECK_EQ(out.flags, VMM_TURN_NEW | VMM_TURN_STOP);
    CHECK_EQ(replay.reached_count, 3);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(code_at(block[i].gpa), NOP);
    out = turn();
    CHECK_EQ(out.found, 0);
    CHECK_EQ(out.flags, VMM_TURN_STOP);
    for (unsigned i = 0; i < 32; i++)
        CHECK_EQ(delivered[i], 0);
    end();
}

static void
test_as_debug_exits(void)
{
    each_is_reached_once(false);
}

static void
test_as_failures_of_the_interpreter(void)
{
    each_is_reached_once(true);
}

/* One of the guest's own is an exception of the guest's, if the host can. */
static void
test_int3_of_the_guest(void)
{
    struct vmm_turn out;

    begin(false);
    block[1].address++; /* so that nobody knows the one at 0x1008 */
    CHECK_EQ(vmm_mem_fill(&mem, HANDLER, 0xf4, 1, VMM_MEM_HOST), 0);
    CHECK_EQ(vmm_snap_poke(base, HANDLER - RAM, 0xf4), 0);
    out = turn();
    CHECK_EQ(out.reason, VMM_EXIT_SHUTDOWN);
    CHECK_EQ(out.found, 1);
    CHECK_EQ(delivered[3], 1);
    end();
    begin(true);
    block[1].address++;
    out = turn();
    CHECK_EQ(out.reason, VMM_EXIT_INTERNAL_ERROR);
    CHECK_EQ(out.found, 1);
    end();
}

/* A batch that is not believed begins with all int3 again. */
static void
test_done_again(void)
{
    struct vmm_turn out;

    begin(true);
    out = turn();
    CHECK_EQ(out.found, 3);
    replay.middle = true; /* as if a turn had been kicked */
    vmm_replay_left(&replay);
    CHECK_EQ(replay.reached_count, 0);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(code_at(block[i].gpa), INT3);
    out = turn();
    CHECK_EQ(out.found, 3);
    end();
}

static void
test_pages_of_others_are_not_poked(void)
{
    begin(false);
    CHECK_EQ(vmm_snap_poke(root, 0, INT3), -ENOENT);
    CHECK_EQ(vmm_snap_poke(base, VMM_PAGE_SIZE, INT3), -ENOENT);
    end();
}

int
main(void)
{
    RUN(test_as_debug_exits);
    RUN(test_as_failures_of_the_interpreter);
    RUN(test_int3_of_the_guest);
    RUN(test_done_again);
    RUN(test_pages_of_others_are_not_poked);
    return check_done();
}

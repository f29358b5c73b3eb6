/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_run.c - the KVM_RUN loop against a scripted kernel, every exit there is
 *
 * ioctl is wrapped: each KVM_RUN plays the next step of a script into a struct
 * kvm_run of ours. So exits that a host does not give away for the asking
 * (failed entry, system events, strange internal errors) are decoded too.
 *
 * link: -Wl,--wrap=ioctl
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "vmm/vcpu.h"

#define FD       4711
#define RUN_SIZE 8192
#define IO_DATA  4096

/* -- the kernel ------------------------------------------------------------ */

typedef int step_fn(struct kvm_run *run);

static struct kvm_run *run;
static step_fn *script[16];
static unsigned played;
static unsigned immediate; /* entries with immediate_exit set */
static uint64_t valid_seen;

int __wrap_ioctl(int fd, unsigned long request, ...);

int
__wrap_ioctl(int fd, unsigned long request, ...)
{
    int err;

    if (fd != FD || request != KVM_RUN) {
        errno = ENOTTY;
        return -1;
    }
    immediate += run->immediate_exit;
    valid_seen = run->kvm_valid_regs;
    err = script[played] ? script[played++](run) : -EINTR;
    if (!err)
        return 0;
    errno = -err;
    return -1;
}

static int
interrupted(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_INTR;
    return -EINTR;
}

/* -- the machine ----------------------------------------------------------- */

static struct vmm_kvm kvm;
static struct vmm_vm vm;
static struct vmm_vcpu cpu;
static struct vmm_exit out;

/* A native device that logs: the byte at `base` + 15 stops, + 14 is OWNER. */
static uint64_t seen[32];
static unsigned seen_count;

static int
answer_for(uint64_t offset)
{
    if (offset == 15)
        return VMM_BUS_STOP;
    return offset == 14 ? VMM_BUS_OWNER : VMM_BUS_DONE;
}

static int
native_read(void *dev, uint64_t offset, unsigned len, uint64_t *val)
{
    (void)dev;
    (void)len;
    *val = 0x1122334455667788ULL;
    return answer_for(offset);
}

static int
native_write(void *dev, uint64_t offset, unsigned len, uint64_t val)
{
    (void)dev;
    (void)len;
    seen[seen_count++ % 32] = val;
    return answer_for(offset);
}

static const struct vmm_bus_ops native_ops = {native_read, native_write};

static void
add(struct vmm_bus *bus, uint64_t base, const struct vmm_bus_ops *ops)
{
    struct vmm_range range = {.base = base, .last = base + 15, .ops = ops};

    CHECK_EQ(vmm_bus_add(bus, &range, NULL), 0);
}

static void
set_up(void)
{
    memset(&kvm, 0, sizeof kvm);
    memset(&vm, 0, sizeof vm);
    memset(&cpu, 0, sizeof cpu);
    memset(&out, 0xaa, sizeof out);
    memset(script, 0, sizeof script);
    played = immediate = seen_count = 0;
    kvm.sync_regs = 7;
    vm.kvm = &kvm;
    vmm_bus_init(&vm.pio, 0xffff);
    vmm_bus_init(&vm.mmio, UINT64_MAX);
    add(&vm.pio, 0x40, &native_ops);
    add(&vm.pio, 0x60, NULL);
    add(&vm.mmio, 0xd0000000, &native_ops);
    add(&vm.mmio, 0xd0001000, NULL);
    run = calloc(1, RUN_SIZE);
    cpu.vm = &vm;
    cpu.fd = FD;
    cpu.run = run;
}

/* KVM's ring of writes that do not exit; keep() is the kernel's side. */
static struct kvm_coalesced_mmio_ring *ring;

static void
add_ring(void)
{
    ring = calloc(1, VMM_PAGE_SIZE);
    pthread_mutex_init(&vm.ring_lock, NULL);
    vm.ring = ring;
}

static void
keep(bool pio, uint64_t addr, unsigned len, uint64_t val)
{
    struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[ring->last];

    entry->phys_addr = addr;
    entry->len = len;
    entry->pio = pio;
    memcpy(entry->data, &val, 8);
    ring->last = (ring->last + 1) % VMM_RING_ENTRIES;
}

static void
tear_down(void)
{
    vmm_bus_fini(&vm.pio);
    vmm_bus_fini(&vm.mmio);
    free(run);
    if (vm.ring)
        pthread_mutex_destroy(&vm.ring_lock);
    free(vm.ring);
}

static int
io(struct kvm_run *r, bool write, unsigned port, unsigned size, unsigned count)
{
    r->exit_reason = KVM_EXIT_IO;
    r->io.direction = write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    r->io.port = (uint16_t)port;
    r->io.size = (uint8_t)size;
    r->io.count = count;
    r->io.data_offset = IO_DATA;
    return 0;
}

static int
mmio(struct kvm_run *r, bool write, uint64_t addr, unsigned len, uint64_t val)
{
    r->exit_reason = KVM_EXIT_MMIO;
    r->mmio.phys_addr = addr;
    r->mmio.len = len;
    r->mmio.is_write = write;
    memcpy(r->mmio.data, &val, 8);
    return 0;
}

static uint8_t *
io_data(void)
{
    return (uint8_t *)run + IO_DATA;
}

/* -- accesses -------------------------------------------------------------- */

static int
out_native(struct kvm_run *r)
{
    memcpy(io_data(), "\x34\x12", 2);
    return io(r, true, 0x40, 2, 1);
}

static int
in_native(struct kvm_run *r)
{
    return io(r, false, 0x44, 4, 1);
}

static void
native_accesses_stay_inside(void)
{
    uint32_t got;

    set_up();
    script[0] = out_native;
    script[1] = in_native;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    CHECK_EQ(seen_count, 1);
    CHECK_EQ(seen[0], 0x1234);
    memcpy(&got, io_data(), 4);
    CHECK_EQ(got, 0x55667788);
    CHECK_EQ(cpu.exits, 3);
    CHECK_EQ(cpu.past_count, 2);
    CHECK_EQ(cpu.past[1].val, 0x1122334455667788ULL);
    tear_down();
}

static int
string_out(struct kvm_run *r)
{
    memcpy(io_data(), "abc", 3);
    return io(r, true, 0x60, 1, 3);
}

static void
each_element_of_a_string_comes(void)
{
    set_up();
    script[0] = string_out;
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
        CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
        CHECK(out.pio && out.write);
        CHECK_EQ(out.val, "abc"[i]);
    }
    CHECK_EQ(played, 1);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    tear_down();
}

static int
string_in(struct kvm_run *r)
{
    return io(r, false, 0x60, 2, 2);
}

static void
answers_go_to_their_element(void)
{
    set_up();
    script[0] = string_in;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    vmm_vcpu_answer(&cpu, &out, 0x1111);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    vmm_vcpu_answer(&cpu, &out, 0x2222);
    CHECK(!memcmp(io_data(), "\x11\x11\x22\x22", 4));
    tear_down();
}

static void
a_string_may_be_done_at_once(void)
{
    set_up();
    script[0] = string_in;
    script[1] = in_native;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.count, 2);
    CHECK(vmm_vcpu_string(&cpu, &out) == io_data());
    vmm_vcpu_string_done(&cpu);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    CHECK_EQ(played, 2);
    tear_down();
    set_up();
    script[0] = string_in;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    vmm_vcpu_answer(&cpu, &out, 0x1111);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.count, 1); /* the last one is no string any more */
    tear_down();
}

static int
string_stop(struct kvm_run *r)
{
    memcpy(io_data(), "xyz", 3);
    return io(r, true, 0x4f, 1, 3);
}

static void
a_stop_in_a_string_leaves_the_rest_to_settling(void)
{
    set_up();
    script[0] = string_stop;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_STOP);
    CHECK_EQ(out.val, 'x');
    for (unsigned i = 1; i < 3; i++) {
        CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
        CHECK_EQ(out.reason, VMM_EXIT_STOP);
        CHECK_EQ(out.val, "xyz"[i]);
    }
    CHECK_EQ(played, 1);
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_NONE);
    CHECK_EQ(immediate, 1);
    CHECK(!cpu.unsettled);
    tear_down();
}

static int
store_3(struct kvm_run *r)
{
    return mmio(r, true, 0xd0001000, 3, 0xccbbaa);
}

static int
store_5(struct kvm_run *r)
{
    return mmio(r, true, 0xd0001003, 5, 0x0504030201ULL);
}

static void
both_parts_of_a_crossing_store_come(void)
{
    set_up();
    script[0] = store_3;
    script[1] = store_5;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.len, 3);
    CHECK_EQ(out.val, 0xccbbaa);
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
    CHECK_EQ(out.len, 5);
    CHECK_EQ(out.val, 0x0504030201ULL);
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_NONE);
    CHECK_EQ(valid_seen, 7);
    CHECK_EQ(run->kvm_valid_regs, 0);
    tear_down();
}

static int
read_nobody(struct kvm_run *r)
{
    return mmio(r, false, 0xd000000e, 4, 0);
}

static void
a_read_that_straddles_gets_all_ones(void)
{
    uint32_t got;

    set_up();
    script[0] = read_nobody;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_UNCLAIMED);
    CHECK_EQ(out.val, 0xffffffff);
    memcpy(&got, run->mmio.data, 4);
    CHECK_EQ(got, 0xffffffff);
    tear_down();
}

static int
write_owner(struct kvm_run *r)
{
    return mmio(r, true, 0xd000000e, 1, 9);
}

static void
owners_and_traces_are_told(void)
{
    set_up();
    script[0] = write_owner;
    script[1] = out_native;
    cpu.trace = true;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_OWNER);
    CHECK_EQ(out.range.base, 0xd0000000);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_NATIVE);
    CHECK_EQ(out.addr, 0x40);
    tear_down();
}

/* -- the other exits ------------------------------------------------------- */

static int
fail_entry(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_FAIL_ENTRY;
    r->fail_entry.hardware_entry_failure_reason = 0x80000021;
    return 0;
}

static int
system_event(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_SYSTEM_EVENT;
    r->system_event.type = KVM_SYSTEM_EVENT_RESET;
    r->system_event.ndata = 1000; /* more than there is room for */
    r->system_event.data[0] = 5;
    return 0;
}

static int
emulation_failure(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    r->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
    r->emulation_failure.ndata = 4;
    r->emulation_failure.flags =
        KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    r->emulation_failure.insn_size = 200;
    memcpy(r->emulation_failure.insn_bytes, "\x0f\x0b", 2);
    return 0;
}

static int
delivery_error(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    r->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
    r->internal.ndata = 2;
    r->internal.data[1] = 77;
    return 0;
}

static int
debug(struct kvm_run *r)
{
    r->exit_reason = KVM_EXIT_DEBUG;
    r->debug.arch.dr6 = 1;
    r->debug.arch.pc = 0x1234;
    return 0;
}

static int
plain(struct kvm_run *r, uint32_t reason)
{
    r->exit_reason = reason;
    return 0;
}

static int
halt(struct kvm_run *r)
{
    return plain(r, KVM_EXIT_HLT);
}

static int
triple_fault(struct kvm_run *r)
{
    return plain(r, KVM_EXIT_SHUTDOWN);
}

static int
from_the_future(struct kvm_run *r)
{
    return plain(r, 12345);
}

static void
expect(step_fn *step, enum vmm_exit_reason reason)
{
    set_up();
    script[0] = step;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, reason);
    CHECK_EQ(out.kvm_reason, run->exit_reason);
    CHECK_EQ(out.len, 0);
    CHECK_EQ(cpu.past[0].reason, reason);
    CHECK(!cpu.unsettled);
}

static void
every_other_exit_is_decoded(void)
{
    expect(fail_entry, VMM_EXIT_FAIL_ENTRY);
    CHECK_EQ(out.code, 0x80000021);
    tear_down();
    expect(system_event, VMM_EXIT_SYSTEM_EVENT);
    CHECK_EQ(out.code, KVM_SYSTEM_EVENT_RESET);
    CHECK_EQ(out.ndata, 16);
    CHECK_EQ(out.data[0], 5);
    tear_down();
    expect(emulation_failure, VMM_EXIT_INTERNAL_ERROR);
    CHECK_EQ(out.code, KVM_INTERNAL_ERROR_EMULATION);
    CHECK_EQ(out.insn_len, 15);
    CHECK(!memcmp(out.insn, "\x0f\x0b", 2));
    tear_down();
    expect(delivery_error, VMM_EXIT_INTERNAL_ERROR);
    CHECK_EQ(out.code, KVM_INTERNAL_ERROR_DELIVERY_EV);
    CHECK_EQ(out.insn_len, 0);
    CHECK_EQ(out.ndata, 2);
    CHECK_EQ(out.data[1], 77);
    tear_down();
    expect(debug, VMM_EXIT_DEBUG);
    CHECK_EQ(out.code, 1);
    CHECK_EQ(out.pc, 0x1234);
    tear_down();
    expect(halt, VMM_EXIT_HALT);
    tear_down();
    expect(triple_fault, VMM_EXIT_SHUTDOWN);
    tear_down();
    expect(from_the_future, VMM_EXIT_UNKNOWN);
    tear_down();
}

/* -- kicks and refusals ---------------------------------------------------- */

static void
a_kick_ends_one_run(void)
{
    set_up();
    script[0] = interrupted;
    script[1] = interrupted;
    vmm_vcpu_kick(&cpu, 0);
    vmm_vcpu_kick(&cpu, 0);
    CHECK_EQ(run->immediate_exit, 1);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    CHECK_EQ(out.code, 1);
    CHECK_EQ(run->immediate_exit, 0);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.code, 0); /* a tick or a signal of somebody's */
    tear_down();
}

static int
kick_and_interrupt(struct kvm_run *r)
{
    vmm_vcpu_kick(&cpu, 0);
    return interrupted(r);
}

static void
settling_keeps_a_kick_for_later(void)
{
    set_up();
    script[0] = store_3;
    script[1] = kick_and_interrupt;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_NONE);
    CHECK_EQ(run->immediate_exit, 1);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.code, 1);
    tear_down();
}

static int
refused(struct kvm_run *r)
{
    (void)r;
    return -EFAULT;
}

static int
not_yet(struct kvm_run *r)
{
    (void)r;
    return -EAGAIN;
}

static void
refusals_are_passed_on(void)
{
    set_up();
    script[0] = refused;
    script[1] = not_yet; /* a second vCPU that left INIT: no refusal */
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), -EFAULT);
    CHECK(!strcmp(cpu.call, "KVM_RUN"));
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    tear_down();
}

static void
state_is_not_set_in_an_instruction(void)
{
    struct kvm_regs regs = {.rip = 5};

    set_up();
    script[0] = store_3;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(vmm_vcpu_set_regs(&cpu, &regs), -EBUSY);
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(vmm_vcpu_set_regs(&cpu, &regs), 0);
    CHECK_EQ(run->kvm_dirty_regs, KVM_SYNC_X86_REGS);
    CHECK_EQ(run->s.regs.regs.rip, 5);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(run->kvm_dirty_regs, 0);
    tear_down();
}

/* -- writes that KVM has kept back ------------------------------------------
 */

static int
out_after_two(struct kvm_run *r)
{
    keep(true, 0x41, 2, 0xbbaa);
    keep(false, 0xd0000004, 4, 0x12345678);
    return out_native(r);
}

static void
the_ring_comes_before_the_exit(void)
{
    set_up();
    add_ring();
    script[0] = out_after_two;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    CHECK_EQ(seen_count, 3);
    CHECK_EQ(seen[0], 0xbbaa);
    CHECK_EQ(seen[1], 0x12345678);
    CHECK_EQ(seen[2], 0x1234);
    CHECK_EQ(cpu.past_count, 3);
    CHECK(cpu.past[0].pio && !cpu.past[1].pio);
    CHECK_EQ(cpu.past[1].addr, 0xd0000004);
    CHECK_EQ(cpu.exits, 2);
    CHECK(!vmm_vm_ring_waits(&vm));
    tear_down();
}

static int
in_after_one_for_the_caller(struct kvm_run *r)
{
    keep(false, 0xd0001004, 4, 77);
    keep(false, 0xd0000000, 1, 78);
    return io(r, false, 0x60, 2, 1);
}

/* The exit waits meanwhile, whether the caller goes on or settles. */
static void
the_callers_part_of_the_ring_is_returned(bool settles)
{
    set_up();
    add_ring();
    script[0] = in_after_one_for_the_caller;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
    CHECK(out.write && !out.pio);
    CHECK_EQ(out.count, 1);
    CHECK_EQ(out.addr, 0xd0001004);
    CHECK_EQ(out.val, 77);
    CHECK_EQ(seen_count, 0);
    CHECK(cpu.unsettled);
    CHECK_EQ(settles ? vmm_vcpu_settle(&cpu, &out) : vmm_vcpu_run(&cpu, &out),
             0);
    CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
    CHECK(!out.write && out.pio);
    CHECK_EQ(out.addr, 0x60);
    CHECK_EQ(seen_count, 1);
    CHECK_EQ(played, 1);
    vmm_vcpu_answer(&cpu, &out, 0x4321);
    CHECK(!memcmp(io_data(), "\x21\x43", 2));
    CHECK_EQ(vmm_vcpu_settle(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_NONE);
    CHECK_EQ(cpu.exits, 2);
    tear_down();
}

static void
the_callers_part_of_the_ring_comes_first(void)
{
    the_callers_part_of_the_ring_is_returned(false);
}

static void
settling_loses_no_exit_behind_the_ring(void)
{
    the_callers_part_of_the_ring_is_returned(true);
}

static int
signal_after_one_for_the_caller(struct kvm_run *r)
{
    keep(true, 0x60, 1, 5);
    return interrupted(r);
}

static void
a_signal_behind_the_ring_is_not_lost(void)
{
    set_up();
    add_ring();
    script[0] = signal_after_one_for_the_caller;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
    CHECK_EQ(out.val, 5);
    CHECK_EQ(run->immediate_exit, 1);
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(out.reason, VMM_EXIT_INTR);
    CHECK_EQ(run->immediate_exit, 0);
    tear_down();
}

static int
out_after_many(struct kvm_run *r)
{
    for (unsigned i = 1; i < VMM_RING_ENTRIES; i++)
        keep(false, 0xd0000000, 8, i);
    return out_native(r);
}

static void
a_full_ring_wraps(void)
{
    set_up();
    add_ring();
    ring->first = ring->last = 100;
    script[0] = script[1] = out_after_many;
    CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
    CHECK_EQ(seen_count, 2 * VMM_RING_ENTRIES);
    CHECK_EQ(seen[seen_count % 32 - 1], 0x1234);
    CHECK_EQ(seen[seen_count % 32 - 2], VMM_RING_ENTRIES - 1);
    CHECK_EQ(ring->first, ring->last);
    tear_down();
}

static void
the_ring_is_anyones_to_empty(void)
{
    set_up();
    CHECK(!vmm_vcpu_coalesced(&vm, &out)); /* no ring */
    add_ring();
    CHECK(!vmm_vcpu_coalesced(&vm, &out));
    keep(false, 0xd0000000, 12, 0x99); /* no such length: 8 at most */
    keep(false, 0xd000000c, 8, 1);     /* straddles the range's end */
    keep(true, 0x4f, 1, 2);            /* stops, if it were an exit */
    keep(true, 0x6f, 1, 3);
    CHECK(vmm_vcpu_coalesced(&vm, &out));
    CHECK_EQ(out.reason, VMM_EXIT_NATIVE);
    CHECK_EQ(out.len, 8);
    CHECK_EQ(seen[0], 0x99);
    CHECK(vmm_vcpu_coalesced(&vm, &out));
    CHECK_EQ(out.reason, VMM_EXIT_UNCLAIMED);
    CHECK(vmm_vcpu_coalesced(&vm, &out));
    CHECK_EQ(out.reason, VMM_EXIT_STOP);
    CHECK(vmm_vcpu_coalesced(&vm, &out));
    CHECK_EQ(out.reason, VMM_EXIT_ACCESS);
    CHECK_EQ(out.val, 3);
    CHECK(!vmm_vcpu_coalesced(&vm, &out));
    CHECK_EQ(cpu.past_count, 0); /* nobody's exits */
    tear_down();
}

static void
a_trace_sees_the_ring(void)
{
    set_up();
    add_ring();
    cpu.trace = true;
    script[0] = out_after_two;
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(vmm_vcpu_run(&cpu, &out), 0);
        CHECK_EQ(out.reason, VMM_EXIT_NATIVE);
        CHECK_EQ(seen_count, i + 1);
    }
    CHECK_EQ(played, 1);
    tear_down();
}

int
main(void)
{
    RUN(native_accesses_stay_inside);
    RUN(each_element_of_a_string_comes);
    RUN(answers_go_to_their_element);
    RUN(a_string_may_be_done_at_once);
    RUN(a_stop_in_a_string_leaves_the_rest_to_settling);
    RUN(both_parts_of_a_crossing_store_come);
    RUN(a_read_that_straddles_gets_all_ones);
    RUN(owners_and_traces_are_told);
    RUN(every_other_exit_is_decoded);
    RUN(a_kick_ends_one_run);
    RUN(settling_keeps_a_kick_for_later);
    RUN(refusals_are_passed_on);
    RUN(state_is_not_set_in_an_instruction);
    RUN(the_ring_comes_before_the_exit);
    RUN(the_callers_part_of_the_ring_comes_first);
    RUN(settling_loses_no_exit_behind_the_ring);
    RUN(a_signal_behind_the_ring_is_not_lost);
    RUN(a_full_ring_wraps);
    RUN(the_ring_is_anyones_to_empty);
    RUN(a_trace_sees_the_ring);
    return check_done();
}

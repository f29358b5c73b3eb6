/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vcpu.h - a virtual CPU: its state, the KVM_RUN loop, what an exit is
 *
 * vmm_vcpu_run enters the guest again and again, answers what native devices
 * claimed on the VM's buses, and returns the rest as a struct vmm_exit. It
 * calls nobody back: like the kernel, it hands an exit to its caller, who
 * answers it (vmm_vcpu_answer for a read) and calls again.
 *
 * Unfinished accesses. An IN, an OUT, an MMIO access are finished inside the
 * kernel only by the next KVM_RUN; a string or page-crossing access may exit
 * again on the way. Until then the registers are those of the middle of an
 * instruction. vmm_vcpu_settle finishes it without running the guest on; the
 * functions that set state refuse an unsettled vCPU with -EBUSY. Those that
 * get state take it as it is: rip is then that of the unfinished instruction.
 *
 * Register cache. Where the host offers KVM_CAP_SYNC_REGS, settling brings the
 * registers along for free, and sets are handed over with the next KVM_RUN; a
 * get or set then costs no ioctl (7 us on some hosts). Elsewhere each is one.
 *
 * Threads: a vCPU belongs to the thread that runs it (another may take over
 * between runs; the kernel then waits for a grace period). vmm_vcpu_kick and
 * vmm_vcpu_tick may be called from any thread and from signal handlers.
 */
#ifndef VMM_VCPU_H
#define VMM_VCPU_H

#include <linux/kvm.h>
#include <sys/types.h>

#include "vm.h"

enum vmm_exit_reason {
    VMM_EXIT_NONE,      /* settled: nothing is unfinished */
    VMM_EXIT_INTR,      /* a kick (code 1; consumed), a tick or a signal */
    VMM_EXIT_ACCESS,    /* for the caller: `range` has no ops. Answer reads */
    VMM_EXIT_UNCLAIMED, /* nobody's. Answer reads or end the run */
    VMM_EXIT_OWNER,     /* done in C; the owner of `range` has work to do */
    VMM_EXIT_STOP,      /* done in C; the device at `range` ends the run */
    VMM_EXIT_NATIVE,    /* done in C; only seen with cpu->trace */
    VMM_EXIT_UNTIL,     /* done; what the caller waits for (until) has come */
    VMM_EXIT_HALT,      /* HLT without an in-kernel irqchip */
    VMM_EXIT_SHUTDOWN,  /* triple fault */
    VMM_EXIT_FAIL_ENTRY,
    VMM_EXIT_INTERNAL_ERROR,
    VMM_EXIT_SYSTEM_EVENT,
    VMM_EXIT_DEBUG,
    VMM_EXIT_UNKNOWN,
    VMM_EXIT_REASONS
};

struct vmm_exit {
    enum vmm_exit_reason reason;
    uint32_t kvm_reason; /* KVM_EXIT_* */

    /* ACCESS, UNCLAIMED, OWNER, STOP, NATIVE: the access */
    bool pio;
    bool write;
    unsigned len; /* 1 to 8 */
    uint64_t addr;
    uint64_t val;           /* what was written, or read from a native device */
    unsigned count;         /* elements of a string left, with this one; or 1 */
    struct vmm_range range; /* whose it is; not for UNCLAIMED */

    /*
     * FAIL_ENTRY: hardware reason; INTERNAL_ERROR: suberror; SYSTEM_EVENT:
     * type; DEBUG: dr6
     */
    uint64_t code;
    uint64_t pc;       /* DEBUG: linear address of the instruction */
    unsigned insn_len; /* INTERNAL_ERROR: bytes that could not be emulated */
    uint8_t insn[15];
    unsigned ndata; /* INTERNAL_ERROR, SYSTEM_EVENT: what else KVM said */
    uint64_t data[16];
};

/* One line of the history that each vCPU keeps of its exits. */
struct vmm_past {
    uint8_t reason; /* enum vmm_exit_reason, NATIVE where C handled it */
    uint8_t len;
    bool pio;
    bool write;
    uint64_t addr;
    uint64_t val;
};

#define VMM_PAST 16U /* a power of two */

/*
 * What ends a run with VMM_EXIT_UNTIL, once it is done. Text on the console is
 * another (vmm_console_want).
 */
struct vmm_until {
    uint64_t exits; /* as many exits as this, by vmm_vcpu.exits; 0: no */
    uint64_t addr;  /* a write to any of `len` ports or addresses */
    uint64_t len;   /* 0: no */
    bool pio;
};

#define VMM_VCPU_MAX_MSRS 256U

struct vmm_vcpu {
    struct vmm_vm *vm;
    int fd;
    unsigned index;
    struct kvm_run *run; /* mapped; shared with the kernel */
    uint64_t exits;      /* returns of KVM_RUN so far */
    bool trace;          /* return what C handled as VMM_EXIT_NATIVE */

    bool undecoded;       /* the last exit waits behind KVM's ring */
    bool unsettled;       /* the last exit was an access */
    uint32_t string_next; /* string I/O: the element to look at next */
    uint64_t fresh;       /* KVM_SYNC_X86_*: valid in run->s.regs */
    bool debugging;       /* KVM_SET_GUEST_DEBUG is on */
    bool soft;     /* where it is set: int3 leaves the guest, if the host can */
    bool used;     /* the console or the exit port was accessed */
    bool touched;  /* another device was */
    bool stepping; /* with single steps */

    struct vmm_until until; /* the caller's; all 0: nothing */
    bool until_met;

    struct vmm_past past[VMM_PAST];
    uint64_t past_count;

    pid_t tid;        /* who runs it, 0: nobody; atomic */
    uint32_t kicked;  /* atomic */
    const char *call; /* what was refused last */
};

/*
 * KVM_CREATE_VCPU with the next index, its mmap, and KVM_SET_CPUID2 from the
 * host's supported CPUID with the APIC id and a topology of `cpus` cores in one
 * package filled in (cpuid.h). `cpus` is how many the machine will have.
 */
int vmm_vcpu_init(struct vmm_vcpu *cpu, struct vmm_vm *vm, unsigned cpus);
void vmm_vcpu_fini(struct vmm_vcpu *cpu);

/* Unmaps nothing and closes nothing: that is the caller's from now on. */
struct vmm_vcpu_rest {
    int fd;
    void *run;
    size_t run_size;
};
struct vmm_vcpu_rest vmm_vcpu_detach(struct vmm_vcpu *cpu);
void vmm_vcpu_rest_close(struct vmm_vcpu_rest *rest);

/*
 * Runs the guest until something is for the caller. 0 and *exit, or -errno
 * when the host refused KVM_RUN.
 */
int vmm_vcpu_run(struct vmm_vcpu *cpu, struct vmm_exit *exit);

/* The same without entering the guest: VMM_EXIT_NONE once nothing is open. */
int vmm_vcpu_settle(struct vmm_vcpu *cpu, struct vmm_exit *exit);

/*
 * The oldest write in KVM's ring (vmm_vm_coalesce), done as vmm_vcpu_run does
 * accesses: *exit is one, NATIVE when it is done. False: none waits. From any
 * thread; whoever finds the ring empty may rely on all being done.
 */
bool vmm_vcpu_coalesced(struct vmm_vm *vm, struct vmm_exit *exit);

/* The value of the read that vmm_vcpu_run just returned. */
void vmm_vcpu_answer(struct vmm_vcpu *cpu, const struct vmm_exit *exit,
                     uint64_t val);

/*
 * String I/O (`rep insb`) comes as one exit for each element. A caller who
 * does all that are left, exit->count, finds them here in a row, this one
 * first, and says so.
 */
uint8_t *vmm_vcpu_string(struct vmm_vcpu *cpu, const struct vmm_exit *exit);
void vmm_vcpu_string_done(struct vmm_vcpu *cpu);

/*
 * Makes the next or current vmm_vcpu_run return VMM_EXIT_INTR: sets the flag
 * that KVM looks at on entry and sends `signal`, whose handler must call
 * vmm_vcpu_tick, to the thread in cpu->tid. Never lost.
 */
void vmm_vcpu_kick(struct vmm_vcpu *cpu, int signal);

/* For signal handlers on the thread that runs `cpu`: leave the guest soon. */
void vmm_vcpu_tick(struct vmm_vcpu *cpu);

/* What a vCPU that has been silent is doing; one or two ioctls. */
enum vmm_vcpu_mood {
    VMM_VCPU_AWAKE,  /* runs, or an interrupt or its timer may wake it */
    VMM_VCPU_IDLE,   /* halted, interrupts on, its own timer off */
    VMM_VCPU_ASLEEP, /* halted with interrupts off: for ever */
    VMM_VCPU_PARKED, /* waits for INIT or SIPI */
};
int vmm_vcpu_mood(struct vmm_vcpu *cpu, enum vmm_vcpu_mood *out);

/*
 * State, a kernel structure each. Getters return the ioctl's error; setters
 * also -EBUSY when unsettled.
 */
int vmm_vcpu_get_regs(struct vmm_vcpu *cpu, struct kvm_regs *out);
int vmm_vcpu_set_regs(struct vmm_vcpu *cpu, const struct kvm_regs *regs);
int vmm_vcpu_get_sregs(struct vmm_vcpu *cpu, struct kvm_sregs *out);
int vmm_vcpu_set_sregs(struct vmm_vcpu *cpu, const struct kvm_sregs *sregs);
int vmm_vcpu_get_events(struct vmm_vcpu *cpu, struct kvm_vcpu_events *out);
int vmm_vcpu_set_events(struct vmm_vcpu *cpu,
                        const struct kvm_vcpu_events *events);
int vmm_vcpu_get_fpu(struct vmm_vcpu *cpu, struct kvm_fpu *out);
int vmm_vcpu_set_fpu(struct vmm_vcpu *cpu, const struct kvm_fpu *fpu);
int vmm_vcpu_get_xcrs(struct vmm_vcpu *cpu, struct kvm_xcrs *out);
int vmm_vcpu_set_xcrs(struct vmm_vcpu *cpu, const struct kvm_xcrs *xcrs);
int vmm_vcpu_get_debugregs(struct vmm_vcpu *cpu, struct kvm_debugregs *out);
int vmm_vcpu_set_debugregs(struct vmm_vcpu *cpu,
                           const struct kvm_debugregs *regs);
int vmm_vcpu_get_lapic(struct vmm_vcpu *cpu, struct kvm_lapic_state *out);
int vmm_vcpu_set_lapic(struct vmm_vcpu *cpu,
                       const struct kvm_lapic_state *lapic);
int vmm_vcpu_get_mp_state(struct vmm_vcpu *cpu, uint32_t *out);
int vmm_vcpu_set_mp_state(struct vmm_vcpu *cpu, uint32_t state);

/* The xsave area, kvm->xsave_size bytes. */
int vmm_vcpu_get_xsave(struct vmm_vcpu *cpu, void *out);
int vmm_vcpu_set_xsave(struct vmm_vcpu *cpu, const void *xsave);

/*
 * MSRs by index, all in one ioctl. Return how many the host took, from the
 * first on: index[n] is the first one that it refused. -EINVAL: more than
 * VMM_VCPU_MAX_MSRS.
 */
int vmm_vcpu_get_msrs(struct vmm_vcpu *cpu, const uint32_t *index,
                      unsigned count, uint64_t *out);
int vmm_vcpu_set_msrs(struct vmm_vcpu *cpu, const uint32_t *index,
                      const uint64_t *value, unsigned count);

/* KVM_NMI */
int vmm_vcpu_nmi(struct vmm_vcpu *cpu);

/*
 * KVM_SET_GUEST_DEBUG: up to four hardware breakpoints in dr[0..3] with dr7 as
 * the processor defines it, and single steps. All zero: off. Whether they are
 * honoured depends on host and ring; try it before trusting it.
 */
int vmm_vcpu_debug(struct vmm_vcpu *cpu, const uint64_t dr[4], uint64_t dr7,
                   bool step);

#endif

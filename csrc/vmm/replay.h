/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay.h - one snapshot, many inputs: the reset loop
 *
 * Each turn goes back to a snapshot, writes an input into guest memory, runs
 * the guest to an end, and notes that end and what is new in the guest's
 * coverage map. No turn leaves C, and all ends are values.
 *
 * Going back. Memory is copied back page by page as for any restore, and the
 * registers, system registers and events travel with KVM_RUN. The rest of the
 * state (FPU, MSRs, local APIC, debug registers, XCRs, MP state, interrupt
 * controllers, PIT) costs an ioctl each, several times what all else does, and
 * no exit tells whether a guest has changed any of it. With `whole` it is put
 * back each time. Without, turns come in batches, and the ends of a batch are
 * believed only when the whole state is looked at behind it and is that of the
 * snapshot. If it is not, they are done again with `whole`, which stays on
 * unless the last turn had ended in a way of its own (a crash, a timeout).
 *
 * That is exact but for one case: a guest that changes the rest in one turn,
 * and in a later one of the same batch changes it back to what it was. A caller
 * that wants each end at once, and so has batches of one, may look only now and
 * then (`trusting`): what is found then holds from there on.
 *
 * Blocks. Where code that was not built for it is to tell what it reaches, the
 * snapshot has an int3 at the begin of each block. The first turn that comes to
 * one finds its byte put back, here and in the snapshot, and goes on: it is
 * news, and from then on costs nothing. int3 leaves the guest as a debug exit
 * or, where KVM interprets an instruction that it does not know, as a failure
 * to do so; both are taken. A batch that is done again gets its int3 back.
 *
 * Devices. Only the console and the exit port may be used in a turn. One that
 * uses others is marked (VMM_TURN_TOUCHED, or VMM_TURN_OWNER when it could not
 * be finished here) and ends the batch; `touched` says that their state is to
 * be put back by the caller before the next.
 *
 * Threads: the one that runs the vCPU. Between two calls the machine is where
 * the last turn ended, and the pages that are dirty are marked in its memory.
 */
#ifndef VMM_REPLAY_H
#define VMM_REPLAY_H

#include "console.h"
#include "snap.h"

#define VMM_REPLAY_BATCH 256U /* turns between two looks at the whole state */
#define VMM_REPLAY_PARTS 64U  /* pieces of guest memory at most */

struct vmm_piece {
    uint64_t gpa, len;
};

struct vmm_input {
    const void *data;
    size_t len; /* at most `room` */
};

enum vmm_turn_flags {
    VMM_TURN_NEW = 1,     /* it has reached what none had before */
    VMM_TURN_TOUCHED = 2, /* it has used a device, which is to be put back */
    VMM_TURN_OWNER = 4,   /* a device's owner is needed: not finished */
    VMM_TURN_TIMEOUT = 8, /* `limit_ns` had passed */
    VMM_TURN_IDLE = 16,   /* halted for good */
    VMM_TURN_STOP = 32,   /* at one of `stop`, by number in `code` */
};

/* Where the snapshot has an int3 in place of `byte`. */
struct vmm_block {
    uint64_t address; /* linear, as an exit tells it; they ascend */
    uint64_t gpa;
    uint8_t byte;
    bool reached;
};

/* How a turn has ended. */
struct vmm_turn {
    enum vmm_exit_reason reason; /* INTR: see the flags */
    unsigned flags;
    uint64_t code, val;   /* of the exit: value for STOP, suberror, ... */
    uint64_t pc;          /* where; 0: not known */
    uint32_t found;       /* bytes of the map that show something new; blocks */
    struct kvm_regs regs; /* with want_regs */
    uint8_t *taken;       /* the caller's room for take_len bytes, or NULL */
};

struct vmm_replay {
    struct vmm_vm *vm;
    struct vmm_vcpu *cpu;
    struct vmm_snap *snap;
    struct vmm_console *con; /* or NULL */
    uint64_t con_end;        /* what it had printed, and its input */
    void *con_in;
    size_t con_in_len;

    /* Where an input goes, where its length does, and to which size of it. */
    struct vmm_piece piece[VMM_REPLAY_PARTS];
    unsigned pieces;
    uint64_t room;
    int length_reg; /* of kvm_regs, by number; -1: none */
    struct vmm_piece length;

    /* What ends a turn. */
    uint64_t stop[4];
    unsigned stops;
    uint64_t stop_sp; /* only with this rsp; 0: any */
    struct vmm_until until;
    uint64_t limit_ns;
    bool wants;  /* texts of the console are among that */
    bool strict; /* accesses that nobody claims are; else all ones */

    /* Counters in guest memory, a byte each, and what was not seen yet. */
    struct vmm_piece map[VMM_REPLAY_PARTS];
    unsigned maps;
    uint64_t map_len;
    uint8_t *unseen; /* made by init, and the caller's to free */

    /* The caller's, and in a node that is nobody else's. */
    struct vmm_block *block;
    unsigned blocks;
    unsigned *reached; /* by number, in their order: room for all of them */
    unsigned reached_count;

    /* What is noted of each end, but of one that was not finished. */
    bool want_regs;
    struct vmm_piece take[VMM_REPLAY_PARTS];
    unsigned takes;
    uint64_t take_len;

    bool whole;
    const char *why; /* what has made it so, or NULL */
    bool trusting;   /* ends of plain turns are believed without a look */
    bool touched;    /* devices are not as they were; the caller clears it */
    uint64_t turns;  /* done, those that were done again included */
    uint64_t pages;  /* copied back */

    /* Its own. */
    struct vmm_vcpu_save now;
    uint8_t *unseen_before;
    bool armed;
    bool elsewhere;          /* the machine has run without us */
    bool unknown;            /* the rest of the state may be anything */
    bool middle;             /* a turn was interrupted */
    unsigned at;             /* the turn of the batch */
    unsigned again;          /* so many are being done again, 0: none */
    unsigned reached_before; /* when the batch began */
    uint64_t began_ns;       /* when the turn began */
};

/*
 * Checks and takes what the caller has filled in, all up to `map`, for a
 * machine that is at the snapshot and settled. -EXDEV: it is not. -EINVAL:
 * pieces outside RAM, more stops than debug registers. -ENOMEM or what a call
 * said.
 */
int vmm_replay_init(struct vmm_replay *replay);

/* Takes the stops off; safe on a zeroed struct, and twice. */
void vmm_replay_fini(struct vmm_replay *replay);

/*
 * Does up to `count` turns (VMM_REPLAY_BATCH at most), each with an input of
 * its own, and fills in turn[]. Returns how many are done: fewer after one that
 * was not plain. 0: the vCPU was kicked (*kicked) or got a tick, and the caller
 * may look at what it has to do; he calls again with the same arguments, or
 * vmm_replay_left. -EXDEV: the machine is not at the snapshot any more; -errno
 * when a call failed.
 */
int vmm_replay_run(struct vmm_replay *replay, const struct vmm_input *input,
                   unsigned count, struct vmm_turn *turn, bool *kicked);

/* What is new in the maps after a turn that was run by others. */
int vmm_replay_look(struct vmm_replay *replay, uint32_t *found);

/*
 * What the maps' pages that the last turn has written hold, into `out`, which
 * has `map_len` bytes; the rest of it is left alone. Counters of other pages
 * are as in the snapshot.
 */
void vmm_replay_copy_map(struct vmm_replay *replay, uint8_t *out);

/* The machine has run without us, or a turn is given up. */
void vmm_replay_left(struct vmm_replay *replay);

#endif

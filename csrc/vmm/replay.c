/* SPDX-License-Identifier: Apache-2.0 */
/* replay.c - the reset loop */
#include "replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dirty.h"

#define INT3      0xccU
#define DR7_EXACT 0x400U /* bit 10 reads as 1 (SDM 3, 17.2.4) */

/*
 * AFL's classes of counts: 1, 2, 3, 4-7, 8-15, 16-31, 32-127 and more are eight
 * different things to have seen.
 */
static uint8_t
class_of(uint8_t count)
{
    if (count < 4)
        return (uint8_t)(count < 3 ? count : 4);
    if (count < 8)
        return 8;
    if (count < 16)
        return 16;
    if (count < 32)
        return 32;
    return count < 128 ? 64 : 128;
}

/* -- taking and giving back ------------------------------------------------ */

static bool
inside(struct vmm_replay *replay, const struct vmm_piece *piece)
{
    return piece->len &&
           vmm_mem_span(replay->vm->mem, piece->gpa, piece->len) == piece->len;
}

static int
check(struct vmm_replay *replay)
{
    uint64_t room = 0;

    if (replay->vm->mem->at != replay->snap || replay->vm->vcpus != 1)
        return -EXDEV;
    if (replay->stops > 4 || replay->pieces > VMM_REPLAY_PARTS ||
        replay->maps > VMM_REPLAY_PARTS || replay->takes > VMM_REPLAY_PARTS ||
        replay->length_reg > 17 || replay->length.len > 8)
        return -EINVAL;
    for (unsigned i = 0; i < replay->pieces; i++) {
        if (!inside(replay, &replay->piece[i]))
            return -EINVAL;
        room += replay->piece[i].len;
    }
    replay->take_len = 0;
    for (unsigned i = 0; i < replay->takes; i++) {
        if (!inside(replay, &replay->take[i]))
            return -EINVAL;
        replay->take_len += replay->take[i].len;
    }
    if (room < replay->room ||
        (replay->length.len && !inside(replay, &replay->length)))
        return -EINVAL;
    replay->map_len = 0;
    for (unsigned i = 0; i < replay->maps; i++) {
        if (!inside(replay, &replay->map[i]))
            return -EINVAL;
        replay->map_len += replay->map[i].len;
    }
    return 0;
}

static int
keep_console(struct vmm_replay *replay)
{
    struct vmm_console *con = replay->con;

    if (!con)
        return 0;
    replay->con_end = vmm_console_end(con);
    replay->con_in_len = vmm_console_waiting(con, NULL, 0);
    replay->con_in = malloc(replay->con_in_len + 1);
    if (!replay->con_in)
        return -ENOMEM;
    vmm_console_waiting(con, replay->con_in, replay->con_in_len);
    return 0;
}

static int
make_maps(struct vmm_replay *replay)
{
    if (!replay->map_len)
        return 0;
    replay->unseen_before = malloc(replay->map_len);
    if (!replay->unseen_before)
        return -ENOMEM;
    replay->unseen = malloc(replay->map_len);
    if (!replay->unseen)
        return -ENOMEM;
    memset(replay->unseen, 0xff, replay->map_len);
    return 0;
}

static int
arm(struct vmm_replay *replay)
{
    uint64_t dr7 = replay->stops ? DR7_EXACT : 0;

    for (unsigned i = 0; i < replay->stops; i++)
        dr7 |= 2ULL << 2 * i;
    replay->armed = true;
    replay->cpu->soft = replay->blocks > 0;
    return vmm_vcpu_debug(replay->cpu, replay->stop, dr7, false);
}

int
vmm_replay_init(struct vmm_replay *replay)
{
    int err = check(replay);

    replay->vm->call = "replay";
    if (!err)
        err = keep_console(replay);
    if (!err)
        err = make_maps(replay);
    if (!err)
        err = vmm_dirty_start(replay->vm);
    if (!err)
        err = arm(replay);
    if (!err)
        err = vmm_vcpu_save(replay->cpu, &replay->now);
    replay->elsewhere = true;
    if (err)
        vmm_replay_fini(replay);
    return err;
}

void
vmm_replay_fini(struct vmm_replay *replay)
{
    const uint64_t none[4] = {0};

    replay->cpu->soft = false;
    if (replay->armed) {
        vmm_vcpu_debug(replay->cpu, none, 0, false);
        memset(&replay->cpu->until, 0, sizeof replay->cpu->until);
        replay->cpu->until_met = false;
    }
    replay->armed = false;
    vmm_vcpu_save_fini(&replay->now);
    free(replay->con_in);
    free(replay->unseen_before);
    replay->con_in = NULL;
    replay->unseen_before = NULL;
}

/* -- the beginning of a turn ----------------------------------------------- */

static void
write_pieces(struct vmm_replay *replay, const struct vmm_input *input)
{
    const uint8_t *from = input->data;
    uint64_t left = vmm_min(input->len, replay->room);

    for (unsigned i = 0; left && i < replay->pieces; i++) {
        uint64_t part = vmm_min(left, replay->piece[i].len);

        vmm_mem_write(replay->vm->mem, replay->piece[i].gpa, from, part,
                      VMM_MEM_HOST);
        from += part;
        left -= part;
    }
}

static int
write_input(struct vmm_replay *replay, const struct vmm_input *input)
{
    uint64_t len = vmm_min(input->len, replay->room);
    struct kvm_regs regs = replay->snap->cpu[0].regs;

    write_pieces(replay, input);
    if (replay->length.len) {
        uint64_t le = htole64(len);

        vmm_mem_write(replay->vm->mem, replay->length.gpa, &le,
                      replay->length.len, VMM_MEM_HOST);
    }
    if (replay->length_reg < 0)
        return 0;
    /* struct kvm_regs is 18 registers in a row, in the order of their names. */
    memcpy((char *)&regs + 8 * replay->length_reg, &len, sizeof len);
    return vmm_vcpu_set_regs(replay->cpu, &regs);
}

static int
go_back(struct vmm_replay *replay, bool whole)
{
    const struct vmm_snap *snap = replay->snap;
    int64_t pages = vmm_snap_copy_back(replay->vm->mem, snap);
    int err = 0;

    replay->pages += (uint64_t)pages;
    if (replay->con && (replay->cpu->used || replay->unknown))
        err = vmm_console_rewind(replay->con, replay->con_end, replay->con_in,
                                 replay->con_in_len);
    if (err)
        return err;
    if (replay->wants)
        vmm_console_want_again(replay->con);
    if (!whole && !replay->unknown)
        return vmm_vcpu_load_registers(replay->cpu, &snap->cpu[0]);
    err = vmm_vcpu_load(replay->cpu, &snap->cpu[0]);
    if (!err)
        err = vmm_snap_load_chips(replay->vm, snap);
    replay->unknown = err != 0;
    return err;
}

/* What is unfinished of the last exit is finished, and what is dirty, known. */
static int
end_last(struct vmm_replay *replay)
{
    struct vmm_exit exit;
    int err;

    do {
        exit.reason = VMM_EXIT_NONE;
        err = vmm_vcpu_settle(replay->cpu, &exit);
    } while (!err && exit.reason != VMM_EXIT_NONE);
    return err;
}

/* To the snapshot, with this input. */
static int
begin(struct vmm_replay *replay, const struct vmm_input *input, bool whole)
{
    int err = 0;

    if (replay->vm->mem->at != replay->snap)
        return -EXDEV;
    if (replay->elsewhere) {
        err = end_last(replay);
        if (!err)
            err = vmm_dirty_harvest(replay->vm);
        if (!err)
            err = arm(replay);
        replay->unknown = true;
    }
    if (!err)
        err = go_back(replay, whole);
    if (err)
        return err;
    replay->elsewhere = false;
    return write_input(replay, input);
}

/* -- blocks ---------------------------------------------------------------- */

static struct vmm_block *
find_block(const struct vmm_replay *replay, uint64_t address)
{
    unsigned low = 0, high = replay->blocks;

    while (low < high) {
        unsigned mid = low + (high - low) / 2;

        if (replay->block[mid].address < address)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == replay->blocks || replay->block[low].address != address)
        return NULL;
    return &replay->block[low];
}

/* A byte of code, in the machine and in the snapshot. */
static int
put(struct vmm_replay *replay, uint64_t gpa, uint8_t byte)
{
    const struct vmm_mem *mem = replay->vm->mem;
    uint64_t before = 0;
    int err = vmm_mem_write(replay->vm->mem, gpa, &byte, 1, VMM_MEM_HOST);

    if (err)
        return err;
    for (unsigned i = 0; i < mem->count; i++) {
        const struct vmm_region *region = &mem->region[i];

        if (gpa - region->gpa < region->len)
            return vmm_snap_poke(replay->snap, before + gpa - region->gpa,
                                 byte);
        before += region->len;
    }
    return -EFAULT;
}

/* KVM that could not do an instruction has queued an exception for it. */
static int
forget_exception(struct vmm_vcpu *cpu)
{
    struct kvm_vcpu_events events;
    int err = vmm_vcpu_get_events(cpu, &events);

    if (err || !(events.exception.injected || events.exception.pending))
        return err;
    memset(&events.exception, 0, sizeof events.exception);
    return vmm_vcpu_set_events(cpu, &events);
}

/* The guest has an int3 of its own, and wants its exception. */
static int
give_to_guest(struct vmm_vcpu *cpu)
{
    struct kvm_vcpu_events events;
    struct kvm_regs regs;
    int err = vmm_vcpu_get_regs(cpu, &regs);

    if (!err)
        err = vmm_vcpu_get_events(cpu, &events);
    if (err)
        return err;
    regs.rip++;
    memset(&events.exception, 0, sizeof events.exception);
    events.exception.injected = 1;
    events.exception.nr = BP_VECTOR;
    err = vmm_vcpu_set_regs(cpu, &regs);
    return err ? err : vmm_vcpu_set_events(cpu, &events);
}

/* An exit that may be due to an int3. 1: it was, and the turn goes on. */
static int
reach_block(struct vmm_replay *replay, const struct vmm_exit *exit,
            struct vmm_turn *turn)
{
    uint64_t pc = exit->pc;
    struct vmm_block *block;
    struct kvm_regs regs;
    int err = 0;

    if (!replay->blocks)
        return 0;
    if (exit->reason == VMM_EXIT_INTERNAL_ERROR) {
        if (exit->code != KVM_INTERNAL_ERROR_EMULATION)
            return 0;
        err = vmm_vcpu_get_regs(replay->cpu, &regs);
        if (err)
            return err;
        pc = regs.rip;
    }
    block = find_block(replay, pc);
    if (!block || block->reached) {
        if (exit->reason != VMM_EXIT_DEBUG ||
            replay->cpu->run->debug.arch.exception != BP_VECTOR)
            return 0;
        err = give_to_guest(replay->cpu);
        return err ? err : 1;
    }
    err = put(replay, block->gpa, block->byte);
    if (!err && exit->reason == VMM_EXIT_INTERNAL_ERROR)
        err = forget_exception(replay->cpu);
    if (err)
        return err;
    block->reached = true;
    replay->reached[replay->reached_count++] =
        (unsigned)(block - replay->block);
    turn->found++;
    return 1;
}

/* What this batch has shown counts as not shown yet. */
static void
take_news_back(struct vmm_replay *replay)
{
    if (replay->map_len)
        memcpy(replay->unseen, replay->unseen_before, replay->map_len);
    while (replay->reached_count > replay->reached_before) {
        struct vmm_block *block =
            &replay->block[replay->reached[--replay->reached_count]];

        block->reached = false;
        put(replay, block->gpa, INT3);
    }
}

void
vmm_replay_left(struct vmm_replay *replay)
{
    if (replay->middle || replay->at || replay->again)
        take_news_back(replay);
    replay->elsewhere = true;
    replay->middle = false;
    replay->at = replay->again = 0;
}

/* -- the end of a turn ----------------------------------------------------- */

/* The bytes of the map in this page that show what none has shown before. */
static uint32_t
look_at(const uint8_t *now, uint8_t *unseen, uint64_t len)
{
    uint32_t found = 0;
    uint64_t word;

    for (uint64_t i = 0; i < len; i++) {
        uint8_t seen;

        if (i % 8 == 0 && len - i >= 8) {
            memcpy(&word, now + i, sizeof word);
            if (!word) {
                i += 7;
                continue;
            }
        }
        seen = now[i] ? class_of(now[i]) : 0;
        if (seen & unseen[i]) {
            unseen[i] &= (uint8_t)~seen;
            found++;
        }
    }
    return found;
}

/*
 * Only pages that were written in this turn can show anything: looks at them,
 * or with `out` copies them there.
 */
static uint32_t
walk_maps(struct vmm_replay *replay, uint8_t *out)
{
    uint64_t at = 0;
    uint32_t found = 0;

    for (unsigned i = 0; i < replay->maps; i++) {
        uint64_t gpa = replay->map[i].gpa, left = replay->map[i].len;

        while (left) {
            const struct vmm_region *region =
                vmm_mem_find(replay->vm->mem, gpa);
            uint64_t offset = gpa - region->gpa;
            uint64_t page = offset / VMM_PAGE_SIZE;
            uint64_t part =
                vmm_min(left, VMM_PAGE_SIZE - offset % VMM_PAGE_SIZE);
            bool written = region->dirty[page / 64] >> page % 64 & 1;

            if (written && out)
                memcpy(out + at, region->hva + offset, part);
            else if (written)
                found +=
                    look_at(region->hva + offset, replay->unseen + at, part);
            at += part;
            gpa += part;
            left -= part;
        }
    }
    return found;
}

void
vmm_replay_copy_map(struct vmm_replay *replay, uint8_t *out)
{
    walk_maps(replay, out);
}

/* A stop that counts only with the stack pointer of the caller's. */
static int
too_deep(struct vmm_replay *replay, bool *deep)
{
    struct kvm_regs regs;
    int err;

    *deep = false;
    if (!replay->stop_sp)
        return 0;
    err = vmm_vcpu_get_regs(replay->cpu, &regs);
    *deep = !err && regs.rsp != replay->stop_sp;
    return err;
}

/* Past the instruction at a stop, which would be hit for ever. */
static int
step_off(struct vmm_replay *replay, struct vmm_exit *exit)
{
    const uint64_t none[4] = {0};
    int err = vmm_vcpu_debug(replay->cpu, none, 0, true);

    if (!err)
        err = vmm_vcpu_run(replay->cpu, exit);
    return err ? err : arm(replay);
}

/* On a tick. Whether the turn is over by now. */
static int
look(struct vmm_replay *replay, struct vmm_turn *turn, bool *over)
{
    enum vmm_vcpu_mood mood;
    bool wakers;
    int err;

    *over = true;
    if (replay->limit_ns &&
        vmm_now_ns() - replay->began_ns >= replay->limit_ns) {
        turn->flags |= VMM_TURN_TIMEOUT;
        return 0;
    }
    err = vmm_vcpu_mood(replay->cpu, &mood);
    if (err)
        return err;
    wakers = __atomic_load_n(&replay->vm->wakers, __ATOMIC_RELAXED);
    *over = mood != VMM_VCPU_AWAKE && !(mood == VMM_VCPU_IDLE && wakers);
    if (*over)
        turn->flags |= VMM_TURN_IDLE;
    return 0;
}

static int
note_end(struct vmm_replay *replay, const struct vmm_exit *exit,
         struct vmm_turn *turn)
{
    int err;

    turn->reason = exit->reason;
    turn->code = exit->code;
    turn->val = exit->val;
    turn->pc = exit->reason == VMM_EXIT_DEBUG ? exit->pc : 0;
    if (exit->reason == VMM_EXIT_DEBUG) {
        for (unsigned i = 0; i < replay->stops; i++)
            if (replay->stop[i] == exit->pc) {
                turn->flags |= VMM_TURN_STOP;
                turn->code = i;
                break;
            }
    } else if (exit->reason != VMM_EXIT_STOP &&
               exit->reason != VMM_EXIT_UNTIL) {
        struct kvm_regs regs;

        err = vmm_vcpu_get_regs(replay->cpu, &regs);
        if (err)
            return err;
        turn->pc = regs.rip;
    }
    if (replay->cpu->touched)
        turn->flags |= VMM_TURN_TOUCHED;
    return 0;
}

/* Runs to the end. 1: it is not there yet, and somebody wants a look. */
static int
run_turn(struct vmm_replay *replay, struct vmm_turn *turn, bool *kicked)
{
    struct vmm_exit exit = {0};
    bool over;
    int err;

    for (;;) {
        err = vmm_vcpu_run(replay->cpu, &exit);
        if (err)
            return err;
        switch (exit.reason) {
        case VMM_EXIT_NATIVE:
            continue;
        case VMM_EXIT_UNCLAIMED:
            if (replay->strict)
                return note_end(replay, &exit, turn);
            continue;
        case VMM_EXIT_INTR:
            *kicked = exit.code;
            err = look(replay, turn, &over);
            if (!err && over)
                return note_end(replay, &exit, turn);
            return err ? err : 1;
        case VMM_EXIT_ACCESS:
        case VMM_EXIT_OWNER:
            turn->flags |= VMM_TURN_OWNER;
            return note_end(replay, &exit, turn);
        case VMM_EXIT_INTERNAL_ERROR:
            err = reach_block(replay, &exit, turn);
            if (err < 0)
                return err;
            if (!err)
                return note_end(replay, &exit, turn);
            continue;
        case VMM_EXIT_DEBUG:
            err = reach_block(replay, &exit, turn);
            if (err < 0)
                return err;
            if (err)
                continue;
            err = too_deep(replay, &over);
            if (!err && over)
                err = step_off(replay, &exit);
            if (err)
                return err;
            if (!over)
                return note_end(replay, &exit, turn);
            if (exit.reason != VMM_EXIT_DEBUG)
                return note_end(replay, &exit, turn);
            continue;
        default:
            return note_end(replay, &exit, turn);
        }
    }
}

/* An end that a caller has asked for: nothing went wrong on the way. */
static bool
is_plain(const struct vmm_turn *turn)
{
    return !(turn->flags & ~(unsigned)(VMM_TURN_NEW | VMM_TURN_STOP)) &&
           (turn->reason == VMM_EXIT_DEBUG || turn->reason == VMM_EXIT_STOP ||
            turn->reason == VMM_EXIT_UNTIL);
}

int
vmm_replay_look(struct vmm_replay *replay, uint32_t *found)
{
    int err = end_last(replay);

    if (!err)
        err = vmm_dirty_harvest(replay->vm);
    if (!err)
        *found = walk_maps(replay, NULL);
    return err;
}

/* What the caller wants of a machine that stands at an end. */
static int
collect(struct vmm_replay *replay, struct vmm_turn *turn)
{
    uint8_t *to = turn->taken;
    int err = 0;

    if (replay->want_regs)
        err = vmm_vcpu_get_regs(replay->cpu, &turn->regs);
    for (unsigned i = 0; !err && to && i < replay->takes; i++) {
        err = vmm_mem_read(replay->vm->mem, replay->take[i].gpa, to,
                           replay->take[i].len);
        to += replay->take[i].len;
    }
    return err;
}

/* One turn, or the rest of one. 1: interrupted, in the middle of it. */
static int
do_turn(struct vmm_replay *replay, const struct vmm_input *input, bool whole,
        struct vmm_turn *turn, bool *kicked)
{
    struct vmm_vcpu *cpu = replay->cpu;
    uint32_t found = 0;
    int err;

    if (!replay->middle) {
        *turn = (struct vmm_turn){.taken = turn->taken};
        err = begin(replay, input, whole);
        if (err)
            return err;
        cpu->used = cpu->touched = cpu->until_met = false;
        cpu->until = replay->until;
        if (replay->until.exits)
            cpu->until.exits += cpu->exits;
        replay->began_ns = replay->limit_ns ? vmm_now_ns() : 0;
        replay->turns++;
    }
    if (replay->stop_sp || replay->want_regs)
        cpu->run->kvm_valid_regs = replay->vm->kvm->sync_regs;
    err = run_turn(replay, turn, kicked);
    cpu->run->kvm_valid_regs = 0;
    replay->middle = err == 1;
    if (err)
        return err;
    if (turn->flags & VMM_TURN_OWNER)
        return end_last(replay);
    err = vmm_replay_look(replay, &found);
    turn->found += found;
    if (turn->found)
        turn->flags |= VMM_TURN_NEW;
    return err ? err : collect(replay, turn);
}

/* -- batches --------------------------------------------------------------- */

/* Looks at the whole state: what of it is not the snapshot's, or NULL. */
static int
look_at_state(struct vmm_replay *replay, const char **differs)
{
    bool chips;
    int err = vmm_vcpu_save(replay->cpu, &replay->now);

    if (!err)
        err = vmm_snap_chips_differ(replay->vm, replay->snap, &chips);
    if (err)
        return err;
    *differs = vmm_vcpu_save_differs(&replay->now, &replay->snap->cpu[0]);
    if (!*differs && chips)
        *differs = "interrupt controllers";
    return 0;
}

/* Turns from `at` on: all of them, or up to one that is not plain. How many
 * that makes, 0 when it was interrupted. */
static int
do_turns(struct vmm_replay *replay, const struct vmm_input *input,
         unsigned count, bool whole, struct vmm_turn *turn, bool *kicked)
{
    unsigned done = 0;

    while (!done) {
        unsigned i = replay->at;
        int err = do_turn(replay, &input[i], whole, &turn[i], kicked);

        if (err)
            return err < 0 ? err : 0;
        replay->at++;
        if (replay->at == count || !is_plain(&turn[i]))
            done = replay->at;
    }
    replay->at = 0;
    return (int)done;
}

/* The first pass over a batch is done: what it takes to believe it. */
static int
verify(struct vmm_replay *replay, unsigned done, const struct vmm_turn *last)
{
    const char *differs;
    int err = look_at_state(replay, &differs);

    if (err)
        return err;
    replay->unknown = differs != NULL;
    if (last->flags & (VMM_TURN_TOUCHED | VMM_TURN_OWNER)) {
        replay->touched = true;
        done--; /* it cannot be done again before devices are as they were */
    }
    if (differs)
        replay->again = done;
    if (differs && is_plain(last)) {
        replay->whole = true;
        replay->why = differs;
    }
    return 0;
}

int
vmm_replay_run(struct vmm_replay *replay, const struct vmm_input *input,
               unsigned count, struct vmm_turn *turn, bool *kicked)
{
    int done, err;

    *kicked = false;
    count = (unsigned)vmm_min(count, VMM_REPLAY_BATCH);
    if (!replay->again) {
        bool fresh = !replay->at && !replay->middle;

        if (fresh && replay->map_len)
            memcpy(replay->unseen_before, replay->unseen, replay->map_len);
        if (fresh)
            replay->reached_before = replay->reached_count;
        done = do_turns(replay, input, count, replay->whole, turn, kicked);
        if (done <= 0)
            return done;
        if (!replay->whole &&
            !(replay->trusting && is_plain(&turn[done - 1]))) {
            err = verify(replay, (unsigned)done, &turn[done - 1]);
            if (err)
                return err;
        } else if (!is_plain(&turn[done - 1])) {
            replay->touched =
                turn[done - 1].flags & (VMM_TURN_TOUCHED | VMM_TURN_OWNER);
        }
        if (!replay->again)
            return done;
        take_news_back(replay);
    }
    done = do_turns(replay, input, replay->again, true, turn, kicked);
    if (done) {
        replay->again = 0;
        replay->unknown = true; /* as the last of them has left it */
    }
    return done;
}

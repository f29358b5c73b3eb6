/* SPDX-License-Identifier: Apache-2.0 */
/* replay.c - Replay: many inputs from one snapshot, without Python between */
#include "../vmm/replay.h"
#include "vcpu.h"

#define TAKE_MOST 65536U /* bytes of memory that each end may show */

#define REPORT_NEWS 0 /* what is new, and what has gone wrong */
#define REPORT_ALL  1
#define REPORT_BAD  2 /* what has gone wrong */

struct replay {
    PyObject_HEAD
    struct vmm_replay replay;
    struct vcpu *vcpu;
    PyObject *snapshot;
    PyObject *console; /* or NULL */
    bool ready;
};

/* -- made of what Python says ---------------------------------------------- */

/* A sequence of (gpa, len). How many, or -1 with an exception. */
static int
as_pieces(PyObject *arg, const char *name, struct vmm_piece *piece)
{
    PyObject *list = PySequence_Fast(arg, name);
    Py_ssize_t count = list ? PySequence_Fast_GET_SIZE(list) : 0;

    if (!list)
        return -1;
    if (count > (Py_ssize_t)VMM_REPLAY_PARTS) {
        PyErr_Format(PyExc_ValueError, "%s has %zd pieces, more than %u", name,
                     count, VMM_REPLAY_PARTS);
        count = -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        unsigned long long gpa, len;

        if (!PyArg_ParseTuple(item, "KK", &gpa, &len)) {
            count = -1;
            break;
        }
        piece[i] = (struct vmm_piece){gpa, len};
    }
    Py_DECREF(list);
    return (int)count;
}

static int
as_stops(PyObject *arg, struct vmm_replay *replay)
{
    PyObject *list = PySequence_Fast(arg, "stops is a sequence");
    Py_ssize_t count = list ? PySequence_Fast_GET_SIZE(list) : 0;
    int err = list ? 0 : -1;

    if (count > 4) {
        PyErr_Format(PyExc_ValueError,
                     "stops has %zd addresses: there are 4 debug registers",
                     count);
        err = -1;
    }
    for (Py_ssize_t i = 0; !err && i < count; i++)
        err = as_uint(PySequence_Fast_GET_ITEM(list, i), "stop", UINT64_MAX,
                      &replay->stop[i]);
    replay->stops = (unsigned)count;
    Py_XDECREF(list);
    return err;
}

/* None; the number of a register; or (gpa, len) of an integer in memory. */
static int
as_length(PyObject *arg, struct vmm_replay *replay)
{
    unsigned long long gpa, len;
    uint64_t number;

    replay->length_reg = -1;
    if (arg == Py_None)
        return 0;
    if (PyTuple_Check(arg)) {
        if (!PyArg_ParseTuple(arg, "KK:length", &gpa, &len))
            return -1;
        replay->length = (struct vmm_piece){gpa, len};
        return 0;
    }
    if (as_uint(arg, "length", 17, &number))
        return -1;
    replay->length_reg = (int)number;
    return 0;
}

/* None, or (pio, addr, len). */
static int
as_write(PyObject *arg, struct vmm_until *until)
{
    unsigned long long addr, len;
    int pio;

    if (arg == Py_None)
        return 0;
    if (!PyArg_ParseTuple(arg, "pKK:write", &pio, &addr, &len))
        return -1;
    until->pio = pio;
    until->addr = addr;
    until->len = len;
    return 0;
}

/* A sequence of (address, gpa, byte) that ascends. */
static int
as_blocks(PyObject *arg, struct vmm_replay *replay)
{
    PyObject *list = PySequence_Fast(arg, "blocks is a sequence");
    Py_ssize_t count = list ? PySequence_Fast_GET_SIZE(list) : 0;
    int err = list ? 0 : -1;

    if (!err && count) {
        replay->block = calloc((size_t)count, sizeof *replay->block);
        replay->reached = calloc((size_t)count, sizeof *replay->reached);
        if (!replay->block || !replay->reached) {
            PyErr_NoMemory();
            err = -1;
        }
    }
    for (Py_ssize_t i = 0; !err && i < count; i++) {
        unsigned long long address, gpa;
        unsigned char byte;

        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "KKb",
                              &address, &gpa, &byte)) {
            err = -1;
        } else if (i && address <= replay->block[i - 1].address) {
            PyErr_SetString(PyExc_ValueError, "blocks do not ascend");
            err = -1;
        } else {
            replay->block[i] = (struct vmm_block){
                .address = address, .gpa = gpa, .byte = byte};
        }
    }
    replay->blocks = err ? 0 : (unsigned)count;
    Py_XDECREF(list);
    return err;
}

static int
fill_in(struct replay *self, PyObject *const *arg, double limit)
{
    struct vmm_replay *replay = &self->replay;
    int pieces = as_pieces(arg[0], "into", replay->piece);
    int maps = pieces < 0 ? -1 : as_pieces(arg[3], "map", replay->map);
    int takes = maps < 0 ? -1 : as_pieces(arg[6], "take", replay->take);
    uint64_t taken = 0;

    if (takes < 0 || as_length(arg[1], replay) || as_stops(arg[2], replay) ||
        as_write(arg[4], &replay->until) || as_blocks(arg[5], replay))
        return -1;
    replay->pieces = (unsigned)pieces;
    replay->maps = (unsigned)maps;
    replay->takes = (unsigned)takes;
    for (int i = 0; i < takes; i++)
        taken += vmm_min(replay->take[i].len, TAKE_MOST + 1);
    if (taken > TAKE_MOST) {
        PyErr_Format(PyExc_ValueError,
                     "more than %u bytes are to be collected of each end",
                     TAKE_MOST);
        return -1;
    }
    for (int i = 0; i < pieces; i++)
        replay->room += replay->piece[i].len;
    if (!(limit >= 0 && limit < 1e9)) {
        PyErr_SetString(PyExc_ValueError, "limit is not seconds from 0 on");
        return -1;
    }
    replay->limit_ns = (uint64_t)(limit * 1e9);
    return 0;
}

static int
start(struct replay *self)
{
    int err = vmm_replay_init(&self->replay);

    if (!err) {
        self->ready = true;
        return 0;
    }
    if (err == -EXDEV)
        PyErr_SetString(PyExc_ValueError,
                        "the VM is not at this snapshot, or has several vCPUs");
    else if (err == -EINVAL)
        PyErr_SetString(PyExc_ValueError, "a piece lies outside RAM");
    else
        raise_host(self->replay.cpu->call ? self->replay.cpu->call : "replay",
                   -err);
    return -1;
}

static PyObject *
replay_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {
        "vcpu",  "snapshot", "into",    "length", "stops",     "map",
        "write", "exits",    "stop_sp", "limit",  "wants",     "strict",
        "whole", "console",  "blocks",  "take",   "registers", NULL};
    struct state *state = state_of(type);
    PyObject *vcpu, *snapshot, *console = Py_None, *empty = PyTuple_New(0);
    PyObject *arg[7] = {empty, Py_None, empty, empty, Py_None, empty, empty};
    unsigned long long exits = 0, stop_sp = 0;
    int wants = 0, strict = 1, whole = 0, registers = 0;
    struct native native = {0};
    struct replay *self = NULL;
    double limit = 0;
    bool ok;

    ok = empty &&
         PyArg_ParseTupleAndKeywords(
             args, kwargs, "O!O|$OOOOOKKdpppOOOp:Replay", KEYWORDS(names),
             state->vcpu_type, &vcpu, &snapshot, &arg[0], &arg[1], &arg[2],
             &arg[3], &arg[4], &exits, &stop_sp, &limit, &wants, &strict,
             &whole, &console, &arg[5], &arg[6], &registers) &&
         quiet_vcpu(vcpu) && snapshot_check(state, snapshot);
    if (ok && console != Py_None && !console_native(state, console, &native)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "console is a Console or None");
        ok = false;
    }
    if (ok)
        self = (struct replay *)type->tp_alloc(type, 0);
    if (self) {
        self->vcpu = (struct vcpu *)Py_NewRef(vcpu);
        self->snapshot = Py_NewRef(snapshot);
        self->console = native.dev ? Py_NewRef(console) : NULL;
        self->replay.vm = &self->vcpu->vm->vm;
        self->replay.cpu = &self->vcpu->cpu;
        self->replay.snap = snapshot_check(state, snapshot);
        self->replay.con = native.dev;
        self->replay.until.exits = exits;
        self->replay.stop_sp = stop_sp;
        self->replay.wants = wants && native.dev;
        self->replay.strict = strict;
        self->replay.whole = whole;
        self->replay.want_regs = registers;
        if (fill_in(self, arg, limit) || start(self))
            Py_CLEAR(self);
    }
    Py_XDECREF(empty);
    return (PyObject *)self;
}

static void
finish(struct replay *self)
{
    if (!self->ready)
        return;
    self->ready = false;
    if (self->vcpu->closed || self->vcpu->generation != fork_generation)
        self->replay.armed = false; /* there is no vCPU to take stops off */
    vmm_replay_fini(&self->replay);
}

static void
replay_dealloc(PyObject *op)
{
    struct replay *self = (struct replay *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (self->vcpu)
        finish(self);
    free(self->replay.unseen);
    free(self->replay.block);
    free(self->replay.reached);
    Py_XDECREF(self->vcpu);
    Py_XDECREF(self->snapshot);
    Py_XDECREF(self->console);
    type->tp_free(op);
    Py_DECREF(type);
}

static int
replay_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct replay *self = (struct replay *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->vcpu);
    Py_VISIT(self->snapshot);
    Py_VISIT(self->console);
    return 0;
}

static struct replay *
open_replay(PyObject *op)
{
    struct replay *self = (struct replay *)op;

    if (self->ready)
        return quiet_vcpu((PyObject *)self->vcpu) ? self : NULL;
    raise_closed(op);
    return NULL;
}

/* -- turns ----------------------------------------------------------------- */

/* Something that nobody asked for, and which is no kick. */
static bool
is_bad(const struct vmm_turn *turn)
{
    if (turn->flags & (VMM_TURN_TIMEOUT | VMM_TURN_IDLE | VMM_TURN_OWNER))
        return true;
    return turn->reason != VMM_EXIT_DEBUG && turn->reason != VMM_EXIT_STOP &&
           turn->reason != VMM_EXIT_UNTIL;
}

static bool
is_reported(const struct vmm_turn *turn, int report)
{
    if (report == REPORT_ALL || is_bad(turn))
        return true;
    return report == REPORT_NEWS && (turn->flags & VMM_TURN_NEW);
}

/* What was collected of an end: kvm_regs and memory, each bytes or None. */
static PyObject *
collected(const struct replay *self, const struct vmm_turn *turn)
{
    bool there = !(turn->flags & VMM_TURN_OWNER);
    Py_ssize_t regs = sizeof turn->regs;
    Py_ssize_t len = (Py_ssize_t)self->replay.take_len;

    return Py_BuildValue(
        "y#y#",
        there && self->replay.want_regs ? (const char *)&turn->regs : NULL,
        regs, there && len ? (const char *)turn->taken : NULL, len);
}

/* (index, reason, flags, code, val, pc, found, collected) of those that are
 * reported; the last is None or what collected() makes. */
static int
report_turns(const struct replay *self, PyObject *list, Py_ssize_t first,
             const struct vmm_turn *turn, int count, int report)
{
    bool collects = self->replay.want_regs || self->replay.takes;

    for (int i = 0; i < count; i++) {
        const struct vmm_turn *t = &turn[i];
        PyObject *item;
        int err;

        if (!is_reported(t, report))
            continue;
        item = Py_BuildValue(
            "niIKKKIN", first + i, (int)t->reason, t->flags,
            (unsigned long long)t->code, (unsigned long long)t->val,
            (unsigned long long)t->pc, t->found,
            collects ? collected(self, t) : Py_NewRef(Py_None));
        err = item ? PyList_Append(list, item) : -1;
        Py_XDECREF(item);
        if (err)
            return -1;
    }
    return 0;
}

/* Borrows the bytes of a batch: the caller holds the list as a tuple. */
static int
borrow(struct replay *self, PyObject *tuple, Py_ssize_t first, unsigned count,
       struct vmm_input *input)
{
    for (unsigned i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(tuple, first + i);

        if (!PyBytes_Check(item)) {
            PyErr_Format(PyExc_TypeError, "an input is bytes, not %.80s",
                         Py_TYPE(item)->tp_name);
            return -1;
        }
        input[i].data = PyBytes_AS_STRING(item);
        input[i].len = (size_t)PyBytes_GET_SIZE(item);
        if (input[i].len > self->replay.room) {
            PyErr_Format(PyExc_ValueError,
                         "an input of %zd bytes is more than max_size, %llu",
                         PyBytes_GET_SIZE(item),
                         (unsigned long long)self->replay.room);
            return -1;
        }
    }
    return 0;
}

/*
 * One batch. How many turns are done; -1 with an exception. 0: the vCPU was
 * kicked.
 */
static int
run_batch(struct replay *self, const struct vmm_input *input, unsigned count,
          struct vmm_turn *turn)
{
    bool kicked = false;
    int done;

    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        done = vmm_replay_run(&self->replay, input, count, turn, &kicked);
        Py_END_ALLOW_THREADS
        if (done)
            break;
        if (PyErr_CheckSignals()) {
            vmm_replay_left(&self->replay);
            return -1;
        }
        if (kicked || self->vcpu->closing) {
            vmm_replay_left(&self->replay);
            return 0;
        }
    }
    if (done == -EXDEV)
        PyErr_SetString(PyExc_ValueError,
                        "the machine is not at the snapshot any more");
    else if (done < 0)
        raise_host(self->replay.cpu->call, -done);
    return done < 0 ? -1 : done;
}

static Py_ssize_t
run_all(struct replay *self, PyObject *tuple, Py_ssize_t first, int report,
        PyObject *list, struct vmm_turn *turn)
{
    struct vmm_input input[VMM_REPLAY_BATCH];
    Py_ssize_t count = PyTuple_GET_SIZE(tuple), at = first;

    while (at < count) {
        unsigned most = (unsigned)vmm_min(count - at, VMM_REPLAY_BATCH);
        int done;

        if (borrow(self, tuple, at, most, input))
            return -1;
        done = run_batch(self, input, most, turn);
        if (done < 0 || report_turns(self, list, at, turn, done, report))
            return -1;
        at += done;
        if (!done || self->replay.touched)
            break;
    }
    return at;
}

/* Room for the turns of a batch, with what is collected of each behind them;
 * to be freed. NULL with an exception. */
static struct vmm_turn *
make_turns(const struct replay *self)
{
    size_t len = self->replay.take_len;
    struct vmm_turn *turn = PyMem_Calloc(VMM_REPLAY_BATCH, sizeof *turn + len);
    uint8_t *taken = (uint8_t *)(turn + VMM_REPLAY_BATCH);

    if (!turn)
        PyErr_NoMemory();
    for (unsigned i = 0; turn && len && i < VMM_REPLAY_BATCH; i++)
        turn[i].taken = taken + i * len;
    return turn;
}

PyDoc_STRVAR(
    run_doc,
    "run($self, inputs, first, report, /)\n--\n\n"
    "Do a turn for each input from number `first` on: (next, turns).\n\n"
    "`inputs`: a sequence of bytes. `next` is the first one not done: after a "
    "kick, or behind\na turn that has used a device, whose state is then to be "
    "put back (`touched`). `turns`:\na list of (index, reason, flags, code, "
    "val, pc, found, collected) of those that `report`\nwants: 0 what is new "
    "or "
    "bad, 1 all, 2 what is bad. `collected`: None, or bytes\nof kvm_regs and "
    "of memory, each None unless it was asked for and the turn finished.");

static PyObject *
replay_run(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct replay *self = open_replay(op);
    struct vmm_vcpu *previous;
    PyObject *tuple, *list, *ret = NULL;
    struct vmm_turn *turn;
    uint64_t first, report;
    Py_ssize_t next;
    int err;

    if (!self || arguments("run", nargs, 3) ||
        as_uint(args[1], "first", PY_SSIZE_T_MAX, &first) ||
        as_uint(args[2], "report", REPORT_BAD, &report))
        return NULL;
    if (self->vcpu->runner)
        return PyErr_Format(PyExc_RuntimeError, "vCPU %u is running already",
                            self->vcpu->cpu.index);
    tuple = PySequence_Tuple(args[0]);
    list = tuple ? PyList_New(0) : NULL;
    turn = list ? make_turns(self) : NULL;
    if (!turn) {
        Py_XDECREF(tuple);
        Py_XDECREF(list);
        return NULL;
    }
    err = tick_enter(&self->vcpu->cpu, &previous);
    if (err) {
        raise_host("timer_create", -err);
    } else {
        uint64_t limit_ns = self->replay.limit_ns;

        Py_INCREF(op);
        self->vcpu->runner = PyThread_get_thread_ident();
        tick_arm(limit_ns ? vmm_min(limit_ns, TICK_FIRST_NS) : TICK_FIRST_NS);
        next = run_all(self, tuple, (Py_ssize_t)first, (int)report, list, turn);
        tick_leave(&self->vcpu->cpu, previous);
        self->vcpu->runner = 0;
        if (next >= 0)
            ret = Py_BuildValue("nO", next, list);
        if (self->vcpu->closing)
            vcpu_close(self->vcpu);
        Py_DECREF(op);
    }
    PyMem_Free(turn);
    Py_DECREF(tuple);
    Py_DECREF(list);
    return ret;
}

PyDoc_STRVAR(look_doc,
             "look($self, /)\n--\n\n"
             "How many bytes of the maps are new, after a run by others.");

static PyObject *
replay_look(PyObject *op, PyObject *ignored)
{
    struct replay *self = open_replay(op);
    uint32_t found = 0;
    int err;

    (void)ignored;
    if (!self)
        return NULL;
    err = vmm_replay_look(&self->replay, &found);
    if (err)
        return raise_host(self->replay.cpu->call, -err);
    return PyLong_FromUnsignedLong(found);
}

PyDoc_STRVAR(copy_map_doc,
             "copy_map($self, buffer, /)\n--\n\n"
             "The counters of the last turn, into a writable buffer of zeros.\n"
             "\nOnly pages that it has written are copied. ValueError when "
             "the map is larger.");

static PyObject *
replay_copy_map(PyObject *op, PyObject *arg)
{
    struct replay *self = open_replay(op);
    Py_buffer view;
    bool fits;

    if (!self || PyObject_GetBuffer(arg, &view, PyBUF_WRITABLE))
        return NULL;
    fits = (uint64_t)view.len >= self->replay.map_len;
    if (fits)
        vmm_replay_copy_map(&self->replay, view.buf);
    else
        PyErr_Format(PyExc_ValueError, "the map has %llu bytes, the buffer %zd",
                     (unsigned long long)self->replay.map_len, view.len);
    PyBuffer_Release(&view);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(left_doc,
             "left($self, /)\n--\n\n"
             "The machine has run otherwise, and devices are as in the "
             "snapshot.");

static PyObject *
replay_left(PyObject *op, PyObject *ignored)
{
    struct replay *self = open_replay(op);

    (void)ignored;
    if (!self)
        return NULL;
    vmm_replay_left(&self->replay);
    self->replay.touched = false;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Take the stops off the vCPU. Twice is once.");

static PyObject *
replay_close(PyObject *op, PyObject *ignored)
{
    struct replay *self = (struct replay *)op;

    (void)ignored;
    if (self->ready && self->vcpu->runner)
        return PyErr_Format(PyExc_RuntimeError, "vCPU %u runs",
                            self->vcpu->cpu.index);
    finish(self);
    Py_RETURN_NONE;
}

static PyMethodDef replay_methods[] = {
    {"run", (PyCFunction)(void (*)(void))replay_run, METH_FASTCALL, run_doc},
    {"look", replay_look, METH_NOARGS, look_doc},
    {"copy_map", replay_copy_map, METH_O, copy_map_doc},
    {"left", replay_left, METH_NOARGS, left_doc},
    {"close", replay_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

/* -- what it knows --------------------------------------------------------- */

static PyObject *
get_count(PyObject *op, void *offset)
{
    const char *at = (const char *)op + (size_t)offset;

    return PyLong_FromUnsignedLongLong(*(const uint64_t *)(const void *)at);
}

static PyObject *
get_whole(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct replay *)op)->replay.whole);
}

static PyObject *
get_touched(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct replay *)op)->replay.touched);
}

static PyObject *
get_trusting(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct replay *)op)->replay.trusting);
}

static int
set_trusting(PyObject *op, PyObject *value, void *closure)
{
    int trusting = value ? PyObject_IsTrue(value) : 0;

    (void)closure;
    if (trusting < 0)
        return -1;
    ((struct replay *)op)->replay.trusting = trusting;
    return 0;
}

static PyObject *
get_why(PyObject *op, void *closure)
{
    const char *why = ((struct replay *)op)->replay.why;

    (void)closure;
    if (!why)
        Py_RETURN_NONE;
    return PyUnicode_FromString(why);
}

static PyObject *
get_unseen(PyObject *op, void *closure)
{
    const struct vmm_replay *replay = &((struct replay *)op)->replay;

    (void)closure;
    return PyBytes_FromStringAndSize(
        (const char *)replay->unseen,
        replay->unseen ? (Py_ssize_t)replay->map_len : 0);
}

static PyObject *
get_reached(PyObject *op, void *closure)
{
    const struct vmm_replay *replay = &((struct replay *)op)->replay;
    PyObject *list = PyList_New(replay->reached_count);

    (void)closure;
    for (unsigned i = 0; list && i < replay->reached_count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(
            replay->block[replay->reached[i]].address);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static int
set_unseen(PyObject *op, PyObject *value, void *closure)
{
    struct replay *self = open_replay(op);
    Py_buffer view;
    int err = -1;

    (void)closure;
    if (!self)
        return -1;
    if (!value || PyObject_GetBuffer(value, &view, PyBUF_SIMPLE))
        return -1;
    if ((uint64_t)view.len == self->replay.map_len) {
        if (view.len)
            memcpy(self->replay.unseen, view.buf, (size_t)view.len);
        err = 0;
    } else {
        PyErr_Format(PyExc_ValueError, "unseen has %zd bytes, the map %llu",
                     view.len, (unsigned long long)self->replay.map_len);
    }
    PyBuffer_Release(&view);
    return err;
}

#define COUNT(name) ((void *)offsetof(struct replay, replay.name))

static PyGetSetDef replay_getset[] = {
    {"turns", get_count, NULL, "Turns done, those that were done again too.",
     COUNT(turns)},
    {"pages", get_count, NULL, "Pages copied back.", COUNT(pages)},
    {"whole", get_whole, NULL,
     "Whether all of the vCPU's state is put back before each turn.", NULL},
    {"why", get_why, NULL,
     "What of the state was found changed, so that `whole` came on; or None.",
     NULL},
    {"trusting", get_trusting, set_trusting,
     "Whether ends of plain turns are believed without a look at the state.",
     NULL},
    {"touched", get_touched, NULL,
     "Whether devices are to be put back before the next run().", NULL},
    {"reached", get_reached, NULL,
     "The addresses of the blocks that were reached, in that order.", NULL},
    {"unseen", get_unseen, set_unseen,
     "A byte for each one of the map: a bit for each class of counts (1, 2, "
     "3, 4-7, 8-15,\n16-31, 32-127, more) that was not seen yet.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    replay_doc,
    "Replay(vcpu, snapshot, *, into=(), length=None, stops=(), map=(), "
    "write=None, exits=0, stop_sp=0, limit=0.0, wants=False, strict=True, "
    "whole=False, console=None, blocks=(), take=(), registers=False)\n--\n\n"
    "The reset loop: from a snapshot, with an input, to an end, and again.\n\n"
    "`into`, `map`: pieces of RAM, (gpa, len) each. `length`: where an input's "
    "length goes, a\nregister by its number in struct kvm_regs or (gpa, len). "
    "A turn ends before the\ninstruction at one of `stops` (with rsp `stop_sp` "
    "unless 0), after a `write` to (pio,\naddr, len), after `exits` exits, "
    "with "
    "a text that the console wants (`wants`), after\n`limit` seconds, or by "
    "itself. `whole`: put back all of the state each time instead of\nlooking "
    "at "
    "it behind each 256 turns (csrc/vmm/replay.h). `blocks`: (address, gpa, "
    "byte) each, at\nwhich the snapshot has an int3. `take`: pieces of RAM, 64 "
    "KiB at most, and "
    "`registers`:\nwhat is collected of each end. Raises ValueError, "
    "OSError.\n\nThreads: one.");

static PyType_Slot replay_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)replay_doc},
    {Py_tp_new, replay_new},
    {Py_tp_dealloc, replay_dealloc},
    {Py_tp_traverse, replay_traverse},
    {Py_tp_methods, replay_methods},
    {Py_tp_getset, replay_getset},
    {0, NULL},
};

PyType_Spec replay_spec = {
    .name = "pyvmm._vmm.Replay",
    .basicsize = sizeof(struct replay),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = replay_slots,
};

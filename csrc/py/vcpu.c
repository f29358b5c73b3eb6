/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu.c - VCPU: its state, and run(), the loop between core and Python */
#include <math.h>
#include <string.h>

#include "../vmm/x86_start.h"
#include "py.h"

/* -- Exit ------------------------------------------------------------------ */

static PyStructSequence_Field exit_fields[] = {
    {"reason", "one of the EXIT_ constants"},
    {"pio", "the access was to a port"},
    {"write", "the access was a write"},
    {"size", "bytes of the access, 0: it was none"},
    {"addr", "port or address of the access"},
    {"value", "what was written, or what a native device answered"},
    {"device", "whose range it was, or None"},
    {"rip", "address of the instruction, None: see the registers"},
    {"code", "hardware reason, suberror, event type or dr6"},
    {"pc", "DEBUG: linear address of the instruction"},
    {"insn", "INTERNAL_ERROR: bytes of the instruction"},
    {"data", "INTERNAL_ERROR, SYSTEM_EVENT: what else KVM said"},
    {"kvm_reason", "KVM_EXIT_ number"},
    {NULL, NULL},
};

PyStructSequence_Desc exit_desc = {
    .name = "pyvmm._vmm.Exit",
    .doc = "Why VCPU.run() returned.",
    .fields = exit_fields,
    .n_in_sequence = 13,
};

/* Steals `items`, which may hold NULL for a failed conversion. */
static PyObject *
exit_build(struct state *state, PyObject *const items[13])
{
    PyObject *ret = PyStructSequence_New(state->exit_type);
    bool ok = ret;

    for (int i = 0; i < 13; i++) {
        ok = ok && items[i];
        if (ret)
            PyStructSequence_SET_ITEM(ret, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!ok)
        Py_CLEAR(ret);
    return ret;
}

static PyObject *
exit_data(const struct vmm_exit *exit)
{
    PyObject *data = PyTuple_New(exit->ndata);

    for (unsigned i = 0; data && i < exit->ndata; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(exit->data[i]);

        if (!item)
            Py_CLEAR(data);
        else
            PyTuple_SET_ITEM(data, i, item);
    }
    return data;
}

/* Whose range the exit names, as long as it is still there. */
static PyObject *
exit_device(struct vcpu *self, const struct vmm_exit *exit)
{
    struct ports *ports = exit->pio ? &self->vm->pio : &self->vm->mmio;
    struct vmm_range range;

    if (exit->len && exit->reason != VMM_EXIT_UNCLAIMED &&
        !vmm_bus_find(ports->bus, exit->addr, exit->len, &range))
        return Py_NewRef(((struct claim *)range.owner)->device);
    return Py_NewRef(Py_None);
}

static PyObject *
exit_new(struct vcpu *self, int reason, const struct vmm_exit *exit,
         const uint64_t *rip)
{
    PyObject *items[13] = {
        PyLong_FromLong(reason),
        PyBool_FromLong(exit->pio),
        PyBool_FromLong(exit->write),
        PyLong_FromUnsignedLong(exit->len),
        PyLong_FromUnsignedLongLong(exit->addr),
        PyLong_FromUnsignedLongLong(exit->val),
        exit_device(self, exit),
        rip ? PyLong_FromUnsignedLongLong(*rip) : Py_NewRef(Py_None),
        PyLong_FromUnsignedLongLong(exit->code),
        PyLong_FromUnsignedLongLong(exit->pc),
        PyBytes_FromStringAndSize((const char *)exit->insn, exit->insn_len),
        exit_data(exit),
        PyLong_FromUnsignedLong(exit->kvm_reason),
    };

    return exit_build(state_of(Py_TYPE(self)), items);
}

/* -- life ------------------------------------------------------------------ */

static PyObject *
vcpu_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"vm", "cpus", NULL};
    PyObject *vm_arg;
    struct vcpu *self;
    unsigned cpus = 1;
    struct vm *vm;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$I:VCPU", KEYWORDS(names),
                                     &vm_arg, &cpus))
        return NULL;
    vm = vm_check(state_of(type), vm_arg);
    if (!vm)
        return NULL;
    if (cpus < 1 || cpus > vm->kvm->kvm.max_vcpus || cpus <= vm->vm.vcpus)
        return PyErr_Format(PyExc_ValueError,
                            "cpus %u is outside %u..%u, the vCPUs of this VM "
                            "and the host's limit",
                            cpus, vm->vm.vcpus + 1, vm->kvm->kvm.max_vcpus);
    self = (struct vcpu *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->generation = fork_generation;
    self->closed = true;
    err = vmm_vcpu_init(&self->cpu, &vm->vm, cpus);
    if (err) {
        raise_host(self->cpu.call, -err);
        Py_DECREF(self);
        return NULL;
    }
    self->closed = false;
    self->vm = (struct vm *)Py_NewRef(vm);
    self->next = vm->vcpus;
    vm->vcpus = self;
    return (PyObject *)self;
}

void
vcpu_close(struct vcpu *self)
{
    if (self->closed)
        return;
    if (self->runner) {
        self->closing = true;
        vmm_vcpu_kick(&self->cpu, kick_signal());
        return;
    }
    self->closed = true;
    reap_vcpu(vmm_vcpu_detach(&self->cpu));
    vm_forget(self->vm, self);
}

static int
vcpu_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct vcpu *self = (struct vcpu *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->vm);
    Py_VISIT(self->trace);
    return 0;
}

static int
vcpu_clear(PyObject *op)
{
    struct vcpu *self = (struct vcpu *)op;

    vcpu_close(self);
    Py_CLEAR(self->trace);
    Py_CLEAR(self->vm);
    return 0;
}

static void
vcpu_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    vcpu_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
vcpu_repr(PyObject *op)
{
    struct vcpu *self = (struct vcpu *)op;

    if (self->closed)
        return PyUnicode_FromString("<VCPU closed>");
    return PyUnicode_FromFormat("<VCPU %u%s, %llu exits>", self->cpu.index,
                                self->runner ? " running" : "",
                                (unsigned long long)self->cpu.exits);
}

/* NULL with an exception unless it is open and of this process. */
static struct vcpu *
open_vcpu(PyObject *op)
{
    struct vcpu *self = (struct vcpu *)op;

    if (self->closed)
        raise_closed(op);
    else if (self->generation != fork_generation)
        raise_forked();
    else
        return self;
    return NULL;
}

/* As well when another thread runs it: its ioctls would wait for that. */
static struct vcpu *
quiet_vcpu(PyObject *op)
{
    struct vcpu *self = open_vcpu(op);

    if (!self || !self->runner || self->runner == PyThread_get_thread_ident())
        return self;
    PyErr_Format(PyExc_RuntimeError,
                 "vCPU %u runs on another thread: stop it first",
                 self->cpu.index);
    return NULL;
}

/* What a core function answered: None, or an exception. */
static PyObject *
none_or_raise(struct vcpu *self, int err)
{
    if (err == -EBUSY)
        return PyErr_Format(PyExc_RuntimeError,
                            "vCPU %u is in the middle of an instruction: its "
                            "state can be set once run() has returned",
                            self->cpu.index);
    if (err < 0)
        return raise_host(self->cpu.call, -err);
    Py_RETURN_NONE;
}

/* -- run ------------------------------------------------------------------- */

/* "read of 4 bytes at 0xd0000004, rip 0x100123 (vCPU 0)" */
static void
note_access(struct vcpu *self, const struct vmm_exit *exit)
{
    struct kvm_regs regs = {0};
    char text[160];

    vmm_vcpu_get_regs(&self->cpu, &regs);
    snprintf(text, sizeof text, "%s of %u byte%s %s %#llx%s%.*llx, rip %#llx",
             exit->write ? "write" : "read", exit->len,
             exit->len == 1 ? "" : "s", exit->pio ? "at port" : "at",
             (unsigned long long)exit->addr, exit->write ? " = 0x" : "",
             exit->write ? 1 : 0,
             exit->write ? (unsigned long long)exit->val : 0ULL,
             (unsigned long long)regs.rip);
    add_note("in the guest's %s, vCPU %u", text, self->cpu.index);
}

/* An access of the guest that is for Python. 0, or -1 with an exception. */
static int
dispatch(struct vcpu *self, const struct vmm_exit *exit)
{
    const struct ports *ports = exit->pio ? &self->vm->pio : &self->vm->mmio;
    uint64_t val = vmm_ones(exit->len);
    int err = ports_dispatch(ports, exit, &val);

    if (err == -ENOENT) { /* the device went away meanwhile */
        self->vm->unclaimed++;
        err = 0;
    }
    if (!err && !exit->write && exit->reason == VMM_EXIT_ACCESS)
        vmm_vcpu_answer(&self->cpu, exit, val);
    return err;
}

/* What is left of an access goes to its device. 0, or -1 with an exception. */
static int
settle_step(struct vcpu *self, bool *done)
{
    struct vmm_exit exit;
    int err;

    Py_BEGIN_ALLOW_THREADS
    err = vmm_vcpu_settle(&self->cpu, &exit);
    Py_END_ALLOW_THREADS
    *done = err || exit.reason == VMM_EXIT_NONE;
    if (err) {
        raise_host(self->cpu.call, -err);
        return -1;
    }
    if (exit.reason != VMM_EXIT_ACCESS && exit.reason != VMM_EXIT_OWNER)
        return 0;
    err = dispatch(self, &exit);
    if (err)
        note_access(self, &exit);
    return err;
}

/*
 * Finishes the access that the last exit was part of. 0, or -1 with an
 * exception: the first one, be it set before, with a note of each later one.
 */
static int
settle(struct vcpu *self)
{
    bool done = false;

    while (!done) {
        PyObject *type, *value, *trace, *later[3];

        PyErr_Fetch(&type, &value, &trace);
        settle_step(self, &done);
        if (!type)
            continue;
        PyErr_Fetch(&later[0], &later[1], &later[2]);
        PyErr_NormalizeException(&later[0], &later[1], &later[2]);
        PyErr_Restore(type, value, trace);
        if (later[0])
            add_note("then, while the access was finished: %R", later[1]);
        for (int i = 0; i < 3; i++)
            Py_XDECREF(later[i]);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* Calls the trace function, if there is one, with this exit. */
static int
trace(struct vcpu *self, const struct vmm_exit *exit)
{
    PyObject *arg, *ret;

    if (!self->trace)
        return 0;
    arg = exit_new(self, exit->reason, exit, NULL);
    if (!arg)
        return -1;
    ret = PyObject_CallOneArg(self->trace, arg);
    Py_DECREF(arg);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

/* The run ends here, for `reason`. */
static PyObject *
finish(struct vcpu *self, int reason, const struct vmm_exit *exit)
{
    struct kvm_regs regs;
    uint64_t *rip = NULL;
    PyObject *ret;

    /* Once the access is settled rip is that of the next instruction. */
    if (reason == VMM_EXIT_UNCLAIMED && !vmm_vcpu_get_regs(&self->cpu, &regs))
        rip = (uint64_t *)&regs.rip;
    ret = exit_new(self, reason, exit, rip);
    if (ret && settle(self))
        Py_CLEAR(ret);
    return ret;
}

/* The run ends with the exception that is set. */
static PyObject *
fail(struct vcpu *self, const struct vmm_exit *exit)
{
    if (exit->len)
        note_access(self, exit);
    settle(self);
    return NULL;
}

/*
 * Looks at a vCPU that has not come out by itself. Returns the reason to end
 * the run, 0 when there is none, or -errno.
 *
 * A machine of several vCPUs has ended when none of them is awake: each was
 * found so by a look made after the last one to fall asleep had done that.
 */
static int
look(struct vcpu *self)
{
    uint64_t latest = 0, now = vmm_now_ns();
    enum vmm_vcpu_mood mood;
    bool asleep = true;
    int err = vmm_vcpu_mood(&self->cpu, &mood);

    if (err)
        return err;
    self->looked_ns = now;
    if (mood == VMM_VCPU_AWAKE) {
        self->asleep_ns = 0;
        return 0;
    }
    if (mood == VMM_VCPU_IDLE &&
        __atomic_load_n(&self->vm->vm.wakers, __ATOMIC_RELAXED)) {
        self->asleep_ns = 0;
        return 0;
    }
    if (!self->asleep_ns)
        self->asleep_ns = now;
    for (const struct vcpu *cpu = self->vm->vcpus; cpu; cpu = cpu->next) {
        if (!cpu->asleep_ns)
            return 0;
        if (cpu->asleep_ns > latest)
            latest = cpu->asleep_ns;
    }
    for (const struct vcpu *cpu = self->vm->vcpus; cpu; cpu = cpu->next)
        asleep = asleep && cpu->looked_ns >= latest;
    if (!asleep || mood == VMM_VCPU_PARKED)
        return 0;
    return mood == VMM_VCPU_IDLE ? EXIT_IDLE : VMM_EXIT_HALT;
}

/*
 * A kick, a tick or a signal. Returns the reason to end the run, 0 when there
 * is none, -1 with an exception.
 */
static int
interrupted(struct vcpu *self, bool kicked, uint64_t deadline)
{
    int reason;

    if (PyErr_CheckSignals())
        return -1;
    if (kicked || self->closing)
        return EXIT_KICK;
    if (deadline) {
        uint64_t now = vmm_now_ns();

        if (now >= deadline)
            return EXIT_TIMEOUT;
        if (deadline - now < TICK_NS)
            tick_arm(deadline - now);
    }
    reason = look(self);
    if (reason < 0) {
        raise_host(self->cpu.call, -reason);
        return -1;
    }
    return reason;
}

static PyObject *
run_loop(struct vcpu *self, uint64_t deadline)
{
    struct vmm_exit exit = {0};
    int err, reason;

    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        err = vmm_vcpu_run(&self->cpu, &exit);
        Py_END_ALLOW_THREADS
        if (err)
            return raise_host(self->cpu.call, -err);
        if (self->trace && exit.reason != VMM_EXIT_INTR && trace(self, &exit))
            return fail(self, &exit);
        switch (exit.reason) {
        case VMM_EXIT_NATIVE:
            break;
        case VMM_EXIT_ACCESS:
        case VMM_EXIT_OWNER:
            if (dispatch(self, &exit))
                return fail(self, &exit);
            break;
        case VMM_EXIT_UNCLAIMED:
            if (self->vm->strict)
                return finish(self, exit.reason, &exit);
            self->vm->unclaimed++;
            break;
        case VMM_EXIT_INTR:
            exit.len = 0;
            reason = interrupted(self, exit.code, deadline);
            exit.code = 0;
            if (reason < 0)
                return fail(self, &exit);
            if (reason)
                return finish(self, reason, &exit);
            break;
        default:
            return finish(self, exit.reason, &exit);
        }
    }
}

/* None: no deadline. Else seconds from now; 0 or -1 with an exception. */
static int
as_deadline(PyObject *arg, uint64_t *deadline, uint64_t *first_ns)
{
    double seconds;

    *deadline = 0;
    *first_ns = TICK_FIRST_NS;
    if (arg == Py_None)
        return 0;
    seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(seconds) || seconds < 0) {
        PyErr_Format(PyExc_ValueError,
                     "timeout %R is not a number of seconds from 0 on", arg);
        return -1;
    }
    if (seconds > 1e9)
        return 0;
    *deadline = vmm_now_ns() + (uint64_t)(seconds * 1e9) + 1;
    *first_ns = vmm_min(*first_ns, (uint64_t)(seconds * 1e9));
    return 0;
}

PyDoc_STRVAR(
    run_doc,
    "run(timeout=None)\n--\n\n"
    "Run the guest on this thread until something ends the run.\n\n"
    "Accesses to devices are handled in C or by their methods; the rest is "
    "returned\nas an Exit. `timeout` is in seconds of wall time "
    "(EXIT_TIMEOUT). "
    "When it returns\nor raises, no access is unfinished: registers are those "
    "of the next instruction,\nand run() may be called again. Exceptions of "
    "devices and of signal handlers\nleave it unchanged, with a note naming "
    "the access. Raises OSError when the host\nrefuses, RuntimeError when it "
    "runs already.");

static PyObject *
vcpu_run(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"timeout", NULL};
    struct vcpu *self = open_vcpu(op);
    struct vmm_vcpu *previous;
    uint64_t deadline, first_ns;
    PyObject *timeout = Py_None, *ret;
    int err;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|O:run", KEYWORDS(names),
                                     &timeout) ||
        as_deadline(timeout, &deadline, &first_ns))
        return NULL;
    if (self->runner)
        return PyErr_Format(PyExc_RuntimeError, "vCPU %u is running already",
                            self->cpu.index);
    err = tick_enter(&self->cpu, &previous);
    if (err)
        return raise_host("timer_create", -err);
    Py_INCREF(op);
    self->runner = PyThread_get_thread_ident();
    self->asleep_ns = self->looked_ns = 0;
    self->cpu.trace = self->trace != NULL;
    tick_arm(first_ns);
    ret = run_loop(self, deadline);
    tick_leave(&self->cpu, previous);
    self->runner = 0;
    if (self->closing) {
        PyObject *type, *value, *traceback;

        PyErr_Fetch(&type, &value, &traceback);
        vcpu_close(self);
        PyErr_Restore(type, value, traceback);
    }
    Py_DECREF(op);
    return ret;
}

PyDoc_STRVAR(kick_doc,
             "kick()\n--\n\n"
             "Make the current or next run() return EXIT_KICK.\n\n"
             "From any thread. Never lost; several before a run() are one.");

static PyObject *
vcpu_kick(PyObject *op, PyObject *ignored)
{
    struct vcpu *self = open_vcpu(op);

    (void)ignored;
    if (!self)
        return NULL;
    vmm_vcpu_kick(&self->cpu, kick_signal());
    Py_RETURN_NONE;
}

/* -- state ----------------------------------------------------------------- */

/* A getter and a setter by name, with a buffer of the structure's size. */
struct part {
    const char *name;
    size_t size; /* 0: kvm->xsave_size */
    int (*get)(struct vmm_vcpu *cpu, void *out);
    int (*set)(struct vmm_vcpu *cpu, const void *state);
};

#define PART(name)                                                             \
    static int get_##name(struct vmm_vcpu *cpu, void *out)                     \
    {                                                                          \
        return vmm_vcpu_get_##name(cpu, out);                                  \
    }                                                                          \
    static int set_##name(struct vmm_vcpu *cpu, const void *state)             \
    {                                                                          \
        return vmm_vcpu_set_##name(cpu, state);                                \
    }

PART(regs)
PART(sregs)
PART(events)
PART(fpu)
PART(xsave)
PART(xcrs)
PART(debugregs)
PART(lapic)

static int
get_mp_state(struct vmm_vcpu *cpu, void *out)
{
    return vmm_vcpu_get_mp_state(cpu, out);
}

static int
set_mp_state(struct vmm_vcpu *cpu, const void *state)
{
    uint32_t val;

    memcpy(&val, state, sizeof val);
    return vmm_vcpu_set_mp_state(cpu, val);
}

static const struct part parts[] = {
    {"regs", sizeof(struct kvm_regs), get_regs, set_regs},
    {"sregs", sizeof(struct kvm_sregs), get_sregs, set_sregs},
    {"events", sizeof(struct kvm_vcpu_events), get_events, set_events},
    {"fpu", sizeof(struct kvm_fpu), get_fpu, set_fpu},
    {"xsave", 0, get_xsave, set_xsave},
    {"xcrs", sizeof(struct kvm_xcrs), get_xcrs, set_xcrs},
    {"debugregs", sizeof(struct kvm_debugregs), get_debugregs, set_debugregs},
    {"lapic", sizeof(struct kvm_lapic_state), get_lapic, set_lapic},
    {"mp_state", sizeof(uint32_t), get_mp_state, set_mp_state},
};

static const struct part *
find_part(PyObject *name)
{
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "the name of a state is a str");
        return NULL;
    }
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (PyUnicode_CompareWithASCIIString(name, parts[i].name) == 0)
            return &parts[i];
    }
    PyErr_Format(PyExc_ValueError,
                 "%R is none of regs, sregs, events, fpu, xsave, xcrs, "
                 "debugregs, lapic, mp_state",
                 name);
    return NULL;
}

static size_t
part_size(const struct vcpu *self, const struct part *part)
{
    return part->size ? part->size : self->vm->kvm->kvm.xsave_size;
}

PyDoc_STRVAR(
    get_doc,
    "get(what, /)\n--\n\n"
    "A part of the state, as the bytes of the kernel's structure.\n\n"
    "`what`: regs, sregs, events, fpu, xsave, xcrs, debugregs, lapic "
    "(<linux/kvm.h>),\nor mp_state (4 bytes). In a device's method rip is that "
    "of the accessing\ninstruction. Raises OSError, RuntimeError when another "
    "thread runs it.");

static PyObject *
vcpu_get(PyObject *op, PyObject *what)
{
    struct vcpu *self = quiet_vcpu(op);
    const struct part *part = self ? find_part(what) : NULL;
    PyObject *ret;
    int err;

    if (!part)
        return NULL;
    ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)part_size(self, part));
    if (!ret)
        return NULL;
    err = part->get(&self->cpu, PyBytes_AS_STRING(ret));
    if (err) {
        Py_DECREF(ret);
        return none_or_raise(self, err);
    }
    return ret;
}

PyDoc_STRVAR(
    set_doc,
    "set(what, state, /)\n--\n\n"
    "Set a part of the state from the bytes of the kernel's structure.\n\n"
    "Names as for get(). Raises ValueError when the size is wrong, OSError "
    "when the\nhost refuses, RuntimeError inside a device's method or when "
    "another thread runs it.");

static PyObject *
vcpu_set(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vcpu *self = quiet_vcpu(op);
    const struct part *part;
    Py_buffer state;
    PyObject *ret;

    if (!self || arguments("set", nargs, 2))
        return NULL;
    part = find_part(args[0]);
    if (!part || PyObject_GetBuffer(args[1], &state, PyBUF_SIMPLE))
        return NULL;
    if ((size_t)state.len == part_size(self, part))
        ret = none_or_raise(self, part->set(&self->cpu, state.buf));
    else
        ret = PyErr_Format(PyExc_ValueError, "%s has %zu bytes, not %zd",
                           part->name, part_size(self, part), state.len);
    PyBuffer_Release(&state);
    return ret;
}

/* Indices (and values) of MSRs from sequences; their number or -1. */
static Py_ssize_t
as_msrs(PyObject *indices, PyObject *values, uint32_t *index, uint64_t *value)
{
    Py_ssize_t count = PySequence_Size(indices);

    if (count < 0 || (values && PySequence_Size(values) < 0))
        return -1;
    if (count > VMM_VCPU_MAX_MSRS ||
        (values && PySequence_Size(values) != count)) {
        PyErr_Format(PyExc_ValueError,
                     "%zd MSRs: at most %u, and a value for each", count,
                     VMM_VCPU_MAX_MSRS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(indices, i);
        uint64_t msr = 0;
        int err = item ? as_uint(item, "MSR", UINT32_MAX, &msr) : -1;

        Py_XDECREF(item);
        if (err)
            return -1;
        index[i] = (uint32_t)msr;
        if (!values)
            continue;
        item = PySequence_GetItem(values, i);
        err = item ? as_uint(item, "value", UINT64_MAX, &value[i]) : -1;
        Py_XDECREF(item);
        if (err)
            return -1;
    }
    return count;
}

/* ValueError when the host stopped before the end of the list. */
static int
all_msrs(struct vcpu *self, int done, Py_ssize_t count, const uint32_t *index,
         const char *what)
{
    char text[40];

    if (done < 0) {
        none_or_raise(self, done);
        return -1;
    }
    if (done == count)
        return 0;
    snprintf(text, sizeof text, "%#x", index[done]);
    PyErr_Format(PyExc_ValueError, "the host refuses to %s MSR %s", what, text);
    return -1;
}

PyDoc_STRVAR(get_msrs_doc,
             "get_msrs(indices, /)\n--\n\n"
             "Values of up to 256 MSRs, in one ioctl.\n\n"
             "Raises ValueError naming the first one that the host refuses.");

static PyObject *
vcpu_get_msrs(PyObject *op, PyObject *indices)
{
    struct vcpu *self = quiet_vcpu(op);
    uint32_t index[VMM_VCPU_MAX_MSRS];
    uint64_t value[VMM_VCPU_MAX_MSRS];
    Py_ssize_t count;
    PyObject *list;

    if (!self)
        return NULL;
    count = as_msrs(indices, NULL, index, NULL);
    if (count < 0 ||
        all_msrs(self,
                 vmm_vcpu_get_msrs(&self->cpu, index, (unsigned)count, value),
                 count, index, "read"))
        return NULL;
    list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(value[i]);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

PyDoc_STRVAR(set_msrs_doc,
             "set_msrs(indices, values, /)\n--\n\n"
             "Set up to 256 MSRs, in one ioctl.\n\n"
             "Raises ValueError naming the first one that the host refuses; "
             "those before it\nare set.");

static PyObject *
vcpu_set_msrs(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vcpu *self = quiet_vcpu(op);
    uint32_t index[VMM_VCPU_MAX_MSRS];
    uint64_t value[VMM_VCPU_MAX_MSRS];
    Py_ssize_t count;

    if (!self || arguments("set_msrs", nargs, 2))
        return NULL;
    count = as_msrs(args[0], args[1], index, value);
    if (count < 0 ||
        all_msrs(self,
                 vmm_vcpu_set_msrs(&self->cpu, index, value, (unsigned)count),
                 count, index, "set"))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    start_doc,
    "start(mode, regs, tables=0)\n--\n\n"
    "Put the vCPU into a start mode: real, protected, long or user.\n\n"
    "`regs` is a struct kvm_regs whose rip is the entry point. The 64-bit "
    "modes (long is\nring 0, user is ring 3) need the address at which "
    "x86_tables() wrote. Raises\nValueError, OSError.\nSource: Intel SDM "
    "volume 3, 9.1.");

static PyObject *
vcpu_start(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"mode", "regs", "tables", NULL};
    static const char *const modes[] = {"real", "protected", "long", "user"};
    struct vcpu *self = quiet_vcpu(op);
    PyObject *tables_arg = NULL, *ret;
    struct kvm_regs regs;
    uint64_t tables = 0;
    const char *mode;
    Py_buffer buf;
    int which = 0, err;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "sy*|O:start",
                                     KEYWORDS(names), &mode, &buf, &tables_arg))
        return NULL;
    while (which < 4 && strcmp(modes[which], mode))
        which++;
    if (which == 4)
        PyErr_Format(PyExc_ValueError,
                     "mode '%s' is none of real, protected, long, user", mode);
    else if (buf.len != sizeof regs)
        PyErr_Format(PyExc_ValueError, "regs has %zu bytes, not %zd",
                     sizeof regs, buf.len);
    else if (tables_arg)
        as_uint(tables_arg, "tables", UINT64_MAX, &tables);
    if (!PyErr_Occurred())
        memcpy(&regs, buf.buf, sizeof regs);
    PyBuffer_Release(&buf);
    if (PyErr_Occurred())
        return NULL;
    err = vmm_x86_start(&self->cpu, (enum vmm_x86_mode)which, &regs, tables);
    if (err == -EINVAL && which == VMM_X86_REAL) {
        PyErr_SetString(PyExc_ValueError,
                        "the entry point of real mode is below 0x100000");
        return NULL;
    }
    ret = none_or_raise(self, err);
    return ret;
}

PyDoc_STRVAR(nmi_doc, "nmi()\n--\n\nRaise a non-maskable interrupt.");

static PyObject *
vcpu_nmi(PyObject *op, PyObject *ignored)
{
    struct vcpu *self = quiet_vcpu(op);

    (void)ignored;
    return self ? none_or_raise(self, vmm_vcpu_nmi(&self->cpu)) : NULL;
}

PyDoc_STRVAR(
    debug_doc,
    "debug(addresses=(), dr7=0, step=False)\n--\n\n"
    "Set up to four hardware breakpoints (dr0 to dr3, with dr7), single step.\n"
    "\nrun() then returns EXIT_DEBUG. Some hosts take this and run past it in "
    "ring 3:\npyvmm.Machine finds out by a trial, this does not. Raises "
    "OSError.\nSource: Intel SDM volume 3, 18.2.");

static PyObject *
vcpu_debug(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"addresses", "dr7", "step", NULL};
    struct vcpu *self = quiet_vcpu(op);
    PyObject *addresses = NULL, *dr7_arg = NULL;
    uint64_t dr[4] = {0}, dr7 = 0;
    Py_ssize_t count;
    int step = 0;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|OOp:debug",
                                     KEYWORDS(names), &addresses, &dr7_arg,
                                     &step) ||
        (dr7_arg && as_uint(dr7_arg, "dr7", UINT32_MAX, &dr7)))
        return NULL;
    count = addresses ? PySequence_Size(addresses) : 0;
    if (count < 0)
        return NULL;
    if (count > 4)
        return PyErr_Format(PyExc_ValueError,
                            "%zd breakpoints: the processor has 4", count);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(addresses, i);
        int err = item ? as_uint(item, "address", UINT64_MAX, &dr[i]) : -1;

        Py_XDECREF(item);
        if (err)
            return NULL;
    }
    return none_or_raise(self, vmm_vcpu_debug(&self->cpu, dr, dr7, step));
}

PyDoc_STRVAR(close_doc,
             "close()\n--\n\n"
             "Close the vCPU; if it runs, it is kicked and closes on its way "
             "out.");

static PyObject *
vcpu_close_method(PyObject *op, PyObject *ignored)
{
    (void)ignored;
    vcpu_close((struct vcpu *)op);
    Py_RETURN_NONE;
}

static PyMethodDef vcpu_methods[] = {
    {"run", (PyCFunction)(void (*)(void))vcpu_run, METH_VARARGS | METH_KEYWORDS,
     run_doc},
    {"kick", vcpu_kick, METH_NOARGS, kick_doc},
    {"start", (PyCFunction)(void (*)(void))vcpu_start,
     METH_VARARGS | METH_KEYWORDS, start_doc},
    {"get", vcpu_get, METH_O, get_doc},
    {"set", (PyCFunction)(void (*)(void))vcpu_set, METH_FASTCALL, set_doc},
    {"get_msrs", vcpu_get_msrs, METH_O, get_msrs_doc},
    {"set_msrs", (PyCFunction)(void (*)(void))vcpu_set_msrs, METH_FASTCALL,
     set_msrs_doc},
    {"nmi", vcpu_nmi, METH_NOARGS, nmi_doc},
    {"debug", (PyCFunction)(void (*)(void))vcpu_debug,
     METH_VARARGS | METH_KEYWORDS, debug_doc},
    {"close", vcpu_close_method, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
vcpu_index(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((struct vcpu *)op)->cpu.index);
}

static PyObject *
vcpu_exits(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct vcpu *)op)->cpu.exits);
}

static PyObject *
vcpu_past(PyObject *op, void *closure)
{
    const struct vmm_vcpu *cpu = &((struct vcpu *)op)->cpu;
    uint64_t count = vmm_min(cpu->past_count, VMM_PAST);
    PyObject *list = PyList_New((Py_ssize_t)count);

    (void)closure;
    for (uint64_t i = 0; list && i < count; i++) {
        const struct vmm_past *past =
            &cpu->past[(cpu->past_count - count + i) % VMM_PAST];
        PyObject *item = Py_BuildValue(
            "(iOOiKK)", past->reason, past->pio ? Py_True : Py_False,
            past->write ? Py_True : Py_False, past->len,
            (unsigned long long)past->addr, (unsigned long long)past->val);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

static PyObject *
vcpu_running(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct vcpu *)op)->runner != 0);
}

static PyObject *
vcpu_closed(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct vcpu *)op)->closed);
}

static PyObject *
vcpu_get_trace(PyObject *op, void *closure)
{
    struct vcpu *self = (struct vcpu *)op;

    (void)closure;
    return Py_NewRef(self->trace ? self->trace : Py_None);
}

static int
vcpu_set_trace(PyObject *op, PyObject *value, void *closure)
{
    struct vcpu *self = (struct vcpu *)op;

    (void)closure;
    if (value && value != Py_None && !PyCallable_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "trace is a callable or None");
        return -1;
    }
    Py_XSETREF(self->trace,
               value && value != Py_None ? Py_NewRef(value) : NULL);
    return 0;
}

static PyGetSetDef vcpu_getset[] = {
    {"index", vcpu_index, NULL, "Its number, which is its APIC id.", NULL},
    {"exits", vcpu_exits, NULL, "How often KVM_RUN has returned.", NULL},
    {"past", vcpu_past, NULL,
     "The last 16 exits, the oldest first: (reason, pio, write, size, addr, "
     "value).",
     NULL},
    {"running", vcpu_running, NULL, "Whether a thread is inside run().", NULL},
    {"closed", vcpu_closed, NULL, "Whether it was closed.", NULL},
    {"trace", vcpu_get_trace, vcpu_set_trace,
     "Called with an Exit for each exit, those that C handled too; from the "
     "next run() on.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    vcpu_doc,
    "VCPU(vm, *, cpus=1)\n--\n\n"
    "The next virtual CPU of `vm`, which will have `cpus` of them.\n\n"
    "CPUID is the host's with the APIC id and the topology filled in. Raises "
    "OSError\nwhen the host refuses.\n\n"
    "Threads: one at a time runs it; kick() may be called from any.");

static PyType_Slot vcpu_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)vcpu_doc},
    {Py_tp_new, vcpu_new},
    {Py_tp_dealloc, vcpu_dealloc},
    {Py_tp_traverse, vcpu_traverse},
    {Py_tp_clear, vcpu_clear},
    {Py_tp_repr, vcpu_repr},
    {Py_tp_methods, vcpu_methods},
    {Py_tp_getset, vcpu_getset},
    {0, NULL},
};

PyType_Spec vcpu_spec = {
    .name = "pyvmm._vmm.VCPU",
    .basicsize = sizeof(struct vcpu),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = vcpu_slots,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* run.c - VCPU.run(): the loop between the core and Python */
#include <math.h>

#include "vcpu.h"

/* What a guest gets between two calls that are due, however soon these are. */
#define DUE_LEAST_NS 100000ULL

#define LAST_TRIES 16 /* deliveries that raise at the end of a run */

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

/*
 * Posted writes: before Python sees anything of what the guest did, it has seen
 * all that the guest did before. 0, or -1 with an exception.
 */
static int
deliver(struct vcpu *self)
{
    return ports_deliver(&self->vm->pio) || ports_deliver(&self->vm->mmio) ? -1
                                                                           : 0;
}

/* An access of the guest that is for Python. 0, or -1 with an exception. */
static int
dispatch(struct vcpu *self, const struct vmm_exit *exit)
{
    const struct ports *ports = exit->pio ? &self->vm->pio : &self->vm->mmio;
    uint64_t val = vmm_ones(exit->len);
    int err = deliver(self);

    if (!err && exit->count > 1 && !exit->write &&
        exit->reason == VMM_EXIT_ACCESS) {
        err = ports_dispatch_string(ports, exit,
                                    vmm_vcpu_string(&self->cpu, exit));
        if (err != 1) {
            vmm_vcpu_string_done(&self->cpu);
            return err;
        }
        err = 0;
    }
    if (!err)
        err = ports_dispatch(ports, exit, &val);
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
    struct vmm_exit exit = {0};
    int err;

    Py_BEGIN_ALLOW_THREADS
    err = vmm_vcpu_settle(&self->cpu, &exit);
    Py_END_ALLOW_THREADS
    *done = err || exit.reason == VMM_EXIT_NONE;
    if (err) {
        raise_host(self->cpu.call, -err);
        return -1;
    }
    switch (exit.reason) {
    case VMM_EXIT_NONE:
    case VMM_EXIT_NATIVE:
        return 0;
    case VMM_EXIT_ACCESS:
    case VMM_EXIT_OWNER:
        err = dispatch(self, &exit);
        if (err)
            note_access(self, &exit);
        return err;
    case VMM_EXIT_UNCLAIMED:
        self->vm->unclaimed++;
        return 0;
    default: /* this ends a run as well: the next one */
        if (!self->late)
            self->late = exit_new(self, exit.reason, &exit, NULL);
        return self->late ? 0 : -1;
    }
}

/* What was posted before the run ended is delivered. */
static int
last_step(struct vcpu *self, bool *done)
{
    *done = !vm_collect(self->vm) && !deliver(self);
    return *done ? 0 : -1;
}

/*
 * A step on the way out of run(), maybe with an exception: that stays, and what
 * the step raises becomes a note of it.
 */
static void
take_step(struct vcpu *self, int (*step)(struct vcpu *, bool *), bool *done)
{
    PyObject *type, *value, *trace, *later[3];

    PyErr_Fetch(&type, &value, &trace);
    step(self, done);
    if (!type)
        return;
    PyErr_Fetch(&later[0], &later[1], &later[2]);
    PyErr_NormalizeException(&later[0], &later[1], &later[2]);
    PyErr_Restore(type, value, trace);
    if (later[0])
        add_note("then, while the access was finished: %R", later[1]);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(later[i]);
}

/*
 * Finishes the access that the last exit was part of. 0, or -1 with an
 * exception: the first one, be it set before, with a note of each later one.
 */
static int
settle(struct vcpu *self)
{
    bool done = false;

    while (!done)
        take_step(self, settle_step, &done);
    /* Each try that raises has delivered something; the rest waits on. */
    done = false;
    for (int i = 0; !done && i < LAST_TRIES; i++)
        take_step(self, last_step, &done);
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
    if (!ret || !settle(self))
        return ret;
    /* What ended the run is not lost for what a device raised meanwhile. */
    if (reason < VMM_EXIT_REASONS)
        Py_XSETREF(self->late, ret);
    else
        Py_DECREF(ret);
    return NULL;
}

/* The run ends with the exception that is set. */
static PyObject *
fail(struct vcpu *self, const struct vmm_exit *exit)
{
    struct kvm_regs regs;
    char text[24];

    if (exit->len)
        note_access(self, exit);
    if (settle(self) && !exit->len && !vmm_vcpu_get_regs(&self->cpu, &regs)) {
        snprintf(text, sizeof text, "%#llx", (unsigned long long)regs.rip);
        add_note("the guest was at rip %s, vCPU %u", text, self->cpu.index);
    }
    return NULL;
}

/* Whether something could interrupt a halted vCPU of this machine. */
static bool
may_be_woken(const struct vm *vm)
{
    for (const struct vcpu *cpu = vm->vcpus; cpu; cpu = cpu->next)
        if (cpu->due_ns)
            return true;
    return __atomic_load_n(&vm->vm.wakers, __ATOMIC_RELAXED);
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
    if (mood == VMM_VCPU_IDLE && may_be_woken(self->vm)) {
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

/* The next tick comes after `wait_ns`. For the thread that runs it. */
static void
arm(struct vcpu *self, uint64_t now, uint64_t wait_ns)
{
    self->tick_ns = now + wait_ns;
    tick_arm(wait_ns);
}

/*
 * A tick may only be brought forward: a guest that lets a device set due_ns
 * again and again must not put off what ticks are for.
 */
void
vcpu_due_changed(struct vcpu *self)
{
    uint64_t now;

    if (!self->runner || !self->due_ns || self->due_ns >= self->tick_ns)
        return;
    if (self->runner != PyThread_get_thread_ident()) {
        tick_send(&self->cpu); /* its thread arms anew */
        return;
    }
    now = vmm_now_ns();
    arm(self, now, self->due_ns > now ? self->due_ns - now : 0);
}

/* Calls on_due if it is time. 1 when it was called, 0, -1 with an exception. */
static int
call_due(struct vcpu *self)
{
    PyObject *call, *ret;

    if (!self->due_ns || vmm_now_ns() < self->due_ns)
        return 0;
    self->due_ns = 0;
    if (!self->on_due)
        return 0;
    self->tick_ns = 0;              /* what it sets is for the caller to arm */
    call = Py_NewRef(self->on_due); /* it may be set to another */
    ret = PyObject_CallNoArgs(call);
    Py_DECREF(call);
    Py_XDECREF(ret);
    return ret ? 1 : -1;
}

/*
 * A kick, a tick or a signal. Returns the reason to end the run, 0 when there
 * is none, -1 with an exception.
 */
static int
interrupted(struct vcpu *self, bool kicked, uint64_t deadline)
{
    uint64_t now, wait_ns = TICK_NS;
    int called, reason;

    if (PyErr_CheckSignals() || deliver(self))
        return -1;
    if (kicked || self->closing)
        return EXIT_KICK;
    called = call_due(self);
    if (called < 0)
        return -1;
    if (self->closing)
        return EXIT_KICK;
    now = vmm_now_ns();
    if (self->due_ns)
        wait_ns = self->due_ns > now ? self->due_ns - now : 0;
    wait_ns = vmm_min(wait_ns, TICK_NS);
    if (called)
        wait_ns = wait_ns > DUE_LEAST_NS ? wait_ns : DUE_LEAST_NS;
    if (deadline) {
        if (now >= deadline)
            return EXIT_TIMEOUT;
        wait_ns = vmm_min(wait_ns, deadline - now);
    }
    arm(self, now, wait_ns);
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

const char vcpu_run_doc[] = PyDoc_STR(
    "run($self, /, timeout=None)\n--\n\n"
    "Run the guest on this thread until something ends the run.\n\n"
    "Accesses to devices are handled in C or by their methods; the rest is "
    "returned\nas an Exit. `timeout` is in seconds of wall time "
    "(EXIT_TIMEOUT). "
    "When it returns\nor raises, no access is unfinished: registers are those "
    "of the next instruction,\nand run() may be called again. Exceptions of "
    "devices and of signal handlers\nleave it unchanged, with a note naming "
    "the access. When one came in the way of an\nExit, the next run() returns "
    "that, unless the state was set. Raises OSError when the\nhost refuses, "
    "RuntimeError when it runs already.");

PyObject *
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
    if (self->late) {
        ret = self->late;
        self->late = NULL;
        return ret;
    }
    err = tick_enter(&self->cpu, &previous);
    if (err)
        return raise_host("timer_create", -err);
    Py_INCREF(op);
    self->runner = PyThread_get_thread_ident();
    self->asleep_ns = self->looked_ns = 0;
    self->cpu.trace = self->trace != NULL;
    arm(self, vmm_now_ns(), first_ns);
    vcpu_due_changed(self);
    ret = run_loop(self, deadline);
    if (self->thrown) /* what no method has raised, nothing else shall */
        PyThreadState_SetAsyncExc(self->runner, NULL);
    self->thrown = false;
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

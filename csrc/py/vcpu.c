/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu.c - VCPU: made, closed, kicked, looked at */
#include "vcpu.h"

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
    Py_CLEAR(self->late);
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
    Py_VISIT(self->on_due);
    Py_VISIT(self->late);
    return 0;
}

static int
vcpu_clear(PyObject *op)
{
    struct vcpu *self = (struct vcpu *)op;

    vcpu_close(self);
    Py_CLEAR(self->trace);
    Py_CLEAR(self->on_due);
    Py_CLEAR(self->late);
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

struct vcpu *
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

struct vcpu *
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

PyObject *
vcpu_none_or_raise(struct vcpu *self, int err)
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
PyDoc_STRVAR(kick_doc,
             "kick($self, /)\n--\n\n"
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

PyDoc_STRVAR(throw_doc,
             "throw($self, exception, /)\n--\n\n"
             "Raise this, a class, in the device's method that run() is "
             "inside.\n\n"
             "From another thread. A method that waits for something outside "
             "of Python raises it\nwhen it is back. False when run() is not "
             "called; it does nothing when that returns\nbefore a method could "
             "raise.");

static PyObject *
vcpu_throw(PyObject *op, PyObject *exception)
{
    struct vcpu *self = open_vcpu(op);

    if (!self)
        return NULL;
    if (!PyExceptionClass_Check(exception))
        return PyErr_Format(PyExc_TypeError, "%R is no class of exceptions",
                            exception);
    if (!self->runner)
        Py_RETURN_FALSE;
    self->thrown = true;
    PyThreadState_SetAsyncExc(self->runner, exception);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(until_doc,
             "until($self, exits, pio, addr, size, /)\n--\n\n"
             "Let run() return EXIT_UNTIL after so many exits more, or a write "
             "there.\n\n0 exits, or a size of 0: not for that. Once that has "
             "happened the other remains\nuntil it is set anew.");

static PyObject *
vcpu_until(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vcpu *self = quiet_vcpu(op);
    struct vmm_until until = {0};
    int pio;

    if (!self || arguments("until", nargs, 4) ||
        as_uint(args[0], "exits", UINT32_MAX, &until.exits) ||
        as_uint(args[2], "addr", UINT64_MAX, &until.addr) ||
        as_uint(args[3], "size", UINT32_MAX, &until.len))
        return NULL;
    pio = PyObject_IsTrue(args[1]);
    if (pio < 0)
        return NULL;
    until.pio = pio;
    if (until.exits)
        until.exits += self->cpu.exits;
    self->cpu.until = until;
    self->cpu.until_met = false;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
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
     vcpu_run_doc},
    {"kick", vcpu_kick, METH_NOARGS, kick_doc},
    {"throw", vcpu_throw, METH_O, throw_doc},
    {"start", (PyCFunction)(void (*)(void))vcpu_start,
     METH_VARARGS | METH_KEYWORDS, vcpu_start_doc},
    {"get", vcpu_get, METH_O, vcpu_get_doc},
    {"set", (PyCFunction)(void (*)(void))vcpu_set, METH_FASTCALL, vcpu_set_doc},
    {"get_msrs", vcpu_get_msrs, METH_O, vcpu_get_msrs_doc},
    {"set_msrs", (PyCFunction)(void (*)(void))vcpu_set_msrs, METH_FASTCALL,
     vcpu_set_msrs_doc},
    {"until", (PyCFunction)(void (*)(void))vcpu_until, METH_FASTCALL,
     until_doc},
    {"nmi", vcpu_nmi, METH_NOARGS, vcpu_nmi_doc},
    {"debug", (PyCFunction)(void (*)(void))vcpu_debug,
     METH_VARARGS | METH_KEYWORDS, vcpu_debug_doc},
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
    (void)closure;
    return set_callable("trace", &((struct vcpu *)op)->trace, value);
}

static PyObject *
vcpu_get_on_due(PyObject *op, void *closure)
{
    struct vcpu *self = (struct vcpu *)op;

    (void)closure;
    return Py_NewRef(self->on_due ? self->on_due : Py_None);
}

static int
vcpu_set_on_due(PyObject *op, PyObject *value, void *closure)
{
    (void)closure;
    return set_callable("on_due", &((struct vcpu *)op)->on_due, value);
}

static PyObject *
vcpu_get_due_ns(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct vcpu *)op)->due_ns);
}

static int
vcpu_set_due_ns(PyObject *op, PyObject *value, void *closure)
{
    struct vcpu *self = (struct vcpu *)op;

    (void)closure;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "due_ns cannot be deleted");
        return -1;
    }
    if (as_uint(value, "due_ns", UINT64_MAX, &self->due_ns))
        return -1;
    vcpu_due_changed(self);
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
    {"due_ns", vcpu_get_due_ns, vcpu_set_due_ns,
     "When run() calls on_due, in nanoseconds of CLOCK_MONOTONIC; 0: never. "
     "It is 0\nwhen that is called. From any thread; while it is set, a halted "
     "guest that\ncould be interrupted has not ended.",
     NULL},
    {"on_due", vcpu_get_on_due, vcpu_set_on_due,
     "Called without arguments on the thread inside run(), between two exits, "
     "once\ndue_ns has come; or None. Its exceptions leave run().",
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

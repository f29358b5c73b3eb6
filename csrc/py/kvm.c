/* SPDX-License-Identifier: Apache-2.0 */
/* kvm.c - KVM: the host's /dev/kvm and what it can do */
#include "py.h"

struct kvm *
kvm_check(struct state *state, PyObject *arg)
{
    struct kvm *kvm = (struct kvm *)arg;

    if (!Py_IS_TYPE(arg, state->kvm_type))
        PyErr_Format(PyExc_TypeError, "expected a KVM, not %.80s",
                     Py_TYPE(arg)->tp_name);
    else if (kvm->closed)
        raise_closed(arg);
    else if (kvm->generation != fork_generation)
        raise_forked();
    else
        return kvm;
    return NULL;
}

static PyObject *
kvm_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {NULL};
    struct kvm *self;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":KVM", KEYWORDS(names)))
        return NULL;
    self = (struct kvm *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->generation = fork_generation;
    err = vmm_kvm_init(&self->kvm);
    if (err) {
        raise_host(self->kvm.call, -err);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
kvm_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    vmm_kvm_fini(&((struct kvm *)op)->kvm);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
kvm_repr(PyObject *op)
{
    struct kvm *self = (struct kvm *)op;

    if (self->closed)
        return PyUnicode_FromString("<KVM closed>");
    return PyUnicode_FromFormat("<KVM fd %d>", self->kvm.fd);
}

PyDoc_STRVAR(check_doc,
             "check($self, cap, /)\n--\n\n"
             "What KVM_CHECK_EXTENSION says of a capability's number: 0 is "
             "no.\n\nSource: Linux Documentation/virt/kvm/api.rst, 4.4.");

static PyObject *
kvm_check_cap(PyObject *op, PyObject *arg)
{
    struct state *state = state_of(Py_TYPE(op));
    struct kvm *self = kvm_check(state, op);
    uint64_t cap;

    if (!self || as_uint(arg, "cap", INT32_MAX, &cap))
        return NULL;
    return PyLong_FromLong(vmm_kvm_check(&self->kvm, (unsigned)cap));
}

PyDoc_STRVAR(msrs_doc,
             "msr_indices($self, /)\n--\n\n"
             "The MSRs that a snapshot of this host's guests consists of.\n\n"
             "Source: Linux Documentation/virt/kvm/api.rst, 4.3.");

static PyObject *
kvm_msr_indices(PyObject *op, PyObject *ignored)
{
    struct kvm *self = kvm_check(state_of(Py_TYPE(op)), op);
    uint32_t index[VMM_KVM_MAX_MSRS];
    PyObject *ret;
    int count;

    (void)ignored;
    if (!self)
        return NULL;
    count = vmm_kvm_msr_list(&self->kvm, index, VMM_KVM_MAX_MSRS);
    if (count < 0)
        return raise_host(self->kvm.call, -count);
    ret = PyList_New(count);
    for (int i = 0; ret && i < count; i++) {
        PyObject *item = PyLong_FromUnsignedLong(index[i]);

        if (!item)
            Py_CLEAR(ret);
        else
            PyList_SET_ITEM(ret, i, item);
    }
    return ret;
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Refuse new machines; /dev/kvm is closed when the last VM goes.");

static PyObject *
kvm_close(PyObject *op, PyObject *ignored)
{
    (void)ignored;
    ((struct kvm *)op)->closed = true;
    Py_RETURN_NONE;
}

static PyMethodDef kvm_methods[] = {
    {"check", kvm_check_cap, METH_O, check_doc},
    {"msr_indices", kvm_msr_indices, METH_NOARGS, msrs_doc},
    {"close", kvm_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
kvm_cpuid(PyObject *op, void *closure)
{
    const struct vmm_cpuid *cpuid = &((struct kvm *)op)->kvm.cpuid;
    PyObject *list = PyList_New(cpuid->nent);

    (void)closure;
    for (uint32_t i = 0; list && i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entry[i];
        PyObject *item =
            Py_BuildValue("(IIIIIII)", e->function, e->index, e->flags, e->eax,
                          e->ebx, e->ecx, e->edx);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *
kvm_sync_regs(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct kvm *)op)->kvm.sync_regs);
}

static PyObject *
kvm_max_vcpus(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((struct kvm *)op)->kvm.max_vcpus);
}

static PyObject *
kvm_max_slots(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((struct kvm *)op)->kvm.max_slots);
}

static PyObject *
kvm_closed(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct kvm *)op)->closed);
}

static PyGetSetDef kvm_getset[] = {
    {"cpuid", kvm_cpuid, NULL,
     "KVM_GET_SUPPORTED_CPUID: (function, index, flags, eax, ebx, ecx, edx) "
     "each.",
     NULL},
    {"sync_regs", kvm_sync_regs, NULL,
     "KVM_CAP_SYNC_REGS: 1 registers, 2 system registers, 4 events.", NULL},
    {"max_vcpus", kvm_max_vcpus, NULL, "vCPUs that a VM may have.", NULL},
    {"max_slots", kvm_max_slots, NULL, "Memory slots that a VM may have.",
     NULL},
    {"closed", kvm_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    kvm_doc,
    "KVM()\n--\n\n"
    "The host's /dev/kvm, opened and checked; serves any number of VMs.\n\n"
    "Raises OSError with what to do about it when it is missing, not "
    "permitted, of\nanother API version than 12, or without a capability that "
    "pyvmm needs.\n\n"
    "Threads: any. Does not survive fork().");

static PyType_Slot kvm_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)kvm_doc},
    {Py_tp_new, kvm_new},
    {Py_tp_dealloc, kvm_dealloc},
    {Py_tp_repr, kvm_repr},
    {Py_tp_methods, kvm_methods},
    {Py_tp_getset, kvm_getset},
    {0, NULL},
};

PyType_Spec kvm_spec = {
    .name = "pyvmm._vmm.KVM",
    .basicsize = sizeof(struct kvm),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kvm_slots,
};

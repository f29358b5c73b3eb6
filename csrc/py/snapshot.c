/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot.c - Snapshot: the state of a VM, taken and gone back to */
#include "snapshot.h"

static void
snapshot_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    vmm_snap_drop(((struct snapshot *)op)->snap);
    type->tp_free(op);
    Py_DECREF(type);
}

PyObject *
snapshot_new(struct state *state, struct vmm_snap *snap)
{
    PyTypeObject *type = state->snapshot_type;
    struct snapshot *self = (struct snapshot *)type->tp_alloc(type, 0);

    if (self)
        self->snap = snap;
    else
        vmm_snap_drop(snap);
    return (PyObject *)self;
}

struct vmm_snap *
snapshot_check(struct state *state, PyObject *arg)
{
    if (Py_IS_TYPE(arg, state->snapshot_type))
        return ((struct snapshot *)arg)->snap;
    PyErr_Format(PyExc_TypeError, "expected a Snapshot, not %.80s",
                 Py_TYPE(arg)->tp_name);
    return NULL;
}

/* -- what a VM does with it ------------------------------------------------ */

/*
 * The vCPUs of a VM in their order, with the number of them; to be freed. NULL
 * with an exception when one runs, or is in the middle of an instruction.
 */
static struct vmm_vcpu **
still_vcpus(struct vm *vm, unsigned *count)
{
    struct vmm_vcpu **list = PyMem_Calloc(vm->vm.vcpus + 1, sizeof *list);

    if (!list) {
        PyErr_NoMemory();
        return NULL;
    }
    *count = 0;
    for (const struct vcpu *cpu = vm->vcpus; cpu; cpu = cpu->next) {
        if (cpu->runner) {
            PyErr_Format(PyExc_RuntimeError,
                         "vCPU %u runs: a snapshot is taken and gone back to "
                         "between two runs",
                         cpu->cpu.index);
            PyMem_Free(list);
            return NULL;
        }
        list[cpu->cpu.index] = (struct vmm_vcpu *)(uintptr_t)&cpu->cpu;
        (*count)++;
    }
    if (*count == vm->vm.vcpus)
        return list;
    PyErr_SetString(PyExc_ValueError, "a vCPU of this VM was closed");
    PyMem_Free(list);
    return NULL;
}

const char vm_snapshot_doc[] = PyDoc_STR(
    "snapshot($self, /)\n--\n\n"
    "A Snapshot of the vCPUs, the interrupt controllers and the memory.\n\n"
    "Not of devices. The first one of a memory copies the pages that were "
    "touched; a later\none is a child of that which the VM is at, and copies "
    "those written since. Raises\nRuntimeError when a vCPU runs, ValueError "
    "for memory that other processes share,\nOSError when the host refuses; "
    "the VM is then as before.");

PyObject *
vm_snapshot(PyObject *op, PyObject *ignored)
{
    struct state *state = state_of(Py_TYPE(op));
    struct vm *vm = vm_check(state, op);
    struct vmm_vcpu **cpu;
    struct vmm_snap *snap;
    unsigned cpus;
    int err;

    (void)ignored;
    if (!vm)
        return NULL;
    cpu = still_vcpus(vm, &cpus);
    if (!cpu)
        return NULL;
    memory_mark_views(vm->memory);
    err = vmm_snap_take(&vm->vm, cpu, cpus, &snap);
    PyMem_Free(cpu);
    if (!err)
        return snapshot_new(state, snap);
    if (err == -EINVAL)
        return PyErr_Format(PyExc_ValueError,
                            "memory that is shared with other processes "
                            "cannot be in a snapshot");
    return raise_host(vm->vm.call, -err);
}

const char vm_restore_doc[] = PyDoc_STR(
    "restore($self, snapshot, /)\n--\n\n"
    "Go back to a Snapshot of this VM's tree; how many pages were copied.\n\n"
    "Only those that were written since, and those in which the two differ. "
    "Raises\nRuntimeError when a vCPU runs, ValueError for a snapshot of "
    "another machine, OSError\nwhen the host refuses.");

PyObject *
vm_restore(PyObject *op, PyObject *arg)
{
    struct state *state = state_of(Py_TYPE(op));
    struct vm *vm = vm_check(state, op);
    struct vmm_vcpu **cpu;
    struct vmm_snap *snap;
    unsigned cpus;
    int64_t count;

    if (!vm)
        return NULL;
    snap = snapshot_check(state, arg);
    if (!snap)
        return NULL;
    cpu = still_vcpus(vm, &cpus);
    if (!cpu)
        return NULL;
    memory_mark_views(vm->memory);
    count = vmm_snap_restore(&vm->vm, cpu, cpus, snap);
    PyMem_Free(cpu);
    if (count >= 0)
        return PyLong_FromLongLong(count);
    if (count == -EXDEV)
        return PyErr_Format(PyExc_ValueError,
                            "the snapshot is of another machine");
    return raise_host(vm->vm.call, (int)-count);
}

/* -- Snapshot -------------------------------------------------------------- */

PyDoc_STRVAR(
    snapshot_memory_doc,
    "memory($self, /)\n--\n\n"
    "A new Memory of the same pages, which are shared until written.\n\n"
    "For the VM of a clone: restore() it before it runs. Raises "
    "OSError.");

static PyObject *
snapshot_memory(PyObject *op, PyObject *ignored)
{
    struct state *state = state_of(Py_TYPE(op));
    struct memory *memory =
        (struct memory *)PyObject_CallNoArgs((PyObject *)state->memory_type);
    int err;

    (void)ignored;
    if (!memory)
        return NULL;
    err = vmm_snap_map(((struct snapshot *)op)->snap, &memory->mem);
    if (!err)
        return (PyObject *)memory;
    raise_host(memory->mem.call, -err);
    Py_DECREF(memory);
    return NULL;
}

PyDoc_STRVAR(snapshot_page_doc,
             "page($self, number, /)\n--\n\n"
             "The 4096 bytes of a page; they are numbered through the "
             "regions.\n\nRaises ValueError for a number that is none.");

static PyObject *
snapshot_page(PyObject *op, PyObject *arg)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap;
    uint64_t number;

    if (as_uint(arg, "number", snap->pages - 1, &number))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)vmm_snap_page(snap, number),
                                     (Py_ssize_t)VMM_PAGE_SIZE);
}

static PyMethodDef snapshot_methods[] = {
    {"memory", snapshot_memory, METH_NOARGS, snapshot_memory_doc},
    {"page", snapshot_page, METH_O, snapshot_page_doc},
    {"adopt", snapshot_adopt, METH_O, snapshot_adopt_doc},
    {"fileno", snapshot_fileno, METH_NOARGS, snapshot_fileno_doc},
    {"next", snapshot_next, METH_O, snapshot_next_doc},
    {"copy", (PyCFunction)(void (*)(void))snapshot_copy, METH_FASTCALL,
     snapshot_copy_doc},
    {"state", snapshot_state, METH_NOARGS, snapshot_state_doc},
    {"open", (PyCFunction)(void (*)(void))snapshot_open,
     METH_FASTCALL | METH_CLASS, snapshot_open_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
snapshot_get_pages(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct snapshot *)op)->snap->pages);
}

static PyObject *
snapshot_get_changed(PyObject *op, void *closure)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap;
    PyObject *list;

    (void)closure;
    if (!snap->parent)
        Py_RETURN_NONE;
    list = PyList_New(snap->count);
    for (uint32_t i = 0; list && i < snap->count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(snap->number[i]);

        if (!item) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyGetSetDef snapshot_getset[] = {
    {"pages", snapshot_get_pages, NULL, "Pages of the whole memory.", NULL},
    {"changed", snapshot_get_changed, NULL,
     "Numbers of the pages that differ from the parent; None: there is none.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *
snapshot_repr(PyObject *op)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap;

    if (!snap->parent)
        return PyUnicode_FromFormat("<Snapshot of %llu pages>",
                                    (unsigned long long)snap->pages);
    return PyUnicode_FromFormat("<Snapshot, %u pages differ from its parent>",
                                snap->count);
}

PyDoc_STRVAR(
    snapshot_doc,
    "The state of a VM at one moment: vCPUs, interrupt controllers, memory.\n\n"
    "VM.snapshot() and open() make it. It never changes, and lives as long "
    "as anybody\nneeds it, its children included.\n\nThreads: any.");

static PyType_Slot snapshot_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)snapshot_doc},
    {Py_tp_dealloc, snapshot_dealloc},
    {Py_tp_repr, snapshot_repr},
    {Py_tp_methods, snapshot_methods},
    {Py_tp_getset, snapshot_getset},
    {0, NULL},
};

PyType_Spec snapshot_spec = {
    .name = "pyvmm._vmm.Snapshot",
    .basicsize = sizeof(struct snapshot),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = snapshot_slots,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* snapshot_file.c - Snapshot: its state as objects and back, its pages */
#include <string.h>

#include "snapshot.h"

#define MAX_CPUS 4096U /* more than any kernel allows */
#define MSR_SIZE 12U   /* an index of 4 bytes, a value of 8 */

/* -- the state as Python objects ------------------------------------------- */

/* Sets an item; takes the value, which may be NULL with an exception. */
static int
put(PyObject *dict, const char *name, PyObject *value)
{
    int err = value ? PyDict_SetItemString(dict, name, value) : -1;

    Py_XDECREF(value);
    return err;
}

static int
put_bytes(PyObject *dict, const char *name, const void *from, size_t size)
{
    return put(dict, name, PyBytes_FromStringAndSize(from, (Py_ssize_t)size));
}

static int
put_none(PyObject *dict, const char *name)
{
    return put(dict, name, Py_NewRef(Py_None));
}

static int
put_msrs(PyObject *dict, const struct vmm_vcpu_save *cpu)
{
    PyObject *msrs =
        PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(cpu->msrs * MSR_SIZE));
    char *to = msrs ? PyBytes_AS_STRING(msrs) : NULL;

    for (unsigned i = 0; msrs && i < cpu->msrs; i++, to += MSR_SIZE) {
        memcpy(to, &cpu->msr_index[i], 4);
        memcpy(to + 4, &cpu->msr_value[i], 8);
    }
    return put(dict, "msrs", msrs);
}

#define PUT(dict, name, from) put_bytes(dict, name, &(from), sizeof(from))

static PyObject *
cpu_state(const struct vmm_vcpu_save *cpu)
{
    PyObject *dict = PyDict_New();

    if (!dict)
        return NULL;
    if (!PUT(dict, "regs", cpu->regs) && !PUT(dict, "sregs", cpu->sregs) &&
        !PUT(dict, "events", cpu->events) &&
        !PUT(dict, "mp_state", cpu->mp_state) &&
        !PUT(dict, "xcrs", cpu->xcrs) &&
        !PUT(dict, "debugregs", cpu->debugregs) &&
        !(cpu->has_lapic ? PUT(dict, "lapic", cpu->lapic)
                         : put_none(dict, "lapic")) &&
        !put_msrs(dict, cpu) &&
        !put_bytes(dict, "xsave", cpu->xsave, cpu->xsave_size))
        return dict;
    Py_DECREF(dict);
    return NULL;
}

/* A list whose items are yet to be set. */
static int
put_cpus(PyObject *dict, const struct vmm_snap *snap)
{
    PyObject *list = PyList_New(snap->cpus);

    for (unsigned i = 0; list && i < snap->cpus; i++) {
        PyObject *item = cpu_state(&snap->cpu[i]);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return put(dict, "cpus", list);
}

static int
put_regions(PyObject *dict, const struct vmm_snap *root)
{
    PyObject *list = PyList_New(root->regions);

    for (unsigned i = 0; list && i < root->regions; i++) {
        const struct vmm_snap_region *region = &root->region[i];
        PyObject *item = Py_BuildValue("(KKI)", (unsigned long long)region->gpa,
                                       (unsigned long long)region->len,
                                       (unsigned)region->flags);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return put(dict, "regions", list);
}

static int
put_vm(PyObject *dict, const struct vmm_snap *snap)
{
    int err = snap->irqchip ? PUT(dict, "irqchip", snap->chip)
                            : put_none(dict, "irqchip");

    if (!err)
        err = snap->pit ? PUT(dict, "pit", snap->pit_state)
                        : put_none(dict, "pit");
    if (err)
        return err;
    if (!snap->clock)
        return put_none(dict, "clock");
    return put(dict, "clock",
               PyLong_FromUnsignedLongLong(snap->clock_data.clock));
}

const char snapshot_state_doc[] = PyDoc_STR(
    "state($self, /)\n--\n\n"
    "All but the pages, for a file: what open() takes.\n\n"
    "`regions`: (gpa, size, flags) each. `cpus`: by name the kernel's "
    "structures, as bytes;\nmsrs are 4 bytes of index and 8 of value each. "
    "`irqchip`: three of them; `pit`;\nNone where there is none. `clock`: "
    "nanoseconds, or None.");

PyObject *
snapshot_state(PyObject *op, PyObject *ignored)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap, *root = snap;
    PyObject *dict = PyDict_New();

    (void)ignored;
    while (root->parent)
        root = root->parent;
    if (!dict)
        return NULL;
    if (!put_regions(dict, root) && !put_cpus(dict, snap) &&
        !put_vm(dict, snap))
        return dict;
    Py_DECREF(dict);
    return NULL;
}

/* -- and back: nothing is believed ----------------------------------------- */

/* A value of a dict, borrowed; NULL with an exception. */
static PyObject *
item_of(PyObject *dict, const char *name)
{
    PyObject *value;

    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_ValueError, "the state is no dict");
        return NULL;
    }
    value = PyDict_GetItemString(dict, name);
    if (!value)
        PyErr_Format(PyExc_ValueError, "the state has no %s", name);
    return value;
}

/* The bytes of that name, of just this size. 0, or -1 with an exception. */
static int
get_bytes(PyObject *dict, const char *name, void *to, size_t size)
{
    PyObject *value = item_of(dict, name);

    if (!value)
        return -1;
    if (!PyBytes_Check(value) || (size_t)PyBytes_GET_SIZE(value) != size) {
        PyErr_Format(PyExc_ValueError, "%s is not %zu bytes", name, size);
        return -1;
    }
    memcpy(to, PyBytes_AS_STRING(value), size);
    return 0;
}

#define GET(dict, name, to) get_bytes(dict, name, &(to), sizeof(to))

/* The same, or None. 1: it is there; 0; -1 with an exception. */
static int
get_if(PyObject *dict, const char *name, void *to, size_t size)
{
    PyObject *value = item_of(dict, name);

    if (!value)
        return -1;
    if (value == Py_None)
        return 0;
    return get_bytes(dict, name, to, size) ? -1 : 1;
}

static int
get_msrs(PyObject *dict, struct vmm_vcpu_save *cpu)
{
    PyObject *value = item_of(dict, "msrs");
    const char *from;
    Py_ssize_t size;

    if (!value)
        return -1;
    size = PyBytes_Check(value) ? PyBytes_GET_SIZE(value) : -1;
    if (size < 0 || size % MSR_SIZE ||
        size / MSR_SIZE > (Py_ssize_t)VMM_VCPU_MAX_MSRS) {
        PyErr_Format(PyExc_ValueError,
                     "msrs is not %u bytes for each of at most %u", MSR_SIZE,
                     VMM_VCPU_MAX_MSRS);
        return -1;
    }
    from = PyBytes_AS_STRING(value);
    cpu->msrs = (unsigned)(size / MSR_SIZE);
    for (unsigned i = 0; i < cpu->msrs; i++, from += MSR_SIZE) {
        memcpy(&cpu->msr_index[i], from, 4);
        memcpy(&cpu->msr_value[i], from + 4, 8);
    }
    return 0;
}

/* xsave stays the dict's. */
static int
get_cpu(PyObject *dict, struct vmm_vcpu_save *cpu)
{
    int lapic;
    PyObject *xsave;

    if (GET(dict, "regs", cpu->regs) || GET(dict, "sregs", cpu->sregs) ||
        GET(dict, "events", cpu->events) ||
        GET(dict, "mp_state", cpu->mp_state) || GET(dict, "xcrs", cpu->xcrs) ||
        GET(dict, "debugregs", cpu->debugregs) || get_msrs(dict, cpu))
        return -1;
    lapic = get_if(dict, "lapic", &cpu->lapic, sizeof cpu->lapic);
    xsave = lapic < 0 ? NULL : item_of(dict, "xsave");
    if (!xsave)
        return -1;
    if (!PyBytes_Check(xsave)) {
        PyErr_SetString(PyExc_ValueError, "xsave is not bytes");
        return -1;
    }
    cpu->has_lapic = lapic;
    cpu->xsave = PyBytes_AS_STRING(xsave);
    cpu->xsave_size = (size_t)PyBytes_GET_SIZE(xsave);
    return 0;
}

/* A list of at most so many, borrowed; NULL with an exception. */
static PyObject *
list_of(PyObject *dict, const char *name, Py_ssize_t most)
{
    PyObject *list = item_of(dict, name);

    if (!list)
        return NULL;
    if (PyList_Check(list) && PyList_GET_SIZE(list) > 0 &&
        PyList_GET_SIZE(list) <= most)
        return list;
    PyErr_Format(PyExc_ValueError, "%s is not a list of 1 to %zd", name, most);
    return NULL;
}

/* To be freed; NULL with an exception. */
static struct vmm_vcpu_save *
get_cpus(PyObject *dict, unsigned *count)
{
    PyObject *list = list_of(dict, "cpus", MAX_CPUS);
    struct vmm_vcpu_save *cpu;

    if (!list)
        return NULL;
    *count = (unsigned)PyList_GET_SIZE(list);
    cpu = PyMem_Calloc(*count, sizeof *cpu);
    if (!cpu) {
        PyErr_NoMemory();
        return NULL;
    }
    for (unsigned i = 0; i < *count; i++) {
        if (get_cpu(PyList_GET_ITEM(list, i), &cpu[i])) {
            PyMem_Free(cpu);
            return NULL;
        }
    }
    return cpu;
}

/* How many, or -1 with an exception. */
static int
get_regions(PyObject *dict, struct vmm_snap_region *region)
{
    PyObject *list = list_of(dict, "regions", VMM_MEM_MAX_REGIONS);

    if (!list)
        return -1;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        uint64_t flags;

        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 3) {
            PyErr_SetString(PyExc_ValueError,
                            "a region is not gpa, size and flags");
            return -1;
        }
        if (as_uint(PyTuple_GET_ITEM(item, 0), "gpa", UINT64_MAX,
                    &region[i].gpa) ||
            as_uint(PyTuple_GET_ITEM(item, 1), "size", UINT64_MAX,
                    &region[i].len) ||
            as_uint(PyTuple_GET_ITEM(item, 2), "flags", UINT32_MAX, &flags))
            return -1;
        region[i].flags = (uint32_t)flags;
    }
    return (int)PyList_GET_SIZE(list);
}

/* What is the VM's, with room for it. */
struct vm_parts {
    struct kvm_irqchip chip[3];
    struct kvm_pit_state2 pit;
    uint64_t clock;
};

static int
get_vm(PyObject *dict, struct vm_parts *room, struct vmm_snap_parts *parts)
{
    int chip = get_if(dict, "irqchip", &room->chip, sizeof room->chip);
    int pit = chip < 0 ? -1 : get_if(dict, "pit", &room->pit, sizeof room->pit);
    PyObject *clock = pit < 0 ? NULL : item_of(dict, "clock");

    if (!clock)
        return -1;
    parts->chip = chip ? room->chip : NULL;
    parts->pit = pit ? &room->pit : NULL;
    if (clock == Py_None)
        return 0;
    parts->clock = &room->clock;
    return as_uint(clock, "clock", UINT64_MAX, &room->clock);
}

static PyObject *
raise_open(const char *call, int err)
{
    if (err == -EINVAL)
        return PyErr_Format(PyExc_ValueError,
                            "its memory or its vCPUs are laid out as none can "
                            "be");
    if (err == -ERANGE)
        return PyErr_Format(PyExc_ValueError,
                            "its xsave area is larger than this host's");
    if (err == -ENODATA)
        return PyErr_Format(PyExc_ValueError, "it is shorter than its memory");
    return raise_host(call, -err);
}

const char snapshot_open_doc[] = PyDoc_STR(
    "open($type, kvm, fd, offset, state, /)\n--\n\n"
    "A Snapshot of the pages in a file, from `offset` on, and a state().\n\n"
    "The file is mapped and must not change; the fd stays the caller's. "
    "Raises ValueError\nfor a state that can be none or that this host has no "
    "room for, OSError.");

PyObject *
snapshot_open(PyObject *type, PyObject *const *args, Py_ssize_t nargs)
{
    struct state *state = state_of((PyTypeObject *)type);
    struct vmm_snap_region region[VMM_MEM_MAX_REGIONS];
    struct vmm_snap_parts parts = {.region = region};
    struct vmm_vcpu_save *cpu;
    struct vm_parts room;
    struct vmm_snap *snap;
    const struct kvm *kvm;
    uint64_t fd, offset;
    const char *call;
    int count, err;

    if (arguments("open", nargs, 4))
        return NULL;
    kvm = kvm_check(state, args[0]);
    if (!kvm || as_uint(args[1], "fd", INT32_MAX, &fd) ||
        as_uint(args[2], "offset", INT64_MAX, &offset))
        return NULL;
    count = get_regions(args[3], region);
    if (count < 0 || get_vm(args[3], &room, &parts))
        return NULL;
    parts.regions = (unsigned)count;
    cpu = get_cpus(args[3], &parts.cpus);
    if (!cpu)
        return NULL;
    parts.cpu = cpu;
    err = vmm_snap_open(&kvm->kvm, (int)fd, offset, &parts, &call, &snap);
    PyMem_Free(cpu);
    return err ? raise_open(call, err) : snapshot_new(state, snap);
}

/* -- memory and pages ------------------------------------------------------ */

const char snapshot_adopt_doc[] = PyDoc_STR(
    "adopt($self, memory, /)\n--\n\n"
    "Map the regions of a Memory over the root's image: restore() does the "
    "rest.\n\n"
    "Also those of a VM, none of whose vCPUs runs. What they held is gone. "
    "Raises\nValueError when its regions are others, OSError.");

PyObject *
snapshot_adopt(PyObject *op, PyObject *arg)
{
    struct memory *memory = memory_check(state_of(Py_TYPE(op)), arg);
    int err;

    if (!memory)
        return NULL;
    memory_mark_views(memory);
    err = vmm_snap_adopt(((struct snapshot *)op)->snap, &memory->mem);
    if (!err)
        Py_RETURN_NONE;
    if (err == -EXDEV)
        return PyErr_Format(PyExc_ValueError,
                            "the snapshot is of a machine with other memory");
    return raise_host(memory->mem.call, -err);
}

const char snapshot_next_doc[] = PyDoc_STR(
    "next($self, number, /)\n--\n\n"
    "The number of the first page from `number` on that may hold more than "
    "zeros.\n\n`pages`, when none does.");

PyObject *
snapshot_next(PyObject *op, PyObject *arg)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap;
    uint64_t number;

    if (as_uint(arg, "number", snap->pages, &number))
        return NULL;
    return PyLong_FromUnsignedLongLong(vmm_snap_next(snap, number));
}

const char snapshot_copy_doc[] =
    PyDoc_STR("copy($self, number, buffer, /)\n--\n\n"
              "Fill a writable buffer with the pages from `number` on.\n\n"
              "It has whole pages. Raises ValueError when there are not so "
              "many.");

PyObject *
snapshot_copy(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    const struct vmm_snap *snap = ((struct snapshot *)op)->snap;
    uint64_t number, count;
    Py_buffer to;

    if (arguments("copy", nargs, 2) ||
        as_uint(args[0], "number", snap->pages, &number) ||
        PyObject_GetBuffer(args[1], &to, PyBUF_WRITABLE))
        return NULL;
    count = (uint64_t)to.len / VMM_PAGE_SIZE;
    if ((uint64_t)to.len % VMM_PAGE_SIZE || count > snap->pages - number) {
        PyErr_Format(PyExc_ValueError,
                     "%zd bytes are not whole pages of the %llu from there on",
                     to.len, (unsigned long long)(snap->pages - number));
        PyBuffer_Release(&to);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    vmm_snap_copy(snap, number, count, to.buf);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&to);
    Py_RETURN_NONE;
}

const char snapshot_fileno_doc[] = PyDoc_STR(
    "fileno($self, /)\n--\n\n"
    "The descriptor of the file that the root's image is in; it is its own.");

PyObject *
snapshot_fileno(PyObject *op, PyObject *ignored)
{
    const struct vmm_snap *root = ((struct snapshot *)op)->snap;

    (void)ignored;
    while (root->parent)
        root = root->parent;
    return PyLong_FromLong(root->fd);
}

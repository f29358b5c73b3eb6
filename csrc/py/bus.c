/* SPDX-License-Identifier: Apache-2.0 */
/* bus.c - Bus: who answers where */
#include <string.h>

#include "claim.h"

struct bus {
    PyObject_HEAD
    struct vm *vm;
    struct ports *ports; /* one of the VM's two */
};

PyObject *
bus_new(struct state *state, struct vm *vm, struct ports *ports)
{
    struct bus *self =
        (struct bus *)state->bus_type->tp_alloc(state->bus_type, 0);

    if (self) {
        self->vm = (struct vm *)Py_NewRef(vm);
        self->ports = ports;
    }
    return (PyObject *)self;
}

static int
bus_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct bus *)op)->vm);
    return 0;
}

static int
bus_clear(PyObject *op)
{
    Py_CLEAR(((struct bus *)op)->vm);
    return 0;
}

static void
bus_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    bus_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

/* The bus of a VM that is open, else NULL with an exception. */
static struct vmm_bus *
open_bus(PyObject *op)
{
    struct bus *self = (struct bus *)op;

    if (self->vm && !self->vm->closed)
        return self->ports->bus;
    raise_closed(op);
    return NULL;
}

struct ports *
bus_ports(PyObject *op)
{
    return open_bus(op) ? ((struct bus *)op)->ports : NULL;
}

/* -- ports ----------------------------------------------------------------- */

int
ports_traverse(struct ports *ports, visitproc visit, void *arg)
{
    for (Py_ssize_t i = 0; i < ports->count; i++) {
        Py_VISIT(ports->claim[i]->device);
        Py_VISIT(ports->claim[i]->read);
        Py_VISIT(ports->claim[i]->write);
        Py_VISIT(ports->claim[i]->read_many);
        Py_VISIT(ports->claim[i]->registers);
        Py_VISIT(ports->claim[i]->owner);
    }
    return 0;
}

void
ports_clear(struct ports *ports)
{
    struct claim **claim = ports->claim;
    Py_ssize_t count = ports->count;

    ports->claim = NULL;
    ports->count = 0;
    ports->posting = false;
    for (Py_ssize_t i = 0; i < count; i++) {
        /* Off the bus first: nothing may find a claim that is gone. */
        vmm_bus_remove(ports->bus, claim[i]->base);
        claim_free(claim[i]);
    }
    PyMem_Free(claim);
}

static void
ports_look(struct ports *ports)
{
    ports->posting = false;
    for (Py_ssize_t i = 0; i < ports->count; i++) {
        if (ports->claim[i]->registers &&
            registers_posting(ports->claim[i]->registers))
            ports->posting = true;
    }
}

/* Remembers a claim; 0 or -1 with an exception. */
static int
ports_keep(struct ports *ports, struct claim *claim)
{
    struct claim **more =
        PyMem_Realloc(ports->claim, (size_t)(ports->count + 1) * sizeof *more);

    if (!more) {
        PyErr_NoMemory();
        return -1;
    }
    ports->claim = more;
    more[ports->count++] = claim;
    ports_look(ports);
    return 0;
}

static void
ports_drop(struct ports *ports, struct claim *claim)
{
    for (Py_ssize_t i = 0; i < ports->count; i++) {
        if (ports->claim[i] != claim)
            continue;
        ports->claim[i] = ports->claim[--ports->count];
        claim_free(claim);
        break;
    }
    ports_look(ports);
}

static PyObject *
raise_add(const struct vmm_range *range, const struct vmm_range *other,
          uint64_t limit, int err)
{
    char text[120];

    if (err == -EEXIST) {
        const struct claim *claim = other->owner;

        snprintf(
            text, sizeof text, "%#llx..%#llx overlaps %#llx..%#llx of",
            (unsigned long long)range->base, (unsigned long long)range->last,
            (unsigned long long)other->base, (unsigned long long)other->last);
        return PyErr_Format(PyExc_ValueError, "%s %R", text,
                            claim ? claim->device : Py_None);
    }
    if (err == -ENOMEM)
        return PyErr_NoMemory();
    snprintf(text, sizeof text, "%#llx..%#llx is no range up to %#llx",
             (unsigned long long)range->base, (unsigned long long)range->last,
             (unsigned long long)limit);
    PyErr_SetString(PyExc_ValueError, text);
    return NULL;
}

PyDoc_STRVAR(
    add_doc,
    "add($self, base, size, device, /)\n--\n\n"
    "Let `device` answer accesses to `size` addresses from `base` on.\n\n"
    "A device is a Console, an ExitPort, a VirtioMMIO, which are handled in C, "
    "or any\nobject with read(offset, size) -> int and write(offset, size, "
    "value). Its methods\nare looked up here, once. Raises ValueError when the "
    "range is taken (naming the\noccupant) or no range of this bus.");

static PyObject *
bus_add(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vmm_range range = {0}, other = {0};
    struct vmm_bus *bus = open_bus(op);
    struct claim *claim;
    uint64_t size;
    int err;

    if (!bus)
        return NULL;
    if (arguments("add", nargs, 3))
        return NULL;
    if (as_uint(args[0], "base", UINT64_MAX, &range.base) ||
        as_uint(args[1], "size", UINT64_MAX, &size))
        return NULL;
    range.last = range.base + size - 1;
    if (!size)
        return PyErr_Format(PyExc_ValueError, "size 0 is no range");
    claim = claim_new(state_of(Py_TYPE(op)), args[2], size, &range);
    if (!claim)
        return NULL;
    /* Without the GIL: a native device may hold the lock for long. */
    Py_BEGIN_ALLOW_THREADS
    err = vmm_bus_add(bus, &range, &other);
    Py_END_ALLOW_THREADS
    if (err) {
        /* Whose claim it is must be asked under the GIL. */
        if (err == -EEXIST && vmm_bus_find(bus, other.base, 1, &other))
            other.owner = NULL;
        raise_add(&range, &other, bus->limit, err);
        claim_free(claim);
        return NULL;
    }
    if (ports_keep(((struct bus *)op)->ports, claim)) {
        vmm_bus_remove(bus, range.base);
        claim_free(claim);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(remove_doc,
             "remove($self, base, /)\n--\n\n"
             "Remove the range that starts at `base`; ValueError when none "
             "does.");

static PyObject *
bus_remove(PyObject *op, PyObject *arg)
{
    struct vmm_bus *bus = open_bus(op);
    struct vmm_range range;
    uint64_t base;
    int err;

    if (!bus || as_uint(arg, "base", UINT64_MAX, &base))
        return NULL;
    err = vmm_bus_find(bus, base, 1, &range);
    if (!err && range.base != base)
        err = -ENOENT;
    if (!err) {
        Py_BEGIN_ALLOW_THREADS
        err = vmm_bus_remove(bus, base);
        Py_END_ALLOW_THREADS
    }
    if (err)
        return PyErr_Format(PyExc_ValueError, "no range starts at %S", arg);
    ports_drop(((struct bus *)op)->ports, range.owner);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    refresh_doc,
    "refresh($self, base, /)\n--\n\n"
    "Look up the methods of the device whose range starts at `base` again.\n\n"
    "Accesses that follow go to those; both change at once. Raises ValueError "
    "when no\nrange of a Python device starts there.");

static PyObject *
bus_refresh(PyObject *op, PyObject *arg)
{
    struct vmm_bus *bus = open_bus(op);
    struct claim *claim, fresh = {0}, old;
    const struct vmm_bus_ops *ops;
    struct vmm_range range = {0};
    PyObject *device;
    uint64_t base;
    bool found;

    if (!bus || as_uint(arg, "base", UINT64_MAX, &base))
        return NULL;
    found = !vmm_bus_find(bus, base, 1, &range) && range.base == base;
    claim = found ? range.owner : NULL;
    if (!claim || !claim->read)
        return PyErr_Format(PyExc_ValueError,
                            "no range of a Python device starts at %S", arg);
    device = Py_NewRef(claim->device);
    if (claim_look_up(state_of(Py_TYPE(op)), &fresh, device)) {
        Py_DECREF(device);
        return NULL;
    }
    /* Looking them up ran Python: the claim may have gone. */
    found = !vmm_bus_find(bus, base, 1, &range) && range.owner == claim &&
            claim->device == device;
    Py_DECREF(device);
    if (!found) {
        claim_clear(&fresh);
        return PyErr_Format(PyExc_ValueError, "no range starts at %S any more",
                            arg);
    }
    old = *claim;
    fresh.base = old.base;
    fresh.device = old.device;
    *claim = fresh;
    ops = claim_ops(claim);
    ports_look(((struct bus *)op)->ports);
    /* `old` keeps the old filter, which may be asked until then. If that has to
     * be waited for, the new one may be removed meanwhile, with its claim. */
    if (vmm_bus_replace(bus, base, claim, ops, fresh.filter, false) == -EBUSY) {
        Py_XINCREF(fresh.registers);
        Py_BEGIN_ALLOW_THREADS
        vmm_bus_replace(bus, base, claim, ops, fresh.filter, true);
        Py_END_ALLOW_THREADS
        Py_XDECREF(fresh.registers);
    }
    claim_clear(&old);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(find_doc, "find($self, addr, size=1, /)\n--\n\n"
                       "The device that would answer this access, or None.");

static PyObject *
bus_find(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vmm_bus *bus = open_bus(op);
    struct vmm_range range;
    uint64_t addr, size = 1;

    if (!bus)
        return NULL;
    if (nargs < 1 || nargs > 2)
        return PyErr_Format(PyExc_TypeError,
                            "find takes 1 or 2 arguments (%zd given)", nargs);
    if (as_uint(args[0], "addr", UINT64_MAX, &addr) ||
        (nargs == 2 && as_uint(args[1], "size", 8, &size)))
        return NULL;
    if (vmm_bus_find(bus, addr, (unsigned)size, &range))
        Py_RETURN_NONE;
    return Py_NewRef(((struct claim *)range.owner)->device);
}

/* -- accesses -------------------------------------------------------------- */

int
ports_deliver(const struct ports *ports)
{
    int err = 0;

    if (!ports->posting)
        return 0;
    /* A delivery may change what is on the bus. */
    for (Py_ssize_t i = 0; !err && i < ports->count; i++) {
        const struct claim *claim = ports->claim[i];

        if (claim->registers && registers_waiting(claim->registers))
            err = claim_deliver(claim);
    }
    return err;
}

int
ports_dispatch_string(const struct ports *ports, const struct vmm_exit *exit,
                      uint8_t *data)
{
    struct vmm_range range;
    const struct claim *claim;

    if (vmm_bus_find(ports->bus, exit->addr, exit->len, &range))
        return 1;
    claim = range.owner;
    return claim_string(claim, exit, exit->addr - range.base, data);
}

/*
 * The range is looked up again: since the core did, another thread may have
 * removed it. Under the GIL it stays.
 */
int
ports_dispatch(const struct ports *ports, const struct vmm_exit *exit,
               uint64_t *val)
{
    struct vmm_range range;
    const struct claim *claim;
    uint64_t offset;

    if (vmm_bus_find(ports->bus, exit->addr, exit->len, &range))
        return -ENOENT;
    claim = range.owner;
    offset = exit->addr - range.base;
    if (exit->reason == VMM_EXIT_OWNER)
        return claim_service(claim);
    if (!claim->read)
        return -ENOENT; /* another device took its place */
    return claim_access(claim, exit, offset, val);
}

/* One access by the host. Returns 0, or -1 with an exception. */
static int
host_access(PyObject *op, struct vmm_exit *exit)
{
    struct vmm_bus *bus = open_bus(op);
    int answer;

    if (!bus)
        return -1;
    Py_BEGIN_ALLOW_THREADS
    if (exit->write)
        answer =
            vmm_bus_write(bus, exit->addr, exit->len, exit->val, &exit->range);
    else
        answer =
            vmm_bus_read(bus, exit->addr, exit->len, &exit->val, &exit->range);
    Py_END_ALLOW_THREADS
    if (answer == VMM_BUS_OWNER || answer == VMM_BUS_OUTSIDE) {
        exit->reason =
            answer == VMM_BUS_OWNER ? VMM_EXIT_OWNER : VMM_EXIT_ACCESS;
        answer = ports_dispatch(((struct bus *)op)->ports, exit, &exit->val);
    }
    if (answer == -ENOENT) {
        char text[80];

        snprintf(text, sizeof text, "nobody claims %u bytes at %#llx",
                 exit->len, (unsigned long long)exit->addr);
        PyErr_SetString(PyExc_ValueError, text);
    }
    return answer < 0 ? -1 : 0;
}

static int
as_access(PyObject *const *args, struct vmm_exit *exit)
{
    uint64_t size;

    if (as_uint(args[0], "addr", UINT64_MAX, &exit->addr) ||
        as_uint(args[1], "size", 8, &size))
        return -1;
    if (!size) {
        PyErr_SetString(PyExc_ValueError, "size 0 is outside 1..8");
        return -1;
    }
    exit->len = (unsigned)size;
    return 0;
}

PyDoc_STRVAR(read_doc,
             "read($self, addr, size, /)\n--\n\n"
             "What a guest's read of `size` bytes (1 to 8) at `addr` would "
             "get.\n\nRaises ValueError when nobody claims it.");

static PyObject *
bus_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vmm_exit exit = {0};

    if (arguments("read", nargs, 2))
        return NULL;
    if (as_access(args, &exit) || host_access(op, &exit))
        return NULL;
    return PyLong_FromUnsignedLongLong(exit.val);
}

PyDoc_STRVAR(write_doc,
             "write($self, addr, size, value, /)\n--\n\n"
             "Do what a guest's write of `size` bytes (1 to 8) at `addr` "
             "would.\n\nRaises ValueError when nobody claims it.");

static PyObject *
bus_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vmm_exit exit = {.write = true};

    if (arguments("write", nargs, 3))
        return NULL;
    if (as_access(args, &exit) ||
        as_uint(args[2], "value", vmm_ones(exit.len), &exit.val) ||
        host_access(op, &exit))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef bus_methods[] = {
    {"add", (PyCFunction)(void (*)(void))bus_add, METH_FASTCALL, add_doc},
    {"remove", bus_remove, METH_O, remove_doc},
    {"refresh", bus_refresh, METH_O, refresh_doc},
    {"find", (PyCFunction)(void (*)(void))bus_find, METH_FASTCALL, find_doc},
    {"read", (PyCFunction)(void (*)(void))bus_read, METH_FASTCALL, read_doc},
    {"write", (PyCFunction)(void (*)(void))bus_write, METH_FASTCALL, write_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
bus_ranges(PyObject *op, void *closure)
{
    struct vmm_bus *bus = open_bus(op);
    PyObject *list;

    (void)closure;
    if (!bus)
        return NULL;
    /* Ranges change under the GIL or while it is waited for: no lock here
     * could be held by a thread that wants the GIL. */
    list = PyList_New(0);
    pthread_rwlock_rdlock(&bus->lock);
    for (unsigned i = 0; list && i < bus->count; i++) {
        const struct vmm_range *range = &bus->range[i];
        PyObject *item =
            Py_BuildValue("(KKO)", (unsigned long long)range->base,
                          (unsigned long long)(range->last - range->base + 1),
                          ((struct claim *)range->owner)->device);

        if (!item || PyList_Append(list, item))
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    pthread_rwlock_unlock(&bus->lock);
    return list;
}

static PyGetSetDef bus_getset[] = {
    {"ranges", bus_ranges, NULL,
     "Ranges by address: (base, size, device) each.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *
bus_repr(PyObject *op)
{
    struct bus *self = (struct bus *)op;

    if (!self->vm || self->vm->closed)
        return PyUnicode_FromString("<Bus closed>");
    return PyUnicode_FromFormat("<Bus of %u ranges>", self->ports->bus->count);
}

PyDoc_STRVAR(
    bus_doc,
    "The ports or the addresses of a VM and who answers there.\n\n"
    "VM.pio and VM.mmio are the two. Ranges never overlap; an access that "
    "straddles a\nrange's end goes to nobody.\n\n"
    "Threads: any; ranges may be added and removed while the guest runs.");

static PyType_Slot bus_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)bus_doc},
    {Py_tp_dealloc, bus_dealloc},
    {Py_tp_traverse, bus_traverse},
    {Py_tp_clear, bus_clear},
    {Py_tp_repr, bus_repr},
    {Py_tp_methods, bus_methods},
    {Py_tp_getset, bus_getset},
    {0, NULL},
};

PyType_Spec bus_spec = {
    .name = "pyvmm._vmm.Bus",
    .basicsize = sizeof(struct bus),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = bus_slots,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c - Memory: guest RAM by guest-physical address, and views of it */
#include <endian.h>
#include <string.h>

#include "../vmm/snap.h"
#include "py.h"

/* -- users ----------------------------------------------------------------- */

static void
free_ram(struct memory *self)
{
    vmm_snap_leave(&self->mem);
    vmm_mem_fini(&self->mem);
}

void
memory_hold(struct memory *memory)
{
    Py_INCREF(memory);
    memory->users++;
}

void
memory_release(struct memory *memory)
{
    memory->users--;
    if (memory->closed && !memory->users)
        free_ram(memory);
    Py_DECREF(memory);
}

struct memory *
memory_check(struct state *state, PyObject *arg)
{
    struct memory *memory = (struct memory *)arg;

    if (!Py_IS_TYPE(arg, state->memory_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Memory, not %.80s",
                     Py_TYPE(arg)->tp_name);
        return NULL;
    }
    if (memory->closed) {
        raise_closed(arg);
        return NULL;
    }
    return memory;
}

/* -- views: the exporter behind a memoryview ------------------------------- */

struct view {
    PyObject_HEAD
    struct memory *memory;
    void *hva;
    Py_ssize_t len;
    bool readonly;
    struct view *next; /* of the writable ones that are alive */
    struct view **at;  /* what points to this one, or NULL */
};

/* Whoever has a writable view may write at any moment, and says nothing. */
void
memory_mark_views(struct memory *memory)
{
    for (const struct view *view = memory->views; view; view = view->next)
        vmm_mem_mark_hva(&memory->mem, view->hva, (uint64_t)view->len);
}

static int
view_getbuffer(PyObject *op, Py_buffer *buf, int flags)
{
    struct view *self = (struct view *)op;

    return PyBuffer_FillInfo(buf, op, self->hva, self->len, self->readonly,
                             flags);
}

static void
view_dealloc(PyObject *op)
{
    struct view *self = (struct view *)op;
    PyTypeObject *type = Py_TYPE(op);

    if (self->at) {
        /* What was written since the last look would be forgotten. */
        vmm_mem_mark_hva(&self->memory->mem, self->hva, (uint64_t)self->len);
        *self->at = self->next;
        if (self->next)
            self->next->at = self->at;
    }
    if (self->memory)
        memory_release(self->memory);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyType_Slot view_slots[] = {
    {Py_tp_dealloc, view_dealloc},
    {Py_bf_getbuffer, view_getbuffer},
    {0, NULL},
};

PyType_Spec view_spec = {
    .name = "pyvmm._vmm._View",
    .basicsize = sizeof(struct view),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = view_slots,
};

PyObject *
memory_view(struct state *state, struct memory *memory, void *hva,
            Py_ssize_t len, bool readonly)
{
    struct view *view;
    PyObject *ret;

    view = (struct view *)state->view_type->tp_alloc(state->view_type, 0);
    if (!view)
        return NULL;
    memory_hold(memory);
    view->memory = memory;
    view->hva = hva;
    view->len = len;
    view->readonly = readonly;
    if (!readonly) {
        view->next = memory->views;
        view->at = &memory->views;
        if (view->next)
            view->next->at = &view->next;
        memory->views = view;
    }
    ret = PyMemoryView_FromObject((PyObject *)view);
    Py_DECREF(view);
    return ret;
}

/* -- Memory ---------------------------------------------------------------- */

static PyObject *
memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {NULL};
    struct memory *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Memory", KEYWORDS(names)))
        return NULL;
    self = (struct memory *)type->tp_alloc(type, 0);
    if (self)
        vmm_mem_init(&self->mem);
    return (PyObject *)self;
}

static void
memory_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    free_ram((struct memory *)op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
memory_repr(PyObject *op)
{
    struct memory *self = (struct memory *)op;
    PyObject *text, *next;

    if (self->closed)
        return PyUnicode_FromString("<Memory closed>");
    text = PyUnicode_FromString("<Memory");
    for (unsigned i = 0; text && i < self->mem.count; i++) {
        const struct vmm_region *region = &self->mem.region[i];
        char part[80];

        snprintf(part, sizeof part, " %#llx+%#llx%s",
                 (unsigned long long)region->gpa,
                 (unsigned long long)region->len,
                 region->flags & VMM_MEM_READONLY ? " (read-only)" : "");
        next = PyUnicode_FromFormat("%U%s", text, part);
        Py_SETREF(text, next);
    }
    if (!text)
        return NULL;
    next = PyUnicode_FromFormat("%U>", text);
    Py_DECREF(text);
    return next;
}

PyDoc_STRVAR(
    add_doc,
    "add($self, /, gpa, size, flags=0)\n--\n\n"
    "Add a region of `size` bytes of zeros at guest-physical address `gpa`.\n\n"
    "Both are multiples of 4096. `flags`: MEM_READONLY (the guest's writes "
    "exit),\nMEM_SHARED (a memfd), MEM_HUGE (advise huge pages). Raises "
    "ValueError when the\nregion overlaps another or a VM has been made of "
    "this memory, OSError when the\nhost refuses.");

static PyObject *
raise_add(struct memory *self, uint64_t gpa, uint64_t size, int err)
{
    char text[200];

    switch (err) {
    case -EINVAL:
        snprintf(text, sizeof text,
                 "region %#llx + %#llx: address and size must be multiples of "
                 "4096, the size not zero and the end at most 2^52",
                 (unsigned long long)gpa, (unsigned long long)size);
        break;
    case -EEXIST:
        for (unsigned i = 0; i < self->mem.count; i++) {
            const struct vmm_region *other = &self->mem.region[i];

            if (other->gpa < gpa + size && gpa < other->gpa + other->len)
                snprintf(text, sizeof text,
                         "region %#llx + %#llx overlaps the one at %#llx + "
                         "%#llx",
                         (unsigned long long)gpa, (unsigned long long)size,
                         (unsigned long long)other->gpa,
                         (unsigned long long)other->len);
        }
        break;
    case -EBUSY:
        snprintf(text, sizeof text,
                 "a VM was made of this memory: regions are added before");
        break;
    case -ENOSPC:
        snprintf(text, sizeof text, "a memory has at most %u regions",
                 VMM_MEM_MAX_REGIONS);
        break;
    default:
        return raise_host(self->mem.call, -err);
    }
    PyErr_SetString(PyExc_ValueError, text);
    return NULL;
}

static PyObject *
memory_add(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"gpa", "size", "flags", NULL};
    struct memory *self = (struct memory *)op;
    PyObject *gpa_arg, *size_arg;
    unsigned flags = 0;
    uint64_t gpa, size;
    int err;

    if (self->closed)
        return raise_closed(op);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|I:add", KEYWORDS(names),
                                     &gpa_arg, &size_arg, &flags) ||
        as_uint(gpa_arg, "gpa", UINT64_MAX, &gpa) ||
        as_uint(size_arg, "size", UINT64_MAX, &size))
        return NULL;
    err = vmm_mem_add(&self->mem, gpa, size, flags);
    if (err)
        return raise_add(self, gpa, size, err);
    Py_RETURN_NONE;
}

/* The two leading arguments of most methods. */
static int
as_range(PyObject *gpa_arg, PyObject *size_arg, uint64_t *gpa, uint64_t *size)
{
    if (as_uint(gpa_arg, "gpa", UINT64_MAX, gpa))
        return -1;
    return as_uint(size_arg, "size", PY_SSIZE_T_MAX, size);
}

PyDoc_STRVAR(span_doc,
             "span($self, gpa, size, /)\n--\n\n"
             "How many bytes from `gpa` on, `size` at most, are RAM without a "
             "gap.");

static PyObject *
memory_span(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct memory *self = (struct memory *)op;
    uint64_t gpa, size;

    if (self->closed)
        return raise_closed(op);
    if (arguments("span", nargs, 2) || as_range(args[0], args[1], &gpa, &size))
        return NULL;
    return PyLong_FromUnsignedLongLong(vmm_mem_span(&self->mem, gpa, size));
}

PyDoc_STRVAR(read_doc,
             "read($self, gpa, size, /)\n--\n\n"
             "Copy `size` bytes out, across borders of adjacent regions.\n\n"
             "Raises ValueError when any byte is outside RAM.");

static PyObject *
memory_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct memory *self = (struct memory *)op;
    uint64_t gpa, size;
    PyObject *ret;

    if (self->closed)
        return raise_closed(op);
    if (arguments("read", nargs, 2) || as_range(args[0], args[1], &gpa, &size))
        return NULL;
    if (vmm_mem_span(&self->mem, gpa, size) != size)
        return raise_gpa(&self->mem, gpa, size);
    ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (ret)
        vmm_mem_read(&self->mem, gpa, PyBytes_AS_STRING(ret), size);
    return ret;
}

PyDoc_STRVAR(write_doc,
             "write($self, gpa, data, /)\n--\n\n"
             "Copy bytes in, across borders of adjacent regions; all or "
             "nothing.\n\n"
             "The host may write to regions that are read-only to the guest. "
             "Raises\nValueError when any byte is outside RAM.");

static PyObject *
memory_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct memory *self = (struct memory *)op;
    Py_buffer data;
    uint64_t gpa;
    int err;

    if (self->closed)
        return raise_closed(op);
    if (arguments("write", nargs, 2) ||
        as_uint(args[0], "gpa", UINT64_MAX, &gpa) ||
        PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE))
        return NULL;
    err = vmm_mem_write(&self->mem, gpa, data.buf, (uint64_t)data.len,
                        VMM_MEM_HOST);
    if (err)
        raise_gpa(&self->mem, gpa, (uint64_t)data.len);
    PyBuffer_Release(&data);
    if (err)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fill_doc, "fill($self, gpa, value, size, /)\n--\n\n"
                       "Set `size` bytes to `value` (0 to 255).\n\n"
                       "Raises ValueError when any byte is outside RAM.");

static PyObject *
memory_fill(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct memory *self = (struct memory *)op;
    uint64_t gpa, value, size;

    if (self->closed)
        return raise_closed(op);
    if (arguments("fill", nargs, 3) ||
        as_range(args[0], args[2], &gpa, &size) ||
        as_uint(args[1], "value", 255, &value))
        return NULL;
    if (vmm_mem_fill(&self->mem, gpa, (uint8_t)value, size, VMM_MEM_HOST))
        return raise_gpa(&self->mem, gpa, size);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    view_doc,
    "view($self, /, gpa, size, readonly=False)\n--\n\n"
    "A memoryview of guest RAM, without a copy.\n\n"
    "The range lies in one region. The RAM lives as long as a view of it, even "
    "after\nclose(). A writable view marks its pages dirty when it is made. "
    "Raises ValueError.");

static PyObject *
memory_make_view(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"gpa", "size", "readonly", NULL};
    struct memory *self = (struct memory *)op;
    PyObject *gpa_arg, *size_arg;
    uint64_t gpa, size, got;
    int readonly = 0;
    void *hva;

    if (self->closed)
        return raise_closed(op);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|p:view", KEYWORDS(names),
                                     &gpa_arg, &size_arg, &readonly) ||
        as_range(gpa_arg, size_arg, &gpa, &size))
        return NULL;
    hva = vmm_mem_ptr(&self->mem, gpa, size, !readonly, VMM_MEM_HOST, &got);
    if (!hva || got != size)
        return raise_gpa(&self->mem, gpa, size);
    return memory_view(state_of(Py_TYPE(op)), self, hva, (Py_ssize_t)size,
                       readonly);
}

/* Reads `len` bytes as a little-endian integer. */
static PyObject *
read_int(PyObject *op, PyObject *arg, unsigned len)
{
    struct memory *self = (struct memory *)op;
    uint64_t gpa, val = 0;

    if (self->closed)
        return raise_closed(op);
    if (as_uint(arg, "gpa", UINT64_MAX, &gpa))
        return NULL;
    if (vmm_mem_read(&self->mem, gpa, &val, len))
        return raise_gpa(&self->mem, gpa, len);
    return PyLong_FromUnsignedLongLong(le64toh(val));
}

static PyObject *
write_int(PyObject *op, PyObject *const *args, Py_ssize_t nargs, unsigned len)
{
    struct memory *self = (struct memory *)op;
    uint64_t gpa, val;

    if (self->closed)
        return raise_closed(op);
    if (arguments("write", nargs, 2) ||
        as_uint(args[0], "gpa", UINT64_MAX, &gpa) ||
        as_uint(args[1], "value", vmm_ones(len), &val))
        return NULL;
    val = htole64(val);
    if (vmm_mem_write(&self->mem, gpa, &val, len, VMM_MEM_HOST))
        return raise_gpa(&self->mem, gpa, len);
    Py_RETURN_NONE;
}

#define INT_METHODS(bits)                                                      \
    static PyObject *read_u##bits(PyObject *op, PyObject *arg)                 \
    {                                                                          \
        return read_int(op, arg, (bits) / 8);                                  \
    }                                                                          \
    static PyObject *write_u##bits(PyObject *op, PyObject *const *args,        \
                                   Py_ssize_t nargs)                           \
    {                                                                          \
        return write_int(op, args, nargs, (bits) / 8);                         \
    }

INT_METHODS(8)
INT_METHODS(16)
INT_METHODS(32)
INT_METHODS(64)

#define INT_DEFS(bits)                                                         \
    {"read_u" #bits, read_u##bits, METH_O,                                     \
     "read_u" #bits "($self, gpa, /)\n--\n\n"                                  \
     "The unsigned little-endian integer of " #bits " bits at `gpa`.\n\n"      \
     "Raises ValueError outside RAM."},                                        \
    {                                                                          \
        "write_u" #bits, (PyCFunction)(void (*)(void))write_u##bits,           \
            METH_FASTCALL,                                                     \
            "write_u" #bits "($self, gpa, value, /)\n--\n\n"                   \
            "Store an unsigned little-endian integer of " #bits " bits.\n\n"   \
            "Raises ValueError outside RAM or outside the range of the type."  \
    }

PyDoc_STRVAR(dirty_doc,
             "take_dirty($self, /)\n--\n\n"
             "Addresses of the pages that the host wrote since the last "
             "call.\n\n"
             "Sorted; writes of the guest itself are in KVM's dirty log.");

static PyObject *
memory_take_dirty(PyObject *op, PyObject *ignored)
{
    struct memory *self = (struct memory *)op;
    PyObject *list;

    (void)ignored;
    if (self->closed)
        return raise_closed(op);
    list = PyList_New(0);
    for (unsigned i = 0; list && i < self->mem.count; i++) {
        const struct vmm_region *region = &self->mem.region[i];
        uint64_t pages = region->len / VMM_PAGE_SIZE;
        uint64_t *bits = PyMem_New(uint64_t, pages / 64 + 1);

        if (!bits) {
            Py_DECREF(list);
            return PyErr_NoMemory();
        }
        vmm_mem_take_dirty(&self->mem, i, bits);
        for (uint64_t page = 0; list && page < pages; page++) {
            PyObject *gpa;

            if (!(bits[page / 64] >> page % 64 & 1))
                continue;
            gpa =
                PyLong_FromUnsignedLongLong(region->gpa + page * VMM_PAGE_SIZE);
            if (!gpa || PyList_Append(list, gpa))
                Py_CLEAR(list);
            Py_XDECREF(gpa);
        }
        PyMem_Free(bits);
    }
    return list;
}

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Refuse further use; the RAM goes when its last user does.\n\n"
             "Users are VMs, devices and views. May be called twice.");

static PyObject *
memory_close(PyObject *op, PyObject *ignored)
{
    struct memory *self = (struct memory *)op;

    (void)ignored;
    self->closed = true;
    if (!self->users)
        free_ram(self);
    Py_RETURN_NONE;
}

static PyMethodDef memory_methods[] = {
    {"add", (PyCFunction)(void (*)(void))memory_add,
     METH_VARARGS | METH_KEYWORDS, add_doc},
    {"span", (PyCFunction)(void (*)(void))memory_span, METH_FASTCALL, span_doc},
    {"read", (PyCFunction)(void (*)(void))memory_read, METH_FASTCALL, read_doc},
    {"write", (PyCFunction)(void (*)(void))memory_write, METH_FASTCALL,
     write_doc},
    {"fill", (PyCFunction)(void (*)(void))memory_fill, METH_FASTCALL, fill_doc},
    {"view", (PyCFunction)(void (*)(void))memory_make_view,
     METH_VARARGS | METH_KEYWORDS, view_doc},
    INT_DEFS(8),
    INT_DEFS(16),
    INT_DEFS(32),
    INT_DEFS(64),
    {"take_dirty", memory_take_dirty, METH_NOARGS, dirty_doc},
    {"close", memory_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
memory_regions(PyObject *op, void *closure)
{
    struct memory *self = (struct memory *)op;
    PyObject *list;

    (void)closure;
    if (self->closed)
        return raise_closed(op);
    list = PyList_New(self->mem.count);
    for (unsigned i = 0; list && i < self->mem.count; i++) {
        const struct vmm_region *region = &self->mem.region[i];
        PyObject *item = Py_BuildValue(
            "(KKIi)", (unsigned long long)region->gpa,
            (unsigned long long)region->len, region->flags, region->fd);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *
memory_size(PyObject *op, void *closure)
{
    struct memory *self = (struct memory *)op;
    uint64_t total = 0;

    (void)closure;
    if (self->closed)
        return raise_closed(op);
    for (unsigned i = 0; i < self->mem.count; i++)
        total += self->mem.region[i].len;
    return PyLong_FromUnsignedLongLong(total);
}

static PyObject *
memory_closed(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct memory *)op)->closed);
}

static PyGetSetDef memory_getset[] = {
    {"regions", memory_regions, NULL,
     "Regions by address: (gpa, size, flags, memfd or -1) each.", NULL},
    {"size", memory_size, NULL, "Bytes of RAM in all regions.", NULL},
    {"closed", memory_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    memory_doc,
    "Memory()\n--\n\n"
    "Guest RAM: regions of guest-physical addresses (gpa).\n\n"
    "Add regions, then make a VM of it. Addresses are ints; every access is "
    "checked\nand raises ValueError with the address and the limit.\n\n"
    "Threads: any. Bytes that the guest uses may change at any moment.");

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)memory_doc},
    {Py_tp_new, memory_new},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_repr, memory_repr},
    {Py_tp_methods, memory_methods},
    {Py_tp_getset, memory_getset},
    {0, NULL},
};

PyType_Spec memory_spec = {
    .name = "pyvmm._vmm.Memory",
    .basicsize = sizeof(struct memory),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = memory_slots,
};

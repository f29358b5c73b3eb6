/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registers.c - Registers: those that a device declares
 *
 * One object for each device. It has a filter of the core for each of the
 * device's ranges, which answers registers that just keep a value without the
 * GIL; what has a method is called here. pyvmm/registers.py says what there is.
 *
 * A value is in a cell of its own. When a device's class is replaced while the
 * guest runs, a second object with other tables has the same cells, so that no
 * write is lost between the two.
 */
#include "registers.h"

/* -- making them ----------------------------------------------------------- */

static int
add_name(struct registers *self, Py_ssize_t number, PyObject *name)
{
    PyObject *value = PyLong_FromSsize_t(number);
    int err = value ? PyDict_SetItem(self->index, name, value) : -1;

    Py_XDECREF(value);
    return err;
}

Py_ssize_t
registers_find(const struct registers *self, PyObject *name)
{
    PyObject *number = PyDict_GetItemWithError(self->index, name);

    return number ? PyLong_AsSsize_t(number) : -1;
}

static PyObject *
callable_or_null(PyObject *arg)
{
    return arg == Py_None ? NULL : Py_NewRef(arg);
}

/* A new cell, or that of the same name which `before` has. */
static struct cell *
take_cell(const struct registers *before, PyObject *name, uint64_t reset)
{
    Py_ssize_t number = before ? registers_find(before, name) : -1;
    struct cell *cell;

    if (number >= 0) {
        before->reg[number].cell->users++;
        return before->reg[number].cell;
    }
    cell = PyErr_Occurred() ? NULL : PyMem_Malloc(sizeof *cell);
    if (!cell) {
        if (!PyErr_Occurred())
            PyErr_NoMemory();
        return NULL;
    }
    cell->users = 1;
    cell->value = reset;
    return cell;
}

/* One row of the table, see Registers' docstring. 0, or -1. */
static int
add_row(struct registers *self, PyObject *row, unsigned *limit)
{
    Py_ssize_t number = self->count;
    struct reg *reg = &self->reg[number];
    struct vmm_reg *core = &self->core[number];
    PyObject *name, *on_read, *on_write;
    unsigned long long offset, mask, readable, stored, w1c, kept, reset;
    unsigned range, len, posted;
    struct vmm_filter *filter;
    int old;

    if (!PyTuple_Check(row) ||
        !PyArg_ParseTuple(row, "UIKIKKKKKKOOpI:Registers", &name, &range,
                          &offset, &len, &mask, &readable, &stored, &w1c, &kept,
                          &reset, &on_read, &on_write, &old, &posted))
        return -1;
    if (range >= self->ranges || posted > VMM_POST_MOST ||
        (len != 1 && len != 2 && len != 4 && len != 8)) {
        PyErr_Format(PyExc_ValueError, "%R is no register", row);
        return -1;
    }
    filter = &self->filter[range];
    if (!filter->count)
        filter->reg = core;
    if (&filter->reg[filter->count] != core ||
        (filter->count && core[-1].offset + core[-1].len > offset)) {
        PyErr_Format(PyExc_ValueError, "%U is out of order", name);
        return -1;
    }
    reg->cell = take_cell(self->before, name, reset);
    if (!reg->cell)
        return -1;
    reg->name = Py_NewRef(name);
    reg->on_read = callable_or_null(on_read);
    reg->on_write = callable_or_null(on_write);
    reg->old = old;
    reg->mask = mask;
    reg->kept = kept;
    *core = (struct vmm_reg){
        .offset = offset,
        .len = len,
        .number = (unsigned)number,
        .value = &reg->cell->value,
        .readable = readable,
        .stored = stored,
        .w1c = w1c,
    };
    if (!reg->on_read)
        core->here |= VMM_REG_READ;
    if (!reg->on_write || posted)
        core->here |= VMM_REG_WRITE;
    if (posted)
        core->here |= VMM_REG_POSTED;
    *limit = posted > *limit ? posted : *limit;
    filter->count++;
    self->count++;
    return PyUnicode_GET_LENGTH(name) ? add_name(self, number, name) : 0;
}

/* There are posted writes, or there were before. */
static int
add_post(struct registers *self, unsigned limit)
{
    int err;

    if (!limit && !(self->before && self->before->post.room))
        return 0;
    err = vmm_post_init(&self->post, limit);
    self->delivery = err ? NULL : PyThread_allocate_lock();
    if (!self->delivery) {
        PyErr_NoMemory();
        return -1;
    }
    for (unsigned i = 0; i < self->ranges; i++)
        self->filter[i].post = &self->post;
    /* Nothing is answered without the owner until that is settled. */
    if (self->before)
        vmm_post_hold(&self->post);
    return 0;
}

static int
add_table(struct registers *self, PyObject *table, unsigned ranges)
{
    Py_ssize_t count = PyTuple_GET_SIZE(table);
    unsigned limit = 0;

    self->index = PyDict_New();
    if (!self->index)
        return -1;
    self->reg = PyMem_Calloc((size_t)count + 1, sizeof *self->reg);
    self->core = PyMem_Calloc((size_t)count + 1, sizeof *self->core);
    self->filter = PyMem_Calloc((size_t)ranges + 1, sizeof *self->filter);
    if (!self->reg || !self->core || !self->filter) {
        PyErr_NoMemory();
        return -1;
    }
    self->ranges = ranges;
    for (unsigned i = 0; i < ranges; i++)
        self->filter[i].reg = self->core;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (add_row(self, PyTuple_GET_ITEM(table, i), &limit))
            return -1;
    }
    return add_post(self, limit);
}

static PyObject *
registers_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"table", "ranges", "before", NULL};
    PyObject *table, *before = Py_None;
    struct registers *self;
    unsigned ranges;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!I|O:Registers",
                                     KEYWORDS(names), &PyTuple_Type, &table,
                                     &ranges, &before))
        return NULL;
    if (before != Py_None && !Py_IS_TYPE(before, type))
        return PyErr_Format(PyExc_TypeError, "before is Registers or None");
    if (ranges > VMM_POST_MOST)
        return PyErr_Format(PyExc_ValueError, "ranges %u is outside 0..%u",
                            ranges, VMM_POST_MOST);
    self = (struct registers *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (before != Py_None)
        self->before = (struct registers *)Py_NewRef(before);
    if (!add_table(self, table, ranges))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static int
registers_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct registers *self = (struct registers *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->before);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_VISIT(self->reg[i].on_read);
        Py_VISIT(self->reg[i].on_write);
    }
    return 0;
}

static int
registers_clear(PyObject *op)
{
    struct registers *self = (struct registers *)op;

    if (self->before && self->before->after == self)
        self->before->after = NULL;
    Py_CLEAR(self->before);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_CLEAR(self->reg[i].on_read);
        Py_CLEAR(self->reg[i].on_write);
    }
    return 0;
}

static void
registers_dealloc(PyObject *op)
{
    struct registers *self = (struct registers *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    registers_clear(op);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_XDECREF(self->reg[i].name);
        if (!--self->reg[i].cell->users)
            PyMem_Free(self->reg[i].cell);
    }
    Py_XDECREF(self->index);
    if (self->delivery)
        PyThread_free_lock(self->delivery);
    vmm_post_fini(&self->post);
    PyMem_Free(self->filter);
    PyMem_Free(self->core);
    PyMem_Free(self->reg);
    type->tp_free(op);
    Py_DECREF(type);
}

/* -- accesses -------------------------------------------------------------- */

/* "Alarm.fired, 4 bytes at 0x8, was read as 'x'; an int from 0 to 0xffffffff
 * was due" */
static int
bad_answer(PyObject *device, const struct reg *reg, const struct vmm_reg *core,
           PyObject *got)
{
    char place[64], limit[24];

    snprintf(place, sizeof place, "%u byte%s at 0x%llx", core->len,
             core->len == 1 ? "" : "s", (unsigned long long)core->offset);
    snprintf(limit, sizeof limit, "%#llx",
             (unsigned long long)vmm_ones(core->len));
    PyErr_Format(PyLong_Check(got) ? PyExc_ValueError : PyExc_TypeError,
                 "%.80s.%U, %s, was read as %R; an int from 0 to %s was due",
                 Py_TYPE(device)->tp_name, reg->name, place, got, limit);
    return -1;
}

/* What was posted comes before everything else. 0, or -1. */
static inline int
deliver_first(struct registers *self, PyObject *device)
{
    if (!self->before && (!self->post.room || !vmm_post_waiting(&self->post)))
        return 0;
    return registers_deliver((PyObject *)self, device);
}

/* All of one register. 0, or -1 with an exception. */
static int
read_one(const struct registers *self, const struct vmm_reg *core,
         PyObject *device, uint64_t *val)
{
    const struct reg *reg = &self->reg[core->number];
    PyObject *ret;
    int err = 0;

    if (!reg->on_read) {
        *val = vmm_reg_read(core);
        return 0;
    }
    ret = PyObject_CallOneArg(reg->on_read, device);
    if (!ret)
        return -1;
    *val = PyLong_Check(ret) ? PyLong_AsUnsignedLongLong(ret) : UINT64_MAX;
    if (!PyLong_Check(ret) || *val > vmm_ones(core->len) ||
        (*val == UINT64_MAX && PyErr_Occurred())) {
        PyErr_Clear();
        err = bad_answer(device, reg, core, ret);
    }
    Py_DECREF(ret);
    return err;
}

static int
write_one(struct registers *self, const struct vmm_reg *core, PyObject *device,
          uint64_t val)
{
    const struct reg *reg = &self->reg[core->number];
    PyObject *stack[4] = {NULL, device, NULL, NULL}, *ret = NULL;
    uint64_t old;

    if (core->here & VMM_REG_POSTED)
        return registers_post(self, core, device, val);
    if (deliver_first(self, device))
        return -1;
    old = vmm_reg_write(core, val);
    if (!reg->on_write)
        return 0;
    stack[2] = PyLong_FromUnsignedLongLong(val & (core->stored | core->w1c));
    if (stack[2] && reg->old)
        stack[3] = PyLong_FromUnsignedLongLong(old & reg->mask);
    if (stack[2] && (stack[3] || !reg->old))
        ret = PyObject_Vectorcall(
            reg->on_write, stack + 1,
            (reg->old ? 3 : 2) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(stack[2]);
    Py_XDECREF(stack[3]);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

/* Of several registers, or of a part of one: put together by offset. */
static int
read_parts(struct registers *self, const struct vmm_filter *filter,
           PyObject *device, uint64_t offset, unsigned len, uint64_t *val)
{
    uint64_t total = 0, part;

    for (unsigned i = vmm_filter_first(filter, offset); i < filter->count;
         i++) {
        const struct vmm_reg *core = &filter->reg[i];

        if (core->offset > offset + (len - 1))
            break;
        if (read_one(self, core, device, &part))
            return -1;
        total |= core->offset < offset ? part >> 8 * (offset - core->offset)
                                       : part << 8 * (core->offset - offset);
    }
    *val = total & vmm_ones(len);
    return 0;
}

static int
write_parts(struct registers *self, const struct vmm_filter *filter,
            PyObject *device, uint64_t offset, unsigned len, uint64_t val)
{
    for (unsigned i = vmm_filter_first(filter, offset); i < filter->count;
         i++) {
        const struct vmm_reg *core = &filter->reg[i];
        uint64_t part = val, lanes = vmm_ones(len);
        unsigned shift;

        if (core->offset > offset + (len - 1))
            break;
        if (core->offset < offset) {
            shift = 8 * (unsigned)(offset - core->offset);
            part <<= shift;
            lanes <<= shift;
        } else {
            shift = 8 * (unsigned)(core->offset - offset);
            part >>= shift;
            lanes >>= shift;
        }
        lanes &= vmm_ones(core->len);
        part &= lanes;
        /* Bytes that are not written stay as they are, of "rw" bits. */
        part |= __atomic_load_n(core->value, __ATOMIC_ACQUIRE) &
                self->reg[core->number].kept & ~lanes;
        if (write_one(self, core, device, part))
            return -1;
    }
    return 0;
}

int
registers_read(PyObject *op, PyObject *device, unsigned range, uint64_t offset,
               unsigned len, uint64_t *val)
{
    struct registers *self = (struct registers *)op;
    const struct vmm_filter *filter = &self->filter[range];
    const struct vmm_reg *core = vmm_filter_find(filter, offset, len);

    if (deliver_first(self, device))
        return -1;
    if (core)
        return read_one(self, core, device, val);
    return read_parts(self, filter, device, offset, len, val);
}

int
registers_write(PyObject *op, PyObject *device, unsigned range, uint64_t offset,
                unsigned len, uint64_t val)
{
    struct registers *self = (struct registers *)op;
    const struct vmm_filter *filter = &self->filter[range];
    const struct vmm_reg *core = vmm_filter_find(filter, offset, len);

    if (core)
        return write_one(self, core, device, val);
    if (deliver_first(self, device))
        return -1;
    return write_parts(self, filter, device, offset, len, val);
}

struct vmm_filter *
registers_filter(struct state *state, PyObject *op, unsigned range)
{
    struct registers *self = (struct registers *)op;

    if (!Py_IS_TYPE(op, state->registers_type) || range >= self->ranges)
        return NULL;
    return &self->filter[range];
}

/* -- methods --------------------------------------------------------------- */

/* (device, range, offset, size) at the head of the arguments. 0, or -1. */
static int
as_place(const struct registers *self, PyObject *const *args, uint64_t *range,
         uint64_t *offset, uint64_t *size)
{
    if (as_uint(args[1], "range", UINT32_MAX, range) ||
        as_uint(args[2], "offset", UINT64_MAX, offset) ||
        as_uint(args[3], "size", 8, size))
        return -1;
    if (*range < self->ranges && *size)
        return 0;
    PyErr_SetString(PyExc_ValueError, *size ? "there is no such range"
                                            : "size 0 is outside 1..8");
    return -1;
}

PyDoc_STRVAR(read_doc,
             "read($self, device, range, offset, size, /)\n--\n\n"
             "A guest's read of 1 to 8 bytes, of any place.\n\n"
             "Raises what methods of registers raise, and TypeError or "
             "ValueError for what they\nreturn.");

static PyObject *
method_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t range, offset, size, val;

    if (arguments("read", nargs, 4) ||
        as_place((struct registers *)op, args, &range, &offset, &size) ||
        registers_read(op, args[0], (unsigned)range, offset, (unsigned)size,
                       &val))
        return NULL;
    return PyLong_FromUnsignedLongLong(val);
}

PyDoc_STRVAR(write_doc,
             "write($self, device, range, offset, size, value, /)\n--\n\n"
             "A guest's write of 1 to 8 bytes, to any place; what its methods "
             "raise.");

static PyObject *
method_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t range, offset, size, val;

    if (arguments("write", nargs, 5) ||
        as_place((struct registers *)op, args, &range, &offset, &size) ||
        as_uint(args[4], "value", vmm_ones((unsigned)size), &val) ||
        registers_write(op, args[0], (unsigned)range, offset, (unsigned)size,
                        val))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(drain_doc,
             "drain($self, device, /)\n--\n\n"
             "Deliver the posted writes that wait; what on_writes raises.\n\n"
             "When it returns they are handled, be it by another thread.");

static PyObject *
method_drain(PyObject *op, PyObject *device)
{
    if (registers_deliver(op, device))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    settle_doc,
    "settle($self, device, /)\n--\n\n"
    "What was given as `before` is on no bus any more: it goes.\n\n"
    "What is posted is delivered, there first, to methods for the same names "
    "here if\nthere are some. Raises what they raise.");

static PyObject *
method_settle(PyObject *op, PyObject *device)
{
    struct registers *self = (struct registers *)op;

    if (self->before)
        self->before->after = self;
    if (registers_deliver(op, device))
        return NULL;
    Py_RETURN_NONE;
}

bool
registers_check(struct state *state, PyObject *op)
{
    return Py_IS_TYPE(op, state->registers_type);
}

/* The number of that name, or -1 with an exception. */
static Py_ssize_t
need_name(const struct registers *self, PyObject *name)
{
    Py_ssize_t number = registers_find(self, name);

    if (number < 0 && !PyErr_Occurred())
        PyErr_Format(PyExc_AttributeError, "there is no register %R", name);
    return number;
}

static PyObject *
value_of(const struct registers *self, Py_ssize_t number)
{
    const struct reg *reg = &self->reg[number];

    return PyLong_FromUnsignedLongLong(
        __atomic_load_n(&reg->cell->value, __ATOMIC_ACQUIRE) & reg->mask);
}

PyObject *
registers_get(PyObject *op, PyObject *name)
{
    const struct registers *self = (struct registers *)op;
    Py_ssize_t number = need_name(self, name);

    return number < 0 ? NULL : value_of(self, number);
}

int
registers_set(PyObject *op, PyObject *name, uint64_t val)
{
    const struct registers *self = (struct registers *)op;
    Py_ssize_t number = need_name(self, name);

    if (number < 0)
        return -1;
    __atomic_store_n(&self->reg[number].cell->value, val, __ATOMIC_RELEASE);
    return 0;
}

PyDoc_STRVAR(values_doc, "values($self, /)\n--\n\n"
                         "All values by name, a new dict.");

static PyObject *
method_values(PyObject *op, PyObject *ignored)
{
    const struct registers *self = (struct registers *)op;
    PyObject *dict = PyDict_New();

    (void)ignored;
    for (Py_ssize_t i = 0; dict && i < self->count; i++) {
        PyObject *value;

        if (!PyUnicode_GET_LENGTH(self->reg[i].name))
            continue;
        value = value_of(self, i);
        if (!value || PyDict_SetItem(dict, self->reg[i].name, value))
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyMethodDef registers_methods[] = {
    {"read", (PyCFunction)(void (*)(void))method_read, METH_FASTCALL, read_doc},
    {"write", (PyCFunction)(void (*)(void))method_write, METH_FASTCALL,
     write_doc},
    {"drain", method_drain, METH_O, drain_doc},
    {"settle", method_settle, METH_O, settle_doc},
    {"values", method_values, METH_NOARGS, values_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
registers_get_waiting(PyObject *op, void *closure)
{
    struct registers *self = (struct registers *)op;

    (void)closure;
    return PyLong_FromUnsignedLong(self->post.room ? vmm_post_count(&self->post)
                                                   : 0);
}

static PyObject *
registers_get_delivering(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct registers *)op)->deliverer ==
                           PyThread_get_thread_ident());
}

static PyGetSetDef registers_getset[] = {
    {"waiting", registers_get_waiting, NULL,
     "How many posted writes wait for a delivery.", NULL},
    {"delivering", registers_get_delivering, NULL,
     "Whether the calling thread delivers some now.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    registers_doc,
    "Registers(table, ranges, before=None)\n--\n\n"
    "The declared registers of one device, for pyvmm.Device.\n\n"
    "`table`: a tuple with a row for each, by range and offset: name, range, "
    "offset,\nwidth, bits that there are, that reads give, that writes set, "
    "that a written 1\nclears, that a write of other bytes leaves; the value "
    "at first; on_read and\non_write or None, each called with the device; "
    "whether on_write also wants the\nvalue before; how many writes may be "
    "posted, whose on_write is given a memoryview\nof them, or 0. `ranges`: "
    "how many the device has. `before`: shares its values\nwith them, and "
    "comes first with what is posted, up to settle().\n\n"
    "Threads: any.");

static PyType_Slot registers_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)registers_doc},
    {Py_tp_new, registers_new},
    {Py_tp_dealloc, registers_dealloc},
    {Py_tp_traverse, registers_traverse},
    {Py_tp_clear, registers_clear},
    {Py_tp_methods, registers_methods},
    {Py_tp_getset, registers_getset},
    {0, NULL},
};

PyType_Spec registers_spec = {
    .name = "pyvmm._vmm.Registers",
    .basicsize = sizeof(struct registers),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = registers_slots,
};

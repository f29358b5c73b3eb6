/* SPDX-License-Identifier: Apache-2.0 */
/* mutate.c - Mutator: an iterator of inputs made of other inputs */
#include "../vmm/mutate.h"
#include "py.h"

struct mutator {
    PyObject_HEAD
    struct vmm_mutate mutate;
    uint8_t *out;
    size_t max;
};

static struct mutator *
as_mutator(PyObject *op)
{
    return (struct mutator *)(void *)op;
}

/* Room for inputs of `max` bytes. 0, or -1 with an exception. */
static int
make_room(struct mutator *self, PyObject *arg)
{
    uint64_t max;
    uint8_t *out;

    if (as_uint(arg, "max_size", VMM_MUTATE_MAX_LEN, &max))
        return -1;
    if (!max) {
        PyErr_SetString(PyExc_ValueError, "max_size is 0, not 1 or more");
        return -1;
    }
    out = realloc(self->out, max);
    if (!out) {
        PyErr_NoMemory();
        return -1;
    }
    self->out = out;
    self->max = max;
    return 0;
}

static PyObject *
mutator_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"seed", "max_size", NULL};
    PyObject *seed, *max_size;
    struct mutator *self;
    uint64_t number;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Mutator",
                                     KEYWORDS(names), &seed, &max_size) ||
        as_uint(seed, "seed", UINT64_MAX, &number))
        return NULL;
    self = as_mutator(type->tp_alloc(type, 0));
    if (!self)
        return NULL;
    vmm_mutate_init(&self->mutate, number);
    if (make_room(self, max_size))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void
mutator_dealloc(PyObject *op)
{
    struct mutator *self = as_mutator(op);
    PyTypeObject *type = Py_TYPE(op);

    vmm_mutate_fini(&self->mutate);
    free(self->out);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
mutator_next(PyObject *op)
{
    struct mutator *self = as_mutator(op);
    size_t len = vmm_mutate_next(&self->mutate, self->out, self->max);

    return PyBytes_FromStringAndSize((const char *)self->out, (Py_ssize_t)len);
}

/* What the core said about data that it was to keep. */
static PyObject *
kept(int err, const char *what, Py_ssize_t len)
{
    if (!err)
        Py_RETURN_NONE;
    if (err == -ENOMEM)
        return PyErr_NoMemory();
    return PyErr_Format(PyExc_ValueError, "%s of %zd bytes", what, len);
}

PyDoc_STRVAR(add_doc, "add($self, data, try_it, /)\n--\n\n"
                      "One more input to make others of.\n\n"
                      "`try_it`: it is to come out as it is, too, as the next "
                      "but for those before it.");

static PyObject *
mutator_add(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer data;
    int try_it, err;

    if (arguments("add", nargs, 2))
        return NULL;
    try_it = PyObject_IsTrue(args[1]);
    if (try_it < 0 || PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE))
        return NULL;
    err = vmm_mutate_add(&as_mutator(op)->mutate, data.buf, (size_t)data.len,
                         try_it);
    PyBuffer_Release(&data);
    return kept(err, "an input", data.len);
}

PyDoc_STRVAR(token_doc,
             "token($self, data, /)\n--\n\n"
             "1 to 256 bytes that inputs of the format are known to have.");

static PyObject *
mutator_token(PyObject *op, PyObject *arg)
{
    Py_buffer data;
    int err;

    if (PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE))
        return NULL;
    err = vmm_mutate_token(&as_mutator(op)->mutate, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return kept(err, "a token is 1 to 256 bytes, not one", data.len);
}

static PyMethodDef mutator_methods[] = {
    {"add", (PyCFunction)(void (*)(void))mutator_add, METH_FASTCALL, add_doc},
    {"token", mutator_token, METH_O, token_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
get_max_size(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(as_mutator(op)->max);
}

static int
set_max_size(PyObject *op, PyObject *value, void *closure)
{
    (void)closure;
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "max_size cannot be deleted");
        return -1;
    }
    return make_room(as_mutator(op), value);
}

static PyGetSetDef mutator_getset[] = {
    {"max_size", get_max_size, set_max_size,
     "Bytes that an input has at most: longer ones are cut.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    mutator_doc,
    "Mutator(seed, max_size)\n--\n\n"
    "Inputs made of other inputs, without end (csrc/vmm/mutate.h).\n\n"
    "First those that are to be tried as they are, then changed copies. "
    "`seed`, an\nunsigned 64-bit int, decides all. Raises ValueError.\n\n"
    "Threads: any, one at a time.");

static PyType_Slot mutator_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)mutator_doc},
    {Py_tp_new, mutator_new},
    {Py_tp_dealloc, mutator_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, mutator_next},
    {Py_tp_methods, mutator_methods},
    {Py_tp_getset, mutator_getset},
    {0, NULL},
};

PyType_Spec mutator_spec = {
    .name = "pyvmm._vmm.Mutator",
    .basicsize = sizeof(struct mutator),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mutator_slots,
};

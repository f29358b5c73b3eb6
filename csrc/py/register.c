/* SPDX-License-Identifier: Apache-2.0 */
/*
 * register.c - Register: a declared register as an attribute of its devices
 *
 * pyvmm.Reg derives from it. Devices' methods read and set their registers all
 * the time, so that these two are in C.
 */
#include "py.h"

#include <structmember.h>

struct attribute {
    PyObject_HEAD
    PyObject *name;
    unsigned long long mask;
};

static void
attribute_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    Py_XDECREF(((struct attribute *)op)->name);
    type->tp_free(op);
    Py_DECREF(type);
}

/* The registers of a device: new, or NULL with an exception. */
static PyObject *
registers_of(PyObject *op, PyObject *device)
{
    struct attribute *self = (struct attribute *)op;
    struct state *state = state_of(Py_TYPE(op));
    PyObject *registers;

    if (!self->name) {
        PyErr_SetString(PyExc_AttributeError, "the register has no name");
        return NULL;
    }
    registers = PyObject_GetAttr(device, state->registers_name);
    if (!registers || registers_check(state, registers))
        return registers;
    PyErr_Format(PyExc_TypeError, "%.80s has no registers",
                 Py_TYPE(device)->tp_name);
    Py_DECREF(registers);
    return NULL;
}

static PyObject *
attribute_get(PyObject *op, PyObject *device, PyObject *owner)
{
    struct attribute *self = (struct attribute *)op;
    PyObject *registers, *ret;

    (void)owner;
    if (!device || device == Py_None)
        return Py_NewRef(op);
    registers = registers_of(op, device);
    if (!registers)
        return NULL;
    ret = registers_get(registers, self->name);
    Py_DECREF(registers);
    return ret;
}

/* "Alarm.period = 0x100000000 has bits outside 0xffffffff" */
static int
bad_value(struct attribute *self, PyObject *device, PyObject *value)
{
    PyObject *hex = PyNumber_ToBase(value, 16);
    char mask[24];

    snprintf(mask, sizeof mask, "%#llx", self->mask);
    if (hex)
        PyErr_Format(PyExc_ValueError, "%.80s.%U = %U has bits outside %s",
                     Py_TYPE(device)->tp_name, self->name, hex, mask);
    Py_XDECREF(hex);
    return -1;
}

static int
attribute_set(PyObject *op, PyObject *device, PyObject *value)
{
    struct attribute *self = (struct attribute *)op;
    PyObject *registers;
    uint64_t number;
    int err;

    if (!value) {
        PyErr_Format(PyExc_AttributeError, "%.80s.%U cannot be deleted",
                     Py_TYPE(device)->tp_name, self->name);
        return -1;
    }
    if (!PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%.80s.%U = %R: an int was due",
                     Py_TYPE(device)->tp_name, self->name, value);
        return -1;
    }
    number = PyLong_AsUnsignedLongLong(value);
    if (number & ~self->mask || (number == UINT64_MAX && PyErr_Occurred())) {
        PyErr_Clear();
        return bad_value(self, device, value);
    }
    registers = registers_of(op, device);
    if (!registers)
        return -1;
    err = registers_set(registers, self->name, number);
    Py_DECREF(registers);
    return err;
}

static PyMemberDef attribute_members[] = {
    {"name", T_OBJECT, offsetof(struct attribute, name), 0,
     "The attribute that it is."},
    {"mask", T_ULONGLONG, offsetof(struct attribute, mask), 0,
     "The bits that there are."},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(attribute_doc,
             "A declared register as an attribute: what pyvmm.Reg is made of.\n"
             "\nOn a device the attribute is the value of that name in its "
             "`_registers`, an int;\none set to it has no bits outside `mask`, "
             "else ValueError.\n\n"
             "Threads: any.");

static PyType_Slot attribute_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)attribute_doc},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, attribute_dealloc},
    {Py_tp_descr_get, attribute_get},
    {Py_tp_descr_set, attribute_set},
    {Py_tp_members, attribute_members},
    {0, NULL},
};

PyType_Spec attribute_spec = {
    .name = "pyvmm._vmm.Register",
    .basicsize = sizeof(struct attribute),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = attribute_slots,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * claim.c - what a bus knows of a device, looked up once, and the calls of it
 *
 * The caller has the GIL. A call may take the device off its bus, and with that
 * the claim: what is needed until its end is held here.
 */
#include <string.h>

#include "claim.h"

void
claim_clear(struct claim *claim)
{
    Py_CLEAR(claim->read);
    Py_CLEAR(claim->write);
    Py_CLEAR(claim->read_many);
    Py_CLEAR(claim->registers);
    Py_CLEAR(claim->owner);
    claim->filter = NULL;
    claim->served = 0;
}

void
claim_free(struct claim *claim)
{
    claim_clear(claim);
    Py_XDECREF(claim->device);
    PyMem_Free(claim);
}

static PyObject *
method_of(PyObject *device, const char *name)
{
    PyObject *method = PyObject_GetAttrString(device, name);

    if (method && PyCallable_Check(method))
        return method;
    Py_XDECREF(method);
    PyErr_Format(PyExc_TypeError,
                 "device %.80s has no method %s: it needs read(offset, size) "
                 "and write(offset, size, value)",
                 Py_TYPE(device)->tp_name, name);
    return NULL;
}

/*
 * Declared registers, of a device that says so: its `_served()` returns None or
 * (registers, owner, range, reads, writes), of which the last two say whether
 * they stand in for read() and write(). 0, or -1 with an exception.
 */
static int
claim_ask_registers(struct state *state, struct claim *claim, PyObject *device)
{
    PyObject *served, *registers, *owner;
    int reads, writes, err = -1;
    unsigned range;

    if (!PyObject_HasAttrString(device, "_served"))
        return 0;
    served = PyObject_CallMethod(device, "_served", NULL);
    if (served == Py_None)
        err = 0;
    else if (served && PyArg_ParseTuple(served, "OOIpp:_served", &registers,
                                        &owner, &range, &reads, &writes)) {
        claim->filter = registers_filter(state, registers, range);
        if (claim->filter) {
            claim->registers = Py_NewRef(registers);
            claim->owner = Py_NewRef(owner);
            claim->range = range;
            claim->served =
                (reads ? VMM_REG_READ : 0) | (writes ? VMM_REG_WRITE : 0);
            err = 0;
        } else {
            PyErr_Format(PyExc_TypeError, "%R has no registers in range %u",
                         device, range);
        }
    }
    Py_XDECREF(served);
    return err;
}

/* A method that a device may do without. 0, or -1 with an exception. */
static int
optional_method(PyObject *device, const char *name, PyObject **out)
{
    *out = PyObject_GetAttrString(device, name);
    if (*out || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return *out ? 0 : -1;
    PyErr_Clear();
    return 0;
}

int
claim_look_up(struct state *state, struct claim *claim, PyObject *device)
{
    claim->read = method_of(device, "read");
    claim->write = claim->read ? method_of(device, "write") : NULL;
    if (claim->write &&
        !optional_method(device, "read_many", &claim->read_many) &&
        !claim_ask_registers(state, claim, device))
        return 0;
    claim_clear(claim);
    return -1;
}

const struct vmm_bus_ops *
claim_ops(const struct claim *claim)
{
    if (!claim->filter)
        return NULL;
    __atomic_store_n(&claim->filter->here, claim->served, __ATOMIC_RELAXED);
    return &vmm_filter_ops;
}

struct claim *
claim_new(struct state *state, PyObject *device, uint64_t size,
          struct vmm_range *range)
{
    struct claim *claim = PyMem_Calloc(1, sizeof *claim);
    struct native native = {0};

    if (!claim) {
        PyErr_NoMemory();
        return NULL;
    }
    claim->device = Py_NewRef(device);
    claim->base = range->base;
    range->owner = claim;
    if (console_native(state, device, &native) ||
        exit_port_native(state, device, &native) ||
        virtio_native(state, device, &native)) {
        range->ops = native.ops;
        range->dev = native.dev;
        claim->service = native.service;
        if (!native.size || native.size == size)
            return claim;
        PyErr_Format(PyExc_ValueError, "a %s takes %lu addresses, not %lu",
                     Py_TYPE(device)->tp_name, (unsigned long)native.size,
                     (unsigned long)size);
    } else if (!PyErr_Occurred()) {
        if (!claim_look_up(state, claim, device)) {
            range->ops = claim_ops(claim);
            range->dev = claim->filter;
            return claim;
        }
    }
    claim_free(claim);
    return NULL;
}

/* -- calls ----------------------------------------------------------------- */

/* "Alarm.read(0x4, 4) returned 'x'; an int from 0 to 0xffffffff was due" */
static int
bad_answer(PyObject *device, uint64_t offset, unsigned len, PyObject *got)
{
    char place[64], limit[24];

    snprintf(place, sizeof place, "read(%#llx, %u)", (unsigned long long)offset,
             len);
    snprintf(limit, sizeof limit, "%#llx", (unsigned long long)vmm_ones(len));
    PyErr_Format(PyLong_Check(got) ? PyExc_ValueError : PyExc_TypeError,
                 "%.80s.%s returned %R; an int from 0 to %s was due",
                 Py_TYPE(device)->tp_name, place, got, limit);
    return -1;
}

static int
call_read(const struct claim *claim, uint64_t offset, unsigned len,
          uint64_t *val)
{
    PyObject *stack[3] = {NULL, NULL, NULL};
    PyObject *read, *device, *ret = NULL;
    int err = -1;

    stack[1] = PyLong_FromUnsignedLongLong(offset);
    read = Py_NewRef(claim->read);
    device = Py_NewRef(claim->device);
    stack[2] = PyLong_FromLong((long)len);
    if (stack[1] && stack[2])
        ret = PyObject_Vectorcall(read, stack + 1,
                                  2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (ret) {
        err = 0;
        *val = PyLong_Check(ret) ? PyLong_AsUnsignedLongLong(ret) : UINT64_MAX;
        if (!PyLong_Check(ret) || *val > vmm_ones(len) ||
            (*val == UINT64_MAX && PyErr_Occurred())) {
            PyErr_Clear();
            err = bad_answer(device, offset, len, ret);
        }
    }
    Py_XDECREF(ret);
    Py_XDECREF(stack[1]);
    Py_XDECREF(stack[2]);
    Py_DECREF(read);
    Py_DECREF(device);
    return err;
}

static int
call_write(const struct claim *claim, uint64_t offset, unsigned len,
           uint64_t val)
{
    PyObject *stack[4] = {NULL, NULL, NULL, NULL};
    PyObject *write = Py_NewRef(claim->write), *ret = NULL;

    stack[1] = PyLong_FromUnsignedLongLong(offset);
    stack[3] = PyLong_FromUnsignedLongLong(val);
    stack[2] = PyLong_FromLong((long)len);
    if (stack[1] && stack[2] && stack[3])
        ret = PyObject_Vectorcall(write, stack + 1,
                                  3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(stack[1]);
    Py_XDECREF(stack[2]);
    Py_XDECREF(stack[3]);
    Py_DECREF(write);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

/* "Disk.read_many(0x0, 2, 256) returned 'x'; 512 bytes were due" */
static int
bad_bytes(PyObject *device, const struct vmm_exit *exit, uint64_t offset,
          PyObject *got)
{
    char place[64];

    PyErr_Clear();
    snprintf(place, sizeof place, "read_many(%#llx, %u, %u)",
             (unsigned long long)offset, exit->len, exit->count);
    PyErr_Format(PyExc_TypeError, "%.80s.%s returned %R; %u bytes were due",
                 Py_TYPE(device)->tp_name, place, got, exit->len * exit->count);
    return -1;
}

int
claim_string(const struct claim *claim, const struct vmm_exit *exit,
             uint64_t offset, uint8_t *data)
{
    Py_ssize_t size = (Py_ssize_t)exit->len * exit->count;
    PyObject *call, *device, *ret;
    Py_buffer got;
    int err = -1;

    if (!claim->read_many)
        return 1;
    call = Py_NewRef(claim->read_many);
    device = Py_NewRef(claim->device);
    memset(data, 0xff, (size_t)size);
    ret = PyObject_CallFunction(call, "KII", (unsigned long long)offset,
                                exit->len, exit->count);
    if (ret && PyObject_GetBuffer(ret, &got, PyBUF_SIMPLE)) {
        bad_bytes(device, exit, offset, ret);
    } else if (ret) {
        err = got.len == size ? 0 : bad_bytes(device, exit, offset, ret);
        if (!err)
            memcpy(data, got.buf, (size_t)size);
        PyBuffer_Release(&got);
    }
    Py_XDECREF(ret);
    Py_DECREF(call);
    Py_DECREF(device);
    return err;
}

/* One access to declared registers. */
static int
call_registers(const struct claim *claim, const struct vmm_exit *exit,
               uint64_t offset, uint64_t *val)
{
    PyObject *registers = Py_NewRef(claim->registers);
    PyObject *owner = Py_NewRef(claim->owner);
    unsigned range = claim->range;
    int err;

    if (exit->write)
        err = registers_write(registers, owner, range, offset, exit->len,
                              exit->val);
    else
        err = registers_read(registers, owner, range, offset, exit->len, val);
    Py_DECREF(registers);
    Py_DECREF(owner);
    return err;
}

int
claim_access(const struct claim *claim, const struct vmm_exit *exit,
             uint64_t offset, uint64_t *val)
{
    if (claim->served & (exit->write ? VMM_REG_WRITE : VMM_REG_READ))
        return call_registers(claim, exit, offset, val);
    if (exit->write)
        return call_write(claim, offset, exit->len, exit->val);
    return call_read(claim, offset, exit->len, val);
}

int
claim_deliver(const struct claim *claim)
{
    PyObject *registers = Py_NewRef(claim->registers);
    PyObject *owner = Py_NewRef(claim->owner);
    int err = registers_deliver(registers, owner);

    Py_DECREF(registers);
    Py_DECREF(owner);
    return err;
}

int
claim_service(const struct claim *claim)
{
    PyObject *device;
    int err;

    if (claim->registers)
        return claim_deliver(claim);
    device = Py_NewRef(claim->device);
    err = claim->service ? claim->service(device) : 0;
    Py_DECREF(device);
    return err;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* exit.c - Exit: why VCPU.run() returned */
#include "vcpu.h"

static PyStructSequence_Field exit_fields[] = {
    {"reason", "one of the EXIT_ constants"},
    {"pio", "the access was to a port"},
    {"write", "the access was a write"},
    {"size", "bytes of the access, 0: it was none"},
    {"addr", "port or address of the access"},
    {"value", "what was written, or what a native device answered"},
    {"device", "whose range it was, or None"},
    {"rip", "address of the instruction, None: see the registers"},
    {"code", "hardware reason, suberror, event type or dr6"},
    {"pc", "DEBUG: linear address of the instruction"},
    {"insn", "INTERNAL_ERROR: bytes of the instruction"},
    {"data", "INTERNAL_ERROR, SYSTEM_EVENT: what else KVM said"},
    {"kvm_reason", "KVM_EXIT_ number"},
    {NULL, NULL},
};

PyStructSequence_Desc exit_desc = {
    .name = "pyvmm._vmm.Exit",
    .doc = "Why VCPU.run() returned.",
    .fields = exit_fields,
    .n_in_sequence = 13,
};

/* Steals `items`, which may hold NULL for a failed conversion. */
static PyObject *
exit_build(struct state *state, PyObject *const items[13])
{
    PyObject *ret = PyStructSequence_New(state->exit_type);
    bool ok = ret;

    for (int i = 0; i < 13; i++) {
        ok = ok && items[i];
        if (ret)
            PyStructSequence_SET_ITEM(ret, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!ok)
        Py_CLEAR(ret);
    return ret;
}

static PyObject *
exit_data(const struct vmm_exit *exit)
{
    PyObject *data = PyTuple_New(exit->ndata);

    for (unsigned i = 0; data && i < exit->ndata; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(exit->data[i]);

        if (!item)
            Py_CLEAR(data);
        else
            PyTuple_SET_ITEM(data, i, item);
    }
    return data;
}

/* Whose range the exit names, as long as it is still there. */
static PyObject *
exit_device(struct vcpu *self, const struct vmm_exit *exit)
{
    struct ports *ports = exit->pio ? &self->vm->pio : &self->vm->mmio;
    struct vmm_range range;

    if (exit->len && exit->reason != VMM_EXIT_UNCLAIMED &&
        !vmm_bus_find(ports->bus, exit->addr, exit->len, &range))
        return Py_NewRef(((struct claim *)range.owner)->device);
    return Py_NewRef(Py_None);
}

PyObject *
exit_new(struct vcpu *self, int reason, const struct vmm_exit *exit,
         const uint64_t *rip)
{
    PyObject *items[13] = {
        PyLong_FromLong(reason),
        PyBool_FromLong(exit->pio),
        PyBool_FromLong(exit->write),
        PyLong_FromUnsignedLong(exit->len),
        PyLong_FromUnsignedLongLong(exit->addr),
        PyLong_FromUnsignedLongLong(exit->val),
        exit_device(self, exit),
        rip ? PyLong_FromUnsignedLongLong(*rip) : Py_NewRef(Py_None),
        PyLong_FromUnsignedLongLong(exit->code),
        PyLong_FromUnsignedLongLong(exit->pc),
        PyBytes_FromStringAndSize((const char *)exit->insn, exit->insn_len),
        exit_data(exit),
        PyLong_FromUnsignedLong(exit->kvm_reason),
    };

    return exit_build(state_of(Py_TYPE(self)), items);
}

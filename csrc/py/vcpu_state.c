/* SPDX-License-Identifier: Apache-2.0 */
/* vcpu_state.c - the methods of VCPU that get and set its state */
#include <string.h>

#include "../vmm/x86_start.h"
#include "vcpu.h"

/* A getter and a setter by name, with a buffer of the structure's size. */
struct part {
    const char *name;
    size_t size; /* 0: kvm->xsave_size */
    int (*get)(struct vmm_vcpu *cpu, void *out);
    int (*set)(struct vmm_vcpu *cpu, const void *state);
};

#define PART(name)                                                             \
    static int get_##name(struct vmm_vcpu *cpu, void *out)                     \
    {                                                                          \
        return vmm_vcpu_get_##name(cpu, out);                                  \
    }                                                                          \
    static int set_##name(struct vmm_vcpu *cpu, const void *state)             \
    {                                                                          \
        return vmm_vcpu_set_##name(cpu, state);                                \
    }

PART(regs)
PART(sregs)
PART(events)
PART(fpu)
PART(xsave)
PART(xcrs)
PART(debugregs)
PART(lapic)

static int
get_mp_state(struct vmm_vcpu *cpu, void *out)
{
    return vmm_vcpu_get_mp_state(cpu, out);
}

static int
set_mp_state(struct vmm_vcpu *cpu, const void *state)
{
    uint32_t val;

    memcpy(&val, state, sizeof val);
    return vmm_vcpu_set_mp_state(cpu, val);
}

static const struct part parts[] = {
    {"regs", sizeof(struct kvm_regs), get_regs, set_regs},
    {"sregs", sizeof(struct kvm_sregs), get_sregs, set_sregs},
    {"events", sizeof(struct kvm_vcpu_events), get_events, set_events},
    {"fpu", sizeof(struct kvm_fpu), get_fpu, set_fpu},
    {"xsave", 0, get_xsave, set_xsave},
    {"xcrs", sizeof(struct kvm_xcrs), get_xcrs, set_xcrs},
    {"debugregs", sizeof(struct kvm_debugregs), get_debugregs, set_debugregs},
    {"lapic", sizeof(struct kvm_lapic_state), get_lapic, set_lapic},
    {"mp_state", sizeof(uint32_t), get_mp_state, set_mp_state},
};

static const struct part *
find_part(PyObject *name)
{
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "the name of a state is a str");
        return NULL;
    }
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (PyUnicode_CompareWithASCIIString(name, parts[i].name) == 0)
            return &parts[i];
    }
    PyErr_Format(PyExc_ValueError,
                 "%R is none of regs, sregs, events, fpu, xsave, xcrs, "
                 "debugregs, lapic, mp_state",
                 name);
    return NULL;
}

static size_t
part_size(const struct vcpu *self, const struct part *part)
{
    return part->size ? part->size : self->vm->kvm->kvm.xsave_size;
}

const char vcpu_get_doc[] = PyDoc_STR(
    "get($self, what, /)\n--\n\n"
    "A part of the state, as the bytes of the kernel's structure.\n\n"
    "`what`: regs, sregs, events, fpu, xsave, xcrs, debugregs, lapic "
    "(<linux/kvm.h>),\nor mp_state (4 bytes). In a device's method rip is that "
    "of the accessing\ninstruction. Raises OSError, RuntimeError when another "
    "thread runs it.");

PyObject *
vcpu_get(PyObject *op, PyObject *what)
{
    struct vcpu *self = quiet_vcpu(op);
    const struct part *part = self ? find_part(what) : NULL;
    PyObject *ret;
    int err;

    if (!part)
        return NULL;
    ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)part_size(self, part));
    if (!ret)
        return NULL;
    err = part->get(&self->cpu, PyBytes_AS_STRING(ret));
    if (err) {
        Py_DECREF(ret);
        return vcpu_none_or_raise(self, err);
    }
    return ret;
}

const char vcpu_set_doc[] = PyDoc_STR(
    "set($self, what, state, /)\n--\n\n"
    "Set a part of the state from the bytes of the kernel's structure.\n\n"
    "Names as for get(). Raises ValueError when the size is wrong, OSError "
    "when the\nhost refuses, RuntimeError inside a device's method or when "
    "another thread runs it.");

PyObject *
vcpu_set(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vcpu *self = quiet_vcpu(op);
    const struct part *part;
    Py_buffer state;
    PyObject *ret;

    if (!self || arguments("set", nargs, 2))
        return NULL;
    part = find_part(args[0]);
    if (!part || PyObject_GetBuffer(args[1], &state, PyBUF_SIMPLE))
        return NULL;
    Py_CLEAR(self->late);
    if ((size_t)state.len == part_size(self, part))
        ret = vcpu_none_or_raise(self, part->set(&self->cpu, state.buf));
    else
        ret = PyErr_Format(PyExc_ValueError, "%s has %zu bytes, not %zd",
                           part->name, part_size(self, part), state.len);
    PyBuffer_Release(&state);
    return ret;
}

/* Indices (and values) of MSRs from sequences; their number or -1. */
static Py_ssize_t
as_msrs(PyObject *indices, PyObject *values, uint32_t *index, uint64_t *value)
{
    Py_ssize_t count = PySequence_Size(indices);

    if (count < 0 || (values && PySequence_Size(values) < 0))
        return -1;
    if (count > VMM_VCPU_MAX_MSRS ||
        (values && PySequence_Size(values) != count)) {
        PyErr_Format(PyExc_ValueError,
                     "%zd MSRs: at most %u, and a value for each", count,
                     VMM_VCPU_MAX_MSRS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(indices, i);
        uint64_t msr = 0;
        int err = item ? as_uint(item, "MSR", UINT32_MAX, &msr) : -1;

        Py_XDECREF(item);
        if (err)
            return -1;
        index[i] = (uint32_t)msr;
        if (!values)
            continue;
        item = PySequence_GetItem(values, i);
        err = item ? as_uint(item, "value", UINT64_MAX, &value[i]) : -1;
        Py_XDECREF(item);
        if (err)
            return -1;
    }
    return count;
}

/* ValueError when the host stopped before the end of the list. */
static int
all_msrs(struct vcpu *self, int done, Py_ssize_t count, const uint32_t *index,
         const char *what)
{
    char text[40];

    if (done < 0) {
        vcpu_none_or_raise(self, done);
        return -1;
    }
    if (done == count)
        return 0;
    snprintf(text, sizeof text, "%#x", index[done]);
    PyErr_Format(PyExc_ValueError, "the host refuses to %s MSR %s", what, text);
    return -1;
}

const char vcpu_get_msrs_doc[] =
    PyDoc_STR("get_msrs($self, indices, /)\n--\n\n"
              "Values of up to 256 MSRs, in one ioctl.\n\n"
              "Raises ValueError naming the first one that the host refuses.");

PyObject *
vcpu_get_msrs(PyObject *op, PyObject *indices)
{
    struct vcpu *self = quiet_vcpu(op);
    uint32_t index[VMM_VCPU_MAX_MSRS];
    uint64_t value[VMM_VCPU_MAX_MSRS];
    Py_ssize_t count;
    PyObject *list;

    if (!self)
        return NULL;
    count = as_msrs(indices, NULL, index, NULL);
    if (count < 0 ||
        all_msrs(self,
                 vmm_vcpu_get_msrs(&self->cpu, index, (unsigned)count, value),
                 count, index, "read"))
        return NULL;
    list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *item = PyLong_FromUnsignedLongLong(value[i]);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

const char vcpu_set_msrs_doc[] =
    PyDoc_STR("set_msrs($self, indices, values, /)\n--\n\n"
              "Set up to 256 MSRs, in one ioctl.\n\n"
              "Raises ValueError naming the first one that the host refuses; "
              "those before it\nare set.");

PyObject *
vcpu_set_msrs(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vcpu *self = quiet_vcpu(op);
    uint32_t index[VMM_VCPU_MAX_MSRS];
    uint64_t value[VMM_VCPU_MAX_MSRS];
    Py_ssize_t count;

    if (!self || arguments("set_msrs", nargs, 2))
        return NULL;
    count = as_msrs(args[0], args[1], index, value);
    if (count < 0 ||
        all_msrs(self,
                 vmm_vcpu_set_msrs(&self->cpu, index, value, (unsigned)count),
                 count, index, "set"))
        return NULL;
    Py_RETURN_NONE;
}

const char vcpu_start_doc[] = PyDoc_STR(
    "start($self, /, mode, regs, tables=0)\n--\n\n"
    "Put the vCPU into a start mode: real, protected, long or user.\n\n"
    "`regs` is a struct kvm_regs whose rip is the entry point. The 64-bit "
    "modes (long is\nring 0, user is ring 3) need the address at which "
    "x86_tables() wrote. Raises\nValueError, OSError.\nSource: Intel SDM "
    "volume 3, 9.1.");

PyObject *
vcpu_start(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"mode", "regs", "tables", NULL};
    static const char *const modes[] = {"real", "protected", "long", "user"};
    struct vcpu *self = quiet_vcpu(op);
    PyObject *tables_arg = NULL, *ret;
    struct kvm_regs regs;
    uint64_t tables = 0;
    const char *mode;
    Py_buffer buf;
    int which = 0, err;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "sy*|O:start",
                                     KEYWORDS(names), &mode, &buf, &tables_arg))
        return NULL;
    while (which < 4 && strcmp(modes[which], mode))
        which++;
    if (which == 4)
        PyErr_Format(PyExc_ValueError,
                     "mode '%s' is none of real, protected, long, user", mode);
    else if (buf.len != sizeof regs)
        PyErr_Format(PyExc_ValueError, "regs has %zu bytes, not %zd",
                     sizeof regs, buf.len);
    else if (tables_arg)
        as_uint(tables_arg, "tables", UINT64_MAX, &tables);
    if (!PyErr_Occurred())
        memcpy(&regs, buf.buf, sizeof regs);
    PyBuffer_Release(&buf);
    if (PyErr_Occurred())
        return NULL;
    Py_CLEAR(self->late);
    err = vmm_x86_start(&self->cpu, (enum vmm_x86_mode)which, &regs, tables);
    if (err == -EINVAL && which == VMM_X86_REAL) {
        PyErr_SetString(PyExc_ValueError,
                        "the entry point of real mode is below 0x100000");
        return NULL;
    }
    ret = vcpu_none_or_raise(self, err);
    return ret;
}

const char vcpu_nmi_doc[] =
    PyDoc_STR("nmi($self, /)\n--\n\nRaise a non-maskable interrupt.");

PyObject *
vcpu_nmi(PyObject *op, PyObject *ignored)
{
    struct vcpu *self = quiet_vcpu(op);

    (void)ignored;
    return self ? vcpu_none_or_raise(self, vmm_vcpu_nmi(&self->cpu)) : NULL;
}

const char vcpu_debug_doc[] = PyDoc_STR(
    "debug($self, /, addresses=(), dr7=0, step=False, soft=False)\n--\n\n"
    "Set up to four hardware breakpoints (dr0 to dr3, with dr7), single step.\n"
    "\n`soft`: int3 in the guest leaves it, too. run() then returns "
    "EXIT_DEBUG. Some hosts take this and run past it in "
    "ring 3:\npyvmm.Machine finds out by a trial, this does not. Raises "
    "OSError.\nSource: Intel SDM volume 3, 18.2.");

PyObject *
vcpu_debug(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"addresses", "dr7", "step", "soft",
                                        NULL};
    struct vcpu *self = quiet_vcpu(op);
    PyObject *addresses = NULL, *dr7_arg = NULL;
    uint64_t dr[4] = {0}, dr7 = 0;
    Py_ssize_t count;
    int step = 0, soft = 0;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|OOpp:debug",
                                     KEYWORDS(names), &addresses, &dr7_arg,
                                     &step, &soft) ||
        (dr7_arg && as_uint(dr7_arg, "dr7", UINT32_MAX, &dr7)))
        return NULL;
    count = addresses ? PySequence_Size(addresses) : 0;
    if (count < 0)
        return NULL;
    if (count > 4)
        return PyErr_Format(PyExc_ValueError,
                            "%zd breakpoints: the processor has 4", count);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(addresses, i);
        int err = item ? as_uint(item, "address", UINT64_MAX, &dr[i]) : -1;

        Py_XDECREF(item);
        if (err)
            return NULL;
    }
    self->cpu.soft = soft;
    return vcpu_none_or_raise(self, vmm_vcpu_debug(&self->cpu, dr, dr7, step));
}

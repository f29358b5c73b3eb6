/* SPDX-License-Identifier: Apache-2.0 */
/* errors.c - the words of every exception that the binding raises, arguments */
#include "py.h"

PyObject *
raise_host(const char *call, int err)
{
    const char *hint = vmm_kvm_hint(call, err);
    PyObject *text, *args;

    if (err == ENOMEM && !call)
        return PyErr_NoMemory();
    if (!call)
        call = "host";
    if (err == ENOTSUP)
        text = PyUnicode_FromFormat(
            "this KVM lacks %s, without which pyvmm cannot work", call);
    else if (hint)
        text = PyUnicode_FromFormat("%s: %s: %s", call, strerror(err), hint);
    else
        text = PyUnicode_FromFormat("%s: %s", call, strerror(err));
    if (!text)
        return NULL;
    args = Py_BuildValue("(iN)", err, text);
    if (!args)
        return NULL;
    PyErr_SetObject(PyExc_OSError, args);
    Py_DECREF(args);
    return NULL;
}

PyObject *
raise_closed(PyObject *self)
{
    const char *name = Py_TYPE(self)->tp_name;
    const char *dot = strrchr(name, '.');

    return PyErr_Format(PyExc_ValueError, "operation on closed %s",
                        dot ? dot + 1 : name);
}

PyObject *
raise_forked(void)
{
    PyErr_SetString(PyExc_RuntimeError,
                    "this was made before fork(), which KVM objects do not "
                    "survive: make a new one in the child");
    return NULL;
}

PyObject *
raise_gpa(const struct vmm_mem *mem, uint64_t gpa, uint64_t len)
{
    uint64_t total = 0;
    char text[160];

    for (unsigned i = 0; i < mem->count; i++)
        total += mem->region[i].len;
    if (vmm_mem_span(mem, gpa, len) == len)
        snprintf(text, sizeof text,
                 "gpa %#llx + %llu is read-only or crosses regions",
                 (unsigned long long)gpa, (unsigned long long)len);
    else
        snprintf(text, sizeof text,
                 "gpa %#llx + %llu is outside RAM (%llu bytes)",
                 (unsigned long long)gpa, (unsigned long long)len,
                 (unsigned long long)total);
    PyErr_SetString(PyExc_ValueError, text);
    return NULL;
}

void
add_note(const char *format, ...)
{
    PyObject *type, *value, *trace, *note, *ret = NULL;
    va_list args;

    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    va_start(args, format);
    note = PyUnicode_FromFormatV(format, args);
    va_end(args);
    if (note && value)
        ret = PyObject_CallMethod(value, "add_note", "O", note);
    Py_XDECREF(note);
    Py_XDECREF(ret);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
}

int
as_uint(PyObject *arg, const char *name, uint64_t max, uint64_t *out)
{
    PyObject *index = PyNumber_Index(arg);
    unsigned long long val;
    char limit[24];

    if (!index)
        return -1;
    val = PyLong_AsUnsignedLongLong(index);
    if (val == (unsigned long long)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            Py_DECREF(index);
            return -1;
        }
        PyErr_Clear();
    } else if (val <= max) {
        Py_DECREF(index);
        *out = val;
        return 0;
    }
    snprintf(limit, sizeof limit, "%#llx", (unsigned long long)max);
    PyErr_Format(PyExc_ValueError, "%s %S is outside 0..%s", name, index,
                 limit);
    Py_DECREF(index);
    return -1;
}

int
arguments(const char *name, Py_ssize_t nargs, Py_ssize_t want)
{
    if (nargs == want)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments (%zd given)", name,
                 want, nargs);
    return -1;
}

int
set_callable(const char *name, PyObject **slot, PyObject *value)
{
    if (value && value != Py_None && !PyCallable_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be callable, not %.80s", name,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    Py_XSETREF(*slot, value && value != Py_None ? Py_NewRef(value) : NULL);
    return 0;
}

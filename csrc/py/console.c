/* SPDX-License-Identifier: Apache-2.0 */
/* console.c - Console and ExitPort: the ports every machine has */
#include <limits.h>
#include <string.h>

#include "../vmm/console.h"
#include "py.h"

#define DEFAULT_LIMIT (16ULL << 20)

struct console {
    PyObject_HEAD
    struct vmm_console con;
    PyObject *on_output; /* or NULL */
};

static PyObject *
console_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"limit", NULL};
    PyObject *limit_arg = NULL;
    uint64_t limit = DEFAULT_LIMIT;
    struct console *self;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:Console",
                                     KEYWORDS(names), &limit_arg))
        return NULL;
    if (limit_arg && as_uint(limit_arg, "limit", PY_SSIZE_T_MAX, &limit))
        return NULL;
    if (!limit) {
        PyErr_SetString(PyExc_ValueError, "limit must be at least 1 byte");
        return NULL;
    }
    self = (struct console *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    err = vmm_console_init(&self->con, limit);
    if (err) {
        memset(&self->con, 0, sizeof self->con);
        Py_DECREF(self);
        return raise_host("pthread_mutex_init", -err);
    }
    return (PyObject *)self;
}

static int
console_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct console *)op)->on_output);
    return 0;
}

static int
console_clear(PyObject *op)
{
    Py_CLEAR(((struct console *)op)->on_output);
    return 0;
}

static void
console_dealloc(PyObject *op)
{
    struct console *self = (struct console *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    Py_CLEAR(self->on_output);
    vmm_console_fini(&self->con);
    type->tp_free(op);
    Py_DECREF(type);
}

int
as_fd(PyObject *value, const char *name, int *out)
{
    long fd;

    if (!value) {
        PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", name);
        return -1;
    }
    fd = PyLong_AsLong(value);
    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < -1 || fd > INT_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "%s %ld is no file descriptor, nor -1 for none", name, fd);
        return -1;
    }
    *out = (int)fd;
    return 0;
}

/* -- what the guest printed ------------------------------------------------ */

struct counts {
    uint64_t end;
    uint64_t dropped;
    uint64_t waiting;
};

static struct counts
console_counts(struct console *self)
{
    struct vmm_console *con = &self->con;
    PyThreadState *thread = lock_acquire(&con->lock);
    struct counts counts = {
        .end = con->dropped + con->out_len,
        .dropped = con->dropped,
        .waiting = con->in_len - con->in_at,
    };

    lock_release(&con->lock, thread);
    return counts;
}

static PyObject *
console_repr(PyObject *op)
{
    struct counts counts = console_counts((struct console *)op);

    return PyUnicode_FromFormat(
        "<Console %llu bytes printed, %llu dropped, %llu of input waiting>",
        (unsigned long long)counts.end, (unsigned long long)counts.dropped,
        (unsigned long long)counts.waiting);
}

static PyObject *
console_get_end(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(
        console_counts((struct console *)op).end);
}

static PyObject *
console_get_dropped(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(
        console_counts((struct console *)op).dropped);
}

static PyObject *
console_get_waiting(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(
        console_counts((struct console *)op).waiting);
}

PyDoc_STRVAR(
    console_read_doc,
    "read($self, start=0, size=-1)\n--\n\n"
    "Output from position `start` on, `size` bytes at most (-1: all).\n\n"
    "Positions count from the very first byte that the guest printed, so the "
    "next\nread starts at `end`. Bytes before `dropped` are gone: reading "
    "begins there then.\nRaises ValueError for a negative `start`.");

static PyObject *
console_read(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"start", "size", NULL};
    struct vmm_console *con = &((struct console *)op)->con;
    PyObject *start_arg = NULL, *ret;
    Py_ssize_t size = -1;
    uint64_t start = 0, room;
    struct counts counts;
    size_t got;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|On:read", KEYWORDS(names),
                                     &start_arg, &size))
        return NULL;
    if (start_arg && as_uint(start_arg, "start", UINT64_MAX, &start))
        return NULL;
    counts = console_counts((struct console *)op);
    if (start < counts.dropped)
        start = counts.dropped;
    room = start < counts.end ? counts.end - start : 0;
    if (size >= 0)
        room = vmm_min(room, (uint64_t)size);
    ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (!ret || !room)
        return ret;
    Py_BEGIN_ALLOW_THREADS
    got = vmm_console_copy(con, &start, PyBytes_AS_STRING(ret), room);
    Py_END_ALLOW_THREADS
    if (got < room)
        _PyBytes_Resize(&ret, (Py_ssize_t)got);
    return ret;
}

/* -- who is told ----------------------------------------------------------- */

/* The guest printed, or asked for input with `watch` set. */
static int
console_service(PyObject *op)
{
    PyObject *on_output = ((struct console *)op)->on_output;
    PyObject *ret;

    if (!on_output)
        return 0;
    Py_INCREF(on_output);
    ret = PyObject_CallNoArgs(on_output);
    Py_DECREF(on_output);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

static PyObject *
console_get_on_output(PyObject *op, void *closure)
{
    PyObject *on_output = ((struct console *)op)->on_output;

    (void)closure;
    return Py_NewRef(on_output ? on_output : Py_None);
}

static int
console_set_on_output(PyObject *op, PyObject *value, void *closure)
{
    (void)closure;
    return set_callable("on_output", &((struct console *)op)->on_output, value);
}

/* `closure` is the offset of the flag. */
static bool *
flag_of(PyObject *op, void *closure)
{
    return (bool *)((char *)op + (uintptr_t)closure);
}

static PyObject *
console_get_flag(PyObject *op, void *closure)
{
    return PyBool_FromLong(
        __atomic_load_n(flag_of(op, closure), __ATOMIC_RELAXED));
}

static int
console_set_flag(PyObject *op, PyObject *value, void *closure)
{
    int flag;

    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "cannot be deleted");
        return -1;
    }
    flag = PyObject_IsTrue(value);
    if (flag < 0)
        return -1;
    __atomic_store_n(flag_of(op, closure), flag, __ATOMIC_RELAXED);
    return 0;
}

static PyObject *
console_get_out_fd(PyObject *op, void *closure)
{
    struct vmm_console *con = &((struct console *)op)->con;
    PyThreadState *thread = lock_acquire(&con->lock);
    int fd = con->out_fd;

    (void)closure;
    lock_release(&con->lock, thread);
    return PyLong_FromLong(fd);
}

static int
console_set_out_fd(PyObject *op, PyObject *value, void *closure)
{
    struct vmm_console *con = &((struct console *)op)->con;
    PyThreadState *thread;
    int fd;

    (void)closure;
    if (as_fd(value, "out_fd", &fd))
        return -1;
    thread = lock_acquire(&con->lock);
    con->out_fd = fd;
    lock_release(&con->lock, thread);
    return 0;
}

/* -- both directions from outside ------------------------------------------ */

PyDoc_STRVAR(console_print_doc,
             "print($self, data, /)\n--\n\n"
             "Append to the output as if the guest had printed it.\n\n"
             "Calls on_output where `watch` or `lines` say so, once. Whether "
             "a text that is\nwanted has come with it.");

static PyObject *
console_print(PyObject *op, PyObject *arg)
{
    struct vmm_console *con = &((struct console *)op)->con;
    Py_buffer data;
    bool tell, came;

    if (PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    came = vmm_console_print(con, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    tell = __atomic_load_n(&con->watch, __ATOMIC_RELAXED) ||
           (__atomic_load_n(&con->lines, __ATOMIC_RELAXED) &&
            memchr(data.buf, '\n', (size_t)data.len));
    PyBuffer_Release(&data);
    if (tell && console_service(op))
        return NULL;
    return PyBool_FromLong(came);
}

PyDoc_STRVAR(console_send_doc,
             "send($self, data, /)\n--\n\n"
             "Append to the input that waits for the guest.\n\n"
             "Raises MemoryError.");

static PyObject *
console_send(PyObject *op, PyObject *arg)
{
    struct vmm_console *con = &((struct console *)op)->con;
    Py_buffer data;
    int err;

    if (PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    err = vmm_console_send(con, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (err)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(console_flush_doc,
             "flush($self, /)\n--\n\n"
             "Write what is left to out_fd, whole lines or not.");

static PyObject *
console_flush(PyObject *op, PyObject *unused)
{
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    vmm_console_flush(&((struct console *)op)->con);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    console_rewind_doc,
    "rewind($self, end, input, /)\n--\n\n"
    "Forget output behind position `end`; let `input` be what waits.\n\n"
    "For going back to a snapshot. What went to out_fd stays there. "
    "Raises MemoryError.");

static PyObject *
console_rewind(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vmm_console *con = &((struct console *)op)->con;
    Py_buffer in;
    uint64_t end;
    int err;

    if (arguments("rewind", nargs, 2) ||
        as_uint(args[0], "end", UINT64_MAX, &end) ||
        PyObject_GetBuffer(args[1], &in, PyBUF_SIMPLE))
        return NULL;
    err = vmm_console_rewind(con, end, in.buf, (size_t)in.len);
    PyBuffer_Release(&in);
    if (err)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *
console_get_input(PyObject *op, void *closure)
{
    struct vmm_console *con = &((struct console *)op)->con;
    size_t room = vmm_console_waiting(con, NULL, 0), got;
    PyObject *ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);

    (void)closure;
    if (!ret)
        return NULL;
    got = vmm_console_waiting(con, PyBytes_AS_STRING(ret), room);
    if (got < room) /* a guest that runs has taken some */
        _PyBytes_Resize(&ret, (Py_ssize_t)got);
    return ret;
}

PyDoc_STRVAR(console_want_doc,
             "want($self, texts, /)\n--\n\n"
             "End the run once the guest has printed one of these, from now "
             "on.\n\n`texts`: at most 4 bytes objects; none: nothing ends it. "
             "Raises ValueError,\nMemoryError.");

static PyObject *
console_want(PyObject *op, PyObject *arg)
{
    PyObject *list = PySequence_Fast(arg, "texts is a sequence of bytes");
    Py_ssize_t count = list ? PySequence_Fast_GET_SIZE(list) : 0;
    const void *text[VMM_CONSOLE_WANT];
    size_t len[VMM_CONSOLE_WANT];
    int err = 0;

    if (!list)
        return NULL;
    if (count > (Py_ssize_t)VMM_CONSOLE_WANT) {
        PyErr_Format(PyExc_ValueError, "%zd texts are more than %u", count,
                     VMM_CONSOLE_WANT);
        err = -1;
    }
    for (Py_ssize_t i = 0; !err && i < count; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);

        if (!PyBytes_Check(item)) {
            PyErr_Format(PyExc_TypeError, "a text is bytes, not %.80s",
                         Py_TYPE(item)->tp_name);
            err = -1;
            break;
        }
        text[i] = PyBytes_AS_STRING(item);
        len[i] = (size_t)PyBytes_GET_SIZE(item);
    }
    if (!err) {
        err = vmm_console_want(&((struct console *)op)->con, text, len,
                               (unsigned)count);
        if (err == -EINVAL)
            PyErr_SetString(PyExc_ValueError, "a text is empty, or longer than "
                                              "what the console keeps");
        else if (err)
            PyErr_NoMemory();
    }
    Py_DECREF(list);
    if (err)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef console_methods[] = {
    {"read", (PyCFunction)(void (*)(void))console_read,
     METH_VARARGS | METH_KEYWORDS, console_read_doc},
    {"print", console_print, METH_O, console_print_doc},
    {"send", console_send, METH_O, console_send_doc},
    {"want", console_want, METH_O, console_want_doc},
    {"flush", console_flush, METH_NOARGS, console_flush_doc},
    {"rewind", (PyCFunction)(void (*)(void))console_rewind, METH_FASTCALL,
     console_rewind_doc},
    {NULL, NULL, 0, NULL},
};

#define FLAG(name) ((void *)offsetof(struct console, con.name))

static PyGetSetDef console_getset[] = {
    {"out_fd", console_get_out_fd, console_set_out_fd,
     "File descriptor that output is also written to, -1: none.\n\n"
     "It stays the caller's. Whole lines are written, by the thread that "
     "prints, from\nthe oldest byte kept that was not written yet. It becomes "
     "-1 when writing fails.",
     NULL},
    {"watch", console_get_flag, console_set_flag,
     "Whether every access of the guest's calls on_output.", FLAG(watch)},
    {"lines", console_get_flag, console_set_flag,
     "Whether every newline that the guest prints calls on_output.",
     FLAG(lines)},
    {"on_output", console_get_on_output, console_set_on_output,
     "Called without arguments, on the vCPU's thread, or None.", NULL},
    {"end", console_get_end, NULL, "The position behind the last byte printed.",
     NULL},
    {"dropped", console_get_dropped, NULL,
     "How many bytes were forgotten: the position of the oldest one kept.",
     NULL},
    {"input", console_get_input, NULL, "The input that waits, as bytes.", NULL},
    {"waiting", console_get_waiting, NULL,
     "Bytes of input that the guest did not take yet.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    console_doc,
    "Console(*, limit=16777216)\n--\n\n"
    "The console at port 0xe9: what the guest prints, what it is sent.\n\n"
    "The last `limit` bytes of output are kept, at least 1; a guest that "
    "prints more\nloses the oldest. Put on the bus of ports, CONSOLE_SIZE "
    "bytes at CONSOLE_PORT\n(docs/guest-abi.md). Raises ValueError for a "
    "limit of 0.\n\n"
    "Threads: any; on_output runs on the thread of the vCPU that printed.");

static PyType_Slot console_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)console_doc},
    {Py_tp_new, console_new},
    {Py_tp_dealloc, console_dealloc},
    {Py_tp_traverse, console_traverse},
    {Py_tp_clear, console_clear},
    {Py_tp_repr, console_repr},
    {Py_tp_methods, console_methods},
    {Py_tp_getset, console_getset},
    {0, NULL},
};

PyType_Spec console_spec = {
    .name = "pyvmm._vmm.Console",
    .basicsize = sizeof(struct console),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = console_slots,
};

bool
console_native(struct state *state, PyObject *device, struct native *out)
{
    if (!Py_IS_TYPE(device, state->console_type))
        return false;
    *out = (struct native){
        .ops = &vmm_console_ops,
        .dev = &((struct console *)device)->con,
        .size = VMM_CONSOLE_SIZE,
        .service = console_service,
    };
    return true;
}

/* -- ExitPort -------------------------------------------------------------- */

static PyObject *
exit_port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {NULL};

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":ExitPort",
                                     KEYWORDS(names)))
        return NULL;
    return type->tp_alloc(type, 0);
}

static void
exit_port_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
exit_port_repr(PyObject *op)
{
    (void)op;
    return PyUnicode_FromString("<ExitPort>");
}

PyDoc_STRVAR(exit_port_doc,
             "ExitPort()\n--\n\n"
             "The port at 0xf4: a write of 1, 2 or 4 bytes ends the run.\n\n"
             "The value written is in the Exit, whose reason is EXIT_STOP. Put "
             "on the bus of\nports, EXIT_SIZE bytes at EXIT_PORT "
             "(docs/guest-abi.md).\n\n"
             "Threads: any; it has no state.");

static PyType_Slot exit_port_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)exit_port_doc},
    {Py_tp_new, exit_port_new},
    {Py_tp_dealloc, exit_port_dealloc},
    {Py_tp_repr, exit_port_repr},
    {0, NULL},
};

PyType_Spec exit_port_spec = {
    .name = "pyvmm._vmm.ExitPort",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = exit_port_slots,
};

bool
exit_port_native(struct state *state, PyObject *device, struct native *out)
{
    if (!Py_IS_TYPE(device, state->exit_port_type))
        return false;
    *out = (struct native){
        .ops = &vmm_exit_port_ops,
        .size = VMM_EXIT_SIZE,
    };
    return true;
}

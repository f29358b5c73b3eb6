/* SPDX-License-Identifier: Apache-2.0 */
/* chain.c - Chain: a request on loan from a queue */
#include <string.h>

#include "py.h"

struct chain *
chain_new(struct state *state, PyObject *owner, struct memory *memory,
          struct vmm_virtq *vq, pthread_mutex_t *lock)
{
    PyTypeObject *type = state->chain_type;
    struct chain *self;

    memory_hold(memory); /* allocating may collect, and that run anything */
    self = (struct chain *)type->tp_alloc(type, 0);
    if (!self) {
        memory_release(memory);
        return NULL;
    }
    self->memory = memory;
    self->owner = Py_NewRef(owner);
    self->vq = vq;
    self->lock = lock;
    return self;
}

void
chain_of(struct chain *chain, struct virtio *virtio, unsigned queue)
{
    chain->virtio = virtio;
    chain->queue = queue;
    chain->next = virtio->chains;
    chain->at = &virtio->chains;
    if (chain->next)
        chain->next->at = &chain->next;
    virtio->chains = chain;
}

PyObject *
chain_popped(struct chain *chain, int answer)
{
    if (answer > 0)
        return (PyObject *)chain;
    Py_DECREF(chain);
    if (answer == -ENOMEM)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

struct chain *
chain_check(struct state *state, PyObject *arg, const struct vmm_virtq *vq)
{
    struct chain *chain = (struct chain *)arg;

    if (!Py_IS_TYPE(arg, state->chain_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Chain, not %.80s",
                     Py_TYPE(arg)->tp_name);
        return NULL;
    }
    if (chain->vq != vq) {
        PyErr_Format(PyExc_ValueError, "chain %u is of another queue",
                     chain->chain.head);
        return NULL;
    }
    if (chain->pushed) {
        PyErr_Format(PyExc_ValueError, "chain %u was pushed already",
                     chain->chain.head);
        return NULL;
    }
    return chain;
}

PyObject *
chain_pushed(struct chain *chain, uint32_t written, int answer)
{
    if (answer == -EINVAL)
        return PyErr_Format(PyExc_ValueError, "written %u is outside 0..%llu",
                            written,
                            (unsigned long long)chain->chain.writable_len);
    chain->pushed = true;
    return PyBool_FromLong(!answer);
}

void
chain_renew(struct chain *chain)
{
    chain->at_read = chain->at_write = 0;
    chain->written = 0;
    chain->pushed = chain->returned = false;
    chain->deferred = chain->finished = chain->lacking = false;
}

static int
chain_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct chain *)op)->owner);
    return 0;
}

/*
 * Nobody can complete it any more, and the driver would wait for ever: it is
 * completed as it is, with a warning.
 */
static void
complete_forgotten(struct chain *self)
{
    struct vmm_virtio_mmio *dev = self->virtio->dev;
    PyObject *type, *value, *trace;
    PyThreadState *thread;
    int err;

    PyErr_Fetch(&type, &value, &trace);
    thread = lock_acquire(self->lock);
    err = vmm_virtio_mmio_push(dev, self->queue, &self->chain, self->written);
    if (!err)
        vmm_virtio_mmio_used(dev, self->queue);
    lock_release(self->lock, thread);
    if (!err && PyErr_ResourceWarning(
                    NULL, 1, "chain %u was deferred and never completed",
                    self->chain.head))
        PyErr_WriteUnraisable(self->owner);
    PyErr_Restore(type, value, trace);
}

/* No tp_clear: a cycle passes through a dict or a callable that can be cleared,
 * and without its owner a chain is nothing. */
static void
chain_dealloc(PyObject *op)
{
    struct chain *self = (struct chain *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (self->deferred && !self->pushed && self->virtio && self->virtio->open)
        complete_forgotten(self);
    if (self->at) {
        *self->at = self->next;
        if (self->next)
            self->next->at = self->at;
    }
    vmm_chain_fini(&self->chain);
    if (self->memory)
        memory_release(self->memory);
    Py_XDECREF(self->owner);
    type->tp_free(op);
    Py_DECREF(type);
}

bool
chain_alive(struct chain *self)
{
    PyThreadState *thread = lock_acquire(self->lock);
    bool alive = vmm_chain_alive(&self->chain, self->vq);

    lock_release(self->lock, thread);
    return alive;
}

PyObject *
chain_raise_stale(struct chain *self)
{
    if (self->pushed)
        return PyErr_Format(PyExc_ValueError,
                            "chain %u was pushed: it is the driver's again",
                            self->chain.head);
    if (self->returned)
        return PyErr_Format(PyExc_ValueError, "chain %u went back to its queue",
                            self->chain.head);
    return PyErr_Format(state_of(Py_TYPE(self))->stale_error,
                        "chain %u was taken back by a reset", self->chain.head);
}

static PyObject *
raise_short(struct chain *self, const char *what, uint64_t want, uint64_t has)
{
    char text[100];

    snprintf(text, sizeof text, "chain %u %s %llu bytes, not %llu",
             self->chain.head, what, (unsigned long long)has,
             (unsigned long long)want);
    PyErr_SetString(state_of(Py_TYPE(self))->short_error, text);
    self->lacking = true;
    return NULL;
}

static PyObject *
chain_repr(PyObject *op)
{
    struct chain *self = (struct chain *)op;
    const char *state = "in flight";

    if (self->pushed)
        state = "pushed";
    else if (self->returned)
        state = "back in the queue";
    else if (!chain_alive(self))
        state = "taken back";
    return PyUnicode_FromFormat(
        "<Chain %u %s, %llu bytes to read in %u parts, %llu to write in %u>",
        self->chain.head, state, (unsigned long long)self->chain.readable_len,
        self->chain.readable, (unsigned long long)self->chain.writable_len,
        self->chain.writable);
}

static PyObject *
chain_get_head(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromLong(((struct chain *)op)->chain.head);
}

static PyObject *
chain_get_alive(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(chain_alive((struct chain *)op));
}

static PyObject *
chain_get_readable_size(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(
        ((struct chain *)op)->chain.readable_len);
}

static PyObject *
chain_get_writable_size(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(
        ((struct chain *)op)->chain.writable_len);
}

static PyObject *
chain_views(struct chain *self, const struct vmm_segment *seg, unsigned count,
            bool readonly)
{
    struct state *state = state_of(Py_TYPE(self));
    PyObject *list;

    if (!chain_alive(self))
        return chain_raise_stale(self);
    list = PyList_New(count);
    for (unsigned i = 0; list && i < count; i++) {
        PyObject *view = memory_view(state, self->memory, seg[i].hva,
                                     (Py_ssize_t)seg[i].len, readonly);

        if (!view) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, view);
        /* Popping marked the pages, but that may have been long ago. */
        if (!readonly)
            vmm_mem_mark(&self->memory->mem, seg[i].gpa, seg[i].len);
    }
    return list;
}

static PyObject *
chain_get_readable(PyObject *op, void *closure)
{
    struct chain *self = (struct chain *)op;

    (void)closure;
    return chain_views(self, self->chain.seg, self->chain.readable, true);
}

static PyObject *
chain_get_writable(PyObject *op, void *closure)
{
    struct chain *self = (struct chain *)op;
    const struct vmm_segment *seg = self->chain.seg;

    (void)closure;
    if (self->chain.writable)
        seg += self->chain.readable;
    return chain_views(self, seg, self->chain.writable, false);
}

int
take_arguments(const char *function, PyObject *const *args, Py_ssize_t nargs,
               PyObject *kwnames, const char *const names[2], int needed,
               PyObject *out[2])
{
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;

    if (nargs > 2) {
        PyErr_Format(PyExc_TypeError,
                     "%s takes at most 2 arguments (%zd given)", function,
                     nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++)
        out[i] = args[i];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int at = 0;

        while (at < 2 && PyUnicode_CompareWithASCIIString(name, names[at]))
            at++;
        if (at == 2 || at < nargs) {
            PyErr_Format(PyExc_TypeError,
                         at == 2 ? "%s got an unexpected argument '%U'"
                                 : "%s got two values for argument '%U'",
                         function, name);
            return -1;
        }
        out[at] = args[nargs + i];
    }
    if (needed && !out[0]) {
        PyErr_Format(PyExc_TypeError, "%s lacks its argument '%s'", function,
                     names[0]);
        return -1;
    }
    return 0;
}

/*
 * Buffers may overlap: a chain of 2^32 bytes fits into any RAM. So many bytes
 * are copied for who did not say how many.
 */
#define READ_ALL_MAX (64ULL << 20)

/* Above this many bytes other Python threads may run while they are copied. */
#define COPY_LONG (64ULL << 10)

static PyThreadState *
copy_begin(struct chain *self, uint64_t len)
{
    PyThreadState *thread;

    if (len < COPY_LONG)
        return lock_acquire(self->lock);
    thread = PyEval_SaveThread();
    pthread_mutex_lock(self->lock);
    return thread;
}

/* As new bytes, `len` of the readable ones from `offset` on; they are there. */
static PyObject *
copy_out(struct chain *self, uint64_t offset, uint64_t len)
{
    PyObject *ret = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    PyThreadState *thread;
    bool alive;

    if (!ret)
        return NULL;
    thread = copy_begin(self, len);
    alive = vmm_chain_alive(&self->chain, self->vq);
    if (alive)
        vmm_chain_read(&self->chain, offset, PyBytes_AS_STRING(ret), len);
    lock_release(self->lock, thread);
    if (alive)
        return ret;
    Py_DECREF(ret);
    return chain_raise_stale(self);
}

PyDoc_STRVAR(
    chain_read_doc,
    "read($self, size=-1, offset=None)\n--\n\n"
    "Copy out the next `size` of the readable bytes (-1: all that are left)."
    "\n\n"
    "Fewer come when the chain ends before. With `offset` those from there on, "
    "and the\nposition stays. The driver decides how many there are: without a "
    "size more than\n64 MiB raise ShortChain. Raises ValueError for a negative "
    "offset and once the\nchain is the driver's again.");

static PyObject *
chain_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
           PyObject *kwnames)
{
    static const char *const names[2] = {"size", "offset"};
    struct chain *self = (struct chain *)op;
    PyObject *arg[2] = {NULL, NULL}, *ret;
    uint64_t offset = self->at_read, len;
    Py_ssize_t size = -1;
    bool moves;

    if (take_arguments("read", args, nargs, kwnames, names, 0, arg))
        return NULL;
    moves = !arg[1] || arg[1] == Py_None;
    if (!moves && as_uint(arg[1], "offset", UINT64_MAX, &offset))
        return NULL;
    if (arg[0]) {
        size = PyNumber_AsSsize_t(arg[0], PyExc_OverflowError);
        if (size == -1 && PyErr_Occurred())
            return NULL;
    }
    len = self->chain.readable_len - vmm_min(offset, self->chain.readable_len);
    if (size >= 0)
        len = vmm_min(len, (uint64_t)size);
    else if (len > READ_ALL_MAX) {
        self->lacking = true;
        return PyErr_Format(state_of(Py_TYPE(self))->short_error,
                            "chain %u has %llu bytes: too many to read without "
                            "a size",
                            self->chain.head, (unsigned long long)len);
    }
    ret = copy_out(self, offset, len);
    if (ret && moves)
        self->at_read = offset + len;
    return ret;
}

PyDoc_STRVAR(chain_take_doc,
             "take($self, size, /)\n--\n\n"
             "Copy out the next `size` bytes, all of them.\n\n"
             "Raises ShortChain when the driver sent fewer, else as read().");

static PyObject *
chain_take(PyObject *op, PyObject *arg)
{
    struct chain *self = (struct chain *)op;
    uint64_t left = self->chain.readable_len - self->at_read, size;
    PyObject *ret;

    if (as_uint(arg, "size", UINT64_MAX, &size))
        return NULL;
    if (size > left)
        return raise_short(self, "has", size, left);
    ret = copy_out(self, self->at_read, size);
    if (ret)
        self->at_read += size;
    return ret;
}

PyDoc_STRVAR(
    chain_write_doc,
    "write($self, data, offset=None)\n--\n\n"
    "Copy all of `data` into the room for the answer, behind what was "
    "written.\n\n"
    "Returns its length. With `offset` it goes there, and the position stays. "
    "`written`\nbecomes at least where it ends. Raises ShortChain, and writes "
    "nothing, when the\nroom ends before; ValueError for a negative offset and "
    "once the chain is the\ndriver's again.");

static PyObject *
chain_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    static const char *const names[2] = {"data", "offset"};
    struct chain *self = (struct chain *)op;
    PyObject *arg[2] = {NULL, NULL};
    uint64_t offset = self->at_write, room, len;
    PyThreadState *thread;
    Py_buffer data;
    bool alive, moves;

    if (take_arguments("write", args, nargs, kwnames, names, 1, arg))
        return NULL;
    moves = !arg[1] || arg[1] == Py_None;
    if ((!moves && as_uint(arg[1], "offset", UINT64_MAX, &offset)) ||
        PyObject_GetBuffer(arg[0], &data, PyBUF_SIMPLE))
        return NULL;
    len = (uint64_t)data.len;
    room = self->chain.writable_len - vmm_min(offset, self->chain.writable_len);
    if (len > room) {
        PyBuffer_Release(&data);
        return raise_short(self, "has room for", len, room);
    }
    thread = copy_begin(self, len);
    alive = vmm_chain_alive(&self->chain, self->vq);
    if (alive)
        vmm_chain_write(&self->chain, &self->memory->mem, offset, data.buf,
                        len);
    lock_release(self->lock, thread);
    PyBuffer_Release(&data);
    if (!alive)
        return chain_raise_stale(self);
    if (moves)
        self->at_write = offset + len;
    if (len && offset + len > self->written)
        self->written = (uint32_t)vmm_min(offset + len, UINT32_MAX);
    return PyLong_FromUnsignedLongLong(len);
}

PyDoc_STRVAR(
    chain_defer_doc,
    "defer($self, /)\n--\n\n"
    "The end of the loop's body shall not complete it: complete() will.\n\n"
    "One that is forgotten is completed when it is collected, with a "
    "ResourceWarning.\nRaises ValueError when its turn is over, or it was "
    "popped by hand.");

static PyObject *
chain_defer(PyObject *op, PyObject *unused)
{
    struct chain *self = (struct chain *)op;

    (void)unused;
    if (self->pushed || self->returned || self->finished)
        return PyErr_Format(PyExc_ValueError,
                            "chain %u: its turn in the loop is over",
                            self->chain.head);
    self->deferred = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    chain_complete_doc,
    "complete($self, written=None)\n--\n\n"
    "Return it to the driver, `written` bytes filled from the start on.\n\n"
    "By default what write() wrote. Interrupts the driver if it wants that. "
    "False, and\nnothing was returned, when a reset took the chain back "
    "meanwhile. From any thread.\nRaises ValueError when it was completed "
    "before or has less room than that.");

static PyObject *
chain_complete(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
               PyObject *kwnames)
{
    static const char *const names[2] = {"written", ""};
    struct chain *self = (struct chain *)op;
    PyObject *arg[2] = {NULL, NULL};
    uint64_t written = self->written;
    struct vmm_virtio_mmio *dev;
    PyThreadState *thread;
    int err;

    if ((nargs > 1 && arguments("complete", nargs, 1)) ||
        take_arguments("complete", args, nargs, kwnames, names, 0, arg) ||
        (arg[0] && arg[0] != Py_None &&
         as_uint(arg[0], "written", UINT32_MAX, &written)))
        return NULL;
    if (self->pushed || self->returned)
        return chain_raise_stale(self);
    if (!self->virtio)
        return PyErr_Format(PyExc_ValueError,
                            "chain %u is of a VirtQueue: push() it",
                            self->chain.head);
    dev = self->virtio->dev;
    thread = lock_acquire(self->lock);
    err =
        vmm_virtio_mmio_push(dev, self->queue, &self->chain, (uint32_t)written);
    if (!err)
        vmm_virtio_mmio_used(dev, self->queue);
    lock_release(self->lock, thread);
    return chain_pushed(self, (uint32_t)written, err);
}

static PyObject *
chain_get_written(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((struct chain *)op)->written);
}

static int
chain_set_written(PyObject *op, PyObject *value, void *closure)
{
    struct chain *self = (struct chain *)op;
    uint64_t max = vmm_min(self->chain.writable_len, UINT32_MAX), written;

    (void)closure;
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete written");
        return -1;
    }
    if (as_uint(value, "written", max, &written))
        return -1;
    self->written = (uint32_t)written;
    return 0;
}

static PyMethodDef chain_methods[] = {
    {"read", (PyCFunction)(void (*)(void))chain_read,
     METH_FASTCALL | METH_KEYWORDS, chain_read_doc},
    {"write", (PyCFunction)(void (*)(void))chain_write,
     METH_FASTCALL | METH_KEYWORDS, chain_write_doc},
    {"take", chain_take, METH_O, chain_take_doc},
    {"defer", chain_defer, METH_NOARGS, chain_defer_doc},
    {"complete", (PyCFunction)(void (*)(void))chain_complete,
     METH_FASTCALL | METH_KEYWORDS, chain_complete_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef chain_getset[] = {
    {"head", chain_get_head, NULL,
     "The number of its first descriptor, 0 to the queue's size - 1.", NULL},
    {"alive", chain_get_alive, NULL,
     "Whether the buffers are the device's: neither pushed nor taken back by a "
     "reset.",
     NULL},
    {"readable", chain_get_readable, NULL,
     "A list of memoryviews, read-only, of what the driver sends, in order.\n\n"
     "Of guest memory itself: another vCPU may change it at any moment. They "
     "must not\nbe used once the chain is pushed. Raises ValueError then.",
     NULL},
    {"writable", chain_get_writable, NULL,
     "A list of memoryviews of the room for the answer, in order.\n\n"
     "Their pages are marked dirty. They must not be used once the chain is "
     "pushed.\nRaises ValueError then.",
     NULL},
    {"readable_size", chain_get_readable_size, NULL,
     "Bytes to read, 0 to 2^32.", NULL},
    {"writable_size", chain_get_writable_size, NULL,
     "Bytes to write, 0 to 2^32.", NULL},
    {"written", chain_get_written, chain_set_written,
     "Bytes filled from the start on, by write() or as set; complete() reports "
     "them.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(chain_doc,
             "One request of a driver's: bytes to read, then room to "
             "write.\n\n"
             "Of a queue that is iterated over, or made by pop(). In flight "
             "until it is pushed or\ncompleted, or until a reset takes it "
             "back; one that never is, is lost to the driver\n(virtio 1.2, "
             "2.7). read() and write() go on where the last one ended.\n\n"
             "Threads: any; one at a time for each chain.");

static PyType_Slot chain_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)chain_doc},
    {Py_tp_dealloc, chain_dealloc},
    {Py_tp_traverse, chain_traverse},
    {Py_tp_repr, chain_repr},
    {Py_tp_methods, chain_methods},
    {Py_tp_getset, chain_getset},
    {0, NULL},
};

PyType_Spec chain_spec = {
    .name = "pyvmm._vmm.Chain",
    .basicsize = sizeof(struct chain),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = chain_slots,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* virtq.c - VirtQueue: a virtqueue for transports of the user's own */
#include <string.h>

#include "py.h"

struct virtq {
    PyObject_HEAD
    struct vmm_virtq vq;
    pthread_mutex_t lock;
    struct memory *memory; /* NULL until all of it is made */
};

static PyObject *
virtq_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"memory", "max_size", NULL};
    PyObject *memory_arg, *size_arg = NULL;
    struct memory *memory;
    struct virtq *self;
    uint64_t size = 256;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:VirtQueue",
                                     KEYWORDS(names), &memory_arg, &size_arg))
        return NULL;
    memory = memory_check(state_of(type), memory_arg);
    if (!memory ||
        (size_arg && as_uint(size_arg, "max_size", VMM_VIRTQ_MAX_SIZE, &size)))
        return NULL;
    self = (struct virtq *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (vmm_virtq_init(&self->vq, &memory->mem, (uint32_t)size)) {
        PyErr_Format(PyExc_ValueError, "max_size %u is no power of two",
                     (unsigned)size);
        Py_DECREF(self);
        return NULL;
    }
    err = pthread_mutex_init(&self->lock, NULL);
    if (err) {
        Py_DECREF(self);
        return raise_host("pthread_mutex_init", err);
    }
    memory_hold(memory);
    self->memory = memory;
    return (PyObject *)self;
}

static void
virtq_dealloc(PyObject *op)
{
    struct virtq *self = (struct virtq *)op;
    PyTypeObject *type = Py_TYPE(op);

    if (self->memory) {
        pthread_mutex_destroy(&self->lock);
        memory_release(self->memory);
    }
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
virtq_repr(PyObject *op)
{
    const struct vmm_virtq *vq = &((struct virtq *)op)->vq;
    const char *state = vq->ready ? "ready" : "stopped";
    char text[300];

    snprintf(text, sizeof text,
             "<VirtQueue %u of %u entries, desc %#llx, avail %#llx, used %#llx,"
             " %s%s>",
             vq->size, vq->max_size, (unsigned long long)vq->desc_gpa,
             (unsigned long long)vq->avail_gpa,
             (unsigned long long)vq->used_gpa, vq->fault ? "broken: " : state,
             vq->fault ? vq->fault : "");
    return PyUnicode_FromString(text);
}

/* Only for what no call made without the GIL changes. */
static PyObject *
virtq_get_u32(PyObject *op, void *closure)
{
    return PyLong_FromUnsignedLong(
        *(uint32_t *)(void *)((char *)op + (uintptr_t)closure));
}

static PyObject *
virtq_get_u64(PyObject *op, void *closure)
{
    return PyLong_FromUnsignedLongLong(
        *(uint64_t *)(void *)((char *)op + (uintptr_t)closure));
}

static PyObject *
virtq_get_bool(PyObject *op, void *closure)
{
    return PyBool_FromLong(*(bool *)((char *)op + (uintptr_t)closure));
}

/* Whether what the driver configures may be set to `value`. */
static int
check_setting(PyObject *op, PyObject *value)
{
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "cannot be deleted");
        return -1;
    }
    if (((struct virtq *)op)->vq.ready) {
        PyErr_SetString(PyExc_ValueError,
                        "the queue is started: stop() it before");
        return -1;
    }
    return 0;
}

static int
virtq_set_size(PyObject *op, PyObject *value, void *closure)
{
    uint64_t size;

    (void)closure;
    if (check_setting(op, value) || as_uint(value, "size", UINT32_MAX, &size))
        return -1;
    ((struct virtq *)op)->vq.size = (uint32_t)size;
    return 0;
}

static int
virtq_set_gpa(PyObject *op, PyObject *value, void *closure)
{
    if (check_setting(op, value))
        return -1;
    return as_uint(value, "gpa", UINT64_MAX,
                   (uint64_t *)(void *)((char *)op + (uintptr_t)closure));
}

static int
virtq_set_bool(PyObject *op, PyObject *value, void *closure)
{
    int flag;

    if (check_setting(op, value))
        return -1;
    flag = PyObject_IsTrue(value);
    if (flag >= 0)
        *(bool *)((char *)op + (uintptr_t)closure) = flag;
    return flag < 0 ? -1 : 0;
}

static PyObject *
virtq_get_fault(PyObject *op, void *closure)
{
    const char *fault = ((struct virtq *)op)->vq.fault;

    (void)closure;
    if (!fault)
        Py_RETURN_NONE;
    return PyUnicode_FromString(fault);
}

PyDoc_STRVAR(virtq_start_doc,
             "start($self, /)\n--\n\n"
             "Start on the rings that `size` and the addresses name; whether "
             "it did.\n\n"
             "False: the driver chose a size or an address that is "
             "impossible; `fault` says\nwhich. No regions can be added to the "
             "memory from now on. Raises ValueError when\nit is started or "
             "broken already (virtio 1.2, 2.7).");

static PyObject *
virtq_start(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread;
    int err;

    (void)unused;
    vmm_mem_freeze(&self->memory->mem);
    thread = lock_acquire(&self->lock);
    err = vmm_virtq_start(&self->vq);
    lock_release(&self->lock, thread);
    if (err == -EBUSY) {
        PyErr_Format(PyExc_ValueError, "%R: stop() it before", op);
        return NULL;
    }
    return PyBool_FromLong(!err);
}

PyDoc_STRVAR(virtq_stop_doc,
             "stop($self, /)\n--\n\n"
             "Stop it, sound again: all chains in flight are taken back.\n\n"
             "What the driver configured stays.");

static PyObject *
virtq_stop(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread = lock_acquire(&self->lock);

    (void)unused;
    vmm_virtq_stop(&self->vq);
    lock_release(&self->lock, thread);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(virtq_pop_doc,
             "pop($self, /)\n--\n\n"
             "The next Chain that the driver offered, or None.\n\n"
             "None when there is none, when the queue is not started, or when "
             "the driver broke\nit: then `fault` says how. Raises "
             "MemoryError.");

static PyObject *
virtq_pop(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread;
    struct chain *chain;
    int ret;

    (void)unused;
    chain = chain_new(state_of(Py_TYPE(op)), op, self->memory, &self->vq,
                      &self->lock);
    if (!chain)
        return NULL;
    thread = lock_acquire(&self->lock);
    ret = vmm_virtq_pop(&self->vq, &chain->chain);
    lock_release(&self->lock, thread);
    return chain_popped(chain, ret);
}

PyDoc_STRVAR(
    virtq_push_doc,
    "push($self, chain, written=0)\n--\n\n"
    "Return a chain to the driver, `written` bytes of it filled from the "
    "start.\n\n"
    "False, and nothing was returned, when a stop took the chain back "
    "meanwhile or the\nqueue is broken. Ask must_interrupt() after a batch. "
    "Raises ValueError when it was\npushed before, is of another queue, or "
    "has less room than that.");

static PyObject *
virtq_push(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
           PyObject *kwnames)
{
    static const char *const names[2] = {"chain", "written"};
    struct virtq *self = (struct virtq *)op;
    PyObject *arg[2] = {NULL, NULL};
    PyThreadState *thread;
    struct chain *chain;
    uint64_t written = 0;
    int err;

    if (take_arguments("push", args, nargs, kwnames, names, 1, arg) ||
        (arg[1] && as_uint(arg[1], "written", UINT32_MAX, &written)))
        return NULL;
    chain = chain_check(state_of(Py_TYPE(op)), arg[0], &self->vq);
    if (!chain)
        return NULL;
    thread = lock_acquire(&self->lock);
    err = vmm_virtq_push(&self->vq, &chain->chain, (uint32_t)written);
    lock_release(&self->lock, thread);
    return chain_pushed(chain, (uint32_t)written, err);
}

PyDoc_STRVAR(virtq_interrupt_doc,
             "must_interrupt($self, /)\n--\n\n"
             "Whether the driver wants an interrupt for what was pushed since "
             "the last call\n(virtio 1.2, 2.7.7).");

static PyObject *
virtq_must_interrupt(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread = lock_acquire(&self->lock);
    bool must = vmm_virtq_must_interrupt(&self->vq);

    (void)unused;
    lock_release(&self->lock, thread);
    return PyBool_FromLong(must);
}

PyDoc_STRVAR(virtq_off_doc,
             "notify_off($self, /)\n--\n\n"
             "Tell the driver that it need not notify for now. It may all the "
             "same.");

static PyObject *
virtq_notify_off(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread = lock_acquire(&self->lock);

    (void)unused;
    vmm_virtq_notify_off(&self->vq);
    lock_release(&self->lock, thread);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(virtq_on_doc,
             "notify_on($self, /)\n--\n\n"
             "Ask the driver to notify at the next chain; whether some are "
             "there already.\n\n"
             "When they are, go on popping: it will not notify for those "
             "(virtio 1.2, 2.7.10).");

static PyObject *
virtq_notify_on(PyObject *op, PyObject *unused)
{
    struct virtq *self = (struct virtq *)op;
    PyThreadState *thread = lock_acquire(&self->lock);
    bool more = vmm_virtq_notify_on(&self->vq);

    (void)unused;
    lock_release(&self->lock, thread);
    return PyBool_FromLong(more);
}

static PyMethodDef virtq_methods[] = {
    {"start", virtq_start, METH_NOARGS, virtq_start_doc},
    {"stop", virtq_stop, METH_NOARGS, virtq_stop_doc},
    {"pop", virtq_pop, METH_NOARGS, virtq_pop_doc},
    {"push", (PyCFunction)(void (*)(void))virtq_push,
     METH_FASTCALL | METH_KEYWORDS, virtq_push_doc},
    {"must_interrupt", virtq_must_interrupt, METH_NOARGS, virtq_interrupt_doc},
    {"notify_off", virtq_notify_off, METH_NOARGS, virtq_off_doc},
    {"notify_on", virtq_notify_on, METH_NOARGS, virtq_on_doc},
    {NULL, NULL, 0, NULL},
};

#define MEMBER(name) ((void *)offsetof(struct virtq, vq.name))

static PyGetSetDef virtq_getset[] = {
    {"max_size", virtq_get_u32, NULL, "The most entries, a power of two.",
     MEMBER(max_size)},
    {"size", virtq_get_u32, virtq_set_size,
     "Entries, as the driver chose; judged by start().", MEMBER(size)},
    {"desc", virtq_get_u64, virtq_set_gpa,
     "Guest-physical address of the descriptor table.", MEMBER(desc_gpa)},
    {"avail", virtq_get_u64, virtq_set_gpa,
     "Guest-physical address of the available ring.", MEMBER(avail_gpa)},
    {"used", virtq_get_u64, virtq_set_gpa,
     "Guest-physical address of the used ring.", MEMBER(used_gpa)},
    {"indirect", virtq_get_bool, virtq_set_bool,
     "Whether INDIRECT_DESC was negotiated.", MEMBER(indirect)},
    {"event_idx", virtq_get_bool, virtq_set_bool,
     "Whether EVENT_IDX was negotiated.", MEMBER(event_idx)},
    {"ready", virtq_get_bool, NULL, "Started and not stopped, even if broken.",
     MEMBER(ready)},
    {"fault", virtq_get_fault, NULL,
     "How the driver broke the rules, or None while it did not.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    virtq_doc,
    "VirtQueue(memory, max_size=256)\n--\n\n"
    "The device's end of a split virtqueue, for transports of your own.\n\n"
    "`max_size` is a power of two, 1 to 32768. Set what the driver configured "
    "(`size`,\n`desc`, `avail`, `used` and the two features), start(), then "
    "pop() and push(). The\ndriver is not trusted: what breaks the rules of "
    "virtio 1.2, 2.7 breaks the queue,\n`fault` says how, and it gives nothing "
    "more until stop(). Setting anything while it\nis started raises "
    "ValueError.\n\n"
    "Threads: any, but the order of pops among several is theirs to settle.");

static PyType_Slot virtq_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)virtq_doc},
    {Py_tp_new, virtq_new},
    {Py_tp_dealloc, virtq_dealloc},
    {Py_tp_repr, virtq_repr},
    {Py_tp_methods, virtq_methods},
    {Py_tp_getset, virtq_getset},
    {0, NULL},
};

PyType_Spec virtq_spec = {
    .name = "pyvmm._vmm.VirtQueue",
    .basicsize = sizeof(struct virtq),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = virtq_slots,
};

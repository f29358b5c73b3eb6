/* SPDX-License-Identifier: Apache-2.0 */
/* rng.c - Rng: the entropy device, whose bytes may come from Python */
#include <string.h>

#include "../vmm/rng.h"
#include "py.h"

/* Bytes asked of a source at a time. Small, so that one which blocks does not
 * wait for bytes that the guest never wanted. */
#define POOL_SIZE 4096U

/* What vmm_rng_limit takes. */
#define LIMIT_MAX (1ULL << 32)

struct rng {
    struct virtio base;
    struct vmm_rng rng;
    PyObject *source; /* or NULL: getrandom */
    /* A source is asked by one thread at a time, or bytes would be lost or
     * swapped. Another that finds work leaves it to that one. */
    bool busy;
    bool again;
};

static struct rng *
as_rng(PyObject *op)
{
    return (struct rng *)(void *)op;
}

/* Asks the source for up to `wanted` bytes. 0, or -1 with an exception. */
static int
feed(struct rng *self, uint64_t wanted)
{
    PyObject *source = self->source, *count, *got;
    Py_buffer data;
    int err;

    if (!source) {
        PyErr_SetString(PyExc_RuntimeError, "the source was collected");
        return -1;
    }
    count = PyLong_FromUnsignedLongLong(wanted);
    if (!count)
        return -1;
    Py_INCREF(source);
    got = PyObject_CallOneArg(source, count);
    Py_DECREF(source);
    Py_DECREF(count);
    if (!got)
        return -1;
    if (!PyObject_CheckBuffer(got)) {
        PyErr_Format(PyExc_TypeError,
                     "the source must return bytes, not %.80s (%R)",
                     Py_TYPE(got)->tp_name, got);
        err = -1;
    } else {
        err = PyObject_GetBuffer(got, &data, PyBUF_SIMPLE);
    }
    Py_DECREF(got);
    if (err)
        return -1;
    if ((uint64_t)data.len > wanted) {
        PyErr_Format(PyExc_ValueError,
                     "the source returned %zd bytes, asked for up to %llu",
                     data.len, (unsigned long long)wanted);
        err = -1;
    } else {
        Py_BEGIN_ALLOW_THREADS
        vmm_rng_feed(&self->rng, data.buf, (uint64_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return err;
}

/*
 * The owner's part, as rng.h describes it, until nothing is left or what is
 * left waits for its time. Signals get through between two batches.
 */
static int
work(struct rng *self)
{
    uint64_t wanted, due;
    int answer;

    do {
        Py_BEGIN_ALLOW_THREADS
        wanted = vmm_rng_wanted(&self->rng);
        due = vmm_rng_due_ns(&self->rng);
        Py_END_ALLOW_THREADS
        if (!wanted && (!due || due > vmm_now_ns()))
            return 0;
        if (wanted && feed(self, wanted))
            return -1;
        Py_BEGIN_ALLOW_THREADS
        answer = vmm_rng_process(&self->rng);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals())
            return -1;
    } while (answer == VMM_BUS_OWNER && self->base.open);
    return 0;
}

static int
rng_service(PyObject *op)
{
    struct rng *self = as_rng(op);
    int err;

    if (self->busy) {
        self->again = true;
        return 0;
    }
    self->busy = true;
    do {
        self->again = false;
        err = work(self);
    } while (!err && self->again);
    self->busy = false;
    return err;
}

/* Reads the rate or the burst, if it was given. */
static int
as_limit(PyObject *arg, const char *name, uint64_t *out)
{
    return arg ? as_uint(arg, name, LIMIT_MAX, out) : 0;
}

static PyObject *
raise_init(int err, uint64_t queue_size)
{
    if (err != -EINVAL)
        return raise_host(err == -ENOMEM ? NULL : "pthread_mutex_init", -err);
    return PyErr_Format(PyExc_ValueError, "queue_size %u is no power of two",
                        (unsigned)queue_size);
}

static PyObject *
rng_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"memory", "queue_size", "source",
                                        "rate",   "burst",      NULL};
    PyObject *memory_arg, *size_arg = NULL, *source = Py_None;
    PyObject *rate_arg = NULL, *burst_arg = NULL;
    uint64_t size = VMM_RNG_QUEUE_SIZE, rate = 0, burst = 0;
    struct memory *memory;
    struct rng *self;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OOOO:Rng",
                                     KEYWORDS(names), &memory_arg, &size_arg,
                                     &source, &rate_arg, &burst_arg))
        return NULL;
    if ((size_arg &&
         as_uint(size_arg, "queue_size", VMM_VIRTQ_MAX_SIZE, &size)) ||
        as_limit(rate_arg, "rate", &rate) ||
        as_limit(burst_arg, "burst", &burst))
        return NULL;
    if (source != Py_None && !PyCallable_Check(source))
        return PyErr_Format(PyExc_TypeError,
                            "source must be callable, not %.80s",
                            Py_TYPE(source)->tp_name);
    self = as_rng(type->tp_alloc(type, 0));
    if (!self)
        return NULL;
    memory = memory_check(state_of(type), memory_arg);
    if (!memory) {
        Py_DECREF(self);
        return NULL;
    }
    err = vmm_rng_init(&self->rng, &memory->mem, (uint32_t)size);
    if (!err) {
        memory_hold(memory);
        self->base.memory = memory;
        self->base.dev = &self->rng.mmio;
    }
    if (!err)
        err = vmm_rng_limit(&self->rng, rate, burst);
    if (!err && source != Py_None) {
        self->source = Py_NewRef(source);
        err = vmm_rng_external(&self->rng, POOL_SIZE);
    }
    if (err) {
        raise_init(err, size);
        Py_DECREF(self);
        return NULL;
    }
    self->base.service = rng_service;
    self->base.open = true;
    return (PyObject *)self;
}

static int
rng_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(as_rng(op)->source);
    return virtio_traverse(op, visit, arg);
}

static int
rng_clear(PyObject *op)
{
    Py_CLEAR(as_rng(op)->source);
    return virtio_clear(op);
}

static void
rng_dealloc(PyObject *op)
{
    struct rng *self = as_rng(op);
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    vmm_rng_fini(&self->rng);
    virtio_drop(&self->base);
    Py_CLEAR(self->source);
    type->tp_free(op);
    Py_DECREF(type);
}

/* `closure` is the offset of the counter in struct vmm_rng. */
static PyObject *
rng_get_count(PyObject *op, void *closure)
{
    struct rng *self = as_rng(op);
    PyThreadState *thread;
    uint64_t count;

    if (!self->base.open)
        return raise_closed(op);
    thread = lock_acquire(&self->rng.mmio.lock);
    memcpy(&count, (char *)&self->rng + (uintptr_t)closure, sizeof count);
    lock_release(&self->rng.mmio.lock, thread);
    return PyLong_FromUnsignedLongLong(count);
}

static PyGetSetDef rng_getset[] = {
    {"bytes", rng_get_count, NULL, "Bytes given to the guest.",
     (void *)offsetof(struct vmm_rng, bytes)},
    {"requests", rng_get_count, NULL, "Chains completed.",
     (void *)offsetof(struct vmm_rng, requests)},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    rng_doc,
    "Rng(memory, *, queue_size=256, source=None, rate=0, burst=0)\n--\n\n"
    "The virtio entropy device, in C (virtio 1.2, 5.4).\n\n"
    "Its bytes come from getrandom(), or for runs that can be repeated from "
    "`source`: a\nfunction that is called with a number n, at most 4096, and "
    "returns 1 to n bytes, or\nnone when it has no more (then the next request "
    "breaks the device). What it raises\nleaves run(), process() or serve(). "
    "The device gives no more than `rate` bytes a\nsecond, and `burst` at "
    "once (0: a tenth of a second's), both up to 2^32; 0: no\nlimit. When that "
    "makes a request wait, `due_ns` is when to call process().\n`queue_size` "
    "is a power of two up to 32768. Raises ValueError.\n\n"
    "Threads: any. The source runs on the thread of the vCPU that asked, or on "
    "that of\nserve(), one call at a time.");

static PyType_Slot rng_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)rng_doc},
    {Py_tp_new, rng_new},
    {Py_tp_dealloc, rng_dealloc},
    {Py_tp_traverse, rng_traverse},
    {Py_tp_clear, rng_clear},
    {Py_tp_getset, rng_getset},
    {0, NULL},
};

PyType_Spec rng_spec = {
    .name = "pyvmm._vmm.Rng",
    .basicsize = sizeof(struct rng),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = rng_slots,
};

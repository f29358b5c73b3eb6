/* SPDX-License-Identifier: Apache-2.0 */
/* virtio.c - VirtioMMIO: virtio devices whose work is done in Python */
#include <string.h>

#include "py.h"

/* What a driver did, for on_event: three numbers that `what` explains. */
struct event {
    unsigned what;
    uint64_t arg[3];
};

#define EVENTS 64 /* at most one waits for each vCPU that has just exited */

/*
 * What the core is given of a device in Python. A notified queue gets a bit in
 * `pending`, and what else happened goes into `event`; the thread whose access
 * it was then calls on_notify and on_event.
 */
struct scripted {
    struct vmm_virtio_mmio mmio;
    uint64_t pending; /* atomic */
    /* A ring, under the lock; those beyond it are dropped and `odd`. */
    bool wants_events;
    unsigned events, next_event;
    struct event event[EVENTS];
    /* dev->notifications when each queue's owner was last told: serve and
     * process ask for all queues, and a queue whose chains the owner left
     * there on purpose is no news. */
    uint64_t told[VMM_VIRTIO_MMIO_MAX_QUEUES];
    uint8_t config[VMM_VIRTIO_MMIO_CONFIG_MAX];
    struct vmm_virtq queue[];
};

/* The RAM of devices that were closed: none. Never written. */
static struct vmm_mem nowhere = {.frozen = true};

static int
scripted_notify(struct vmm_virtio_mmio *dev, unsigned queue)
{
    struct scripted *scripted = vmm_container_of(dev, struct scripted, mmio);

    if (scripted->told[queue] == dev->notifications)
        return VMM_BUS_DONE;
    scripted->told[queue] = dev->notifications;
    __atomic_fetch_or(&scripted->pending, 1ULL << queue, __ATOMIC_RELAXED);
    return VMM_BUS_OWNER;
}

static int
scripted_event(struct vmm_virtio_mmio *dev, unsigned what, uint64_t first,
               uint64_t second, uint64_t third)
{
    struct scripted *scripted = vmm_container_of(dev, struct scripted, mmio);
    unsigned at = (scripted->next_event + scripted->events) % EVENTS;

    if (!scripted->wants_events)
        return VMM_BUS_DONE;
    if (scripted->events == EVENTS) {
        dev->odd++;
        return VMM_BUS_OWNER;
    }
    scripted->event[at] = (struct event){what, {first, second, third}};
    scripted->events++;
    return VMM_BUS_OWNER;
}

static int
scripted_reset(struct vmm_virtio_mmio *dev)
{
    return scripted_event(dev, EVENT_RESET, 0, 0, 0);
}

static int
scripted_status(struct vmm_virtio_mmio *dev, uint32_t old)
{
    return scripted_event(dev, EVENT_STATUS, old, dev->status, 0);
}

static int
scripted_config(struct vmm_virtio_mmio *dev, unsigned offset, unsigned len,
                uint64_t val)
{
    return scripted_event(dev, EVENT_CONFIG, offset, len, val);
}

static const struct vmm_virtio_mmio_dev_ops scripted_ops = {
    .notify = scripted_notify,
    .reset = scripted_reset,
    .status = scripted_status,
    .config_write = scripted_config,
};

/* NULL for devices of a derived type, which work for themselves. */
static struct scripted *
scripted_of(struct virtio *self)
{
    if (!self->dev || self->dev->ops != &scripted_ops)
        return NULL;
    return vmm_container_of(self->dev, struct scripted, mmio);
}

/* Calls on_event for each event. 0, or -1 with an exception. */
static int
tell_events(struct virtio *self, struct scripted *scripted)
{
    for (;;) {
        struct event event = {0};
        PyObject *on_event, *ret;
        PyThreadState *thread;
        bool none;

        thread = lock_acquire(&scripted->mmio.lock);
        none = !scripted->events;
        if (!none) {
            event = scripted->event[scripted->next_event];
            scripted->next_event = (scripted->next_event + 1) % EVENTS;
            scripted->events--;
        }
        lock_release(&scripted->mmio.lock, thread);
        if (none || !self->on_event)
            return 0;
        on_event = Py_NewRef(self->on_event);
        ret = PyObject_CallFunction(on_event, "IKKK", event.what, event.arg[0],
                                    event.arg[1], event.arg[2]);
        Py_DECREF(on_event);
        if (!ret)
            return -1;
        Py_DECREF(ret);
    }
}

/* The driver has offered chains in a queue. 0, or -1 with an exception. */
static int
notify(struct virtio *self, unsigned index)
{
    int answer = self->queue[index] ? queue_work(self->queue[index]) : 1;
    PyObject *on_notify, *arg, *ret;

    if (answer <= 0 || !self->on_notify)
        return answer < 0 ? -1 : 0;
    on_notify = Py_NewRef(self->on_notify);
    arg = PyLong_FromLong(index);
    ret = arg ? PyObject_CallOneArg(on_notify, arg) : NULL;
    Py_XDECREF(arg);
    Py_DECREF(on_notify);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

static int
scripted_service(PyObject *op)
{
    struct virtio *self = (struct virtio *)op;
    struct scripted *scripted = scripted_of(self);
    uint64_t todo;

    if (self->on_event && tell_events(self, scripted))
        return -1;
    todo = __atomic_exchange_n(&scripted->pending, 0, __ATOMIC_RELAXED);
    while (todo) {
        unsigned index = (unsigned)__builtin_ctzll(todo);

        todo &= todo - 1;
        if (notify(self, index)) {
            /* The other queues are told next time. */
            __atomic_fetch_or(&scripted->pending, todo, __ATOMIC_RELAXED);
            return -1;
        }
    }
    return 0;
}

/* -- the life of a device -------------------------------------------------- */

/* Reads the sizes of queues into `sizes`; their number or -1. */
static int
as_queues(PyObject *arg, uint32_t sizes[VMM_VIRTIO_MMIO_MAX_QUEUES])
{
    PyObject *seq;
    Py_ssize_t n;
    uint64_t size;

    if (!arg) {
        sizes[0] = 256;
        return 1;
    }
    seq = PySequence_Tuple(arg);
    if (!seq)
        return -1;
    n = PyTuple_GET_SIZE(seq);
    if (n > VMM_VIRTIO_MMIO_MAX_QUEUES) {
        PyErr_Format(PyExc_ValueError, "%zd queues are more than %d", n,
                     VMM_VIRTIO_MMIO_MAX_QUEUES);
        n = -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (as_uint(PyTuple_GET_ITEM(seq, i), "queue size", VMM_VIRTQ_MAX_SIZE,
                    &size)) {
            n = -1;
        } else if (!size || (size & (size - 1))) {
            PyErr_Format(PyExc_ValueError, "queue size %u is no power of two",
                         (unsigned)size);
            n = -1;
        } else {
            sizes[i] = (uint32_t)size;
        }
    }
    Py_DECREF(seq);
    return (int)n;
}

static PyObject *
raise_init(int err, uint64_t device_id, uint64_t features)
{
    char text[120];

    if (err != -EINVAL)
        return raise_host("pthread_mutex_init", -err);
    if (!device_id)
        snprintf(text, sizeof text, "device_id 0 means no device");
    else
        snprintf(text, sizeof text,
                 "features %#llx: bits 24 to 49 but 33, 35 and 36 are the "
                 "transport's",
                 (unsigned long long)features);
    PyErr_SetString(PyExc_ValueError, text);
    return NULL;
}

static struct scripted *
scripted_new(struct vmm_mem *mem, uint64_t device_id, uint64_t features,
             const uint32_t *sizes, unsigned queues, const Py_buffer *config)
{
    struct scripted *scripted;
    int err;

    if (config->len > VMM_VIRTIO_MMIO_CONFIG_MAX) {
        PyErr_Format(PyExc_ValueError, "config of %zd bytes is longer than %d",
                     config->len, VMM_VIRTIO_MMIO_CONFIG_MAX);
        return NULL;
    }
    scripted = calloc(1, sizeof *scripted + queues * sizeof *scripted->queue);
    if (!scripted) {
        PyErr_NoMemory();
        return NULL;
    }
    for (unsigned i = 0; i < queues; i++)
        vmm_virtq_init(&scripted->queue[i], mem, sizes[i]);
    err = vmm_virtio_mmio_init(&scripted->mmio, mem, &scripted_ops,
                               (uint32_t)device_id, features, scripted->queue,
                               queues);
    if (err) {
        free(scripted);
        raise_init(err, device_id, features);
        return NULL;
    }
    memset(scripted->told, 0xff, sizeof scripted->told);
    if (config->len)
        memcpy(scripted->config, config->buf, (size_t)config->len);
    scripted->mmio.config = scripted->config;
    scripted->mmio.config_len = (uint32_t)config->len;
    return scripted;
}

static PyObject *
virtio_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"memory",   "device_id", "features",
                                        "queues",   "config",    "on_notify",
                                        "on_event", NULL};
    PyObject *memory_arg, *id_arg, *features_arg = NULL, *queues_arg = NULL;
    PyObject *on_notify = NULL, *on_event = NULL;
    uint32_t sizes[VMM_VIRTIO_MMIO_MAX_QUEUES];
    uint64_t device_id, features = 0;
    struct scripted *scripted = NULL;
    Py_buffer config = {0};
    struct memory *memory;
    struct virtio *self = NULL;
    int queues;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOy*OO:VirtioMMIO",
                                     KEYWORDS(names), &memory_arg, &id_arg,
                                     &features_arg, &queues_arg, &config,
                                     &on_notify, &on_event))
        return NULL;
    if (as_uint(id_arg, "device_id", UINT32_MAX, &device_id) ||
        (features_arg &&
         as_uint(features_arg, "features", UINT64_MAX, &features)))
        goto out;
    queues = as_queues(queues_arg, sizes);
    if (queues < 0)
        goto out;
    self = (struct virtio *)type->tp_alloc(type, 0);
    if (!self || set_callable("on_notify", &self->on_notify, on_notify) ||
        set_callable("on_event", &self->on_event, on_event))
        goto out;
    /* Last, so that nothing that runs Python comes between look and hold. */
    memory = memory_check(state_of(type), memory_arg);
    if (memory)
        scripted = scripted_new(&memory->mem, device_id, features, sizes,
                                (unsigned)queues, &config);
    if (scripted) {
        memory_hold(memory);
        self->memory = memory;
        self->service = scripted_service;
        self->dev = &scripted->mmio;
        scripted->wants_events = self->on_event != NULL;
        self->open = true;
    }
out:
    PyBuffer_Release(&config);
    if (!scripted)
        Py_CLEAR(self);
    return (PyObject *)self;
}

int
virtio_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct virtio *)op)->on_notify);
    Py_VISIT(((struct virtio *)op)->on_event);
    return 0;
}

int
virtio_clear(PyObject *op)
{
    Py_CLEAR(((struct virtio *)op)->on_notify);
    Py_CLEAR(((struct virtio *)op)->on_event);
    return 0;
}

void
virtio_drop(struct virtio *self)
{
    struct memory *memory = self->memory;

    Py_CLEAR(self->on_notify);
    Py_CLEAR(self->on_event);
    self->memory = NULL;
    if (memory)
        memory_release(memory);
}

static void
virtio_dealloc(PyObject *op)
{
    struct virtio *self = (struct virtio *)op;
    struct scripted *scripted = scripted_of(self);
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (scripted) {
        vmm_virtio_mmio_fini(&scripted->mmio);
        free(scripted);
    }
    virtio_drop(self);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(virtio_close_doc,
             "close($self, /)\n--\n\n"
             "Reset the device for good and let go of the memory.\n\n"
             "Chains in flight are taken back. Where it is still on a bus it "
             "answers the driver\nlike a device that has no RAM. Does not end "
             "serve(), which raises ValueError at\nits next turn.");

static PyObject *
virtio_close(PyObject *op, PyObject *unused)
{
    struct virtio *self = (struct virtio *)op;
    struct vmm_virtio_mmio *dev = self->dev;
    PyThreadState *thread;

    (void)unused;
    if (!self->open)
        Py_RETURN_NONE;
    self->open = false;
    /* A vCPU may be in the middle of an access: it has the lock. Afterwards no
     * queue can be started on RAM any more. */
    thread = lock_acquire(&dev->lock);
    for (unsigned i = 0; i < dev->queues; i++) {
        vmm_virtq_stop(&dev->queue[i]);
        vmm_virtq_init(&dev->queue[i], &nowhere, dev->queue[i].max_size);
    }
    lock_release(&dev->lock, thread);
    Py_BEGIN_ALLOW_THREADS
    vmm_virtio_mmio_ops.write(dev, VIRTIO_MMIO_STATUS, 4, 0);
    Py_END_ALLOW_THREADS
    virtio_drop(self);
    Py_RETURN_NONE;
}

bool
virtio_native(struct state *state, PyObject *device, struct native *out)
{
    struct virtio *self = (struct virtio *)device;

    if (!PyObject_TypeCheck(device, state->virtio_type))
        return false;
    if (!self->open) {
        raise_closed(device);
        return false;
    }
    vmm_mem_freeze(&self->memory->mem);
    *out = (struct native){
        .ops = &vmm_virtio_mmio_ops,
        .dev = self->dev,
        .size = VMM_VIRTIO_MMIO_SIZE,
        .service = self->service,
    };
    return true;
}

/*
 * Before a driver may start a queue: the set of regions is final. Looks once
 * more whether the device is open, as arguments may have run Python.
 */
static int
freeze(struct virtio *self)
{
    if (!self->open) {
        raise_closed((PyObject *)self);
        return -1;
    }
    vmm_mem_freeze(&self->memory->mem);
    return 0;
}

/* -- what the driver's accesses would do ----------------------------------- */

static int
as_access(PyObject *const *args, uint64_t *offset, uint64_t *size)
{
    if (as_uint(args[0], "offset", VMM_VIRTIO_MMIO_SIZE - 1, offset) ||
        as_uint(args[1], "size", 8, size))
        return -1;
    if (*size && *offset + *size <= VMM_VIRTIO_MMIO_SIZE)
        return 0;
    PyErr_Format(PyExc_ValueError, "offset %u + %u is outside the %u bytes",
                 (unsigned)*offset, (unsigned)*size, VMM_VIRTIO_MMIO_SIZE);
    return -1;
}

PyDoc_STRVAR(virtio_read_doc,
             "read($self, offset, size, /)\n--\n\n"
             "What a driver reads at `offset`, 0 to 0x1ff, of 1 to 8 bytes.\n\n"
             "The registers of virtio 1.2, 4.2.2. Raises ValueError outside "
             "the range.");

static PyObject *
virtio_read(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct virtio *self = (struct virtio *)op;
    uint64_t offset, size, val = 0;
    int answer;

    if (!self->open)
        return raise_closed(op);
    if (arguments("read", nargs, 2) || as_access(args, &offset, &size))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    answer = vmm_virtio_mmio_ops.read(self->dev, offset, (unsigned)size, &val);
    Py_END_ALLOW_THREADS
    if (answer == VMM_BUS_OWNER && self->service(op))
        return NULL;
    return PyLong_FromUnsignedLongLong(val);
}

PyDoc_STRVAR(virtio_write_doc,
             "write($self, offset, size, value, /)\n--\n\n"
             "Write like a driver; what that notifies is worked on before it "
             "returns.\n\n"
             "Unless there is a doorbell. No regions can be added to the "
             "memory from now on.\nRaises ValueError outside the range, and "
             "what on_notify raises.");

static PyObject *
virtio_write(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct virtio *self = (struct virtio *)op;
    uint64_t offset, size, val;
    int answer;

    if (!self->open)
        return raise_closed(op);
    if (arguments("write", nargs, 3) || as_access(args, &offset, &size) ||
        as_uint(args[2], "value", vmm_ones((unsigned)size), &val) ||
        freeze(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    answer = vmm_virtio_mmio_ops.write(self->dev, offset, (unsigned)size, val);
    Py_END_ALLOW_THREADS
    if (answer == VMM_BUS_OWNER && self->service(op))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(virtio_set_config_doc,
             "set_config($self, offset, data, /)\n--\n\n"
             "Change configuration bytes and tell the driver (virtio 1.2, "
             "2.5).\n\n"
             "Raises ValueError when they are not inside the configuration.");

static PyObject *
virtio_set_config(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct virtio *self = (struct virtio *)op;
    uint64_t offset;
    Py_buffer data;
    int err = -EINVAL;

    if (!self->open)
        return raise_closed(op);
    if (arguments("set_config", nargs, 2) ||
        as_uint(args[0], "offset", VMM_VIRTIO_MMIO_CONFIG_MAX, &offset) ||
        PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE))
        return NULL;
    if (data.len <= VMM_VIRTIO_MMIO_CONFIG_MAX) {
        Py_BEGIN_ALLOW_THREADS
        err = vmm_virtio_mmio_config_set(self->dev, (uint32_t)offset, data.buf,
                                         (uint32_t)data.len);
        Py_END_ALLOW_THREADS
    }
    if (err)
        PyErr_Format(PyExc_ValueError,
                     "offset %u + %zd is outside the configuration (%u bytes)",
                     (unsigned)offset, data.len, self->dev->config_len);
    PyBuffer_Release(&data);
    if (err)
        return NULL;
    Py_RETURN_NONE;
}

/* -- what the device does -------------------------------------------------- */

static int
as_queue(struct virtio *self, PyObject *arg, unsigned *out)
{
    uint64_t queue;

    if (!self->dev->queues) {
        PyErr_SetString(PyExc_ValueError, "the device has no queues");
        return -1;
    }
    if (as_uint(arg, "queue", self->dev->queues - 1, &queue))
        return -1;
    if (!self->open) {
        raise_closed((PyObject *)self);
        return -1;
    }
    *out = (unsigned)queue;
    return 0;
}

/*
 * Whoever finds the queue empty has asked to be notified of the next chain, and
 * looked once more. A driver that takes chains back meanwhile breaks the rules
 * and gains nothing but that it is not heard.
 */
static int
pop(struct vmm_virtio_mmio *dev, unsigned queue, struct vmm_chain *chain)
{
    int ret = vmm_virtio_mmio_pop(dev, queue, chain);

    if (!ret && vmm_virtio_mmio_live(dev) &&
        vmm_virtq_notify_on(&dev->queue[queue]))
        ret = vmm_virtio_mmio_pop(dev, queue, chain);
    return ret;
}

PyDoc_STRVAR(
    virtio_pop_doc,
    "pop($self, queue, /)\n--\n\n"
    "The next Chain that the driver offered in `queue`, or None.\n\n"
    "None asks the driver to notify of the next one; while chains are left it "
    "need not.\nSo on_notify pops until None, or pops later without being "
    "asked. None also when the\ndevice is not live or the driver broke the "
    "rules: then `fault` says how. Raises\nMemoryError.");

static PyObject *
virtio_pop(PyObject *op, PyObject *arg)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    struct chain *chain;
    unsigned queue;
    int ret;

    if (!self->open)
        return raise_closed(op);
    if (as_queue(self, arg, &queue))
        return NULL;
    chain = chain_new(state_of(Py_TYPE(op)), op, self->memory,
                      &self->dev->queue[queue], &self->dev->lock);
    if (!chain)
        return NULL;
    chain_of(chain, self, queue);
    thread = lock_acquire(&self->dev->lock);
    ret = pop(self->dev, queue, &chain->chain);
    lock_release(&self->dev->lock, thread);
    return chain_popped(chain, ret);
}

PyDoc_STRVAR(
    virtio_push_doc,
    "push($self, queue, chain, written=0, /)\n--\n\n"
    "Return a chain to the driver, `written` bytes of it filled from the "
    "start.\n\n"
    "False, and nothing was returned, when a reset took the chain back "
    "meanwhile or the\ndriver broke the rules. Ask interrupt() after a batch. "
    "Raises ValueError when it was\npushed before, is of another queue, or "
    "has less room than that.");

static PyObject *
virtio_push(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    uint64_t written = 0;
    struct chain *chain;
    unsigned queue;
    int err;

    if (!self->open)
        return raise_closed(op);
    if ((nargs != 2 && arguments("push", nargs, 3)) ||
        (nargs > 2 && as_uint(args[2], "written", UINT32_MAX, &written)) ||
        as_queue(self, args[0], &queue))
        return NULL;
    chain =
        chain_check(state_of(Py_TYPE(op)), args[1], &self->dev->queue[queue]);
    if (!chain)
        return NULL;
    thread = lock_acquire(&self->dev->lock);
    err = vmm_virtio_mmio_push(self->dev, queue, &chain->chain,
                               (uint32_t)written);
    lock_release(&self->dev->lock, thread);
    return chain_pushed(chain, (uint32_t)written, err);
}

PyDoc_STRVAR(virtio_interrupt_doc,
             "interrupt($self, queue, /)\n--\n\n"
             "Interrupt the driver if it wants that for what was pushed "
             "(virtio 1.2, 2.7.7).");

static PyObject *
virtio_interrupt(PyObject *op, PyObject *arg)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    unsigned queue;

    if (!self->open)
        return raise_closed(op);
    if (as_queue(self, arg, &queue))
        return NULL;
    thread = lock_acquire(&self->dev->lock);
    vmm_virtio_mmio_used(self->dev, queue);
    lock_release(&self->dev->lock, thread);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(virtio_process_doc,
             "process($self, /)\n--\n\n"
             "Work on every queue as if all had been notified.\n\n"
             "Of a live device. Due at `due_ns`, and after an exception that "
             "left work behind.\nRaises what on_notify or a source raises.");

static PyObject *
virtio_process(PyObject *op, PyObject *unused)
{
    struct virtio *self = (struct virtio *)op;
    struct scripted *scripted = scripted_of(self);
    PyThreadState *thread;
    int answer;

    (void)unused;
    if (!self->open)
        return raise_closed(op);
    if (scripted) {
        thread = lock_acquire(&self->dev->lock);
        memset(scripted->told, 0xff, sizeof scripted->told);
        lock_release(&self->dev->lock, thread);
    }
    Py_BEGIN_ALLOW_THREADS
    answer = vmm_virtio_mmio_process(self->dev);
    Py_END_ALLOW_THREADS
    if (answer == VMM_BUS_OWNER && self->service(op))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    virtio_serve_doc,
    "serve($self, stop_fd, until_ns=0, /)\n--\n\n"
    "Work on what the doorbell announces until `stop_fd` is readable.\n\n"
    "For a thread of its own; other threads run meanwhile. `stop_fd` is not "
    "read, e.g. an\neventfd or an epoll. `until_ns`: returns then, too, in "
    "nanoseconds of\ntime.monotonic_ns(); 0: never. What is there is worked on "
    "once in any case.\non_notify is called for each started queue when the "
    "doorbell was rung, which does\nnot tell whose it was. Raises OSError "
    "(EBADF without doorbell_fd), what on_notify\nor a source raises, and "
    "ValueError when the device was closed.");

static PyObject *
virtio_serve(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct virtio *self = (struct virtio *)op;
    uint64_t until_ns = 0;
    bool over = false;
    int fd, ret;

    if (!self->open)
        return raise_closed(op);
    if ((nargs != 1 && arguments("serve", nargs, 2)) ||
        as_fd(args[0], "stop_fd", &fd) ||
        (nargs > 1 && as_uint(args[1], "until_ns", UINT64_MAX, &until_ns)) ||
        freeze(self))
        return NULL;
    do {
        if (!self->open)
            return raise_closed(op);
        Py_BEGIN_ALLOW_THREADS
        ret = vmm_virtio_mmio_serve(self->dev, fd, until_ns, &over);
        Py_END_ALLOW_THREADS
        if (ret < 0 && ret != -EINTR)
            return raise_host("poll", -ret);
        if (ret == VMM_BUS_OWNER && self->service(op))
            return NULL;
        if (over)
            Py_RETURN_NONE;
    } while (!PyErr_CheckSignals());
    return NULL;
}

/* -- snapshots ------------------------------------------------------------- */

PyDoc_STRVAR(
    virtio_save_doc,
    "save($self, /)\n--\n\n"
    "The state of registers and queues, for restore() of one like it.\n\n"
    "With the chains in flight; not what is in guest memory. While "
    "nobody works on\nqueues. Raises MemoryError.");

static PyObject *
virtio_save(PyObject *op, PyObject *unused)
{
    struct virtio *self = (struct virtio *)op;
    struct vmm_virtio_mmio *dev = self->dev;
    PyThreadState *thread;
    PyObject *ret;
    size_t len;
    void *state;

    (void)unused;
    if (!self->open)
        return raise_closed(op);
    state = PyMem_Calloc(1, virtio_state_most(self));
    if (!state)
        return PyErr_NoMemory();
    thread = lock_acquire(&dev->lock);
    len = virtio_state_write(self, scripted_of(self), state);
    lock_release(&dev->lock, thread);
    ret = PyBytes_FromStringAndSize(state, (Py_ssize_t)len);
    PyMem_Free(state);
    return ret;
}

PyDoc_STRVAR(virtio_restore_doc,
             "restore($self, state, /)\n--\n\n"
             "Be what save() of this device, or of one made like it, saw.\n\n"
             "On memory that is as it was then. All chains are stale; those "
             "that were in flight\nare popped again, before others. Nobody is "
             "notified: call process(). Raises\nValueError for the state of "
             "another kind of device, MemoryError; the device then\nneeds a "
             "reset.");

static PyObject *
virtio_restore(PyObject *op, PyObject *arg)
{
    struct virtio *self = (struct virtio *)op;
    struct vmm_virtio_mmio *dev = self->dev;
    struct scripted *scripted = scripted_of(self);
    PyThreadState *thread;
    Py_buffer data;
    int err;

    if (!self->open)
        return raise_closed(op);
    if (PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE))
        return NULL;
    if (!self->open || freeze(self)) {
        PyBuffer_Release(&data);
        return self->open ? NULL : raise_closed(op);
    }
    thread = lock_acquire(&dev->lock);
    if (!scripted && dev->ops->reset)
        dev->ops->reset(dev);
    err = virtio_state_read(self, data.buf, (size_t)data.len);
    if (scripted) {
        scripted->events = 0;
        scripted->pending = 0;
        memset(scripted->told, 0xff, sizeof scripted->told);
    }
    if (err)
        vmm_virtio_mmio_fail(dev, "a snapshot could not be restored");
    lock_release(&dev->lock, thread);
    PyBuffer_Release(&data);
    if (err == -ENOMEM)
        return PyErr_NoMemory();
    if (err)
        return PyErr_Format(PyExc_ValueError,
                            "this is not the state of a device like %R", op);
    Py_RETURN_NONE;
}

static PyMethodDef virtio_methods[] = {
    {"read", (PyCFunction)(void (*)(void))virtio_read, METH_FASTCALL,
     virtio_read_doc},
    {"write", (PyCFunction)(void (*)(void))virtio_write, METH_FASTCALL,
     virtio_write_doc},
    {"set_config", (PyCFunction)(void (*)(void))virtio_set_config,
     METH_FASTCALL, virtio_set_config_doc},
    {"pop", virtio_pop, METH_O, virtio_pop_doc},
    {"push", (PyCFunction)(void (*)(void))virtio_push, METH_FASTCALL,
     virtio_push_doc},
    {"interrupt", virtio_interrupt, METH_O, virtio_interrupt_doc},
    {"process", virtio_process, METH_NOARGS, virtio_process_doc},
    {"serve", (PyCFunction)(void (*)(void))virtio_serve, METH_FASTCALL,
     virtio_serve_doc},
    {"save", virtio_save, METH_NOARGS, virtio_save_doc},
    {"restore", virtio_restore, METH_O, virtio_restore_doc},
    {"close", virtio_close, METH_NOARGS, virtio_close_doc},
    {NULL, NULL, 0, NULL},
};

/* -- attributes ------------------------------------------------------------ */

/* Offset and size of a field of struct vmm_virtio_mmio, as a closure. */
#define FIELD(name)                                                            \
    ((void *)(offsetof(struct vmm_virtio_mmio, name) << 4 |                    \
              sizeof(((struct vmm_virtio_mmio *)0)->name)))

static PyObject *
virtio_get_field(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;
    size_t offset = (uintptr_t)closure >> 4, size = (uintptr_t)closure & 15;
    PyThreadState *thread;
    uint64_t val = 0;

    if (!self->open)
        return raise_closed(op);
    thread = lock_acquire(&self->dev->lock);
    memcpy(&val, (char *)self->dev + offset, size);
    lock_release(&self->dev->lock, thread);
    return PyLong_FromUnsignedLongLong(val);
}

static PyObject *
virtio_get_fd(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    int fd;

    if (!self->open)
        return raise_closed(op);
    thread = lock_acquire(&self->dev->lock);
    memcpy(&fd, (char *)self->dev + ((uintptr_t)closure >> 4), sizeof fd);
    lock_release(&self->dev->lock, thread);
    return PyLong_FromLong(fd);
}

static int
virtio_set_fd(PyObject *op, PyObject *value, void *closure)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    int fd;

    if (!self->open) {
        raise_closed(op);
        return -1;
    }
    if (as_fd(value, "file descriptor", &fd))
        return -1;
    thread = lock_acquire(&self->dev->lock);
    memcpy((char *)self->dev + ((uintptr_t)closure >> 4), &fd, sizeof fd);
    lock_release(&self->dev->lock, thread);
    return 0;
}

static PyObject *
virtio_get_on_notify(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;

    (void)closure;
    if (!self->open)
        return raise_closed(op);
    return Py_NewRef(self->on_notify ? self->on_notify : Py_None);
}

static int
virtio_set_on_notify(PyObject *op, PyObject *value, void *closure)
{
    struct virtio *self = (struct virtio *)op;

    (void)closure;
    if (!self->open) {
        raise_closed(op);
        return -1;
    }
    if (!scripted_of(self)) {
        PyErr_Format(PyExc_AttributeError,
                     "%.80s works on its queues by itself",
                     Py_TYPE(op)->tp_name);
        return -1;
    }
    return set_callable("on_notify", &self->on_notify, value);
}

static PyObject *
virtio_get_on_event(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;

    (void)closure;
    if (!self->open)
        return raise_closed(op);
    return Py_NewRef(self->on_event ? self->on_event : Py_None);
}

static int
virtio_set_on_event(PyObject *op, PyObject *value, void *closure)
{
    struct virtio *self = (struct virtio *)op;
    struct scripted *scripted = scripted_of(self);
    PyThreadState *thread;

    (void)closure;
    if (!self->open) {
        raise_closed(op);
        return -1;
    }
    if (!scripted) {
        PyErr_Format(PyExc_AttributeError, "%.80s has no events",
                     Py_TYPE(op)->tp_name);
        return -1;
    }
    if (set_callable("on_event", &self->on_event, value))
        return -1;
    thread = lock_acquire(&scripted->mmio.lock);
    scripted->wants_events = self->on_event != NULL;
    lock_release(&scripted->mmio.lock, thread);
    return 0;
}

static PyObject *
virtio_get_memory(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;

    (void)closure;
    if (!self->open)
        return raise_closed(op);
    return Py_NewRef((PyObject *)self->memory);
}

static PyObject *
virtio_get_fault(PyObject *op, void *closure)
{
    struct virtio *self = (struct virtio *)op;
    PyThreadState *thread;
    const char *fault;

    (void)closure;
    if (!self->open)
        return raise_closed(op);
    thread = lock_acquire(&self->dev->lock);
    fault = self->dev->fault;
    lock_release(&self->dev->lock, thread);
    if (!fault)
        Py_RETURN_NONE;
    return PyUnicode_FromString(fault);
}

static PyObject *
virtio_get_closed(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(!((struct virtio *)op)->open);
}

static PyObject *
virtio_repr(PyObject *op)
{
    struct virtio *self = (struct virtio *)op;
    const char *name = Py_TYPE(op)->tp_name, *dot = strrchr(name, '.');
    PyThreadState *thread;
    const char *fault;
    char status[16];
    unsigned id;

    name = dot ? dot + 1 : name;
    if (!self->open)
        return PyUnicode_FromFormat("<%s closed>", name);
    thread = lock_acquire(&self->dev->lock);
    snprintf(status, sizeof status, "%#x", self->dev->status);
    id = self->dev->device_id;
    fault = self->dev->fault;
    lock_release(&self->dev->lock, thread);
    return PyUnicode_FromFormat("<%s device %u, %u queues, status %s%s%s>",
                                name, id, self->dev->queues, status,
                                fault ? ", broken: " : "", fault ? fault : "");
}

static PyGetSetDef virtio_getset[] = {
    {"irq_fd", virtio_get_fd, virtio_set_fd,
     "An eventfd that each interrupt is written to, -1: none; the caller's.",
     FIELD(irq_fd)},
    {"doorbell_fd", virtio_get_fd, virtio_set_fd,
     "An eventfd for serve(), -1: notifications are worked on inline.\n\n"
     "Set before the driver's first access. It stays the caller's, who makes "
     "it an\nioeventfd on offset 0x50 of the device, 4 bytes.",
     FIELD(doorbell_fd)},
    {"on_notify", virtio_get_on_notify, virtio_set_on_notify,
     "Called with a queue's number when the driver offered chains there, or "
     "None.",
     NULL},
    {"on_event", virtio_get_on_event, virtio_set_on_event,
     "Called with what the driver did beside that, or None.", NULL},
    {"memory", virtio_get_memory, NULL, "The Memory that the queues are in.",
     NULL},
    {"device_id", virtio_get_field, NULL,
     "What kind of device it is (virtio 1.2, 5).", FIELD(device_id)},
    {"status", virtio_get_field, NULL,
     "The device status bits (virtio 1.2, 2.1); 0x40: needs a reset.",
     FIELD(status)},
    {"features", virtio_get_field, NULL,
     "The feature bits offered, the transport's included.", FIELD(features)},
    {"driver_features", virtio_get_field, NULL,
     "The feature bits that the driver took, final once status has 0x8.",
     FIELD(driver_features)},
    {"fault", virtio_get_fault, NULL,
     "How the driver broke the rules, None while it did not; a reset heals.",
     NULL},
    {"faults", virtio_get_field, NULL, "How often the driver broke the rules.",
     FIELD(faults)},
    {"odd", virtio_get_field, NULL,
     "Accesses that no driver makes: of a wrong size or alignment.",
     FIELD(odd)},
    {"notifications", virtio_get_field, NULL,
     "Notifications that reached the device.", FIELD(notifications)},
    {"interrupts", virtio_get_field, NULL, "Interrupts raised.",
     FIELD(interrupts)},
    {"due_ns", virtio_get_field, NULL,
     "When to call process(), in nanoseconds of time.monotonic_ns(); 0: no "
     "need.\n\nIn the past: at once. serve() sees to it by itself.",
     FIELD(due_ns)},
    {"closed", virtio_get_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    virtio_doc,
    "VirtioMMIO(memory, device_id, *, features=0, queues=[256], config=b'', "
    "on_notify=None, on_event=None)\n--\n\n"
    "A virtio device on the MMIO transport, whose work is done in Python.\n\n"
    "`device_id` is 1 to 2^32 - 1, `features` the bits of the device itself, "
    "`queues` up to\n64 greatest sizes, each a power of two up to 32768, "
    "`config` up to 256 bytes. Put on\nthe bus of addresses, VIRTIO_MMIO_SIZE "
    "bytes; or driven by read() and write(), which\ndo what a driver's "
    "accesses would. A driver that breaks the rules sets `fault` and\ngets "
    "nothing more until it resets the device (virtio 1.2, 2 and 4.2). Raises\n"
    "ValueError.\n\n"
    "Threads: any. on_notify runs on the thread of the vCPU that notified, or "
    "on that of\nserve(); with several, at the same time.");

static PyType_Slot virtio_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)virtio_doc},
    {Py_tp_new, virtio_new},
    {Py_tp_dealloc, virtio_dealloc},
    {Py_tp_traverse, virtio_traverse},
    {Py_tp_clear, virtio_clear},
    {Py_tp_repr, virtio_repr},
    {Py_tp_methods, virtio_methods},
    {Py_tp_getset, virtio_getset},
    {0, NULL},
};

PyType_Spec virtio_spec = {
    .name = "pyvmm._vmm.VirtioMMIO",
    .basicsize = sizeof(struct virtio),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = virtio_slots,
};

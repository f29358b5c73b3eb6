/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.c - Queue: `for chain in queue` over a device's virtqueue
 *
 * Chains are popped in batches into `ahead`, handed out one by one, and kept in
 * `done` when their turn is over; one call of exchange() pushes those, raises
 * one interrupt and pops the next batch. Each loop is an iterator of its own
 * (Loop), so that its end is seen however it comes: behind the last chain, by
 * break or return, or by an exception, which is still set when the interpreter
 * drops the iterator. What was popped and not reached goes back then; so do
 * the chains in whose turn the exception came: one, or all of them when the
 * loop is over batches().
 *
 * Threads: the GIL guards all fields. exchange() may wait for the device's lock
 * without the GIL, so it works on a struct of its own.
 */
#include <string.h>
#include <sys/eventfd.h>

#include "py.h"

#define BATCH  32
#define AHEAD  (3 * BATCH) /* a batch, and what could not go back */
#define BUDGET 4096 /* chains that a worker takes before it looks around */

/* What each request touches comes first: after an exit caches are cold. */
struct queue {
    PyObject_HEAD
    struct state *state; /* of the module: its type keeps that */
    struct virtio *virtio;
    PyObject *handler; /* or NULL */
    unsigned index;
    unsigned room;      /* chains that the next batch may have: doubles */
    unsigned next, end; /* of `ahead`: still to be handed out */
    unsigned dones;
    unsigned spares;
    unsigned loops; /* alive */
    unsigned budget;
    struct loop *idle; /* one to be used again, or NULL */
    uint64_t round;    /* handlers that failed: loops from before are void */
    uint64_t returns;  /* how often chains went back */
    bool refilling;    /* a thread is at it */
    bool busy;         /* work() runs */
    bool again;        /* and was called meanwhile */
    struct chain *done[BATCH];
    struct chain *spare[BATCH]; /* to be used again */
    struct chain *ahead[AHEAD];
    PyObject *name;
    uint64_t faults;
};

struct loop {
    PyObject_HEAD
    struct queue *queue; /* NULL: it has ended */
    unsigned most;       /* chains of a turn */
    bool lists;          /* a turn is a list of chains */
    uint64_t dry; /* all was popped when `returns` was one less: of more the
                     driver notifies */
    uint64_t round;
    unsigned turns; /* chains whose turn it is */
    struct chain *turn[BATCH];
};

/* -- the three things that are done with chains ---------------------------- */

struct exchange {
    unsigned pushes;
    unsigned unpops; /* left there: it could not be */
    unsigned room;
    unsigned popped;
    int err; /* of popping */
    struct chain *push[BATCH];
    struct chain *pop[BATCH];
    struct chain *unpop[AHEAD + BATCH]; /* in the order they were popped */
};

/* (locked) No Python here: the GIL may be elsewhere. */
static void
exchange_locked(struct vmm_virtio_mmio *dev, unsigned queue,
                struct exchange *todo)
{
    struct vmm_virtq *vq = &dev->queue[queue];
    bool more = true;

    for (unsigned i = 0; i < todo->pushes; i++)
        vmm_virtio_mmio_push(dev, queue, &todo->push[i]->chain,
                             todo->push[i]->written);
    if (todo->pushes)
        vmm_virtio_mmio_used(dev, queue);
    while (todo->unpops &&
           vmm_virtq_unpop(vq, &todo->unpop[todo->unpops - 1]->chain) !=
               -EINVAL)
        todo->unpops--;
    /* Who finds it empty has asked to be notified, and looked once more. */
    while (todo->popped < todo->room && more) {
        todo->err =
            vmm_virtio_mmio_pop(dev, queue, &todo->pop[todo->popped]->chain);
        if (todo->err > 0)
            todo->popped++;
        else
            more = !todo->err && vmm_virtio_mmio_live(dev) &&
                   vmm_virtq_notify_on(vq);
    }
}

static void
exchange(struct queue *self, struct exchange *todo)
{
    struct vmm_virtio_mmio *dev = self->virtio->dev;
    PyThreadState *thread;

    thread = lock_acquire(&dev->lock);
    exchange_locked(dev, self->index, todo);
    lock_release(&dev->lock, thread);
    for (unsigned i = 0; i < todo->pushes; i++)
        todo->push[i]->pushed = true;
}

static void
take_done(struct queue *self, struct exchange *todo)
{
    memcpy(todo->push, self->done, self->dones * sizeof *self->done);
    todo->pushes = self->dones;
    self->dones = 0;
}

/* Keeps them for the next batch. The variable of a loop still has the last one,
 * so that is when others are told from those that nobody has. */
static void
recycle(struct queue *self, struct chain **chain, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (self->spares < BATCH)
            self->spare[self->spares++] = chain[i];
        else
            Py_DECREF(chain[i]);
    }
}

/* Pushes what is done. */
static void
flush(struct queue *self)
{
    struct exchange todo;

    todo.unpops = todo.room = todo.popped = 0;
    take_done(self, &todo);
    exchange(self, &todo);
    recycle(self, todo.push, todo.pushes);
}

/* Its turn is over: takes the reference. */
static void
finish(struct queue *self, struct chain *chain)
{
    if (chain->pushed || chain->returned || chain->deferred) {
        Py_DECREF(chain);
        return;
    }
    if (self->dones == BATCH)
        flush(self);
    chain->finished = true;
    self->done[self->dones++] = chain;
}

/* To be handed out. Another thread may have left more than there is room for:
 * those are completed as they are. */
static void
append(struct queue *self, struct chain **chain, unsigned count)
{
    unsigned left = self->end - self->next;

    if (left)
        memmove(self->ahead, self->ahead + self->next, left * sizeof *chain);
    self->next = 0;
    self->end = left;
    for (unsigned i = 0; i < count; i++) {
        if (self->end < AHEAD)
            self->ahead[self->end++] = chain[i];
        else
            finish(self, chain[i]);
    }
}

/*
 * Everything that was popped and not handed out goes back to the virtqueue,
 * and before that those of a turn, whose references it takes. What cannot go
 * back, because one popped later is not there any more, stays `ahead`, as new.
 */
static void
give_back(struct queue *self, struct chain *const *turn, unsigned turns)
{
    struct chain *chain[AHEAD + BATCH];
    struct exchange todo;
    unsigned count = 0;

    self->returns++;
    todo.pushes = todo.room = todo.popped = 0;
    for (unsigned i = 0; i < turns; i++)
        chain[count++] = turn[i];
    while (self->next < self->end)
        chain[count++] = self->ahead[self->next++];
    self->next = self->end = 0;
    memcpy(todo.unpop, chain, count * sizeof *chain);
    todo.unpops = count;
    exchange(self, &todo);
    for (unsigned i = todo.unpops; i < count; i++) {
        chain[i]->returned = true;
        recycle(self, &chain[i], 1);
    }
    for (unsigned i = 0; i < todo.unpops; i++)
        chain_renew(chain[i]);
    append(self, chain, todo.unpops);
}

/* Chains for the next batch. How many, or -1 with an exception. */
static int
provide(struct queue *self, struct exchange *todo)
{
    struct virtio *virtio = self->virtio;
    struct memory *memory = virtio->memory;

    /* Making an object may collect, and that run anything: a close, too. */
    memory_hold(memory);
    todo->room = 0;
    while (todo->room < self->room && self->spares) {
        struct chain *chain = self->spare[--self->spares];

        if (Py_REFCNT(chain) > 1) {
            Py_DECREF(chain);
            continue;
        }
        chain_renew(chain);
        todo->pop[todo->room++] = chain;
    }
    while (todo->room < self->room) {
        struct chain *chain =
            chain_new(self->state, (PyObject *)virtio, memory,
                      &virtio->dev->queue[self->index], &virtio->dev->lock);

        if (!chain) {
            recycle(self, todo->pop, todo->room);
            memory_release(memory);
            return -1;
        }
        chain_of(chain, virtio, self->index);
        todo->pop[todo->room++] = chain;
    }
    memory_release(memory);
    return 0;
}

/*
 * Pushes what is done and pops the next batch. With nothing `ahead` then the
 * loop ends. 0, or -1 with an exception.
 */
static int
refill(struct queue *self, uint64_t *dry)
{
    bool inline_ = self->virtio->dev->doorbell_fd < 0;
    struct exchange todo;

    if (self->refilling)
        return 0;
    /* Taken off while its handler works: there is nothing more to do. */
    if (!self->virtio->open) {
        flush(self);
        return 0;
    }
    /* Go on after a look around; or when the driver says so, whose vCPU can
     * have offered no more meanwhile if it is this thread's. */
    if (!self->budget || (inline_ && *dry == self->returns + 1)) {
        flush(self);
        return 0;
    }
    if (provide(self, &todo))
        return -1;
    todo.unpops = todo.popped = 0;
    todo.err = 0;
    take_done(self, &todo);
    self->refilling = true;
    exchange(self, &todo);
    self->refilling = false;
    recycle(self, todo.push, todo.pushes);
    recycle(self, todo.pop + todo.popped, todo.room - todo.popped);
    append(self, todo.pop, todo.popped);
    if (todo.popped == self->room)
        self->room = vmm_min(2 * self->room, (unsigned)BATCH);
    *dry = todo.err || todo.popped == todo.room ? 0 : self->returns + 1;
    if (!inline_)
        self->budget -= vmm_min(self->budget, todo.popped);
    if (todo.err != -ENOMEM || todo.popped)
        return 0;
    PyErr_NoMemory();
    return -1;
}

/* -- Loop ------------------------------------------------------------------ */

/* The turn of these chains is over, by the end of the loop's body. */
static void
loop_finish(struct loop *self, struct queue *queue)
{
    unsigned turns = self->turns;

    self->turns = 0;
    for (unsigned i = 0; i < turns; i++)
        finish(queue, self->turn[i]);
}

/* What the body gets: a list of the chains whose turn it is. */
static PyObject *
loop_list(struct loop *self)
{
    PyObject *list = PyList_New(self->turns);

    for (unsigned i = 0; list && i < self->turns; i++)
        PyList_SET_ITEM(list, i, Py_NewRef((PyObject *)self->turn[i]));
    return list;
}

static PyObject *
loop_next(PyObject *op)
{
    struct loop *self = (struct loop *)op;
    struct queue *queue = self->queue;

    if (!queue)
        return NULL;
    loop_finish(self, queue);
    if (queue->next == queue->end && refill(queue, &self->dry))
        return NULL;
    while (queue->next < queue->end && self->turns < self->most)
        self->turn[self->turns++] = queue->ahead[queue->next++];
    if (!self->turns)
        return NULL;
    if (self->lists)
        return loop_list(self);
    return Py_NewRef((PyObject *)self->turn[0]);
}

/*
 * Whether the exception that is set is the guest's fault: of one of these
 * chains, or of another one of the device in a loop inside.
 */
static bool
guests_fault(struct loop *self, struct queue *queue)
{
    struct state *state = queue->state;
    bool stale = queue->virtio->forgiven;

    if (PyErr_ExceptionMatches(state->short_error))
        return true;
    if (!PyErr_ExceptionMatches(state->stale_error))
        return false;
    for (unsigned i = 0; i < self->turns && !stale; i++)
        stale = !chain_alive(self->turn[i]);
    return stale;
}

/*
 * The turn ended by the exception that is set. Of its chains those are left
 * that are neither completed nor deferred. When it is the guest's fault, the
 * one that is too short is completed empty, all of them if nobody knows which
 * it is; others go back to the queue.
 */
static void
loop_fail(struct loop *self, struct queue *queue)
{
    struct state *state = queue->state;
    bool is_short = PyErr_ExceptionMatches(state->short_error);
    bool guilty = guests_fault(self, queue), known = false;
    struct chain *back[BATCH];
    unsigned turns = self->turns, count = 0;

    self->turns = 0;
    for (unsigned i = 0; i < turns; i++)
        known = known || self->turn[i]->lacking;
    for (unsigned i = 0; i < turns; i++) {
        struct chain *chain = self->turn[i];

        if (chain->pushed || chain->deferred) {
            Py_DECREF(chain);
        } else if (guilty && (chain->lacking || !is_short || !known)) {
            queue->virtio->forgiven = true;
            queue->faults += is_short;
            chain->written = 0;
            finish(queue, chain);
        } else {
            back[count++] = chain;
        }
    }
    if (count && !guilty)
        add_note(count > 1 ? "chains from %u on of %U went back to their queue"
                           : "chain %u of %U went back to its queue",
                 back[0]->chain.head, queue->name);
    give_back(queue, back, count);
}

static void
loop_end(struct loop *self)
{
    struct queue *queue = self->queue;

    self->queue = NULL;
    if (!queue)
        return;
    if (self->turns && PyErr_Occurred()) {
        loop_fail(self, queue);
    } else if (self->round != queue->round) {
        give_back(queue, self->turn, self->turns);
        self->turns = 0;
    } else {
        loop_finish(self, queue);
    }
    if (!--queue->loops) {
        if (queue->next < queue->end)
            give_back(queue, NULL, 0);
        if (queue->dones)
            flush(queue);
    }
    Py_DECREF(queue);
}

static int
loop_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((struct loop *)op)->queue);
    for (unsigned i = 0; i < ((struct loop *)op)->turns; i++)
        Py_VISIT(((struct loop *)op)->turn[i]);
    return 0;
}

static int
loop_clear(PyObject *op)
{
    loop_end((struct loop *)op);
    return 0;
}

/*
 * Each call of a handler makes a loop, and after an exit caches are cold: so
 * the queue keeps one as it is, tracked by the collector, for the next. It is
 * alive again before its end, in which other threads may run.
 */
static void
loop_dealloc(PyObject *op)
{
    struct loop *self = (struct loop *)op;
    PyTypeObject *type = Py_TYPE(op);
    struct queue *queue = self->queue;

    if (!queue) {
        PyObject_GC_UnTrack(op);
        type->tp_free(op);
        Py_DECREF(type);
        return;
    }
    Py_SET_REFCNT(op, 1);
    Py_INCREF(queue);
    loop_end(self);
    if (queue->idle)
        Py_DECREF(op);
    else
        queue->idle = self;
    Py_DECREF(queue);
}

static PyType_Slot loop_slots[] = {
    {Py_tp_dealloc, loop_dealloc}, {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},     {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, loop_next},   {0, NULL},
};

PyType_Spec loop_spec = {
    .name = "pyvmm._vmm._Loop",
    .basicsize = sizeof(struct loop),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loop_slots,
};

/* -- Queue ----------------------------------------------------------------- */

static PyObject *
queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"device", "index", "name", "handler",
                                        NULL};
    PyObject *device, *index_arg, *name, *handler = Py_None;
    struct virtio *virtio;
    struct queue *self;
    uint64_t index;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OU|O:Queue",
                                     KEYWORDS(names),
                                     state_of(type)->virtio_type, &device,
                                     &index_arg, &name, &handler) ||
        as_uint(index_arg, "index", VMM_VIRTIO_MMIO_MAX_QUEUES - 1, &index))
        return NULL;
    virtio = (struct virtio *)device;
    if (!virtio->open)
        return raise_closed(device);
    if (index >= virtio->dev->queues)
        return PyErr_Format(PyExc_ValueError, "the device has %u queues",
                            virtio->dev->queues);
    self = (struct queue *)type->tp_alloc(type, 0);
    if (!self || set_callable("handler", &self->handler, handler)) {
        Py_XDECREF(self);
        return NULL;
    }
    self->state = state_of(type);
    self->virtio = (struct virtio *)Py_NewRef(device);
    self->name = Py_NewRef(name);
    self->index = (unsigned)index;
    self->room = 1;
    self->budget = BUDGET;
    virtio->queue[index] = self;
    return (PyObject *)self;
}

static int
queue_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct queue *self = (struct queue *)op;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->virtio);
    Py_VISIT(self->handler);
    Py_VISIT(self->idle);
    for (unsigned i = self->next; i < self->end; i++)
        Py_VISIT(self->ahead[i]);
    for (unsigned i = 0; i < self->dones; i++)
        Py_VISIT(self->done[i]);
    for (unsigned i = 0; i < self->spares; i++)
        Py_VISIT(self->spare[i]);
    return 0;
}

/* Keeps the device, which is what makes sense of the rest; a cycle passes
 * through the handler or through the device's on_notify. */
static int
queue_clear(PyObject *op)
{
    struct queue *self = (struct queue *)op;

    Py_CLEAR(self->handler);
    Py_CLEAR(self->idle);
    while (self->next < self->end)
        Py_DECREF(self->ahead[self->next++]);
    while (self->dones)
        Py_DECREF(self->done[--self->dones]);
    while (self->spares)
        Py_DECREF(self->spare[--self->spares]);
    return 0;
}

static void
queue_dealloc(PyObject *op)
{
    struct queue *self = (struct queue *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    if (self->virtio && self->virtio->queue[self->index] == self)
        self->virtio->queue[self->index] = NULL;
    queue_clear(op);
    Py_XDECREF(self->virtio);
    Py_XDECREF(self->name);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
loop_new(struct queue *self, bool lists)
{
    PyTypeObject *type = self->state->loop_type;
    struct loop *loop = self->idle;

    self->idle = NULL;
    if (!loop)
        loop = (struct loop *)type->tp_alloc(type, 0);
    if (!loop)
        return NULL;
    loop->queue = (struct queue *)Py_NewRef((PyObject *)self);
    loop->most = lists ? BATCH : 1;
    loop->lists = lists;
    loop->dry = 0;
    loop->round = self->round;
    self->loops++;
    return (PyObject *)loop;
}

static PyObject *
queue_iter(PyObject *op)
{
    return loop_new((struct queue *)op, false);
}

PyDoc_STRVAR(
    queue_batches_doc,
    "batches($self, /)\n--\n\n"
    "The same, up to 32 chains at a time: `for chains in queue.batches()`.\n\n"
    "For what is cheaper for many than for each. A turn is a list of chains, "
    "in their\norder; its end completes them all. After an exception all of "
    "them go back, but\nfor those that were completed or deferred. ShortChain "
    "completes the one that\nraised it, and all of the list when it was raised "
    "otherwise.");

static PyObject *
queue_batches(PyObject *op, PyObject *unused)
{
    (void)unused;
    return loop_new((struct queue *)op, true);
}

/* The handler's exception is set. True: it was the guest's fault, go on. */
static bool
forgive(struct queue *self)
{
    struct state *state = self->state;

    self->round++;
    if (self->next < self->end) {
        PyObject *type, *value, *trace;

        PyErr_Fetch(&type, &value, &trace);
        give_back(self, NULL, 0);
        PyErr_Restore(type, value, trace);
    }
    if (!self->virtio->forgiven ||
        (!PyErr_ExceptionMatches(state->short_error) &&
         !PyErr_ExceptionMatches(state->stale_error)))
        return false;
    PyErr_Clear();
    return true;
}

PyDoc_STRVAR(
    queue_work_doc,
    "work($self, /)\n--\n\n"
    "Call the handler with the queue, for what the driver offered.\n\n"
    "One call at a time: one that comes meanwhile, from another thread, makes "
    "the first\ngo on and returns at once. After ShortChain in a loop's body, "
    "and StaleChain of a\nchain that a reset took back, the handler is called "
    "again for the rest. Raises what\nelse it raises.");

int
queue_work(struct queue *self)
{
    int doorbell, err = 0;

    if (!self->handler)
        return 1;
    self->again = true;
    if (self->busy)
        return 0;
    self->busy = true;
    self->budget = BUDGET;
    Py_INCREF(self); /* the handler may let go of it */
    while (self->again && self->handler) {
        PyObject *handler, *ret;

        self->again = false;
        self->virtio->forgiven = false;
        handler = Py_NewRef(self->handler); /* it may set another */
        ret = PyObject_CallOneArg(handler, (PyObject *)self);
        Py_DECREF(handler);
        if (!ret && !forgive(self)) {
            add_note("in the handler of %U", self->name);
            err = -1;
            break;
        }
        self->again = self->again || !ret;
        Py_XDECREF(ret);
        if (!self->budget) { /* its thread comes back after a look around */
            doorbell = self->virtio->dev->doorbell_fd;
            if (doorbell >= 0)
                eventfd_write(doorbell, 1);
            break;
        }
    }
    self->busy = false;
    Py_DECREF(self);
    return err;
}

static PyObject *
queue_do_work(PyObject *op, PyObject *unused)
{
    (void)unused;
    if (queue_work((struct queue *)op) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    queue_begin_doc,
    "begin($self, /)\n--\n\n"
    "For handlers that work() does not call, coroutines: a turn begins.\n\n"
    "Its loops may take some thousand chains before they end for a while.");

static PyObject *
queue_begin(PyObject *op, PyObject *unused)
{
    struct queue *self = (struct queue *)op;

    (void)unused;
    self->budget = BUDGET;
    self->virtio->forgiven = false;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    queue_end_doc,
    "end($self, exception=None, /)\n--\n\n"
    "The turn is over, by this exception or None; whether to take another.\n\n"
    "True for an exception that is the guest's fault (see work()), and when a "
    "loop\nended though chains may be left, so that others get their turn.");

static PyObject *
queue_end(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct queue *self = (struct queue *)op;
    bool forgiven;

    if (nargs > 1)
        return arguments("end", nargs, 1), NULL;
    if (!nargs || args[0] == Py_None)
        return PyBool_FromLong(!self->budget);
    if (!PyExceptionInstance_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "end takes an exception, not %R",
                            args[0]);
    /* Where it came from stays: it is raised on by who asks. */
    PyErr_SetObject(PyExceptionInstance_Class(args[0]), args[0]);
    forgiven = forgive(self);
    PyErr_Clear();
    return PyBool_FromLong(forgiven);
}

PyDoc_STRVAR(
    queue_gather_doc,
    "gather($self, room, most=None)\n--\n\n"
    "Chains that have room for `room` bytes together, for what the device has "
    "to say.\n\n"
    "A list, of as few as it takes, in order; each deferred: fill them, and "
    "complete()\nall. None when the driver has not offered enough yet: they "
    "are back in the queue,\nand the handler is called when there are more. "
    "When the first `most`, by default\na whole queue of them, have less room, "
    "that is the driver's fault: they are\ncompleted empty, which counts as "
    "one of `faults`, and ShortChain is raised. Raises\nRuntimeError while a "
    "loop is at the queue.");

static PyObject *
queue_gather(PyObject *op, PyObject *const *args, Py_ssize_t nargs,
             PyObject *kwnames)
{
    static const char *const names[2] = {"room", "most"};
    struct queue *self = (struct queue *)op;
    PyObject *arg[2] = {NULL, NULL};
    uint64_t room, most = UINT64_MAX;

    if (take_arguments("gather", args, nargs, kwnames, names, 1, arg) ||
        as_uint(arg[0], "room", UINT64_MAX, &room) ||
        (arg[1] && arg[1] != Py_None &&
         as_uint(arg[1], "most", UINT64_MAX, &most)))
        return NULL;
    most = vmm_min(most, self->virtio->dev->queue[self->index].size);
    most += !most; /* of a queue that is stopped none can be had */
    if (self->loops || self->refilling)
        return PyErr_Format(PyExc_RuntimeError, "a loop is at %U", self->name);
    return gather_chains(self->virtio, self->index, room, most, &self->faults);
}

PyDoc_STRVAR(
    queue_complete_doc,
    "complete($self, chains, /)\n--\n\n"
    "Return chains to the driver, all at once and with one interrupt.\n\n"
    "Each reports what it has as `written`. False when a reset took any back "
    "meanwhile.\nRaises ValueError, and returns none of them, when one was "
    "completed before or is\nof another queue. From any thread.");

static PyObject *
queue_complete(PyObject *op, PyObject *chains)
{
    struct queue *self = (struct queue *)op;

    return complete_chains(self->virtio, self->index, chains);
}

static PyObject *
queue_get_index(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((struct queue *)op)->index);
}

static PyObject *
queue_get_name(PyObject *op, void *closure)
{
    (void)closure;
    return Py_NewRef(((struct queue *)op)->name);
}

static PyObject *
queue_get_faults(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct queue *)op)->faults);
}

static PyObject *
queue_get_handler(PyObject *op, void *closure)
{
    PyObject *handler = ((struct queue *)op)->handler;

    (void)closure;
    return Py_NewRef(handler ? handler : Py_None);
}

static int
queue_set_handler(PyObject *op, PyObject *value, void *closure)
{
    (void)closure;
    return set_callable("handler", &((struct queue *)op)->handler, value);
}

static PyObject *
queue_repr(PyObject *op)
{
    struct queue *self = (struct queue *)op;

    return PyUnicode_FromFormat("<Queue %U, number %u>", self->name,
                                self->index);
}

static PyMethodDef queue_methods[] = {
    {"batches", queue_batches, METH_NOARGS, queue_batches_doc},
    {"work", queue_do_work, METH_NOARGS, queue_work_doc},
    {"begin", queue_begin, METH_NOARGS, queue_begin_doc},
    {"end", (PyCFunction)(void (*)(void))queue_end, METH_FASTCALL,
     queue_end_doc},
    {"gather", (PyCFunction)(void (*)(void))queue_gather,
     METH_FASTCALL | METH_KEYWORDS, queue_gather_doc},
    {"complete", queue_complete, METH_O, queue_complete_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef queue_getset[] = {
    {"index", queue_get_index, NULL, "Its number in the device.", NULL},
    {"name", queue_get_name, NULL, "What notes call it.", NULL},
    {"handler", queue_get_handler, queue_set_handler,
     "What work() calls with the queue, or None; another one from the next "
     "call on.",
     NULL},
    {"faults", queue_get_faults, NULL,
     "Chains that were too short, and completed empty.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    queue_doc,
    "Queue(device, index, name, handler=None)\n--\n\n"
    "The chains that a driver offers in one queue: `for chain in queue`.\n\n"
    "The end of the loop's body completes a chain, unless it was deferred. "
    "They are\npopped and completed in batches, with one interrupt each. After "
    "break and return\nthe chains that were not reached go back to the "
    "virtqueue; after an exception the\ncurrent one does too. ShortChain is "
    "the "
    "guest's fault: its chain is completed empty\nand counted.\n\n"
    "Threads: any, but the order of chains among several is theirs to settle.");

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)queue_doc},
    {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_iter, queue_iter},
    {Py_tp_repr, queue_repr},
    {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_getset},
    {0, NULL},
};

PyType_Spec queue_spec = {
    .name = "pyvmm._vmm.Queue",
    .basicsize = sizeof(struct queue),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};

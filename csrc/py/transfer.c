/* SPDX-License-Identifier: Apache-2.0 */
/* transfer.c - preadv and pwritev between files and chains */
#include "../vmm/transfer.h"
#include "py.h"

#define CHAINS_MAX 256

/* A call, converted: `chain` are references. */
struct transfer {
    int fd;
    bool write;
    int64_t offset; /* -1: where the file is */
    unsigned count;
    struct chain *chain[CHAINS_MAX];
    struct vmm_stretch stretch[CHAINS_MAX];
};

static void
transfer_fini(struct transfer *self)
{
    while (self->count)
        Py_DECREF(self->chain[--self->count]);
}

/* Of a chain that is what was not read or written yet, but for `leave` bytes
 * at the end. */
static int
add_chain(struct transfer *self, struct state *state, PyObject *arg,
          uint64_t leave)
{
    struct chain *chain = (struct chain *)arg;
    uint64_t at, end;

    if (!Py_IS_TYPE(arg, state->chain_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Chain, not %.80s",
                     Py_TYPE(arg)->tp_name);
        return -1;
    }
    if (self->count && chain->vq != self->chain[0]->vq) {
        PyErr_Format(PyExc_ValueError, "chain %u is of another queue",
                     chain->chain.head);
        return -1;
    }
    at = self->write ? chain->at_read : chain->at_write;
    end = self->write ? chain->chain.readable_len : chain->chain.writable_len;
    end -= vmm_min(leave, end);
    self->stretch[self->count] =
        (struct vmm_stretch){&chain->chain, at, end - vmm_min(at, end)};
    self->chain[self->count++] = (struct chain *)Py_NewRef(arg);
    return 0;
}

static int
add_chains(struct transfer *self, struct state *state, PyObject *arg,
           uint64_t leave)
{
    PyObject *list = PySequence_Fast(arg, "chains must be a list of Chains");
    int err = 0;

    if (!list)
        return -1;
    if (PySequence_Fast_GET_SIZE(list) > CHAINS_MAX) {
        PyErr_Format(PyExc_ValueError, "%zd chains are more than %d",
                     PySequence_Fast_GET_SIZE(list), CHAINS_MAX);
        err = -1;
    }
    for (Py_ssize_t i = 0; !err && i < PySequence_Fast_GET_SIZE(list); i++)
        err = add_chain(self, state, PySequence_Fast_GET_ITEM(list, i), leave);
    Py_DECREF(list);
    return err;
}

/*
 * Without the GIL. The queue is lent rather than locked: a transfer takes as
 * long as the file does. Returns bytes, -errno, or -ESTALE with the chain that
 * is not in flight any more in *stale.
 */
static int64_t
move(struct transfer *self, struct chain **stale)
{
    struct chain *first = self->chain[0];
    int64_t moved;

    pthread_mutex_lock(first->lock);
    for (unsigned i = 0; i < self->count && !*stale; i++)
        if (!vmm_chain_alive(&self->chain[i]->chain, first->vq))
            *stale = self->chain[i];
    if (!*stale)
        vmm_virtq_lend(first->vq);
    pthread_mutex_unlock(first->lock);
    if (*stale)
        return -ESTALE;
    if (self->write)
        moved = vmm_transfer_write(self->fd, self->offset, self->stretch,
                                   self->count);
    else
        moved = vmm_transfer_read(&first->memory->mem, self->fd, self->offset,
                                  self->stretch, self->count);
    vmm_virtq_return(first->vq);
    return moved;
}

/* Moves the positions by what was transferred; one that is in the list twice is
 * where its last stretch ended. */
static void
advance(struct transfer *self, uint64_t moved)
{
    for (unsigned i = 0; i < self->count && moved; i++) {
        struct chain *chain = self->chain[i];
        uint64_t part = vmm_min(moved, self->stretch[i].len);
        uint64_t end = self->stretch[i].offset + part;

        moved -= part;
        if (self->write) {
            chain->at_read = end;
            continue;
        }
        chain->at_write = end;
        if (part && end > chain->written)
            chain->written = (uint32_t)vmm_min(end, UINT32_MAX);
    }
}

static PyObject *
run(struct transfer *self)
{
    const char *call = self->write ? "pwritev" : "preadv";
    struct chain *stale = NULL;
    int64_t moved = 0;

    do {
        if (!self->count)
            break;
        Py_BEGIN_ALLOW_THREADS
        moved = move(self, &stale);
        Py_END_ALLOW_THREADS
        if (stale)
            return chain_raise_stale(stale);
        if (moved == -EINTR && PyErr_CheckSignals())
            return NULL;
    } while (moved == -EINTR);
    if (moved < 0)
        return raise_host(call, (int)-moved);
    advance(self, (uint64_t)moved);
    return PyLong_FromLongLong(moved);
}

static PyObject *
transfer(PyObject *module, PyObject *const *args, Py_ssize_t nargs, bool write)
{
    struct transfer self; /* only what `count` says is there */
    uint64_t offset, leave = 0;
    PyObject *ret = NULL;

    self.fd = PyObject_AsFileDescriptor(args[0]);
    self.write = write;
    self.offset = -1;
    self.count = 0;
    if (self.fd < 0)
        return NULL;
    if (args[2] != Py_None) {
        if (as_uint(args[2], "offset", INT64_MAX, &offset))
            return NULL;
        self.offset = (int64_t)offset;
    }
    if (nargs > 3 && as_uint(args[3], "leave", UINT32_MAX, &leave))
        return NULL;
    if (!add_chains(&self, PyModule_GetState(module), args[1], leave))
        ret = run(&self);
    transfer_fini(&self);
    return ret;
}

PyObject *
transfer_preadv(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4 && arguments("preadv", nargs, 3))
        return NULL;
    return transfer(module, args, nargs, false);
}

PyObject *
transfer_pwritev(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (arguments("pwritev", nargs, 3))
        return NULL;
    return transfer(module, args, nargs, true);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * posted.c - delivering the posted writes of Registers
 *
 * Whoever comes first delivers, one thread at a time for each device; others
 * wait until it has handled what was there. That lock is taken without the GIL,
 * and given up for nothing but the end of the delivery.
 */
#include "registers.h"

#define WAIT_US 20000 /* for another delivery, before signals are looked at */

/* The values as a memoryview of ints, each as wide as the register. */
static PyObject *
as_values(PyObject *bytes, unsigned len)
{
    static const char *const format[9] = {
        [1] = "B", [2] = "H", [4] = "I", [8] = "Q"};
    PyObject *view = PyMemoryView_FromObject(bytes), *cast;

    if (!view || len == 1)
        return view;
    cast = PyObject_CallMethod(view, "cast", "s", format[len]);
    Py_DECREF(view);
    return cast;
}

/*
 * Who is given the writes to a register: its method, or when other registers
 * have come in the place of these the one that they have for that name.
 */
static PyObject *
receiver(const struct registers *self, unsigned number)
{
    const struct reg *reg = &self->reg[number];
    Py_ssize_t other = -1;

    if (self->after)
        other = registers_find(self->after, reg->name);
    if (other >= 0 && self->after->core[other].here & VMM_REG_POSTED)
        return Py_NewRef(self->after->reg[other].on_write);
    return Py_NewRef(reg->on_write);
}

/* The `count` oldest writes, to one register. Whatever comes of it, they are
 * handled, unless there is no memory to take them. */
static int
deliver_run(struct registers *self, PyObject *device, unsigned number,
            unsigned count)
{
    const struct reg *reg = &self->reg[number];
    unsigned len = self->core[number].len;
    PyObject *bytes, *values, *ret = NULL;

    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count * len);
    values = bytes ? as_values(bytes, len) : NULL;
    if (values) {
        PyObject *stack[3] = {NULL, device, values};
        PyObject *call = receiver(self, number);

        vmm_post_take(&self->post, count, len, PyBytes_AS_STRING(bytes));
        ret = PyObject_Vectorcall(call, stack + 1,
                                  2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        Py_DECREF(call);
        vmm_post_done(&self->post, count);
        if (!ret)
            add_note("while %u posted write%s to %.80s.%U %s delivered", count,
                     count == 1 ? "" : "s", Py_TYPE(device)->tp_name, reg->name,
                     count == 1 ? "was" : "were");
    }
    Py_XDECREF(bytes);
    Py_XDECREF(values);
    Py_XDECREF(ret);
    return ret ? 0 : -1;
}

/* Waits for the thread that delivers. 0, or -1: a signal's handler raised. */
static int
begin_delivery(struct registers *self)
{
    PyLockStatus got;

    if (!PyThread_acquire_lock(self->delivery, NOWAIT_LOCK)) {
        do {
            Py_BEGIN_ALLOW_THREADS
            got = PyThread_acquire_lock_timed(self->delivery, WAIT_US, 0);
            Py_END_ALLOW_THREADS
            if (got != PY_LOCK_ACQUIRED && PyErr_CheckSignals())
                return -1;
        } while (got != PY_LOCK_ACQUIRED);
    }
    self->deliverer = PyThread_get_thread_ident();
    return 0;
}

static void
end_delivery(struct registers *self)
{
    self->deliverer = 0;
    PyThread_release_lock(self->delivery);
}

/*
 * What is posted to the object before this one comes first. That goes once it
 * is on no bus any more, and empty.
 */
static int
deliver_before(struct registers *self, PyObject *device)
{
    PyObject *before = Py_XNewRef(self->before);
    int err = before ? registers_deliver(before, device) : 0;

    if (before && self->before == (struct registers *)before &&
        self->before->after && !registers_waiting(before)) {
        self->before->after = NULL;
        Py_CLEAR(self->before);
        if (self->post.room)
            vmm_post_done(&self->post, 1); /* the hold */
    }
    Py_XDECREF(before);
    return err;
}

int
registers_deliver(PyObject *op, PyObject *device)
{
    struct registers *self = (struct registers *)op;
    unsigned left, number, run;
    int err = 0;

    if (deliver_before(self, device))
        return -1;
    if (!self->post.room || !vmm_post_waiting(&self->post) ||
        self->deliverer == PyThread_get_thread_ident())
        return 0;
    if (begin_delivery(self))
        return -1;
    /* What comes meanwhile is left: nobody may keep this thread for ever. */
    left = vmm_post_count(&self->post);
    while (!err && left) {
        run = vmm_post_run(&self->post, left, &number);
        err = deliver_run(self, device, number, run);
        left -= run;
    }
    end_delivery(self);
    return err;
}

bool
registers_waiting(PyObject *op)
{
    const struct registers *self = (struct registers *)op;

    return self->post.room && vmm_post_waiting(&self->post);
}

bool
registers_posting(PyObject *op)
{
    return ((struct registers *)op)->post.room;
}

int
registers_post(struct registers *self, const struct vmm_reg *core,
               PyObject *device, uint64_t val)
{
    int answer = vmm_post_write(&self->post, core, val);

    if (answer == VMM_BUS_OUTSIDE) {
        if (registers_deliver((PyObject *)self, device))
            return -1;
        answer = vmm_post_write(&self->post, core, val);
    }
    if (answer == VMM_BUS_OUTSIDE) {
        PyErr_Format(PyExc_RuntimeError,
                     "%.80s.%U is full: its on_writes may not go on writing "
                     "to it",
                     Py_TYPE(device)->tp_name, self->reg[core->number].name);
        return -1;
    }
    if (answer == VMM_BUS_OWNER)
        return registers_deliver((PyObject *)self, device);
    return 0;
}

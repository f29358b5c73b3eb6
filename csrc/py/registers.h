/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registers.h - what the two files of Registers share
 *
 * registers.c makes it and answers accesses, posted.c delivers posted writes.
 */
#ifndef VMM_PY_REGISTERS_H
#define VMM_PY_REGISTERS_H

#include "../vmm/filter.h"
#include "py.h"

struct cell {
    Py_ssize_t users; /* under the GIL */
    uint64_t value;   /* atomic */
};

/* What is known of a register beside the core's part of it. */
struct reg {
    struct cell *cell;
    PyObject *name;
    PyObject *on_read;  /* called with the device; or NULL */
    PyObject *on_write; /* as well, or its on_writes when it is posted */
    bool old;           /* on_write wants the value before, too */
    uint64_t mask;
    uint64_t kept; /* what a write of other bytes leaves as it is */
};

struct registers {
    PyObject_HEAD
    Py_ssize_t count;
    struct reg *reg;      /* by number */
    struct vmm_reg *core; /* the same, by range and offset */
    unsigned ranges;
    struct vmm_filter *filter; /* by range */
    PyObject *index;           /* names to numbers */
    struct vmm_post post;      /* room 0: nothing is posted */
    PyThread_type_lock delivery;
    unsigned long deliverer;  /* who delivers, 0: nobody */
    struct registers *before; /* whose posts come first, or NULL */
    struct registers *after;  /* has it as `before`, it is on no bus any more */
};

/* The number of the register of that name; -1, no exception, if none has it. */
Py_ssize_t registers_find(const struct registers *self, PyObject *name);

/*
 * A guest's write to a posted register: it waits, and all is delivered when
 * that are enough. 0, or -1 with an exception.
 */
int registers_post(struct registers *self, const struct vmm_reg *core,
                   PyObject *device, uint64_t val);

#endif

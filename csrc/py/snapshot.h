/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapshot.h - what the two files of Snapshot share
 *
 * snapshot.c makes it and goes back to it; snapshot_file.c is what a file of it
 * needs: its state as Python objects and back, its pages.
 */
#ifndef VMM_PY_SNAPSHOT_H
#define VMM_PY_SNAPSHOT_H

#include "../vmm/snap_file.h"
#include "py.h"

struct snapshot {
    PyObject_HEAD
    struct vmm_snap *snap;
};

/* Takes the reference, also when it fails. */
PyObject *snapshot_new(struct state *state, struct vmm_snap *snap);

/* Methods of Snapshot, with their docstrings. */
extern const char snapshot_state_doc[];
PyObject *snapshot_state(PyObject *op, PyObject *ignored);
extern const char snapshot_open_doc[];
PyObject *snapshot_open(PyObject *type, PyObject *const *args,
                        Py_ssize_t nargs);
extern const char snapshot_adopt_doc[];
PyObject *snapshot_adopt(PyObject *op, PyObject *arg);
extern const char snapshot_fileno_doc[];
PyObject *snapshot_fileno(PyObject *op, PyObject *ignored);
extern const char snapshot_next_doc[];
PyObject *snapshot_next(PyObject *op, PyObject *arg);
extern const char snapshot_copy_doc[];
PyObject *snapshot_copy(PyObject *op, PyObject *const *args, Py_ssize_t nargs);

#endif

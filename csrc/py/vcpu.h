/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vcpu.h - what the four files of VCPU share
 *
 * vcpu.c makes and closes it, exit.c makes an Exit, run.c is run(), and
 * vcpu_state.c holds the methods that get and set its state.
 */
#ifndef VMM_PY_VCPU_H
#define VMM_PY_VCPU_H

#include "py.h"

/* NULL with an exception unless it is open and of this process. */
struct vcpu *open_vcpu(PyObject *op);

/* As well when another thread runs it: its ioctls would wait for that. */
struct vcpu *quiet_vcpu(PyObject *op);

/* What a core function answered: None, or an exception. */
PyObject *vcpu_none_or_raise(struct vcpu *self, int err);

/*
 * An Exit for `reason`; `rip` may be NULL, it is then None. NULL with an
 * exception.
 */
PyObject *exit_new(struct vcpu *self, int reason, const struct vmm_exit *exit,
                   const uint64_t *rip);

/* Somebody has set due_ns: the tick that serves it comes in time. */
void vcpu_due_changed(struct vcpu *self);

/* -- methods, with their docstrings ---------------------------------------- */

extern const char vcpu_run_doc[];
PyObject *vcpu_run(PyObject *op, PyObject *args, PyObject *kwargs);
extern const char vcpu_get_doc[];
PyObject *vcpu_get(PyObject *op, PyObject *what);
extern const char vcpu_set_doc[];
PyObject *vcpu_set(PyObject *op, PyObject *const *args, Py_ssize_t nargs);
extern const char vcpu_get_msrs_doc[];
PyObject *vcpu_get_msrs(PyObject *op, PyObject *indices);
extern const char vcpu_set_msrs_doc[];
PyObject *vcpu_set_msrs(PyObject *op, PyObject *const *args, Py_ssize_t nargs);
extern const char vcpu_start_doc[];
PyObject *vcpu_start(PyObject *op, PyObject *args, PyObject *kwargs);
extern const char vcpu_nmi_doc[];
PyObject *vcpu_nmi(PyObject *op, PyObject *ignored);
extern const char vcpu_debug_doc[];
PyObject *vcpu_debug(PyObject *op, PyObject *args, PyObject *kwargs);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * claim.h - what a bus knows of a device, and how it calls it: for bus.c
 *
 * All functions want the GIL; those that return an int: 0, or -1 with an
 * exception.
 */
#ifndef VMM_PY_CLAIM_H
#define VMM_PY_CLAIM_H

#include "../vmm/filter.h"
#include "py.h"

/* For a device, native or not; fills in the range's ops. NULL: an exception. */
struct claim *claim_new(struct state *state, PyObject *device, uint64_t size,
                        struct vmm_range *range);
void claim_free(struct claim *claim);

/* What is looked up in a Python device: methods, registers; and the reverse. */
int claim_look_up(struct state *state, struct claim *claim, PyObject *device);
void claim_clear(struct claim *claim);
/* What the core is to ask with the claim's filter; NULL for nothing. */
const struct vmm_bus_ops *claim_ops(const struct claim *claim);

/* One access, by registers or read() and write(). */
int claim_access(const struct claim *claim, const struct vmm_exit *exit,
                 uint64_t offset, uint64_t *val);
/* The elements of a string that is read, to `data`; 1: one by one. */
int claim_string(const struct claim *claim, const struct vmm_exit *exit,
                 uint64_t offset, uint8_t *data);
/* Its posted writes. */
int claim_deliver(const struct claim *claim);
/* What a native device, or a full post, wants done. */
int claim_service(const struct claim *claim);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * py.h - what the files of the binding share
 *
 * One file per Python type; each exports its PyType_Spec and, where others need
 * it, a few functions. Types are heap types in the module's state. A method
 * converts, releases the GIL where the core may wait, calls one core function
 * and converts back.
 *
 * References point one way: VCPU -> VM -> KVM, Memory; VirtioMMIO -> Memory;
 * Bus ranges -> devices. So VM, Bus and whatever holds a callable support the
 * cycle collector.
 *
 * Guest RAM lives until its last user goes: memory_hold and memory_release
 * count VMs, devices and views, and Memory.close() frees it at once only when
 * there are none.
 *
 * KVM objects do not survive fork(): each remembers the process generation in
 * which it was made (fork_generation), and a method in a child says so.
 */
#ifndef VMM_PY_H
#define VMM_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "../vmm/bus.h"
#include "../vmm/kvm.h"
#include "../vmm/mem.h"
#include "../vmm/vcpu.h"
#include "../vmm/vm.h"

struct state {
    PyTypeObject *kvm_type;
    PyTypeObject *memory_type;
    PyTypeObject *view_type;
    PyTypeObject *bus_type;
    PyTypeObject *vm_type;
    PyTypeObject *vcpu_type;
    PyTypeObject *exit_type;
    PyTypeObject *elf_type;
    PyTypeObject *console_type;
    PyTypeObject *exit_port_type;
    PyTypeObject *virtq_type;
    PyTypeObject *chain_type;
    PyTypeObject *virtio_type;
    PyTypeObject *rng_type;
};

extern struct PyModuleDef vmm_module;

/* The state of the module that defined `type` or a base of it. */
static inline struct state *
state_of(PyTypeObject *type)
{
    return PyModule_GetState(PyType_GetModuleByDef(type, &vmm_module));
}

/* -- errors (errors.c); each sets an exception and returns NULL ------------ */

/* OSError(err, "call: meaning (hint)"); `err` is a positive errno. */
PyObject *raise_host(const char *call, int err);

/* ValueError: operation on closed TYPE */
PyObject *raise_closed(PyObject *self);

/*
 * Adds "gpa 0x10000 + 16 is outside RAM (65536 bytes)" as a ValueError, or says
 * that it is read-only.
 */
PyObject *raise_gpa(const struct vmm_mem *mem, uint64_t gpa, uint64_t len);

/* Adds a note to the exception that is set. */
void add_note(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

/* -- arguments (errors.c) -------------------------------------------------- */

/*
 * A Python int from 0 to `max`, else ValueError "NAME 5 is outside 0..3" (or
 * TypeError). Returns 0 or -1.
 */
int as_uint(PyObject *arg, const char *name, uint64_t max, uint64_t *out);

/* -- the process generation (module.c): raised in the child of a fork -------*/
extern unsigned fork_generation;

/* -- memory.c -------------------------------------------------------------- */

struct memory {
    PyObject_HEAD
    struct vmm_mem mem;
    Py_ssize_t users; /* VMs, devices and views */
    bool closed;
};

extern PyType_Spec memory_spec;
extern PyType_Spec view_spec;

/* Checks the type and that it is open; NULL with an exception. Borrowed. */
struct memory *memory_check(struct state *state, PyObject *arg);
/* Takes a reference as a user of the RAM, and gives it back. */
void memory_hold(struct memory *memory);
void memory_release(struct memory *memory);
/*
 * A memoryview of host memory that lies in `memory`, which it keeps alive.
 */
PyObject *memory_view(struct state *state, struct memory *memory, void *hva,
                      Py_ssize_t len, bool readonly);

/* -- bus.c ----------------------------------------------------------------- */

/*
 * What the binding knows of a range: vmm_range.owner points to one. A native
 * device has no `read` and `write` but `service`.
 */
struct claim {
    PyObject *device;
    PyObject *read;  /* bound methods, NULL for native devices */
    PyObject *write;
    /*
     * Called with the GIL when a native device answered VMM_BUS_OWNER. 0, or
     * -1 with an exception.
     */
    int (*service)(PyObject *device);
};

extern PyType_Spec bus_spec;

/* A Bus that borrows `bus`; `keeper` (the VM) owns that. */
PyObject *bus_new(struct state *state, struct vmm_bus *bus);
/* The VM is gone: drops all devices. */
void bus_close(PyObject *self);
/*
 * The access that `exit` describes (ACCESS or OWNER), by the Python device or
 * the owner. The value of a read in *val. 0, or -1 with an exception; -ENOENT
 * without one when the range has gone meanwhile.
 */
int bus_dispatch(PyObject *self, const struct vmm_exit *exit, uint64_t *val);

/* -- native devices: what bus.c needs to put one on a bus ------------------ */

struct native {
    const struct vmm_bus_ops *ops;
    void *dev;
    uint64_t size; /* of the range it wants, 0: any */
    int (*service)(PyObject *device);
};

/*
 * Each fills *out and returns true when `device` is one of its type, which must
 * be open (the bus checks that it is not NULL).
 */
bool console_native(struct state *state, PyObject *device, struct native *out);
bool exit_port_native(struct state *state, PyObject *device,
                      struct native *out);
bool virtio_native(struct state *state, PyObject *device, struct native *out);

/* -- kvm.c, vm.c, vcpu.c --------------------------------------------------- */

struct kvm {
    PyObject_HEAD
    struct vmm_kvm kvm;
    unsigned generation;
    bool closed;
};

struct vm {
    PyObject_HEAD
    struct vmm_vm vm;
    struct kvm *kvm;
    struct memory *memory;
    PyObject *pio; /* Bus */
    PyObject *mmio;
    struct vcpu *vcpus; /* a list of all, borrowed */
    uint64_t unclaimed;
    unsigned generation;
    bool strict;
    bool closed;
};

struct vcpu {
    PyObject_HEAD
    struct vmm_vcpu cpu;
    struct vm *vm;
    struct vcpu *next; /* of the VM's list */
    PyObject *trace;
    unsigned long runner; /* thread ident inside run(), 0: none */
    unsigned generation;
    bool in_kvm; /* the runner is outside Python */
    bool closing;
    bool closed;
};

extern PyType_Spec kvm_spec;
extern PyType_Spec vm_spec;
extern PyType_Spec vcpu_spec;
extern PyStructSequence_Desc exit_desc;

/* Borrowed, or NULL with an exception. */
struct kvm *kvm_check(struct state *state, PyObject *arg);
struct vm *vm_check(struct state *state, PyObject *arg);
/* Closes one vCPU, or makes its runner do it. */
void vcpu_close(struct vcpu *self);

/* -- signals.c: ticks and kicks -------------------------------------------- */

/* Installs the handler of KICK_SIGNAL, once. 0, or -1 with an exception. */
int signals_init(void);
int kick_signal(void);
/*
 * From here to tick_stop the calling thread runs `cpu`: it is told to leave the
 * guest at `first_ns` from now and then every `every_ns`. 0 or -errno.
 */
int tick_start(struct vmm_vcpu *cpu, uint64_t first_ns, uint64_t every_ns);
void tick_stop(struct vmm_vcpu *cpu);

/* -- reaper.c: closing takes the kernel 15 ms, off the caller's thread ----- */

/* Takes over what is to be closed. Never fails: it closes at once if it must */
void reap_vm(int fd);
void reap_vcpu(struct vmm_vcpu_rest rest);
/* Waits until all is closed. Call without the GIL. */
void reap_all(void);

/* -- elf.c, console.c, virtq.c, virtio.c ----------------------------------- */

extern PyType_Spec elf_spec;
extern PyType_Spec console_spec;
extern PyType_Spec exit_port_spec;
extern PyType_Spec virtq_spec;
extern PyType_Spec chain_spec;
extern PyType_Spec virtio_spec;
extern PyType_Spec rng_spec;

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * py.h - what the files of the binding share
 *
 * One file per Python type; each exports its PyType_Spec and, where others need
 * it, a few functions. Types are heap types in the module's state. A method
 * converts, releases the GIL where the core may wait, calls one core function
 * and converts back.
 *
 * References point one way: VCPU, Bus -> VM -> KVM, Memory, devices on its
 * buses; VirtioMMIO -> Memory. So VM, Bus and whatever holds a callable support
 * the cycle collector.
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
#include "../vmm/virtio_mmio.h"
#include "../vmm/vm.h"

struct state {
    PyTypeObject *kvm_type;
    PyTypeObject *memory_type;
    PyTypeObject *view_type;
    PyTypeObject *bus_type;
    PyTypeObject *registers_type;
    PyTypeObject *attribute_type;
    PyTypeObject *vm_type;
    PyTypeObject *vcpu_type;
    PyTypeObject *exit_type;
    PyTypeObject *elf_type;
    PyTypeObject *console_type;
    PyTypeObject *exit_port_type;
    PyTypeObject *virtq_type;
    PyTypeObject *chain_type;
    PyTypeObject *queue_type;
    PyTypeObject *loop_type;
    PyTypeObject *virtio_type;
    PyTypeObject *rng_type;
    PyTypeObject *snapshot_type;
    PyTypeObject *replay_type;
    PyTypeObject *mutator_type;
    PyObject *short_error; /* exceptions */
    PyObject *stale_error;
    PyObject *registers_name; /* "_registers" */
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

/* RuntimeError: made in another process */
PyObject *raise_forked(void);

/* ValueError: operation on closed TYPE */
PyObject *raise_closed(PyObject *self);

/*
 * Adds "gpa 0x10000 + 16 is outside RAM (65536 bytes)" as a ValueError, or says
 * that it is read-only.
 */
PyObject *raise_gpa(const struct vmm_mem *mem, uint64_t gpa, uint64_t len);

/* Adds a note, made as by PyUnicode_FromFormat, to the exception set. */
void add_note(const char *format, ...);

/* -- arguments (errors.c) -------------------------------------------------- */

/*
 * A Python int from 0 to `max`, else ValueError "NAME 5 is outside 0..3" (or
 * TypeError). Returns 0 or -1.
 */
int as_uint(PyObject *arg, const char *name, uint64_t max, uint64_t *out);

/* TypeError "NAME takes WANT arguments (N given)" unless they are that many. */
int arguments(const char *name, Py_ssize_t nargs, Py_ssize_t want);

/*
 * The arguments of a METH_FASTCALL | METH_KEYWORDS call, by position or by
 * name (chain.c): those not given are left alone. The first `needed` must be.
 */
int take_arguments(const char *function, PyObject *const *args,
                   Py_ssize_t nargs, PyObject *kwnames,
                   const char *const names[2], int needed, PyObject *out[2]);

/* -- the process generation (module.c): raised in the child of a fork -------*/
extern unsigned fork_generation;

/* -- memory.c -------------------------------------------------------------- */

struct memory {
    PyObject_HEAD
    struct vmm_mem mem;
    Py_ssize_t users;   /* VMs, devices and views */
    struct view *views; /* the writable ones */
    bool closed;
};

extern PyType_Spec memory_spec;
extern PyType_Spec view_spec;

/* Checks the type and that it is open; NULL with an exception. Borrowed. */
struct memory *memory_check(struct state *state, PyObject *arg);
/* Takes a reference as a user of the RAM, and gives it back. */
void memory_hold(struct memory *memory);
void memory_release(struct memory *memory);
/* Pages that writable views see are dirty: before anyone asks for dirty ones */
void memory_mark_views(struct memory *memory);
/*
 * A memoryview of host memory that lies in `memory`, which it keeps alive.
 */
PyObject *memory_view(struct state *state, struct memory *memory, void *hva,
                      Py_ssize_t len, bool readonly);

/* -- registers.c, register.c ------------------------------------------------
 */

extern PyType_Spec registers_spec;
extern PyType_Spec attribute_spec;

/* Whether it is a Registers. */
bool registers_check(struct state *state, PyObject *registers);
/* The value of that name; AttributeError. */
PyObject *registers_get(PyObject *registers, PyObject *name);
int registers_set(PyObject *registers, PyObject *name, uint64_t val);

/*
 * What answers for the range of that index on a bus, or NULL when `registers`
 * has none or is something else.
 */
struct vmm_filter *registers_filter(struct state *state, PyObject *registers,
                                    unsigned range);
/*
 * A guest's access, of which `device` is told. 0, or -1 with an exception. The
 * caller holds references to both.
 */
int registers_read(PyObject *registers, PyObject *device, unsigned range,
                   uint64_t offset, unsigned len, uint64_t *val);
int registers_write(PyObject *registers, PyObject *device, unsigned range,
                    uint64_t offset, unsigned len, uint64_t val);
/* Delivers the posted writes that wait. 0, or -1 with an exception. */
int registers_deliver(PyObject *registers, PyObject *device);
/* Whether some wait; whether some could. */
bool registers_waiting(PyObject *registers);
bool registers_posting(PyObject *registers);

/* -- bus.c ----------------------------------------------------------------- */

/*
 * What the binding knows of a range: vmm_range.owner points to one. A native
 * device has no `read` and `write` but `service`.
 */
struct claim {
    uint64_t base;
    PyObject *device;
    PyObject *read; /* bound methods, NULL for native devices */
    PyObject *write;
    PyObject *read_many; /* for `rep ins`, or NULL */
    /*
     * Its declared registers, or NULL: whose they are, in which of its ranges
     * they are, and for which accesses they stand in for the methods.
     */
    PyObject *registers;
    PyObject *owner;
    struct vmm_filter *filter;
    unsigned range;
    unsigned served; /* VMM_REG_READ, VMM_REG_WRITE */
    /*
     * Called with the GIL when a native device answered VMM_BUS_OWNER. 0, or
     * -1 with an exception.
     */
    int (*service)(PyObject *device);
};

/* A VM's ports or addresses, with what the binding knows of each range. */
struct ports {
    struct vmm_bus *bus;
    struct claim **claim;
    Py_ssize_t count;
    bool posting; /* some claim's registers may have posted writes */
};

extern PyType_Spec bus_spec;

int ports_traverse(struct ports *ports, visitproc visit, void *arg);
/* Takes all devices off the bus. No guest runs. */
void ports_clear(struct ports *ports);
/* Delivers the posted writes of its devices. 0, or -1 with an exception. */
int ports_deliver(const struct ports *ports);
/*
 * The access that `exit` describes (ACCESS or OWNER), by the Python device or
 * the owner. The value of a read in *val. 0, or -1 with an exception; -ENOENT
 * without one when the range has gone meanwhile.
 */
int ports_dispatch(const struct ports *ports, const struct vmm_exit *exit,
                   uint64_t *val);

/*
 * A read of exit->count elements, to go to `data` in a row, by a device that
 * answers them in one call. 0, or -1 with an exception; 1: this one does not.
 */
int ports_dispatch_string(const struct ports *ports,
                          const struct vmm_exit *exit, uint8_t *data);

struct vm;
/* A Bus on one of the VM's two; it keeps the VM. */
PyObject *bus_new(struct state *state, struct vm *vm, struct ports *ports);
/* The ports of a Bus that is open, else NULL with an exception. Borrowed. */
struct ports *bus_ports(PyObject *bus);

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
    struct ports pio;
    struct ports mmio;
    struct vcpu *vcpus; /* all that are open; borrowed */
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
    PyObject *on_due;
    PyObject *late;       /* an Exit that is for the next run(), or NULL */
    uint64_t due_ns;      /* when on_due is called, 0: never */
    uint64_t tick_ns;     /* the next tick comes then at the latest */
    unsigned long runner; /* thread ident inside run(), 0: none */
    unsigned generation;
    uint64_t asleep_ns; /* since when looks find it not awake, 0: awake */
    uint64_t looked_ns; /* the last look */
    bool thrown;        /* throw() was called during this run() */
    bool closing;
    bool closed;
};

extern PyType_Spec kvm_spec;
extern PyType_Spec vm_spec;
extern PyType_Spec vcpu_spec;
extern PyStructSequence_Desc exit_desc;

/* Reasons of an Exit that are run()'s own, after those of the core. */
enum { EXIT_KICK = VMM_EXIT_REASONS, EXIT_TIMEOUT, EXIT_IDLE };

/* Borrowed, or NULL with an exception. */
struct kvm *kvm_check(struct state *state, PyObject *arg);
struct vm *vm_check(struct state *state, PyObject *arg);
/* Closes one vCPU, or makes its runner do it. */
void vcpu_close(struct vcpu *self);
/* A vCPU has gone: the VM too, if it is closed and this was the last one. */
void vm_forget(struct vm *vm, struct vcpu *vcpu);
/*
 * Takes what KVM's ring has to its devices. Delivers only where a device could
 * not keep more. 0, or -1 with an exception.
 */
int vm_collect(struct vm *vm);

/* -- signals.c: ticks and kicks -------------------------------------------- */

/* The signal that kicks and ticks use; its handler is installed on first use */
int kick_signal(void);

/*
 * From tick_enter to tick_leave the calling thread runs `cpu`: after tick_arm
 * it is told to leave the guest `first_ns` from then and every TICK_NS after.
 * They nest, for a device that runs another machine: tick_enter gives what
 * tick_leave takes. -errno when the host gives no timer.
 */
#define TICK_FIRST_NS 5000000ULL
#define TICK_NS       20000000ULL
int tick_enter(struct vmm_vcpu *cpu, struct vmm_vcpu **previous);
void tick_arm(uint64_t first_ns);
void tick_leave(struct vmm_vcpu *cpu, struct vmm_vcpu *previous);
/* From any thread: whoever runs `cpu` gets a tick now. */
void tick_send(const struct vmm_vcpu *cpu);

/* -- reaper.c: closing takes the kernel 15 ms, off the caller's thread ----- */

/* Takes over what is to be closed. Never fails: it closes at once if it must */
void reap_vm(int fd);
void reap_vcpu(struct vmm_vcpu_rest rest);
/* Waits until all is closed. Call without the GIL. */
void reap_all(void);

/* -- elf.c, console.c, chain.c, virtq.c, virtio.c, queue.c, gather.c, rng.c -
 */

/*
 * The locks of the core, which threads hold that do not have the GIL, maybe
 * for as long as a write() blocks. So nobody waits for one with the GIL, and
 * nobody who holds one takes it: what stands between the two calls is the core
 * alone. lock_acquire gives the GIL away only when it has to wait.
 */
static inline PyThreadState *
lock_acquire(pthread_mutex_t *lock)
{
    PyThreadState *thread;

    if (!pthread_mutex_trylock(lock))
        return NULL;
    thread = PyEval_SaveThread();
    pthread_mutex_lock(lock);
    return thread;
}

static inline void
lock_release(pthread_mutex_t *lock, PyThreadState *thread)
{
    pthread_mutex_unlock(lock);
    if (thread)
        PyEval_RestoreThread(thread);
}

/*
 * For attributes that are a file descriptor, or -1 for none; `value` is NULL
 * when one is deleted. 0, or -1 with an exception.
 */
int as_fd(PyObject *value, const char *name, int *out);

/*
 * For what is a callable, or None for none, as NULL is when one is deleted. 0,
 * or -1 with an exception.
 */
int set_callable(const char *name, PyObject **slot, PyObject *value);

/* PyArg_ParseTupleAndKeywords wants char **, and changes nothing there. */
#define KEYWORDS(names) ((char **)(uintptr_t)(names))

/*
 * A request on loan from a queue, which `owner` keeps alive. `pushed` and
 * `returned` say where it went; a reset takes it back without telling.
 */
struct chain {
    PyObject_HEAD
    struct vmm_chain chain;
    struct vmm_virtq *vq;
    pthread_mutex_t *lock; /* of the queue or its device */
    struct memory *memory;
    PyObject *owner;
    struct virtio *virtio; /* the owner, when that is a device */
    unsigned queue;        /* of that device */
    uint64_t at_read;      /* where the next read() and write() begin */
    uint64_t at_write;
    uint32_t written; /* what complete() reports */
    bool pushed;
    bool returned;      /* to the queue, not worked on */
    bool deferred;      /* whoever iterates does not complete it */
    bool finished;      /* its turn in the loop is over */
    bool lacking;       /* it raised ShortChain */
    struct chain *next; /* of the device's, and what points to this one */
    struct chain **at;
};

/* For a queue's pop: an empty chain, and what pop makes of it and the core's
 * answer. */
struct chain *chain_new(struct state *state, PyObject *owner,
                        struct memory *memory, struct vmm_virtq *vq,
                        pthread_mutex_t *lock);
PyObject *chain_popped(struct chain *chain, int answer);
/* For its push: a chain of that queue that was not pushed, borrowed, or NULL
 * with an exception; and what push makes of the core's answer. */
struct chain *chain_check(struct state *state, PyObject *arg,
                          const struct vmm_virtq *vq);
PyObject *chain_pushed(struct chain *chain, uint32_t written, int answer);
/* Whether it is in flight. */
bool chain_alive(struct chain *chain);
/* For one that is not: why, as an exception; NULL. */
PyObject *chain_raise_stale(struct chain *chain);
/* It is one of this device's queue. */
void chain_of(struct chain *chain, struct virtio *virtio, unsigned queue);
/* As new, for another pop: nobody else has it. */
void chain_renew(struct chain *chain);

/* Functions of the module (transfer.c). */
PyObject *transfer_preadv(PyObject *module, PyObject *const *args,
                          Py_ssize_t nargs);
PyObject *transfer_pwritev(PyObject *module, PyObject *const *args,
                           Py_ssize_t nargs);

struct queue;

/* What VirtioMMIO and the types derived from it begin with. */
struct virtio {
    PyObject_HEAD
    struct vmm_virtio_mmio *dev; /* NULL until it is made */
    struct memory *memory;       /* NULL once closed */
    PyObject *on_notify;         /* or NULL */
    PyObject *on_event;          /* or NULL */
    int (*service)(PyObject *self);
    /* Queues that Python has made, or NULL; borrowed, they see to that. */
    struct queue *queue[VMM_VIRTIO_MMIO_MAX_QUEUES];
    struct chain *chains; /* all there are, in flight or not */
    bool open;            /* made, and not closed */
    bool forgiven; /* what a handler raises is the guest's fault (queue.c) */
};

/* Calls the handler of a queue. 0, 1 when it has none, or -1 with an exception.
 */
int queue_work(struct queue *queue);

/*
 * The state of registers and queues (virtio_state.c), with the lock held. At
 * `to` is room for so many bytes, all 0; the answer is how many it takes.
 * `in_flight`: chains that are stay so; else they are offered again. read: 0 or
 * -errno.
 */
size_t virtio_state_most(const struct virtio *self);
size_t virtio_state_write(const struct virtio *self, bool in_flight, void *to);
int virtio_state_read(struct virtio *self, const uint8_t *from, size_t len);

/* For derived types: the parts of tp_traverse, tp_clear and tp_dealloc that are
 * the base's. */
int virtio_traverse(PyObject *self, visitproc visit, void *arg);
int virtio_clear(PyObject *self);
void virtio_drop(struct virtio *self);

/*
 * For Queue, of queue `index` (gather.c): chains that have room for so many
 * bytes together, popped and deferred, as a list. None: the driver has not
 * offered enough. `most` that are too small are pushed empty, counted in
 * *faults, and ShortChain is raised. NULL with an exception.
 */
PyObject *gather_chains(struct virtio *virtio, unsigned index, uint64_t room,
                        uint64_t most, uint64_t *faults);
/* Pushes all of a sequence of chains of that queue at once: whether all were in
 * flight. NULL with an exception, and then none was pushed. */
PyObject *complete_chains(struct virtio *virtio, unsigned index,
                          PyObject *chains);

/* Events of a VirtioMMIO's on_event, and what its arguments are. */
enum {
    EVENT_RESET,  /* 0, 0, 0 */
    EVENT_STATUS, /* old bits, new bits, 0 */
    EVENT_CONFIG, /* offset, size, value written */
};

extern PyType_Spec elf_spec;
extern PyType_Spec console_spec;
extern PyType_Spec exit_port_spec;
extern PyType_Spec virtq_spec;
extern PyType_Spec chain_spec;
extern PyType_Spec queue_spec;
extern PyType_Spec loop_spec;
extern PyType_Spec virtio_spec;
extern PyType_Spec rng_spec;

/* -- snapshot.c ------------------------------------------------------------ */

extern PyType_Spec snapshot_spec;
/* Borrowed, or NULL with an exception. */
struct vmm_snap *snapshot_check(struct state *state, PyObject *arg);

/* -- replay.c -------------------------------------------------------------- */

extern PyType_Spec replay_spec;

/* -- mutate.c -------------------------------------------------------------- */

extern PyType_Spec mutator_spec;

/* -- snapshot.c again: methods of VM, with their docstrings ---------------- */

/* Methods of VM, with their docstrings. */
extern const char vm_snapshot_doc[];
PyObject *vm_snapshot(PyObject *op, PyObject *ignored);
extern const char vm_restore_doc[];
PyObject *vm_restore(PyObject *op, PyObject *snapshot);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* module.c - pyvmm._vmm: its types, constants and module functions */
#include <pthread.h>

#include "../vmm/console.h"
#include "../vmm/virtio_mmio.h"
#include "../vmm/x86_start.h"
#include "py.h"

unsigned fork_generation;

static void
in_child(void)
{
    fork_generation++;
}

static void
fork_handler_init(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

PyDoc_STRVAR(
    tables_size_doc,
    "x86_tables_size(span, /)\n--\n\n"
    "Bytes of the tables that identity-map guest addresses 0 to `span`.\n\n"
    "A multiple of 4096; at least 4 GiB are mapped. `span` is at most 512 "
    "GiB.\nSource: Intel SDM volume 3, 4.5.");

static PyObject *
tables_size(PyObject *module, PyObject *arg)
{
    uint64_t span;

    (void)module;
    if (as_uint(arg, "span", VMM_X86_MAX_SPAN, &span))
        return NULL;
    return PyLong_FromUnsignedLongLong(vmm_x86_tables_size(span));
}

PyDoc_STRVAR(
    tables_doc,
    "x86_tables(memory, gpa, span, /)\n--\n\n"
    "Write page tables, GDT and TSS for the long modes at `gpa`.\n\n"
    "They map 0 to `span` (at least 4 GiB) to itself by 2 MiB pages that ring "
    "3\nmay use. `gpa` is page aligned, with x86_tables_size(span) bytes of "
    "RAM.\nRaises ValueError.\nSource: Intel SDM volume 3, 4.5, 3.4.5 and "
    "8.7.");

static PyObject *
tables(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct state *state = PyModule_GetState(module);
    struct memory *memory;
    uint64_t gpa, span;
    int err;

    if (nargs != 3)
        return PyErr_Format(PyExc_TypeError,
                            "x86_tables takes 3 arguments (%zd given)", nargs);
    memory = memory_check(state, args[0]);
    if (!memory || as_uint(args[1], "gpa", UINT64_MAX, &gpa) ||
        as_uint(args[2], "span", VMM_X86_MAX_SPAN, &span))
        return NULL;
    err = vmm_x86_tables(&memory->mem, gpa, span);
    if (err == -EFAULT)
        return raise_gpa(&memory->mem, gpa, vmm_x86_tables_size(span));
    if (err)
        return PyErr_Format(PyExc_ValueError, "gpa %S is not page aligned",
                            args[1]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reap_doc,
             "reap()\n--\n\n"
             "Wait until the kernel has closed all machines that were closed.\n"
             "\nClosing a young VM takes the kernel about 15 ms, so close() "
             "leaves it to a\nthread; this joins it.");

static PyObject *
reap(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    Py_BEGIN_ALLOW_THREADS
    reap_all();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    bench_doc,
    "bench_dispatch(bus, addr, size, count, value=None, /)\n--\n\n"
    "Feed the dispatcher the same read `count` times; nanoseconds each.\n\n"
    "With `value` it is a write of that. For benchmarks: what a Python device "
    "costs\nwithout KVM and with warm caches.");

static PyObject *
bench_dispatch(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    struct state *state = PyModule_GetState(module);
    struct vmm_exit exit = {.reason = VMM_EXIT_ACCESS};
    uint64_t size, count, val, start;
    struct ports *ports;

    if (nargs < 4 || nargs > 5 || !Py_IS_TYPE(args[0], state->bus_type))
        return PyErr_Format(
            PyExc_TypeError,
            "bench_dispatch takes a Bus, addr, size, count and a value");
    exit.write = nargs == 5 && args[4] != Py_None;
    ports = bus_ports(args[0]);
    if (!ports || as_uint(args[1], "addr", UINT64_MAX, &exit.addr) ||
        as_uint(args[2], "size", 8, &size) ||
        as_uint(args[3], "count", UINT32_MAX, &count) ||
        (exit.write && as_uint(args[4], "value", UINT64_MAX, &exit.val)))
        return NULL;
    exit.len = (unsigned)size;
    start = vmm_now_ns();
    for (uint64_t i = 0; i < count; i++) {
        int err = ports_dispatch(ports, &exit, &val);

        if (err == -ENOENT)
            PyErr_SetString(PyExc_ValueError, "no device there");
        if (err)
            return NULL;
    }
    return PyFloat_FromDouble((double)(vmm_now_ns() - start) /
                              (double)(count ? count : 1));
}

PyDoc_STRVAR(
    preadv_doc,
    "preadv(fd, chains, offset, leave=0, /)\n--\n\n"
    "Read from a file into the room of chains, one behind the other; no copy."
    "\n\n"
    "Begins in each chain behind what was written there, and leaves its last "
    "`leave`\nbytes. `offset` None: where the file is, for what has no other. "
    "Returns how many\nbytes came and moves the positions by them: 0 at the "
    "end of the file, fewer than\nthere is room for before it or beyond 64 "
    "MiB. Other threads run meanwhile, and a\nreset waits. At most 256 "
    "chains, of one queue. Raises OSError, StaleChain.");

PyDoc_STRVAR(
    pwritev_doc,
    "pwritev(fd, chains, offset, /)\n--\n\n"
    "Write what was not read yet of chains to a file, one behind the other; no "
    "copy.\n\nElse as preadv().");

static PyMethodDef functions[] = {
    {"preadv", (PyCFunction)(void (*)(void))transfer_preadv, METH_FASTCALL,
     preadv_doc},
    {"pwritev", (PyCFunction)(void (*)(void))transfer_pwritev, METH_FASTCALL,
     pwritev_doc},
    {"x86_tables_size", tables_size, METH_O, tables_size_doc},
    {"x86_tables", (PyCFunction)(void (*)(void))tables, METH_FASTCALL,
     tables_doc},
    {"reap", reap, METH_NOARGS, reap_doc},
    {"bench_dispatch", (PyCFunction)(void (*)(void))bench_dispatch,
     METH_FASTCALL, bench_doc},
    {NULL, NULL, 0, NULL},
};

static const struct {
    const char *name;
    unsigned long value;
} constants[] = {
    {"EXIT_NONE", VMM_EXIT_NONE},
    {"EXIT_ACCESS", VMM_EXIT_ACCESS},
    {"EXIT_UNCLAIMED", VMM_EXIT_UNCLAIMED},
    {"EXIT_OWNER", VMM_EXIT_OWNER},
    {"EXIT_STOP", VMM_EXIT_STOP},
    {"EXIT_NATIVE", VMM_EXIT_NATIVE},
    {"EXIT_INTR", VMM_EXIT_INTR},
    {"EXIT_UNTIL", VMM_EXIT_UNTIL},
    {"EXIT_HALT", VMM_EXIT_HALT},
    {"EXIT_SHUTDOWN", VMM_EXIT_SHUTDOWN},
    {"EXIT_FAIL_ENTRY", VMM_EXIT_FAIL_ENTRY},
    {"EXIT_INTERNAL_ERROR", VMM_EXIT_INTERNAL_ERROR},
    {"EXIT_SYSTEM_EVENT", VMM_EXIT_SYSTEM_EVENT},
    {"EXIT_DEBUG", VMM_EXIT_DEBUG},
    {"EXIT_UNKNOWN", VMM_EXIT_UNKNOWN},
    {"EXIT_KICK", EXIT_KICK},
    {"EXIT_TIMEOUT", EXIT_TIMEOUT},
    {"EXIT_IDLE", EXIT_IDLE},
    {"MEM_READONLY", VMM_MEM_READONLY},
    {"MEM_SHARED", VMM_MEM_SHARED},
    {"MEM_HUGE", VMM_MEM_HUGE},
    {"CONSOLE_PORT", VMM_CONSOLE_PORT},
    {"CONSOLE_SIZE", VMM_CONSOLE_SIZE},
    {"EXIT_PORT", VMM_EXIT_PORT},
    {"EXIT_SIZE", VMM_EXIT_SIZE},
    {"IOAPIC_BASE", VMM_IOAPIC_BASE},
    {"TSS_ADDR", VMM_TSS_ADDR},
    {"TSS_ADDR_FIRMWARE", VMM_TSS_ADDR_FIRMWARE},
    {"VIRTIO_MMIO_SIZE", VMM_VIRTIO_MMIO_SIZE},
    {"EVENT_RESET", EVENT_RESET},
    {"EVENT_STATUS", EVENT_STATUS},
    {"EVENT_CONFIG", EVENT_CONFIG},
};

/* Makes a type; it is public when its name does not begin with '_'. */
static PyTypeObject *
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, (PyObject *)base);

    if (type && spec != &view_spec && spec != &loop_spec &&
        PyModule_AddType(module, (PyTypeObject *)type)) {
        Py_DECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type;
}

/* Where the module's state keeps each type; Rng after its base. */
static const struct {
    size_t offset;
    PyType_Spec *spec; /* NULL: not of a specification */
} types[] = {
    {offsetof(struct state, kvm_type), &kvm_spec},
    {offsetof(struct state, memory_type), &memory_spec},
    {offsetof(struct state, snapshot_type), &snapshot_spec},
    {offsetof(struct state, replay_type), &replay_spec},
    {offsetof(struct state, mutator_type), &mutator_spec},
    {offsetof(struct state, view_type), &view_spec},
    {offsetof(struct state, bus_type), &bus_spec},
    {offsetof(struct state, registers_type), &registers_spec},
    {offsetof(struct state, attribute_type), &attribute_spec},
    {offsetof(struct state, vm_type), &vm_spec},
    {offsetof(struct state, vcpu_type), &vcpu_spec},
    {offsetof(struct state, elf_type), &elf_spec},
    {offsetof(struct state, console_type), &console_spec},
    {offsetof(struct state, exit_port_type), &exit_port_spec},
    {offsetof(struct state, virtq_type), &virtq_spec},
    {offsetof(struct state, chain_type), &chain_spec},
    {offsetof(struct state, virtio_type), &virtio_spec},
    {offsetof(struct state, queue_type), &queue_spec},
    {offsetof(struct state, loop_type), &loop_spec},
    {offsetof(struct state, rng_type), &rng_spec},
    {offsetof(struct state, exit_type), NULL},
};

#define TYPES (sizeof types / sizeof *types)

static PyTypeObject **
type_slot(struct state *state, unsigned i)
{
    return (PyTypeObject **)(void *)((char *)state + types[i].offset);
}

static int
add_types(PyObject *module, struct state *state)
{
    for (unsigned i = 0; i < TYPES; i++) {
        PyTypeObject *base = NULL;

        if (!types[i].spec)
            continue;
        if (types[i].spec == &rng_spec)
            base = state->virtio_type;
        *type_slot(state, i) = add_type(module, types[i].spec, base);
        if (!*type_slot(state, i))
            return -1;
    }
    state->exit_type = PyStructSequence_NewType(&exit_desc);
    if (!state->exit_type)
        return -1;
    return PyModule_AddType(module, state->exit_type);
}

/* Exceptions that are the guest's fault; pyvmm.virtio shows them. */
static int
add_errors(PyObject *module, struct state *state)
{
    state->short_error = PyErr_NewExceptionWithDoc(
        "pyvmm.virtio.ShortChain",
        "A request has fewer bytes, or less room, than the device needs.\n\n"
        "The guest's fault: when a loop's body lets it out, the chain is "
        "completed empty and\ncounted in the device's `faults`, and the "
        "handler called again for the others. Raised\nby chains, and by "
        "devices "
        "for requests that are wrong in a like way.",
        PyExc_ValueError, NULL);
    state->stale_error = PyErr_NewExceptionWithDoc(
        "pyvmm.virtio.StaleChain",
        "The driver reset the device while it worked on the chain.\n\n"
        "When a handler lets it out, the loop begins anew with what there is.",
        PyExc_ValueError, NULL);
    if (!state->short_error || !state->stale_error ||
        PyModule_AddObjectRef(module, "ShortChain", state->short_error))
        return -1;
    return PyModule_AddObjectRef(module, "StaleChain", state->stale_error);
}

static int
module_exec(PyObject *module)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    struct state *state = PyModule_GetState(module);

    pthread_once(&once, fork_handler_init);
    state->registers_name = PyUnicode_InternFromString("_registers");
    if (!state->registers_name || add_types(module, state) ||
        add_errors(module, state))
        return -1;
    for (unsigned i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name,
                                    (long)constants[i].value))
            return -1;
    }
    return PyModule_AddIntConstant(module, "KICK_SIGNAL", kick_signal());
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *state = PyModule_GetState(module);

    for (unsigned i = 0; i < TYPES; i++)
        Py_VISIT(*type_slot(state, i));
    Py_VISIT(state->short_error);
    Py_VISIT(state->stale_error);
    return 0;
}

static int
module_clear(PyObject *module)
{
    struct state *state = PyModule_GetState(module);

    for (unsigned i = 0; i < TYPES; i++)
        Py_CLEAR(*type_slot(state, i));
    Py_CLEAR(state->short_error);
    Py_CLEAR(state->stale_error);
    Py_CLEAR(state->registers_name);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

PyDoc_STRVAR(
    module_doc,
    "The core of pyvmm as Python types: KVM, Memory, VM, VCPU and devices.\n\n"
    "pyvmm.Machine is made of these; so can be a machine of your own. "
    "Arguments "
    "that\nmake no sense raise ValueError or TypeError, refusals of the host "
    "OSError with\nthe call's name.");

struct PyModuleDef vmm_module = {
    PyModuleDef_HEAD_INIT,         .m_name = "pyvmm._vmm",
    .m_doc = module_doc,           .m_size = sizeof(struct state),
    .m_methods = functions,        .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__vmm(void);

PyMODINIT_FUNC
PyInit__vmm(void)
{
    return PyModuleDef_Init(&vmm_module);
}

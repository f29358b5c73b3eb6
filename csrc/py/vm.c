/* SPDX-License-Identifier: Apache-2.0 */
/* vm.c - VM: a virtual machine, its buses, interrupts and eventfds */
#include "py.h"

struct vm *
vm_check(struct state *state, PyObject *arg)
{
    struct vm *vm = (struct vm *)arg;

    if (!Py_IS_TYPE(arg, state->vm_type))
        PyErr_Format(PyExc_TypeError, "expected a VM, not %.80s",
                     Py_TYPE(arg)->tp_name);
    else if (vm->closed)
        raise_closed(arg);
    else if (vm->generation != fork_generation)
        raise_forked();
    else
        return vm;
    return NULL;
}

static struct vm *
open_vm(PyObject *op)
{
    return vm_check(state_of(Py_TYPE(op)), op);
}

static PyObject *
vm_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"kvm", "memory", "tss_addr", NULL};
    struct state *state = state_of(type);
    PyObject *kvm_arg, *memory_arg, *tss_arg = NULL;
    uint64_t tss_addr = VMM_TSS_ADDR;
    struct memory *memory;
    struct kvm *kvm;
    struct vm *self;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O:VM", KEYWORDS(names),
                                     &kvm_arg, &memory_arg, &tss_arg))
        return NULL;
    kvm = kvm_check(state, kvm_arg);
    memory = kvm ? memory_check(state, memory_arg) : NULL;
    if (!memory ||
        (tss_arg && as_uint(tss_arg, "tss_addr", UINT32_MAX, &tss_addr)))
        return NULL;
    self = (struct vm *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->generation = fork_generation;
    self->strict = true;
    self->closed = true;
    err = vmm_vm_init(&self->vm, &kvm->kvm, &memory->mem, tss_addr);
    if (err) {
        raise_host(self->vm.call, -err);
        Py_DECREF(self);
        return NULL;
    }
    self->closed = false;
    self->kvm = (struct kvm *)Py_NewRef(kvm);
    memory_hold(memory);
    self->memory = memory;
    self->pio.bus = &self->vm.pio;
    self->mmio.bus = &self->vm.mmio;
    return (PyObject *)self;
}

/* All vCPUs have gone: the devices, the fd and the RAM go too. */
static void
vm_finish(struct vm *self)
{
    struct memory *memory = self->memory;

    if (self->pio.bus)
        ports_clear(&self->pio);
    if (self->mmio.bus)
        ports_clear(&self->mmio);
    if (self->kvm && self->vm.fd >= 0)
        reap_vm(vmm_vm_detach(&self->vm));
    self->memory = NULL;
    if (memory)
        memory_release(memory);
}

static void
vm_do_close(struct vm *self)
{
    self->closed = true;
    /* A vCPU that runs closes itself when it has left the guest. */
    for (struct vcpu *cpu = self->vcpus, *next; cpu; cpu = next) {
        next = cpu->next;
        vcpu_close(cpu);
    }
    if (!self->vcpus)
        vm_finish(self);
}

void
vm_forget(struct vm *vm, struct vcpu *vcpu)
{
    struct vcpu **at = &vm->vcpus;

    while (*at && *at != vcpu)
        at = &(*at)->next;
    if (*at)
        *at = vcpu->next;
    if (vm->closed && !vm->vcpus)
        vm_finish(vm);
}

int
vm_collect(struct vm *vm)
{
    struct vmm_exit exit = {0};
    uint64_t ignored;
    int err = 0;

    /* A guest that goes on writing is not waited for. */
    for (unsigned i = 0; !err && i < VMM_RING_ENTRIES; i++) {
        const struct ports *ports;

        if (!vmm_vcpu_coalesced(&vm->vm, &exit))
            break;
        ports = exit.pio ? &vm->pio : &vm->mmio;
        if (exit.reason == VMM_EXIT_ACCESS || exit.reason == VMM_EXIT_OWNER)
            err = ports_dispatch(ports, &exit, &ignored);
        if (exit.reason == VMM_EXIT_UNCLAIMED || err == -ENOENT) {
            vm->unclaimed++; /* its device has gone */
            err = 0;
        }
    }
    return err;
}

static int
vm_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct vm *self = (struct vm *)op;
    int ret;

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->kvm);
    ret = ports_traverse(&self->pio, visit, arg);
    return ret ? ret : ports_traverse(&self->mmio, visit, arg);
}

static int
vm_clear(PyObject *op)
{
    struct vm *self = (struct vm *)op;

    if (!self->vcpus)
        vm_do_close(self);
    return 0;
}

static void
vm_dealloc(PyObject *op)
{
    struct vm *self = (struct vm *)op;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    vm_do_close(self);
    vmm_vm_fini(&self->vm);
    Py_XDECREF(self->kvm);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
vm_repr(PyObject *op)
{
    struct vm *self = (struct vm *)op;
    unsigned count = 0;

    if (self->closed)
        return PyUnicode_FromString("<VM closed>");
    for (const struct vcpu *cpu = self->vcpus; cpu; cpu = cpu->next)
        count++;
    return PyUnicode_FromFormat("<VM fd %d, %u vCPUs%s%s>", self->vm.fd, count,
                                self->vm.irqchip ? ", irqchip" : "",
                                self->vm.pit ? ", PIT" : "");
}

/* What a core function answered: None, or OSError. */
static PyObject *
none_or_raise(struct vm *self, int err)
{
    if (err < 0)
        return raise_host(self->vm.call, -err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(irqchip_doc,
             "create_irqchip($self, /)\n--\n\n"
             "Make the PICs (fully masked), the IOAPIC (24 pins) and LAPICs.\n"
             "\nBefore the first vCPU. Raises OSError.");

static PyObject *
vm_create_irqchip(PyObject *op, PyObject *ignored)
{
    struct vm *self = open_vm(op);

    (void)ignored;
    return self ? none_or_raise(self, vmm_vm_irqchip(&self->vm)) : NULL;
}

PyDoc_STRVAR(pit_doc,
             "create_pit($self, /)\n--\n\n"
             "Make an i8254 timer on GSI 0, ports 0x40 to 0x43 and 0x61.\n\n"
             "After create_irqchip(). It makes close() slow. Raises OSError.");

static PyObject *
vm_create_pit(PyObject *op, PyObject *ignored)
{
    struct vm *self = open_vm(op);

    (void)ignored;
    return self ? none_or_raise(self, vmm_vm_pit(&self->vm)) : NULL;
}

PyDoc_STRVAR(irq_line_doc,
             "irq_line($self, gsi, level, /)\n--\n\n"
             "Set the line of a GSI (0 to 23) high or low.\n\n"
             "The IOAPIC's entry decides whether its edge or its level counts. "
             "Raises OSError\nwithout an irqchip.");

static PyObject *
vm_irq_line(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vm *self = open_vm(op);
    uint64_t gsi;
    int level;

    if (!self || arguments("irq_line", nargs, 2) ||
        as_uint(args[0], "gsi", VMM_MAX_GSI - 1, &gsi))
        return NULL;
    level = PyObject_IsTrue(args[1]);
    if (level < 0)
        return NULL;
    return none_or_raise(self,
                         vmm_vm_irq_line(&self->vm, (unsigned)gsi, level));
}

PyDoc_STRVAR(msi_doc,
             "msi($self, addr, data, /)\n--\n\n"
             "Send a message-signalled interrupt; whether a vCPU took it.\n\n"
             "Source: Intel SDM volume 3, 11.11. Raises OSError.");

static PyObject *
vm_msi(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vm *self = open_vm(op);
    uint64_t addr, data;
    int ret;

    if (!self || arguments("msi", nargs, 2) ||
        as_uint(args[0], "addr", UINT64_MAX, &addr) ||
        as_uint(args[1], "data", UINT32_MAX, &data))
        return NULL;
    ret = vmm_vm_msi(&self->vm, addr, (uint32_t)data);
    if (ret < 0)
        return raise_host(self->vm.call, -ret);
    return PyBool_FromLong(ret);
}

PyDoc_STRVAR(route_pin_doc,
             "route_pin($self, gsi, pin, /)\n--\n\n"
             "Route a GSI (0 to 1023) to an IOAPIC pin (0 to 23).\n\n"
             "The routes of other GSIs stay. Raises OSError.");

static PyObject *
vm_route_pin(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vm *self = open_vm(op);
    uint64_t gsi, pin;

    if (!self || arguments("route_pin", nargs, 2) ||
        as_uint(args[0], "gsi", VMM_MAX_GSI - 1, &gsi) ||
        as_uint(args[1], "pin", VMM_IOAPIC_PINS - 1, &pin))
        return NULL;
    return none_or_raise(
        self, vmm_vm_route_pin(&self->vm, (unsigned)gsi, (unsigned)pin));
}

PyDoc_STRVAR(route_msi_doc,
             "route_msi($self, gsi, addr, data, /)\n--\n\n"
             "Route a GSI (0 to 1023) to a message-signalled interrupt.\n\n"
             "Raises OSError.");

static PyObject *
vm_route_msi(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    struct vm *self = open_vm(op);
    uint64_t gsi, addr, data;

    if (!self || arguments("route_msi", nargs, 3) ||
        as_uint(args[0], "gsi", VMM_MAX_GSI - 1, &gsi) ||
        as_uint(args[1], "addr", UINT64_MAX, &addr) ||
        as_uint(args[2], "data", UINT32_MAX, &data))
        return NULL;
    return none_or_raise(
        self, vmm_vm_route_msi(&self->vm, (unsigned)gsi, addr, (uint32_t)data));
}

PyDoc_STRVAR(
    irqfd_doc,
    "irqfd($self, /, fd, gsi, resample_fd=-1)\n--\n\n"
    "Raise a GSI whenever the eventfd `fd` is written.\n\n"
    "With `resample_fd` the line stays high until the guest's EOI, which "
    "signals that\neventfd. The fds stay yours. Counts as a waker. Raises "
    "OSError.");

static PyObject *
vm_irqfd(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"fd", "gsi", "resample_fd", NULL};
    struct vm *self = open_vm(op);
    int fd, resample_fd = -1;
    unsigned gsi;

    if (!self ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "iI|i:irqfd",
                                     KEYWORDS(names), &fd, &gsi, &resample_fd))
        return NULL;
    return none_or_raise(self, vmm_vm_irqfd(&self->vm, fd, gsi, resample_fd));
}

PyDoc_STRVAR(remove_irqfd_doc, "remove_irqfd($self, /, fd, gsi)\n--\n\n"
                               "Undo irqfd(). Raises OSError.");

static PyObject *
vm_remove_irqfd(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"fd", "gsi", NULL};
    struct vm *self = open_vm(op);
    unsigned gsi;
    int fd;

    if (!self || !PyArg_ParseTupleAndKeywords(args, kwargs, "iI:remove_irqfd",
                                              KEYWORDS(names), &fd, &gsi))
        return NULL;
    return none_or_raise(self, vmm_vm_irqfd_remove(&self->vm, fd, gsi));
}

static int
as_doorbell(PyObject *args, PyObject *kwargs, struct vmm_doorbell *bell)
{
    static const char *const names[] = {"fd",  "addr",  "size",
                                        "pio", "match", NULL};
    PyObject *addr, *match = Py_None;
    unsigned size = 0;
    int pio = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|I$pO:ioeventfd",
                                     KEYWORDS(names), &bell->fd, &addr, &size,
                                     &pio, &match) ||
        as_uint(addr, "addr", UINT64_MAX, &bell->addr))
        return -1;
    if (size != 0 && size != 1 && size != 2 && size != 4 && size != 8) {
        PyErr_Format(PyExc_ValueError, "size %u is not 0, 1, 2, 4 or 8", size);
        return -1;
    }
    bell->len = size;
    bell->pio = pio;
    bell->match = match != Py_None;
    if (bell->match)
        return as_uint(match, "match", size ? vmm_ones(size) : UINT64_MAX,
                       &bell->data);
    return 0;
}

PyDoc_STRVAR(
    ioeventfd_doc,
    "ioeventfd($self, /, fd, addr, size=0, *, pio=False, match=None)\n--\n\n"
    "Signal the eventfd `fd` when the guest writes to an address or port.\n\n"
    "Such a write does not exit. `size` is 1, 2, 4, 8 bytes, or 0 for any; "
    "with\n`match` only that value counts. The fd stays yours. Raises "
    "OSError.");

static PyObject *
vm_ioeventfd(PyObject *op, PyObject *args, PyObject *kwargs)
{
    struct vm *self = open_vm(op);
    struct vmm_doorbell bell = {0};

    if (!self || as_doorbell(args, kwargs, &bell))
        return NULL;
    return none_or_raise(self, vmm_vm_ioeventfd(&self->vm, &bell));
}

PyDoc_STRVAR(remove_ioeventfd_doc,
             "remove_ioeventfd($self, /, fd, addr, size=0, *, pio=False, "
             "match=None)\n--\n\n"
             "Undo ioeventfd() with the same arguments. Raises OSError.");

static PyObject *
vm_remove_ioeventfd(PyObject *op, PyObject *args, PyObject *kwargs)
{
    struct vm *self = open_vm(op);
    struct vmm_doorbell bell = {0};

    if (!self || as_doorbell(args, kwargs, &bell))
        return NULL;
    return none_or_raise(self, vmm_vm_ioeventfd_remove(&self->vm, &bell));
}

static int
as_zone(PyObject *args, PyObject *kwargs, struct vmm_zone *zone)
{
    static const char *const names[] = {"addr", "size", "pio", NULL};
    PyObject *addr, *size;
    uint64_t len;
    int pio = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$p:coalesce",
                                     KEYWORDS(names), &addr, &size, &pio) ||
        as_uint(addr, "addr", UINT64_MAX, &zone->addr) ||
        as_uint(size, "size", UINT32_MAX, &len))
        return -1;
    zone->len = (unsigned)len;
    zone->pio = pio;
    return 0;
}

PyDoc_STRVAR(
    coalesce_doc,
    "coalesce($self, /, addr, size, *, pio=False)\n--\n\n"
    "Let writes to these addresses, or ports, wait in KVM's ring.\n\n"
    "They do not exit; they are done before the next exit is handled, by "
    "collect(), or\nwhen there are 169. Only for declared registers. False: "
    "the host cannot, has no\nroom, or there is no vCPU yet. Raises OSError. "
    "Source: KVM_REGISTER_COALESCED_MMIO.");

static PyObject *
vm_coalesce(PyObject *op, PyObject *args, PyObject *kwargs)
{
    struct vm *self = open_vm(op);
    struct vmm_zone zone;
    int err;

    if (!self || as_zone(args, kwargs, &zone))
        return NULL;
    err = vmm_vm_coalesce(&self->vm, &zone);
    if (err == -ENXIO || err == -ENOSPC)
        Py_RETURN_FALSE;
    if (err)
        return raise_host(self->vm.call, -err);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(remove_coalesce_doc,
             "remove_coalesce($self, /, addr, size, *, pio=False)\n--\n\n"
             "Undo coalesce() with the same arguments. What is in the ring "
             "stays there for\ncollect(). Raises OSError.");

static PyObject *
vm_remove_coalesce(PyObject *op, PyObject *args, PyObject *kwargs)
{
    struct vm *self = open_vm(op);
    struct vmm_zone zone;

    if (!self || as_zone(args, kwargs, &zone))
        return NULL;
    return none_or_raise(self, vmm_vm_coalesce_remove(&self->vm, &zone));
}

PyDoc_STRVAR(collect_doc,
             "collect($self, /)\n--\n\n"
             "Do the writes that wait in KVM's ring: see coalesce().\n\n"
             "Nothing when the VM is closed, or in a forked child. Raises what "
             "devices raise\nthat are called for it.");

static PyObject *
vm_collect_method(PyObject *op, PyObject *ignored)
{
    struct vm *self = (struct vm *)op;

    (void)ignored;
    if (!self->closed && self->generation == fork_generation &&
        vm_collect(self))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fileno_doc, "fileno($self, /)\n--\n\nThe VM's file descriptor.");

static PyObject *
vm_fileno(PyObject *op, PyObject *ignored)
{
    struct vm *self = open_vm(op);

    (void)ignored;
    return self ? PyLong_FromLong(self->vm.fd) : NULL;
}

PyDoc_STRVAR(
    close_doc,
    "close($self, /)\n--\n\n"
    "End the VM: its vCPUs are kicked out of the guest, its fds closed.\n\n"
    "Returns at once; a run() on another thread returns EXIT_KICK, after which "
    "the\ndevices and the memory are let go. May be called twice.");

static PyObject *
vm_close(PyObject *op, PyObject *ignored)
{
    struct vm *self = (struct vm *)op;

    (void)ignored;
    if (!self->closed)
        vm_do_close(self);
    Py_RETURN_NONE;
}

static PyMethodDef vm_methods[] = {
    {"create_irqchip", vm_create_irqchip, METH_NOARGS, irqchip_doc},
    {"create_pit", vm_create_pit, METH_NOARGS, pit_doc},
    {"irq_line", (PyCFunction)(void (*)(void))vm_irq_line, METH_FASTCALL,
     irq_line_doc},
    {"msi", (PyCFunction)(void (*)(void))vm_msi, METH_FASTCALL, msi_doc},
    {"route_pin", (PyCFunction)(void (*)(void))vm_route_pin, METH_FASTCALL,
     route_pin_doc},
    {"route_msi", (PyCFunction)(void (*)(void))vm_route_msi, METH_FASTCALL,
     route_msi_doc},
    {"irqfd", (PyCFunction)(void (*)(void))vm_irqfd,
     METH_VARARGS | METH_KEYWORDS, irqfd_doc},
    {"remove_irqfd", (PyCFunction)(void (*)(void))vm_remove_irqfd,
     METH_VARARGS | METH_KEYWORDS, remove_irqfd_doc},
    {"ioeventfd", (PyCFunction)(void (*)(void))vm_ioeventfd,
     METH_VARARGS | METH_KEYWORDS, ioeventfd_doc},
    {"remove_ioeventfd", (PyCFunction)(void (*)(void))vm_remove_ioeventfd,
     METH_VARARGS | METH_KEYWORDS, remove_ioeventfd_doc},
    {"coalesce", (PyCFunction)(void (*)(void))vm_coalesce,
     METH_VARARGS | METH_KEYWORDS, coalesce_doc},
    {"remove_coalesce", (PyCFunction)(void (*)(void))vm_remove_coalesce,
     METH_VARARGS | METH_KEYWORDS, remove_coalesce_doc},
    {"collect", vm_collect_method, METH_NOARGS, collect_doc},
    {"fileno", vm_fileno, METH_NOARGS, fileno_doc},
    {"close", vm_close, METH_NOARGS, close_doc},
    {"snapshot", vm_snapshot, METH_NOARGS, vm_snapshot_doc},
    {"restore", vm_restore, METH_O, vm_restore_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *
vm_pio(PyObject *op, void *closure)
{
    struct vm *self = open_vm(op);

    (void)closure;
    return self ? bus_new(state_of(Py_TYPE(op)), self, &self->pio) : NULL;
}

static PyObject *
vm_mmio(PyObject *op, void *closure)
{
    struct vm *self = open_vm(op);

    (void)closure;
    return self ? bus_new(state_of(Py_TYPE(op)), self, &self->mmio) : NULL;
}

static PyObject *
vm_get_strict(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct vm *)op)->strict);
}

static int
vm_set_strict(PyObject *op, PyObject *value, void *closure)
{
    int strict = value ? PyObject_IsTrue(value) : -1;

    (void)closure;
    if (!value)
        PyErr_SetString(PyExc_TypeError, "strict cannot be deleted");
    if (strict < 0)
        return -1;
    ((struct vm *)op)->strict = strict;
    return 0;
}

static PyObject *
vm_get_wakers(PyObject *op, void *closure)
{
    struct vm *self = (struct vm *)op;

    (void)closure;
    return PyLong_FromUnsignedLong(
        __atomic_load_n(&self->vm.wakers, __ATOMIC_RELAXED));
}

static int
vm_set_wakers(PyObject *op, PyObject *value, void *closure)
{
    uint64_t wakers;

    (void)closure;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "wakers cannot be deleted");
        return -1;
    }
    if (as_uint(value, "wakers", UINT32_MAX, &wakers))
        return -1;
    __atomic_store_n(&((struct vm *)op)->vm.wakers, (unsigned)wakers,
                     __ATOMIC_RELAXED);
    return 0;
}

static PyObject *
vm_unclaimed(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct vm *)op)->unclaimed);
}

static PyObject *
vm_closed(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct vm *)op)->closed);
}

static PyGetSetDef vm_getset[] = {
    {"pio", vm_pio, NULL, "The Bus of ports.", NULL},
    {"mmio", vm_mmio, NULL, "The Bus of addresses.", NULL},
    {"strict", vm_get_strict, vm_set_strict,
     "Whether an access that nobody claims ends the run (else all ones).",
     NULL},
    {"wakers", vm_get_wakers, vm_set_wakers,
     "How many things may raise an interrupt at any time, irqfds included.",
     NULL},
    {"unclaimed", vm_unclaimed, NULL,
     "Accesses that nobody claimed and that were answered with all ones.",
     NULL},
    {"closed", vm_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    vm_doc,
    "VM(kvm, memory, *, tss_addr=0xffffd000)\n--\n\n"
    "A virtual machine of the given memory, whose regions it freezes.\n\n"
    "`tss_addr`: three pages below 4 GiB that KVM may use on Intel hosts; "
    "0xfffbd000\nwhen firmware is mapped at the top. Raises OSError when the "
    "host refuses.\n\n"
    "Threads: any. Does not survive fork().");

static PyType_Slot vm_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)vm_doc},
    {Py_tp_new, vm_new},
    {Py_tp_dealloc, vm_dealloc},
    {Py_tp_traverse, vm_traverse},
    {Py_tp_clear, vm_clear},
    {Py_tp_repr, vm_repr},
    {Py_tp_methods, vm_methods},
    {Py_tp_getset, vm_getset},
    {0, NULL},
};

PyType_Spec vm_spec = {
    .name = "pyvmm._vmm.VM",
    .basicsize = sizeof(struct vm),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = vm_slots,
};

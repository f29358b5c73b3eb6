/* SPDX-License-Identifier: Apache-2.0 */
/* elf.c - ELF: an executable, what it loads and what its addresses are called
 */
#include <string.h>

#include "../vmm/elf.h"
#include "py.h"

struct elf {
    PyObject_HEAD
    struct vmm_elf elf;
    PyObject *data;  /* bytes, which the names of symbols point into */
    PyObject *names; /* the dict behind `symbols`, made on first use */
};

static PyObject *
raise_elf(const struct vmm_elf *elf, int err)
{
    if (err == -ENOMEM)
        return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, elf->error);
    return NULL;
}

/* The caller's own object when nobody can change it, else a copy. */
static PyObject *
as_bytes(PyObject *data)
{
    if (PyObject_CheckBuffer(data))
        return PyBytes_FromObject(data);
    PyErr_Format(PyExc_TypeError, "expected the bytes of a file, not %.80s",
                 Py_TYPE(data)->tp_name);
    return NULL;
}

static PyObject *
elf_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char *const names[] = {"data", NULL};
    PyObject *data;
    struct elf *self;
    int err;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:ELF", KEYWORDS(names),
                                     &data))
        return NULL;
    self = (struct elf *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->data = as_bytes(data);
    if (!self->data) {
        Py_DECREF(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    err = vmm_elf_open(&self->elf, PyBytes_AS_STRING(self->data),
                       (uint64_t)PyBytes_GET_SIZE(self->data));
    Py_END_ALLOW_THREADS
    if (err) {
        raise_elf(&self->elf, err);
        memset(&self->elf, 0, sizeof self->elf);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
elf_dealloc(PyObject *op)
{
    struct elf *self = (struct elf *)op;
    PyTypeObject *type = Py_TYPE(op);

    vmm_elf_fini(&self->elf);
    Py_XDECREF(self->data);
    Py_XDECREF(self->names);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
elf_repr(PyObject *op)
{
    struct elf *self = (struct elf *)op;
    char text[120];

    snprintf(text, sizeof text,
             "<ELF %u-bit, entry %#llx, %u segments, %u symbols>",
             self->elf.is_64 ? 64 : 32, (unsigned long long)self->elf.entry,
             self->elf.segments, self->elf.symbols);
    return PyUnicode_FromString(text);
}

static PyObject *
elf_get_entry(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct elf *)op)->elf.entry);
}

static PyObject *
elf_get_entry_gpa(PyObject *op, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct elf *)op)->elf.entry_gpa);
}

static PyObject *
elf_get_is_64(PyObject *op, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct elf *)op)->elf.is_64);
}

static PyObject *
elf_get_segments(PyObject *op, void *closure)
{
    struct elf *self = (struct elf *)op;
    PyObject *list = PyList_New(self->elf.segments);

    (void)closure;
    for (unsigned i = 0; list && i < self->elf.segments; i++) {
        const struct vmm_elf_segment *seg = &self->elf.segment[i];
        PyObject *item = Py_BuildValue(
            "(KKKKI)", (unsigned long long)seg->paddr,
            (unsigned long long)seg->vaddr, (unsigned long long)seg->filesz,
            (unsigned long long)seg->memsz, (unsigned)seg->flags);

        if (!item) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

/* Names are bytes: those that are no UTF-8 go through as surrogates. */
static PyObject *
symbol_name(const struct vmm_elf_symbol *symbol)
{
    return PyUnicode_DecodeUTF8(symbol->name, (Py_ssize_t)strlen(symbol->name),
                                "surrogateescape");
}

static PyObject *
symbol_place(const struct vmm_elf_symbol *symbol)
{
    return Py_BuildValue("(KK)", (unsigned long long)symbol->addr,
                         (unsigned long long)symbol->size);
}

/* by_name has the preferred one of each name first; the others change nothing.
 */
static int
add_symbol(PyObject *names, const struct vmm_elf_symbol *symbol)
{
    PyObject *name = symbol_name(symbol);
    PyObject *place = name ? symbol_place(symbol) : NULL;
    int err = -1;

    if (place && PyDict_SetDefault(names, name, place))
        err = 0;
    Py_XDECREF(name);
    Py_XDECREF(place);
    return err;
}

static PyObject *
elf_get_symbols(PyObject *op, void *closure)
{
    struct elf *self = (struct elf *)op;
    const struct vmm_elf *elf = &self->elf;
    PyObject *names;

    (void)closure;
    if (!self->names) {
        names = PyDict_New();
        for (uint32_t i = 0; names && i < elf->symbols; i++) {
            if (add_symbol(names, &elf->symbol[elf->by_name[i]])) {
                Py_DECREF(names);
                return NULL;
            }
        }
        Py_XSETREF(self->names, names);
    }
    return self->names ? PyDictProxy_New(self->names) : NULL;
}

PyDoc_STRVAR(
    find_doc,
    "find($self, name, /)\n--\n\n"
    "The (address, size) of the symbol `name`, or None.\n\n"
    "The size is in bytes, 0 when the file does not say. Of several "
    "symbols of that\nname: global before weak before local, functions "
    "before the rest, then the\nlowest address.");

static PyObject *
elf_find(PyObject *op, PyObject *arg)
{
    const struct vmm_elf_symbol *symbol = NULL;
    PyObject *name;
    char *text;

    if (!PyUnicode_Check(arg))
        return PyErr_Format(PyExc_TypeError, "name must be str, not %.80s",
                            Py_TYPE(arg)->tp_name);
    name = PyUnicode_AsEncodedString(arg, "utf-8", "surrogateescape");
    if (!name)
        return NULL;
    text = PyBytes_AS_STRING(name);
    if (strlen(text) == (size_t)PyBytes_GET_SIZE(name))
        vmm_elf_find(&((struct elf *)op)->elf, text, &symbol);
    Py_DECREF(name);
    if (!symbol)
        Py_RETURN_NONE;
    return symbol_place(symbol);
}

PyDoc_STRVAR(where_doc,
             "where($self, addr, /)\n--\n\n"
             "The (name, offset) of the symbol that `addr` belongs to, or "
             "None.\n\n"
             "`addr` is a virtual address, 0 to 2^64 - 1, like a program "
             "counter. A symbol\nwithout a size reaches up to the next one or "
             "the end of its segment. Raises\nValueError outside the range.");

static PyObject *
elf_where(PyObject *op, PyObject *arg)
{
    const struct vmm_elf_symbol *symbol;
    uint64_t addr;

    if (as_uint(arg, "addr", UINT64_MAX, &addr))
        return NULL;
    if (vmm_elf_where(&((struct elf *)op)->elf, addr, &symbol))
        Py_RETURN_NONE;
    return Py_BuildValue("(NK)", symbol_name(symbol),
                         (unsigned long long)(addr - symbol->addr));
}

PyDoc_STRVAR(check_doc,
             "check($self, memory, /)\n--\n\n"
             "Raise ValueError when a segment is not wholly in the RAM of "
             "`memory`.\n\n"
             "The message names the segment, its address and the limit.");

static PyObject *
elf_check(PyObject *op, PyObject *arg)
{
    struct elf *self = (struct elf *)op;
    struct memory *memory = memory_check(state_of(Py_TYPE(op)), arg);
    int err;

    if (!memory)
        return NULL;
    err = vmm_elf_check(&self->elf, &memory->mem);
    if (err)
        return raise_elf(&self->elf, err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(load_doc,
             "load($self, memory, /)\n--\n\n"
             "Copy every segment to its physical address and zero the rest of "
             "it.\n\n"
             "Regions that are read-only to the guest are written all the "
             "same. Raises\nValueError as check() does, before anything is "
             "written.");

static PyObject *
elf_load(PyObject *op, PyObject *arg)
{
    struct elf *self = (struct elf *)op;
    struct memory *memory = memory_check(state_of(Py_TYPE(op)), arg);
    int err;

    if (!memory)
        return NULL;
    /* With the GIL: regions may still be added, and `error` is shared. */
    err = vmm_elf_load(&self->elf, &memory->mem);
    if (err)
        return raise_elf(&self->elf, err);
    Py_RETURN_NONE;
}

static PyMethodDef elf_methods[] = {
    {"find", elf_find, METH_O, find_doc},
    {"where", elf_where, METH_O, where_doc},
    {"check", elf_check, METH_O, check_doc},
    {"load", elf_load, METH_O, load_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef elf_getset[] = {
    {"entry", elf_get_entry, NULL, "The entry point as the file gives it.",
     NULL},
    {"entry_gpa", elf_get_entry_gpa, NULL,
     "The guest-physical address where the entry point is loaded.", NULL},
    {"is_64", elf_get_is_64, NULL,
     "Whether it is an ELF64 of EM_X86_64, else an ELF32 of EM_386.", NULL},
    {"segments", elf_get_segments, NULL,
     "A list of (paddr, vaddr, filesz, memsz, flags) in the file's order.\n\n"
     "What PT_LOAD says: addresses and sizes in bytes, flags 1 = execute, 2 = "
     "write,\n4 = read. Empty segments are left out.",
     NULL},
    {"symbols", elf_get_symbols, NULL,
     "A read-only mapping of names to (address, size), virtual and in bytes.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    elf_doc,
    "ELF(data)\n--\n\n"
    "An executable: what goes where, the entry point, symbols.\n\n"
    "`data` is the whole file, ELF32 of EM_386 or ELF64 of EM_X86_64, "
    "little-endian,\nof type ET_EXEC; bytes are used as they are, anything "
    "else is copied. Raises\nValueError when it is something else or damaged, "
    "naming the segment, its address\nand the limit that it broke; MemoryError."
    "\n\nThreads: any.");

static PyType_Slot elf_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)elf_doc},
    {Py_tp_new, elf_new},
    {Py_tp_dealloc, elf_dealloc},
    {Py_tp_repr, elf_repr},
    {Py_tp_methods, elf_methods},
    {Py_tp_getset, elf_getset},
    {0, NULL},
};

PyType_Spec elf_spec = {
    .name = "pyvmm._vmm.ELF",
    .basicsize = sizeof(struct elf),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = elf_slots,
};

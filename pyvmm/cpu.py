# SPDX-License-Identifier: Apache-2.0
"""One vCPU to look at and to change: registers, page tables, its memory."""

from __future__ import annotations

from . import x86
from .memory import VirtualMemory
from .stop import Registers, register_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from . import _vmm
    from .machine import Machine
    from .symbols import Address


class _Register:
    """A register of kvm_regs, or a part of one, as an attribute of Cpu.

    Writing 32 bits clears the upper half, as the processor does; writing 8 or
    16 keeps the rest.
    """

    def __init__(self, whole: str, shift: int = 0, bits: int = 64) -> None:
        self.index = x86.REGS.index(whole)
        self.shift = shift
        self.bits = bits
        self.__doc__ = f"{bits} bits of {whole}, read and write."

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, cpu: Cpu | None, owner: type | None = None) -> int:
        if cpu is None:
            return self  # type: ignore[return-value]
        value = cpu._get_regs()[self.index]
        return value >> self.shift & ((1 << self.bits) - 1)

    def __set__(self, cpu: Cpu, value: int) -> None:
        value = as_bits(self.name, value, self.bits)
        if self.bits < 32:
            mask = ((1 << self.bits) - 1) << self.shift
            old = cpu._get_regs()[self.index]
            value = old & ~mask | value << self.shift
        cpu._set_reg(self.index, value)


class _System:
    """A control register of kvm_sregs as an attribute of Cpu."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = f"The register {name}, read and write."

    def __get__(self, cpu: Cpu | None, owner: type | None = None) -> int:
        if cpu is None:
            return self  # type: ignore[return-value]
        return cpu._get_sreg(self.name)[0]

    def __set__(self, cpu: Cpu, value: int) -> None:
        cpu._set_sreg(self.name, (as_bits(self.name, value, 64),))


class Segment:
    """A segment register, or gdt or idt: fields as attributes.

    Assigning to a field sets it in the vCPU: `cpu.cs.base = 0xf0000`. The
    fields are those of struct kvm_segment and struct kvm_dtable.
    """

    __slots__ = ("_cpu", "_name")

    _cpu: Cpu
    _name: str

    def __init__(self, cpu: Cpu, name: str) -> None:
        object.__setattr__(self, "_cpu", cpu)
        object.__setattr__(self, "_name", name)

    def _fields(self) -> tuple[str, ...]:
        name: str = object.__getattribute__(self, "_name")
        return x86.SEGMENT if name in x86.SEGMENTS else x86.DTABLE

    def __getattr__(self, field: str) -> int:
        fields = self._fields()
        if field not in fields:
            raise AttributeError(f"no field {field!r}: {', '.join(fields)}")
        values: tuple[int, ...] = self._cpu._get_sreg(self._name)
        return values[fields.index(field)]

    def __setattr__(self, field: str, value: int) -> None:
        self.update({field: value})

    def update(self, values: Mapping[str, int]) -> None:
        """Set several fields at once."""
        fields = self._fields()
        now = dict(zip(fields, self._cpu._get_sreg(self._name), strict=True))
        for field, value in values.items():
            if field not in now:
                raise AttributeError(f"no field {field!r}: {', '.join(fields)}")
            now[field] = as_bits(field, value, FIELD_BITS.get(field, 8))
        self._cpu._set_sreg(self._name, tuple(now.values()))

    def __int__(self) -> int:
        return self.selector

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.selector == other
        if isinstance(other, Segment):
            return bool(
                self._cpu._get_sreg(self._name)
                == other._cpu._get_sreg(other._name)
            )
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __dir__(self) -> list[str]:
        return [*self._fields(), "update"]

    def __repr__(self) -> str:
        values = self._cpu._get_sreg(self._name)
        parts = [
            f"{field}={value:#x}"
            for field, value in zip(self._fields(), values, strict=True)
        ]
        return f"<{self._name} {' '.join(parts)}>"


FIELD_BITS = {"base": 64, "limit": 32, "selector": 16}


class _Segment:
    """A segment register as an attribute of Cpu."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = f"The segment or table register {name}."

    def __get__(self, cpu: Cpu | None, owner: type | None = None) -> Segment:
        if cpu is None:
            return self  # type: ignore[return-value]
        return Segment(cpu, self.name)

    def __set__(self, cpu: Cpu, value: Mapping[str, int] | Segment) -> None:
        if isinstance(value, Segment):
            value = {name: getattr(value, name) for name in value._fields()}
        Segment(cpu, self.name).update(value)


def as_bits(name: str, value: int, bits: int) -> int:
    """`value` if it fits, negative ones as two's complement."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    value = value.__index__()
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ValueError(f"{name} has {bits} bits: {value:#x} does not fit")
    return value & ((1 << bits) - 1)


class Cpu:
    """A vCPU of a machine: `m.cpu`, or `m.cpus[i]`.

    Registers are attributes, to read and to assign: rax to r15, rip, rflags
    and their 32, 16 and 8-bit parts; cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    the segments cs to ldt, gdt and idt with their fields. `mem` is memory as
    this vCPU sees it, `walk()` shows the page tables. Its repr marks what
    changed since the last look.

    Raises RuntimeError while the machine runs, ValueError once it is closed.

    Threads: any, when the machine is not running.
    """

    rax, rbx = _Register("rax"), _Register("rbx")
    rcx, rdx = _Register("rcx"), _Register("rdx")
    rsi, rdi = _Register("rsi"), _Register("rdi")
    rsp, rbp = _Register("rsp"), _Register("rbp")
    r8, r9 = _Register("r8"), _Register("r9")
    r10, r11 = _Register("r10"), _Register("r11")
    r12, r13 = _Register("r12"), _Register("r13")
    r14, r15 = _Register("r14"), _Register("r15")
    rip, rflags = _Register("rip"), _Register("rflags")
    eax, ebx = _Register("rax", 0, 32), _Register("rbx", 0, 32)
    ecx, edx = _Register("rcx", 0, 32), _Register("rdx", 0, 32)
    esi, edi = _Register("rsi", 0, 32), _Register("rdi", 0, 32)
    esp, ebp = _Register("rsp", 0, 32), _Register("rbp", 0, 32)
    eip, eflags = _Register("rip", 0, 32), _Register("rflags", 0, 32)
    ax, bx = _Register("rax", 0, 16), _Register("rbx", 0, 16)
    cx, dx = _Register("rcx", 0, 16), _Register("rdx", 0, 16)
    si, di = _Register("rsi", 0, 16), _Register("rdi", 0, 16)
    sp, bp = _Register("rsp", 0, 16), _Register("rbp", 0, 16)
    al, bl = _Register("rax", 0, 8), _Register("rbx", 0, 8)
    cl, dl = _Register("rcx", 0, 8), _Register("rdx", 0, 8)
    ah, bh = _Register("rax", 8, 8), _Register("rbx", 8, 8)
    ch, dh = _Register("rcx", 8, 8), _Register("rdx", 8, 8)
    cr0, cr2 = _System("cr0"), _System("cr2")
    cr3, cr4 = _System("cr3"), _System("cr4")
    cr8, efer = _System("cr8"), _System("efer")
    apic_base = _System("apic_base")
    cs, ds = _Segment("cs"), _Segment("ds")
    es, fs = _Segment("es"), _Segment("fs")
    gs, ss = _Segment("gs"), _Segment("ss")
    tr, ldt = _Segment("tr"), _Segment("ldt")
    gdt, idt = _Segment("gdt"), _Segment("idt")

    def __init__(self, machine: Machine, vcpu: _vmm.VCPU) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.index = vcpu.index
        self.mem = VirtualMemory(self)
        self._seen: Registers | None = None

    def __setattr__(self, name: str, value: object) -> None:
        # A register's name that is mistyped must not pass.
        if not hasattr(type(self), name) and name not in _OWN:
            raise AttributeError(f"no register {name!r}")
        object.__setattr__(self, name, value)

    # -- what the descriptors use -------------------------------------------

    def _open(self) -> _vmm.VCPU:
        self.machine._check_open()
        return self.vcpu

    def _get_regs(self) -> tuple[int, ...]:
        """The general registers, in the order of `x86.REGS`."""
        return x86.REGS_STRUCT.unpack(self._open().get("regs"))

    def _set_reg(self, index: int, value: int) -> None:
        """Set one general register by its place in `x86.REGS`."""
        values = list(self._get_regs())
        values[index] = value
        self.vcpu.set("regs", x86.REGS_STRUCT.pack(*values))

    def _get_sreg(self, name: str) -> tuple[int, ...]:
        """The fields of one member of kvm_sregs."""
        at, layout = x86.SREGS[name]
        return layout.unpack_from(self._open().get("sregs"), at)

    def _set_sreg(self, name: str, fields: tuple[int, ...]) -> None:
        """Set one member of kvm_sregs."""
        at, layout = x86.SREGS[name]
        sregs = bytearray(self._open().get("sregs"))
        layout.pack_into(sregs, at, *fields)
        self.vcpu.set("sregs", sregs)

    # -- what one looks at ---------------------------------------------------

    @property
    def registers(self) -> Registers:
        """All registers at this moment, as a copy that does not change."""
        vcpu = self._open()
        return Registers(vcpu.get("regs"), vcpu.get("sregs"))

    @property
    def halted(self) -> bool:
        """Whether the vCPU sits in HLT (with an in-kernel irqchip)."""
        state = x86.MP_STATE_STRUCT.unpack(self._open().get("mp_state"))
        return bool(state[0] == x86.MP_HALTED)

    def _translator(self) -> Callable[[int], x86.Walk]:
        """A function that walks the page tables as they are now set."""
        regs = self.registers
        ram = self.machine.memory

        def read(gpa: int, size: int) -> int | None:
            if ram.span(gpa, size) != size:
                return None
            return int.from_bytes(ram.read(gpa, size), "little")

        def translate(address: int) -> x86.Walk:
            return x86.walk(
                read,
                address,
                cr0=regs.cr0,
                cr3=regs.cr3,
                cr4=regs.cr4,
                efer=regs.efer,
            )

        return translate

    def walk(self, address: Address) -> x86.Walk:
        """How this vCPU translates a virtual address, level by level.

        Each level has the entry's `name`, `gpa`, value `entry` and `flags`;
        the result has `gpa` (None: not mapped) and the page's `size`.
        Source: Intel SDM volume 3, 4.3 to 4.5.
        """
        return self._translator()(self.machine.symbols.address(address))

    def __repr__(self) -> str:
        if self.vcpu.closed:
            return f"<Cpu {self.index} closed>"
        if self.machine.running:
            return f"<Cpu {self.index} running>"
        now = self.registers
        old = self._seen
        changed = {name for name in now if old and now[name] != old[name]}
        self._seen = now
        where = self.machine.symbols.where(now.pc)
        lines = register_lines(now, changed)
        return "\n".join([f"<Cpu {self.index} at {where}", *lines]) + ">"


_OWN = ("machine", "vcpu", "index", "mem", "_seen")

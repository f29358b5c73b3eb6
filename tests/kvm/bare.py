# SPDX-License-Identifier: Apache-2.0
"""A machine made by hand of the binding's objects, for tests of these.

    0x0010000   the code
    0x0008000   top of the boot stack of real mode
    0x0080000   top of the boot stack otherwise
    0x0100000   page tables of the 64-bit modes
    0x0200000   end of RAM

Ports: the console at 0xe9, the exit port at 0xf4. Source is assembly in Intel
syntax for the mode's word size; `exit(n)` writes the exit port.
"""

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

from pyvmm import _vmm

CODE = 0x10000
TABLES = 0x100000
RAM = 0x200000
PORT = 0x500  # of test devices
MMIO = 0xD000_0000

# Long enough for any guest here on a busy host; no test waits for it to pass.
LIMIT = 60.0

# fmt: off
NAMES = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
]
# fmt: on
BITS = {"real": 16, "protected": 32, "long": 64, "user": 64}


def exit(status: int = 0) -> str:
    """Assembly that ends the run with `status`."""
    return f"mov al, {status}; out 0xf4, al; hlt\n"


@functools.cache
def assemble(source: str, bits: int, base: int = CODE) -> bytes:
    """Machine code of `source` at `base`."""
    head = f".code{bits}\n.intel_syntax noprefix\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "a.s"
        text.write_text(head + source + "\n")
        obj, out, at = folder / "a.o", folder / "a.bin", hex(base)
        flat = ["--oformat", "binary"]
        steps = (
            ["as", "--64", "-o", obj, text],
            ["ld", "-Ttext", at, "-e", at, *flat, "-o", out, obj],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return out.read_bytes()


def pack_regs(**values: int) -> bytes:
    """A struct kvm_regs; what is not named is 0."""
    return struct.pack("<18Q", *(values.pop(name, 0) for name in NAMES))


class Regs:
    """The registers of a vCPU as attributes; each access is a get or a set."""

    def __init__(self, cpu: _vmm.VCPU) -> None:
        object.__setattr__(self, "cpu", cpu)

    def __getattr__(self, name: str) -> int:
        return struct.unpack("<18Q", self.cpu.get("regs"))[NAMES.index(name)]

    def __setattr__(self, name: str, value: int) -> None:
        values = list(struct.unpack("<18Q", self.cpu.get("regs")))
        values[NAMES.index(name)] = value
        self.cpu.set("regs", struct.pack("<18Q", *values))


def on_interrupt(vector: int) -> str:
    """Assembly for long mode: `vector` goes to the label `handler`.

    rsi is left pointing at the LAPIC, which is on; the pins of the PIC are off.
    """
    gate = 0x30000 + 16 * vector
    return f"""
        lea rax, [rip + handler]
        mov edi, {gate}
        mov [rdi], ax
        mov word ptr [rdi + 2], 0x18
        mov word ptr [rdi + 4], 0x8e00
        shr rax, 16
        mov [rdi + 6], rax
        lidt [rip + idtr]
        jmp 1f
    idtr:
        .word 0xfff
        .quad 0x30000
    1:  mov esi, 0xfee00000
        mov dword ptr [rsi + 0xf0], 0x1ff
        mov dword ptr [rsi + 0x350], 0x10000
    """


def ioapic(pin: int, vector: int, level: bool = False) -> str:
    """Assembly that routes a pin of the IOAPIC to this CPU."""
    entry = vector | (1 << 15 if level else 0)
    return f"""
        mov edi, 0xfec00000
        mov dword ptr [rdi], {0x11 + 2 * pin}
        mov dword ptr [rdi + 0x10], 0
        mov dword ptr [rdi], {0x10 + 2 * pin}
        mov dword ptr [rdi + 0x10], {entry}
    """


class Device:
    """Keeps a log of accesses; reads give the bytes of `answer`, low first."""

    def __init__(self, answer: int = 0x8877665544332211) -> None:
        self.answer = answer
        self.log: list[tuple] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size))
        return self.answer & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size, value))


class Bare:
    """RAM, a VM, its vCPUs, a console and an exit port."""

    def __init__(
        self,
        kvm: _vmm.KVM,
        source: str,
        mode: str = "protected",
        *,
        irqchip: bool = True,
        cpus: int = 1,
        regions: tuple[tuple[int, ...], ...] = (),
        span: int = 0,
        devices: dict[int, object] | None = None,
        ports: dict[int, object] | None = None,
        **regs: int,
    ) -> None:
        self.memory = _vmm.Memory()
        self.memory.add(0, RAM)
        for region in regions:
            self.memory.add(*region)
        base = 0 if mode == "real" else CODE
        self.memory.write(CODE, assemble(source, BITS[mode], base))
        self.vm = _vmm.VM(kvm, self.memory)
        if irqchip:
            self.vm.create_irqchip()
        self.cpus = [_vmm.VCPU(self.vm, cpus=cpus) for _ in range(cpus)]
        self.cpu = self.cpus[0]
        self.regs = Regs(self.cpu)
        self.console = _vmm.Console()
        self.vm.pio.add(_vmm.CONSOLE_PORT, _vmm.CONSOLE_SIZE, self.console)
        self.vm.pio.add(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, _vmm.ExitPort())
        for port, device in (ports or {}).items():
            self.vm.pio.add(port, 16, device)
        for addr, device in (devices or {}).items():
            self.vm.mmio.add(addr, 0x1000, device)
        tables = 0
        if mode in ("long", "user"):
            tables = TABLES
            _vmm.x86_tables(self.memory, tables, span)
        regs.setdefault("rip", CODE)
        regs.setdefault("rsp", 0x8000 if mode == "real" else 0x80000)
        self.cpu.start(mode, pack_regs(**regs), tables)

    def run(self, timeout: float | None = LIMIT) -> _vmm.Exit:
        return self.cpu.run(timeout)

    def status(self) -> int:
        """Runs to the exit port; its value."""
        stop = self.run()
        assert stop.reason == _vmm.EXIT_STOP, stop
        return stop.value

    def close(self) -> None:
        self.vm.close()

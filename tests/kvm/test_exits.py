# SPDX-License-Identifier: Apache-2.0
"""What the KVM_RUN loop makes of each kind of exit."""

import struct

import pytest
from bare import CODE, MMIO, PORT, Device, exit

from pyvmm import _vmm

MODES = ["real", "protected", "long", "user"]
SIZES = {1: "al", 2: "ax", 4: "eax"}


class Failing(Device):
    """Raises in read or write, the first `times` times."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.left = times

    def fail(self) -> None:
        if self.left:
            self.left -= 1
            raise KeyError(f"boom {self.left}")

    def read(self, offset: int, size: int) -> int:
        value = super().read(offset, size)
        self.fail()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        self.fail()


# -- start modes -------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_modes_run_to_the_exit_port(bare, mode) -> None:
    machine = bare("mov al, 0x68; out 0xe9, al\n" + exit(7), mode)
    assert machine.status() == 7
    assert machine.console.read() == b"h"


@pytest.mark.parametrize("mode", MODES)
def test_modes_have_a_stack(bare, mode) -> None:
    code = "push 0x1234; call f; f: pop dx; " + exit(3)
    machine = bare(code, mode)
    top = machine.regs.rsp
    assert machine.status() == 3
    assert 0 < top - machine.regs.rsp <= 16


@pytest.mark.parametrize(("mode", "cs"), [("long", 0), ("user", 3)])
def test_rings(bare, mode, cs) -> None:
    machine = bare("mov ax, cs; and al, 3; out 0xf4, al", mode)
    assert machine.status() == cs


def test_real_mode_is_real(bare) -> None:
    """Segments are paragraphs, and code may lie in any 64 KiB below 1 MiB."""
    code = "mov ax, 0x2000; mov ds, ax; mov byte ptr [5], 9\n" + exit(1)
    machine = bare(code, "real")
    assert machine.status() == 1
    assert machine.memory.read_u8(0x20005) == 9


def test_protected_mode_is_flat(bare) -> None:
    code = "mov eax, 0x1ffff0; mov dword ptr [eax], 77; mov eax, cr0\n"
    machine = bare(code + "and al, 1; out 0xf4, al")
    assert machine.status() == 1
    assert machine.memory.read_u32(0x1FFFF0) == 77


def test_long_mode_has_64_bits(bare) -> None:
    machine = bare("mov rax, 0x123456789abcdef0\n" + "out 0xf4, al", "long")
    machine.status()
    assert machine.regs.rax == 0x123456789ABCDEF0


def test_bad_starts(bare) -> None:
    cpu = bare().cpu
    with pytest.raises(ValueError, match="none of real, protected"):
        cpu.start("vm86", bytes(144))
    with pytest.raises(ValueError, match="144 bytes, not 143"):
        cpu.start("real", bytes(143))
    with pytest.raises(ValueError, match="below 0x100000"):
        cpu.start("real", struct.pack("<16Q2Q", *[0] * 16, 0x100000, 2))


# -- ports -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_ports(bare, mode, size) -> None:
    reg, device = SIZES[size], Device()
    code = f"""
        mov dx, {PORT + 4}
        in {reg}, dx
        add dx, 4
        out dx, {reg}
    """
    machine = bare(code + exit(0), mode, ports={PORT: device}, rax=0)
    machine.status()
    value = 0x44332211 & ((1 << 8 * size) - 1)
    assert device.log == [("r", 4, size), ("w", 8, size, value)]


@pytest.mark.parametrize("port", [0, 0xFFFF])
def test_the_first_and_the_last_port(bare, port) -> None:
    device = Device()
    machine = bare(f"mov edx, {port}; in al, dx; out 0xf4, al")
    machine.vm.pio.add(port, 1, device)
    assert machine.status() == 0x11
    assert device.log == [("r", 0, 1)]


def test_a_short_read_leaves_the_rest_of_the_register(bare) -> None:
    code = f"mov eax, -1; mov dx, {PORT}; in al, dx\n"
    machine = bare(code + "mov ebx, eax\n" + exit(0), ports={PORT: Device()})
    machine.status()
    assert machine.regs.rbx == 0xFFFFFF11


# -- addresses ---------------------------------------------------------------

MOVES = {
    1: ("mov al, [rsi]", "mov [rsi + 8], al"),
    2: ("mov ax, [rsi]", "mov [rsi + 8], ax"),
    4: ("mov eax, [rsi]", "mov [rsi + 8], eax"),
    8: ("mov rax, [rsi]", "mov [rsi + 8], rax"),
}


@pytest.mark.parametrize("mode", ["long", "user"])
@pytest.mark.parametrize("size", MOVES)
def test_addresses(bare, mode, size) -> None:
    device = Device()
    code = f"mov rsi, {MMIO}; {'; '.join(MOVES[size])}\n" + exit(0)
    bare(code, mode, devices={MMIO: device}).status()
    value = device.answer & ((1 << 8 * size) - 1)
    assert device.log == [("r", 0, size), ("w", 8, size, value)]


def test_ram_comes_first(bare) -> None:
    """What lies in RAM never exits, whoever claims it."""
    device = Device()
    machine = bare("mov eax, [0x20000]\n" + exit(0), devices={0x20000: device})
    machine.status()
    assert device.log == []


@pytest.mark.parametrize("split", range(1, 8))
@pytest.mark.parametrize("what", ["read", "write"])
def test_page_crossing(bare, split, what) -> None:
    """Eight bytes of which `split` lie before the border: two accesses."""
    device = Device()
    at = MMIO + 0x1000 - split
    move = "mov rax, [rsi]" if what == "read" else "mov [rsi], rax"
    code = f"mov rsi, {at}; {move}; mov rbx, rax\n" + exit(0)
    machine = bare(code, "long", rax=0x8877665544332211)
    machine.vm.mmio.add(MMIO, 0x2000, device)
    machine.status()
    offsets = [entry[1] for entry in device.log]
    sizes = [entry[2] for entry in device.log]
    assert sum(sizes) == 8
    assert offsets[0] == 0x1000 - split
    for offset, size, following in zip(
        offsets, sizes, offsets[1:], strict=False
    ):
        assert offset + size == following
        assert offset // 0x1000 == (offset + size - 1) // 0x1000
    assert 0x1000 in offsets  # the second page begins an access of its own
    if what == "write":
        data = b"".join(
            entry[3].to_bytes(entry[2], "little") for entry in device.log
        )
        assert data == bytes.fromhex("1122334455667788")
    else:
        data = b"".join(
            device.answer.to_bytes(8, "little")[:size] for size in sizes
        )
        assert machine.regs.rbx == int.from_bytes(data, "little")


def test_three_and_five(bare) -> None:
    device = Device()
    code = f"mov rsi, {MMIO + 0xFFD}; mov [rsi], rax\n" + exit(0)
    machine = bare(code, "long", rax=0x8877665544332211)
    machine.vm.mmio.add(MMIO, 0x2000, device)
    machine.status()
    assert device.log == [
        ("w", 0xFFD, 3, 0x332211),
        ("w", 0x1000, 5, 0x8877665544),
    ]


def test_read_modify_write(bare) -> None:
    device = Device(5)
    code = f"mov esi, {MMIO}; add dword ptr [esi], 3\n" + exit(0)
    bare(code, devices={MMIO: device}).status()
    assert device.log == [("r", 0, 4), ("w", 0, 4, 8)]


# -- string I/O --------------------------------------------------------------


def test_rep_outs_to_a_native_device(bare) -> None:
    code = "mov esi, 0x20000; mov ecx, 10000; mov dx, 0xe9; rep outsb\n"
    machine = bare(code + exit(0))
    text = bytes(range(250)) * 40
    machine.memory.write(0x20000, text)
    machine.status()
    assert machine.console.read() == text
    assert machine.regs.rcx == 0
    assert machine.regs.rsi == 0x20000 + 10000


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
def test_rep_outs_to_a_python_device(bare, suffix, size) -> None:
    device = Device()
    count = 300
    code = f"mov esi, 0x20000; mov ecx, {count}; mov dx, {PORT}\n"
    machine = bare(
        f"{code}; rep outs{suffix}\n" + exit(0), ports={PORT: device}
    )
    data = bytes(i * 3 & 0xFF for i in range(count * size))
    machine.memory.write(0x20000, data)
    machine.status()
    assert len(device.log) == count
    assert {entry[:3] for entry in device.log} == {("w", 0, size)}
    got = b"".join(entry[3].to_bytes(size, "little") for entry in device.log)
    assert got == data


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("d", 4)])
def test_rep_ins_from_a_python_device(bare, suffix, size) -> None:
    class Counter(Device):
        def read(self, offset: int, size: int) -> int:
            self.log.append((offset, size))
            return len(self.log) & ((1 << 8 * size) - 1)

    device, count = Counter(), 1500
    code = f"mov edi, 0x20000; mov ecx, {count}; mov dx, {PORT}; cld\n"
    machine = bare(f"{code}; rep ins{suffix}\n" + exit(0), ports={PORT: device})
    machine.status()
    # A host may ask ahead, never for less than what the guest takes.
    assert len(device.log) >= count
    got = machine.memory.read(0x20000, count * size)
    want = [i + 1 & ((1 << 8 * size) - 1) for i in range(count)]
    assert [
        int.from_bytes(got[i : i + size], "little")
        for i in range(0, len(got), size)
    ] == want
    assert machine.memory.read(0x20000 + count * size, 8) == bytes(8)


def test_rep_outs_to_the_exit_port(bare) -> None:
    """The run ends at the first element; the instruction is finished."""
    code = "mov esi, 0x20000; mov ecx, 5; mov dx, 0xf4; rep outsb\n"
    machine = bare(code + exit(9))
    machine.memory.write(0x20000, b"\x01\x02\x03\x04\x05")
    stop = machine.run()
    assert (stop.reason, stop.value) == (_vmm.EXIT_STOP, 1)
    machine.regs.rbx = 5  # nothing is unfinished
    while machine.status() != 9:
        pass
    assert machine.regs.rcx == 0


def test_rep_outs_to_nobody(bare) -> None:
    code = f"mov esi, 0x20000; mov ecx, 7; mov dx, {PORT}; rep outsb\n"
    machine = bare(code + exit(1))
    stop = machine.run()
    assert (stop.reason, stop.addr) == (_vmm.EXIT_UNCLAIMED, PORT)
    machine.vm.strict = False
    machine.regs.rip = CODE
    before = machine.vm.unclaimed
    assert machine.status() == 1
    assert machine.vm.unclaimed - before == 7


# -- nobody's ----------------------------------------------------------------


def test_unclaimed_write(bare) -> None:
    code = f"mov eax, 0xabcd; mov [{MMIO}], eax\n" + exit(4)
    machine = bare(code)
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED
    assert (stop.pio, stop.write, stop.size) == (False, True, 4)
    assert (stop.addr, stop.value, stop.device) == (MMIO, 0xABCD, None)
    # A write is posted: KVM may have stepped past the instruction already.
    assert CODE < stop.rip <= machine.regs.rip
    assert machine.status() == 4


def test_unclaimed_read_gets_all_ones(bare) -> None:
    code = f"mov dx, {PORT}; in ax, dx; mov ebx, eax\n" + exit(4)
    machine = bare(code)
    stop = machine.run()
    assert (stop.reason, stop.pio) == (_vmm.EXIT_UNCLAIMED, True)
    assert (stop.write, stop.size, stop.addr) == (False, 2, PORT)
    assert stop.rip == CODE + 4
    # The instruction is finished, before anybody asks for more.
    assert machine.regs.rax == 0xFFFF
    assert machine.status() == 4
    assert machine.regs.rbx == 0xFFFF


def test_not_strict(bare) -> None:
    code = f"""
        mov eax, [{MMIO}]
        mov ebx, eax
        mov dword ptr [{MMIO}], 1
        mov dx, {PORT}
        in al, dx
        out dx, al
    """
    machine = bare(code + exit(2))
    machine.vm.strict = False
    assert machine.status() == 2
    assert machine.regs.rbx == 0xFFFFFFFF
    assert machine.vm.unclaimed == 4


@pytest.mark.parametrize("offset", [-1, -3, 13, 15])
def test_straddling_accesses_are_nobodys(bare, offset) -> None:
    device = Device()
    code = f"mov eax, [{MMIO + 0x100 + offset}]\n" + exit(0)
    machine = bare(code)
    machine.vm.mmio.add(MMIO + 0x100, 16, device)
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED
    assert (stop.addr, stop.size) == (MMIO + 0x100 + offset, 4)
    assert device.log == []


def test_straddling_ports(bare) -> None:
    device = Device()
    machine = bare(f"mov dx, {PORT + 15}; in ax, dx\n", ports={PORT: device})
    stop = machine.run()
    assert (stop.reason, stop.addr, stop.size) == (
        _vmm.EXIT_UNCLAIMED,
        PORT + 15,
        2,
    )
    assert device.log == []


# -- the ends ----------------------------------------------------------------


def test_hlt_without_an_irqchip(bare) -> None:
    machine = bare("hlt\n" + exit(5), irqchip=False)
    assert machine.run().reason == _vmm.EXIT_HALT
    assert machine.status() == 5  # it may go on behind the hlt


def test_cli_hlt_never_leaves_the_kernel_by_itself(bare) -> None:
    machine = bare("cli; hlt\n" + exit(5))
    assert machine.run(None).reason == _vmm.EXIT_HALT
    assert machine.regs.rip == CODE + 2
    assert machine.run(None).reason == _vmm.EXIT_HALT  # and again


def test_sti_hlt_is_idle(bare) -> None:
    machine = bare("sti; hlt\n" + exit(5))
    assert machine.run(None).reason == _vmm.EXIT_IDLE


def test_sti_hlt_waits_for_its_wakers(bare) -> None:
    machine = bare("sti; hlt\n" + exit(5))
    machine.vm.wakers = 1
    assert machine.run(0.1).reason == _vmm.EXIT_TIMEOUT
    machine.vm.wakers = 0
    assert machine.run(None).reason == _vmm.EXIT_IDLE


def test_cli_hlt_ends_in_spite_of_wakers(bare) -> None:
    machine = bare("cli; hlt")
    machine.vm.wakers = 1
    assert machine.run(None).reason == _vmm.EXIT_HALT


def test_a_lapic_timer_wakes_and_is_waited_for(bare) -> None:
    """One shot of the timer, vector 0x40, by way of an IDT of long mode."""
    code = """
        lea rax, [rip + handler]
        mov edi, 0x30400            /* the gate of vector 0x40 */
        mov [rdi], ax
        mov word ptr [rdi + 2], 0x18
        mov word ptr [rdi + 4], 0x8e00
        shr rax, 16
        mov [rdi + 6], rax
        lidt [rip + idtr]
        mov esi, 0xfee00000
        mov dword ptr [rsi + 0xf0], 0x1ff
        mov dword ptr [rsi + 0x3e0], 0xb
        mov dword ptr [rsi + 0x320], 0x40
        mov dword ptr [rsi + 0x380], 50000000
        sti
        hlt
    idle: hlt
        jmp idle
    handler:
        mov al, 6
        out 0xf4, al
    idtr: .word 0xfff
        .quad 0x30000
    """
    assert bare(code, "long").status() == 6


@pytest.mark.parametrize("mode", ["protected", "long", "user"])
def test_triple_fault(bare, mode) -> None:
    machine = bare("ud2", mode)
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_SHUTDOWN
    assert stop.kvm_reason == 8  # KVM_EXIT_SHUTDOWN
    assert stop.size == 0 and stop.device is None


def test_internal_error_is_decoded(bare) -> None:
    """An instruction that an emulating host lacks; others just run it."""
    machine = bare("fwait\n" + exit(5))
    stop = machine.run()
    if stop.reason == _vmm.EXIT_STOP:
        assert stop.value == 5
        return
    assert stop.reason == _vmm.EXIT_INTERNAL_ERROR
    assert stop.kvm_reason == 17
    assert stop.code == 1  # KVM_INTERNAL_ERROR_EMULATION
    assert stop.insn[:1] == b"\x9b" and len(stop.insn) <= 15
    assert stop.data
    assert machine.regs.rip == CODE
    machine.regs.rip = CODE + 1  # a monitor may step over it
    assert machine.status() == 5


def test_code_where_there_is_no_ram(bare) -> None:
    """A jump into the void ends the run, one way or the other."""
    machine = bare(f"mov eax, {MMIO}; jmp eax")
    try:
        stop = machine.run()
    except OSError as refused:
        assert "KVM_RUN" in str(refused)
    else:
        assert stop.reason in (
            _vmm.EXIT_INTERNAL_ERROR,
            _vmm.EXIT_SHUTDOWN,
            _vmm.EXIT_UNCLAIMED,
        )


def test_fail_entry_or_a_refusal(bare) -> None:
    """State that no processor enters: the host refuses it when it is set or
    when it is entered, or mends it; it never hangs and never crashes."""
    machine = bare(exit(3), "long")
    sregs = bytearray(machine.cpu.get("sregs"))
    cr4 = 8 * 24 + 2 * 16 + 3 * 8  # after segments, tables, cr0, cr2, cr3
    assert struct.unpack_from("<Q", sregs, cr4)[0] & 0x20  # PAE is in it
    struct.pack_into("<Q", sregs, cr4, 0)  # long mode without PAE
    try:
        machine.cpu.set("sregs", bytes(sregs))
        stop = machine.run()
    except OSError as refused:
        assert "KVM_SET_SREGS" in str(refused) or "KVM_RUN" in str(refused)
    else:
        assert stop.reason in (
            _vmm.EXIT_FAIL_ENTRY,
            _vmm.EXIT_SHUTDOWN,
            _vmm.EXIT_INTERNAL_ERROR,
            _vmm.EXIT_STOP,
        )


# -- Python devices that misbehave -------------------------------------------


@pytest.mark.parametrize("mode", ["protected", "long", "user"])
def test_exception_in_a_read(bare, mode) -> None:
    device = Failing()
    code = f"mov esi, {MMIO}; mov eax, [esi + 4]; mov ebx, eax\n"
    machine = bare(code + exit(8), mode, devices={MMIO: device})
    with pytest.raises(KeyError, match="boom") as caught:
        machine.run()
    (note,) = caught.value.__notes__
    assert "read of 4 bytes at 0xd0000004" in note
    assert "vCPU 0" in note and "rip 0x1000" in note
    assert not machine.cpu.running
    assert machine.status() == 8
    assert machine.regs.rbx == 0xFFFFFFFF
    assert device.log == [("r", 4, 4)]


def test_exception_in_a_write(bare) -> None:
    device = Failing()
    code = f"mov dx, {PORT}; mov eax, 0x1234; out dx, ax\n" + exit(8)
    machine = bare(code, ports={PORT: device})
    with pytest.raises(KeyError) as caught:
        machine.run()
    assert (
        "write of 2 bytes at port 0x500 = 0x1234" in caught.value.__notes__[0]
    )
    assert machine.status() == 8
    assert device.log == [("w", 0, 2, 0x1234)]


def test_exceptions_in_both_halves_of_one_access(bare) -> None:
    device = Failing(times=2)
    code = f"mov rsi, {MMIO + 0xFFD}; mov rax, [rsi]; mov rbx, rax\n"
    machine = bare(code + exit(8), "long")
    machine.vm.mmio.add(MMIO, 0x2000, device)
    with pytest.raises(KeyError, match="boom 1") as caught:
        machine.run()
    assert len(caught.value.__notes__) == 2
    assert "then, while the access was finished" in caught.value.__notes__[1]
    assert "boom 0" in caught.value.__notes__[1]
    assert device.log == [("r", 0xFFD, 3), ("r", 0x1000, 5)]
    assert machine.status() == 8
    assert machine.regs.rbx == 2**64 - 1


def test_exception_in_the_first_half_only(bare) -> None:
    device = Failing(times=1)
    code = f"mov rsi, {MMIO + 0xFFD}; mov rax, [rsi]; mov rbx, rax\n"
    machine = bare(code + exit(8), "long")
    machine.vm.mmio.add(MMIO, 0x2000, device)
    with pytest.raises(KeyError):
        machine.run()
    machine.status()
    assert machine.regs.rbx == 0x5544332211FFFFFF


def test_exception_in_the_middle_of_a_string(bare) -> None:
    """The elements that were on their way still reach the device, once."""
    device = Failing(times=1)
    code = f"mov esi, 0x20000; mov ecx, 9; mov dx, {PORT}; rep outsb\n"
    machine = bare(code + exit(8), ports={PORT: device})
    machine.memory.write(0x20000, b"abcdefghi")
    with pytest.raises(KeyError):
        machine.run()
    assert machine.status() == 8
    assert bytes(entry[3] for entry in device.log) == b"abcdefghi"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (-1, ValueError),
        (1 << 32, ValueError),
        (1 << 64, ValueError),
        (None, TypeError),
        ("7", TypeError),
        (7.0, TypeError),
    ],
)
def test_wrong_answers(bare, answer, error) -> None:
    class Wrong(Device):
        def read(self, offset: int, size: int):
            return answer

    code = f"mov eax, [{MMIO + 4}]; mov ebx, eax\n" + exit(1)
    machine = bare(code, devices={MMIO: Wrong()})
    with pytest.raises(error, match=r"Wrong.read\(0x4, 4\) returned") as caught:
        machine.run()
    assert "0 to 0xffffffff was due" in str(caught.value)
    assert "read of 4 bytes" in caught.value.__notes__[0]
    assert machine.status() == 1
    assert machine.regs.rbx == 0xFFFFFFFF


def test_answers_at_the_limit(bare) -> None:
    code = f"mov rsi, {MMIO}; mov rax, [rsi]; mov rbx, rax\n" + exit(1)
    machine = bare(code, "long", devices={MMIO: Device(2**64 - 1)})
    machine.status()
    assert machine.regs.rbx == 2**64 - 1


def test_true_is_an_int(bare) -> None:
    class Flag(Device):
        def read(self, offset: int, size: int) -> bool:
            return True

    machine = bare(f"mov al, [{MMIO}]; out 0xf4, al", devices={MMIO: Flag()})
    assert machine.status() == 1


def test_a_device_may_take_itself_off(bare) -> None:
    class Once(Device):
        def read(self, offset: int, size: int) -> int:
            machine.vm.mmio.remove(MMIO)
            return 0x21

    code = f"mov bl, [{MMIO}]; mov al, [{MMIO}]\n" + exit(0)
    machine = bare(code, devices={MMIO: Once()})
    stop = machine.run()
    assert stop.reason == _vmm.EXIT_UNCLAIMED
    assert machine.regs.rbx == 0x21


def test_a_device_may_put_another_in_its_place(bare) -> None:
    class Chameleon(Device):
        def write(self, offset: int, size: int, value: int) -> None:
            machine.vm.mmio.remove(MMIO)
            machine.vm.mmio.add(MMIO, 0x1000, Device(0x99))

    code = f"mov [{MMIO}], al; mov al, [{MMIO}]; out 0xf4, al"
    machine = bare(code, devices={MMIO: Chameleon()})
    assert machine.status() == 0x99


# -- what is seen of it ------------------------------------------------------


def test_trace_sees_every_exit(bare) -> None:
    seen = []
    code = f"mov al, 0x61; out 0xe9, al; mov al, [{MMIO}]\n" + exit(1)
    machine = bare(code, devices={MMIO: Device()})
    machine.cpu.trace = seen.append
    machine.status()
    reasons = [entry.reason for entry in seen]
    assert reasons == [_vmm.EXIT_NATIVE, _vmm.EXIT_ACCESS, _vmm.EXIT_STOP]
    assert seen[0].device is machine.console
    assert seen[0].value == 0x61
    machine.cpu.trace = None
    machine.regs.rip = CODE
    machine.status()
    assert len(seen) == 3
    with pytest.raises(TypeError, match="callable"):
        machine.cpu.trace = 5


def test_an_exception_of_the_trace_leaves_run(bare) -> None:
    def refuse(_: _vmm.Exit) -> None:
        raise LookupError("traced")

    machine = bare("mov al, 1; out 0xe9, al\n" + exit(1))
    machine.cpu.trace = refuse
    with pytest.raises(LookupError, match="traced"):
        machine.run()
    machine.cpu.trace = None
    assert machine.status() == 1


def test_the_past_is_kept(bare) -> None:
    code = "mov ecx, 40; l: mov eax, ecx; out 0xe9, al; loop l\n" + exit(3)
    machine = bare(code)
    machine.status()
    past = machine.cpu.past
    assert len(past) == 16
    assert past[-1] == (_vmm.EXIT_STOP, True, True, 1, 0xF4, 3)
    assert past[-2] == (_vmm.EXIT_NATIVE, True, True, 1, 0xE9, 1)
    assert [entry[5] for entry in past[:-1]] == list(range(15, 0, -1))
    assert machine.cpu.exits >= 41

# SPDX-License-Identifier: Apache-2.0
"""irqfd, from the host to the guest, and ioeventfd, the other way."""

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from bare import LIMIT, MMIO, PORT, Device, exit, ioapic, on_interrupt

from pyvmm import _vmm

VECTOR = 0x40
PIN = 16

# Counts interrupts at 0x20000; tells the device at PORT that it is ready, and
# of each interrupt; ends when it has had as many as the device answers.
COUNTER = f"""
        mov dx, {PORT}
        out dx, al
        sti
    wait:
        hlt
        jmp wait
    handler:
        inc dword ptr [0x20000]
        mov dx, {PORT + 4}
        mov eax, [0x20000]
        out dx, eax
        mov dword ptr [rsi + 0xb0], 0
        mov dx, {PORT + 8}
        in al, dx
        test al, al
        jz 1f
        out 0xf4, al
    1:  iretq
"""


class Source(Device):
    """Calls `ready` when the guest is, `handled(n)` in its n-th handler, and
    ends the run after `count` of them with that number."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.seen = 0
        self.ready: Callable[[], object] = lambda: None
        self.handled: Callable[[int], object] = lambda n: None

    def read(self, offset: int, size: int) -> int:
        return self.count if self.seen >= self.count else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.ready()
        else:
            self.seen = value
            self.handled(value)


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Makes eventfds that are closed when the test ends."""
    fds: list[int] = []

    def make() -> int:
        fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def counter(bare, source: Source, level: bool = False, pin: int = PIN):
    code = on_interrupt(VECTOR) + ioapic(pin, VECTOR, level) + COUNTER
    return bare(code, "long", ports={PORT: source})


def signalled(fd: int) -> int:
    """How often the eventfd was written since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# -- irqfd -------------------------------------------------------------------


def test_irqfd(bare, eventfd) -> None:
    source, fd = Source(1), eventfd()
    machine = counter(bare, source)
    machine.vm.irqfd(fd, PIN)
    source.ready = lambda: os.eventfd_write(fd, 1)
    assert machine.status() == 1
    assert signalled(fd) == 0  # the kernel took it


def test_irqfd_again_and_again(bare, eventfd) -> None:
    source, fd = Source(50), eventfd()
    machine = counter(bare, source)
    machine.vm.irqfd(fd, PIN)
    source.ready = lambda: os.eventfd_write(fd, 1)
    source.handled = lambda n: os.eventfd_write(fd, 1)
    assert machine.status() == 50


def test_irqfd_from_another_thread(bare, eventfd) -> None:
    """The halted guest is waited for: an irqfd is a waker."""
    source, fd = Source(20), eventfd()
    go = threading.Semaphore(0)
    machine = counter(bare, source)
    machine.vm.irqfd(fd, PIN)
    assert machine.vm.wakers == 1
    source.ready = go.release
    source.handled = lambda n: go.release()

    def ring() -> None:
        for _ in range(20):
            assert go.acquire(timeout=LIMIT)
            os.eventfd_write(fd, 1)

    ringer = threading.Thread(target=ring, daemon=True)
    ringer.start()
    assert machine.status() == 20
    ringer.join(LIMIT)


def test_removed_irqfd(bare, eventfd) -> None:
    source, fd = Source(1), eventfd()
    machine = counter(bare, source)
    machine.vm.irqfd(fd, PIN)
    machine.vm.remove_irqfd(fd, PIN)
    assert machine.vm.wakers == 0
    source.ready = lambda: os.eventfd_write(fd, 1)
    assert machine.run().reason == _vmm.EXIT_IDLE
    assert source.seen == 0
    assert signalled(fd) == 1  # nobody took it


def test_level_irqfd_resamples(bare, eventfd) -> None:
    """The line stays up until the EOI, which tells the resample fd."""
    source, fd, resample = Source(3), eventfd(), eventfd()
    machine = counter(bare, source, level=True)
    machine.vm.irqfd(fd, PIN, resample)
    told = []

    def handled(n: int) -> None:
        told.append(signalled(resample))
        os.eventfd_write(fd, 1)

    source.ready = lambda: os.eventfd_write(fd, 1)
    source.handled = handled
    assert machine.status() == 3
    # Each once; a host may tell before the handler has come that far.
    told.append(signalled(resample))
    assert told in ([0, 1, 1, 1], [1, 1, 1, 0])


def test_level_irqfd_once(bare, eventfd) -> None:
    """One write is one interrupt: the EOI lowers the line."""
    source, fd, resample = Source(2), eventfd(), eventfd()
    machine = counter(bare, source, level=True)
    machine.vm.irqfd(fd, PIN, resample_fd=resample)
    source.ready = lambda: os.eventfd_write(fd, 1)
    assert machine.run(0.1).reason == _vmm.EXIT_TIMEOUT
    assert source.seen == 1
    assert signalled(resample) == 1


def test_irqfd_refusals(bare, eventfd) -> None:
    fd = eventfd()
    with pytest.raises(OSError, match="KVM_IRQFD") as caught:
        bare(irqchip=False).vm.irqfd(fd, PIN)
    assert caught.value.errno == errno.EINVAL
    assert "interrupt controller first" in str(caught.value)
    vm = bare().vm
    vm.irqfd(fd, PIN)
    with pytest.raises(OSError, match=r"KVM_IRQFD.*another GSI") as caught:
        vm.irqfd(fd, PIN + 1)
    assert caught.value.errno == errno.EBUSY
    assert vm.wakers == 1
    with pytest.raises(OSError, match="KVM_IRQFD"):
        vm.irqfd(-1, PIN)
    with open("/dev/null", "rb") as file, pytest.raises(OSError):
        vm.irqfd(file.fileno(), PIN)
    assert vm.wakers == 1


# -- ioeventfd ---------------------------------------------------------------

WRITES = {1: "al", 2: "ax", 4: "eax", 8: "rax"}


def store(pio: bool, size: int, value: int) -> str:
    """Assembly that writes `value` to PORT or MMIO."""
    if pio:
        return f"mov eax, {value}; mov dx, {PORT}; out dx, {WRITES[size]}\n"
    return f"mov rax, {value}; mov rdi, {MMIO}; mov [rdi], {WRITES[size]}\n"


@pytest.mark.parametrize("mode", ["long", "user"])
@pytest.mark.parametrize(
    ("pio", "size"),
    [
        (pio, size)
        for pio in (True, False)
        for size in WRITES
        if not pio or size < 8
    ],
)
def test_doorbells(bare, eventfd, mode, pio, size) -> None:
    """The write does not exit: nobody else claims it."""
    fd, device = eventfd(), Device()
    machine = bare(store(pio, size, 5) * 3 + exit(1), mode)
    machine.vm.ioeventfd(fd, PORT if pio else MMIO, size, pio=pio)
    assert machine.status() == 1
    assert signalled(fd) == 3
    assert device.log == []


@pytest.mark.parametrize("pio", [True, False])
def test_doorbells_match(bare, eventfd, pio) -> None:
    """Other values and sizes go to the device that is there."""
    five, six, device = eventfd(), eventfd(), Device()
    code = "".join(store(pio, 4, value) for value in (5, 6, 7, 5))
    code += store(pio, 2, 5)
    machine = bare(
        code + exit(1),
        "long",
        **({"ports": {PORT: device}} if pio else {"devices": {MMIO: device}}),
    )
    at = PORT if pio else MMIO
    machine.vm.ioeventfd(five, at, 4, pio=pio, match=5)
    machine.vm.ioeventfd(six, at, 4, pio=pio, match=6)
    machine.status()
    assert signalled(five) == 2
    assert signalled(six) == 1
    assert device.log == [("w", 0, 4, 7), ("w", 0, 2, 5)]


def test_doorbell_of_any_size(bare, eventfd) -> None:
    fd = eventfd()
    code = "".join(store(False, size, 9) for size in WRITES)
    machine = bare(code + exit(1), "long")
    try:
        machine.vm.ioeventfd(fd, MMIO)
    except OSError as refused:  # a host may not take length 0
        assert "KVM_IOEVENTFD" in str(refused)
        return
    machine.status()
    assert signalled(fd) == 4


def test_doorbells_do_not_answer_reads(bare, eventfd) -> None:
    fd = eventfd()
    machine = bare(f"mov dx, {PORT}; in al, dx", "long")
    machine.vm.ioeventfd(fd, PORT, 1, pio=True)
    assert machine.run().reason == _vmm.EXIT_UNCLAIMED
    assert signalled(fd) == 0


def test_removed_doorbell(bare, eventfd) -> None:
    fd, device = eventfd(), Device()
    machine = bare(store(False, 4, 5) + exit(1), "long", devices={MMIO: device})
    machine.vm.ioeventfd(fd, MMIO, 4, match=5)
    machine.vm.remove_ioeventfd(fd, MMIO, 4, match=5)
    machine.status()
    assert signalled(fd) == 0
    assert device.log == [("w", 0, 4, 5)]


def test_doorbell_refusals(bare, eventfd) -> None:
    fd, vm = eventfd(), bare().vm
    vm.ioeventfd(fd, MMIO, 4)
    with pytest.raises(OSError, match="KVM_IOEVENTFD") as caught:
        vm.ioeventfd(fd, MMIO, 4)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError, match="KVM_IOEVENTFD"):
        vm.remove_ioeventfd(fd, MMIO, 8)
    with pytest.raises(OSError, match="KVM_IOEVENTFD"):
        vm.ioeventfd(-1, MMIO, 4)
    with pytest.raises(ValueError, match="size 3 is not"):
        vm.ioeventfd(fd, MMIO, 3)
    with pytest.raises(ValueError, match="match 256 is outside"):
        vm.ioeventfd(fd, MMIO, 1, match=256)
    with pytest.raises(ValueError, match="addr"):
        vm.ioeventfd(fd, 1 << 64, 4)

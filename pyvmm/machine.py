# SPDX-License-Identifier: Apache-2.0
"""Machine: describe it in any order, run it, look at it, close it."""

from __future__ import annotations

from os import PathLike

from . import _vmm, assembly, running
from .boot import Boot
from .console import PORTS, Console
from .image import make_image
from .memory import (
    PhysicalMemory,
    check_host,
    parse_size,
    ram_ranges,
)
from .run import CLOSE, PAUSE, Runner
from .symbols import Symbols
from .wiring import LINES, Wiring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    from typing_extensions import Buffer

    from .backtrace import Backtrace
    from .cpu import Cpu
    from .debug import Debugger, Point
    from .device import Device
    from .image import Image
    from .replay import Replay
    from .snapfile import Loaded, States
    from .snapshot import Snapshot
    from .stop import Stop
    from .symbols import Address
    from .until import Until
    from .virtio.device import Device as VirtioDevice
    from .wiring import Slot

    D = TypeVar("D")


class Machine:
    """A virtual machine in this process.

    `memory`: bytes of RAM, or text such as "16M"; a multiple of 4096. It is
    at 1 MiB; what exceeds 3 GiB goes on at 4 GiB. Or a `_vmm.Memory`, as it is.
    `cpus`: how many vCPUs; more than one need the irqchip.
    `cmdline`: words for the guest.
    `strict`: an access that nobody claims ends the run with a GuestError;
    otherwise reads give all ones, writes vanish, `unclaimed` counts.
    `irqchip`, `pit`: make the in-kernel interrupt controllers and timer.
    `console`: True keeps output in `m.console`; a file, a file descriptor or a
    callable that takes lines of bytes gets it live too; False: none.
    `console_irq`: a line to pulse on input; True chooses one.
    `boot`: how the guest is told of all this, default `StartInfo()`.

    It may be described in any order. The host's objects are made when m.mem,
    m.vm or m.cpu is used or it is run; then add_memory() is refused. The boot
    information is made at the first m.cpu or run: devices attached later work
    but are not in it. A context manager, which closes.

    Raises ValueError and TypeError for arguments that make no sense, OSError
    when the host refuses.

    Threads: any. One thread at a time runs it; pause() and close() from
    another end that run.
    """

    def __init__(
        self,
        memory: int | str | _vmm.Memory = "16M",
        *,
        cpus: int = 1,
        cmdline: str = "",
        strict: bool = True,
        irqchip: bool = True,
        pit: bool = False,
        console: object = True,
        console_irq: int | bool | None = None,
        boot: Boot | None = None,
    ) -> None:
        self._closed = True  # until it is whole
        if isinstance(memory, _vmm.Memory):
            size = memory.size
        else:
            size = parse_size(memory)
            check_host(size)
        if not isinstance(cpus, int) or cpus < 1:
            raise ValueError(f"cpus {cpus!r} is not 1 or more")
        if cpus > 1 and not irqchip:
            raise ValueError("more than one vCPU needs irqchip=True")
        if pit and not irqchip:
            raise ValueError("pit=True needs irqchip=True")
        if boot is not None and not callable(getattr(boot, "start", None)):
            raise TypeError("boot is an object with start(platform), a Boot")
        self._count = cpus
        self._size = size  # of RAM, for the repr
        self._strict = strict
        self._irqchip = irqchip
        self._pit = pit
        self._boot_protocol = boot
        self._initrd: bytes | None = None
        self.cmdline = check_cmdline(cmdline)
        # What another machine of the same kind is made with.
        self._options: dict[str, Any] = {
            "cpus": cpus,
            "cmdline": cmdline,
            "strict": strict,
            "irqchip": irqchip,
            "pit": pit,
            "console_irq": console_irq,
            "boot": boot,
        }
        self._at: Snapshot | None = None
        # The file that it goes back to, and what that means for its devices.
        self._entered: tuple[Loaded, tuple[Slot, ...], States] | None = None
        if isinstance(memory, _vmm.Memory):
            self.memory = memory
        else:
            self.memory = _vmm.Memory()
            for gpa, length in ram_ranges(size):
                self.memory.add(gpa, length)
        self._vm: _vmm.VM | None = None
        self._image: Image | None = None
        self._symbols = Symbols()
        self._mem = PhysicalMemory(self.memory, lambda: self._symbols)
        self._cpus: list[Cpu] = []
        self._booted = False
        self._ran = False
        self._close_after = False
        self._trace: Callable[[_vmm.Exit], object] | None = None
        self._runner = Runner()
        self._debugger: Debugger | None = None
        self._own_ports = [(_vmm.EXIT_PORT, _vmm.EXIT_SIZE, "the exit port")]
        self._own_lines: set[int] = set()
        self._wiring = Wiring(self, irqchip)
        self._console: Console | None = None
        if console is not False and console is not None:
            self._console = Console(self, console)
            self._own_ports.append(PORTS)
            self._console_line(console_irq)
        self._closed = False

    def _console_line(self, line: int | bool | None) -> None:
        if line is None or line is False:
            return
        line = LINES[0] if line is True else line
        if line not in LINES or not self._irqchip:
            raise ValueError(
                f"console_irq {line} is not one of 5 to 23, with an irqchip"
            )
        assert self._console is not None
        self._console.line = line
        self._own_lines.add(line)

    # -- describing ----------------------------------------------------------

    def add_memory(
        self,
        gpa: int,
        size: int | str | None = None,
        *,
        readonly: bool = False,
        shared: bool = False,
        huge: bool = False,
        data: Buffer | None = None,
    ) -> None:
        """Add a region of RAM at a guest-physical address.

        `gpa` and `size` are multiples of 4096; without `size` it is that of
        `data`, rounded up. `data`: what is in it at first, else zeros.
        `readonly`: the guest's writes end the run, or vanish if not strict.
        `shared`: a memfd, for other processes to map (`m.mem.regions`).
        `huge`: ask for huge pages. Raises ValueError when it overlaps RAM or a
        device, or once the machine has been realised.
        """
        self._check_open()
        content = memoryview(data).cast("B") if data is not None else None
        if size is None:
            if not content:
                raise ValueError("a region needs size= or data=")
            size = -(-len(content) // 4096) * 4096
        length = parse_size(size, "size")
        check_host(length + self.memory.size)
        if content is not None and len(content) > length:
            raise ValueError(f"{len(content)} bytes of data for {length}")
        for slot in self._wiring.slots:
            for base, taken, is_port, _ in slot.places():
                if is_port or base >= gpa + length:
                    continue
                if gpa < base + taken:
                    raise ValueError(
                        f"RAM {gpa:#x}..{gpa + length - 1:#x} overlaps {slot}"
                    )
        flags = _vmm.MEM_READONLY if readonly else 0
        flags |= _vmm.MEM_SHARED if shared else 0
        flags |= _vmm.MEM_HUGE if huge else 0
        self.memory.add(gpa, length, flags)
        self._size += length
        if content is not None:
            self.memory.write(gpa, content)

    def load(
        self,
        source: str | PathLike[str] | Buffer | None = None,
        *,
        asm: str | None = None,
        c: str | None = None,
        raw: Buffer | None = None,
        at: int | None = None,
        mode: str | None = None,
        entry: Address | None = None,
        initrd: str | PathLike[str] | Buffer | None = None,
        cmdline: str | None = None,
        coverage: bool | str = False,
    ) -> None:
        """What the guest shall run: one of an ELF file, a snippet, raw bytes.

        `source`: path or bytes of an ELF executable. `asm`: assembly, Intel
        syntax; `c`: a C program on the runtime of pyvmm/sdk (`#include
        <runtime.h>`): both want binutils or gcc, and their complaints are the
        text of an Error. `raw`: bytes.
        `at`: where asm and raw go (0x100000; 0x7c00 in real mode). `mode` of
        the CPU at the entry: "real", "protected" (32-bit, the default), "long"
        (64-bit, ring 0) or "user" (64-bit, ring 3). `entry`: where it starts.
        `initrd`: path or bytes, put into RAM. `cmdline` replaces m.cmdline.
        `coverage`: a C program counts the edges that it takes, for replay();
        "compare": also how many bytes of its comparisons were equal.

        All is checked at once against the memory described so far; raises
        ValueError, and RuntimeError when the guest has run already.
        """
        self._check_open()
        if self._ran:
            raise RuntimeError("the guest has run: make another Machine")
        image = make_image(
            self.memory,
            source,
            asm=asm,
            c=c,
            raw=raw,
            at=at,
            mode=mode,
            entry=entry,
            coverage=coverage,
        )
        if cmdline is not None:
            self.cmdline = check_cmdline(cmdline)
        if initrd is not None:
            if isinstance(initrd, str | PathLike):
                with open(initrd, "rb") as file:
                    self._initrd = file.read()
            else:
                self._initrd = bytes(initrd)
        self._image = image
        self._symbols = image.symbols
        self._booted = False
        if self._vm is not None:
            image.write(self.memory)

    def attach(
        self,
        device: D,
        *,
        mmio: int | bool | None = None,
        port: int | None = None,
        irq: int | bool | None = None,
        name: str | None = None,
        places: Mapping[str, int] | None = None,
        console: bool = False,
    ) -> D:
        """Put a device on the machine, and return it.

        `mmio`: its address; True chooses one from 0xd0000000 on. `port`: its
        first port instead. Without both it is where its class has its place
        (`port`, `mmio`), or one is chosen. `irq`: the line of its first Irq(),
        1 to 23; True chooses 16 to 23 first, then 5 to 15; without it the line
        is the class's, as of Irq(8), or chosen. `name`: its word on the
        guest's command line, the class's name in lower case by default.
        `places`: addresses or ports of further ranges (`Range`), by name.
        `console`: m.console is this device in place of port 0xe9: what it
        sends is text there, and send() is its input. It has send(data) and an
        `on_output` that takes a callable, as devices.Serial.

        The device is a Device, any object with size, read() and write(), a
        virtio.Device, an Rng, or a `_vmm.VirtioMMIO`. Raises ValueError naming
        the occupant when the place is taken. Works while the guest runs, too.
        """
        self._check_open()
        if console:
            self.console._check(device)
        self._wiring.attach(device, mmio, port, irq, name, places)
        if console:
            self.console._carry(device)
        return device

    def detach(self, device: object) -> None:
        """Take a device off; ValueError when it is not attached."""
        self._check_open()
        self._wiring.detach(device)

    def reload(self, device: Device | VirtioDevice) -> None:
        """Run the file of a device's class again, and let it go on with that.

        The device stays the same object, attached where it is, with its
        attributes, timers and watches; `__init__` is not called. Registers
        keep their values, new ones begin with their reset; of a virtio device
        queues, chains in flight, configuration and what was negotiated stay.
        A class with its own save() and restore() has them called, the old and
        the new one. Works while the guest runs, between two calls of the
        device's methods.

        What the file raises leaves it, and the device as it was; so does
        ValueError when the class has gone, or has another size, other lines,
        ranges, queues, features, device_id or fields of its configuration.
        """
        self._check_open()
        from .reload import reload

        reload(self, device)

    def _realise(self) -> _vmm.VM:
        """The VM, made now if it is not there yet."""
        self._check_open()
        return self._vm or assembly.realise(self)

    def _boot(self, running: bool = False) -> None:
        """Boot information and start registers are in place after it."""
        self._realise()
        if not self._booted:
            assembly.boot(self, running)

    # -- running -------------------------------------------------------------

    def run(
        self,
        until: Until = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> Stop:
        """Run the guest until it ends, and say why.

        `until`: the end that is expected, or a list of several. An address:
        the guest stops before the instruction there (4 at most, with the
        breakpoints that are set). "return": the function that it is about to
        begin has returned. Or what pyvmm.printed(), exits(), elapsed() and
        written() make. `timeout`: seconds of wall time.

        Returns a Stop for exit, halt, reset, poweroff, until, break, step and
        pause; it may be called again and goes on. Raises GuestError for a
        triple fault, an emulation failure, an access that nobody claims and
        what else nobody means, GuestTimeout when `timeout` has passed;
        `check=False` returns those too. Exceptions of devices and
        KeyboardInterrupt leave it unchanged, and the machine may run on.
        Raises Unsupported when this host cannot do `until`, ValueError on a
        closed machine, RuntimeError when it runs already, and Error when
        another thread closes it meanwhile.
        """
        return running.guarded(
            self, lambda: running.until(self, until, timeout), check
        )

    async def run_async(
        self,
        until: Until = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> Stop:
        """run() for asyncio: the guest runs on a thread, the loop goes on.

        Devices with coroutine handlers or notify="asyncio" run on the loop
        that awaits this. Cancelling it pauses the guest, which may be run
        again. Returns and raises what run() does.
        """
        from .eventloop import run_async

        return await run_async(self, lambda: self.run(until, timeout, check))

    def step(
        self, n: int = 1, *, cpu: int = 0, timeout: float | None = None
    ) -> Stop:
        """Run `n` instructions of one vCPU, the others standing still.

        Returns the Stop of the last ("step"), or of what came before; raises
        as run() does. Unsupported where the host cannot step.
        """
        running.check_timeout(timeout)
        if n < 1:
            raise ValueError(f"n {n} is not 1 or more")
        if not 0 <= cpu < self._count:
            raise ValueError(f"cpu {cpu} is outside 0..{self._count - 1}")

        def run() -> Stop:
            for _ in range(n):
                end = self._debug.step(cpu, timeout)
                if end[1].reason != _vmm.EXIT_DEBUG:
                    break
            return running.make_stop(self, end, None, timeout)

        return running.guarded(self, run, True)

    def start(
        self,
        until: Until = None,
        timeout: float | None = None,
    ) -> None:
        """run() on a thread of its own; pause() or wait() gives its outcome.

        Raises ValueError on a closed machine, RuntimeError when it runs.
        """
        self._check_open()
        self._runner.start(lambda: self.run(until, timeout))

    def pause(self) -> Stop:
        """Make the run that goes on end, and return its Stop.

        That is "pause", or what ended it meanwhile; what run() would raise is
        raised here. RuntimeError when nothing was started, or inside a
        device's method.
        """
        self._check_open()
        runner = self._runner
        if runner.inside:
            raise RuntimeError(
                "a device's method cannot wait for its own run; exit() ends it"
            )
        if runner.owner is None and runner.background is None:
            raise RuntimeError("the machine does not run: start() it first")
        runner.interrupt(PAUSE)
        return self.wait()

    def exit(self, status: int = 0) -> None:
        """End the run that goes on as a write to the exit port does.

        For devices' methods, on whichever vCPU's thread, and for all other
        threads: run() returns a Stop "exit" with this `status`, 0 to 2^32 - 1.
        Of several such ends the first counts; one that an exception or
        another vCPU's end comes before is the outcome of the next run().
        ValueError on a closed machine, RuntimeError when it does not run.
        """
        if not 0 <= status < 1 << 32:
            raise ValueError(f"status {status} is outside 0..{(1 << 32) - 1}")
        self._runner.ask("exit", status)

    def reset(self) -> None:
        """End the run that goes on with a Stop "reset"; as exit().

        For the devices by which a guest resets its machine. What comes of it
        is for whoever called run(): here nothing is reset.
        """
        self._runner.ask("reset")

    def poweroff(self) -> None:
        """End the run that goes on with a Stop "poweroff"; as exit()."""
        self._runner.ask("poweroff")

    def wait(self, timeout: float | None = None) -> Stop:
        """Wait for the end of what start() began, and return its Stop.

        What run() would raise is raised here. TimeoutError when it still runs
        after `timeout` seconds, RuntimeError when nothing was started.
        """
        runner = self._runner
        if runner.owner is None and runner.background is None:
            raise RuntimeError("the machine does not run: start() it first")
        if not runner.wait(timeout):
            raise TimeoutError(f"the machine still runs after {timeout:g} s")
        runner.background = None
        outcome = runner.outcome
        assert outcome is not None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def call(
        self, function: Address, *args: int, timeout: float | None = None
    ) -> int:
        """Call a function of the guest's with ints, and return what it does.

        On vCPU 0, in the C ABI of its mode: cdecl in 32 bits, System V in 64;
        the result is eax or rax, unsigned. The stack is the guest's own, below
        what it uses; registers are then what they were. What the function has
        written stays. It ends by a breakpoint where the guest stands:
        Unsupported where the host cannot. GuestError when it does not return,
        GuestTimeout after `timeout` seconds; ValueError in real mode.
        """
        self._check_open()
        from .call import call

        return call(self, function, args, timeout)

    # -- snapshots -----------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The machine as it is now, to go back to: vCPUs, memory, devices.

        The first one copies the memory that was touched; later ones, children
        of the one that the machine is at, what was written since. The machine
        is at the new one from then on. The time stamp counter of the vCPUs and
        the host's clock go on; timers of devices keep the time that they had
        left.

        RuntimeError while it runs, ValueError when it has memory that other
        processes share, Error naming the device that cannot be saved; nothing
        has changed then.
        """
        from .snapshot import take

        return take(self)

    def restore(self, snap: Snapshot) -> None:
        """Put the machine back into the state of a snapshot of its tree.

        Copies what was written since, in place. Output of the console that
        came later is forgotten. Queues are looked at again when it runs.
        RuntimeError while it runs, ValueError when the snapshot is of another
        machine or other devices are attached now.
        """
        go_back = getattr(type(snap), "_restore", None)
        if go_back is None:
            raise TypeError(f"{snap!r} is no Snapshot")
        go_back(snap, self)

    def clone(self, n: int = 1) -> list[Machine]:
        """`n` more machines of the same state, for any thread to run.

        They share its memory until they write to it, and cost what they write.
        Devices are copied as a snapshot does; one with a clone() of its own
        makes its twin itself. Their consoles keep what they print. What the
        guest has got of entropy it has in all of them: tell it, if it matters.
        Raises as snapshot() does.
        """
        from .snapshot import clone

        return clone(self, n)

    def replay(
        self,
        snap: Snapshot,
        inputs: Iterable[bytes],
        *,
        into: Address | None = None,
        length: Address | tuple[Address, int] | None = None,
        max_size: int | None = None,
        until: Until = None,
        timeout: float | None = None,
        coverage: str | tuple[Address, int] | None = None,
        report: str = "new",
        whole: bool = False,
        seconds: float | None = None,
        blocks: Iterable[Address] | None = None,
        collect: Iterable[str | tuple[Address, int]] = (),
    ) -> Replay:
        """Run from a snapshot with each of many inputs, and iterate the cases.

        For each input: back to `snap`, the input written, run to an end, and
        all ends are values. The loop is C, and hands out what `report` says:
        "new" (what reaches new coverage or ends badly), "all", or "crashed".

        `into`: where an input goes, a virtual address, or "*rdi": where the
        register points in `snap`, or "*esp+8"; `max_size`: bytes there.
        `length`: where its length goes, a register, or an address as for
        `into`, or (address, size). `until`: as for run(), but for watchpoints.
        `timeout`: seconds for each input; looked at every 20 ms. `coverage`:
        "edges", the map of a guest that was built with coverage (65536
        counters at `pyvmm_coverage`), or (address, size) of such counters, or
        "blocks", for code that was built without: each basic block's first
        visit, by an int3 there until then. `blocks`: the addresses to do that
        at. `whole`: put back all of the vCPU's state each time rather than
        look at it after each 256 inputs, and do those again if it has changed.
        `seconds`: when to stop at the latest. `collect`: what of the guest each
        case is to show, registers by name and (address, size) of memory, 64
        KiB in all: `case.collected`.

        Only the console may be used by the fast loop; a turn in which the
        guest uses another device is done in Python, as every turn is when a
        device has a worker, timers or virtqueues. ValueError for what cannot
        be, a machine of several vCPUs among it; TypeError for inputs that are
        no bytes.
        """
        from .replay import Replay

        return Replay(
            self,
            snap,
            inputs,
            into=into,
            length=length,
            max_size=max_size,
            until=until,
            timeout=timeout,
            coverage=coverage,
            report=report,
            whole=whole,
            seconds=seconds,
            blocks=blocks,
            collect=collect,
        )

    # -- debugging -----------------------------------------------------------

    @property
    def _debug(self) -> Debugger:
        """Made when it is first wanted: most machines never stop to look."""
        if self._debugger is None:
            from .debug import Debugger

            self._debugger = Debugger(self)
        return self._debugger

    def breakpoint(self, address: Address) -> Point:
        """Stop each time before the instruction at a virtual address.

        One of 4 debug registers; run() then returns a "break". Whether the
        host can is found out when it is run (Unsupported); where ring 3 cannot
        and the guest is found there, run() says so instead of going on.
        """
        self._check_open()
        return self._debug.add(address, "x", 1)

    def watchpoint(
        self, address: Address, size: int = 4, kind: str = "w"
    ) -> Point:
        """Stop after each write ("w") or access ("rw") of `size` bytes there.

        `size` is 1, 2, 4 or 8, and `address` (virtual) a multiple of it.
        """
        self._check_open()
        if kind == "x":
            raise ValueError("kind 'x' is what breakpoint() is for")
        return self._debug.add(address, kind, size)

    @property
    def breakpoints(self) -> list[Point]:
        """The breakpoints and watchpoints that are set."""
        return list(self._debugger.points) if self._debugger else []

    # -- looking -------------------------------------------------------------

    def backtrace(
        self, cpu: int = 0, limit: int = 32, *, at: Stop | None = None
    ) -> Backtrace:
        """The calls that a vCPU is in, as a sequence of `Where`.

        The innermost is first; at most `limit` of them. `at`: those that it
        was in at a Stop, if memory is still as it was then: a call() has put
        the registers back. It is exact where the
        image has DWARF and pyelftools is installed (`pip install
        pyvmm-kvm[debug]`); else by frame pointers, or a search of the stack,
        whose finds have a question mark. RuntimeError while the machine runs,
        ValueError when there is no such vCPU.
        """
        if self.running:
            raise RuntimeError("the machine runs: pause() it first")
        if not 0 <= cpu < self._count:
            raise ValueError(f"cpu {cpu} is outside 0..{self._count - 1}")
        from .backtrace import backtrace

        if at is not None:
            return backtrace(self.cpus[at.cpu], limit, at.registers)
        return backtrace(self.cpus[cpu], limit)

    @property
    def vm(self) -> _vmm.VM:
        """The `_vmm.VM` below; realises the machine."""
        return self._realise()

    @property
    def mem(self) -> PhysicalMemory:
        """Memory by guest-physical address; realises the machine."""
        self._realise()
        return self._mem

    @property
    def cpu(self) -> Cpu:
        """vCPU 0: registers, its memory, page tables."""
        return self.cpus[0]

    @property
    def cpus(self) -> Sequence[Cpu]:
        """All vCPUs; the boot state is in place."""
        self._check_open()
        if not self._booted and self._runner.owner is None:
            self._boot()
        return self._cpus

    @property
    def symbols(self) -> Symbols:
        """Names of the loaded image: a mapping to addresses."""
        return self._symbols

    @property
    def console(self) -> Console:
        """Output and input; readable after close()."""
        if self._console is None:
            raise ValueError("the machine was made with console=False")
        return self._console

    @property
    def devices(self) -> list[object]:
        """The attached devices, in the order of attaching."""
        return [slot.device for slot in self._wiring.slots]

    @property
    def unclaimed(self) -> int:
        """Accesses that nobody claimed, answered with all ones."""
        return self._vm.unclaimed if self._vm is not None else 0

    @property
    def running(self) -> bool:
        """Whether a run() or start() goes on."""
        return self._runner.owner is not None

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    @property
    def trace(self) -> Callable[[_vmm.Exit], object] | None:
        """Called with each exit before it is handled; None: nothing is."""
        return self._trace

    @trace.setter
    def trace(self, function: Callable[[_vmm.Exit], object] | None) -> None:
        self._trace = function
        for cpu in self._cpus:
            cpu.vcpu.trace = function

    def __repr__(self) -> str:
        from .picture import picture

        return picture(self)

    # -- closing -------------------------------------------------------------

    def close(self) -> None:
        """Give everything back to the host; a run that goes on ends first.

        console, symbols and Stops stay readable. Twice is once. Inside a
        device's method, the machine closes when that run has ended.
        """
        self._close(None)

    def _close(self, limit: float | None) -> None:
        runner = self._runner
        with runner.changed:
            if self._closed:
                return
            runner.closed = True
        if runner.inside:
            self._close_after = True
            runner.interrupt(CLOSE)
            return
        runner.interrupt(CLOSE)
        if not runner.wait(limit):
            return
        with runner.changed:
            if self._closed:
                return
            self._closed = True
        runner.close()
        try:
            self._wiring.close()
        finally:
            if self._vm is not None:
                self._vm.close()
            self.memory.close()
            assembly.forget(self)

    def __enter__(self) -> Machine:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._close(0)

    def _check_open(self) -> None:
        # The run that close() is ending may go on to its end.
        runner = self._runner
        if self._closed or (runner.closed and not runner.inside):
            raise ValueError("operation on closed Machine")


def check_cmdline(cmdline: str) -> str:
    """`cmdline`, or TypeError or ValueError."""
    if not isinstance(cmdline, str):
        raise TypeError(f"cmdline is a str, not {type(cmdline).__name__}")
    if "\0" in cmdline:
        raise ValueError("cmdline has a NUL in it")
    return cmdline

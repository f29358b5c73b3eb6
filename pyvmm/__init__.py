# SPDX-License-Identifier: Apache-2.0
"""Virtual machines as a Python library: KVM guests in your process.

    import pyvmm

    with pyvmm.Machine(memory="16M") as m:
        m.load("kernel.elf")
        m.attach(pyvmm.Rng())
        stop = m.run(timeout=5)
    print(stop.reason, stop.status, m.console.text)

Importing does nothing: each name is loaded when it is first used.

    machine.py     Machine: assembles, runs, closes
    run.py         what happens inside run(): vCPUs, threads, ends
    debug.py       breakpoints, watchpoints, steps, and whether they work here
    until.py       printed(), exits() ...: the ends that a caller expects
    stop.py        Stop: why run() ended, and the report of it
    cpu.py         registers and page tables of one vCPU
    memory.py      the address spaces m.mem and m.cpu.mem
    device.py      Device and Irq: what users subclass
    registers.py   Reg: registers that a device declares; doorbell.py: Doorbell
    timers.py      after() and every() of devices
    snapshot.py    Snapshot: a moment to go back to; state.py: of devices
    snapfile.py    snapshots in files; filestate.py: devices in them;
                   corefile.py: ELF core files; mapped.py: what page tables
                   map; encoding.py: plain values as bytes; features.py:
                   processors compared
    campaigns.py   campaign(): many inputs on many workers; campaign_worker.py,
                   campaign_log.py: what those do, and what is done
    replay.py      Case: many inputs from one snapshot; corpus.py: Corpus
    blocks.py      where basic blocks begin; afl.py: the same loop for AFL++
    rng.py         Rng: a native virtio-rng
    virtio/        virtio devices in Python, and a driver side to test them
    native.py      what those two have in common
    wiring.py      addresses, lines and eventfds of attached devices
    console.py     output, input, expect
    image.py       what load() takes: ELF files, bytes, snippets
    snippet.py     assembly made into images
    guest.py       build(): C and assembly on the guest SDK, and its cache
    symbols.py     names to addresses and back
    testing/       for tests: devices on a bus without a machine, fixtures
    plugin.py      what pytest loads; call.py: functions of the guest
    boot/          how a guest is told what the machine is like
    x86.py         layouts of kernel structures, page table formats
    host.py        what the KVM of this host can do
    errors.py      exceptions
    cli.py         the command line; project.py: new-kernel-project
    assembly.py    making the host's objects; running.py, ends.py: run()'s
                   way in and out; picture.py: the repr; dwarf.py: lines
    _vmm           the C core: KVM, Memory, VM, VCPU, buses, devices
    sdk/           the guest SDK: headers, runtime, linker script
    devices/       devices that stand alone
"""

__version__ = "0.1.0.dev0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import afl as afl
    from . import boot as boot
    from . import guest as guest
    from . import testing as testing
    from . import virtio as virtio
    from .boot import Boot as Boot
    from .boot.start_info import StartInfo as StartInfo
    from .campaigns import campaign as campaign
    from .corpus import Corpus as Corpus
    from .device import Device as Device
    from .device import Irq as Irq
    from .device import Msi as Msi
    from .device import Range as Range
    from .doorbell import Doorbell as Doorbell
    from .errors import Error as Error
    from .errors import GuestError as GuestError
    from .errors import GuestTimeout as GuestTimeout
    from .errors import Unsupported as Unsupported
    from .machine import Machine as Machine
    from .registers import Reg as Reg
    from .rng import Rng as Rng
    from .snapshot import Snapshot as Snapshot
    from .stop import Stop as Stop
    from .until import elapsed as elapsed
    from .until import exits as exits
    from .until import printed as printed
    from .until import returned as returned
    from .until import written as written

# Public name: the module that has it.
_HOME = {
    "Boot": "boot",
    "Corpus": "corpus",
    "Device": "device",
    "Doorbell": "doorbell",
    "Error": "errors",
    "GuestError": "errors",
    "GuestTimeout": "errors",
    "Irq": "device",
    "Machine": "machine",
    "Msi": "device",
    "Range": "device",
    "Reg": "registers",
    "Rng": "rng",
    "Snapshot": "snapshot",
    "StartInfo": "boot.start_info",
    "Stop": "stop",
    "Unsupported": "errors",
    "elapsed": "until",
    "exits": "until",
    "printed": "until",
    "returned": "until",
    "written": "until",
    "campaign": "campaigns",
}

__all__ = [  # noqa: RUF022 - in the order of a first look
    "Machine",
    "Device",
    "Irq",
    "Msi",
    "Reg",
    "Doorbell",
    "Range",
    "Rng",
    "Stop",
    "Snapshot",
    "Corpus",
    "Error",
    "GuestError",
    "GuestTimeout",
    "Unsupported",
    "printed",
    "written",
    "exits",
    "elapsed",
    "returned",
    "Boot",
    "StartInfo",
    "campaign",
    "afl",
    "boot",
    "guest",
    "testing",
    "virtio",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    packages = ("afl", "boot", "guest", "testing", "virtio")
    if home is None and name not in packages:
        # `from . import x` asks here, too, before it imports x.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if home is None:
        return import_module(f".{name}", __name__)
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

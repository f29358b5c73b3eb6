# SPDX-License-Identifier: Apache-2.0
"""The command line: `pyvmm run GUEST.elf`, `info`, `new-kernel-project`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import Any

    from . import _vmm
    from .machine import Machine
    from .stop import Stop

# Exit statuses that are not the guest's.
STATUS_MAX = 255
STATUS_TIMEOUT = 124
STATUS_ERROR = 125
STATUS_INTERRUPTED = 130  # 128 + SIGINT

WATCH_SECONDS = 0.1  # between two looks at the files of devices

PRESETS = {"pc": "PC"}  # of --preset: a class of pyvmm.devices


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default); the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has gone: nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_ERROR


def make_parser() -> ArgumentParser:
    """The parser of all commands."""
    from argparse import ArgumentParser, HelpFormatter

    from . import __version__

    def formatter(prog: str) -> HelpFormatter:
        # Asking for the terminal's width would import shutil: 5 ms.
        return HelpFormatter(prog, width=79)

    parser = ArgumentParser(
        prog="pyvmm",
        description="Virtual machines on KVM, in this process.",
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # Its prog is given since working it out imports a lot.
    commands = parser.add_subparsers(
        prog="pyvmm", metavar="COMMAND", required=True
    )
    run = commands.add_parser(
        "run",
        formatter_class=formatter,
        help="boot a guest kernel",
        description="Boot an ELF file by start_info. Its console is the "
        "standard output, piped or typed input goes to it. The exit status is "
        "the guest's, 255 when that is larger; 124 after --timeout, 125 when "
        "the run failed, 130 on Ctrl-C.",
    )
    run.add_argument("guest", metavar="GUEST.elf")
    run.add_argument(
        "--memory", default="16M", metavar="SIZE", help="RAM (16M)"
    )
    run.add_argument(
        "--cpus", type=int, default=1, metavar="N", help="vCPUs (1)"
    )
    run.add_argument(
        "--cmdline", default="", metavar="WORDS", help="for the guest"
    )
    run.add_argument(
        "--preset",
        choices=PRESETS,
        help="a machine with devices: pc has those of a minimal PC, its UART "
        "as the console",
    )
    run.add_argument("--initrd", metavar="FILE", help="put into RAM")
    run.add_argument("--rng", action="store_true", help="attach a virtio-rng")
    run.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="FILE.py[:Class][@PLACE]",
        help="attach the pyvmm.Device in a file, or one of pyvmm.devices "
        "(Rtc), at an address (@0xd0000000), at ports (@port:0x80) or at its "
        "own place; may be repeated",
    )
    run.add_argument(
        "--timeout", type=seconds, metavar="S", help="give up after S seconds"
    )
    run.add_argument(
        "--watch",
        action="store_true",
        help="reload devices when their files change",
    )
    run.add_argument(
        "--trace",
        action="store_true",
        help="print each exit on the standard error",
    )
    run.set_defaults(command=run_command)
    info = commands.add_parser(
        "info",
        formatter_class=formatter,
        help="what this host's KVM can do",
        description="What this host's KVM can do, and why not when it cannot. "
        "Runs a few tiny guests to find out.",
    )
    info.set_defaults(command=info_command)
    new = commands.add_parser(
        "new-kernel-project",
        formatter_class=formatter,
        help="make a folder with a kernel and its tests",
        description="Make a folder with a kernel on the guest SDK, tests of "
        "it inside and outside of the guest, and a CI file. It must be empty "
        "or not be there.",
    )
    new.add_argument("folder", metavar="DIR")
    new.set_defaults(command=new_command)
    return parser


def complain(text: str) -> None:
    """One line of our own on the standard error."""
    sys.stdout.flush()
    # In one piece: a thread of ours may be cut off by the end of the process.
    sys.stderr.write(f"pyvmm: {text}\n")


# -- run ---------------------------------------------------------------------


def run_command(options: Namespace) -> int:
    """`pyvmm run`."""
    from .errors import Error, GuestError

    try:
        machine = make_machine(options)
    except (Error, OSError, ValueError, TypeError, ImportError) as exc:
        complain(describe(exc))
        return STATUS_ERROR
    unwatch = watch(machine) if options.watch else None
    with machine:
        try:
            feed_input(machine)
            stop = machine.run(timeout=options.timeout)
        except GuestError as exc:
            complain(str(exc))
            timeout = exc.stop.reason == "timeout"
            return STATUS_TIMEOUT if timeout else STATUS_ERROR
        except (OSError, Error) as exc:
            complain(describe(exc))
            return STATUS_ERROR
        except Exception:  # a device's bug: its author wants all of it
            sys.excepthook(*sys.exc_info())
            return STATUS_ERROR
        finally:
            if unwatch is not None:
                unwatch()
    return exit_status(stop)


def exit_status(stop: Stop) -> int:
    """The process's exit status for an end that the guest means."""
    if stop.status is not None:
        return min(stop.status, STATUS_MAX)
    complain(stop.message)
    return STATUS_ERROR if stop.reason == "halt" else 0


def describe(exc: BaseException) -> str:
    """An exception for people: its text and its notes."""
    text = str(exc)
    if isinstance(exc, OSError) and exc.strerror and not exc.filename:
        text = exc.strerror
    notes = getattr(exc, "__notes__", [])
    return "\n".join([text or type(exc).__name__, *notes])


def make_machine(options: Namespace) -> Machine:
    """The machine that the options describe."""
    from .machine import Machine

    make = ready_made(PRESETS[options.preset]) if options.preset else Machine
    machine: Machine = make(
        options.memory,
        cpus=options.cpus,
        cmdline=options.cmdline,
        console=sys.stdout,
    )
    try:
        machine.load(options.guest, initrd=options.initrd)
        if options.rng:
            from .rng import Rng

            machine.attach(Rng())
        for name in options.device:
            name, _, place = name.partition("@")
            mmio, port = parse_place(place)
            machine.attach(make_device(name), mmio=mmio, port=port)
        if options.trace:
            machine.trace = print_exit
    except BaseException:
        machine.close()
        raise
    return machine


def parse_place(place: str) -> tuple[int | None, int | None]:
    """Address and port of a `0xADDRESS` or `port:0xPORT`."""
    kind, _, text = place.rpartition(":")
    if not place:
        return None, None
    try:
        if not kind:
            return int(text, 0), None
        if kind == "port":
            return None, int(text, 0)
    except ValueError:
        pass
    raise ValueError(f"{place!r} is not a place like 0xd0000000 or port:0x80")


def make_device(name: str) -> object:
    """The device of a `FILE.py[:Class]`: its Class, or its only one.

    Or that of a ready-made `Class`.
    """
    if name.isidentifier():
        return ready_made(name)()
    from importlib.util import module_from_spec, spec_from_file_location

    from .device import Device
    from .native import Native

    path, colon, wanted = name.rpartition(":")
    if not colon:
        path, wanted = name, ""
    if not os.path.exists(path):
        raise ValueError(f"no file {path!r}")
    spec = spec_from_file_location(os.path.basename(path)[:-3], path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is no Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    if wanted:
        if not hasattr(module, wanted):
            raise ValueError(f"{path} has no {wanted}")
        return getattr(module, wanted)()
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Device | Native)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found) or "none"
        raise ValueError(
            f"{path} has not one device class but {names}: say {path}:CLASS"
        )
    device: object = found[0]()
    return device


def ready_made(name: str) -> Callable[..., Any]:
    """The class of that name in pyvmm.devices.

    By name: the package itself is not built on them.
    """
    from importlib import import_module

    devices = import_module(f"{__package__}.devices")
    if name not in devices.__all__:
        raise ValueError(
            f"{name!r} is no FILE.py and none of {', '.join(devices.__all__)}"
        )
    made: Callable[..., Any] = getattr(devices, name)
    return made


def feed_input(machine: Machine) -> None:
    """Let the guest read the standard input.

    A file is read at once. A terminal and a pipe, whose end may never come,
    are read by a thread. A device that reads it itself gets it all.
    """
    from stat import S_ISCHR, S_ISREG

    if any(getattr(each, "reads_stdin", False) for each in machine.devices):
        return
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return  # no standard input
    if S_ISREG(mode):
        while data := os.read(0, 1 << 20):
            machine.console.send(data)
    elif not S_ISCHR(mode) or os.isatty(0):
        from threading import Thread

        Thread(target=read_input, args=(machine,), daemon=True).start()


def read_input(machine: Machine) -> None:
    """What comes goes to the guest, until it or the input ends."""
    while data := os.read(0, 4096):
        if machine.closed:
            return
        try:
            machine.console.send(data)
        except ValueError:
            return  # it is being closed


def watch(machine: Machine) -> Callable[[], None]:
    """Reload devices whose files change, from a thread, until the end.

    What it returns ends that, once all that was reloaded has been said.
    """
    from threading import Event, Thread

    from .reload import Watch

    watched = Watch(machine)
    over = Event()

    def look() -> None:
        while not over.wait(WATCH_SECONDS):
            for path, exc in watched.look():
                sys.stdout.flush()
                if exc is None:
                    complain(f"reloaded {path}")
                else:
                    sys.excepthook(type(exc), exc, exc.__traceback__)

    thread = Thread(target=look, name="pyvmm watch", daemon=True)
    thread.start()

    def unwatch() -> None:
        over.set()
        thread.join()

    return unwatch


def print_exit(exit: _vmm.Exit) -> None:
    """One line of --trace."""
    from .stop import describe_access, exit_name

    if exit.size:
        text = describe_access(
            exit.pio, exit.write, exit.size, exit.addr, exit.value
        )
        text = f"{exit_name(exit.reason)}: {text}{register_name(exit)}"
    else:
        text = exit_name(exit.reason)
    print(text, file=sys.stderr)


def register_name(exit: _vmm.Exit) -> str:
    """What an access to a declared register is called, as " (Alarm.go)"."""
    from .device import Device, RangeAt

    at = exit.device
    if not isinstance(at, Device | RangeAt) or at.base is None:
        return ""
    device = at.device if isinstance(at, RangeAt) else at
    name = at.where(exit.addr - at.base, exit.size)
    return f" ({type(device).__name__}.{name})" if name else ""


# -- info --------------------------------------------------------------------


def info_command(options: Namespace) -> int:
    """`pyvmm info`."""
    from . import host

    try:
        facts = host.facts()
    except OSError as exc:
        complain(describe(exc))
        return 1
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:{width}}  {value}")
    return 0


# -- new-kernel-project ------------------------------------------------------


def new_command(options: Namespace) -> int:
    """`pyvmm new-kernel-project`."""
    from .errors import Error
    from .project import create

    try:
        for name in create(options.folder):
            print(os.path.join(options.folder, name))
    except (Error, OSError) as exc:
        complain(str(exc))
        return STATUS_ERROR
    print(f"now: cd {options.folder} && pytest")
    return 0


def seconds(text: str) -> float:
    """A number of seconds; ValueError."""
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value

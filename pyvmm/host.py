# SPDX-License-Identifier: Apache-2.0
"""What the KVM of this host can do: the facts behind `pyvmm info`."""

from __future__ import annotations

import os

from . import _vmm

# KVM_CAP_ numbers of <linux/kvm.h>, held against it by a test.
CAPABILITIES = {
    "IRQCHIP": 0,
    "USER_MEMORY": 3,
    "SET_TSS_ADDR": 4,
    "EXT_CPUID": 7,
    "NR_VCPUS": 9,
    "NR_MEMSLOTS": 10,
    "MP_STATE": 14,
    "COALESCED_MMIO": 15,
    "SYNC_MMU": 16,
    "DESTROY_MEMORY_REGION_WORKS": 21,
    "IRQ_ROUTING": 25,
    "IRQ_INJECT_STATUS": 26,
    "IRQFD": 32,
    "PIT2": 33,
    "SET_BOOT_CPU_ID": 34,
    "IOEVENTFD": 36,
    "SET_IDENTITY_MAP_ADDR": 37,
    "VCPU_EVENTS": 41,
    "DEBUGREGS": 50,
    "XSAVE": 55,
    "XCRS": 56,
    "TSC_CONTROL": 60,
    "MAX_VCPUS": 66,
    "TSC_DEADLINE_TIMER": 72,
    "SYNC_REGS": 74,
    "SIGNAL_MSI": 77,
    "READONLY_MEM": 81,
    "IRQFD_RESAMPLE": 82,
    "CHECK_EXTENSION_VM": 105,
    "IMMEDIATE_EXIT": 136,
    "COALESCED_PIO": 162,
    "MANUAL_DIRTY_LOG_PROTECT2": 168,
    "X86_MSR_FILTER": 189,
    "DIRTY_LOG_RING": 192,
    "SET_GUEST_DEBUG2": 195,
    "BINARY_STATS_FD": 203,
    "XSAVE2": 208,
}

DEVICE = "/dev/kvm"

_kvm: tuple[int, _vmm.KVM] | None = None


def kvm() -> _vmm.KVM:
    """/dev/kvm, opened once per process (and anew in a forked child).

    Raises OSError whose text says what helps.
    """
    global _kvm
    pid = os.getpid()
    if _kvm is None or _kvm[0] != pid or _kvm[1].closed:
        try:
            _kvm = (pid, _vmm.KVM())
        except OSError as exc:
            hint = why_not()
            if hint:
                exc.add_note(hint)
            raise
    return _kvm[1]


def why_not() -> str | None:
    """Why KVM cannot be used here and which command helps; None: it can."""
    if os.access(DEVICE, os.R_OK | os.W_OK):
        return None
    if os.path.exists(DEVICE):
        import grp

        about = os.stat(DEVICE)
        if about.st_mode & 0o060 != 0o060:
            return (
                f"only root may use {DEVICE}: "
                f"`sudo chgrp kvm {DEVICE} && sudo chmod 660 {DEVICE}`, then "
                "join that group: `sudo usermod -aG kvm $USER`, and log in "
                "again"
            )
        group = grp.getgrgid(about.st_gid).gr_name
        return (
            f"{DEVICE} is for a group: `sudo usermod -aG {group} $USER`, then "
            "log in again"
        )
    flags = _cpu_flags()
    if not flags & {"vmx", "svm"}:
        return (
            f"no {DEVICE}, and the processor shows no virtualization: switch "
            "it on in the firmware, or, in a virtual machine, ask for nested "
            "virtualization"
        )
    module = "kvm_intel" if "vmx" in flags else "kvm_amd"
    return f"no {DEVICE}: `sudo modprobe {module}`"


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    return set()


def facts() -> list[tuple[str, str]]:
    """(name, value) lines about this host's KVM; runs trial guests.

    Raises OSError when there is no KVM to ask.
    """
    from . import debug

    kvm_ = kvm()
    uname = os.uname()
    lines = [
        ("kernel", f"{uname.sysname} {uname.release} {uname.machine}"),
        ("modules", " ".join(_modules()) or "built in"),
        ("KVM API version", "12"),
        ("vCPUs per machine", str(kvm_.max_vcpus)),
        ("memory slots", str(kvm_.max_slots)),
        ("CPUID entries", str(len(kvm_.cpuid))),
        ("MSRs", str(len(kvm_.msr_indices()))),
        ("registers by sync", _sync_names(kvm_.sync_regs)),
    ]
    there = {name: kvm_.check(cap) for name, cap in CAPABILITIES.items()}
    have = [name for name, value in there.items() if value]
    lines.append(("capabilities", " ".join(have)))
    missing = [name for name, value in there.items() if not value]
    lines.append(("not offered", " ".join(missing) or "-"))
    for mode in debug.MODES:
        works = debug.trial(mode)
        words = [
            f"{word}: {'yes' if name in works else 'no'}"
            for name, word in debug.FEATURE_WORDS.items()
        ]
        lines.append((f"trial in {debug.MODE_WORDS[mode]}", ", ".join(words)))
    return lines


def _sync_names(bits: int) -> str:
    names = ("REGS", "SREGS", "EVENTS")
    have = [name for i, name in enumerate(names) if bits >> i & 1]
    return " ".join(have) or "none"


def _modules() -> list[str]:
    """The loaded kernel modules that KVM is made of."""
    try:
        with open("/proc/modules", encoding="ascii") as file:
            names = [line.split()[0] for line in file]
    except OSError:
        return []
    return sorted(name for name in names if name.startswith("kvm"))

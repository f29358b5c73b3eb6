# SPDX-License-Identifier: Apache-2.0
"""What a processor can do, by name: rows of CPUID compared.

Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    # function, index, flags, eax, ebx, ecx, edx: as _vmm.KVM.cpuid has them
    Row = tuple[int, int, int, int, int, int, int]

EAX, EBX, ECX, EDX = 3, 4, 5, 6
REGISTERS = {EAX: "eax", EBX: "ebx", ECX: "ecx", EDX: "edx"}

# Names by bit, from 0 on; "-" is none, "=" no feature but a state.
NAMES: dict[tuple[int, int, int], str] = {
    (0x1, 0, EDX): (
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat "
        "pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss = tm ia64 pbe"
    ),
    (0x1, 0, ECX): (
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg "
        "fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt "
        "tsc_deadline aes xsave = avx f16c rdrand ="
    ),
    (0x7, 0, EBX): (
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp smep bmi2 erms invpcid rtm "
        "pqm fpcsds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - "
        "clflushopt clwb intel_pt avx512pf avx512er avx512cd sha avx512bw "
        "avx512vl"
    ),
    (0x7, 0, ECX): (
        "prefetchwt1 avx512vbmi umip pku = waitpkg avx512vbmi2 shstk gfni vaes "
        "vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 "
        "- - - - - rdpid keylocker - cldemote - movdiri movdir64b enqcmd "
        "sgx_lc pks"
    ),
    (0x7, 0, EDX): (
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect "
        "srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize "
        "hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 "
        "amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities "
        "core_capabilities ssbd"
    ),
    (0x7, 1, EAX): (
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd archperfmon - "
        "fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx_fp16 hreset avx_ifma - "
        "- lam"
    ),
    (0xD, 0, EAX): (
        "xcr0.x87 xcr0.sse xcr0.avx xcr0.bndregs xcr0.bndcsr xcr0.opmask "
        "xcr0.zmm_hi256 xcr0.hi16_zmm - xcr0.pkru - - - - - - - xcr0.tilecfg "
        "xcr0.tiledata"
    ),
    (0xD, 1, EAX): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x8000_0001, 0, EDX): (
        "= = = = = = = = = = - syscall = = = = = = - mp nx - mmxext = = "
        "fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"
    ),
    (0x8000_0001, 0, ECX): (
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse "
        "3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - "
        "tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"
    ),
    (0x8000_0007, 0, EDX): "ts fid vid ttp tm stc 100mhz hwpstate constant_tsc",
    (0x8000_0008, 0, EBX): (
        "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - - "
        "ibpb - ibrs stibp_amd"
    ),
}


def table(rows: Iterable[Row]) -> dict[tuple[int, int], Row]:
    """Rows by function and index."""
    return {(row[0], row[1]): row for row in rows}


def vendor(rows: Mapping[tuple[int, int], Row]) -> str:
    """The maker's name of 12 characters, "" when there is none."""
    row = rows.get((0, 0))
    if row is None:
        return ""
    parts = (row[EBX], row[EDX], row[ECX])
    data = b"".join(part.to_bytes(4, "little") for part in parts)
    return data.decode("ascii", "replace")


def missing(then: Iterable[Row], now: Iterable[Row]) -> list[str]:
    """The features that `then` has and `now` has not, by name."""
    old, new = table(then), table(now)
    found = []
    for (function, index, register), words in NAMES.items():
        row = old.get((function, index))
        if row is None:
            continue
        other = new.get((function, index))
        gone = row[register] & ~(other[register] if other else 0)
        names = words.split()
        for bit in range(32):
            name = names[bit] if bit < len(names) else "-"
            if not gone >> bit & 1 or name == "=":
                continue
            if name == "-":
                where = f"CPUID {function:#x}.{index} {REGISTERS[register]}"
                name = f"{where} bit {bit}"
            found.append(name)
    return found

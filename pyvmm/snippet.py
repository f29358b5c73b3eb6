# SPDX-License-Identifier: Apache-2.0
"""Assembly and C made into guests by the tools that are installed.

C is the affair of guest.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from .errors import Error

# Mode: directive of the assembler, option of the assembler, linker's format.
ASSEMBLER = {
    "real": (".code16", "--32", "elf_i386"),
    "protected": (".code32", "--32", "elf_i386"),
    "long": (".code64", "--64", "elf_x86_64"),
    "user": (".code64", "--64", "elf_x86_64"),
}

PACKAGES = {"as": "binutils", "ld": "binutils", "ar": "binutils"}


def find_tool(name: str) -> str:
    """The path of a tool; Error with the package that has it."""
    path = shutil.which(name)
    if path is None:
        raise Error(
            f"guests need {name!r}, which is not installed: "
            f"apt-get install {PACKAGES[name]}"
        )
    return path


def run_tool(args: list[str], source: str = "") -> None:
    """Run a tool; what it says when it fails is the Error's text."""
    done = subprocess.run(
        args,
        input=source.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        raise Error(done.stderr.decode(errors="replace").strip())


def assemble(source: str, mode: str, at: int) -> bytes:
    """An ELF file of the assembly, Intel syntax, to be loaded at `at`.

    It starts at `_start` if there is such a symbol, else at its beginning.
    Raises Error with the assembler's words.
    """
    code, option, emulation = ASSEMBLER[mode]
    assembler, linker = find_tool("as"), find_tool("ld")
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as folder:
        unlinked = os.path.join(folder, "snippet.o")
        linked = os.path.join(folder, "snippet.elf")
        # On the first line, so that the numbers of lines are the caller's.
        text = f".intel_syntax noprefix; .text; {code}; {source}\n"
        run_tool([assembler, option, "-o", unlinked, "-"], text)
        run_tool(
            [
                linker, "-m", emulation, "-N", f"-Ttext={at:#x}",
                "--build-id=none", "-z", "noexecstack", "-o", linked, unlinked,
            ]
        )  # fmt: skip
        with open(linked, "rb") as file:
            return file.read()


def compile_c(source: str, mode: str, coverage: bool | str = False) -> bytes:
    """An ELF file of the C program and the guest runtime (`runtime.h`).

    `mode`: "protected", 32-bit in ring 0, or "user", 64-bit in ring 3.
    `coverage`: count the program's edges, the runtime's not (`coverage.h`);
    "compare": and how far its comparisons of integers get.
    Raises Error with the compiler's words.
    """
    from .guest import build_text

    return build_text(source, mode, coverage)

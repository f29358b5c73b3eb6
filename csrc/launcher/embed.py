# SPDX-License-Identifier: Apache-2.0
"""How to compile against and link with the libpython of this interpreter.

The Makefile has them written to files (`@file` on the compiler's command
line); setup.py imports them.
"""

import os
import sys
import sysconfig


def includes() -> list[str]:
    """Flags that find Python.h."""
    paths = sysconfig.get_paths()
    dirs = dict.fromkeys((paths["include"], paths["platinclude"]))
    return [f"-I{path}" for path in dirs]


def link() -> list[str]:
    """Flags that embed libpython, or nothing when there is none to link."""

    def var(name: str) -> str:
        return sysconfig.get_config_var(name) or ""

    flags = [*var("LIBS").split(), *var("SYSLIBS").split()]
    libdir = var("LIBDIR")
    if var("Py_ENABLE_SHARED") and os.path.exists(
        os.path.join(libdir, var("LDLIBRARY"))
    ):
        flags = [f"-L{libdir}", f"-lpython{var('LDVERSION')}", *flags]
        if not libdir.startswith(("/usr/lib", "/lib")):
            flags.append(f"-Wl,-rpath,{libdir}")
        return flags
    for folder in (libdir, var("LIBPL")):
        static = os.path.join(folder, var("LIBRARY"))
        if var("LIBRARY").endswith(".a") and os.path.exists(static):
            # Extension modules find the interpreter's symbols in the program.
            return [static, *flags, "-Wl,--export-dynamic"]
    return []


def defines() -> list[str]:
    """The interpreter to fall back to, and its version."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    return [
        f'-DPYVMM_PYTHON="{base}"',
        f'-DPYVMM_PYTHON_DIR="python{sys.version_info[0]}.{sys.version_info[1]}"',
    ]


def main(folder: str) -> None:
    """Writes one file of compiler options for each of the above."""
    for function in (includes, link, defines):
        with open(os.path.join(folder, function.__name__), "w") as file:
            print(*(f"'{word}'" for word in function()), sep="\n", file=file)


if __name__ == "__main__":
    main(sys.argv[1])

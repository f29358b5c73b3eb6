# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel: the core, the extension on it, and the launcher.

The Makefile builds the same three for work in a checkout, faster and with
dependencies; both read the compiler's flags from csrc/flags.mk.
"""

import os
import runpy
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError

try:
    from setuptools.command.build_scripts import build_scripts
except ImportError:  # before setuptools 73 only distutils has it
    from distutils.command.build_scripts import build_scripts

from distutils.ccompiler import new_compiler
from distutils.sysconfig import customize_compiler

# What is installed when no libpython can be linked; pip completes the line.
TEXT_LAUNCHER = """\
#!python
import runpy

runpy.run_module("pyvmm", run_name="__main__", alter_sys=True)
"""


def read_flags() -> dict[str, list[str]]:
    """The variables of csrc/flags.mk."""
    flags = {}
    with open("csrc/flags.mk", encoding="ascii") as file:
        for line in file:
            name, equals, words = line.partition(" = ")
            if equals and not name.startswith("#"):
                flags[name] = words.split()
    return flags


FLAGS = read_flags()
COMPILE = FLAGS["C_FLAGS"] + FLAGS["C_WARNINGS"]
HEADERS = sorted(glob("csrc/vmm/*.h") + glob("csrc/py/*.h"))


class BuildScripts(build_scripts):
    """Compiles the launcher where a script would have been copied."""

    def run(self) -> None:
        os.makedirs(self.build_dir, exist_ok=True)
        target = os.path.join(self.build_dir, "pyvmm")
        try:
            self.compile_launcher()
        except (CompileError, LinkError) as error:
            self.warn(f"pyvmm becomes a script: no native launcher: {error}")
            with open(target, "w", encoding="ascii") as file:
                file.write(TEXT_LAUNCHER)
        os.chmod(target, 0o755)

    def compile_launcher(self) -> None:
        embed = runpy.run_path("csrc/launcher/embed.py")
        link = embed["link"]()
        if not link:
            raise LinkError("this interpreter comes without a libpython")
        compiler = new_compiler()
        customize_compiler(compiler)
        objects = compiler.compile(
            list(self.scripts),
            output_dir=self.build_dir + "-objects",
            extra_postargs=COMPILE + embed["includes"]() + embed["defines"](),
        )
        compiler.link_executable(
            objects,
            "pyvmm",
            output_dir=self.build_dir,
            extra_postargs=link,
        )

    def get_outputs(self) -> list[str]:
        return [os.path.join(self.build_dir, "pyvmm")]


class BuildPy(build_py):
    """Leaves out what a build in the checkout put beside the sources."""

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        files = super().find_data_files(package, src_dir)
        return [name for name in files if os.path.isfile(name)]


setup(
    # The core is compiled without Python's headers in reach.
    libraries=[
        (
            "vmm",
            {
                "sources": sorted(glob("csrc/vmm/*.c")),
                "cflags": COMPILE,
                "obj_deps": {"": HEADERS},
            },
        )
    ],
    ext_modules=[
        Extension(
            "pyvmm._vmm",
            sorted(glob("csrc/py/*.c")),
            include_dirs=["csrc"],
            depends=HEADERS,
            extra_compile_args=COMPILE,
            extra_link_args=FLAGS["C_LIBS"],
        )
    ],
    scripts=["csrc/launcher/main.c"],
    cmdclass={"build_scripts": BuildScripts, "build_py": BuildPy},
)

# SPDX-License-Identifier: Apache-2.0
"""A project of its own, with a guest, whose tests pytest runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

# Functions that do what their names say. It is compiled with its own name, so
# that source lines have one.
GUEST = """
#include <io.h>
#include <runtime.h>

int counter;

int add(int a, int b) { return a + b; }
int count(void) { return ++counter; }
void die(void) { panic("dead"); }
void spin(void) { for (;;) cpu_relax(); }
void unknown(void) { __asm__ volatile("fwait; int3"); }
void nowhere(void) { outb(0x99, 1); }
void ring(void) { outb(0x500, 1); spin(); }

void fault(void)
{
    uint8_t none[6] = {0}; /* an IDT without a gate */

    __asm__ volatile("lidt %0; ud2" : : "m"(none));
}

void echo(void)
{
    for (;;)
        putchar(getchar());
}

int main(void)
{
    print("ready\\n");
    return counter;
}
"""

CONFTEST = """
from pyvmm import testing

def boot(m):
    m.load({image!r})
    m.run(until="main", timeout=20)

@testing.machine
def guest(m):
    boot(m)
"""

COUNTED = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed)")


class Done:
    """What a pytest has said: `text`, and `code` that it ended with."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text

    def counts(self, **expected: int) -> None:
        """How many tests passed, failed, had errors, were skipped."""
        last = self.text.strip().splitlines()[-1]
        found = {
            "errors" if word == "error" else word: int(number)
            for number, word in COUNTED.findall(last)
        }
        assert found == expected, self.text

    def section(self, name: str) -> str:
        """The first section of that name."""
        match = re.search(
            rf"^-+ {re.escape(name)} -+$\n(.*?)\n(?=[-=_]{{4,}})",
            self.text,
            re.MULTILINE | re.DOTALL,
        )
        assert match, self.text
        return match[1].strip()


class Project:
    """A folder with a conftest.py that has the fixture `guest`.

    `alone`: without other plugins, which take their time to load.
    """

    alone = False

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        conftest = CONFTEST.format(image=str(image))
        (folder / "conftest.py").write_text(conftest)

    def write(self, tests: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(dedent(tests))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def run(self, *args: str, stdin: str = "", cache: bool = False) -> Done:
        alone = self.alone and "-n" not in args
        return run_pytest(
            self.folder, *args, stdin=stdin, cache=cache, alone=alone
        )


def run_pytest(
    folder: Path,
    *args: str,
    stdin: str = "",
    cache: bool = False,
    columns: int = 120,
    alone: bool = False,
) -> Done:
    """pytest in a process of its own, in that folder.

    `alone`: without the plugins of others, which takes a third of the time.
    """
    command = [sys.executable, "-m", "pytest", "--color=no"]
    env = {**os.environ, "PYTEST_ADDOPTS": "", "COLUMNS": str(columns)}
    if not cache:
        command += ["-p", "no:cacheprovider"]
    if alone:
        command += ["-p", "pyvmm"]
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [*command, *args],
        cwd=folder,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Done(done.returncode, done.stdout + done.stderr)


def compile_guest(folder: Path) -> Path:
    """The image of GUEST."""
    from pyvmm.guest import build

    (folder / "guest.c").write_text(GUEST)
    return Path(build(folder / "guest.c", out=folder / "guest.elf"))

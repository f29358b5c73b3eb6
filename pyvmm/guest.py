# SPDX-License-Identifier: Apache-2.0
"""The guest SDK: C and assembly made into guests, and kept for the next time.

    import pyvmm.guest

    m.load(pyvmm.guest.build("main.c"))

What was built stays in a folder of the user's ($XDG_CACHE_HOME/pyvmm, else
~/.cache/pyvmm), under a name made of what went into it: the compiler, its
options, the source, every header, the SDK. So the same build is a look at
files, and a change anywhere is another name. A file appears there whole or not
at all, and processes that build the same thing at once disturb nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from tempfile import TemporaryDirectory, mkdtemp

from .errors import Error
from .snippet import find_tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    Name = str | PathLike[str]

SDK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sdk")
INCLUDE = os.path.join(SDK, "include")
LIB = os.path.join(SDK, "lib")
LINK_SCRIPT = os.path.join(LIB, "link.ld")
# What coverage= takes: options of the compiler, in a file.
COVERAGE = {
    True: f"@{os.path.join(LIB, 'coverage.flags')}",
    "compare": f"@{os.path.join(LIB, 'compare.flags')}",
}

# Mode: option of the compiler.
COMPILER = {"protected": "-m32", "user": "-m64"}

COMPILERS = ("gcc", "clang")  # the first that is installed
SOURCES = (".c", ".S")
OBJECTS = (".o", ".a")

# What compilers take from the environment.
ENVIRONMENT = (
    "CPATH", "C_INCLUDE_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX",
    "LIBRARY_PATH",
)  # fmt: skip

# Options of gcc that count lines, and those that write notes for gcov.
COUNTERS = ("-fprofile-arcs", "-ftest-coverage", "--coverage")
NOTES = {"-ftest-coverage", "--coverage"}

# What nobody has used for so long goes when something is built.
KEPT_DAYS = 30
DAY = 86400


class CompileError(Error):
    """A source is wrong; the text is what the compiler or linker said."""


def build(
    *sources: Name,
    mode: str = "protected",
    include: Iterable[Name] = (),
    flags: Iterable[str] = (),
    script: Name | None = None,
    compiler: str | None = None,
    coverage: bool | str = False,
    out: Name | None = None,
) -> str:
    """Build a guest of C and assembly on the guest SDK; the ELF file's path.

    `sources`: paths of .c and .S files, and of .o and .a files as they are.
    `mode`: "protected", 32-bit in ring 0, or "user", 64-bit in ring 3.
    `include`: folders with headers. `flags`: further options of the compiler.
    `script`: a linker script in place of the SDK's. `compiler`: gcc or clang,
    by name or path; otherwise $CC, else the one that is installed. `coverage`:
    count the edges that the sources take (`coverage.h`), for replay();
    "compare": and how far comparisons of integers get. `out`: put a copy there,
    and return that path.

    Raises CompileError with the compiler's words, Error when there is no
    compiler, OSError for a file that cannot be read, ValueError and TypeError
    for arguments that make no sense.
    """
    if not sources:
        raise TypeError("build() takes the paths of one source or more")
    paths = [os.path.abspath(os.fspath(source)) for source in sources]
    for path in paths:
        if not path.endswith(SOURCES + OBJECTS):
            raise ValueError(
                f"{path!r} is none of {', '.join(SOURCES + OBJECTS)}"
            )
    if isinstance(flags, str):
        raise TypeError("flags and include are lists of str")
    more = [*coverage_flags(coverage), *flags]
    built = Build(mode, include, more, script, compiler)
    objects = [
        path if path.endswith(OBJECTS) else built.compile(path)
        for path in paths
    ]
    image = built.link(objects, os.path.basename(paths[0]).rpartition(".")[0])
    if out is None:
        return image
    target = os.fspath(out)
    replace_by_copy(image, target)
    return target


def build_text(
    source: str, mode: str = "protected", coverage: bool | str = False
) -> bytes:
    """An ELF file of the C program in `source`; raises as build()."""
    built = Build(mode, flags=coverage_flags(coverage))
    image = built.link([built.compile("-", source)], "snippet")
    with open(image, "rb") as file:
        return file.read()


class Build:
    """One compiler with its options, and what it makes.

    Threads: one.
    """

    def __init__(
        self,
        mode: str,
        include: Iterable[Name] = (),
        flags: Iterable[str] = (),
        script: Name | None = None,
        compiler: str | None = None,
    ) -> None:
        if mode not in COMPILER:
            raise ValueError(
                f"mode {mode!r}: C snippets run in {' or '.join(COMPILER)}"
            )
        if isinstance(flags, str) or isinstance(include, str):
            raise TypeError("flags and include are lists of str")
        self.script = os.path.abspath(os.fspath(script or LINK_SCRIPT))
        self.compiler = find_compiler(compiler)
        self.mode = COMPILER[mode]
        self.flags = list(flags)
        self.include = [os.path.abspath(os.fspath(each)) for each in include]
        self.folder = folder()
        # All that is made depends on the first, what is not the SDK's on both.
        self.tools = digest(
            identity(self.compiler),
            self.mode,
            sdk_digest(),
            *(os.environ.get(name, "") for name in ENVIRONMENT),
        )
        self.base = digest(
            self.tools,
            *(read(flag[1:]) for flag in self.flags if flag[:1] == "@"),
        )

    def compile(self, path: str, text: str | None = None) -> str:
        """The object of one source; "-": of `text`."""
        source = read(path) if text is None else text.encode()
        place = path if text is None else os.getcwd()
        # A header may come to be where it hides one that was read.
        near = os.path.dirname(path) if text is None else place
        key = digest(
            self.base, place, source, *self.flags,
            "-I", *headers_in([near, *self.include]),
        )  # fmt: skip
        manifest = os.path.join(self.folder, f"{key}.deps")
        found = self.look(manifest)
        if found is not None:
            return found
        began = time.time_ns()
        # What gcov reads beside the object, which stays where it is made.
        notes = []
        if NOTES.intersection(self.flags):
            where = ["-dumpdir", os.path.join(self.folder, f"{key}-")]
            notes = [*where, "-dumpbase", "it.c", "-dumpbase-ext", ".c"]
        with TemporaryDirectory(dir=self.folder) as temporary:
            made = os.path.join(temporary, "made.o")
            listed = os.path.join(temporary, "made.d")
            what = ["-x", "c"] if text is not None else []
            run_compiler(
                [
                    *self.compiler, self.mode,
                    f"@{os.path.join(LIB, 'compile.flags')}",
                    *(f"-I{each}" for each in self.include), f"-I{INCLUDE}",
                    *self.flags, "-MD", "-MF", listed, "-MT", "x",
                    *notes, "-c", "-o", made, *what, path,
                ],
                source if text is not None else b"",
            )  # fmt: skip
            names = [n for n in dependencies(listed) if n != "-"]
            headers = {n: digest(read(n)) for n in names if n != path}
            name = f"{digest(key, *headers, *headers.values())}.o"
            kept = os.path.join(self.folder, name)
            os.replace(made, kept)
            # Who edits while this compiles gets what he has now, once.
            if all(os.stat(n).st_mtime_ns < began for n in names):
                entry = json.dumps({"headers": headers, "object": name})
                with open(listed, "w", encoding="utf-8") as file:
                    file.write(entry)
                os.replace(listed, manifest)
        return kept

    def look(self, manifest: str) -> str | None:
        """The object that a manifest leads to, when no header has changed."""
        try:
            with open(manifest, encoding="utf-8") as file:
                entry = json.load(file)
            for name, was in entry["headers"].items():
                if digest(read(name)) != was:
                    return None
            kept = os.path.join(self.folder, entry["object"])
            if NOTES.intersection(self.flags) and not use(
                manifest.removesuffix(".deps") + "-it.gcno"
            ):
                return None
            use(manifest)
            return kept if use(kept) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not there, or of no use: made anew

    def runtime(self) -> str:
        """The SDK's library as an archive."""
        kept = os.path.join(self.folder, f"runtime-{self.tools}.a")
        if use(kept):
            return kept
        archiver = find_tool("ar")
        names = sorted(n for n in os.listdir(LIB) if n.endswith(SOURCES))
        with TemporaryDirectory(dir=self.folder) as temporary:

            def compile(name: str) -> str:
                made = os.path.join(temporary, f"{name}.o")
                run_compiler(
                    [
                        *self.compiler, self.mode,
                        f"@{os.path.join(LIB, 'compile.flags')}",
                        f"-I{INCLUDE}", "-c", "-o", made,
                        os.path.join(LIB, name),
                    ]
                )  # fmt: skip
                return made

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compile, names))
            made = os.path.join(temporary, "made.a")
            run_compiler([archiver, "rcsD", made, *objects])
            os.replace(made, kept)
        return kept

    def link(self, objects: list[str], name: str) -> str:
        """The image of these objects, called `name` and what it is made of."""
        find_tool("ld")
        name = re.sub(r"[^\w.-]", "_", name) or "guest"
        contents = [read(each) for each in objects]
        key = digest(self.base, read(self.script), *self.flags, *contents)
        kept = os.path.join(self.folder, f"{name}-{key}.elf")
        if use(kept):
            return kept
        runtime = self.runtime()
        with TemporaryDirectory(dir=self.folder) as temporary:
            made = os.path.join(temporary, "made.elf")
            run_compiler(
                [
                    *self.compiler, self.mode,
                    # The linker would look for the host's libgcov.
                    *(f for f in self.flags if not is_for_compiler(f)),
                    f"@{os.path.join(LIB, 'link.flags')}",
                    "-T", self.script, "-o", made, *objects, runtime,
                ]
            )  # fmt: skip
            os.replace(made, kept)
        prune(self.folder)
        return kept


def is_for_compiler(flag: str) -> bool:
    """Whether a linker would add a library of its own for the host to that."""
    return (
        flag in COUNTERS
        or flag in COVERAGE.values()
        or flag.startswith("-fsanitize")
    )


def coverage_flags(coverage: bool | str) -> list[str]:
    """What a compiler is told for coverage=; ValueError."""
    if not coverage:
        return []
    if coverage not in COVERAGE:
        raise ValueError(f"coverage {coverage!r} is neither True nor 'compare'")
    return [COVERAGE[coverage]]


# -- tools -------------------------------------------------------------------


def find_compiler(name: str | None = None) -> list[str]:
    """The words that call the compiler: `name`, $CC, or what is installed."""
    words = shlex.split(name or os.environ.get("CC", ""))
    if words:
        path = shutil.which(words[0])
        if path is None:
            whence = "compiler" if name else "$CC"
            raise Error(f"{whence} {words[0]!r} is not installed")
        return [path, *words[1:]]
    for each in COMPILERS:
        path = shutil.which(each)
        if path is not None:
            return [path]
    raise Error(
        "guests in C need a compiler, 'gcc' or 'clang', and neither is "
        "installed: apt-get install gcc"
    )


@cache
def version(compiler: tuple[str, ...]) -> str:
    """What a compiler says of itself."""
    done = subprocess.run(
        [*compiler, "--version"], capture_output=True, check=False
    )
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise Error(f"{' '.join(compiler)} --version fails: {text}")
    return done.stdout.decode(errors="replace")


def identity(compiler: list[str]) -> str:
    """What tells one compiler from another one: its path and version."""
    path = os.path.realpath(compiler[0])
    return digest(path, *compiler, version(tuple(compiler)))


def is_gcc(name: str | None = None) -> bool:
    """Whether the compiler that build() would take is gcc."""
    return "Free Software Foundation" in version(tuple(find_compiler(name)))


def run_compiler(args: list[str], source: bytes = b"") -> None:
    """Run a tool; CompileError with what it says when it fails."""
    done = subprocess.run(
        args,
        input=source,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise CompileError(text or f"{args[0]} failed ({done.returncode})")


def dependencies(path: str) -> list[str]:
    """The files in a make rule as -MD writes it, without those of the SDK."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        rule = file.read().replace("\\\n", " ").partition(":")[2]
    names = re.findall(r"(?:\\.|[^\s\\])+", rule)
    plain = [re.sub(r"\\(.)", r"\1", n).replace("$$", "$") for n in names]
    return [
        os.path.abspath(name) if name != "-" else name
        for name in plain
        if not os.path.abspath(name).startswith(SDK + os.sep)
    ]


def headers_in(folders: list[str]) -> list[str]:
    """The names of the headers in each folder, not below it."""
    found: list[str] = []
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            names = []  # the compiler passes over it, too
        found.append(folder)
        found += sorted(name for name in names if name.endswith(".h"))
    return found


# -- the cache ---------------------------------------------------------------


def folder() -> str:
    """Where builds are kept; made when it is not there.

    Where nothing can be written, a folder that goes with this process.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "pyvmm")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return own_folder()


@cache
def own_folder() -> str:
    """A folder for this process alone."""
    import atexit

    path = mkdtemp(prefix="pyvmm-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def use(path: str) -> bool:
    """Whether it is kept; if so it is marked as of use."""
    try:
        if os.stat(path).st_mtime < time.time() - DAY:
            os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # somebody else's mark
    return True


def prune(path: str) -> None:
    """Remove what has not been used for KEPT_DAYS."""
    limit = time.time() - KEPT_DAYS * DAY
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                if entry.stat().st_mtime >= limit:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)  # of a build that was killed
                else:
                    os.unlink(entry.path)
            except OSError:
                continue  # another process was faster


def digest(*parts: str | bytes) -> str:
    """A name made of these, each as it stands in its place."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else os.fsencode(part)
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:32]


def sdk_digest() -> str:
    """The digest of all that a build takes from the SDK."""
    parts: list[str | bytes] = []
    for top in (INCLUDE, LIB):
        for where, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(where, name)
                parts += [os.path.relpath(path, SDK), read(path)]
    # The compiler writes the places of headers into what it makes.
    return digest(SDK, *parts)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def replace_by_copy(source: str, target: str) -> None:
    """A copy that is there whole or not at all."""
    head, tail = os.path.split(os.path.abspath(target))
    with TemporaryDirectory(dir=head, prefix=".pyvmm-") as temporary:
        made = os.path.join(temporary, tail)
        shutil.copyfile(source, made)
        os.replace(made, target)

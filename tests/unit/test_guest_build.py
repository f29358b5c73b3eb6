# SPDX-License-Identifier: Apache-2.0
"""pyvmm.guest.build(): images, what is kept of them, and what is said."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvmm
from pyvmm import _vmm, guest

MAIN = """\
#include <runtime.h>

#include "number.h"

int main(void) { return NUMBER; }
"""


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtimes that any test has made, which takes a second each."""
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture(autouse=True)
def kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtimes: Path
) -> Iterator[Path]:
    """A cache of the test's own, with runtimes in it and nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    folder = tmp_path / "cache" / "pyvmm"
    shutil.copytree(runtimes, folder)
    yield folder
    for path in folder.glob("runtime-*"):
        shutil.copy(path, runtimes)


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "main.c"
    path.write_text(MAIN)
    write(tmp_path / "number.h", "#define NUMBER 7\n")
    return path


def write(path: Path, text: str) -> None:
    """A file that was written a while ago."""
    path.write_text(text)
    os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the compiler is asked to make, by the end of each command."""
    made: list[str] = []
    run = guest.run_compiler

    def spy(args: list[str], source: bytes = b"") -> None:
        made.append(os.path.basename(args[-1]))
        run(args, source)

    monkeypatch.setattr(guest, "run_compiler", spy)
    return made


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(("mode", "wide"), [("protected", 0), ("user", 1)])
def test_an_image(compiler: str, mode: str, wide: int, main: Path) -> None:
    path = guest.build(main, mode=mode, compiler=compiler)
    assert os.path.basename(path).startswith("main-")
    elf = _vmm.ELF(Path(path).read_bytes())
    assert elf.is_64 == wide
    assert {"main", "_start", "print"} <= set(elf.symbols)


def test_the_second_time_nothing_is_compiled(
    main: Path, calls: list[str]
) -> None:
    first = guest.build(main)
    assert "main.c" in calls
    calls.clear()
    assert guest.build(main) == first
    assert calls == []


def test_what_changes_an_image(main: Path, calls: list[str]) -> None:
    write(main, MAIN)
    seen = {guest.build(main)}

    def again(**options) -> None:
        calls.clear()
        path = guest.build(main, **options)
        assert path not in seen
        assert calls
        seen.add(path)

    header = main.parent / "number.h"
    write(header, "#define NUMBER 8\n")  # same size, same time
    again()
    assert "runtime.c" not in calls
    write(main, MAIN.replace("NUMBER;", "NUMBER + 1;"))
    again()
    again(flags=["-DX=1"])
    again(mode="user")
    again(compiler="clang")
    script = main.parent / "own.ld"
    script.write_text(Path(guest.LINK_SCRIPT).read_text() + "\n")
    again(script=script)
    flags = main.parent / "own.flags"
    write(flags, "-DY=1")
    again(flags=[f"@{flags}"])
    write(flags, "-DY=2")
    calls.clear()
    guest.build(main, flags=[f"@{flags}"])
    assert "main.c" in calls
    write(header, "#define NUMBER 7\n")
    write(main, MAIN)
    calls.clear()
    assert guest.build(main) in seen
    assert "runtime.c" not in calls


def test_a_change_of_the_sdk(
    main: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = guest.build(main)
    monkeypatch.setattr(guest, "sdk_digest", lambda: "another")
    calls.clear()
    assert guest.build(main) != first
    assert "runtime.c" in calls


def test_only_what_has_changed_is_compiled(
    tmp_path: Path, calls: list[str]
) -> None:
    one, two = tmp_path / "one.c", tmp_path / "two.S"
    one.write_text("int two(void); int main(void) { return two(); }")
    write(two, ".globl two\ntwo: movl $2, %eax\nret\n")
    first = guest.build(one, two)
    calls.clear()
    write(two, ".globl two\ntwo: movl $3, %eax\nret\n")
    assert guest.build(one, two) != first
    assert "one.c" not in calls and "two.S" in calls


def test_a_header_that_hides_another(main: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write(main, MAIN.replace('"number.h"', "<own.h>"))
    write(second / "own.h", "#define NUMBER 1\n")
    seen = guest.build(main, include=[first, second])
    write(first / "own.h", "#define NUMBER 2\n")
    assert guest.build(main, include=[first, second]) != seen
    with pytest.raises(guest.CompileError, match=r"own\.h"):
        guest.build(main, include=[first / "nowhere"])


def test_headers_of_the_environment(
    main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(main, MAIN.replace('"number.h"', "<own.h>"))
    seen = set()
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "own.h", f"#define NUMBER {number}\n")
        monkeypatch.setenv("C_INCLUDE_PATH", str(folder))
        seen.add(guest.build(main))
        write(folder / "own.h", f"#define NUMBER {number + 5}\n")
        seen.add(guest.build(main))
    assert len(seen) == 4


def test_a_header_that_is_edited_meanwhile(
    main: Path, calls: list[str]
) -> None:
    """What was read is not known then: it is not taken for what is there."""
    later = (4_000_000_000, 4_000_000_000)
    os.utime(main.parent / "number.h", later)
    guest.build(main)
    calls.clear()
    guest.build(main)
    assert "main.c" in calls


def test_out(main: Path, tmp_path: Path) -> None:
    out = tmp_path / "it.elf"
    out.write_text("old")
    assert guest.build(main, out=out) == str(out)
    assert out.read_bytes()[:4] == b"\x7fELF"
    assert not list(tmp_path.glob(".pyvmm-*"))


def test_the_compilers_words_are_the_error(tmp_path: Path, kept: Path) -> None:
    bad = tmp_path / "bad.c"
    bad.write_text("int main(void)\n{ return x; }\n")
    with pytest.raises(guest.CompileError) as caught:
        guest.build(bad)
    assert f"{bad}:2:" in str(caught.value) and "'x'" in str(caught.value)
    bad.write_text("int main(void) { return nobody(); }\nint nobody(void);\n")
    with pytest.raises(guest.CompileError, match="nobody"):
        guest.build(bad)
    assert not list(kept.glob("tmp*"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": "/nonexistent"}, r"'gcc' or 'clang'.*apt-get install gcc"),
        ({"CC": "nocc -m32"}, r"^\$CC 'nocc' is not installed$"),
    ],
)
def test_no_compiler(environment, message, main: Path, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(pyvmm.Error, match=message):
        guest.build(main)


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        ([], {}, TypeError, "one source or more"),
        (["x.py"], {}, ValueError, "is none of"),
        (["x.c"], {"mode": "real"}, ValueError, "protected or user"),
        (["x.c"], {"flags": "-O0"}, TypeError, "lists of str"),
        (["/nonexistent/x.c"], {}, FileNotFoundError, "nonexistent"),
    ],
)
def test_what_is_refused(sources, options, error, message) -> None:
    with pytest.raises(error, match=message):
        guest.build(*sources, **options)


def test_a_cache_that_is_broken(main: Path, kept: Path) -> None:
    """Rubbish in a manifest, or an object that has gone: built anew."""
    first = guest.build(main)
    for name in kept.glob("*.deps"):
        name.write_text("[]")
    assert guest.build(main) == first
    for name in kept.glob("*.o"):
        name.unlink()
    assert guest.build(main) == first


def test_where_no_cache_can_be(main: Path, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    guest.own_folder.cache_clear()
    path = guest.build(main)
    assert path.startswith(guest.own_folder())


def test_what_is_old_goes(main: Path, kept: Path) -> None:
    for name in ("old-1.elf", "old.deps"):
        write(kept / name, "")
    write(kept / "recent", "")
    os.utime(kept / "recent")
    guest.build(main)
    assert not list(kept.glob("old*")) and (kept / "recent").exists()


RACE = """
import sys
import pyvmm.guest
print(pyvmm.guest.build(sys.argv[1]))
"""


def test_many_processes_at_once(main: Path, kept: Path) -> None:
    for path in kept.glob("runtime-*"):
        path.unlink()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(main)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = {each.communicate(timeout=120)[0] for each in running}
    assert [each.returncode for each in running] == [0] * 4
    (path,) = said
    assert path.strip() == guest.build(main)
    assert not list(kept.glob("tmp*"))

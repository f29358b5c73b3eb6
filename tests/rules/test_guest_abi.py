# SPDX-License-Identifier: Apache-2.0
"""Python's tables of the guest ABI against the compiler's reading of it."""

import re
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm import guest
from pyvmm.boot import start_info
from pyvmm.testing import guest_image

# What each structure of start_info.h is called in pyvmm.boot.start_info.
TABLES = {
    "start_info": "START_INFO",
    "memory_map_entry": "MEMORY_MAP_ENTRY",
    "device_map_entry": "DEVICE_MAP_ENTRY",
}


def layout(name: str) -> tuple[int, dict[str, tuple[int, int]]]:
    """Size, and per field offset and size, as the table says."""
    table = getattr(start_info, TABLES[name])
    fields = getattr(start_info, f"{TABLES[name]}_FIELDS")
    order = table.format
    assert order[0] == "<", "little-endian whatever the host"
    codes = "".join(code * int(count or 1) for count, code in parse(order[1:]))
    assert len(codes) == len(fields)
    offsets, offset = {}, 0
    for field, code in zip(fields, codes, strict=True):
        size = struct.calcsize("<" + code)
        offsets[field] = (offset, size)
        offset += size
    assert offset == table.size
    return table.size, offsets


def parse(text: str) -> list[tuple[str, str]]:
    """Pairs of count (or nothing) and letter."""
    pairs, count = [], ""
    for letter in text:
        if letter.isdigit():
            count += letter
        else:
            pairs.append((count, letter))
            count = ""
    return pairs


def compile_and_run(root: Path, folder: Path, body: str) -> list[list[str]]:
    """The words of the lines that a C program with this main() prints."""
    source, program = folder / "abi.c", folder / "abi"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        '#include "pyvmm/start_info.h"\n'
        f"int main(void)\n{{\n{body}\nreturn 0;\n}}\n"
    )
    include = f"-I{root / 'guest/include'}"
    subprocess.run(["cc", include, "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", TABLES)
def test_layout(name: str, root: Path, tmp_path: Path) -> None:
    size, fields = layout(name)
    body = f'printf("%zu\\n", sizeof(struct {name}));'
    for field in fields:
        body += (
            f'printf("{field} %zu %zu\\n", offsetof(struct {name}, {field}),'
            f" sizeof(((struct {name} *)0)->{field}));"
        )
    (total,), *lines = compile_and_run(root, tmp_path, body)
    assert int(total) == size
    assert {n: (int(o), int(s)) for n, o, s in lines} == fields


def test_constants(root: Path, tmp_path: Path) -> None:
    """Every #define of a number that Python has under the same name."""
    text = (root / "guest/include/pyvmm/start_info.h").read_text()
    names = [
        words[1]
        for words in (line.split() for line in text.splitlines())
        if len(words) > 2 and words[0] == "#define"
    ]
    body = "".join(f'printf("{n} %lld\\n", (long long){n});' for n in names)
    values = {n: int(v) for n, v in compile_and_run(root, tmp_path, body)}
    both = [n for n in values if hasattr(start_info, n)]
    assert "START_INFO_MAGIC" in both
    assert {n: int(getattr(start_info, n)) for n in both} == {
        n: values[n] for n in both
    }


# -- the tests of an image (test.h) --------------------------------------------

STRUCTURES = {
    "pyvmm_test": (guest_image.TEST, guest_image.TEST_FIELDS),
    "pyvmm_test_failure": (guest_image.FAILURE, guest_image.FAILURE_FIELDS),
    "pyvmm_test_record": (
        guest_image.RECORD,
        (*guest_image.RECORD_FIELDS, "failure"),
    ),
}


def constants() -> list[str]:
    """The numbers of test.h that Python has under the same name."""
    text = (Path(guest.INCLUDE) / "test.h").read_text()
    found = re.findall(r"^#define (TEST_[A-Z_]+) +[0-9a-fx]+", text, re.M)
    return [name for name in found if hasattr(guest_image, name)]


@pytest.mark.parametrize("mode", ["protected", "user"])
def test_layout_of_tests(mode: str, tmp_path: Path) -> None:
    """The compiler's reading, in each mode: no host can include test.h."""
    numbers = list(constants())
    for name, (_, fields) in STRUCTURES.items():
        numbers += [f"sizeof(struct {name})"]
        numbers += [f"offsetof(struct {name}, {field})" for field in fields]
    (tmp_path / "abi.c").write_text(
        "#include <test.h>\n"
        f"const uint64_t numbers[] = {{{', '.join(numbers)}}};\n"
    )
    image = guest.build(tmp_path / "abi.c", mode=mode)
    with guest_image.Content(Path(image).read_bytes()) as content:
        at = content.elf.symbols["numbers"][0]
        data = content.read(at, 8 * len(numbers))
    values = dict(
        zip(numbers, struct.unpack(f"<{len(numbers)}Q", data), strict=True)
    )
    assert len(constants()) == 20
    for name in constants():
        assert values[name] == getattr(guest_image, name), name
    for name, (table, fields) in STRUCTURES.items():
        offset = 0
        codes = re.findall(r"\d*[a-zA-Z]", table.format)
        sizes = [struct.calcsize("<" + code) for code in expand(codes)]
        for field, size in zip(fields, [*sizes, 0], strict=False):
            assert values[f"offsetof(struct {name}, {field})"] == offset, field
            offset += size
    sizes_of = {n: values[f"sizeof(struct {n})"] for n in STRUCTURES}
    assert sizes_of["pyvmm_test"] == guest_image.TEST.size
    assert sizes_of["pyvmm_test_failure"] == guest_image.FAILURE.size
    assert sizes_of["pyvmm_test_record"] == (
        guest_image.RECORD.size
        + guest_image.TEST_FAILURES_MAX * guest_image.FAILURE.size
    )
    asked = values["offsetof(struct pyvmm_test_record, test)"]
    assert asked == guest_image.ASKED_AT


def expand(codes: list[str]) -> list[str]:
    """One code for each field: "4I" is four of them, "64s" is one."""
    found: list[str] = []
    for code in codes:
        count, letter = code[:-1], code[-1]
        if letter == "s":
            found.append(code)
        else:
            found += [letter] * int(count or 1)
    return found

# SPDX-License-Identifier: Apache-2.0
"""`pyvmm new-kernel-project`: what it makes works as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from project import run_pytest

from pyvmm import cli, project
from pyvmm.errors import Error

MADE = [
    ".github/workflows/ci.yml",
    ".gitignore",
    "README.md",
    "guest/kernel.c",
    "guest/kernel.h",
    "guest/main.c",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/guest_kernel.c",
    "tests/test_kernel.py",
]


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "mine"
    assert cli.main(["new-kernel-project", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:-1] == [str(folder / name) for name in MADE]
    assert said[-1] == f"now: cd {folder} && pytest"
    return folder


def test_its_files(made: Path) -> None:
    found = [p for p in made.rglob("*") if p.is_file()]
    assert sorted(str(p.relative_to(made)) for p in found) == MADE
    for path in found:
        text = path.read_text()
        assert "SPDX" not in text and "@NAME@" not in text
    assert (made / "README.md").read_text().startswith("# mine\n")
    for name in MADE[3:]:
        if name != "guest/kernel.h":
            assert f"`{name}`" in (made / "README.md").read_text()


def test_its_tests_pass(kvm: object, made: Path) -> None:
    done = run_pytest(made)
    done.counts(passed=14)
    assert "warning" not in done.text.lower()


def test_its_tests_fail_when_the_kernel_is_wrong(
    kvm: object, made: Path
) -> None:
    path = made / "guest/kernel.c"
    path.write_text(path.read_text().replace("return a;", "return a + 1;"))
    done = run_pytest(made, alone=True)
    done.counts(passed=7, failed=7)
    assert "tests/guest_kernel.c:11: EXPECT_EQ(gcd(9, 28), 1)" in done.text


def test_its_readme_is_right(kvm: object, made: Path) -> None:
    """The kernel by hand."""
    lines = (made / "README.md").read_text().split("by hand:\n")[1]
    command = "\n".join(line[4:] for line in lines.strip("\n").splitlines())
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace(".venv/bin/pyvmm", f"{sys.executable} -m pyvmm")
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=made,
        input="gcd 84 36\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "> 12\n> "), done.stderr


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    assert project.create(str(tmp_path)) == MADE
    with pytest.raises(Error, match=r"not empty: it has 6 entries, such as"):
        project.create(str(tmp_path))


def test_what_is_in_the_way(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    status = cli.main(["new-kernel-project", str(tmp_path / "file")])
    assert status == cli.STATUS_ERROR
    assert "is there, and no folder" in capsys.readouterr().err
    status = cli.main(["new-kernel-project", str(tmp_path / "file/under")])
    assert status == cli.STATUS_ERROR
    assert "file/under" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"

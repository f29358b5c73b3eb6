# SPDX-License-Identifier: Apache-2.0
"""A wheel and an sdist install into an empty environment and work there."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

LEFT_OUT = (".git", ".venv", "build", "dist", "*.egg-info", "*.so", ".*_cache")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command: object, cwd: Path) -> str:
    """Runs it with an environment that names no other one; its output."""
    env = {"PATH": os.defpath, "HOME": str(cwd), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    run(
        *PIP,
        "wheel",
        "--no-build-isolation",
        "--no-index",
        "--no-deps",
        "--wheel-dir",
        out,
        source,
        cwd=out.parent,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Made from a copy of the checkout, which stays as it is."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    shutil.copytree(
        root,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(*LEFT_OUT),
    )
    make = "import setuptools.build_meta as b; b.build_sdist('../out')"
    run(sys.executable, "-c", make, cwd=source)
    (path,) = (folder / "out").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sdist: Path,
) -> Path:
    """Built from a checkout and, as pip does, from the sdist."""
    folder = tmp_path_factory.mktemp(request.param)
    source = sdist
    if request.param == "checkout":
        source = folder / "source"
        shutil.copytree(sdist.parents[1] / "source", source, symlinks=True)
    (folder / "out").mkdir()
    return build_wheel(source, folder / "out")


def test_sdist_has_everything(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "LICENSE",
        "Makefile",
        "csrc/flags.mk",
        "csrc/launcher/embed.py",
        "csrc/vmm/elf.h",
        "devices-py/__init__.py",
        "guest/include/pyvmm/start_info.h",
        "tests/c/check.h",
        "tools/setup",
    ):
        assert wanted in names
    assert not [n for n in names if n.endswith((".so", ".o", ".pyc"))]


def test_install(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [n for n in names if n.startswith("pyvmm/_vmm.cpython-")]
    assert "pyvmm/py.typed" in names
    assert "pyvmm/devices/__init__.py" in names
    assert "pyvmm/sdk/include/pyvmm/start_info.h" in names
    assert "pyvmm/sdk/template/dot-github/workflows/ci.yml" in names
    assert not [n for n in names if n.endswith((".o", ".elf", ".pyc"))]
    scripts = [n for n in names if ".data/scripts/" in n]
    assert [n.rpartition("/")[2] for n in scripts] == ["pyvmm"]

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python3"
    run(
        *PIP,
        "--python",
        python,
        "install",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=tmp_path,
    )
    where = run(
        python, "-c", "import pyvmm; print(pyvmm.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(venv))
    program = venv / "bin" / "pyvmm"
    assert program.read_bytes()[:4] == b"\x7fELF"
    assert os.access(program, os.X_OK)
    (tmp_path / "main.c").write_text(
        '#include <runtime.h>\nint main(void) { puts("built"); return 0; }\n'
    )
    build = "import pyvmm.guest; print(pyvmm.guest.build('main.c'))"
    image = run(python, "-c", build, cwd=tmp_path).strip()
    assert Path(image).is_relative_to(tmp_path / ".cache/pyvmm")
    if os.path.exists("/dev/kvm"):
        assert run(program, "run", image, cwd=tmp_path) == "built\n"
    assert "now: cd mine" in run(
        program, "new-kernel-project", "mine", cwd=tmp_path
    )
    assert (tmp_path / "mine/.github/workflows/ci.yml").exists()
    by_launcher = run(program, "info", cwd=tmp_path)
    by_module = run(python, "-m", "pyvmm", "info", cwd=tmp_path)
    assert by_launcher == by_module

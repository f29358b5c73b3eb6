# SPDX-License-Identifier: Apache-2.0
"""The tests that docs/testing.md shows pass."""

import re
from pathlib import Path

import pytest
from project import run_pytest

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page(tmp_path: Path) -> None:
    """Each block with tests is a file of its own."""
    page = (ROOT / "docs/testing.md").read_text()
    blocks = [
        text
        for text in BLOCK.findall(page)
        if "def test_" in text or "TestCase" in text
    ]
    assert len(blocks) >= 5
    for number, text in enumerate(blocks):
        (tmp_path / f"test_block_{number}.py").write_text(text)
    (tmp_path / "build").symlink_to(ROOT / "build")
    done = run_pytest(tmp_path, "-v")
    assert done.code == 0, done.text
    for number in range(len(blocks)):
        assert f"test_block_{number}.py::" in done.text

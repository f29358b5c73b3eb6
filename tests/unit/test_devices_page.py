# SPDX-License-Identifier: Apache-2.0
"""What docs/devices.md shows is so."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/devices.md"


def test_the_examples() -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    )
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    tests = [value for name, value in names.items() if name[:5] == "test_"]
    assert tests
    for test in tests:
        assert callable(test)
        test()

# SPDX-License-Identifier: Apache-2.0
"""A folder for tests of virtio-9p, and what should be said of it."""

import stat
from pathlib import Path

from p9client import Qid

from pyvmm.devices import NineP

TREE = {"hello": b"from the host\n", "sub/deep/file": b"deep", "empty": b""}
DIR, LINK, FILE = 0x80, 0x02, 0x00  # types of qids


def make_share(folder: Path) -> Path:
    """Files, and links to a folder beside it that nobody may see."""
    root = folder / "share"
    for name, data in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "inside").symlink_to("sub/deep")
    (root / "away").symlink_to("../outside")
    (root / "abs").symlink_to(folder / "outside")
    (folder / "outside").mkdir()
    (folder / "outside/secret").write_bytes(b"secret")
    return root


def writable(share: Path) -> NineP:
    return NineP(share, readonly=False, notify="inline")


def qid_of(path: Path) -> tuple[int, int]:
    """Type and path of the qid that a file should have."""
    info = path.lstat()
    kind = {stat.S_IFDIR: DIR, stat.S_IFLNK: LINK}
    return kind.get(stat.S_IFMT(info.st_mode), FILE), info.st_ino


def ident(qid: Qid) -> tuple[int, int]:
    return qid.type, qid.path


def snapshot(root: Path) -> dict[str, object]:
    """All that can be changed in a tree."""
    found: dict[str, object] = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        found[str(path)] = (
            info.st_mode,
            info.st_uid,
            info.st_size,
            info.st_mtime_ns,
            info.st_ctime_ns,
            info.st_nlink,
            path.read_bytes() if stat.S_ISREG(info.st_mode) else b"",
        )
    return found

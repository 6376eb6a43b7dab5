"""A directory tree with everything that archivers are asked to keep."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from pathlib import Path
from typing import Final

SPARSE_BYTES: Final = 40_000_000
SPARSE_DATA: Final = ((0, 5_000), (7_000_123, 100_000), (39_000_000, 1_000))
"""Where the sparse file has bytes: (place, length)."""
SECOND_NS: Final = 1_000_000_000
ODD_NAMES: Final = (
    b"with space",
    b"line\nbreak",
    b"\xff\xfe no text",
    "ünïcode 名".encode(),
    b"n" * 255,
    b"-dash",
    b"back\\slash",
)


def make_rich_tree(root: Path) -> None:
    """Fill a new folder with files of every kind; root's kinds only where root makes it."""
    root.mkdir()
    chance = random.Random(7)
    for size in (0, 1, 4_095, 4_096, 70_000, 3_000_000):
        (root / f"size {size}").write_bytes(chance.randbytes(size))
    _make_names(os.fsencode(root))
    _make_modes(root / "modes")
    _make_links(root / "links")
    _make_sparse(root / "sparse")
    _make_attributes(root / "attributes")
    _make_acls(root / "acls")
    _make_special(root / "special")
    if os.geteuid() == 0:
        _make_owners(root / "owners")
    _set_times(root, chance)


def _make_names(root: bytes) -> None:
    folder = os.path.join(root, b"names")
    os.mkdir(folder)
    for name in ODD_NAMES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    deep = os.path.join(folder, *[b"deep"] * 40)
    os.makedirs(os.path.join(deep, b"empty"))


def _make_modes(folder: Path) -> None:
    folder.mkdir()
    modes = (0o400, 0o644, 0o751, 0o777, 0o4755, 0o2755, 0o6711, 0o1644)
    for mode in (*modes, 0) if os.geteuid() == 0 else modes:
        file = folder / f"file {mode:o}"
        file.write_text("x")
        file.chmod(mode)
        (folder / f"folder {mode:o}").mkdir()
        (folder / f"folder {mode:o}").chmod(mode | stat.S_IRWXU)


def _make_links(folder: Path) -> None:
    folder.mkdir()
    (folder / "below").mkdir()
    for size in (10, 100_000):
        first = folder / f"first {size}"
        first.write_bytes(bytes([size % 251]) * size)
        os.link(first, folder / f"second {size}")
        os.link(first, folder / "below" / f"third {size}")
    (folder / "to file").symlink_to("first 10")
    (folder / "to folder").symlink_to("below")
    (folder / "to nothing").symlink_to("/nowhere/at all")
    (folder / "to itself").symlink_to("to itself")
    (folder / "long").symlink_to("x/" * 1_000)
    os.link(folder / "to nothing", folder / "to nothing too", follow_symlinks=False)


def _make_sparse(file: Path) -> None:
    chance = random.Random(8)
    with open(file, "wb") as stream:
        for place, length in SPARSE_DATA:
            stream.seek(place)
            stream.write(chance.randbytes(length))
        stream.truncate(SPARSE_BYTES)


def _make_attributes(folder: Path) -> None:
    folder.mkdir()
    os.setxattr(folder, "user.folder", b"of a folder")
    for number, value in enumerate((b"", b"text", bytes(range(256)), b"long" * 500)):
        file = folder / f"file {number}"
        file.write_text("x")
        os.setxattr(file, "user.value", value)
        os.setxattr(file, "user.second ü", b"2")
    if os.geteuid() == 0:
        os.setxattr(folder / "file 1", "trusted.value", b"root's")


def _make_acls(folder: Path) -> None:
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "inherits").mkdir()
    acls = (
        ("u:65534:r--,g:65533:rw-,m::rw-", "file"),
        ("u:65534:rwx,d:u:65534:r-x,d:g::---,d:o::---", "inherits"),
    )
    for acl, name in acls:
        subprocess.run(["setfacl", "-m", acl, folder / name], check=True, timeout=30)
    (folder / "inherits" / "heir").write_text("x")
    (folder / "inherits" / "heirs").mkdir()


def _make_special(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o640)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))


def _make_owners(folder: Path) -> None:
    folder.mkdir()
    for uid, gid in ((0, 65534), (65534, 0), (1_234_567, 7_654_321)):
        file = folder / f"{uid} {gid}"
        file.write_text("x")
        os.chown(file, uid, gid)
        (folder / f"link {uid} {gid}").symlink_to("nothing")
        os.chown(folder / f"link {uid} {gid}", uid, gid, follow_symlinks=False)


def _set_times(root: Path, chance: random.Random) -> None:
    """Give every name a time of its own to the nanosecond, some before 1970, some after 2038."""
    seconds = (-100_000_000, 0, 1_700_000_000, 5_000_000_000)
    for path, folders, files in os.walk(os.fsencode(root), topdown=False):
        for name in (*folders, *files, b"."):
            time_ns = chance.choice(seconds) * SECOND_NS + chance.randrange(SECOND_NS)
            os.utime(os.path.join(path, name), ns=(time_ns, time_ns), follow_symlinks=False)

"""A small tree with one of everything a filesystem can hold, and a way to change all of it."""

from __future__ import annotations

import os
import random
import stat
import struct
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
ACL_VERSION: Final = struct.pack("<I", 2)
ACL_ENTRY: Final = struct.Struct("<HHI")
ACL_NO_ID: Final = 0xFFFFFFFF
SOMEBODY: Final = 12345
"""A user and group that own nothing else."""


def acl_for_somebody() -> bytes:
    """Return an ACL that lets one more user read and write. Source: linux/posix_acl_xattr.h."""
    user_obj, user, group_obj, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    entries = [
        (user_obj, 7, ACL_NO_ID),
        (user, 6, SOMEBODY),
        (group_obj, 5, ACL_NO_ID),
        (mask, 7, ACL_NO_ID),
        (other, 0, ACL_NO_ID),
    ]
    return ACL_VERSION + b"".join(ACL_ENTRY.pack(*entry) for entry in entries)


def make_sample_tree(root: Path, seed: int = 0) -> None:
    """Fill the empty folder `root` with every kind of file and attribute.

    Args:
        root: an existing folder.
        seed: decides the random bytes.
    """
    rng = random.Random(seed)
    _make_files(root, rng)
    _make_links(root)
    _make_attributes(root)
    if os.geteuid() == 0:
        _make_privileged(root)
    # Last, since everything above moves the times of folders.
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(number, 1_600_000_000_000_000_001 + number), follow_symlinks=False)


def _make_files(root: Path, rng: random.Random) -> None:
    (root / "empty").touch()
    (root / "small").write_bytes(rng.randbytes(300))
    (root / "page").write_bytes(rng.randbytes(4096))
    (root / "large").write_bytes(rng.randbytes(3 * MIB + 17))
    with open(root / "sparse", "wb") as file:
        file.seek(5 * MIB)
        file.write(rng.randbytes(10_000))
        file.truncate(8 * MIB)
    (root / "deep/er/still").mkdir(parents=True)
    (root / "deep/er/still/file").write_bytes(b"deep")
    (root / "empty-folder").mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff\xfe\n")).write_bytes(b"odd name")
    (root / ("n" * 255)).write_bytes(b"long name")
    (root / "script").write_text("#!/bin/sh\nexit 0\n")
    (root / "script").chmod(0o755)


def _make_links(root: Path) -> None:
    os.link(root / "small", root / "small-again")
    os.link(root / "large", root / "deep/large-again")
    os.link(root / "small", root / "deep/er/small-too")
    (root / "link").symlink_to("small")
    (root / "dangling").symlink_to("/nowhere/at all")
    (root / "folder-link").symlink_to("deep/er")
    os.mkfifo(root / "pipe", 0o640)


def _make_attributes(root: Path) -> None:
    for number in range(5):
        os.setxattr(root / "small", f"user.number-{number}", bytes([number]) * number)
    os.setxattr(root / "deep", "user.on-a-folder", b"\0binary\xff")
    os.setxattr(root / "page", "system.posix_acl_access", acl_for_somebody())
    os.setxattr(root / "deep/er", "system.posix_acl_default", acl_for_somebody())
    (root / "deep/er/inherited").write_bytes(b"by default")
    (root / "empty").chmod(0o000)


def _make_privileged(root: Path) -> None:
    os.mknod(root / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.chown(root / "small", SOMEBODY, SOMEBODY + 1)
    os.chown(root / "link", SOMEBODY, SOMEBODY, follow_symlinks=False)
    os.chown(root / "deep/er", SOMEBODY, -1)
    os.setxattr(root / "large", "trusted.t", b"trusted")
    os.setxattr(root / "large", "security.s", b"security")
    (root / "script").chmod(0o6755)
    (root / "empty-folder").chmod(0o1777)
    (root / "deep").chmod(0o2775)


def change_everything(root: Path) -> None:
    """Change, move or remove every entry that `make_sample_tree` made in `root`."""
    (root / "small").write_bytes(b"changed")
    with open(root / "large", "r+b") as file:
        file.seek(MIB)
        file.write(b"overwritten" * 1000)
        file.truncate(2 * MIB)
    with open(root / "sparse", "r+b") as file:
        file.seek(MIB)
        file.write(b"in the hole")
    with open(root / "page", "ab") as file:
        file.write(b"appended" * 10_000)
    os.removexattr(root / "page", "system.posix_acl_access")
    os.removexattr(root / "small", "user.number-1")
    os.setxattr(root / "small", "user.number-2", b"changed")
    (root / "empty").chmod(0o644)
    (root / "empty").write_bytes(b"no longer")
    (root / "link").unlink()
    (root / "link").symlink_to("page")
    os.rename(root / "deep/er", root / "moved")
    (root / "moved/still/file").unlink()
    (root / "moved/still/file").mkdir()
    (root / "moved/inherited").unlink()
    (root / "empty-folder").rmdir()
    (root / "empty-folder").write_bytes(b"a file now")
    os.rename(root / "script", root / "dangling")
    (root / "pipe").unlink()
    for path in sorted(root.rglob("*")):
        os.utime(path, ns=(5, 5), follow_symlinks=False)

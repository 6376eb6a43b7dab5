"""What a directory tree holds, as plain values that can be compared and hashed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Tree = Mapping[bytes, "Entry"]
"""Entries by their path below the root; the root itself is b"."."""
DOCUMENT: Final = (b"metadata.json",)
"""Of a snapshot: the mount's own, which comes to say more when it is sealed, checked or pinned."""


@dataclass(frozen=True)
class Entry:
    """Everything about one name that a snapshot must keep.

    Args:
        kind: the file type, as stat.filemode writes it: one of "-dlpscb".
        links: every path in the tree that names the same inode, sorted; for a directory only
            its own.
        size: None for a directory.
        nlink: None for a directory.
        mtime_ns: None, in an expected entry, where it may be anything.
        content: SHA-256 of a file's bytes, a symlink's target, or nothing.
        xattrs: names and values, sorted by name; POSIX ACLs are among them.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int | None
    nlink: int | None
    device: int
    mtime_ns: int | None
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


def capture(root: Path, *, leave_out: Collection[bytes] = ()) -> dict[bytes, Entry]:
    """Return what lies below `root`, symbolic links not followed.

    Args:
        root: a directory.
        leave_out: paths below the root that are skipped with all they hold.
    """
    stats = dict(_walk(os.fsencode(root), frozenset(leave_out)))
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, status in stats.items():
        names[status.st_dev, status.st_ino].append(path)
    return {
        path: _entry(os.fsencode(root), path, status, names[status.st_dev, status.st_ino])
        for path, status in stats.items()
    }


def _walk(root: bytes, leave_out: frozenset[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    yield b".", os.lstat(root)
    pending = [b""]
    while pending:
        folder = pending.pop()
        for name in sorted(os.listdir(os.path.join(root, folder))):
            path = os.path.join(folder, name)
            if path in leave_out:
                continue
            status = os.lstat(os.path.join(root, path))
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)


def _entry(root: bytes, path: bytes, status: os.stat_result, names: list[bytes]) -> Entry:
    full = os.path.join(root, path)
    is_directory = stat.S_ISDIR(status.st_mode)
    has_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Entry(
        kind=stat.filemode(status.st_mode)[0],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=None if is_directory else status.st_size,
        nlink=None if is_directory else status.st_nlink,
        device=status.st_rdev if has_device else 0,
        mtime_ns=status.st_mtime_ns,
        content=_content(full, status.st_mode),
        xattrs=xattrs_of(full),
        links=(path,) if is_directory else tuple(sorted(names)),
    )


def _content(full: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(full)
    if stat.S_ISREG(mode):
        return digest_of(full)
    return b""


def xattrs_of(path: bytes | Path) -> tuple[tuple[str, bytes], ...]:
    """Return the extended attributes of a name itself, sorted."""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def digest_of(path: bytes | Path) -> bytes:
    """Return the SHA-256 of a file's bytes as the filesystem has them, not the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").digest()


def tree_digest(tree: Tree) -> str:
    """Return one SHA-256 over everything `capture` saw, for the log of a crash test."""
    total = hashlib.sha256()
    for path in sorted(tree):
        total.update(repr((path, sorted(vars(tree[path]).items()))).encode())
    return total.hexdigest()


def differences(expected: Tree, found: Tree, *, ignore: Collection[str] = ()) -> list[str]:
    """Return one line for each difference between two trees; none when they are equal.

    Args:
        expected: the tree as it should be; a field that is None there is not compared.
        found: the tree as it is.
        ignore: names of `Entry` fields that are not compared.
    """
    lines = [f"missing: {path!r}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected: {path!r}" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        if expected[path] == found[path]:
            continue
        wanted, got = vars(expected[path]), vars(found[path])
        lines += [
            f"{path!r} {field}: expected {wanted[field]!r}, found {got[field]!r}"
            for field in wanted
            if field not in ignore and wanted[field] is not None and wanted[field] != got[field]
        ]
    return lines

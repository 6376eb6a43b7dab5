r"""What `diff` and `log` answer: documents, and paths as text. Light: imports no engine.

A path is bytes. In a document it is text: what is valid UTF-8 stands as it is. Of any other path
the bytes that do not fit are written as `\xNN`, and the field named `raw...` beside it holds the
path itself in base64; without such a path that field is null.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

FileType = Literal["file", "folder", "symlink", "fifo", "socket", "block", "char"]
Kind = Literal["added", "removed", "modified", "renamed", "metadata"]
KINDS: Final[tuple[Kind, ...]] = ("added", "removed", "modified", "renamed", "metadata")
Aspect = Literal["entries", "type", "content", "device", "mode", "owner", "xattrs", "mtime"]
"""In what one thing can differ at two moments.

For a link, content is where it leads; `entries`, in a log only: names came into a folder or went.
"""
SUBSTANCE: Final[frozenset[Aspect]] = frozenset({"entries", "type", "content", "device"})
"""What differs in one of these is modified, in the others only its metadata is."""


class Difference(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """One name that differs at two moments.

    Args:
        kind: `renamed` wins over `modified`; `changed` tells then what else differs.
        path: at the newer moment; where `kind` is removed, at the older one.
        raw_path: see the module.
        path_before: at the older moment, where that is another one: it was renamed, or a folder
            above it was. Null where it did not exist, or does not any more.
        type: of what stands there at the newer moment (removed: stood there).
        type_before: where that is another one.
        size: in bytes, of files and links, else null; null where it does not exist any more.
        size_before: in bytes, of files and links, else null.
        changed: in what it differs; empty where it was added or removed, or renamed only.
    """

    kind: Kind
    path: str
    raw_path: str | None = None
    path_before: str | None = None
    raw_path_before: str | None = None
    type: FileType
    type_before: FileType | None = None
    size: int | None = None
    size_before: int | None = None
    changed: list[Aspect] = []


class Count(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """How much differs in one way: names, and the bytes they had and have."""

    count: int = 0
    bytes_before: int = 0
    bytes: int = 0


class Comparison(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """What differs between two moments.

    Args:
        older: the name of the snapshot compared with, or `current`.
        newer: the name of the snapshot that is compared, or `current`.
        stat: for each kind how much differs.
        differences: sorted by path, as bytes.
    """

    older: str
    newer: str
    stat: dict[Kind, Count]
    differences: list[Difference]


class Version(Difference, frozen=True, kw_only=True, rename="camel"):
    """One version of a file or folder: how it differs from the one before.

    Args:
        snapshot: the oldest that shows it, or `current`.
        timestamp: when that was taken, null for current.
        mode: its permission bits as four octal digits; null where it was removed.
        sha256: of a file's bytes in hexadecimal, where it is known or was asked for.
    """

    snapshot: str
    timestamp: str | None
    mode: str | None
    sha256: str | None = None


class Location(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """Where bytes of a file lie.

    Args:
        snapshot: its name, or `current`.
        ino: the file's number, under whatever path it may be later.
        size: of the whole file, in bytes.
        content: the bytes that were asked for, when they lie in the database.
        pieces: else (start, end, object): bytes [start, end) of the file lie at the same offsets
            of that object file; object 0 stands for zeros.
    """

    snapshot: str
    ino: int
    size: int
    content: bytes | None = None
    pieces: list[tuple[int, int, int]] = []


def count_all(differences: list[Difference]) -> dict[Kind, Count]:
    """Return how much differs in each way, every kind in the order of `KINDS`."""
    totals = {kind: [0, 0, 0] for kind in KINDS}
    for each in differences:
        total = totals[each.kind]
        total[0] += 1
        total[1] += each.size_before or 0
        total[2] += each.size or 0
    return {
        kind: Count(count=count, bytes_before=before, bytes=after)
        for kind, (count, before, after) in totals.items()
    }


def writers_text(writers: Iterable[Mapping[str, Any]]) -> str:
    """Return all programs that have files open for writing, each with the first of its paths."""
    paths: dict[tuple[int, str], set[str]] = {}
    for each in writers:
        paths.setdefault((each["pid"], each["name"]), set()).add(each["path"])
    told = []
    for (pid, name), names in sorted(paths.items()):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        told.append(f"{name} (pid {pid}) has {min(names)}{more} open")
    return ", ".join(told)


def path_text(path: bytes) -> str:
    r"""Return a path as text; bytes that are no UTF-8 are written as \xNN."""
    return path.decode("utf-8", "backslashreplace")


def raw_text(path: bytes) -> str | None:
    """Return a path in base64 where `path_text` is not the path itself, else None."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return base64.b64encode(path).decode("ascii")
    return None


def path_bytes(text: str, raw: str | None) -> bytes:
    """Return the path that `path_text` and `raw_text` stand for."""
    return text.encode() if raw is None else base64.b64decode(raw)

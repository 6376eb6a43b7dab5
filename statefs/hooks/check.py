"""Opening what a snapshot holds: SQLite, PostgreSQL, JSON.

Databases change files when they are opened. In a tree that may be changed and is thrown away
afterwards they are opened in place; of a read-only one, each is copied first and removed after. So
is one of a tree that the user of its server cannot reach.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from statefs.errors import HookFailed
from statefs.hooks import sqlite
from statefs.hooks.commands import Deadline, run
from statefs.hooks.postgres import is_cluster
from statefs.hooks.postgres_copy import ClusterDamaged, check_cluster, outside_folders, stranger_to
from statefs.hooks.results import Finding, Kind

JSON_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger document is not parsed: it takes several times its size in memory."""
OTHER_PEOPLES: Final = frozenset({"node_modules", ".git"})
"""Folders whose JSON files are not looked at: libraries ship broken ones, for their own tests."""
OWN_DOCUMENT: Final = "metadata.json"
"""At the top of a snapshot: ours, not the application's."""
SQLITE_COMPANIONS: Final = ("", "-wal", "-journal")
"""What belongs to a database besides itself; -shm is made anew."""
ROOM_MODE: Final = 0o711
"""Users of databases pass through the room, and cannot list it."""


def check_tree(
    tree: Path,
    original: Path,
    room: Path,
    item_seconds: float,
    folders: Sequence[str] = ("",),
    *,
    is_writable: bool = False,
) -> Iterator[Finding]:
    """Open everything that is known in a tree; yield what came of each.

    Args:
        tree: a clone, which is changed, or a snapshot's folder.
        original: where the tree lay that programs knew, `current/`.
        room: an empty folder for copies of what cannot be opened in `tree`.
        item_seconds: what copying and opening one database may take.
        folders: where in the tree to look.
        is_writable: `tree` is a clone.

    Raises:
        OSError: a folder cannot be listed.
    """
    room.chmod(ROOM_MODE)
    for path in chain.from_iterable(sqlite.regular_files(tree / folder) for folder in folders):
        data = path.parent
        if path.name == "PG_VERSION" and is_cluster(data):
            yield _cluster(tree, original, room, item_seconds, data, is_writable=is_writable)
        elif path.suffix == ".json":
            inside = path.relative_to(tree)
            if not OTHER_PEOPLES & set(inside.parts) and str(inside) != OWN_DOCUMENT:
                yield _finding(tree, path, "json", _json)
        elif sqlite.is_database(path):
            look = partial(_copied_database, tree, room, Deadline(item_seconds))
            yield _finding(tree, path, "sqlite", sqlite.check if is_writable else look)


def _finding(tree: Path, path: Path, kind: Kind, look: Callable[[Path], str | None]) -> Finding:
    name = str(path.relative_to(tree))
    try:
        return Finding(path=name, kind=kind, problem=look(path))
    except (HookFailed, OSError) as error:
        return Finding(path=name, kind=kind, unchecked=str(error))


def _cluster(
    tree: Path, original: Path, room: Path, item_seconds: float, data: Path, *, is_writable: bool
) -> Finding:
    deadline = Deadline(item_seconds)
    stranger = stranger_to(data, deadline) if is_writable else None
    if is_writable and stranger is None:
        return _finding(tree, data, "postgres", partial(_recovers, deadline, (original, tree)))
    look = partial(_copied_cluster, tree, original, room, deadline)
    finding = _finding(tree, data, "postgres", look)
    if stranger is None:
        return finding
    note = f"opened in a copy: the user {stranger} cannot reach the mount (allow_other lets it)"
    return replace(finding, note=note)


def _recovers(deadline: Deadline, moved: tuple[Path, Path], data: Path) -> str | None:
    try:
        check_cluster(data, deadline, moved)
    except ClusterDamaged as error:
        return str(error)
    return None


def _copied_cluster(
    tree: Path, original: Path, room: Path, deadline: Deadline, data: Path
) -> str | None:
    try:
        linked = [tree / each for each in outside_folders(data, original)]
    except ClusterDamaged as error:
        return str(error)
    try:
        for folder in [data, *(each for each in linked if not each.is_relative_to(data))]:
            _copy(folder, room / folder.relative_to(tree), deadline)
        return _recovers(deadline, (original, room), room / data.relative_to(tree))
    finally:
        _empty(room)


def _copied_database(tree: Path, room: Path, deadline: Deadline, path: Path) -> str | None:
    copy = room / path.relative_to(tree)
    try:
        for suffix in SQLITE_COMPANIONS:
            part = path.with_name(path.name + suffix)
            if part.is_file():
                _copy(part, copy.with_name(part.name), deadline)
        return sqlite.check(copy)
    finally:
        _empty(room)


def _copy(source: Path, target: Path, deadline: Deadline) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["cp", "-a", "--sparse=auto", "--", str(source), str(target)], deadline)


def _empty(room: Path) -> None:
    for each in room.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def _json(path: Path) -> str | None:
    if path.stat().st_size > JSON_BYTES_MAX:
        raise HookFailed(f"larger than {JSON_BYTES_MAX >> 20} MiB")
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return None

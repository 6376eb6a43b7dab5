"""Opening what is found in a writable copy of a snapshot: SQLite, PostgreSQL, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from statefs.errors import HookFailed
from statefs.hooks import sqlite
from statefs.hooks.commands import Deadline
from statefs.hooks.postgres import find_clusters
from statefs.hooks.postgres_copy import ClusterDamaged, check_cluster
from statefs.hooks.results import Finding

Kind = Literal["sqlite", "postgres", "json"]
JSON_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger document is not parsed: it takes several times its size in memory."""
OTHER_PEOPLES: Final = frozenset({"node_modules", ".git"})
"""Folders whose JSON files are not looked at: libraries ship broken ones, for their own tests."""


def check_folder(copy: Path, original: Path, cluster_seconds: float) -> Iterator[Finding]:
    """Open everything that is known in a copy of a tree; yield what came of each.

    Args:
        copy: writable and thrown away afterwards.
        original: where the tree lay that programs knew, `current/`.
        cluster_seconds: what one PostgreSQL server may take to recover, answer and stop.
    """
    clusters = list(find_clusters(copy, depth=6))
    for data in clusters:
        look = partial(_cluster, Deadline(cluster_seconds), (original, copy))
        yield _finding(copy, data, "postgres", look)
    for database in sqlite.find_databases(copy):
        yield _finding(copy, database, "sqlite", sqlite.check)
    for path in sqlite.regular_files(copy):
        if path.suffix == ".json" and not OTHER_PEOPLES & set(path.relative_to(copy).parts):
            yield _finding(copy, path, "json", _json)


def _finding(copy: Path, path: Path, kind: Kind, look: Callable[[Path], str | None]) -> Finding:
    name = str(path.relative_to(copy))
    try:
        return Finding(path=name, kind=kind, problem=look(path))
    except (HookFailed, OSError) as error:
        return Finding(path=name, kind=kind, unchecked=str(error))


def _cluster(deadline: Deadline, moved: tuple[Path, Path], data: Path) -> str | None:
    try:
        check_cluster(data, deadline, moved)
    except ClusterDamaged as error:
        return str(error)
    return None


def _json(path: Path) -> str | None:
    if path.stat().st_size > JSON_BYTES_MAX:
        raise HookFailed(f"larger than {JSON_BYTES_MAX >> 20} MiB")
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return None

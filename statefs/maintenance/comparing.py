"""Operations that look at two moments or more: what differs, versions of a file, where bytes lie.

A moment is named as `statefs show` takes it, or is `current`. What is newer in memory is settled,
then a `Reader` keeps that state of the rows for as long as a thread looks at it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from statefs.clock import iso_time
from statefs.content import rows
from statefs.errors import NoSuchPath, PosixError, UsageError
from statefs.ids import NOW, Epoch
from statefs.maintenance.progress import reporting
from statefs.maintenance.steps import Steps
from statefs.metadata.connection import Queries
from statefs.snapshots import reports
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.diff import compare, document_of, type_of
from statefs.snapshots.history import History, Version
from statefs.snapshots.naming import CURRENT
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

Document = dict[str, Any]

ENCODED_TOGETHER: Final = 1000
"""Differences encoded in one go, some milliseconds; in between other threads get their turn."""
PIECES_MAX: Final = 10_000
"""Pieces of a file told of at a time; written at random it may have millions."""


def moment_of(store: Store, name: str) -> tuple[str, Epoch]:
    """Return the moment that a selector means, and its own name.

    Raises:
        NoSuchSnapshot, AmbiguousSnapshot, UsageError.
    """
    if name == CURRENT:
        return CURRENT, NOW
    snapshot = store.catalog.choose(name)
    return snapshot.name, snapshot.epoch


def _ready(store: Store, *names: str) -> Steps[list[tuple[str, Epoch]]]:
    """Return the moments meant; the rows know then all that programs wrote before the call."""
    found = [moment_of(store, name) for name in names]
    if CURRENT not in names:
        return found
    yield store.host.write_back
    store.settle()
    return [moment_of(store, name) for name, _ in found]  # one may have been deleted meanwhile


def diff(store: Store, call: Call, older: str, newer: str) -> Steps[Document]:
    """Return what differs between two moments: a `reports.Comparison`, its list encoded already.

    Raises:
        NoSuchSnapshot, AmbiguousSnapshot, UsageError.
    """
    (old_name, old), (new_name, new) = yield from _ready(store, older, newer)
    with store.reader() as reader:
        stat, encoded = yield lambda: _encoded_differences(reader, old, new, call)
    return {"older": old_name, "newer": new_name, "stat": stat, "differences": encoded}


def _encoded_differences(
    database: Queries, older: Epoch, newer: Epoch, call: Call
) -> tuple[Document, msgspec.Raw]:
    """Return the counts, and the list as JSON: that of a million would hold up the mount."""
    pairs = compare(database, older, newer, reporting(call, "comparing", "files"))
    documents = [document_of(pair) for pair in pairs]
    stat: Document = msgspec.to_builtins(reports.count_all(documents))
    parts = [
        msgspec.json.encode(documents[first : first + ENCODED_TOGETHER])[1:-1]
        for first in range(0, len(documents), ENCODED_TOGETHER)
    ]
    return stat, msgspec.Raw(b"[" + b",".join(parts) + b"]")


def log(store: Store, path: str) -> Steps[list[Document]]:
    """Return the versions of a file or folder over all snapshots and current, oldest first.

    Args:
        path: in base64, relative to current/.

    Raises:
        NoSuchPath: neither current nor a snapshot has it.
    """
    yield from _ready(store, CURRENT)
    snapshots = list(store.catalog.snapshots)
    wanted = base64.b64decode(path)
    with store.reader() as reader:
        versions = yield lambda: _version_documents(reader, snapshots, wanted)
    if not versions:
        raise NoSuchPath(f"neither current nor any snapshot has '{reports.path_text(wanted)}'")
    found: list[Document] = msgspec.to_builtins(versions)
    return found


def _version_documents(
    reader: Queries, snapshots: Sequence[Snapshot], path: bytes
) -> list[reports.Version]:
    epochs = [*(snapshot.epoch for snapshot in snapshots), NOW]
    moments = [*snapshots, None]
    return [
        _version_document(reader, version, moments[version.index])
        for version in History(reader, epochs).versions(path)
    ]


def _version_document(
    reader: Queries, version: Version, snapshot: Snapshot | None
) -> reports.Version:
    """Return what is told of a version that a snapshot is the oldest to show; None: current."""
    told = document_of(version.pair)
    after = version.pair.after
    digest = None
    if after is not None and after.inode.is_file and snapshot is not None and snapshot.state_digest:
        digest = rows.digest(reader, after.inode.ino, snapshot.epoch)
    return reports.Version(
        snapshot=CURRENT if snapshot is None else snapshot.name,
        timestamp=None if snapshot is None else iso_time(snapshot.created_ns),
        mode=None if after is None else f"{after.inode.mode & 0o7777:04o}",
        sha256=None if digest is None else digest[0].hex(),
        **{key: getattr(told, key) for key in told.__struct_fields__},
    )


def locate(
    store: Store, *, snapshot: str, path: str, ino: int, offset: int, end: int, check: bool = False
) -> Steps[Document]:
    """Return where a file's bytes [offset, end), or the first of them, lie: `reports.Location`.

    Args:
        path: in base64, relative to current/.
        ino: of the file where an earlier call has found it, else 0.
        offset: of the first byte.
        end: may lie beyond the file's.
        check: whether to compare them with their digests, as far as they have any.

    Raises:
        NoSuchPath: there is none, or not any more. UsageError: it is no file.
        DamagedBytes: they are not what was there.
    """
    name, epoch = moment_of(store, snapshot)
    if name == CURRENT:
        store.settle()
    wanted = base64.b64decode(path)
    with store.reader() as reader:
        tree = PastTree(reader, epoch, finds_runtime=name == CURRENT)
        location = yield lambda: _located(tree, wanted, ino, (offset, end))
        if check:
            yield lambda: store.checks.check_now(location.ino, epoch, location.pieces)
    found: Document = msgspec.to_builtins(msgspec.structs.replace(location, snapshot=name))
    return found


def _located(tree: PastTree, path: bytes, ino: int, span: tuple[int, int]) -> reports.Location:
    text = reports.path_text(path)
    try:
        inode = tree.inode(ino) if ino else tree.find(path)
    except PosixError as error:
        raise NoSuchPath(
            f"there is no file or folder '{text}' then: name one relative to current/"
        ) from error
    if not inode.is_file:
        where = f" to '{reports.path_text(tree.target(inode.ino))}'" if inode.is_symlink else ""
        raise UsageError(f"'{text}' is no file but a {type_of(inode)}{where}")
    location = reports.Location(snapshot="", ino=inode.ino, size=inode.size)
    offset, end = span
    plan = tree.plan_read(inode.ino, offset, max(0, min(end, inode.size) - offset))
    if isinstance(plan, bytes):
        return msgspec.structs.replace(location, content=plan)
    return msgspec.structs.replace(location, pieces=plan[:PIECES_MAX])

"""The documents a store publishes: index.json and each snapshot's metadata.json.

Field names are camelCase on disk; docs/index.schema.json and docs/metadata.schema.json are made
from these types. A missing optional value is null, never left out.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import msgspec

from statefs.hooks.results import Consistency, DumpResult
from statefs.snapshots.naming import time_ns
from statefs.snapshots.reasons import Reason

T = TypeVar("T")

FORMAT_VERSION: Final = 1
"""formatVersion of both documents."""


class VolumeManifest(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """One volume in a snapshot: a folder of volumes/, or what statefs.toml names.

    Args:
        path: its folder, relative to current/.
        format: "files", "sqlite", "postgres-15" and the like.
        bytes: the size of the databases in it, where they are known.
        digest: what its folder hashes to (docs/state-digest.md); null until the snapshot is sealed.
        dump: the logical dump that was made for this snapshot.
        notes: what is wrong with it, or was not done, and why.
    """

    name: str
    path: str | None = None
    consistency: Consistency = "crash-consistent"
    format: str = "files"
    bytes: int | None = None
    digest: str | None = None
    dump: DumpResult | None = None
    notes: list[str] = []


def folder_of(volume: VolumeManifest) -> str:
    """Return a volume's folder, relative to current/."""
    return volume.path or f"volumes/{volume.name}"


OperationKind = Literal["restore", "try", "import", "undo"]
AROUND: Final = ("try", "import")
"""Operations with a snapshot before and one after them."""


IMPORTED_LABEL: Final = "imported-from"
"""The label of a snapshot that was imported: of which one its archive was made, and so when."""


class Operation(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    r"""What a snapshot was taken for: what `statefs undo` needs to know.

    Args:
        kind: a restore, a command run by `statefs try`, an import, or what puts one of them back.
        phase: whether the snapshot was taken before or after it.
        other: the snapshotId of the other one: what a restore brought back, the other one of the
            two around a command or an import (null before it while that is under way), or the one
            that was taken for what is being undone.
        paths: what a restore was limited to, relative to current/; empty for everything. A byte
            that is not UTF-8 is written as \xNN, a backslash as two.
        command: of `statefs try`.
        exit_code: of that command.
    """

    kind: OperationKind
    phase: Literal["before", "after"]
    other: str | None = None
    paths: list[str] = []
    command: list[str] = []
    exit_code: int | None = None


class ChangedPaths(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """snapshots/NAME.changed: what the restore, or undo, changed that snapshot NAME was taken for.

    Args:
        paths: relative to current/, each with all below it, written as those of `Operation`.
        folders: those that changed alone, without what they hold; the root's is empty.
    """

    paths: list[str]
    folders: list[str]


class LastOperation(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """`last_operation` in the table `store`: what `statefs undo` is to undo next.

    Args:
        snapshot_id, name: of the snapshot that was taken for it last; it may be deleted.
    """

    kind: OperationKind
    snapshot_id: str
    name: str


class Pin(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """Why a snapshot may not be deleted, who says so, since when, until when (null: for good)."""

    reason: str
    by: str
    since: str
    until: str | None = None

    def holds(self, now_ns: int) -> bool:
        """Return whether the pin has not ended."""
        return self.until is None or now_ns < time_ns(self.until)

    def __str__(self) -> str:
        until = "" if self.until is None else f" until {self.until}"
        return f"pinned{until} by {self.by}: {self.reason}"


class SnapshotDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A snapshot's metadata.json, and what commands say of a snapshot."""

    snapshot_id: str
    name: str
    timestamp: str
    parent_snapshot_id: str | None
    reason: Reason
    message: str
    labels: dict[str, str]
    app_version: str
    format_version: int = FORMAT_VERSION
    state_digest: str | None = None
    volume_manifests: list[VolumeManifest]
    files: int
    bytes: int
    sealed: bool = False
    operation: Operation | None = None
    pin: Pin | None = None


class ListedSnapshot(SnapshotDocument, rename="camel", frozen=True, kw_only=True):
    """What `list` and `show` say of a snapshot: its document, and why it cannot be sealed, if so.

    Known to the process that has tried to; not written anywhere.
    """

    unsealable: str | None = None


class IndexEntry(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """What index.json says of each snapshot."""

    snapshot_id: str
    name: str
    timestamp: str
    parent_snapshot_id: str | None
    reason: Reason
    message: str
    labels: dict[str, str]
    state_digest: str | None
    files: int
    bytes: int
    sealed: bool
    pin: Pin | None = None


class RetentionPolicy(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """How many snapshots are to be kept, and which: [retention] of statefs.toml; 0 is no rule."""

    max_snapshots: int = 100
    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_labels: tuple[str, ...] = ()
    keep_within_seconds: int = 0
    protect_labelled: bool = True
    protect_before: bool = False
    relative_to: Literal["now", "newest"] = "now"
    min_free_bytes: int = 0
    max_store_bytes: int = 0


class IndexDocument(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """index.json: every snapshot of a store, newest last."""

    project_id: str
    app_id: str | None
    format_version: int = FORMAT_VERSION
    current_state_digest: str | None
    snapshots: list[IndexEntry]
    retention_policy: RetentionPolicy
    last_modified: str


def encode(document: msgspec.Struct) -> bytes:
    """Return a document as indented JSON that ends in a newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(data: bytes, kind: type[T]) -> T:
    """Return the document that the bytes of a file are.

    Raises:
        ValueError: they are damaged, or those of something else.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def index_entry(document: SnapshotDocument) -> IndexEntry:
    """Return what index.json says of a snapshot."""
    fields = {name: getattr(document, name) for name in IndexEntry.__struct_fields__}
    return IndexEntry(**fields)

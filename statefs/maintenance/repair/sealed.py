"""What a repaired database says of its snapshots: counts, and which of them are still sealed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import apsw
from msgspec.structs import replace

from statefs.content.checks import ContentChecks
from statefs.content.objects import ObjectFiles, Piece
from statefs.layout import StoreLayout
from statefs.maintenance.repair.damaged import Damaged, nothing
from statefs.maintenance.repair.listing import unsealed
from statefs.maintenance.rereading import Rereading, Version
from statefs.maintenance.verify.catalog import counts_of
from statefs.maintenance.verify.digests import missing_digests, unlike_folders, unlike_root
from statefs.maintenance.verify.reading import Reading
from statefs.metadata.connection import Database, Reader
from statefs.snapshots.catalog import Snapshot, columns_of

_UPDATE: Final = (
    "UPDATE snapshots SET files = :files, bytes = :bytes, state_digest = :state_digest,"
    " volumes = :volumes WHERE epoch = :epoch"
)


def settle(layout: StoreLayout, epochs: Iterable[int]) -> int:
    """Count what snapshots hold, and have only those be sealed that have every digest.

    Args:
        layout: of the repaired database.
        epochs: of snapshots that are not sealed any more.

    Returns:
        How many volumes got the digest of their folder, in snapshots that are sealed still.
    """
    reading = Reading(layout)
    try:
        counts = {int(each.epoch): counts_of(reading, each) for each in reading.snapshots}
        gone = {epoch for _, epoch in missing_digests(reading)} | set(epochs)
        gone |= {int(each.epoch) for each, _ in unlike_root(reading)}
        digests = {
            (int(snapshot.epoch), volume.name): found
            for snapshot, volume, found in unlike_folders(reading)
            if snapshot.epoch not in gone
        }
        snapshots = reading.snapshots
    finally:
        reading.close()
    connection = apsw.Connection(str(layout.meta_db))
    try:
        with connection:
            for each in snapshots:
                epoch = int(each.epoch)
                each = unsealed(each) if epoch in gone else _with_digests(each, digests)
                files, size = counts[epoch]
                connection.execute(_UPDATE, columns_of(each._replace(files=files, bytes=size)))
    finally:
        connection.close()
    return len(digests)


def _with_digests(snapshot: Snapshot, digests: dict[tuple[int, str], str | None]) -> Snapshot:
    """Return a snapshot whose volumes have other digests, by epoch and name."""
    volumes = [
        replace(volume, digest=digests.get((int(snapshot.epoch), volume.name), volume.digest))
        for volume in snapshot.volumes
    ]
    return snapshot._replace(volumes=volumes)


class _Bare:
    """As much of a store as reading everything needs."""

    def __init__(self, layout: StoreLayout) -> None:
        self.layout = layout
        self.objects = ObjectFiles(layout)
        self.database = Database(layout.meta_db)
        self.checks = ContentChecks(self.objects, self.database)

    def reader(self) -> Reader:
        """Return the rows."""
        return Reader(self.layout.meta_db)

    def close(self) -> None:
        """Close the files."""
        self.objects.close()
        self.database.close()


class _Search(Rereading):
    """Notes where damage lies."""

    def __init__(self, store: _Bare) -> None:
        super().__init__(store)
        self.damaged = nothing()
        self._epochs: dict[str, int] = {}

    def _tell(self, version: Version, damaged: list[tuple[int, int]]) -> None:
        super()._tell(version, damaged)
        if version.inline is not None:
            self.damaged.inline.add((version.ino, version.inline))
        for start, end in damaged:
            for piece in version.pieces(start, end):
                self._note(piece)

    def _note(self, piece: Piece) -> None:
        start, end, number = piece
        if number:
            self.damaged.ranges.setdefault(number, []).append((start, end))


def search(layout: StoreLayout, on_progress: Callable[[dict[str, Any]], None]) -> Damaged:
    """Read everything that has a digest; return what is damaged.

    Args:
        on_progress: told how many bytes of how many have been read.
    """
    store = _Bare(layout)
    try:
        reading = _Search(store)
        while not reading.is_done:
            reading.step()
            on_progress(reading.progress("reading"))
        with store.reader() as reader:
            epochs = dict(reader.rows("SELECT name, epoch FROM snapshots"))
        folders: defaultdict[str, set[int]] = defaultdict(set)
        for problem in reading.problems:
            folders[problem.rule].update(epochs[name] for name in problem.snapshots)
        first = min(folders["D02"], default=None)
        if first is not None:  # the damage is in all that share the digest
            reading.damaged.epochs.update(each for each in epochs.values() if each >= first)
        return reading.damaged
    finally:
        store.close()

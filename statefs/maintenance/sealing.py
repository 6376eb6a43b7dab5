"""Sealing: every complete snapshot gets the digests of its files and folders, oldest first.

What is hashed is what may have changed since the sealed snapshot before it, and the folders above;
bytes that were hashed once are not read again. It runs beside the requests, in steps: reading and
hashing in a thread (maintenance/hashing.py), writing rows in short transactions in between. What an
interruption leaves are rows that the next attempt finds right or replaces.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from statefs.content.checks import DamagedBytes
from statefs.errors import CorruptStore, NoSuchSnapshot, PosixError, StatefsError
from statefs.maintenance import saving
from statefs.maintenance.hashing import (
    DigestMissing,
    Files,
    Folders,
    Row,
    Unreadable,
    newest_digest,
)
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.changes import changed_inodes
from statefs.snapshots.digest import state_digest
from statefs.snapshots.documents import VolumeManifest, folder_of
from statefs.snapshots.views import PastTree
from statefs.telemetry.tallies import SEAL

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
"""Between two looks at what the daemon's task has done: short for who waits for one snapshot."""
PASSED_OVER: Final = "what it holds could not be read when it was its turn; a newer one is sealed"


class Sealer:
    """Seals the snapshots of one store.

    `progress` says how far the snapshot is that is being sealed.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._call: Call | None = None
        self.progress: dict[str, Any] = {}
        self._reasons: dict[int, str] = {}
        self._given_up: dict[int, Unreadable | None] = {}

    def next(self) -> Snapshot | None:
        """Return the oldest snapshot that is to be sealed, None when all are.

        One that is older than a sealed one is passed over: its digests would have to be put before
        rows that are there. It could not be sealed when it was its turn.
        """
        newest = self._store.catalog.newest_sealed
        for snapshot in self._store.catalog.snapshots:
            is_later = newest is None or snapshot.epoch > newest.epoch
            if is_later and snapshot.epoch not in self._given_up:
                return snapshot
        return None

    def try_again(self) -> Steps[None]:
        """Let those be the next again of which what could not be read can be read now."""
        for epoch, damage in list(self._given_up.items()):
            if damage is not None and (yield partial(self._is_readable, epoch, damage)):
                del self._given_up[epoch]

    def _is_readable(self, epoch: int, damage: Unreadable) -> bool:
        try:
            self._store.checks.check_now(damage.ino, epoch, damage.plan)
            self._store.objects.read(damage.plan)
        except (OSError, DamagedBytes):
            return False
        return True

    def why_not(self, snapshot: Snapshot) -> str | None:
        """Return why a snapshot cannot be sealed, in words; None where it is, or will be."""
        newest = self._store.catalog.newest_sealed
        if snapshot.state_digest is not None:
            return None
        is_passed = newest is not None and snapshot.epoch < newest.epoch
        return self._reasons.get(snapshot.epoch, PASSED_OVER if is_passed else None)

    def has_damage(self, snapshot: Snapshot) -> bool:
        """Whether it is damage for which a snapshot cannot be sealed, as far as is known."""
        found = self._given_up.get(snapshot.epoch)
        return found is None or found.is_damage

    def _sealed_before(self, snapshot: Snapshot) -> Snapshot | None:
        """Return the newest sealed snapshot before another one."""
        for each in reversed(self._store.catalog.snapshots):
            if each.state_digest and each.epoch < snapshot.epoch:
                return each
        return None

    def is_pending(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is there and will be sealed."""
        now = self._store.catalog.by_epoch(snapshot.epoch)
        return now is not None and now.state_digest is None and self.why_not(now) is None

    def hash(self, snapshot: Snapshot) -> Steps[str | None]:
        """Write the digests of a snapshot, the oldest that is not sealed.

        Returns:
            Its state digest; None when it has been deleted meanwhile, or cannot be sealed
            (`why_not` says why).

        Raises:
            PosixError: the disk refused to take the rows; it may be tried again.
        """
        began = time.monotonic()
        try:
            digest = yield from self._hash(snapshot)
            self._store.tallies.took(SEAL, time.monotonic() - began)
            return digest
        except _DeletedMeanwhile:
            return None
        except PosixError:
            if self._store.catalog.by_epoch(snapshot.epoch) is None:
                return None
            raise
        except CorruptStore as error:
            if self._store.catalog.by_epoch(snapshot.epoch) is not None:
                self._give_up(snapshot, error)
            return None
        finally:
            self.progress = {}

    def _give_up(self, snapshot: Snapshot, error: CorruptStore) -> None:
        self._given_up[snapshot.epoch] = error if isinstance(error, Unreadable) else None
        self._reasons[snapshot.epoch] = str(error)
        self._store.tallies.failed(SEAL)
        log.error("the snapshot %s cannot be sealed: %s", snapshot.name, error)

    def _hash(self, snapshot: Snapshot) -> Steps[str]:
        base = self._sealed_before(snapshot)
        if base is not None:
            inos, total = yield lambda: self._changed(base, snapshot)
            try:
                return (yield from self._hash_inodes(snapshot, inos, total))
            except DigestMissing:
                pass  # something has come out of runtime/: everything is looked at
        try:
            return (yield from self._hash_inodes(snapshot, None, snapshot.bytes))
        except DigestMissing as error:
            raise CorruptStore(f"inode {error} has no digest and cannot get one") from error

    def _changed(self, older: Snapshot, newer: Snapshot) -> tuple[list[int], int]:
        """Return what may differ between two snapshots, and of how many bytes."""
        with self._store.reader() as reader:
            inos = changed_inodes(reader, older.epoch, newer.epoch)
            total = 0
            for ino in inos:
                size = reader.value(
                    "SELECT size FROM inodes WHERE ino = ? AND valid_to > ? AND valid_from <= ?",
                    (ino, newer.epoch, newer.epoch),
                )
                total += size or 0
        return inos, total

    def _hash_inodes(self, snapshot: Snapshot, inos: list[int] | None, total: int) -> Steps[str]:
        files = Files(self._store, snapshot.epoch, inos)
        while not files.is_done:
            self._write(snapshot, (yield files.step))
            done = min(files.bytes_done, total)
            what = f"sealing {snapshot.name}"
            self.progress = {"what": what, "done": done, "total": total, "unit": "bytes"}
            if self._call is not None:
                self._call.report(self.progress)
        folders = Folders(self._store, snapshot.epoch, files.folders)
        while not folders.is_done:
            self._write(snapshot, (yield folders.step))
        return state_digest(folders.root)

    def _write(self, snapshot: Snapshot, rows: list[Row]) -> None:
        """Write digests, unless the snapshot has gone meanwhile."""
        catalog, table = self._store.catalog, self._store.volume.table
        if catalog.by_epoch(snapshot.epoch) is None:
            raise _DeletedMeanwhile
        if not rows:
            return
        before = catalog.pinned_before(snapshot.epoch)
        with table.change():
            for ino, values in rows:
                table.temporal.put_digest(snapshot.epoch, before, ino, values)

    def finish(self, snapshot: Snapshot, digest: str) -> Steps[None]:
        """Tell a snapshot's state digest and those of its volumes, in its row and in the documents.

        While it runs no other operation changes the list of snapshots, and no other is hashed.
        """
        self._reasons.pop(snapshot.epoch, None)
        now = self._store.catalog.by_epoch(snapshot.epoch)
        if now is not None:
            tree = PastTree(self._store.database, now.epoch)
            volumes = [replace(each, digest=self._digest_of(tree, each)) for each in now.volumes]
            yield from saving.amend(self._store, now, state_digest=digest, volumes=volumes)

    def _digest_of(self, tree: PastTree, volume: VolumeManifest) -> str | None:
        """Return what a volume's folder hashes to; None where there is no such folder."""
        try:
            inode = tree.find(folder_of(volume).encode())
        except PosixError:
            return None
        known = newest_digest(self._store.database, inode.ino) if inode.is_dir else None
        return None if known is None else state_digest(known)

    def seal_all(self, call: Call | None = None) -> Steps[None]:
        """Seal everything that can be, where nothing else changes the list of snapshots."""
        self._call = call
        while (snapshot := self.next()) is not None:
            digest = yield from self.hash(snapshot)
            if digest is not None:
                yield from self.finish(snapshot, digest)


def seal(store: Store, snapshot: Snapshot, call: Call) -> Steps[Snapshot]:
    """Wait until a snapshot is sealed, or seal it here where no daemon does.

    Raises:
        CorruptStore: it cannot be sealed, as what it holds is damaged. StatefsError: as that cannot
            be read now. The message says why.
        NoSuchSnapshot: it has been deleted meanwhile.
    """
    sealer = store.sealer
    if store.host.is_mounted:
        while sealer.is_pending(snapshot) and call.is_wanted:
            call.report(sealer.progress)
            yield lambda: time.sleep(POLL_SECONDS)
    else:
        yield from sealer.seal_all(call)
    now = store.catalog.by_epoch(snapshot.epoch)
    if now is None:
        raise NoSuchSnapshot(f"the snapshot {snapshot.name} has been deleted before it was sealed")
    if now.state_digest is None and call.is_wanted:
        kind = CorruptStore if sealer.has_damage(now) else StatefsError
        why = sealer.why_not(now)
        raise kind(f"the snapshot {now.name} is there but cannot be sealed: {why}")
    return now


class _DeletedMeanwhile(Exception):
    """The snapshot that is being sealed is not there any more."""

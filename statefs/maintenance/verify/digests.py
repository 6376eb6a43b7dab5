"""Rules of digests: what sealed snapshots hash to. Here rows are compared, no content is read."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any, Final

from statefs.content.blocks import BLAKE3_BYTES, BLOCK_BYTES, block_count
from statefs.errors import PosixError
from statefs.ids import TREE_ROOT
from statefs.maintenance.hashing import CONTENT_BYTES
from statefs.maintenance.verify.reading import Reading, in_clones, meet
from statefs.metadata.schema import COMPLETE
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.digest import SHA256_BYTES, state_digest
from statefs.snapshots.documents import VolumeManifest, folder_of

HASHED: Final = f"i.mode & 0xF000 IN ({stat.S_IFREG}, {stat.S_IFDIR})"
_TOGETHER: Final = "sealed(max({0}.valid_from, {1}.valid_from), min({0}.valid_to, {1}.valid_to))"


def check_digests(reading: Reading) -> Iterator[str]:
    """R26: a digest is of a file or folder, as long as it must be, with as many blocks."""
    query = (
        "SELECT d.ino FROM digests d WHERE NOT EXISTS"
        f" (SELECT 1 FROM inodes i WHERE i.ino = d.ino AND {HASHED}) ORDER BY d.ino"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} has a digest, but is no file or folder"
    query = (
        f"SELECT d.ino FROM digests d WHERE length(d.sha256) != {SHA256_BYTES}"
        f" OR length(coalesce(d.content, zeroblob({CONTENT_BYTES}))) != {CONTENT_BYTES}"
        " ORDER BY d.ino"
    )
    for (ino,) in reading.rows(query):
        yield f"{reading.named(ino)} has a digest of the wrong length"
    reading.connection.create_scalar_function("block_count", _blocks_of, 1, deterministic=True)
    query = (
        "SELECT DISTINCT d.ino, i.size FROM digests d CROSS JOIN inodes i ON i.ino = d.ino"
        f" AND {meet('d', 'i')} AND i.mode & 0xF000 = {stat.S_IFREG}"
        f" WHERE {_TOGETHER.format('d', 'i')} > 0 AND length(coalesce(d.blocks, '')) !="
        f" CASE WHEN i.size <= {BLOCK_BYTES} THEN 0 ELSE {BLAKE3_BYTES} * block_count(i.size) END"
        " ORDER BY d.ino"
    )
    for ino, size in reading.rows(query):
        yield f"{reading.named(ino)} of {size} bytes has digests of another number of blocks"


def _blocks_of(*size: Any) -> int:
    return block_count(*size)


def unlike_root(reading: Reading) -> Iterator[tuple[Snapshot, str | None]]:
    """Yield sealed snapshots whose state digest is not that of their root, and that one."""
    for snapshot in reading.snapshots:
        if snapshot.state_digest is None or snapshot.state != COMPLETE:
            continue
        found = _digest_of(reading, TREE_ROOT, snapshot.epoch)
        if found != snapshot.state_digest:
            yield snapshot, found


def unlike_folders(reading: Reading) -> Iterator[tuple[Snapshot, VolumeManifest, str | None]]:
    """Yield volumes of sealed snapshots whose digest is not that of their folder, and that one."""
    for snapshot in reading.snapshots:
        if snapshot.state_digest is None or snapshot.state != COMPLETE:
            continue
        tree = reading.past(snapshot.epoch)
        for volume in snapshot.volumes:
            if volume.digest is None:
                continue  # no folder, or sealed by a version that told of none
            try:
                ino = tree.find(folder_of(volume).encode()).ino
            except PosixError:
                found = None
            else:
                found = _digest_of(reading, ino, snapshot.epoch)
            if found != volume.digest:
                yield snapshot, volume, found


def _digest_of(reading: Reading, ino: int, epoch: int) -> str | None:
    """Return what a folder hashes to in an epoch, as documents have it; None if that is unknown."""
    digest = reading.value(
        "SELECT sha256 FROM digests WHERE ino = ? AND valid_to > ? AND valid_from <= ?",
        (ino, epoch, epoch),
    )
    return None if digest is None else state_digest(digest)


def check_state_digests(reading: Reading) -> Iterator[str]:
    """R27: a sealed snapshot's state digest is that of its root, each volume's that of its folder.

    Only a complete snapshot is sealed. Without snapshots there are no digests.
    """
    for snapshot, found in unlike_root(reading):
        yield (
            f"snapshot {snapshot.name} has the state digest {snapshot.state_digest},"
            f" its root {found or 'none'}"
        )
    for snapshot, volume, found in unlike_folders(reading):
        yield (
            f"snapshot {snapshot.name} has the digest {volume.digest} for the volume"
            f" {volume.name}, its folder {found or 'none'}"
        )
    if not reading.snapshots:
        count = reading.value("SELECT count(*) FROM digests")
        if count:
            yield f"there are {count} digests and no snapshot"


def check_sealed(reading: Reading) -> Iterator[str]:
    """R28: each file and folder that a sealed snapshot shows has a digest there."""
    for ino, epoch in missing_digests(reading):
        yield f"{reading.named(ino)} has no digest in the sealed epoch {epoch}"


def missing_digests(reading: Reading) -> Iterator[tuple[int, int]]:
    """Yield files and folders, and the epochs of sealed snapshots that have no digest of them."""
    query = (
        f"SELECT i.ino, i.valid_from, i.valid_to FROM inodes i WHERE {HASHED} AND i.nlink > 0"
        f" AND NOT {in_clones('i.ino')}"
        " AND sealed(i.valid_from, i.valid_to) > (SELECT"
        f" coalesce(sum({_TOGETHER.format('d', 'i')}), 0)"
        f" FROM digests d WHERE d.ino = i.ino AND {meet('i', 'd')}) ORDER BY i.ino"
    )
    trees = {
        each.epoch: reading.past(each.epoch)
        for each in reading.snapshots
        if each.state_digest is not None and each.state == COMPLETE
    }
    for ino, since, until in reading.rows(query):
        for epoch, tree in trees.items():
            if since <= epoch < until and not _has_digest(reading, ino, epoch) and tree.paths(ino):
                yield ino, epoch


def _has_digest(reading: Reading, ino: int, epoch: int) -> bool:
    row = reading.value(
        "SELECT 1 FROM digests WHERE ino = ? AND valid_to > ? AND valid_from <= ?",
        (ino, epoch, epoch),
    )
    return row is not None

"""Reading everything that sealed snapshots hold and comparing it with its digests.

What `statefs verify --read-data` and the scrub of a daemon do. A range of an object file is read
once, however many snapshots see it. It changes nothing and holds nobody up: rows are read through a
`Reader` of each file, bytes in steps of some milliseconds, in a thread. A snapshot may be deleted
meanwhile; what is found damaged is looked up again before it is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from statefs.content import rows
from statefs.content.blocks import (
    BLAKE3_BYTES,
    block_bytes,
    block_count,
    block_digest,
    whole_digest,
)
from statefs.content.checks import ContentChecks, DamagedBytes, is_damage
from statefs.content.extents import Extent, pieces
from statefs.content.objects import ObjectFiles, Piece
from statefs.errors import PosixError, UsageError
from statefs.ids import TREE_ROOT, Epoch
from statefs.maintenance.hashing import READ_BYTES_PER_STEP, DigestMissing, content_name, entry_of
from statefs.maintenance.steps import Steps
from statefs.maintenance.verify import Problem
from statefs.metadata.connection import Queries, Reader
from statefs.metadata.inodes import COLUMNS, Inode, past_row
from statefs.metadata.schema import COMPLETE
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.changes import content_of
from statefs.snapshots.digest import LEFT_OUT, FolderHash
from statefs.snapshots.naming import CURRENT
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

INODES_PER_QUERY: Final = 500
PROBLEMS_MAX: Final = 1000
"""Damaged files told of: a lost disk should not make a list of millions."""
CONTENT: Final = "D01"
FOLDER: Final = "D02"

Pieces = tuple[tuple[int, int, int], ...]
Known = dict[tuple[bool, Pieces], bytes | None]
"""What pieces hash to that were read already: as blocks (BLAKE3), or else as whole files."""

_INOS: Final = "SELECT DISTINCT ino FROM digests WHERE ino > ? ORDER BY ino LIMIT ?"
_DIGESTS: Final = (
    "SELECT valid_from, valid_to, sha256, blocks FROM digests WHERE ino = ? ORDER BY valid_to"
)
_SIZE: Final = (
    "SELECT CAST(total(size) AS INTEGER) FROM (SELECT max(size) AS size FROM inodes i WHERE"
    " mode & 0xF000 = 0x8000 AND EXISTS (SELECT 1 FROM digests d WHERE d.ino = i.ino) GROUP BY ino)"
)
_BYTES: Final = "SELECT bytes FROM snapshots WHERE epoch = ?"
_ENTRIES: Final = (
    f"SELECT e.name, {COLUMNS},"
    " (SELECT sha256 FROM digests WHERE ino = e.ino AND valid_to > ?2 AND valid_from <= ?2)"
    " FROM entries e CROSS JOIN inodes i ON i.ino = e.ino AND i.valid_to ="
    "  (SELECT min(valid_to) FROM inodes WHERE ino = e.ino AND valid_to > ?2)"
    " WHERE e.parent = ?1 AND e.valid_to > ?2 AND e.valid_from <= ?2 ORDER BY e.name"
)


class Version(NamedTuple):
    """Content of a file, the epochs of the sealed snapshots that see it, and its digests."""

    ino: int
    epochs: list[int]
    size: int
    inline: bytes | None
    extents: list[Extent]
    sha256: bytes
    blocks: bytes | None

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Return where a range of it lies."""
        return list(pieces(self.extents, start, end))


class Source(Protocol):
    """A store whose content is read."""

    @property
    def objects(self) -> ObjectFiles:
        """Its object files."""

    @property
    def checks(self) -> ContentChecks:
        """What is known of content that has digests."""

    def reader(self) -> Reader:
        """Return its rows."""


class Rereading:
    """Reads what sealed snapshots hold, in steps.

    `bytes_total` is what their files have now, or had last; what was overwritten comes on top.

    Args:
        store: open.
        epoch: of the one snapshot to read; None for all that are sealed.
    """

    def __init__(self, store: Source, epoch: int | None = None) -> None:
        self._store = store
        self._epoch = epoch
        self._work = self._read_all()
        self.is_done = False
        self.bytes_done = 0
        self.bytes_total: int | None = None
        self.files = 0
        self.problems: list[Problem] = []

    def step(self, limit: int = READ_BYTES_PER_STEP) -> None:
        """Read about `limit` bytes; in any thread, but in one at a time."""
        before = self.bytes_done
        while self.bytes_done - before < limit:
            if next(self._work, None) is None:
                self.is_done = True
                return

    def progress(self, what: str) -> dict[str, Any]:
        """Return how far it is."""
        total = self.bytes_total
        if total is not None:
            total = self.bytes_done if self.is_done else max(total, self.bytes_done)
        return {"what": what, "done": self.bytes_done, "total": total, "unit": "bytes"}

    def _sealed(self, reader: Queries) -> dict[int, str]:
        """Return epoch -> name of the snapshots that are read, oldest first."""
        found = reader.rows(
            "SELECT epoch, name FROM snapshots WHERE state = ? AND state_digest IS NOT NULL"
            " ORDER BY epoch",
            (COMPLETE,),
        )
        return {epoch: name for epoch, name in found if self._epoch in (None, epoch)}

    def _read_all(self) -> Iterator[bool]:
        """Yield after each part that was read."""
        with self._store.reader() as reader:
            if self._epoch is None:
                self.bytes_total = reader.value(_SIZE)
            else:
                self.bytes_total = reader.value(_BYTES, (self._epoch,))
        last = 0
        while True:
            with self._store.reader() as reader:
                inos = [row[0] for row in reader.rows(_INOS, (last, INODES_PER_QUERY))]
            if not inos:
                return
            for ino in inos:
                yield from self._read_inode(ino)
            last = inos[-1]

    def _read_inode(self, ino: int) -> Iterator[bool]:
        with self._store.reader() as reader:
            versions = self._versions(reader, ino)
        known: Known = {}
        for version in versions:
            damaged: list[tuple[int, int]] = []
            for start, end, is_sound in self._blocks(version, known):
                if not is_sound and damaged and damaged[-1][1] == start:
                    damaged[-1] = (damaged[-1][0], end)
                elif not is_sound:
                    damaged.append((start, end))
                yield True
            if damaged:
                self._tell(version, damaged)
        self.files += bool(versions)
        yield True

    def _versions(self, reader: Reader, ino: int) -> list[Version]:
        """Return the different contents of a file; a folder is checked at once."""
        sealed = self._sealed(reader)
        found: dict[tuple[bytes, bytes], Version] = {}
        for since, until, sha256, blocks in reader.rows(_DIGESTS, (ino,)):
            epochs = [epoch for epoch in sealed if since <= epoch < until]
            for epoch in epochs:
                row = past_row(reader, ino, Epoch(epoch))
                inode = None if row is None else Inode(row)
                if inode is None:
                    continue
                if inode.is_dir:
                    self._check_folder(reader, inode, epoch, sha256)
                    break
                content = content_of(reader, inode, epoch)
                is_inline = isinstance(content, bytes)
                name = content if isinstance(content, bytes) else content_name(inode.size, content)
                version = found.get((name, sha256))
                if version is None:
                    version = found[name, sha256] = Version(
                        ino, [], inode.size, name if is_inline else None,
                        [] if is_inline else rows.extents(reader, ino, epoch), sha256, blocks,
                    )  # fmt: skip
                version.epochs.append(epoch)
        return list(found.values())

    def _blocks(self, version: Version, known: Known) -> Iterator[tuple[int, int, bool]]:
        """Yield start and end of each block of a file, and whether it is as it was."""
        size = version.size
        if version.inline is not None:
            self.bytes_done += size
            is_sound = hashlib.sha256(version.inline).digest() == version.sha256
            yield 0, size, is_sound and len(version.inline) == size
            return
        length, count = block_bytes(size), block_count(size)
        for place in range(count or 1):
            start, end = place * length, min((place + 1) * length, size)
            key = (count > 0, tuple(pieces(version.extents, start, end)))
            if key not in known:
                known[key] = self._digest(*key)
                self.bytes_done += end - start
            wanted = version.sha256
            if count:
                wanted = (version.blocks or b"")[BLAKE3_BYTES * place :][:BLAKE3_BYTES]
            if known[key] != wanted:
                self._store.checks.distrust(key[1])  # so that it is not served, either
            yield start, end, known[key] == wanted

    def _digest(self, is_block: bool, plan: Pieces) -> bytes | None:
        """Return the digest of some pieces, None for what is lost."""
        try:
            if is_block:
                return block_digest(self._store.objects, list(plan))
            return whole_digest(self._store.objects, plan)
        except OSError as error:
            if not is_damage(error):
                raise
            return None

    def _tell(self, version: Version, damaged: list[tuple[int, int]]) -> None:
        """Note a damage, unless the snapshots that see it have been deleted meanwhile."""
        with self._store.reader() as reader:
            sealed = self._sealed(reader)
            epochs = [epoch for epoch in version.epochs if epoch in sealed]
            if not epochs or len(self.problems) >= PROBLEMS_MAX:
                return
            path = path_of(reader, version.ino, epochs[0])
        names = [sealed[epoch] for epoch in epochs]
        ranges = ", ".join(f"{start} to {end}" for start, end in damaged)
        self.problems.append(
            Problem(
                rule=CONTENT,
                message=f"{path}: bytes {ranges} are damaged, in {', '.join(names)}",
                path=path,
                snapshots=names,
                ranges=damaged,
            )
        )

    def _check_folder(self, reader: Reader, inode: Inode, epoch: int, wanted: bytes) -> None:
        hasher = FolderHash()
        is_sound = True
        try:
            for name, *row, digest in reader.execute(_ENTRIES, (inode.ino, epoch)):
                if inode.ino != TREE_ROOT or name not in LEFT_OUT:
                    hasher.add(entry_of(reader, epoch, name, Inode(tuple(row)), digest))
        except DigestMissing:
            is_sound = False
        if (is_sound and hasher.digest() == wanted) or len(self.problems) >= PROBLEMS_MAX:
            return
        path = path_of(reader, inode.ino, epoch)
        name = self._sealed(reader)[epoch]
        message = f"{path or 'the root'}: names, attributes or digests are damaged, from {name} on"
        self.problems.append(Problem(rule=FOLDER, message=message, path=path, snapshots=[name]))


def path_of(reader: Queries, ino: int, epoch: int) -> str:
    """Return a path of an inode at an epoch, as text for people."""
    try:
        paths = PastTree(reader, Epoch(epoch)).paths(ino)
    except PosixError:
        paths = []
    return path_text(paths[0]) if paths else f"inode {ino}"


def describe(reader: Queries, damage: DamagedBytes) -> str:
    """Return in words which bytes of which file are damaged, and where."""
    path = path_of(reader, damage.ino, damage.epoch)
    name = reader.value("SELECT name FROM snapshots WHERE epoch = ?", (damage.epoch,)) or CURRENT
    return f"{path}: bytes {damage.start} to {damage.end} are damaged, in {name}"


def verify_data(
    store: Store, snapshot: Snapshot | None, call: Call
) -> Steps[tuple[list[Problem], dict[str, Any]]]:
    """Read everything now, or what one snapshot holds; give up when nobody waits any more.

    Returns:
        What is damaged; and what was read (docs/cli.md, "verify").

    Raises:
        UsageError: that snapshot is not sealed: there is nothing to compare it with.
    """
    kept = [snapshot] if snapshot else list(store.catalog.snapshots)
    unsealed = [each.name for each in kept if each.state_digest is None]
    if snapshot is not None and unsealed:
        raise UsageError(
            f"the snapshot {snapshot.name} is not sealed yet: a daemon does that by itself,"
            " 'statefs save --wait' waits for it"
        )
    reading = Rereading(store, snapshot.epoch if snapshot else None)
    while not reading.is_done and call.is_wanted:
        yield reading.step
        call.report(reading.progress("reading"))
    read = {"bytes": reading.bytes_done, "files": reading.files, "unsealed": unsealed}
    return reading.problems, read

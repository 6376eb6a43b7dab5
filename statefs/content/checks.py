"""Content that was hashed when a snapshot was sealed is compared with its digest before it is used.

A block of a file is checked when it is first read, and remembered as sound for as long as the
process lives: nobody writes an object that a snapshot has frozen. Content that no sealed snapshot
sees has no digest, and is not checked.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from statefs.content import rows
from statefs.content.blocks import (
    BLAKE3_BYTES,
    block_bytes,
    block_count,
    block_digest,
    whole_digest,
)
from statefs.content.extents import Extent, pieces
from statefs.content.objects import ObjectFiles, Piece
from statefs.errors import CorruptStore
from statefs.ids import LIVING, NOW, Epoch, in_clones
from statefs.metadata.connection import Database, Queries, Reader
from statefs.metadata.inodes import Inode, past_row
from statefs.metadata.schema import COMPLETE

RANGES_KEPT: Final = 65_536
"""Ranges of objects remembered as checked, about 100 bytes each; one for most objects."""
VERSIONS_KEPT: Final = 8
"""Versions of files whose extents and digests are kept at hand, for one block after another."""
TURNS: Final = 16
"""Blocks checked at a time at most: each by one thread, while others that want it wait."""
_LOST: Final = (
    errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA
)  # fmt: skip
"""An object file is missing, or what the disk has of it is wrong, as ext4 or XFS say that."""

_SEALED: Final = f"s.state = {COMPLETE} AND s.state_digest IS NOT NULL"
_NEWEST: Final = (
    f"SELECT epoch FROM snapshots s WHERE epoch <= ? AND {_SEALED} ORDER BY epoch DESC LIMIT 1"
)
_MADE: Final = "SELECT epoch FROM objects WHERE id = ?"
_SEEN: Final = (
    "SELECT DISTINCT e.ino, (SELECT max(s.epoch) FROM snapshots s"
    f"  WHERE s.epoch >= e.valid_from AND s.epoch < e.valid_to AND {_SEALED}) AS seen"
    ' FROM extents e WHERE e.object = ?1 AND e.start < ?3 AND e."end" > ?2 AND seen IS NOT NULL'
    " ORDER BY seen DESC"
)
_INLINE_DIGEST: Final = (
    "SELECT s.epoch, d.sha256 FROM snapshots s CROSS JOIN digests d ON d.ino = ?1"
    " AND d.valid_to > s.epoch AND d.valid_from <= s.epoch"
    " WHERE s.epoch >= ?2 AND s.epoch <= ?3 AND s.state_digest IS NOT NULL"
    " ORDER BY s.epoch DESC LIMIT 1"
)


class DamagedBytes(CorruptStore):
    """Bytes of a file are not those that were hashed, or cannot be read.

    Args:
        ino: of the file.
        epoch: of a snapshot that sees them so.
        start, end: the block of the file that holds the damage.
    """

    def __init__(self, ino: int, epoch: int, start: int, end: int) -> None:
        super().__init__(f"inode {ino}: bytes {start} to {end} are damaged")
        self.ino = ino
        self.epoch = Epoch(epoch)
        self.start = start
        self.end = end


class Block(NamedTuple):
    """A block of a file as a sealed snapshot sees it, and what its bytes hashed to.

    Args:
        pieces: where its bytes lie.
        digest: their BLAKE3, of a file of one block its SHA-256 (`is_whole`).
    """

    ino: int
    epoch: int
    start: int
    end: int
    pieces: tuple[Piece, ...]
    digest: bytes
    is_whole: bool


Key = int | tuple[int, int]
"""An object; or a file and the epoch of a snapshot, for what is a hole there."""
Gaps = list[tuple[int, int]]
"""Ranges [start, end) that are to be looked for."""
Found = dict[tuple[int, int, int], Block]
"""Blocks, each once: by file, epoch and start."""


class _Version(NamedTuple):
    """A file as a sealed snapshot sees it: where its content lies and what that hashed to."""

    ino: int
    epoch: int
    size: int
    extents: list[Extent]
    sha256: bytes
    blocks: bytes

    def add_blocks(self, start: int, end: int, found: Found) -> None:
        """Add the blocks that hold a range of the file."""
        length = block_bytes(self.size) if self.blocks else self.size
        for place in range(start // length, -(-end // length)):
            first, last = place * length, min((place + 1) * length, self.size)
            name = (self.ino, self.epoch, first)
            if name in found:
                continue
            digest = self.blocks[BLAKE3_BYTES * place :][:BLAKE3_BYTES] or self.sha256
            plan = tuple(pieces(self.extents, first, last))
            found[name] = Block(*name, last, plan, digest, not self.blocks)


class _Ranges:
    """Ranges of objects, the longest unused ones forgotten first; not safe for threads."""

    def __init__(self) -> None:
        self._bounds: OrderedDict[Key, list[int]] = OrderedDict()
        self._count = 0

    def gaps(self, key: Key, start: int, end: int) -> Gaps:
        """Return the parts of [start, end) of an object that are not in here."""
        bounds = self._bounds.get(key)
        if bounds is None:
            return [(start, end)]
        self._bounds.move_to_end(key)
        found = []
        place = bisect_right(bounds, start)
        while start < end:
            if place % 2:  # inside a range
                start = bounds[place]
            else:
                until = min(end, bounds[place]) if place < len(bounds) else end
                found.append((start, until))
                start = until
            place += 1
        return found

    def add(self, key: Key, start: int, end: int) -> None:
        """Put a range in."""
        bounds = self._bounds.setdefault(key, [])
        self._bounds.move_to_end(key)
        first, last = bisect_left(bounds, start), bisect_right(bounds, end)
        before = len(bounds)
        bounds[first:last] = [start] * (first % 2 == 0) + [end] * (last % 2 == 0)
        self._count += (len(bounds) - before) // 2
        while self._count > RANGES_KEPT:
            _, dropped = self._bounds.popitem(last=False)
            self._count -= len(dropped) // 2

    def discard(self, key: Key) -> None:
        """Forget an object."""
        self._count -= len(self._bounds.pop(key, ())) // 2

    def clear(self) -> None:
        """Forget everything."""
        self._bounds.clear()
        self._count = 0


class ContentChecks:
    """Knows what has been checked since the process began, and how to check the rest.

    `unchecked` looks for digests, quickly; `check` reads and hashes, and may be slow.

    Args:
        objects: the store's object files.
        database: that of the loop. What has no digest is remembered only when it is asked: a
            `Reader` may see the past.
    """

    def __init__(self, objects: ObjectFiles, database: Database) -> None:
        self._objects = objects
        self._database = database
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(TURNS)]
        self._sound = _Ranges()
        self._bare = _Ranges()
        self._versions: OrderedDict[tuple[int, int], _Version | None] = OrderedDict()

    def snapshots_changed(self) -> None:
        """One was sealed or is gone: look anew for digests."""
        with self._lock:
            self._bare.clear()
            self._versions.clear()

    def distrust(self, plan: Iterable[Piece]) -> None:
        """Check what lies in the objects of some pieces again: damage was found there."""
        with self._lock:
            for _, _, number in plan:
                self._sound.discard(number)

    def unchecked(
        self,
        database: Queries,
        ino: int,
        epoch: int,
        plan: Iterable[Piece],
        *,
        afresh: bool = False,
    ) -> list[Block]:
        """Return the blocks to `check` before pieces of a file are used.

        Args:
            database: to look in.
            ino: of the file.
            epoch: the moment at which the file has these pieces.
            afresh: also those that have been checked before.

        Raises:
            DamagedBytes: the rows of the file contradict each other.
        """
        found: Found = {}
        for start, end, number in plan:
            key = number or (ino, _newest(database, epoch))
            gaps = [(start, end)] if afresh else self._gaps(database, key, start, end)
            if gaps:
                self._find(database, (ino, epoch), key, gaps, found)
        return list(found.values())

    def _gaps(self, database: Queries, key: Key, start: int, end: int) -> Gaps:
        with self._lock:
            gaps = self._sound.gaps(key, start, end)
            if gaps and database is self._database:
                return [rest for gap in gaps for rest in self._bare.gaps(key, *gap)]
            return gaps

    def _find(
        self,
        database: Queries,
        file: tuple[int, int],
        key: Key,
        gaps: Gaps,
        found: Found,
    ) -> None:
        """Add the blocks that hold ranges of an object; note what is in none as bare."""
        if isinstance(key, int) and _newest(database, NOW) < _made(database, key):
            gaps = [(0, LIVING)]  # the object is younger than whatever has a digest
        else:
            for version in self._candidates(database, file, key, gaps):
                gaps = list(_not_held(version, key, gaps, found))
                if not gaps:
                    return
        if database is self._database:
            with self._lock:
                for gap in gaps:
                    self._bare.add(key, *gap)

    def _candidates(
        self, database: Queries, file: tuple[int, int], key: Key, gaps: Gaps
    ) -> Iterator[_Version]:
        """Yield versions that may hold ranges of an object: first the file's own, newest one."""
        ino, epoch = file
        own = self._version(database, ino, _newest(database, epoch))
        if own is not None:
            yield own
        if not isinstance(key, int):
            return
        for other, seen in database.rows(_SEEN, (key, gaps[0][0], gaps[-1][1])):
            version = self._version(database, other, seen)
            if version is not None and version is not own:
                yield version

    def _version(self, database: Queries, ino: int, epoch: int) -> _Version | None:
        key = (ino, epoch)
        with self._lock:
            if key in self._versions:
                self._versions.move_to_end(key)
                return self._versions[key]
        version = _read_version(database, ino, epoch)
        with self._lock:
            self._versions[key] = version
            if len(self._versions) > VERSIONS_KEPT:
                self._versions.popitem(last=False)
        return version

    def check_now(self, ino: int, epoch: int, plan: Sequence[Piece]) -> None:
        """Check pieces of a file from a thread, also what has been checked before.

        Raises:
            DamagedBytes: they are not what they were, or cannot be read.
        """
        while True:
            with Reader(self._database.path) as reader:
                blocks = self.unchecked(reader, ino, epoch, plan, afresh=True)
            try:
                return self.check(blocks, afresh=True)
            except DamagedBytes as damage:
                with Reader(self._database.path) as reader:
                    if _newest(reader, damage.epoch) == damage.epoch:
                        raise
                # Its snapshot has been deleted meanwhile, and perhaps its bytes: look again.

    def check(self, blocks: Sequence[Block], *, afresh: bool = False) -> None:
        """Read blocks and compare them with their digests; from any thread.

        Raises:
            DamagedBytes: one is not as it was, or cannot be read.
        """
        for block in blocks:
            with self._turns[hash(block.pieces) % TURNS]:
                if afresh or not self._is_sound(block):
                    self._check(block)

    def _is_sound(self, block: Block) -> bool:
        with self._lock:
            return not any(self._sound.gaps(*key) for key in _keys(block))

    def _check(self, block: Block) -> None:
        hashed = whole_digest if block.is_whole else block_digest
        damage = DamagedBytes(block.ino, block.epoch, block.start, block.end)
        try:
            digest = hashed(self._objects, block.pieces)
        except OSError as error:
            if not is_damage(error):
                raise
            raise damage from error
        if digest != block.digest:
            self.distrust(block.pieces)
            raise damage
        with self._lock:
            for key in _keys(block):
                self._sound.add(*key)


def is_damage(error: OSError) -> bool:
    """Whether what an object file answered means that bytes are lost.

    A right, a descriptor or memory that is missing says nothing of them.
    """
    return error.errno in _LOST


def _newest(database: Queries, epoch: int) -> int:
    """Return the epoch of the newest sealed snapshot that is not later, 0 without any."""
    return int(database.value(_NEWEST, (epoch,)) or 0)


def _made(database: Queries, number: int) -> int:
    """Return the epoch in which an object may be written, 0 for none."""
    return int(database.value(_MADE, (number,)) or 0)


def _keys(block: Block) -> list[tuple[Key, int, int]]:
    """Return what is known to be sound when a block is."""
    hole = (block.ino, block.epoch)
    return [(number or hole, start, end) for start, end, number in block.pieces]


def _not_held(version: _Version, key: Key, gaps: Gaps, found: Found) -> Iterator[tuple[int, int]]:
    """Add the blocks in which a version of a file has ranges of an object; yield the other ones."""
    wanted = key if isinstance(key, int) else 0
    for start, end in gaps:
        until = max(start, min(end, version.size))
        for first, last, number in pieces(version.extents, start, until):
            if number == wanted:
                version.add_blocks(first, last, found)
            else:
                yield first, last
        if until < end:
            yield until, end


def pieces_of(blocks: Iterable[Block]) -> list[Piece]:
    """Return where the bytes of blocks lie."""
    return [piece for block in blocks for piece in block.pieces]


def _read_version(database: Queries, ino: int, epoch: int) -> _Version | None:
    """Return a file as a sealed snapshot sees it, None where that has no digest of it.

    Raises:
        DamagedBytes: the digest is one of a file of another size.
    """
    row = past_row(database, ino, Epoch(epoch))
    digest = rows.digest(database, ino, epoch)
    if row is None or digest is None:
        return None
    size = Inode(row).size
    sha256, blocks = digest
    if len(blocks or b"") != BLAKE3_BYTES * block_count(size):
        raise DamagedBytes(ino, epoch, 0, size)
    return _Version(ino, epoch, size, rows.extents(database, ino, epoch), sha256, blocks or b"")


def inline(database: Queries, ino: int, epoch: int) -> bytes | None:
    """Return the inline content of a file or link at an epoch, checked; None where it has none.

    Raises:
        DamagedBytes: it is not what a sealed snapshot has seen in the same row.
    """
    found = rows.inline(database, ino, epoch)
    if found is None:
        return None
    data, since = found
    sealed = database.execute(_INLINE_DIGEST, (ino, since, epoch)).fetchone()
    if sealed is not None and hashlib.sha256(data).digest() != sealed[1]:
        raise DamagedBytes(ino, sealed[0], 0, len(data))
    return data


def living_inline(database: Queries, ino: int) -> bytes | None:
    """Return the inline content of a living file, in a clone also what it shares. As `inline`."""
    found = inline(database, ino, NOW)
    if found is None and in_clones(ino):
        share = rows.shared(database, ino)
        found = None if share is None else inline(database, *share)
    return found

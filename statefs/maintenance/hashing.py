"""Hashing what a snapshot holds, in short steps that may run in a thread: files, then folders.

Reads rows through a `Reader` of each step and bytes through the store's object files; writes
nothing. What a step found out are rows of `digests` for maintenance/sealing.py to write; before the
folders are hashed, those of the files are written.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from statefs.content import rows
from statefs.content.blocks import READ_BYTES, ZEROS, block_bytes, block_count
from statefs.content.checks import DamagedBytes, inline, is_damage
from statefs.content.extents import Extent, pieces
from statefs.content.objects import ObjectFiles
from statefs.errors import CorruptStore, refusal
from statefs.ids import CLONE_BIT, LIVING, TREE_ROOT, Epoch
from statefs.metadata.connection import Queries, Reader
from statefs.metadata.entries import past_entry
from statefs.metadata.inodes import COLUMNS, Inode, past_row
from statefs.snapshots.changes import content_of, names_of, xattrs_of
from statefs.snapshots.digest import LEFT_OUT, SHA256_BYTES, Entry, FolderHash, device_number
from statefs.snapshots.reports import path_text
from statefs.snapshots.views import PastTree

if TYPE_CHECKING:
    from statefs.maintenance.store import Store

ROWS_PER_STEP: Final = 100
"""Rows that a step may find: written in about two milliseconds between requests."""
INODES_PER_STEP: Final = 500
"""Inodes looked at in a step, of which most need no row when a snapshot is sealed again."""
READ_BYTES_PER_STEP: Final = 8 << 20
"""Content read and hashed in a step: some ten milliseconds of one core."""
ENTRIES_PER_STEP: Final = 500
"""Entries of folders hashed in a step."""
CONTENT_BYTES: Final = 16
"""Of `content` in a row of `digests`."""

Values = tuple[bytes | None, bytes, bytes | None]
"""content, sha256 and blocks of a row of `digests`."""
Row = tuple[int, Values | None]
"""An inode and its new digest; None where the snapshot does not have it."""

_KNOWN: Final = f"SELECT content, sha256, blocks FROM digests WHERE ino = ? AND valid_to = {LIVING}"
_ALIKE: Final = "SELECT content, sha256, blocks FROM digests WHERE ino = ? AND content = ? LIMIT 1"
_ALL: Final = (
    f"SELECT DISTINCT ino FROM inodes WHERE ino > ?1 AND ino < {CLONE_BIT}"
    " AND valid_to > ?2 AND valid_from <= ?2 ORDER BY ino LIMIT ?3"
)
_ENTRIES: Final = (
    f"SELECT e.name, {COLUMNS}, d.sha256"
    " FROM entries e CROSS JOIN inodes i ON i.ino = e.ino AND i.valid_to ="
    "  (SELECT min(valid_to) FROM inodes WHERE ino = e.ino AND valid_to > ?3)"
    f" LEFT JOIN digests d ON d.ino = e.ino AND d.valid_to = {LIVING}"
    " WHERE e.parent = ?1 AND e.name > ?2 AND e.valid_to > ?3 AND e.valid_from <= ?3"
    " ORDER BY e.name LIMIT ?4"
)


class DigestMissing(LookupError):
    """Something that did not change has no digest, as what was in runtime/ before."""


class Unreadable(CorruptStore):
    """Bytes of a file that cannot be read: the pieces `plan` of the inode `ino`.

    `is_damage` tells that they are lost, from a right, a descriptor or memory that was missing.
    """

    def __init__(
        self, path: str, ino: int, plan: list[tuple[int, int, int]], cause: OSError | DamagedBytes
    ) -> None:
        why = refusal(cause) if isinstance(cause, OSError) else cause
        super().__init__(f"{path} cannot be read: {why}")
        self.ino = ino
        self.plan = plan
        self.is_damage = isinstance(cause, DamagedBytes) or is_damage(cause)


def content_name(size: int, ranges: Iterable[tuple[int, int, int]]) -> bytes:
    """Return what names the content of a file: its size and which object holds which range."""
    name = hashlib.blake2b(struct.pack("<q", size), digest_size=CONTENT_BYTES)
    for each in ranges:
        name.update(struct.pack("<qqq", *each))
    return name.digest()


class ContentHash:
    """The digests of a file's content, a part at a time.

    Args:
        objects: the store's object files.
        extents: of the file.
        size: of the file in bytes.
    """

    def __init__(self, objects: ObjectFiles, extents: list[Extent], size: int) -> None:
        self._objects = objects
        self._extents = extents
        self._size = size
        self._position = 0
        self._whole = hashlib.sha256()
        self._block_bytes = block_bytes(size)
        self._block = blake3()
        self._blocks: list[bytes] | None = [] if block_count(size) else None

    @property
    def is_done(self) -> bool:
        """Whether all of the content has been read."""
        return self._position >= self._size

    @property
    def next_pieces(self) -> list[tuple[int, int, int]]:
        """Where the next part lies."""
        end = min(self._position + READ_BYTES, self._size)
        return list(pieces(self._extents, self._position, end))

    def advance(self) -> int:
        """Hash the next part; return how many bytes it had.

        Raises:
            OSError: an object file is missing, too short, or cannot be read.
        """
        start = self._position
        end = min(start + READ_BYTES, self._size)
        plan = self.next_pieces
        is_hole = all(not number for _, _, number in plan)
        data = ZEROS[: end - start] if is_hole else self._objects.read(plan)
        self._whole.update(data)
        self._position = end
        if self._blocks is not None:
            self._block.update(data)
            if end % self._block_bytes == 0 or end == self._size:
                self._blocks.append(self._block.digest())
                self._block = blake3()
        return end - start

    def values(self, content: bytes) -> Values:
        """Return the digests, once all has been read."""
        return content, self._whole.digest(), b"".join(self._blocks) if self._blocks else None


class Shown:
    """Which folders of an epoch the state digest looks into: all but what is left out.

    Args:
        database: to read the root from.
        epoch: of the snapshot.
    """

    def __init__(self, database: Queries, epoch: Epoch) -> None:
        self._epoch = epoch
        self._known: dict[int, bool] = {TREE_ROOT: True}
        for name in LEFT_OUT:
            entry = past_entry(database, TREE_ROOT, name, epoch)
            if entry is not None:
                self._known[entry.ino] = False

    def folder(self, database: Queries, ino: int) -> bool:
        """Whether a folder is looked into."""
        above: list[int] = []
        while ino not in self._known:
            above.append(ino)
            row = past_row(database, ino, self._epoch)
            inode = None if row is None else Inode(row)
            if inode is None or not (inode.nlink and inode.is_dir) or inode.parent in above:
                self._known[ino] = False  # also the root of another tree
            else:
                ino = inode.parent
        is_shown = self._known[ino]
        self._known.update(dict.fromkeys(above, is_shown))
        return is_shown

    def folders_of(self, database: Queries, inode: Inode) -> set[int]:
        """Return the folders in which something is shown: none for what is not."""
        if inode.ino == TREE_ROOT or not inode.nlink:
            return set()
        is_alone = (inode.nlink == 1 or inode.is_dir) and inode.parent
        names = {(inode.parent, b""): 0} if is_alone else {}
        names = names or names_of(database, inode.ino, self._epoch)
        return {parent for parent, _ in names if self.folder(database, parent)}


class Files:
    """Hashes the files among some inodes; finds out which folders to hash afterwards (`folders`).

    Args:
        store: whose rows and objects are read.
        epoch: of the snapshot.
        inos: ascending; None for every inode of the snapshot.
    """

    def __init__(self, store: Store, epoch: Epoch, inos: list[int] | None) -> None:
        self._store = store
        self._epoch = epoch
        self._inos = None if inos is None else deque(inos)
        self._batch: deque[int] = deque()
        self._last = 0
        self._shown: Shown | None = None
        self._hash: tuple[int, bytes, ContentHash] | None = None
        self.folders: set[int] = set()
        self.is_done = False
        self.bytes_done = 0

    def step(self) -> list[Row]:
        """Look at some more; return the digests to write.

        Raises:
            OSError, CorruptStore: content cannot be read.
        """
        found: list[Row] = []
        before, looked = self.bytes_done, 0
        with self._store.reader() as reader:
            self._shown = self._shown or Shown(reader, self._epoch)
            while (
                len(found) < ROWS_PER_STEP
                and looked < INODES_PER_STEP
                and self.bytes_done - before < READ_BYTES_PER_STEP
            ):
                if self._hash is not None:
                    found += self._go_on(reader, *self._hash)
                    continue
                ino = self._next(reader)
                if ino is None:
                    self.is_done = True
                    break
                looked += 1
                found += self._look(reader, self._shown, ino)
        return found

    def _next(self, reader: Reader) -> int | None:
        if self._inos is not None:
            return self._inos.popleft() if self._inos else None
        if not self._batch:
            query = (self._last, self._epoch, INODES_PER_STEP)
            self._batch.extend(row[0] for row in reader.rows(_ALL, query))
            if not self._batch:
                return None
            self._last = self._batch[-1]
        return self._batch.popleft()

    def _look(self, reader: Reader, shown: Shown, ino: int) -> Iterator[Row]:
        row = past_row(reader, ino, self._epoch)
        inode = None if row is None else Inode(row)
        folders = set() if inode is None else shown.folders_of(reader, inode)
        self.folders |= folders
        known = reader.execute(_KNOWN, (ino,)).fetchone()
        is_shown = bool(folders)
        if inode is not None and inode.is_dir:
            is_shown = shown.folder(reader, ino)
        if inode is None or not is_shown:
            if known is not None:
                yield ino, None
        elif inode.is_dir:
            self.folders.add(ino)
        elif inode.is_file:
            values = self._values(reader, inode, known)
            if values is not None and values != known:
                yield ino, values

    def _values(self, reader: Reader, inode: Inode, known: Values | None) -> Values | None:
        """Return the digests of a file, None when its bytes are to be read first."""
        content = content_of(reader, inode, self._epoch)
        if isinstance(content, bytes):
            self._check_inline(reader, inode, content)
            self.bytes_done += inode.size
            return None, hashlib.sha256(content).digest(), None
        name = content_name(inode.size, content)
        if known is None or known[0] != name:
            known = reader.execute(_ALIKE, (inode.ino, name)).fetchone()
        if known is not None:
            self.bytes_done += inode.size
            return known
        extents = rows.extents(reader, inode.ino, self._epoch)
        self._hash = (inode.ino, name, ContentHash(self._store.objects, extents, inode.size))
        return None

    def _check_inline(self, reader: Reader, inode: Inode, content: bytes) -> None:
        try:
            inline(reader, inode.ino, self._epoch)
            if len(content) != inode.size:
                raise DamagedBytes(inode.ino, self._epoch, 0, inode.size)
        except DamagedBytes as error:
            path = self._path(reader, inode.ino)
            raise CorruptStore(f"{path} is damaged: write it anew, or remove it") from error

    def _path(self, reader: Reader, ino: int) -> str:
        paths = PastTree(reader, self._epoch).paths(ino)
        return path_text(paths[0]) if paths else f"inode {ino}"

    def _go_on(self, reader: Reader, ino: int, name: bytes, content: ContentHash) -> Iterator[Row]:
        plan = content.next_pieces
        try:
            self._store.checks.check_now(ino, self._epoch, plan)
            self.bytes_done += content.advance()
        except (OSError, DamagedBytes) as error:
            path = self._path(reader, ino)
            raise Unreadable(path, ino, plan, error) from error
        if content.is_done:
            self._hash = None
            yield ino, content.values(name)


def entry_of(reader: Queries, epoch: int, name: bytes, inode: Inode, digest: bytes | None) -> Entry:
    """Return what counts of a name in a folder at an epoch.

    Args:
        digest: of a file or folder.

    Raises:
        DigestMissing: that is not known.
    """
    kind = stat.S_IFMT(inode.mode)
    content = b""
    if kind in (stat.S_IFDIR, stat.S_IFREG):
        content = digest or b""
        if len(content) != SHA256_BYTES:
            raise DigestMissing(inode.ino)
    elif kind == stat.S_IFLNK:
        target = rows.inline(reader, inode.ino, epoch)
        content = target[0] if target is not None else b""
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        content = device_number(inode.rdev)
    found = xattrs_of(reader, inode, epoch)
    return Entry(name, inode.mode, inode.uid, inode.gid, inode.size, content, found)


class _Folder(NamedTuple):
    """A folder being hashed: its number, its hash so far, the last name in it."""

    ino: int
    hash: FolderHash
    after: bytes


class Folders:
    """Hashes some folders and all folders above them, the deepest first.

    Args:
        store: whose rows are read.
        epoch: of the snapshot.
        folders: shown in it.
    """

    def __init__(self, store: Store, epoch: Epoch, folders: set[int]) -> None:
        self._store = store
        self._epoch = epoch
        self._wanted = folders
        self._waiting: list[int] | None = None
        self._now: _Folder | None = None
        self._done: dict[int, bytes] = {}
        self.is_done = False
        self.root = b""

    def step(self) -> list[Row]:
        """Hash some more; return the digests to write.

        Raises:
            DigestMissing: of something that `folders` says did not change.
        """
        found: list[Row] = []
        with self._store.reader() as reader:
            if self._waiting is None:
                self._waiting = self._in_order(reader)
            looked = 0
            while looked < ENTRIES_PER_STEP and len(found) < ROWS_PER_STEP:
                if self._now is None:
                    if not self._waiting:
                        self._finish(reader)
                        break
                    self._now = _Folder(self._waiting.pop(), FolderHash(), b"")
                looked += 1 + self._go_on(reader, self._now, found)
        return found

    def _in_order(self, reader: Reader) -> list[int]:
        """Return the folders to hash, those with the longest way to the root last."""
        depths: dict[int, int] = {TREE_ROOT: 0} if self._wanted else {}
        for folder in self._wanted:
            way = []
            while folder not in depths:
                way.append(folder)
                row = past_row(reader, folder, self._epoch)
                if row is None:
                    raise CorruptStore(f"inode {folder} is a folder that does not exist")
                folder = Inode(row).parent
            first = depths[folder] + 1
            depths |= {each: first + place for place, each in enumerate(reversed(way))}
        return sorted(depths, key=depths.__getitem__)

    def _go_on(self, reader: Reader, folder: _Folder, found: list[Row]) -> int:
        """Add the next entries of a folder; return how many there were."""
        query = (folder.ino, folder.after, self._epoch, ENTRIES_PER_STEP)
        entries = reader.rows(_ENTRIES, query)
        name = folder.after
        for name, *row, digest in entries:
            if folder.ino == TREE_ROOT and name in LEFT_OUT:
                continue
            inode = Inode(tuple(row))
            digest = self._done.get(inode.ino, digest)
            folder.hash.add(entry_of(reader, self._epoch, name, inode, digest))
        if len(entries) == ENTRIES_PER_STEP:
            self._now = folder._replace(after=name)
            return len(entries)
        self._now = None
        digest = folder.hash.digest()
        self._done[folder.ino] = digest
        known = reader.execute(_KNOWN, (folder.ino,)).fetchone()
        if known is None or known[1] != digest:
            found.append((folder.ino, (None, digest, None)))
        return len(entries)

    def _finish(self, reader: Reader) -> None:
        self.is_done = True
        self.root = self._done.get(TREE_ROOT) or self._known_root(reader)

    @staticmethod
    def _known_root(reader: Reader) -> bytes:
        digest = newest_digest(reader, TREE_ROOT)
        if digest is None:
            raise DigestMissing(TREE_ROOT)
        return digest


def newest_digest(queries: Queries, ino: int) -> bytes | None:
    """Return what a file or folder hashes to in the snapshot that was sealed, or hashed, last."""
    known = queries.execute(_KNOWN, (ino,)).fetchone()
    return None if known is None else known[1]

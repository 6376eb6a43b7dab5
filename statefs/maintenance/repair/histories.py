"""One inode through all moments: which of its versions are whole, and what of it is left if not.

Reads a plain database (salvage.py), and the lengths of object files.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

import apsw

from statefs.ids import LIVING, in_clones
from statefs.maintenance.hashing import content_name
from statefs.maintenance.repair.damaged import Damaged
from statefs.maintenance.repair.moments import Moments
from statefs.maintenance.repair.object_files import Objects
from statefs.metadata.inodes import InodeFlag

TYPES: Final = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
    stat.S_IFBLK,
)  # fmt: skip
SIZED: Final = (stat.S_IFREG, stat.S_IFLNK)


class Attributes(NamedTuple):
    """The columns of an inode beside its number and its lifetime."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int
    flags: int

    @property
    def kind(self) -> int:
        """What stat(2) calls the type."""
        return stat.S_IFMT(self.mode)

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.kind == stat.S_IFDIR

    @property
    def in_objects(self) -> bool:
        """Whether the content lies in object files."""
        return self.kind == stat.S_IFREG and bool(self.flags & InodeFlag.EXTENTS)


class Row(NamedTuple):
    """A row of a versioned table: its lifetime, the moments that see it, and its other columns."""

    since: int
    until: int
    mask: int
    values: tuple[Any, ...]


class Lost(NamedTuple):
    """Versions of a file whose content is not whole, and what of the newest one is left.

    Args:
        mask: the moments.
        why: in words.
        attributes: of the newest version; None where they are lost, too.
        extents: (start, end, object) that can still be read.
        data: its small content.
    """

    mask: int
    why: str
    attributes: Attributes | None
    extents: list[tuple[int, int, int]]
    data: bytes | None


class History(NamedTuple):
    """An inode: its whole versions, and what they need.

    Args:
        versions: rows of `inodes`; masks do not overlap.
        extents, inline, shared: rows that these versions need, with the masks of those.
        lost: versions that are not whole.
        mended: moments at which type or size could not be, and have been changed.
    """

    ino: int
    versions: list[Row]
    extents: list[Row]
    inline: list[Row]
    lost: list[Lost]
    mended: list[int]

    @property
    def mask(self) -> int:
        """The moments at which it is there, and whole."""
        mask = 0
        for version in self.versions:
            mask |= version.mask
        return mask

    @property
    def folder_mask(self) -> int:
        """The moments at which it is a folder."""
        mask = 0
        for version in self.versions:
            if Attributes(*version.values).is_dir:
                mask |= version.mask
        return mask


class Histories:
    """Reads inodes of a plain database.

    Args:
        plain: see salvage.py; indexed.
        moments: of the store.
        objects: its object files.
        damaged: what is known not to be as it was hashed.
        is_old: the rows are those of a copy: objects may have grown since.
        growing: inodes whose object may be longer or shorter than their rows say (`dirty`).
    """

    def __init__(
        self,
        plain: apsw.Connection,
        moments: Moments,
        objects: Objects,
        damaged: Damaged,
        growing: Collection[int],
        is_old: bool,
    ) -> None:
        self._plain = plain
        self._moments = moments
        self._objects = objects
        self._damaged = damaged
        self._growing = growing
        self._is_old = is_old
        self._unknown: dict[str, dict[int, int]] = {"extents": {}, "xattrs": {}}
        for kind, ino, since in plain.execute("SELECT kind, ino, since FROM unknown"):
            self._unknown[kind][ino] = since
        self._older: dict[int, int] = dict(
            plain.execute("SELECT ino, since FROM older WHERE is_sizeless")
        )

    def inos(self) -> Iterator[int]:
        """Yield every inode of which anything is known, ascending."""
        for (ino,) in self._plain.execute(
            "SELECT ino FROM inodes UNION SELECT ino FROM inline UNION SELECT ino FROM extents"
            " ORDER BY 1"
        ):
            yield ino

    def rows(self, table: str, ino: int, columns: str) -> list[Row]:
        """Return rows of a versioned table, each once, the latest beginning first."""
        query = f"SELECT valid_from, valid_to, {columns} FROM {table} WHERE ino = ?"
        found = list(dict.fromkeys(self._plain.execute(query, (ino,))))
        if len(found) > 1:
            found.sort(key=lambda row: row[:2], reverse=True)
        return [self.row(ino, since, until, tuple(rest)) for since, until, *rest in found]

    def row(self, number: int, since: int, until: int, values: tuple[Any, ...]) -> Row:
        """Return a row with a lifetime that can be; of a clone only what lives is seen."""
        newest = self._moments.epochs[-1]
        since = max(1, since)
        if until > newest:
            until = LIVING
        if in_clones(number):
            mask = self._moments.current if until == LIVING else 0
            since = min(since, newest)
        else:
            mask = self._moments.seen(since, until)
        return Row(since, until, mask, values)

    def unknown(self, kind: str, ino: int) -> int:
        """Return the moments at which an inode may have had more rows in a table than were read.

        Args:
            kind: "extents" or "xattrs".
        """
        since = self._unknown[kind].get(ino)
        return 0 if since is None else self._moments.seen(since, LIVING)

    def read(self, ino: int) -> History:
        """Return all about an inode."""
        extents = self.rows("extents", ino, 'start, "end", object')
        inline = self.rows("inline", ino, "data")
        history = History(ino, [], [], [], [], [])
        uses: dict[int, int] = {}
        taken = 0
        for row in self.rows("inodes", ino, ", ".join(Attributes._fields)):
            mask = row.mask & ~taken
            taken |= mask
            possible = _possible(Attributes(*row.values))
            if mask and possible != row.values:
                history.mended.append(mask)
            row = row._replace(mask=mask, values=tuple(possible))
            if mask:
                self._add(history, row, extents, inline, uses)
        self._orphaned(history, taken, extents, inline)
        used = [(row, uses.get(id(row), 0)) for row in (*extents, *inline)]
        history.extents.extend(row._replace(mask=m) for row, m in used if m and len(row.values) > 1)
        history.inline.extend(row._replace(mask=m) for row, m in used if m and len(row.values) == 1)
        return history

    def _add(
        self,
        history: History,
        row: Row,
        extents: list[Row],
        inline: list[Row],
        uses: dict[int, int],
    ) -> None:
        """Add a version; of an older one with the size that its content has had since."""
        attributes = Attributes(*row.values)
        if attributes.kind not in SIZED:
            history.versions.append(row)
            return
        since = self._older.get(history.ino)
        late = 0
        if since is not None and row.until == LIVING:
            late = row.mask & self._moments.seen(since, LIVING)
        for mask, large in self._groups(late, extents):
            for part, small in self._groups(mask, [] if large else inline):
                values = tuple(self._fitted(attributes, large, small))
                fitted = row._replace(mask=part, values=values)
                self._add_whole(history, fitted, extents, inline, uses)
        if row.mask & ~late:
            row = row._replace(mask=row.mask & ~late)
            self._add_whole(history, row, extents, inline, uses)

    def _fitted(self, attributes: Attributes, large: list[Row], small: list[Row]) -> Attributes:
        """Return attributes that fit the content of some moments: rows of extents, or inline."""
        flags = attributes.flags & ~InodeFlag.EXTENTS
        if large:
            ends = [
                max(start + 1, self._objects.length(number)) if end == LIVING else end
                for start, end, number in (row.values for row in large)
            ]
            return attributes._replace(size=max(ends), flags=int(flags | InodeFlag.EXTENTS))
        if small:
            return attributes._replace(size=len(small[0].values[0]), flags=int(flags))
        if attributes.in_objects:  # none is left
            return attributes._replace(size=0, flags=int(flags))
        return attributes

    def _add_whole(
        self,
        history: History,
        row: Row,
        extents: list[Row],
        inline: list[Row],
        uses: dict[int, int],
    ) -> None:
        """Add those moments of a version at which its content is whole, and note the others."""
        attributes = Attributes(*row.values)
        wanted = extents if attributes.in_objects else inline
        if self._is_old and row.mask == self._moments.current and attributes.in_objects:
            attributes = attributes._replace(size=self._grown(attributes.size, extents))
            row = row._replace(values=tuple(attributes))
        good = 0
        unknown = self.unknown("extents", history.ino) if attributes.in_objects else 0
        groups = [
            (part, seen)
            for mask, seen in self._groups(row.mask, wanted)
            for part in (mask & ~unknown, mask & unknown)
            if part
        ]
        for mask, seen in groups:
            why = self._trouble(history.ino, attributes, mask, seen)
            if mask & unknown:
                why = "where its content lies could not all be read"
            bad = 0 if why is None else mask
            if why is not None:
                history.lost.append(self._lost(history.ino, bad, why, attributes, seen))
            good |= mask ^ bad
            for each in seen if attributes.in_objects else seen[:1]:
                if attributes.size:
                    uses[id(each)] = uses.get(id(each), 0) | (mask ^ bad)
        if good:
            history.versions.append(row._replace(mask=good))

    def _grown(self, size: int, extents: list[Row]) -> int:
        """Return the size that a living file has by the object that was appended to."""
        tails = [row.values for row in extents if row.mask & self._moments.current]
        numbers = [number for _, end, number in tails if end == LIVING]
        return max([size, *map(self._objects.length, numbers)])

    def _groups(self, mask: int, wanted: list[Row]) -> Iterator[tuple[int, list[Row]]]:
        """Yield the moments that see the same content, and the rows of it."""
        groups: list[tuple[int, list[Row]]] = [(mask, [])] if mask else []
        for row in wanted:
            split: list[tuple[int, list[Row]]] = []
            for part, seen in groups:
                if part & row.mask:
                    split.append((part & row.mask, [*seen, row]))
                if part & ~row.mask:
                    split.append((part & ~row.mask, seen))
            groups = split
        yield from groups

    def _trouble(self, ino: int, attributes: Attributes, mask: int, seen: list[Row]) -> str | None:
        """Return what is wrong with the content of some moments, None when nothing is."""
        size = attributes.size
        if not attributes.in_objects:
            if seen and (ino, seen[0].values[0]) in self._damaged.inline:
                return "its content is damaged"
            if not size or (seen and len(seen[0].values[0]) == size):
                return None
            is_shared = in_clones(ino) and self._share(ino, size)
            return None if is_shared else "its content is lost"
        position = 0
        for start, end, number in sorted(row.values for row in seen):
            is_inside = position <= start < min(end, size) and (end <= size or end == LIVING)
            if not is_inside:
                return "where its content lies contradicts itself"
            is_growing = ino in self._growing and bool(mask & self._moments.current)
            if not self._objects.whole(end, number, size) and not is_growing:
                return "an object file is missing or too short"
            if self._damaged.holds(start, min(end, size), number):
                return "its content is damaged"
            position = end
        return self._unlike_its_digest(ino, attributes, mask, seen)

    def _share(self, ino: int, size: int) -> bool:
        """Whether a file of a clone shares content of its size."""
        found = self._plain.execute(
            "SELECT 1 FROM shared s CROSS JOIN inline d ON d.ino = s.source"
            " AND d.valid_to > s.epoch AND d.valid_from <= s.epoch AND length(d.data) = ?"
            " WHERE s.ino = ?",
            (size, ino),
        )
        return next(found, None) is not None

    def _unlike_its_digest(
        self, ino: int, attributes: Attributes, mask: int, seen: list[Row]
    ) -> str | None:
        """Return a complaint where rows are not those that were hashed: some have been lost."""
        ranges = sorted(
            (start, min(end, attributes.size), number)
            for start, end, number in (row.values for row in seen)
        )
        name = content_name(attributes.size, ranges)
        for epoch in self._moments.names(mask):
            found = self._plain.execute(
                "SELECT d.content FROM digests d CROSS JOIN snapshots s ON s.epoch = ?2"
                " AND s.state_digest IS NOT NULL WHERE d.ino = ?1 AND d.valid_to > ?2"
                " AND d.valid_from <= ?2",
                (ino, epoch),
            )
            content = next(found, (None,))[0]
            if content is not None and content != name:
                return "where its content lies is not what was sealed"
        return None

    def _lost(self, ino: int, mask: int, why: str, attributes: Attributes, seen: list[Row]) -> Lost:
        if attributes.in_objects:
            return Lost(mask, why, attributes, self._readable(seen, attributes.size), None)
        if seen:
            return Lost(mask, why, attributes, [], seen[0].values[0])
        stale = self._stale(ino) if mask & self._moments.current else None
        if stale is not None:
            why = f"{why}, what it was before is left"
        return Lost(mask, why, attributes, [], stale)

    def _stale(self, ino: int) -> bytes | None:
        """Return the small content that a file has had before the one that is lost, if known."""
        found: bytes | None = next(
            self._plain.execute("SELECT data FROM stale WHERE ino = ?", (ino,)), (None,)
        )[0]
        return found

    def _readable(self, rows: list[Row], size: int) -> list[tuple[int, int, int]]:
        """Return the parts of extents that can be read, sorted, none overlapping."""
        found: list[tuple[int, int, int]] = []
        position = 0
        for start, end, number in sorted(row.values for row in rows):
            left = self._objects.left(max(start, position), end, number, size)
            if left is not None:
                found.append(left)
                position = left[1]
        return found

    def _orphaned(
        self, history: History, taken: int, extents: list[Row], inline: list[Row]
    ) -> None:
        """Note content whose inode is lost."""
        mask = 0
        for row in (*extents, *inline):
            mask |= row.mask & ~taken
        if not mask:
            return
        newest = 1 << (mask.bit_length() - 1)
        data = next((row.values[0] for row in inline if row.mask & newest), None)
        readable = self._readable([row for row in extents if row.mask & newest], LIVING)
        history.lost.append(Lost(mask, "its attributes are lost", None, readable, data))


def _possible(attributes: Attributes) -> Attributes:
    """Return attributes that an inode can have, changed as little as possible."""
    mode = attributes.mode & 0xFFFF
    if stat.S_IFMT(mode) not in TYPES:
        mode = stat.S_IFREG | 0o600
    size = max(0, attributes.size) if stat.S_IFMT(mode) in SIZED else 0
    return attributes._replace(mode=mode, size=size, blocks=max(0, attributes.blocks))

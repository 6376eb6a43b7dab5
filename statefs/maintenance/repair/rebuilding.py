"""Making a new, sound meta.db of the rows that could be read of one that is not.

Everything that keeps the rules of docs/on-disk-format.md passes unchanged. What does not is left
out at the moments at which it does not, and told; what is left of it gets a name in `lost+found`.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from statefs.content.blocks import BLAKE3_BYTES, block_count
from statefs.content.objects import Origin
from statefs.ids import LIVING, TREE_ROOT, in_clones
from statefs.maintenance.hashing import CONTENT_BYTES
from statefs.maintenance.repair.damaged import Damaged
from statefs.maintenance.repair.histories import Attributes, Histories, History, Row
from statefs.maintenance.repair.listing import next_number, store_rows, unsealed
from statefs.maintenance.repair.losses import TOLD_MAX, Loss, Report
from statefs.maintenance.repair.lost_found import Attic, folder_attributes
from statefs.maintenance.repair.moments import Moments
from statefs.maintenance.repair.object_files import Objects
from statefs.maintenance.repair.trees import ROOTS, Name, Trees, is_name
from statefs.maintenance.verify.attributes import FLAGS, is_possible, trouble_of
from statefs.maintenance.verify.history import overlaps
from statefs.metadata.connection import create_database
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.temporal import VERSIONED
from statefs.snapshots.catalog import Snapshot, columns_of
from statefs.snapshots.digest import SHA256_BYTES
from statefs.snapshots.reports import path_text

Values = tuple[Any, ...]
_XATTRS: Final = int(InodeFlag.XATTRS) | sum(map(int, FLAGS.values()))


class Rebuilding:
    """One database being made.

    Args:
        plain: what could be read (salvage.py), indexed.
        target: where the database is made.
        store: keys of the table `store`.
        snapshots: those that stay, oldest first.
        moments: theirs, and the current one.
        objects: the object files.
        damaged: see `Histories`.
        report: told of losses.
        now_ns: the time.
        is_old: what could be read is a copy: objects may have grown since.
    """

    def __init__(
        self,
        plain: apsw.Connection,
        target: Path,
        store: dict[str, Any],
        snapshots: Sequence[Snapshot],
        moments: Moments,
        objects: Objects,
        damaged: Damaged,
        report: Report,
        now_ns: int,
        *,
        is_old: bool,
    ) -> None:
        self._plain = plain
        self._store = store
        self._snapshots = list(snapshots)
        self._moments = moments
        self._objects = objects
        self._report = report
        self._now_ns = now_ns
        self._growing = {ino for (ino,) in plain.execute("SELECT ino FROM dirty")}
        self._orphans = {ino for (ino,) in plain.execute("SELECT ino FROM orphans")}
        self._histories = Histories(plain, moments, objects, damaged, self._growing, is_old)
        self._valid: dict[int, int] = {}
        self._folders: dict[int, int] = {}
        self._made: dict[int, list[Row]] = {}
        self._named: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._below: dict[int, list[int]] = defaultdict(list)
        self._used: dict[int, tuple[int, int]] = {}
        self.touched = 0
        newest = max(map(int, objects.present()), default=0)
        first = next_number(plain, store, newest + 1)
        roots = plain.execute(f"SELECT name FROM entries WHERE parent = {TREE_ROOT}")
        self.attic = Attic(first, self._owner(), now_ns, [name for (name,) in roots])
        create_database(target)
        self._target = apsw.Connection(str(target))
        self._target.pragma("synchronous", "OFF")

    def _owner(self) -> tuple[int, int]:
        row = next(self._plain.execute("SELECT uid, gid FROM inodes WHERE ino = 16"), None)
        return (os.getuid(), os.getgid()) if row is None else (row[0], row[1])

    def run(self) -> None:
        """Make it."""
        with self._target:
            self._judge()
            self._make_folders()
            trees = Trees(self._plain, self._histories, self._moments, self._valid, self._folders)
            self._adopt_folders(trees)
            self._write_names(trees)
            self._adopt_files()
            self._rescue_objects()
            self._write_attic()
            for ino in sorted({*self._histories.inos(), *self._made}):
                self._write_inode(ino)
            self._separate()
            self._write_objects()
            self._tell_of_older()
            self._write_lists()
        self._target.close()

    # Which inodes are there at which moments.

    def _judge(self) -> None:
        for ino in self._histories.inos():
            history = self._histories.read(ino)
            if history.mask:
                self._valid[ino] = history.mask
            if history.folder_mask:
                self._folders[ino] = history.folder_mask
            for mask in history.mended:
                self._lose(ino, mask, "its type or size could not be, and has been changed", None)
            for lost in history.lost:
                if ino in self._orphans and not self._has_name(ino):
                    continue  # a removed file that a program had open
                place = None
                if lost.extents or lost.data is not None:
                    path = self._path(ino)
                    place = self.attic.rescue(path, ino, lost)
                self._lose(ino, lost.mask, lost.why, place)
        for root in map(int, ROOTS):
            wanted = self._moments.all if root == TREE_ROOT else self._moments.current
            missing = wanted & ~self._folders.get(root, 0)
            if missing:
                self._make_folder(root, missing)
                self._lose(root, missing, "the attributes of a root are lost", None)

    def _tell_of_older(self) -> None:
        """Tell of what is as a copy has it, and may have changed since."""
        why = "its name or attributes are those of a copy, which is older"
        rows: list[Values] = self._plain.execute("SELECT ino, since FROM older").fetchall()
        for ino, since in rows:
            mask = self._valid.get(ino, 0) & self._names_mask(ino)
            if mask & self._moments.current and len(self._report.older) < TOLD_MAX:
                self._report.older += map(path_text, self._paths(ino, LIVING))
            past = mask & self._moments.seen(since, LIVING) & ~self._moments.current
            if past:
                self._lose(ino, past, why, None)

    def _has_name(self, ino: int) -> bool:
        query = "SELECT 1 FROM entries WHERE ino = ?"
        return next(self._plain.execute(query, (ino,)), None) is not None

    def _lose(self, ino: int, mask: int, why: str, found: str | None) -> None:
        """Tell of a loss at some moments."""
        self.touched |= mask
        names = [self._names[epoch] for epoch in self._moments.names(mask) if epoch in self._names]
        paths = [path_text(path) for path in self._paths(ino)] or [f"inode {ino}"]
        is_current = bool(mask & self._moments.current)
        self._report.lose(
            Loss(
                what=why, path=paths[0], other_names=paths[1:], snapshots=names,
                is_current=is_current, found=found,
            )
        )  # fmt: skip

    @property
    def _names(self) -> dict[int, str]:
        return {int(each.epoch): each.name for each in self._snapshots}

    def _paths(self, ino: int, until: int = 0) -> list[bytes]:
        """Return the paths that an inode has had, one for each of its names.

        Args:
            until: only names that it has had so long, at least.
        """
        query = (
            "SELECT parent, name FROM entries WHERE ino = ? AND valid_to >= ?"
            " ORDER BY valid_to DESC"
        )
        rows: list[tuple[Any, ...]] = self._plain.execute(query, (ino, until)).fetchall()
        found = [
            b"/".join(filter(None, [self._path(parent), name if is_name(name) else b"unnamed"]))
            for parent, name in rows
        ]
        return list(dict.fromkeys(found))

    def _path(self, ino: int) -> bytes:
        """Return a path that an inode has had, as far as it is known; empty where nothing is."""
        parts: list[bytes] = []
        seen: set[int] = set()
        query = "SELECT parent, name FROM entries WHERE ino = ? ORDER BY valid_to DESC"
        while ino not in ROOTS and ino not in seen:
            seen.add(ino)
            row = next(self._plain.execute(query, (ino,)), None)
            if row is None:
                break
            ino, name = row
            parts.append(name if is_name(name) else b"unnamed")
        return b"/".join(reversed(parts))

    def _make_folder(self, ino: int, mask: int) -> None:
        """Give a folder attributes, where those it had are lost."""
        parent = ino if ino in ROOTS else 0
        values = folder_attributes(self._owner(), self._now_ns)._replace(parent=parent)
        rows = self._made.setdefault(ino, [])
        rows.append(Row(1, LIVING, mask, tuple(values)))
        self._valid[ino] = self._valid.get(ino, 0) | mask
        self._folders[ino] = self._folders.get(ino, 0) | mask

    def _make_folders(self) -> None:
        """Make living folders anew that have a name and hold something, but no attributes."""
        query = (
            f"SELECT DISTINCT e.parent FROM entries e WHERE e.valid_to = {LIVING} AND EXISTS"
            f" (SELECT 1 FROM entries n WHERE n.ino = e.parent AND n.valid_to = {LIVING})"
        )
        for ino in self._numbers(query):
            if not self._valid.get(ino, 0) & self._moments.current:
                self._make_folder(ino, self._moments.current)
                self._lose(ino, self._moments.current, "the attributes of a folder are lost", None)

    def _numbers(self, query: str) -> list[int]:
        rows: list[tuple[Any, ...]] = self._plain.execute(query).fetchall()
        return [row[0] for row in rows]

    # Names.

    def _adopt_folders(self, trees: Trees) -> None:
        for ino in trees.strays():
            path = self._path(ino)
            place = self.attic.adopt(path, ino, is_folder=True)
            self._lose(ino, self._moments.current, "no name leads to it any more", place)
            trees.adopt(ino)
        self._reached = trees.reached

    def _write_names(self, trees: Trees) -> None:
        """Write the entries that stay, and tell of those that do not."""
        cookies: set[tuple[int, int]] = set()
        rows: list[Values] = []
        for each in trees.names():
            self._tell_of_name(each)
            cookie = each.cookie
            if (each.parent, cookie) in cookies or not 1024 <= cookie < self.attic.first:
                cookie = self.attic.new_number() if each.mask else cookie
            if not each.mask:
                continue
            cookies.add((each.parent, cookie))
            self._named[each.ino].append((each.mask, each.parent))
            if self._folders.get(each.ino):
                self._below[each.parent].append(each.mask & self._folders[each.ino])
            for born, ended in self._lifetimes(each.parent, each):
                rows.append((each.parent, each.name, ended, born, each.ino, cookie))
        self._target.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _lifetimes(self, number: int, row: Row | Name) -> Iterator[tuple[int, int]]:
        if in_clones(number):
            return iter([(row.since, LIVING)] if row.mask else [])
        return self._moments.lifetimes(row.mask, row.since, row.until)

    def _tell_of_name(self, each: Name) -> None:
        gone = each.said & ~each.mask
        self.touched |= gone
        unknown = gone & ~self._known(each.ino)
        if unknown and each.ino not in ROOTS:
            self._lose(each.ino, unknown, "the file that a name leads to is lost", None)

    def _known(self, ino: int) -> int:
        """Return the moments at which something of an inode could be read: its loss is told."""
        mask = 0
        for row in self._histories.rows("inodes", ino, "mode"):
            mask |= row.mask
        for table in ("inline", "extents"):
            for row in self._histories.rows(table, ino, "0"):
                mask |= row.mask
        return mask

    def _adopt_files(self) -> None:
        """Give living files without a name one in lost+found."""
        for ino, mask in self._valid.items():
            named = self._names_mask(ino)
            nameless = mask & ~named
            if ino in ROOTS or not nameless:
                continue
            is_removed = ino in self._orphans and not named & self._moments.current
            if nameless & self._moments.current and not self._folders.get(ino) and not is_removed:
                place = self.attic.adopt(self._path(ino), ino)
                self._lose(ino, self._moments.current, "no name leads to it any more", place)
                nameless &= ~self._moments.current
            if nameless and not is_removed and not self._is_nameless(ino, nameless):
                self._lose(ino, nameless, "no name leads to it any more", None)

    def _is_nameless(self, ino: int, mask: int) -> bool:
        """Whether an inode had no name at some moments already, as one that was only open."""
        rows = self._histories.rows("inodes", ino, "nlink")
        return all(not row.values[0] for row in rows if row.mask & mask)

    def _names_mask(self, ino: int) -> int:
        mask = 0
        for each, _ in self._named.get(ino, ()):
            mask |= each
        if ino in self.attic.adopted:
            mask |= self._moments.current
        return mask

    # Objects that nothing refers to.

    def _rescue_objects(self) -> None:
        """Give what lies in objects that no row knows a name in lost+found."""
        known = {number for (number,) in self._plain.execute("SELECT object FROM garbage")}
        known |= {number for (number,) in self._plain.execute("SELECT object FROM extents")}
        found: dict[int, list[int]] = defaultdict(list)
        origins: dict[int, Origin] = {}
        for number in sorted(self._objects.present() - known):
            origin = self._objects.origin(number)
            if origin is None:
                query = "SELECT ino FROM objects WHERE id = ?"
                row = next(self._plain.execute(query, (number,)), (0,))
                origin = Origin(row[0], 0, b"")
            origins[number] = origin
            found[origin[0] or -number].append(number)
        for ino, numbers in found.items():
            self._rescue_object(ino, [(origins[each][1], each) for each in numbers], origins)

    def _rescue_object(
        self,
        ino: int,
        numbers: list[tuple[int, int]],
        origins: dict[int, Origin],
    ) -> None:
        ordered = [number for _, number in sorted(numbers)]
        if not self._objects.overlaid([], ordered)[0]:
            return  # nothing was ever written there
        known, size = self._living_extents(ino)
        extents, length = self._objects.overlaid(known, ordered)
        size = max(size, length)
        path = next((origins[each][2] for each in reversed(ordered) if origins[each][2]), b"")
        path = path or self._path(ino)
        place = self.attic.rescue_bytes(path, max(ino, ordered[-1]), extents, size)
        self._report.lose(
            Loss(what="no row leads to these bytes", path=path_text(path) or None, found=place)
        )

    def _living_extents(self, ino: int) -> tuple[list[tuple[int, int, int]], int]:
        """Return where the content of a living file lies, as far as rows know, and its size."""
        history = self._histories.read(ino)
        now = self._moments.current
        size = next((Attributes(*row.values).size for row in history.versions if row.mask & now), 0)
        rows = sorted(row.values for row in history.extents if row.mask & now)
        return [(start, min(end, size), number) for start, end, number in rows], size

    def _write_attic(self) -> None:
        for each in self.attic.entries:
            row = (each.parent, each.name, LIVING, self._moments.epochs[-1], each.ino, each.cookie)
            self._target.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
            self._named[each.ino].append((self._moments.current, each.parent))
            if each.is_folder:
                self._below[each.parent].append(self._moments.current)
        epoch = self._moments.epochs[-1]
        for ino, attributes, extents, data in self.attic.inodes:
            self._valid[ino] = self._moments.current
            if attributes.is_dir:
                self._folders[ino] = self._moments.current
            self._made[ino] = [Row(epoch, LIVING, self._moments.current, tuple(attributes))]
            for start, end, number in extents:
                self._write_extent(ino, Row(epoch, LIVING, 0, (start, end, number)), epoch, LIVING)
            if data:
                self._write_inline(ino, epoch, LIVING, data)

    # Rows of inodes.

    def _write_inode(self, ino: int) -> None:
        history = self._histories.read(ino)
        named = self._moments.all if ino in ROOTS else self._names_mask(ino)
        final = self._valid.get(ino, 0) & named
        if not final:
            return
        xattrs = self._xattrs(ino, history, final)
        unknown = self._histories.unknown("xattrs", ino) & final
        if unknown:
            self._lose(ino, unknown, "extended attributes could not all be read", None)
        for row in (*history.versions, *self._made.get(ino, ())):
            self._write_versions(ino, row, row.mask & final, xattrs)
        for row in history.extents:
            kept = row._replace(mask=row.mask & final)
            for born, ended in self._lifetimes(ino, kept):
                self._write_extent(ino, kept, born, ended)
        for row in history.inline:
            for born, ended in self._lifetimes(ino, row._replace(mask=row.mask & final)):
                self._write_inline(ino, born, ended, row.values[0])
        self._unshare(ino, history)
        for row in xattrs:
            for born, ended in self._lifetimes(ino, row):
                values = (ino, row.values[0], ended, born, row.values[1])
                self._target.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?, ?, ?)", values)
        self._write_digests(ino, history, final)

    def _write_versions(self, ino: int, row: Row, mask: int, xattrs: list[Row]) -> None:
        """Write a version of an inode, cut where what follows from other rows differs."""
        runs: dict[tuple[int, int, int], int] = {}
        for place in self._moments.places(mask) if not self._is_plain(ino, mask, xattrs) else ():
            key = self._derived(ino, Attributes(*row.values), 1 << place, xattrs)
            runs[key] = runs.get(key, 0) | 1 << place
        if not runs and mask:
            key = self._derived(ino, Attributes(*row.values), mask & -mask, xattrs)
            runs[key] = mask
        attributes = Attributes(*row.values)
        for (nlink, parent, flags), part in runs.items():
            now = attributes._replace(nlink=nlink, parent=parent, flags=flags)
            self._report.right("links, folders or flags of inodes", now != attributes)
            if attributes.flags & _XATTRS & ~flags:
                self._lose(ino, part, "extended attributes are lost", None)
            marks = ", ".join("?" * (3 + len(now)))
            for born, ended in self._lifetimes(ino, row._replace(mask=part)):
                values = (ino, ended, born, *now)
                self._target.execute(f"INSERT INTO inodes VALUES ({marks})", values)

    def _is_plain(self, ino: int, mask: int, xattrs: list[Row]) -> bool:
        """Whether links, folder and flags are the same at all of some moments."""
        rows = [each for each, _ in self._named.get(ino, ())] + self._below.get(ino, [])
        rows += [row.mask for row in xattrs]
        return all(not each & mask or each & mask == mask for each in rows)

    def _derived(
        self, ino: int, attributes: Attributes, moment: int, xattrs: list[Row]
    ) -> tuple[int, int, int]:
        """Return nlink, parent and flags of an inode at a moment."""
        flags = attributes.flags & ~_XATTRS
        for row in xattrs:
            if row.mask & moment:
                flags |= InodeFlag.XATTRS | FLAGS.get(row.values[0], 0)
        if attributes.is_dir or not attributes.size:
            flags &= ~InodeFlag.EXTENTS
        parents = [parent for mask, parent in self._named.get(ino, ()) if mask & moment]
        if attributes.is_dir:
            below = sum(1 for mask in self._below.get(ino, ()) if mask & moment)
            return 2 + below, ino if ino in ROOTS else parents[0], flags
        parent = attributes.parent
        if parent not in parents and (parent or len(parents) == 1):
            parent = parents[0]
        return len(parents), parent, flags

    def _xattrs(self, ino: int, history: History, final: int) -> list[Row]:
        """Return the extended attributes that stay."""
        found: list[Row] = []
        taken: dict[bytes, int] = {}
        for row in self._histories.rows("xattrs", ino, "name, value"):
            name, value = row.values
            mask = row.mask & final & ~taken.get(name, 0)
            taken[name] = taken.get(name, 0) | row.mask
            for version in (*history.versions, *self._made.get(ino, ())):
                mode = version.values[0]
                if not is_possible(name, value) or trouble_of(name, value, mode):
                    bad = mask & version.mask
                    mask &= ~bad
                    if bad:
                        what = f"the extended attribute {path_text(name)} makes no sense"
                        self._lose(ino, bad, what, None)
            if mask:
                found.append(row._replace(mask=mask))
        return found

    def _unshare(self, ino: int, history: History) -> None:
        """Give a file of a clone the small content that it shares with a snapshot."""
        size = Attributes(*history.versions[0].values).size if history.versions else 0
        if not in_clones(ino) or not size or history.inline or history.extents:
            return
        row = next(
            self._plain.execute(
                "SELECT d.data FROM shared s CROSS JOIN inline d ON d.ino = s.source"
                " AND d.valid_to > s.epoch AND d.valid_from <= s.epoch AND length(d.data) = ?"
                " WHERE s.ino = ?",
                (size, ino),
            ),
            None,
        )
        if row is not None:
            self._write_inline(ino, self._moments.epochs[-1], LIVING, row[0])

    def _write_inline(self, ino: int, born: int, ended: int, data: bytes) -> None:
        self._target.execute(
            "INSERT INTO inline (ino, valid_to, valid_from, data) VALUES (?, ?, ?, ?)",
            (ino, ended, born, data),
        )

    def _write_extent(self, ino: int, row: Row, born: int, ended: int) -> None:
        start, end, number = row.values
        values = (ino, start, ended, born, end, number)
        self._target.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?)", values)
        owner, first = self._used.get(number, (ino, born))
        self._used[number] = (owner if owner == ino else -1, min(first, born))

    def _write_digests(self, ino: int, history: History, final: int) -> None:
        taken = 0
        for row in self._histories.rows("digests", ino, "content, sha256, blocks"):
            content, sha256, blocks = row.values
            mask = row.mask & final & ~taken & self._sized(history, len(blocks or b""))
            taken |= row.mask
            is_possible = len(sha256 or b"") == SHA256_BYTES and (
                content is None or len(content) == CONTENT_BYTES
            )
            if is_possible and not in_clones(ino):
                for born, ended in self._lifetimes(ino, row._replace(mask=mask)):
                    values = (ino, ended, born, *row.values)
                    self._target.execute(
                        "INSERT OR IGNORE INTO digests VALUES (?, ?, ?, ?, ?, ?)", values
                    )

    def _sized(self, history: History, length: int) -> int:
        """Return the moments at which an inode has digests of so many bytes."""
        mask = self._made_mask(history.ino)
        for row in history.versions:
            attributes = Attributes(*row.values)
            wanted = 0 if attributes.is_dir else BLAKE3_BYTES * block_count(attributes.size)
            if wanted == length and attributes.kind in (stat.S_IFREG, stat.S_IFDIR):
                mask |= row.mask
        return mask

    def _made_mask(self, ino: int) -> int:
        return sum(row.mask for row in self._made.get(ino, ()))

    # All that is not of one inode.

    def _separate(self) -> None:
        """Have no two rows of one key be true in an epoch, also in one that is no moment."""
        for life in VERSIONED:
            same = " AND ".join(f"{name} = ?" for name in life.key)
            rows: list[tuple[Any, ...]] = self._target.execute(overlaps(life)).fetchall()
            for since, until, *key in rows:
                last = self._moments.names(self._moments.seen(since, until))[-1]
                self._target.execute(
                    f"UPDATE {life.table} SET valid_to = ? WHERE {same} AND valid_to = ?",
                    (last + 1, *key, until),
                )
                self._target.execute(
                    f"UPDATE {life.table} SET valid_from = ? WHERE {same}"
                    " AND valid_from < ? AND valid_to > ?",
                    (last + 1, *key, last + 1, last + 1),
                )
                self._report.right("lifetimes of rows that overlapped")

    def _write_objects(self) -> None:
        rows = {
            number: (ino, epoch)
            for number, ino, epoch in self._plain.execute("SELECT id, ino, epoch FROM objects")
        }
        for number, (owner, first) in self._used.items():
            ino, epoch = rows.get(number, (owner, 0))
            if epoch > first or epoch < 0 or (owner != ino and epoch == first):
                epoch = 0  # so nobody writes it, and anybody may show it
            owner = ino if number in rows else max(owner, TREE_ROOT)
            self._target.execute("INSERT INTO objects VALUES (?, ?, ?)", (number, owner, epoch))
        for number in self._objects.present() - self._used.keys():
            self._target.execute("INSERT INTO garbage VALUES (?)", (number,))
            ino, epoch = rows.get(number, (TREE_ROOT, 0))
            self._target.execute("INSERT INTO objects VALUES (?, ?, 0)", (number, ino))

    def _write_lists(self) -> None:
        last = max((each.id for each in self._snapshots), default=0)
        values = store_rows(
            self._store, self._moments.epochs[-1], self.attic.next_number, last, self._now_ns
        )
        self._target.executemany("INSERT INTO store VALUES (?, ?)", list(values.items()))
        touched = set(self._moments.names(self.touched))
        for snapshot in self._snapshots:
            if snapshot.epoch in touched:
                snapshot = unsealed(snapshot)
            columns = columns_of(snapshot)
            marks = ", ".join("?" * len(columns))
            names = ", ".join(f'"{name}"' for name in columns)
            query = f"INSERT INTO snapshots ({names}) VALUES ({marks})"
            self._target.execute(query, tuple(columns.values()))
        if not self._snapshots:
            self._target.execute("DELETE FROM digests")
        for ino in self._growing:
            if self._valid.get(ino, 0) & self._names_mask(ino) & self._moments.current:
                self._target.execute("INSERT INTO dirty VALUES (?)", (ino,))

"""Rules of content: each holds now and in every snapshot. Of object files, lengths are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statefs.content.checks import is_damage
from statefs.content.objects import FOLDER_NAMES, object_number
from statefs.ids import LIVING, ObjectId
from statefs.maintenance.verify.reading import Reading, in_clones, meet
from statefs.metadata.inodes import InodeFlag
from statefs.metadata.schema import PENDING

IS_INLINE: Final = (
    f"(i.mode & 0xF000 = {stat.S_IFLNK} OR"
    f" (i.mode & 0xF000 = {stat.S_IFREG} AND NOT i.flags & {InodeFlag.EXTENTS:d}))"
)
IN_OBJECTS: Final = f"(i.mode & 0xF000 = {stat.S_IFREG} AND i.flags & {InodeFlag.EXTENTS:d})"


def check_inline(reading: Reading) -> Iterator[str]:
    """R16: inline content belongs to a link or a file without extents, and is as long as it."""
    query = (
        f"SELECT d.ino, length(d.data) FROM inline d WHERE {reading.count('d')} >"
        f" (SELECT coalesce(sum({reading.count('d', 'i')}), 0) FROM inodes i WHERE i.ino = d.ino"
        f" AND {meet('d', 'i')} AND {IS_INLINE} AND i.size = length(d.data)) ORDER BY d.ino"
    )
    for ino, length in reading.rows(query):
        yield f"{reading.named(ino)} has {length} bytes inline that are not its content"
    query = (
        f"SELECT i.ino, i.size FROM inodes i WHERE i.size > 0 AND {IS_INLINE}"
        f" AND {reading.count('i')} > (SELECT coalesce(sum({reading.count('i', 'd')}), 0)"
        f" FROM inline d WHERE d.ino = i.ino AND {meet('i', 'd')})"
        " AND NOT EXISTS (SELECT 1 FROM shared s WHERE s.ino = i.ino) ORDER BY i.ino"
    )
    for ino, size in reading.rows(query):
        yield f"{reading.named(ino)} has size {size}, but no content in the database"


def check_shared(reading: Reading) -> Iterator[str]:
    """R29: a file of a clone shares what a snapshot holds, of its own size, or has its own."""
    seen = "d.valid_to > s.epoch AND d.valid_from <= s.epoch"
    query = (
        "SELECT s.ino, s.source, s.epoch FROM shared s LEFT JOIN inodes i"
        f" ON i.ino = s.ino AND i.valid_to = {LIVING} AND {IS_INLINE}"
        f" LEFT JOIN inline d ON d.ino = s.source AND {seen}"
        f" WHERE NOT {in_clones('s.ino')} OR i.size IS NOT length(d.data) OR d.data IS NULL"
        " OR EXISTS (SELECT 1 FROM inline o WHERE o.ino = s.ino) OR NOT EXISTS"
        f" (SELECT 1 FROM snapshots n WHERE n.epoch = s.epoch AND n.state != {PENDING})"
        " ORDER BY s.ino"
    )
    for ino, source, epoch in reading.rows(query):
        yield (
            f"{reading.named(ino)} shares the content that inode {source} had in epoch {epoch},"
            " which is not there, or not its own"
        )


def check_extents(reading: Reading) -> Iterator[str]:
    """R17: extents belong to a file whose flags say so, lie inside it, and do not overlap."""
    query = (
        'SELECT x.ino, x.start, x."end" FROM extents x WHERE x.start < 0 OR x."end" <= x.start'
        f" OR {reading.count('x')} > (SELECT coalesce(sum({reading.count('x', 'i')}), 0)"
        f" FROM inodes i WHERE i.ino = x.ino AND {meet('x', 'i')} AND {IN_OBJECTS}"
        f' AND x.start < i.size AND (x."end" <= i.size OR x."end" = {LIVING}))'
        " ORDER BY x.ino, x.start"
    )
    for ino, start, end in reading.rows(query):
        yield f"{reading.named(ino)}: the extent {_range(start, end)} does not lie in the file"
    query = (
        'SELECT a.ino, a.start, a."end", b.start, b."end" FROM extents a CROSS JOIN extents b'
        f' ON b.ino = a.ino AND b.start > a.start AND b.start < a."end" AND {meet("a", "b")}'
        f" WHERE {reading.count('a', 'b')} > 0 ORDER BY a.ino, a.start"
    )
    for ino, start, end, other, other_end in reading.rows(query):
        yield (
            f"{reading.named(ino)}: the extents {_range(start, end)} and"
            f" {_range(other, other_end)} overlap"
        )


def _range(start: int, end: int) -> str:
    return f"[{start}, {'end of file' if end == LIVING else end})"


def check_owners(reading: Reading) -> Iterator[str]:
    """R18: an extent names an object that is not newer; one made for another file is older.

    Copies of past files share their objects, which nobody writes any more.
    """
    query = (
        'SELECT x.ino, x.start, x."end", x.object, o.ino, o.epoch FROM extents x'
        " LEFT JOIN objects o ON o.id = x.object"
        " WHERE o.id IS NULL OR o.epoch > x.valid_from"
        " OR (o.ino != x.ino AND o.epoch = x.valid_from)"
        " ORDER BY x.ino, x.start"
    )
    for ino, start, end, number, owner, epoch in reading.rows(query):
        what = "has no row" if owner is None else f"is of inode {owner} and epoch {epoch}"
        yield f"{reading.named(ino)}: extent {_range(start, end)}: object {number:x} {what}"


def check_object_files(reading: Reading) -> Iterator[str]:
    """R19: an object that extents name has a file that holds all of them.

    It may be longer: a write that was never acknowledged is cut off when the file is next written.
    """
    query = (
        f'SELECT x.object, max(CASE x."end" WHEN {LIVING} THEN i.size ELSE x."end" END),'
        f" (SELECT epoch FROM objects o WHERE o.id = x.object) = {reading.epoch},"
        " EXISTS (SELECT 1 FROM dirty d WHERE d.ino = x.ino), x.ino"
        " FROM extents x INDEXED BY extents_object"
        f" CROSS JOIN inodes i ON i.ino = x.ino AND {meet('x', 'i')}"
        f" WHERE {reading.count('x', 'i')} > 0 GROUP BY x.object ORDER BY x.object"
    )
    for number, needed, is_current, is_dirty, ino in reading.rows(query):
        trouble, length = None, 0
        try:
            length = os.stat(reading.layout.object_path(ObjectId(number))).st_size
        except OSError as error:
            if not is_damage(error):
                raise
            is_missing = isinstance(error, FileNotFoundError)
            trouble = "is missing" if is_missing else f"cannot be read ({error.strerror})"
        else:
            if is_current and is_dirty:
                continue
            if length < needed:
                trouble = f"has {length} bytes, {needed} are needed"
        if trouble:
            seen = ", ".join(reading.seen_by(number, length))
            yield f"object {number:x} of {reading.named(ino)} {trouble}: damaged in {seen}"


def check_displaced(reading: Reading) -> Iterator[str]:
    """R30: what was displaced belongs to a living file, and the object that held it has a row."""
    query = (
        'SELECT d.ino, d.start, d."end" FROM displaced d WHERE d.start < 0 OR d."end" <= d.start'
        f" OR NOT EXISTS (SELECT 1 FROM inodes i WHERE i.ino = d.ino AND i.valid_to = {LIVING}"
        f" AND i.mode & 0xF000 = {stat.S_IFREG})"
        " OR (d.old != 0 AND NOT EXISTS (SELECT 1 FROM objects o WHERE o.id = d.old))"
        " ORDER BY d.ino, d.start"
    )
    for ino, start, end in reading.rows(query):
        yield f"{reading.named(ino)}: nothing can be put back for {_range(start, end)}"
    number = reading.value("SELECT count(*) FROM displaced") if reading.store["clean"] else 0
    if number:
        yield f"displaced has {number} rows after a clean close"


def check_surplus_objects(reading: Reading) -> Iterator[str]:
    """R20: a file in objects/ belongs to a row; what nothing refers to is in `garbage`."""
    query = (
        "SELECT o.id FROM objects o"
        " WHERE NOT EXISTS (SELECT 1 FROM extents x WHERE x.object = o.id)"
        " AND NOT EXISTS (SELECT 1 FROM garbage g WHERE g.object = o.id) ORDER BY o.id"
    )
    for (number,) in reading.rows(query):
        yield f"nothing refers to object {number:x}, and it is not in garbage"
    known = (
        "SELECT (SELECT 1 FROM objects WHERE id = ?1) OR (SELECT 1 FROM garbage WHERE object = ?1)"
    )
    present = {entry.name for entry in os.scandir(reading.layout.objects)}
    for missing in sorted(FOLDER_NAMES - present):
        yield f"the folder objects/{missing} is missing"
    for surplus in sorted(present - FOLDER_NAMES):
        yield f"objects/{surplus} belongs to nothing"
    objects = str(reading.layout.objects)
    for folder in sorted(FOLDER_NAMES & present):
        for entry in sorted(os.listdir(f"{objects}/{folder}")):
            number = object_number(Path(folder, entry))
            if number is None:
                yield f"objects/{folder}/{entry} is not named as an object file is"
            elif not reading.value(known, (number,)):
                yield f"object file {number:x} belongs to nothing"

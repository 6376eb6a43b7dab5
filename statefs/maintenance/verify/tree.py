"""Rules of the tree: each holds now and in every snapshot."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from statefs import ids
from statefs.ids import LIVING
from statefs.maintenance.verify.reading import ROOTS, Reading, meet, shown
from statefs.volume.names import NAME_MAX

FOLDER: Final = f"(i.mode & 0xF000 = {stat.S_IFDIR})"
ROOT_NUMBERS: Final = f"({', '.join(str(root) for root in ROOTS)})"
ROOT_ROWS: Final = ", ".join(f"({root})" for root in ROOTS)
TYPES: Final = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
    stat.S_IFBLK,
)  # fmt: skip


def check_root(reading: Reading) -> Iterator[str]:
    """R07: a root is a folder at all times, those of clones now, holds itself, and has no name."""
    for root in ROOTS:
        query = (
            f"SELECT coalesce(sum({reading.count('i')}), 0) FROM inodes i"
            f" WHERE i.ino = {root} AND {FOLDER} AND i.parent = {root} AND i.nlink >= 2"
        )
        found, wanted = reading.value(query), 1 if ids.in_clones(root) else len(reading.moments)
        if found != wanted:
            yield f"inode {root} is a root in {found} of {wanted} trees"
        for parent, name in reading.rows(f"SELECT parent, name FROM entries WHERE ino = {root}"):
            yield f"the root has the name {shown(name)} in {reading.named(parent)}"


def check_entries(reading: Reading) -> Iterator[str]:
    """R08: where there is an entry, there are its inode and its folder."""
    for column, condition, what in (
        ("ino", "", "leads to inode {ino}, which does not exist then"),
        ("parent", f" AND {FOLDER}", "lies in inode {parent}, which is no folder then"),
    ):
        query = (
            "SELECT e.parent, e.name, e.ino, e.valid_from, e.valid_to FROM entries e"
            f" WHERE {reading.count('e')} > (SELECT coalesce(sum({reading.count('e', 'i')}), 0)"
            f" FROM inodes i WHERE i.ino = e.{column} AND {meet('e', 'i')}{condition})"
            " ORDER BY e.parent, e.name"
        )
        for parent, name, ino, since, until in reading.rows(query):
            when = f"from {since}" if until == LIVING else f"from {since} until {until}"
            end = what.format(ino=ino, parent=parent)
            yield f"{shown(name)} in {reading.named(parent)}, {when}, {end}"


def check_names(reading: Reading) -> Iterator[str]:
    """R09: a name has 1 to 255 bytes, none of them / or NUL; cookies of a folder differ."""
    query = (
        "SELECT DISTINCT parent, name FROM entries WHERE typeof(name) != 'blob'"
        f" OR length(name) NOT BETWEEN 1 AND {NAME_MAX} OR name IN (x'2e', x'2e2e')"
        " OR instr(name, x'2f') OR instr(name, x'00') ORDER BY parent, name"
    )
    for parent, name in reading.rows(query):
        yield f"{reading.named(parent)} has an entry {shown(name)}, which cannot be a name"
    query = (
        "SELECT parent, cookie FROM entries INDEXED BY entries_living"
        f" WHERE valid_to = {LIVING} GROUP BY parent, cookie HAVING count(*) > 1"
    )
    for parent, cookie in reading.rows(query):
        yield f"{reading.named(parent)} has two entries of cookie {cookie}"


def _names_counted(reading: Reading, kind: str, wanted: str) -> str:
    """Return a query for inodes with another number of names than they should have.

    Args:
        kind: SQL, which inodes.
        wanted: SQL, the number of names of inode `i`.

    Returns:
        SQL for rows (inode, names wanted, names found, moments): sums over all moments.
    """
    return (
        "SELECT ino, sum(wanted), sum(found), sum(moments) FROM ("
        f"  SELECT i.ino, i.valid_to, {wanted} * ({reading.count('i')}) AS wanted, 0 AS found,"
        f"  {reading.count('i')} AS moments FROM inodes i WHERE {kind}"
        f"  UNION ALL SELECT i.ino, i.valid_to, 0, {reading.count('e', 'i')}, 0"
        f"  FROM entries e CROSS JOIN inodes i ON i.ino = e.ino AND {meet('e', 'i')} AND {kind}"
        ") GROUP BY ino, valid_to HAVING sum(wanted) != sum(found)"
    )


def _trees(moments: int) -> str:
    return "" if moments == 1 else f", over {moments} trees"


def check_links(reading: Reading) -> Iterator[str]:
    """R10: `nlink` of anything but a folder is the number of its names.

    `parent` holds one of them, or is 0 where none is known.
    """
    for ino, wanted, found, moments in reading.rows(
        _names_counted(reading, f"NOT {FOLDER}", "i.nlink")
    ):
        yield f"{reading.named(ino)} has nlink {wanted}, but {found} names{_trees(moments)}"
    query = (
        f"SELECT i.ino, i.parent FROM inodes i WHERE NOT {FOLDER} AND i.parent != 0 AND i.nlink > 0"
        f" AND {reading.count('i')} > (SELECT coalesce(sum({reading.count('e', 'i')}), 0)"
        f"  FROM entries e WHERE e.ino = i.ino AND e.parent = i.parent AND {meet('e', 'i')})"
        " ORDER BY i.ino"
    )
    for ino, parent in reading.rows(query):
        yield f"{reading.named(ino)} has no name in inode {parent}, as its column parent says"


def check_folders(reading: Reading) -> Iterator[str]:
    """R11: a folder has one name, in the folder `parent`; `nlink` is 2 and one for each subfolder.

    One without a name has `nlink` 0.
    """
    wanted = f"(i.ino NOT IN {ROOT_NUMBERS} AND i.nlink > 0)"
    for ino, names, found, moments in reading.rows(_names_counted(reading, FOLDER, wanted)):
        who = reading.named(ino)
        yield f"{who} is a folder and has {found} names, not {names}{_trees(moments)}"
    query = (
        "SELECT i.ino, i.parent, e.parent FROM entries e CROSS JOIN inodes i ON i.ino = e.ino"
        f" AND {meet('e', 'i')} AND {FOLDER} AND i.parent != e.parent"
        f" WHERE {reading.count('e', 'i')} > 0 ORDER BY i.ino"
    )
    for ino, parent, found in reading.rows(query):
        yield f"{reading.named(ino)} is in folder {found}, its column parent says {parent}"
    inside = FOLDER.replace("i.", "c.")
    query = (
        "SELECT ino, sum(wanted), sum(found), sum(moments) FROM ("
        f"  SELECT i.ino, i.valid_to, (i.nlink - 2) * ({reading.count('i')}) AS wanted, 0 AS found,"
        f"  {reading.count('i')} AS moments FROM inodes i WHERE {FOLDER} AND i.nlink > 0"
        f"  UNION ALL SELECT i.ino, i.valid_to, 0, {reading.count('c', 'i')}, 0"
        f"  FROM inodes c CROSS JOIN inodes i ON i.ino = c.parent AND {meet('c', 'i')}"
        f"  AND {FOLDER} AND i.nlink > 0"
        f"  WHERE {inside} AND c.ino NOT IN {ROOT_NUMBERS} AND c.nlink > 0"
        ") GROUP BY ino, valid_to HAVING sum(wanted) != sum(found)"
    )
    for ino, nlink, found, moments in reading.rows(query):
        yield f"{reading.named(ino)} has nlink 2 + {nlink}, but {found} subfolders{_trees(moments)}"


def check_reachable(reading: Reading) -> Iterator[str]:
    """R12: every living folder with a name can be reached from a root."""
    living = f"e.valid_to = {LIVING}"
    query = (
        f"WITH RECURSIVE reached (ino) AS (VALUES {ROOT_ROWS} UNION SELECT e.ino FROM reached r"
        f" CROSS JOIN entries e ON e.parent = r.ino AND {living}"
        f" CROSS JOIN inodes i ON i.ino = e.ino AND i.valid_to = {LIVING} AND {FOLDER})"
        f" SELECT i.ino FROM inodes i WHERE i.valid_to = {LIVING} AND {FOLDER} AND i.nlink > 0"
        " AND i.ino NOT IN reached ORDER BY i.ino"
    )
    for (ino,) in reading.rows(query):
        yield f"inode {ino} is a folder that no way leads to from a root"


def check_types(reading: Reading) -> Iterator[str]:
    """R13: an inode is of a type that Linux knows; only files and links have a size."""
    query = (
        "SELECT DISTINCT i.ino, i.mode, i.size, i.nlink FROM inodes i WHERE"
        f" i.mode & 0xF000 NOT IN {TYPES} OR i.mode >> 16 OR i.size < 0 OR i.blocks < 0"
        " OR i.nlink < 0 OR (i.size > 0 AND i.mode & 0xF000 NOT IN"
        f" ({stat.S_IFREG}, {stat.S_IFLNK})) ORDER BY i.ino"
    )
    for ino, mode, size, nlink in reading.rows(query):
        yield f"{reading.named(ino)} cannot have mode {mode:o}, size {size}, nlink {nlink}"

"""Rows of `inline`, `shared` and `extents`: where a file's content lies, now or at a past epoch.

Readers take `epoch`; `ids.NOW` reads the living rows.
"""

from __future__ import annotations

from typing import Final

from statefs.content.extents import Extent
from statefs.ids import NOW, in_clones
from statefs.metadata.connection import Queries

_INLINE: Final = (
    "SELECT data, valid_from FROM inline WHERE ino = ? AND valid_to > ? ORDER BY valid_to LIMIT 1"
)
_SHARED: Final = "SELECT source, epoch FROM shared WHERE ino = ?"
_EXTENTS: Final = (
    'SELECT start, "end", object, valid_from FROM extents'
    " WHERE ino = ? AND valid_to > ? AND valid_from <= ? ORDER BY start"
)


def inline(database: Queries, ino: int, epoch: int) -> tuple[bytes, int] | None:
    """Return the inline content and its valid_from, or None."""
    row = database.execute(_INLINE, (ino, epoch)).fetchone()
    return row if row is not None and row[1] <= epoch else None


def living_inline(database: Queries, ino: int) -> bytes | None:
    """Return the inline content of a living file, in a clone also what it shares, or None."""
    found = inline(database, ino, NOW)
    if found is None and in_clones(ino):
        share = database.execute(_SHARED, (ino,)).fetchone()
        found = None if share is None else inline(database, *share)
    return None if found is None else found[0]


def extents(database: Queries, ino: int, epoch: int) -> list[Extent]:
    """Return the extents of a file in the order of their starts."""
    return [Extent(*row) for row in database.execute(_EXTENTS, (ino, epoch, epoch)).fetchall()]

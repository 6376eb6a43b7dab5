"""Giving space back: rows of deleted snapshots, and bytes of objects that nothing refers to.

Work comes in steps that are short enough to run between requests. Bytes are freed only when the
deletion of every row that referred to them is durable: a power cut must not bring a row back whose
bytes are gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

from statefs.content.objects import ObjectFiles
from statefs.content.reserve import FULL
from statefs.errors import PosixError
from statefs.ids import LIVING, Epoch
from statefs.maintenance.steps import Pace
from statefs.metadata.connection import Database
from statefs.snapshots.catalog import Catalog
from statefs.snapshots.clones import Clones

log = logging.getLogger(__name__)

ROWS_PER_STEP: Final = 250
"""Rows deleted at a time where that takes some milliseconds, fewer on a slow disk."""
OBJECTS_PER_STEP: Final = 16
"""Objects looked at in one step."""
PAGES_PER_STEP: Final = 250
"""Pages of meta.db given back in one step, 1 MiB."""
FREE_PAGES_KEPT: Final = 1024
"""Unused pages that are not worth giving back, 4 MiB: the next files will want them."""
FREE_PAGES_SHARE: Final = 4
"""Beyond that, up to this part of meta.db may lie unused."""
_CANDIDATES: Final = (
    "SELECT object FROM garbage WHERE object NOT IN (SELECT old FROM displaced) LIMIT ?"
)
"""Without those that may have to stand in for bytes that are not durable yet: it takes a moment."""

Ranges = list[tuple[int, int]]


def unreferenced(referenced: Sequence[tuple[int, int]], size: int) -> Ranges:
    """Return the ranges of [0, size) that none of `referenced` (any order) touches."""
    free: Ranges = []
    position = 0
    for start, end in sorted(referenced):
        if start > position:
            free.append((position, min(start, size)))
        position = max(position, end)
        if position >= size:
            return free
    free.append((position, size))
    return free


class Collector:
    """Frees what a store no longer needs.

    Args:
        database: the store's database.
        objects: its object files.
        catalog: its snapshots.
        clones: its clones.
    """

    def __init__(
        self, database: Database, objects: ObjectFiles, catalog: Catalog, clones: Clones
    ) -> None:
        self._database = database
        self._objects = objects
        self._catalog = catalog
        self._clones = clones
        self._deleting: Iterator[None] | None = None
        self._pace = Pace(ROWS_PER_STEP)
        self._held: set[int] = set()

    @property
    def is_busy(self) -> bool:
        """Whether rows or objects are known that can be freed now."""
        has_garbage = self._database.rows(_CANDIDATES, (1,))
        return bool(has_garbage or self._deletable() or self._clones.is_deleting)

    @property
    def is_held(self) -> bool:
        """Whether the disk has no room for what clones share with a snapshot being deleted."""
        return bool(self._held)

    def try_again(self) -> None:
        """Let `delete_rows` see whether there is room for that by now."""
        self._held.clear()

    def _deletable(self) -> list[int]:
        return [epoch for epoch in self._catalog.deleting() if epoch not in self._held]

    def delete_rows(self) -> bool:
        """Delete some rows of snapshots and clones being deleted; return whether there is more."""
        if self._deleting is None:
            epochs = self._deletable()
            if not epochs:
                return self._clones.delete_some()
            self._pace = Pace(ROWS_PER_STEP)
            self._deleting = self._rows_of(epochs[0])
        try:
            with self._pace.step():
                next(self._deleting)
        except BaseException as error:
            self._deleting = None  # done, or to be begun anew
            if not isinstance(error, StopIteration):
                raise
        return True

    def _rows_of(self, epoch: int) -> Iterator[None]:
        """Delete the rows of a snapshot; small content that clones share is copied to them first.

        All else goes before that is copied. On a full disk the rest waits for the room that comes
        back, or for the clones to go.
        """
        if self._catalog.is_shared(epoch):
            yield from self._catalog.delete_rows(epoch, lambda: self._pace.rows)
            try:
                while self._clones.copy_shared(Epoch(epoch), self._pace.rows):
                    yield
            except PosixError as error:
                if error.errno not in FULL:
                    raise
                self._held.add(epoch)
                return
        yield from self._catalog.delete_rows(epoch, lambda: self._pace.rows)

    def candidates(self) -> dict[int, Ranges]:
        """Return objects that may hold unreferenced bytes, with the ranges referred to now.

        Make the database durable (`Database.sync`) before passing them to `free`.
        """
        rows = self._database.rows(_CANDIDATES, (OBJECTS_PER_STEP,))
        return {row[0]: self._references(row[0]) for row in rows}

    def _references(self, number: int) -> Ranges:
        return self._database.rows(
            'SELECT DISTINCT start, "end" FROM extents WHERE object = ?', (number,)
        )

    def free(self, candidates: dict[int, Ranges]) -> bool:
        """Free the bytes of objects that neither `candidates` nor any row refers to.

        Returns:
            Whether any is dealt with; one that a thread is reading stays a candidate.

        Raises:
            OSError: the disk refused; the object stays a candidate.
        """
        is_progress = False
        for number, before in candidates.items():
            now = self._references(number)
            if self._objects.is_being_read(number) or (before and not now):
                continue  # the last reference went just now, and may not be gone durably
            is_progress = True
            self._free_object(number, [*before, *now])
        return is_progress

    def _free_object(self, number: int, referenced: Ranges) -> None:
        try:
            if referenced:
                self._punch(number, referenced)
            else:
                with self._database.transaction():
                    self._database.execute("DELETE FROM objects WHERE id = ?", (number,))
                self._objects.remove(number)
        except FileNotFoundError:
            log.error("the object file %x is missing", number)
        with self._database.transaction():
            self._database.execute("DELETE FROM garbage WHERE object = ?", (number,))

    def shrink(self, to_the_end: bool = False) -> bool:
        """Give some unused pages of meta.db back; return whether there is more to do.

        Args:
            to_the_end: keep none for the next files: nobody will make any for now.
        """
        database = self._database
        free = database.value("PRAGMA freelist_count")
        share = database.value("PRAGMA page_count") // FREE_PAGES_SHARE
        if free <= (0 if to_the_end else max(FREE_PAGES_KEPT, share)):
            return False
        with database.transaction():
            for _ in database.execute(f"PRAGMA incremental_vacuum({PAGES_PER_STEP})"):
                pass
        return bool(database.value("PRAGMA freelist_count") < free)

    def _punch(self, number: int, referenced: Ranges) -> None:
        size = self._objects.stat(number).st_size
        if any(end == LIVING and start == 0 for start, end in referenced):
            return
        for start, end in unreferenced(referenced, size):
            self._objects.punch(number, start, end)

"""Whether current/ has changed since the newest snapshot, and when that is saved by itself.

A change is noted where it is committed (`InodeTable.touched`), at the price of adding a number to a
set; only when a save may be due is it looked at whether any of it lies outside of runtime/, which
snapshots leave out. Reading changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statefs.errors import PosixError
from statefs.ids import CLONE_BIT, LIVING, TREE_ROOT, in_clones
from statefs.layout import RUNTIME
from statefs.metadata.entries import living_entry
from statefs.volume.table import TOUCHED_MAX, InodeTable

if TYPE_CHECKING:
    from statefs.maintenance.store import Store


def has_unsaved(store: Store) -> bool:
    """Return whether a snapshot taken now would differ from the newest one.

    It may say so of a change that has been undone since.
    """
    table = store.volume.table
    if len(table.touched) >= TOUCHED_MAX:
        return True
    runtime = living_entry(store.database, TREE_ROOT, RUNTIME)
    left_out = -1 if runtime is None else runtime.ino
    if any(_is_shown(table, ino, left_out) for ino in table.touched):
        return True
    table.touched.clear()
    return False


def _is_shown(table: InodeTable, ino: int, left_out: int) -> bool:
    """Return whether a snapshot shows an inode; False for one that is gone (its folder tells)."""
    while ino != TREE_ROOT:
        try:
            node = table.node(ino)
        except PosixError:
            return False
        if ino == left_out or node.nlink == 0:
            return False
        if not node.parent or (node.nlink > 1 and not node.is_dir):
            return True  # it has other names, which may be anywhere
        ino = node.parent
    return True


def touched_before(store: Store) -> set[int]:
    """Return inodes that an earlier process has changed since the newest snapshot; reads them all.

    Without any snapshot the folders that a new store has are no change.
    """
    with store.reader() as reader:
        epoch = reader.store_value("epoch")
        has_snapshot = reader.value("SELECT EXISTS (SELECT 1 FROM snapshots)")
        found = reader.rows(
            f"SELECT ino FROM inodes WHERE valid_to = {LIVING} AND valid_from = ?"
            f" AND ino < {CLONE_BIT} AND (? OR parent != ?) LIMIT ?",
            (epoch, has_snapshot, TREE_ROOT, TOUCHED_MAX),
        )
    return {row[0] for row in found if not in_clones(row[0])}


class Debounce:
    """Tells when a change is to be saved: at most once in a period, and no later than one after it.

    A tree that changes all the time is saved all the time: waiting for quiet could last for ever.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._since: float | None = None

    def is_due(self, now: float, epoch: int, is_touched: bool, period_seconds: float) -> bool:
        """Return whether a period has passed since the first change after the newest snapshot.

        Args:
            now: in seconds, from any beginning.
            epoch: the current one: any save, whoever asked for it, begins another.
            is_touched: whether anything has changed in this epoch.
        """
        if epoch != self._epoch or not is_touched:
            self._epoch, self._since = epoch, None
        if not is_touched:
            return False
        if self._since is None:
            self._since = now
        return now >= self._since + period_seconds

    def put_off(self, now: float) -> None:
        """Wait another period: nothing was to be saved, or it could not be."""
        self._since = now

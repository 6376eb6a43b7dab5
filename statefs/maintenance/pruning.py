"""Pruning, pins, and what deleting each snapshot would free.

The rules are in snapshots/retention.py. Here they meet a store: its settings, its snapshots, the
room on its disk. A plan is made and carried out while nothing else changes the list of snapshots.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statefs.clock import iso_time
from statefs.config import Retention
from statefs.content.objects import DISK_BLOCK_BYTES
from statefs.errors import SnapshotPinned, UsageError
from statefs.layout import StoreLayout
from statefs.maintenance import saving
from statefs.maintenance.progress import OnProgress, reporting
from statefs.maintenance.steps import Steps
from statefs.metadata.schema import DELETING
from statefs.snapshots import naming, undoing
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import Pin
from statefs.snapshots.retention import Candidate, Decision, decide, relieve
from statefs.snapshots.sharing import Sharing, measure
from statefs.units import size_text

if TYPE_CHECKING:
    from statefs.maintenance.commands import Call
    from statefs.maintenance.store import Store

REMOVED_PER_STEP: Final = 50
"""Snapshots hidden between two waits for the disk: some milliseconds without an answer."""
REASON_CHARACTERS_MAX: Final = 1000
"""A pin's reason goes into index.json, which every reader of it pays for."""


class Plan(NamedTuple):
    """What pruning would do.

    Args:
        snapshots: all there are, oldest first.
        decisions: one for each of them.
        sharing: what deleting them frees; None where that was not asked for and is not needed.
        shortages: bytes that are missing, and of what, in words.
    """

    snapshots: list[Snapshot]
    decisions: list[Decision]
    sharing: Sharing | None
    shortages: list[tuple[int, str]]

    @property
    def removed(self) -> list[Snapshot]:
        """The snapshots that are to go."""
        pairs = zip(self.snapshots, self.decisions, strict=True)
        return [snapshot for snapshot, decision in pairs if not decision.keep]


def planned(store: Store, *, with_sizes: bool, call: Call | None = None) -> Steps[Plan]:
    """Return what pruning would do now.

    Args:
        call: who waits for it, and is told how far it is.

    Raises:
        InvalidConfig: statefs.toml is wrong, or its policy is empty.
    """
    policy = store.settings.read().retention
    shortages: list[tuple[int, str]] = yield lambda: shortages_of(store.layout.root, policy)
    snapshots = list(store.catalog.snapshots)
    now_ns = store.clock.now_ns()
    needed = undoing.needed(snapshots, now_ns)
    candidates = [_candidate(each, needed.get(each.epoch, "")) for each in snapshots]
    decisions = decide(candidates, policy, now_ns)
    sharing = None
    if with_sizes or shortages:
        sharing = yield lambda: sharing_of(store, _measuring(call))
    for missing_bytes, why in shortages:
        assert sharing is not None
        relieve(decisions, missing_bytes, why, sharing.freed_by)
    return Plan(snapshots, decisions, sharing, shortages)


def prune(
    store: Store, *, dry_run: bool, with_sizes: bool = True, call: Call | None = None
) -> Steps[Plan]:
    """Delete what the retention policy does not keep, and return what was decided.

    Args:
        dry_run: only decide.
        call: who waits for it, and is told how far it is. What is not deleted yet when nobody
            waits any more stays.

    Raises:
        InvalidConfig: see `planned`. OSError: the disk refused.
    """
    plan = yield from planned(store, with_sizes=with_sizes, call=call)
    removed = [] if dry_run else plan.removed
    on_progress = None if call is None else reporting(call, "deleting", "snapshots")
    for start in range(0, len(removed), REMOVED_PER_STEP):
        if on_progress is not None:
            on_progress(start, len(removed))
        yield from saving.delete_all(store, removed[start : start + REMOVED_PER_STEP])
    return plan


def _candidate(snapshot: Snapshot, needed: str) -> Candidate:
    created_ns, reason, labels = snapshot.created_ns, snapshot.reason, snapshot.labels
    return Candidate(snapshot.epoch, created_ns, reason, labels, snapshot.pin, needed)


def document_of(plan: Plan, *, is_done: bool) -> dict[str, Any]:
    """Return a plan as plain values."""
    each = {} if plan.sharing is None else plan.sharing.freed_by_each()
    gone = [snapshot.epoch for snapshot in plan.removed]
    return {
        "snapshots": [
            {
                "snapshotId": snapshot.uuid,
                "name": snapshot.name,
                "keep": decision.keep,
                "reasons": decision.reasons,
                "freedBytes": each.get(snapshot.epoch),
            }
            for snapshot, decision in zip(plan.snapshots, plan.decisions, strict=True)
        ],
        "removed": len(gone),
        "freedBytes": None if plan.sharing is None else plan.sharing.freed_by(gone),
        "shortages": [why for _, why in plan.shortages],
        "done": is_done,
    }


def shortages_of(root: Path, policy: Retention) -> list[tuple[int, str]]:
    """Return how many bytes are missing, and why, in words; may take long.

    Copies of the database do not count as taken: they have a limit of their own ([backups]), and
    no snapshot that goes makes them smaller.

    Args:
        root: the store's folder.
    """
    found = []
    if policy.min_free_bytes:
        disk = os.statvfs(root)
        free = disk.f_bavail * disk.f_frsize
        if free < policy.min_free_bytes:
            why = f"{size_text(free)} free, min_free is {size_text(policy.min_free_bytes)}"
            found.append((policy.min_free_bytes - free, why))
    if policy.max_store_bytes:
        taken = bytes_on_disk(root, StoreLayout(root).backups)
        if taken > policy.max_store_bytes:
            limit = size_text(policy.max_store_bytes)
            why = f"the store takes {size_text(taken)}, max_store_bytes is {limit}"
            found.append((taken - policy.max_store_bytes, why))
    return found


def bytes_on_disk(folder: Path, without: Path | None = None) -> int:
    """Return what a folder and all in it takes on its disk; what goes meanwhile is passed over.

    Args:
        without: a folder in it that does not count.
    """
    return sum(status.st_blocks for status in _statuses(folder, without)) * DISK_BLOCK_BYTES


def _statuses(folder: Path, without: Path | None) -> Iterator[os.stat_result]:
    yield os.lstat(folder)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            if Path(entry.path) != without:
                yield from _statuses(Path(entry.path), None)
            continue
        try:
            yield entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


def _measuring(call: Call | None) -> OnProgress | None:
    return None if call is None else reporting(call, "measuring what is freed", "objects")


def sharing_of(store: Store, on_progress: OnProgress | None = None) -> Sharing:
    """Return what deleting snapshots would free; reads all rows of the past, so it may be slow.

    Args:
        on_progress: told how many object files have been looked at; may raise to give up.
    """

    def allocated(number: int) -> tuple[int, int]:
        try:
            status = store.objects.stat(number)
        except FileNotFoundError:
            return 0, 0
        return status.st_size, status.st_blocks * DISK_BLOCK_BYTES

    with store.reader() as reader:
        epochs = reader.rows("SELECT epoch FROM snapshots WHERE state < ? ORDER BY 1", (DELETING,))
        return measure(reader, [row[0] for row in epochs], allocated, on_progress)


def sizes(store: Store, call: Call | None = None) -> Steps[dict[str, int]]:
    """Return for each snapshot's name the bytes that deleting it alone would free."""
    sharing: Sharing = yield lambda: sharing_of(store, _measuring(call))
    each = sharing.freed_by_each()
    return {s.name: each[s.epoch] for s in store.catalog.snapshots if s.epoch in each}


def pin(store: Store, snapshot: Snapshot, *, reason: str, by: str, until: str) -> Steps[Snapshot]:
    """Forbid the deletion of a snapshot.

    Args:
        reason: why; shown to who tries to delete it.
        by: who says so.
        until: when that ends (`naming.until_ns`); empty for never.

    Raises:
        SnapshotPinned: it is pinned already. UsageError: no reason, or a time that cannot be read.
    """
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX:
        raise UsageError(f"a pin needs a reason, of at most {REASON_CHARACTERS_MAX} characters")
    now_ns = store.clock.now_ns()
    end_ns = naming.until_ns(until, now_ns) if until else None
    if snapshot.pin is not None and snapshot.pin.holds(now_ns):
        raise SnapshotPinned(
            f"the snapshot {snapshot.name} is {snapshot.pin} already; 'statefs unpin' lets it go"
        )
    made = Pin(
        reason=reason,
        by=by,
        since=iso_time(now_ns),
        until=None if end_ns is None else iso_time(end_ns),
    )
    return (yield from saving.amend(store, snapshot, pin=made))


def unpin(store: Store, snapshot: Snapshot) -> Steps[Snapshot]:
    """Allow the deletion of a snapshot again. Raises UsageError: it is not pinned."""
    if snapshot.pin is None:
        raise UsageError(f"the snapshot {snapshot.name} is not pinned")
    return (yield from saving.amend(store, snapshot, pin=None))

"""Which snapshots the way back needs: `statefs undo`, and `statefs try` while its command runs.

Pure: reads what the snapshots say they were taken for (documents.Operation). What goes back is done
by maintenance/restoring.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.documents import LastOperation

KEPT_NS: Final = 24 * 3600 * 1_000_000_000
"""A day: who wants to undo does so soon, and no command under `statefs try` should take longer."""
NAMED: Final = {
    "restore": "a restore",
    "try": "a command of 'statefs try'",
    "import": "an import",
    "undo": "an undo",
}
"""What each kind of operation is called."""
FOR_UNDO: Final = "'statefs undo' needs it, for a day"
FOR_TRY: Final = "a command of 'statefs try' may still run, for a day"


def last_operation(snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """Return the snapshot of the last restore, command or undo; None where there was none.

    Args:
        snapshots: oldest first.
    """
    return next((each for each in reversed(snapshots) if each.operation is not None), None)


def refusal(last: LastOperation, older: Snapshot | None) -> str:
    """Return why the last operation cannot be undone, as its snapshot is deleted, and what can.

    Args:
        older: the snapshot of the newest operation that can.
    """
    if older is None or older.operation is None:
        way = "'statefs list' shows what can be restored"
    else:
        way = f"'statefs undo --of {older.name}' undoes {NAMED[older.operation.kind]} before it"
    return (
        f"the last change was {NAMED[last.kind]}, and {last.name}, the snapshot taken for it, is"
        f" deleted, so it cannot be undone: {way}"
    )


def needed(snapshots: Sequence[Snapshot], now_ns: int) -> dict[int, str]:
    """Return epoch -> why, in words, of the snapshots that must stay for the way back.

    Args:
        snapshots: oldest first.
        now_ns: the present; what was taken longer ago than KEPT_NS is not needed.
    """
    found: dict[int, str] = {}
    recent = [each for each in snapshots if now_ns - each.created_ns < KEPT_NS]
    ended = {each.operation.other for each in recent if each.operation is not None}
    for each in recent:
        operation = each.operation
        is_begun = operation is not None and (operation.kind, operation.phase) == ("try", "before")
        if is_begun and each.uuid not in ended:
            found[each.epoch] = FOR_TRY
    last = last_operation(recent)
    if last is not None:
        assert last.operation is not None
        found.setdefault(last.epoch, FOR_UNDO)
        epochs = {each.uuid: each.epoch for each in snapshots}
        if last.operation.other in epochs:
            found[epochs[last.operation.other]] = FOR_UNDO
    return found

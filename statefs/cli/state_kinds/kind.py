"""What `statefs state` asks of each kind of store: the entry of one in the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from statefs.cli.output import Column
from statefs.state.audit import Unfinished
from statefs.state.checking import Problem, Repair, unfinished_in
from statefs.state.operation_lock import OperationLock


class Listing(NamedTuple):
    """What a store has, as a table and as JSON.

    Args:
        rows: for JSON, one for each entry.
        columns: of the table.
        cells: of the table, in the order of `rows`.
    """

    rows: Sequence[dict[str, Any]]
    columns: Sequence[Column]
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of store, seen from outside. All functions get the folder first.

    Args:
        entries: what it keeps, in the plural; the key of its list in JSON.
        is_in: whether a folder, which is there, is one of such a store.
        listed: what there is, broken ones too.
        shown: the entry of a name as JSON holds it, or a part of it (None: all of it); raises
            NotInStore where there is none.
        check: what is wrong; changes nothing.
        repair: puts that right, and returns what was done.
        unfinished: actions that its audit logs say have begun, and not that they have ended.
        unlock: takes the lock of the entry of a name, and of an id if that is not None, away from
            whoever has it, and returns it; None where entries have no locks of their own.
    """

    entries: str
    is_in: Callable[[Path], bool]
    listed: Callable[[Path], Listing]
    shown: Callable[[Path, str, str | None], Any]
    check: Callable[[Path], list[Problem]]
    repair: Callable[[Path], list[Repair]]
    unfinished: Callable[[Path], list[Unfinished]] = unfinished_in
    unlock: Callable[[Path, str, str | None], OperationLock | None] | None = None

"""Folders of a `SessionStore` in `statefs state`."""

from __future__ import annotations

from pathlib import Path

from statefs.cli.output import Column
from statefs.cli.state_kinds.kind import Kind, Listing
from statefs.state import session_store_checking
from statefs.state.session_store import SESSIONS, SessionState, states_of
from statefs.state.session_store_repair import repair_store
from statefs.units import count_text, local_text


def has_journals(folder: Path) -> bool:
    """Return whether there is a folder for journaled sessions."""
    return (folder / SESSIONS).is_dir()


def listed(folder: Path) -> Listing:
    """Return the sessions of all stores in the folder, the last changed first."""
    sessions = states_of(folder)
    columns = [
        Column("session", style="bold", may_shorten=True),
        Column("store", may_shorten=True, drop_rank=2),
        Column("status"),
        Column("snapshots", align_right=True, drop_rank=1),
        Column("events", align_right=True),
        Column("unfinished", align_right=True),
        Column("changed", drop_rank=3),
        Column("damage", style="red", may_shorten=True),
    ]
    rows = [each._asdict() for each in sessions]
    return Listing(rows, columns, [cells_of(each) for each in sessions])


def cells_of(session: SessionState) -> list[str]:
    """Return one session of the list as cells of the table."""
    return [
        session.id,
        session.store,
        session.status,
        count_text(session.snapshots),
        count_text(session.events),
        count_text(session.unfinished),
        local_text(session.changed_at) if session.changed_at else "",
        session.damage or "",
    ]


JOURNALS = Kind(
    entries="journals",
    is_in=has_journals,
    listed=listed,
    shown=session_store_checking.show_session,
    check=session_store_checking.check_store,
    repair=repair_store,
    unfinished=session_store_checking.unfinished_in_sessions,
)

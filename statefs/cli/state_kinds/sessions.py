"""Folders of a `SessionManager` in `statefs state`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from statefs.cli.output import Column, plain
from statefs.cli.state_kinds.kind import Kind, Listing
from statefs.errors import NotInStore
from statefs.state import session_checking
from statefs.state.session_checking import label_of
from statefs.units import count_text, local_text


def has_sessions(folder: Path) -> bool:
    """Return whether there is a scope."""
    return bool(session_checking.scopes_of(folder))


def listed(folder: Path) -> Listing:
    """Return the sessions of all scopes, in each the last saved first."""
    sessions = session_checking.list_sessions(folder)
    rows = [{"scope": label_of(scope), **plain(entry)} for scope, entry in sessions]
    columns = [
        Column("session", style="bold", may_shorten=True),
        Column("scope", may_shorten=True),
        Column("agent", may_shorten=True, drop_rank=1),
        Column("title", may_shorten=True),
        Column("turns", align_right=True),
        Column("saved", drop_rank=2),
    ]
    return Listing(rows, columns, [cells_of(each) for each in sessions])


def cells_of(session: session_checking.ListedSession) -> list[str]:
    """Return one session of the list as cells of the table."""
    scope, entry = session
    return [
        entry.id,
        label_of(scope),
        entry.agent_id,
        entry.title,
        count_text(entry.turn_count),
        local_text(entry.updated_at),
    ]


def shown(folder: Path, name: str, part: str | None) -> Any:
    """Return a session; it has no parts that could be shown alone."""
    session = session_checking.show_session(folder, name)
    if part is not None:
        raise NotInStore(f"the session '{name}' has no key '{part}': it is shown whole")
    return session


SESSIONS = Kind(
    entries="sessions",
    is_in=has_sessions,
    listed=listed,
    shown=shown,
    check=session_checking.check_sessions,
    repair=session_checking.repair_sessions,
)

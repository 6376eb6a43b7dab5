"""What a session of an agent or a chat is: turns of blocks, and the light entry of a list.

Types alone; where they lie is in `session_manager`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from statefs.state.documents import Form

SESSION_VERSION: Final = 1
INDEX_VERSION: Final = 1

TurnStatus = Literal["pending", "streaming", "done", "error"]
SessionStatus = Literal["active", "done", "error"]


class TextBlock(msgspec.Struct, tag="text", forbid_unknown_fields=True):
    """Text of either side."""

    text: str


class ImageBlock(msgspec.Struct, tag="image", forbid_unknown_fields=True):
    """An image of a request: a path or an address, not its bytes."""

    source: str
    media_type: str = ""


class FileBlock(msgspec.Struct, tag="file", forbid_unknown_fields=True):
    """A file of a request: a path or an address, not its bytes."""

    source: str
    media_type: str = ""


class ToolBlock(msgspec.Struct, tag="tool", forbid_unknown_fields=True):
    """A call of a tool, and what it returned when it has."""

    name: str
    input: Any = None
    output: Any = None


class CodeBlock(msgspec.Struct, tag="code", forbid_unknown_fields=True):
    """Code of a response."""

    code: str
    language: str = ""


class ErrorBlock(msgspec.Struct, tag="error", forbid_unknown_fields=True):
    """An error that ended a response, or a part of it."""

    message: str


class StatusBlock(msgspec.Struct, tag="status", forbid_unknown_fields=True):
    """What is going on, for who waits."""

    text: str


RequestBlock = TextBlock | ImageBlock | FileBlock
ResponseBlock = TextBlock | ToolBlock | CodeBlock | ErrorBlock | StatusBlock


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A request and its response."""

    request: list[RequestBlock] = []
    response: list[ResponseBlock] = []
    status: TurnStatus = "pending"


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens that a session has used."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class Session(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A session; its program changes it, and saves it.

    Args:
        version: of the file.
        id: names it in its scope.
        agent_id: of whoever answers.
        title: for a list.
        started_at, updated_at, ended_at: ISO 8601 in UTC; `updated_at` is when it was last saved.
    """

    version: int = SESSION_VERSION
    id: str
    agent_id: str
    title: str = ""
    started_at: str
    updated_at: str
    ended_at: str | None = None
    status: SessionStatus = "active"
    usage: Usage = msgspec.field(default_factory=Usage)
    turns: list[Turn] = []


class SessionEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A session in a list."""

    id: str
    agent_id: str
    title: str
    created_at: str
    updated_at: str
    turn_count: int


class SessionIndex(msgspec.Struct, forbid_unknown_fields=True):
    """The file `index.json`."""

    version: int
    sessions: list[SessionEntry]


SESSION_FORM: Final = Form(Session, SESSION_VERSION)
INDEX_FORM: Final = Form(SessionIndex, INDEX_VERSION)


def entry_of(session: Session) -> SessionEntry:
    """Return the entry that a list shows of a session."""
    return SessionEntry(
        session.id,
        session.agent_id,
        session.title,
        session.started_at,
        session.updated_at,
        len(session.turns),
    )

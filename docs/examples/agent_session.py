"""An agent that goes on with its last session of a project, whatever ended it.

python agent_session.py FOLDER PROJECT               list the project's sessions
python agent_session.py FOLDER PROJECT "hello"       go on with the last one
"""

from __future__ import annotations

import sys

from statefs.errors import StatefsError
from statefs.state import Scope, SessionManager, TextBlock, Turn


def answer_to(text: str) -> str:
    """Stand in for a model."""
    return text[::-1]


def main(folder: str, project: str, text: str | None = None) -> None:
    """Add a turn to the last active session, or to a new one, and list all."""
    with SessionManager(folder, Scope("project", project)) as sessions:
        if text is not None:
            known = [sessions.get(entry.id) for entry in sessions.list()[:1]]
            active = [session for session in known if session.status == "active"]
            session = active[0] if active else sessions.create("mirror", title=text)
            turn = Turn([TextBlock(text)], status="streaming")
            session.turns.append(turn)
            sessions.save(session)  # what was asked is kept before the answer begins
            turn.response.append(TextBlock(answer_to(text)))
            turn.status = "done"
            session.usage.input_tokens += len(text)
            session.usage.total_tokens += len(text)
            sessions.save(session)
        for entry in sessions.list():
            sys.stdout.write(f"{entry.title}: {entry.turn_count} turns\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"agent_session: {error}")

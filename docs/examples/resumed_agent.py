"""An agent that may be killed at any moment: it goes on where it was, and mails nobody twice.

python resumed_agent.py FOLDER MAILS TASK         work on a task: the next step, each time
python resumed_agent.py FOLDER MAILS TASK sent    say what became of a mail that a kill cut short
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from statefs.errors import NotInStore, StatefsError
from statefs.state import JournaledSession, SessionStore


class Noted(msgspec.Struct, tag="noted", forbid_unknown_fields=True):
    """Something the agent has found out; the only event there is."""

    text: str


def mail(place: Path, text: str) -> None:
    """Stand in for something that cannot be taken back."""
    with place.open("a") as mails:
        mails.write(f"{text}\n")


def state_of(session: JournaledSession) -> list[str]:
    """Return what the agent knew: the last snapshot, and the events after it."""
    known = list(session.recovery.slots.get("known", []))
    return known + [event.value.text for event in session.recovery.events]


def main(folder: str, mails: str, task: str, outcome: str | None = None) -> None:
    """Do one turn of a task."""
    store = SessionStore(folder, "resumed-agent", events=Noted)
    try:
        session = store.resume(task)
    except NotInStore:
        session = store.create(task)
    with session:
        for action in session.recovery.unfinished:
            if outcome is None:
                sys.exit(f"was this mail sent? {action.details['text']}: look, and say so")
            session.settle(action.number, outcome)
        known = state_of(session)
        step = f"step {len(known) + 1} of {task}"
        with session.audit("mail", text=step):  # durable before the mail is sent
            mail(Path(mails), step)
        session.append(Noted(step))
        session.snapshot({"known": [*known, step]})  # the turn ends here
    sys.stdout.write("".join(f"{line}\n" for line in [*known, step]))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StatefsError as error:
        sys.exit(f"resumed_agent: {error}")

"""An agent that may be killed at any moment: it goes on where it was, and mails nobody twice.

python resumed_agent.py FOLDER MAILS TASK         work on a task: the next step, each time
python resumed_agent.py FOLDER MAILS TASK done    say what became of a mail that a kill cut short
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


def go_on(session: JournaledSession, outcome: str | None) -> list[str]:
    """Return what the agent knew: the last snapshot, the events after it, and the mails sent."""
    known = list(session.recovery.slots.get("known", []))
    known += [event.value.text for event in session.recovery.events]
    for number, text, ended in (
        (each.begun.number, each.begun.details["text"], each.outcome)
        for each in session.recovery.actions
    ):
        if ended is None:
            if outcome is None:
                sys.exit(f"was this mail sent? {text}: look, and say 'done' or 'failed'")
            session.settle(number, outcome)
        if (ended or outcome) == "done" and text not in known:
            session.append(Noted(text))  # a kill came between the mail and its event
            known.append(text)
    return known


def main(folder: str, mails: str, task: str, outcome: str | None = None) -> None:
    """Do one turn of a task."""
    store = SessionStore(folder, "resumed-agent", events=Noted)
    try:
        session = store.resume(task)
    except NotInStore:
        session = store.create(task)
    with session:
        known = go_on(session, outcome)
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

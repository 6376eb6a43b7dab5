from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import StateDamaged
from statefs.state import JsonStore, SessionStore
from statefs.state.checking import check_documents, repair_documents
from statefs.state.journal import Journal, line_of
from statefs.state.session_store_checking import check_store
from statefs.state.session_store_repair import repair_store
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.session_folders import contents, place, values

Work = Callable[[Path], None]


@pytest.fixture
def folder(sessions: SessionStore) -> Path:
    """A session of four events, with a snapshot after the first and one after the third."""
    with sessions.create("one") as session:
        session.append("a")
        session.snapshot({"seen": "a", "same": 1})
        session.append("b")
        session.append("c")
        session.snapshot({"seen": "abc"})
        session.append("d")
        with session.audit("mail"):
            pass
    return place(sessions)


def flipped(name: str, line: int) -> Work:
    """Return a change of one bit in a line of a file."""

    def flip(folder: Path) -> None:
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        lines[line - 1] = lines[line - 1][:-4] + b"\x01" + lines[line - 1][-3:]
        (folder / name).write_bytes(b"".join(lines))

    return flip


def both(*works: Work) -> Work:
    """Return several changes as one."""

    def change(folder: Path) -> None:
        for work in works:
            work(folder)

    return change


def seen(sessions: SessionStore, *, despite_loss: bool = False) -> str:
    """Return what the next process knows: the state and the events after it."""
    with sessions.resume("one", despite_loss=despite_loss) as session:
        found = session.recovery
        return "".join([*found.slots.get("seen", ""), *(each.value for each in found.events)])


WHOLE = {
    "a slot, for which the snapshot before it stands": flipped("state/seen.3", 1),
    "a slot that is missing": lambda folder: (folder / "state" / "seen.3").unlink(),
    "the last snapshot in the manifest": flipped("manifest.json", 3),
    "the last revision in the manifest": flipped("manifest.json", 4),
    "an audit record": flipped("audit/actions.log", 2),
    "the audit log": lambda folder: (folder / "audit" / "actions.log").unlink(),
    "an event that a snapshot has": flipped("journal.log", 2),
}
"""Damage that costs nothing of what a session is resumed from."""


@pytest.mark.parametrize("what", WHOLE)
def test_a_session_is_resumed_with_all_it_knew_after_a_repair(
    sessions: SessionStore, folder: Path, what: str
) -> None:
    """What was broken lies beside it, and nothing more is found."""
    before = contents(folder)
    WHOLE[what](folder)
    broken = {name: data for name, data in contents(folder).items() if data != before[name]}
    assert check_store(sessions.folder)
    repairs = repair_store(sessions.folder)
    assert repairs and check_store(sessions.folder) == []
    assert seen(sessions) == "abcd"
    for name, data in broken.items():
        [aside] = folder.glob(f"{name}.broken-*")
        assert aside.read_bytes() == data
    assert any(each.lost for each in repairs) == (what not in list(WHOLE)[:2])
    assert repair_store(sessions.folder) == []


def test_an_event_that_no_snapshot_has_is_lost_and_nobody_goes_on_unknowingly(
    sessions: SessionStore, folder: Path
) -> None:
    """The numbers of the others stay."""
    with sessions.resume("one") as session:
        session.append("e")
    flipped("journal.log", 4)(folder)
    [repair] = repair_store(sessions.folder)
    assert repair.lost and repair.done.endswith("; made again; lost: line 4")
    with pytest.raises(StateDamaged, match=r"journal\.log, line 4: the event is lost"):
        sessions.resume("one")
    with sessions.resume("one", despite_loss=True) as session:
        assert session.recovery.lost == [4]
        assert [(each.sequence, each.value) for each in session.recovery.events] == [(5, "e")]
        session.snapshot({"seen": "abc?e"})
    assert seen(sessions) == "abc?e"


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_journal_that_has_become_shorter_is_filled_up(
    sessions: SessionStore, folder: Path, left: int
) -> None:
    """Missing or cut; what the snapshot has is not lost, and the session was closed with four."""
    path = folder / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:left]))
    if not left:
        path.unlink()
    repairs = repair_store(sessions.folder)
    assert repairs[0].lost and check_store(sessions.folder) == []
    with pytest.raises(StateDamaged, match="line 4: the event is lost"):
        sessions.resume("one")
    assert seen(sessions, despite_loss=True) == "abc"
    assert values(path) == [json.loads(line[11:]) for line in lines[:left]] + (
        [{"lost": True}] * (4 - left)
    )
    with sessions.resume("one", despite_loss=True) as session:
        assert session.append("next") == 5


NOTHING_HELPS = {
    "the slots of both snapshots": both(flipped("state/seen.3", 1), flipped("state/seen.2", 1)),
    "what session it is": flipped("manifest.json", 1),
    "the manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a record of another kind": lambda folder: added(folder / "journal.log", {"x": 1}),
    "a slot that is a folder": both(
        flipped("state/seen.2", 1),
        lambda folder: (folder / "state" / "seen.3").unlink(),
        lambda folder: (folder / "state" / "seen.3").mkdir(),
    ),
}


def added(path: Path, value: Any) -> None:
    """Add a record whose checksum fits."""
    with Journal(path) as journal:
        journal.append(value)


@pytest.mark.parametrize("what", NOTHING_HELPS)
def test_what_nothing_helps_is_told_and_left(
    sessions: SessionStore, folder: Path, what: str
) -> None:
    """All that is there stays there, or beside it."""
    NOTHING_HELPS[what](folder)
    before = set(contents(folder).values())
    for _ in range(2):
        assert any(each.lost for each in repair_store(sessions.folder))
        assert before <= set(contents(folder).values())
        with pytest.raises(StateDamaged):
            sessions.resume("one")


def test_numbers_that_cannot_be_are_no_numbers(sessions: SessionStore, folder: Path) -> None:
    """A record far ahead, one that comes twice, and a snapshot of events that never were."""
    path = folder / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line_of(10**15, "1"), lines[1], *lines[2:]]))
    repair_store(sessions.folder)
    assert seen(sessions) == "abcd"
    snapshot = next(each for each in values(folder / "manifest.json") if each.get("slots"))
    added(folder / "manifest.json", snapshot | {"events": 2**60, "end": 2**60})
    assert any(each.lost for each in repair_store(sessions.folder))


def test_an_audit_record_that_is_lost_counts_as_an_action_until_it_is_settled(
    sessions: SessionStore, folder: Path
) -> None:
    """It may have begun one."""
    flipped("audit/actions.log", 2)(folder)
    repair_store(sessions.folder)
    with sessions.resume("one") as session:
        found = [(each.number, each.what) for each in session.recovery.unfinished]
        assert found == [(1, "mail"), (2, "lost")]
        for number, _ in found:
            session.settle(number, "looked for")
        assert session.unfinished() == []


def test_the_audit_log_of_any_store_is_made_again(tmp_path: Path) -> None:
    """A repair needs it, so it is first."""
    folder = tmp_path / "shop"
    with JsonStore(folder) as store:
        store.set("settings", "a", 1)
    log = folder / ".audit.log"
    log.write_text("1 00000000 {}\n")
    folder.chmod(0o755)
    [first, second] = repair_documents(folder)
    assert first.path == log and first.lost and "0700" in second.done
    assert check_documents(folder) == []
    assert values(log)[0] == {"lost": True}


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_repair_loses_nothing(
    sessions: SessionStore, folder: Path
) -> None:
    """What was broken is there until it lies elsewhere, and the next repair comes to the end."""
    both(flipped("state/seen.3", 1), flipped("journal.log", 2))(folder)
    (folder.parent / ".gone.removed").mkdir()
    before = contents(folder)
    broken = {before["state/seen.3"], before["journal.log"]}

    def work(_acknowledge: Acknowledge) -> None:
        repair_store(sessions.folder)

    kills = 0
    for killed in each_kill(work):
        kills += 1
        found = contents(folder)
        assert broken <= set(found.values()), killed
        assert found["manifest.json"].startswith(before["manifest.json"]), killed
        repair_store(sessions.folder)
        assert check_store(sessions.folder) == [], killed
        assert seen(sessions, despite_loss=True) == "acd", killed
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()
        for name, data in before.items():
            (folder / name).write_bytes(data)
            os.chmod(folder / name, 0o600)
    assert kills > 40

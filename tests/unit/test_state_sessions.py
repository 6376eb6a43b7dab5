from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from statefs.errors import NewerStore, NotInStore, StateDamaged, StoreLocked, UsageError
from statefs.state import Scope, Session, SessionEntry, SessionManager, Turn, Usage, session_index
from statefs.state.session_checking import repair_sessions
from statefs.state.session_documents import (
    CodeBlock,
    ErrorBlock,
    FileBlock,
    ImageBlock,
    StatusBlock,
    TextBlock,
    ToolBlock,
)
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.engine_store import SteppingClock

SHOP = Scope("project", "shop")


def turn(text: str) -> Turn:
    """Return a turn that has every kind of block."""
    return Turn(
        [TextBlock(text), ImageBlock("a.png", "image/png"), FileBlock("/tmp/a.pdf")],
        [TextBlock("ü"), ToolBlock("grep", {"for": "x"}, ["a", 1]), CodeBlock("1+1", "python"),
         StatusBlock("thinking"), ErrorBlock("no more")],
        "done",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where sessions will be."""
    return tmp_path / "agents"


def listed(sessions: SessionManager) -> list[tuple[str, str, int]]:
    """Return (id, title, turns) of each session of a list."""
    return [(each.id, each.title, each.turn_count) for each in sessions.list()]


def test_a_session_comes_back_with_all_its_blocks(folder: Path) -> None:
    """In the next process, as it was saved, with its times and its usage."""
    with SessionManager(folder, clock=SteppingClock()) as sessions:
        made = sessions.create("coder", "first steps")
        made.turns.append(turn("hello"))
        made.usage = Usage(10, 20, 30)
        sessions.save(made)
        made.status, made.ended_at = "done", made.updated_at
        sessions.save(made)
        assert sessions.get(made.id) is made
        assert made.started_at < made.updated_at
    with SessionManager(folder) as sessions:
        assert sessions.get(made.id) == made == sessions.load(made.id)
    body = json.loads((folder / "global" / "sessions" / f"{made.id}.json").read_text())
    assert [block["type"] for block in body["turns"][0]["response"]] == [
        "text", "tool", "code", "status", "error"]  # fmt: skip
    assert body["usage"] == {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30}


def test_the_list_is_one_file_with_the_last_saved_first(folder: Path) -> None:
    """It has what the issue names, and no body is opened for it."""
    with SessionManager(folder, clock=SteppingClock()) as sessions:
        for name in ("a", "b", "c"):
            sessions.create("coder", name.upper(), name)
        first = sessions.get("a")
        first.turns += [turn("1"), turn("2")]
        sessions.save(first)
        assert listed(sessions) == [("a", "A", 2), ("c", "C", 0), ("b", "B", 0)]
        sessions.delete("c")
        assert [each.id for each in sessions.list()] == ["a", "b"]
        place = folder / "global" / "sessions"
        with SessionManager(folder, read_only=True) as reader:
            assert reader.list() == sessions.list()
            (place / "b.json").write_text("{")
            assert reader.list() == sessions.list()
        [entry, _] = json.loads((place / "index.json").read_text())["sessions"]
        assert set(entry) == {"id", "agent_id", "title", "created_at", "updated_at", "turn_count"}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}


def test_what_is_not_there_or_cannot_be_is_refused(folder: Path) -> None:
    """Each in one line."""
    with SessionManager(folder) as sessions:
        made = sessions.create("coder", session_id="a")
        for ask in (sessions.get, sessions.load, sessions.delete):
            with pytest.raises(NotInStore, match="no session 'nobody'"):
                ask("nobody")
        for id_, said in (("a", "already"), ("index", "the list is"), ("", "empty")):
            with pytest.raises(UsageError, match=said):
                sessions.create("coder", session_id=id_)
        made.turns.append("text")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="'a' cannot be saved"):
            sessions.save(made)
        assert sessions.load("a").turns == []
        for scope in (Scope("project"), Scope("global", "x"), Scope("project", "\udcff")):
            with pytest.raises(UsageError):
                sessions.switch(scope)
        with pytest.raises(StoreLocked):
            SessionManager(folder)
        with SessionManager(folder, read_only=True) as reader:
            for change in (lambda: reader.create("coder"), lambda: reader.delete("a")):
                with pytest.raises(UsageError, match="read only"):
                    change()
    with pytest.raises(UsageError, match="closed"):
        sessions.list()


def test_a_scope_has_its_own_sessions_and_leaving_it_saves_them(folder: Path) -> None:
    """What was changed and not saved is on the disk after a switch, and after a close."""
    with SessionManager(folder, SHOP) as sessions:
        one = sessions.create("coder", "one", "one")
        saved_at = one.updated_at
        one.turns.append(turn("unsaved"))
        sessions.switch(Scope("project", "../shop"))
        assert sessions.list() == []
        sessions.create("coder", "two", "one")
        sessions.switch(Scope("assistant", "ann"))
        assert sessions.list() == []
        sessions.switch(SHOP)
        assert sessions.get("one").turns == [turn("unsaved")]
        assert listed(sessions) == [("one", "one", 1)]
        assert sessions.get("one").updated_at > saved_at
        untouched = sessions.get("one").updated_at
        sessions.switch(SHOP)
        assert sessions.get("one").updated_at == untouched
        sessions.get("one").title = "uno"
    with SessionManager(folder, SHOP, read_only=True) as reader:
        assert listed(reader) == [("one", "uno", 1)]
    assert sorted(os.listdir(folder / "project")) == ["%2E%2E%2Fshop", "shop"]
    assert sorted(os.listdir(folder)) == [".lock", "assistant", "project"]


@pytest.mark.parametrize("damage", ["missing", "broken", "another", "late"])
def test_an_index_that_is_lost_is_made_again_from_the_bodies(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing, broken, of unknown fields, or older than a body."""
    with SessionManager(folder) as sessions:
        for name in ("a", "b"):
            sessions.create("coder", name, name)
        expected = sessions.list()
        index = folder / "global" / "sessions" / "index.json"
        if damage == "missing":
            index.unlink()
        elif damage == "broken":
            index.write_text(index.read_text()[:-9])
        elif damage == "another":
            index.write_text(index.read_text().replace('"version"', '"x": 1, "version"'))
        else:
            text = index.read_text()
            sessions.create("coder", "late", "late")
            sessions.delete("a")
            late = sessions.list()
            index.write_text(text)
            os.utime(index, (0, 0))
            expected = late
    with caplog.at_level(logging.WARNING), SessionManager(folder) as sessions:
        assert sessions.list() == expected
    if damage in ("broken", "another"):
        assert f"{index}, line " in caplog.text
    assert len(json.loads(index.read_text())["sessions"]) == len(expected)


def test_a_broken_session_is_named_and_the_others_are_there(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not listed, and its file stays."""
    with SessionManager(folder) as sessions:
        for name in ("a", "b"):
            sessions.create("coder", name, name)
    path = folder / "global" / "sessions" / "a.json"
    path.write_text(path.read_text().replace('"status"', '"sattus"'))
    with caplog.at_level(logging.WARNING), SessionManager(folder) as sessions:
        assert listed(sessions) == [("b", "b", 0)]
        with pytest.raises(StateDamaged, match=f"^{path}, line [0-9]+: .*`sattus`"):
            sessions.get("a")
    assert "it is not listed" in caplog.text and path.exists()
    path.write_text(path.with_name("b.json").read_text().replace('"version": 1', '"version": 2'))
    with SessionManager(folder) as sessions:
        assert listed(sessions) == [("b", "b", 0)]
        with pytest.raises(NewerStore, match="has version 2"):
            sessions.get("a")
    [repair] = repair_sessions(folder)
    assert repair.aside is None and path.exists()


def test_a_file_that_somebody_has_copied_is_no_other_session(folder: Path) -> None:
    """It would be saved under the first one's name."""
    with SessionManager(folder) as sessions:
        sessions.create("coder", "one", "one")
        place = folder / "global" / "sessions"
        (place / "two.json").write_bytes((place / "one.json").read_bytes())
        with pytest.raises(StateDamaged, match=r"two\.json holds another session, 'one'"):
            sessions.get("two")
    with SessionManager(folder) as sessions:
        assert listed(sessions) == [("one", "one", 0)]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_leaves_sessions_and_list_in_agreement(folder: Path) -> None:
    """Each session is as it was acknowledged or one step on, and the list says what they hold."""

    def work(acknowledge: Acknowledge) -> None:
        with SessionManager(folder) as sessions:
            one = sessions.create("coder", "one", "one")
            acknowledge("made")
            one.turns.append(turn("1"))
            sessions.save(one)
            acknowledge("saved")
            sessions.delete("one")
            acknowledge("deleted")

    steps = ["", "made", "saved", "deleted"]
    states = [[], [0], [1], []]
    for killed in each_kill(work):
        done = steps.index(killed.acknowledged[-1]) if killed.acknowledged else 0
        with SessionManager(folder) as sessions:
            found = [len(sessions.load(each.id).turns) for each in sessions.list()]
            assert found == [each.turn_count for each in sessions.list()], killed
            assert found in states[done : done + 2], killed
            for each in sessions.list():
                sessions.delete(each.id)


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_opening_reads_only_the_bodies_that_the_index_cannot_know(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fifty sessions one was changed after the index was written."""
    with SessionManager(folder) as sessions:
        for number in range(50):
            sessions.create("coder", session_id=f"s{number}")
    place = folder / "global" / "sessions"
    now = time.time()
    for path in place.iterdir():
        os.utime(path, (now - 100, now - 100))
    os.utime(place / "index.json", (now - 50, now - 50))
    os.utime(place / "s7.json", (now, now))
    read: list[Path] = []
    original = session_index.read_entry

    def watched(path: Path) -> SessionEntry | None:
        read.append(path)
        return original(path)

    monkeypatch.setattr(session_index, "read_entry", watched)
    with SessionManager(folder) as sessions:
        assert len(sessions.list()) == 50
    assert [path.name for path in read] == ["s7.json"]


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_long_list_is_not_written_for_each_save_and_yet_nothing_is_lost(folder: Path) -> None:
    """The file is some changes late; a process that ends before it is written costs no session."""
    sessions = SessionManager(folder)
    index = folder / "global" / "sessions" / "index.json"

    def in_file() -> int:
        return len(json.loads(index.read_text())["sessions"])

    for number in range(300):
        sessions.create("coder", str(number), f"s{number}")
    sessions.delete("s7")
    while in_file() == len(sessions.list()):
        number += 1
        assert number < 310, "the file is written for each session"
        sessions.create("coder", str(number), f"s{number}")
    expected = sessions.list()
    assert sessions._lock is not None
    sessions._lock.release()  # as a kill does
    with SessionManager(folder) as after:
        assert after.list() == expected
    assert in_file() == len(expected) == number


def test_a_session_may_be_made_by_hand(folder: Path) -> None:
    """A program that imports sessions saves them as they are."""
    with SessionManager(folder) as sessions:
        at = "2026-01-01T00:00:00Z"
        sessions.save(Session(id="old/1", agent_id="x", started_at=at, updated_at=at))
        assert sessions.list()[0].created_at == at
    with SessionManager(folder) as sessions:
        assert sessions.get("old/1").agent_id == "x"


def test_the_example_of_a_session_works(tmp_path: Path) -> None:
    """Each run goes on with the session of its project."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "agent_session.py"

    def run(*words: str) -> str:
        command = [sys.executable, str(example), str(tmp_path / "agents"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run("shop", "hello") == "hello: 1 turns\n"
    assert run("shop", "again") == "hello: 2 turns\n"
    assert run("other") == ""
    with SessionManager(tmp_path / "agents", SHOP) as sessions:
        [entry] = sessions.list()
        assert sessions.get(entry.id).turns[1].response == [TextBlock("niaga")]


def test_a_session_that_cannot_be_saved_keeps_no_other_from_being_saved(folder: Path) -> None:
    """What the program gets to know is of the first that failed."""
    sessions = SessionManager(folder)
    bad, good = sessions.create("agent"), sessions.create("agent")
    bad.title = 5  # type: ignore[assignment]  # what a program may do
    good.title = "changed"
    with pytest.raises(UsageError):
        sessions.close()
    with SessionManager(folder, read_only=True) as sessions:
        assert sessions.load(good.id).title == "changed"

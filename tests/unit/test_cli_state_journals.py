from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from statefs.state import DocumentType, JsonStore, SessionStore
from statefs.state.journal import Journal
from statefs.state.session_manifest import Manifest
from statefs.state.session_recovery import require_session
from statefs.state.session_store_checking import show_session
from tests.harness.processes import start
from tests.unit.cli_fakes import call
from tests.unit.engine_store import SteppingClock

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sessions: one closed, one cut short in the midst of an action."""
    folder = tmp_path / "agent"
    store = SessionStore(folder, "coder", clock=SteppingClock())
    with store.create("one") as session:
        session.append({"said": "hello"})
        session.snapshot({"plan": ["look", "do"], "raw": b"\xff"})
        session.append({"said": "again"})

    def cut_short() -> None:
        session = SessionStore(folder, "coder").create("two")
        with session.audit("mail", to="ann"):
            os._exit(0)

    os.waitpid(start(cut_short), 0)
    return folder


def test_sessions_are_listed_and_shown(folder: Path, capsys: Capture) -> None:
    """With their status, how many actions have no end, and what a resumption would begin with."""
    rows = [row.split() for row in call(capsys, "state", "list", folder).out.splitlines()]
    assert rows[0] == ["SESSION", "STORE", "STATUS", "SNAPSHOTS", "EVENTS", "UNFINISHED", "CHANGED"]
    assert [row[:6] for row in rows[1:]] == [
        ["two", "coder", "unclean", "0", "0", "1"],
        ["one", "coder", "closed", "1", "2", "0"],
    ]
    [_, one] = json.loads(call(capsys, "state", "list", folder, "--json").out)["journals"]
    assert (one["id"], one["status"], one["damage"]) == ("one", "closed", None)
    shown = json.loads(call(capsys, "state", "show", folder, "one").out)
    assert shown["slots"] == {"plan": ["look", "do"], "raw": {"base64": "/w=="}}
    assert [each["event"] for each in shown["events"]] == [{"said": "again"}]
    assert (shown["store"], shown["snapshot"]["events"]) == ("coder", 1)
    assert json.loads(call(capsys, "state", "show", folder, "sessions/one", "plan").out) == [
        "look", "do"]  # fmt: skip
    [action] = json.loads(call(capsys, "state", "show", folder, "two").out)["unfinished"]
    assert (action["what"], action["details"]) == ("mail", {"to": "ann"})
    for words in (("three",), ("one", "memory")):
        assert call(capsys, "state", "show", folder, *words).exit_code == 30


def test_a_sound_store_is_told_so_with_what_was_cut_short(folder: Path, capsys: Capture) -> None:
    """Also while a process has a session; a repair changes nothing then."""
    with SessionStore(folder, "coder").resume("one"):
        done = call(capsys, "state", "check", folder)
        assert done.exit_code == 0
        assert "audit/actions.log, line 1: 'mail' was begun at " in done.out
        assert call(capsys, "state", "repair", folder).out == f"{folder}: nothing to repair\n"
        rows = call(capsys, "state", "list", folder).out.splitlines()
        assert {row.split()[0]: row.split()[2] for row in rows[1:]} == {
            "one": "running", "two": "unclean"}  # fmt: skip


def test_what_is_wrong_is_named_with_file_and_line(folder: Path, capsys: Capture) -> None:
    """In every file of a session, and around them; modes are put right."""
    one, two = (folder / "sessions" / name for name in ("one", "two"))
    with Journal(one / "journal.log") as journal:
        journal.append({"at": "", "event": 1, "x": 2})
    (one / "state" / "plan.2").write_text("{")
    (one / "state" / "notes").write_text("mine")
    (one / "journal.log").chmod(0o644)
    two.chmod(0o755)
    (two / "manifest.json").write_text("")
    (folder / "sessions" / ".three.removed").mkdir()
    (folder / "sessions" / "a:b").mkdir()
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29
    for said in (
        f"{one}/journal.log, line 3: object contains unknown field `x`",
        f"{one}/state/plan.2: it is not what the manifest's line 2 says",
        f"{one}/state/notes: no slot has such a file",
        f"{one}/journal.log: its mode is 0644",
        f"{two}: its mode is 0755",
        f"{two}/manifest.json is missing or empty, and there are events",
        f"{folder}/sessions/.three.removed: the removal of it was cut short",
        f"{folder}/sessions/a:b: no session is called so",
    ):
        assert said in done.out
    assert "manifest.json is missing" in call(capsys, "state", "list", folder).out
    assert "nothing to repair" not in call(capsys, "state", "repair", folder).out
    done = call(capsys, "state", "check", folder)
    assert "mode" not in done.out and "removed" not in done.out and "notes" in done.out
    assert (folder / "sessions" / "a:b").is_dir()


def test_slots_of_any_version_are_shown_and_sound(folder: Path, capsys: Capture) -> None:
    """What a version means only the program knows."""
    store = SessionStore(folder, "coder", slots={"usage": DocumentType(dict[str, int], 7)})
    with store.resume("one") as session:
        session.snapshot({"usage": {"tokens": 1}})
    assert json.loads(call(capsys, "state", "show", folder, "one", "usage").out) == {"tokens": 1}
    assert call(capsys, "state", "show", folder, "one").exit_code == 0
    assert call(capsys, "state", "check", folder).exit_code == 0


def test_a_session_is_shown_while_its_process_takes_a_snapshot(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was read, then the files it names gave way to those of two newer snapshots."""
    reads = 0

    def overtaken(place: Path) -> Manifest:
        nonlocal reads
        manifest, reads = require_session(place), reads + 1
        if reads == 1:
            session.snapshot({"plan": "new"})
            session.snapshot({"plan": "newer"})
        return manifest

    with SessionStore(folder, "coder").resume("one") as session:
        monkeypatch.setattr(f"{show_session.__module__}.require_session", overtaken)
        shown = json.loads(call(capsys, "state", "show", folder, "one").out)
    assert shown["slots"]["plan"] == "newer" and shown["status"] == "running" and reads == 3


def test_settings_beside_sessions_are_looked_after_too(folder: Path, capsys: Capture) -> None:
    """One folder for all that a program keeps."""
    with JsonStore(folder) as store:
        store.set("settings", "theme", "dark")
    assert list(json.loads(call(capsys, "state", "list", folder, "--json").out)) == [
        "folder", "documents", "journals"]  # fmt: skip
    (folder / "settings.json").write_text("{")
    assert "settings.json, line 1" in call(capsys, "state", "check", folder).out

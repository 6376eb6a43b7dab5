from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from statefs.state import EncryptedJsonStore, JsonStore, Scope, SessionManager, make_key_file
from statefs.state.audit import AuditLog
from statefs.state.checking import check_documents, repair_documents
from statefs.state.copies import copies_of
from statefs.state.journal import Journal
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.harness.processes import start
from tests.unit.cli_fakes import call
from tests.unit.test_cli_documentation import example_document, shape

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two documents, of which `settings` has a copy."""
    folder = tmp_path / "shop"
    for number in (1, 2):
        with JsonStore(folder) as store:
            store.save("settings", {"theme": "dark", "number": number})
    with JsonStore(folder) as store:
        store.set("mcp-servers", "a/b", {"port": 1})
    return folder


def break_settings(folder: Path) -> None:
    """Do what an editor may do."""
    path = folder / "settings.json"
    path.write_text(path.read_text().replace('"dark"', "dark"))


def test_documents_are_listed_and_shown(folder: Path, capsys: Capture) -> None:
    """Names, keys and copies; a document, and one of its keys."""
    rows = call(capsys, "state", "list", folder).out.splitlines()
    assert [row.split()[:2] for row in rows] == [
        ["NAME", "KEYS"], ["mcp-servers", "1"], ["settings", "2"]]  # fmt: skip
    shown = json.loads(call(capsys, "state", "show", folder, "settings").out)
    assert shown == {"theme": "dark", "number": 2}
    assert call(capsys, "state", "show", folder, "mcp-servers", "a/b").out.split() == [
        "{", '"port":', "1", "}"]  # fmt: skip


def test_what_is_not_there_is_named(folder: Path, capsys: Capture) -> None:
    """A folder, a document, a key: exit code 30, and what there is."""
    for words, said in (
        (("list", folder / "no"), "there is no folder"),
        (("check", folder / "no"), "there is no folder"),
        (("repair", folder / "no"), "there is no folder"),
        (("show", folder, "setings"), "there are: mcp-servers, settings"),
        (("show", folder, "settings", "x"), "has no key 'x'"),
    ):
        done = call(capsys, "state", *words)
        assert done.exit_code == 30 and said in done.err
    assert call(capsys, "state").exit_code == 2
    assert call(capsys, "state", "lits", folder).exit_code == 2


def test_a_sound_folder_is_told_so_while_a_program_has_it_open(
    folder: Path, capsys: Capture
) -> None:
    """And a repair is refused then, with the pid."""
    with JsonStore(folder):
        assert call(capsys, "state", "check", folder).out == f"{folder}: no problems found\n"
        assert call(capsys, "state", "repair", folder).exit_code == 6
    done = call(capsys, "state", "repair", folder)
    assert (done.exit_code, done.out) == (0, f"{folder}: nothing to repair\n")


def test_a_broken_document_is_named_then_the_newest_good_copy_takes_its_place(
    folder: Path, capsys: Capture
) -> None:
    """What was broken stays beside it, a copy that is broken too is passed over."""
    with JsonStore(folder) as store:
        store.set("settings", "number", 3)
    newest, older = copies_of(folder / "settings.json")
    newest.write_text("{")
    break_settings(folder)
    broken = (folder / "settings.json").read_bytes()
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29
    assert f"{folder}/settings.json, line 4: JSON is malformed" in done.out
    assert "settings.json, line 4" in call(capsys, "state", "list", folder).out
    assert call(capsys, "state", "show", folder, "settings").exit_code == 29
    done = call(capsys, "state", "repair", folder)
    assert done.exit_code == 0 and f"backups/{older.name} has taken its place" in done.out
    assert call(capsys, "state", "check", folder).exit_code == 0
    with JsonStore(folder) as store:
        assert store.all("settings") == {"theme": "dark", "number": 1}
        assert store.names() == ["mcp-servers", "settings"]
    [aside] = folder.glob("settings.json.broken-*")
    assert aside.read_bytes() == broken
    lines = (folder / ".audit.log").read_text().splitlines()
    records = [json.loads(line.split(" ", 2)[2]) for line in lines]
    assert [(each["event"], each.get("what")) for each in records] == [
        ("begun", "repair"), ("done", None)]  # fmt: skip


def test_a_document_without_a_good_copy_is_moved_aside_and_told_as_lost(
    folder: Path, capsys: Capture
) -> None:
    """Exit code 29; the program starts with an empty one."""
    (folder / "mcp-servers.json").write_bytes(b"\xff")
    done = call(capsys, "state", "repair", folder)
    assert done.exit_code == 29 and "there is no good copy" in done.out
    assert call(capsys, "state", "check", folder).exit_code == 0
    with JsonStore(folder) as store:
        assert store.all("mcp-servers") == {}


def test_modes_that_let_others_in_are_named_and_put_right(folder: Path, capsys: Capture) -> None:
    """And a file that no document is called by is left as it is."""
    folder.chmod(0o755)
    (folder / "settings.json").chmod(0o644)
    (folder / "a:b.json").write_text("{}")
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29 and len(done.out.splitlines()) == 3
    assert "0755, so that others get at it; 0700 is right" in done.out
    assert call(capsys, "state", "repair", folder).exit_code == 0
    done = call(capsys, "state", "check", folder)
    assert done.out == f"{folder}/a:b.json: no document is called so\n"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_json_shown_of_a_folder_is_what_is_printed(folder: Path, capsys: Capture) -> None:
    """Same keys in the same order, of a list and of a check that found something."""
    printed = json.loads(call(capsys, "state", "list", folder, "--json").out)
    assert shape(printed) == shape(example_document("state list"))
    break_settings(folder)
    with Journal(folder / ".audit.log") as log:
        log.append({"event": "begun", "at": "", "what": "rotate-key", "pid": 1, "details": {}})
    printed = json.loads(call(capsys, "state", "check", folder, "--json").out)
    assert shape(printed) == shape(example_document("state check"))
    assert re.search("line 4", printed["problems"][0]["message"])
    [repair] = json.loads(call(capsys, "state", "repair", folder, "--json").out)["repairs"]
    assert list(repair) == ["path", "done", "aside", "source", "snapshots"]


def test_what_was_begun_and_has_no_end_is_named_and_is_no_damage(
    folder: Path, capsys: Capture
) -> None:
    """By check, with its line; a broken audit log is a problem."""
    log = folder / ".audit.log"
    with AuditLog(log) as audit, audit.action("done"):
        pass

    def cut_short() -> None:
        with AuditLog(log) as audit, audit.action("rotate-key"):
            os._exit(0)

    os.waitpid(start(cut_short), 0)
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 0
    assert f"{log}, line 3: 'rotate-key' was begun at " in done.out
    for record, said in (
        ({"event": "done", "at": "", "off": 3}, "object contains unknown field `off`"),
        ({"event": "began"}, "invalid value at event"),
        ({"event": "done", "at": "", "of": ""}, "expected `int`, got `str` at of"),
        (["begun"], "expected `object`, got `array`"),
    ):
        with Journal(log) as journal:
            journal.append(record)
        done = call(capsys, "state", "check", folder)
        assert done.exit_code == 29 and f"{log}, line 4: {said}\n" in done.out
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))


def test_a_folder_of_settings_and_sessions_is_both(folder: Path, capsys: Capture) -> None:
    """Each command looks after all that is in it."""
    with SessionManager(folder) as sessions:
        sessions.create("coder", "first", "one")
    assert list(json.loads(call(capsys, "state", "list", folder, "--json").out)) == [
        "folder", "documents", "sessions"]  # fmt: skip
    assert "first" in call(capsys, "state", "list", folder).out
    assert json.loads(call(capsys, "state", "show", folder, "one").out)["title"] == "first"
    done = call(capsys, "state", "show", folder, "two")
    assert done.exit_code == 30 and "no document 'two'" in done.err and "session 'two'" in done.err
    assert call(capsys, "state", "show", folder, "one", "title").exit_code == 30
    folder.chmod(0o755)
    break_settings(folder)
    (folder / "global" / "sessions" / "one.json").write_text("{")
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29 and len(done.out.splitlines()) == 3
    assert call(capsys, "state", "repair", folder).exit_code == 29
    assert call(capsys, "state", "check", folder).exit_code == 0


def test_encrypted_documents_are_listed_and_not_shown(tmp_path: Path, capsys: Capture) -> None:
    """Their form is checked, a broken one gets its copy back, and it opens."""
    folder, key = tmp_path / "credentials", make_key_file(tmp_path / "key")
    for number in range(2):
        with EncryptedJsonStore(folder, key) as store:
            store.set("tokens", "a", number)
    assert "encrypted" in call(capsys, "state", "list", folder).out
    [listed] = json.loads(call(capsys, "state", "list", folder, "--json").out)["documents"]
    assert (listed["encrypted"], listed["keys"], listed["damage"]) == (True, None, None)
    done = call(capsys, "state", "show", folder, "tokens")
    assert done.exit_code == 2 and "is encrypted" in done.err
    assert call(capsys, "state", "check", folder).exit_code == 0
    (folder / "tokens.json").write_text('{"version": 1, "values": {}}')
    assert "tokens.json, line 1" in call(capsys, "state", "check", folder).out
    assert call(capsys, "state", "repair", folder).exit_code == 0
    with EncryptedJsonStore(folder, key) as store:
        assert store.get("tokens", "a") == 0
    (folder / "keyring").write_text("{")
    assert "keyring, line 1" in call(capsys, "state", "check", folder).out


def test_sessions_are_listed_shown_checked_and_repaired(tmp_path: Path, capsys: Capture) -> None:
    """In all scopes; a broken one is moved aside, a broken list is made again."""
    folder = tmp_path / "agents"
    with SessionManager(folder) as sessions:
        sessions.create("coder", "first", "one")
        sessions.switch(Scope("project", "a/b"))
        sessions.create("coder", "second", "one")
        sessions.create("coder", "third", "three")
    rows = call(capsys, "state", "list", folder).out.splitlines()
    assert {tuple(row.split()[:4]) for row in rows[1:]} == {
        ("one", "global", "coder", "first"), ("one", "project/a/b", "coder", "second"),
        ("three", "project/a/b", "coder", "third")}  # fmt: skip
    [first, *_] = json.loads(call(capsys, "state", "list", folder, "--json").out)["sessions"]
    assert (first["scope"], first["id"], first["turn_count"]) == ("global", "one", 0)
    assert json.loads(call(capsys, "state", "show", folder, "three").out)["title"] == "third"
    done = call(capsys, "state", "show", folder, "one")
    assert done.exit_code == 2 and "global/one, project/a/b/one" in done.err
    shown = json.loads(call(capsys, "state", "show", folder, "project/a/b/one").out)
    assert shown["title"] == "second"
    assert call(capsys, "state", "show", folder, "two").exit_code == 30
    assert call(capsys, "state", "check", folder).exit_code == 0
    place = folder / "project" / "a%2Fb" / "sessions"
    (place / "three.json").write_text("{")
    (place / "index.json").write_text("{")
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29 and len(done.out.splitlines()) == 2
    done = call(capsys, "state", "repair", folder)
    assert done.exit_code == 29 and "three.json: moved to three.json.broken-" in done.out
    assert "index.json: made again from the sessions" in done.out
    assert call(capsys, "state", "check", folder).exit_code == 0
    assert len(call(capsys, "state", "list", folder).out.splitlines()) == 3


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_repair_loses_no_document(folder: Path) -> None:
    """The broken file is there until it lies elsewhere, and the next repair comes to the end."""
    path = folder / "settings.json"
    break_settings(folder)
    broken = path.read_bytes()

    def work(_acknowledge: Acknowledge) -> None:
        repair_documents(folder)

    for killed in each_kill(work):
        kept = [each.read_bytes() for each in folder.glob("settings.json*")]
        assert broken in kept, killed
        repair_documents(folder)
        assert check_documents(folder) == []
        for each in folder.glob("settings.json.broken-*"):
            each.unlink()
        path.write_bytes(broken)

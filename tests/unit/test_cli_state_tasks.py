from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from statefs.state import JsonStore, StatePersistence, Task, WorkSession
from statefs.state.task_checking import check_tasks, repair_tasks
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.cli_fakes import call
from tests.unit.engine_store import SteppingClock
from tests.unit.test_state_task_recovery import break_file
from tests.unit.test_state_tasks import opened, statuses

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two tasks, a session, its log and a report."""
    folder = tmp_path / "work"
    with opened(folder, clock=SteppingClock()) as store:
        store.save_session(WorkSession(id="s"))
        store.save_task(Task(id="a", title="first", status="completed", result=7))
        store.save_task(Task(id="b/c", title="second", status="failed", error="no light"))
        store.save_session_log("s", "log\n")
        store.save_report("r", {"found": 3})
    return folder


def test_tasks_are_listed_and_shown_with_sessions_and_reports(
    folder: Path, capsys: Capture
) -> None:
    """And neither state.json nor its backups are taken for documents."""
    rows = call(capsys, "state", "list", folder).out.splitlines()
    heads = ["TASK STATUS TITLE", "a completed first", "b/c failed second"]
    assert [row.split()[:3] for row in rows] == [head.split() for head in heads]
    printed = json.loads(call(capsys, "state", "list", folder, "--json").out)
    assert list(printed) == ["folder", "tasks"]
    assert list(printed["tasks"][0]) == [
        "id", "title", "status", "created_at", "updated_at", "started_at", "ended_at",
        "error", "lost",
    ]  # fmt: skip
    assert printed["tasks"][1]["error"] == "no light"
    assert json.loads(call(capsys, "state", "show", folder, "b/c").out)["title"] == "second"
    assert call(capsys, "state", "show", folder, "a", "result").out == "7\n"
    assert json.loads(call(capsys, "state", "show", folder, "s").out)["status"] == "active"
    assert json.loads(call(capsys, "state", "show", folder, "r").out)["report"] == {"found": 3}
    for words, said in ((("x",), "no task, session or report 'x'"), (("a", "x"), "no key 'x'")):
        done = call(capsys, "state", "show", folder, *words)
        assert done.exit_code == 30 and said in done.err


def test_a_sound_folder_is_told_so_while_a_program_has_it_open(
    folder: Path, capsys: Capture
) -> None:
    """And a repair is refused then."""
    with StatePersistence(folder, autosave_seconds=0):
        assert call(capsys, "state", "check", folder).out == f"{folder}: no problems found\n"
        assert call(capsys, "state", "repair", folder).exit_code == 6
    assert call(capsys, "state", "repair", folder).out == f"{folder}: nothing to repair\n"
    with JsonStore(folder.with_name("documents")) as store:
        store.set("state", "a", 1)
    rows = call(capsys, "state", "list", folder.with_name("documents")).out.splitlines()
    assert rows[1].split()[0] == "state"


def test_each_damage_is_named_once_and_put_right(folder: Path, capsys: Capture) -> None:
    """As opening the store does; what nothing says any more is told as lost."""
    break_file(folder / "state.json")
    was = break_file(folder / "tasks" / "a.json")
    (folder / "tasks" / "b%2Fc.json").chmod(0o644)
    (folder / "tasks" / "x:y.json").write_text("{}")
    (folder / "tasks" / "new.json").write_text("{")
    [log] = (folder / "logs").iterdir()
    log.chmod(0o640)
    (folder / "reports").chmod(0o755)
    done = call(capsys, "state", "check", folder)
    assert done.exit_code == 29
    named = [line.split(":")[0].removeprefix(f"{folder}/") for line in done.out.splitlines()]
    assert sorted(named) == sorted(
        ["logs/session_s.log", "reports", "state.json, line 10", "state.json",
         "tasks/a.json, line 12", "tasks/b%2Fc.json", "tasks/new.json", "tasks/new.json, line 1",
             "tasks/x"]
    )  # fmt: skip
    listed = json.loads(call(capsys, "state", "list", folder, "--json").out)["tasks"]
    assert [each["id"] for each in listed if each["lost"]] == ["new"]
    assert "new   lost" in call(capsys, "state", "list", folder).out
    done = call(capsys, "state", "repair", folder)
    assert done.exit_code == 29 and "the task is lost; moved to new.json.broken-" in done.out
    [aside, other] = sorted((folder / "tasks").glob("*.json.broken-*"))
    assert aside.read_bytes() == was and other.stat().st_mode & 0o777 == 0o600
    assert call(capsys, "state", "check", folder).out == (
        f"{folder}/tasks/x:y.json: no task is called so\n"
    )
    with opened(folder) as store:
        assert statuses(store) == {"a": "completed", "b/c": "failed"}
        assert [session.id for session in store.state().sessions] == ["s"]


def test_a_task_that_state_json_has_is_no_loss(folder: Path, capsys: Capture) -> None:
    """The repair says where it came from, and ends well."""
    break_file(folder / "tasks" / "a.json")
    done = call(capsys, "state", "repair", folder, "--json")
    assert done.exit_code == 0
    [repair] = json.loads(done.out)["repairs"]
    assert repair["source"] == str(folder / "state.json")
    assert Path(repair["aside"]).exists()
    assert call(capsys, "state", "check", folder).exit_code == 0


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_repair_loses_nothing_more(folder: Path, tmp_path: Path) -> None:
    """The next repair comes to the end, and each broken file lies aside."""
    break_file(folder / "state.json")
    was = break_file(folder / "tasks" / "a.json")
    (folder / "tasks" / "b%2Fc.json").chmod(0o644)
    first = tmp_path / "first"
    shutil.copytree(folder, first)

    def work(_acknowledge: Acknowledge) -> None:
        repair_tasks(folder)

    for killed in each_kill(work):
        repair_tasks(folder)
        assert check_tasks(folder) == [], killed
        assert was in [path.read_bytes() for path in (folder / "tasks").glob("a.json.*")], killed
        with opened(folder) as store:
            assert statuses(store) == {"a": "completed", "b/c": "failed"}, killed
        shutil.rmtree(folder)
        shutil.copytree(first, folder)


def test_a_report_or_a_backup_that_is_broken_is_named(folder: Path, capsys: Capture) -> None:
    """A report is moved aside; a backup is one of ten, and stays."""
    break_file(folder / "reports" / "report_r.json")
    backup = max(folder.glob("state.backup.*"))
    break_file(backup)
    assert len(call(capsys, "state", "check", folder).out.splitlines()) == 2
    done = call(capsys, "state", "repair", folder)
    assert done.exit_code == 29 and "report_r.json.broken-" in done.out
    assert call(capsys, "state", "check", folder).out.startswith(f"{backup}, line ")

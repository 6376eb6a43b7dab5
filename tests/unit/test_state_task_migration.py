from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import NotInStore, StateDamaged, StoreLocked
from statefs.state import Task, WorkSession, rollback_migration
from statefs.state.audit import read_actions
from statefs.state.task_checking import check_tasks, repair_tasks
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.engine_store import SteppingClock
from tests.unit.test_state_task_recovery import break_file, refuse
from tests.unit.test_state_tasks import opened, statuses


def depth_in_metres(task: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had feet."""
    task["data"]["metres"] = task["data"].pop("feet") * 0.3
    return task


def renamed(task: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had no titles."""
    return task | {"title": task["id"].upper()}


NEW = {"version": 3, "migrations": {1: depth_in_metres, 2: renamed}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of version 1 with three tasks and a session."""
    folder = tmp_path / "work"
    with opened(folder) as store:
        for id_ in ("a", "b", "c"):
            store.save_task(Task(id=id_, data={"feet": 10}))
        store.save_session(WorkSession(id="s"))
    return folder


def versions(folder: Path) -> dict[str, int]:
    """Return the version of state.json and of each task's file."""
    paths = [folder / "state.json", *(folder / "tasks").glob("*.json")]
    return {path.stem: json.loads(path.read_text())["version"] for path in paths}


def contents(folder: Path) -> dict[str, str]:
    """Return what is in state.json and in each task's file, by their paths."""
    paths = [folder / "state.json", *(folder / "tasks").glob("*.json")]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_older_tasks_are_brought_up_to_date_and_what_they_were_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In all files; the audit log says from what to what, and where the old ones are."""
    before = contents(folder)
    with caplog.at_level(logging.INFO), opened(folder, **NEW) as store:
        assert [(task.title, task.data) for task in store.load_tasks()] == [
            (id_, {"metres": 3.0}) for id_ in ("A", "B", "C")]  # fmt: skip
        assert [session.id for session in store.state().sessions] == ["s"]
    assert "4 files brought to version 3" in caplog.text
    assert set(versions(folder).values()) == {3}
    [(begun, outcome, _)] = read_actions(folder / ".audit.log")
    assert (begun.what, outcome) == ("migrate", "done")
    kept = begun.details.pop("kept")
    assert begun.details == {"from": [1], "to": 3, "files": 4}
    assert contents(folder / kept) == before
    with opened(folder, **NEW) as store:
        assert len(read_actions(folder / ".audit.log")) == 1


def test_who_only_reads_migrates_in_memory(folder: Path) -> None:
    """The files stay as they are."""
    before = contents(folder)
    with opened(folder, read_only=True, **NEW) as store:
        assert store.task("a").data == {"metres": 3.0}
    assert contents(folder) == before and set(versions(folder).values()) == {1}


def test_a_migration_that_cannot_be_done_changes_nothing(folder: Path) -> None:
    """Its own error comes out, or that nothing leads from a version; the old program goes on."""
    before = contents(folder)
    with pytest.raises(KeyError, match="metre"):
        opened(folder, version=2, migrations={1: lambda task: {"x": task["data"]["metre"]}})
    with pytest.raises(StateDamaged, match="has version 1, from which nothing leads on"):
        opened(folder, version=2)
    assert contents(folder) == before and not (folder / "backups").exists()
    with opened(folder) as store:
        assert statuses(store).keys() == {"a", "b", "c"}


def opened_again(folder: Path, **options: Any) -> None:
    """Open a folder and close it."""
    opened(folder, **options).shutdown()


@pytest.mark.parametrize("name", ["b.json", "state.json"])
def test_a_migration_that_the_disk_refuses_is_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All files are as they were, and the audit log says that it failed; the next one succeeds."""
    before = contents(folder)
    with monkeypatch.context() as patch:
        refuse(patch, name)
        with pytest.raises(OSError, match="No space left"):
            opened(folder, **NEW)
    assert contents(folder) == before
    assert [each.outcome for each in read_actions(folder / ".audit.log")] == ["failed"]
    with pytest.raises(NotInStore, match="no migration"):
        rollback_migration(folder)
    opened_again(folder)
    opened_again(folder, **NEW)
    assert set(versions(folder).values()) == {3}


def test_a_migration_can_be_rolled_back(folder: Path) -> None:
    """The old program finds what it left; what was done since lies aside."""
    before = contents(folder)
    with opened(folder, **NEW) as store:
        store.save_task(Task(id="state", data={}))
        store.delete_task("b")
        with pytest.raises(StoreLocked):
            rollback_migration(folder)
    after = contents(folder)
    done = rollback_migration(folder)
    assert contents(folder) == before and done.restored == 4
    assert contents(done.aside) == after
    with opened(folder) as store:
        assert statuses(store).keys() == {"a", "b", "c"} and store.recovery.losses == []
    with pytest.raises(NotInStore, match="no migration"):
        rollback_migration(folder)
    with pytest.raises(NotInStore, match="no folder"):
        rollback_migration(folder / "no")
    opened_again(folder, **NEW)
    assert versions(folder)["b"] == 3


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_migration_or_a_rollback(folder: Path, tmp_path: Path) -> None:
    """The next opening comes to the end of the one, the next rollback to that of the other."""
    first = tmp_path / "first"
    shutil.copytree(folder, first)
    before = contents(folder)

    def work(acknowledge: Acknowledge) -> None:
        opened_again(folder, **NEW)
        acknowledge("migrated")
        rollback_migration(folder)
        acknowledge("rolled back")

    for killed in each_kill(work):
        with opened(folder, **NEW) as store:
            tasks = store.load_tasks()
            assert [(task.title, task.data) for task in tasks] == [
                (id_, {"metres": 3.0}) for id_ in ("A", "B", "C")], killed  # fmt: skip
            assert store.recovery.losses == [], killed
        if not killed.acknowledged:
            rollback_migration(folder)
            assert contents(folder) == before, killed
        shutil.rmtree(folder)
        shutil.copytree(first, folder)
    opened_again(folder, **NEW)
    rollback_migration(folder)
    assert contents(folder) == before


def test_a_repair_without_the_program_keeps_each_version(folder: Path) -> None:
    """Of a migration that was cut short: whoever knows the versions can still go on with it."""
    opened_again(folder, **NEW)
    old = next((folder / "backups").glob("before-migration-*"))
    shutil.copy(old / "tasks" / "a.json", folder / "tasks" / "a.json")
    break_file(folder / "tasks" / "b.json")
    assert len(check_tasks(folder)) == 1
    [repair] = repair_tasks(folder, SteppingClock())
    assert repair.source == folder / "state.json" and check_tasks(folder) == []
    assert versions(folder) == {"state": 3, "a": 1, "b": 3, "c": 3}
    with opened(folder, **NEW) as store:
        assert {task.data["metres"] for task in store.load_tasks()} == {3.0}

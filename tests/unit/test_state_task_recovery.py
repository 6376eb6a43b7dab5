from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from statefs.state import StatePersistence, Task, WorkSession
from statefs.state.task_events import TaskEvent, TasksLoaded, TasksSaveFailed
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.harness.small_disks import MIB, loop_disk
from tests.unit.engine_store import SteppingClock
from tests.unit.test_state_tasks import opened, statuses

CUT = -7
"""So many bytes at the end are missing from a broken file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three tasks and a session, of which the newest backup has two tasks."""
    folder = tmp_path / "work"
    with opened(folder, clock=SteppingClock()) as store:
        store.save_task(Task(id="a", status="running"))
        store.save_session(WorkSession(id="s"))
        store.save_task(Task(id="b"))
        store.save_task(Task(id="c", data={"n": 1}))
    return folder


def break_file(path: Path) -> bytes:
    """Cut a file off and return what it is then."""
    path.write_bytes(path.read_bytes()[:CUT])
    return path.read_bytes()


def everything(store: StatePersistence) -> tuple[dict[str, str], list[str]]:
    """Return the tasks' status by id, and the ids of the sessions."""
    return statuses(store), [session.id for session in store.state().sessions]


ALL = ({"a": "running", "b": "pending", "c": "pending"}, ["s"])


@pytest.mark.parametrize("damage", ["broken", "unknown", "missing", "empty"])
def test_the_newest_good_backup_stands_in_for_state_json(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Sessions come from it, all tasks from their files; a backup that is broken is passed over."""
    state = folder / "state.json"
    backups = sorted(folder.glob("state.backup.*"), reverse=True)
    break_file(backups[0])
    if damage == "missing":
        state.unlink()
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "broken":
        break_file(state)
    else:
        state.write_text(state.read_text().replace('"sessions"', '"sesions"'))
    was = state.read_bytes() if state.exists() else None
    with caplog.at_level(logging.WARNING), opened(folder) as store:
        assert everything(store) == ALL
        found = store.recovery
        assert (found.source, found.path) == ("backup", backups[1])
        assert not found.is_partial
    assert f"{backups[0]}, line " in caplog.text and f"{backups[1].name} of 20" in caplog.text
    if damage == "unknown":
        assert f"{state}, line " in caplog.text and "`sesions`" in caplog.text
    asides = [path.read_bytes() for path in folder.glob("state.json.broken-*")]
    assert asides == ([] if was is None else [was])
    with opened(folder) as store:
        assert everything(store) == ALL and store.recovery.losses == []


def test_without_backups_all_is_made_again_from_the_tasks(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sessions are lost then, which is said."""
    events: list[TaskEvent] = []
    for path in folder.glob("state.*"):
        path.unlink()
    with caplog.at_level(logging.WARNING), opened(folder, listeners=[events.append]) as store:
        assert everything(store) == (ALL[0], [])
        assert store.recovery.source == "task files" and store.recovery.is_partial
        assert store.state().metrics.total == 3
    assert "made again from the task files; sessions are not known" in caplog.text
    [loaded] = [event for event in events if isinstance(event, TasksLoaded)]
    assert (loaded.source, loaded.tasks, len(loaded.losses)) == ("task files", 3, 1)


def test_what_cannot_be_read_anywhere_is_lost_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest is there: the task file alone says what was in it, and lies aside."""
    for path in folder.glob("state.*"):
        path.unlink()
    was = break_file(folder / "tasks" / "b.json")
    with caplog.at_level(logging.WARNING), opened(folder) as store:
        assert statuses(store) == {"a": "running", "c": "pending"}
        assert store.recovery.lost == {"b"} and store.recovery.is_partial
    assert f"{folder}/tasks/b.json, line " in caplog.text and "the task is lost" in caplog.text
    [aside] = (folder / "tasks").glob("b.json.broken-*")
    assert aside.read_bytes() == was
    with opened(folder) as store:
        assert store.recovery.losses == [] and len(store.load_tasks()) == 2


@pytest.mark.parametrize("damage", ["broken", "unknown", "another", "missing", "folder"])
def test_a_task_without_a_good_file_is_as_state_json_has_it(folder: Path, damage: str) -> None:
    """Broken, another task's, removed by hand, or all of them."""
    path = folder / "tasks" / "c.json"
    if damage == "broken":
        break_file(path)
    elif damage == "unknown":
        path.write_text(path.read_text().replace('"title"', '"titel"'))
    elif damage == "another":
        path.write_bytes((folder / "tasks" / "b.json").read_bytes())
    elif damage == "missing":
        path.unlink()
    else:
        shutil.rmtree(folder / "tasks")
    with opened(folder) as store:
        assert everything(store) == ALL and store.task("c").data == {"n": 1}
        losses = store.recovery.losses
        assert len(losses) == (3 if damage == "folder" else 1)
        assert all("the task is as state.json has it" in loss.message for loss in losses)
        assert store.recovery.source == "state.json" and not store.recovery.is_partial
        if damage == "unknown":
            assert "c.json, line 4: object contains unknown field `titel`" in losses[0].message
    assert path.exists()
    with opened(folder) as store:
        assert store.recovery.losses == [] and store.task("c").data == {"n": 1}


def test_a_task_that_only_an_old_backup_knows_may_have_been_deleted(folder: Path) -> None:
    """It does not come back, which is said; without any task's file the backup is believed."""
    with opened(folder) as store:
        store.delete_task("a")
    break_file(folder / "state.json")
    with opened(folder) as store:
        assert statuses(store) == {"b": "pending", "c": "pending"}
        assert any(
            "is left out" in loss.message and loss.path.name == "a.json"
            for loss in store.recovery.losses
        )
    break_file(folder / "state.json")
    shutil.rmtree(folder / "tasks")
    with opened(folder) as store:
        assert {"b", "c"} <= statuses(store).keys()


def test_a_task_file_that_is_newer_than_state_json_counts(folder: Path) -> None:
    """What another program has put there by renaming, too."""
    path = folder / "tasks" / "b.json"
    path.write_text(path.read_text().replace('"pending"', '"cancelled"'))
    with opened(folder) as store:
        assert store.task("b").status == "cancelled" and store.recovery.losses == []
    assert '"cancelled"' in (folder / "state.json").read_text()


def test_who_only_reads_repairs_nothing(folder: Path) -> None:
    """It sees what can be seen, and every file stays as it is."""
    break_file(folder / "state.json")
    break_file(folder / "tasks" / "c.json")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with opened(folder, read_only=True) as store:
        assert store.recovery.source == "backup" and store.recovery.lost == {"c"}
        assert everything(store) == ({"a": "running", "b": "pending"}, ["s"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_link_in_place_of_a_file_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Whoever put it there would have it read, and written over."""
    (tmp_path / "other").write_bytes((folder / "state.json").read_bytes())
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic link"):
        opened(folder)


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_recovery_loses_nothing_more(
    folder: Path, tmp_path: Path
) -> None:
    """state.json and a task are broken: whenever it dies, the next recovery finds as much."""
    break_file(folder / "state.json")
    broken = break_file(folder / "tasks" / "b.json")
    first = tmp_path / "first"
    shutil.copytree(folder, first)

    def work(_acknowledge: Acknowledge) -> None:
        opened(folder).shutdown()

    for killed in each_kill(work):
        with opened(folder) as store:
            assert everything(store) == ALL, killed
        asides = {path.read_bytes() for path in (folder / "tasks").glob("b.json.broken-*")}
        assert asides == {broken}, killed
        shutil.rmtree(folder)
        shutil.copytree(first, folder)


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have a full disk refuse one file of that name."""
    original = os.open

    def refusing(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).name == f".{name}.new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path, *args, **options)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("name", ["a.json", "state.json"])
def test_a_save_that_fails_is_told_and_made_up_for_by_autosave(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of the two files it is: the task is in memory, and then on the disk."""
    events: list[TaskEvent] = []
    with opened(folder, listeners=[events.append]) as store:
        task = store.task("a")
        task.status = "completed"
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            refuse(patch, name)
            with pytest.raises(OSError, match="No space left"):
                store.save_task(task)
            if name == "state.json":
                with pytest.raises(OSError, match="No space left"):
                    store.save_session(WorkSession(id="new"))
            assert store.autosave() is False
            assert store.load_state().task("a").status == "completed"
            sessions = [session.id for session in store.state().sessions]
            assert sessions == (["s", "new"] if name == "state.json" else ["s"])
            assert any("the last one failed" in alert for alert in store.alerts())
        assert "what is unsaved stays in memory" in caplog.text
        failed = [event for event in events if isinstance(event, TasksSaveFailed)]
        assert len(failed) >= 2 and "No space left" in failed[0].error
        assert store.autosave() is True
        assert [alert.partition(":")[0] for alert in store.alerts()] == ["saves"]
        assert '"completed"' in (folder / "tasks" / "a.json").read_text()
        assert '"completed"' in (folder / "state.json").read_text()


def fill(path: Path) -> None:
    """Write to a file until its disk is full."""
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_a_full_disk_costs_nothing_once_it_has_room_again(tmp_path: Path) -> None:
    """A real one: what did not fit is in memory, what did is as it was, then all is there."""
    with loop_disk(tmp_path, 8 * MIB, "mkfs.ext4", "-q", "-F") as disk:
        folder = disk / "work"
        with opened(folder) as store:
            store.save_task(Task(id="first"))
            ballast = disk / "ballast"
            fill(ballast)
            with pytest.raises(OSError) as refused:
                store.save_task(Task(id="second", data={"text": "x" * 9000}))
            assert refused.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="No space left"):
                store.shutdown()
            assert statuses(store) == {"first": "pending", "second": "pending"}
            assert any(alert.startswith("disk: ") for alert in store.alerts())
            with opened(folder, read_only=True) as reader:
                assert statuses(reader) == {"first": "pending"} and reader.recovery.losses == []
            ballast.unlink()
            os.sync()
        with opened(folder) as store:
            assert statuses(store) == {"first": "pending", "second": "pending"}
            assert store.recovery.losses == []

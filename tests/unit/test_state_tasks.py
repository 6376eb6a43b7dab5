from __future__ import annotations

import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import NewerStore, NotInStore, StoreLocked, UsageError
from statefs.state import StatePersistence, Task, TaskMetrics, WorkSession
from statefs.state.task_documents import TaskStatus
from statefs.state.task_events import TaskEvent, TasksLoaded, TasksSaved
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.unit.engine_store import SteppingClock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where tasks will be."""
    return tmp_path / "work"


def opened(folder: Path, **options: Any) -> StatePersistence:
    """Open a folder without autosave."""
    return StatePersistence(folder, **{"autosave_seconds": 0, **options})


def statuses(store: StatePersistence) -> dict[str, str]:
    """Return the status of each task in memory."""
    return {task.id: task.status for task in store.state().tasks}


def in_state_json(folder: Path) -> dict[str, Any]:
    """Return what state.json says."""
    document: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return document


def test_tasks_sessions_and_metrics_come_back(folder: Path) -> None:
    """In the next process, as they were saved, with their times."""
    with opened(folder, clock=SteppingClock()) as store:
        first = Task(id="first", title="dig", data={"depth": [1, None, "ü"]})
        store.save_task(first)
        assert first.created_at is not None and first.created_at.tzinfo is UTC
        assert (first.started_at, first.ended_at) == (None, None)
        first.status = "running"
        store.save_task(first)
        first.status, first.result = "completed", {"found": "nothing"}
        store.save_task(first)
        store.save_task(Task(id="second", status="failed", error="a stone"))
        store.save_task(Task(id="third"))
        session = WorkSession(id="s", data={"worker": 1})
        store.save_session(session)
        expected = store.state()
    assert first.started_at is not None and first.ended_at is not None
    took = (first.ended_at - first.started_at).total_seconds()
    assert took > 0
    assert expected.metrics == TaskMetrics(3, 1, 1, took)
    with opened(folder) as store:
        assert store.state() == expected
        assert store.load_state() == expected
        assert store.load_tasks() == expected.tasks
        assert store.task("first") == first == expected.task("first")
        assert store.state().sessions == [session]
    document = in_state_json(folder)
    assert list(document) == ["version", "tasks", "sessions", "metrics", "last_saved"]
    assert document["metrics"] == {
        "total": 3, "completed": 1, "failed": 1, "average_completion_seconds": took}  # fmt: skip
    assert datetime.fromisoformat(document["last_saved"]) == expected.last_saved
    assert json.loads((folder / "tasks" / "first.json").read_text()) == document["tasks"][0]


def test_a_task_that_runs_again_has_no_end(folder: Path) -> None:
    """And one that goes back to the beginning has no start either."""
    with opened(folder) as store:
        task = Task(id="a")
        times = []
        again: list[TaskStatus] = ["failed", "running", "pending"]
        for status in again:
            task.status = status
            store.save_task(task)
            times.append((task.started_at is not None, task.ended_at is not None))
        assert times == [(False, True), (True, False), (False, False)]
        another = Task(id="a", status="running")
        store.save_task(another)
        assert another.created_at == task.created_at
        ended = Task(id="a", status="completed")
        store.save_task(ended)
        assert ended.started_at == another.started_at


def test_what_the_store_keeps_is_not_the_callers_object(folder: Path) -> None:
    """Whoever changes his task after saving it changes nothing in the store; nor does a reader."""
    with opened(folder) as store:
        task = Task(id="a", data={"n": 1})
        store.save_task(task)
        task.data["n"] = 2
        store.task("a").data["n"] = 3
        store.state().tasks[0].data["n"] = 4
        assert store.task("a").data == {"n": 1}


def test_logs_and_reports_come_back(folder: Path) -> None:
    """Each is a file of its own, replaced whole."""
    with opened(folder) as store:
        store.save_session_log("s/1", "one\n")
        store.save_session_log("s/1", "one\ntwö\n")
        store.save_report("r", {"all": [1, 2]})
        assert store.load_session_log("s/1") == "one\ntwö\n"
        assert store.load_report("r").report == {"all": [1, 2]}
        for ask in (store.load_report, store.load_session_log):
            with pytest.raises(NotInStore, match="'x'"):
                ask("x")
    assert (folder / "logs" / "session_s%2F1.log").read_text() == "one\ntwö\n"
    report = json.loads((folder / "reports" / "report_r.json").read_text())
    assert list(report) == ["version", "id", "saved_at", "report"]


def test_what_cannot_be_saved_is_refused_and_changes_nothing(folder: Path) -> None:
    """Values of wrong types, ids, a closed store, one to read."""
    with opened(folder) as store:
        store.save_task(Task(id="a"))
        before = store.state()
        wrong: list[Task] = [
            Task(id=""), Task(id="\udcff"), Task(id="x" * 300),
            Task(id="b", data={"x": object()}),
            Task(id="b", status="done"),  # type: ignore[arg-type]
            Task(id="b", created_at=datetime(2026, 1, 1)),  # noqa: DTZ001
        ]  # fmt: skip
        for task in wrong:
            with pytest.raises(UsageError):
                store.save_task(task)
        with pytest.raises(UsageError, match="the report 'r' cannot be saved"):
            store.save_report("r", {1: object()})
        with pytest.raises(UsageError, match="not UTF-8"):
            store.save_session_log("s", "\udcff")
        with pytest.raises(NotInStore, match="no task 'b'"):
            store.delete_task("b")
        with pytest.raises(NotInStore, match="no task 'b'"):
            store.task("b")
        with pytest.raises(NotInStore, match="no task 'b'"):
            before.task("b")
        assert store.state() == before == store.load_state()
        with pytest.raises(StoreLocked):
            opened(folder)
        with opened(folder, read_only=True) as reader:
            assert reader.state() == before
            for change in (reader.save_state, lambda: reader.save_task(Task(id="c"))):
                with pytest.raises(UsageError, match="read only"):
                    change()
            store.save_task(Task(id="c"))
            assert [task.id for task in reader.load_tasks()] == ["a", "c"]
    with pytest.raises(UsageError, match="closed"):
        store.state()
    store.shutdown()
    with pytest.raises(NotInStore, match="no folder"):
        opened(folder / "no", read_only=True)


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("a/b", "a%2Fb"), ("..", "%2E%2E"), ("../up", "%2E%2E%2Fup"), ("a\\b:c*d", "a%5Cb%3Ac%2Ad"),
        ('?"<>|', "%3F%22%3C%3E%7C"), (".x", "%2Ex"), ("naïve id", "naïve id"),
    ],
)  # fmt: skip
def test_ids_are_made_into_names_of_files(folder: Path, task_id: str, name: str) -> None:
    """None leads out of its folder, and each comes back."""
    with opened(folder) as store:
        store.save_task(Task(id=task_id))
        store.save_session_log(task_id, "x")
        store.save_report(task_id, None)
    assert os.listdir(folder / "tasks") == [f"{name}.json"]
    assert os.listdir(folder / "logs") == [f"session_{name}.log"]
    assert os.listdir(folder / "reports") == [f"report_{name}.json"]
    with opened(folder) as store:
        assert statuses(store) == {task_id: "pending"}
        store.delete_task(task_id)
        assert os.listdir(folder / "tasks") == []


def test_the_folder_is_named_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STATE_PATH counts where none is given; without both there is no guess."""
    monkeypatch.setenv("STATE_PATH", str(folder))
    with StatePersistence(autosave_seconds=0) as store:
        assert store.folder == folder
    monkeypatch.delenv("STATE_PATH")
    with pytest.raises(UsageError, match="set STATE_PATH"):
        StatePersistence()


def test_all_is_for_its_owner_alone(folder: Path) -> None:
    """Files 0600, folders 0700, under any umask."""
    old = os.umask(0)
    try:
        with opened(folder) as store:
            store.save_task(Task(id="a"))
            store.save_state()
            store.save_session_log("s", "x")
            store.save_report("r", 1)
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in places} == {0o700}


def test_the_last_ten_states_are_kept_and_no_bytes_are_copied(folder: Path) -> None:
    """Before each overwrite; the newest is what the file was before the last one."""
    with opened(folder, clock=SteppingClock()) as store:
        for number in range(14):
            before = (folder / "state.json").read_bytes(), (folder / "state.json").stat().st_ino
            store.save_task(Task(id=f"t{number}"))
    backups = sorted(folder.glob("state.backup.*.json"))
    assert len(backups) == 10
    assert (backups[-1].read_bytes(), backups[-1].stat().st_ino) == before
    assert len(json.loads(backups[0].read_text())["tasks"]) == 4


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_many_tasks_do_not_write_all_of_them_each_time(folder: Path) -> None:
    """state.json is some changes late then; a process that ends before it is written loses none."""
    saved: list[TaskEvent] = []
    store = opened(folder)
    for number in range(300):
        store.save_task(Task(id=f"t{number}"))
    while len(in_state_json(folder)["tasks"]) == len(store.state().tasks):
        number += 1
        assert number < 310, "the file is written for each task"
        store.save_task(Task(id=f"t{number}"))
    store.delete_task("t7")
    expected = statuses(store)
    assert store._lock is not None
    store._lock.release()  # as a kill does
    with opened(folder, listeners=[saved.append]) as store:
        assert statuses(store) == expected and store.recovery.losses == []
        assert len(in_state_json(folder)["tasks"]) == len(expected) == number
        assert [path.name for path in (folder / "tasks").glob(".*")] == []
    kinds = [type(event) for event in saved]
    assert kinds == [TasksSaved, TasksLoaded]


def test_threads_share_a_store(folder: Path) -> None:
    """What eight of them save at once is all there, and so are the sums."""
    with opened(folder) as store:

        def work(number: int) -> None:
            for step in range(5):
                store.save_task(Task(id=f"{number}-{step}", status="completed"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.state().metrics.completed == 40
    with opened(folder) as store:
        assert len(store.load_tasks()) == 40


def test_a_newer_program_is_not_written_over(folder: Path) -> None:
    """Neither its state.json nor its tasks are touched."""
    with opened(folder, version=2) as store:
        store.save_task(Task(id="a"))
    before = (folder / "state.json").read_bytes()
    with pytest.raises(NewerStore, match="has version 2"):
        opened(folder)
    (folder / "state.json").unlink()
    with pytest.raises(NewerStore, match=r"has version 2"):
        opened(folder)
    assert b'"version": 2' in before
    with opened(folder, version=2) as store:
        assert statuses(store) == {"a": "pending"}


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_leaves_what_was_acknowledged_or_one_step_on(folder: Path) -> None:
    """Whichever write it is: nothing is reported as lost, and state.json agrees with the tasks."""

    def work(acknowledge: Acknowledge) -> None:
        with opened(folder) as store:
            task = Task(id="a")
            store.save_task(task)
            acknowledge("made")
            task.status = "completed"
            store.update_task(task)
            acknowledge("done")
            store.save_session(WorkSession(id="s"))
            acknowledge("session")
            store.save_session_log("s", "all of the log")
            acknowledge("log")
            store.save_report("r", ["all", "of it"])
            acknowledge("report")
            store.delete_task("a")
            acknowledge("deleted")

    def seen(store: StatePersistence) -> tuple[str, int, str, Any]:
        log, report = folder / "logs" / "session_s.log", folder / "reports" / "report_r.json"
        return (
            statuses(store).get("a", ""),
            len(store.state().sessions),
            store.load_session_log("s") if log.exists() else "",
            store.load_report("r").report if report.exists() else None,
        )

    log, report = "all of the log", ["all", "of it"]
    steps = ["", "made", "done", "session", "log", "report", "deleted"]
    states: list[tuple[str, int, str, Any]] = [
        ("", 0, "", None), ("pending", 0, "", None), ("completed", 0, "", None),
        ("completed", 1, "", None), ("completed", 1, log, None), ("completed", 1, log, report),
        ("", 1, log, report),
    ]  # fmt: skip
    kills = 0
    for killed in each_kill(work):
        kills += 1
        done = steps.index(killed.acknowledged[-1]) if killed.acknowledged else 0
        with opened(folder) as store:
            assert seen(store) in states[done : done + 2], killed
            assert store.recovery.losses == [], killed
            document = in_state_json(folder)
            assert {each["id"]: each["status"] for each in document["tasks"]} == statuses(store)
            assert document["metrics"]["total"] == len(statuses(store))
        shutil.rmtree(folder)
    assert kills > 60

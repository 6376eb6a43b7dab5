from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec
import pytest

from statefs.state import Task, TaskLimits
from statefs.state.task_events import AlertsChanged, TaskEvent, TasksSaveFailed
from tests.unit.test_state_task_recovery import refuse
from tests.unit.test_state_tasks import opened


def test_events_have_the_names_that_programs_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON, each with its time: a load, saves, one that fails, and autosave."""
    events: list[TaskEvent] = []
    with opened(tmp_path / "work", listeners=[events.append]) as store:
        with monkeypatch.context() as patch:
            refuse(patch, "a.json")
            with pytest.raises(OSError, match="No space left"):
                store.save_task(Task(id="a"))
        store.autosave()
    told = [msgspec.to_builtins(event) for event in events]
    assert [each["event"] for each in told] == [
        "state:saved", "state:loaded", "state:save-error", "autosave:triggered", "state:saved",
        "state:alerts",
    ]  # fmt: skip
    assert all(each["time"].endswith("Z") for each in told)


def test_a_listener_that_raises_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the save and the other listeners go on."""
    events: list[TaskEvent] = []

    def broken(_event: TaskEvent) -> None:
        raise ValueError("no")

    with opened(tmp_path / "work", listeners=[broken]) as store:
        store.listen(events.append)
        with caplog.at_level(logging.ERROR):
            store.save_task(Task(id="a"))
        assert store.task("a").id == "a" and len(events) == 1
    assert "a listener failed at TasksSaved" in caplog.text


def test_alerts_are_told_and_logged_when_they_come_and_when_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not each time that autosave looks; figures say how many saves failed."""
    events: list[TaskEvent] = []
    limits = TaskLimits(min_free_bytes=0, max_failure_rate=0)
    with opened(tmp_path / "work", limits=limits, listeners=[events.append]) as store:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            refuse(patch, "a.json")
            with pytest.raises(OSError, match="No space left"):
                store.save_task(Task(id="a"))
            for _ in range(3):
                store.autosave()
        assert len([each for each in events if isinstance(each, TasksSaveFailed)]) == 4
        store.autosave()
        told = [each.alerts for each in events if isinstance(each, AlertsChanged)]
        assert len(told) == 2 and told[1] == () and "the last one failed" in told[0][0]
        metrics = store.metrics()
        assert (metrics.saves, metrics.save_failures) == (2, 4)
        assert metrics.failure_rate == pytest.approx(4 / 6)
        assert metrics.last_save_seconds is not None and metrics.load_seconds > 0
        assert metrics.disk_bytes > 0
    assert caplog.text.count("last save: ") == 1


def test_health_names_what_is_wrong_with_the_folder(tmp_path: Path) -> None:
    """Five checks in one order; a disk that is too small, and a folder that is gone."""
    folder = tmp_path / "work"
    with opened(folder, limits=TaskLimits(min_free_bytes=1 << 62)) as store:
        store.save_task(Task(id="a"))
        checks = store.health()
        assert [(each.check, each.ok) for each in checks] == [
            ("directory", True), ("writable", True), ("disk", False), ("last save", True),
            ("backups", True),
        ]  # fmt: skip
        [alert] = store.alerts()
        assert alert.startswith("disk: ") and alert.endswith(" free")
        shutil.rmtree(folder)
        assert [each.check for each in store.health() if not each.ok] == [
            "directory", "writable", "disk", "backups"]  # fmt: skip

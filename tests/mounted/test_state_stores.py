from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import SnapshotExists
from statefs.state import (
    DocumentType,
    JsonStore,
    SessionStore,
    StatePersistence,
    Task,
    WorkSession,
    rollback_migration,
)
from statefs.state.checking import repair_documents
from statefs.state.session_store_checking import check_store
from statefs.state.session_store_repair import repair_store
from statefs.state.snapshots import mounted_folder
from statefs.state.task_backups import SNAPSHOT_SECONDS


class FixedClock:
    """A clock that a test sets."""

    time_ns = 1_700_000_000 * 10**9

    def now_ns(self) -> int:
        """Return what the test has set."""
        return self.time_ns


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs in docs/examples/."""
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *words], capture_output=True, text=True
    )


def test_in_a_mounted_state_snapshots_stand_for_copies(state: Path) -> None:
    """No backups/; a migration takes a snapshot; a repair names the snapshots that have it."""
    folder = state / "current" / "files" / "shop"
    with JsonStore(folder) as store:
        store.set("settings", "colour", "dark")
    mounted = mounted_folder(folder)
    assert mounted is not None and str(mounted.place) == "files/shop"
    mounted.take_snapshot("good")
    types = {"settings": DocumentType(version=2, migrations={1: lambda document: document})}
    with JsonStore(folder, types) as store:
        assert store.get("settings", "colour") == "dark"
    assert sorted(os.listdir(folder)) == [".lock", "settings.json"]
    labels = [each for each in os.listdir(state / "snapshots") if each.startswith("before-")]
    assert len(labels) == 1
    path = folder / "settings.json"
    path.write_text("{")
    mounted.take_snapshot("broken")
    [repair] = repair_documents(folder)
    assert repair.source is None and len(repair.snapshots) == 2
    versions = [json.loads(each.read_text())["version"] for each in repair.snapshots]
    assert versions == [1, 1]
    assert repair.snapshots[0].parent.parent.parent.parent == state / "snapshots"


def test_in_a_mounted_state_a_snapshot_stands_for_backups_of_tasks(state: Path) -> None:
    """One for a process and five minutes, ten at most; state.json is recovered from the newest."""
    folder = state / "current" / "files" / "shop"
    clock = FixedClock()

    def labels() -> list[str]:
        return sorted(each for each in os.listdir(state / "snapshots") if each.startswith("tasks-"))

    with StatePersistence(folder, autosave_seconds=0, clock=clock) as store:
        for number in range(3):
            store.save_session(WorkSession(id=f"s{number}"))
        assert len(labels()) == 1
        for number in range(12):
            clock.time_ns += SNAPSHOT_SECONDS * 10**9
            store.save_task(Task(id=f"t{number}"))
        assert len(labels()) == store.metrics().backups == 10
        assert all(check.ok for check in store.health())
    assert list(folder.glob("state.backup.*")) == []
    (folder / "state.json").write_text("{")
    with StatePersistence(folder, autosave_seconds=0, clock=clock) as store:
        assert len(store.state().tasks) == 12 and len(store.state().sessions) == 3
        assert store.recovery.source == "backup" and not store.recovery.is_partial
        assert store.recovery.path is not None
        assert store.recovery.path.is_relative_to(state / "snapshots")


def test_in_a_mounted_state_a_migration_of_tasks_is_rolled_back_from_its_snapshot(
    state: Path,
) -> None:
    """It was taken before the first file was replaced."""
    folder = state / "current" / "files" / "shop"
    with StatePersistence(folder, autosave_seconds=0) as store:
        store.save_task(Task(id="a", data={"n": 1}))
    before = (folder / "tasks" / "a.json").read_bytes()
    newer: dict[str, Any] = {"version": 2, "migrations": {1: lambda task: {**task, "title": "new"}}}
    with StatePersistence(folder, autosave_seconds=0, **newer) as store:
        assert store.task("a").title == "new"
    done = rollback_migration(folder)
    assert done.source.is_relative_to(state / "snapshots") and done.restored == 2
    assert (folder / "tasks" / "a.json").read_bytes() == before
    with StatePersistence(folder, autosave_seconds=0) as store:
        assert store.task("a").data == {"n": 1} and store.recovery.losses == []


@pytest.mark.parametrize("place", ["disk", "mount"])
def test_the_example_of_a_work_list_works(request: pytest.FixtureRequest, place: str) -> None:
    """On a disk and in a mount: it adds, works, and takes up what a kill has left running."""
    if place == "disk":
        folder = request.getfixturevalue("tmp_path") / "work"
    else:
        folder = request.getfixturevalue("state") / "current" / "files" / "work"
    assert example("work_list", folder, "count moths").stdout == "pending: count moths\n"
    assert example("work_list", folder, "--work").stdout == "completed: count moths\n"
    with StatePersistence(folder, autosave_seconds=0) as store:
        store.save_task(Task(id="left", title="left", status="running", data={"step": 2}))
    assert "running: left" in example("work_list", folder).stdout
    assert "completed: left" in example("work_list", folder, "--work").stdout
    with StatePersistence(folder, autosave_seconds=0) as store:
        assert store.task("left").result == "left: done in 3 steps"
        [_, session] = store.state().sessions
        assert store.load_session_log(session.id) == "left: left: done in 3 steps\n"
        with open(folder / "tasks" / "left.json", "a") as file:
            file.write("x")
    assert "left.json, line " in example("work_list", folder).stderr
    assert example("work_list", folder, "x" * 3).returncode == 0


@pytest.mark.parametrize("place", ["disk", "mount"])
def test_the_example_of_settings_works(request: pytest.FixtureRequest, place: str) -> None:
    """On a disk and in a mount: it sets, refuses what its type does not hold, and migrates."""
    if place == "disk":
        folder = request.getfixturevalue("tmp_path") / "shop"
    else:
        folder = request.getfixturevalue("state") / "current" / "files" / "shop"
    assert json.loads(example("settings", folder, "theme", "dark").stdout) == {
        "theme": "dark", "font_size": 12}  # fmt: skip
    refused = example("settings", folder, "font_size", "big")
    assert refused.returncode == 1
    assert "expected `int`, got `str`" in refused.stderr and "Traceback" not in refused.stderr
    (folder / "settings.json").write_text('{"version": 1, "values": {"colour": "blue"}}')
    assert json.loads(example("settings", folder).stdout) == {"theme": "blue", "font_size": 12}


def test_a_session_in_a_mounted_state_has_snapshots_in_place_of_copies(state: Path) -> None:
    """One file for each slot; a label has the whole state saved; a repair brings back each byte."""
    folder = state / "current" / "files" / "agent"
    store = SessionStore(folder, "coder")
    session = store.create("one")
    session.append("a")
    (state / "current" / "files" / "work").write_text("draft")
    session.snapshot({"seen": "a"}, reason="before deploy", label="before-deploy")
    saved = state / "snapshots" / "before-deploy" / "files"
    assert (saved / "work").read_text() == "draft"
    session.append("b")
    with pytest.raises(SnapshotExists):
        session.snapshot({"seen": "?"}, label="before-deploy")
    session.snapshot({"seen": "ab"})
    session.append("c")
    place = session.folder
    assert os.listdir(place / "state") == ["seen.3"]
    mounted = mounted_folder(place)
    assert mounted is not None
    mounted.take_snapshot("later")
    session.append("d")
    session.let_go()

    manifest = (place / "manifest.json").read_text()
    assert '"label":"before-deploy"' in manifest
    (place / "state" / "seen.3").write_bytes(b"broken")
    (place / "manifest.json").write_text(manifest.replace("before-deploy", "before-dinner"))
    (place / "journal.log").write_text((place / "journal.log").read_text().replace('"b"', '"x"'))
    repairs = repair_store(folder)
    assert not any(each.lost for each in repairs) and check_store(folder) == []
    assert (place / "manifest.json").read_text() == manifest
    with store.resume("one") as session:
        assert session.recovery.slots == {"seen": "ab"}
        assert [each.value for each in session.recovery.events] == ["c", "d"]
        assert [each.value for each in session.events()] == ["a", "b", "c", "d"]

    before = SessionStore(saved / "agent", "coder").sessions()
    assert [(each.id, each.events) for each in before] == [("one", 1)]


def test_the_example_of_a_resumed_agent_works_in_a_mount(state: Path, tmp_path: Path) -> None:
    """Two turns, each of them a process."""
    folder = state / "current" / "files" / "agent"
    assert example("resumed_agent", folder, tmp_path / "mails", "tidy").returncode == 0
    done = example("resumed_agent", folder, tmp_path / "mails", "tidy")
    assert done.stdout == "step 1 of tidy\nstep 2 of tidy\n"

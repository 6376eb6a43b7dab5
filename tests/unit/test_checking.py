"""Checking a snapshot without a mount: what a check finds, and what is written down of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest

from statefs.config import Retention
from statefs.errors import HookFailed, NotMounted
from statefs.hooks.process import CheckRequest, check_in_process
from statefs.hooks.results import Finding
from statefs.ids import TREE_ROOT
from statefs.maintenance import cloning, steps
from statefs.maintenance.checking import report_of
from statefs.maintenance.host import Unmounted
from statefs.maintenance.steps import Steps
from statefs.snapshots.catalog import Snapshot
from statefs.snapshots.clones import THROW_AWAY
from statefs.snapshots.documents import VolumeManifest
from statefs.snapshots.retention import Candidate, decide
from tests.unit.cli_fakes import FakeBackend, call, make_empty_store
from tests.unit.engine_store import EngineStore
from tests.unit.test_cli_documentation import example_document, shape
from tests.unit.test_pruning import Asker, ask, newest

T = TypeVar("T")
Capture = pytest.CaptureFixture[str]


class Shown(Unmounted):
    """A host whose mount is an ordinary folder."""

    def __init__(self, folder: Path, engine: EngineStore) -> None:
        self._folder = folder
        self._engine = engine

    def mount_point(self) -> Path | None:
        """Return the folder."""
        return self._folder

    def alone(self, operation: Steps[T]) -> T:
        """Do it, and show the clones that there are then."""
        result = super().alone(operation)
        self.list_changed()
        return result

    def list_changed(self) -> None:
        """Show a copy of the snapshot's folder for each clone."""
        shutil.rmtree(self._folder / "clones", ignore_errors=True)
        for each in self._engine.store.clones.listing():
            source = self._folder / "snapshots" / (each.snapshot or "")
            shutil.copytree(source, self._folder / "clones" / os.fsdecode(each.name))
            (self._folder / "clones" / os.fsdecode(each.name) / "metadata.json").unlink()


@pytest.fixture
def snapshot(engine: EngineStore, tmp_path: Path) -> Path:
    """A snapshot with a volume `db`, and a folder that plays its tree."""
    engine.folder("db", engine.names.lookup(TREE_ROOT, b"volumes").ino)
    engine.save()
    engine.store.host = Shown(tmp_path / "state", engine)
    folder = tmp_path / "state" / "snapshots" / newest(engine).name
    (folder / "volumes" / "db").mkdir(parents=True)
    (folder / "metadata.json").write_text("no document of the application's")
    return folder


def make_database(path: Path) -> None:
    """Make a small database."""
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (x)")
    connection.close()


def checked(engine: EngineStore) -> Any:
    """Check the newest snapshot as the API does; return the report."""
    report = ask(engine, "check", snapshot="latest")
    assert engine.store.clones.listing() == []
    changes = {key: report[key] for key in ("outcome", "volumes")}
    ask(engine, "write_down_check", snapshot=report["name"], **changes)
    return report


def test_sound_volumes_are_verified(engine: EngineStore, snapshot: Path) -> None:
    """In the manifest, the label, and the document in the store."""
    make_database(snapshot / "volumes" / "db" / "a")
    report = checked(engine)
    assert (report["outcome"], report["opened"]) == ("verified", {"sqlite": 1})
    now = newest(engine)
    assert [volume.consistency for volume in now.volumes] == ["verified"]
    document = json.loads(engine.store.document_path(now).read_bytes())
    assert document["labels"] == {"consistency": "verified"}


def test_damage_is_written_down_and_a_later_check_replaces_it(
    engine: EngineStore, snapshot: Path
) -> None:
    """Notes of checks do not pile up."""
    bad = snapshot / "volumes" / "db" / "bad.json"
    bad.write_text("{")
    make_database(snapshot / "volumes" / "db" / "a")
    for _ in range(2):
        report = checked(engine)
        assert report["outcome"] == newest(engine).labels["consistency"] == "damaged"
        assert [each["path"] for each in report["findings"]] == [
            "volumes/db/a",
            "volumes/db/bad.json",
        ]
        (volume,) = newest(engine).volumes
        assert volume.consistency == "crash-consistent"
        assert len(volume.notes) == 1 and volume.notes[0].startswith(
            "check: volumes/db/bad.json: not JSON"
        )
    bad.write_text("{}")
    checked(engine)
    (volume,) = newest(engine).volumes
    assert (volume.consistency, volume.notes) == ("verified", [])


def test_nothing_to_open_is_no_outcome(engine: EngineStore, snapshot: Path) -> None:
    """The snapshot has no label then, and its volumes stay as they are."""
    assert snapshot.is_dir()
    assert checked(engine)["outcome"] is None
    assert newest(engine).labels == {}


def test_a_store_that_is_not_mounted_is_refused(engine: EngineStore) -> None:
    """The error says what to do."""
    engine.save()
    with pytest.raises(NotMounted, match="statefs mount"):
        ask(engine, "check", snapshot="latest")


def test_a_check_that_nobody_waits_for_is_given_up(
    engine: EngineStore, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next thing that is opened."""
    (snapshot / "a.json").write_text("{}")
    monkeypatch.setattr(Asker, "is_wanted", False)
    with pytest.raises(HookFailed, match="nobody waits"):
        ask(engine, "check", snapshot="latest")
    assert engine.store.clones.listing() == []


def test_what_a_killed_check_left_goes_with_the_next_open_or_check(
    engine: EngineStore, snapshot: Path
) -> None:
    """A clone of a check under way stays, and so do other people's, whatever they are called."""
    (snapshot / "a.json").write_text("{}")
    for name in (THROW_AWAY + b"killed", b".statefs-mine", b"mine"):
        steps.run(cloning.clone(engine.store, newest(engine), name))
    with cloning.throw_away(engine.store) as name:
        steps.run(cloning.clone(engine.store, newest(engine), name))
        with engine.killed() as again:
            names = {each.name for each in again.store.clones.listing()}
            assert names == {b".statefs-mine", b"mine"}
            again.store.collect()
            assert again.problems() == []
        steps.run(cloning.clone(engine.store, newest(engine), THROW_AWAY + b"killed"))
        checked_names = {each.name for each in engine.store.clones.listing()}
        assert checked_names == {b".statefs-mine", b"mine", name, THROW_AWAY + b"killed"}
        ask(engine, "check", snapshot="latest")
        checked_names = {each.name for each in engine.store.clones.listing()}
        assert checked_names == {b".statefs-mine", b"mine", name}
    assert {each.name for each in engine.store.clones.listing()} == {b".statefs-mine", b"mine"}


@pytest.mark.parametrize(
    ("findings", "outcome", "consistency"),
    [
        ([Finding(path="v/a", kind="json")], "verified", "verified"),
        ([Finding(path="other", kind="json")], "verified", None),
        ([Finding(path="v/a", kind="json", unchecked="large")], "unchecked", "app-consistent"),
        ([Finding(path="v/a", kind="json", problem="bad")], "damaged", "crash-consistent"),
        (
            [
                Finding(path="v/a", kind="json", problem="bad"),
                Finding(path="v/b", kind="json", unchecked="large"),
            ],
            "damaged",
            "crash-consistent",
        ),
    ],
)
def test_outcomes(
    engine: EngineStore, findings: list[Finding], outcome: str, consistency: str | None
) -> None:
    """Damage counts for more than ignorance; a volume without findings is not touched."""
    engine.save()
    volume = VolumeManifest(name="app", path="v", consistency="app-consistent")
    snapshot: Snapshot = newest(engine)._replace(volumes=[volume])
    report = report_of(snapshot, findings)
    assert report.outcome == outcome
    assert [each.consistency for each in report.volumes] == ([consistency] if consistency else [])


def test_the_label_of_a_check_protects_nothing() -> None:
    """Only labels that somebody wished for keep a snapshot from being pruned."""
    day_ns = 86_400 * 1_000_000_000
    labels = [{"consistency": "verified"}, {"consistency": "verified", "name": "v1"}, {}]
    candidates = [
        Candidate(number, number * day_ns, "manual", label) for number, label in enumerate(labels)
    ]
    decisions = decide(candidates, Retention(max_snapshots=1), 9 * day_ns)
    assert [decision.keep for decision in decisions] == [False, True, True]


REPORT = {
    "snapshotId": "1925763d-aad4-4902-b49f-96b7e0a553a6",
    "name": "2026-03-13T12-04-21Z",
    "outcome": "damaged",
    "opened": {"sqlite": 2},
    "findings": [
        {"path": "a.db", "kind": "sqlite", "problem": "malformed", "unchecked": None, "note": None},
        {
            "path": "b.db",
            "kind": "sqlite",
            "problem": None,
            "unchecked": "an extension",
            "note": "opened in a copy",
        },
    ],
    "volumes": [{"name": "bank", "consistency": "verified", "notes": []}],
}


def test_the_command_says_what_is_wrong(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line for each thing that is not sound, a summary, and an exit code of its own."""
    make_empty_store(tmp_path / "state.store")
    backend = FakeBackend()
    backend.install(monkeypatch)
    monkeypatch.setattr(backend, "call", lambda *_: REPORT)
    said = call(capsys, "check", tmp_path / "state", "latest")
    assert said.exit_code == 21
    assert said.out.splitlines() == [
        "damaged: a.db: malformed",
        "not checked: b.db: an extension",
        "note: b.db: opened in a copy",
        "2026-03-13T12-04-21Z: 1 of 2 damaged, 1 of 2 not checked (2 SQLite)",
    ]
    printed = call(capsys, "check", tmp_path / "state", "latest", "--json")
    assert printed.exit_code == 21
    assert shape(json.loads(printed.out)) == shape(
        example_document("check") | {"opened": {"sqlite": 2}}
    )


def test_a_check_that_is_given_up_ends_in_the_middle_of_a_database(tmp_path: Path) -> None:
    """A long integrity check is no reason to wait; nothing is left of the copy."""
    connection = apsw.Connection(str(tmp_path / "a.db"))
    connection.pragma("journal_mode", "off")
    connection.pragma("synchronous", 0)
    connection.pragma("ignore_check_constraints", True)
    # integrity_check looks at constraints, too: this one takes a while for each row.
    connection.execute("CREATE TABLE t (x CHECK (length(hex(zeroblob(20000 + x % 2))) > 1))")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(300_000)])
    connection.close()
    asked: list[float] = []

    def is_wanted() -> bool:
        asked.append(time.monotonic())
        return len(asked) < 2

    rooms = set(Path(tempfile.gettempdir()).glob("statefs-check-*"))
    with pytest.raises(HookFailed, match="nobody waits"):
        list(check_in_process(CheckRequest(tree=str(tmp_path), original="/"), is_wanted))
    assert time.monotonic() - asked[-1] < 8
    assert set(Path(tempfile.gettempdir()).glob("statefs-check-*")) == rooms

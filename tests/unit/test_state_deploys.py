from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from statefs.errors import (
    NewerStore,
    NotInStore,
    OlderState,
    OperationLocked,
    StateDamaged,
    UsageError,
)
from statefs.state import DeployState, Found, OperationLock, Target
from statefs.state.audit import AuditLog
from statefs.state.copies import copies_of
from statefs.state.deploy_documents import target_of_file
from statefs.state.documents import write_document
from tests.harness.killed_calls import Acknowledge, each_kill
from tests.harness.processes import Child, run_as, start
from tests.unit.engine_store import SteppingClock

AWS = Target("aws", "eu-west-1")
BUCKET = "shop.bucket.images"
QUEUE = "shop.queue.mail.out"


class Cloud:
    """A provider: what exists there, and how often it was asked to look and to make."""

    def __init__(self) -> None:
        self.resources: dict[str, str] = {}
        self.looked, self.made = 0, 0

    def lookup(self, urn: str) -> Found | None:
        """Find a resource by the tag that has its URN."""
        self.looked += 1
        return Found(self.resources[urn], {"arn": urn}) if urn in self.resources else None

    def create(self, urn: str) -> Found:
        """Make a resource, whether there is one or not."""
        self.made += 1
        self.resources[urn] = f"r-{self.made}"
        return Found(self.resources[urn], {"arn": urn})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where deploy states will be; it is not there."""
    return tmp_path / "shop" / "deploy"


@pytest.fixture
def state(folder: Path) -> DeployState:
    """The state of the shop on one target; its file is not there."""
    return DeployState(folder, "shop", AWS, clock=SteppingClock())


def path_of(folder: Path) -> Path:
    """Return the file of `state`."""
    return folder / "state.aws.eu-west-1.json"


def ids(state: DeployState) -> dict[str, str]:
    """Return the id of each URN."""
    return {each.urn: each.id for each in state.list()}


def test_what_was_recorded_is_there_in_the_next_process(state: DeployState, folder: Path) -> None:
    """By URN, with attributes; the file is JSON of its owner alone, with a .gitignore beside it."""
    attributes: dict[str, Any] = {"size": 1.5, "tags": ["a", {"b": None}], "ü": True}
    made = state.record(state.urn("bucket", "images"), "b-1", attributes)
    state.record(QUEUE, "q-1")
    attributes["tags"].append("later")

    def read() -> list[tuple[Any, ...]]:
        return [tuple(each) for each in DeployState(folder, "shop", AWS).list()]

    assert run_as(None, read) == [tuple(made), tuple(state.list()[1])]
    assert made.attributes == {"size": 1.5, "tags": ["a", {"b": None}], "ü": True}
    made.attributes["tags"].append("mine")
    assert state.get(BUCKET) != made
    document = json.loads(path_of(folder).read_text())
    assert document == {
        "version": 1,
        "lineage": state.version()[0],
        "serial": 2,
        "project": "shop",
        "target": {"provider": "aws", "locator": "eu-west-1"},
        "primitives": {
            urn: {
                "id": each.id,
                "attributes": each.attributes,
                "recorded_at": each.recorded_at,
                "adopted": False,
            }
            for urn, each in ((each.urn, each) for each in state.list())
        },
    }
    assert (folder / ".gitignore").read_text().endswith("\n*\n")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.pop("backups") == stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}
    assert set(modes) == {".gitignore", ".lock", "state.aws.eu-west-1.json"}


def test_reading_changes_nothing(state: DeployState, folder: Path) -> None:
    """Not even the folder is made."""
    assert state.list() == [] and state.get(BUCKET) is None and state.holder() is None
    assert state.version() == ("", 0) and state.artefacts() == []
    assert not folder.parent.exists()


def test_resources_are_forgotten_and_nothing_else_happens_to_them(state: DeployState) -> None:
    """One that is not known is named."""
    state.record(BUCKET, "b-1")
    state.remove(BUCKET)
    assert state.list() == [] and state.version()[1] == 2
    with pytest.raises(NotInStore, match=f"has no {BUCKET}$"):
        state.remove(BUCKET)


def test_what_the_state_says_already_is_not_written(state: DeployState, folder: Path) -> None:
    """True is not 1, though."""
    state.record(BUCKET, "b-1", {"a": 1, "b": 2})
    before = path_of(folder).stat().st_ino
    state.record(BUCKET, "b-1", {"b": 2, "a": 1})
    assert (path_of(folder).stat().st_ino, state.version()[1]) == (before, 1)
    state.record(BUCKET, "b-1", {"a": True, "b": 2})
    assert state.version()[1] == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda state: state.get("bucket.images"),
        lambda state: state.get("shop..images"),
        lambda state: state.record("other.bucket.images", "b-1"),
        lambda state: state.remove("other.bucket.images"),
        lambda state: state.adopt(7, Cloud().lookup),
        lambda state: state.record(BUCKET, 7),
        lambda state: state.record(BUCKET, "b-1", {"a": float("nan")}),
        lambda state: state.record(BUCKET, "b-1", {"a": object()}),
        lambda state: state.record(BUCKET, "b-1", ["a"]),
        lambda state: state.record(BUCKET, "\udcff"),
        lambda state: state.urn("a.b", "c"),
        lambda state: state.keep_artefact("../x", "sh", b""),
        lambda state: DeployState(state.folder, "my.shop", AWS),
        lambda state: DeployState(state.folder, "", AWS),
        lambda state: DeployState(state.folder, "shop", Target("a.b", "c")),
        lambda state: DeployState(state.folder, "shop", Target("aws", "x" * 300)),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(state: DeployState, call: Any) -> None:
    """In one line."""
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        call(state)
    assert state.list() == [] and state.holder() is None


@pytest.mark.parametrize("locator", ["../../etc", "a.b.c", "host:22", ".x", "a b", "ü%"])
def test_every_target_has_a_file_of_its_own_in_the_folder(folder: Path, locator: str) -> None:
    """Whatever its locator is; and the file's name says which target it is."""
    target = Target("ssh", locator)
    DeployState(folder, "shop", target).record(BUCKET, "b-1")
    [name] = [each for each in os.listdir(folder) if each.endswith(".json")]
    assert target_of_file(name) == target and name.startswith("state.ssh.")
    assert DeployState(folder, "shop", AWS).list() == []


def test_a_file_of_another_project_is_told_and_left(state: DeployState, folder: Path) -> None:
    """Two projects in one folder would share the states of their targets."""
    state.record(BUCKET, "b-1")
    other = DeployState(folder, "blog", AWS)
    for ask in (other.list, lambda: other.record("blog.bucket.images", "b-2")):
        with pytest.raises(UsageError, match="is of the project 'shop' on aws, eu-west-1"):
            ask()
    assert ids(state) == {BUCKET: "b-1"} and state.holder() is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"serial": 1', '"serial": -1', r"line 4: expected `int` >= 0 at serial"),
        ('"serial": 1', '"serial": 1, "sreial": 2', "line 4: .*unknown field `sreial`"),
        ('"id": "b-1"', '"id": 7', r"line 1\d: expected `str`, got `int`"),
        ('"shop"', "shop", "line 5: JSON is malformed"),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_not_written_over(
    state: DeployState, folder: Path, old: str, new: str, said: str
) -> None:
    """Unknown fields are refused, not dropped."""
    state.record(BUCKET, "b-1")
    path = path_of(folder)
    text = path.read_text().replace(old, new, 1)
    path.write_text(text)
    for ask in (state.list, lambda: state.record(QUEUE, "q-1")):
        with pytest.raises(StateDamaged, match=f"^{path}, {said}"):
            ask()
    assert path.read_text() == text and state.holder() is None
    path.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises((NewerStore, StateDamaged)):
        state.record(QUEUE, "q-1")


def test_what_exists_is_adopted_and_nothing_is_made_twice(
    state: DeployState, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the file lacks a URN, and when it is gone; each adoption is a line of the log."""
    cloud = Cloud()
    cloud.resources[BUCKET] = "b-0"
    assert state.adopt(QUEUE, cloud.lookup) is None
    with caplog.at_level(logging.INFO):
        adopted = state.ensure(BUCKET, cloud.lookup, cloud.create)
    assert (adopted.id, adopted.adopted, cloud.made) == ("b-0", True, 0)
    assert caplog.messages == [f"{path_of(folder)}: {BUCKET} exists as b-0 and is adopted"]
    assert state.ensure(QUEUE, cloud.lookup, cloud.create).id == "r-1"
    looked = cloud.looked
    assert state.ensure(QUEUE, cloud.lookup, cloud.create).adopted is False
    assert state.adopt(BUCKET, cloud.lookup) == adopted and cloud.looked == looked
    path_of(folder).unlink()  # deleting the file deletes no resource
    assert cloud.resources == {BUCKET: "b-0", QUEUE: "r-1"}
    again = {urn: state.ensure(urn, cloud.lookup, cloud.create).id for urn in (BUCKET, QUEUE)}
    assert again == cloud.resources == ids(state) and cloud.made == 1
    assert {each.adopted for each in state.list()} == {True}


def test_threads_that_want_one_resource_make_it_once(state: DeployState) -> None:
    """And others beside it at the same time: two that wait for each other come to an end."""
    cloud, together = Cloud(), threading.Barrier(2, timeout=20)

    def create(urn: str) -> Found:
        together.wait()
        return cloud.create(urn)

    urns = [BUCKET, QUEUE] * 4
    threads = [
        threading.Thread(target=state.ensure, args=(urn, cloud.lookup, create)) for urn in urns
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cloud.made == 2 and ids(state) == cloud.resources
    assert state.holder() is None


def test_threads_lose_no_change_of_each_other(state: DeployState, folder: Path) -> None:
    """Each with a resource of its own, within one lock and without."""

    def work(number: int) -> None:
        for count in range(5):
            with state.lock("work"):
                state.record(f"shop.queue.{number}", str(count))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(state) == {f"shop.queue.{number}": "4" for number in range(6)}
    assert state.version()[1] == 30 and state.holder() is None


def test_processes_that_wait_for_each_other_lose_no_change(folder: Path) -> None:
    """Each counts on from what the others have written."""

    def work() -> None:
        state = DeployState(folder, "shop", AWS)
        for _ in range(10):
            with state.lock("count", wait_seconds=60):
                found = state.get(BUCKET)
                state.record(BUCKET, str(int(found.id) + 1 if found else 1))

    pids = [start(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    state = DeployState(folder, "shop", AWS)
    assert (ids(state), state.version()[1]) == ({BUCKET: "30"}, 30)


def test_the_lock_says_who_does_what_since_when(state: DeployState, folder: Path) -> None:
    """Nobody else changes the state meanwhile, in this process or another; all may read."""
    other = DeployState(folder, "shop", AWS)
    with state.lock("deploy", "release 7") as lock:
        state.record(BUCKET, "b-1")
        assert state.holder() == other.holder() == lock
        assert lock.process is not None and lock.process.pid == os.getpid()
        said = rf"is locked by {lock.holder} for 'deploy' \(release 7\) since {lock.created_at}, "
        for ask in (lambda: other.record(QUEUE, "q-1"), lambda: other.lock("x").__enter__()):
            with pytest.raises(OperationLocked, match=f"{said}lock {lock.id}$"):
                ask()
        with pytest.raises(AssertionError, match="OperationLocked"):
            run_as(None, lambda: DeployState(folder, "shop", AWS).record(QUEUE, "q-1"))
        assert ids(other) == {BUCKET: "b-1"}
        DeployState(folder, "shop", Target("aws", "other")).record(QUEUE, "q-1")
        text = (folder / ".state.aws.eu-west-1.json.lock").read_text()
        assert json.loads(text)["operation"] == "deploy"
    other.record(QUEUE, "q-1")
    assert state.holder() is None and len(ids(state)) == 2


def test_the_lock_of_a_killed_process_is_taken_over_and_told(
    state: DeployState, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not that of a living one, nor of one that runs on another machine."""
    held = state.lock("deploy")
    with Child({"lock": held.__enter__}) as child:
        lock = child.do("lock")
        with pytest.raises(OperationLocked, match=lock.id):
            state.record(BUCKET, "b-1")
    with caplog.at_level(logging.WARNING):
        state.record(BUCKET, "b-1")
    assert f"{lock.id} is taken over: its process has ended" in caplog.text
    path = folder / ".state.aws.eu-west-1.json.lock"
    elsewhere = {"host": "elsewhere", "pid": 2**22, "start_time": 1.0}
    for process in (elsewhere, None):
        path.write_text(
            json.dumps(
                {
                    "version": 1,
                    "id": "7",
                    "operation": "deploy",
                    "holder": "ann@elsewhere",
                    "created_at": "2026-01-01T00:00:00Z",
                    "process": process,
                }
            )
        )
        with pytest.raises(OperationLocked, match="ann@elsewhere for 'deploy' since 2026-01-01"):
            state.record(QUEUE, "q-1")


def test_a_lock_that_is_taken_away_ends_what_its_holder_writes(
    state: DeployState, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what others have written meanwhile stays; the audit log has it."""
    other = DeployState(folder, "shop", AWS)
    with state.lock("deploy") as lock:
        state.record(BUCKET, "b-1")
        with pytest.raises(OperationLocked):
            other.force_unlock("another")
        assert other.force_unlock(lock.id) == lock and other.force_unlock(lock.id) is None
        other.record(QUEUE, "q-1")
        with pytest.raises(OperationLocked, match=f"the lock {lock.id} of .* has been taken away"):
            state.record(BUCKET, "b-2")
    assert ids(state) == {BUCKET: "b-1", QUEUE: "q-1"}
    assert "taken away by force" in caplog.text and "was gone at its end" in caplog.text
    with AuditLog(folder / ".audit.log") as audit:
        assert audit.unfinished() == []
    assert f"lock {lock.id}" in (folder / ".audit.log").read_text()


def test_a_broken_lock_is_named_and_can_be_taken_away(state: DeployState, folder: Path) -> None:
    """By force alone."""
    state.record(BUCKET, "b-1")
    path = folder / ".state.aws.eu-west-1.json.lock"
    path.write_text('{\n  "version": 1,\n  "id": 7}')
    for ask in (state.holder, lambda: state.record(QUEUE, "q-1"), lambda: state.force_unlock("7")):
        with pytest.raises(StateDamaged, match=f"^{path}, line 3"):
            ask()
    assert state.force_unlock() is None and not path.exists()
    state.record(QUEUE, "q-1")


def test_an_older_write_is_refused(state: DeployState, folder: Path) -> None:
    """One of a lower serial, of an equal one, or of another state altogether."""
    state.record(BUCKET, "b-1")
    path = path_of(folder)
    first = path.read_bytes()
    state.record(QUEUE, "q-1")
    third = path.read_bytes().replace(b'"serial": 2', b'"serial": 3')
    with state.lock("deploy"):
        assert len(ids(state)) == 2
        path.write_bytes(third)  # a later one, as a restore brings it back
        with pytest.raises(OlderState, match=r"has the serial 3, .* has 3: read the state again"):
            state.remove(QUEUE)
        path.write_bytes(third.replace(state.version()[0].encode(), b"another"))
        with pytest.raises(OlderState, match="has the lineage another"):
            state.remove(QUEUE)
        path.write_bytes(first)
        state.remove(QUEUE)  # what is there is older than what was made from it
    assert (state.version()[1], ids(state)) == (3, {BUCKET: "b-1"})


def test_what_an_operation_replaces_is_kept_once(state: DeployState, folder: Path) -> None:
    """However many resources it records: the state as it was before."""
    state.record(BUCKET, "b-1")
    before = path_of(folder).read_bytes()
    with state.lock("deploy"):
        for number in range(12):
            state.record(f"shop.queue.{number}", "q")
    assert [each.read_bytes() for each in copies_of(path_of(folder))] == [before]


def test_artefacts_lie_with_the_states(state: DeployState, folder: Path) -> None:
    """With the time in their names; scripts may be run by their owner."""
    first = state.keep_artefact("cutover", "sh", b"#!/bin/sh\necho over\n")
    second = state.keep_artefact("rollback-plan", "txt", b"none")
    assert state.artefacts() == [first, second]
    assert first.name.startswith("cutover-2") and first.name.endswith("Z.sh")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (first, second)] == [0o700, 0o600]
    assert subprocess.run([first], capture_output=True, text=True).stdout == "over\n"
    assert (folder / ".gitignore").exists() and state.list() == []


def test_another_backend_takes_the_place_of_the_file(folder: Path) -> None:
    """It is asked for all, and no file is written."""

    class Remote:
        path = Path("remote:shop")

        def __init__(self) -> None:
            self.data: bytes | None = None
            self.held: OperationLock | None = None

        def read(self) -> bytes | None:
            return self.data

        def write(self, data: bytes, lock_id: str) -> None:
            assert self.held is not None and self.held.id == lock_id
            self.data = data

        def lock(self, lock: OperationLock) -> None:
            self.held = lock

        def unlock(self, lock_id: str) -> bool:
            assert self.held is not None and self.held.id == lock_id
            self.held = None
            return True

        def force_unlock(self, lock_id: str | None) -> OperationLock | None:
            raise NotImplementedError

        def holder(self) -> OperationLock | None:
            return self.held

    remote = Remote()
    state = DeployState(folder, "shop", AWS, backend=remote)
    state.record(BUCKET, "b-1")
    assert ids(DeployState(folder, "shop", AWS, backend=remote)) == {BUCKET: "b-1"}
    assert not folder.exists() and remote.held is None
    remote.data = b"{"
    with pytest.raises(StateDamaged, match=r"^remote:shop, line 1"):
        state.list()


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_leaves_the_old_or_the_new_state(folder: Path) -> None:
    """Which the next process locks, and goes on with; no resource is made twice by it."""
    made = folder.parent / "made"
    cloud_write = os.write

    def create(urn: str) -> Found:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        cloud_write(fd, b"x")
        os.close(fd)
        return Found("q-1")

    def lookup(_urn: str) -> Found | None:
        return Found("q-1") if made.exists() and made.stat().st_size else None

    def work(acknowledge: Acknowledge) -> None:
        state = DeployState(folder, "shop", AWS)
        with state.lock("deploy"):
            state.record(BUCKET, "b-1")
            acknowledge("recorded")
            state.ensure(QUEUE, lookup, create)
            acknowledge("ensured")
            state.remove(BUCKET)
            acknowledge("removed")

    steps = ["", "recorded", "ensured", "removed"]
    states: list[dict[str, str]] = [
        {}, {BUCKET: "b-1"}, {BUCKET: "b-1", QUEUE: "q-1"}, {QUEUE: "q-1"}]  # fmt: skip
    kills = 0
    folder.parent.mkdir()
    for killed in each_kill(work):
        kills += 1
        done = steps.index(killed.acknowledged[-1]) if killed.acknowledged else 0
        state = DeployState(folder, "shop", AWS)
        assert ids(state) in states[done : done + 2], killed
        assert state.ensure(QUEUE, lookup, create).id == "q-1"
        assert made.stat().st_size == 1, killed
        assert state.holder() is None
        made.unlink()
        for each in folder.glob("state.*"):
            each.unlink()
    assert kills > 30


@pytest.mark.usefixtures("no_waiting_for_disks")
def test_a_kill_at_every_write_of_a_forced_unlock_leaves_the_lock_or_none(folder: Path) -> None:
    """Never one that nobody can read; the audit log has what was begun, and what was not ended."""
    state = DeployState(folder, "shop", AWS)
    state.record(BUCKET, "b-1")
    path = folder / ".state.aws.eu-west-1.json.lock"
    lock = OperationLock(id="7", operation="x", holder="ann@elsewhere", created_at="2026-01-01")

    def work(acknowledge: Acknowledge) -> None:
        assert DeployState(folder, "shop", AWS).force_unlock("7") == lock
        acknowledge("forced")

    write_document(path, lock)
    for killed in each_kill(work):
        assert state.holder() in ((None,) if killed.acknowledged else (None, lock)), killed
        begun = (folder / ".audit.log").exists() and (folder / ".audit.log").stat().st_size > 0
        assert state.holder() == lock or begun, killed
        with AuditLog(folder / ".audit.log") as audit:
            assert len(audit.unfinished()) <= 1, killed
        (folder / ".audit.log").unlink()
        write_document(path, lock)
    assert state.holder() is None and ids(state) == {BUCKET: "b-1"}


def test_a_full_disk_leaves_the_state_as_it_was(
    state: DeployState, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory, too; and the lock is given back."""
    state.record(BUCKET, "b-1")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("write_file", "write_document", "hold"):
        with monkeypatch.context() as context:
            context.setattr(f"statefs.state.state_file.{call}", refuse)
            with pytest.raises(OSError, match="No space"):
                state.record(QUEUE, "q-1")
    assert ids(state) == {BUCKET: "b-1"} and state.holder() is None
    assert ids(DeployState(folder, "shop", AWS)) == {BUCKET: "b-1"}


def test_the_example_of_a_deployment_works(tmp_path: Path) -> None:
    """A second run makes nothing again, nor does one whose state is gone."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "deploy.py"
    cloud, deploy = tmp_path / "cloud", tmp_path / "deploy"

    def run(*words: str) -> str:
        command = [sys.executable, str(example), str(deploy), "shop", "eu-west-1", *words]
        environment = {**os.environ, "CLOUD": str(cloud)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = "shop.bucket.images: id-of-shop.bucket.images, made\n"
    assert run("bucket.images") == made == run("bucket.images") == run() == run("--unlock")
    (deploy / "state.cloud.eu-west-1.json").unlink()
    adopted = run("bucket.images", "queue.mail")
    assert adopted.splitlines() == [
        "shop.bucket.images: id-of-shop.bucket.images, adopted",
        "shop.queue.mail: id-of-shop.queue.mail, made",
    ]
    assert len(list(deploy.glob("cutover-*.sh"))) == 3

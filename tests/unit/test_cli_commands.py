from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from statefs.cli.app import COMMANDS
from statefs.cli.options import find_snapshot
from statefs.errors import UsageError
from statefs.snapshots.reasons import REASONS
from tests.unit.cli_fakes import FIRST, FakeBackend, call, make_empty_store, pretend_mounts

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    """Stand in for every store; `state` beside the working directory has one."""
    monkeypatch.delenv("STATEFS_STATE", raising=False)
    monkeypatch.chdir(tmp_path)
    pretend_mounts(monkeypatch, tmp_path / "mountinfo", {})
    make_empty_store(tmp_path / "state.store")
    fake = FakeBackend()
    fake.install(monkeypatch)
    return fake


def test_save_prints_the_name_and_nothing_else(backend: FakeBackend, capsys: Capture) -> None:
    """So that a script can use it: ls state/snapshots/$(statefs save state)."""
    done = call(capsys, "save", "state", "-m", "hello", "--label", "name=v1", "--label", "k=a=b")
    assert (done.exit_code, done.out, done.err) == (0, f"{FIRST['name']}\n", "")
    assert backend.snapshots[0]["message"] == "hello"
    assert backend.snapshots[0]["labels"] == {"name": "v1", "k": "a=b"}
    assert backend.snapshots[0]["reason"] == "manual"


def test_save_json_is_the_document(backend: FakeBackend, capsys: Capture) -> None:
    """The whole metadata of the new snapshot."""
    done = call(capsys, "save", "state", "--reason", "hook", "--json")
    assert json.loads(done.out) == FIRST | {"message": "", "reason": "hook", "labels": {}}


def test_save_wait_prints_the_sealed_snapshot(backend: FakeBackend, capsys: Capture) -> None:
    """The same output, later; the document has the digest."""
    assert call(capsys, "save", "state", "--wait").out == f"{FIRST['name']}\n"
    assert backend.asked == ["save", f"show {FIRST['name']}"]
    document = json.loads(call(capsys, "save", "state", "--wait", "--json").out)
    assert document["sealed"] and document["stateDigest"].startswith("sha256:")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--label", "novalue"], "a label is KEY=VALUE, not 'novalue'"),
        (["--label", "=v"], "a label is KEY=VALUE"),
        (["--label", "a=1", "--label", "a=2"], "the label 'a' is given twice"),
        (["--reason", "whim"], "'whim' is not one of 'manual', 'autosave'"),
    ],
)
def test_save_refuses_bad_labels_and_reasons(
    backend: FakeBackend, capsys: Capture, words: list[str], complaint: str
) -> None:
    """Before anything is saved."""
    done = call(capsys, "save", "state", *words)
    assert done.exit_code == 2
    assert complaint in done.err
    assert backend.asked == []


def test_list_shows_a_row_for_each_snapshot(backend: FakeBackend, capsys: Capture) -> None:
    """The newest is last, next to the prompt."""
    backend.snapshots = [FIRST, FIRST | {"name": "2026-03-14T12-00-00Z", "message": "later"}]
    lines = call(capsys, "list", "state").out.splitlines()
    assert lines[0].split() == [
        "SNAPSHOT", "TAKEN", "AGE", "FILES", "SIZE", "REASON", "LABELS", "MESSAGE",
    ]  # fmt: skip
    assert lines[1].startswith("2026-03-13T12-00-00Z  2026-03-1")
    assert "1,234  5.0 MiB  manual  name=clean  before the import" in lines[1]
    assert lines[2].startswith("2026-03-14T12-00-00Z") and lines[2].endswith("later")


def test_list_json_has_every_document(backend: FakeBackend, capsys: Capture) -> None:
    """Under the key `snapshots`, oldest first."""
    backend.snapshots = [FIRST]
    assert json.loads(call(capsys, "list", "state", "--json").out) == {
        "snapshots": [FIRST | {"unsealable": None}]
    }


def test_an_empty_list_leaves_standard_output_empty(backend: FakeBackend, capsys: Capture) -> None:
    """The hint goes to standard error; JSON is still a document."""
    done = call(capsys, "list", "state")
    assert (done.exit_code, done.out) == (0, "")
    assert "no snapshots yet" in done.err
    assert json.loads(call(capsys, "list", "state", "--json").out) == {"snapshots": []}


def test_show_prints_facts(backend: FakeBackend, capsys: Capture) -> None:
    """What is not known is left out."""
    backend.snapshots = [FIRST]
    facts = dict(
        line.split(maxsplit=1) for line in call(capsys, "show", "state", "clean").out.splitlines()
    )
    assert facts["Snapshot"] == FIRST["name"]
    assert facts["Files"] == "1,234"
    assert facts["Size"] == "5.0 MiB"
    assert facts["Labels"] == "name=clean"
    assert facts["Sealed"] == "not yet"
    assert "Digest" not in facts and "Folder" not in facts


def test_show_names_the_folder_of_a_mounted_state(
    backend: FakeBackend, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be pasted after ls; inside the mount no state need be named."""
    backend.snapshots = [FIRST]
    state = tmp_path / "state"
    state.mkdir()
    pretend_mounts(monkeypatch, tmp_path / "mountinfo", {state: tmp_path / "state.store"})
    monkeypatch.chdir(state)
    assert f"{state}/snapshots/{FIRST['name']}" in call(capsys, "show", "clean").out
    assert backend.asked == ["show clean"]


def test_show_lists_volumes(backend: FakeBackend, capsys: Capture) -> None:
    """One row for each volume manifest."""
    manifest = {
        "name": "dbdata",
        "consistency": "app-consistent",
        "format": "postgres",
        "bytes": 1024,
        "digest": None,
    }
    backend.snapshots = [FIRST | {"volumeManifests": [manifest, manifest | {"bytes": None}]}]
    lines = call(capsys, "show", "state", "clean").out.splitlines()
    assert lines[-2].split() == ["dbdata", "app-consistent", "postgres", "1.0", "KiB"]
    assert lines[-1].split() == ["dbdata", "app-consistent", "postgres"]


def test_notes_and_dumps_of_volumes_are_shown(
    backend: FakeBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the table in `show`, as warnings in `save`, which prints the name all the same."""
    dump = {"path": "dumps/db.dump", "bytes": 2048, "digest": "sha256:00"}
    manifest = {"name": "db", "dump": dump, "notes": ["the server does not run"]}
    backend.snapshots = [FIRST | {"volumeManifests": [manifest]}]
    lines = call(capsys, "show", "state", "clean").out.splitlines()
    assert "dumps/db.dump (2.0 KiB)" in lines[-2]
    assert lines[-1] == "db: the server does not run"
    monkeypatch.setattr(backend, "call", lambda *_: backend.snapshots[0])
    said = call(capsys, "save", "state")
    assert said.out == f"{FIRST['name']}\n"
    assert said.err == "statefs: warning: volume db: the server does not run\n"


@pytest.mark.parametrize(("is_mounted", "told"), [(True, "--status"), (False, "given up")])
def test_a_scrub_that_is_interrupted_says_what_becomes_of_it(
    backend: FakeBackend,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_mounted: bool,
    told: str,
) -> None:
    """In a daemon it goes on; the exit code is that of Ctrl-C."""
    if is_mounted:
        mount = {tmp_path / "state": tmp_path / "state.store"}
        pretend_mounts(monkeypatch, tmp_path / "mountinfo", mount)
    backend.failure = KeyboardInterrupt()  # type: ignore[assignment]
    done = call(capsys, "scrub", tmp_path / "state")
    assert (done.exit_code, done.out) == (130, "")
    assert done.err.startswith("statefs: the scrub ") and told in done.err


def test_show_json_is_the_document(backend: FakeBackend, capsys: Capture) -> None:
    """And whether it can be sealed."""
    backend.snapshots = [FIRST | {"unsealable": "why not"}]
    printed = json.loads(call(capsys, "show", "state", "clean", "--json").out)
    assert printed == FIRST | {"unsealable": "why not"}


def test_a_snapshot_alone_uses_the_state_of_the_environment(
    backend: FakeBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STATEFS_STATE stands in for STATE."""
    backend.snapshots = [FIRST]
    monkeypatch.setenv("STATEFS_STATE", "state")
    assert call(capsys, "show", "clean").exit_code == 0


def test_a_snapshot_alone_without_any_state_is_refused(
    backend: FakeBackend, capsys: Capture
) -> None:
    """The message asks for the state."""
    done = call(capsys, "show", "clean")
    assert done.exit_code == 2
    assert "which state?" in done.err


@pytest.mark.parametrize("words", [(), ("a", "b", "c"), ("",), ("a", ""), ("", "a")])
def test_a_snapshot_takes_one_or_two_words(words: tuple[str, ...]) -> None:
    """Nothing, too much and empty words are refused with the usage."""
    with pytest.raises(UsageError, match="statefs delete STATE SNAPSHOT"):
        find_snapshot(words, None, "delete")


@pytest.mark.parametrize("command", ["show", "delete"])
def test_a_state_alone_is_told_that_the_snapshot_is_missing(
    backend: FakeBackend, capsys: Capture, tmp_path: Path, command: str
) -> None:
    """The state is not taken for a snapshot; the line names latest and the list."""
    for word in ("state", "./state", f"{tmp_path}/state", "."):
        done = call(capsys, command, word)
        assert (done.exit_code, done.out, done.err.count("\n")) == (2, "", 1)
        assert f"'{word}' is the state, the snapshot is missing" in done.err
        assert "latest" in done.err and "'statefs list'" in done.err
    assert "the snapshot is missing" in call(capsys, command).err
    assert backend.asked == []


def test_a_snapshot_may_be_called_as_a_state_beside(
    backend: FakeBackend, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the state is known by other means, the one word is the snapshot."""
    make_empty_store(tmp_path / "clean.store")
    backend.snapshots = [FIRST]
    assert call(capsys, "show", "clean", "--store", "state.store").exit_code == 0
    monkeypatch.setenv("STATEFS_STATE", "state")
    assert call(capsys, "show", "clean").exit_code == 0


def test_delete_says_what_was_deleted(backend: FakeBackend, capsys: Capture) -> None:
    """Name, size, label and message, so that a mistake is noticed."""
    backend.snapshots = [FIRST]
    done = call(capsys, "delete", "state", "clean")
    assert done.out == (
        f'deleted {FIRST["name"]} (1,234 files, 5.0 MiB, name=clean, "before the import")\n'
    )
    assert backend.snapshots == []


def test_delete_json_is_the_document(backend: FakeBackend, capsys: Capture) -> None:
    """Of the snapshot that is gone."""
    backend.snapshots = [FIRST]
    assert json.loads(call(capsys, "delete", "state", "clean", "--json").out) == FIRST


def test_deleting_what_is_not_there_fails(backend: FakeBackend, capsys: Capture) -> None:
    """Exit code 7 and one line."""
    done = call(capsys, "delete", "state", "nothing")
    assert (done.exit_code, done.out) == (7, "")
    assert done.err == (
        "statefs: error: no snapshot 'nothing': 'statefs list' shows what there is\n"
    )


def test_status_of_an_unmounted_state(backend: FakeBackend, capsys: Capture) -> None:
    """It says no, and leaves the daemon's facts out."""
    out = call(capsys, "status", "state").out
    assert "Mounted      no\n" in out
    assert "Worker" not in out and "Supervisor" not in out
    assert "Application  com.example.shop\n" in out


def test_status_of_a_mounted_state(
    backend: FakeBackend, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where, since when and by whom."""
    backend.mounted = True
    pretend_mounts(
        monkeypatch, tmp_path / "mountinfo", {tmp_path / "state": tmp_path / "state.store"}
    )
    out = call(capsys, "status", "state").out
    assert "Mounted      /srv/state\n" in out
    assert "Supervisor   pid 4710\n" in out
    assert "Worker       pid 4711\n" in out
    assert "Options      ro,noexec\n" in out
    assert "Disk         7.0 GiB of 9.0 GiB free\n" in out
    silent = ("Unsynced", "Writable", "Damage", "Unsealed", "Unsealable", "Restarts")
    assert not any(word in out for word in silent)


def test_status_tells_what_a_person_should_know(
    backend: FakeBackend, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that --json has of it, in words."""
    known = backend.call("status", {}, None) | {
        "mounted": True, "restarts": 3, "unsynced_bytes": 12288, "damaged": 2, "damages_seen": 1,
        "seal_backlog": 1, "unsealable": 2, "writable": False, "not_writable": "the disk is full",
        "free_bytes_per_hour": -(1 << 30),
    }  # fmt: skip
    monkeypatch.setattr(backend, "call", lambda *_: known)
    lines = dict(
        line.split(maxsplit=1) for line in call(capsys, "status", "state").out.splitlines()
    )
    told = ("Restarts", "Unsynced", "Writable", "Unsealed")
    assert [lines[each] for each in told] == [
        "3",
        "12 KiB",
        "no: the disk is full",
        "1 snapshot waits",
    ]
    assert lines["Disk"].endswith("free, 1.0 GiB less each hour: full in 7 hours")
    assert lines["Damage"].startswith("2 found by the scrub, 1 met")
    assert lines["Unsealable"].startswith("2 snapshots")
    assert re.fullmatch(r"2026-03-13T12-00-00Z \(.* ago\)", lines["Latest"])


def test_status_names_a_stale_mount_and_its_cure(
    backend: FakeBackend, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount table shows a mount, the store says that nobody serves it."""
    pretend_mounts(
        monkeypatch, tmp_path / "mountinfo", {tmp_path / "state": tmp_path / "state.store"}
    )
    assert f"statefs mount --repair {tmp_path}/state" in call(capsys, "status", "state").out
    assert json.loads(call(capsys, "status", "state", "--json").out)["stale"] is True


def test_status_json_has_what_is_promised(backend: FakeBackend, capsys: Capture) -> None:
    """Scripts rely on these keys."""
    status = json.loads(call(capsys, "status", "state", "--json").out)
    assert status.keys() >= {
        "mounted", "store", "epoch", "snapshots", "worker_pid", "supervisor_pid", "restarts",
        "since", "bytes", "files", "stale",
    }  # fmt: skip
    assert status["mounted"] is False


def test_verify_of_a_sound_store(backend: FakeBackend, capsys: Capture, tmp_path: Path) -> None:
    """One line, exit code 0."""
    done = call(capsys, "verify", "state")
    assert (done.exit_code, done.out) == (0, f"{tmp_path}/state.store: no problems found\n")


def test_verify_names_each_problem(backend: FakeBackend, capsys: Capture) -> None:
    """One line each, the count on standard error, exit code 20."""
    backend.problems = [
        {"rule": "R7", "message": "object 1f is missing", "ino": 12},
        {"rule": "R2", "message": "no parent"},
    ]
    done = call(capsys, "verify", "state")
    assert done.exit_code == 20
    assert done.out == "R7: object 1f is missing (ino 12)\nR2: no parent\n"
    assert "2 problems found" in done.err


def test_verify_tells_what_was_read(backend: FakeBackend, capsys: Capture) -> None:
    """And which snapshots could not be compared with anything."""
    backend.unsealed = ["2026-03-14T12-00-00Z"]
    done = call(capsys, "verify", "state", "--read-data")
    assert done.exit_code == 0
    assert done.out.splitlines()[0] == (
        "read 5.0 MiB of 3 files; not sealed yet, and so not compared: 2026-03-14T12-00-00Z"
    )


def test_verify_json_has_all_of_each_problem(
    backend: FakeBackend, capsys: Capture, tmp_path: Path
) -> None:
    """The exit code is the same."""
    backend.problems = [{"rule": "R7", "message": "m"}]
    done = call(capsys, "verify", "state", "--json")
    assert done.exit_code == 20
    assert json.loads(done.out) == {
        "store": str(tmp_path / "state.store"),
        "ok": False,
        "problems": backend.problems,
        "read": None,
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_examples(name: str, capsys: Capture) -> None:
    """--help ends in examples, each of which calls that command."""
    done = call(capsys, name, "--help")
    assert done.exit_code == 0
    _, _, examples = done.out.partition("Examples:\n")
    assert examples and all(f"statefs {name}" in line for line in examples.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal(name: str, capsys: Capture) -> None:
    """No line of --help is longer than 100 characters."""
    assert max(len(line) for line in call(capsys, name, "--help").out.splitlines()) <= 100


@pytest.mark.parametrize("reason", REASONS)
def test_save_takes_each_reason_there_is(
    backend: FakeBackend, capsys: Capture, reason: str
) -> None:
    """The command line and the documents share one list."""
    assert call(capsys, "save", "state", "--reason", reason).exit_code == 0
    assert backend.snapshots[0]["reason"] == reason


def test_the_reasons_are_typed_once() -> None:
    """A second list in the code or its tests would come to say something else.

    The state stores know nothing of it: theirs are labels.
    """
    folder = Path(__file__).parents[2]
    files = [path for part in ("statefs", "tests") for path in (folder / part).rglob("*.py")]
    files = [path for path in files if path.parent.name != "state"]
    typed = [path.stem for path in files if f'"{REASONS[-2]}"' in path.read_text()]
    assert typed == ["reasons"]


def test_the_list_of_reasons_is_cheap_to_import() -> None:
    """`statefs save` starts fast: it loads no engine."""
    code = "import sys, statefs.cli.save; sys.exit(bool({'apsw', 'trio'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

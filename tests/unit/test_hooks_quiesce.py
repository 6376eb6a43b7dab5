"""The order of things around a save, in this process and in the one that daemons use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import msgspec
import pytest

from statefs.config import parse_config, to_file_value
from statefs.errors import HookFailed
from statefs.hooks.process import CheckRequest, Ending, Held, Request, check_in_process
from statefs.hooks.quiesce import Preparation
from tests.unit.test_hooks_commands import is_alive

VOLUMES = """
[[volumes]]
name = "first"
before_save = [["sh", "-c", "echo before $STATEFS_VOLUME $STATEFS_REASON $STATEFS_STATE >> $LOG"]]
after_save = [["sh", "-c", "echo after $STATEFS_VOLUME $STATEFS_SNAPSHOT >> $LOG"]]
on_failure = [["sh", "-c", "echo failure $STATEFS_VOLUME $STATEFS_ERROR >> $LOG"]]
deadline = 20
[[volumes]]
name = "second"
path = "files/second"
before_save = [["sh", "-c", "SECOND"]]
after_save = [["sh", "-c", "echo after $STATEFS_VOLUME $STATEFS_PATH >> $LOG"]]
deadline = 20
"""


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary folder that stands for current/; commands log to LOG."""
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    folder = tmp_path / "state" / "current"
    (folder / "volumes" / "first").mkdir(parents=True)
    (folder / "files" / "second").mkdir(parents=True)
    return folder


def log_of(current: Path) -> list[str]:
    """Return what the commands logged, with the state's path left out."""
    log = current.parent.parent / "log"
    text = log.read_text() if log.exists() else ""
    return text.replace(str(current.parent), "STATE").splitlines()


def held(current: Path, second: str, text: str = VOLUMES) -> Held:
    """Return the two volumes, not yet prepared; the second one's command is `second`."""
    config = parse_config(text.replace("SECOND", second), "statefs.toml")
    return Held(config.volumes, current, "manual")


def test_volumes_are_prepared_in_order_and_released_in_reverse(current: Path) -> None:
    """Commands learn the state, the volume, the reason, and the snapshot afterwards."""
    holding = held(current, "echo before $STATEFS_VOLUME >> $LOG")
    results = holding.prepare()
    assert [(each.name, each.folder, each.consistency) for each in results] == [
        ("first", "volumes/first", "app-consistent"),
        ("second", "files/second", "app-consistent"),
    ]
    assert holding.release(Ending(snapshot="2026")) == ()
    assert log_of(current) == [
        "before first manual STATE",
        "before second",
        "after second STATE/current/files/second",
        "after first 2026",
    ]


def test_a_failed_command_releases_everything_and_is_told(current: Path) -> None:
    """The error names the volume; both volumes are released, on_failure first."""
    with pytest.raises(HookFailed, match=r"^volume second: sh: exit code 7: no room$"):
        held(current, "echo no room >&2; exit 7").prepare()
    assert log_of(current) == [
        "before first manual STATE",
        "after second STATE/current/files/second",
        "failure first volume second: sh: exit code 7: no room",
        "after first",
    ]


def test_a_late_command_releases_everything(current: Path) -> None:
    """Its process group is ended at the deadline."""
    text = VOLUMES.replace("deadline = 20", "deadline = 0.5")
    with pytest.raises(HookFailed, match=r"^volume second: sh: not done within 0.5 s"):
        held(current, "echo $$ >> $LOG; sleep 300", text).prepare()
    pid = log_of(current)[1]
    assert not is_alive(int(pid))
    assert log_of(current)[-1] == "after first"


def test_a_save_that_fails_later_releases_too(current: Path) -> None:
    """The reason is told to on_failure."""
    holding = held(current, "true")
    holding.prepare()
    holding.release(Ending(snapshot=None, error="no space left"))
    assert log_of(current)[-2:] == ["failure first no space left", "after first"]


def test_a_failing_release_is_told_and_stops_nothing(current: Path) -> None:
    """The other commands are run all the same."""
    holding = held(current, "true", VOLUMES.replace("$STATEFS_PATH >> $LOG", "; exit 9"))
    holding.prepare()
    problems = holding.release(Ending(snapshot="2026"))
    assert problems == ("volume second: sh: exit code 9: after second",)
    assert log_of(current)[-1] == "after first 2026"


def test_a_killed_daemon_leaves_no_application_waiting(current: Path) -> None:
    """The process that holds them hears that nobody is there any more, and releases."""
    config = parse_config(VOLUMES.replace("SECOND", "true"), "statefs.toml")
    request = Request(current=str(current), volumes=config.volumes, reason="manual")
    program = (
        "import sys, os, msgspec; from statefs.hooks.process import Held, Request; "
        "from statefs.config import from_file_value; from pathlib import Path; "
        "r = msgspec.json.decode(sys.argv[1], type=Request, dec_hook=from_file_value); "
        "h = Held(r.volumes, Path(r.current), r.reason); h.prepare(); "
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            msgspec.json.encode(request, enc_hook=to_file_value).decode(),
        ],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    # The pipe ends when the process that holds the applications has ended, too.
    assert killed.returncode == -signal.SIGKILL
    assert log_of(current)[-2:] == [
        "failure first statefs ended before the save did",
        "after first",
    ]


def test_without_volumes_nothing_is_started(current: Path) -> None:
    """A store without statefs.toml pays nothing."""
    holding = Held((), current, "manual")
    assert holding.prepare() == ()
    assert holding.release(Ending(snapshot="2026")) == ()


def test_sqlite_databases_of_a_volume_are_brought_to_rest(current: Path) -> None:
    """A volume with a locked database refuses; with none locked it is app-consistent."""
    text = '[[volumes]]\nname = "first"\nconsistency = "sqlite"\ndeadline = 1'
    connection = apsw.Connection(str(current / "volumes" / "first" / "data"))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(9999)); BEGIN IMMEDIATE")
    with pytest.raises(HookFailed, match=r"^volume first: .*/data: another program kept"):
        held(current, "", text).prepare()
    connection.execute("ROLLBACK")
    holding = held(current, "", text)
    (result,) = holding.prepare()
    holding.release(Ending(snapshot="2026"))
    connection.close()
    assert (result.consistency, result.format, result.notes) == ("app-consistent", "sqlite", ())
    assert result.bytes is not None and result.bytes > 9999


def test_a_folder_that_does_not_exist_yet_is_told(current: Path) -> None:
    """A new state can be saved before its applications have run."""
    holding = held(current, "", '[[volumes]]\nname = "later"\nconsistency = "sqlite"')
    (result,) = holding.prepare()
    holding.release(Ending(snapshot="2026"))
    note = f"there is no folder volumes/{result.name}: nothing of it is in the snapshot"
    assert (result.consistency, result.notes) == ("crash-consistent", (note,))


def test_postgres_without_a_connection_needs_no_preparation(current: Path) -> None:
    """One moment of a whole data folder is a valid backup; the format has the version."""
    data = current / "volumes" / "first" / "data"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").touch()
    (data / "PG_VERSION").write_text("15\n")
    text = '[[volumes]]\nname = "first"\nconsistency = "postgres"'
    config = parse_config(text, "statefs.toml")
    (result,) = Preparation(config.volumes, current, "manual").prepare()
    assert (result.format, result.consistency) == ("postgres-15", "crash-consistent")
    text += '\nconnection = "host=/nowhere"'
    config = parse_config(text, "statefs.toml")
    (result,) = Preparation(config.volumes, current, "manual").prepare()
    assert result.notes == ("the server does not run",)
    (data / "postmaster.pid").touch()
    with pytest.raises(HookFailed, match="volume first: "):
        Preparation(config.volumes, current, "manual").prepare()
    assert sorted(os.listdir(current)) == ["files", "volumes"]


@pytest.mark.parametrize("is_writable", [True, False])
def test_everything_known_in_a_tree_is_opened(tmp_path: Path, is_writable: bool) -> None:
    """Sound and broken databases and documents are told apart; libraries' files are left alone."""
    connection = apsw.Connection(str(tmp_path / "good.db"))
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "bad.json").write_bytes(bytes(100))
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "worse.json").write_text("{")
    request = CheckRequest(tree=str(tmp_path), original="/", is_writable=is_writable)
    before = sorted(os.listdir(tmp_path))
    found = list(check_in_process(request))
    assert {each.path: each.problem is None for each in found} == {
        "good.db": True,
        "bad.db": False,
        "good.json": True,
        "bad.json": False,
    }
    assert [each for each in found if each.unchecked] == []
    assert is_writable or sorted(os.listdir(tmp_path)) == before

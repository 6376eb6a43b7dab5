"""Commands around a save on a mount: their order, their failures, and that they always end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.harness.mounted_state import MountedState

WAIT_SECONDS = 30.0


def configure(state: MountedState, before: str, after: str, more: str = "") -> Path:
    """Write a statefs.toml whose one volume runs two scripts; return the log they may write."""
    log = state.store.parent / "hooks.log"
    lines = [
        "[[volumes]]",
        'name = "app"',
        f"before_save = [['sh', '-c', '''{before}''', '{log}']]",
        f"after_save = [['sh', '-c', '''{after}''', '{log}']]",
        more,
    ]
    (state.store / "statefs.toml").write_text("\n".join(lines))
    return log


def test_what_a_command_writes_before_the_save_is_in_the_snapshot(own_state: MountedState) -> None:
    """And what a command writes after it is not; that one sees the new snapshot."""
    (own_state.current / "volumes" / "app").mkdir()
    before = 'echo ready > "$STATEFS_PATH/marker"'
    after = 'cat "$STATEFS_STATE/snapshots/$STATEFS_SNAPSHOT/volumes/app/marker" > "$0"; '
    log = configure(own_state, before, after + 'echo later > "$STATEFS_PATH/marker"')
    snapshot = own_state.snapshots / own_state.save()
    assert log.read_text() == "ready\n"
    assert (snapshot / "volumes" / "app" / "marker").read_text() == "ready\n"
    assert (own_state.current / "volumes" / "app" / "marker").read_text() == "later\n"
    assert '"app-consistent"' in (snapshot / "metadata.json").read_text()


def test_a_failing_command_leaves_no_snapshot_and_releases(own_state: MountedState) -> None:
    """The error says what the command said; the mount goes on."""
    log = configure(own_state, "echo not now >&2; exit 1", 'echo released "$STATEFS_ERROR" > "$0"')
    done = own_state.run("save", own_state.state)
    assert done.returncode == 18
    assert "volume app: sh: exit code 1: not now" in done.stderr
    assert log.read_text() == "released volume app: sh: exit code 1: not now\n"
    assert own_state.listing() == []
    assert [path.name for path in own_state.snapshots.iterdir()] == []


def test_the_mount_goes_on_while_a_command_runs(own_state: MountedState) -> None:
    """A command may use the mount as long as its deadline allows, and then is ended."""
    script = 'for n in 1 2 3; do echo $n > "$STATEFS_STATE/current/files/$n"; sync; done; sleep 60'
    configure(own_state, script, "true", "deadline = 3")
    begun = time.monotonic()
    done = own_state.run("save", own_state.state)
    assert done.returncode == 18 and "not done within 3 s" in done.stderr
    assert time.monotonic() - begun < WAIT_SECONDS
    assert sorted(path.name for path in own_state.files.iterdir()) == ["1", "2", "3"]


def test_a_failing_release_is_logged_and_the_snapshot_stays(own_state: MountedState) -> None:
    """What is saved is saved; whoever saves is warned, and the snapshot says it."""
    own_state.expected_log = "an application was not released"
    (own_state.current / "volumes" / "app").mkdir()
    configure(own_state, "true", "echo still frozen >&2; exit 5")
    done = own_state.run("save", own_state.state)
    what = "not released: sh: exit code 5: still frozen"
    assert (done.returncode, done.stderr) == (0, f"statefs: warning: volume app: {what}\n")
    [snapshot] = own_state.snapshots.glob("2*")
    assert json.loads((snapshot / "metadata.json").read_text())["volumeManifests"][0]["notes"] == [
        what
    ]
    assert len(own_state.listing()) == 1
    assert any("volume app: sh: exit code 5" in line for line in own_state.log_lines())


def test_a_wrong_configuration_refuses_to_save(own_state: MountedState) -> None:
    """One line that names the file and the key, with an exit code of its own."""
    own_state.expected_log = "no autosave and no pruning until this is put right"
    (own_state.store / "statefs.toml").write_text("[[volume]]\nname = 'x'\n")
    done = own_state.run("save", own_state.state)
    assert done.returncode == 17
    assert "statefs.toml: volume: this key is not known; did you mean volumes?" in done.stderr
    (own_state.store / "statefs.toml").unlink()
    own_state.save()


def test_a_killed_daemon_leaves_no_application_waiting(own_state: MountedState) -> None:
    """Its commands after the save run all the same, told why there is no snapshot."""
    ready = own_state.store.parent / "ready"
    log = configure(own_state, f"touch {ready}; sleep 2", 'echo "$STATEFS_ERROR" > "$0"')
    command = [sys.executable, "-m", "statefs", "save", str(own_state.state)]
    with subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL) as saving:
        deadline = time.monotonic() + WAIT_SECONDS
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        own_state.kill()
        saving.wait(WAIT_SECONDS)
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.read_text() == "statefs ended before the save did\n"
    own_state.mount()
    assert own_state.listing() == []

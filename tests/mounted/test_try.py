"""`statefs try` when more fails than its command, and when it is told to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from statefs.api import State
from statefs.cli import app
from statefs.errors import HookFailed, InvalidConfig, NoSpace
from tests.harness.mounted_state import MountedState

FAILING = "[[volumes]]\nname = 'app'\nbefore_save = [['false']]\n"
BROKEN = "this is no TOML"


def breaking(state: MountedState, config: str, *, exit_code: int) -> list[str]:
    """Return a command that changes a file and lets no snapshot be taken after it."""
    (state.files / "a").write_text("one")
    (state.current / "volumes/app").mkdir(parents=True, exist_ok=True)
    script = 'echo two > "$1"; printf %s "$2" > "$3"; exit "$4"'
    settings = state.store / "statefs.toml"
    return ["sh", "-c", script, "sh", str(state.files / "a"), config, str(settings), str(exit_code)]


@pytest.mark.parametrize("config", [FAILING, BROKEN])
def test_a_rollback_needs_no_snapshot_after_the_command(
    own_state: MountedState, config: str
) -> None:
    """A hook that fails, and settings that the command broke: it is put back, the code stays."""
    own_state.expected_log = r"'save' failed|statefs\.toml|before_save|hook"
    command = breaking(own_state, config, exit_code=3)
    done = own_state.run("try", own_state.state, "--on-failure", "rollback", "--", *command)
    assert done.returncode == 3, done.stderr
    assert "statefs: error: " in done.stderr
    assert done.stderr.splitlines()[-1].endswith("put back all that has changed since: 1 path")
    assert (own_state.files / "a").read_text() == "one"


@pytest.mark.parametrize(
    ("config", "exit_code", "expected"),
    [
        (FAILING, 5, 5),
        (FAILING, 0, HookFailed.exit_code),
        (BROKEN, 0, InvalidConfig.exit_code),
    ],
)
def test_the_way_back_is_named_without_a_snapshot_after_the_command(
    own_state: MountedState, config: str, exit_code: int, expected: int
) -> None:
    """What it prints brings the state back; a command that worked ends as the save did."""
    own_state.expected_log = r"'save' failed|statefs\.toml|before_save|hook"
    command = breaking(own_state, config, exit_code=exit_code)
    done = own_state.run("try", own_state.state, "--", *command)
    assert done.returncode == expected, done.stderr
    (before,) = own_state.listing()
    way = f"'statefs restore {own_state.state} {before['name']}' brings all of it back"
    assert way in done.stderr
    assert (own_state.files / "a").read_text() == "two\n"
    own_state.command("restore", own_state.state, before["name"])
    assert (own_state.files / "a").read_text() == "one"


def test_json_tells_why_there_is_no_snapshot_after_the_command(own_state: MountedState) -> None:
    """As one document, without a line before it."""
    own_state.expected_log = r"'save' failed|statefs\.toml|before_save|hook"
    command = breaking(own_state, FAILING, exit_code=3)
    done = own_state.run("try", own_state.state, "--json", "--", *command)
    told = json.loads(done.stderr)
    assert done.returncode == told["exitCode"] == 3
    assert told["after"] is None and told["rolledBack"] is None
    assert "volume app: false" in told["error"]


def test_json_has_both_snapshots_as_they_know_each_other(own_state: MountedState) -> None:
    """Also the first one, which was taken before there was a second."""
    told = json.loads(own_state.run("try", own_state.state, "--json", "--", "true").stderr)
    before, after = told["before"], told["after"]
    assert before["operation"]["other"] == after["snapshotId"]
    assert after["operation"]["other"] == before["snapshotId"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_what_comes_after_it_is_done(
    own_state: MountedState, number: signal.Signals
) -> None:
    """The command ends in its own time; then its snapshot is taken and it is rolled back."""
    file = own_state.files / "a"
    file.write_text("one")
    script = (
        "import signal, sys, pathlib\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [int(sys.argv[1])])\n"
        "pathlib.Path(sys.argv[2]).write_text('two')\n"
        "print('ready', flush=True)\n"
        "signal.sigwait([int(sys.argv[1])])\n"
        "sys.exit(9)\n"
    )
    words = ["try", str(own_state.state), "--on-failure", "rollback", "--"]
    command = [sys.executable, "-c", script, str(int(number)), str(file)]
    trying = subprocess.Popen(
        [sys.executable, "-m", "statefs", *words, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert trying.stdout is not None
    try:
        assert trying.stdout.readline() == "ready\n"
        trying.send_signal(number)
        _, said = trying.communicate(timeout=60)
    finally:
        trying.kill()
    assert trying.returncode == 9, said
    assert "put back what it changed: 1 path" in said
    assert file.read_text() == "one"
    assert [each["reason"] for each in own_state.listing()][:2] == ["before-try", "try"]


def test_a_command_that_a_signal_ends_has_the_code_of_a_shell(own_state: MountedState) -> None:
    """128 and the signal's number."""
    done = own_state.run("try", own_state.state, "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM


def test_what_could_not_be_put_back_is_told_too(
    own_state: MountedState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a snapshot nor the rollback has room: both are said, with the way back."""

    def refuse(*_: object, **__: object) -> None:
        raise NoSpace("no room for a rollback")

    own_state.expected_log = r"'save' failed|statefs\.toml|before_save|hook"
    command = breaking(own_state, FAILING, exit_code=3)
    monkeypatch.setattr(State, "restore", refuse)
    words = ["try", str(own_state.state), "--on-failure", "rollback", "--", *command]
    assert app.run(words) == 3
    said = capsys.readouterr().err
    assert "volume app: false: exit code 1; no room for a rollback" in said
    assert f"'statefs restore {own_state.state} " in said

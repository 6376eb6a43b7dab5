from __future__ import annotations

import errno
import json
import queue
import subprocess
import time
from pathlib import Path

import pytest

from statefs.config import Config, parse_config
from statefs.errors import InvalidConfig
from statefs.hooks import events
from statefs.hooks.events import EventCommands
from statefs.telemetry.events import AnyEvent, AutosaveTriggered, WorkerRestarted

TIME = "2026-03-13T12:00:00Z"
RESTARTED = WorkerRestarted(time=TIME, restarts=1, pid=7, version="0.1.0")
AUTOSAVE = AutosaveTriggered(time=TIME)
WAIT_SECONDS = 60.0
"""A process starts and a command runs in far less, on any machine."""


def settings(out: Path, *, on: str = "", command: str = "", deadline: str = "30s") -> Config:
    """Return settings with a command that writes what it is told into a file."""
    said = 'printf "%s\\n" "$STATEFS_EVENT_JSON $STATEFS_EVENT $STATEFS_STORE" >> ' + str(out)
    text = f"[[events]]\nhook = ['sh', '-c', '{command or said}']\ndeadline = '{deadline}'\n"
    return parse_config(text + (f"on = ['{on}']\n" if on else ""), "x")


def tell(config: Config, *happened: AnyEvent) -> None:
    """Have the commands of settings be run for some events, and hand all of them over."""
    commands = EventCommands(Path("/store"), lambda: config)
    for event in happened:
        commands.note(event)
    commands.close()


def lines_of(path: Path, count: int) -> list[str]:
    """Return the lines of a file once there are so many."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return lines
        assert time.monotonic() < end, lines
        time.sleep(0.02)


def test_a_command_learns_what_has_happened(tmp_path: Path) -> None:
    """By its environment, in the order of the events, although the teller has ended."""
    out = tmp_path / "out"
    tell(settings(out), RESTARTED, AUTOSAVE)
    first, second = lines_of(out, 2)
    document, _, rest = first.rpartition("} ")
    assert rest == "worker:restarted /store"
    assert json.loads(document + "}") == {
        "event": "worker:restarted", "time": TIME, "restarts": 1, "pid": 7, "version": "0.1.0",
    }  # fmt: skip
    assert "autosave:triggered" in second


def test_only_events_that_are_asked_for(tmp_path: Path) -> None:
    """Others pass by."""
    out = tmp_path / "out"
    tell(settings(out, on="worker:restarted"), AUTOSAVE, RESTARTED)
    (line,) = lines_of(out, 1)
    assert "worker:restarted" in line


def test_a_late_command_is_ended_and_the_next_is_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log of the daemon, which is standard error, says so."""
    out = tmp_path / "out"
    said = f"echo $STATEFS_EVENT >> {out}; exec sleep 1000"
    tell(settings(out, command=said, deadline="0.5s"), RESTARTED, AUTOSAVE)
    assert lines_of(out, 2) == ["worker:restarted", "autosave:triggered"]
    end, logged = time.monotonic() + WAIT_SECONDS, ""
    while logged.count("not done within 0.5 s") < 2:
        assert time.monotonic() < end, logged
        time.sleep(0.02)
        logged += capfd.readouterr().err
    assert " ERROR statefs.hooks.events: a command for worker:restarted failed: sh: " in logged


def test_nobody_waits_for_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not end, more are dropped: neither telling nor the end of a mount blocks."""
    monkeypatch.setattr(events, "LEAVE_SECONDS", 0.01)
    monkeypatch.setattr(events.EventCommands, "_hand_over", lambda _: None)
    commands = EventCommands(tmp_path, lambda: settings(tmp_path / "out"))
    commands._jobs = queue.Queue(2)
    for _ in range(5):
        commands.note(RESTARTED)
    assert commands._jobs.qsize() == 2
    commands.close()


def test_a_process_that_cannot_be_started_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And tried again with the next event."""
    out, started = tmp_path / "out", events._started
    failures = [OSError(errno.EAGAIN, "no room for a process")]

    def start() -> subprocess.Popen[bytes]:
        if failures:
            raise failures.pop()
        return started()

    monkeypatch.setattr(events, "_started", start)
    tell(settings(out), RESTARTED, AUTOSAVE)
    assert "autosave:triggered" in lines_of(out, 1)[0]
    assert "a command for worker:restarted is not run" in caplog.text


def test_wrong_settings_run_nothing(tmp_path: Path) -> None:
    """Nor do they disturb who tells; the keeper complains of them."""

    def wrong() -> Config:
        raise InvalidConfig("x")

    commands = EventCommands(tmp_path, wrong)
    commands.note(RESTARTED)
    assert commands._thread is None
    commands.close()

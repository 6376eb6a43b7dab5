"""`statefs events --follow` on a mount: what happens is seen as it happens, whoever serves it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness.mounted_state import MountedState, eventually

DIED = "worker [0-9]+ died"


@contextmanager
def followed(state: MountedState) -> Iterator[list[dict[str, Any]]]:
    """Follow a state's events from its first one; the list grows while the block runs."""
    events: list[dict[str, Any]] = []
    command = [sys.executable, "-m", "statefs", "events", str(state.state)]
    with subprocess.Popen(
        [*command, "--follow", "--after", "0", "--json"], cwd="/", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: events.extend(map(json.loads, lines)))
        reader.start()
        try:
            yield events
        finally:
            process.kill()
            reader.join()


def test_a_follower_sees_a_save_and_another_worker(own_state: MountedState) -> None:
    """Each once, in order, although the worker that was asked is killed meanwhile."""
    own_state.expected_log = DIED

    def seen(name: str) -> bool:
        return any(event["event"] == name for event in events)

    with followed(own_state) as events:
        eventually(lambda: seen("state:loaded"), "the mount is told")
        name = own_state.save("one")
        eventually(lambda: seen("state:saved"), "the save is told")
        os.kill(own_state.worker_pid(), signal.SIGKILL)
        eventually(lambda: seen("worker:restarted"), "the new worker is told")
        again = own_state.save("two")
        eventually(lambda: events[-1].get("snapshot") == again, "the save after it is told")
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    names = [event["event"] for event in events]
    assert names == ["state:loaded", "state:saved", "worker:restarted", "state:saved"]
    assert events[1]["snapshot"] == name
    assert events[2]["restarts"] == 1 and events[2]["pid"] == own_state.worker_pid()
    assert any("worker" in line and "restart 1" in line for line in own_state.log_lines())


def test_following_ends_with_the_mount(own_state: MountedState) -> None:
    """With exit code 0 and nothing lost; a state that is not mounted cannot be followed."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "statefs",
            "events",
            str(own_state.state),
            "--follow",
            "--after",
            "0",
        ],
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "state:loaded" in process.stdout.readline()
            own_state.umount()
            assert process.wait(60) == 0
        finally:
            process.kill()
    refused = own_state.run("events", "--store", own_state.store, "--follow")
    assert refused.returncode == 4 and "not mounted" in refused.stderr
    listed = own_state.command("events", "--store", own_state.store, "--json")
    assert [json.loads(line)["event"] for line in listed.splitlines()] == ["state:loaded"]
    own_state.mount()


def test_a_command_of_the_settings_is_run(own_state: MountedState, tmp_path: Path) -> None:
    """For a save on a mount; one that lies in the mount itself holds nothing up."""
    program, out = own_state.files / "hook", tmp_path / "out"
    program.write_text(f'#!/bin/sh\necho "$STATEFS_EVENT" >> {out}\n')
    program.chmod(0o755)
    settings = f"[[events]]\nhook = ['{program}']\non = ['state:saved']\n"
    (own_state.store / "statefs.toml").write_text(settings)
    own_state.save("one")
    eventually(lambda: out.exists() and out.read_text() == "state:saved\n", "the command runs")

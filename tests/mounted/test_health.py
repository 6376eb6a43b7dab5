"""`statefs health` on a mount: the exit code follows what is wrong, and what is wrong is told."""

from __future__ import annotations

import json
import os
import signal

from statefs.errors import Unhealthy
from tests.harness.mounted_state import MountedState, eventually


def failing(state: MountedState) -> list[str]:
    """Return the checks that fail, after a look at the exit code."""
    done = state.run("health", state.state, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else Unhealthy.exit_code)
    return [each["check"] for each in document["checks"] if not each["ok"]]


def configure(state: MountedState, text: str) -> None:
    """Write the state's statefs.toml."""
    (state.store / "statefs.toml").write_text(text)


def test_health_follows_what_is_wrong(own_state: MountedState) -> None:
    """Well; then too many restarts, told by an event and in the log; then not mounted."""
    own_state.expected_log = "worker [0-9]+ died|restarts is not well"
    configure(own_state, "[health]\nmin_free = 0\nmax_restarts = 1\ninterval = 0.2\n")
    assert failing(own_state) == []
    for restarts in (1, 2):
        os.kill(own_state.worker_pid(), signal.SIGKILL)
        eventually(lambda: own_state.status()["restarts"] == restarts, "a new worker")  # noqa: B023
    assert failing(own_state) == ["restarts"]

    def events() -> list[str]:
        said = own_state.command("events", own_state.state, "--json")
        return [json.loads(line)["event"] for line in said.splitlines()]

    eventually(lambda: "health:changed" in events(), "the check is told")
    own_state.umount()
    done = own_state.run("health", "--store", own_state.store)
    assert done.returncode == Unhealthy.exit_code and "FAIL  mounted" in done.stdout
    own_state.mount()


def test_a_low_disk_is_told_when_a_setting_says_so(own_state: MountedState) -> None:
    """While it is mounted: the setting is read again, the event comes, health fails."""
    own_state.expected_log = "until this is put right"
    configure(own_state, '[health]\nmin_free = "1000TB"\ninterval = 0.2\nlog_format = "text"\n')
    assert own_state.run("health", own_state.state).returncode == 17
    configure(own_state, 'log_format = "json"\n[health]\nmin_free = "1000TB"\ninterval = 0.2\n')

    def told() -> list[dict[str, object]]:
        lines = [line for line in own_state.log_lines() if line.startswith("{")]
        return [each for each in map(json.loads, lines) if each.get("event") == "disk:low"]

    eventually(lambda: bool(told()), "the disk is told, in JSON")
    assert failing(own_state) == ["disk"]
    assert told()[0]["level"] == "WARNING" and told()[0]["total_bytes"]

"""Commands with deadlines: what they say, and that nothing of them is left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from statefs.errors import HookFailed
from statefs.hooks.commands import Deadline, owner_of, run
from tests.harness.mounted_state import wait_until_gone


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that is dead but not collected does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_output_of_a_command_is_returned() -> None:
    """Standard output alone; its environment has what was added."""
    said = run(["sh", "-c", "echo $WORD; echo no >&2"], Deadline(20), env={"WORD": "yes"})
    assert said == "yes\n"


def test_a_command_that_fails_is_quoted() -> None:
    """The error has the program, its exit code and the end of what it said, in one line."""
    with pytest.raises(HookFailed, match=r"^sh: exit code 3: first second$"):
        run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"], Deadline(20))
    with pytest.raises(HookFailed, match=r"^sh: exit code 4: told on stdout$"):
        run(["sh", "-c", "echo told on stdout; exit 4"], Deadline(20))
    with pytest.raises(HookFailed, match=r"^sh: killed by SIGKILL$"):
        run(["sh", "-c", "kill -9 $$"], Deadline(20))


def test_a_command_that_does_not_exist_is_an_error() -> None:
    """The error names it."""
    with pytest.raises(HookFailed, match=r"^no-such-program: No such file"):
        run(["no-such-program"], Deadline(20))


def test_a_late_command_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Its children go too, those that do not want to as well."""
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 300 & echo $! $$ > {pids}; echo slow >&2; wait; sleep 300"
    begun = time.monotonic()
    with pytest.raises(HookFailed, match=r"^sh: not done within 0.5 s, ended: slow$"):
        run(["sh", "-c", script], Deadline(0.5))
    assert time.monotonic() - begun < 30
    for pid in pids.read_text().split():  # killed, and gone when the kernel comes to it
        wait_until_gone(int(pid))


def test_a_child_in_the_background_keeps_nobody_waiting() -> None:
    """A hook may start a server: its open output is not waited for."""
    said = run(["sh", "-c", "sleep 4 & echo $!"], Deadline(20))
    assert is_alive(int(said))
    os.kill(int(said), 9)


def test_nothing_is_started_after_the_deadline() -> None:
    """A deadline is for all commands of a volume together."""
    with pytest.raises(HookFailed, match="not done within 0 s"):
        run(["true"], Deadline(0))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
def test_a_command_runs_as_the_owner_of_a_folder(tmp_path: Path) -> None:
    """Owners known by number only are no problem; root stays root."""
    assert owner_of(tmp_path) is None
    os.chown(tmp_path, 54321, 54322)
    script = "id -u; id -g; id -G; echo $HOME"
    said = run(["sh", "-c", script], Deadline(20), account=owner_of(tmp_path))
    assert said.split() == ["54321", "54322", "54322", "/"]

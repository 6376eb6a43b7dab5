"""SIGTERM to a mount that is not usable yet: one line, an exit code, and nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from statefs.errors import MountEnded
from statefs.layout import StoreLayout
from statefs.locking import read_owner
from statefs.mounts import find_mount
from tests.harness.mounted_state import END_SECONDS

ATTEMPTS: Final = 20
"""A mount may be usable before its worker is stopped; not that often in a row."""


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, none when it has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(word) for word in words]
    return []


def is_running(pid: int, program: bytes) -> bool:
    """Return whether a process runs a program, and is not what it was forked from."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def catches(pid: int, number: int) -> bool:
    """Return whether a daemon handles a signal (proc(5))."""
    with suppress(FileNotFoundError, ProcessLookupError):
        if not is_running(pid, b"statefs.daemon"):
            return False
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(re.findall(r"SigCgt:\t(\w+)", status)[0], 16)
        return bool(caught >> (number - 1) & 1)
    return False


def begun(state: Path) -> tuple[subprocess.Popen[str], int, int] | None:
    """Begin to mount, and stop the worker; None where the mount was usable before.

    Returns:
        The command, the daemon, the worker.
    """
    command = [sys.executable, "-m", "statefs", "mount", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        for daemon in children(process.pid):
            for worker in children(daemon):
                if not is_running(worker, b"statefs.daemon.worker"):
                    continue  # before that its parent waits for it (vfork(2))
                os.kill(worker, signal.SIGSTOP)
                while process.poll() is None and not catches(daemon, signal.SIGTERM):
                    time.sleep(0.001)
                return process, daemon, worker
    process.communicate()
    subprocess.run([*command[:3], "umount", str(state)], check=True, capture_output=True)
    return None


@pytest.fixture
def mounting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A mount of tmp_path/state that is under way; its worker is stopped."""
    found = None
    for _ in range(ATTEMPTS):
        found = found or begun(tmp_path / "state")
    assert found is not None
    yield found
    with suppress(ProcessLookupError):
        os.kill(found[2], signal.SIGCONT)


@pytest.mark.parametrize("to_daemon", [False, True], ids=["the command", "the daemon"])
def test_a_mount_that_is_ended_leaves_nothing(
    mounting: tuple[subprocess.Popen[str], int, int], tmp_path: Path, to_daemon: bool
) -> None:
    """Not the mount, nor its processes, nor the lock; the next one works."""
    process, daemon, worker = mounting
    state, layout = tmp_path / "state", StoreLayout(tmp_path / "state.store")
    os.kill(daemon if to_daemon else process.pid, signal.SIGTERM)
    os.kill(worker, signal.SIGCONT)
    _, said = process.communicate(timeout=3 * END_SECONDS)
    assert process.returncode == MountEnded.exit_code == 37
    assert said.count("\n") == 1 and "SIGTERM has ended the mount" in said
    assert find_mount(state) is None and not state.exists()
    assert not Path(f"/proc/{daemon}").exists() and not Path(f"/proc/{worker}").exists()
    assert read_owner(layout) is None
    for command in ("mount", "umount"):
        words = [sys.executable, "-m", "statefs", command, str(state)]
        subprocess.run(words, check=True, capture_output=True)

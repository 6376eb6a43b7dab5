"""What a service manager is told, on a socket of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from statefs.daemon.init_system import InitSystem


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket, bound at notify in the test's folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def say(monkeypatch: pytest.MonkeyPatch, folder: Path, watched: int) -> None:
    """Set what a manager says in the environment: it watches the process `watched`."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(watched))


def test_a_manager_is_told_everything(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address and period come from the environment, and no child finds them there."""
    say(monkeypatch, tmp_path, os.getpid())
    told = InitSystem.from_environment()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    assert told.period_seconds == 1.5
    told.ready("mounted")
    told.alive()
    told.stopping()
    received = [manager.recv(100) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=mounted", b"WATCHDOG=1", b"STOPPING=1"]


def test_the_watchdog_of_another_process_is_not_ours(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager watches the process that it has started."""
    say(monkeypatch, tmp_path, os.getppid())
    told = InitSystem.from_environment()
    assert told.period_seconds is None
    told.alive()
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    """It is a name without a file."""
    name = f"statefs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        InitSystem(f"@{name}").stopping()
        assert receiver.recv(100) == b"STOPPING=1"


def test_without_a_manager_nobody_is_told(tmp_path: Path) -> None:
    """Nor when it has gone."""
    InitSystem(None).ready("mounted")
    InitSystem(str(tmp_path / "gone")).ready("mounted")

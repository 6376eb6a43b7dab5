"""A state as a service of systemd: the unit, and what the daemon tells its manager."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from statefs.layout import default_store

UNIT: Final = Path(__file__).parents[2] / "scripts" / "statefs@.service"
PERIOD_US: Final = 1_000_000
SECONDS: Final = 60.0


def test_a_service_is_ready_lives_and_saves_at_its_end(tmp_path: Path) -> None:
    """READY when the mount is usable, a sign of life in time, SIGTERM saves and unmounts."""
    state, address = tmp_path / "state", tmp_path / "notify"
    command = [sys.executable, "-m", "statefs", "mount", "--foreground", "--repair", str(state)]
    told = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(PERIOD_US)}
    store = default_store(state)
    subprocess.run([sys.executable, "-m", "statefs", "init", str(state)], check=True)
    (store / "statefs.toml").write_text("autosave = true\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(SECONDS)
        process = subprocess.Popen(command, env=os.environ | told, stderr=subprocess.PIPE)
        try:
            first = manager.recv(1000).decode()
            assert first == f"READY=1\nSTATUS={store} is mounted at {state}"
            (state / "current" / "files" / "note").write_text("kept")
            assert {manager.recv(1000) for _ in range(3)} == {b"WATCHDOG=1"}
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
        while (last := manager.recv(1000)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"
    assert not os.path.ismount(state)
    listed = subprocess.run(
        [sys.executable, "-m", "statefs", "list", str(state)], capture_output=True, text=True
    )
    assert listed.returncode == 0 and "shutdown" in listed.stdout


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    """Nothing in it is unknown, and its program is there."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text()
    assert text.count("@STATEFS@") == 1
    unit = tmp_path / "statefs@srv-shop-state.service"
    for program, is_sound in ((sys.executable, True), (str(tmp_path / "missing"), False)):
        unit.write_text(text.replace("@STATEFS@", program))
        done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert (done.returncode == 0 and not said) == is_sound, said

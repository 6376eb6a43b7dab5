from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.mounted_state import END_SECONDS, detach
from tests.harness.processes import NOBODY, Person, run_as

Command = Callable[..., subprocess.CompletedProcess[str]]
COMMAND_SECONDS = 2 * END_SECONDS


@pytest.fixture
def home(wide_folder: Path) -> Path:
    """A folder of an ordinary user who can mount: fusermount3 is there, and /dev/fuse open."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    user = os.geteuid() or NOBODY

    def can_mount() -> bool:
        return os.access("/dev/fuse", os.R_OK | os.W_OK) and os.access(sys.executable, os.X_OK)

    if not run_as(Person(user, user) if os.geteuid() == 0 else None, can_mount):
        pytest.skip("an ordinary user may not open /dev/fuse or this Python")
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


@pytest.fixture
def as_user(home: Path) -> Command:
    """Runs `statefs` as the ordinary user."""
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [sys.executable, "-m", "statefs", *map(str, arguments)],
            cwd="/",
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            **identity,  # type: ignore[call-overload]
        )
        return done

    return run


def test_an_ordinary_user_mounts_saves_and_unmounts(home: Path, as_user: Command) -> None:
    """Without any right, through fusermount3; nobody else looks in, not even root."""
    state = home / "state"
    person = Person(NOBODY, NOBODY) if os.geteuid() == 0 else None
    try:
        done = as_user("mount", state)
        assert done.returncode == 0, done.stderr
        run_as(person, lambda: (state / "current/files/f").write_bytes(b"mine"))
        if os.geteuid() == 0:
            with pytest.raises(PermissionError):
                os.listdir(state)
        saved = as_user("save", state)
        assert saved.returncode == 0, saved.stderr
        past = state / "snapshots" / saved.stdout.strip() / "files/f"
        assert run_as(person, past.read_bytes) == b"mine"
        ended = as_user("umount", state)
        assert ended.returncode == 0, ended.stderr
        checked = as_user("verify", state)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        detach(home)


def test_allow_other_is_refused_with_the_line_to_add(home: Path, as_user: Command) -> None:
    """Where /etc/fuse.conf does not allow it, the message says what to write there."""
    configuration = Path("/etc/fuse.conf")
    lines = configuration.read_text().splitlines() if configuration.exists() else []
    if "user_allow_other" in [line.strip() for line in lines]:
        pytest.skip("/etc/fuse.conf allows it to everybody")
    done = as_user("mount", home / "state", "-o", "allow_other")
    try:
        assert done.returncode == 9, done.stdout
        assert done.stderr.count("\n") == 1
        assert "user_allow_other" in done.stderr and "/etc/fuse.conf" in done.stderr
    finally:
        detach(home)

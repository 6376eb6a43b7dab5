from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState, mounted
from tests.harness.processes import NOBODY, Person, run_as

pytestmark = pytest.mark.usefixtures("as_root")
NOBODYS = Person(NOBODY, NOBODY)


def test_without_allow_other_a_mount_is_private(wide_folder: Path) -> None:
    """Another user is refused at the door, whatever the modes say."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with mounted(folder) as state:
        state.current.chmod(0o777)
        with pytest.raises(PermissionError):
            run_as(NOBODYS, lambda: os.listdir(state.state))
        assert "files" in os.listdir(state.current)


def test_with_allow_other_modes_decide(shared_state: MountedState) -> None:
    """Another user works in a folder of its own, snapshots what it may read, and no more."""
    home = shared_state.files / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    shared_state.files.chmod(0o755)
    run_as(NOBODYS, lambda: (home / "f").write_bytes(b"mine"))
    assert os.stat(home / "f").st_uid == NOBODY
    (shared_state.files / "roots").write_bytes(b"x")
    (shared_state.files / "roots").chmod(0o600)
    name = shared_state.save()
    frozen = shared_state.snapshots / name / "files"
    assert run_as(NOBODYS, (frozen / "home/f").read_bytes) == b"mine"
    with pytest.raises(PermissionError):
        run_as(NOBODYS, (frozen / "roots").read_bytes)


def test_only_owner_and_root_make_snapshots_by_mkdir(shared_state: MountedState) -> None:
    """Snapshots are of everything, so not everybody takes or deletes them."""
    with pytest.raises(PermissionError):
        run_as(NOBODYS, (shared_state.snapshots / "by-nobody").mkdir)
    name = shared_state.save()
    with pytest.raises(PermissionError):
        run_as(NOBODYS, (shared_state.snapshots / name).rmdir)
    assert name in os.listdir(shared_state.snapshots)


def test_root_is_not_needed_to_read_what_everybody_may(shared_state: MountedState) -> None:
    """index.json and the listing of snapshots are open to every user of the mount."""
    text = run_as(NOBODYS, (shared_state.state / "index.json").read_text)
    assert text == (shared_state.state / "index.json").read_text()
    assert run_as(NOBODYS, lambda: os.listdir(shared_state.snapshots)) == os.listdir(
        shared_state.snapshots
    )

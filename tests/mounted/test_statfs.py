from __future__ import annotations

import os
import subprocess

from tests.harness.mounted_state import MountedState

MIB = 1024 * 1024
SLACK_BYTES = 256 * MIB
"""What other programs may write to the host's disk between two calls."""


def test_free_space_is_the_hosts(shared_state: MountedState) -> None:
    """Statfs gives the sizes of the filesystem that holds the store."""
    ours, host = os.statvfs(shared_state.files), os.statvfs(shared_state.store)
    assert ours.f_blocks * ours.f_frsize == host.f_blocks * host.f_frsize
    for attribute in ("f_bfree", "f_bavail"):
        free, truth = getattr(ours, attribute) * ours.f_frsize, getattr(host, attribute)
        assert abs(free - truth * host.f_frsize) < SLACK_BYTES


def test_limits_are_real(shared_state: MountedState) -> None:
    """The longest name is 255, blocks and inodes are positive, and free ones fit in all."""
    ours = os.statvfs(shared_state.files)
    assert ours.f_namemax == 255
    assert ours.f_bsize >= 512 and ours.f_frsize >= 512
    assert 0 < ours.f_ffree <= ours.f_files
    assert 0 < ours.f_favail <= ours.f_ffree


def test_df_shows_the_store(shared_state: MountedState) -> None:
    """A person who runs df sees the filesystem's type and the store it comes from."""
    done = subprocess.run(
        ["df", "--output=source,fstype,target", str(shared_state.state)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.splitlines()[1].split() == [
        str(shared_state.store),
        "fuse.statefs",
        str(shared_state.state),
    ]


def test_du_counts_what_is_there(shared_state: MountedState) -> None:
    """The sum of st_blocks of a tree is about the bytes written into it."""
    folder = shared_state.files / "du"
    folder.mkdir()
    for number in range(8):
        (folder / str(number)).write_bytes(os.urandom(MIB))
    done = subprocess.run(
        ["du", "-s", "-B1", str(folder)], capture_output=True, text=True, check=True, timeout=30
    )
    assert 8 * MIB <= int(done.stdout.split()[0]) <= 10 * MIB

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState, mounted
from tests.harness.small_disks import MIB, loop_disk, need, run
from tests.harness.system_calls import errno_of

REFUSED = (errno.EROFS, errno.EIO)
LOG = "Read-only file system|Input/output error|the disk refuses|disk I/O error|readonly database"


def device_of(disk: Path) -> Path:
    """Return the device of a mounted filesystem."""
    number = os.stat(disk).st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    return Path("/dev") / block.name


def turn_read_only(disk: Path) -> None:
    """Have ext4 find an error, after which it takes no more writes."""
    switch = Path("/sys/fs/ext4") / device_of(disk).name / "trigger_fs_error"
    if not switch.exists():
        pytest.skip("this kernel cannot be told that a filesystem has an error")
    switch.write_text("1")


def heal(disk: Path) -> None:
    """Check the filesystem and mount it again, as after a boot."""
    device = device_of(disk)
    run("umount", disk)
    done = subprocess.run(["e2fsck", "-fy", device], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stdout  # 1: it corrected something
    run("mount", device, disk)


def kept(state: MountedState) -> None:
    """Check what was acknowledged, in current/ and in the snapshot."""
    for folder in (state.files, state.snapshots / "latest/files"):
        assert (folder / "big").read_bytes() == b"big" * 5_000
        assert (folder / "small").read_bytes() == b"small"


def test_a_disk_that_turns_read_only_costs_no_acknowledged_byte(wide_folder: Path) -> None:
    """Changes are refused, what was closed and saved is read, and the mount goes on."""
    need("e2fsck")
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    with (
        loop_disk(folder, 48 * MIB, "mkfs.ext4", "-q", "-e", "remount-ro") as disk,
        mounted(folder, store=disk / "store") as state,
    ):
        state.expected_log = LOG
        (state.files / "big").write_bytes(b"big" * 5_000)
        (state.files / "small").write_bytes(b"small")
        state.save("before")
        turn_read_only(disk)
        for name, content in (("new", b"n"), ("big", b"b" * 20_000), ("small", b"s")):
            assert errno_of(partial((state.files / name).write_bytes, content)) in REFUSED
        assert errno_of(partial(os.unlink, state.files / "small")) in REFUSED
        done = state.run("save", state.state)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1
        assert sorted(os.listdir(state.files)) == ["big", "small"]
        kept(state)
        state.umount()
        heal(disk)
        state.mount()
        kept(state)
        (state.files / "new").write_bytes(b"n")

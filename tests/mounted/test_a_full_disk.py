from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState, eventually, mounted
from tests.harness.small_disks import MIB, loop_disk, need, run
from tests.harness.system_calls import errno_of
from tests.harness.trees import capture, differences

CHUNK = b"0123456789abcdef" * 4096
"""64 KiB, more than a row holds."""
FULL_LOG = "No space left|quota exceeded|disk (is )?full"
FULL = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture(params=["disk-full", "quota"])
def limited(request: pytest.FixtureRequest, wide_folder: Path) -> Iterator[MountedState]:
    """A state whose store has about 48 MiB: on a small ext4, or on btrfs with a quota."""
    folder = Path(tempfile.mkdtemp(dir=wide_folder))
    folder.chmod(0o755)
    if request.param == "disk-full":
        with (
            loop_disk(folder, 48 * MIB, "mkfs.ext4", "-q", "-m", "0") as disk,
            mounted(folder, store=disk / "store") as state,
        ):
            state.expected_log = FULL_LOG
            yield state
        return
    need("btrfs")
    with loop_disk(folder, 256 * MIB, "mkfs.btrfs", "-q") as disk:
        run("btrfs", "subvolume", "create", disk / "part")
        run("btrfs", "quota", "enable", disk)
        run("btrfs", "qgroup", "limit", "48M", disk / "part")
        with mounted(folder, store=disk / "part/store") as state:
            state.expected_log = FULL_LOG
            yield state


def fill(descriptor: int) -> int:
    """Write chunks until the disk refuses; return the bytes that were acknowledged."""
    done = 0
    while (code := errno_of(lambda: os.write(descriptor, CHUNK))) == 0:
        done += len(CHUNK)
        # Where a quota is counted when the disk is written, wait for the counting.
        os.fsync(descriptor) if done % (4 * MIB) == 0 else None
    assert code in FULL
    return done


def test_a_full_disk_refuses_and_loses_nothing(limited: MountedState) -> None:
    """A large file that does not fit: the error of the host, and every acknowledged byte."""
    (limited.files / "before").write_bytes(b"kept" * 5_000)
    limited.save("before it was full")
    with open(limited.files / "big", "wb", buffering=0) as file:
        acknowledged = fill(file.fileno())
    content = (limited.files / "big").read_bytes()
    assert content[:acknowledged] == CHUNK * (acknowledged // len(CHUNK))
    assert (limited.files / "before").read_bytes() == b"kept" * 5_000
    limited.remount()
    assert (limited.files / "big").read_bytes() == content
    os.unlink(limited.files / "big")
    eventually(
        lambda: errno_of(lambda: (limited.files / "after").write_bytes(CHUNK * 100)) == 0,
        "there is room again after the removal",
    )
    assert (limited.files / "after").read_bytes() == CHUNK * 100
    assert (limited.snapshots / "latest/files/before").read_bytes() == b"kept" * 5_000


# Not on btrfs with a quota: there even a removal may be refused, see docs/semantics.md.
@pytest.mark.parametrize("limited", ["disk-full"], indirect=True)
def test_small_files_until_the_disk_is_full(limited: MountedState) -> None:
    """Every small file whose close returned is there, whole, also after kill -9; removal works."""
    kept = []
    number, code = 0, 0
    while code == 0:
        path = limited.files / f"f{number}"
        code = errno_of(lambda path=path, n=number: path.write_bytes(b"%07d" % n * 500))  # type: ignore[misc]
        if code == 0:
            kept.append(path)
        number += 1
        assert number < 100_000, "48 MiB cannot hold this"
    assert code in FULL
    assert len(kept) > 300
    limited.kill()
    limited.mount()
    for n, path in enumerate(kept):
        assert path.read_bytes() == b"%07d" % n * 500
    for path in kept[::2]:
        path.unlink()
    assert not any(path.exists() for path in kept[::2])
    assert all(path.stat().st_size == 3_500 for path in kept[1::2])


def test_a_save_on_a_full_disk_is_whole_or_refused(limited: MountedState) -> None:
    """Either the snapshot is there and equal, or the command says so and nothing is listed."""
    with open(limited.files / "big", "wb", buffering=0) as file:
        fill(file.fileno())
    before = capture(limited.files)
    done = limited.run("save", limited.state)
    listed = limited.listing()
    if done.returncode == 0:
        past = limited.snapshots / done.stdout.strip() / "files"
        assert differences(before, capture(past)) == []
    else:
        assert len(done.stderr.splitlines()) == 1
        assert listed == []
    assert differences(before, capture(limited.files)) == []
    os.unlink(limited.files / "big")
    for snapshot in listed:
        limited.delete(snapshot["name"])
    eventually(lambda: limited.run("save", limited.state).returncode == 0, "a save fits again")


@pytest.mark.parametrize("limited", ["disk-full"], indirect=True)
def test_a_command_that_fills_the_disk_is_rolled_back(limited: MountedState) -> None:
    """There is no room for a snapshot after it; its exit code, and what was before, are back."""
    file, big = limited.files / "a", limited.files / "big"
    file.write_text("one")
    script = 'echo two > "$1"; cat /dev/zero > "$2"; exit 3'
    command = ["sh", "-c", script, "sh", str(file), str(big)]
    done = limited.run("try", limited.state, "--on-failure", "rollback", "--", *command)
    assert done.returncode == 3, done.stderr
    assert "put back " in done.stderr
    assert file.read_text() == "one" and not big.exists()

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.mounted_state import MountedState
from tests.harness.sample_tree import make_sample_tree
from tests.harness.system_calls import RENAME_EXCHANGE, errno_of, renameat2
from tests.harness.trees import capture, differences


@pytest.fixture(scope="module")
def past(shared_state: MountedState) -> Iterator[Path]:
    """The files of a snapshot of everything; afterwards it is still what it was."""
    make_sample_tree(shared_state.files)
    before = capture(shared_state.files)
    folder = shared_state.snapshots / shared_state.save() / "files"
    yield folder
    assert differences(before, capture(folder)) == []


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda past: os.open(past / "small", os.O_WRONLY),
    "open for both": lambda past: os.open(past / "large", os.O_RDWR),
    "open appending": lambda past: os.open(past / "small", os.O_WRONLY | os.O_APPEND),
    "open truncating": lambda past: os.open(past / "small", os.O_RDONLY | os.O_TRUNC),
    "create": lambda past: os.open(past / "new", os.O_CREAT | os.O_WRONLY),
    "create below": lambda past: os.open(past / "deep/er/new", os.O_CREAT | os.O_RDONLY),
    "truncate": lambda past: os.truncate(past / "large", 5),
    "mkdir": lambda past: os.mkdir(past / "new"),
    "mkfifo": lambda past: os.mkfifo(past / "new"),
    "symlink": lambda past: os.symlink("x", past / "new"),
    "link": lambda past: os.link(past / "small", past / "new"),
    "unlink": lambda past: os.unlink(past / "small"),
    "rmdir": lambda past: os.rmdir(past / "empty-folder"),
    "rename": lambda past: os.rename(past / "small", past / "new"),
    "rename over": lambda past: os.rename(past / "small", past / "page"),
    "exchange": lambda past: renameat2(past / "small", past / "page", RENAME_EXCHANGE),
    "chmod": lambda past: os.chmod(past / "small", 0o777),
    "chmod of a folder": lambda past: os.chmod(past, 0o777),
    "chown": lambda past: os.chown(past / "small", os.getuid(), -1),
    "lchown": lambda past: os.lchown(past / "link", os.getuid(), -1),
    "utime": lambda past: os.utime(past / "small", ns=(1, 1)),
    "utime of a link": lambda past: os.utime(past / "link", ns=(1, 1), follow_symlinks=False),
    "setxattr": lambda past: os.setxattr(past / "small", "user.new", b"x"),
    "removexattr": lambda past: os.removexattr(past / "small", "user.number-0"),
    "set an ACL": lambda past: os.setxattr(
        past / "small",
        "system.posix_acl_access",
        os.getxattr(past / "page", "system.posix_acl_access"),
    ),
    "remove an ACL": lambda past: os.removexattr(past / "page", "system.posix_acl_access"),
    "the snapshot's own folder": lambda past: os.mkdir(past.parent / "new"),
    "unlink metadata.json": lambda past: os.unlink(past.parent / "metadata.json"),
    "write metadata.json": lambda past: os.open(past.parent / "metadata.json", os.O_WRONLY),
    "through latest": lambda past: os.mkdir(past.parent.parent / "latest/files/new"),
    "unlink latest": lambda past: os.unlink(past.parent.parent / "latest"),
    "a file beside snapshots": lambda past: os.open(
        past.parent.parent / "new", os.O_CREAT | os.O_WRONLY
    ),
    "a link beside snapshots": lambda past: os.symlink("x", past.parent.parent / "new"),
    "rename a snapshot": lambda past: os.rename(past.parent, past.parent.parent / "new"),
    "chmod a snapshot": lambda past: os.chmod(past.parent, 0o700),
    "chmod of all snapshots": lambda past: os.chmod(past.parent.parent, 0o700),
    "write index.json": lambda past: os.open(past.parents[2] / "index.json", os.O_WRONLY),
    "unlink index.json": lambda past: os.unlink(past.parents[2] / "index.json"),
    "a file beside current": lambda past: os.open(past.parents[2] / "x", os.O_CREAT | os.O_WRONLY),
    "a folder beside current": lambda past: os.mkdir(past.parents[2] / "new"),
    "remove current": lambda past: os.rmdir(past.parents[2] / "current"),
    "rename current": lambda past: os.rename(past.parents[2] / "current", past.parents[2] / "x"),
    "chmod of the mount": lambda past: os.chmod(past.parents[2], 0o700),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=[name.replace(" ", "-") for name in WRITES])
def test_every_kind_of_write_is_refused(past: Path, write: Callable[[Path], object]) -> None:
    """A snapshot is read-only for everybody, root too, and says so with EROFS."""
    assert errno_of(lambda: write(past)) == errno.EROFS


CROSSINGS: dict[str, Callable[[Path, Path], object]] = {
    "rename out": lambda past, current: os.rename(past / "small", current / "taken"),
    "link out": lambda past, current: os.link(past / "small", current / "taken"),
    "rename in": lambda past, current: os.rename(current / "small", past / "given"),
    "link in": lambda past, current: os.link(current / "small", past / "given"),
    "rename a folder in": lambda past, current: os.rename(current / "deep", past / "given"),
}


@pytest.mark.parametrize("cross", CROSSINGS.values(), ids=[n.replace(" ", "-") for n in CROSSINGS])
def test_nothing_moves_between_a_snapshot_and_current(
    past: Path, shared_state: MountedState, cross: Callable[[Path, Path], object]
) -> None:
    """Renames and links across the border are refused and change neither side."""
    before = capture(shared_state.files)
    assert errno_of(lambda: cross(past, shared_state.files)) in (errno.EROFS, errno.EXDEV)
    assert differences(before, capture(shared_state.files)) == []


def test_reading_a_snapshot_works_in_every_way(past: Path) -> None:
    """Open with O_CREAT of an existing file, O_DIRECT-free reads, maps and access(2) all work."""
    descriptor = os.open(past / "small", os.O_RDONLY | os.O_CREAT)
    assert len(os.read(descriptor, 1000)) == 300
    os.close(descriptor)
    assert os.access(past / "small", os.R_OK)
    assert sorted(os.listdir(past / "folder-link")) == ["inherited", "small-too", "still"]


def test_inode_numbers_are_the_snapshots_own(past: Path, shared_state: MountedState) -> None:
    """No inode of a snapshot is one of current or of another snapshot: tools that compare
    st_dev and st_ino (cp, tar, diff) must not take a past file for the present one.
    """
    other = shared_state.snapshots / shared_state.save() / "files"
    inodes = [
        {os.lstat(path).st_ino for path in folder.rglob("*")}
        for folder in (shared_state.files, past, other)
    ]
    assert not inodes[0] & inodes[1]
    assert not inodes[0] & inodes[2]
    assert not inodes[1] & inodes[2]


def test_hard_links_are_equal_within_a_snapshot(past: Path) -> None:
    """Names of one file are names of one inode there too, with its count."""
    first, second = os.stat(past / "small"), os.stat(past / "deep/er/small-too")
    assert first.st_ino == second.st_ino
    assert first.st_nlink == 3
    assert os.stat(past / "large").st_ino == os.stat(past / "deep/large-again").st_ino


def test_inode_numbers_of_a_snapshot_do_not_change(past: Path) -> None:
    """Asked again, after everything else was looked at, each name has the same number."""
    before = {path: os.lstat(path).st_ino for path in past.rglob("*")}
    assert {path: os.lstat(path).st_ino for path in past.rglob("*")} == before

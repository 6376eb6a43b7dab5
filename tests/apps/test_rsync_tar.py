"""rsync and tar carry trees into a mount, out of it and out of snapshots, and lose nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.apps.programs import needs, run
from tests.apps.rich_tree import SPARSE_BYTES, make_rich_tree
from tests.harness.mounted_state import MountedState
from tests.harness.trees import Tree, capture, differences

BYTES_OF_A_BLOCK: Final = 512
RSYNC: Final = ("rsync", "-aHAX", "--sparse", "--numeric-ids")
TAR: Final = ("tar", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner")


def by_rsync(source: Path, target: Path) -> None:
    """Copy a tree with rsync."""
    run(*RSYNC, f"{source}/", f"{target}/")


def by_tar(source: Path, target: Path) -> None:
    """Copy a tree with an archive that lies beside the target while it is unpacked."""
    archive = target.with_name(f"{target.name}.tar")
    run(*TAR, "--format=posix", "-C", source, "-cf", archive, ".")
    target.mkdir()
    run(*TAR, "--same-permissions", "-C", target, "-xf", archive)
    archive.unlink()


CARRIERS: Final = [
    pytest.param(by_rsync, marks=needs("rsync", "setfacl"), id="rsync"),
    pytest.param(by_tar, marks=needs("tar", "setfacl"), id="tar"),
]


def check_equal(expected: Tree, folder: Path) -> None:
    """Compare a folder with a tree, and see that its sparse file has stayed one."""
    assert differences(expected, capture(folder)) == []
    assert os.stat(folder / "sparse").st_blocks * BYTES_OF_A_BLOCK < SPARSE_BYTES // 10


@pytest.mark.parametrize("carry", CARRIERS)
def test_a_tree_comes_through_the_mount_and_a_snapshot_unchanged(
    app_state: MountedState, disk: Path, carry: Callable[[Path, Path], None]
) -> None:
    """An independent walk finds every name, byte, link, hole, time, mode, owner and attribute."""
    source, current = disk / "source", app_state.files / "tree"
    make_rich_tree(source)
    expected = capture(source)
    carry(source, current)
    check_equal(expected, current)
    snapshot = app_state.snapshots / app_state.save() / "files" / "tree"
    check_equal(expected, snapshot)
    carry(current, disk / "from current")
    check_equal(expected, disk / "from current")
    shutil.rmtree(current)
    app_state.remount()
    carry(snapshot, disk / "from snapshot")
    check_equal(expected, disk / "from snapshot")
    carry(snapshot, current)
    check_equal(expected, current)


@needs("rsync", "setfacl")
def test_rsync_finds_nothing_to_do_where_nothing_changed(
    app_state: MountedState, disk: Path
) -> None:
    """Its own comparison, by checksum too, sees no difference; a changed tree is brought back."""
    source, current = disk / "source", app_state.files / "tree"
    make_rich_tree(source)
    by_rsync(source, current)
    snapshot = app_state.snapshots / app_state.save() / "files" / "tree"
    compare = [*RSYNC, "--delete", "--checksum", "--itemize-changes", "--dry-run"]
    assert run(*compare, f"{source}/", f"{current}/") == ""
    assert run(*compare, f"{source}/", f"{snapshot}/") == ""
    (current / "size 70000").write_text("changed")
    (current / "links" / "first 10").unlink()
    shutil.rmtree(current / "names")
    (current / "new").mkdir()
    assert run(*compare, f"{source}/", f"{current}/") != ""
    run(*RSYNC, "--delete", "--checksum", f"{snapshot}/", f"{current}/")
    check_equal(capture(source), current)


@needs("tar")
def test_tar_compares_an_archive_with_the_mount(app_state: MountedState, disk: Path) -> None:
    """`tar --compare` of an archive made from current finds its snapshot equal, then a change."""
    current, archive = app_state.files / "tree", disk / "tree.tar"
    current.mkdir()
    for number in range(50):
        (current / f"file {number}").write_bytes(os.urandom(number * 1_000))
    run("tar", "--format=posix", "-C", current, "-cf", archive, ".")
    snapshot = app_state.snapshots / app_state.save() / "files" / "tree"
    (current / "file 7").write_text("changed")
    run("tar", "-C", snapshot, "--compare", "-f", archive)
    with pytest.raises(AssertionError, match="file 7: "):
        run("tar", "-C", current, "--compare", "-f", archive)
